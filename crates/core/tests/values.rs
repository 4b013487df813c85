//! Values: what the program itself fetches, kept by the engine that keeps responses.
#![cfg(feature = "testing")]
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use larder::{
    Cache, Early, Known, MemoryStore, Purge, StoreError, TimedOut, Ttl, Value, Written,
    testing::{Fault, Faulty},
};
use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tower::{Layer, ServiceExt, service_fn};

const FETCH: Duration = Duration::from_millis(100);

/// What may be asked for a value, and how often it was.
#[derive(Clone, Default)]
struct Database(Arc<AtomicUsize>);

#[derive(Debug, PartialEq, Eq)]
enum Failed {
    Down,
    TimedOut,
}

impl From<TimedOut> for Failed {
    fn from(_: TimedOut) -> Self {
        Self::TimedOut
    }
}

impl Database {
    fn calls(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    async fn version(self) -> Result<String, Failed> {
        let version = self.0.fetch_add(1, Ordering::SeqCst) + 1;
        sleep(FETCH).await;
        Ok(format!("version {version}"))
    }

    async fn failure(self) -> Result<String, Failed> {
        self.0.fetch_add(1, Ordering::SeqCst);
        sleep(FETCH).await;
        Err(Failed::Down)
    }

    async fn nothing(self) -> Result<Option<String>, Failed> {
        self.0.fetch_add(1, Ordering::SeqCst);
        sleep(FETCH).await;
        Ok(None)
    }

    async fn fetched(&self, value: &Value) -> Result<String, Failed> {
        let database = self.clone();
        value.get_or_fetch(|| database.version()).await
    }

    async fn failing(&self, value: &Value) -> Result<String, Failed> {
        let database = self.clone();
        value.get_or_fetch(|| database.failure()).await
    }

    async fn found(&self, value: &Value) -> Result<Option<String>, Failed> {
        let database = self.clone();
        value.get_or_find(|| database.nothing()).await
    }
}

fn version(version: usize) -> Result<String, Failed> {
    Ok(format!("version {version}"))
}

async fn known(value: &Value) -> Known<String> {
    value.get().await
}

/// In memory, with what jitter would make uneven.
fn value(key: &str) -> (Value, Database) {
    (Cache::in_memory().value(key).jitter(0.0).ttl(Ttl::REALTIME), Database::default())
}

#[tokio::test(start_paused = true)]
async fn a_value_is_found_known_to_be_absent_or_not_known() {
    let (value, database) = value("user:1");
    assert_eq!(known(&value).await, Known::Missing);
    assert_eq!(database.found(&value).await, Ok(None));
    assert_eq!((database.found(&value).await, database.calls()), (Ok(None), 1));
    assert_eq!(known(&value).await, Known::Absent);
    assert_eq!(database.fetched(&value).await, version(2), "that there is none is not what this one asks for");
    assert_eq!(known(&value).await, Known::Found("version 2".to_owned()));
    assert_eq!((database.found(&value).await, database.calls()), (Ok(Some("version 2".to_owned())), 2));
    sleep(Ttl::REALTIME.lifetime()).await;
    assert_eq!(known(&value).await, Known::Missing);
    assert_eq!(database.fetched(&value).await, version(3));
}

#[tokio::test(start_paused = true)]
async fn what_is_absent_is_known_for_as_long_as_was_said_and_five_minutes_at_most() {
    let cache = Cache::in_memory();
    for (said, lasts) in [(None, 15), (Some(60), 60), (Some(3600), 300)] {
        let (value, database) = (cache.value(format!("user:{said:?}").as_str()).jitter(0.0), Database::default());
        let value = said.into_iter().fold(value, |value, said| value.negative_ttl(Duration::from_secs(said)));
        assert_eq!(database.found(&value).await, Ok(None));
        sleep(Duration::from_millis(lasts * 1000 - 200)).await;
        assert_eq!((known(&value).await, database.calls()), (Known::Absent, 1), "{said:?}");
        sleep(Duration::from_millis(200)).await;
        assert_eq!(known(&value).await, Known::Missing, "{said:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_all_who_ask_one_fetches_and_all_are_answered() {
    let (value, database) = value("user:1");
    let mut asking = JoinSet::new();
    for _ in 0..500 {
        let (value, database) = (value.clone(), database.clone());
        asking.spawn(async move { database.fetched(&value).await });
    }
    let answers = asking.join_all().await;
    assert!(answers.iter().all(|answer| *answer == version(1)) && answers.len() == 500);
    assert_eq!(database.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_error_is_its_callers_and_the_next_may_succeed() {
    let (value, database) = value("user:1");
    let (failed, followed) = tokio::join!(database.failing(&value), async {
        sleep(FETCH / 2).await;
        database.fetched(&value).await
    });
    assert_eq!((failed, followed), (Err(Failed::Down), version(2)));
    assert_eq!(known(&value).await, Known::Found("version 2".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn what_is_stale_answers_as_long_as_it_may() {
    let (value, database) = value("user:1");
    let value = value.stale_while_revalidate(Duration::from_secs(10)).stale_if_error(Duration::from_secs(60));
    assert_eq!(database.fetched(&value).await, version(1));
    sleep(Duration::from_secs(15)).await;
    let asked = Instant::now();
    assert_eq!(
        (database.fetched(&value).await, asked.elapsed()),
        (version(1), Duration::ZERO),
        "and is fetched behind"
    );
    sleep(FETCH * 2).await;
    assert_eq!((database.fetched(&value).await, database.calls()), (version(2), 2));
    sleep(Duration::from_secs(40)).await;
    assert_eq!(database.failing(&value).await, version(2), "in place of an error");
    sleep(Duration::from_secs(60)).await;
    assert_eq!(database.failing(&value).await, Err(Failed::Down));
}

#[tokio::test(start_paused = true)]
async fn who_may_not_wait_is_told_and_what_was_fetched_is_stored() {
    let (value, database) = value("user:1");
    let one = database.clone();
    let limited = value.get_or_fetch_within(FETCH / 2, || one.version()).await;
    assert_eq!(limited, Err(Failed::TimedOut));
    sleep(FETCH).await;
    assert_eq!((known(&value).await, database.calls()), (Known::Found("version 1".to_owned()), 1));
    let one = database.clone();
    assert_eq!(value.get_or_fetch_within(FETCH / 2, || one.version()).await, version(1));

    let value = value.soft_timeout(FETCH / 4).stale_if_error(Duration::from_secs(60));
    sleep(Duration::from_secs(11)).await;
    value.remove().await.unwrap();
    assert_eq!(database.fetched(&value).await, version(2));
    sleep(Duration::from_secs(11)).await;
    let asked = Instant::now();
    assert_eq!((database.fetched(&value).await, asked.elapsed()), (version(2), FETCH / 4));
    sleep(FETCH).await;
    assert_eq!((database.fetched(&value).await, database.calls()), (version(3), 3));
}

#[tokio::test(start_paused = true)]
async fn who_leaves_does_not_keep_others_from_what_was_fetched() {
    let (value, database) = value("user:1");
    let left = tokio::time::timeout(FETCH / 2, database.fetched(&value)).await;
    assert!(left.is_err());
    sleep(FETCH).await;
    assert_eq!((database.fetched(&value).await, database.calls()), (version(1), 1));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_fetched_anew_and_no_error() {
    let (value, database) = value("user:1");
    value.insert(&7).await.unwrap();
    assert_eq!(known(&value).await, Known::Missing);
    assert_eq!(value.peek::<String>().await, Ok(None));
    assert_eq!(database.fetched(&value).await, version(1));
    assert_eq!((database.fetched(&value).await, database.calls()), (version(1), 1), "it is replaced");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_written_is_the_callers_all_the_same() {
    let (value, calls) = (Cache::in_memory().value("pairs"), Arc::new(AtomicUsize::new(0)));
    for _ in 0..2 {
        let calls = calls.clone();
        let pairs = value.get_or_fetch(move || async move {
            calls.fetch_add(1, Ordering::SeqCst);
            Ok::<_, Infallible>(HashMap::from([((1, 2), 3)]))
        });
        assert_eq!(pairs.await, Ok(HashMap::from([((1, 2), 3)])), "JSON has no such keys");
    }
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn no_client_is_answered_with_a_value_and_no_value_is_what_a_client_gets() {
    let cache = Cache::in_memory();
    let value = cache.value("user:1");
    value.insert(&"a secret".to_owned()).await.unwrap();
    let service = cache.layer().key("user:1").layer(service_fn(async |_: Request<Empty<Bytes>>| {
        Ok::<_, Infallible>(Response::new(Full::from("\"public\"")))
    }));
    for x_cache in ["MISS", "HIT"] {
        let response = service.clone().oneshot(Request::new(Empty::new())).await.unwrap();
        assert_eq!(response.headers()["x-cache"], x_cache);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "\"public\"");
    }
    assert_eq!(known(&value).await, Known::Found("a secret".to_owned()));
    assert_eq!(cache.purge(Purge::key("user:1")).await.unwrap().resources, 1);
    assert_eq!(known(&value).await, Known::Missing);
    let response = service.oneshot(Request::new(Empty::new())).await.unwrap();
    assert_eq!(response.headers()["x-cache"], "MISS", "one purge reaches both");
}

#[tokio::test(start_paused = true)]
async fn what_was_invalidated_while_it_was_fetched_is_not_stored() {
    let cache = Cache::in_memory();
    let purges = [
        Purge::key("user:1"),
        Purge::tag("users"),
        Purge::prefix("user:"),
        Purge::all(),
        Purge::key("user:1").soft(),
        Purge::tag("users").soft(),
    ];
    for purge in purges {
        let (value, database) = (cache.value("user:1").tag("users"), Database::default());
        let (fetched, _) = tokio::join!(database.fetched(&value), async {
            sleep(FETCH / 2).await;
            cache.purge(purge.clone()).await.unwrap();
            // Who comes after it does not join what began before it.
            assert_eq!(database.fetched(&value).await, version(2), "{purge:?}");
        });
        assert_eq!(fetched, version(1));
        assert_eq!((database.fetched(&value).await, database.calls()), (version(2), 2), "{purge:?}");
        cache.purge(Purge::all()).await.unwrap();
    }
}

/// What happens in a refresh does not undo an invalidation of a tag.
#[tokio::test(start_paused = true)]
async fn row_02_a_tag_is_not_lost_in_a_refresh_of_a_value() {
    for early in [Early::Never, Early::At(0.5)] {
        let (cache, database) = (Cache::in_memory(), Database::default());
        let value = cache.value("user:1").jitter(0.0).ttl(Ttl::REALTIME);
        let value = value.tag("users").early(early).stale_while_revalidate(Duration::from_secs(60));
        assert_eq!(database.fetched(&value).await, version(1));
        sleep(Duration::from_secs(if early == Early::Never { 12 } else { 6 })).await;
        assert_eq!(database.fetched(&value).await, version(1), "refreshed behind");
        sleep(FETCH * 2).await;
        assert_eq!(database.fetched(&value).await, version(2), "{early:?}");
        cache.purge(Purge::tag("users")).await.unwrap();
        assert_eq!(database.fetched(&value).await, version(3), "the tag reaches what was refreshed: {early:?}");
    }
}

/// A client that has the response made anew does not have the value fetched anew.
#[tokio::test(start_paused = true)]
async fn row_20_no_client_has_a_value_fetched_anew() {
    let (cache, database) = (Cache::in_memory(), Database::default());
    let (user, asked) = (cache.value("user:1"), database.clone());
    let page = service_fn(move |_: Request<Empty<Bytes>>| {
        let (user, asked) = (user.clone(), asked.clone());
        async move { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(asked.fetched(&user).await.unwrap())))) }
    });
    let page = cache.layer().ttl(Ttl::REALTIME).honor_client_directives().layer(page);
    let busters = [
        ("accept", "*/*"),
        ("cache-control", "no-cache"),
        ("cache-control", "no-store"),
        ("cache-control", "max-age=0"),
        ("pragma", "no-cache"),
        ("x-apicache-bypass", "true"),
        ("x-apicache-force-fetch", "true"),
    ];
    for (field, said) in busters {
        let request = Request::get("http://shop.example/user").header(field, said).body(Empty::new()).unwrap();
        let response = page.clone().oneshot(request).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!((&body[..], database.calls()), (&b"version 1"[..], 1), "{field}: {said}");
    }
}

/// A store that is down makes no caller fail: each state of it, each thing that is asked.
#[tokio::test(start_paused = true)]
async fn row_21_a_dead_store_is_no_cache_for_values() {
    let store = Faulty::new(MemoryStore::default());
    let cache = Cache::builder().store(store.clone()).build().unwrap();
    let (value, database) = (cache.value("user:1"), Database::default());
    assert_eq!(database.fetched(&value).await, version(1));
    let down = StoreError::Unavailable("it is down".to_owned());
    for fault in [Fault::Fails(down), Fault::Hangs, Fault::Dawdles(Duration::from_secs(3))] {
        store.set(fault.clone());
        let before = database.calls();
        for call in 1..20 {
            let asked = Instant::now();
            assert_eq!(database.fetched(&value).await, version(before + call), "{fault:?}");
            assert!(asked.elapsed() <= FETCH + Duration::from_millis(350), "{fault:?}: {:?}", asked.elapsed());
            assert_eq!(known(&value).await, Known::Missing);
        }
        assert_eq!(database.failing(&value).await, Err(Failed::Down));
        assert!(value.insert(&"x".to_owned()).await.is_err(), "what was stored may still be there");
        store.set(Fault::None);
        store.reconnect();
        sleep(Duration::from_secs(5)).await;
        value.remove().await.unwrap();
        let calls = database.calls();
        assert_eq!(database.fetched(&value).await, version(calls + 1));
        sleep(FETCH).await;
        assert_eq!(database.fetched(&value).await, version(calls + 1), "{fault:?}: it is used again");
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_can_be_put_there_looked_at_and_removed() {
    let (value, database) = value("user:1");
    assert_eq!(value.peek::<String>().await, Ok(None));
    value.insert(&"here".to_owned()).await.unwrap();
    sleep(Duration::from_secs(4)).await;
    let peeked = value.peek::<String>().await.unwrap().unwrap();
    assert_eq!(peeked.known, Known::Found("here".to_owned()));
    assert_eq!((peeked.age.as_secs(), peeked.left.map(|left| left.as_secs())), (4, Some(6)));
    sleep(Duration::from_secs(7)).await;
    let peeked = value.peek::<String>().await.unwrap().unwrap();
    assert_eq!((peeked.age.as_secs(), peeked.left), (11, None), "stale, and kept a while");
    assert_eq!(known(&value).await, Known::Missing);

    let (fetched, _) = tokio::join!(database.fetched(&value), async {
        sleep(FETCH / 2).await;
        value.insert(&"newer".to_owned()).await.unwrap();
    });
    assert_eq!(fetched, version(1));
    assert_eq!(known(&value).await, Known::Found("newer".to_owned()), "what was on its way is not stored over it");
    assert_eq!(value.remove().await.unwrap().resources, 1);
    assert_eq!(known(&value).await, Known::Missing);
}

#[tokio::test(start_paused = true)]
async fn values_of_one_type_are_told_apart_by_their_ids() {
    let cache = Cache::in_memory();
    let users = cache.typed::<String>("user", |value| value.ttl(Ttl::FREQUENT).tag("users"));
    for id in [1, 3] {
        users.insert(id, &format!("user {id}")).await.unwrap();
    }
    let found = |id| Known::Found(format!("user {id}"));
    assert_eq!(users.get_many([3, 2, 1]).await, [found(3), Known::Missing, found(1)]);
    assert_eq!(users.get_many(0..1000).await.into_iter().filter_map(Known::found).count(), 2);
    assert_eq!(users.get(":1").await, Known::Missing, "no id spells another's key");
    assert_eq!(users.get_or_fetch(2, async || Ok::<_, Infallible>("user 2".to_owned())).await, Ok("user 2".into()));
    assert_eq!(users.get_or_find(4, async || Ok::<_, Infallible>(None)).await, Ok(None));
    assert_eq!(users.get_many([2, 4]).await, [found(2), Known::Absent]);
    users.remove(2).await.unwrap();
    assert_eq!(users.get(2).await, Known::Missing);
    cache.purge(Purge::tag("users")).await.unwrap();
    assert_eq!(users.get_many([1, 3]).await, [Known::Missing, Known::Missing]);
}

#[tokio::test(start_paused = true)]
async fn a_value_that_is_too_large_is_fetched_each_time() {
    let (value, database) = value("user:1");
    let value = value.largest(4);
    assert_eq!(database.fetched(&value).await, version(1));
    assert_eq!(database.fetched(&value).await, version(2));
    assert_eq!(known(&value).await, Known::Missing);
}

/// Writes `text` as what takes as long as a fetch.
async fn writing(value: &Value, text: &str) -> Written<String> {
    let write = async || {
        sleep(FETCH).await;
        Ok::<_, Infallible>(text.to_owned())
    };
    value.write(write).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_was_written_is_stored() {
    let (value, database) = value("user:1");
    assert_eq!(database.fetched(&value).await, version(1));
    let written = writing(&value, "written").await;
    assert_eq!(written, Written { value: "written".to_owned(), is_stored: true, is_deferred: false });
    assert_eq!((database.fetched(&value).await, database.calls()), (Ok("written".to_owned()), 1));
    let removed = value.write_found(async || Ok::<Option<String>, Infallible>(None)).await.unwrap();
    assert!(removed.is_stored && removed.value.is_none());
    assert_eq!(known(&value).await, Known::Absent);
    let failed = value.write(async || Err::<String, _>(Failed::Down)).await;
    assert_eq!(failed, Err(Failed::Down));
    assert_eq!(known(&value).await, Known::Missing, "it is not known what was changed");
}

#[tokio::test(start_paused = true)]
async fn while_it_is_written_everybody_fetches_and_nothing_of_that_stays() {
    let (value, database) = value("user:1");
    let (written, ()) = tokio::join!(writing(&value, "written"), async {
        sleep(FETCH / 4).await;
        assert_eq!(known(&value).await, Known::Missing);
        assert_eq!(database.fetched(&value).await, version(1), "as it was before");
    });
    assert!(written.is_stored);
    sleep(FETCH).await;
    assert_eq!(
        database.fetched(&value).await,
        Ok("written".to_owned()),
        "nobody joins who began before it was written"
    );
    assert_eq!(database.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn of_two_who_write_neither_stores_what_may_be_older() {
    let (value, database) = value("user:1");
    let (one, other) = tokio::join!(writing(&value, "one"), async {
        sleep(FETCH / 2).await;
        writing(&value, "other").await
    });
    assert!(!one.is_stored && !other.is_stored && !one.is_deferred);
    assert_eq!(database.fetched(&value).await, version(1), "what is in the database");
}

#[tokio::test(start_paused = true)]
async fn who_leaves_while_writing_leaves_nothing_old() {
    let (value, database) = value("user:1");
    assert_eq!(database.fetched(&value).await, version(1));
    assert!(tokio::time::timeout(FETCH / 2, writing(&value, "written")).await.is_err());
    tokio::task::yield_now().await;
    assert_eq!(database.fetched(&value).await, version(2));
    assert_eq!((database.fetched(&value).await, database.calls()), (version(2), 2), "and what is fetched is stored");
}

#[tokio::test(start_paused = true)]
async fn a_dead_store_does_not_make_a_write_fail_and_what_it_holds_is_removed_later() {
    let store = Faulty::new(MemoryStore::default());
    let cache = Cache::builder().store(store.clone()).build().unwrap();
    let (value, database) = (cache.value("user:1"), Database::default());
    for dies_at in [Duration::ZERO, FETCH / 2] {
        value.remove().await.unwrap();
        let before = database.calls();
        assert_eq!(database.fetched(&value).await, version(before + 1));
        let (written, ()) = tokio::join!(writing(&value, "written"), async {
            sleep(dies_at).await;
            store.set(Fault::Fails(StoreError::Unavailable("it is down".to_owned())));
        });
        assert!(written.is_deferred && !written.is_stored, "{dies_at:?}");
        sleep(Duration::from_secs(20)).await;
        store.set(Fault::None);
        store.reconnect();
        sleep(Duration::from_secs(4)).await;
        assert_eq!(database.fetched(&value).await, version(before + 2), "{dies_at:?}: what was there is gone");
    }
}
