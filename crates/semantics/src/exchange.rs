//! The steps of one request, as types that each consume the one before, so that no other order compiles.
//!
//! ```text
//! Intake::of(head, policy)            -> Bypass | Lookup
//! Lookup::select(entry, headers, now) -> Hit | Variant | Forward | Unsatisfied
//! Forward::receive(head, ..)          -> Store(Admission) | Pass
//! Admission::complete(body, ..)       -> what to store
//! ```

use crate::{
    directives::RequestDirectives,
    freshness::Arrival,
    key::{EntryKey, VariantId},
    policy::{self, Caching, Policy},
    reason::{Reason, Refusal, Storing},
    signature::Signature,
    stored::{self, Basis, Content, Delivery, Entry, EntryId, StoredResponse},
    storing::{ContentLength, Credentials, Storability},
    time::Timestamp,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request, response};
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
        let credentials =
            if told.has_credentials { Credentials::of(&head.headers, policy) } else { Credentials::default() };
        Self::Lookup(Lookup { is_head: head.method == Method::HEAD, credentials, client, variant: None })
    }
}

/// The request headers whose answer may be less than the whole representation.
const PART_REQUESTS: [HeaderName; 6] = [
    header::RANGE,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_MATCH,
    header::IF_UNMODIFIED_SINCE,
    header::IF_RANGE,
];

/// What the names of a request's fields tell, read in one pass: every request pays for it.
#[derive(Default)]
struct Told {
    /// There is content, which no key tells apart (the "fat GET").
    has_content: bool,
    /// There may be credentials.
    has_credentials: bool,
}

impl Told {
    fn by(headers: &HeaderMap) -> Self {
        let mut told = Self::default();
        for (name, value) in headers {
            told.has_content |= *name == header::TRANSFER_ENCODING;
            told.has_content |= *name == header::CONTENT_LENGTH && value.as_bytes() != b"0";
            told.has_credentials |= *name == header::COOKIE || *name == header::AUTHORIZATION;
        }
        told
    }
}

/// A request that a stored response may answer.
#[derive(Debug, Clone)]
pub struct Lookup {
    is_head: bool,
    credentials: Credentials,
    client: RequestDirectives,
    variant: Option<Rule>,
}

/// The rule by which a resource varies.
#[derive(Debug, Clone)]
struct Rule {
    id: EntryId,
    fields: Vec<HeaderName>,
}

/// What a lookup comes to.
#[derive(Debug)]
pub enum Selected {
    /// The stored response answers.
    Hit(Hit),
    /// The resource varies: the same lookup is to be made for this variant.
    Variant(Lookup, VariantId),
    /// The origin is to be asked.
    Forward(Forward),
    /// The client wants a stored response only, and none answers: 504 (RFC 9111 section 5.2.1.7).
    Unsatisfied,
}

impl Lookup {
    /// Selects from what the store holds (RFC 9111 section 4) for the request with `headers`.
    pub fn select(self, found: Option<Arc<Entry>>, headers: &HeaderMap, now: Timestamp) -> Selected {
        let nothing = if self.variant.is_some() { Reason::Vary } else { Reason::Never };
        let Some(entry) = found else {
            return self.forward(nothing, None, headers);
        };
        let response = match &entry.content {
            Content::Response(response) => response,
            Content::Variants(_) if self.variant.is_some() => return self.forward(Reason::Vary, None, headers),
            Content::Variants(fields) => {
                let variant = VariantId::of(entry.id, fields, headers);
                let rule = Some(Rule { id: entry.id, fields: fields.clone() });
                return Selected::Variant(Self { variant: rule, ..self }, variant);
            }
        };
        match self.unusable(response, now) {
            Some(reason) => self.forward(reason, Some(entry.id), headers),
            None => Selected::Hit(Hit { entry, is_head: self.is_head }),
        }
    }

    /// Selects from what another request has just fetched for the same key.
    pub fn select_fetched(self, fetched: &Filling, headers: &HeaderMap, now: Timestamp) -> Selected {
        let Some(rule) = &fetched.rule else {
            return self.select(Some(fetched.response.clone()), headers, now);
        };
        match self.select(Some(rule.clone()), headers, now) {
            Selected::Variant(lookup, variant) if fetched.key.variant == Some(variant) => {
                lookup.select(Some(fetched.response.clone()), headers, now)
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

    /// Why a stored response does not answer this request, if so.
    fn unusable(&self, response: &StoredResponse, now: Timestamp) -> Option<Reason> {
        let age = response.age(now);
        if response.basis == Basis::Policy && self.credentials.authorization {
            return Some(Reason::Authorization);
        }
        if response.basis == Basis::Policy && self.credentials.cookie {
            return Some(Reason::Cookie);
        }
        if self.client.no_cache || self.client.no_store {
            return Some(Reason::ClientDirective);
        }
        let Some(left) = response.lifetime.checked_sub(age).filter(|left| !left.is_zero()) else {
            return Some(Reason::Expired);
        };
        let too_old = self.client.max_age.is_some_and(|limit| age > limit);
        let too_soon_stale = self.client.min_fresh.is_some_and(|asked| left < asked);
        (too_old || too_soon_stale).then_some(Reason::TooOldForRequest)
    }

    fn forward(self, reason: Reason, seen: Option<EntryId>, headers: &HeaderMap) -> Selected {
        if self.client.only_if_cached {
            return Selected::Unsatisfied;
        }
        let reason = if self.client.no_store || self.client.no_cache { Reason::ClientDirective } else { reason };
        let asks_for_part = PART_REQUESTS.iter().any(|field| headers.contains_key(field));
        let storable = !self.is_head && !asks_for_part && !self.client.no_store;
        Selected::Forward(Forward { reason, seen, storable, lookup: self })
    }
}

/// A stored response that answers.
#[derive(Debug)]
pub struct Hit {
    entry: Arc<Entry>,
    is_head: bool,
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
}

impl Hit {
    /// What is left of its lifetime, in whole seconds.
    pub fn ttl(&self, now: Timestamp) -> i64 {
        self.response().map_or(0, |response| response.ttl(now))
    }

    /// The answer, signed; HEAD gets no body, and the length of GET's.
    pub fn answer(self, signature: Signature<'_>, now: Timestamp) -> Answer {
        let is_head = self.is_head;
        let Some(mut answer) = self.into_answer(signature, now) else {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            return Answer { status, headers: HeaderMap::new(), body: Bytes::new() };
        };
        if is_head {
            let body = std::mem::take(&mut answer.body);
            if !answer.headers.contains_key(header::CONTENT_LENGTH) && answer.status != StatusCode::NO_CONTENT {
                let _ = answer.headers.try_insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
            }
        }
        answer
    }

    /// The stored response itself when nobody else holds it, as one that was just read from afar, else a copy.
    fn into_answer(self, signature: Signature<'_>, now: Timestamp) -> Option<Answer> {
        let age = |response: &StoredResponse| i64::try_from(response.age(now).as_secs()).unwrap_or(i64::MAX);
        match Arc::try_unwrap(self.entry) {
            Ok(Entry { content: Content::Response(response), .. }) => {
                let age = age(&response);
                let StoredResponse { status, mut headers, body, .. } = response;
                signature.write(&mut headers, Some(age));
                Some(Answer { status, headers, body })
            }
            Err(entry) => {
                let Content::Response(response) = &entry.content else { return None };
                let headers = response.delivery.of(&response.headers, signature, age(response));
                Some(Answer { status: response.status, headers, body: response.body.clone() })
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
    /// The request's headers, by which the answer may vary.
    pub headers: HeaderMap,
}

/// A request that goes to the origin.
#[derive(Debug)]
pub struct Forward {
    reason: Reason,
    seen: Option<EntryId>,
    storable: bool,
    lookup: Lookup,
}

/// What becomes of the origin's answer.
#[derive(Debug)]
pub enum Received {
    /// It is stored, once its body is whole.
    Store(Box<Admission>),
    /// It is passed on only.
    Pass(Storing),
}

impl Forward {
    /// Why the origin is asked.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The entry that was found and cannot answer.
    pub fn seen(&self) -> Option<EntryId> {
        self.seen
    }

    /// Whether the answer may be stored, should its head allow it.
    pub fn may_store(&self) -> bool {
        self.storable
    }

    /// Whether requests like this one may wait for its answer, and it for theirs: not those with credentials.
    pub fn may_collapse(&self) -> bool {
        self.storable && !self.lookup.credentials.any() && self.reason.forward() != Some("request")
    }

    /// Goes back to looking up, from the resource's own entry.
    pub fn look_again(self) -> Lookup {
        self.lookup.from_base()
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
        if !self.storable {
            return Received::Pass(Storing::Untried);
        }
        let Asked { key, headers: request } = asked;
        let (lifetime, initial_age, basis, fields) =
            match Storability::of(response, self.lookup.credentials, caching, policy, arrival) {
                Storability::Storable { lifetime, initial_age, basis, fields } => {
                    (lifetime, initial_age, basis, fields)
                }
                Storability::Refused(refusal) => return Received::Pass(Storing::Refused(refusal)),
            };
        let all_tags = policy.tags.iter().chain(&caching.tags).map(String::as_str);
        let Some(tags) = policy::tags(all_tags) else {
            return Received::Pass(Storing::Refused(Refusal::TooManyTags));
        };
        let mut headers = response.headers.clone();
        stored::clean(&mut headers);
        // RFC 9110 section 6.6.1: whoever stores a response without a date gives it one.
        if !headers.contains_key(header::DATE) {
            // One with as many fields as a map can hold stays without.
            let _ = headers.try_insert(header::DATE, arrival.calendar.to_http_date());
        }
        Received::Store(Box::new(Admission {
            key,
            request,
            fields,
            rule: self.lookup.variant,
            announced: match ContentLength::of(&headers) {
                ContentLength::Bytes(length) => Some(length),
                ContentLength::Absent | ContentLength::Contradictory => None,
            },
            limit: policy.max_body,
            response: StoredResponse {
                status: response.status,
                headers,
                delivery: Delivery::default(),
                body: Bytes::new(),
                received_at: arrival.now,
                initial_age,
                lifetime,
                keep: policy.keep,
                basis,
                origin_cost: Duration::ZERO,
                tags,
                born: 0,
                generation: 0,
            },
        }))
    }
}

/// A response that may be stored, and waits for its body.
#[derive(Debug)]
pub struct Admission {
    key: EntryKey,
    request: HeaderMap,
    fields: Vec<HeaderName>,
    rule: Option<Rule>,
    announced: Option<u64>,
    limit: u64,
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

    /// Takes the whole body, and says what to store.
    ///
    /// `origin_cost` is the time to the last byte; `id` and `rule_id` are fresh ids, the second for a rule that is new.
    pub fn complete(self, body: Bytes, origin_cost: Duration, id: EntryId, rule_id: EntryId) -> Filling {
        let response = StoredResponse { body, origin_cost, ..self.response };
        let stored_for = response.stored_for();
        let rule = match self.rule {
            Some(Rule { id, fields }) => Some(Rule { id, fields: union(fields, self.fields) }),
            None if self.fields.is_empty() => None,
            None => Some(Rule { id: rule_id, fields: self.fields }),
        };
        let base = self.key.base();
        let key = match &rule {
            Some(rule) => base.of_variant(VariantId::of(rule.id, &rule.fields, &self.request)),
            None => base,
        };
        let rule = rule.map(|rule| Arc::new(Entry { id: rule.id, content: Content::Variants(rule.fields) }));
        Filling { key, response: Arc::new(Entry { id, content: Content::Response(response) }), rule, stored_for }
    }
}

fn union(mut known: Vec<HeaderName>, more: Vec<HeaderName>) -> Vec<HeaderName> {
    known.extend(more);
    known.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    known.dedup();
    known
}
