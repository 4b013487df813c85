//! A purge by pattern, which goes through all keys with `SCAN`.
//!
//! `SCAN` returns every key that is there during the whole pass, and may or may not return one that comes or goes
//! meanwhile. What it returns is removed by a later command. One resource, for the others are purged apart; three readers,
//! who read for ever, and two writers, each of whom purges when it has written.

use larder_model::{Model, Steps, holds, unused, violated};

const READERS: usize = 3;
const WRITERS: usize = 2;

/// What the database holds, counted.
type Version = u8;
type Nonce = u8;

struct ByPattern {
    passes: u8,
    /// Whoever meets the entry or the ticket removes both in one script.
    together: bool,
    /// Readers die, and Redis loses what it likes.
    faults: bool,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    database: Version,
    entry: Option<Version>,
    ticket: Option<Nonce>,
    readers: [Reader; READERS],
    writers: [Writer; WRITERS],
    /// What the database held when a purge began, of those that have returned.
    floor: Version,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Reader {
    Idle,
    Asking(Nonce),
    Answered(Nonce, Version),
}

impl Reader {
    fn ticket(self) -> Option<Nonce> {
        match self {
            Self::Idle => None,
            Self::Asking(ticket) | Self::Answered(ticket, _) => Some(ticket),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Writer {
    Idle,
    Written,
    /// It purges.
    Purging {
        /// What the database held when it began.
        since: Version,
        /// The passes that it has finished.
        passed: u8,
        entry: Visit,
        ticket: Visit,
    },
    Returned,
}

/// How far a pass is with one key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Visit {
    /// It has been there all the time: the pass does not end before it has returned it.
    Owed,
    /// It has come or gone.
    Free,
    /// It was returned, and is still to be removed.
    Returned,
    /// It was returned and removed.
    Done,
}

impl Visit {
    fn begun(is_there: bool) -> Self {
        if is_there { Self::Owed } else { Self::Free }
    }
}

impl State {
    fn unused(&self) -> Nonce {
        unused(self.ticket.into_iter().chain(self.readers.iter().filter_map(|reader| reader.ticket())))
    }

    /// No pass owes a key that is not there.
    fn settle(&mut self) {
        let (no_entry, no_ticket) = (self.entry.is_none(), self.ticket.is_none());
        for writer in &mut self.writers {
            if let Writer::Purging { entry, ticket, .. } = writer {
                for (visit, is_gone) in [(entry, no_entry), (ticket, no_ticket)] {
                    if is_gone && *visit == Visit::Owed {
                        *visit = Visit::Free;
                    }
                }
            }
        }
    }
}

impl ByPattern {
    fn read(reader: usize, now: &State, steps: &mut Steps<State>) {
        match now.readers[reader] {
            Reader::Idle if now.entry.is_some() || now.ticket.is_some() => {}
            Reader::Idle => steps.add(format_args!("reader {reader} places its ticket"), now, |then| {
                let nonce = then.unused();
                then.ticket = Some(nonce);
                then.readers[reader] = Reader::Asking(nonce);
            }),
            Reader::Asking(ticket) => {
                steps.add(format_args!("reader {reader} reads {} from the database", now.database), now, |then| {
                    then.readers[reader] = Reader::Answered(ticket, then.database);
                });
            }
            Reader::Answered(ticket, version) => {
                let is_same = now.ticket == Some(ticket);
                let does = if is_same { "stores" } else { "may not store" };
                steps.add(format_args!("reader {reader} {does} {version}"), now, |then| {
                    then.readers[reader] = Reader::Idle;
                    if is_same {
                        then.entry = Some(version);
                        then.ticket = None;
                        then.settle();
                    }
                });
            }
        }
    }

    fn write(&self, writer: usize, now: &State, steps: &mut Steps<State>) {
        match now.writers[writer] {
            Writer::Idle => {
                steps.add(format_args!("writer {writer} writes {} to the database", now.database + 1), now, |then| {
                    then.database += 1;
                    then.writers[writer] = Writer::Written;
                });
            }
            Writer::Written => steps.add(format_args!("writer {writer} begins to scan"), now, |then| {
                then.writers[writer] = Self::pass(then, then.database, 0);
            }),
            Writer::Purging { since, passed, entry, ticket } => {
                let purging = |entry, ticket| Writer::Purging { since, passed, entry, ticket };
                if now.entry.is_some() && matches!(entry, Visit::Owed | Visit::Free) {
                    steps.add(format_args!("writer {writer} is told of the entry"), now, |then| {
                        then.writers[writer] = purging(Visit::Returned, ticket);
                    });
                }
                if now.ticket.is_some() && matches!(ticket, Visit::Owed | Visit::Free) {
                    steps.add(format_args!("writer {writer} is told of the ticket"), now, |then| {
                        then.writers[writer] = purging(entry, Visit::Returned);
                    });
                }
                if entry == Visit::Returned {
                    steps.add(format_args!("writer {writer} removes {}", self.removed("the entry")), now, |then| {
                        then.writers[writer] = purging(Visit::Done, ticket);
                        then.entry = None;
                        then.ticket = then.ticket.filter(|_| !self.together);
                        then.settle();
                    });
                }
                if ticket == Visit::Returned {
                    steps.add(format_args!("writer {writer} removes {}", self.removed("the ticket")), now, |then| {
                        then.writers[writer] = purging(entry, Visit::Done);
                        then.ticket = None;
                        then.entry = then.entry.filter(|_| !self.together);
                        then.settle();
                    });
                }
                if [entry, ticket].iter().all(|visit| matches!(visit, Visit::Free | Visit::Done)) {
                    let is_last = passed + 1 == self.passes;
                    let does = if is_last { "has scanned" } else { "scans again" };
                    steps.add(format_args!("writer {writer} {does}"), now, |then| {
                        if is_last {
                            then.writers[writer] = Writer::Returned;
                            then.floor = then.floor.max(since);
                        } else {
                            then.writers[writer] = Self::pass(then, since, passed + 1);
                        }
                    });
                }
            }
            Writer::Returned => {}
        }
    }

    fn pass(now: &State, since: Version, passed: u8) -> Writer {
        let (entry, ticket) = (Visit::begun(now.entry.is_some()), Visit::begun(now.ticket.is_some()));
        Writer::Purging { since, passed, entry, ticket }
    }

    fn removed(&self, met: &'static str) -> &'static str {
        if self.together { "both" } else { met }
    }
}

impl Model for ByPattern {
    type State = State;

    fn initial(&self) -> State {
        State {
            database: 0,
            entry: None,
            ticket: None,
            readers: [Reader::Idle; READERS],
            writers: [Writer::Idle; WRITERS],
            floor: 0,
        }
    }

    fn next(&self, now: &State, steps: &mut Steps<State>) {
        (0..READERS).for_each(|reader| Self::read(reader, now, steps));
        (0..WRITERS).for_each(|writer| self.write(writer, now, steps));
        if !self.faults {
            return;
        }
        for reader in 0..READERS {
            steps.add(format_args!("reader {reader} dies, and another takes its place"), now, |then| {
                then.readers[reader] = Reader::Idle;
            });
        }
        steps.add(format_args!("Redis loses the entry"), now, |then| {
            then.entry = None;
            then.settle();
        });
        steps.add(format_args!("Redis loses the ticket"), now, |then| {
            then.ticket = None;
            then.settle();
        });
    }

    fn fault(&self, now: &State) -> Option<String> {
        let entry = now.entry.filter(|entry| *entry < now.floor)?;
        Some(format!("who reads now is given {entry}, after {} was written and invalidated", now.floor))
    }

    fn canonical(&self, state: &State) -> State {
        let mut state = state.clone();
        state.readers.sort_unstable();
        state.writers.sort_unstable();
        state
    }
}

#[test]
fn one_pass_is_not_enough() {
    violated(
        &ByPattern { passes: 1, together: false, faults: false },
        &[
            "reader 0 places its ticket",
            "reader 0 reads 0 from the database",
            "writer 0 writes 1 to the database",
            "writer 0 begins to scan",
            "reader 0 stores 0",
            "writer 0 has scanned",
            "who reads now is given 0, after 1 was written and invalidated",
        ],
    );
}

#[test]
fn one_pass_that_removes_both_when_it_meets_either_is_not_enough() {
    violated(
        &ByPattern { passes: 1, together: true, faults: false },
        &[
            "reader 0 places its ticket",
            "reader 0 reads 0 from the database",
            "writer 0 writes 1 to the database",
            "writer 0 begins to scan",
            "reader 0 stores 0",
            "writer 0 has scanned",
            "who reads now is given 0, after 1 was written and invalidated",
        ],
    );
}

#[test]
fn two_passes_are_enough() {
    holds(&ByPattern { passes: 2, together: false, faults: true }, 300_000);
}

#[test]
fn two_passes_that_remove_both_when_they_meet_either_are_enough() {
    holds(&ByPattern { passes: 2, together: true, faults: true }, 290_000);
}
