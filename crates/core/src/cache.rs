//! The handle of a cache, and what all its layers share.

use crate::{
    CacheBuilder, CacheLayer,
    background::Background,
    engine::Grant,
    fill::{UNCACHEABLE_FOR, release_after},
    flights::Flights,
    nested::Around,
    observe::{self, Observer},
    routing::Routing,
    search::Variances,
    share::Fetched,
    store::{AnyStore, Listener, Purge, Receipt, Selector, StoreError, Ticket, TicketKind},
    values::Terms,
    write::WriteGuard,
};
use http::Extensions;
use larder_semantics::{EntryId, EntryKey, Forward, Key, Namespace, Refusal, Storing, VariantId};
use quick_cache::sync::Cache as Bounded;
use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// A cache: one store, and what all the layers over it share.
///
/// Clones are the same cache. [`Cache::layer`] makes the layers that put it before a service.
#[derive(Clone)]
pub struct Cache {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) store: Arc<dyn AnyStore>,
    pub(crate) namespace: Namespace,
    pub(crate) routing: Option<Arc<dyn Routing>>,
    pub(crate) identifier: String,
    pub(crate) settings: Settings,
    pub(crate) observer: Observer,
    pub(crate) flights: Arc<Fetches>,
    pub(crate) detaching: Arc<Detaching>,
    pub(crate) background: Background,
    /// What this process has asked to be fetched anew before its time, and when.
    pub(crate) early: Bounded<EntryKey, Instant>,
    /// Resources whose last response was refused, and until when they count as uncacheable.
    pub(crate) uncacheable: Bounded<EntryKey, Instant>,
    pub(crate) variances: Variances,
    /// How values are kept where nothing is said.
    pub(crate) values: OnceLock<Arc<Terms>>,
}

/// What is being fetched in this process.
type Fetches = Flights<EntryKey, Option<VariantId>, Fetched>;

/// Keeps those who come after an invalidation from joining those who came before it.
pub(crate) struct Detaching {
    flights: Arc<Fetches>,
    namespace: Namespace,
    /// Until when all that others have invalidated was told here; nothing, if the store does not tell.
    told: Mutex<Option<Instant>>,
}

impl Detaching {
    pub(crate) fn new(flights: Arc<Fetches>, namespace: Namespace, is_told: bool) -> Self {
        Self { flights, namespace, told: Mutex::new(is_told.then(Instant::now)) }
    }

    fn detach_resource(&self, resource: &EntryKey) {
        self.flights.detach(resource);
        self.flights.detach(&resource.value());
    }

    fn detach(&self, selector: &Selector) {
        match selector {
            Selector::Key(key) => self.detach_resource(&self.namespace.entry(key.clone())),
            // What answers will have is not known before they are there.
            Selector::Tags(_) | Selector::Pattern(_) | Selector::All => self.flights.detach_all(),
        }
    }

    /// The same for a resource of which an invalidation may have been missed, where that was longer ago than `bound`.
    fn detach_unsure(&self, resource: &EntryKey, bound: Duration) {
        let (told, now) = (*self.told(), Instant::now());
        if told.is_some_and(|until| until < now)
            && let Some(since) = now.checked_sub(bound)
        {
            self.flights.detach_older(resource, since.into_std());
        }
    }

    fn told(&self) -> MutexGuard<'_, Option<Instant>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener for Detaching {
    fn invalidated(&self, selector: &Selector, _: u64) {
        self.detach(selector);
    }

    fn lost(&self) {
        self.flights.detach_all();
    }

    fn vouched(&self, until: Instant) {
        *self.told() = Some(until);
    }
}

/// How long a request may wait, and for what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// For the store, in all.
    pub(crate) store_budget: Duration,
    /// For one answer of the store, which keeps to that by itself.
    pub(crate) read_deadline: Duration,
    /// For another request's fetch, before one of those who wait takes over.
    pub(crate) lock_wait: Duration,
}

/// How far apart a process asks for one response to be fetched anew before its time.
const EARLY_SPACING: Duration = Duration::from_secs(1);

impl Cache {
    /// Begins to configure a cache.
    pub fn builder() -> CacheBuilder {
        CacheBuilder::default()
    }

    /// A cache in this process's memory, with every setting at its default.
    pub fn in_memory() -> Self {
        CacheBuilder::in_memory()
    }

    /// A layer over this cache, with every setting at its default: responses that state no lifetime get
    /// [`Ttl::STANDARD`](crate::Ttl::STANDARD).
    pub fn layer(&self) -> CacheLayer {
        CacheLayer::new(self.clone())
    }

    /// Removes what `purge` names. When this has returned `Ok`, no answer that the origin was asked for before is
    /// served to a request that comes after, nor ever stored.
    ///
    /// # Errors
    ///
    /// When the store cannot be reached, or refuses: what was to be removed may still be there. Dropping the future
    /// leaves the purge either done or not done; with [`no_vary_search`](CacheLayer::no_vary_search), done for some of the
    /// keys that what was named is stored under.
    pub async fn purge(&self, purge: Purge) -> Result<Receipt, StoreError> {
        let Selector::Key(key) = &purge.selector else { return self.remove(purge).await };
        let query = key.query();
        let mut receipt = Receipt::default();
        for key in self.shared.variances.keys_of(key.clone(), query.as_deref()) {
            let one = self.remove(Purge { selector: Selector::Key(key), ..purge }).await?;
            receipt = Receipt { resources: receipt.resources + one.resources, ..one };
        }
        Ok(receipt)
    }

    /// The same, of one key only.
    pub(crate) async fn remove(&self, purge: Purge) -> Result<Receipt, StoreError> {
        if !purge.is_dry {
            self.shared.detaching.detach(&purge.selector);
        }
        let purged = self.shared.store.purge(&self.shared.namespace, &purge).await;
        if !purge.is_dry {
            self.shared.detaching.detach(&purge.selector);
        }
        purged
    }

    /// Removes the resource whose ticket this is, all but what may yet be stored with it; whether that was done.
    pub(crate) async fn supersede(&self, ticket: &Ticket) -> bool {
        let resource = ticket.key.resource();
        self.shared.detaching.detach_resource(&resource);
        let superseded = self.shared.store.supersede(ticket).await;
        self.shared.detaching.detach_resource(&resource);
        superseded == Ok(true)
    }

    /// Begins a change at the origin of what `purge` names; whether it is soft does not count. Dropping the future may leave a
    /// resource marked for 30 s, in which nothing of it is stored.
    ///
    /// ```
    /// # async fn example(cache: larder::Cache) -> Result<(), larder::StoreError> {
    /// let write = cache.begin_write(larder::Purge::key("user:123")).await;
    /// // Change it in the database, and commit there.
    /// write.commit().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn begin_write(&self, purge: Purge) -> WriteGuard {
        WriteGuard::begin(self.clone(), purge).await
    }

    /// Purges what the origin may go on to answer as it was for as long as `lag`, as one does that reads from replicas of a
    /// database.
    ///
    /// Nothing of a resource that is named by its key is stored meanwhile, unless a server with too little memory evicts what
    /// tells so. What is named otherwise is purged once more when the
    /// time is over, if this process still lives.
    ///
    /// # Errors
    ///
    /// As [`purge`](Self::purge).
    pub async fn purge_and_hold_down(&self, purge: Purge, lag: Duration) -> Result<Receipt, StoreError> {
        if let Selector::Key(key) = &purge.selector
            && !purge.is_dry
        {
            let nonce = EntryId(fastrand::u128(..).to_be_bytes());
            return self.mark(key, nonce, lag).await;
        }
        let receipt = self.purge(purge.clone()).await?;
        let cache = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(lag).await;
            if let Err(error) = cache.purge(purge).await {
                tracing::warn!(%error, "what the origin answered before its replicas were up to date may still be stored");
            }
        });
        Ok(receipt)
    }

    /// Removes a resource and has nothing of it stored for a while, under every key that it is looked up by.
    pub(crate) async fn mark(&self, key: &Key, nonce: EntryId, life: Duration) -> Result<Receipt, StoreError> {
        let mut receipt = Receipt::default();
        for key in self.shared.variances.keys_of(key.clone(), key.query().as_deref()) {
            let selector = Selector::Key(key.clone());
            self.shared.detaching.detach(&selector);
            let resource = self.shared.namespace.entry(key);
            let one = self.shared.store.mark(&resource, nonce, life).await;
            self.shared.detaching.detach(&selector);
            receipt = one.map(|one| Receipt { resources: receipt.resources + one.resources, ..one })?;
        }
        Ok(receipt)
    }

    /// Keeps those who come from now on from joining those who are on their way.
    pub(crate) fn detach(&self, selector: &Selector) {
        self.shared.detaching.detach(selector);
    }

    /// The tickets of a mark, under every key that its resource is looked up by.
    pub(crate) fn tickets(&self, key: &Key, nonce: EntryId, born: u64) -> Vec<Ticket> {
        let ticket = |key| Ticket { key: self.shared.namespace.entry(key), nonce, born, kind: TicketKind::Write };
        self.shared.variances.keys_of(key.clone(), key.query().as_deref()).into_iter().map(ticket).collect()
    }

    /// How long after an invalidation has returned `Ok`, other processes may still answer with what it has invalidated: the
    /// longest, whatever messages are lost on the way. This process does not. It follows from the settings; the gauge
    /// `larder.staleness.bound` (seconds) tells it too.
    ///
    /// It holds while the store works. After an outage in which invalidations may have been lost, what happens is the store's
    /// setting.
    pub fn staleness_bound(&self) -> Duration {
        self.shared.store.staleness_bound()
    }

    /// Waits until all is done that clients have left to be done: answers that are still being fetched or stored, refreshes,
    /// invalidations. Returns how much is left after `limit`. For the end of a program, after its last request.
    pub async fn drain(&self, limit: Duration) -> usize {
        self.shared.background.drain(limit).await
    }

    /// Has nobody who comes now share a fetch of `resource` that began before an invalidation of which this process, cut off
    /// from the store, has heard nothing.
    pub(crate) fn detach_unsure(&self, resource: &EntryKey) {
        self.shared.detaching.detach_unsure(resource, self.staleness_bound());
    }

    pub(crate) fn background(&self) -> &Background {
        &self.shared.background
    }

    /// Whether this process is the one to have `key` fetched anew before its time: once a second.
    pub(crate) fn asks_early(&self, key: &EntryKey) -> bool {
        let asks = !self.has_asked_early(key);
        if asks {
            self.shared.early.insert(key.clone(), Instant::now());
        }
        asks
    }

    /// Whether it has just done so.
    pub(crate) fn has_asked_early(&self, key: &EntryKey) -> bool {
        self.shared.early.get(key).is_some_and(|asked| asked.elapsed() < EARLY_SPACING)
    }

    /// The cache whose layer a request came through, if any: for a handler that wants to purge.
    pub fn of(extensions: &Extensions) -> Option<&Self> {
        extensions.get::<Around>().map(|around| &around.cache)
    }

    pub(crate) fn new(shared: Shared) -> Self {
        let cache = Self { shared: Arc::new(shared) };
        observe::staleness_bound(cache.shared.namespace.name(), cache.staleness_bound());
        cache.shared.store.follow(&cache.shared.namespace, cache.shared.detaching.clone());
        cache
    }

    pub(crate) fn store(&self) -> &Arc<dyn AnyStore> {
        &self.shared.store
    }

    pub(crate) fn observer(&self) -> &Observer {
        &self.shared.observer
    }

    pub(crate) fn identifier(&self) -> &str {
        &self.shared.identifier
    }

    pub(crate) fn routing(&self) -> Option<&Arc<dyn Routing>> {
        self.shared.routing.as_ref()
    }

    /// Whether two handles are the same cache.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Lets everyone go who waits for an answer that is not stored, and remembers it where the next will be the same.
    pub(crate) fn refuse(&self, grant: Box<Grant>, refusal: Refusal) {
        self.shared.observer.skipped(refusal);
        if refusal.is_lasting() {
            self.know_uncacheable(&grant.key);
            if let Some(lease) = grant.lease {
                lease.give_up();
            }
        }
        if let Some(lead) = grant.lead {
            lead.release(release_after(refusal));
        }
    }

    /// The same, of an answer that is passed on only, if it is not stored for a reason.
    pub(crate) fn pass(&self, grant: Option<Box<Grant>>, storing: Storing) {
        if let (Some(grant), Storing::Refused(refusal)) = (grant, storing) {
            self.refuse(grant, refusal);
        }
    }

    /// The same for whoever has just got the right to store the answer: fetched anew, if what it holds is known to have been
    /// invalidated since, as the answer will count as later than that.
    pub(crate) fn doubt(&self, forward: Forward, key: &EntryKey) -> Forward {
        match forward.stored() {
            Some(entry) if self.store().knows_gone(key, entry) => forward.anew(),
            _ => forward,
        }
    }

    /// Remembers that the responses of a resource are not stored.
    pub(crate) fn know_uncacheable(&self, key: &EntryKey) {
        self.shared.uncacheable.insert(key.base(), Instant::now() + UNCACHEABLE_FOR);
    }

    /// Whether a response of this resource was refused a moment ago.
    pub(crate) fn is_uncacheable(&self, key: &EntryKey) -> bool {
        self.shared.uncacheable.get(key).is_some_and(|until| until > Instant::now())
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("namespace", &self.shared.namespace).finish_non_exhaustive()
    }
}
