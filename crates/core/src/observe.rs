//! Metrics, through the `metrics` facade: whatever recorder the program installs receives them.
//!
//! | metric | kind | labels |
//! |---|---|---|
//! | `larder.requests` | counter | `cache`, `route`, `tier`, `result`, `reason`, `layer` |
//! | `larder.fetch.duration` | histogram, seconds | `cache`, `route`, `outcome` (`ok`, `error`) |
//! | `larder.store` | counter | `cache`, `outcome` (`stored`, `skipped`), `reason` |
//! | `larder.breaker.state` | gauge: 0 closed, 1 half-open, 2 open | `breaker` (`read`, `write`) |
//! | `larder.breaker.transitions` | counter | `breaker`, `to` |
//! | `larder.staleness.bound` | gauge, seconds: [`Cache::staleness_bound`](crate::Cache::staleness_bound) | `namespace` |
//!
//! Handles are made at the first use of each combination; a hit only counts.

use larder_semantics::{Reason, Refusal};
use metrics::{
    Counter, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use std::{
    collections::HashMap,
    sync::{Arc, OnceLock, PoisonError, RwLock},
    time::Duration,
};

/// Tells the recorder what larder's metrics mean, for exporters that show it. To be called once, after the recorder was
/// installed; without it the metrics are the same.
pub fn describe_metrics() {
    describe_counter!("larder.requests", "Requests by how they were answered, and why.");
    describe_histogram!("larder.fetch.duration", Unit::Seconds, "How long the origin took to its response's head.");
    describe_counter!("larder.store", "Responses that were stored, or not, and why.");
    describe_gauge!("larder.breaker.state", "Circuit breaker of the store: 0 closed, 1 half-open, 2 open.");
    describe_counter!("larder.breaker.transitions", "How often the circuit breaker came into a state.");
    describe_gauge!(
        "larder.staleness.bound",
        Unit::Seconds,
        "The longest that other processes may answer with what was invalidated."
    );
    describe_histogram!("larder.redis.duration", Unit::Seconds, "How long operations on Redis took.");
    describe_counter!("larder.redis.errors", "Operations on Redis that failed, by class.");
    describe_counter!("larder.redis.foreign_replies", "Replies of Redis that belonged to another command.");
}

/// The most routes that are told apart in labels; those beyond count as `other`.
const MOST_ROUTES: usize = 500;

/// The metrics of one cache.
#[derive(Debug)]
pub(crate) struct Observer {
    cache: String,
    routes: RwLock<HashMap<&'static str, HashMap<String, Arc<RouteMetrics>>>>,
}

/// The metrics of one route in one tier.
pub(crate) struct RouteMetrics {
    cache: String,
    route: String,
    tier: &'static str,
    requests: [OnceLock<Counter>; Reason::COUNT],
    fetches: [OnceLock<Histogram>; 2],
}

impl Observer {
    pub(crate) fn new(cache: &str) -> Self {
        Self { cache: cache.to_owned(), routes: RwLock::default() }
    }

    /// The metrics of `route`, the template and not the path, in `tier`.
    pub(crate) fn route(&self, route: &str, tier: &'static str) -> Arc<RouteMetrics> {
        let known = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(metrics) = known.get(tier).and_then(|routes| routes.get(route)) {
            return metrics.clone();
        }
        drop(known);
        let mut known = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        let routes = known.entry(tier).or_default();
        let route = if routes.len() < MOST_ROUTES { route } else { "other" };
        let metrics = || Arc::new(RouteMetrics::new(self.cache.clone(), route.to_owned(), tier));
        routes.entry(route.to_owned()).or_insert_with(metrics).clone()
    }

    pub(crate) fn stored(&self) {
        counter!("larder.store", "cache" => self.cache.clone(), "outcome" => "stored", "reason" => "stored")
            .increment(1);
    }

    pub(crate) fn skipped(&self, refusal: Refusal) {
        let reason = refusal.as_str();
        counter!("larder.store", "cache" => self.cache.clone(), "outcome" => "skipped", "reason" => reason)
            .increment(1);
    }
}

impl RouteMetrics {
    fn new(cache: String, route: String, tier: &'static str) -> Self {
        Self {
            cache,
            route,
            tier,
            requests: [const { OnceLock::new() }; Reason::COUNT],
            fetches: [const { OnceLock::new() }; 2],
        }
    }

    pub(crate) fn is_of(&self, route: &str) -> bool {
        self.route == route
    }

    /// Counts a request that ended for `reason`.
    pub(crate) fn request(&self, reason: Reason) {
        let handle = self.requests[reason.index()].get_or_init(|| {
            counter!(
                "larder.requests",
                "cache" => self.cache.clone(),
                "route" => self.route.clone(),
                "tier" => self.tier,
                "result" => reason.verdict().as_str(),
                "reason" => reason.as_str(),
                "layer" => reason.layer(),
            )
        });
        handle.increment(1);
    }

    /// Takes note of how long the origin took to its response's head, or to its error.
    pub(crate) fn fetched(&self, took: Duration, is_ok: bool) {
        let handle = self.fetches[usize::from(is_ok)].get_or_init(|| {
            histogram!(
                "larder.fetch.duration",
                "cache" => self.cache.clone(),
                "route" => self.route.clone(),
                "outcome" => if is_ok { "ok" } else { "error" },
            )
        });
        handle.record(took);
    }
}

impl std::fmt::Debug for RouteMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RouteMetrics").field("route", &self.route).field("tier", &self.tier).finish_non_exhaustive()
    }
}

/// Tells how long other processes may answer with what was invalidated.
pub(crate) fn staleness_bound(namespace: &str, bound: Duration) {
    gauge!("larder.staleness.bound", "namespace" => namespace.to_owned()).set(bound.as_secs_f64());
}

/// The state of a circuit breaker, as the gauge tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BreakerState {
    Closed,
    HalfOpen,
    Open,
}

/// Takes note that a breaker has changed its state.
pub(crate) fn breaker(name: &'static str, state: BreakerState) {
    let (value, word) = match state {
        BreakerState::Closed => (0.0, "closed"),
        BreakerState::HalfOpen => (1.0, "half-open"),
        BreakerState::Open => (2.0, "open"),
    };
    gauge!("larder.breaker.state", "breaker" => name).set(value);
    counter!("larder.breaker.transitions", "breaker" => name, "to" => word).increment(1);
}
