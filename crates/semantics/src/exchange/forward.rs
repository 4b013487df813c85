//! The third step: what is asked of the origin, and what its answer comes to.

use super::{Admission, Filling, Hit, Lookup, Rest, admission::union, lookup::Choices};
use crate::{
    delivery::Delivery,
    freshness::Arrival,
    groups::{self, CACHE_GROUPS},
    key::{self, EntryKey},
    policy::{Caching, Policy},
    reason::{Reason, Refusal, Storing},
    sealing,
    search::Sought,
    stored::{self, Content, Entry, EntryId, StaleUse, StoredResponse, Throttle},
    storing::{ContentLength, Credentials, Storability},
    tags,
    time::Timestamp,
    validation::{self, Form, Validators},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, StatusCode, header, request, response};
use std::{sync::Arc, time::Duration};

/// What the origin was asked.
#[derive(Debug)]
pub struct Asked {
    /// Where the answer would be stored.
    pub key: EntryKey,
    /// Whom it was asked of, as far as the request tells; the groups of the answer are theirs.
    pub authority: String,
    /// The request's headers, by which the answer may vary.
    pub headers: HeaderMap,
}

impl Asked {
    /// The authority that a request is for; empty when that cannot be told.
    pub fn authority_of(head: &request::Parts) -> String {
        key::authority(head).unwrap_or_default().to_owned()
    }
}

/// A request that goes to the origin.
#[derive(Debug, Clone)]
pub struct Forward {
    pub(super) reason: Reason,
    pub(super) seen: Option<EntryId>,
    /// The stored response that the origin may confirm.
    pub(super) held: Option<Arc<Entry>>,
    /// The stored part to which what comes may be added.
    pub(super) joins: Option<Arc<Entry>>,
    pub(super) storable: bool,
    /// Whether what is held is fresh, and fetched anew before its time.
    pub(super) is_early: bool,
    pub(super) lookup: Lookup,
}

/// What becomes of the origin's answer.
#[derive(Debug)]
pub enum Received {
    /// It is stored, once its body is whole.
    Store(Box<Admission>),
    /// It confirms what is stored, which answers, and is stored anew if it may be.
    Freshened(Hit, Result<Box<Admission>, Refusal>),
    /// It is an error; what is stored answers, stale, and is stored anew, so that the origin is spared.
    Stale(Hit, Box<Throttled>),
    /// It is passed on only.
    Pass(Storing),
    /// It is passed on only, and what is stored is no longer what the origin has.
    Replaced(Storing),
}

impl Forward {
    /// To the origin with a request that changes the resource, and whose answer may be stored for GET.
    pub fn of_post(head: &request::Parts, policy: &Policy) -> Option<Self> {
        let may_be_stored = policy.store_post && policy.invalidate_by_unsafe && !policy.sealed;
        let lookup = Lookup {
            method: Method::POST,
            asks_for_less: false,
            credentials: Credentials::of(&head.headers, policy),
            client: None,
            choices: Choices::of(policy),
            sought: None,
            variant: None,
        };
        (may_be_stored && head.method == Method::POST).then_some(Self {
            reason: Reason::Method,
            seen: None,
            held: None,
            joins: None,
            storable: true,
            is_early: false,
            lookup,
        })
    }

    /// The same, for an answer that is stored by another query than the request's.
    #[must_use]
    pub fn seeking(self, sought: Option<Arc<Sought>>) -> Self {
        Self { lookup: Lookup { sought, ..self.lookup }, ..self }
    }

    /// Why the origin is asked.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The entry that was found and cannot answer.
    pub fn seen(&self) -> Option<EntryId> {
        self.seen
    }

    /// Whether there is a stored response that the origin may confirm, or that answers in its place.
    pub fn holds(&self) -> bool {
        self.held.is_some()
    }

    /// The entry that the origin may confirm, that answers in its place, or to which what comes is added.
    pub fn stored(&self) -> Option<&Entry> {
        self.held.as_deref().or(self.joins.as_deref())
    }

    /// The same for what has been invalidated since it was found: the origin is not to confirm that.
    #[must_use]
    pub fn anew(self) -> Self {
        Self { reason: Reason::InvalidatedTag, held: None, joins: None, is_early: false, ..self }
    }

    /// The rule by which the resource varies, as far as it was found.
    pub fn rule(&self) -> Option<Arc<Entry>> {
        self.lookup.variant.clone()
    }

    /// Whether the answer may be stored, should its head allow it.
    pub fn may_store(&self) -> bool {
        self.storable
    }

    /// Whether requests like this one may wait for its answer, and it for theirs: not those with credentials, not those
    /// whose answer may be less than a whole response, and not those for what must be validated each time.
    pub fn may_collapse(&self) -> bool {
        self.storable
            && self.lookup.method != Method::HEAD
            && !self.lookup.credentials.any()
            && self.reason.forward() != Some("request")
            && !self.lookup.asks_for_less
            && self.held().is_none_or(|held| !held.lifetime.is_zero())
    }

    /// The same, for another reason.
    #[must_use]
    pub fn because(self, reason: Reason) -> Self {
        Self { reason, ..self }
    }

    /// Goes back to looking up, from the resource's own entry.
    pub fn look_again(self) -> Lookup {
        self.lookup.from_base()
    }

    /// Goes back to selecting, from what is stored under the same key.
    pub fn select_again(self) -> Lookup {
        self.lookup
    }

    /// Takes out of the request what the origin must not see, and makes it ask whether the stored response still holds,
    /// if there is one that can be asked for (RFC 9111 section 4.3.1). A part is then not asked for: should the origin
    /// have another response, it is stored. Where the whole is asked for and a part is stored, the request carries what is
    /// missing as an extension: [`Rest`].
    pub fn prepare(&self, request: &mut request::Parts, policy: &Policy) {
        let headers = &mut request.headers;
        if policy.sealed {
            sealing::seal(headers, policy, self.storable);
        } else {
            policy.targets.iter().for_each(|target| target.announce(headers));
        }
        if let Some(held) = self.held().filter(|_| self.can_ask()) {
            validation::ask(headers, held);
            headers.remove(header::RANGE);
        }
        // That of a cache around this one is not for this one to store.
        request.extensions.remove::<Rest>();
        if let Some(part) = self.joins.clone()
            && self.lookup.method == Method::GET
            && !self.lookup.asks_for_less
            && let Some(rest) = Rest::of(part, policy.max_body)
        {
            request.extensions.insert(rest);
        }
    }

    /// What answers when the origin cannot be reached: what is stored, as long as that is allowed.
    pub fn fail(&self, request: &HeaderMap, policy: &Policy, now: Timestamp, seed: f64) -> Option<(Hit, Throttled)> {
        let hit = self.stale_for(request, now, |stale| stale.if_unreachable)?;
        Some((hit, self.throttled(policy, true, now, seed)?))
    }

    /// What answers when the origin takes longer than a client is to wait, for this reason.
    pub fn fall_back(&self, request: &HeaderMap, reason: Reason, now: Timestamp) -> Option<Hit> {
        let hit = self.stale_for(request, now, |stale| stale.if_unreachable.max(stale.if_error))?;
        Some(Hit { stale: Some(reason), ..hit })
    }

    /// What is held, with the time until which the origin is to be spared.
    fn throttled(&self, policy: &Policy, unreachable: bool, now: Timestamp, seed: f64) -> Option<Throttled> {
        let held = self.held()?;
        let first = policy.throttle.clamp(Duration::from_secs(1), Throttle::LONGEST);
        let throttle = held.stale.throttle.after(first, unreachable, now, seed);
        let response = StoredResponse { stale: StaleUse { throttle, ..held.stale }, ..held.clone() };
        let stored_for = held.stored_for().saturating_sub(now.since(held.received_at));
        Some(Throttled { response, rule: self.rule(), stored_for })
    }

    /// Judges the head of the origin's answer, and what the handler said beside it.
    pub fn receive(
        self,
        asked: Asked,
        response: &response::Parts,
        caching: &Caching,
        policy: &Policy,
        arrival: Arrival,
    ) -> Received {
        if is_error(response.status) {
            let window = |stale: StaleUse| if caching.unreachable { stale.if_unreachable } else { stale.if_error };
            let throttled = self.throttled(policy, caching.unreachable, arrival.now, arrival.seed);
            if let Some(hit) = self.stale_for(&asked.headers, arrival.now, window)
                && let Some(throttled) = throttled
            {
                return Received::Stale(hit, Box::new(throttled));
            }
        }
        if let Some(held) = self.held.clone()
            && let Content::Response(stored) = &held.content
            && self.confirms(stored, response)
        {
            return self.freshen(asked, stored, response, caching, policy, arrival);
        }
        let replaces = self.held.is_some() && !self.lookup.credentials.any() && replaces(response.status);
        let passed = |storing| if replaces { Received::Replaced(storing) } else { Received::Pass(storing) };
        if !self.storable || self.lookup.method == Method::HEAD {
            return Received::Pass(Storing::Untried);
        }
        match self.admit(asked, response.status, response.headers.clone(), caching, policy, arrival) {
            Ok(admission) => Received::Store(admission),
            Err(refusal) => passed(Storing::Refused(refusal)),
        }
    }

    pub(super) fn held(&self) -> Option<&StoredResponse> {
        self.held.as_deref().and_then(|entry| match &entry.content {
            Content::Response(response) => Some(response),
            Content::Variants(_) => None,
        })
    }

    /// Whether there is a stored response that the origin can be asked about: by GET or HEAD, as to a condition of another
    /// method that is not met the answer is 412 (RFC 9110 section 13.1.2).
    pub(super) fn can_ask(&self) -> bool {
        matches!(self.lookup.method, Method::GET | Method::HEAD)
            && self.held().is_some_and(|held| Validators::of(&held.headers).any())
    }

    fn stale_for(&self, request: &HeaderMap, now: Timestamp, window: impl Fn(StaleUse) -> Duration) -> Option<Hit> {
        let (entry, held) = (self.held.clone()?, self.held()?);
        let form = self.lookup.form(request, held).or_else(|| whole(held))?;
        // Within the time in which it is revalidated it answers anyhow, and so it does while it is fresh.
        let allowed = self.lookup.client().stale_if_error.unwrap_or(Duration::MAX);
        let window = window(held.stale).min(allowed).max(held.stale.while_revalidate);
        let is_allowed = self.is_early && held.is_fresh(now) || held.staleness(now) < window;
        is_allowed.then_some(Hit { entry, form, stale: Some(Reason::ErrorStale) })
    }

    /// Whether a response says that the stored one still holds.
    fn confirms(&self, stored: &StoredResponse, response: &response::Parts) -> bool {
        match response.status {
            StatusCode::NOT_MODIFIED => self.can_ask(),
            StatusCode::OK if self.lookup.method == Method::HEAD => {
                stored.status == StatusCode::OK && validation::is_confirmed_by_head(stored, &response.headers)
            }
            _ => false,
        }
    }

    /// Freshens the stored response with the head of the one that confirms it (RFC 9111 section 4.3.4).
    fn freshen(
        self,
        asked: Asked,
        stored: &StoredResponse,
        confirming: &response::Parts,
        caching: &Caching,
        policy: &Policy,
        arrival: Arrival,
    ) -> Received {
        let form = self.lookup.form(&asked.headers, stored).unwrap_or(Form::Whole);
        let mut headers = validation::freshened(&stored.headers, &confirming.headers);
        if !confirming.headers.contains_key(header::DATE) {
            let _ = headers.try_insert(header::DATE, arrival.calendar.to_http_date());
        }
        let mut answering = StoredResponse {
            headers: headers.clone(),
            delivery: Delivery::default(),
            received_at: arrival.now,
            initial_age: Duration::ZERO,
            ..stored.clone()
        };
        stored::clean(&mut answering.headers);
        policy.strip(&mut answering.headers);
        let admitted = self.admit(asked, stored.status, headers, caching, policy, arrival).map(|mut admission| {
            let fresh = &mut admission.response;
            (fresh.body, fresh.origin_cost) = (stored.body.clone(), stored.origin_cost);
            if caching.tags.is_empty() {
                // What has one tag more than it needs is fetched too often; with one too few, too late.
                let all = stored.tags.iter().chain(&fresh.tags).map(String::as_str);
                fresh.tags = tags::of_entry(all).unwrap_or_else(|| stored.tags.clone());
            }
            answering = fresh.clone();
            admission
        });
        let entry = Arc::new(Entry { id: EntryId::default(), content: Content::Response(answering) });
        Received::Freshened(Hit { entry, form, stale: None }, admitted)
    }

    /// Judges whether a response may be stored.
    fn admit(
        self,
        asked: Asked,
        status: StatusCode,
        headers: HeaderMap,
        caching: &Caching,
        policy: &Policy,
        arrival: Arrival,
    ) -> Result<Box<Admission>, Refusal> {
        let Asked { key, authority, headers: request } = asked;
        // Before all else: what this response is refused for is not to be remembered of that other query.
        if self.lookup.is_of_another_query(&headers) {
            return Err(Refusal::NoVarySearch);
        }
        if is_for_its_range_only(status, &request) {
            return Err(Refusal::Partial);
        }
        let stated_only = (self.reason == Reason::Method).then(|| policy.without_lifetimes());
        let judged_by = stated_only.as_ref().unwrap_or(policy);
        let (lifetime, initial_age, stale, basis, fields, unstored) =
            match Storability::of(status, &headers, self.lookup.credentials, caching, judged_by, arrival) {
                Storability::Storable { lifetime, initial_age, stale, basis, fields, unstored } => {
                    (lifetime, initial_age, stale, basis, fields, unstored)
                }
                Storability::Refused(refusal) => return Err(refusal),
            };
        // What the origin was not shown cannot have made a difference, and would let one client fill all variants.
        let is_shown =
            |field: &HeaderName| !policy.sealed || *field == header::HOST || policy.key_headers.contains(field);
        let fields = union(fields.into_iter().filter(is_shown).collect(), policy.key_headers.clone());
        let cost_before = self.held().map(|held| held.origin_cost).filter(|cost| !cost.is_zero());
        let groups = groups::tags(&headers, &CACHE_GROUPS, &authority);
        let stated = tags::stated(&headers, &policy.tag_fields);
        let all_tags = policy.tags.iter().chain(&caching.tags).chain(&stated).chain(&groups).map(String::as_str);
        let tags = tags::of_entry(all_tags).ok_or(Refusal::TooManyTags)?;
        let mut headers = headers;
        stored::clean(&mut headers);
        policy.strip(&mut headers);
        for field in unstored {
            headers.remove(field);
        }
        // RFC 9110 section 6.6.1: whoever stores a response without a date gives it one.
        if !headers.contains_key(header::DATE) {
            // One with as many fields as a map can hold stays without.
            let _ = headers.try_insert(header::DATE, arrival.calendar.to_http_date());
        }
        Ok(Box::new(Admission {
            key,
            request,
            fields,
            rule: self.lookup.variant,
            announced: match ContentLength::of(&headers) {
                ContentLength::Bytes(length) => Some(length),
                ContentLength::Absent | ContentLength::Contradictory => None,
            },
            limit: policy.max_body,
            makes_etag: policy.make_etags && status == StatusCode::OK,
            cost_before,
            joins: self.joins.filter(|_| status == StatusCode::PARTIAL_CONTENT),
            response: StoredResponse {
                status,
                headers,
                delivery: Delivery::default(),
                body: Bytes::new(),
                received_at: arrival.now,
                initial_age,
                lifetime,
                keep: policy.keep,
                stale,
                basis,
                origin_cost: Duration::ZERO,
                tags,
                born: 0,
                generation: 0,
            },
        }))
    }
}

/// A stored response with the time until which its origin, which has failed, is to be spared.
#[derive(Debug)]
pub struct Throttled {
    response: StoredResponse,
    rule: Option<Arc<Entry>>,
    stored_for: Duration,
}

impl Throttled {
    /// Says what to store under `key`, where it was before; `id` is a fresh one.
    pub fn filling(self, key: EntryKey, id: EntryId) -> Filling {
        let Self { response, rule, stored_for } = self;
        Filling { key, response: Arc::new(Entry { id, content: Content::Response(response) }), rule, stored_for }
    }
}

/// All of a stored response, unless it is a part only.
fn whole(held: &StoredResponse) -> Option<Form> {
    (held.status != StatusCode::PARTIAL_CONTENT).then_some(Form::Whole)
}

/// Whether an answer may tell nothing to others than the client whose range it is for: an error may be about the range, whatever
/// it says; a part that nobody asked for may be of anything; and in answer to `If-Range` a part leaves out what the client has
/// been told of the representation (RFC 9110 section 15.3.7), and others have not.
fn is_for_its_range_only(status: StatusCode, request: &HeaderMap) -> bool {
    let asks_for_part = request.contains_key(header::RANGE);
    if status == StatusCode::PARTIAL_CONTENT {
        return !asks_for_part || request.contains_key(header::IF_RANGE);
    }
    asks_for_part && (status.is_client_error() || status.is_server_error())
}

/// The statuses that count as an error of the origin (RFC 5861 section 4).
fn is_error(status: StatusCode) -> bool {
    matches!(status.as_u16(), 500 | 502 | 503 | 504)
}

/// Whether a response of this status, though it is not stored, says that the stored one is no longer right.
fn replaces(status: StatusCode) -> bool {
    status.is_success() && status != StatusCode::PARTIAL_CONTENT
        || matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE)
        || status.is_redirection() && status != StatusCode::NOT_MODIFIED
}
