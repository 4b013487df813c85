//! Changing at the origin what is stored, so that no reader keeps what was there before.

use crate::{
    Cache,
    store::{Filled, MARK_LIFE, Purge, Receipt, Selector, StoreError, Ticket, Unused},
};
use larder_semantics::{EntryId, Filling};
use std::time::Duration;
use tokio::{task::AbortHandle, time::sleep};

/// A change at the origin that is being made, as around a transaction of a database: from
/// [`Cache::begin_write`] to [`commit`](Self::commit).
///
/// Meanwhile nothing of a resource that is named by its key is found or stored: requests go to the origin, and what they bring
/// is theirs only. If this process dies, that ends after 30 s; a transaction that lives longer than its process by more could
/// leave an old answer behind, and so could a process that dies after a server with too little memory has evicted the mark.
/// What is named otherwise (by tags, a pattern, or all of it) is purged at the beginning and at the end, so that what was
/// fetched in between is gone at the end.
///
/// Dropped without being committed, it purges all the same, in the background: whether the change was made is not known then.
#[must_use = "what is being written is neither found nor stored until this is committed"]
pub struct WriteGuard {
    cache: Cache,
    purge: Purge,
    /// What tells that the resource is being written, under every key that it is looked up by; none, if it is named otherwise.
    marks: Vec<Ticket>,
    is_held: bool,
    is_over: bool,
    heartbeat: Option<AbortHandle>,
}

impl WriteGuard {
    pub(crate) async fn begin(cache: Cache, purge: Purge) -> Self {
        let purge = Purge { is_soft: false, is_dry: false, ..purge };
        let Selector::Key(key) = &purge.selector else {
            let is_held = cache.purge(purge.clone()).await.is_ok();
            return Self { cache, purge, marks: Vec::new(), is_held, is_over: false, heartbeat: None };
        };
        let nonce = EntryId(fastrand::u128(..).to_be_bytes());
        let marked = cache.mark(key, nonce, MARK_LIFE).await;
        let (is_held, born) = (marked.is_ok(), marked.map_or(0, |receipt| receipt.clock));
        let marks = cache.tickets(key, nonce, born);
        let heartbeat = tokio::spawn(renew(cache.clone(), cache.tickets(key, nonce, born))).abort_handle();
        Self { cache, purge, marks, is_held, is_over: false, heartbeat: Some(heartbeat) }
    }

    /// Whether the store knows of it: if it could not be reached, readers may keep until the end what they fetch meanwhile.
    pub fn is_held(&self) -> bool {
        self.is_held
    }

    /// Ends it, once the change is made, or has failed. After that what is stored was fetched after it.
    ///
    /// # Errors
    ///
    /// As [`Cache::purge`]: what is stored may then be from before. Dropping the future leaves the rest to the background.
    pub async fn commit(mut self) -> Result<Receipt, StoreError> {
        let ended = end(&self.cache, self.purge.clone(), self.tickets()).await;
        self.is_over = true;
        ended
    }

    /// Ends it, and stores what is there now, unless somebody else has written it or purged it meanwhile. Whatever fails, the
    /// change is made: what is stored is then purged, as soon as that can be done.
    pub(crate) async fn conclude(mut self, written: impl FnOnce(u64) -> Option<Filling>) -> Concluded {
        if let [mark] = self.marks.as_slice()
            && self.is_held
            && let Some(filling) = written(mark.born)
        {
            let ticket = Ticket { key: filling.key.clone(), ..*mark };
            self.cache.detach(&self.purge.selector);
            let filled = self.cache.store().fill(ticket, filling).await;
            self.cache.detach(&self.purge.selector);
            if filled == Ok(Filled::Stored) {
                self.is_over = true;
                return Concluded::Stored;
            }
        }
        let ended = end(&self.cache, self.purge.clone(), self.tickets()).await;
        self.is_over = ended.is_ok();
        match ended {
            Ok(receipt) if receipt.is_deferred => Concluded::Deferred,
            Ok(_) => Concluded::Purged,
            // The guard goes on in the background when it is dropped.
            Err(_) => Concluded::Deferred,
        }
    }

    fn tickets(&self) -> Vec<Ticket> {
        self.marks.iter().map(|mark| Ticket { key: mark.key.clone(), ..*mark }).collect()
    }
}

/// What became of what was stored before a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Concluded {
    /// What is there now is stored in its place.
    Stored,
    /// It is gone.
    Purged,
    /// It is yet to be removed.
    Deferred,
}

/// Extends marks for as long as the task lives, and they last.
async fn renew(cache: Cache, marks: Vec<Ticket>) {
    loop {
        sleep(MARK_LIFE / 3).await;
        for mark in &marks {
            if let Ok(false) = cache.store().renew(mark).await {
                tracing::warn!(
                    key = mark.key.key.as_str(),
                    "what is being written is no longer known to be: its mark is gone"
                );
                return;
            }
        }
    }
}

/// Ends the marks, if there are any, and purges.
async fn end(cache: &Cache, purge: Purge, marks: Vec<Ticket>) -> Result<Receipt, StoreError> {
    for mark in marks {
        // One that cannot be ended runs out by itself; the purge is what must not be left out.
        let _ = cache.store().release(mark, Unused::NoAnswer).await;
    }
    cache.purge(purge).await
}

/// How long after a failure a purge that must not be left out is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(500);

impl Drop for WriteGuard {
    fn drop(&mut self) {
        self.heartbeat.take().inspect(AbortHandle::abort);
        if self.is_over {
            return;
        }
        let (cache, purge, marks) = (self.cache.clone(), self.purge.clone(), self.tickets());
        let background = cache.background().clone();
        background.run(async move {
            let mut ended = end(&cache, purge.clone(), marks).await;
            if let Err(error) = &ended {
                tracing::warn!(%error, "what was written may still be stored as it was; this is tried on for a minute");
            }
            while ended.is_err() {
                sleep(RETRY_AFTER).await;
                ended = cache.purge(purge.clone()).await;
            }
        });
    }
}

impl std::fmt::Debug for WriteGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriteGuard").field("purge", &self.purge).field("is_held", &self.is_held).finish_non_exhaustive()
    }
}
