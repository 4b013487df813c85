//! Writers who die, and writers who store what they wrote: a mark that begins before the write.
//!
//! A writer marks the key before it opens its transaction, and ends the mark after. While there is a mark, readers ask the
//! database and store nothing. Three readers, who read for ever, and as many writers as the test says; `ends` is the script
//! at the end.

use larder_model::{Model, Steps, holds, unused, violated};

const READERS: usize = 3;
const WRITERS: usize = 2;

/// What the database holds, counted.
type Version = u8;
type Nonce = u8;

#[derive(Clone, Copy, PartialEq)]
enum Marks {
    /// None: a writer writes, and then purges.
    None,
    /// One for the key: whoever begins takes the place of who began before, and any end is the end of it.
    One,
    /// One for each writer, and each ends its own.
    Each,
}

/// Whether there was another mark at any time since this one was made. It is not enough to look for others at the end:
/// one who has begun and ended in between may have written later than this one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Mark {
    Sole,
    Shared,
}

#[derive(Clone, Copy, PartialEq)]
enum Lasts {
    /// Until after the transaction, however long that takes.
    Longer,
    /// For a time, and then it is gone.
    ForATime,
}

struct Guard {
    writers: usize,
    marks: Marks,
    lasts: Lasts,
    /// A writer whose mark is there and was the only one leaves what it has written in the cache.
    writes_through: bool,
    /// Writers die.
    crashes: bool,
    /// Redis evicts entries and tickets; marks too, if they are not spared.
    evicts: bool,
    spares_marks: bool,
}

const USUAL: Guard = Guard {
    writers: WRITERS,
    marks: Marks::Each,
    lasts: Lasts::Longer,
    writes_through: false,
    crashes: true,
    evicts: true,
    spares_marks: true,
};

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    database: Version,
    entry: Option<Version>,
    ticket: Option<Nonce>,
    /// Whose mark is there.
    marks: [Option<Mark>; WRITERS],
    readers: [Reader; READERS],
    writers: [Writer; WRITERS],
    /// What was written through, or what the database held when a writer purged, of those that have returned.
    floor: Version,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
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

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Writer {
    Idle,
    /// Its transaction is open.
    Begun,
    Committed(Version),
    Returned,
    /// It has died, and the database will know later whether the transaction is committed.
    InDoubt,
    Dead,
}

impl Writer {
    fn has_transaction(self) -> bool {
        matches!(self, Self::Begun | Self::InDoubt)
    }
}

impl State {
    fn is_marked(&self) -> bool {
        self.marks != [None; WRITERS]
    }

    fn void(&mut self) {
        self.entry = None;
        self.ticket = None;
    }

    fn unused(&self) -> Nonce {
        unused(self.ticket.into_iter().chain(self.readers.iter().filter_map(|reader| reader.ticket())))
    }
}

impl Guard {
    fn read(reader: usize, now: &State, steps: &mut Steps<State>) {
        match now.readers[reader] {
            Reader::Idle if now.entry.is_some() || now.ticket.is_some() || now.is_marked() => {}
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
                    }
                });
            }
        }
    }

    fn write(&self, writer: usize, now: &State, steps: &mut Steps<State>) {
        match now.writers[writer] {
            Writer::Idle => steps.add(format_args!("writer {writer} begins"), now, |then| {
                then.writers[writer] = Writer::Begun;
                self.mark(writer, then);
            }),
            Writer::Begun => {
                let version = now.database + 1;
                steps.add(format_args!("writer {writer} writes {version} to the database"), now, |then| {
                    then.database = version;
                    then.writers[writer] = Writer::Committed(version);
                });
            }
            Writer::Committed(version) => self.end(writer, version, now, steps),
            Writer::InDoubt => {
                let version = now.database + 1;
                steps.add(format_args!("the database commits {version}, which writer {writer} wrote"), now, |then| {
                    then.database = version;
                    then.writers[writer] = Writer::Dead;
                });
                steps.add(format_args!("the database forgets what writer {writer} wrote"), now, |then| {
                    then.writers[writer] = Writer::Dead;
                });
            }
            Writer::Returned | Writer::Dead => {}
        }
        if self.crashes && matches!(now.writers[writer], Writer::Begun | Writer::Committed(_)) {
            steps.add(format_args!("writer {writer} dies"), now, |then| {
                let is_open = then.writers[writer].has_transaction();
                then.writers[writer] = if is_open { Writer::InDoubt } else { Writer::Dead };
            });
        }
    }

    fn mark(&self, writer: usize, then: &mut State) {
        match self.marks {
            Marks::None => return,
            Marks::One => {
                then.marks = [None; WRITERS];
                then.marks[writer] = Some(Mark::Sole);
            }
            Marks::Each => {
                let mark = if then.is_marked() { Mark::Shared } else { Mark::Sole };
                then.marks[writer] = Some(mark);
                then.marks.iter_mut().flatten().for_each(|other| *other = mark);
            }
        }
        then.void();
    }

    fn end(&self, writer: usize, version: Version, now: &State, steps: &mut Steps<State>) {
        let stores = self.writes_through && now.marks[writer] == Some(Mark::Sole);
        let does = if stores { "stores it" } else { "purges" };
        steps.add(format_args!("writer {writer} {does}, and ends"), now, |then| {
            then.void();
            then.entry = stores.then_some(version);
            match self.marks {
                Marks::Each => then.marks[writer] = None,
                Marks::None | Marks::One => then.marks = [None; WRITERS],
            }
            then.writers[writer] = Writer::Returned;
            then.floor = if stores { version.max(then.floor) } else { then.database };
        });
    }

    fn lose(&self, now: &State, steps: &mut Steps<State>) {
        if self.evicts {
            steps.add(format_args!("Redis loses the entry"), now, |then| then.entry = None);
            steps.add(format_args!("Redis loses the ticket"), now, |then| then.ticket = None);
        }
        for writer in (0..self.writers).filter(|writer| now.marks[*writer].is_some()) {
            let is_over = self.lasts == Lasts::ForATime || !now.writers[writer].has_transaction();
            if is_over || self.evicts && !self.spares_marks {
                steps.add(format_args!("the mark of writer {writer} is gone"), now, |then| then.marks[writer] = None);
            }
        }
    }
}

impl Model for Guard {
    type State = State;

    fn initial(&self) -> State {
        State {
            database: 0,
            entry: None,
            ticket: None,
            marks: [None; WRITERS],
            readers: [Reader::Idle; READERS],
            writers: [Writer::Idle; WRITERS],
            floor: 0,
        }
    }

    fn next(&self, now: &State, steps: &mut Steps<State>) {
        (0..READERS).for_each(|reader| Self::read(reader, now, steps));
        (0..self.writers).for_each(|writer| self.write(writer, now, steps));
        self.lose(now, steps);
    }

    /// Not even writers who died may leave behind what is older than the database.
    fn fault(&self, now: &State) -> Option<String> {
        let entry = now.entry?;
        let is_written = |writer: &Writer| matches!(writer, Writer::Idle | Writer::Returned | Writer::Dead);
        if entry < now.floor {
            Some(format!("who reads now is given {entry}, after {} was written and invalidated", now.floor))
        } else if entry < now.database && now.writers.iter().all(is_written) {
            Some(format!("{entry} is left in the cache, and {} in the database", now.database))
        } else {
            None
        }
    }
}

#[test]
fn without_a_mark_a_writer_that_dies_leaves_what_is_old() {
    violated(
        &Guard { writers: 1, marks: Marks::None, ..USUAL },
        &[
            "reader 0 places its ticket",
            "reader 0 reads 0 from the database",
            "reader 0 stores 0",
            "writer 0 begins",
            "writer 0 writes 1 to the database",
            "writer 0 dies",
            "0 is left in the cache, and 1 in the database",
        ],
    );
}

#[test]
fn a_mark_that_outlives_the_transaction_is_enough() {
    holds(&Guard { writers: 1, ..USUAL }, 5400);
}

#[test]
fn a_mark_that_does_not_is_not_enough() {
    violated(
        &Guard { writers: 1, lasts: Lasts::ForATime, ..USUAL },
        &[
            "writer 0 begins",
            "writer 0 dies",
            "the mark of writer 0 is gone",
            "reader 0 places its ticket",
            "reader 0 reads 0 from the database",
            "reader 0 stores 0",
            "the database commits 1, which writer 0 wrote",
            "0 is left in the cache, and 1 in the database",
        ],
    );
}

#[test]
fn a_mark_that_is_evicted_is_not_enough() {
    violated(
        &Guard { writers: 1, spares_marks: false, ..USUAL },
        &[
            "writer 0 begins",
            "writer 0 dies",
            "the mark of writer 0 is gone",
            "reader 0 places its ticket",
            "reader 0 reads 0 from the database",
            "reader 0 stores 0",
            "the database commits 1, which writer 0 wrote",
            "0 is left in the cache, and 1 in the database",
        ],
    );
}

#[test]
fn one_mark_for_two_writers_is_not_enough() {
    violated(
        &Guard { marks: Marks::One, ..USUAL },
        &[
            "writer 0 begins",
            "writer 0 writes 1 to the database",
            "writer 1 begins",
            "writer 0 purges, and ends",
            "reader 0 places its ticket",
            "reader 0 reads 1 from the database",
            "reader 0 stores 1",
            "writer 1 writes 2 to the database",
            "writer 1 dies",
            "1 is left in the cache, and 2 in the database",
        ],
    );
}

#[test]
fn one_mark_for_two_writers_is_enough_if_none_dies() {
    holds(&Guard { marks: Marks::One, lasts: Lasts::ForATime, crashes: false, spares_marks: false, ..USUAL }, 42_000);
}

#[test]
fn a_mark_for_each_of_two_writers_is_enough() {
    holds(&USUAL, 100_000);
}

#[test]
fn one_writer_that_writes_through_its_mark_leaves_nothing_old() {
    holds(&Guard { writers: 1, writes_through: true, marks: Marks::One, ..USUAL }, 5600);
}

#[test]
fn one_mark_for_two_writers_who_write_through_it_is_not_enough() {
    violated(
        &Guard { writes_through: true, marks: Marks::One, ..USUAL },
        &[
            "writer 0 begins",
            "writer 0 dies",
            "writer 1 begins",
            "writer 1 writes 1 to the database",
            "the database commits 2, which writer 0 wrote",
            "writer 1 stores it, and ends",
            "1 is left in the cache, and 2 in the database",
        ],
    );
}

#[test]
fn one_mark_for_two_writers_who_write_through_it_is_enough_if_none_dies() {
    let guard = Guard { marks: Marks::One, lasts: Lasts::ForATime, crashes: false, spares_marks: false, ..USUAL };
    holds(&Guard { writes_through: true, ..guard }, 44_000);
}

#[test]
fn a_mark_for_each_of_two_writers_who_write_through_it_is_enough() {
    holds(&Guard { writes_through: true, ..USUAL }, 100_000);
}
