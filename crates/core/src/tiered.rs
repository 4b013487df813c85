//! A near store in this process before a far one that is shared.

use crate::{
    MemoryStore,
    memory::Looked,
    store::{Claim, Copied, Filled, Found, Purge, Purged, Seen, Store, StoreError, Ticket, Unused},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use larder_semantics::{
    Content, Entry, EntryKey, Namespace, StoredResponse, Timestamp, exchange::Filling, stored::Delivery,
};
use std::{sync::Arc, time::Duration};

/// Answers from memory for a short while what was read from, or written to, the store behind it.
///
/// The far store decides: tickets are its own, and a purge reaches it before it returns. What another process purges,
/// this one may still answer from memory for [`near_life`](Self::near_life).
#[derive(Debug)]
pub struct Tiered<S> {
    near: MemoryStore,
    far: S,
    near_life: Duration,
}

/// The largest body that is kept near, in bytes.
const LARGEST_NEAR: usize = 256 << 10;

impl<S> Tiered<S> {
    /// How long a copy is kept near when nothing else is said.
    pub const DEFAULT_NEAR_LIFE: Duration = Duration::from_secs(5);

    /// Puts `near` before `far`.
    pub fn new(near: MemoryStore, far: S) -> Self {
        Self { near, far, near_life: Self::DEFAULT_NEAR_LIFE }
    }

    /// How long a copy is kept near at most. Default 5 s.
    #[must_use]
    pub fn near_life(self, near_life: Duration) -> Self {
        Self { near_life, ..self }
    }
}

impl<S: Store> Tiered<S> {
    /// Keeps a copy near for as long as it is fresh, `longest` at most, unless it was purged since `epoch`.
    fn keep(&self, epoch: u64, key: &EntryKey, entry: &Arc<Entry>, longest: Duration) {
        let left = match &entry.content {
            Content::Response(response) if response.body.len() > LARGEST_NEAR => return,
            Content::Response(response) => response.lifetime.saturating_sub(response.age(self.far.now())),
            Content::Variants(_) => longest,
        };
        if !left.is_zero() {
            self.near.keep_since(epoch, key.clone(), Arc::new(detached(entry)), left.min(longest));
        }
    }
}

/// A copy of an entry that does not keep the buffer alive that the entry was read from.
///
/// A client of a shared store hands out slices of its read buffer: a small entry could else hold on to megabytes.
fn detached(entry: &Entry) -> Entry {
    let content = match &entry.content {
        Content::Variants(rule) => Content::Variants(rule.clone()),
        Content::Response(response) => {
            let mut headers = HeaderMap::with_capacity(response.headers.len());
            for (name, value) in &response.headers {
                headers.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone()));
            }
            let body = Bytes::copy_from_slice(&response.body);
            Content::Response(StoredResponse { headers, body, delivery: Delivery::default(), ..response.clone() })
        }
    };
    Entry { id: entry.id, content }
}

impl<S: Store> Store for Tiered<S> {
    fn now(&self) -> Timestamp {
        self.far.now()
    }

    fn at_hand(&self, key: &EntryKey) -> Option<(Arc<Entry>, Timestamp)> {
        let Looked::There(entry) = self.near.look(key) else { return None };
        Some((entry, self.far.now()))
    }

    async fn get(&self, key: &EntryKey) -> Result<Found, StoreError> {
        if let Looked::There(entry) = self.near.look(key) {
            return Ok(Found::Entry(entry, Copied::Near));
        }
        let epoch = self.near.epoch(key);
        let found = self.far.get(key).await?;
        if let Found::Entry(entry, _) = &found {
            self.keep(epoch, key, entry, self.near_life);
        }
        Ok(found)
    }

    async fn claim(&self, key: &EntryKey, seen: Seen) -> Result<Claim, StoreError> {
        let epoch = self.near.epoch(key);
        let claim = self.far.claim(key, seen).await?;
        if let Claim::Found(entry) = &claim {
            self.keep(epoch, key, entry, self.near_life);
        }
        Ok(claim)
    }

    async fn renew(&self, ticket: &Ticket) -> Result<bool, StoreError> {
        self.far.renew(ticket).await
    }

    async fn fill(&self, ticket: Ticket, filling: Filling) -> Result<Filled, StoreError> {
        let epoch = self.near.epoch(&filling.key);
        let filled = self.far.fill(ticket, filling.clone()).await?;
        if filled == Filled::Stored {
            let longest = self.near_life.min(filling.stored_for);
            if let Some(rule) = &filling.rule {
                self.keep(epoch, &filling.key.base(), rule, longest);
            }
            self.keep(epoch, &filling.key, &filling.response, longest);
        }
        Ok(filled)
    }

    async fn release(&self, ticket: Ticket, why: Unused) -> Result<(), StoreError> {
        self.far.release(ticket, why).await
    }

    async fn turn(&self, key: &EntryKey, limit: Duration) {
        self.far.turn(key, limit).await;
    }

    /// Near, far, and near again: what was read from the far store just before it was purged must not stay near.
    async fn purge(&self, namespace: &Namespace, purge: &Purge) -> Result<Purged, StoreError> {
        let Purge::Tags(tags) = purge else {
            self.near.purge(namespace, purge).await?;
            let purged = self.far.purge(namespace, purge).await;
            self.near.purge(namespace, purge).await?;
            return purged;
        };
        let purged = self.far.purge(namespace, purge).await;
        // Where the far store cannot say when it was, nothing with these tags answers from here until it can.
        self.near.invalidated(namespace, tags, purged.as_ref().map_or(u64::MAX, |purged| purged.clock));
        purged
    }

    /// Near, far, and near again, as a purge.
    async fn supersede(&self, ticket: &Ticket) -> Result<bool, StoreError> {
        let base = ticket.key.base();
        self.near.forget(&base);
        let superseded = self.far.supersede(ticket).await;
        self.near.forget(&base);
        superseded
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.far.probe().await
    }

    async fn reconnected(&self) {
        self.far.reconnected().await;
    }
}
