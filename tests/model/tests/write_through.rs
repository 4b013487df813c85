//! Writers who leave what they wrote in the cache, and why they do not simply set it.
//!
//! Three readers, who read for ever, and three writers. The one way that stores it and holds, with a mark that begins
//! before the write, is in `guards.rs`; what is stored as the answer to a POST is here.

use larder_model::{Model, Steps, holds, unused, violated};

const READERS: usize = 3;
const WRITERS: usize = 3;

/// What the database holds, counted.
type Version = u8;
type Nonce = u8;

/// What a writer does when the database has what it wrote.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    /// It sets the entry, whatever is there.
    Set,
    /// It sets the entry if none is there that is newer. So do the readers.
    SetIfNewer,
    /// It removes the entry and voids the ticket.
    Purge,
    /// It has placed a ticket of its own before. If that is still there, it voids all others, and stores with it;
    /// otherwise it purges. This is `supersede`, for the answer to a POST. It may store what another has just overwritten,
    /// who has not returned, and will purge.
    Supersede,
}

struct WriteThrough {
    then: Then,
    /// Readers and writers leave or die, and Redis loses what it likes. A writer who dies has not returned.
    faults: bool,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    database: Version,
    entry: Option<Version>,
    ticket: Option<Nonce>,
    /// The ticket of those who change, and whose it is.
    change: Option<usize>,
    readers: [Reader; READERS],
    writers: [Writer; WRITERS],
    /// What was set, or what the database held at a purge, by those who have returned.
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
    Begun,
    Written(Version),
    Superseded(Version),
    Gone,
}

impl State {
    fn unused(&self) -> Nonce {
        unused(self.ticket.into_iter().chain(self.readers.iter().filter_map(|reader| reader.ticket())))
    }

    fn purge(&mut self) {
        (self.entry, self.ticket, self.change) = (None, None, None);
    }
}

impl WriteThrough {
    fn read(&self, reader: usize, now: &State, steps: &mut Steps<State>) {
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
                let is_newer = self.then != Then::SetIfNewer || now.entry < Some(version);
                let stores = now.ticket == Some(ticket) && is_newer;
                let does = if stores { "stores" } else { "may not store" };
                steps.add(format_args!("reader {reader} {does} {version}"), now, |then| {
                    then.readers[reader] = Reader::Idle;
                    if stores {
                        then.entry = Some(version);
                        then.ticket = None;
                    }
                });
            }
        }
    }

    fn write(&self, writer: usize, now: &State, steps: &mut Steps<State>) {
        match now.writers[writer] {
            Writer::Idle if self.then == Then::Supersede => {
                let is_held = now.change.is_some();
                let does = if is_held { "finds the ticket of another" } else { "places its ticket" };
                steps.add(format_args!("writer {writer} {does}"), now, |then| {
                    then.writers[writer] = Writer::Begun;
                    if !is_held {
                        then.change = Some(writer);
                    }
                });
            }
            Writer::Idle | Writer::Begun => {
                let version = now.database + 1;
                steps.add(format_args!("writer {writer} writes {version} to the database"), now, |then| {
                    then.database = version;
                    then.writers[writer] = Writer::Written(version);
                });
            }
            Writer::Written(version) => match self.then {
                Then::Supersede if now.change == Some(writer) => {
                    steps.add(format_args!("writer {writer} supersedes"), now, |then| {
                        then.purge();
                        then.change = Some(writer);
                        then.writers[writer] = Writer::Superseded(version);
                        then.floor = then.floor.max(version);
                    });
                }
                Then::Purge | Then::Supersede => steps.add(format_args!("writer {writer} purges"), now, |then| {
                    then.purge();
                    then.writers[writer] = Writer::Gone;
                    then.floor = then.database;
                }),
                Then::Set | Then::SetIfNewer => {
                    let sets = self.then == Then::Set || now.entry < Some(version);
                    let does = if sets { "sets" } else { "may not set" };
                    steps.add(format_args!("writer {writer} {does} {version}"), now, |then| {
                        if sets {
                            then.entry = Some(version);
                        }
                        then.writers[writer] = Writer::Gone;
                        then.floor = then.floor.max(version);
                    });
                }
            },
            Writer::Superseded(version) => {
                let stores = now.change == Some(writer);
                let does = if stores { "stores" } else { "may not store" };
                steps.add(format_args!("writer {writer} {does} {version}"), now, |then| {
                    if stores {
                        then.entry = Some(version);
                        then.change = None;
                    }
                    then.writers[writer] = Writer::Gone;
                });
            }
            Writer::Gone => {}
        }
    }

    fn lose(now: &State, steps: &mut Steps<State>) {
        for reader in 0..READERS {
            steps.add(format_args!("reader {reader} dies, and another takes its place"), now, |then| {
                then.readers[reader] = Reader::Idle;
            });
        }
        for writer in (0..WRITERS).filter(|writer| now.writers[*writer] != Writer::Idle) {
            steps.add(format_args!("writer {writer} dies"), now, |then| then.writers[writer] = Writer::Gone);
        }
        steps.add(format_args!("Redis loses the entry"), now, |then| then.entry = None);
        steps.add(format_args!("Redis loses the ticket"), now, |then| then.ticket = None);
        steps.add(format_args!("Redis loses the ticket of those who change"), now, |then| then.change = None);
    }
}

impl Model for WriteThrough {
    type State = State;

    fn initial(&self) -> State {
        State {
            database: 0,
            entry: None,
            ticket: None,
            change: None,
            readers: [Reader::Idle; READERS],
            writers: [Writer::Idle; WRITERS],
            floor: 0,
        }
    }

    fn next(&self, now: &State, steps: &mut Steps<State>) {
        (0..READERS).for_each(|reader| self.read(reader, now, steps));
        (0..WRITERS).for_each(|writer| self.write(writer, now, steps));
        if self.faults {
            Self::lose(now, steps);
        }
    }

    fn fault(&self, now: &State) -> Option<String> {
        let entry = now.entry.filter(|entry| *entry < now.floor)?;
        Some(format!("who reads now is given {entry}, after the write of {} has returned", now.floor))
    }

    fn canonical(&self, state: &State) -> State {
        let mut state = state.clone();
        state.readers.sort_unstable();
        state
    }
}

#[test]
fn two_who_set_what_they_wrote_may_do_so_in_the_wrong_order() {
    violated(
        &WriteThrough { then: Then::Set, faults: false },
        &[
            "writer 0 writes 1 to the database",
            "writer 1 writes 2 to the database",
            "writer 1 sets 2",
            "writer 0 sets 1",
            "who reads now is given 1, after the write of 2 has returned",
        ],
    );
}

#[test]
fn to_set_only_what_is_newer_is_enough_as_long_as_nothing_is_lost() {
    holds(&WriteThrough { then: Then::SetIfNewer, faults: false }, 450);
}

#[test]
fn to_set_only_what_is_newer_is_not_enough_when_what_was_there_is_lost() {
    violated(
        &WriteThrough { then: Then::SetIfNewer, faults: true },
        &[
            "writer 0 writes 1 to the database",
            "writer 1 writes 2 to the database",
            "writer 1 sets 2",
            "Redis loses the entry",
            "writer 0 sets 1",
            "who reads now is given 1, after the write of 2 has returned",
        ],
    );
}

#[test]
fn to_remove_it_is_enough() {
    holds(&WriteThrough { then: Then::Purge, faults: true }, 110_000);
}

#[test]
fn to_store_with_a_ticket_from_before_the_write_is_enough() {
    holds(&WriteThrough { then: Then::Supersede, faults: true }, 1_100_000);
}
