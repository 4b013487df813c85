//! What a response tells of the cache: `X-Cache`, `X-Cache-Key` and `Cache-Status`.

use http::{HeaderMap, HeaderName, HeaderValue, request::Parts};
use larder_semantics::{Key, Outcome, status::cache_status};
use std::sync::Arc;

/// How a response was made: `HIT`, `MISS`, `BYPASS` and their kin.
pub const X_CACHE: HeaderName = HeaderName::from_static("x-cache");
/// The readable key of the resource.
pub const X_CACHE_KEY: HeaderName = HeaderName::from_static("x-cache-key");
/// The request header that carries the token for [`DebugHeaders::token`].
pub const X_CACHE_DEBUG: HeaderName = HeaderName::from_static("x-cache-debug");

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// What a delivery adds to a stored response.
pub(crate) const ADDED: [HeaderName; 4] = [http::header::AGE, X_CACHE, CACHE_STATUS, X_CACHE_KEY];

/// Which headers tell of the cache. `Age` is always there on stored responses, as RFC 9111 requires.
///
/// Keys help those who look for a way to poison a cache: in production choose [`Status`](Self::Status) or
/// [`token`](Self::token).
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum DebugHeaders {
    /// `X-Cache`, `Cache-Status` and `X-Cache-Key`: the default.
    #[default]
    Key,
    /// `X-Cache` and `Cache-Status`.
    Status,
    /// As `Status`, and `X-Cache-Key` for requests whose `X-Cache-Debug` is this token.
    Token(Arc<str>),
    /// None.
    Off,
}

impl DebugHeaders {
    /// `X-Cache-Key` only for requests whose `X-Cache-Debug` is `token`. An empty token lets nobody in.
    ///
    /// The request header is removed before the inner service sees it.
    pub fn token(token: &str) -> Self {
        Self::Token(token.into())
    }

    /// Whether the response to this request tells the key.
    pub(crate) fn shows_key(&self, head: &mut Parts) -> bool {
        match self {
            Self::Key => true,
            Self::Status | Self::Off => false,
            Self::Token(token) => {
                let shown = head.headers.remove(X_CACHE_DEBUG);
                shown.is_some_and(|shown| !token.is_empty() && equal(shown.as_bytes(), token.as_bytes()))
            }
        }
    }

    /// Writes the outcome into `headers`, which may have empty places for what is added.
    pub(crate) fn write(&self, headers: &mut HeaderMap, identifier: &str, outcome: Outcome, key: Option<Key>) {
        let is_told = !matches!(self, Self::Off);
        let status = if is_told { cache_status(identifier, outcome, None) } else { None };
        let key = if is_told { key.and_then(Key::into_header_value) } else { None };
        // The word and the members of caches nearer to the origin stand before ours.
        match headers.get(X_CACHE).filter(|before| !before.is_empty()) {
            _ if !is_told => put(headers, X_CACHE, None),
            None => put(headers, X_CACHE, Some(HeaderValue::from_static(outcome.reason().x_cache()))),
            Some(before) => {
                let list = [before.as_bytes(), b", ", outcome.reason().x_cache().as_bytes()].concat();
                let list = HeaderValue::from_maybe_shared(bytes::Bytes::from(list)).ok();
                put(headers, X_CACHE, list);
            }
        }
        match (headers.get(CACHE_STATUS).is_some_and(|before| !before.is_empty()), status) {
            (true, Some(member)) => drop(headers.append(CACHE_STATUS, member)),
            (true, None) => {}
            (false, member) => put(headers, CACHE_STATUS, member),
        }
        put(headers, X_CACHE_KEY, key);
    }
}

/// Fills a place, or takes it away.
fn put(headers: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
    match value {
        Some(value) => drop(headers.insert(name, value)),
        None => drop(headers.remove(name)),
    }
}

/// Compares in a time that tells only the lengths.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}
