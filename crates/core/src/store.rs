//! What the engine asks of a store, and the ticket that keeps invalidated answers out of it.
//!
//! A miss *claims* the entry's key and receives a [`Ticket`]; the answer is *filled* with that ticket; a *purge* voids
//! every ticket of the resource. So after a purge has returned, no answer that was asked for before it is ever stored.

use larder_semantics::{Entry, EntryId, EntryKey, Key, Namespace, Pattern, Reason, Timestamp, exchange::Filling};
use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};
use tokio::time::Instant;

/// A place where entries are kept.
///
/// Every operation may be dropped at any await: what it was doing is then either done or not done, and a ticket that
/// nobody received is void after [`TICKET_LIFE`]. No operation waits longer than the caller lets it; the engine gives
/// each a deadline.
pub trait Store: Send + Sync + 'static {
    /// Now, in the one time domain in which this store's entries are compared.
    fn now(&self) -> Timestamp;

    /// Reads the entry at `key`. It is never another key's entry.
    fn get(&self, key: &EntryKey) -> impl Future<Output = Result<Found, StoreError>> + Send;

    /// The entry at `key` and the time, if this process holds it and nothing has to be waited for. The default holds
    /// none.
    fn at_hand(&self, key: &EntryKey) -> Option<(Arc<Entry>, Timestamp)> {
        let _ = key;
        None
    }

    /// Reads the entry at `key` again and, if what is there is only what `seen` tells, places a ticket for it. What has been
    /// invalidated is as if it were not there.
    ///
    /// For a variant, the resource's rule must still be the one that the variant belongs to.
    fn claim(&self, key: &EntryKey, seen: Seen) -> impl Future<Output = Result<Claim, StoreError>> + Send;

    /// Whether this process knows, without asking, that an entry which it has read at `key` has been invalidated by a tag since.
    /// The default knows nothing.
    fn knows_gone(&self, key: &EntryKey, entry: &Entry) -> bool {
        let _ = (key, entry);
        false
    }

    /// Extends the life of a ticket to [`TICKET_LIFE`] from now, of a mark to [`MARK_LIFE`]; `false` when there is none any more.
    fn renew(&self, ticket: &Ticket) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Stores a response, and the rule it varies by, if the ticket is still valid; the ticket is spent either way.
    fn fill(&self, ticket: Ticket, filling: Filling) -> impl Future<Output = Result<Filled, StoreError>> + Send;

    /// Gives a ticket back unused.
    fn release(&self, ticket: Ticket, why: Unused) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Waits until whoever holds the ticket of `key` has used it or given it back, or until `limit` has passed; it may
    /// return before that, and the caller then claims again. The default waits for the time.
    fn turn(&self, key: &EntryKey, limit: Duration) -> impl Future<Output = ()> + Send {
        let _ = key;
        tokio::time::sleep(limit)
    }

    /// Removes what `purge` names in `namespace`, with all its variants, and voids every fill of it that is in flight.
    ///
    /// A soft one makes it stale instead. What has a tag need not be removed: it is no longer found. Tags are invalid for all
    /// versions of a namespace.
    fn purge(&self, namespace: &Namespace, purge: &Purge) -> impl Future<Output = Result<Receipt, StoreError>> + Send;

    /// How long after another process has invalidated something, it may still be found here, whatever is lost on the way, as
    /// long as the store works. The default is no time at all.
    fn staleness_bound(&self) -> Duration {
        Duration::ZERO
    }

    /// Whether it tells what other processes invalidate. The default does not.
    fn tells(&self) -> bool {
        false
    }

    /// Begins to tell `listener` what other processes invalidate in `namespace`, for as long as the store lives. The default
    /// tells nothing.
    fn follow(&self, namespace: &Namespace, listener: Arc<dyn Listener>) {
        let _ = (namespace, listener);
    }

    /// Removes the resource that `ticket` belongs to, with all its variants, and voids every other ticket of it; `false`,
    /// and nothing done, when the ticket is void.
    fn supersede(&self, ticket: &Ticket) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Removes a resource as [`purge`](Self::purge) does, and grants no ticket for it for so long, or until the mark is given
    /// back or used as a ticket of [`TicketKind::Write`] with the same nonce: it is being written. Others' marks stay.
    ///
    /// The receipt tells what the invalidation clock showed before.
    fn mark(
        &self,
        resource: &EntryKey,
        nonce: EntryId,
        life: Duration,
    ) -> impl Future<Output = Result<Receipt, StoreError>> + Send;

    /// After how long at most a read that has to wait is woken for the first time, whether or not it is done: until then,
    /// whoever gives it a deadline needs no timer. The default promises nothing.
    fn wakes_within(&self) -> Option<Duration> {
        None
    }

    /// Whether the store answers at all, asked when it has failed before.
    fn probe(&self) -> impl Future<Output = Result<(), StoreError>> + Send {
        async { Ok(()) }
    }

    /// Resolves when the store's client reports that it is connected anew. The default never does.
    fn reconnected(&self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }

    /// Whether an operation may have to wait for another process; such a store gets deadlines and a circuit breaker.
    fn is_remote(&self) -> bool {
        true
    }

    /// Whether it is of parts of which one may fail alone, and keeps away by itself from a part that does. No circuit
    /// breaker then stands before it: what one part does tells nothing of the others.
    fn is_divided(&self) -> bool {
        false
    }
}

/// How long a ticket lasts without being renewed.
pub const TICKET_LIFE: Duration = Duration::from_secs(3);

/// How long a resource counts as being written without being told so again: what a transaction may outlive its process by.
pub const MARK_LIFE: Duration = Duration::from_secs(30);

/// What a store holds under a key.
#[derive(Debug, Clone)]
pub enum Found {
    /// An entry.
    Entry(Arc<Entry>, Copied),
    /// Nothing.
    Absent,
    /// An entry with a tag that was invalidated since the origin was asked for it.
    Invalidated(EntryId),
    /// Bytes that are no entry of this key.
    Unreadable(Unreadable),
}

/// Which copy of an entry was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// The one in this process.
    Near,
    /// The one in the shared store.
    Far,
}

impl From<Copied> for Reason {
    fn from(copy: Copied) -> Self {
        match copy {
            Copied::Near => Self::Near,
            Copied::Far => Self::Far,
        }
    }
}

/// Why bytes in a store are not read as an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// They are not an entry of larder's at all.
    Foreign,
    /// They are of a wire version that this build does not know.
    Version(u8),
    /// They end too early.
    Truncated,
    /// They contradict themselves.
    Corrupt,
    /// They are the entry of another key.
    OtherKey,
}

impl From<Unreadable> for Reason {
    fn from(unreadable: Unreadable) -> Self {
        match unreadable {
            Unreadable::Foreign | Unreadable::Truncated | Unreadable::Corrupt => Self::Decode,
            Unreadable::Version(_) => Self::Version,
            Unreadable::OtherKey => Self::ForeignReply,
        }
    }
}

/// What the caller of [`Store::claim`] knows to be there, and wants to replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Nothing.
    Absent,
    /// This entry, which does not answer.
    Entry(EntryId),
    /// Something that is no entry: a ticket is placed whatever is there.
    Unreadable,
    /// Whatever it is, the request changes it: its ticket stands beside those of requests that fetch, and nobody waits
    /// for it.
    Changing,
}

/// What came of a claim.
#[derive(Debug)]
pub enum Claim {
    /// There is an entry after all, newer than what was seen, and no tag of it has been invalidated: as [`Found::Entry`].
    Found(Arc<Entry>, Copied),
    /// The answer may be filled with this ticket.
    Granted(Ticket),
    /// Someone else holds the ticket.
    Held,
    /// What was seen is gone or invalidated, or the rule of the variant: the resource is to be looked up anew, as what was
    /// purged is not to be confirmed by the origin.
    Moved,
    /// The resource is being written: what the origin answers is not to be stored.
    Marked,
    /// Whoever held the ticket last found the answer to be one that is not stored: nobody need wait for anybody.
    Uncacheable,
}

/// Why a ticket is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unused {
    /// There was no answer, or none that was whole: another may try.
    NoAnswer,
    /// The answer is of a kind that is not stored. For [`UNCACHEABLE_LIFE`] claims are told so, unless the resource is
    /// purged.
    Uncacheable,
}

/// How long a store remembers that an answer was not of a kind that is stored.
pub const UNCACHEABLE_LIFE: Duration = Duration::from_secs(5);

/// The right to fill one key, as long as nothing invalidates it.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// What may be filled.
    pub key: EntryKey,
    /// Tells this ticket from every other.
    pub nonce: EntryId,
    /// What the store's invalidation clock showed when the ticket was placed, or before.
    pub born: u64,
    /// What its holder does.
    pub kind: TicketKind,
}

/// What the holder of a ticket does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TicketKind {
    /// It fetches: [`Store::claim`] places its ticket.
    Fetch,
    /// It asks the origin for what changes the resource: with [`Seen::Changing`].
    Change,
    /// It changes the origin, and knows what is there afterwards: its ticket is a [mark](Store::mark), void as soon as
    /// another mark is made or the resource is purged, even where that is over by then.
    Write,
}

/// What came of a fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    /// It is stored.
    Stored,
    /// The ticket was void: the resource was invalidated, or the ticket had run out.
    Voided,
}

/// What to invalidate, and how: for good, or so that it is stale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purge {
    /// What it reaches.
    pub selector: Selector,
    /// Whether what is stored is only made stale: it may still answer while it is revalidated, or in place of an error, as
    /// far as it could have at the end of its lifetime.
    pub is_soft: bool,
    /// Whether nothing is to be done, and only counted what would be; of a purge by pattern.
    pub is_dry: bool,
}

/// What a purge reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Selector {
    /// One resource, with all its variants.
    Key(Key),
    /// Whatever has one of these tags.
    Tags(Vec<String>),
    /// Whatever has a key like this.
    Pattern(Pattern),
    /// All that is in the namespace, whatever its schema version.
    All,
}

impl From<Selector> for Purge {
    fn from(selector: Selector) -> Self {
        Self { selector, is_soft: false, is_dry: false }
    }
}

impl Purge {
    /// One resource, with all its variants: `Purge::key("user:123")`.
    pub fn key(key: impl Into<Key>) -> Self {
        Selector::Key(key.into()).into()
    }

    /// Whatever has this tag: `Purge::tag("users")`. That costs the same however much it is.
    pub fn tag(tag: impl Into<String>) -> Self {
        Self::tags([tag])
    }

    /// Whatever has one of these tags.
    pub fn tags<T: Into<String>>(tags: impl IntoIterator<Item = T>) -> Self {
        Selector::Tags(tags.into_iter().map(Into::into).collect()).into()
    }

    /// Whatever has a key that begins like this: `Purge::prefix("user:")`.
    ///
    /// A store outside the process is gone through for it, key by key, twice: a tag costs nothing like that.
    pub fn prefix(prefix: &str) -> Self {
        Selector::Pattern(Pattern::prefix(prefix)).into()
    }

    /// Whatever has a key like this, where `*` stands for any text: `Purge::pattern("user:*:orders")`. It costs what
    /// [`prefix`](Self::prefix) does.
    pub fn pattern(pattern: &str) -> Self {
        Selector::Pattern(Pattern::new(pattern)).into()
    }

    /// All that is in the namespace, whatever its schema version. That costs the same however much it is.
    pub fn all() -> Self {
        Selector::All.into()
    }

    /// The same, but that what is stored is only made stale: it may still answer while it is revalidated, or in place of an
    /// error, as far as it could have at the end of its lifetime. What is on its way is not stored.
    #[must_use]
    pub fn soft(self) -> Self {
        Self { is_soft: true, ..self }
    }

    /// The same, but that nothing is done: a purge by prefix or pattern counts what it would reach, any other reaches
    /// nothing.
    #[must_use]
    pub fn dry_run(self) -> Self {
        Self { is_dry: true, ..self }
    }
}

/// What a purge reached. What this process itself held is dealt with in any case.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Receipt {
    /// Resources that had an entry, of a purge by key or by pattern.
    pub resources: u64,
    /// Tags that were invalidated.
    pub tags: u64,
    /// What the store's invalidation clock then showed, of a purge by tags or of all; of a mark, what it showed before.
    pub clock: u64,
    /// Its id in the store's log of invalidations, by which other processes hear of it, if the store has one.
    pub logged: Option<String>,
    /// Whether it is yet to be done: the store could not be reached, and is told before anything is read from it again.
    pub is_deferred: bool,
}

/// Who is told what other processes have invalidated.
pub trait Listener: Send + Sync + 'static {
    /// Another process has invalidated this; of tags and of all, when the clock of the store showed `at`.
    fn invalidated(&self, selector: &Selector, at: u64);

    /// What was invalidated cannot be told: it may have been anything.
    fn lost(&self);

    /// All that was invalidated has been told, and will be, until then.
    fn vouched(&self, until: Instant);
}

/// Whether an operation that might take `within` was given up so long after its time that this process had not looked when it
/// was over: more than a quarter. It tells nothing of the store then.
pub fn is_late(took: Duration, within: Duration) -> bool {
    took > within + within / 4
}

/// Why a store could not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreError {
    /// It did not answer in time.
    Timeout,
    /// It cannot be reached, or says that it is not ready.
    Unavailable(String),
    /// Too many operations are waiting already, or this process came too late to look for the answer in time; the store
    /// itself may be well.
    Busy,
    /// It has no memory left for what is to be written.
    OutOfMemory(String),
    /// It refused this command: no permission, a read-only replica.
    Refused(String),
    /// The circuit breaker is open: it was not asked.
    BreakerOpen,
}

impl StoreError {
    /// Whether it tells that the store is ill, which opens the circuit breaker.
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Timeout | Self::Unavailable(_) | Self::OutOfMemory(_))
    }

    /// The word for it in metrics.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Unavailable(_) => "unavailable",
            Self::Busy => "busy",
            Self::OutOfMemory(_) => "out-of-memory",
            Self::Refused(_) => "refused",
            Self::BreakerOpen => "breaker-open",
        }
    }
}

impl From<&StoreError> for Reason {
    fn from(error: &StoreError) -> Self {
        match error {
            StoreError::Timeout => Self::StoreTimeout,
            StoreError::Busy => Self::StoreBusy,
            StoreError::BreakerOpen => Self::BreakerOpen,
            StoreError::Unavailable(_) | StoreError::OutOfMemory(_) | StoreError::Refused(_) => Self::StoreDown,
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => f.write_str("the store did not answer in time"),
            Self::Unavailable(why) => write!(f, "the store is not available: {why}"),
            Self::Busy => f.write_str("too much is waiting for the store, or this process has no time for its answers"),
            Self::OutOfMemory(why) => write!(f, "the store is out of memory: {why}"),
            Self::Refused(why) => write!(f, "the store refused: {why}"),
            Self::BreakerOpen => f.write_str("the store has failed, and is not asked for a while"),
        }
    }
}

impl std::error::Error for StoreError {}

pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// [`Store`] behind a pointer, so that nothing above it needs a type parameter.
pub(crate) trait AnyStore: Send + Sync + 'static {
    fn now(&self) -> Timestamp;
    fn at_hand(&self, key: &EntryKey) -> Option<(Arc<Entry>, Timestamp)>;
    fn get<'a>(&'a self, key: &'a EntryKey) -> BoxFuture<'a, Result<Found, StoreError>>;
    fn claim<'a>(&'a self, key: &'a EntryKey, seen: Seen) -> BoxFuture<'a, Result<Claim, StoreError>>;
    fn knows_gone(&self, key: &EntryKey, entry: &Entry) -> bool;
    fn renew<'a>(&'a self, ticket: &'a Ticket) -> BoxFuture<'a, Result<bool, StoreError>>;
    fn fill(&self, ticket: Ticket, filling: Filling) -> BoxFuture<'_, Result<Filled, StoreError>>;
    fn release(&self, ticket: Ticket, why: Unused) -> BoxFuture<'_, Result<(), StoreError>>;
    fn turn<'a>(&'a self, key: &'a EntryKey, limit: Duration) -> BoxFuture<'a, ()>;
    fn purge<'a>(&'a self, namespace: &'a Namespace, purge: &'a Purge) -> BoxFuture<'a, Result<Receipt, StoreError>>;
    fn supersede<'a>(&'a self, ticket: &'a Ticket) -> BoxFuture<'a, Result<bool, StoreError>>;
    fn tells(&self) -> bool;
    fn follow(&self, namespace: &Namespace, listener: Arc<dyn Listener>);
    fn staleness_bound(&self) -> Duration;
    fn mark<'a>(
        &'a self,
        resource: &'a EntryKey,
        nonce: EntryId,
        life: Duration,
    ) -> BoxFuture<'a, Result<Receipt, StoreError>>;
}

impl<S: Store> AnyStore for S {
    fn now(&self) -> Timestamp {
        Store::now(self)
    }

    fn at_hand(&self, key: &EntryKey) -> Option<(Arc<Entry>, Timestamp)> {
        Store::at_hand(self, key)
    }

    fn get<'a>(&'a self, key: &'a EntryKey) -> BoxFuture<'a, Result<Found, StoreError>> {
        Box::pin(Store::get(self, key))
    }

    fn claim<'a>(&'a self, key: &'a EntryKey, seen: Seen) -> BoxFuture<'a, Result<Claim, StoreError>> {
        Box::pin(Store::claim(self, key, seen))
    }

    fn knows_gone(&self, key: &EntryKey, entry: &Entry) -> bool {
        Store::knows_gone(self, key, entry)
    }

    fn renew<'a>(&'a self, ticket: &'a Ticket) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(Store::renew(self, ticket))
    }

    fn fill(&self, ticket: Ticket, filling: Filling) -> BoxFuture<'_, Result<Filled, StoreError>> {
        Box::pin(Store::fill(self, ticket, filling))
    }

    fn release(&self, ticket: Ticket, why: Unused) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(Store::release(self, ticket, why))
    }

    fn turn<'a>(&'a self, key: &'a EntryKey, limit: Duration) -> BoxFuture<'a, ()> {
        Box::pin(Store::turn(self, key, limit))
    }

    fn purge<'a>(&'a self, namespace: &'a Namespace, purge: &'a Purge) -> BoxFuture<'a, Result<Receipt, StoreError>> {
        Box::pin(Store::purge(self, namespace, purge))
    }

    fn supersede<'a>(&'a self, ticket: &'a Ticket) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(Store::supersede(self, ticket))
    }

    fn tells(&self) -> bool {
        Store::tells(self)
    }

    fn follow(&self, namespace: &Namespace, listener: Arc<dyn Listener>) {
        Store::follow(self, namespace, listener);
    }

    fn staleness_bound(&self) -> Duration {
        Store::staleness_bound(self)
    }

    fn mark<'a>(
        &'a self,
        resource: &'a EntryKey,
        nonce: EntryId,
        life: Duration,
    ) -> BoxFuture<'a, Result<Receipt, StoreError>> {
        Box::pin(Store::mark(self, resource, nonce, life))
    }
}
