//! The store: every operation of the contract as commands to Redis.

use crate::{
    checkup,
    chunks::{LARGEST_WHOLE, Manifest},
    client::{Patience, Reply},
    clock::Clock,
    config::{ConfigError, ConnectError, RedisConfig},
    decoded::Decoded,
    fault::Fault,
    lane::Lane,
    lanes::Lanes,
    log::{LEASE, Logs},
    measures::{Measures, Operation},
    pending::Pending,
    sweep::Sweep,
    topology::Topology,
    wake::{self, Wakes},
};
use bytes::{Bytes, BytesMut};
use larder::{
    codec,
    semantics::{
        Entry, EntryId, EntryKey, Namespace, Part, Pattern, Timestamp, exchange::Filling, stored::Content,
        tags::Standing,
    },
    store::{
        Claim, Copied, Filled, Found, Listener, MARK_LIFE, Purge, Receipt, Seen, Selector, Store, StoreError,
        TICKET_LIFE, Ticket, TicketKind, UNCACHEABLE_LIFE, Unreadable, Unused,
    },
};
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
/// After what time a purge is deferred, if it may be.
const DEFERRED_AFTER: Duration = Duration::from_millis(1_500);
/// How long after a failure what was deferred is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// The longest that anything is stored; beyond some length, Redis refuses.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How much longer than their entry its chunks live, so that they outlast whoever has just read the manifest.
const CHUNKS_OUTLIVE: u64 = 10_000;
/// The memory that is set aside for an entry in chunks before any is read: the default limit of bodies, and a head.
const USUAL: usize = (1 << 20) + (16 << 10);
/// How many chunks of one entry are in flight at the same time.
const ABREAST: u32 = 4;

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

/// What the operations need that run in tasks of their own.
struct Core {
    /// For everything that is small.
    data: Arc<Lanes>,
    /// For the chunks of large entries, behind which nothing small is to wait.
    bulk: Arc<Lanes>,
    clock: Arc<Clock>,
    decoded: Decoded,
    logs: Logs,
    /// Purges that are yet to be done.
    pending: Arc<Pending>,
    /// Whether those that cannot be done are left to be.
    defers: bool,
    measures: Arc<Measures>,
    scan_rate: u32,
    reads: Semaphore,
    /// Apart from the reads: were they to take all there is, nobody could claim what they all miss.
    others: Arc<Semaphore>,
    fill_bytes: Arc<Semaphore>,
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
            // It was not even begun.
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

/// The names of what belongs to one key.
struct Place {
    /// Of the entry.
    name: String,
    /// Of the resource's response, or the rule by which it varies.
    base: String,
    /// Of its value.
    value: String,
    /// Of the hash of the resource's tickets: one for all variants, so that removing it voids every fill.
    tickets: String,
    /// The ticket's field in it.
    field: Bytes,
    /// Of the hash of those who are writing the resource.
    marks: String,
}

impl Place {
    /// What the script calls the ticket when it tells of it.
    fn ticket(&self) -> String {
        format!("{}|{}", self.tickets, String::from_utf8_lossy(&self.field))
    }

    fn of(key: &EntryKey) -> Self {
        let field = match key.part {
            Part::Variant(variant) => variant.digest.to_string(),
            Part::Value => "value".to_owned(),
            _ => String::new(),
        };
        Self::of_field(key, field)
    }

    fn of_ticket(ticket: &Ticket) -> Self {
        match ticket.kind {
            TicketKind::Change => Self::of_field(&ticket.key, CHANGE.to_owned()),
            TicketKind::Fetch | TicketKind::Write => Self::of(&ticket.key),
        }
    }

    fn of_field(key: &EntryKey, field: String) -> Self {
        let resource = key.resource();
        let (base, value) = (resource.name(), resource.value().name());
        let (tickets, marks) = (format!("{base}:t"), format!("{base}:w"));
        Self { name: key.name(), tickets, base, value, field: field.into(), marks }
    }
}

/// What a claim came to, on its way to whoever asked. If nobody takes it, its ticket is given back.
struct Offer {
    claim: Option<Claim>,
    core: Arc<Core>,
    runtime: Handle,
}

impl Drop for Offer {
    fn drop(&mut self) {
        if let Some(Claim::Granted(ticket)) = self.claim.take() {
            let core = Arc::clone(&self.core);
            self.runtime.spawn(async move {
                // When it fails, the ticket runs out.
                let _ = core.release(&ticket, Unused::NoAnswer).await;
            });
        }
    }
}

impl Core {
    /// Reads an entry, and whether its tags still let it answer.
    async fn get_valid(&self, key: &EntryKey, name: &str) -> Result<Found, Fault> {
        let found = self.get(name).await?;
        let Found::Entry(entry, copied) = &found else { return Ok(found) };
        let Content::Response(response) = &entry.content else { return Ok(found) };
        let log = self.logs.of(&key.namespace);
        let standing = match log.known_standing(&response.tags, response.born) {
            Some(standing) => standing,
            // Boxed, as it is rare, and large enough to tell in every other read.
            None => Box::pin(log.standing(&response.tags, response.born)).await?,
        };
        Ok(match standing {
            Standing::Valid => found,
            Standing::StaleSince(at) => Found::Entry(Arc::new(entry.stale_since(at)), *copied),
            Standing::Gone => Found::Invalidated(entry.id),
        })
    }

    async fn get(&self, name: &str) -> Result<Found, Fault> {
        let key = Bytes::copy_from_slice(name.as_bytes());
        let bytes = match self.data.get(key).await {
            Ok(Reply::Bytes(bytes)) => bytes,
            Ok(Reply::Nil) => return Ok(Found::Absent),
            Err(fault) if fault.is("WRONGTYPE") => return Ok(Found::Unreadable(Unreadable::Foreign)),
            Ok(_) | Err(Fault::Foreign) => {
                self.data.foreign(name);
                return Ok(Found::Unreadable(Unreadable::OtherKey));
            }
            Err(fault) => return Err(fault),
        };
        Ok(match self.read(name, bytes).await? {
            Ok(entry) => Found::Entry(entry, Copied::Far),
            Err(unreadable) => {
                if unreadable == Unreadable::OtherKey {
                    self.data.foreign(name);
                }
                Found::Unreadable(unreadable)
            }
        })
    }

    /// Reads the entry in what was found under `name`.
    async fn read(&self, name: &str, bytes: Bytes) -> Result<Result<Arc<Entry>, Unreadable>, Fault> {
        if !Manifest::is_in(&bytes) {
            return Ok(self.decoded.decode(bytes, name));
        }
        match Manifest::decode(&bytes, name) {
            // Boxed, as it is four times as large as the rest, and rare.
            Ok(manifest) => Ok(Box::pin(self.join(name, &manifest)).await?.map(Arc::new)),
            Err(unreadable) => Ok(Err(unreadable)),
        }
    }

    /// Puts together an entry that is in chunks.
    async fn join(&self, name: &str, manifest: &Manifest) -> Result<Result<Entry, Unreadable>, Fault> {
        // Beyond the usual, it grows with what is really there: the manifest's word is not enough.
        let mut entry = BytesMut::with_capacity(usize::try_from(manifest.length).unwrap_or(0).min(USUAL));
        for first in (0..manifest.chunks).step_by(ABREAST as usize) {
            let chunk = |ahead| self.chunk(name, manifest, first.saturating_add(ahead));
            let (one, two, three, four) = tokio::join!(chunk(0), chunk(1), chunk(2), chunk(3));
            for piece in [one?, two?, three?, four?] {
                match piece {
                    Ok(piece) => entry.extend_from_slice(&piece),
                    Err(unreadable) => return Ok(Err(unreadable)),
                }
            }
        }
        let entry = codec::decode(entry.freeze(), name);
        let entry = entry.and_then(|entry| if entry.id == manifest.id { Ok(entry) } else { Err(Unreadable::Corrupt) });
        Ok(match manifest.stale_since {
            Some(at) => entry.map(|entry| entry.stale_since(at)),
            None => entry,
        })
    }

    /// Reads one chunk; nothing, beyond the last.
    async fn chunk(&self, name: &str, manifest: &Manifest, index: u32) -> Result<Result<Bytes, Unreadable>, Fault> {
        if index >= manifest.chunks {
            return Ok(Ok(Bytes::new()));
        }
        let key = Bytes::from(manifest.chunk_name(name, index));
        let piece = match self.bulk.get(key).await {
            Ok(Reply::Bytes(bytes)) => manifest.piece(&bytes, index),
            Ok(Reply::Nil) => return Ok(Err(Unreadable::Truncated)),
            Err(fault) if fault.is("WRONGTYPE") => return Ok(Err(Unreadable::Foreign)),
            Ok(_) | Err(Fault::Foreign) => Err(Unreadable::OtherKey),
            Err(fault) => return Err(fault),
        };
        if piece == Err(Unreadable::OtherKey) {
            self.bulk.foreign(name);
            // The entry itself is this key's; what it lacks is a chunk.
            return Ok(Err(Unreadable::Truncated));
        }
        Ok(piece)
    }

    async fn claim(&self, key: &EntryKey, nonce: EntryId, seen: Seen) -> Result<Claim, StoreError> {
        self.admits()?;
        // Before the ticket is placed, and so before the origin is asked.
        let born = self.logs.of(&key.namespace).clock().await?;
        let kind = kind(seen);
        let place = if kind == TicketKind::Change { Place::of_field(key, CHANGE.to_owned()) } else { Place::of(key) };
        let rule = key.variant().map(|variant| Bytes::copy_from_slice(&variant.rule.0)).unwrap_or_default();
        let mut seen = match seen {
            Seen::Absent => Bytes::new(),
            Seen::Entry(id) => Bytes::copy_from_slice(&id.0),
            Seen::Unreadable | Seen::Changing => UNREADABLE,
        };
        let keys = [place.tickets.as_str(), &place.name, &place.base, &place.marks];
        loop {
            let arguments = [place.field.clone(), text(nonce), ticket_life(), seen, rule.clone()];
            let mut answer = self.data.run(Patience::Read, "claim", &keys, &arguments).await?.into_iter();
            match (word(answer.next())?.as_ref(), answer.next()) {
                (b"granted", None) => return Ok(Claim::Granted(Ticket { key: key.clone(), nonce, born, kind })),
                (b"held", None) => return Ok(Claim::Held),
                (b"moved", None) => return Ok(Claim::Moved),
                (b"marked", None) => return Ok(Claim::Marked),
                (b"uncacheable", None) => return Ok(Claim::Uncacheable),
                (b"found", Some(Reply::Bytes(bytes))) => {
                    if let Ok(entry) = self.read(&place.name, bytes).await? {
                        return Ok(Claim::Found(entry));
                    }
                    // For that, the script grants a ticket or says who has it, so this is the last round.
                    seen = UNREADABLE;
                }
                _ => return Err(unexpected()),
            }
        }
    }

    async fn renew(&self, place: &Place, nonce: EntryId, kind: TicketKind) -> Result<bool, StoreError> {
        let answer = if kind == TicketKind::Write {
            let arguments = [text(nonce), text(MARK_LIFE.as_millis())];
            self.data.run(Patience::Write, "remark", &[&place.marks], &arguments).await?
        } else {
            let arguments = [place.field.clone(), text(nonce), ticket_life()];
            self.data.run(Patience::Write, "renew", &[&place.tickets], &arguments).await?
        };
        match word(answer.into_iter().next())?.as_ref() {
            b"renewed" => Ok(true),
            b"void" => Ok(false),
            _ => Err(unexpected()),
        }
    }

    async fn fill(&self, ticket: &Ticket, filling: &Filling) -> Result<Filled, StoreError> {
        let (place, name) = (Place::of_ticket(ticket), filling.key.name());
        let life = filling.stored_for.clamp(Duration::from_millis(1), LONGEST);
        let life = u64::try_from(life.as_millis()).unwrap_or(u64::MAX);
        let mut entry = codec::encode(&filling.response, &name);
        if entry.len() > LARGEST_WHOLE {
            let manifest = Manifest::of(filling.response.id, &entry);
            Box::pin(self.cut(&name, &manifest, &entry, life.saturating_add(CHUNKS_OUTLIVE))).await?;
            entry = manifest.encode(&name);
        }
        if ticket.kind == TicketKind::Write {
            return self.conclude(ticket, &place, &name, text(life), entry).await;
        }
        let mut keys = vec![place.tickets.as_str(), &name];
        let mut arguments = vec![place.field, text(ticket.nonce), text(life), entry];
        if let Some(rule) = &filling.rule {
            keys.push(&place.base);
            arguments.push(codec::encode(rule, &place.base));
        }
        let answer = self.data.run(Patience::Write, "fill", &keys, &arguments).await?;
        match word(answer.into_iter().next())?.as_ref() {
            b"stored" => {
                self.know_tags(filling).await;
                Ok(Filled::Stored)
            }
            b"void" => Ok(Filled::Voided),
            _ => Err(unexpected()),
        }
    }

    /// Stores what was written, and tells others, who may be fetching what was there before.
    async fn conclude(
        &self,
        ticket: &Ticket,
        place: &Place,
        name: &str,
        life: Bytes,
        entry: Bytes,
    ) -> Result<Filled, StoreError> {
        let arguments = [text(ticket.nonce), life, entry];
        let answer = self.data.run(Patience::Write, "conclude", &[&place.marks, name], &arguments).await?;
        match word(answer.into_iter().next())?.as_ref() {
            b"stored" => {
                self.logs.of(&ticket.key.namespace).tell(&Selector::Key(ticket.key.key.clone()), false).await?;
                Ok(Filled::Stored)
            }
            b"void" => Ok(Filled::Voided),
            _ => Err(unexpected()),
        }
    }

    /// Writes the chunks of an entry. They are nothing to anyone before their manifest is there.
    async fn cut(&self, name: &str, manifest: &Manifest, entry: &Bytes, life: u64) -> Result<(), Fault> {
        let life = text(life);
        let chunk = async |index: u32| {
            if index >= manifest.chunks {
                return Ok(());
            }
            let key = Bytes::from(manifest.chunk_name(name, index));
            let arguments = vec![key, manifest.cut(entry, index), Bytes::from_static(b"PX"), life.clone()];
            self.bulk.call(Patience::Write, "SET", 0, arguments).await.map(drop)
        };
        for first in (0..manifest.chunks).step_by(ABREAST as usize) {
            let ahead = |ahead| chunk(first.saturating_add(ahead));
            tokio::try_join!(ahead(0), ahead(1), ahead(2), ahead(3))?;
        }
        Ok(())
    }

    /// Leaves word that somebody waits for a ticket; whether there is one to wait for.
    async fn leave_word(&self, place: &Place, channel: String) -> Result<bool, StoreError> {
        let arguments = [place.field.clone(), Bytes::from(channel)];
        let answer = self.data.run(Patience::Read, "await", &[&place.tickets], &arguments).await?;
        match word(answer.into_iter().next())?.as_ref() {
            b"held" => Ok(true),
            b"free" => Ok(false),
            _ => Err(unexpected()),
        }
    }

    async fn release(&self, ticket: &Ticket, why: Unused) -> Result<(), StoreError> {
        let (place, nonce) = (Place::of_ticket(ticket), ticket.nonce);
        if ticket.kind == TicketKind::Write {
            self.data.run(Patience::Purge, "unmark", &[&place.marks], &[text(nonce)]).await?;
            return Ok(());
        }
        let mark = match why {
            Unused::NoAnswer => Bytes::from_static(b"0"),
            Unused::Uncacheable => text(UNCACHEABLE_LIFE.as_millis()),
        };
        let arguments = [place.field.clone(), text(nonce), mark];
        self.data.run(Patience::Write, "release", &[&place.tickets], &arguments).await?;
        Ok(())
    }

    /// Has a record made for each tag of what was stored, so that the first to read it finds them.
    async fn know_tags(&self, filling: &Filling) {
        if let Content::Response(response) = &filling.response.content
            && !response.tags.is_empty()
            && let Err(fault) = self.logs.of(&filling.key.namespace).know(&response.tags).await
        {
            tracing::debug!(?fault, "the records of tags are left to whoever reads them");
        }
    }

    /// Refuses what is read while there is no connection, or while purges wait that it may be about.
    fn admits(&self) -> Result<(), StoreError> {
        self.data.admits()?;
        if self.pending.is_waiting() {
            return Err(StoreError::Unavailable("purges are yet to be done".to_owned()));
        }
        Ok(())
    }

    fn defer(&self, namespace: &Namespace, purge: &Purge) -> Receipt {
        self.pending.add(namespace, purge);
        Receipt { is_deferred: true, ..Receipt::default() }
    }

    async fn purge_or_defer(&self, namespace: &Namespace, purge: &Purge) -> Result<Receipt, StoreError> {
        if !self.defers {
            return self.purge(namespace, purge).await;
        }
        // Sooner than whoever asks gives up.
        let is_long = matches!(purge.selector, Selector::Pattern(_));
        let purged = if is_long {
            self.purge(namespace, purge).await
        } else {
            timeout(DEFERRED_AFTER, self.purge(namespace, purge)).await.unwrap_or(Err(StoreError::Timeout))
        };
        match purged {
            Err(error) if error.is_outage() && !purge.is_dry => Ok(self.defer(namespace, purge)),
            purged => purged,
        }
    }

    /// Removes first, and tells others then.
    async fn purge(&self, namespace: &Namespace, purge: &Purge) -> Result<Receipt, StoreError> {
        let Purge { selector, is_soft, is_dry } = purge;
        let log = self.logs.of(namespace);
        let resources = match selector {
            Selector::Pattern(pattern) if *is_dry => self.sweep(namespace, pattern).count().await?,
            _ if *is_dry => 0,
            Selector::Pattern(pattern) => self.sweep(namespace, pattern).purge(*is_soft).await?,
            Selector::Key(key) => self.purge_key(&Place::of(&namespace.entry(key.clone())), *is_soft).await?,
            _ => {
                let done = log.invalidate(selector, *is_soft).await?;
                self.pending.remember(namespace, purge);
                let tags = if let Selector::Tags(tags) = selector { tags.len() as u64 } else { 0 };
                return Ok(Receipt { tags, clock: done.clock, logged: Some(done.logged), ..Receipt::default() });
            }
        };
        let logged = if *is_dry { None } else { Some(log.tell(selector, *is_soft).await?) };
        if !is_dry {
            self.pending.remember(namespace, purge);
        }
        Ok(Receipt { resources, logged, ..Receipt::default() })
    }

    fn sweep<'s>(&'s self, namespace: &'s Namespace, pattern: &'s Pattern) -> Sweep<'s> {
        Sweep { lanes: &self.bulk, namespace, pattern, rate: self.scan_rate, measures: &self.measures }
    }

    async fn mark(&self, resource: EntryKey, nonce: EntryId, life: Duration) -> Result<Receipt, StoreError> {
        let (place, log) = (Place::of(&resource), self.logs.of(&resource.namespace));
        let clock = log.clock().await?;
        let keys = [place.tickets.as_str(), &place.base, &place.value, &place.marks];
        let life = life.clamp(Duration::from_millis(1), LONGEST);
        let arguments = [Bytes::from_static(b"hard"), text(nonce), text(life.as_millis())];
        let answer = self.data.run(Patience::Purge, "mark", &keys, &arguments).await?;
        let had = word(answer.into_iter().next())? == "had";
        let logged = log.tell(&Selector::Key(resource.key), false).await?;
        Ok(Receipt { resources: u64::from(had), clock, logged: Some(logged), ..Receipt::default() })
    }

    async fn purge_key(&self, place: &Place, is_soft: bool) -> Result<u64, StoreError> {
        let mode = Bytes::from_static(if is_soft { b"soft" } else { b"hard" });
        let keys = [place.tickets.as_str(), &place.base, &place.value, &place.marks];
        let answer = match self.data.run(Patience::Purge, "purge", &keys, &[mode]).await {
            Err(fault) if fault.is("TRYAGAIN") => return Ok(self.purge_key_by_key(place).await?),
            answer => answer?,
        };
        match word(answer.into_iter().next())?.as_ref() {
            b"had" => Ok(1),
            b"none" => Ok(0),
            _ => Err(unexpected()),
        }
    }

    /// Purges a resource of which a cluster has moved one key to another server, and not yet the rest: no script runs there.
    ///
    /// The tickets first: no fill that was in flight is stored after that, and what was stored before goes with the entry.
    async fn purge_key_by_key(&self, place: &Place) -> Result<u64, Fault> {
        let unlink = async |key: &str| {
            let key = Bytes::copy_from_slice(key.as_bytes());
            self.data.call(Patience::Purge, "UNLINK", 0, vec![key]).await
        };
        unlink(&place.tickets).await?;
        self.data.run(Patience::Purge, "disturb", &[&place.marks], &[]).await?;
        let had = unlink(&place.base).await? == Reply::Number(1);
        let had_value = unlink(&place.value).await? == Reply::Number(1);
        Ok(u64::from(had || had_value))
    }

    async fn supersede(&self, place: &Place, nonce: EntryId) -> Result<bool, StoreError> {
        let arguments = [place.field.clone(), text(nonce), ticket_life()];
        let keys = [place.tickets.as_str(), &place.base, &place.value, &place.marks];
        let answer = self.data.run(Patience::Write, "supersede", &keys, &arguments).await?;
        match word(answer.into_iter().next())?.as_ref() {
            b"superseded" => Ok(true),
            b"void" => Ok(false),
            _ => Err(unexpected()),
        }
    }

    async fn probe(&self, key: Option<&String>) -> Result<(), Fault> {
        self.data.ping().await?;
        if let Some(key) = key {
            let key = Bytes::copy_from_slice(key.as_bytes());
            match self.data.get(key).await {
                Err(fault) if !fault.is("WRONGTYPE") => return Err(fault),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The field of the ticket of a request that changes its resource.
const CHANGE: &str = "change";

fn kind(seen: Seen) -> TicketKind {
    if seen == Seen::Changing { TicketKind::Change } else { TicketKind::Fetch }
}

/// What the claim's script takes for [`Seen::Unreadable`]; no id is one byte long.
const UNREADABLE: Bytes = Bytes::from_static(b"*");

fn ticket_life() -> Bytes {
    text(TICKET_LIFE.as_millis())
}

fn text(value: impl ToString) -> Bytes {
    Bytes::from(value.to_string())
}

/// The word in which a script says what it did.
fn word(reply: Option<Reply>) -> Result<Bytes, StoreError> {
    reply.and_then(Reply::into_bytes).ok_or_else(unexpected)
}

/// The echo was right and the rest is not, which no script of larder's does.
fn unexpected() -> StoreError {
    StoreError::Refused("a script's reply has an unexpected form".to_owned())
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

/// Warns once of what is wrong with the server, as far as the user may see it.
pub(crate) async fn check_up(lane: Arc<Lane>) {
    let mut connections = lane.connections();
    if connections.wait_for(|made| *made > 0).await.is_err() {
        return;
    }
    drop(connections);
    let mut info = String::new();
    for section in ["server", "memory"] {
        match lane.call(Patience::Write, "INFO", None, vec![Bytes::from_static(section.as_bytes())]).await {
            Ok(reply) => {
                info.push_str(&String::from_utf8_lossy(&reply.into_bytes().unwrap_or_default()));
            }
            Err(fault) => {
                tracing::debug!(server = lane.server(), section, ?fault, "INFO is refused; it is not checked");
            }
        }
    }
    for warning in checkup::judge(&info) {
        tracing::warn!(server = lane.server(), "{warning}");
    }
    if let Some(warning) = checkup::misnamed(&info).filter(|_| !lane.is_sparing()) {
        tracing::warn!(server = lane.server(), "{warning}");
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
