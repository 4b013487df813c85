//! A store that fails, hangs or dawdles when it is told to.

use crate::store::{Claim, Filled, Found, Purge, Receipt, Seen, Store, StoreError, Ticket, Unused};
use larder_semantics::{Entry, EntryId, EntryKey, Filling, Namespace, Timestamp};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::Notify;

/// What is wrong with a [`Faulty`] store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Every operation fails at once.
    Fails(StoreError),
    /// Every operation but reads fails at once.
    RefusesWrites(StoreError),
    /// Every read fails at once, and the rest takes a moment.
    RefusesReads(StoreError),
    /// No operation ever ends.
    Hangs,
    /// Every operation takes so long.
    Dawdles(Duration),
}

/// A store with a fault that can be switched while it is used. Clones share both. It counts as remote.
#[derive(Debug, Clone)]
pub struct Faulty<S> {
    store: S,
    fault: Arc<Mutex<Fault>>,
    operations: Arc<AtomicUsize>,
    reconnected: Arc<Notify>,
    is_divided: bool,
    wakes_within: Option<Duration>,
}

impl<S: Store> Faulty<S> {
    /// A store without a fault, as yet.
    pub fn new(store: S) -> Self {
        Self {
            store,
            fault: Arc::new(Mutex::new(Fault::None)),
            operations: Arc::default(),
            reconnected: Arc::default(),
            is_divided: false,
            wakes_within: None,
        }
    }

    /// Says that it is of parts of which one may fail alone.
    #[must_use]
    pub fn divided(self) -> Self {
        Self { is_divided: true, ..self }
    }

    /// Promises that a read which waits is woken after so long, and keeps to it even where it hangs.
    #[must_use]
    pub fn waking(self, within: Duration) -> Self {
        Self { wakes_within: Some(within), ..self }
    }

    /// Switches to another fault, for operations that begin from now on.
    pub fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    /// Tells those who wait for it that the store is connected anew.
    pub fn reconnect(&self) {
        self.reconnected.notify_waiters();
    }

    /// How many operations were asked for, probes left out.
    pub fn operations(&self) -> usize {
        self.operations.load(Ordering::SeqCst)
    }

    async fn suffer(&self, is_write: bool) -> Result<(), StoreError> {
        let fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match fault {
            Fault::Fails(error) => Err(error),
            Fault::RefusesWrites(error) if is_write => Err(error),
            Fault::RefusesReads(error) if !is_write => Err(error),
            Fault::RefusesReads(_) => {
                tokio::task::yield_now().await;
                Ok(())
            }
            Fault::None | Fault::RefusesWrites(_) => Ok(()),
            Fault::Hangs => {
                tokio::time::sleep(self.wakes_within.unwrap_or(Duration::MAX)).await;
                std::future::pending().await
            }
            Fault::Dawdles(time) => {
                tokio::time::sleep(time).await;
                Ok(())
            }
        }
    }

    async fn operation(&self, is_write: bool) -> Result<(), StoreError> {
        self.operations.fetch_add(1, Ordering::SeqCst);
        self.suffer(is_write).await
    }
}

impl<S: Store> Store for Faulty<S> {
    fn now(&self) -> Timestamp {
        self.store.now()
    }

    async fn get(&self, key: &EntryKey) -> Result<Found, StoreError> {
        self.operation(false).await?;
        self.store.get(key).await
    }

    async fn claim(&self, key: &EntryKey, seen: Seen) -> Result<Claim, StoreError> {
        self.operation(true).await?;
        self.store.claim(key, seen).await
    }

    fn knows_gone(&self, key: &EntryKey, entry: &Entry) -> bool {
        self.store.knows_gone(key, entry)
    }

    async fn renew(&self, ticket: &Ticket) -> Result<bool, StoreError> {
        self.operation(true).await?;
        self.store.renew(ticket).await
    }

    async fn fill(&self, ticket: Ticket, filling: Filling) -> Result<Filled, StoreError> {
        self.operation(true).await?;
        self.store.fill(ticket, filling).await
    }

    async fn release(&self, ticket: Ticket, why: Unused) -> Result<(), StoreError> {
        self.operation(true).await?;
        self.store.release(ticket, why).await
    }

    async fn turn(&self, key: &EntryKey, limit: Duration) {
        self.store.turn(key, limit).await;
    }

    async fn purge(&self, namespace: &Namespace, purge: &Purge) -> Result<Receipt, StoreError> {
        self.operation(true).await?;
        self.store.purge(namespace, purge).await
    }

    async fn supersede(&self, ticket: &Ticket) -> Result<bool, StoreError> {
        self.operation(true).await?;
        self.store.supersede(ticket).await
    }

    async fn mark(&self, resource: &EntryKey, nonce: EntryId, life: Duration) -> Result<Receipt, StoreError> {
        self.operation(true).await?;
        self.store.mark(resource, nonce, life).await
    }

    fn wakes_within(&self) -> Option<Duration> {
        self.wakes_within
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.suffer(false).await
    }

    async fn reconnected(&self) {
        self.reconnected.notified().await;
    }

    fn is_divided(&self) -> bool {
        self.is_divided
    }
}
