//! The life of a request, from top to bottom.

mod answering;
mod forwarding;
mod joining;

use crate::{
    Cache,
    body::CacheBody,
    budget::Budget,
    fill,
    flights::Lead,
    headers::KeyFor,
    layer::Rules,
    lease::Lease,
    nested::Around,
    observe::RouteMetrics,
    service::CacheFuture,
    share::{Fetched, Following},
    store::{Found, Seen, StoreError, Unreadable},
    values::Reads,
};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, request::Parts};
use http_body::Body;
use joining::Joining;
use larder_semantics::{
    Admission, Content, Entry, EntryKey, Forward, Hit, Intake, Lookup, Reason, Refusal, Selected, Storing, Timestamp,
    VariantId, policy::Early,
};
use std::{
    borrow::Cow,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tower_service::Service;

/// How often a request may look up again, because what it was about to fetch has come meanwhile.
const ROUNDS: usize = 8;

/// How many leaders may fail or hang one after the other before those who wait try for themselves, all at once: one at a
/// time would keep the last of them waiting for as many failures as there are requests.
const MOST_FAILURES: u32 = 3;

/// After what time the origin counts as one that cannot be reached, where a stale response may answer in its place.
const HARD_TIMEOUT: Duration = Duration::from_secs(30);

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
        Q: Body + Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
    {
        let (mut head, body) = request.into_parts();
        let around = Around::take(&self.cache, &mut head);
        let patience = around.as_ref().map_or(self.cache.shared.settings.store_budget, |around| around.patience);
        let key_for = self.rules.headers.key_for(&mut head);
        let seed = if self.rules.policy.early == Early::Never { 1.0 } else { fastrand::f64() };
        let marks = Marks { key_for, is_nested: around.is_some(), is_background: false, seed };
        let metrics = self.metrics(&head);
        let visit = Visit { front: self, metrics: &metrics, marks, reads: None };
        let has_content = !body.is_end_stream() && body.size_hint().exact() != Some(0);
        let sought = visit.intake(&mut head, has_content);
        if let Ok((lookup, key)) = &sought
            && let Some((hit, now)) = visit.at_hand(lookup, key, &head)
        {
            return CacheFuture::ready(visit.answer(hit, &key.key, Reason::Near, now));
        }
        let stay =
            Stay { front: self.clone(), metrics: metrics.into_owned(), marks, patience, left: None, reads: None };
        let (origin, inherited) = (origin.clone(), around.and_then(Around::into_grant));
        CacheFuture::pending(stay.serve(sought, Request::from_parts(head, body), origin, inherited))
    }

    /// Answers with a value that is stored and can be read, or from `origin`, which is asked once at most.
    pub(crate) async fn serve_value<S, B>(
        self: Arc<Self>,
        key: EntryKey,
        reads: Reads,
        origin: S,
    ) -> Result<Response<CacheBody<B>>, S::Error>
    where
        S: Service<Request<()>, Response = Response<B>> + Send + 'static,
        S::Future: Send,
        S::Error: Send,
        B: Body<Data = Bytes> + Send + 'static,
    {
        let head = Request::new(()).into_parts().0;
        let sought = match Intake::of(&head, &self.rules.policy) {
            Intake::Bypass(reason) => Err(reason),
            Intake::Lookup(lookup) => Ok((lookup, key)),
        };
        let marks = Marks { key_for: KeyFor::None, is_nested: false, is_background: false, seed: fastrand::f64() };
        let metrics = self.metrics(&head).into_owned();
        let patience = self.cache.shared.settings.store_budget;
        let stay = Stay { front: self, metrics, marks, patience, left: None, reads: Some(reads) };
        stay.serve(sought, Request::from_parts(head, ()), origin, None).await
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
        let routing = rules.routing(cache.routing());
        let route = routing.and_then(|routing| routing.route(head)).unwrap_or(&rules.route);
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
    reads: Option<&'f Reads>,
}

#[derive(Clone, Copy)]
struct Marks {
    key_for: KeyFor,
    /// Whether another layer of the same cache is around this one, and leaves the decisions to it.
    is_nested: bool,
    /// Whether nobody waits for the answer, and so nobody counts it.
    is_background: bool,
    /// Drawn evenly from 0 to 1, once for each request: what decides on a refresh before its time.
    seed: f64,
}

/// A visit that lasts: it waits for a store, or for the origin.
struct Stay {
    front: Arc<Front>,
    metrics: Arc<RouteMetrics>,
    marks: Marks,
    /// How long it may still wait for the store.
    patience: Duration,
    /// Set when its client has been answered otherwise.
    left: Option<Arc<AtomicBool>>,
    /// Whether what is stored can be read, where that is more than a matter of bytes.
    reads: Option<Reads>,
}

impl Stay {
    fn visit(&self) -> Visit<'_> {
        let has_left = self.left.as_ref().is_some_and(|left| left.load(Ordering::Relaxed));
        let marks = Marks { is_background: self.marks.is_background || has_left, ..self.marks };
        Visit { front: &self.front, metrics: &self.metrics, marks, reads: self.reads.as_ref() }
    }

    /// Steps 2 to 7 for what is not at hand.
    async fn serve<S, Q, B>(
        mut self,
        sought: Result<(Lookup, EntryKey), Reason>,
        request: Request<Q>,
        origin: S,
        inherited: Option<Box<Grant>>,
    ) -> Result<Response<CacheBody<B>>, S::Error>
    where
        S: Service<Request<Q>, Response = Response<B>> + Send + 'static,
        S::Future: Send,
        S::Error: Send,
        Q: Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
    {
        let (mut head, body) = request.into_parts();
        let mut budget = Budget::new(self.patience, self.front.cache.shared.settings.read_deadline);
        let course = match sought {
            Ok((lookup, key)) => self.visit().look_up(lookup, key, &head, inherited, &mut budget).await,
            Err(reason) => self.visit().pass_by(reason, &mut head, inherited, &mut budget).await,
        };
        self.patience = budget.left();
        let visit = self.visit();
        match course {
            Course::Answer(hit, key, reason, now) => Ok(visit.answer(hit, &key.key, reason, now)),
            Course::Share(hit, key, following, now) => Ok(visit.share(hit, &key.key, following, now)),
            Course::Refresh(hit, key, errand, reason, now) => {
                let answer = visit.answer(hit, &key.key, reason, now);
                let background = self.front.cache.background().clone();
                if let Some(permit) = background.refresh() {
                    let refresh = self.refresh(*errand, Request::from_parts(head, body), origin);
                    background.spawn(async move {
                        refresh.await;
                        drop(permit);
                    });
                }
                Ok(answer)
            }
            Course::Unsatisfied(key) => Ok(visit.shed(Reason::OnlyIfCached, Some(&key.key))),
            Course::Forward(errand)
                if errand.grant.is_none() && !self.front.may_change(errand.reason, &head.method) =>
            {
                Box::pin(self.forward(*errand, Request::from_parts(head, body), origin)).await
            }
            // The origin's work is wanted by others too, or changes what they get: it goes on when this client leaves.
            Course::Forward(errand) => self.forward_in_time(*errand, Request::from_parts(head, body), origin).await,
        }
    }
}

/// Where a request gets its answer.
enum Course {
    /// From a stored response, found for the reason given.
    Answer(Hit, EntryKey, Reason, Timestamp),
    /// From a response that another request is fetching, while it comes.
    Share(Hit, EntryKey, Following, Timestamp),
    /// From a stored response, found for the reason given, that is revalidated in the background.
    Refresh(Hit, EntryKey, Box<Errand>, Reason, Timestamp),
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

/// The lead over those of this process who want the same.
pub(crate) type Flight = Lead<EntryKey, Option<VariantId>, Fetched>;

/// What a request that fetches holds: the lead over those who wait, the right to store, or both.
pub(crate) struct Grant {
    pub(crate) key: EntryKey,
    pub(crate) lead: Option<Flight>,
    pub(crate) lease: Option<Lease>,
    /// Why there is no right to store, if so.
    pub(crate) unstored: Option<Refusal>,
}

impl Grant {
    /// What the invalidation clock showed before the origin was asked.
    pub(crate) fn born(&self) -> u64 {
        self.lease.as_ref().and_then(Lease::ticket).map_or(0, |ticket| ticket.born)
    }
}

impl Visit<'_> {
    /// Step 1: what may be looked up, and under which key.
    fn intake(&self, head: &mut Parts, has_content: bool) -> Result<(Lookup, EntryKey), Reason> {
        let mut lookup = match Intake::of(head, &self.front.rules.policy) {
            Intake::Bypass(reason) => return Err(reason),
            Intake::Lookup(lookup) => lookup,
        };
        // No field need tell of it in HTTP/2, and no key tells it apart (the "fat GET").
        if has_content && matches!(head.method, Method::GET | Method::HEAD) || self.front.rules.skips(head) {
            return Err(Reason::Skipped);
        }
        if let Some(target) = self.front.rules.policy.query.settle(&head.uri) {
            head.uri = target;
        }
        let mut key = self.front.rules.key(head, self.front.cache.routing()).ok_or(Reason::KeyRefused)?;
        lookup.seek(self.front.seek(&mut key, &head.uri));
        Ok((lookup, self.front.cache.shared.namespace.entry(key)))
    }

    /// Steps 2 and 3, as far as this process alone can take them.
    fn at_hand(&self, lookup: &Lookup, key: &EntryKey, head: &Parts) -> Option<(Hit, Timestamp)> {
        let store = self.front.cache.store();
        let (entry, now) = store.at_hand(key)?;
        let entry = match lookup.hit(entry, &head.headers, now, self.marks.seed) {
            Ok(hit) => return Some((hit, now)),
            Err(entry) => entry,
        };
        let (key, selected) = match lookup.clone().select(Some(entry), &head.headers, now, self.marks.seed) {
            Selected::Variant(lookup, variant) => {
                let key = key.of_variant(variant);
                let entry = store.at_hand(&key)?.0;
                (Cow::Owned(key), lookup.select(Some(entry), &head.headers, now, self.marks.seed))
            }
            selected => (Cow::Borrowed(key), selected),
        };
        match selected {
            Selected::Hit(hit) => Some((hit, now)),
            Selected::Refresh(hit, _) if hit.staleness().is_none() && self.front.cache.has_asked_early(&key) => {
                Some((hit, now))
            }
            _ => None,
        }
    }

    /// Whether what is stored tells this request anything.
    fn reads(&self, entry: &Entry) -> bool {
        match (self.reads, &entry.content) {
            (Some(reads), Content::Response(response)) => reads(response),
            _ => true,
        }
    }

    /// Step 3, by what was found: which copy that was, and what a claim is to take for there, if the store is to be asked for the
    /// right to fill.
    fn select(
        &self,
        lookup: Lookup,
        found: Result<Found, StoreError>,
        headers: &HeaderMap,
        now: Timestamp,
    ) -> (Selected, Reason, Option<Seen>) {
        let (selected, seen) = match found {
            Ok(Found::Entry(entry, copied)) if self.reads(&entry) => {
                let selected = lookup.select(Some(entry), headers, now, self.marks.seed);
                return (selected, copied.into(), Some(Seen::Absent));
            }
            Ok(Found::Entry(entry, _)) => (lookup.unread(entry.id, headers), Some(Seen::Absent)),
            Ok(Found::Absent) => (lookup.select(None, headers, now, 1.0), Some(Seen::Absent)),
            Ok(Found::Invalidated(id)) => (lookup.invalidated(id, headers), Some(Seen::Absent)),
            Ok(Found::Unreadable(why @ Unreadable::Version(_))) => {
                (lookup.without_store(why.into(), headers).unstored(), None)
            }
            Ok(Found::Unreadable(why)) => (lookup.without_store(why.into(), headers), Some(Seen::Unreadable)),
            // Where too many have only read at once, there may still be a right to fill.
            Err(error @ StoreError::Busy) => (lookup.without_store(Reason::from(&error), headers), Some(Seen::Absent)),
            // One request may still fetch for many.
            Err(error) => (lookup.without_store(Reason::from(&error), headers), None),
        };
        (selected, Reason::Never, seen)
    }

    /// Steps 2 to 4: looks up, and joins those who fetch, until there is an answer or this request is to fetch it.
    async fn look_up(
        &self,
        lookup: Lookup,
        key: EntryKey,
        head: &Parts,
        inherited: Option<Box<Grant>>,
        budget: &mut Budget,
    ) -> Course {
        let mut patience = self.front.cache.shared.settings.lock_wait;
        let (mut lookup, mut key, mut inherited, mut failures) = (lookup, key, inherited, 0);
        // What a claim has found.
        let mut there = None;
        if self.front.cache.is_uncacheable(&key) {
            return Course::alone(lookup.without_store(Reason::KnownUncacheable, &head.headers), key);
        }
        for _ in 0..ROUNDS {
            let found = match there.take() {
                Some(found) => Ok(found),
                None => budget.spend(self.front.cache.store().get(&key)).await,
            };
            let now = self.front.cache.store().now();
            let (selected, copy, seen) = self.select(lookup, found, &head.headers, now);
            let forward = match selected {
                Selected::Hit(hit) => return Course::Answer(hit, key, copy, now),
                Selected::Refresh(hit, forward) => return self.refresh(hit, forward, key, copy, now),
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
            // What there is no time for is not begun.
            let seen = seen.filter(|_| !budget.left().is_zero());
            let seen = seen.map(|seen| forward.seen().map_or(seen, Seen::Entry));
            (lookup, key) = match Box::pin(self.join(&forward, &key, seen, budget, &mut patience)).await {
                Joining::Leads(grant, reason) => {
                    let reason = reason.unwrap_or(forward.reason());
                    return Course::fetch(self.front.cache.doubt(forward.because(reason), &key), grant);
                }
                Joining::Alone(reason) => {
                    let reason = reason.unwrap_or(forward.reason());
                    return Course::alone(Selected::Forward(forward.because(reason)), key);
                }
                Joining::Failed if failures == MOST_FAILURES => return Course::alone(Selected::Forward(forward), key),
                Joining::Failed => {
                    failures += 1;
                    (forward.look_again(), key.base())
                }
                Joining::Late => {
                    let hit = forward.fall_back(&head.headers, Reason::SwrUpdating, now);
                    match hit {
                        Some(hit) => return Course::Answer(hit, key, Reason::SwrUpdating, now),
                        None => return Course::alone(Selected::Forward(forward), key),
                    }
                }
                Joining::Again => (forward.look_again(), key.base()),
                Joining::Found(entry, copied) => {
                    there = Some(Found::Entry(entry, copied));
                    (forward.select_again(), key)
                }
                Joining::Brought(fetched, coming, reason) => {
                    let now = self.front.cache.store().now();
                    match forward.look_again().select_fetched(&fetched, &head.headers, now) {
                        Selected::Hit(hit) | Selected::Refresh(hit, _) => {
                            return match coming {
                                None => Course::Answer(hit, fetched.key, reason, now),
                                Some(following) => Course::Share(hit, fetched.key, following, now),
                            };
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
    async fn pass_by(
        &self,
        reason: Reason,
        head: &mut Parts,
        inherited: Option<Box<Grant>>,
        budget: &mut Budget,
    ) -> Course {
        if reason == Reason::Method
            && let Some((forward, grant)) = self.front.may_store_for_get(head, inherited, budget).await
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
    fn refresh(hit: Hit, forward: Forward, grant: Grant, copy: Reason, now: Timestamp) -> Self {
        let (reason, key, grant) = (forward.reason(), grant.key.clone(), Some(Box::new(grant)));
        let errand = Errand { reason, key: Some(key.clone()), forward: Some(forward), grant };
        Self::Refresh(hit, key, Box::new(errand), copy, now)
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
