//! The steps of one request, as types that each consume the one before, so that no other order compiles.
//!
//! ```text
//! Intake::of(head, policy)            -> Bypass | Lookup
//! Lookup::select(entry, headers, ..)  -> Hit | Refresh(Hit, Forward) | Variant | Forward | Unsatisfied
//! Forward::prepare(headers)           asks the origin whether what is held still holds
//! Forward::receive(head, ..)          -> Store(Admission) | Freshened(Hit, Admission) | Stale(Hit) | Pass
//! Forward::fail(headers, now)         -> Hit, when the origin cannot be reached
//! Admission::complete(body, ..)       -> what to store
//! ```

use crate::{
    directives::{self, RequestDirectives},
    freshness::Arrival,
    groups::{self, CACHE_GROUPS},
    key::{self, EntryKey},
    partial::{self, Extent},
    policy::{Caching, Early, Policy},
    range,
    reason::{Reason, Refusal, Storing},
    sealing,
    search::Sought,
    signature::Signature,
    stored::{self, Basis, Content, Delivery, Entry, EntryId, StaleUse, StoredResponse, Throttle},
    storing::{ContentLength, Credentials, Storability},
    tags,
    time::Timestamp,
    validation::{self, Form, Validators},
    vary::{Known, VariantId, Variants},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header, request, response};
use std::{sync::Arc, time::Duration};

/// What becomes of a request before anything is looked up.
#[derive(Debug)]
pub enum Intake {
    /// It goes to the origin, and nothing of it is stored.
    Bypass(Reason),
    /// It is looked up.
    Lookup(Lookup),
}

impl Intake {
    /// Judges the head of a request.
    pub fn of(head: &request::Parts, policy: &Policy) -> Self {
        if !policy.methods.contains(&head.method) {
            return Self::Bypass(Reason::Method);
        }
        let told = Told::by(&head.headers);
        if told.has_content && matches!(head.method, Method::GET | Method::HEAD) {
            return Self::Bypass(Reason::Skipped);
        }
        let client = if policy.honor_client_directives {
            RequestDirectives::parse(&head.headers)
        } else {
            RequestDirectives::default()
        };
        let is_keyed = || policy.key_headers.contains(&header::AUTHORIZATION);
        if policy.sealed && told.has_credentials && head.headers.contains_key(header::AUTHORIZATION) && !is_keyed() {
            return Self::Bypass(Reason::Authorization);
        }
        let credentials = if told.has_credentials && !policy.sealed {
            Credentials::of(&head.headers, policy)
        } else {
            Credentials::default()
        };
        let asks_for_less = told.asks_for_less;
        let (method, choices) = (head.method.clone(), Choices::of(policy));
        Self::Lookup(Lookup { method, asks_for_less, credentials, client, choices, sought: None, variant: None })
    }
}

/// What the names of a request's fields tell, read in one pass: every request pays for it.
#[derive(Default)]
struct Told {
    /// There is content, which no key tells apart (the "fat GET").
    has_content: bool,
    /// There may be credentials.
    has_credentials: bool,
    /// There are preconditions, or ranges.
    asks_for_less: bool,
}

const ASK_FOR_LESS: [HeaderName; 6] = [
    header::RANGE,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_MATCH,
    header::IF_UNMODIFIED_SINCE,
    header::IF_RANGE,
];

impl Told {
    fn by(headers: &HeaderMap) -> Self {
        let mut told = Self::default();
        for (name, value) in headers {
            told.has_content |= *name == header::TRANSFER_ENCODING;
            told.has_content |= *name == header::CONTENT_LENGTH && value.as_bytes() != b"0";
            told.has_credentials |= *name == header::COOKIE || *name == header::AUTHORIZATION;
            told.asks_for_less |= ASK_FOR_LESS.contains(name);
        }
        told
    }
}

/// A request that a stored response may answer.
#[derive(Debug, Clone)]
pub struct Lookup {
    method: Method,
    /// Whether there are preconditions or ranges.
    asks_for_less: bool,
    credentials: Credentials,
    client: RequestDirectives,
    choices: Choices,
    /// The request's query, if it is looked up by another.
    sought: Option<Arc<Sought>>,
    /// The entry with the rule by which the resource varies.
    variant: Option<Arc<Entry>>,
}

/// What of a policy counts once a request is looked up.
#[derive(Debug, Clone, Copy)]
struct Choices {
    most_variants: usize,
    selects_by_language: bool,
    stores_parts: bool,
    early: Early,
}

impl Choices {
    fn of(policy: &Policy) -> Self {
        Self {
            most_variants: policy.most_variants,
            selects_by_language: policy.select_by_language,
            stores_parts: policy.store_partial && !policy.sealed,
            early: policy.early,
        }
    }
}

/// What a lookup comes to.
#[derive(Debug)]
pub enum Selected {
    /// The stored response answers.
    Hit(Hit),
    /// The stored response answers, while the origin is asked in the background: it is stale, or it is time.
    Refresh(Hit, Forward),
    /// The resource varies: the same lookup is to be made for this variant.
    Variant(Lookup, VariantId),
    /// The origin is to be asked.
    Forward(Forward),
    /// The client wants a stored response only, and none answers: 504 (RFC 9111 section 5.2.1.7).
    Unsatisfied,
}

impl Lookup {
    /// Looks up by another query than the request's.
    pub fn seek(&mut self, sought: Option<Arc<Sought>>) {
        self.sought = sought;
    }

    /// The stored response, if it answers by itself: it is fresh, and it is not time to fetch it anew; else what was
    /// found. For most requests that is all there is to [`select`](Self::select).
    pub fn hit(&self, found: Arc<Entry>, headers: &HeaderMap, now: Timestamp, seed: f64) -> Result<Hit, Arc<Entry>> {
        let Content::Response(response) = &found.content else { return Err(found) };
        let is_hit = self.variant.is_none()
            && !self.is_of_another_query(&response.headers)
            && matches!(self.fitness(response, now), Fitness::Fresh)
            && !self.is_due(response, now, seed);
        match self.form(headers, response) {
            Some(form) if is_hit => Ok(Hit { entry: found, form, stale: None }),
            _ => Err(found),
        }
    }

    /// Selects from what the store holds (RFC 9111 section 4) for the request with `headers`.
    ///
    /// `seed` is drawn evenly from 0 to 1; it decides on what is fetched anew before its time.
    pub fn select(self, found: Option<Arc<Entry>>, headers: &HeaderMap, now: Timestamp, seed: f64) -> Selected {
        let nothing = if self.variant.is_some() { Reason::Vary } else { Reason::Never };
        let Some(entry) = found else {
            return self.forward(nothing, None, headers);
        };
        let entry = match &self.variant {
            Some(rule) => entry.under(rule),
            None => entry,
        };
        let response = match &entry.content {
            Content::Response(response) if self.is_of_another_query(&response.headers) => {
                let seen = Some(entry.id);
                return self.forward(Reason::Never, None, headers).having_seen(seen);
            }
            Content::Response(response) => response,
            Content::Variants(_) if self.variant.is_some() => return self.forward(Reason::Vary, None, headers),
            Content::Variants(rule) => {
                let variant = rule.select(entry.id, headers, self.choices.selects_by_language, now);
                if !rule.have_room(variant.digest, self.choices.most_variants, now) {
                    return self.forward(Reason::VariantsExceeded, None, headers).unstored();
                }
                return Selected::Variant(Self { variant: Some(entry), ..self }, variant);
            }
        };
        let form = self.form(headers, response);
        match (self.fitness(response, now), form) {
            (Fitness::Fresh, Some(form)) if self.is_due(response, now, seed) => {
                let hit = Hit { entry: entry.clone(), form, stale: None };
                Selected::Refresh(hit, self.refresh(entry, true))
            }
            (Fitness::Fresh, Some(form)) => Selected::Hit(Hit { entry, form, stale: None }),
            (Fitness::StaleWhileRevalidated | Fitness::Unfit(Reason::Expired), Some(form))
                if response.is_throttled(now) && self.accepts_errors_for(response.staleness(now)) =>
            {
                Selected::Hit(Hit { entry, form, stale: Some(Reason::ErrorThrottled) })
            }
            (Fitness::Accepted, Some(form)) => Selected::Hit(Hit { entry, form, stale: Some(Reason::MaxStale) }),
            (Fitness::Unfit(_) | Fitness::StaleWhileRevalidated, _)
                if self.asks_for_less && validation::is_for_origin(headers) =>
            {
                let seen = Some(entry.id);
                self.forward(Reason::ClientDirective, None, headers).having_seen(seen)
            }
            (Fitness::StaleWhileRevalidated, Some(form)) => {
                let hit = Hit { entry: entry.clone(), form, stale: Some(Reason::SwrRefresh) };
                if self.client.only_if_cached {
                    return Selected::Hit(hit);
                }
                Selected::Refresh(hit, self.refresh(entry, false))
            }
            (Fitness::Foreign(reason), _) => {
                let seen = Some(entry.id);
                self.forward(reason, None, headers).having_seen(seen)
            }
            (Fitness::Unfit(reason), Some(_)) => self.forward(reason, Some(entry), headers),
            (_, None) if response.status == StatusCode::PARTIAL_CONTENT => {
                let (seen, joins) = (Some(entry.id), entry.clone());
                self.forward(Reason::Partial, None, headers).having_seen(seen).joining(joins)
            }
            (_, None) => {
                let seen = Some(entry.id);
                self.forward(Reason::ClientDirective, None, headers).having_seen(seen)
            }
        }
    }

    /// Whether the client takes what has been stale for so long in place of an error.
    fn accepts_errors_for(&self, stale: Duration) -> bool {
        self.client.stale_if_error.is_none_or(|asked| stale < asked)
    }

    /// Whether it is time to fetch a fresh response anew.
    fn is_due(&self, response: &StoredResponse, now: Timestamp, seed: f64) -> bool {
        self.choices.early != Early::Never
            && !self.client.only_if_cached
            && response.stale.throttle.until <= now
            && !response.lifetime.is_zero()
            && {
                let left = response.lifetime.saturating_sub(response.age(now));
                self.choices.early.is_due(response.origin_cost, response.lifetime, left, seed)
            }
    }

    /// To the origin in the background, for the whole, whatever of it this request has asked for.
    fn refresh(self, entry: Arc<Entry>, is_early: bool) -> Forward {
        let lookup = Self { method: Method::GET, asks_for_less: false, ..self };
        let (reason, seen) = (Reason::Expired, Some(entry.id));
        Forward { reason, seen, held: Some(entry), joins: None, storable: true, is_early, lookup }
    }

    /// Selects from what another request has just fetched for the same key.
    pub fn select_fetched(self, fetched: &Filling, headers: &HeaderMap, now: Timestamp) -> Selected {
        // What has just come is not fetched anew before its time.
        const NEVER: f64 = 1.0;
        let Some(rule) = &fetched.rule else {
            return self.select(Some(fetched.response.clone()), headers, now, NEVER);
        };
        match self.select(Some(rule.clone()), headers, now, NEVER) {
            Selected::Variant(lookup, variant) if fetched.key.variant() == Some(variant) => {
                lookup.select(Some(fetched.response.clone()), headers, now, NEVER)
            }
            Selected::Variant(lookup, _) => lookup.forward(Reason::Vary, None, headers),
            other => other,
        }
    }

    /// The same lookup, from the resource's own entry.
    #[must_use]
    pub fn from_base(self) -> Self {
        Self { variant: None, ..self }
    }

    /// Goes to the origin for a reason that lies in the store.
    pub fn without_store(self, reason: Reason, headers: &HeaderMap) -> Selected {
        self.forward(reason, None, headers)
    }

    /// Whether a response does not say that it answers this request's query, which is not the one it is looked up by.
    fn is_of_another_query(&self, response: &HeaderMap) -> bool {
        self.sought.as_ref().is_some_and(|sought| !sought.is_answered_by(response))
    }

    /// What of a stored response answers; `None` when only the origin can tell.
    fn form(&self, headers: &HeaderMap, response: &StoredResponse) -> Option<Form> {
        match self.method {
            _ if self.asks_for_less || response.status == StatusCode::PARTIAL_CONTENT => {
                Form::of(&self.method, headers, response)
            }
            Method::HEAD => Some(Form::Head),
            _ => Some(Form::Whole),
        }
    }

    /// Whether a stored response may answer this request (RFC 9111 section 4).
    fn fitness(&self, response: &StoredResponse, now: Timestamp) -> Fitness {
        if response.basis == Basis::Policy && self.credentials.authorization {
            return Fitness::Foreign(Reason::Authorization);
        }
        if response.basis == Basis::Policy && self.credentials.cookie {
            return Fitness::Foreign(Reason::Cookie);
        }
        if self.client.no_store {
            return Fitness::Foreign(Reason::ClientDirective);
        }
        if self.client.no_cache {
            return Fitness::Unfit(Reason::ClientDirective);
        }
        let age = response.age(now);
        let left = response.lifetime.saturating_sub(age);
        if let Some(limit) = self.client.max_age.filter(|limit| age > *limit) {
            // What a browser asks that reloads a page; what is immutable need not be asked for again (RFC 8246 section 2).
            let is_settled = limit.is_zero() && !left.is_zero() && directives::is_immutable(&response.headers);
            if !is_settled {
                return Fitness::Unfit(Reason::TooOldForRequest);
            }
        }
        let stale = response.staleness(now);
        match self.client {
            _ if left.is_zero() && stale < response.stale.while_revalidate => Fitness::StaleWhileRevalidated,
            RequestDirectives { max_stale: Some(limit), .. }
                if left.is_zero() && stale <= limit && stale < response.stale.if_accepted =>
            {
                Fitness::Accepted
            }
            _ if left.is_zero() => Fitness::Unfit(Reason::Expired),
            RequestDirectives { min_fresh: Some(asked), .. } if left < asked => {
                Fitness::Unfit(Reason::TooOldForRequest)
            }
            _ => Fitness::Fresh,
        }
    }

    /// Goes to the origin, as what was found is no longer valid.
    pub fn invalidated(self, found: EntryId, headers: &HeaderMap) -> Selected {
        self.forward(Reason::InvalidatedTag, None, headers).having_seen(Some(found))
    }

    /// Goes to the origin, as what was found tells this request nothing.
    pub fn unread(self, found: EntryId, headers: &HeaderMap) -> Selected {
        self.forward(Reason::Decode, None, headers).having_seen(Some(found))
    }

    /// To the origin, with the stored response that it may confirm, or that answers if it fails.
    fn forward(self, reason: Reason, held: Option<Arc<Entry>>, headers: &HeaderMap) -> Selected {
        if self.client.only_if_cached {
            return Selected::Unsatisfied;
        }
        let reason = if self.client.no_store || self.client.no_cache { Reason::ClientDirective } else { reason };
        let seen = held.as_ref().map(|entry| entry.id);
        let forward = Forward { reason, seen, held, joins: None, storable: false, is_early: false, lookup: self };
        // A part never takes the place of a whole.
        let is_part = |held: &StoredResponse| held.status == StatusCode::PARTIAL_CONTENT;
        let stores_part = forward.lookup.choices.stores_parts && forward.held().is_none_or(is_part);
        let asks_for_part = headers.contains_key(header::RANGE) && !forward.can_ask() && !stores_part;
        // An answer to HEAD is stored only when it confirms what is held.
        let is_of_use = forward.lookup.method != Method::HEAD || forward.held.is_some();
        let storable = is_of_use && !asks_for_part && !forward.lookup.client.no_store;
        Selected::Forward(Forward { storable, ..forward })
    }
}

/// Whether a stored response may answer a request.
enum Fitness {
    /// It may.
    Fresh,
    /// It is stale, and the client accepts that.
    Accepted,
    /// It is stale, and may answer while it is revalidated.
    StaleWhileRevalidated,
    /// It may, if the origin confirms it.
    Unfit(Reason),
    /// It is not for this request at all.
    Foreign(Reason),
}

impl Selected {
    fn unstored(self) -> Self {
        match self {
            Self::Forward(forward) => Self::Forward(Forward { storable: false, ..forward }),
            other => other,
        }
    }

    /// With a stored part, to which what comes may be added.
    fn joining(self, part: Arc<Entry>) -> Self {
        match self {
            Self::Forward(forward) => Self::Forward(Forward { joins: Some(part), ..forward }),
            other => other,
        }
    }

    fn having_seen(self, seen: Option<EntryId>) -> Self {
        match self {
            Self::Forward(forward) => Self::Forward(Forward { seen, ..forward }),
            other => other,
        }
    }
}

/// A stored response that answers.
#[derive(Debug)]
pub struct Hit {
    entry: Arc<Entry>,
    form: Form,
    /// Why it may answer although it is stale, if it is.
    stale: Option<Reason>,
}

/// A stored response as it answers.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers, with what they tell of the cache and the `Age` of RFC 9111 section 5.1.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// Whether it is the body of the stored response, all of it.
    pub is_whole: bool,
}

impl Hit {
    /// What is left of its lifetime, in whole seconds.
    pub fn ttl(&self, now: Timestamp) -> i64 {
        self.response().map_or(0, |response| response.ttl(now))
    }

    /// Why it may answer although it is stale, if it is.
    pub fn staleness(&self) -> Option<Reason> {
        self.stale
    }

    /// Whether it is an error that is stored.
    pub fn is_negative(&self) -> bool {
        self.response().is_some_and(|response| response.status.is_client_error() || response.status.is_server_error())
    }

    /// The same, when another request has it revalidated.
    #[must_use]
    pub fn updating(self) -> Self {
        Self { stale: Some(Reason::SwrUpdating), ..self }
    }

    /// The answer, signed, in the form that the request asked for.
    pub fn answer(self, signature: Signature<'_>, now: Timestamp) -> Answer {
        let (form, id) = (self.form.clone(), self.entry.id);
        let Some(Answer { mut status, mut headers, body, .. }) = self.into_answer(signature, now) else {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            return Answer { status, headers: HeaderMap::new(), body: Bytes::new(), is_whole: false };
        };
        let is_whole = form == Form::Whole;
        let stored = status;
        let body = match form {
            Form::Whole => body,
            Form::Head => {
                if !headers.contains_key(header::CONTENT_LENGTH) && status != StatusCode::NO_CONTENT {
                    let _ = headers.try_insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
                }
                Bytes::new()
            }
            Form::NotModified => {
                status = StatusCode::NOT_MODIFIED;
                validation::leave_for_not_modified(&mut headers);
                Bytes::new()
            }
            Form::Parts(parts) => {
                status = StatusCode::PARTIAL_CONTENT;
                let held = Extent::stated(stored, &headers, &body);
                range::partial(&parts, held, id, &mut headers, &body)
            }
            Form::Unsatisfiable => {
                status = StatusCode::RANGE_NOT_SATISFIABLE;
                let held = Extent::stated(stored, &headers, &body);
                range::leave_for_unsatisfiable(&mut headers, held.length());
                Bytes::new()
            }
        };
        Answer { status, headers, body, is_whole }
    }

    /// The stored response itself when nobody else holds it, as one that was just read from afar, else a copy.
    fn into_answer(self, signature: Signature<'_>, now: Timestamp) -> Option<Answer> {
        let age = |response: &StoredResponse| i64::try_from(response.age(now).as_secs()).unwrap_or(i64::MAX);
        let read_from_afar =
            if Arc::strong_count(&self.entry) == 1 { Arc::try_unwrap(self.entry) } else { Err(self.entry) };
        match read_from_afar {
            Ok(Entry { content: Content::Response(response), .. }) => {
                let age = age(&response);
                let StoredResponse { status, mut headers, body, .. } = response;
                signature.write(&mut headers, Some(age));
                Some(Answer { status, headers, body, is_whole: true })
            }
            Err(entry) => {
                let Content::Response(response) = &entry.content else { return None };
                let headers = response.delivery.of(&response.headers, signature, age(response));
                Some(Answer { status: response.status, headers, body: response.body.clone(), is_whole: true })
            }
            Ok(_) => None,
        }
    }

    fn response(&self) -> Option<&StoredResponse> {
        match &self.entry.content {
            Content::Response(response) => Some(response),
            Content::Variants(_) => None,
        }
    }
}

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

/// The fields with which a request asks for less than a whole response.
pub fn conditions(request: &HeaderMap) -> HeaderMap {
    let mut conditions = HeaderMap::new();
    for field in ASK_FOR_LESS {
        for value in request.get_all(&field) {
            let _ = conditions.try_append(field.clone(), value.clone());
        }
    }
    conditions
}

/// Puts those fields back into a request that was made to ask for something else.
pub fn restore(request: &mut HeaderMap, conditions: &HeaderMap) {
    for field in ASK_FOR_LESS {
        request.remove(field);
    }
    for (field, value) in conditions {
        let _ = request.try_append(field.clone(), value.clone());
    }
}

/// Makes a request ask for a whole response.
pub fn ask_for_all<Q>(request: &mut Request<Q>) {
    *request.method_mut() = Method::GET;
    restore(request.headers_mut(), &HeaderMap::new());
}

/// A request that goes to the origin.
#[derive(Debug, Clone)]
pub struct Forward {
    reason: Reason,
    seen: Option<EntryId>,
    /// The stored response that the origin may confirm.
    held: Option<Arc<Entry>>,
    /// The stored part to which what comes may be added.
    joins: Option<Arc<Entry>>,
    storable: bool,
    /// Whether what is held is fresh, and fetched anew before its time.
    is_early: bool,
    lookup: Lookup,
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
            client: RequestDirectives::default(),
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

    /// Takes out of the request what the origin must not see, and makes it ask whether the stored response still holds,
    /// if there is one that can be asked for (RFC 9111 section 4.3.1). A part is then not asked for: should the origin
    /// have another response, it is stored.
    pub fn prepare(&self, request: &mut HeaderMap, policy: &Policy) {
        if policy.sealed {
            sealing::seal(request, policy, self.storable);
        }
        if let Some(held) = self.held().filter(|_| self.can_ask()) {
            validation::ask(request, held);
            request.remove(header::RANGE);
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

    fn held(&self) -> Option<&StoredResponse> {
        self.held.as_deref().and_then(|entry| match &entry.content {
            Content::Response(response) => Some(response),
            Content::Variants(_) => None,
        })
    }

    /// Whether there is a stored response that the origin can be asked about.
    fn can_ask(&self) -> bool {
        self.held().is_some_and(|held| Validators::of(&held.headers).any())
    }

    fn stale_for(&self, request: &HeaderMap, now: Timestamp, window: impl Fn(StaleUse) -> Duration) -> Option<Hit> {
        let (entry, held) = (self.held.clone()?, self.held()?);
        let form = self.lookup.form(request, held).or_else(|| whole(held))?;
        // Within the time in which it is revalidated it answers anyhow, and so it does while it is fresh.
        let allowed = self.lookup.client.stale_if_error.unwrap_or(Duration::MAX);
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
        // An error may be about the range, whatever it says; and a part that nobody asked for may be of anything.
        let is_error = status.is_client_error() || status.is_server_error();
        let asks_for_part = request.contains_key(header::RANGE);
        if asks_for_part && is_error || !asks_for_part && status == StatusCode::PARTIAL_CONTENT {
            return Err(Refusal::Partial);
        }
        let stated_only = (self.lookup.method == Method::POST).then(|| policy.without_lifetimes());
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
            joins: self.joins,
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

/// A response that may be stored, and waits for its body.
#[derive(Debug, Clone)]
pub struct Admission {
    key: EntryKey,
    request: HeaderMap,
    fields: Vec<HeaderName>,
    rule: Option<Arc<Entry>>,
    announced: Option<u64>,
    limit: u64,
    makes_etag: bool,
    joins: Option<Arc<Entry>>,
    /// What the response that was held took the origin.
    cost_before: Option<Duration>,
    response: StoredResponse,
}

/// What is to be stored for one response.
#[derive(Debug, Clone)]
pub struct Filling {
    /// Where the response is stored.
    pub key: EntryKey,
    /// The response.
    pub response: Arc<Entry>,
    /// The rule by which the resource varies, if it does; it is stored as the resource's own entry.
    pub rule: Option<Arc<Entry>>,
    /// How long both are to be kept.
    pub stored_for: Duration,
}

impl Admission {
    /// The largest body that is stored, in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// The length that `Content-Length` announces.
    pub fn announced(&self) -> Option<u64> {
        self.announced
    }

    /// What is left of the lifetime, in whole seconds.
    pub fn ttl(&self, now: Timestamp) -> i64 {
        self.response.ttl(now)
    }

    /// Whether what will be stored is known before its body is.
    pub fn is_told_by_its_head(&self) -> bool {
        self.joins.is_none() && (!self.makes_etag || self.response.headers.contains_key(header::ETAG))
    }

    /// Whether what is stored can answer only after the origin has confirmed it.
    pub fn is_for_validation_only(&self) -> bool {
        self.response.lifetime.is_zero() && self.response.stale.while_revalidate.is_zero()
    }

    /// Takes the whole body, and says what to store.
    ///
    /// `origin_cost` is the time to the last byte; `born` is what the invalidation clock showed before the origin was asked;
    /// `id` and `rule_id` are fresh ids, the second for a rule that is new.
    pub fn complete(self, body: Bytes, origin_cost: Duration, born: u64, id: EntryId, rule_id: EntryId) -> Filling {
        let origin_cost = self.cost_before.map_or(origin_cost, |before| {
            // In whole microseconds, as it is stored.
            let micros = before.saturating_add(origin_cost).as_micros() / 2;
            Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
        });
        let mut response = StoredResponse { body, origin_cost, ..self.response };
        if let Some(Entry { content: Content::Response(part), .. }) = self.joins.as_deref()
            && let Some(combined) = partial::combined(part, &response, self.limit)
        {
            response = combined;
        }
        if self.makes_etag && !response.headers.contains_key(header::ETAG) {
            let _ =
                response.headers.try_insert(header::ETAG, validation::entity_tag(&response.headers, &response.body));
        }
        Self { response, ..self }.freshened(born, id, rule_id)
    }

    /// Says what to store of a response that was stored before, and has been confirmed.
    pub fn freshened(self, born: u64, id: EntryId, rule_id: EntryId) -> Filling {
        let response = StoredResponse { born, ..self.response };
        let stored_for = response.stored_for();
        let known = self.rule.as_deref().and_then(|entry| match &entry.content {
            Content::Variants(rule) => Some((entry.id, rule.clone())),
            Content::Response(_) => None,
        });
        let rule = match known {
            Some((id, rule)) => {
                let fields = union(rule.fields.clone(), self.fields);
                // By other fields, what was stored before is not found again.
                Some((id, if fields == rule.fields { rule } else { Variants::by(fields) }))
            }
            None if self.fields.is_empty() => None,
            None => Some((rule_id, Variants::by(self.fields))),
        };
        let base = self.key.base();
        let (now, until) = (response.received_at, response.received_at.after(stored_for));
        let (key, rule) = match rule {
            Some((id, rule)) => {
                let variant = VariantId::of(id, &rule.fields, &self.request);
                let language = rule.language(id, &self.request, &response.headers);
                let known = Known { digest: variant.digest, until, language };
                let content = Content::Variants(rule.knowing(known, now));
                (base.of_variant(variant), Some(Arc::new(Entry { id, content })))
            }
            None => (base, None),
        };
        Filling { key, response: Arc::new(Entry { id, content: Content::Response(response) }), rule, stored_for }
    }
}

fn union(mut known: Vec<HeaderName>, more: Vec<HeaderName>) -> Vec<HeaderName> {
    known.extend(more);
    known.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    known.dedup();
    known
}
