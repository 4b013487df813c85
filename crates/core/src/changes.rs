//! What changes at the origin, and so is no longer to be stored.

use crate::{
    background::Outlives,
    budget::Budget,
    engine::{Front, Grant},
    lease::Lease,
    store::{Claim, Purge, Seen},
};
use http::{Method, Request, Uri, request::Parts, response};
use larder_semantics::{
    Asked, EntryKey, Forward, Key, Reason, Received, Storing,
    groups::{self, CACHE_GROUP_INVALIDATION},
    invalidation::{is_answer_to_get, is_done, is_unsafe, related},
};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

impl Front {
    /// Whether a request may change what is stored.
    pub(crate) fn may_change(&self, reason: Reason, method: &Method) -> bool {
        reason == Reason::Method && is_unsafe(method) && self.rules.policy.invalidate_by_unsafe
    }

    /// What a request changes, if it is done: the resource it is for, and where its response says so.
    pub(crate) fn changes(&self, reason: Reason, head: &Parts) -> Option<Box<Parts>> {
        self.may_change(reason, &head.method).then(|| {
            let mut target = Request::new(()).into_parts().0;
            let uri = self.rules.policy.query.settle(&head.uri).unwrap_or_else(|| head.uri.clone());
            (target.uri, target.headers, target.extensions) = (uri, head.headers.clone(), head.extensions.clone());
            Box::new(target)
        })
    }

    /// Asks for the right to store the answer to a POST for GET: it must be there before the origin is asked, or an answer
    /// from before a purge could be stored after it.
    pub(crate) async fn may_store_for_get(
        &self,
        head: &mut Parts,
        inherited: Option<Box<Grant>>,
        budget: &mut Budget,
    ) -> Option<(Forward, Box<Grant>)> {
        let forward = Forward::of_post(head, &self.rules.policy)?;
        let mut target = self.changes(Reason::Method, head)?;
        let mut key = self.rules.key(&mut target, self.cache.routing())?;
        let forward = forward.seeking(self.seek(&mut key, &target.uri));
        let key = self.cache.shared.namespace.entry(key);
        if let Some(grant) = inherited.filter(|grant| grant.key == key) {
            return Some((forward, grant));
        }
        let claim = budget.spend(self.cache.store().claim(&key, Seen::Changing));
        let Ok(Claim::Granted(ticket)) = claim.await else { return None };
        let lease = Some(Lease::hold(&self.cache, ticket));
        Some((forward, Box::new(Grant { key, lead: None, lease, unstored: None })))
    }

    /// Removes what a request has changed (RFC 9111 section 4.4), waiting no longer than it still may for the store; all but
    /// its own answer, if that is to be stored for GET.
    pub(crate) async fn settle(
        &self,
        changes: Option<Box<Parts>>,
        patience: Duration,
        response: &response::Parts,
        received: Received,
        grant: Option<Box<Grant>>,
    ) -> (Received, Option<Box<Grant>>) {
        let Some(mut target) = changes else { return (received, grant) };
        let patience = Instant::now() + patience;
        let ticket = grant.as_ref().and_then(|grant| grant.lease.as_ref()?.ticket());
        let is_for_get =
            matches!(received, Received::Store(_)) && is_answer_to_get(&target, response.status, &response.headers);
        let is_kept = match ticket.filter(|_| is_for_get) {
            Some(ticket) => timeout_at(patience, self.cache.supersede(ticket)).await == Ok(true),
            None => false,
        };
        if is_done(response.status) {
            let mut keys = self.keys_of_changed(&mut target, response);
            keys.retain(|key| !is_kept || grant.as_ref().is_none_or(|grant| grant.key.key != *key));
            let groups = groups::tags(&response.headers, &CACHE_GROUP_INVALIDATION, &Asked::authority_of(&target));
            let groups = (!groups.is_empty()).then(|| Purge::tags(groups));
            let cache = self.cache.clone();
            let purges = Outlives::change(self.cache.background(), async move {
                for purge in keys.into_iter().map(Purge::key).chain(groups) {
                    if let Err(error) = cache.remove(purge).await {
                        tracing::warn!(%error, "what a request has changed may still be stored");
                    }
                }
            });
            drop(timeout_at(patience, purges).await);
        }
        if is_kept { (received, grant) } else { (Received::Pass(Storing::Untried), None) }
    }

    /// The keys of what a request has changed: of its target, and of what its response names.
    fn keys_of_changed(&self, target: &mut Parts, response: &response::Parts) -> Vec<Key> {
        let settled = |uri: Uri| self.rules.policy.query.settle(&uri).unwrap_or(uri);
        let related = related(target, &response.headers).into_iter().map(settled);
        let own = self.rules.key(target, self.cache.routing()).map(|key| (key, target.uri.clone()));
        let others = related.filter_map(|uri| Some((self.rules.key_of(target, uri.clone())?, uri)));
        let all = own.into_iter().chain(others);
        all.flat_map(|(key, uri)| self.cache.shared.variances.keys_of(key, uri.query())).collect()
    }

    /// Removes what the origin has replaced with something that is not stored.
    pub(crate) fn forget(&self, key: Option<&EntryKey>) {
        let Some(key) = key.map(|key| key.key.clone()) else { return };
        let cache = self.cache.clone();
        let background = cache.background().clone();
        background.run(async move { drop(cache.purge(Purge::key(key)).await) });
    }
}
