//! Writes that wait in a stream, and those who apply them: one at a time by a lease, which says nothing of one who
//! believes to have it still.
//!
//! Three writes of one key, two who apply, and a row of the database.

use larder_model::{Model, Steps, holds, violated};

const APPLIERS: usize = 2;
const WRITES: u8 = 3;

struct Behind {
    /// The row takes only what is later than what it has.
    is_conditional: bool,
    /// A write is taken out of the stream before it is applied, and not after.
    forgets_first: bool,
    /// Whoever applies has a lease, which may run out.
    has_lease: bool,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    accepted: u8,
    /// What waits, by its sequence number.
    log: Vec<u8>,
    lease: Option<usize>,
    appliers: [Applier; APPLIERS],
    row: u8,
    /// The last write that is neither in the stream nor in the hands of somebody who has yet to apply it.
    done: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Applier {
    Idle,
    Took(u8),
    Applied(u8),
}

impl Behind {
    fn apply(&self, one: usize, now: &State, steps: &mut Steps<State>) {
        match now.appliers[one] {
            Applier::Idle => {
                let may = !self.has_lease || now.lease.is_none_or(|holder| holder == one);
                if let Some(first) = now.log.first().copied().filter(|_| may) {
                    steps.add(format_args!("{one} takes write {first}"), now, |then| {
                        then.lease = Some(one).filter(|_| self.has_lease);
                        then.appliers[one] = Applier::Took(first);
                        if self.forgets_first {
                            then.log.retain(|waiting| *waiting != first);
                            then.done = then.done.max(first);
                        }
                    });
                }
            }
            Applier::Took(write) => steps.add(format_args!("{one} applies write {write}"), now, |then| {
                if !self.is_conditional || then.row < write {
                    then.row = write;
                }
                then.appliers[one] = Applier::Applied(write);
            }),
            Applier::Applied(write) => {
                steps.add(format_args!("{one} says that write {write} is applied"), now, |then| {
                    then.log.retain(|waiting| *waiting != write);
                    then.done = then.done.max(write);
                    then.appliers[one] = Applier::Idle;
                });
            }
        }
        steps.add(format_args!("{one} dies, and another takes its place"), now, |then| {
            then.appliers[one] = Applier::Idle;
        });
    }
}

impl Model for Behind {
    type State = State;

    fn initial(&self) -> State {
        State { accepted: 0, log: Vec::new(), lease: None, appliers: [Applier::Idle; APPLIERS], row: 0, done: 0 }
    }

    fn next(&self, now: &State, steps: &mut Steps<State>) {
        if now.accepted < WRITES {
            steps.add(format_args!("write {} is accepted", now.accepted + 1), now, |then| {
                then.accepted += 1;
                then.log.push(then.accepted);
            });
        }
        (0..APPLIERS).for_each(|one| self.apply(one, now, steps));
        if now.lease.is_some() {
            steps.add(format_args!("the lease runs out"), now, |then| then.lease = None);
        }
    }

    fn fault(&self, now: &State) -> Option<String> {
        let waits = now.appliers.iter().any(|applier| matches!(applier, Applier::Took(write) if *write >= now.done));
        (now.row < now.done && !waits).then(|| format!("the row has write {}, and write {} is done", now.row, now.done))
    }
}

#[test]
fn who_has_lost_its_lease_may_apply_an_old_write_last() {
    violated(
        &Behind { is_conditional: false, forgets_first: false, has_lease: true },
        &[
            "write 1 is accepted",
            "write 2 is accepted",
            "0 takes write 1",
            "the lease runs out",
            "1 takes write 1",
            "1 applies write 1",
            "1 says that write 1 is applied",
            "1 takes write 2",
            "1 applies write 2",
            "0 applies write 1",
            "1 says that write 2 is applied",
            "the row has write 1, and write 2 is done",
        ],
    );
}

#[test]
fn a_row_that_takes_only_what_is_later_is_right_whoever_comes_back() {
    for (has_lease, states) in [(true, 470), (false, 180)] {
        holds(&Behind { is_conditional: true, forgets_first: false, has_lease }, states);
    }
}

#[test]
fn what_is_forgotten_before_it_is_applied_may_be_lost() {
    violated(
        &Behind { is_conditional: true, forgets_first: true, has_lease: true },
        &[
            "write 1 is accepted",
            "0 takes write 1",
            "0 dies, and another takes its place",
            "the row has write 0, and write 1 is done",
        ],
    );
}
