//! Readers who ask a replica of the database that lags: an invalidation must hold fills down.
//!
//! Three readers, who read for ever, and three writers.

use larder_model::{Model, Steps, holds, unused, violated};

const READERS: usize = 3;
const WRITERS: usize = 3;

/// What the database holds, counted.
type Version = u8;
type Nonce = u8;

/// For how long after an invalidation nothing is stored.
#[derive(Clone, Copy, PartialEq)]
enum HoldDown {
    None,
    /// As long as the replica can lag, or longer.
    TheLag,
    /// Less than that.
    Less,
}

struct Lagging {
    hold_down: HoldDown,
    /// Redis loses entries and tickets.
    evicts: bool,
    /// Redis loses a hold-down before its time.
    evicts_hold_down: bool,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    database: Version,
    replica: Version,
    entry: Option<Version>,
    ticket: Option<Nonce>,
    /// Until the replica has what the database held at the invalidation.
    held_down: Option<Version>,
    readers: [Reader; READERS],
    writers: [Writer; WRITERS],
    /// What the database held at the last invalidation.
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
    Returned,
}

impl State {
    fn unused(&self) -> Nonce {
        unused(self.ticket.into_iter().chain(self.readers.iter().filter_map(|reader| reader.ticket())))
    }
}

impl Lagging {
    fn read(reader: usize, now: &State, steps: &mut Steps<State>) {
        match now.readers[reader] {
            Reader::Idle if now.entry.is_some() || now.ticket.is_some() || now.held_down.is_some() => {}
            Reader::Idle => steps.add(format_args!("reader {reader} places its ticket"), now, |then| {
                let nonce = then.unused();
                then.ticket = Some(nonce);
                then.readers[reader] = Reader::Asking(nonce);
            }),
            Reader::Asking(ticket) => {
                steps.add(format_args!("reader {reader} reads {} from the replica", now.replica), now, |then| {
                    then.readers[reader] = Reader::Answered(ticket, then.replica);
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
            Writer::Written => steps.add(format_args!("writer {writer} purges"), now, |then| {
                then.entry = None;
                then.ticket = None;
                then.held_down = (self.hold_down != HoldDown::None).then_some(then.database);
                then.floor = then.database;
                then.writers[writer] = Writer::Returned;
            }),
            Writer::Returned => {}
        }
    }
}

impl Model for Lagging {
    type State = State;

    fn initial(&self) -> State {
        State {
            database: 0,
            replica: 0,
            entry: None,
            ticket: None,
            held_down: None,
            readers: [Reader::Idle; READERS],
            writers: [Writer::Idle; WRITERS],
            floor: 0,
        }
    }

    fn next(&self, now: &State, steps: &mut Steps<State>) {
        (0..READERS).for_each(|reader| Self::read(reader, now, steps));
        (0..WRITERS).for_each(|writer| self.write(writer, now, steps));
        if now.replica < now.database {
            steps.add(format_args!("the replica receives {}", now.replica + 1), now, |then| then.replica += 1);
        }
        if let Some(held_down) = now.held_down {
            if self.hold_down == HoldDown::Less || now.replica >= held_down {
                steps.add(format_args!("the hold-down is over"), now, |then| then.held_down = None);
            } else if self.evicts_hold_down {
                steps.add(format_args!("Redis loses the hold-down"), now, |then| then.held_down = None);
            }
        }
        if self.evicts {
            steps.add(format_args!("Redis loses the entry"), now, |then| then.entry = None);
            steps.add(format_args!("Redis loses the ticket"), now, |then| then.ticket = None);
        }
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
fn a_ticket_alone_is_not_enough() {
    violated(
        &Lagging { hold_down: HoldDown::None, evicts: false, evicts_hold_down: false },
        &[
            "writer 0 writes 1 to the database",
            "writer 0 purges",
            "reader 0 places its ticket",
            "reader 0 reads 0 from the replica",
            "reader 0 stores 0",
            "who reads now is given 0, after 1 was written and invalidated",
        ],
    );
}

#[test]
fn a_hold_down_as_long_as_the_lag_is_enough() {
    holds(&Lagging { hold_down: HoldDown::TheLag, evicts: true, evicts_hold_down: false }, 13_000);
}

#[test]
fn a_shorter_one_is_not_enough() {
    violated(
        &Lagging { hold_down: HoldDown::Less, evicts: false, evicts_hold_down: false },
        &[
            "writer 0 writes 1 to the database",
            "writer 0 purges",
            "the hold-down is over",
            "reader 0 places its ticket",
            "reader 0 reads 0 from the replica",
            "reader 0 stores 0",
            "who reads now is given 0, after 1 was written and invalidated",
        ],
    );
}

#[test]
fn one_that_is_evicted_is_not_enough() {
    violated(
        &Lagging { hold_down: HoldDown::TheLag, evicts: false, evicts_hold_down: true },
        &[
            "writer 0 writes 1 to the database",
            "writer 0 purges",
            "Redis loses the hold-down",
            "reader 0 places its ticket",
            "reader 0 reads 0 from the replica",
            "reader 0 stores 0",
            "who reads now is given 0, after 1 was written and invalidated",
        ],
    );
}
