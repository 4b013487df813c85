//! What lies in a store: responses, and the rules by which resources vary.

use crate::{delivery::Delivery, time::Timestamp, vary::Variants};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode, header};
use std::{fmt, sync::Arc, time::Duration};

/// A 128-bit value that no two entries, tickets or variants share.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct EntryId(pub [u8; 16]);

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One thing in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Tells this entry from any other that is, was or will be stored under the same key.
    pub id: EntryId,
    /// What it is.
    pub content: Content,
}

/// How far apart the clocks of two processes, or of one and its store, may be: what was received so shortly after it was made
/// stale counts as received before, and what was made stale is so for who is so far behind.
const CLOCKS_AGREE: Duration = Duration::from_millis(100);

impl Entry {
    /// The same, stale since `at` if it was not before, with all its variants if it has any.
    #[must_use]
    pub fn stale_since(&self, at: Timestamp) -> Self {
        let content = match &self.content {
            Content::Response(response) => {
                let lifetime = response.lifetime.min(response.age(at).saturating_sub(CLOCKS_AGREE));
                Content::Response(StoredResponse { lifetime, ..response.clone() })
            }
            Content::Variants(rule) => {
                Content::Variants(Variants { stale_since: at.max(rule.stale_since), ..rule.clone() })
            }
        };
        Self { id: self.id, content }
    }

    /// The same, as the rule that it is a variant by leaves it.
    pub(crate) fn under(self: Arc<Self>, rule: &Self) -> Arc<Self> {
        match (&self.content, &rule.content) {
            (Content::Response(response), Content::Variants(Variants { stale_since, .. }))
                if stale_since.after(CLOCKS_AGREE) > response.received_at && *stale_since > Timestamp::default() =>
            {
                Arc::new(self.stale_since(*stale_since))
            }
            _ => self,
        }
    }
}

/// What an entry is.
#[expect(clippy::large_enum_variant, reason = "entries are shared behind a pointer, and most are responses")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A response.
    Response(StoredResponse),
    /// The rule by which the resource varies; its responses are stored as variants.
    Variants(Variants),
}

/// A response as it is stored (RFC 9111 section 3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredResponse {
    /// The status.
    pub status: StatusCode,
    /// The header fields, without those that belong to one connection, and without `Age`.
    pub headers: HeaderMap,
    /// The same, as they were delivered last.
    pub delivery: Delivery,
    /// The whole body.
    pub body: Bytes,
    /// When it was received.
    pub received_at: Timestamp,
    /// Its age when it was received.
    pub initial_age: Duration,
    /// Its freshness lifetime.
    pub lifetime: Duration,
    /// How long it is kept beyond its lifetime.
    pub keep: Duration,
    /// How it may be used once it is stale.
    pub stale: StaleUse,
    /// Who gave the lifetime.
    pub basis: Basis,
    /// What the origin took to answer, to its last byte.
    pub origin_cost: Duration,
    /// The tags it can be invalidated by.
    pub tags: Vec<String>,
    /// The invalidation clock as it was known before the origin was asked.
    pub born: u64,
    /// The generation of the namespace as it was known before the origin was asked.
    pub generation: u64,
}

/// How long beyond its lifetime a response may be used, and when (RFC 9111 section 4.2.4, RFC 5861); not at all where
/// the response forbids it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StaleUse {
    /// While it is revalidated in the background.
    pub while_revalidate: Duration,
    /// When the origin answers with an error.
    pub if_error: Duration,
    /// When the origin cannot be reached.
    pub if_unreachable: Duration,
    /// When the client says that it accepts a stale response.
    pub if_accepted: Duration,
    /// Until when the origin is not asked again, as it has failed.
    pub throttle: Throttle,
}

/// What an origin that has failed is spared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Throttle {
    /// Until when it is not asked.
    pub until: Timestamp,
    /// How often it has failed in a row.
    pub failures: u8,
    /// Whether it could not be reached, the last time.
    pub unreachable: bool,
}

impl Throttle {
    /// The longest pause between two attempts.
    pub const LONGEST: Duration = Duration::from_secs(60);

    /// After one failure more: the pauses begin at `first` and double up to [`LONGEST`](Self::LONGEST), a tenth shorter or
    /// longer by `seed`, from 0 to 1.
    #[must_use]
    pub fn after(self, first: Duration, unreachable: bool, now: Timestamp, seed: f64) -> Self {
        let grown = first.saturating_mul(1 << self.failures.min(6)).min(Self::LONGEST);
        let seed = if seed.is_finite() { seed.clamp(0.0, 1.0) } else { 0.5 };
        let until = now.after(grown.mul_f64(0.9 + seed / 5.0));
        Self { until, failures: self.failures.saturating_add(1), unreachable }
    }
}

impl StaleUse {
    /// The longest of all.
    pub fn longest(self) -> Duration {
        self.while_revalidate.max(self.if_error).max(self.if_unreachable).max(self.if_accepted)
    }
}

/// Who gave a response its lifetime, and so for whom it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// The response states it.
    Response,
    /// The response states it, and that it may be shared with requests that carry credentials.
    Shared,
    /// The policy or the handler gave it.
    Policy,
}

impl StoredResponse {
    /// The age at `now` (RFC 9111 section 4.2.3).
    pub fn age(&self, now: Timestamp) -> Duration {
        self.initial_age.saturating_add(now.since(self.received_at))
    }

    /// How long it has been stale at `now`; zero while it is fresh.
    pub fn staleness(&self, now: Timestamp) -> Duration {
        self.age(now).saturating_sub(self.lifetime)
    }

    /// Whether it is fresh at `now` (RFC 9111 section 4.2).
    pub fn is_fresh(&self, now: Timestamp) -> bool {
        self.lifetime > self.age(now)
    }

    /// What is left of the lifetime at `now`, in whole seconds; negative once it is over.
    pub fn ttl(&self, now: Timestamp) -> i64 {
        let (lifetime, age) = (self.lifetime, self.age(now));
        let whole = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        match lifetime.checked_sub(age) {
            Some(left) => whole(left),
            None => -whole(age - lifetime),
        }
    }

    /// Whether the origin has failed just now, and what is stored answers in its place without asking.
    pub fn is_throttled(&self, now: Timestamp) -> bool {
        let Throttle { until, unreachable, .. } = self.stale.throttle;
        let window = if unreachable { self.stale.if_unreachable } else { self.stale.if_error };
        until > now && self.staleness(now) < window.max(self.stale.while_revalidate)
    }

    /// How long a store should keep it, counted from when it was received.
    pub fn stored_for(&self) -> Duration {
        self.lifetime.saturating_sub(self.initial_age).saturating_add(self.keep.max(self.stale.longest()))
    }
}

/// Removes what a store must not keep: the fields of one connection (RFC 9110 section 7.6.1, RFC 9111 section 3.1),
/// and `Age`, which is computed anew at each reuse.
pub fn clean(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|line| line.as_bytes().split(|&byte| byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        header::CONNECTION,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
        header::PROXY_AUTHENTICATE,
        HeaderName::from_static("proxy-authentication-info"),
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::AGE,
    ] {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn connection_fields_and_those_it_names_are_removed() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Hop , , b@d"),
            ("x-hop", "1"),
            ("x-end", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("age", "5"),
            ("upgrade", "h2c"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        clean(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-end"]);
    }
}
