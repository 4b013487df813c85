//! The second step: what a request selects of what is stored (RFC 9111 section 4).

use super::{Filling, Forward, Hit};
use crate::{
    directives::{self, RequestDirectives},
    policy::{Early, Policy},
    reason::Reason,
    search::Sought,
    stored::{Basis, Content, Entry, EntryId, StoredResponse},
    storing::Credentials,
    time::Timestamp,
    validation::{self, Form},
    vary::VariantId,
};
use http::{HeaderMap, Method, StatusCode, header};
use std::{sync::Arc, time::Duration};

/// A request that a stored response may answer.
#[derive(Debug, Clone)]
pub struct Lookup {
    pub(super) method: Method,
    /// Whether there are preconditions or ranges.
    pub(super) asks_for_less: bool,
    pub(super) credentials: Credentials,
    /// What the client directs, if that counts: mostly it does not, and a look-up is passed on often.
    pub(super) client: Option<Box<RequestDirectives>>,
    pub(super) choices: Choices,
    /// The request's query, if it is looked up by another.
    pub(super) sought: Option<Arc<Sought>>,
    /// The entry with the rule by which the resource varies.
    pub(super) variant: Option<Arc<Entry>>,
}

/// What of a policy counts once a request is looked up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Choices {
    pub(super) most_variants: usize,
    pub(super) selects_by_language: bool,
    pub(super) stores_parts: bool,
    pub(super) early: Early,
}

impl Choices {
    #[inline]
    pub(super) fn of(policy: &Policy) -> Self {
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
    /// What the client directs.
    #[inline]
    pub(super) fn client(&self) -> &RequestDirectives {
        self.client.as_deref().unwrap_or(&RequestDirectives::NOTHING)
    }

    /// Looks up by another query than the request's.
    #[inline]
    pub fn seek(&mut self, sought: Option<Arc<Sought>>) {
        self.sought = sought;
    }

    /// The stored response, if it answers by itself: it is fresh, and it is not time to fetch it anew; else what was
    /// found. For most requests that is all there is to [`select`](Self::select).
    #[inline]
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
                if self.client().only_if_cached {
                    return Selected::Hit(hit);
                }
                Selected::Refresh(hit, self.refresh(entry, false))
            }
            (Fitness::Foreign(reason), _) => {
                let seen = Some(entry.id);
                self.forward(reason, None, headers).having_seen(seen)
            }
            (Fitness::Unfit(reason), Some(_)) => self.forward(reason, Some(entry), headers),
            (_, None) if response.status == StatusCode::PARTIAL_CONTENT && self.choices.stores_parts => {
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
        self.client().stale_if_error.is_none_or(|asked| stale < asked)
    }

    /// Whether it is time to fetch a fresh response anew.
    #[inline]
    fn is_due(&self, response: &StoredResponse, now: Timestamp, seed: f64) -> bool {
        self.choices.early != Early::Never
            && !self.client().only_if_cached
            && response.stale.throttle.until <= now
            && !response.lifetime.is_zero()
            && {
                let left = response.lifetime.saturating_sub(response.age(now));
                self.choices.early.is_due(response.origin_cost, response.lifetime, left, seed)
            }
    }

    /// To the origin in the background, for the whole, whatever of it this request has asked for.
    fn refresh(self, entry: Arc<Entry>, is_early: bool) -> Forward {
        let method = if self.method == Method::HEAD { Method::GET } else { self.method };
        let lookup = Self { method, asks_for_less: false, ..self };
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
    #[inline]
    pub(super) fn is_of_another_query(&self, response: &HeaderMap) -> bool {
        self.sought.as_ref().is_some_and(|sought| !sought.is_answered_by(response))
    }

    /// What of a stored response answers; `None` when only the origin can tell.
    #[inline]
    pub(super) fn form(&self, headers: &HeaderMap, response: &StoredResponse) -> Option<Form> {
        match self.method {
            _ if self.asks_for_less || response.status == StatusCode::PARTIAL_CONTENT => {
                Form::of(&self.method, headers, response)
            }
            Method::HEAD => Some(Form::Head),
            _ => Some(Form::Whole),
        }
    }

    /// Whether a stored response may answer this request (RFC 9111 section 4).
    #[inline]
    fn fitness(&self, response: &StoredResponse, now: Timestamp) -> Fitness {
        if response.basis == Basis::Policy && self.credentials.authorization {
            return Fitness::Foreign(Reason::Authorization);
        }
        if response.basis == Basis::Policy && self.credentials.cookie {
            return Fitness::Foreign(Reason::Cookie);
        }
        if self.client().no_store {
            return Fitness::Foreign(Reason::ClientDirective);
        }
        if self.client().no_cache {
            return Fitness::Unfit(Reason::ClientDirective);
        }
        let age = response.age(now);
        let left = response.lifetime.saturating_sub(age);
        if let Some(limit) = self.client().max_age.filter(|limit| age > *limit) {
            // What a browser asks that reloads a page; what is immutable need not be asked for again (RFC 8246 section 2).
            let is_settled = limit.is_zero() && !left.is_zero() && directives::is_immutable(&response.headers);
            if !is_settled {
                return Fitness::Unfit(Reason::TooOldForRequest);
            }
        }
        if !left.is_zero() {
            let is_soon_over = self.client().min_fresh.is_some_and(|asked| left < asked);
            return if is_soon_over { Fitness::Unfit(Reason::TooOldForRequest) } else { Fitness::Fresh };
        }
        let stale = response.staleness(now);
        let is_accepted = |limit| stale <= limit && stale < response.stale.if_accepted;
        match self.client().max_stale {
            _ if stale < response.stale.while_revalidate => Fitness::StaleWhileRevalidated,
            Some(limit) if is_accepted(limit) => Fitness::Accepted,
            _ => Fitness::Unfit(Reason::Expired),
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
        if self.client().only_if_cached {
            return Selected::Unsatisfied;
        }
        let reason = if self.client().no_store || self.client().no_cache { Reason::ClientDirective } else { reason };
        let seen = held.as_ref().map(|entry| entry.id);
        let forward = Forward { reason, seen, held, joins: None, storable: false, is_early: false, lookup: self };
        // A part never takes the place of a whole.
        let is_part = |held: &StoredResponse| held.status == StatusCode::PARTIAL_CONTENT;
        let stores_part = forward.lookup.choices.stores_parts && forward.held().is_none_or(is_part);
        let asks_for_part = headers.contains_key(header::RANGE) && !forward.can_ask() && !stores_part;
        // An answer to HEAD is stored only when it confirms what is held.
        let is_of_use = forward.lookup.method != Method::HEAD || forward.held.is_some();
        let storable = is_of_use && !asks_for_part && !forward.lookup.client().no_store;
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
    /// The same, but that what comes from the origin is not stored.
    #[must_use]
    pub fn unstored(self) -> Self {
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
