//! What the client gets of what is stored, and what it is told of how that came.

use super::{Grant, Visit};
use crate::{
    body::CacheBody,
    fill,
    headers::{KeyFor, X_CACHE_KEY},
    nested::Decided,
    share::Following,
};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header::CACHE_CONTROL};
use http_body::Body;
use larder_semantics::{
    Hit, Key, Outcome, Reason, Timestamp,
    directives::CDN_CACHE_CONTROL,
    exchange::{Answer, Throttled},
    signature::Signature,
};

impl<'f> Visit<'f> {
    /// The answer from a stored response.
    pub(super) fn answer<B>(&self, hit: Hit, key: &Key, reason: Reason, now: Timestamp) -> Response<CacheBody<B>>
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
    pub(super) fn share<B>(&self, hit: Hit, key: &Key, following: Following, now: Timestamp) -> Response<CacheBody<B>>
    where
        B: Body<Data = Bytes> + Send + 'static,
    {
        let outcome = Outcome::Collapsed { ttl: hit.ttl(now) };
        let Answer { status, headers, is_whole, .. } = hit.answer(self.sign(outcome, Some(key)), now);
        let body = if is_whole { CacheBody::following(following) } else { CacheBody::stored(Bytes::new()) };
        let mut response = Response::new(body);
        (*response.status_mut(), *response.headers_mut()) = (status, headers);
        self.mark(&mut response);
        response
    }

    /// The answer from a stored response, as the origin has failed.
    pub(super) fn failed<B>(
        &self,
        hit: Hit,
        status: Option<u16>,
        throttled: Throttled,
        grant: Option<Box<Grant>>,
        key: Option<&Key>,
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
    pub(super) fn late<B>(&self, hit: Hit, reason: Reason, key: Option<&Key>) -> Response<CacheBody<B>>
    where
        B: Body<Data = Bytes> + Send + 'static,
    {
        let now = self.front.cache.store().now();
        let outcome = Outcome::Failed { reason, status: None, ttl: hit.ttl(now) };
        self.respond(hit, key, outcome, now)
    }

    pub(super) fn respond<B>(
        &self,
        hit: Hit,
        key: Option<&Key>,
        outcome: Outcome,
        now: Timestamp,
    ) -> Response<CacheBody<B>>
    where
        B: Body<Data = Bytes> + Send + 'static,
    {
        let Answer { status, headers, body, .. } = hit.answer(self.sign(outcome, key), now);
        let mut response = Response::new(CacheBody::stored(body));
        (*response.status_mut(), *response.headers_mut()) = (status, headers);
        self.mark(&mut response);
        response
    }

    /// 504: for a client that accepts stored responses only (RFC 9111 section 5.2.1.7), or as the origin takes too long.
    pub(super) fn shed<B>(&self, reason: Reason, key: Option<&Key>) -> Response<CacheBody<B>>
    where
        B: Body<Data = Bytes> + Send + 'static,
    {
        let mut response = Response::new(CacheBody::stored(Bytes::new()));
        *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
        self.sign(Outcome::Shed { reason }, key).write(response.headers_mut(), None);
        self.mark(&mut response);
        response
    }

    /// Counts the outcome, and makes of it what the response tells.
    #[inline]
    pub(super) fn sign<'k>(&self, outcome: Outcome, key: Option<&'k Key>) -> Signature<'k>
    where
        'f: 'k,
    {
        if !self.marks.is_background {
            self.metrics.request(outcome.reason());
        }
        let key = key.filter(|_| self.marks.key_for != KeyFor::None);
        let tells = self.front.rules.headers.tells(key);
        Signature { identifier: self.front.cache.identifier(), outcome, tells }
    }

    /// Tells a layer of the same cache around this one that everything is decided, and caches on the way what is for this
    /// client alone.
    pub(super) fn mark<B>(&self, response: &mut Response<B>) {
        if self.marks.is_nested {
            response.extensions_mut().insert(Decided(self.front.cache.clone()));
        }
        let headers = response.headers_mut();
        if self.marks.key_for == KeyFor::Client && headers.contains_key(X_CACHE_KEY) {
            // In place of `Cache-Control`, where there is one (RFC 9213 section 2.2).
            let targeted = headers.contains_key(CDN_CACHE_CONTROL).then_some(CDN_CACHE_CONTROL);
            for field in [CACHE_CONTROL].into_iter().chain(targeted) {
                let _ = headers.try_append(field, HeaderValue::from_static("private=\"x-cache-key\""));
            }
        }
    }
}
