//! The last step: what is stored of an answer, and under which keys.

use crate::{
    key::EntryKey,
    partial,
    stored::{Content, Entry, EntryId, StoredResponse},
    time::Timestamp,
    validation,
    vary::{Known, VariantId, Variants},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, header};
use std::{sync::Arc, time::Duration};

/// A response that may be stored, and waits for its body.
#[derive(Debug, Clone)]
pub struct Admission {
    pub(super) key: EntryKey,
    pub(super) request: HeaderMap,
    pub(super) fields: Vec<HeaderName>,
    pub(super) rule: Option<Arc<Entry>>,
    pub(super) announced: Option<u64>,
    pub(super) limit: u64,
    pub(super) makes_etag: bool,
    pub(super) joins: Option<Arc<Entry>>,
    /// What the response that was held took the origin.
    pub(super) cost_before: Option<Duration>,
    pub(super) response: StoredResponse,
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

pub(super) fn union(mut known: Vec<HeaderName>, more: Vec<HeaderName>) -> Vec<HeaderName> {
    known.extend(more);
    known.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    known.dedup();
    known
}
