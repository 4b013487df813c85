//! The store in this process: bounded by bytes, and the near tier before a shared one.

use crate::store::{
    Claim, Copied, Filled, Found, MARK_LIFE, Purge, Receipt, Seen, Selector, Store, StoreError, TICKET_LIFE, Ticket,
    TicketKind, UNCACHEABLE_LIFE, Unused,
};
use larder_semantics::{
    Content, Entry, EntryId, EntryKey, Namespace, Pattern, StoredResponse, Timestamp, Variants,
    exchange::Filling,
    policy::LONGEST_LIFETIME,
    tags::{Record, Standing},
};
use quick_cache::{Weighter, sync::Cache};
use std::{
    collections::{HashMap, HashSet},
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

/// Keeps entries in this process's memory, the least useful ones making room for new ones.
///
/// Clones share the same memory. Time is tokio's: a paused runtime also stops what is stored from ageing.
#[derive(Clone)]
pub struct MemoryStore {
    inner: Arc<Inner>,
}

struct Inner {
    entries: Cache<EntryKey, Held, Bytes>,
    stripes: Vec<Mutex<Stripe>>,
    /// Rung when a ticket of the stripe has been used, given back or voided.
    turned: Vec<Notify>,
    records: Records,
    hasher: RandomState,
    /// What the calendar said at `started`.
    calendar: Timestamp,
    started: Instant,
}

impl Inner {
    fn timestamp(&self, at: Instant) -> Timestamp {
        self.calendar.after(at.saturating_duration_since(self.started))
    }
}

#[derive(Clone)]
struct Held {
    entry: Arc<Entry>,
    until: Instant,
}

/// What was looked for, in this process.
pub(crate) enum Looked {
    There(Arc<Entry>),
    Invalidated(EntryId),
    Absent,
}

/// The tickets of some resources, and what makes claims, fills and purges of each of them atomic.
#[derive(Default)]
struct Stripe {
    /// By the resource's own key: one ticket for each variant that is being fetched.
    tickets: HashMap<EntryKey, Vec<Placed>>,
    /// Resources that are being written.
    marks: HashMap<EntryKey, Vec<Mark>>,
    /// Counts the purges, so that a copy fetched before one is not kept after it.
    epoch: u64,
}

struct Placed {
    key: EntryKey,
    nonce: EntryId,
    until: Instant,
    /// No ticket: the answer was not of a kind that is stored.
    is_mark: bool,
    kind: TicketKind,
}

/// Somebody writing a resource.
struct Mark {
    nonce: EntryId,
    until: Instant,
    /// Whether nobody else has written or purged the resource since.
    is_alone: bool,
}

impl Stripe {
    /// Voids the tickets of a resource, and the right of those who write it to store what they wrote.
    fn void(&mut self, resource: &EntryKey) {
        self.epoch += 1;
        self.tickets.remove(resource);
        for mark in self.marks.get_mut(resource).into_iter().flatten() {
            mark.is_alone = false;
        }
    }
}

#[derive(Clone)]
struct Bytes;

impl Weighter<EntryKey, Held> for Bytes {
    fn weight(&self, key: &EntryKey, held: &Held) -> u64 {
        // The key stands here, and twice in what a delivery tells.
        (256 + 3 * key.key.as_str().len() + size(&held.entry)) as u64
    }
}

/// What an entry takes in memory, about, in bytes.
fn size(entry: &Entry) -> usize {
    match &entry.content {
        Content::Response(StoredResponse { headers, body, tags, .. }) => {
            let headers: usize = headers.iter().map(|(name, value)| 64 + name.as_str().len() + value.len()).sum();
            // Once as they are stored, once with room for what a delivery tells.
            2 * headers + body.len() + tags.iter().map(String::len).sum::<usize>()
        }
        Content::Variants(Variants { fields, known, .. }) => 64 * fields.len() + 64 * known.len(),
    }
}

/// What was invalidated when, by the clock of this store, or of the one that it is near to.
#[derive(Default)]
struct Records {
    clock: AtomicU64,
    /// What the clock showed when all of a namespace was invalidated last.
    all: AtomicU64,
    known: RwLock<Known>,
}

#[derive(Default)]
struct Known {
    /// By namespace.
    namespaces: HashMap<String, Invalidated>,
    /// What every tag counts as that is not among them: those that were are forgotten when they are too many.
    others: Record,
}

#[derive(Default)]
struct Invalidated {
    all: Record,
    tags: HashMap<String, Record>,
}

/// Into how many parts tickets are divided, each with a lock of its own.
const STRIPES: usize = 64;

/// How many tags' invalidations are remembered one by one.
const MOST_RECORDS: usize = 1 << 16;

impl Records {
    fn clock(&self) -> u64 {
        self.clock.load(Ordering::Acquire)
    }

    /// Invalidates as by the next time of the clock, which is returned; `None` is all there is.
    fn invalidate(&self, namespace: &Namespace, tags: Option<&[String]>, is_soft: bool, now: Timestamp) -> u64 {
        let known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let now = now.as_millis().saturating_mul(1000).max(self.clock().saturating_add(1));
        self.note(known, namespace, tags, Record::of(now, is_soft));
        now
    }

    fn note(
        &self,
        mut known: RwLockWriteGuard<'_, Known>,
        namespace: &Namespace,
        tags: Option<&[String]>,
        record: Record,
    ) {
        let now = record.gone.max(record.stale).max(self.clock());
        let many = known.namespaces.values().map(|known| known.tags.len()).sum::<usize>();
        if many + tags.map_or(0, <[String]>::len) > MOST_RECORDS {
            known.namespaces.values_mut().for_each(|known| known.tags.clear());
            known.others = Record::of(now, false);
        }
        let others = known.others;
        let known = known.namespaces.entry(namespace.name().to_owned()).or_default();
        match tags {
            None => {
                known.all = known.all.and(record);
                self.all.fetch_max(now, Ordering::Release);
            }
            Some(tags) => {
                for tag in tags {
                    let known = known.tags.entry(tag.trim().to_owned()).or_insert(others);
                    *known = known.and(record);
                }
            }
        }
        // Last, so that who sees it sees the rest.
        self.clock.store(now, Ordering::Release);
    }

    /// What is left of a response.
    fn leave(&self, namespace: &Namespace, response: &StoredResponse) -> Standing {
        let StoredResponse { tags, born, .. } = response;
        if *born >= self.clock() || tags.is_empty() && *born >= self.all.load(Ordering::Acquire) {
            return Standing::Valid;
        }
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let (others, known) = (known.others, known.namespaces.get(namespace.name()));
        let record = |tag: &String| known.and_then(|known| known.tags.get(tag)).copied().unwrap_or(others);
        let all = known.map(|known| known.all).unwrap_or_default();
        tags.iter().map(record).fold(all, Record::and).leaves(*born)
    }
}

impl MemoryStore {
    /// How many bytes a store keeps when nothing else is said: 64 MiB.
    pub const DEFAULT_CAPACITY: u64 = 64 << 20;

    /// A store of at most `bytes` bytes of headers and bodies.
    ///
    /// The memory is divided into parts, some for each core; an entry larger than its part is not kept.
    pub fn with_capacity(bytes: u64) -> Self {
        let expected = usize::try_from(bytes / 2048).unwrap_or(usize::MAX).clamp(128, 1 << 16);
        Self {
            inner: Arc::new(Inner {
                entries: Cache::with_weighter(expected, bytes.max(1), Bytes),
                records: Records::default(),
                stripes: std::iter::repeat_with(Mutex::default).take(STRIPES).collect(),
                turned: std::iter::repeat_with(Notify::new).take(STRIPES).collect(),
                hasher: RandomState::new(),
                calendar: SystemTime::now().into(),
                started: Instant::now(),
            }),
        }
    }

    /// What is kept at present, in bytes.
    pub fn size(&self) -> u64 {
        self.inner.entries.weight()
    }

    /// The entry at `key`, if it is there, its time has not run out, and it has not been invalidated.
    pub(crate) fn look(&self, key: &EntryKey) -> Looked {
        self.look_at(key, Instant::now())
    }

    fn look_at(&self, key: &EntryKey, now: Instant) -> Looked {
        let Some(held) = self.inner.entries.get(key) else { return Looked::Absent };
        if held.until <= now {
            self.inner.entries.remove_if(key, |held| held.until <= now);
            return Looked::Absent;
        }
        let Content::Response(response) = &held.entry.content else { return Looked::There(held.entry) };
        match self.inner.records.leave(&key.namespace, response) {
            Standing::Valid => Looked::There(held.entry),
            Standing::StaleSince(at) => Looked::There(Arc::new(held.entry.stale_since(at))),
            Standing::Gone => Looked::Invalidated(held.entry.id),
        }
    }

    /// How often something of `key`'s neighbourhood was purged; to be remembered before a copy is fetched.
    pub(crate) fn epoch(&self, key: &EntryKey) -> u64 {
        self.stripe(&key.resource()).epoch
    }

    /// Keeps a copy that was fetched since `epoch` was read, unless something was purged meanwhile.
    pub(crate) fn keep_since(&self, epoch: u64, key: EntryKey, entry: Arc<Entry>, life: Duration) {
        let stripe = self.stripe(&key.resource());
        if stripe.epoch == epoch {
            self.keep(key, entry, life);
        }
    }

    /// Removes a resource and voids its tickets; whether it had an entry.
    pub(crate) fn forget(&self, resource: &EntryKey) -> bool {
        let mut stripe = self.stripe(resource);
        stripe.void(resource);
        let had = self.remove(resource);
        drop(stripe);
        self.tell(resource);
        had
    }

    /// Makes a resource stale, and voids its tickets; whether it had an entry.
    fn make_stale(&self, resource: &EntryKey) -> bool {
        let mut stripe = self.stripe(resource);
        stripe.void(resource);
        let mut had = false;
        for key in [resource.clone(), resource.value()] {
            if let Some(Held { entry, until }) = self.inner.entries.get(&key) {
                let entry = Arc::new(entry.stale_since(self.inner.timestamp(Instant::now())));
                self.inner.entries.insert(key, Held { entry, until });
                had = true;
            }
        }
        drop(stripe);
        self.tell(resource);
        had
    }

    /// Removes a resource, whose stripe is locked; whether it had an entry.
    fn remove(&self, resource: &EntryKey) -> bool {
        let had = self.inner.entries.remove(resource).is_some();
        self.inner.entries.remove(&resource.value()).is_some() || had
    }

    /// Removes, or makes stale, every resource with a key like this, and voids their tickets; how many had an entry.
    pub(crate) fn sweep(&self, namespace: &Namespace, pattern: &Pattern, is_soft: bool, is_dry: bool) -> u64 {
        let is_meant = |key: &EntryKey| key.namespace == *namespace && pattern.matches(&key.key);
        let mut named: HashSet<EntryKey> =
            self.inner.entries.iter().map(|(key, _)| key.resource()).filter(|resource| is_meant(resource)).collect();
        if is_dry {
            return named.len() as u64;
        }
        for (stripe, turned) in self.inner.stripes.iter().zip(&self.inner.turned) {
            let mut stripe = stripe.lock().unwrap_or_else(PoisonError::into_inner);
            stripe.epoch += 1;
            stripe.tickets.retain(|resource, _| !is_meant(resource));
            let marks = stripe.marks.iter_mut().filter(|(resource, _)| is_meant(resource));
            marks.flat_map(|(_, marks)| marks).for_each(|mark| mark.is_alone = false);
            drop(stripe);
            turned.notify_waiters();
        }
        // What was stored until its ticket was void.
        named.extend(self.inner.entries.iter().map(|(key, _)| key.resource()).filter(|resource| is_meant(resource)));
        let reach = |resource: &&EntryKey| if is_soft { self.make_stale(resource) } else { self.forget(resource) };
        named.iter().filter(reach).count() as u64
    }

    /// Takes note that the store behind this one has invalidated tags, or all for `None`, when its clock showed `at`.
    pub(crate) fn invalidated(&self, namespace: &Namespace, tags: Option<&[String]>, at: u64) {
        let records = &self.inner.records;
        let known = records.known.write().unwrap_or_else(PoisonError::into_inner);
        records.note(known, namespace, tags, Record::of(at, false));
    }

    /// Removes all there is, and refuses the copies that were fetched before.
    pub(crate) fn clear(&self) {
        for stripe in &self.inner.stripes {
            stripe.lock().unwrap_or_else(PoisonError::into_inner).epoch += 1;
        }
        self.inner.entries.clear();
    }

    fn keep(&self, key: EntryKey, entry: Arc<Entry>, life: Duration) {
        let now = Instant::now();
        let until = now.checked_add(life).unwrap_or_else(|| now + LONGEST_LIFETIME);
        self.inner.entries.insert(key, Held { entry, until });
    }

    fn stripe_of(&self, resource: &EntryKey) -> usize {
        usize::try_from(self.inner.hasher.hash_one(resource)).unwrap_or_default() % STRIPES
    }

    fn stripe(&self, resource: &EntryKey) -> MutexGuard<'_, Stripe> {
        // Nothing in a stripe is ever half done, so a panic elsewhere does not make it wrong.
        self.inner.stripes[self.stripe_of(resource)].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells those who wait for a ticket of `resource`, or of one in its neighbourhood.
    fn tell(&self, resource: &EntryKey) {
        self.inner.turned[self.stripe_of(resource)].notify_waiters();
    }

    fn place(&self, key: &EntryKey, seen: Seen) -> Claim {
        let resource = key.resource();
        let mut stripe = self.stripe(&resource);
        let kind = if seen == Seen::Changing { TicketKind::Change } else { TicketKind::Fetch };
        if !matches!(seen, Seen::Unreadable | Seen::Changing) {
            match self.look(key) {
                Looked::There(entry) if seen != Seen::Entry(entry.id) => return Claim::Found(entry, Copied::Near),
                Looked::Invalidated(id) if seen != Seen::Absent && seen != Seen::Entry(id) => return Claim::Moved,
                Looked::Absent if seen != Seen::Absent => return Claim::Moved,
                _ => {}
            }
        }
        if let Some(variant) = key.variant()
            && !matches!(self.look(&resource), Looked::There(rule) if rule.id == variant.rule)
        {
            return Claim::Moved;
        }
        let now = Instant::now();
        if let Some(marks) = stripe.marks.get_mut(&resource) {
            marks.retain(|mark| mark.until > now);
            if !marks.is_empty() {
                return Claim::Marked;
            }
            stripe.marks.remove(&resource);
        }
        let placed = stripe.tickets.entry(resource).or_default();
        placed.retain(|ticket| ticket.until > now);
        if let Some(there) = placed.iter().find(|ticket| ticket.key == *key && ticket.kind == kind) {
            return if there.is_mark { Claim::Uncacheable } else { Claim::Held };
        }
        let nonce = EntryId(fastrand::u128(..).to_be_bytes());
        placed.push(Placed { key: key.clone(), nonce, until: now + TICKET_LIFE, is_mark: false, kind });
        Claim::Granted(Ticket { key: key.clone(), nonce, born: self.inner.records.clock(), kind })
    }

    fn spend(&self, ticket: &Ticket, filling: Filling) -> Filled {
        let resource = ticket.key.resource();
        let mut stripe = self.stripe(&resource);
        let is_valid = match ticket.kind {
            TicketKind::Write => unmark(&mut stripe, &resource, ticket.nonce),
            TicketKind::Fetch | TicketKind::Change => take_back(&mut stripe, &resource, ticket),
        };
        if !is_valid {
            return Filled::Voided;
        }
        if let Some(rule) = filling.rule {
            let life =
                self.inner.entries.get(&resource).map(|held| held.until.saturating_duration_since(Instant::now()));
            self.keep(resource, rule, filling.stored_for.max(life.unwrap_or_default()));
        }
        self.keep(filling.key, filling.response, filling.stored_for);
        drop(stripe);
        self.tell(&ticket.key.resource());
        Filled::Stored
    }
}

/// Ends a mark; whether who made it has been alone with the resource.
fn unmark(stripe: &mut Stripe, resource: &EntryKey, nonce: EntryId) -> bool {
    let Some(marks) = stripe.marks.get_mut(resource) else { return false };
    let mine = marks.iter().position(|mark| mark.nonce == nonce).map(|at| marks.swap_remove(at));
    if marks.is_empty() {
        stripe.marks.remove(resource);
    }
    mine.is_some_and(|mark| mark.is_alone && mark.until > Instant::now())
}

/// Removes a ticket; whether it was still valid.
fn take_back(stripe: &mut Stripe, resource: &EntryKey, ticket: &Ticket) -> bool {
    let Some(placed) = stripe.tickets.get_mut(resource) else { return false };
    let at = placed.iter().position(|placed| placed.nonce == ticket.nonce && !placed.is_mark);
    let taken = at.map(|at| placed.swap_remove(at));
    if placed.is_empty() {
        stripe.tickets.remove(resource);
    }
    taken.is_some_and(|placed| placed.until > Instant::now())
}

impl Store for MemoryStore {
    fn now(&self) -> Timestamp {
        self.inner.timestamp(Instant::now())
    }

    fn at_hand(&self, key: &EntryKey) -> Option<(Arc<Entry>, Timestamp)> {
        let now = Instant::now();
        let Looked::There(entry) = self.look_at(key, now) else { return None };
        Some((entry, self.inner.timestamp(now)))
    }

    async fn get(&self, key: &EntryKey) -> Result<Found, StoreError> {
        Ok(match self.look(key) {
            Looked::There(entry) => Found::Entry(entry, Copied::Near),
            Looked::Invalidated(id) => Found::Invalidated(id),
            Looked::Absent => Found::Absent,
        })
    }

    async fn claim(&self, key: &EntryKey, seen: Seen) -> Result<Claim, StoreError> {
        Ok(self.place(key, seen))
    }

    fn knows_gone(&self, key: &EntryKey, entry: &Entry) -> bool {
        let Content::Response(response) = &entry.content else { return false };
        self.inner.records.leave(&key.namespace, response) == Standing::Gone
    }

    async fn renew(&self, ticket: &Ticket) -> Result<bool, StoreError> {
        let resource = ticket.key.resource();
        let (mut stripe, now) = (self.stripe(&resource), Instant::now());
        if ticket.kind == TicketKind::Write {
            let mut marks = stripe.marks.get_mut(&resource).into_iter().flatten();
            let mine = marks.find(|mark| mark.nonce == ticket.nonce && mark.until > now);
            return Ok(mine.map(|mark| mark.until = now + MARK_LIFE).is_some());
        }
        let placed = stripe.tickets.get_mut(&resource).into_iter().flatten();
        let is_mine = |placed: &&mut Placed| placed.nonce == ticket.nonce && !placed.is_mark && placed.until > now;
        let mine = placed.into_iter().find(is_mine);
        Ok(mine.map(|placed| placed.until = now + TICKET_LIFE).is_some())
    }

    async fn fill(&self, ticket: Ticket, filling: Filling) -> Result<Filled, StoreError> {
        Ok(self.spend(&ticket, filling))
    }

    async fn release(&self, ticket: Ticket, why: Unused) -> Result<(), StoreError> {
        let resource = ticket.key.resource();
        let mut stripe = self.stripe(&resource);
        if ticket.kind == TicketKind::Write {
            unmark(&mut stripe, &resource, ticket.nonce);
        } else if take_back(&mut stripe, &resource, &ticket) && why == Unused::Uncacheable {
            let until = Instant::now() + UNCACHEABLE_LIFE;
            let mark = Placed { key: ticket.key, nonce: ticket.nonce, until, is_mark: true, kind: TicketKind::Fetch };
            stripe.tickets.entry(resource.clone()).or_default().push(mark);
        }
        drop(stripe);
        self.tell(&resource);
        Ok(())
    }

    async fn purge(&self, namespace: &Namespace, purge: &Purge) -> Result<Receipt, StoreError> {
        let Purge { selector, is_soft, is_dry } = purge;
        let records = &self.inner.records;
        Ok(match selector {
            Selector::Pattern(pattern) => {
                Receipt { resources: self.sweep(namespace, pattern, *is_soft, *is_dry), ..Receipt::default() }
            }
            _ if *is_dry => Receipt::default(),
            Selector::Key(key) => {
                let resource = namespace.entry(key.clone());
                let had = if *is_soft { self.make_stale(&resource) } else { self.forget(&resource) };
                Receipt { resources: u64::from(had), ..Receipt::default() }
            }
            Selector::Tags(tags) => {
                let clock = records.invalidate(namespace, Some(tags), *is_soft, self.now());
                Receipt { tags: tags.len() as u64, clock, ..Receipt::default() }
            }
            Selector::All => {
                let clock = records.invalidate(namespace, None, *is_soft, self.now());
                Receipt { clock, ..Receipt::default() }
            }
        })
    }

    async fn mark(&self, resource: &EntryKey, nonce: EntryId, life: Duration) -> Result<Receipt, StoreError> {
        let clock = self.inner.records.clock();
        let now = Instant::now();
        let until = now.checked_add(life).unwrap_or_else(|| now + LONGEST_LIFETIME);
        let mut stripe = self.stripe(resource);
        stripe.void(resource);
        let had = self.remove(resource);
        let marks = stripe.marks.entry(resource.clone()).or_default();
        marks.retain(|mark| mark.until > now);
        let is_alone = marks.is_empty();
        marks.push(Mark { nonce, until, is_alone });
        drop(stripe);
        self.tell(resource);
        Ok(Receipt { resources: u64::from(had), clock, ..Receipt::default() })
    }

    async fn turn(&self, key: &EntryKey, limit: Duration) {
        let resource = key.resource();
        let told = self.inner.turned[self.stripe_of(&resource)].notified();
        let is_held = self.stripe(&resource).tickets.get(&resource).is_some_and(|placed| {
            let now = Instant::now();
            placed.iter().any(|ticket| {
                ticket.key == *key && ticket.until > now && !ticket.is_mark && ticket.kind == TicketKind::Fetch
            })
        });
        if is_held {
            let _ = timeout(limit, told).await;
        }
    }

    async fn supersede(&self, ticket: &Ticket) -> Result<bool, StoreError> {
        let resource = ticket.key.resource();
        let (mut stripe, now) = (self.stripe(&resource), Instant::now());
        let placed = stripe.tickets.get_mut(&resource).into_iter().flatten();
        if !placed.into_iter().any(|placed| placed.nonce == ticket.nonce && placed.until > now) {
            return Ok(false);
        }
        if let Some(placed) = stripe.tickets.get_mut(&resource) {
            placed.retain(|placed| placed.nonce == ticket.nonce);
        }
        stripe.epoch += 1;
        for mark in stripe.marks.get_mut(&resource).into_iter().flatten() {
            mark.is_alone = false;
        }
        self.remove(&resource);
        Ok(true)
    }

    fn is_remote(&self) -> bool {
        false
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::with_capacity(Self::DEFAULT_CAPACITY)
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("bytes", &self.size()).finish_non_exhaustive()
    }
}
