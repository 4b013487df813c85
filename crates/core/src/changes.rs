//! What changes at the origin, and so is no longer to be stored.

use crate::{
    background::{self, Outlives},
    engine::Front,
    store::Purge,
};
use http::{Request, request::Parts, response};
use larder_semantics::{
    EntryKey, Key, Reason,
    invalidation::{is_done, is_unsafe, related},
};
use tokio::time::timeout;

impl Front {
    /// What a request changes, if it is done: the resource it is for, and where its response says so.
    pub(crate) fn changes(&self, reason: Reason, head: &Parts) -> Option<Box<Parts>> {
        let changes = reason == Reason::Method && is_unsafe(&head.method) && self.rules.policy.invalidate_by_unsafe;
        changes.then(|| {
            let mut target = Request::new(()).into_parts().0;
            let uri = self.rules.policy.query.settle(&head.uri).unwrap_or_else(|| head.uri.clone());
            (target.uri, target.headers, target.extensions) = (uri, head.headers.clone(), head.extensions.clone());
            Box::new(target)
        })
    }

    /// Removes what a request has changed (RFC 9111 section 4.4), waiting no longer than a request may for the store.
    ///
    /// Its own answer is never stored for GET (RFC 9110 section 9.3.3 would allow it): the right to store it could only be
    /// taken now, after the origin was asked, and a purge in between would not have stopped it.
    pub(crate) async fn invalidate(&self, changes: Option<Box<Parts>>, response: &response::Parts) {
        let Some(mut target) = changes.filter(|_| is_done(response.status)) else { return };
        let related = related(&target, &response.headers);
        let mut keys: Vec<Key> = self.rules.key(&mut target, self.cache.routing()).into_iter().collect();
        keys.extend(related.into_iter().filter_map(|uri| self.rules.key_of(&target, uri)));
        let cache = self.cache.clone();
        let purges = Outlives::new(async move {
            for key in keys {
                if let Err(error) = cache.purge(Purge::Key(key)).await {
                    tracing::warn!(%error, "what a request has changed may still be stored");
                }
            }
        });
        drop(timeout(self.cache.shared.settings.store_budget, purges).await);
    }

    /// Removes what the origin has replaced with something that is not stored.
    pub(crate) fn forget(&self, key: Option<&EntryKey>) {
        let Some(key) = key.map(|key| key.key.clone()) else { return };
        let cache = self.cache.clone();
        background::run(async move { drop(cache.purge(Purge::Key(key)).await) });
    }
}
