//! A fill against invalidations of the same key: what must be compared when an answer is stored.
//!
//! Three readers, who read for ever, and three writers. A GET that finds an entry changes nothing, and one that finds none
//! leaves nothing behind: so neither is a step, and a read begins with the script that follows.

use larder_model::{Model, Steps, holds, unused, violated};

const READERS: usize = 3;
const WRITERS: usize = 3;

/// What the database holds, counted.
type Version = u8;

/// What makes one ticket, lock or fence another than the one before.
type Nonce = u8;

/// What is compared when an answer is stored.
#[derive(Clone, Copy, PartialEq)]
enum Fence {
    Nothing,
    /// `SET NX` before the database is asked, and stored if it is still the owner's; an invalidation does not touch it.
    Lock,
    /// The same, but that an invalidation voids it.
    Ticket,
    /// A counter that stays, and that an invalidation advances. Where there is none, it is 0.
    Counter,
    /// A random number that stays until an invalidation removes it. Where there is none, one is drawn.
    Random,
}

#[derive(Clone, Copy)]
enum Act {
    Write,
    Purge,
}

const AFTER: &[Act] = &[Act::Write, Act::Purge];
const BEFORE: &[Act] = &[Act::Purge, Act::Write];
const BEFORE_AND_AFTER: &[Act] = &[Act::Purge, Act::Write, Act::Purge];

struct Fill {
    fence: Fence,
    writer: &'static [Act],
    /// A reader may also fetch what is there.
    early_refresh: bool,
    /// A reader that waited for the ticket of another in vain asks the database all the same, and may store with it.
    shared: bool,
    /// Readers leave or die, and Redis loses what it likes: by eviction, or because its time has come.
    faults: bool,
}

const USUAL: Fill = Fill { fence: Fence::Ticket, writer: AFTER, early_refresh: false, shared: false, faults: false };

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    database: Version,
    entry: Option<Version>,
    /// The lock, ticket, counter or random number.
    fence: Option<Nonce>,
    readers: [Reader; READERS],
    /// How many acts each writer has done.
    writers: [u8; WRITERS],
    /// What the database held when the last act of a writer began, of all that have returned.
    floor: Version,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Reader {
    Idle,
    Asking(Option<Nonce>),
    Answered(Option<Nonce>, Version),
}

impl Reader {
    fn fence(self) -> Option<Nonce> {
        match self {
            Self::Idle => None,
            Self::Asking(fence) | Self::Answered(fence, _) => fence,
        }
    }
}

impl State {
    fn unused(&self) -> Nonce {
        unused(self.fence.into_iter().chain(self.readers.iter().filter_map(|reader| reader.fence())))
    }
}

impl Fill {
    fn read(&self, reader: usize, now: &State, steps: &mut Steps<State>) {
        match now.readers[reader] {
            Reader::Idle if now.entry.is_some() && !self.early_refresh => {}
            Reader::Idle => match (self.fence, now.fence) {
                (Fence::Nothing, _) => steps.add(format_args!("reader {reader} finds nothing"), now, |then| {
                    then.readers[reader] = Reader::Asking(None);
                }),
                (Fence::Counter, counter) => {
                    let counter = counter.unwrap_or(0);
                    steps.add(
                        format_args!("reader {reader} finds nothing, and the counter at {counter}"),
                        now,
                        |then| {
                            then.readers[reader] = Reader::Asking(Some(counter));
                        },
                    );
                }
                (Fence::Random, Some(random)) => {
                    steps.add(format_args!("reader {reader} finds nothing but the random number"), now, |then| {
                        then.readers[reader] = Reader::Asking(Some(random));
                    });
                }
                (Fence::Lock | Fence::Ticket, Some(held)) => {
                    if self.shared {
                        steps.add(format_args!("reader {reader} has waited enough for the ticket"), now, |then| {
                            then.readers[reader] = Reader::Asking(Some(held));
                        });
                    }
                }
                (Fence::Lock | Fence::Ticket | Fence::Random, None) => {
                    steps.add(format_args!("reader {reader} places {}", self.fence_name()), now, |then| {
                        let nonce = then.unused();
                        then.fence = Some(nonce);
                        then.readers[reader] = Reader::Asking(Some(nonce));
                    });
                }
            },
            Reader::Asking(fence) => {
                steps.add(format_args!("reader {reader} reads {} from the database", now.database), now, |then| {
                    then.readers[reader] = Reader::Answered(fence, then.database);
                });
            }
            Reader::Answered(fence, version) => {
                let is_same = match self.fence {
                    Fence::Nothing => true,
                    Fence::Counter => fence == Some(now.fence.unwrap_or(0)),
                    Fence::Lock | Fence::Ticket | Fence::Random => fence == now.fence,
                };
                let does = if is_same { "stores" } else { "may not store" };
                steps.add(format_args!("reader {reader} {does} {version}"), now, |then| {
                    then.readers[reader] = Reader::Idle;
                    if is_same {
                        then.entry = Some(version);
                        if matches!(self.fence, Fence::Lock | Fence::Ticket) {
                            then.fence = None;
                        }
                    }
                });
            }
        }
    }

    fn fence_name(&self) -> &'static str {
        match self.fence {
            Fence::Nothing => "nothing",
            Fence::Lock => "its lock",
            Fence::Ticket => "its ticket",
            Fence::Counter => "the counter",
            Fence::Random => "a random number",
        }
    }

    fn write(&self, writer: usize, now: &State, steps: &mut Steps<State>) {
        let done = usize::from(now.writers[writer]) + 1;
        let Some(act) = self.writer.get(done - 1) else { return };
        let returned = |then: &mut State| {
            then.writers[writer] += 1;
            if done == self.writer.len() {
                then.floor = then.database;
            }
        };
        match act {
            Act::Write => {
                steps.add(format_args!("writer {writer} writes {} to the database", now.database + 1), now, |then| {
                    then.database += 1;
                    returned(then);
                });
            }
            Act::Purge => steps.add(format_args!("writer {writer} purges"), now, |then| {
                then.entry = None;
                then.fence = match self.fence {
                    Fence::Nothing | Fence::Lock => then.fence,
                    Fence::Ticket | Fence::Random => None,
                    Fence::Counter => Some(then.fence.unwrap_or(0) + 1),
                };
                returned(then);
            }),
        }
    }
}

impl Model for Fill {
    type State = State;

    fn initial(&self) -> State {
        State {
            database: 0,
            entry: None,
            fence: None,
            readers: [Reader::Idle; READERS],
            writers: [0; WRITERS],
            floor: 0,
        }
    }

    fn next(&self, now: &State, steps: &mut Steps<State>) {
        (0..READERS).for_each(|reader| self.read(reader, now, steps));
        (0..WRITERS).for_each(|writer| self.write(writer, now, steps));
        if !self.faults {
            return;
        }
        for reader in 0..READERS {
            steps.add(format_args!("reader {reader} dies, and another takes its place"), now, |then| {
                then.readers[reader] = Reader::Idle;
            });
        }
        steps.add(format_args!("Redis loses the entry"), now, |then| then.entry = None);
        steps.add(format_args!("Redis loses {}", self.fence_name()), now, |then| then.fence = None);
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
fn nothing_to_compare_is_not_enough() {
    violated(
        &Fill { fence: Fence::Nothing, ..USUAL },
        &[
            "reader 0 finds nothing",
            "reader 0 reads 0 from the database",
            "writer 0 writes 1 to the database",
            "writer 0 purges",
            "reader 0 stores 0",
            "who reads now is given 0, after 1 was written and invalidated",
        ],
    );
}

#[test]
fn a_lock_that_an_invalidation_leaves_is_not_enough() {
    violated(
        &Fill { fence: Fence::Lock, ..USUAL },
        &[
            "reader 0 places its lock",
            "reader 0 reads 0 from the database",
            "writer 0 writes 1 to the database",
            "writer 0 purges",
            "reader 0 stores 0",
            "who reads now is given 0, after 1 was written and invalidated",
        ],
    );
}

#[test]
fn a_ticket_is_enough() {
    holds(&USUAL, 990);
}

#[test]
fn a_ticket_is_enough_whatever_dies_or_is_lost() {
    holds(&Fill { faults: true, ..USUAL }, 8500);
}

#[test]
fn a_ticket_is_enough_when_those_who_waited_in_vain_share_it() {
    holds(&Fill { shared: true, faults: true, ..USUAL }, 19_000);
}

#[test]
fn a_ticket_is_enough_when_what_is_there_is_fetched_again() {
    holds(&Fill { early_refresh: true, shared: true, faults: true, ..USUAL }, 43_000);
}

#[test]
fn to_invalidate_before_the_write_is_not_enough() {
    violated(
        &Fill { writer: BEFORE, ..USUAL },
        &[
            "writer 0 purges",
            "reader 0 places its ticket",
            "reader 0 reads 0 from the database",
            "reader 0 stores 0",
            "writer 0 writes 1 to the database",
            "who reads now is given 0, after 1 was written and invalidated",
        ],
    );
}

#[test]
fn to_invalidate_before_and_after_the_write_is_enough() {
    holds(&Fill { writer: BEFORE_AND_AFTER, faults: true, ..USUAL }, 12_000);
}

#[test]
fn a_counter_that_stays_is_enough() {
    holds(&Fill { fence: Fence::Counter, early_refresh: true, ..USUAL }, 5200);
}

#[test]
fn a_counter_that_is_lost_begins_anew_and_is_not_enough() {
    violated(
        &Fill { fence: Fence::Counter, faults: true, ..USUAL },
        &[
            "reader 0 finds nothing, and the counter at 0",
            "reader 0 reads 0 from the database",
            "writer 0 writes 1 to the database",
            "writer 0 purges",
            "Redis loses the counter",
            "reader 0 stores 0",
            "who reads now is given 0, after 1 was written and invalidated",
        ],
    );
}

#[test]
fn a_random_number_that_is_lost_is_enough() {
    holds(&Fill { fence: Fence::Random, early_refresh: true, faults: true, ..USUAL }, 46_000);
}
