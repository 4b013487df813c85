//! The life of a request, from top to bottom.

use crate::{
    Cache,
    background::Outlives,
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
    share::{Fetched, Following},
    store::{Claim, Found, Seen, StoreError, Unreadable},
    values::Reads,
};
use bytes::Bytes;
use http::{Extensions, HeaderMap, Method, Request, Response, StatusCode, request::Parts, response};
use http_body::Body;
use larder_semantics::{
    Admission, Asked, Caching, Content, Entry, EntryKey, Filling, Forward, Hit, Intake, Lookup, Outcome, Reason,
    Received, Refusal, Selected, Storing, Timestamp, VariantId, Verdict,
    exchange::{self, Answer, Throttled},
    freshness::Arrival,
    policy::Early,
    signature::Signature,
};
use std::{
    borrow::Cow,
    future::poll_fn,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::time::{Instant, timeout};
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
        let shows_key = self.rules.headers.shows_key(&mut head);
        let seed = if self.rules.policy.early == Early::Never { 1.0 } else { fastrand::f64() };
        let marks = Marks { shows_key, is_nested: around.is_some(), is_background: false, seed };
        let metrics = self.metrics(&head);
        let visit = Visit { front: self, metrics: &metrics, marks, reads: None };
        let has_content = !body.is_end_stream() && body.size_hint().exact() != Some(0);
        let sought = visit.intake(&mut head, has_content);
        if let Ok((lookup, key)) = &sought
            && let Some((hit, now)) = visit.at_hand(lookup, key, &head)
        {
            return CacheFuture::ready(visit.answer(hit, key, Reason::Near, now));
        }
        let stay = Stay { front: self.clone(), metrics: metrics.into_owned(), marks, left: None, reads: None };
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
        let marks = Marks { shows_key: false, is_nested: false, is_background: false, seed: fastrand::f64() };
        let metrics = self.metrics(&head).into_owned();
        let stay = Stay { front: self, metrics, marks, left: None, reads: Some(reads) };
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
    reads: Option<&'f Reads>,
}

#[derive(Clone, Copy)]
struct Marks {
    /// Whether the response tells the key.
    shows_key: bool,
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
        self,
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
        let visit = self.visit();
        let course = match sought {
            Ok((lookup, key)) => visit.look_up(lookup, key, &head, inherited).await,
            Err(reason) => visit.pass_by(reason, &mut head, inherited).await,
        };
        match course {
            Course::Answer(hit, key, reason, now) => Ok(visit.answer(hit, &key, reason, now)),
            Course::Share(hit, key, following, now) => Ok(visit.share(hit, &key, following, now)),
            Course::Refresh(hit, key, errand, reason, now) => {
                let answer = visit.answer(hit, &key, reason, now);
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
            Course::Unsatisfied(key) => Ok(visit.shed(Reason::OnlyIfCached, Some(&key))),
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
        let key = self.front.rules.key(head, self.front.cache.routing()).ok_or(Reason::KeyRefused)?;
        let (key, sought) = self.front.sought(key, &head.uri);
        lookup.seek(sought);
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

    /// Steps 2 to 4: looks up, and joins those who fetch, until there is an answer or this request is to fetch it.
    async fn look_up(&self, lookup: Lookup, key: EntryKey, head: &Parts, inherited: Option<Box<Grant>>) -> Course {
        let Settings { store_budget, read_deadline, lock_wait } = self.front.cache.shared.settings;
        let (mut budget, mut patience) = (Budget::new(store_budget, read_deadline), lock_wait);
        let (mut lookup, mut key, mut inherited, mut failures) = (lookup, key, inherited, 0);
        if self.front.cache.is_uncacheable(&key) {
            return Course::alone(lookup.without_store(Reason::KnownUncacheable, &head.headers), key);
        }
        for _ in 0..ROUNDS {
            let found = budget.spend(self.front.cache.store().get(&key)).await;
            let now = self.front.cache.store().now();
            let (mut copy, mut seen) = (Reason::Never, Some(Seen::Absent));
            let selected = match found {
                Ok(Found::Entry(entry, _)) if !self.reads(&entry) => lookup.unread(entry.id, &head.headers),
                Ok(Found::Entry(entry, copied)) => {
                    copy = copied.into();
                    lookup.select(Some(entry), &head.headers, now, self.marks.seed)
                }
                Ok(Found::Absent) => lookup.select(None, &head.headers, now, 1.0),
                Ok(Found::Invalidated(id)) => lookup.invalidated(id, &head.headers),
                Ok(Found::Unreadable(why @ Unreadable::Version(_))) => {
                    return Course::alone(lookup.without_store(why.into(), &head.headers), key);
                }
                Ok(Found::Unreadable(why)) => {
                    seen = Some(Seen::Unreadable);
                    lookup.without_store(why.into(), &head.headers)
                }
                // The store is not asked for the right to fill either, unless too many have only read at once; but one request
                // may still fetch for many.
                Err(error) => {
                    seen = (error == StoreError::Busy).then_some(Seen::Absent);
                    lookup.without_store(Reason::from(&error), &head.headers)
                }
            };
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
            let seen = seen.map(|seen| forward.seen().map_or(seen, Seen::Entry));
            (lookup, key) = match Box::pin(self.join(&forward, &key, seen, &mut budget, &mut patience)).await {
                Joining::Leads(grant, reason) => {
                    let reason = reason.unwrap_or(forward.reason());
                    return Course::fetch(forward.because(reason), grant);
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

/// What comes of meeting the others who want the same.
enum Joining {
    /// This request fetches, for this reason if it is a new one.
    Leads(Box<Grant>, Option<Reason>),
    /// It goes to the origin for itself only, for this reason if it is a new one.
    Alone(Option<Reason>),
    /// There is something new to look up.
    Again,
    /// Whoever fetched it has failed; there may be somebody else who leads.
    Failed,
    /// Somebody is fetching it, and what is held may answer meanwhile.
    Late,
    /// Another request has fetched it, or is fetching it: then there is more to come.
    Brought(Filling, Option<Following>, Reason),
}

impl Joining {
    /// Without the right to store.
    fn leads(lead: Flight, key: &EntryKey, unstored: Refusal, reason: Option<Reason>) -> Self {
        let grant = Grant { key: key.clone(), lead: Some(lead), lease: None, unstored: Some(unstored) };
        Self::Leads(Box::new(grant), reason)
    }

    fn brought(fetched: Fetched, reason: Reason) -> Self {
        match fetched {
            Fetched::Whole(filling) => Self::Brought(filling, None, reason),
            Fetched::Coming(stream) => match Following::attach(&stream) {
                Some((filling, following)) => Self::Brought(filling, Some(following), Reason::Collapsed),
                // It was whole, or broke off, before this request laid hold of it: the flight, or the store, knows by now.
                None => Self::Again,
            },
        }
    }
}

impl Visit<'_> {
    /// Step 4 for a response that may answer meanwhile: whoever leads has it revalidated, and nobody waits.
    fn refresh(&self, hit: Hit, forward: Forward, key: EntryKey, copy: Reason, now: Timestamp) -> Course {
        if hit.staleness().is_none() && !self.front.cache.asks_early(&key) {
            return Course::Answer(hit, key, copy, now);
        }
        let grant = |key: &EntryKey, lead| Grant { key: key.clone(), lead, lease: None, unstored: None };
        if !forward.may_collapse() {
            return Course::refresh(hit, forward, grant(&key, None), copy, now);
        }
        match self.front.cache.shared.flights.join(&key.base(), &key.variant()) {
            Joined::Lead(lead) => Course::refresh(hit, forward, grant(&key, Some(lead)), copy, now),
            Joined::Brought(_) | Joined::Follow(_) if hit.staleness().is_none() => Course::Answer(hit, key, copy, now),
            Joined::Brought(_) | Joined::Follow(_) => Course::Answer(hit.updating(), key, copy, now),
        }
    }

    /// Step 4: joins those of this process who want the same, and asks the store for the right to fill what was `seen` in it,
    /// if it can be asked.
    async fn join(
        &self,
        forward: &Forward,
        key: &EntryKey,
        seen: Option<Seen>,
        budget: &mut Budget,
        patience: &mut Duration,
    ) -> Joining {
        let flights = &self.front.cache.shared.flights;
        self.front.cache.detach_unsure(&key.base());
        let mut joined = forward.may_collapse().then(|| flights.join(&key.base(), &key.variant()));
        let mut in_vain = 0;
        loop {
            match joined {
                None => match seen {
                    Some(seen) => return self.claim(None, key, seen, budget).await,
                    None => return Joining::Alone(None),
                },
                Some(Joined::Brought(fetched)) => return Joining::brought(fetched, Reason::Near),
                Some(Joined::Lead(lead)) => match seen {
                    Some(seen) => return self.claim_in_turn(lead, forward, key, seen, budget, patience).await,
                    None => return Joining::leads(lead, key, Refusal::StoreRefused, None),
                },
                // What is stale may answer at once, as the leader's client gets it too if the origin takes long.
                Some(Joined::Follow(_)) if self.front.rules.policy.soft_timeout.is_some() && forward.holds() => {
                    return Joining::Late;
                }
                Some(Joined::Follow(mut follow)) => match follow.brings(patience).await {
                    Some(Waited::Brought(fetched)) => return Joining::brought(fetched, Reason::Collapsed),
                    Some(Waited::Released(Release::Compete)) => return Joining::Failed,
                    Some(Waited::Released(Release::GoAlone)) => return Joining::Alone(None),
                    // The leader hangs. One of those who have waited long enough tries in its place.
                    None => match flights.take_over(&key.base(), &key.variant(), &follow) {
                        Joined::Lead(lead) => {
                            return Joining::leads(lead, key, Refusal::TicketLost, Some(Reason::LockTimeout));
                        }
                        Joined::Follow(_) if in_vain == MOST_FAILURES => {
                            return Joining::Alone(Some(Reason::LockTimeout));
                        }
                        other => {
                            in_vain += 1;
                            *patience = self.front.cache.shared.settings.lock_wait;
                            joined = Some(other);
                        }
                    },
                },
            }
        }
    }

    /// Asks the store for the right to fill; whoever leads others then fetches without it too.
    async fn claim(&self, lead: Option<Flight>, key: &EntryKey, seen: Seen, budget: &mut Budget) -> Joining {
        let (lease, unstored) = match budget.spend(self.front.cache.store().claim(key, seen)).await {
            Ok(Claim::Granted(ticket)) => (Some(Lease::hold(&self.front.cache, ticket)), None),
            Ok(Claim::Found(_) | Claim::Moved) => return Joining::Again,
            Ok(Claim::Uncacheable) => {
                self.front.cache.know_uncacheable(key);
                if let Some(lead) = lead {
                    lead.release(Release::GoAlone);
                }
                return Joining::Alone(Some(Reason::KnownUncacheable));
            }
            Ok(Claim::Held) => (None, Some(Refusal::TicketLost)),
            Ok(Claim::Marked) => (None, Some(Refusal::BeingWritten)),
            Err(_) => (None, Some(Refusal::StoreRefused)),
        };
        if lead.is_none() && lease.is_none() {
            return Joining::Alone(None);
        }
        Joining::Leads(Box::new(Grant { key: key.clone(), lead, lease, unstored }), None)
    }

    /// The same, waiting for another process that holds the right, and has what it fetches brought to all who follow here.
    async fn claim_in_turn(
        &self,
        lead: Flight,
        forward: &Forward,
        key: &EntryKey,
        seen: Seen,
        budget: &mut Budget,
        patience: &mut Duration,
    ) -> Joining {
        let (store, settings) = (self.front.cache.store(), self.front.cache.shared.settings);
        let mut lead = lead;
        let mut pause = FIRST_PAUSE;
        // A little less than those who follow, who else would try in the place of a leader that is about to.
        *patience = patience.saturating_sub(*patience / 20);
        loop {
            let (flight, claimed) = match self.claim(Some(lead), key, seen, budget).await {
                Joining::Leads(mut grant, reason) if grant.unstored == Some(Refusal::TicketLost) => {
                    match grant.lead.take() {
                        Some(lead) => (lead, grant),
                        None => return Joining::Leads(grant, reason),
                    }
                }
                other => return other,
            };
            lead = flight;
            if patience.is_zero() {
                // Whoever waits here waits for this request from now on.
                lead.begin_anew();
                let grant = Box::new(Grant { lead: Some(lead), ..*claimed });
                return Joining::Leads(grant, Some(Reason::LockTimeout));
            }
            let began = Instant::now();
            store.turn(key, pause.mul_f64(0.75 + fastrand::f64() / 2.0).min(*patience)).await;
            *patience = patience.saturating_sub(began.elapsed());
            pause = (pause * 2).min(LONGEST_PAUSE);
            // What was waited for the other process is not the store's to answer for.
            *budget = Budget::new(settings.store_budget, settings.read_deadline);
            let Ok(found) = budget.spend(store.get(key)).await else { continue };
            match found {
                Found::Entry(entry, _) if Seen::Entry(entry.id) != seen => {
                    let (key, rule) = (key.clone(), forward.rule());
                    let filling = Filling { key, response: entry, rule, stored_for: Duration::ZERO };
                    lead.land(Fetched::Whole(filling.clone()));
                    return Joining::Brought(filling, None, Reason::Collapsed);
                }
                _ => {}
            }
        }
    }
}

/// How long a request that waits for another process does so before it looks again, at first and at most: mostly it is told
/// before that.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(400);

impl Follow<Fetched> {
    /// Waits for what the leader brings, and as long again each time that it begins anew.
    async fn brings(&mut self, patience: &mut Duration) -> Option<Waited<Fetched>> {
        let whole = *patience;
        loop {
            let (begun, began) = (self.begun(), Instant::now());
            if let Ok(waited) = timeout(*patience, &mut *self).await {
                *patience = patience.saturating_sub(began.elapsed());
                return Some(waited);
            }
            *patience = Duration::ZERO;
            if self.begun() == begun {
                return None;
            }
            *patience = whole;
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
        grant.lease = Some(Lease::hold(&self.front.cache, ticket));
        exchange::ask_for_all(&mut request);
        self.marks.is_background = true;
        // What is stored of the answer is read to its end when it is dropped.
        drop(self.forward(errand, request, origin).await);
    }

    /// Steps 5 to 7 for an answer that others wait for, or that may be stored: it goes on when the client leaves, or has
    /// waited long enough.
    async fn forward_in_time<S, Q, B>(
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
        let other = Self { front: front.clone(), metrics, marks, left: None, reads: None };
        let (headers, key) = (request.headers().clone(), errand.key.clone());
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
        let authority = if is_judged { Asked::authority_of(&head) } else { String::new() };
        let changes = self.front.changes(reason, &head);
        let conditions = is_held.then(|| exchange::conditions(&head.headers));
        if let Some(forward) = &forward {
            self.front.rules.settle_host(&mut head);
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
                let (hit, throttled) =
                    forward.fail(&headers, &self.front.rules.policy, now, fastrand::f64()).ok_or(error)?;
                return Ok(self.visit().failed(hit, None, throttled, lent.take_back(), key.as_ref(), now));
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
            (Received::Stale(hit, throttled), grant) => {
                let status = (!is_unreachable).then_some(head.status.as_u16());
                return self.visit().failed(hit, status, *throttled, grant, key.as_ref(), now);
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
            None if hit.is_negative() => Outcome::Hit { reason: Reason::Negative, ttl },
            stale => Outcome::Hit { reason: stale.unwrap_or(reason), ttl },
        };
        self.respond(hit, Some(key), outcome, now)
    }

    /// The answer from a response that another request is fetching.
    fn share<B>(self, hit: Hit, key: &EntryKey, following: Following, now: Timestamp) -> Response<CacheBody<B>>
    where
        B: Body<Data = Bytes> + Send + 'static,
    {
        let outcome = Outcome::Collapsed { ttl: hit.ttl(now) };
        let Answer { status, headers, is_whole, .. } = hit.answer(self.sign(outcome, Some(key)), now);
        let body = if is_whole { CacheBody::following(following) } else { CacheBody::stored(Bytes::new()) };
        let mut response = Response::new(body);
        (*response.status_mut(), *response.headers_mut()) = (status, headers);
        self.mark(response.extensions_mut());
        response
    }

    /// The answer from a stored response, as the origin has failed.
    fn failed<B>(
        self,
        hit: Hit,
        status: Option<u16>,
        throttled: Throttled,
        grant: Option<Box<Grant>>,
        key: Option<&EntryKey>,
        now: Timestamp,
    ) -> Response<CacheBody<B>>
    where
        B: Body<Data = Bytes> + Send + 'static,
    {
        if let Some(grant) = grant {
            fill::throttle(self.front.cache.clone(), throttled, *grant);
        }
        let outcome = Outcome::Failed { reason: Reason::ErrorStale, status, ttl: hit.ttl(now) };
        self.respond(hit, key, outcome, now)
    }

    /// The answer from a stored response, as the origin takes too long.
    fn late<B>(self, hit: Hit, reason: Reason, key: Option<&EntryKey>) -> Response<CacheBody<B>>
    where
        B: Body<Data = Bytes> + Send + 'static,
    {
        let now = self.front.cache.store().now();
        let outcome = Outcome::Failed { reason, status: None, ttl: hit.ttl(now) };
        self.respond(hit, key, outcome, now)
    }

    fn respond<B>(self, hit: Hit, key: Option<&EntryKey>, outcome: Outcome, now: Timestamp) -> Response<CacheBody<B>>
    where
        B: Body<Data = Bytes> + Send + 'static,
    {
        let Answer { status, headers, body, .. } = hit.answer(self.sign(outcome, key), now);
        let mut response = Response::new(CacheBody::stored(body));
        (*response.status_mut(), *response.headers_mut()) = (status, headers);
        self.mark(response.extensions_mut());
        response
    }

    /// 504: for a client that accepts stored responses only (RFC 9111 section 5.2.1.7), or as the origin takes too long.
    fn shed<B>(self, reason: Reason, key: Option<&EntryKey>) -> Response<CacheBody<B>>
    where
        B: Body<Data = Bytes> + Send + 'static,
    {
        let mut response = Response::new(CacheBody::stored(Bytes::new()));
        *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
        self.sign(Outcome::Shed { reason }, key).write(response.headers_mut(), None);
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
