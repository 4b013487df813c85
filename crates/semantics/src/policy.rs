//! The operator's choices for one layer, as plain values.

use crate::{
    directives::{CDN_CACHE_CONTROL, Target},
    groups::CACHE_GROUPS,
    sealing::Query,
    tags::{CACHE_TAG, SURROGATE_KEY},
};
use http::{HeaderMap, HeaderName, Method, StatusCode};
use std::time::Duration;

/// The longest lifetime a policy can give; longer ones are cut to it.
pub const LONGEST_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// What one layer caches, and for how long.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Policy {
    /// The lifetime of responses that state none; `None` stores only responses that state their own. Default 1 h.
    pub lifetime: Option<Duration>,
    /// A lifetime that replaces whatever lifetime a response states. Default none.
    pub lifetime_override: Option<Duration>,
    /// The largest part by which a lifetime given by the policy is shortened, from 0 to 1. Default 0.1.
    pub jitter: f64,
    /// Statuses beyond 2xx that are stored, each with the lifetime of responses that state none.
    pub statuses: Vec<(StatusCode, Duration)>,
    /// Tags of every response that the layer stores.
    pub tags: Vec<String>,
    /// The response fields that list tags. Default `Surrogate-Key` and `Cache-Tag`.
    pub tag_fields: Vec<HeaderName>,
    /// Responses go out without the fields that list tags, and without `Cache-Groups`. Default false.
    pub strip_tags: bool,
    /// The methods whose requests are looked up. Default GET and HEAD, which share entries.
    pub methods: Vec<Method>,
    /// The largest body that is stored, in bytes. Default 1 MiB.
    pub max_body: u64,
    /// How long a response is kept beyond its lifetime, so that an expired one can be told from one never stored.
    /// Default 10 min.
    pub keep: Duration,
    /// Lifetimes given by the policy also apply to requests with cookies. Default false.
    pub share_with_cookies: bool,
    /// Requests with `Authorization` are cached like others. Default false.
    pub share_with_authorization: bool,
    /// Names of cookies that do not make a request personal.
    pub ignored_cookies: Vec<String>,
    /// Cache directives of requests are honoured. Default false, as any client could else empty the cache.
    pub honor_client_directives: bool,
    /// Responses of every status are stored that state a lifetime of their own. Default false.
    pub every_status: bool,
    /// Responses that are stale at once are stored if the origin can be asked whether they still hold. Default false:
    /// where asking costs as much as making them, as in an application, storing them gains nothing.
    pub store_to_validate: bool,
    /// Parts of a representation are stored and combined (RFC 9111 sections 3.3 and 3.4); not by a layer that is sealed,
    /// where the origin never sees that a part was asked for. Default false: an application makes parts as fast as a
    /// cache does.
    pub store_partial: bool,
    /// What answers a POST answers GET as well, where it says so: with a lifetime of its own, and a `Content-Location`
    /// that is the target of the request (RFC 9110 section 9.3.3). A sealed layer does not. Each POST then asks the store
    /// for the right to store its answer. Default false.
    pub store_post: bool,
    /// The part of the time since its last modification for which a response without a lifetime is fresh, from 0 to 1
    /// (RFC 9111 section 4.2.2), and only in answer to requests without `Cookie` and `Authorization`. Default none.
    pub heuristic: Option<f64>,
    /// Requests with unsafe methods, once they are done, remove what is stored of the resource they are for, and of those
    /// that their response names (RFC 9111 section 4.4). Default true.
    pub invalidate_by_unsafe: bool,
    /// Responses without an `ETag` get one when they are stored, made of their body, and so the same in every process.
    /// Default false.
    pub make_etags: bool,
    /// The most variants of one resource that are stored; requests for more go past the cache. Default 16.
    pub most_variants: usize,
    /// Where no variant is stored for the very headers of a request, one answers that is in the language the request wants
    /// more than any other, by its `Content-Language`, if the headers are the same but for that. Default false: an
    /// application may choose by more than the language.
    pub select_by_language: bool,
    /// Where a response says by `No-Vary-Search` that parameters of the query, or their order, do not count, it answers
    /// requests whose queries differ by no more than that; only where the key is the default one. Default false.
    pub no_vary_search: bool,
    /// Request headers that every response varies by, whatever its `Vary` says. Default none.
    pub key_headers: Vec<HeaderName>,
    /// The origin sees nothing of a request that is looked up but what is part of the key; requests with `Authorization`
    /// go past the cache as they are, unless that is part of the key. Default false.
    pub sealed: bool,
    /// Which parameters of a query count. Default all, in their order.
    pub query: Query,
    /// The fields whose cache directives count in place of `Cache-Control`'s, the first one that is there
    /// (RFC 9213 section 2.2). Default `CDN-Cache-Control`; for a shared cache also `Surrogate-Control`, by the name
    /// `larder`.
    pub targets: Vec<Target>,
    /// How long a stale response answers while it is revalidated in the background, where the response does not say
    /// (RFC 5861 section 3). Default zero.
    pub stale_while_revalidate: Duration,
    /// How long a stale response answers in place of an error, where the response does not say (RFC 5861 section 4).
    /// Default zero.
    pub stale_if_error: Duration,
    /// How long a stale response answers when the origin cannot be reached. Default zero.
    pub stale_if_unreachable: Duration,
    /// How long an origin that has failed is not asked again for what a stale response can answer meanwhile; it doubles with
    /// every failure in a row, up to a minute. Default 10 s, at least 1 s.
    pub throttle: Duration,
    /// When a response is fetched anew before its lifetime is over. Default never.
    pub early: Early,
    /// After what time a stale response answers in place of the origin, which goes on in the background. Default never.
    pub soft_timeout: Option<Duration>,
    /// After what time the origin counts as one that cannot be reached: a stale response answers if it may, else a 504 of
    /// the layer's own. It goes on in the background for as long again. Default: 30 s where a stale response may answer, else
    /// never.
    pub hard_timeout: Option<Duration>,
}

/// When a response is fetched anew before its lifetime is over, in the background.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Early {
    /// Never.
    #[default]
    Never,
    /// At the first request after this part of its lifetime, from 0 to 1.
    At(f64),
    /// At random, the likelier the nearer the end and the longer the origin takes, by a factor of which 1 is usual
    /// (XFetch: Vattani, Chierichetti, Lowenstein, Optimal Probabilistic Cache Stampede Prevention, VLDB 2015).
    XFetch(f64),
}

impl Early {
    /// Whether it is time, for a response that took `cost` to make, and has `left` of its `lifetime`; `seed` is drawn
    /// evenly from 0 to 1.
    pub fn is_due(self, cost: Duration, lifetime: Duration, left: Duration, seed: f64) -> bool {
        let (lifetime, left) = (lifetime.as_secs_f64(), left.as_secs_f64());
        match self {
            Self::Never => false,
            Self::At(part) => lifetime - left >= lifetime * part,
            // The paper's now - cost * factor * ln(seed) >= end, without its infinity at zero.
            Self::XFetch(factor) => seed < (-left / (factor * cost.as_secs_f64())).exp(),
        }
    }
}

/// The longest lifetime that a policy gives an answer that is an error.
pub const LONGEST_NEGATIVE: Duration = Duration::from_secs(5 * 60);

/// The longest lifetime that is ever guessed.
pub const LONGEST_HEURISTIC: Duration = Duration::from_secs(24 * 60 * 60);

/// The longest lifetime that is guessed for an error, which a request may have been made to bring about.
pub const LONGEST_GUESSED_ERROR: Duration = Duration::from_secs(60);

impl Policy {
    /// The policy of a shared cache before origins of all kinds, such as a proxy: whatever the standards allow, and no
    /// lifetime that no response states.
    pub fn shared_cache() -> Self {
        Self {
            lifetime: None,
            every_status: true,
            store_to_validate: true,
            store_partial: true,
            select_by_language: true,
            store_post: true,
            heuristic: Some(0.1),
            targets: vec![Target::Field(CDN_CACHE_CONTROL), Target::Surrogate("larder".to_owned())],
            stale_if_unreachable: Duration::from_secs(60 * 60),
            ..Self::default()
        }
    }

    /// Removes from a response what only caches are to see of it.
    pub fn strip(&self, headers: &mut HeaderMap) {
        if self.strip_tags {
            self.tag_fields.iter().chain([&CACHE_GROUPS]).for_each(|field| _ = headers.remove(field));
        }
    }

    /// The same, but that only what states a lifetime of its own has one.
    pub(crate) fn without_lifetimes(&self) -> Self {
        Self {
            lifetime: None,
            lifetime_override: None,
            heuristic: None,
            store_to_validate: false,
            statuses: Vec::new(),
            ..self.clone()
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            lifetime: Some(Duration::from_secs(60 * 60)),
            lifetime_override: None,
            jitter: 0.1,
            statuses: Vec::new(),
            tags: Vec::new(),
            tag_fields: vec![SURROGATE_KEY, CACHE_TAG],
            strip_tags: false,
            methods: vec![Method::GET, Method::HEAD],
            max_body: 1 << 20,
            keep: Duration::from_secs(10 * 60),
            share_with_cookies: false,
            share_with_authorization: false,
            ignored_cookies: Vec::new(),
            honor_client_directives: false,
            every_status: false,
            store_to_validate: false,
            store_partial: false,
            select_by_language: false,
            no_vary_search: false,
            store_post: false,
            heuristic: None,
            invalidate_by_unsafe: true,
            make_etags: false,
            most_variants: 16,
            key_headers: Vec::new(),
            sealed: false,
            query: Query::default(),
            targets: vec![Target::Field(CDN_CACHE_CONTROL)],
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            stale_if_unreachable: Duration::ZERO,
            throttle: Duration::from_secs(10),
            early: Early::Never,
            soft_timeout: None,
            hard_timeout: None,
        }
    }
}

/// What a handler says about its own response, besides the response's headers: put it into the response's extensions.
///
/// ```
/// use larder_semantics::Caching;
/// use std::time::Duration;
///
/// let mut response = http::Response::new("the body");
/// response.extensions_mut().insert(Caching::new().ttl(Duration::from_secs(30)).tag("user:123"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caching {
    /// The lifetime, in place of the one that the headers or the layer state.
    pub lifetime: Option<Duration>,
    /// Tags, beside those of the layer.
    pub tags: Vec<String>,
    /// Whether it may be stored at all.
    pub store: bool,
    /// Whether it is an error that was made in place of an answer, as the origin cannot be reached.
    pub unreachable: bool,
}

impl Caching {
    /// Nothing beyond what the response's headers and the layer say.
    pub fn new() -> Self {
        Self::default()
    }

    /// This response is not to be stored.
    pub fn no_store() -> Self {
        Self { store: false, ..Self::default() }
    }

    /// This response is an error that was made here, as the origin cannot be reached: what a proxy says.
    pub fn unreachable() -> Self {
        Self { unreachable: true, ..Self::default() }
    }

    /// The lifetime, in place of the one that the headers or the layer state; zero stores nothing.
    #[must_use]
    pub fn ttl(self, ttl: impl Into<Duration>) -> Self {
        Self { lifetime: Some(ttl.into()), ..self }
    }

    /// Adds a tag, by which the response can be invalidated.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tags.push(tag.into());
        self
    }
}

impl Default for Caching {
    fn default() -> Self {
        Self { lifetime: None, tags: Vec::new(), store: true, unreachable: false }
    }
}
