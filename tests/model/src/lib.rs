//! Explores every order of events that a model of a protocol allows.
//!
//! The models are in `tests/`, a file for each question. A step of theirs is what happens at once in the real thing: one
//! script or command in Redis, one read or write at the database, one message that arrives, one thing that is lost.

use std::{
    collections::HashSet,
    fmt::{self, Write},
    hash::Hash,
    time::Instant,
};

/// A protocol, and the world around it.
pub trait Model {
    /// All that the next steps depend on.
    type State: Clone + Eq + Hash;

    /// How it begins.
    fn initial(&self) -> Self::State;

    /// Adds every step that may come next.
    fn next(&self, state: &Self::State, steps: &mut Steps<Self::State>);

    /// What must not be, if it is so in this state.
    fn fault(&self, state: &Self::State) -> Option<String>;

    /// The one among all states that differ only in who is who. The default takes everybody for somebody.
    fn canonical(&self, state: &Self::State) -> Self::State {
        state.clone()
    }
}

/// What may come next.
pub struct Steps<S> {
    to: Vec<S>,
    /// What the steps are, in words, if anybody wants to know.
    told: Option<Vec<String>>,
}

impl<S: Clone> Steps<S> {
    /// Adds a step that leads to the state that `change` makes of `from`.
    pub fn add(&mut self, does: fmt::Arguments<'_>, from: &S, change: impl FnOnce(&mut S)) {
        let mut to = from.clone();
        change(&mut to);
        self.to.push(to);
        if let Some(told) = &mut self.told {
            told.push(does.to_string());
        }
    }
}

/// A nonce that nobody has, which is as good as one that is drawn at random and never comes again. So readers who read for
/// ever need no more nonces than there are readers.
pub fn unused(used: impl Iterator<Item = u8> + Clone) -> u8 {
    (1..).find(|nonce| used.clone().all(|used| used != *nonce)).expect("fewer are used than there are")
}

/// More than any of these models should have; one that has, has something in it that grows without end.
const MOST_STATES: usize = 20_000_000;

/// What came of it.
struct Explored {
    states: usize,
    /// The shortest way to a fault: its steps, and the fault itself as the last line.
    trace: Option<Vec<String>>,
}

/// Breadth first, so that the first fault is one of those that take the fewest steps.
fn explore<M: Model>(model: &M) -> Explored {
    let initial = model.initial();
    let mut seen = HashSet::from([model.canonical(&initial)]);
    // With the place of the state before.
    let mut found = vec![(initial, 0)];
    let mut steps = Steps { to: Vec::new(), told: None };
    let mut place = 0;
    while place < found.len() {
        if let Some(fault) = model.fault(&found[place].0) {
            let mut trace = way_to(model, &found, place);
            trace.push(fault);
            return Explored { states: found.len(), trace: Some(trace) };
        }
        model.next(&found[place].0, &mut steps);
        for state in steps.to.drain(..) {
            if seen.insert(model.canonical(&state)) {
                found.push((state, place));
            }
        }
        assert!(found.len() < MOST_STATES, "this model has no end");
        place += 1;
    }
    Explored { states: found.len(), trace: None }
}

fn way_to<M: Model>(model: &M, found: &[(M::State, usize)], mut place: usize) -> Vec<String> {
    let mut trace = Vec::new();
    while place != 0 {
        let (state, before) = &found[place];
        let mut steps = Steps { to: Vec::new(), told: Some(Vec::new()) };
        model.next(&found[*before].0, &mut steps);
        let step = steps.to.iter().position(|to| to == state).expect("what led here once leads here again");
        trace.push(steps.told.expect("it was asked to tell").swap_remove(step));
        place = *before;
    }
    trace.reverse();
    trace
}

/// Proves that a model has no fault, and that it has about as many states as it is known to have: one that has lost most of
/// its steps proves nothing.
pub fn holds(model: &impl Model, at_least: usize) {
    let begun = Instant::now();
    let Explored { states, trace } = explore(model);
    report(states, begun);
    if let Some(trace) = trace {
        panic!("violated:\n{}", lines(&trace));
    }
    assert!(states >= at_least, "{states} states are too few");
}

/// Proves that a model has a fault, and that this is the shortest way to it.
pub fn violated(model: &impl Model, by: &[&str]) {
    let begun = Instant::now();
    let Explored { states, trace } = explore(model);
    report(states, begun);
    let trace = lines(&trace.expect("a way to the fault"));
    println!("{trace}");
    assert!(trace.lines().eq(by.iter().copied()), "the shortest way to the fault is another:\n{trace}");
}

/// A test's thread has its name.
fn report(states: usize, begun: Instant) {
    let thread = std::thread::current();
    println!("{}: {states} states, {:.2} s", thread.name().unwrap_or("model"), begun.elapsed().as_secs_f32());
}

fn lines(trace: &[String]) -> String {
    trace.iter().fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "{line}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::{Model, Steps, holds, violated};

    /// Two clerks who add one to what they have read.
    struct Counting {
        at_once: bool,
    }

    #[derive(Clone, PartialEq, Eq, Hash)]
    struct Count {
        count: u8,
        read: [Option<u8>; 2],
        done: [bool; 2],
    }

    impl Model for Counting {
        type State = Count;

        fn initial(&self) -> Count {
            Count { count: 0, read: [None; 2], done: [false; 2] }
        }

        fn next(&self, now: &Count, steps: &mut Steps<Count>) {
            for clerk in (0..2).filter(|clerk| !now.done[*clerk]) {
                match now.read[clerk] {
                    _ if self.at_once => steps.add(format_args!("clerk {clerk} adds one"), now, |then| {
                        then.count += 1;
                        then.done[clerk] = true;
                    }),
                    None => steps.add(format_args!("clerk {clerk} reads {}", now.count), now, |then| {
                        then.read[clerk] = Some(then.count);
                    }),
                    Some(read) => steps.add(format_args!("clerk {clerk} writes {}", read + 1), now, |then| {
                        then.count = read + 1;
                        then.done[clerk] = true;
                    }),
                }
            }
        }

        fn fault(&self, now: &Count) -> Option<String> {
            (now.done == [true; 2] && now.count != 2).then(|| format!("two have counted to {}", now.count))
        }
    }

    #[test]
    fn the_shortest_way_to_a_fault_is_told() {
        let way =
            ["clerk 0 reads 0", "clerk 1 reads 0", "clerk 0 writes 1", "clerk 1 writes 1", "two have counted to 1"];
        violated(&Counting { at_once: false }, &way);
    }

    #[test]
    fn every_state_is_looked_at() {
        holds(&Counting { at_once: true }, 4);
    }

    #[test]
    #[should_panic(expected = "4 states are too few")]
    fn a_model_that_has_lost_its_steps_proves_nothing() {
        holds(&Counting { at_once: true }, 5);
    }

    #[test]
    #[should_panic(expected = "clerk 0 writes 1\nclerk 1 writes 1\ntwo have counted to 1")]
    fn a_fault_where_there_should_be_none_is_told_too() {
        holds(&Counting { at_once: false }, 1);
    }
}
