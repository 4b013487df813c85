//! The circuit breaker's state: when a store has failed often enough not to be asked for a while.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// Failures in a row that open it.
const IN_A_ROW: usize = 5;
/// How many calls it judges by, and how far back.
const WINDOW: usize = 20;
const WINDOW_AGE: Duration = Duration::from_secs(10);
/// The fewest calls that a share of them means something.
const LEAST_CALLS: usize = 10;
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// Counts what calls come to, and opens when too many fail or take too long.
///
/// It only keeps count: the guard asks it, and probes the store while it is open.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    open: AtomicBool,
    record: Mutex<Record>,
}

#[derive(Debug, Default)]
struct Record {
    calls: VecDeque<(Instant, Call)>,
    /// The pause that the next opening takes; grows while probes fail.
    pause: Option<Duration>,
    /// Closed by a probe, and not proven by a call since: the next failure opens it again.
    on_trial: bool,
}

/// What a call came to, as far as the store's health is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Well,
    Slow,
    Failed,
}

impl Breaker {
    /// Whether the store may be asked.
    pub(crate) fn is_closed(&self) -> bool {
        !self.open.load(Ordering::Acquire)
    }

    /// Takes note of a call; whether that opened the breaker.
    pub(crate) fn note(&self, call: Call) -> bool {
        let mut record = self.record();
        let now = Instant::now();
        record.calls.push_back((now, call));
        while record.calls.len() > WINDOW || record.calls.front().is_some_and(|(at, _)| now - *at > WINDOW_AGE) {
            record.calls.pop_front();
        }
        if call == Call::Well {
            (record.on_trial, record.pause) = (false, None);
        }
        let opens = record.is_ill() && !self.open.load(Ordering::Acquire);
        if opens {
            self.open.store(true, Ordering::Release);
        }
        opens
    }

    /// How long to leave the store alone before the next probe; longer each time, until a call has gone well.
    pub(crate) fn pause(&self) -> Duration {
        let mut record = self.record();
        let pause = record.pause.unwrap_or(SHORTEST_PAUSE);
        record.pause = Some((pause * 2).min(LONGEST_PAUSE));
        pause.mul_f64(0.8 + 0.2 * fastrand::f64())
    }

    /// Closes it after a probe that went well.
    pub(crate) fn close(&self) {
        let mut record = self.record();
        record.calls.clear();
        record.on_trial = true;
        self.open.store(false, Ordering::Release);
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    fn is_ill(&self) -> bool {
        let count = |kind: Call| self.calls.iter().filter(|(_, call)| *call == kind).count();
        let failed = count(Call::Failed);
        let in_a_row = self.calls.iter().rev().take_while(|(_, call)| *call == Call::Failed).count();
        let enough = self.calls.len() >= LEAST_CALLS;
        in_a_row >= IN_A_ROW
            || self.on_trial && failed > 0
            || enough && failed * 2 >= self.calls.len()
            || enough && count(Call::Slow) * 2 >= self.calls.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(breaker: &Breaker, calls: &[Call]) -> bool {
        calls.iter().filter(|call| breaker.note(**call)).count() > 0
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_on_failures_in_a_row_on_many_failures_and_on_slowness() {
        use Call::{Failed, Slow, Well};
        let cases: [(&[Call], bool); 6] = [
            (&[Failed; 4], false),
            (&[Failed; 5], true),
            (&[Failed, Failed, Failed, Failed, Well, Failed], false),
            (&[Well, Failed, Well, Failed, Well, Failed, Well, Failed, Well, Failed], true),
            (&[Slow; 9], false),
            (&[Slow; 10], true),
        ];
        for (calls, opens) in cases {
            let breaker = Breaker::default();
            assert_eq!(note(&breaker, calls), opens, "{calls:?}");
            assert_eq!(breaker.is_closed(), !opens);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn old_calls_are_forgotten() {
        let breaker = Breaker::default();
        note(&breaker, &[Call::Failed; 4]);
        tokio::time::advance(WINDOW_AGE + Duration::from_millis(1)).await;
        assert!(!breaker.note(Call::Failed));
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_probe_one_failure_opens_it_again_and_the_pause_grows_until_a_call_goes_well() {
        let breaker = Breaker::default();
        let mut longest = Duration::ZERO;
        assert!(note(&breaker, &[Call::Failed; 5]));
        for _ in 0..8 {
            longest = longest.max(breaker.pause());
            breaker.close();
            assert!(breaker.note(Call::Failed));
        }
        assert!(longest <= LONGEST_PAUSE && longest >= LONGEST_PAUSE.mul_f64(0.8), "{longest:?}");
        breaker.close();
        assert!(!note(&breaker, &[Call::Well, Call::Failed]));
        assert!(breaker.pause() <= SHORTEST_PAUSE);
    }
}
