//! How a cache is put together.

use crate::{
    Cache, ConfigError, MemoryStore, Tiered,
    background::Background,
    cache::{Detaching, Settings, Shared},
    flights::Flights,
    guard::{Deadlines, Guard, LONGEST_WAIT},
    observe::Observer,
    routing::Routing,
    search::Variances,
    store::{AnyStore, Store},
};
use larder_semantics::{Namespace, status};
use quick_cache::sync::Cache as Bounded;
use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

/// Configures a [`Cache`].
#[must_use = "a builder does nothing until `build` is called"]
pub struct CacheBuilder {
    store: Option<Compose>,
    near: Option<MemoryStore>,
    near_life: Duration,
    deadlines: Deadlines,
    namespace: String,
    schema_version: u32,
    identifier: String,
    routing: Option<Arc<dyn Routing>>,
    store_budget: Duration,
    lock_wait: Duration,
    refreshes: usize,
    fetches: usize,
}

/// Puts a guard around the store that was given, and the near tier before it.
type Compose = Box<dyn FnOnce(Deadlines, Option<(MemoryStore, Duration)>) -> Arc<dyn AnyStore> + Send>;

/// How many resources are remembered as uncacheable.
const MOST_UNCACHEABLE: usize = 10_000;

impl Default for CacheBuilder {
    fn default() -> Self {
        Self {
            store: None,
            near: None,
            near_life: Tiered::<MemoryStore>::DEFAULT_NEAR_LIFE,
            deadlines: Deadlines::default(),
            namespace: Namespace::default().name().to_owned(),
            schema_version: 1,
            identifier: status::IDENTIFIER.to_owned(),
            routing: None,
            store_budget: Duration::from_millis(100),
            lock_wait: Duration::from_secs(5),
            refreshes: 256,
            fetches: 1024,
        }
    }
}

impl CacheBuilder {
    /// Where responses are kept. Default: this process's memory, 64 MiB of it.
    ///
    /// A store outside the process is given deadlines and a circuit breaker; see [`Guard`](crate::Guard).
    pub fn store(self, store: impl Store) -> Self {
        let compose = |deadlines, near| -> Arc<dyn AnyStore> {
            match near {
                _ if !store.is_remote() => Arc::new(store),
                None => Arc::new(Guard::new(store, deadlines)),
                Some((near, life)) => Arc::new(Tiered::new(near, Guard::new(store, deadlines)).near_life(life)),
            }
        };
        Self { store: Some(Box::new(compose)), ..self }
    }

    /// Keeps copies in this process, before a store that is outside of it. Default none.
    pub fn near(self, near: MemoryStore) -> Self {
        Self { near: Some(near), ..self }
    }

    /// How long a copy is kept near: the longest that this process may answer with what another has purged.
    /// Default 5 s.
    pub fn near_life(self, near_life: Duration) -> Self {
        Self { near_life, ..self }
    }

    /// How long operations on the store may take. Default 100 ms for reads, 250 ms for fills.
    pub fn deadlines(self, deadlines: Deadlines) -> Self {
        Self { deadlines, ..self }
    }

    /// How long one request may wait for the store in all. Default 100 ms.
    pub fn store_budget(self, store_budget: Duration) -> Self {
        Self { store_budget, ..self }
    }

    /// How long one request may wait for another that fetches the same. Default 5 s.
    ///
    /// After that, one of those who wait asks the origin in its place, and the others wait for either; when four have taken so
    /// long, the rest ask for themselves.
    pub fn lock_wait(self, lock_wait: Duration) -> Self {
        Self { lock_wait, ..self }
    }

    /// How many stale responses may be refreshed in the background at the same time; beyond that, they answer and are not
    /// refreshed yet. Default 256.
    pub fn background_refreshes(self, refreshes: usize) -> Self {
        Self { refreshes, ..self }
    }

    /// How many fetches may go on at the same time after their clients have left, so that their work is not lost; beyond that,
    /// a fetch ends with its client, as it would without a cache. Default 1,024.
    pub fn background_fetches(self, fetches: usize) -> Self {
        Self { fetches, ..self }
    }

    /// The name before all keys, so that several programs can share a store: 1 to 64 letters, digits, dots, hyphens
    /// and underscores. Default `larder`.
    pub fn namespace(self, namespace: &str) -> Self {
        Self { namespace: namespace.to_owned(), ..self }
    }

    /// The version of what handlers answer. Raise it when a deploy changes that: old and new instances then do not
    /// read each other's entries. Default 1.
    pub fn schema_version(self, schema_version: u32) -> Self {
        Self { schema_version, ..self }
    }

    /// How this cache calls itself in `Cache-Status`: a token. Default `larder`.
    pub fn identifier(self, identifier: &str) -> Self {
        Self { identifier: identifier.to_owned(), ..self }
    }

    /// Who tells the route and the path parameters of requests: a value from the crate of your framework.
    pub fn routing(self, routing: impl Routing) -> Self {
        Self { routing: Some(Arc::new(routing)), ..self }
    }

    /// The cache.
    ///
    /// # Errors
    ///
    /// When a setting cannot work; the error names the setting, what was found, and what would be right.
    pub fn build(self) -> Result<Cache, ConfigError> {
        let namespace = Namespace::new(&self.namespace, self.schema_version).map_err(ConfigError::Namespace)?;
        if !status::is_identifier(&self.identifier) {
            return Err(ConfigError::Identifier(self.identifier));
        }
        if self.store_budget.is_zero() {
            return Err(ConfigError::NoBudget(self.store_budget));
        }
        if let Some(deadline) = self.deadlines.impossible() {
            return Err(ConfigError::NoTime(deadline));
        }
        let (lock_wait, read) = (self.lock_wait, self.deadlines.read);
        if lock_wait <= read {
            return Err(ConfigError::LockWait { lock_wait, read });
        }
        Ok(self.assemble(namespace))
    }

    pub(crate) fn in_memory() -> Cache {
        Self::default().assemble(Namespace::default())
    }

    fn assemble(self, namespace: Namespace) -> Cache {
        let near = self.near.map(|near| (near, self.near_life));
        let store = match self.store {
            Some(compose) => compose(self.deadlines, near),
            None => Arc::new(near.map_or_else(MemoryStore::default, |(near, _)| near)),
        };
        let flights = Arc::new(Flights::new());
        let detaching = Arc::new(Detaching::new(flights.clone(), namespace.clone(), store.tells()));
        Cache::new(Shared {
            store,
            observer: Observer::new(namespace.name()),
            detaching,
            namespace,
            routing: self.routing,
            identifier: self.identifier,
            settings: Settings {
                store_budget: self.store_budget.min(LONGEST_WAIT),
                read_deadline: self.deadlines.read.min(LONGEST_WAIT),
                lock_wait: self.lock_wait.min(LONGEST_WAIT),
            },
            flights,
            background: Background::new(self.refreshes, self.fetches),
            early: Bounded::new(MOST_UNCACHEABLE),
            uncacheable: Bounded::new(MOST_UNCACHEABLE),
            variances: Variances::new(),
            values: OnceLock::new(),
        })
    }
}

impl fmt::Debug for CacheBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheBuilder").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}
