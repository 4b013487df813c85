//! The closed list of how requests end, and why: one vocabulary for headers, metrics, logs and the command line.
//!
#![doc = include_str!("../docs/reasons.md")]

use std::fmt;

/// How a request was answered, in the words that proxies have used for decades.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Answered from the cache, fresh.
    Hit,
    /// Answered from the cache, stale.
    Stale,
    /// The origin confirmed what was stored.
    Revalidated,
    /// The origin answered.
    Miss,
    /// The cache was not asked, or could not be.
    Bypass,
    /// Refused without asking the origin.
    Shed,
}

impl Verdict {
    /// The value of the metric label `result`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Stale => "stale",
            Self::Revalidated => "revalidated",
            Self::Miss => "miss",
            Self::Bypass => "bypass",
            Self::Shed => "shed",
        }
    }
}

/// Why a request was answered the way it was. Each reason belongs to exactly one [`Verdict`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reason {
    /// Fresh, from this process's memory.
    Near,
    /// Fresh, from the shared store.
    Far,
    /// Fresh, and an error.
    Negative,
    /// Stale, while this request has it revalidated in the background.
    SwrRefresh,
    /// Stale, while another request has it revalidated.
    SwrUpdating,
    /// Stale, as the origin failed.
    ErrorStale,
    /// Stale, as the origin failed a while ago, and is not asked again yet.
    ErrorThrottled,
    /// Stale, as the origin takes longer than a client is to wait for it.
    SoftTimeout,
    /// Stale, as the client accepts it.
    MaxStale,
    /// Expired, and confirmed by the origin.
    NotModified,
    /// A stored response was there, but had expired.
    Expired,
    /// Nothing was stored, as far as this instance knows.
    Never,
    /// A part of the resource is stored, and not all of what is asked for.
    Partial,
    /// A variant is stored, but none for this request's headers.
    Vary,
    /// What was stored has a tag that was invalidated since.
    InvalidatedTag,
    /// The store held bytes that cannot be read as an entry.
    Decode,
    /// The store held an entry of another wire version.
    Version,
    /// The store answered with the entry of another key.
    ForeignReply,
    /// What is stored is older than the request accepts.
    TooOldForRequest,
    /// Answered with the response that another request of this process was fetching.
    Collapsed,
    /// Waited for another request's fetch, in vain.
    LockTimeout,
    /// The method is not one that the layer caches.
    Method,
    /// The layer's own rule skips this request, or it is one that no stored response may answer.
    Skipped,
    /// The request carries cookies, and nothing says that the response may be shared.
    Cookie,
    /// The request carries `Authorization`, and nothing says that the response may be shared.
    Authorization,
    /// The request's own cache directives ask for the origin.
    ClientDirective,
    /// Responses of this resource were refused a moment ago.
    KnownUncacheable,
    /// The store has failed, and is not asked for a while.
    BreakerOpen,
    /// The store did not answer within the time a request may wait for it.
    StoreTimeout,
    /// Too many operations are waiting for the store.
    StoreBusy,
    /// The store cannot be reached, or refused.
    StoreDown,
    /// As many variants of the resource are stored as may be, and none for this request's headers.
    VariantsExceeded,
    /// No key could be made for this request.
    KeyRefused,
    /// The client accepts only a stored response, and there is none.
    OnlyIfCached,
    /// The origin did not answer in the time that the layer gives it.
    OriginTimeout,
}

/// The verdict, the word and the forward reason of RFC 9211 of each [`Reason`], in the order of the variants.
const REASONS: [(Reason, Verdict, &str, Option<&str>); 35] = [
    (Reason::Near, Verdict::Hit, "near", None),
    (Reason::Far, Verdict::Hit, "far", None),
    (Reason::Negative, Verdict::Hit, "negative", None),
    (Reason::SwrRefresh, Verdict::Stale, "swr-refresh", None),
    (Reason::SwrUpdating, Verdict::Stale, "swr-updating", None),
    (Reason::ErrorStale, Verdict::Stale, "error-stale", Some("stale")),
    (Reason::ErrorThrottled, Verdict::Stale, "error-throttled", None),
    (Reason::SoftTimeout, Verdict::Stale, "soft-timeout", Some("stale")),
    (Reason::MaxStale, Verdict::Stale, "max-stale", None),
    (Reason::NotModified, Verdict::Revalidated, "not-modified", Some("stale")),
    (Reason::Expired, Verdict::Miss, "expired", Some("stale")),
    (Reason::Never, Verdict::Miss, "never", Some("uri-miss")),
    (Reason::Partial, Verdict::Miss, "partial", Some("partial")),
    (Reason::Vary, Verdict::Miss, "vary", Some("vary-miss")),
    (Reason::InvalidatedTag, Verdict::Miss, "invalidated-tag", Some("miss")),
    (Reason::Decode, Verdict::Miss, "decode", Some("miss")),
    (Reason::Version, Verdict::Miss, "version", Some("miss")),
    (Reason::ForeignReply, Verdict::Miss, "foreign-reply", Some("miss")),
    (Reason::TooOldForRequest, Verdict::Miss, "too-old-for-request", Some("request")),
    (Reason::Collapsed, Verdict::Miss, "collapsed", Some("uri-miss")),
    (Reason::LockTimeout, Verdict::Miss, "lock-timeout", Some("uri-miss")),
    (Reason::Method, Verdict::Bypass, "method", Some("method")),
    (Reason::Skipped, Verdict::Bypass, "skipped", Some("bypass")),
    (Reason::Cookie, Verdict::Bypass, "cookie", Some("bypass")),
    (Reason::Authorization, Verdict::Bypass, "authorization", Some("bypass")),
    (Reason::ClientDirective, Verdict::Bypass, "client-directive", Some("request")),
    (Reason::KnownUncacheable, Verdict::Bypass, "known-uncacheable", Some("bypass")),
    (Reason::BreakerOpen, Verdict::Bypass, "breaker-open", Some("bypass")),
    (Reason::StoreTimeout, Verdict::Bypass, "store-timeout", Some("bypass")),
    (Reason::StoreBusy, Verdict::Bypass, "store-busy", Some("bypass")),
    (Reason::StoreDown, Verdict::Bypass, "store-down", Some("bypass")),
    (Reason::VariantsExceeded, Verdict::Bypass, "variants-exceeded", Some("bypass")),
    (Reason::KeyRefused, Verdict::Bypass, "key-refused", Some("bypass")),
    (Reason::OnlyIfCached, Verdict::Shed, "only-if-cached", None),
    (Reason::OriginTimeout, Verdict::Shed, "origin-timeout", None),
];

impl Reason {
    /// How many reasons there are; [`index`](Self::index) is below it.
    pub const COUNT: usize = REASONS.len();

    /// Every reason, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        REASONS.iter().map(|row| row.0)
    }

    /// The reason's place in the list.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The word, as it stands in `Cache-Status` (parameter `detail`), in the metric label `reason` and in logs.
    pub const fn as_str(self) -> &'static str {
        REASONS[self.index()].2
    }

    /// How requests with this reason are answered.
    pub const fn verdict(self) -> Verdict {
        REASONS[self.index()].1
    }

    /// The value of `X-Cache`.
    pub const fn x_cache(self) -> &'static str {
        match (self, self.verdict()) {
            (Self::Expired, _) => "EXPIRED",
            (Self::SwrUpdating, _) => "UPDATING",
            (_, Verdict::Hit) => "HIT",
            (_, Verdict::Stale) => "STALE",
            (_, Verdict::Revalidated) => "REVALIDATED",
            (_, Verdict::Miss | Verdict::Shed) => "MISS",
            (_, Verdict::Bypass) => "BYPASS",
        }
    }

    /// The forward reason of RFC 9211 section 2.2, if the request was, or would have been, forwarded.
    pub const fn forward(self) -> Option<&'static str> {
        REASONS[self.index()].3
    }

    /// Which copy answered: `near`, `far`, or `origin` (the metric label `layer`).
    pub const fn layer(self) -> &'static str {
        match self {
            Self::Near | Self::Collapsed => "near",
            Self::Far => "far",
            Self::OnlyIfCached | Self::OriginTimeout => "none",
            _ => "origin",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a response was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Refusal {
    /// The status is not one that the layer stores.
    Status,
    /// `no-store`.
    NoStore,
    /// `private`.
    Private,
    /// `no-cache`: every reuse would have to ask the origin.
    NoCache,
    /// The request carried `Authorization`, and the response does not say that it may be shared.
    Authorization,
    /// The request carried cookies, and the response states no lifetime of its own.
    Cookie,
    /// The response sets a cookie.
    SetCookie,
    /// `Vary: *`, or a `Vary` that cannot be read.
    VaryStar,
    /// The request was looked up by another query, which the response does not say that it answers.
    NoVarySearch,
    /// No lifetime is stated or given, or it is over already.
    NoLifetime,
    /// A cache directive cannot be read, and might have meant anything.
    MalformedDirective,
    /// Part of a representation, or an answer to a range or a conditional request.
    Partial,
    /// The body is larger than the layer stores, or a stream of events, which has no end.
    TooLarge,
    /// The body ended with an error, or nobody was left to read it in time.
    Aborted,
    /// The body's length is not the one that `Content-Length` announced.
    LengthMismatch,
    /// The response has trailer fields.
    Trailers,
    /// The resource was invalidated, or another request filled it, while the response was on its way.
    TicketLost,
    /// The resource is being written: what the origin answers may be from before.
    BeingWritten,
    /// The store refused, or could not be reached.
    StoreRefused,
    /// More tags, or longer ones, than an entry may have.
    TooManyTags,
    /// The handler said not to.
    Handler,
}

const REFUSALS: [(Refusal, &str); 21] = [
    (Refusal::Status, "status"),
    (Refusal::NoStore, "no-store"),
    (Refusal::Private, "private"),
    (Refusal::NoCache, "no-cache"),
    (Refusal::Authorization, "authorization"),
    (Refusal::Cookie, "cookie"),
    (Refusal::SetCookie, "set-cookie"),
    (Refusal::VaryStar, "vary-star"),
    (Refusal::NoVarySearch, "no-vary-search"),
    (Refusal::NoLifetime, "no-lifetime"),
    (Refusal::MalformedDirective, "malformed-directive"),
    (Refusal::Partial, "partial"),
    (Refusal::TooLarge, "too-large"),
    (Refusal::Aborted, "aborted"),
    (Refusal::LengthMismatch, "length-mismatch"),
    (Refusal::Trailers, "trailers"),
    (Refusal::TicketLost, "ticket-lost"),
    (Refusal::BeingWritten, "being-written"),
    (Refusal::StoreRefused, "store-refused"),
    (Refusal::TooManyTags, "too-many-tags"),
    (Refusal::Handler, "handler"),
];

impl Refusal {
    /// Every refusal, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        REFUSALS.iter().map(|row| row.0)
    }

    /// The word, as it stands in `Cache-Status` beside `stored=?0`, in the metric label `reason` and in logs.
    pub const fn as_str(self) -> &'static str {
        REFUSALS[self as usize].1
    }

    /// Whether the next response of the same resource will most likely be refused too.
    pub const fn is_lasting(self) -> bool {
        matches!(
            self,
            Self::NoStore
                | Self::Private
                | Self::NoCache
                | Self::SetCookie
                | Self::VaryStar
                | Self::NoLifetime
                | Self::MalformedDirective
                | Self::TooLarge
                | Self::Trailers
                | Self::TooManyTags
                | Self::Handler
        )
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How one request ended, as the headers and metrics tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Answered from the cache; `ttl` is what is left of the lifetime in seconds.
    Hit {
        /// Which copy answered.
        reason: Reason,
        /// Seconds of freshness left.
        ttl: i64,
    },
    /// Answered with what another request fetched; `ttl` is what is left of the lifetime in seconds.
    Collapsed {
        /// Seconds of freshness left.
        ttl: i64,
    },
    /// Answered with a stale response, as the origin failed or takes too long; `ttl` is what is left of the lifetime in seconds.
    Failed {
        /// Which of them.
        reason: Reason,
        /// The origin's status code, if it answered.
        status: Option<u16>,
        /// Seconds of freshness left, below zero.
        ttl: i64,
    },
    /// Answered by the origin.
    Forwarded {
        /// Why the origin was asked.
        reason: Reason,
        /// The origin's status code.
        status: u16,
        /// What becomes of the answer.
        storing: Storing,
    },
    /// Answered here, with an error of the cache's own.
    Shed {
        /// Why.
        reason: Reason,
    },
}

/// What becomes of an origin's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storing {
    /// It was never meant to be stored.
    Untried,
    /// It is offered to the store, fresh for `ttl` seconds.
    Offered {
        /// Seconds of freshness left.
        ttl: i64,
    },
    /// It is not stored.
    Refused(Refusal),
}

impl Outcome {
    /// The one reason of this outcome.
    pub const fn reason(self) -> Reason {
        match self {
            Self::Hit { reason, .. }
            | Self::Forwarded { reason, .. }
            | Self::Failed { reason, .. }
            | Self::Shed { reason } => reason,
            Self::Collapsed { .. } => Reason::Collapsed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_lists_stand_in_the_order_of_the_variants() {
        assert!(Reason::all().enumerate().all(|(at, reason)| reason.index() == at));
        assert!(Refusal::all().enumerate().all(|(at, refusal)| refusal as usize == at));
    }

    #[test]
    fn every_word_is_explained_under_a_heading_of_its_own() {
        let page = include_str!("../docs/reasons.md");
        for reason in Reason::all() {
            assert!(page.contains(&format!("\n### {reason}\n")), "{reason}");
        }
        for refusal in Refusal::all() {
            assert!(page.contains(&format!("\n### not stored: {refusal}\n")), "{refusal}");
        }
        assert_eq!(page.matches("\n### ").count(), Reason::COUNT + Refusal::all().count());
    }

    #[test]
    fn every_word_is_a_token_and_stands_once() {
        let words: Vec<_> = Reason::all().map(Reason::as_str).collect();
        assert_eq!(words.iter().collect::<HashSet<_>>().len(), Reason::COUNT);
        let refusals: Vec<_> = Refusal::all().map(Refusal::as_str).collect();
        assert_eq!(refusals.iter().collect::<HashSet<_>>().len(), refusals.len());
        for word in words.iter().chain(&refusals) {
            assert!(word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{word}");
        }
    }

    #[test]
    fn a_reason_is_a_hit_or_is_forwarded_never_both() {
        for reason in Reason::all() {
            let answered_here = matches!(reason.verdict(), Verdict::Hit | Verdict::Stale | Verdict::Shed);
            let answered_here = answered_here && !matches!(reason, Reason::ErrorStale | Reason::SoftTimeout);
            assert_eq!(answered_here, reason.forward().is_none(), "{reason}");
        }
    }
}
