//! How writes are kept until they are applied, and how they are applied.

use std::time::Duration;

/// How writes are kept until they are applied, and how they are applied.
#[derive(Debug, Clone)]
pub struct BehindSettings {
    pub(super) shards: u16,
    pub(super) batch: u32,
    pub(super) coalesces: bool,
    pub(super) durability: Durability,
    pub(super) longest: u32,
    pub(super) when_full: WhenFull,
    pub(super) attempts: u32,
    pub(super) retry_after: Duration,
    pub(super) on_failure: OnFailure,
    pub(super) life: Duration,
    pub(super) longest_apply: Duration,
    pub(super) checks: bool,
}

/// When a write counts as accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// When Redis has it in its memory. If Redis dies, what was not written to its file or its replicas by then is lost: with
    /// `appendonly yes` and `appendfsync everysec`, about a second of writes.
    Memory,
    /// When it is in Redis' file. Takes Redis 7.2, or Valkey, with `appendonly yes`.
    Aof,
    /// When so many replicas have it in their memory, at least 1. With fewer at hand no write is accepted for sure: each fails
    /// after 1.5 s, and may be applied all the same.
    Replicas(u8),
}

/// What is done with a write while as many wait as may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenFull {
    /// It is refused.
    Refuse,
    /// It waits for so long, and is refused then.
    Wait(Duration),
    /// It is applied at once, by the process that it comes to, past those that wait; one that has no sink refuses it. What still
    /// waits of its key is older: the sink must take nothing that is ([`Sink`](super::Sink)).
    WriteThrough,
}

/// What is done with the writes behind one that cannot be applied, until it is, or is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnFailure {
    /// All of its shard wait: they are applied in the order in which they were accepted.
    Hold,
    /// Those of its key wait, and the others go on.
    Park,
}

impl Default for BehindSettings {
    fn default() -> Self {
        Self {
            shards: 16,
            batch: 100,
            coalesces: false,
            durability: Durability::Memory,
            longest: 10_000,
            when_full: WhenFull::Wait(Duration::from_secs(1)),
            attempts: 5,
            retry_after: Duration::from_millis(100),
            on_failure: OnFailure::Hold,
            life: Duration::from_secs(60 * 60),
            longest_apply: Duration::from_secs(10),
            checks: true,
        }
    }
}

impl BehindSettings {
    /// All at their defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Into how many parts keys are divided, each applied by one process at a time, in order: 1 to 64, default 16. It must stay
    /// the same as long as writes wait.
    #[must_use]
    pub fn shards(self, shards: u16) -> Self {
        Self { shards: shards.clamp(1, 64), ..self }
    }

    /// The most writes that the sink is given at once. Default 100, at least 1.
    #[must_use]
    pub fn batch(self, writes: u32) -> Self {
        Self { batch: writes.max(1), ..self }
    }

    /// Of several writes of one key that the sink would be given at once, it is given the last only. Default all of them.
    #[must_use]
    pub fn coalesce(self) -> Self {
        Self { coalesces: true, ..self }
    }

    /// When a write counts as accepted. Default [`Durability::Memory`].
    #[must_use]
    pub fn durability(self, durability: Durability) -> Self {
        Self { durability, ..self }
    }

    /// The most writes that may wait in one shard. Default 10,000. None is ever dropped to make room.
    #[must_use]
    pub fn longest(self, writes: u32) -> Self {
        Self { longest: writes.max(1), ..self }
    }

    /// What is done with a write while so many wait. Default [`WhenFull::Wait`] for a second.
    #[must_use]
    pub fn when_full(self, when_full: WhenFull) -> Self {
        Self { when_full, ..self }
    }

    /// How often a write is tried before it is given up, and kept among the dead letters. Default 5, at least 1. A process that
    /// dies while applying it counts as one time.
    #[must_use]
    pub fn attempts(self, attempts: u32) -> Self {
        Self { attempts: attempts.max(1), ..self }
    }

    /// How long after a failure it is tried again; twice as long each time, up to half a minute. Default 100 ms.
    #[must_use]
    pub fn retry_after(self, pause: Duration) -> Self {
        Self { retry_after: pause, ..self }
    }

    /// What is done with the writes behind one that cannot be applied. Default [`OnFailure::Hold`].
    #[must_use]
    pub fn on_failure(self, on_failure: OnFailure) -> Self {
        Self { on_failure, ..self }
    }

    /// How long a value is found after it was applied, or loaded. Default one hour; of what is gone, 15 s at most.
    #[must_use]
    pub fn life(self, life: Duration) -> Self {
        Self { life: life.max(Duration::from_millis(1)), ..self }
    }

    /// How long the sink may take for what it is given at once, before that counts as failed. Default 10 s.
    #[must_use]
    pub fn longest_apply(self, time: Duration) -> Self {
        Self { longest_apply: time, ..self }
    }

    /// Trusts the server to keep what it is given, where it may not be asked whether it does.
    #[must_use]
    pub fn unchecked(self) -> Self {
        Self { checks: false, ..self }
    }
}
