//! Requests that change something: what is stored of it is removed, and the answer to a POST may be stored for GET.

use crate::{
    background::{self, Outlives},
    engine::{Front, Grant},
    lease::Lease,
    store::{Claim, Purge, Seen},
};
use http::{Request, header, request::Parts, response};
use larder_semantics::{
    Asked, Caching, EntryKey, Intake, Key, Reason, Received, Selected, Storing,
    freshness::Arrival,
    invalidation::{is_representation_of, is_unsafe, related},
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
    pub(crate) async fn invalidate(&self, target: &Parts, response: &response::Parts) {
        let related = related(target, &response.headers);
        let mut keys: Vec<Key> = self.rules.key(&mut target.clone(), self.cache.routing()).into_iter().collect();
        keys.extend(related.into_iter().filter_map(|uri| self.rules.key_of(target, uri)));
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

    /// Judges the answer to a POST as one to GET, if it says that it is that too, and takes the right to store it.
    pub(crate) async fn posted(
        &self,
        mut target: Parts,
        response: &response::Parts,
        caching: &Caching,
        arrival: Arrival,
    ) -> (Received, Option<Box<Grant>>, Option<EntryKey>) {
        let not_stored = (Received::Pass(Storing::Untried), None, None);
        if !self.rules.policy.store_posts || !is_representation_of(&target, &response.headers) {
            return not_stored;
        }
        for field in [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONTENT_TYPE] {
            target.headers.remove(field);
        }
        let (Intake::Lookup(lookup), Some(key)) =
            (Intake::of(&target, &self.rules.policy), self.rules.key(&mut target, self.cache.routing()))
        else {
            return not_stored;
        };
        let key = self.cache.shared.namespace.entry(key);
        let Selected::Forward(forward) = lookup.select(None, &target.headers, arrival.now) else { return not_stored };
        let asked = Asked { key: key.clone(), headers: target.headers };
        let received = forward.receive(asked, response, caching, &self.rules.policy, arrival);
        let Received::Store(admission) = received else { return not_stored };
        if !admission.is_stated() {
            return not_stored;
        }
        let Ok(Claim::Granted(ticket)) = self.cache.store().claim(&key, Seen::Absent).await else { return not_stored };
        let lease = Some(Lease::hold(self.cache.store().clone(), ticket));
        let grant = Box::new(Grant { key: key.clone(), lead: None, lease, unstored: None });
        (Received::Store(admission), Some(grant), Some(key))
    }

    /// Removes what the origin has replaced with something that is not stored.
    pub(crate) fn forget(&self, key: Option<&EntryKey>) {
        let Some(key) = key.map(|key| key.key.clone()) else { return };
        let cache = self.cache.clone();
        background::run(async move { drop(cache.purge(Purge::Key(key)).await) });
    }
}
