//! Changing at the origin what is stored, so that no reader keeps what was there before.

use crate::{
    Cache,
    store::{Purge, Receipt, Selector, StoreError},
};
use larder_semantics::{EntryId, Key};
use std::time::Duration;
use tokio::{task::AbortHandle, time::sleep};

/// How long a resource counts as being written without being told so again: what a transaction may outlive its process by.
const MARK_LIFE: Duration = Duration::from_secs(30);

/// A change at the origin that is being made, as around a transaction of a database: from
/// [`Cache::begin_write`] to [`commit`](Self::commit).
///
/// Meanwhile nothing of a resource that is named by its key is found or stored: requests go to the origin, and what they bring
/// is theirs only. If this process dies, that ends after 30 s; a transaction that lives longer than its process by more could
/// leave an old answer behind, and so could a process that dies after a server with too little memory has evicted the mark. What is named otherwise (by tags, a pattern, or all of it) is purged at the beginning and at the
/// end, so that what was fetched in between is gone at the end.
///
/// Dropped without being committed, it purges all the same, in the background: whether the change was made is not known then.
#[must_use = "what is being written is neither found nor stored until this is committed"]
pub struct WriteGuard {
    cache: Cache,
    purge: Purge,
    mark: Option<(Key, EntryId)>,
    is_held: bool,
    heartbeat: Option<AbortHandle>,
}

impl WriteGuard {
    pub(crate) async fn begin(cache: Cache, purge: Purge) -> Self {
        let purge = Purge { is_soft: false, is_dry: false, ..purge };
        let Selector::Key(key) = &purge.selector else {
            let is_held = cache.purge(purge.clone()).await.is_ok();
            return Self { cache, purge, mark: None, is_held, heartbeat: None };
        };
        let (key, nonce) = (key.clone(), EntryId(fastrand::u128(..).to_be_bytes()));
        let is_held = cache.mark(&key, nonce, MARK_LIFE).await.is_ok();
        let (beating, marked) = (cache.clone(), key.clone());
        let heartbeat = tokio::spawn(async move {
            loop {
                sleep(MARK_LIFE / 3).await;
                // One that fails is made up for by the next.
                let _ = beating.mark(&marked, nonce, MARK_LIFE).await;
            }
        });
        Self { cache, purge, mark: Some((key, nonce)), is_held, heartbeat: Some(heartbeat.abort_handle()) }
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
        self.heartbeat.take().inspect(AbortHandle::abort);
        let (cache, purge, mark) = (self.cache.clone(), self.purge.clone(), self.mark.clone());
        let ended = end(cache, purge, mark).await;
        self.is_held = false;
        self.mark = None;
        self.purge.is_dry = true;
        ended
    }
}

/// Ends the mark, if there is one, and purges.
async fn end(cache: Cache, purge: Purge, mark: Option<(Key, EntryId)>) -> Result<Receipt, StoreError> {
    if let Some((key, nonce)) = mark {
        // One that cannot be ended runs out by itself; the purge is what must not be left out.
        let _ = cache.unmark(&key, nonce).await;
    }
    cache.purge(purge).await
}

impl Drop for WriteGuard {
    fn drop(&mut self) {
        self.heartbeat.take().inspect(AbortHandle::abort);
        if self.purge.is_dry {
            return;
        }
        let (cache, purge, mark) = (self.cache.clone(), self.purge.clone(), self.mark.take());
        let background = cache.background().clone();
        background.run(async move {
            if let Err(error) = end(cache, purge, mark).await {
                tracing::warn!(%error, "what was being written may still be stored as it was");
            }
        });
    }
}

impl std::fmt::Debug for WriteGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriteGuard").field("purge", &self.purge).field("is_held", &self.is_held).finish_non_exhaustive()
    }
}
