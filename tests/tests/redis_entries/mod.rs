//! What the tests of the Redis store say in one word: keys, entries, and what a store is asked.
#![allow(dead_code, reason = "no file uses all of it")]

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use larder::{
    semantics::{Content, Entry, EntryId, EntryKey, Filling, Key, Namespace, StoredResponse, stored::Basis},
    store::{Claim, Filled, Found, Purge, Seen, Store, StoreError, Ticket},
};
use larder_redis::RedisStore;
use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

/// The namespace that the tests' ACL user may use.
pub(crate) fn shop() -> Namespace {
    Namespace::new("shop", 2).expect("a name")
}

pub(crate) fn key(text: &str) -> EntryKey {
    shop().entry(Key::new(text))
}

pub(crate) fn id() -> EntryId {
    EntryId(fastrand::u128(..).to_be_bytes())
}

pub(crate) async fn connect(url: &str) -> RedisStore {
    RedisStore::connect(url).await.expect("a store")
}

pub(crate) fn entry(store: &RedisStore, body: impl Into<Bytes>) -> Arc<Entry> {
    let response = StoredResponse {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        delivery: Default::default(),
        body: body.into(),
        received_at: store.now(),
        initial_age: Duration::ZERO,
        lifetime: Duration::from_secs(60),
        keep: Duration::ZERO,
        stale: Default::default(),
        basis: Basis::Response,
        origin_cost: Duration::ZERO,
        tags: Vec::new(),
        // Nothing is invalidated after that.
        born: 1 << 60,
        generation: 0,
    };
    Arc::new(Entry { id: id(), content: Content::Response(response) })
}

pub(crate) fn filling(key: &EntryKey, entry: &Arc<Entry>) -> Filling {
    Filling { key: key.clone(), response: entry.clone(), rule: None, stored_for: Duration::from_secs(60) }
}

/// Claims what is absent, or panics.
pub(crate) async fn claim(store: &RedisStore, key: &EntryKey) -> Ticket {
    match store.claim(key, Seen::Absent).await {
        Ok(Claim::Granted(ticket)) => ticket,
        other => panic!("the ticket for {key:?} should have been granted: {other:?}"),
    }
}

/// Stores `body` where nothing is, or panics.
pub(crate) async fn put(store: &RedisStore, key: &EntryKey, body: impl Into<Bytes>) {
    let ticket = claim(store, key).await;
    let filled = store.fill(ticket, filling(key, &entry(store, body))).await;
    assert_eq!(filled, Ok(Filled::Stored), "{key:?}");
}

/// The body that is stored; `None` when nothing readable is.
pub(crate) async fn body(store: &RedisStore, key: &EntryKey) -> Result<Option<Bytes>, StoreError> {
    Ok(match store.get(key).await? {
        Found::Entry(entry, _) => body_of(&entry),
        Found::Absent | Found::Invalidated(_) | Found::Unreadable(_) => None,
    })
}

pub(crate) fn body_of(entry: &Entry) -> Option<Bytes> {
    match &entry.content {
        Content::Response(response) => Some(response.body.clone()),
        Content::Variants(_) => None,
    }
}

pub(crate) async fn purge(store: &RedisStore, key: &EntryKey) -> Result<u64, StoreError> {
    Ok(store.purge(&key.namespace, &Purge::key(key.key.clone())).await?.resources)
}

/// Waits until `holds`, and returns how long that took; panics after ten seconds.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) -> Duration {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < Duration::from_secs(10), "ten seconds have passed, and not: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    began.elapsed()
}
