//! The life of a request, from top to bottom.

use crate::{
    Cache,
    background::{self, Outlives},
    body::CacheBody,
    budget::Budget,
    cache::Settings,
    fill::{self, Fill},
    flights::{Follow, Joined, Lead, Release, Waited},
    layer::Rules,
    lease::Lease,
    nested::{Around, Decided},
    observe::RouteMetrics,
    service::CacheFuture,
    store::{Claim, Found, Seen, Unreadable},
};
use bytes::Bytes;
use http::{Extensions, HeaderMap, Request, Response, StatusCode, request::Parts, response};
use http_body::Body;
use larder_semantics::{
    Admission, Asked, Caching, EntryKey, Filling, Forward, Hit, Intake, Lookup, Outcome, Reason, Received, Refusal,
    Selected, Storing, Timestamp, VariantId,
    exchange::{self, Answer},
    freshness::Arrival,
    signature::Signature,
};
use std::{
    borrow::Cow,
    future::poll_fn,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};
use tokio::time::Instant;
use tower_service::Service;

/// How often a request may look up again, because what it was about to fetch has come meanwhile.
const ROUNDS: usize = 5;

/// A cache behind the rules of one layer: what all clones of a service share.
pub(crate) struct Front {
    pub(crate) cache: Cache,
    pub(crate) rules: Arc<Rules>,
    /// The metrics of the route that was seen first: mostly the only one.
    pub(crate) metrics: OnceLock<Arc<RouteMetrics>>,
}

impl Front {
    /// Answers a request from what is stored, or from `origin`, whose answer may be stored.
    ///
    /// What this process holds answers at once, without a clone of the origin and without a future on the heap.
    pub(crate) fn serve<S, Q, B>(self: &Arc<Self>, request: Request<Q>, origin: &S) -> CacheFuture<B, S::Error>
    where
        S: Service<Request<Q>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send,
        S::Error: Send,
        Q: Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
    {
        let (mut head, body) = request.into_parts();
        let around = Around::take(&self.cache, &mut head);
        let shows_key = self.rules.headers.shows_key(&mut head);
        let marks = Marks { shows_key, is_nested: around.is_some(), is_background: false };
        let metrics = self.metrics(&head);
        let visit = Visit { front: self, metrics: &metrics, marks };
        let sought = visit.intake(&mut head);
        if let Ok((lookup, key)) = &sought
            && let Some((hit, now)) = visit.at_hand(lookup, key, &head)
        {
            return CacheFuture::ready(visit.answer(hit, key, Reason::Near, now));
        }
        let stay = Stay { front: self.clone(), metrics: metrics.into_owned(), marks };
        let (origin, inherited) = (origin.clone(), around.and_then(Around::into_grant));
        CacheFuture::pending(async move {
            let visit = stay.visit();
            let course = match sought {
                Ok((lookup, key)) => visit.look_up(lookup, key, &head, inherited).await,
                Err(reason) => visit.pass_by(reason, &mut head, inherited).await,
            };
            match course {
                Course::Answer(hit, key, reason, now) => Ok(visit.answer(hit, &key, reason, now)),
                Course::Refresh(hit, key, errand, now) => {
                    let answer = visit.answer(hit, &key, Reason::SwrRefresh, now);
                    background::spawn(stay.refresh(*errand, Request::from_parts(head, body), origin));
                    Ok(answer)
                }
                Course::Unsatisfied(key) => Ok(visit.unsatisfied(&key)),
                Course::Forward(errand) if errand.grant.is_none() && !stay.front.may_change(errand.reason, &head) => {
                    Box::pin(stay.forward(*errand, Request::from_parts(head, body), origin)).await
                }
                // The origin's work is wanted by others too, or changes what they get: it goes on when this client leaves.
                Course::Forward(errand) => {
                    Outlives::new(stay.forward(*errand, Request::from_parts(head, body), origin)).await
                }
            }
        })
    }

    /// Offers what the origin has confirmed to the store, and tells what becomes of it.
    fn freshened(
        &self,
        admitted: Result<Box<Admission>, Refusal>,
        grant: Option<Box<Grant>>,
        key: Option<&EntryKey>,
        now: Timestamp,
    ) -> Storing {
        match (admitted, grant) {
            (Ok(admission), Some(grant)) => {
                let ttl = admission.ttl(now);
                let storing = grant.unstored.map_or(Storing::Offered { ttl }, Storing::Refused);
                fill::freshen(self.cache.clone(), *admission, *grant);
                storing
            }
            (Ok(_), None) => Storing::Untried,
            (Err(refusal), grant) => {
                self.cache.pass(grant, Storing::Refused(refusal));
                self.forget(key);
                Storing::Refused(refusal)
            }
        }
    }

    /// The metrics of the route that a request is for, as far as the framework tells it.
    fn metrics(&self, head: &Parts) -> Cow<'_, Arc<RouteMetrics>> {
        let Self { cache, rules, metrics } = self;
        let route = cache.routing().and_then(|routing| routing.route(head)).unwrap_or(&rules.route);
        let first = metrics.get_or_init(|| cache.observer().route(route, rules.tier));
        if first.is_of(route) { Cow::Borrowed(first) } else { Cow::Owned(cache.observer().route(route, rules.tier)) }
    }
}

/// One request on its way through one layer. A hit in memory borrows all of it.
#[derive(Clone, Copy)]
struct Visit<'f> {
    front: &'f Front,
    metrics: &'f RouteMetrics,
    marks: Marks,
}

#[derive(Clone, Copy)]
struct Marks {
    /// Whether the response tells the key.
    shows_key: bool,
    /// Whether another layer of the same cache is around this one, and leaves the decisions to it.
    is_nested: bool,
    /// Whether nobody waits for the answer, and so nobody counts it.
    is_background: bool,
}

/// A visit that lasts: it waits for a store, or for the origin.
struct Stay {
    front: Arc<Front>,
    metrics: Arc<RouteMetrics>,
    marks: Marks,
}

impl Stay {
    fn visit(&self) -> Visit<'_> {
        Visit { front: &self.front, metrics: &self.metrics, marks: self.marks }
    }
}

/// Where a request gets its answer.
enum Course {
    /// From a stored response, found for the reason given.
    Answer(Hit, EntryKey, Reason, Timestamp),
    /// From a stored response that is stale, and revalidated in the background.
    Refresh(Hit, EntryKey, Box<Errand>, Timestamp),
    /// From nowhere: the client accepts stored responses only.
    Unsatisfied(EntryKey),
    /// From the origin.
    Forward(Box<Errand>),
}

/// What is asked of the origin, and what the answer may be used for.
struct Errand {
    reason: Reason,
    key: Option<EntryKey>,
    forward: Option<Forward>,
    grant: Option<Box<Grant>>,
}

/// What a request that fetches holds: the lead over those who wait, the right to store, or both.
pub(crate) struct Grant {
    pub(crate) key: EntryKey,
    pub(crate) lead: Option<Lead<EntryKey, Option<VariantId>, Filling>>,
    pub(crate) lease: Option<Lease>,
    /// Why there is no right to store, if so.
    pub(crate) unstored: Option<Refusal>,
}

impl Visit<'_> {
    /// Step 1: what may be looked up, and under which key.
    fn intake(&self, head: &mut Parts) -> Result<(Lookup, EntryKey), Reason> {
        let lookup = match Intake::of(head, &self.front.rules.policy) {
            Intake::Bypass(reason) => return Err(reason),
            Intake::Lookup(lookup) => lookup,
        };
        if self.front.rules.skips(head) {
            return Err(Reason::Skipped);
        }
        if let Some(target) = self.front.rules.policy.query.settle(&head.uri) {
            head.uri = target;
        }
        let key = self.front.rules.key(head, self.front.cache.routing()).ok_or(Reason::KeyRefused)?;
        let (key, sought) = self.front.sought(key, &head.uri);
        Ok((lookup.seeking(sought), self.front.cache.shared.namespace.entry(key)))
    }

    /// Steps 2 and 3, as far as this process alone can take them.
    fn at_hand(&self, lookup: &Lookup, key: &EntryKey, head: &Parts) -> Option<(Hit, Timestamp)> {
        let store = self.front.cache.store();
        let (entry, now) = store.at_hand(key)?;
        match lookup.clone().select(Some(entry), &head.headers, now) {
            Selected::Hit(hit) => Some((hit, now)),
            Selected::Variant(lookup, variant) => {
                let key = key.of_variant(variant);
                match lookup.select(Some(store.at_hand(&key)?.0), &head.headers, now) {
                    Selected::Hit(hit) => Some((hit, now)),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// Steps 2 to 4: looks up, and joins those who fetch, until there is an answer or this request is to fetch it.
    async fn look_up(&self, lookup: Lookup, key: EntryKey, head: &Parts, inherited: Option<Box<Grant>>) -> Course {
        let Settings { store_budget, read_deadline, lock_wait } = self.front.cache.shared.settings;
        let (mut budget, mut patience) = (Budget::new(store_budget, read_deadline), lock_wait);
        let (mut lookup, mut key, mut inherited) = (lookup, key, inherited);
        if self.front.cache.is_uncacheable(&key) {
            return Course::alone(lookup.without_store(Reason::KnownUncacheable, &head.headers), key);
        }
        for _ in 0..ROUNDS {
            let found = match budget.spend(self.front.cache.store().get(&key)).await {
                Ok(found) => found,
                Err(error) => return Course::alone(lookup.without_store(Reason::from(&error), &head.headers), key),
            };
            let now = self.front.cache.store().now();
            let (selected, copy, unreadable) = match found {
                Found::Entry(entry, copy) => (lookup.select(Some(entry), &head.headers, now), copy.into(), false),
                Found::Absent => (lookup.select(None, &head.headers, now), Reason::Never, false),
                Found::Unreadable(why @ Unreadable::Version(_)) => {
                    return Course::alone(lookup.without_store(why.into(), &head.headers), key);
                }
                Found::Unreadable(why) => (lookup.without_store(why.into(), &head.headers), Reason::Never, true),
            };
            let forward = match selected {
                Selected::Hit(hit) => return Course::Answer(hit, key, copy, now),
                Selected::Stale(hit, forward) => return self.refresh(hit, forward, key, now),
                Selected::Unsatisfied => return Course::Unsatisfied(key),
                Selected::Variant(of_variant, variant) => {
                    (lookup, key) = (of_variant, key.of_variant(variant));
                    continue;
                }
                Selected::Forward(forward) if !forward.may_store() => {
                    return Course::alone(Selected::Forward(forward), key);
                }
                Selected::Forward(forward) => forward,
            };
            if let Some(grant) = inherited.take_if(|grant| grant.key == key) {
                return Course::fetch(forward, grant);
            }
            let seen = if unreadable { Seen::Unreadable } else { forward.seen().map_or(Seen::Absent, Seen::Entry) };
            (lookup, key) = match Box::pin(self.join(&forward, &key, seen, &mut budget, &mut patience)).await {
                Joining::Leads(grant) => return Course::fetch(forward, grant),
                Joining::Alone(reason) => {
                    let reason = reason.unwrap_or(forward.reason());
                    return Course::alone(Selected::Forward(forward.because(reason)), key);
                }
                Joining::Again => (forward.look_again(), key.base()),
                Joining::Brought(fetched, reason) => {
                    let now = self.front.cache.store().now();
                    match forward.look_again().select_fetched(&fetched, &head.headers, now) {
                        Selected::Hit(hit) | Selected::Stale(hit, _) => {
                            return Course::Answer(hit, fetched.key, reason, now);
                        }
                        Selected::Unsatisfied => return Course::Unsatisfied(key),
                        Selected::Forward(forward) => (forward.look_again(), key.base()),
                        Selected::Variant(of_variant, _) => (of_variant.from_base(), key.base()),
                    }
                }
            };
        }
        Course::alone(lookup.without_store(Reason::Never, &head.headers), key)
    }
}

impl Visit<'_> {
    /// What becomes of a request that is not looked up.
    async fn pass_by(&self, reason: Reason, head: &mut Parts, inherited: Option<Box<Grant>>) -> Course {
        if reason == Reason::Method
            && let Some((forward, grant)) = self.front.may_store_for_get(head, inherited).await
        {
            return Course::fetch(forward, grant);
        }
        Course::Forward(Box::new(Errand::bypass(reason)))
    }
}

impl Course {
    /// To the origin, for an answer that is not stored.
    fn alone(selected: Selected, key: EntryKey) -> Self {
        match selected {
            Selected::Forward(forward) => Self::Forward(Box::new(Errand {
                reason: forward.reason(),
                key: Some(key),
                forward: Some(forward),
                grant: None,
            })),
            _ => Self::Unsatisfied(key),
        }
    }

    /// To the origin, in the background.
    fn refresh(hit: Hit, forward: Forward, key: EntryKey, grant: Option<Box<Grant>>, now: Timestamp) -> Self {
        let (reason, stored_at) = (forward.reason(), Some(key.clone()));
        Self::Refresh(hit, key, Box::new(Errand { reason, key: stored_at, forward: Some(forward), grant }), now)
    }

    /// To the origin, for an answer that others wait for, or that may be stored.
    fn fetch(forward: Forward, grant: Box<Grant>) -> Self {
        let key = Some(grant.key.clone());
        Self::Forward(Box::new(Errand { reason: forward.reason(), key, forward: Some(forward), grant: Some(grant) }))
    }
}

impl Errand {
    fn bypass(reason: Reason) -> Self {
        Self { reason, key: None, forward: None, grant: None }
    }
}

/// What comes of meeting the others who want the same.
enum Joining {
    /// This request fetches.
    Leads(Box<Grant>),
    /// It goes to the origin for itself only, for this reason if it is a new one.
    Alone(Option<Reason>),
    /// There is something new to look up.
    Again,
    /// Another request has fetched it.
    Brought(Filling, Reason),
}

impl Visit<'_> {
    /// Step 4 for a stale response that may answer meanwhile: whoever leads has it revalidated, and nobody waits.
    fn refresh(&self, hit: Hit, forward: Forward, key: EntryKey, now: Timestamp) -> Course {
        let grant = |lead| Box::new(Grant { key: key.clone(), lead, lease: None, unstored: None });
        if !forward.may_collapse() {
            let grant = Some(grant(None));
            return Course::refresh(hit, forward, key, grant, now);
        }
        match self.front.cache.shared.flights.join(&key.base(), &key.variant) {
            Joined::Lead(lead) => {
                let grant = Some(grant(Some(lead)));
                Course::refresh(hit, forward, key, grant, now)
            }
            Joined::Landed(_) | Joined::Follow(_) => Course::Answer(hit.updating(), key, Reason::SwrUpdating, now),
        }
    }

    /// Step 4: joins those of this process who want the same, and asks the store for the right to fill.
    async fn join(
        &self,
        forward: &Forward,
        key: &EntryKey,
        seen: Seen,
        budget: &mut Budget,
        patience: &mut Duration,
    ) -> Joining {
        let mut lead = None;
        if forward.may_collapse() {
            match self.front.cache.shared.flights.join(&key.base(), &key.variant) {
                Joined::Lead(leads) => lead = Some(leads),
                Joined::Landed(fetched) => return Joining::Brought(fetched, Reason::Near),
                Joined::Follow(follow) => return follow.into_joining(patience).await,
            }
        }
        let (lease, unstored) = match budget.spend(self.front.cache.store().claim(key, seen)).await {
            Ok(Claim::Granted(ticket)) => (Some(Lease::hold(self.front.cache.store().clone(), ticket)), None),
            Ok(Claim::Found(_) | Claim::Moved) => return Joining::Again,
            Ok(Claim::Held) => (None, Some(Refusal::TicketLost)),
            Err(_) => (None, Some(Refusal::StoreRefused)),
        };
        if lead.is_none() && lease.is_none() {
            return Joining::Alone(None);
        }
        Joining::Leads(Box::new(Grant { key: key.clone(), lead, lease, unstored }))
    }
}

impl Follow<Filling> {
    async fn into_joining(self, patience: &mut Duration) -> Joining {
        let began = Instant::now();
        let waited = self.wait(*patience).await;
        *patience = patience.saturating_sub(began.elapsed());
        match waited {
            Waited::Landed(fetched) => Joining::Brought(fetched, Reason::Collapsed),
            Waited::Released(Release::Compete) => Joining::Again,
            Waited::Released(Release::GoAlone) => Joining::Alone(None),
            Waited::TimedOut => Joining::Alone(Some(Reason::LockTimeout)),
        }
    }
}

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
    async fn refresh<S, Q, B>(mut self, mut errand: Errand, mut request: Request<Q>, origin: S)
    where
        S: Service<Request<Q>, Response = Response<B>>,
        B: Body<Data = Bytes> + Send + 'static,
    {
        let (Some(grant), Some(forward)) = (&mut errand.grant, &errand.forward) else { return };
        let store = self.front.cache.store();
        let seen = forward.seen().map_or(Seen::Absent, Seen::Entry);
        let Ok(Claim::Granted(ticket)) = store.claim(&grant.key, seen).await else { return };
        grant.lease = Some(Lease::hold(store.clone(), ticket));
        exchange::ask_for_all(&mut request);
        self.marks.is_background = true;
        // What is stored of the answer is read to its end when it is dropped.
        drop(self.forward(errand, request, origin).await);
    }

    /// Steps 5 and 6: asks the origin, and judges its answer.
    async fn forward<S, Q, B>(
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
        let changes = self.front.changes(reason, &head);
        let conditions = is_held.then(|| exchange::conditions(&head.headers));
        if let Some(forward) = &forward {
            forward.prepare(&mut head.headers, &self.front.rules.policy);
        }
        let (request, lent) = Around::put(&self.front.cache, Request::from_parts(head, body), grant, conditions);
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
                let hit = forward.fail(&headers, now).ok_or(error)?;
                return Ok(self.visit().failed(hit, None, lent.take_back(), key.as_ref(), now));
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
                forward.receive(Asked { key, headers }, &head, &caching, &self.front.rules.policy, arrival)
            }
            _ => Received::Pass(Storing::Untried),
        };
        let (received, grant) = self.front.settle(changes, &head, received, lent.take_back()).await;
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
        let (storing, body) = match (received, grant) {
            (Received::Stale(hit), grant) => {
                let status = (!is_unreachable).then_some(head.status.as_u16());
                return self.visit().failed(hit, status, grant, key.as_ref(), now);
            }
            (Received::Freshened(hit, admitted), grant) => {
                let storing = self.front.freshened(admitted, grant, key.as_ref(), now);
                let outcome = Outcome::Forwarded { reason: Reason::NotModified, status: head.status.as_u16(), storing };
                return self.visit().respond(hit, key.as_ref(), outcome, now);
            }
            (Received::Store(admission), Some(mut grant)) => {
                // Those who wait could not use it without asking the origin each for themselves.
                if admission.is_for_validation_only()
                    && let Some(lead) = grant.lead.take()
                {
                    lead.release(Release::GoAlone);
                }
                let ttl = admission.ttl(now);
                let storing = grant.unstored.map_or(Storing::Offered { ttl }, Storing::Refused);
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
            (Received::Pass(storing), grant) => {
                self.front.cache.pass(grant, storing);
                (storing, CacheBody::forwarded(body))
            }
        };
        let outcome = Outcome::Forwarded { reason, status: head.status.as_u16(), storing };
        self.visit().sign(outcome, key.as_ref()).write(&mut head.headers, None);
        self.visit().mark(&mut head.extensions);
        Response::from_parts(head, body)
    }
}

impl<'f> Visit<'f> {
    /// The answer from a stored response.
    fn answer<B>(self, hit: Hit, key: &EntryKey, reason: Reason, now: Timestamp) -> Response<CacheBody<B>>
    where
        B: Body<Data = Bytes> + Send + 'static,
    {
        let ttl = hit.ttl(now);
        let outcome = match hit.staleness() {
            None if reason == Reason::Collapsed => Outcome::Collapsed { ttl },
            stale => Outcome::Hit { reason: stale.unwrap_or(reason), ttl },
        };
        self.respond(hit, Some(key), outcome, now)
    }

    /// The answer from a stored response, as the origin has failed.
    fn failed<B>(
        self,
        hit: Hit,
        status: Option<u16>,
        grant: Option<Box<Grant>>,
        key: Option<&EntryKey>,
        now: Timestamp,
    ) -> Response<CacheBody<B>>
    where
        B: Body<Data = Bytes> + Send + 'static,
    {
        if let Some(lead) = grant.and_then(|grant| grant.lead) {
            lead.release(Release::GoAlone);
        }
        let outcome = Outcome::Failed { status, ttl: hit.ttl(now) };
        self.respond(hit, key, outcome, now)
    }

    fn respond<B>(self, hit: Hit, key: Option<&EntryKey>, outcome: Outcome, now: Timestamp) -> Response<CacheBody<B>>
    where
        B: Body<Data = Bytes> + Send + 'static,
    {
        let Answer { status, headers, body } = hit.answer(self.sign(outcome, key), now);
        let mut response = Response::new(CacheBody::stored(body));
        (*response.status_mut(), *response.headers_mut()) = (status, headers);
        self.mark(response.extensions_mut());
        response
    }

    /// 504, for a client that accepts stored responses only (RFC 9111 section 5.2.1.7).
    fn unsatisfied<B>(self, key: &EntryKey) -> Response<CacheBody<B>>
    where
        B: Body<Data = Bytes> + Send + 'static,
    {
        let mut response = Response::new(CacheBody::stored(Bytes::new()));
        *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
        self.sign(Outcome::Shed { reason: Reason::OnlyIfCached }, Some(key)).write(response.headers_mut(), None);
        self.mark(response.extensions_mut());
        response
    }

    /// Counts the outcome, and makes of it what the response tells.
    fn sign<'k>(self, outcome: Outcome, key: Option<&'k EntryKey>) -> Signature<'k>
    where
        'f: 'k,
    {
        if !self.marks.is_background {
            self.metrics.request(outcome.reason());
        }
        let key = key.filter(|_| self.marks.shows_key).map(|key| &key.key);
        let tells = self.front.rules.headers.tells(key);
        Signature { identifier: self.front.cache.identifier(), outcome, tells }
    }

    /// Tells a layer of the same cache around this one that everything is decided.
    fn mark(self, extensions: &mut Extensions) {
        if self.marks.is_nested {
            extensions.insert(Decided(self.front.cache.clone()));
        }
    }
}
