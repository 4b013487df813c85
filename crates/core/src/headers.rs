//! Which headers tell of the cache, and to whom.

use http::{HeaderName, HeaderValue, request::Parts};
use larder_semantics::{Key, signature::Tells};
use std::sync::Arc;

pub use larder_semantics::signature::{CACHE_STATUS, X_CACHE, X_CACHE_KEY};

/// The request header that carries the token for [`DebugHeaders::token`].
pub const X_CACHE_DEBUG: HeaderName = HeaderName::from_static("x-cache-debug");

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
    /// The request header is removed before the inner service sees it. A response that tells the key to such a request says
    /// `private="x-cache-key"` besides, in `Cache-Control` and in a `CDN-Cache-Control` that it has: shared caches on the way
    /// keep that field, or all of the response, for nobody else (RFC 9111 section 5.2.2.7).
    pub fn token(token: &str) -> Self {
        Self::Token(token.into())
    }

    /// Who may see the key in the response to this request.
    pub(crate) fn key_for(&self, head: &mut Parts) -> KeyFor {
        match self {
            Self::Key => KeyFor::All,
            Self::Status | Self::Off => KeyFor::None,
            Self::Token(token) => {
                let before = head.extensions.remove().map(|Shown(before)| before);
                let Some(shown) = head.headers.remove(X_CACHE_DEBUG).or(before) else { return KeyFor::None };
                let is_right = !token.is_empty() && equal(shown.as_bytes(), token.as_bytes());
                head.extensions.insert(Shown(shown));
                if is_right { KeyFor::Client } else { KeyFor::None }
            }
        }
    }

    /// What a response tells, if it may tell `key`.
    pub(crate) fn tells<'k>(&self, key: Option<&'k Key>) -> Tells<'k> {
        match (self, key) {
            (Self::Off, _) => Tells::Nothing,
            (_, None) => Tells::Status,
            (_, Some(key)) => Tells::Key(key),
        }
    }
}

/// Who may see the key in a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyFor {
    None,
    /// This client, and nobody else.
    Client,
    All,
}

/// What a layer has taken out of a request, for the layers further in.
#[derive(Clone)]
struct Shown(HeaderValue);

/// Compares in a time that tells only the lengths.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}
