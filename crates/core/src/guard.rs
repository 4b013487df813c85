//! A deadline and a circuit breaker around a store, so that one that is dead, slow or full costs little.

use crate::{
    breaker::{Breaker, Call},
    observe,
    store::{
        Claim, Filled, Found, Listener, Purge, Receipt, Seen, Selector, Store, StoreError, Ticket, Unused, is_late,
    },
};
use larder_semantics::{Entry, EntryId, EntryKey, Namespace, Timestamp, exchange::Filling};
use pin_project_lite::pin_project;
use std::{
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};

/// How long operations on a store may take: more than no time, and a year at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// Reads and claims, on which a request waits. Default 100 ms.
    pub read: Duration,
    /// Fills, on which nobody waits. Default 250 ms.
    pub fill: Duration,
    /// Purges. Default 2 s: a purge that gives up leaves old answers behind.
    pub purge: Duration,
}

/// The longest wait that is told from one without an end: it can be added to any time.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl Deadlines {
    /// The deadline that is zero, if one is.
    pub(crate) fn impossible(&self) -> Option<&'static str> {
        let all = [("read", self.read), ("fill", self.fill), ("purge", self.purge)];
        all.into_iter().find(|(_, deadline)| deadline.is_zero()).map(|(name, _)| name)
    }

    fn bounded(self) -> Self {
        let Self { read, fill, purge } = self;
        Self { read: read.min(LONGEST_WAIT), fill: fill.min(LONGEST_WAIT), purge: purge.min(LONGEST_WAIT) }
    }
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { read: Duration::from_millis(100), fill: Duration::from_millis(250), purge: Duration::from_secs(2) }
    }
}

/// Gives every operation of a store a deadline, and stops asking a store that keeps failing.
///
/// There is one breaker for reading and one for writing: a store without memory left still answers. While a breaker
/// is open, one task probes the store, after a pause that grows from 250 ms to 3 s, and at once when the store's
/// client reconnects. An operation that its caller drops counts neither way, nor does one that the store is too busy for, or
/// that this process [came too late](crate::store::is_late) to look for. A store that [is divided](Store::is_divided) gets
/// deadlines only.
#[derive(Debug)]
pub struct Guard<S> {
    store: Arc<S>,
    deadlines: Deadlines,
    reads: Arc<Breaker>,
    writes: Arc<Breaker>,
}

impl<S: Store> Guard<S> {
    /// Guards `store`.
    pub fn new(store: S, deadlines: Deadlines) -> Self {
        Self { store: Arc::new(store), deadlines: deadlines.bounded(), reads: Arc::default(), writes: Arc::default() }
    }

    fn guarded<F>(&self, side: Side, deadline: Duration, operation: F) -> Guarded<'_, S, F> {
        Guarded { guard: self, side, deadline, operation, began: None, wakes: false, over: None }
    }

    /// Takes note of how an operation ended.
    fn note<T>(&self, side: Side, took: Duration, deadline: Duration, result: &Result<T, StoreError>, ended: Instant) {
        let call = match result {
            Err(error) if counts(side, error) => Call::Failed,
            // Both tell of this process: who looks in time gives up in time.
            Err(StoreError::Busy) => return,
            _ if is_late(took, deadline) => return,
            _ if took > deadline / 2 => Call::Slow,
            _ => Call::Well,
        };
        if self.breaker(side).note(call, ended) {
            let why = result.as_ref().err().map_or_else(|| "too slow".to_owned(), ToString::to_string);
            tracing::warn!(breaker = side.name(), why, "the store is failing: answering without it");
            self.keep_probing(side);
        }
    }

    fn breaker(&self, side: Side) -> &Arc<Breaker> {
        match side {
            Side::Reads => &self.reads,
            Side::Writes => &self.writes,
        }
    }

    /// Starts the one task that asks an ill store how it is.
    fn keep_probing(&self, side: Side) {
        observe::breaker(side.name(), observe::BreakerState::Open);
        let (store, breaker, deadline) = (self.store.clone(), self.breaker(side).clone(), self.deadlines.read);
        tokio::spawn(async move {
            let began = Instant::now();
            loop {
                tokio::select! {
                    () = sleep(breaker.pause()) => {}
                    () = store.reconnected() => {}
                }
                observe::breaker(side.name(), observe::BreakerState::HalfOpen);
                if let Ok(Ok(())) = timeout(deadline, store.probe()).await {
                    break;
                }
                observe::breaker(side.name(), observe::BreakerState::Open);
            }
            breaker.close();
            observe::breaker(side.name(), observe::BreakerState::Closed);
            tracing::info!(breaker = side.name(), after = ?began.elapsed(), "the store answers again");
        });
    }
}

pin_project! {
    /// An operation on its way. Written out, because an `async fn` would keep it twice, and copy it each time.
    struct Guarded<'g, S, F> {
        guard: &'g Guard<S>,
        side: Side,
        deadline: Duration,
        #[pin]
        operation: F,
        began: Option<Instant>,
        // Whether the store is sure to wake it before the deadline.
        wakes: bool,
        // What ends it when it is not done by then.
        #[pin]
        over: Option<Sleep>,
    }
}

impl<S: Store, T, F: Future<Output = Result<T, StoreError>>> Future for Guarded<'_, S, F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let (guard, side, deadline) = (*this.guard, *this.side, *this.deadline);
        let has_breaker = !guard.store.is_divided();
        if this.began.is_none() && has_breaker && !guard.breaker(side).is_closed() {
            return Poll::Ready(Err(StoreError::BreakerOpen));
        }
        let began = *this.began.get_or_insert_with(Instant::now);
        let result = match this.operation.poll(context) {
            Poll::Ready(result) => result,
            Poll::Pending if mem::take(this.wakes) => return Poll::Pending,
            Poll::Pending => {
                if this.over.is_none() {
                    this.over.set(Some(sleep_until(began + deadline)));
                }
                let Some(over) = this.over.as_pin_mut() else { return Poll::Pending };
                ready!(over.poll(context));
                // Then it has not looked for the answer either.
                Err(if is_late(began.elapsed(), deadline) { StoreError::Busy } else { StoreError::Timeout })
            }
        };
        if has_breaker {
            let ended = Instant::now();
            guard.note(side, ended - began, deadline, &result, ended);
        }
        Poll::Ready(result)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Reads,
    Writes,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Reads => "read",
            Self::Writes => "write",
        }
    }
}

/// Whether an error tells that the store is ill, for the operations of this side.
fn counts(side: Side, error: &StoreError) -> bool {
    match error {
        StoreError::OutOfMemory(_) => side == Side::Writes,
        error => error.is_outage(),
    }
}

impl<S: Store> Store for Guard<S> {
    fn now(&self) -> Timestamp {
        self.store.now()
    }

    async fn get(&self, key: &EntryKey) -> Result<Found, StoreError> {
        let deadline = self.deadlines.read;
        let wakes = self.store.wakes_within().is_some_and(|within| within <= deadline);
        Guarded { wakes, ..self.guarded(Side::Reads, deadline, self.store.get(key)) }.await
    }

    async fn claim(&self, key: &EntryKey, seen: Seen) -> Result<Claim, StoreError> {
        self.guarded(Side::Writes, self.deadlines.read, self.store.claim(key, seen)).await
    }

    fn knows_gone(&self, key: &EntryKey, entry: &Entry) -> bool {
        self.store.knows_gone(key, entry)
    }

    async fn renew(&self, ticket: &Ticket) -> Result<bool, StoreError> {
        self.guarded(Side::Writes, self.deadlines.fill, self.store.renew(ticket)).await
    }

    async fn fill(&self, ticket: Ticket, filling: Filling) -> Result<Filled, StoreError> {
        self.guarded(Side::Writes, self.deadlines.fill, self.store.fill(ticket, filling)).await
    }

    async fn release(&self, ticket: Ticket, why: Unused) -> Result<(), StoreError> {
        self.guarded(Side::Writes, self.deadlines.fill, self.store.release(ticket, why)).await
    }

    async fn turn(&self, key: &EntryKey, limit: Duration) {
        // The limit holds whatever the store does.
        let _ = timeout(limit, self.store.turn(key, limit)).await;
    }

    /// A purge is asked of the store whatever the breaker says: leaving old answers behind costs more than waiting.
    ///
    /// One by pattern takes as long as there are keys.
    async fn purge(&self, namespace: &Namespace, purge: &Purge) -> Result<Receipt, StoreError> {
        if matches!(purge.selector, Selector::Pattern(_)) {
            return self.store.purge(namespace, purge).await;
        }
        let asked = timeout(self.deadlines.purge, self.store.purge(namespace, purge));
        asked.await.unwrap_or(Err(StoreError::Timeout))
    }

    async fn supersede(&self, ticket: &Ticket) -> Result<bool, StoreError> {
        self.guarded(Side::Writes, self.deadlines.read, self.store.supersede(ticket)).await
    }

    fn staleness_bound(&self) -> Duration {
        self.store.staleness_bound()
    }

    fn tells(&self) -> bool {
        self.store.tells()
    }

    async fn mark(&self, resource: &EntryKey, nonce: EntryId, life: Duration) -> Result<Receipt, StoreError> {
        let asked = timeout(self.deadlines.purge, self.store.mark(resource, nonce, life));
        asked.await.unwrap_or(Err(StoreError::Timeout))
    }

    fn follow(&self, namespace: &Namespace, listener: Arc<dyn Listener>) {
        self.store.follow(namespace, listener);
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.store.probe().await
    }

    async fn reconnected(&self) {
        self.store.reconnected().await;
    }

    fn is_remote(&self) -> bool {
        self.store.is_remote()
    }

    fn is_divided(&self) -> bool {
        self.store.is_divided()
    }
}
