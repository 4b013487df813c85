//! What a response tells of the cache: `X-Cache`, `X-Cache-Key` and `Cache-Status`.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header::AGE, request::Parts};
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
pub(crate) const ADDED: [HeaderName; 4] = [AGE, X_CACHE, CACHE_STATUS, X_CACHE_KEY];

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

    /// Writes the outcome, and the age of a stored response, into `headers`, which may have empty places for them.
    pub(crate) fn write(
        &self,
        headers: &mut HeaderMap,
        identifier: &str,
        outcome: Outcome,
        age: Option<HeaderValue>,
        key: Option<Key>,
    ) {
        let is_told = !matches!(self, Self::Off);
        let mut added = Added {
            age,
            word: is_told.then(|| HeaderValue::from_static(outcome.reason().x_cache())),
            status: if is_told { cache_status(identifier, outcome, None) } else { None },
            key: if is_told { key.and_then(Key::into_header_value) } else { None },
        };
        let unfilled = added.fill_places(headers);
        for name in unfilled.into_iter().flatten() {
            headers.remove(name);
        }
        added.append(headers);
    }
}

/// What is added to a response, until it is.
struct Added {
    age: Option<HeaderValue>,
    word: Option<HeaderValue>,
    status: Option<HeaderValue>,
    key: Option<HeaderValue>,
}

impl Added {
    /// Fills the places there are, in one pass, as looking each up by name costs more than all the rest; returns the
    /// places that nothing belongs into.
    fn fill_places(&mut self, headers: &mut HeaderMap) -> [Option<HeaderName>; 4] {
        let mut unfilled = [const { None }; 4];
        let mut filled = [false; 4];
        for (name, value) in headers.iter_mut().filter(|(_, value)| value.is_empty()) {
            let Some(at) = ADDED.iter().position(|added| added == name) else { continue };
            let filling = [&mut self.age, &mut self.word, &mut self.status, &mut self.key][at].take();
            match filling {
                Some(filling) => (*value, filled[at]) = (filling, true),
                // An origin may send a field of this name more than once, and empty.
                None if filled[at] => {}
                None => unfilled[at] = Some(name.clone()),
            }
        }
        unfilled
    }

    /// Adds what had no place. The word and the member of caches nearer to the origin stand before ours. A response
    /// that has as many fields as a map can hold goes without.
    fn append(self, headers: &mut HeaderMap) {
        if let Some(age) = self.age {
            let _ = headers.try_insert(AGE, age);
        }
        if let Some(word) = self.word {
            let list = headers.get(X_CACHE).map(|before| [before.as_bytes(), b", ", word.as_bytes()].concat());
            let list = list.and_then(|list| HeaderValue::from_maybe_shared(Bytes::from(list)).ok());
            let _ = headers.try_insert(X_CACHE, list.unwrap_or(word));
        }
        if let Some(status) = self.status {
            let _ = headers.try_append(CACHE_STATUS, status);
        }
        if let Some(key) = self.key {
            let _ = headers.try_insert(X_CACHE_KEY, key);
        }
    }
}

/// Compares in a time that tells only the lengths.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_semantics::{Reason, Storing};

    #[test]
    fn a_response_full_of_fields_passes_without_ours() {
        let mut headers = HeaderMap::new();
        for n in 0.. {
            let name = HeaderName::try_from(format!("x-{n}")).expect("a name");
            if headers.try_insert(name, HeaderValue::from_static("1")).is_err() {
                break;
            }
        }
        let (before, outcome) = (headers.len(), Outcome::Collapsed { ttl: 1 });
        let age = Some(HeaderValue::from_static("1"));
        DebugHeaders::Key.write(&mut headers, "larder", outcome, age, Some(Key::new("page")));
        assert_eq!(headers.len(), before);
    }

    #[test]
    fn empty_fields_of_the_same_names_do_not_take_ours_with_them() {
        let outcome = Outcome::Forwarded { reason: Reason::Never, status: 200, storing: Storing::Untried };
        for lines in [&[""][..], &["", ""], &["", "HIT"], &["HIT", ""]] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(X_CACHE, HeaderValue::from_static(line));
            }
            DebugHeaders::Status.write(&mut headers, "larder", outcome, None, None);
            let told = headers.get_all(X_CACHE).iter().any(|value| value.as_bytes().ends_with(b"MISS"));
            assert!(told, "{lines:?}: {headers:?}");
        }
    }
}
