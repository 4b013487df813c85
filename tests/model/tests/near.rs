//! A copy near, in the process, of what is far, in Redis: which copies may stay, and in which order a purge
//! goes through the two.
//!
//! One instance has a near store and two readers, who read for ever; another has none, and fills. Two writers are elsewhere,
//! and purge far and publish; in one protocol it is the instance itself that writes. Far, tickets do what they do in
//! `fences.rs`.

use larder_model::{Model, Steps, holds, unused, violated};

const NEAR_READERS: usize = 2;
const READERS: usize = 3;
const WRITERS: usize = 2;

/// What the database holds, counted.
type Version = u8;
type Nonce = u8;

#[derive(Clone, Copy, PartialEq)]
enum Act {
    Write,
    /// Removes the entry and voids the ticket, in Redis.
    PurgeFar,
    /// Tells the instance, some time.
    Publish,
    /// Removes the copy, and advances the epoch.
    PurgeNear,
}

const FAR_FIRST: &[Act] = &[Act::Write, Act::PurgeFar, Act::Publish];
const PUBLISHED_FIRST: &[Act] = &[Act::Write, Act::Publish, Act::PurgeFar];
/// By the instance that has the copy.
const OWN_BEFORE: &[Act] = &[Act::Write, Act::PurgeNear, Act::PurgeFar];
const OWN_AFTER: &[Act] = &[Act::Write, Act::PurgeFar, Act::PurgeNear];
const OWN_BEFORE_AND_AFTER: &[Act] = &[Act::Write, Act::PurgeNear, Act::PurgeFar, Act::PurgeNear];

struct Tiers {
    writer: &'static [Act],
    /// A copy stays only if the epoch is what it was before the far store was asked.
    checks_epoch: bool,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    database: Version,
    far: Option<Version>,
    ticket: Option<Nonce>,
    near: Option<Version>,
    readers: [Reader; READERS],
    writers: [Writer; WRITERS],
    /// What the database held when an invalidation began that has returned and has reached the instance.
    floor: Version,
}

/// `is_same` tells whether the epoch is what it was when the reader began.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Reader {
    Idle,
    /// It has found nothing near.
    Began {
        is_same: bool,
    },
    Asking {
        is_same: bool,
        ticket: Nonce,
    },
    Answered {
        is_same: bool,
        ticket: Nonce,
        version: Version,
    },
    /// It has read or filled the far entry.
    Has {
        is_same: bool,
        version: Version,
    },
}

impl Reader {
    fn ticket(self) -> Option<Nonce> {
        match self {
            Self::Asking { ticket, .. } | Self::Answered { ticket, .. } => Some(ticket),
            Self::Idle | Self::Began { .. } | Self::Has { .. } => None,
        }
    }

    fn sees_another_epoch(&mut self) {
        match self {
            Self::Idle => {}
            Self::Began { is_same }
            | Self::Asking { is_same, .. }
            | Self::Answered { is_same, .. }
            | Self::Has { is_same, .. } => *is_same = false,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Writer {
    acts: u8,
    /// What it has published is on its way.
    is_published: bool,
    /// What the database held when its invalidation began, which is the first act after its write.
    since: Version,
}

impl State {
    fn unused(&self) -> Nonce {
        unused(self.ticket.into_iter().chain(self.readers.iter().filter_map(|reader| reader.ticket())))
    }

    fn purge_near(&mut self) {
        self.near = None;
        self.readers.iter_mut().for_each(Reader::sees_another_epoch);
    }
}

impl Tiers {
    fn read(&self, number: usize, now: &State, steps: &mut Steps<State>) {
        let reader = now.readers[number];
        let becomes = |reader| move |then: &mut State| then.readers[number] = reader;
        match reader {
            Reader::Idle if number < NEAR_READERS && now.near.is_some() => {}
            Reader::Idle => {
                let begun = Reader::Began { is_same: true };
                steps.add(format_args!("reader {number} finds nothing near"), now, becomes(begun));
            }
            Reader::Began { is_same } => match (now.far, now.ticket) {
                (Some(version), _) => {
                    let has = Reader::Has { is_same, version };
                    steps.add(format_args!("reader {number} finds {version} far"), now, becomes(has));
                }
                (None, Some(_)) => {}
                (None, None) => steps.add(format_args!("reader {number} places its ticket"), now, |then| {
                    let ticket = then.unused();
                    then.ticket = Some(ticket);
                    then.readers[number] = Reader::Asking { is_same, ticket };
                }),
            },
            Reader::Asking { is_same, ticket } => {
                let version = now.database;
                let answered = Reader::Answered { is_same, ticket, version };
                steps.add(format_args!("reader {number} reads {version} from the database"), now, becomes(answered));
            }
            Reader::Answered { is_same, ticket, version } => {
                if now.ticket == Some(ticket) {
                    steps.add(format_args!("reader {number} stores {version} far"), now, |then| {
                        then.far = Some(version);
                        then.ticket = None;
                        then.readers[number] = Reader::Has { is_same, version };
                    });
                } else {
                    let does = format_args!("reader {number} may not store {version}");
                    steps.add(does, now, becomes(Reader::Idle));
                }
            }
            Reader::Has { is_same, version } => {
                let keeps = number < NEAR_READERS && (is_same || !self.checks_epoch);
                let does = if keeps { "keeps" } else { "does not keep" };
                steps.add(format_args!("reader {number} {does} {version} near"), now, |then| {
                    then.readers[number] = Reader::Idle;
                    if keeps {
                        then.near = Some(version);
                    }
                });
            }
        }
    }

    fn write(&self, number: usize, now: &State, steps: &mut Steps<State>) {
        let Writer { acts, is_published, .. } = now.writers[number];
        if is_published {
            steps.add(format_args!("the instance hears of writer {number}"), now, |then| {
                then.purge_near();
                then.writers[number].is_published = false;
                self.settle(number, then);
            });
        }
        let Some(act) = self.writer.get(usize::from(acts)) else { return };
        let mut add = |does: &str, change: &dyn Fn(&mut State)| {
            steps.add(format_args!("writer {number} {does}"), now, |then| {
                if acts == 1 {
                    then.writers[number].since = then.database;
                }
                change(then);
                then.writers[number].acts += 1;
                self.settle(number, then);
            });
        };
        match act {
            Act::Write => add(&format!("writes {} to the database", now.database + 1), &|then| then.database += 1),
            Act::PurgeFar => add("purges far", &|then| (then.far, then.ticket) = (None, None)),
            Act::Publish => add("publishes", &|then| then.writers[number].is_published = true),
            Act::PurgeNear => add("purges near", &State::purge_near),
        }
    }

    /// What must hold from when the invalidation has returned and has reached the instance.
    fn settle(&self, number: usize, now: &mut State) {
        let Writer { acts, is_published, since } = now.writers[number];
        if usize::from(acts) == self.writer.len() && !is_published {
            now.floor = now.floor.max(since);
        }
    }
}

impl Model for Tiers {
    type State = State;

    fn initial(&self) -> State {
        State {
            database: 0,
            far: None,
            ticket: None,
            near: None,
            readers: [Reader::Idle; READERS],
            writers: [Writer { acts: 0, is_published: false, since: 0 }; WRITERS],
            floor: 0,
        }
    }

    fn next(&self, now: &State, steps: &mut Steps<State>) {
        (0..READERS).for_each(|number| self.read(number, now, steps));
        (0..WRITERS).for_each(|number| self.write(number, now, steps));
        for number in 0..READERS {
            steps.add(format_args!("reader {number} gives up"), now, |then| then.readers[number] = Reader::Idle);
        }
        steps.add(format_args!("the copy near is dropped"), now, |then| then.near = None);
        steps.add(format_args!("Redis loses the entry"), now, |then| then.far = None);
        steps.add(format_args!("Redis loses the ticket"), now, |then| then.ticket = None);
    }

    fn fault(&self, now: &State) -> Option<String> {
        let near = now.near.filter(|near| *near < now.floor)?;
        Some(format!("who reads now is given {near}, after {} was invalidated and that was heard", now.floor))
    }

    fn canonical(&self, state: &State) -> State {
        let mut state = state.clone();
        state.readers[..NEAR_READERS].sort_unstable();
        state.writers.sort_unstable();
        state
    }
}

#[test]
fn a_copy_that_is_kept_whatever_the_epoch_is_not_enough() {
    violated(
        &Tiers { writer: FAR_FIRST, checks_epoch: false },
        &[
            "reader 0 finds nothing near",
            "reader 0 places its ticket",
            "reader 0 reads 0 from the database",
            "reader 0 stores 0 far",
            "writer 0 writes 1 to the database",
            "writer 0 purges far",
            "writer 0 publishes",
            "the instance hears of writer 0",
            "reader 0 keeps 0 near",
            "who reads now is given 0, after 1 was invalidated and that was heard",
        ],
    );
}

#[test]
fn a_copy_that_is_kept_in_the_epoch_it_began_in_is_enough() {
    holds(&Tiers { writer: FAR_FIRST, checks_epoch: true }, 240_000);
}

#[test]
fn to_publish_before_it_is_gone_far_is_not_enough() {
    violated(
        &Tiers { writer: PUBLISHED_FIRST, checks_epoch: true },
        &[
            "reader 0 finds nothing near",
            "reader 0 places its ticket",
            "reader 0 reads 0 from the database",
            "reader 0 stores 0 far",
            "writer 0 writes 1 to the database",
            "writer 0 publishes",
            "the instance hears of writer 0",
            "reader 1 finds nothing near",
            "reader 1 finds 0 far",
            "reader 1 keeps 0 near",
            "writer 0 purges far",
            "who reads now is given 0, after 1 was invalidated and that was heard",
        ],
    );
}

#[test]
fn who_has_a_copy_and_purges_it_only_before_it_is_gone_far_keeps_what_is_old() {
    violated(
        &Tiers { writer: OWN_BEFORE, checks_epoch: true },
        &[
            "reader 0 finds nothing near",
            "reader 0 places its ticket",
            "reader 0 reads 0 from the database",
            "reader 0 stores 0 far",
            "writer 0 writes 1 to the database",
            "writer 0 purges near",
            "reader 1 finds nothing near",
            "reader 1 finds 0 far",
            "reader 1 keeps 0 near",
            "writer 0 purges far",
            "who reads now is given 0, after 1 was invalidated and that was heard",
        ],
    );
}

#[test]
fn who_has_a_copy_and_purges_it_after_it_is_gone_far_keeps_nothing_old() {
    holds(&Tiers { writer: OWN_AFTER, checks_epoch: true }, 150_000);
}

#[test]
fn who_has_a_copy_and_purges_it_before_and_after_keeps_nothing_old() {
    holds(&Tiers { writer: OWN_BEFORE_AND_AFTER, checks_epoch: true }, 420_000);
}
