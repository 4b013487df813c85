//! Tags by a logical clock: what a fill notes of the clock, and what an entry is compared with.
//!
//! One key with one tag, for several tags are valid apart. Two instances, who read for ever and fill what they find
//! invalid, and two writers. What a tag invalidates stays where it is, so a hit is a step here: the entry is read, the
//! record is read, and then it is judged.

use larder_model::{Model, Steps, holds, violated};

const INSTANCES: usize = 2;
const WRITERS: usize = 2;
/// How often Redis loses the clock at most, for it never shows the same again.
const LOSSES: u8 = 2;

/// What the database holds, counted.
type Version = u8;
type Clock = u8;

/// What is read of a tag that has no record.
#[derive(Clone, Copy, PartialEq)]
enum Absent {
    /// It is re-created at what the clock shows.
    Now,
    /// It is re-created at 0.
    Zero,
    /// Nothing was invalidated.
    Valid,
}

/// When a fill notes what its instance knows of the clock.
#[derive(Clone, Copy, PartialEq)]
enum Noted {
    BeforeOrigin,
    AfterOrigin,
}

/// Where a clock that was lost begins.
#[derive(Clone, Copy, PartialEq)]
enum Restart {
    /// With the time, which is beyond whatever it has shown.
    AtTheTime,
    /// At 1, as a plain counter does.
    AtOne,
}

struct Tagged {
    absent: Absent,
    noted: Noted,
    restart: Restart,
    /// Redis loses the entry, the record, the clock.
    faults: bool,
}

const USUAL: Tagged =
    Tagged { absent: Absent::Now, noted: Noted::BeforeOrigin, restart: Restart::AtTheTime, faults: true };

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    database: Version,
    clock: Option<Clock>,
    /// The latest that the clock has shown: the time, as it were.
    time: Clock,
    losses: u8,
    /// When the tag was invalidated.
    record: Option<Clock>,
    entry: Option<Entry>,
    instances: [Instance; INSTANCES],
    writers: [Writer; WRITERS],
    /// What the database held when an invalidation began that has returned.
    floor: Version,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Entry {
    version: Version,
    born: Clock,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Instance {
    /// What it knows of the clock.
    clock: Clock,
    reader: Reader,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Reader {
    Idle,
    /// It has read an entry, and what had been invalidated when it began.
    Found(Entry, Version),
    Asking(Clock),
    Answered(Clock, Version),
    /// It has served from the cache what is below the floor when it began.
    Outdated(Version, Version),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Writer {
    Idle,
    Written,
    Returned,
}

impl Tagged {
    /// What `advance` does in Redis.
    fn advance(&self, now: &mut State) -> Clock {
        let next = match (now.clock, self.restart) {
            (Some(clock), _) => clock + 1,
            (None, Restart::AtTheTime) => now.time + 1,
            (None, Restart::AtOne) => 1,
        };
        now.clock = Some(next);
        now.time = now.time.max(next);
        next
    }

    /// What `recall` does in Redis: it shows the clock and the record, and makes them where they are not.
    fn recall(&self, now: &mut State) -> (Clock, Clock) {
        let clock = now.clock.unwrap_or_else(|| self.advance(now));
        let record = now.record.unwrap_or(match self.absent {
            Absent::Now => clock,
            Absent::Zero | Absent::Valid => 0,
        });
        if self.absent != Absent::Valid {
            now.record = Some(record);
        }
        (clock, record)
    }

    fn read(&self, number: usize, now: &State, steps: &mut Steps<State>) {
        let Instance { clock, reader } = now.instances[number];
        match reader {
            Reader::Idle => match now.entry {
                None => steps.add(format_args!("instance {number} finds nothing, and knows of {clock}"), now, |then| {
                    then.instances[number].reader = Reader::Asking(clock);
                }),
                Some(entry) => {
                    let Entry { version, born } = entry;
                    steps.add(format_args!("instance {number} finds {version}, born at {born}"), now, |then| {
                        then.instances[number].reader = Reader::Found(entry, then.floor);
                    });
                }
            },
            Reader::Found(entry, floor) => {
                let (_, record) = self.recall(&mut now.clone());
                let is_valid = record <= entry.born;
                let does = if is_valid { "serves it" } else { "does not serve it" };
                steps.add(format_args!("instance {number} finds the record at {record}, and {does}"), now, |then| {
                    let (clock, _) = self.recall(then);
                    let known = then.instances[number].clock.max(clock);
                    let reader = match is_valid {
                        true if entry.version < floor => Reader::Outdated(entry.version, floor),
                        true => Reader::Idle,
                        false => Reader::Asking(known),
                    };
                    then.instances[number] = Instance { clock: known, reader };
                });
            }
            Reader::Asking(born) => {
                steps.add(format_args!("instance {number} reads {} from the database", now.database), now, |then| {
                    then.instances[number].reader = Reader::Answered(born, then.database);
                });
            }
            Reader::Answered(before, version) => {
                let born = match self.noted {
                    Noted::BeforeOrigin => before,
                    Noted::AfterOrigin => clock,
                };
                steps.add(format_args!("instance {number} stores {version}, born at {born}"), now, |then| {
                    then.entry = Some(Entry { version, born });
                    then.instances[number].reader = Reader::Idle;
                });
            }
            Reader::Outdated(..) => {}
        }
        // Perhaps late, so perhaps of what it showed once.
        for known in clock + 1..=now.clock.unwrap_or(0) {
            steps.add(format_args!("instance {number} learns that the clock has shown {known}"), now, |then| {
                then.instances[number].clock = known;
            });
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
            Writer::Written => {
                let clock = self.advance(&mut now.clone());
                steps.add(format_args!("writer {writer} invalidates the tag at {clock}"), now, |then| {
                    then.record = Some(self.advance(then));
                    then.floor = then.database;
                    then.writers[writer] = Writer::Returned;
                });
            }
            Writer::Returned => {}
        }
    }
}

impl Model for Tagged {
    type State = State;

    fn initial(&self) -> State {
        State {
            database: 0,
            clock: Some(1),
            time: 1,
            losses: 0,
            record: None,
            entry: None,
            instances: [Instance { clock: 1, reader: Reader::Idle }; INSTANCES],
            writers: [Writer::Idle; WRITERS],
            floor: 0,
        }
    }

    fn next(&self, now: &State, steps: &mut Steps<State>) {
        (0..INSTANCES).for_each(|number| self.read(number, now, steps));
        (0..WRITERS).for_each(|writer| self.write(writer, now, steps));
        if !self.faults {
            return;
        }
        for number in 0..INSTANCES {
            steps.add(format_args!("instance {number} gives up its read"), now, |then| {
                then.instances[number].reader = Reader::Idle;
            });
        }
        steps.add(format_args!("Redis loses the entry"), now, |then| then.entry = None);
        steps.add(format_args!("Redis loses the record"), now, |then| then.record = None);
        if now.clock.is_some() && now.losses < LOSSES {
            steps.add(format_args!("Redis loses the clock"), now, |then| {
                then.clock = None;
                then.losses += 1;
            });
        }
    }

    fn fault(&self, now: &State) -> Option<String> {
        now.instances.iter().find_map(|instance| match instance.reader {
            Reader::Outdated(version, floor) => {
                Some(format!("that was {version}, asked for after {floor} was written and invalidated"))
            }
            _ => None,
        })
    }

    fn canonical(&self, state: &State) -> State {
        let mut state = state.clone();
        state.instances.sort_unstable();
        state.writers.sort_unstable();
        state
    }
}

#[test]
fn born_before_the_origin_is_asked_is_enough() {
    holds(&Tagged { faults: false, ..USUAL }, 5500);
}

#[test]
fn a_record_that_is_lost_is_made_anew_at_what_the_clock_shows_however_late_the_instances_know_of_it() {
    holds(&USUAL, 490_000);
}

#[test]
fn a_record_that_is_made_anew_at_0_is_not_enough() {
    violated(
        &Tagged { absent: Absent::Zero, ..USUAL },
        &[
            "instance 0 finds nothing, and knows of 1",
            "instance 0 reads 0 from the database",
            "instance 0 stores 0, born at 1",
            "writer 0 writes 1 to the database",
            "writer 0 invalidates the tag at 2",
            "instance 0 finds 0, born at 1",
            "Redis loses the record",
            "instance 0 finds the record at 0, and serves it",
            "that was 0, asked for after 1 was written and invalidated",
        ],
    );
}

#[test]
fn to_take_a_tag_without_a_record_as_valid_is_not_enough() {
    violated(
        &Tagged { absent: Absent::Valid, ..USUAL },
        &[
            "instance 0 finds nothing, and knows of 1",
            "instance 0 reads 0 from the database",
            "instance 0 stores 0, born at 1",
            "writer 0 writes 1 to the database",
            "writer 0 invalidates the tag at 2",
            "instance 0 finds 0, born at 1",
            "Redis loses the record",
            "instance 0 finds the record at 0, and serves it",
            "that was 0, asked for after 1 was written and invalidated",
        ],
    );
}

#[test]
fn born_after_the_origin_has_answered_is_not_enough() {
    violated(
        &Tagged { noted: Noted::AfterOrigin, faults: false, ..USUAL },
        &[
            "instance 0 finds nothing, and knows of 1",
            "instance 0 reads 0 from the database",
            "writer 0 writes 1 to the database",
            "writer 0 invalidates the tag at 2",
            "instance 0 learns that the clock has shown 2",
            "instance 0 stores 0, born at 2",
            "instance 0 finds 0, born at 2",
            "instance 0 finds the record at 2, and serves it",
            "that was 0, asked for after 1 was written and invalidated",
        ],
    );
}

#[test]
fn a_clock_that_is_lost_and_counts_from_1_is_not_enough() {
    violated(
        &Tagged { restart: Restart::AtOne, ..USUAL },
        &[
            "instance 0 finds nothing, and knows of 1",
            "instance 0 reads 0 from the database",
            "instance 0 stores 0, born at 1",
            "writer 0 writes 1 to the database",
            "Redis loses the clock",
            "writer 0 invalidates the tag at 1",
            "instance 0 finds 0, born at 1",
            "instance 0 finds the record at 1, and serves it",
            "that was 0, asked for after 1 was written and invalidated",
        ],
    );
}
