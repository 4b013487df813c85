//! A near store in this process before a far one that is shared.

use crate::{
    MemoryStore,
    memory::Looked,
    store::{
        Claim, Copied, Filled, Found, Listener, Purge, Receipt, Seen, Selector, Store, StoreError, Ticket, Unused,
    },
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use larder_semantics::{
    Content, Entry, EntryId, EntryKey, Namespace, StoredResponse, Timestamp, delivery::Delivery, exchange::Filling,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// Answers from memory for a short while what was read from, or written to, the store behind it.
///
/// The far store decides: tickets are its own, and a purge reaches it before it returns. Where the far store tells what other
/// processes purge, as Redis does, this one answers from memory only while it is sure to be told; what was not told in time is
/// answered for [`near_life`](Self::near_life) at most.
#[derive(Debug)]
pub struct Tiered<S> {
    near: Arc<Near>,
    far: S,
    near_life: Duration,
}

/// The near store, and until when it is known to hold nothing that another process has purged.
#[derive(Debug)]
struct Near {
    store: MemoryStore,
    /// Whether the far store tells what others purge. One that does not vouches for nothing, and `near_life` is all there is.
    is_told: AtomicBool,
    /// Until when it has vouched, in milliseconds since `began`; zero if never.
    vouched: AtomicU64,
    began: Instant,
}

impl Near {
    /// Whether what is near may answer.
    fn may_answer(&self) -> bool {
        !self.is_told.load(Ordering::Acquire) || self.since_began(Instant::now()) < self.vouched.load(Ordering::Acquire)
    }

    /// Whether copies may be kept: what was purged since they were read will have been told before they answer.
    fn may_keep(&self) -> bool {
        !self.is_told.load(Ordering::Acquire) || self.vouched.load(Ordering::Acquire) > 0
    }

    fn since_began(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX)
    }

    /// Removes what is named by its key.
    fn forget(&self, namespace: &Namespace, selector: &Selector) {
        match selector {
            Selector::Key(key) => _ = self.store.forget(&namespace.entry(key.clone())),
            Selector::Pattern(pattern) => _ = self.store.sweep(namespace, pattern, false, false),
            Selector::Tags(_) | Selector::All => {}
        }
    }

    /// Removes what was purged behind it, when the clock there showed `at`.
    fn follow(&self, namespace: &Namespace, selector: &Selector, at: u64) {
        match selector {
            Selector::Tags(tags) => self.store.invalidated(namespace, Some(tags), at),
            Selector::All => self.store.invalidated(namespace, None, at),
            Selector::Key(_) | Selector::Pattern(_) => self.forget(namespace, selector),
        }
    }
}

/// Hears for the near store what others have purged, and passes it on.
struct Ears {
    near: Arc<Near>,
    namespace: Namespace,
    next: Arc<dyn Listener>,
}

impl Listener for Ears {
    fn invalidated(&self, selector: &Selector, at: u64) {
        self.near.follow(&self.namespace, selector, at);
        self.next.invalidated(selector, at);
    }

    fn lost(&self) {
        self.near.store.clear();
        self.next.lost();
    }

    fn vouched(&self, until: Instant) {
        self.near.vouched.fetch_max(self.near.since_began(until), Ordering::AcqRel);
        self.next.vouched(until);
    }
}

/// The largest body that is kept near, in bytes.
const LARGEST_NEAR: usize = 256 << 10;

impl<S> Tiered<S> {
    /// How long a copy is kept near when nothing else is said.
    pub const DEFAULT_NEAR_LIFE: Duration = Duration::from_secs(5);

    /// Puts `near` before `far`.
    pub fn new(near: MemoryStore, far: S) -> Self {
        let (is_told, vouched) = (AtomicBool::new(false), AtomicU64::new(0));
        let near = Arc::new(Near { store: near, is_told, vouched, began: Instant::now() });
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
        if !left.is_zero() && self.near.may_keep() {
            self.near.store.keep_since(epoch, key.clone(), Arc::new(detached(entry)), left.min(longest));
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
        let Looked::There(entry) = self.near.store.look(key) else { return None };
        if !self.near.may_answer() {
            return None;
        }
        Some((entry, self.far.now()))
    }

    async fn get(&self, key: &EntryKey) -> Result<Found, StoreError> {
        if let Looked::There(entry) = self.near.store.look(key)
            && self.near.may_answer()
        {
            return Ok(Found::Entry(entry, Copied::Near));
        }
        let epoch = self.near.store.epoch(key);
        let found = self.far.get(key).await?;
        if let Found::Entry(entry, _) = &found {
            self.keep(epoch, key, entry, self.near_life);
        }
        Ok(found)
    }

    async fn claim(&self, key: &EntryKey, seen: Seen) -> Result<Claim, StoreError> {
        let epoch = self.near.store.epoch(key);
        let claim = self.far.claim(key, seen).await?;
        match &claim {
            Claim::Found(entry, _) => self.keep(epoch, key, entry, self.near_life),
            // What is looked up anew is not to be a copy of what is gone.
            Claim::Moved => _ = self.near.store.forget(&key.resource()),
            _ => {}
        }
        Ok(claim)
    }

    fn knows_gone(&self, key: &EntryKey, entry: &Entry) -> bool {
        self.far.knows_gone(key, entry)
    }

    async fn renew(&self, ticket: &Ticket) -> Result<bool, StoreError> {
        self.far.renew(ticket).await
    }

    async fn fill(&self, ticket: Ticket, filling: Filling) -> Result<Filled, StoreError> {
        let epoch = self.near.store.epoch(&filling.key);
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
    async fn purge(&self, namespace: &Namespace, purge: &Purge) -> Result<Receipt, StoreError> {
        if purge.is_dry {
            return self.far.purge(namespace, purge).await;
        }
        self.near.forget(namespace, &purge.selector);
        let purged = self.far.purge(namespace, purge).await;
        match (&purged, &purge.selector) {
            (Ok(receipt), selector) if !receipt.is_deferred => self.near.follow(namespace, selector, receipt.clock),
            // What had these tags cannot be told.
            (_, Selector::Tags(_) | Selector::All) => self.near.store.clear(),
            (_, selector) => self.near.forget(namespace, selector),
        }
        purged
    }

    async fn mark(&self, resource: &EntryKey, nonce: EntryId, life: Duration) -> Result<Receipt, StoreError> {
        self.near.store.forget(resource);
        let marked = self.far.mark(resource, nonce, life).await;
        self.near.store.forget(resource);
        marked
    }

    fn follow(&self, namespace: &Namespace, next: Arc<dyn Listener>) {
        if self.far.tells() {
            self.near.is_told.store(true, Ordering::Release);
        }
        let ears = Ears { near: self.near.clone(), namespace: namespace.clone(), next };
        self.far.follow(namespace, Arc::new(ears));
    }

    /// What the far store does not tell is near for that long; so is what another process has removed there and not yet told
    /// of, when it ends in between.
    fn staleness_bound(&self) -> Duration {
        self.far.staleness_bound().max(self.near_life)
    }

    fn tells(&self) -> bool {
        self.far.tells()
    }

    /// Near, far, and near again, as a purge.
    async fn supersede(&self, ticket: &Ticket) -> Result<bool, StoreError> {
        let base = ticket.key.resource();
        self.near.store.forget(&base);
        let superseded = self.far.supersede(ticket).await;
        self.near.store.forget(&base);
        superseded
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.far.probe().await
    }

    async fn reconnected(&self) {
        self.far.reconnected().await;
    }
}
