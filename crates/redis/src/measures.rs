//! What is measured, through the `metrics` facade.

use crate::lane::Manner;
use larder::store::StoreError;
use metrics::{Counter, Histogram, counter, histogram};
use std::{sync::OnceLock, time::Instant};

/// What a store is asked to do, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Get,
    Claim,
    Renew,
    Fill,
    Release,
    Purge,
    Supersede,
    Await,
    Probe,
}

const OPERATIONS: [&str; 9] = ["get", "claim", "renew", "fill", "release", "purge", "supersede", "await", "probe"];
/// Every class that an error of this store can have.
const CLASSES: [&str; 5] = ["timeout", "unavailable", "busy", "out-of-memory", "refused"];

/// The handles, registered when the first of them is used, so that nothing is looked up per call.
#[derive(Debug, Default)]
pub(crate) struct Measures(OnceLock<Handles>);

struct Handles {
    durations: [Histogram; OPERATIONS.len()],
    errors: [[Counter; CLASSES.len()]; OPERATIONS.len()],
    foreign: Counter,
    moved: Counter,
    asked: Counter,
    looked_at: Counter,
    reached: Counter,
}

impl std::fmt::Debug for Handles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handles")
    }
}

impl Measures {
    /// Takes note of how an operation ended that began at `started`.
    pub(crate) fn record<T>(&self, operation: Operation, started: Instant, result: &Result<T, StoreError>) {
        self.handles().durations[operation as usize].record(started.elapsed());
        if let Err(error) = result {
            self.refused(operation, error);
        }
    }

    /// Takes note of an operation that Redis was not asked for.
    pub(crate) fn refused(&self, operation: Operation, error: &StoreError) {
        if let Some(class) = CLASSES.iter().position(|class| *class == error.class()) {
            self.handles().errors[operation as usize][class].increment(1);
        }
    }

    /// Takes note of a reply that belongs to another command.
    pub(crate) fn foreign(&self) {
        self.handles().foreign.increment(1);
    }

    /// Takes note that a server of a cluster sent a command elsewhere.
    pub(crate) fn redirected(&self, manner: Manner) {
        match manner {
            Manner::Plain => self.handles().moved.increment(1),
            Manner::Asking => self.handles().asked.increment(1),
        }
    }

    /// Takes note of a step of a purge by pattern: how many keys it looked at, about, and how many of them it reached.
    pub(crate) fn swept(&self, looked_at: u32, reached: usize) {
        self.handles().looked_at.increment(looked_at.into());
        self.handles().reached.increment(reached as u64);
    }

    fn handles(&self) -> &Handles {
        self.0.get_or_init(|| Handles {
            durations: OPERATIONS.map(|op| histogram!("larder.redis.duration", "op" => op)),
            errors: OPERATIONS
                .map(|op| CLASSES.map(|class| counter!("larder.redis.errors", "op" => op, "class" => class))),
            foreign: counter!("larder.redis.foreign_replies"),
            moved: counter!("larder.redis.redirects", "kind" => "moved"),
            asked: counter!("larder.redis.redirects", "kind" => "ask"),
            looked_at: counter!("larder.redis.swept", "keys" => "looked-at"),
            reached: counter!("larder.redis.swept", "keys" => "reached"),
        })
    }
}
