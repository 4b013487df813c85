//! Steps 5 to 7: asking the origin, and what its answer comes to.

use super::{Errand, Grant, HARD_TIMEOUT, Stay};
use crate::{
    background::Outlives,
    body::CacheBody,
    fill::Fill,
    flights::Release,
    lease::Lease,
    nested::{Around, Decided},
    store::{Claim, Seen},
};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, response};
use http_body::Body;
use larder_semantics::{
    Asked, Caching, EntryKey, Forward, Outcome, Reason, Received, Refusal, Storing, Timestamp, Verdict,
    exchange::{self},
    freshness::Arrival,
};
use std::{
    future::poll_fn,
    sync::Arc,
    sync::atomic::{AtomicBool, Ordering},
    time::SystemTime,
};
use tokio::time::{Instant, timeout};
use tower_service::Service;

/// What came of asking the origin.
struct Came {
    reason: Reason,
    key: Option<EntryKey>,
    received: Received,
    grant: Option<Box<Grant>>,
    /// Whether the answer stands for one that the origin could not give.
    is_unreachable: bool,
    asked_at: Instant,
    now: Timestamp,
}

impl Stay {
    /// Steps 4 to 7 in the background: asks the store for the right to fill, which another process may have, and the
    /// origin.
    pub(super) async fn refresh<S, Q, B>(mut self, mut errand: Errand, mut request: Request<Q>, origin: S)
    where
        S: Service<Request<Q>, Response = Response<B>>,
        B: Body<Data = Bytes> + Send + 'static,
    {
        let (Some(grant), Some(forward)) = (&mut errand.grant, errand.forward.take()) else { return };
        let store = self.front.cache.store();
        let seen = forward.seen().map_or(Seen::Absent, Seen::Entry);
        let Ok(Claim::Granted(ticket)) = store.claim(&grant.key, seen).await else { return };
        grant.lease = Some(Lease::hold(&self.front.cache, ticket));
        errand.forward = Some(self.front.cache.doubt(forward, &grant.key));
        exchange::ask_for_all(&mut request);
        self.marks.is_background = true;
        // What is stored of the answer is read to its end when it is dropped.
        drop(self.forward(errand, request, origin).await);
    }

    /// Steps 5 to 7 for an answer that others wait for, or that may be stored: it goes on when the client leaves, or has
    /// waited long enough.
    pub(super) async fn forward_in_time<S, Q, B>(
        mut self,
        errand: Errand,
        request: Request<Q>,
        origin: S,
    ) -> Result<Response<CacheBody<B>>, S::Error>
    where
        S: Service<Request<Q>, Response = Response<B>> + Send + 'static,
        S::Future: Send,
        S::Error: Send,
        Q: Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
    {
        let (front, policy) = (self.front.clone(), &self.front.clone().rules.policy);
        let held = errand.forward.clone().filter(Forward::holds);
        let (soft, hard) = (policy.soft_timeout.filter(|_| held.is_some()), policy.hard_timeout);
        let Some(limit) = soft.into_iter().chain(hard).chain(held.is_some().then_some(HARD_TIMEOUT)).min() else {
            return self.outliving(errand, request, origin).await;
        };
        let left = Arc::new(AtomicBool::new(false));
        self.left = Some(left.clone());
        let (metrics, marks) = (self.metrics.clone(), self.marks);
        let other = Self { front: front.clone(), metrics, marks, patience: self.patience, left: None, reads: None };
        let (headers, key) = (request.headers().clone(), errand.key.as_ref().map(|key| key.key.clone()));
        let mut work = self.outliving(errand, request, origin);
        let asked_at = Instant::now();
        if let Ok(answer) = timeout(limit, &mut work).await {
            return answer;
        }
        // From here on, what it comes to is nobody's answer, and not counted as one.
        let fall_back = |reason| held.as_ref()?.fall_back(&headers, reason, front.cache.store().now());
        let reason = if soft == Some(limit) { Reason::SoftTimeout } else { Reason::ErrorStale };
        if let Some(hit) = fall_back(reason) {
            left.store(true, Ordering::Relaxed);
            return Ok(other.visit().late(hit, reason, key.as_ref()));
        }
        let Some(hard) = hard else { return work.await };
        if let Ok(answer) = timeout(hard.saturating_sub(asked_at.elapsed()), &mut work).await {
            return answer;
        }
        left.store(true, Ordering::Relaxed);
        Ok(other.visit().shed(Reason::OriginTimeout, key.as_ref()))
    }

    /// Steps 5 and 6, which go on when the client leaves.
    fn outliving<S, Q, B>(
        self,
        errand: Errand,
        request: Request<Q>,
        origin: S,
    ) -> Outlives<Result<Response<CacheBody<B>>, S::Error>>
    where
        S: Service<Request<Q>, Response = Response<B>> + Send + 'static,
        S::Future: Send,
        S::Error: Send,
        Q: Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
    {
        let background = self.front.cache.background().clone();
        let changes = self.front.may_change(errand.reason, request.method());
        let work = self.forward(errand, request, origin);
        if changes { Outlives::change(&background, work) } else { Outlives::fetch(&background, work) }
    }

    /// Steps 5 and 6: asks the origin, and judges its answer.
    pub(super) async fn forward<S, Q, B>(
        self,
        errand: Errand,
        request: Request<Q>,
        mut origin: S,
    ) -> Result<Response<CacheBody<B>>, S::Error>
    where
        S: Service<Request<Q>, Response = Response<B>>,
        B: Body<Data = Bytes> + Send + 'static,
    {
        let Errand { reason, key, forward, grant } = errand;
        let is_held = forward.as_ref().is_some_and(Forward::holds);
        let is_judged = grant.is_some() || is_held || reason == Reason::KnownUncacheable;
        let headers = if is_judged { request.headers().clone() } else { HeaderMap::new() };
        let (mut head, body) = request.into_parts();
        let authority = if is_judged { Asked::authority_of(&head) } else { String::new() };
        let changes = self.front.changes(reason, &head);
        let conditions = is_held.then(|| exchange::conditions(&head.headers));
        if let Some(forward) = &forward {
            self.front.rules.settle_host(&mut head);
            forward.prepare(&mut head, &self.front.rules.policy);
        }
        let (request, lent) =
            Around::put(&self.front.cache, Request::from_parts(head, body), grant, conditions, self.patience);
        let asked_at = Instant::now();
        let answered = async {
            poll_fn(|context| origin.poll_ready(context)).await?;
            origin.call(request).await
        };
        let answered = answered.await;
        self.metrics.fetched(asked_at.elapsed(), answered.is_ok());
        let (mut head, body) = match (answered, forward.as_ref()) {
            (Ok(response), _) => response.into_parts(),
            (Err(error), None) => return Err(error),
            (Err(error), Some(forward)) => {
                let now = self.front.cache.store().now();
                let (hit, throttled) =
                    forward.fail(&headers, &self.front.rules.policy, now, fastrand::f64()).ok_or(error)?;
                let key = key.as_ref().map(|key| &key.key);
                return Ok(self.visit().failed(hit, None, throttled, lent.take_back(), key, now));
            }
        };
        let caching = head.extensions.remove::<Caching>().unwrap_or_default();
        if head.extensions.remove::<Decided>().is_some_and(|by| by.0.is(&self.front.cache)) {
            return Ok(Response::from_parts(head, CacheBody::forwarded(body)));
        }
        self.front.learn(reason, key.as_ref(), &head);
        let arrival = Arrival {
            now: self.front.cache.store().now(),
            calendar: SystemTime::now().into(),
            delay: asked_at.elapsed(),
            seed: fastrand::f64(),
        };
        let received = match (forward, key.clone()) {
            (Some(forward), Some(key)) if is_judged => {
                forward.receive(Asked { key, authority, headers }, &head, &caching, &self.front.rules.policy, arrival)
            }
            _ => Received::Pass(Storing::Untried),
        };
        let (received, grant) = self.front.settle(changes, self.patience, &head, received, lent.take_back()).await;
        let is_unreachable = caching.unreachable;
        let came = Came { reason, key, received, grant, is_unreachable, asked_at, now: arrival.now };
        Ok(self.deliver(came, head, body))
    }

    /// Step 7: what the client gets, and what becomes of it beside.
    fn deliver<B>(&self, came: Came, mut head: response::Parts, body: B) -> Response<CacheBody<B>>
    where
        B: Body<Data = Bytes> + Send + 'static,
    {
        let Came { reason, key, received, grant, is_unreachable, asked_at, now } = came;
        let told = key.as_ref().map(|key| &key.key);
        let (storing, body) = match (received, grant) {
            (Received::Stale(hit, throttled), grant) => {
                let status = (!is_unreachable).then_some(head.status.as_u16());
                return self.visit().failed(hit, status, *throttled, grant, told, now);
            }
            (Received::Freshened(hit, admitted), grant) => {
                let storing = self.front.freshened(admitted, grant, key.as_ref(), now);
                let outcome = Outcome::Forwarded { reason: Reason::NotModified, status: head.status.as_u16(), storing };
                return self.visit().respond(hit, told, outcome, now);
            }
            (Received::Store(admission), Some(mut grant)) => {
                // Those who wait could not use it without asking the origin each for themselves.
                if admission.is_for_validation_only()
                    && let Some(lead) = grant.lead.take()
                {
                    lead.release(Release::GoAlone);
                }
                let ttl = admission.ttl(now);
                let storing = match grant.unstored {
                    None => Storing::Offered { ttl },
                    // That the store was not asked is told already.
                    Some(Refusal::StoreRefused) if reason.verdict() == Verdict::Bypass => Storing::Untried,
                    Some(refusal) => Storing::Refused(refusal),
                };
                (storing, CacheBody::copied(body, Fill::begin(self.front.cache.clone(), admission, grant, asked_at)))
            }
            (Received::Store(_), None) => {
                key.as_ref().map(|key| self.front.cache.shared.uncacheable.remove(&key.base()));
                (Storing::Untried, CacheBody::forwarded(body))
            }
            (Received::Replaced(storing), grant) => {
                self.front.cache.pass(grant, storing);
                self.front.forget(key.as_ref());
                (storing, CacheBody::forwarded(body))
            }
            // An error that is no answer: one of those who wait may try next.
            (Received::Pass(storing), grant) if head.status.is_server_error() => {
                drop(grant);
                (storing, CacheBody::forwarded(body))
            }
            (Received::Pass(storing), grant) => {
                self.front.cache.pass(grant, storing);
                (storing, CacheBody::forwarded(body))
            }
        };
        let outcome = Outcome::Forwarded { reason, status: head.status.as_u16(), storing };
        self.front.rules.policy.strip(&mut head.headers);
        self.visit().sign(outcome, told).write(&mut head.headers, None);
        let mut response = Response::from_parts(head, body);
        self.visit().mark(&mut response);
        response
    }
}
