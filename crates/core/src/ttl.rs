//! Lifetimes with names, so that dashboards speak of tiers instead of seconds.

use std::time::Duration;

/// A lifetime and the name of its tier.
///
/// | tier | lifetime | for |
/// |---|---|---|
/// | [`REALTIME`](Self::REALTIME) | 10 s | stock, prices, scores |
/// | [`FREQUENT`](Self::FREQUENT) | 5 min | listings, feeds |
/// | [`STANDARD`](Self::STANDARD) | 1 h | profiles, product pages |
/// | [`REFERENCE`](Self::REFERENCE) | 1 day | categories, settings |
/// | [`STATIC`](Self::STATIC) | 7 days | countries, currencies |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ttl {
    lifetime: Duration,
    tier: &'static str,
}

impl Ttl {
    /// 10 seconds.
    pub const REALTIME: Self = Self::tier("realtime", Duration::from_secs(10));
    /// 5 minutes.
    pub const FREQUENT: Self = Self::tier("frequent", Duration::from_secs(5 * 60));
    /// 1 hour.
    pub const STANDARD: Self = Self::tier("standard", Duration::from_secs(60 * 60));
    /// 1 day.
    pub const REFERENCE: Self = Self::tier("reference", Duration::from_secs(24 * 60 * 60));
    /// 7 days.
    pub const STATIC: Self = Self::tier("static", Duration::from_secs(7 * 24 * 60 * 60));

    /// A tier of your own. A lifetime of zero stores nothing; one over ten years is cut to that.
    pub const fn tier(name: &'static str, lifetime: Duration) -> Self {
        Self { lifetime, tier: name }
    }

    /// A lifetime of so many seconds, in the tier `custom`.
    pub const fn secs(seconds: u64) -> Self {
        Self::tier("custom", Duration::from_secs(seconds))
    }

    /// The lifetime.
    pub const fn lifetime(self) -> Duration {
        self.lifetime
    }

    /// The name of the tier, the metric label `tier`.
    pub const fn name(self) -> &'static str {
        self.tier
    }
}

impl From<Duration> for Ttl {
    fn from(lifetime: Duration) -> Self {
        Self::tier("custom", lifetime)
    }
}

impl From<Ttl> for Duration {
    fn from(ttl: Ttl) -> Self {
        ttl.lifetime
    }
}
