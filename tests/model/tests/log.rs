//! The log of invalidations, and an instance that keeps copies under its lease.
//!
//! Every invalidation is written to the log, with an id and the id of the one before, and then published. What is published
//! arrives in any order, several times, or never; the log is trimmed at its beginning, and a failover takes away its end.
//! Two keys, for what is missed is found out too easily if all that follows is about the same; the instance keeps a copy
//! of the first. The lease says that the instance has applied the log to its end, as it was at the last heartbeat: so
//! under the lease no copy may be served that an entry of that log has invalidated.

use larder_model::{Model, Steps, holds, violated};

const INVALIDATIONS: usize = 5;

type Id = u8;

/// How often the first key was invalidated.
type Version = u8;

/// The id of what is added to the log.
#[derive(Clone, Copy, PartialEq)]
enum Ids {
    /// By the time, so that none comes twice, whatever was lost.
    ByTime,
    /// The one after the last in the log.
    Counted,
}

struct Log {
    ids: Ids,
    /// A message is applied only if it follows what was applied last; otherwise the log is read.
    finds_gaps: bool,
    /// Who reads the log looks whether it begins before what was applied last.
    finds_trimming: bool,
    /// The lease would be for what a failover has lost, too.
    promises_lost: bool,
}

const USUAL: Log = Log { ids: Ids::ByTime, finds_gaps: true, finds_trimming: true, promises_lost: false };

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    /// All that was ever published, in order.
    entries: Vec<Entry>,
    /// How often the first key was invalidated.
    version: Version,
    /// The last id that the instance has applied.
    applied: Id,
    near: Option<Version>,
    /// What it has read far, and may keep, since nothing has advanced the epoch.
    read: Option<Version>,
    /// The version of the log that it has applied for certain, as long as its lease lasts.
    lease: Option<Version>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Entry {
    id: Id,
    before: Id,
    key: Key,
    /// With it.
    version: Version,
    kept: Kept,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    First,
    Second,
}

/// Whether an entry is in the log.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kept {
    Yes,
    /// It was, and is too old.
    Trimmed,
    /// A failover has lost it: for the log, it has never been.
    Lost,
}

impl State {
    fn log(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.kept == Kept::Yes)
    }

    /// What Redis says was added last, be it trimmed or not.
    fn last(&self) -> Id {
        self.entries.iter().rfind(|entry| entry.kept != Kept::Lost).map_or(0, |entry| entry.id)
    }

    fn advance_epoch(&mut self) {
        (self.near, self.read) = (None, None);
    }

    fn apply(&mut self, entry: Entry) {
        if entry.key == Key::First {
            self.advance_epoch();
        }
    }
}

impl Log {
    fn invalidate(&self, key: Key, now: &mut State) {
        let last = now.last();
        let id = match self.ids {
            Ids::ByTime => now.entries.len() as Id + 1,
            Ids::Counted => last + 1,
        };
        if key == Key::First {
            now.version += 1;
        }
        now.entries.push(Entry { id, before: last, key, version: now.version, kept: Kept::Yes });
    }

    /// The last version that the log, applied to its end, forbids.
    fn promised(&self, now: &State) -> Version {
        let is_promised = |entry: &&Entry| self.promises_lost || entry.kept != Kept::Lost;
        let first = now.entries.iter().filter(|entry| entry.key == Key::First);
        first.filter(is_promised).map(|entry| entry.version).max().unwrap_or(0)
    }

    fn receive(&self, entry: Entry, now: &mut State) {
        now.apply(entry);
        if entry.before == now.applied || !self.finds_gaps {
            now.applied = now.applied.max(entry.id);
        } else if entry.id > now.applied {
            self.catch_up(now);
        }
    }

    /// Reads the log from what was applied last, or drops everything if that is not possible.
    fn catch_up(&self, now: &mut State) {
        let last = now.last();
        let is_regressed = last < now.applied;
        let is_trimmed = last > now.applied && now.log().next().is_none_or(|first| now.applied < first.id);
        if is_regressed || is_trimmed && self.finds_trimming {
            now.advance_epoch();
        } else {
            let missed: Vec<Entry> = now.log().filter(|entry| entry.id > now.applied).copied().collect();
            missed.into_iter().for_each(|entry| now.apply(entry));
        }
        now.applied = last;
    }
}

impl Model for Log {
    type State = State;

    fn initial(&self) -> State {
        State { entries: Vec::new(), version: 0, applied: 0, near: None, read: None, lease: None }
    }

    fn next(&self, now: &State, steps: &mut Steps<State>) {
        if now.entries.len() < INVALIDATIONS {
            steps.add(format_args!("the first key is invalidated"), now, |then| self.invalidate(Key::First, then));
            steps.add(format_args!("the second key is invalidated"), now, |then| self.invalidate(Key::Second, then));
        }
        for (entry, number) in now.entries.iter().zip(1..) {
            let Entry { id, before, .. } = *entry;
            let does = format_args!("message {number} arrives, of {id} after {before}");
            steps.add(does, now, |then| self.receive(*entry, then));
        }
        steps.add(format_args!("the heartbeat finds the log at {}", now.last()), now, |then| {
            if then.last() != then.applied {
                self.catch_up(then);
            }
            then.lease = Some(self.promised(then));
        });
        steps.add(format_args!("the lease runs out"), now, |then| then.lease = None);
        steps.add(format_args!("the instance reads {} far", now.version), now, |then| then.read = Some(then.version));
        if let Some(read) = now.read {
            steps.add(format_args!("the instance keeps {read} near"), now, |then| {
                (then.near, then.read) = (Some(read), None);
            });
        }
        if now.log().count() > 1 {
            steps.add(format_args!("the log is trimmed"), now, |then| {
                let first = then.entries.iter_mut().find(|entry| entry.kept == Kept::Yes);
                first.expect("there is more than one").kept = Kept::Trimmed;
            });
        }
        if now.log().next().is_some() {
            steps.add(format_args!("a failover loses the end of the log"), now, |then| {
                let last = then.entries.iter_mut().rfind(|entry| entry.kept == Kept::Yes);
                last.expect("there is one").kept = Kept::Lost;
            });
        }
    }

    fn fault(&self, now: &State) -> Option<String> {
        let (near, lease) = (now.near?, now.lease?);
        (near < lease).then(|| format!("{near} is served near, under a lease that says {lease} was applied"))
    }
}

#[test]
fn who_finds_gaps_keeps_what_its_lease_says() {
    holds(&USUAL, 1_600_000);
}

#[test]
fn who_does_not_find_gaps_serves_what_it_has_missed() {
    violated(
        &Log { finds_gaps: false, ..USUAL },
        &[
            "the instance reads 0 far",
            "the first key is invalidated",
            "the second key is invalidated",
            "message 2 arrives, of 2 after 1",
            "the heartbeat finds the log at 2",
            "the instance keeps 0 near",
            "0 is served near, under a lease that says 1 was applied",
        ],
    );
}

#[test]
fn who_does_not_find_that_the_log_was_trimmed_serves_what_it_has_missed() {
    violated(
        &Log { finds_trimming: false, ..USUAL },
        &[
            "the instance reads 0 far",
            "the first key is invalidated",
            "the second key is invalidated",
            "the instance keeps 0 near",
            "the log is trimmed",
            "the heartbeat finds the log at 2",
            "0 is served near, under a lease that says 1 was applied",
        ],
    );
}

#[test]
fn ids_that_come_twice_after_a_failover_hide_what_was_missed() {
    violated(
        &Log { ids: Ids::Counted, ..USUAL },
        &[
            "the first key is invalidated",
            "message 1 arrives, of 1 after 0",
            "the instance reads 1 far",
            "the instance keeps 1 near",
            "a failover loses the end of the log",
            "the first key is invalidated",
            "the heartbeat finds the log at 1",
            "1 is served near, under a lease that says 2 was applied",
        ],
    );
}

#[test]
fn what_a_failover_loses_before_it_is_heard_stays_unheard() {
    violated(
        &Log { promises_lost: true, ..USUAL },
        &[
            "the instance reads 0 far",
            "the first key is invalidated",
            "the instance keeps 0 near",
            "a failover loses the end of the log",
            "the heartbeat finds the log at 0",
            "0 is served near, under a lease that says 1 was applied",
        ],
    );
}
