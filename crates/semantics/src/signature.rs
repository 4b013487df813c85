//! What a response tells of the cache: `Age`, `X-Cache`, `Cache-Status` and `X-Cache-Key`.

use crate::{
    key::Key,
    reason::Outcome,
    status::{cache_status, seconds},
};
use http::{HeaderMap, HeaderName, HeaderValue, header::AGE};

/// How a response was made: `HIT`, `MISS`, `BYPASS` and their kin.
pub const X_CACHE: HeaderName = HeaderName::from_static("x-cache");
/// The readable key of the resource.
pub const X_CACHE_KEY: HeaderName = HeaderName::from_static("x-cache-key");
/// How every cache on the way handled the request (RFC 9211).
pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// What is written into a response on its way out.
#[derive(Debug, Clone, Copy)]
pub struct Signature<'a> {
    /// The name by which this cache calls itself.
    pub identifier: &'a str,
    /// How the request ended.
    pub outcome: Outcome,
    /// How much of it is told.
    pub tells: Tells<'a>,
}

/// How much a response tells of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tells<'a> {
    /// Nothing but the age of what was stored.
    Nothing,
    /// `X-Cache` and `Cache-Status`.
    Status,
    /// Those, and `X-Cache-Key`.
    Key(&'a Key),
}

impl Signature<'_> {
    /// Writes it into the headers of a response; `age`, in seconds, is that of a stored one.
    ///
    /// The word and the member of caches nearer to the origin stand before ours. A response that has as many fields as
    /// a map can hold goes without.
    pub fn write(self, headers: &mut HeaderMap, age: Option<i64>) {
        if let Some(age) = age.and_then(seconds) {
            let _ = headers.try_insert(AGE, age);
        }
        if self.tells == Tells::Nothing {
            return;
        }
        let word = self.outcome.reason().x_cache();
        let list = headers.get(X_CACHE).map(|before| [before.as_bytes(), b", ", word.as_bytes()].concat());
        let list = list.and_then(|list| HeaderValue::from_maybe_shared(bytes::Bytes::from(list)).ok());
        let _ = headers.try_insert(X_CACHE, list.unwrap_or(HeaderValue::from_static(word)));
        if let Some(status) = cache_status(self.identifier, self.outcome) {
            let _ = headers.try_append(CACHE_STATUS, status);
        }
        if let Tells::Key(key) = self.tells
            && let Some(key) = key.to_value()
        {
            let _ = headers.try_insert(X_CACHE_KEY, key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reason::{Reason, Storing};

    #[test]
    fn a_response_full_of_fields_passes_without_ours() {
        let mut headers = HeaderMap::new();
        for n in 0.. {
            let name = HeaderName::try_from(format!("x-{n}")).expect("a name");
            if headers.try_insert(name, HeaderValue::from_static("1")).is_err() {
                break;
            }
        }
        let (before, key) = (headers.len(), Key::new("page"));
        let outcome = Outcome::Collapsed { ttl: 1 };
        Signature { identifier: "larder", outcome, tells: Tells::Key(&key) }.write(&mut headers, Some(1));
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
            Signature { identifier: "larder", outcome, tells: Tells::Status }.write(&mut headers, None);
            let told = headers.get_all(X_CACHE).iter().any(|value| value.as_bytes().ends_with(b"MISS"));
            assert!(told, "{lines:?}: {headers:?}");
        }
    }
}
