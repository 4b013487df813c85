//! Where writes go in the end, and what becomes of them there.

use bytes::Bytes;
use larder::semantics::Key;
use std::{fmt, future::Future};

/// One write on its way to where it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// What is written.
    pub key: Key,
    /// Tells a later write of a key from an earlier one: it only grows.
    pub seq: u64,
    /// The value; none, if the key is removed.
    pub value: Option<Bytes>,
    /// How often it was tried before.
    pub attempts: u32,
}

/// What applies writes: a database, mostly.
///
/// Each write may be applied more than once: after a process has died between applying and saying so, it is given to another.
/// And one that is thought to be dead may come back and apply what another has applied since, and more. So it is to be applied
/// only where no later [`seq`](Write::seq) has been, as in `… WHERE seq < $seq`; then nothing is applied twice, or in the wrong
/// order.
pub trait Sink: Send + Sync + 'static {
    /// Applies writes, of which those of one key stand in their order.
    ///
    /// # Errors
    ///
    /// The first that could not be applied. Those before it count as applied, those after it as not tried.
    fn apply(&self, writes: &[Write]) -> impl Future<Output = Result<(), Failed>> + Send;
}

/// Why writes could not be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// The place of the first that was not.
    pub at: usize,
    /// Why.
    pub why: String,
}

impl Failed {
    /// None of them was applied: as of a transaction.
    pub fn all(why: impl fmt::Display) -> Self {
        Self::at(0, why)
    }

    /// Those before that place were applied, and the one at it was not.
    pub fn at(at: usize, why: impl fmt::Display) -> Self {
        Self { at, why: why.to_string() }
    }
}
