//! Tags judged by a table in the process: it knows what the log had told by the last heartbeat.
//!
//! One key with one tag; two instances, who read for ever, and two writers. A lease says that the instance had applied the
//! log to its end when the heartbeat was answered. So a read under a lease must not get what was invalidated before that
//! heartbeat, and one without a lease nothing that was invalidated before the read.

use larder_model::{Model, Steps, holds, violated};

const INSTANCES: usize = 2;
const WRITERS: usize = 2;

/// What the database holds, counted.
type Version = u8;
/// The clock shows 1 at first, and one more with each invalidation; so it is the place in the log, too.
type Clock = u8;

#[derive(Clone, Copy, PartialEq)]
enum Heartbeat {
    /// It applies what is left of the log, and then renews the lease.
    CatchesUp,
    /// It renews the lease.
    RenewsOnly,
}

/// What becomes of a record that was asked for while the log went on.
#[derive(Clone, Copy, PartialEq)]
enum Remembered {
    /// The later of it and what the table has.
    TheLater,
    /// It takes the place of what the table has.
    TheReply,
}

struct Tables {
    heartbeat: Heartbeat,
    remembered: Remembered,
}

const USUAL: Tables = Tables { heartbeat: Heartbeat::CatchesUp, remembered: Remembered::TheLater };

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    database: Version,
    clock: Clock,
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
    /// How far it has applied the log.
    applied: Clock,
    /// When the tag was invalidated, as far as it knows.
    known: Option<Clock>,
    /// The floor at the last heartbeat, as long as its lease lasts.
    lease: Option<Version>,
    reader: Reader,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Reader {
    Idle,
    /// It has read an entry; with the floor that it must keep, and whether its table may judge.
    Found(Entry, Version, Judge),
    /// Redis has answered what the record is, and nobody has read the answer.
    Told(Entry, Version, Clock),
    Asking(Clock),
    Answered(Clock, Version),
    /// It has served from the cache what is below the floor that it should have kept.
    Outdated(Version, Version),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Judge {
    Table,
    Redis,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Writer {
    Idle,
    Written,
    Returned,
}

impl Tables {
    fn read(&self, number: usize, now: &State, steps: &mut Steps<State>) {
        let instance = now.instances[number];
        let judged = |entry: Entry, floor, record| {
            let is_outdated = record <= entry.born && entry.version < floor;
            if is_outdated { Reader::Outdated(entry.version, floor) } else { Reader::Idle }
        };
        match instance.reader {
            Reader::Idle => self.begin(number, now, steps),
            Reader::Found(entry, floor, judge) => match instance.known.filter(|_| judge == Judge::Table) {
                Some(record) => {
                    steps.add(format_args!("instance {number} knows the record to be at {record}"), now, |then| {
                        then.instances[number].reader = judged(entry, floor, record);
                    });
                }
                None => {
                    let record = now.record.unwrap_or(now.clock);
                    steps.add(format_args!("Redis tells instance {number} of the record at {record}"), now, |then| {
                        then.record = Some(record);
                        then.instances[number].reader = Reader::Told(entry, floor, record);
                    });
                }
            },
            Reader::Told(entry, floor, record) => {
                steps.add(format_args!("instance {number} remembers {record}"), now, |then| {
                    let instance = &mut then.instances[number];
                    let record = match self.remembered {
                        Remembered::TheLater => instance.known.map_or(record, |known| known.max(record)),
                        Remembered::TheReply => record,
                    };
                    instance.known = Some(record);
                    instance.reader = judged(entry, floor, record);
                });
            }
            Reader::Asking(born) => {
                steps.add(format_args!("instance {number} reads {} from the database", now.database), now, |then| {
                    then.instances[number].reader = Reader::Answered(born, then.database);
                });
            }
            Reader::Answered(born, version) => {
                steps.add(format_args!("instance {number} stores {version}, born at {born}"), now, |then| {
                    then.entry = Some(Entry { version, born });
                    then.instances[number].reader = Reader::Idle;
                });
            }
            Reader::Outdated(..) => {}
        }
    }

    fn begin(&self, number: usize, now: &State, steps: &mut Steps<State>) {
        let Instance { applied, lease, .. } = now.instances[number];
        if let Some(entry) = now.entry {
            let (judge, floor) = lease.map_or((Judge::Redis, now.floor), |floor| (Judge::Table, floor));
            let Entry { version, born } = entry;
            steps.add(format_args!("instance {number} finds {version}, born at {born}"), now, |then| {
                then.instances[number].reader = Reader::Found(entry, floor, judge);
            });
        }
        // Whether it found nothing or what is invalid. It may know more of the clock than the log has told it.
        for born in applied..=now.clock {
            steps.add(format_args!("instance {number} fetches, and knows of {born}"), now, |then| {
                then.instances[number].reader = Reader::Asking(born);
            });
        }
    }

    fn hear(&self, number: usize, now: &State, steps: &mut Steps<State>) {
        let instance = now.instances[number];
        if instance.applied < now.clock {
            let next = instance.applied + 1;
            steps.add(format_args!("instance {number} applies that the tag was invalidated at {next}"), now, |then| {
                then.instances[number].apply(next);
            });
        }
        if instance.lease != Some(now.floor) || instance.applied < now.clock {
            steps.add(format_args!("the heartbeat of instance {number}"), now, |then| {
                then.instances[number].lease = Some(then.floor);
                if self.heartbeat == Heartbeat::CatchesUp && instance.applied < now.clock {
                    then.instances[number].apply(now.clock);
                }
            });
        }
        if instance.lease.is_some() {
            steps.add(format_args!("the lease of instance {number} runs out"), now, |then| {
                then.instances[number].lease = None;
            });
        }
    }

    fn write(writer: usize, now: &State, steps: &mut Steps<State>) {
        match now.writers[writer] {
            Writer::Idle => {
                steps.add(format_args!("writer {writer} writes {} to the database", now.database + 1), now, |then| {
                    then.database += 1;
                    then.writers[writer] = Writer::Written;
                });
            }
            Writer::Written => {
                steps.add(format_args!("writer {writer} invalidates the tag at {}", now.clock + 1), now, |then| {
                    then.clock += 1;
                    then.record = Some(then.clock);
                    then.floor = then.database;
                    then.writers[writer] = Writer::Returned;
                });
            }
            Writer::Returned => {}
        }
    }
}

impl Instance {
    fn apply(&mut self, clock: Clock) {
        self.applied = clock;
        self.known = Some(self.known.map_or(clock, |known| known.max(clock)));
    }
}

impl Model for Tables {
    type State = State;

    fn initial(&self) -> State {
        let instance = Instance { applied: 1, known: None, lease: None, reader: Reader::Idle };
        State {
            database: 0,
            clock: 1,
            record: None,
            entry: None,
            instances: [instance; INSTANCES],
            writers: [Writer::Idle; WRITERS],
            floor: 0,
        }
    }

    fn next(&self, now: &State, steps: &mut Steps<State>) {
        for number in 0..INSTANCES {
            self.read(number, now, steps);
            self.hear(number, now, steps);
        }
        (0..WRITERS).for_each(|writer| Self::write(writer, now, steps));
        steps.add(format_args!("Redis loses the entry"), now, |then| then.entry = None);
        steps.add(format_args!("Redis loses the record"), now, |then| then.record = None);
    }

    fn fault(&self, now: &State) -> Option<String> {
        now.instances.iter().find_map(|instance| match instance.reader {
            Reader::Outdated(version, floor) => {
                Some(format!("that was {version}, and the instance should have known that {floor} was invalidated"))
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
fn a_table_under_a_lease_keeps_to_its_bound() {
    holds(&USUAL, 2_600_000);
}

#[test]
fn a_lease_that_is_renewed_without_catching_up_is_not_enough() {
    violated(
        &Tables { heartbeat: Heartbeat::RenewsOnly, ..USUAL },
        &[
            "instance 0 fetches, and knows of 1",
            "instance 0 reads 0 from the database",
            "instance 0 stores 0, born at 1",
            "instance 0 finds 0, born at 1",
            "Redis tells instance 0 of the record at 1",
            "instance 0 remembers 1",
            "writer 0 writes 1 to the database",
            "writer 0 invalidates the tag at 2",
            "the heartbeat of instance 0",
            "instance 0 finds 0, born at 1",
            "instance 0 knows the record to be at 1",
            "that was 0, and the instance should have known that 1 was invalidated",
        ],
    );
}

#[test]
fn a_reply_that_takes_the_place_of_what_the_log_has_told_since_is_not_enough() {
    violated(
        &Tables { remembered: Remembered::TheReply, ..USUAL },
        &[
            "instance 0 fetches, and knows of 1",
            "instance 0 reads 0 from the database",
            "instance 0 stores 0, born at 1",
            "instance 0 finds 0, born at 1",
            "Redis tells instance 0 of the record at 1",
            "writer 0 writes 1 to the database",
            "writer 0 invalidates the tag at 2",
            "the heartbeat of instance 0",
            "instance 0 remembers 1",
            "instance 0 finds 0, born at 1",
            "instance 0 knows the record to be at 1",
            "that was 0, and the instance should have known that 1 was invalidated",
        ],
    );
}
