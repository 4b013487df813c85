//! The store: every operation of the contract as commands to Redis.

mod operations;
mod place;

use crate::{
    clock::Clock,
    config::{ConfigError, ConnectError, RedisConfig},
    decoded::Decoded,
    fault::Fault,
    lanes::Lanes,
    log::{LEASE, Logs},
    measures::{Measures, Operation},
    pending::Pending,
    topology::Topology,
    wake::{self, Wakes},
};
use larder::{
    semantics::{Entry, EntryId, EntryKey, Namespace, Timestamp, exchange::Filling, stored::Content, tags::Standing},
    store::{Claim, Filled, Found, Listener, Purge, Receipt, Seen, Selector, Store, StoreError, Ticket, Unused},
};
use operations::{Core, Offer, kind};
use place::Place;
use std::{
    fmt,
    future::Future,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, SemaphorePermit, oneshot},
    task::AbortHandle,
    time::{sleep, timeout},
};

/// How long connecting may keep its caller waiting; it goes on in the background after that.
const CONNECT_PATIENCE: Duration = Duration::from_millis(550);
/// How long after a failure what was deferred is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// A store in Redis, or in a server that speaks as Redis does.
///
/// It is cheap to clone; the connections end with the last clone.
#[derive(Clone)]
pub struct RedisStore {
    shared: Arc<Shared>,
}

struct Shared {
    core: Arc<Core>,
    config: RedisConfig,
    /// What it connects to, for the log.
    server: String,
    wakes: Arc<Wakes>,
    /// How often the store had connected when that was last reported.
    reported: AtomicU64,
    /// A key that was once read: what a probe may read, whatever the user's rights are.
    known_key: OnceLock<String>,
    runtime: Handle,
    background: Vec<AbortHandle>,
}

impl RedisStore {
    /// Connects to what a URL or a [`RedisConfig`] says.
    ///
    /// A server that cannot be reached is no error: the store keeps trying in the background, and begins to use Redis
    /// when it is there. This returns within 600 ms in any case. It must be called within a tokio runtime, in which the
    /// store's tasks then run.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), larder_redis::ConnectError> {
    /// let store = larder_redis::RedisStore::connect("redis://127.0.0.1:6379").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// When a setting cannot be used, Redis refuses the user, or its certificate is not accepted.
    pub async fn connect<C>(config: C) -> Result<Self, ConnectError>
    where
        C: TryInto<RedisConfig>,
        ConnectError: From<C::Error>,
    {
        Self::start(&config.try_into()?).await
    }

    /// Connects to what the environment says, as [`RedisConfig::from_env`] reads it.
    ///
    /// # Errors
    ///
    /// As for [`connect`](Self::connect), and when the environment does not say where Redis is.
    pub async fn from_env() -> Result<Self, ConnectError> {
        Self::start(&RedisConfig::from_env()?).await
    }

    async fn start(config: &RedisConfig) -> Result<Self, ConnectError> {
        config.check()?;
        let clock = Arc::new(Clock::new(config.wall_clock_shift));
        let measures = Arc::new(Measures::default());
        let Topology { data, bulk, ear, cluster, tasks: mut background, first } =
            Topology::new(config, &clock, &measures)?;
        let wakes = Arc::new(Wakes::new(ear, cluster, Handle::current()));
        let pending = Arc::new(Pending::default());
        let core = Core {
            logs: Logs::new(config, Arc::clone(&data), Arc::clone(&wakes), Arc::clone(&pending), Handle::current()),
            pending,
            defers: config.defer_purges,
            data,
            bulk,
            clock,
            decoded: Decoded::default(),
            measures,
            scan_rate: config.scan_rate,
            compress_from: config.compress_from,
            reads: Semaphore::new(config.in_flight),
            others: Arc::new(Semaphore::new(config.in_flight)),
            fill_bytes: Arc::new(Semaphore::new(config.fill_bytes)),
        };
        let core = Arc::new(core);
        background.push(tokio::spawn(catch_up(Arc::downgrade(&core))).abort_handle());
        let shared = Shared {
            core,
            config: config.clone(),
            server: config.target.to_string(),
            wakes,
            reported: AtomicU64::new(0),
            known_key: OnceLock::new(),
            runtime: Handle::current(),
            background,
        };
        if let Ok(Err(fault)) = timeout(CONNECT_PATIENCE, first).await {
            refusal(&fault, &shared.server)?;
        }
        let made = *shared.core.data.connections().borrow();
        shared.reported.store(made, Ordering::Relaxed);
        Ok(Self { shared: Arc::new(shared) })
    }

    pub(crate) fn config(&self) -> &RedisConfig {
        &self.shared.config
    }

    pub(crate) fn data(&self) -> Arc<Lanes> {
        Arc::clone(&self.shared.core.data)
    }

    pub(crate) fn wakes(&self) -> &Wakes {
        &self.shared.wakes
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.shared.runtime
    }

    /// Runs what must not be left half done when its caller goes away, in a task of its own: a command that is queued
    /// would run all the same, and nobody would know.
    async fn detached<T: Send + 'static>(
        &self,
        operation: Operation,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let core = Arc::clone(&self.shared.core);
        let permit = core
            .data
            .admits()
            .and_then(|()| Arc::clone(&core.others).try_acquire_owned().map_err(|_| StoreError::Busy));
        let permit = permit.inspect_err(|error| core.measures.refused(operation, error))?;
        let (done, outcome) = oneshot::channel();
        self.shared.runtime.spawn(async move {
            let started = Instant::now();
            let result = work.await;
            core.measures.record(operation, started, &result);
            drop(permit);
            // The caller may have gone.
            let _ = done.send(result);
        });
        outcome.await.unwrap_or_else(|_| Err(StoreError::Unavailable("the store's runtime has ended".to_owned())))
    }
}

impl Store for RedisStore {
    fn now(&self) -> Timestamp {
        self.shared.core.clock.now()
    }

    async fn get(&self, key: &EntryKey) -> Result<Found, StoreError> {
        let core = &self.shared.core;
        let permit = core.admits().and_then(|()| core.reads.try_acquire().map_err(|_| StoreError::Busy));
        let _permit: SemaphorePermit<'_> = permit.inspect_err(|error| core.measures.refused(Operation::Get, error))?;
        let started = Instant::now();
        let name = key.name();
        let found = core.get_valid(key, &name).await.map_err(StoreError::from);
        core.measures.record(Operation::Get, started, &found);
        if self.shared.known_key.get().is_none() {
            let _ = self.shared.known_key.set(name);
        }
        found
    }

    async fn claim(&self, key: &EntryKey, seen: Seen) -> Result<Claim, StoreError> {
        let (core, runtime) = (Arc::clone(&self.shared.core), self.shared.runtime.clone());
        let (key, nonce) = (key.clone(), EntryId(fastrand::u128(..).to_be_bytes()));
        let kind = kind(seen);
        let offer = async move {
            let mut offer = Offer { claim: None, core, runtime };
            match offer.core.claim(&key, nonce, seen).await {
                Ok(claim) => offer.claim = Some(claim),
                Err(error) => {
                    // The script may have been sent, and be run late: then its ticket is given back right after.
                    offer.claim = Some(Claim::Granted(Ticket { key, nonce, born: 0, kind }));
                    return Err(error);
                }
            }
            Ok(offer)
        };
        let mut offer = self.detached(Operation::Claim, offer).await?;
        Ok(offer.claim.take().unwrap_or(Claim::Held))
    }

    fn knows_gone(&self, key: &EntryKey, entry: &Entry) -> bool {
        let Content::Response(response) = &entry.content else { return false };
        let log = self.shared.core.logs.of(&key.namespace);
        log.known_standing(&response.tags, response.born) == Some(Standing::Gone)
    }

    async fn renew(&self, ticket: &Ticket) -> Result<bool, StoreError> {
        let (core, place) = (Arc::clone(&self.shared.core), Place::of_ticket(ticket));
        let (nonce, kind) = (ticket.nonce, ticket.kind);
        self.detached(Operation::Renew, async move { core.renew(&place, nonce, kind).await }).await
    }

    async fn fill(&self, ticket: Ticket, filling: Filling) -> Result<Filled, StoreError> {
        let core = Arc::clone(&self.shared.core);
        let weight = match &filling.response.content {
            Content::Response(response) => u32::try_from(response.body.len()).unwrap_or(u32::MAX),
            Content::Variants(_) => 0,
        };
        let Ok(budget) = Arc::clone(&core.fill_bytes).try_acquire_many_owned(weight) else {
            core.measures.refused(Operation::Fill, &StoreError::Busy);
            self.release(ticket, Unused::NoAnswer).await?;
            return Err(StoreError::Busy);
        };
        let fill = async move {
            let filled = core.fill(&ticket, &filling).await;
            if filled.is_err() {
                // Nobody else is to wait for a ticket that is spent; when this fails too, it runs out.
                let _ = core.release(&ticket, Unused::NoAnswer).await;
            }
            drop(budget);
            filled
        };
        self.detached(Operation::Fill, fill).await
    }

    async fn release(&self, ticket: Ticket, why: Unused) -> Result<(), StoreError> {
        let core = Arc::clone(&self.shared.core);
        let release = async move { core.release(&ticket, why).await };
        self.detached(Operation::Release, release).await
    }

    /// Listens before it leaves word that it does, so that nothing is missed in between.
    async fn turn(&self, key: &EntryKey, limit: Duration) {
        let place = Place::of(key);
        let interest = self.shared.wakes.listen(&key.namespace, place.ticket());
        let (core, channel) = (Arc::clone(&self.shared.core), wake::channel(&key.namespace));
        let is_held =
            timeout(limit, self.detached(Operation::Await, async move { core.leave_word(&place, channel).await }));
        if let Ok(Ok(true)) = is_held.await {
            let _ = timeout(limit, interest.heard()).await;
        }
    }

    async fn purge(&self, namespace: &Namespace, purge: &Purge) -> Result<Receipt, StoreError> {
        let (core, place, what) = (Arc::clone(&self.shared.core), namespace.clone(), purge.clone());
        let purged = self.detached(Operation::Purge, async move { core.purge_or_defer(&place, &what).await }).await;
        match purged {
            // It was not even begun, or this process came too late to see it done: to do it twice does no harm.
            Err(StoreError::Unavailable(_) | StoreError::Busy) if self.shared.core.defers && !purge.is_dry => {
                Ok(self.shared.core.defer(namespace, purge))
            }
            purged => purged,
        }
    }

    async fn supersede(&self, ticket: &Ticket) -> Result<bool, StoreError> {
        let (core, key, nonce) = (Arc::clone(&self.shared.core), ticket.key.clone(), ticket.nonce);
        let place = Place::of_ticket(ticket);
        let supersede = async move {
            let superseded = core.supersede(&place, nonce).await?;
            if superseded {
                core.logs.of(&key.namespace).tell(&Selector::Key(key.key), false).await?;
            }
            Ok(superseded)
        };
        self.detached(Operation::Supersede, supersede).await
    }

    async fn mark(&self, resource: &EntryKey, nonce: EntryId, life: Duration) -> Result<Receipt, StoreError> {
        let (core, resource) = (Arc::clone(&self.shared.core), resource.clone());
        self.detached(Operation::Purge, async move { core.mark(resource, nonce, life).await }).await
    }

    fn follow(&self, namespace: &Namespace, listener: Arc<dyn Listener>) {
        self.shared.core.logs.of(namespace).follow(listener);
    }

    fn tells(&self) -> bool {
        true
    }

    fn staleness_bound(&self) -> Duration {
        LEASE
    }

    fn wakes_within(&self) -> Option<Duration> {
        self.shared.core.data.wakes_within()
    }

    async fn probe(&self) -> Result<(), StoreError> {
        let core = &self.shared.core;
        core.data.admits().inspect_err(|error| core.measures.refused(Operation::Probe, error))?;
        let started = Instant::now();
        let answered = core.probe(self.shared.known_key.get()).await.map_err(StoreError::from);
        core.measures.record(Operation::Probe, started, &answered);
        answered
    }

    async fn reconnected(&self) {
        let reported = self.shared.reported.load(Ordering::Relaxed);
        let mut connections = self.shared.core.data.connections();
        let made = connections.wait_for(|made| *made > reported).await.map(|made| *made);
        // The lane lives as long as the store, so there is always something to wait for.
        self.shared.reported.fetch_max(made.unwrap_or_default(), Ordering::Relaxed);
    }

    fn is_divided(&self) -> bool {
        self.shared.core.data.is_divided()
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let data = &self.shared.core.data;
        f.debug_struct("RedisStore").field("server", &self.shared.server).field("connected", &data.is_open()).finish()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.background.iter().for_each(AbortHandle::abort);
    }
}

/// What a failed first attempt to connect means to whoever starts the program; most of it, nothing.
fn refusal(fault: &Fault, server: &str) -> Result<(), ConnectError> {
    let server = server.to_owned();
    match fault {
        Fault::Server(reply) if ["NOAUTH", "WRONGPASS", "NOPERM"].iter().any(|code| fault.is(code)) => {
            Err(ConnectError::Refused { server, reply: reply.clone() })
        }
        Fault::Server(reply) if reply.contains("DB index") => {
            Err(ConnectError::Refused { server, reply: reply.clone() })
        }
        Fault::Server(reply) if reply.starts_with("ERR unknown command") => {
            Err(ConnectError::Unsupported { server, reply: reply.clone() })
        }
        Fault::Connection(reason) if reason.contains("InvalidCertificate") => {
            Err(ConnectError::Certificate { server, reason: reason.clone() })
        }
        Fault::Server(reply) if reply.contains("cluster support disabled") => {
            let problem = format!("{server} is one server and no cluster; write redis://host:port");
            Err(ConfigError { setting: "cluster", problem }.into())
        }
        Fault::Unnamed(problem) => {
            let problem = format!("{problem}; it must be the name in their `sentinel monitor`");
            Err(ConfigError { setting: "service", problem }.into())
        }
        _ => Ok(()),
    }
}

/// Does what was deferred, as soon as it can be.
async fn catch_up(core: Weak<Core>) {
    let Some(mut connections) = core.upgrade().map(|core| core.data.connections()) else { return };
    let mut is_told = false;
    loop {
        let Some((pending, is_open)) = core.upgrade().map(|core| (core.pending.clone(), core.data.is_open())) else {
            return;
        };
        let Some(first) = pending.first().filter(|_| is_open) else {
            tokio::select! {
                () = pending.added() => {}
                _ = connections.changed() => {}
                () = sleep(RETRY_AFTER) => {}
            }
            continue;
        };
        let Some(core) = core.upgrade() else { return };
        match core.purge(&first.0, &first.1).await {
            Ok(_) => {
                is_told = false;
                pending.done(&first);
            }
            Err(error) => {
                if !std::mem::replace(&mut is_told, true) {
                    tracing::warn!(%error, "a purge that was deferred is not done yet: nothing is read before it is");
                }
                drop(core);
                sleep(RETRY_AFTER).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_operator_must_mend_keeps_a_store_from_starting() {
        let server = |text: &str| Fault::Server(text.to_owned());
        let refused = [
            server("WRONGPASS invalid username-password pair or user is disabled."),
            server("NOAUTH HELLO must be called with the client already authenticated"),
            server("NOPERM this user has no permissions to run the 'select' command"),
            server("ERR DB index is out of range"),
            server("ERR unknown command `HELLO`, with args beginning with: `3`,"),
            Fault::Connection("IO Error: Custom { error: InvalidCertificate(UnknownIssuer) }".to_owned()),
        ];
        for fault in refused {
            assert!(refusal(&fault, "h:1").is_err(), "{fault:?}");
        }
        let tried_again = [
            Fault::Timeout,
            Fault::Down,
            Fault::Connection("IO Error: Os { code: 111, kind: ConnectionRefused }".to_owned()),
            server("LOADING Redis is loading the dataset in memory"),
            server("ERR max number of clients reached"),
        ];
        for fault in tried_again {
            assert_eq!(refusal(&fault, "h:1"), Ok(()), "{fault:?}");
        }
    }

    #[test]
    fn what_belongs_to_a_resource_lies_in_its_slot() {
        let namespace = Namespace::new("shop", 2).expect("a name");
        let key = namespace.entry("user:123".into());
        let place = Place::of(&key);
        assert_eq!((place.name.as_str(), place.tickets.as_str()), ("shop:v2:{user:123}", "shop:v2:{user:123}:t"));
        assert_eq!(place.base, place.name);
        assert!(place.field.is_empty());
    }
}
