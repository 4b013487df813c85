//! Redis' time, as far as this process knows it.

use larder::semantics::Timestamp;
use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

/// From how far apart this machine's clock and that of Redis are worth a warning.
const SKEW: u64 = 5_000;

/// Runs by the monotonic clock, and is set by what Redis tells; until it tells, by the machine's wall clock.
#[derive(Debug)]
pub(crate) struct Clock {
    started: Instant,
    /// What Redis' clock showed at `started`, in milliseconds since the epoch.
    base: AtomicU64,
    wall_shift: i64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    learned: bool,
    warned: bool,
    compared: bool,
}

impl Clock {
    pub(crate) fn new(wall_shift: i64) -> Self {
        let clock = Self { started: Instant::now(), base: AtomicU64::new(0), wall_shift, state: Mutex::default() };
        clock.base.store(clock.wall().saturating_sub(clock.elapsed(Instant::now())), Ordering::Relaxed);
        clock
    }

    pub(crate) fn now(&self) -> Timestamp {
        let base = self.base.load(Ordering::Relaxed);
        Timestamp::from_millis(base.saturating_add(self.elapsed(Instant::now())))
    }

    /// Learns that Redis showed `redis` milliseconds at some moment between `asked` and `answered`.
    ///
    /// The clock is kept where it is when that fits, so that it does not move with every round trip. Returns by how
    /// much this machine's clock is ahead of Redis', in milliseconds, when that is to be warned of: once.
    pub(crate) fn learn(&self, redis: u64, asked: Instant, answered: Instant) -> Option<i64> {
        let earliest = redis.saturating_sub(self.elapsed(answered));
        let latest = redis.saturating_sub(self.elapsed(asked));
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let base = self.base.load(Ordering::Relaxed);
        let fitting =
            if state.learned { base.clamp(earliest, latest) } else { earliest + (latest.saturating_sub(earliest)) / 2 };
        self.base.store(fitting, Ordering::Relaxed);
        state.learned = true;
        let wall = self.wall();
        if state.warned || wall.abs_diff(redis) <= SKEW {
            return None;
        }
        state.warned = true;
        Some(i64::try_from(wall).unwrap_or(i64::MAX).saturating_sub(i64::try_from(redis).unwrap_or(i64::MAX)))
    }

    /// Whether Redis has told the time.
    pub(crate) fn is_set(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).learned
    }

    /// Compares what a server that does not set the clock shows. Returns by how much it is ahead, in milliseconds, when
    /// that is to be warned of: once.
    pub(crate) fn compare(&self, other: u64) -> Option<i64> {
        let mine = self.now().as_millis();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.compared || mine.abs_diff(other) <= SKEW {
            return None;
        }
        state.compared = true;
        Some(i64::try_from(other).unwrap_or(i64::MAX).saturating_sub(i64::try_from(mine).unwrap_or(i64::MAX)))
    }

    fn elapsed(&self, at: Instant) -> u64 {
        millis(at.saturating_duration_since(self.started))
    }

    fn wall(&self) -> u64 {
        Timestamp::from(SystemTime::now()).as_millis().saturating_add_signed(self.wall_shift)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    #[test]
    fn it_shows_the_wall_clock_until_redis_tells_the_time() {
        let clock = Clock::new(HOUR);
        assert!(clock.now().as_millis().abs_diff(clock.wall()) < 1_000);
        let at = clock.started;
        clock.learn(5_000_000, at, at);
        assert!(clock.now().since(Timestamp::from_millis(5_000_000)) < Duration::from_secs(60));
    }

    #[test]
    fn a_slow_answer_moves_it_no_more_than_it_proves() {
        let clock = Clock::new(0);
        let at = |millis| clock.started + Duration::from_millis(millis);
        clock.learn(1_000_000, at(0), at(0));
        assert_eq!(clock.base.load(Ordering::Relaxed), 1_000_000);
        clock.learn(1_000_150, at(100), at(200));
        assert_eq!(clock.base.load(Ordering::Relaxed), 1_000_000, "it fits");
        clock.learn(1_000_400, at(300), at(310));
        assert_eq!(clock.base.load(Ordering::Relaxed), 1_000_090, "Redis is ahead by 90 ms at least");
    }

    #[test]
    fn another_server_is_compared_and_does_not_set_it() {
        let clock = Clock::new(0);
        assert!(!clock.is_set());
        clock.learn(1_000_000, clock.started, clock.started);
        assert!(clock.is_set());
        assert_eq!(clock.compare(1_003_000), None, "near enough");
        let ahead = clock.compare(1_060_000).expect("a warning");
        assert!((50_000..=60_000).contains(&ahead), "{ahead}");
        assert_eq!(clock.compare(1_060_000), None, "once");
        assert_eq!(clock.base.load(Ordering::Relaxed), 1_000_000);
    }

    #[test]
    fn a_skew_is_warned_of_once() {
        for shift in [HOUR, -HOUR] {
            let clock = Clock::new(shift);
            let at = Instant::now();
            let redis = clock.wall().saturating_add_signed(-shift);
            let skew = clock.learn(redis, at, at).expect("a warning");
            assert!((skew - shift).abs() < 1_000, "{skew}");
            assert_eq!(clock.learn(redis, at, at), None);
        }
        let clock = Clock::new(0);
        assert_eq!(clock.learn(clock.wall(), Instant::now(), Instant::now()), None);
    }
}
