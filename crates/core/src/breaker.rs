//! The circuit breaker's state: when a store has failed often enough not to be asked for a while.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// Failures in a row that open it.
const IN_A_ROW: u32 = 5;
/// It judges by the calls of the last second, or of as much more time as it takes to have seen [`LEAST_CALLS`].
///
/// Not by a number of calls alone: a process that stalls for a moment sees hundreds of slow calls at once.
const WINDOW: u64 = 10;
const LEAST_CALLS: u32 = 10;
/// Time is divided into slots, of which the last ten seconds are kept.
const SLOT: Duration = Duration::from_millis(100);
const SLOTS: usize = 100;
const SHORTEST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// Counts what calls come to, and opens when too many fail or take too long.
///
/// It only keeps count: the guard asks it, and probes the store while it is open.
#[derive(Debug)]
pub(crate) struct Breaker {
    open: AtomicBool,
    began: Instant,
    record: Mutex<Record>,
}

#[derive(Debug)]
struct Record {
    slots: [Slot; SLOTS],
    failed_in_a_row: u32,
    last_failed: u64,
    /// The pause that the next opening takes; grows while probes fail.
    pause: Option<Duration>,
    /// Closed by a probe, and not proven by a call since: the next failure opens it again.
    on_trial: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// Which slot of all time it is.
    number: u64,
    calls: u32,
    slow: u32,
    failed: u32,
}

/// What a call came to, as far as the store's health is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Well,
    Slow,
    Failed,
}

impl Default for Breaker {
    fn default() -> Self {
        let record = Record {
            slots: [Slot::default(); SLOTS],
            failed_in_a_row: 0,
            last_failed: 0,
            pause: None,
            on_trial: false,
        };
        Self { open: AtomicBool::new(false), began: Instant::now(), record: Mutex::new(record) }
    }
}

impl Breaker {
    /// Whether the store may be asked.
    pub(crate) fn is_closed(&self) -> bool {
        !self.open.load(Ordering::Acquire)
    }

    /// Takes note of a call that ended `now`; whether that opened the breaker.
    pub(crate) fn note(&self, call: Call, now: Instant) -> bool {
        // Slots count from one, so that none is mistaken for an empty one.
        let number = 1 + (now.saturating_duration_since(self.began).as_millis() / SLOT.as_millis()) as u64;
        let mut record = self.record();
        record.count(call, number);
        if call == Call::Well {
            (record.on_trial, record.pause) = (false, None);
            return false;
        }
        record.is_ill(call, number) && !self.open.swap(true, Ordering::AcqRel)
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
        record.slots = [Slot::default(); SLOTS];
        record.failed_in_a_row = 0;
        record.on_trial = true;
        self.open.store(false, Ordering::Release);
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    fn count(&mut self, call: Call, number: u64) {
        let slot = &mut self.slots[(number % SLOTS as u64) as usize];
        if slot.number != number {
            *slot = Slot { number, ..Slot::default() };
        }
        slot.calls += 1;
        slot.slow += u32::from(call == Call::Slow);
        slot.failed += u32::from(call == Call::Failed);
        let is_old = number.saturating_sub(self.last_failed) >= SLOTS as u64;
        self.failed_in_a_row = match call {
            Call::Failed if is_old => 1,
            Call::Failed => self.failed_in_a_row + 1,
            Call::Well | Call::Slow => 0,
        };
        if call == Call::Failed {
            self.last_failed = number;
        }
    }

    fn is_ill(&self, call: Call, now: u64) -> bool {
        if self.failed_in_a_row >= IN_A_ROW || self.on_trial && call == Call::Failed {
            return true;
        }
        let mut seen = Slot::default();
        for age in 0..SLOTS as u64 {
            if age >= WINDOW && seen.calls >= LEAST_CALLS {
                break;
            }
            let number = now.saturating_sub(age);
            let slot = self.slots[(number % SLOTS as u64) as usize];
            if slot.number == number {
                (seen.calls, seen.slow, seen.failed) =
                    (seen.calls + slot.calls, seen.slow + slot.slow, seen.failed + slot.failed);
            }
        }
        seen.calls >= LEAST_CALLS && (seen.failed * 2 >= seen.calls || seen.slow * 2 >= seen.calls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(breaker: &Breaker, calls: &[Call]) -> bool {
        calls.iter().filter(|call| breaker.note(**call, Instant::now())).count() > 0
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
        tokio::time::advance(SLOT * SLOTS as u32).await;
        assert!(!breaker.note(Call::Failed, Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn one_stall_of_a_busy_process_is_not_slowness() {
        let breaker = Breaker::default();
        note(&breaker, &[Call::Well; 1000]);
        tokio::time::advance(Duration::from_millis(90)).await;
        assert!(!note(&breaker, &[Call::Slow; 256]));
        tokio::time::advance(Duration::from_millis(1100)).await;
        assert!(note(&breaker, &[Call::Slow; 10]), "a second later it still is slow");
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_probe_one_failure_opens_it_again_and_the_pause_grows_until_a_call_goes_well() {
        let breaker = Breaker::default();
        let mut longest = Duration::ZERO;
        assert!(note(&breaker, &[Call::Failed; 5]));
        for _ in 0..8 {
            longest = longest.max(breaker.pause());
            breaker.close();
            assert!(breaker.note(Call::Failed, Instant::now()));
        }
        assert!(longest <= LONGEST_PAUSE && longest >= LONGEST_PAUSE.mul_f64(0.8), "{longest:?}");
        breaker.close();
        assert!(!note(&breaker, &[Call::Well, Call::Failed]));
        assert!(breaker.pause() <= SHORTEST_PAUSE);
    }
}
