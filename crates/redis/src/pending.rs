//! Purges that are yet to be done, as Redis could not be reached when they were asked for.

use larder::{
    semantics::Namespace,
    store::{Purge, Selector},
};
use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// The most purges that wait one by one; beyond that they become one of all there is.
const MOST: usize = 10_000;
/// How long what was purged is remembered, to be purged once more where the server may have forgotten it.
const REMEMBERED: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(crate) struct Pending {
    queue: Mutex<VecDeque<(Namespace, Purge)>>,
    /// What was purged of late, and when.
    done: Mutex<VecDeque<(Instant, Namespace, Purge)>>,
    is_waiting: AtomicBool,
    added: Notify,
}

impl Pending {
    /// Whether something waits: what is read meanwhile may be what it is about.
    pub(crate) fn is_waiting(&self) -> bool {
        self.is_waiting.load(Ordering::Acquire)
    }

    /// Adds a purge, to be done in its turn.
    pub(crate) fn add(&self, namespace: &Namespace, purge: &Purge) {
        add(&mut self.queue(), namespace, purge);
        self.is_waiting.store(true, Ordering::Release);
        self.added.notify_one();
    }

    /// Waits until something was added.
    pub(crate) async fn added(&self) {
        self.added.notified().await;
    }

    /// What is to be done next.
    pub(crate) fn first(&self) -> Option<(Namespace, Purge)> {
        self.queue().front().cloned()
    }

    /// Takes note that the first is done.
    pub(crate) fn done(&self, first: &(Namespace, Purge)) {
        let mut queue = self.queue();
        // It may have become one of all there is.
        if queue.front() == Some(first) {
            queue.pop_front();
        }
        self.is_waiting.store(!queue.is_empty(), Ordering::Release);
    }

    /// Remembers a purge for a minute.
    pub(crate) fn remember(&self, namespace: &Namespace, purge: &Purge) {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.push_back((Instant::now(), namespace.clone(), purge.clone()));
        let is_old = |at: &Instant| at.elapsed() > REMEMBERED;
        while done.len() > MOST || done.front().is_some_and(|(at, ..)| is_old(at)) {
            done.pop_front();
        }
    }

    /// Has done again what was done in the last minute in the namespaces of this name.
    pub(crate) fn repeat(&self, name: &str) {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let of_late = done.iter().filter(|(at, namespace, _)| at.elapsed() <= REMEMBERED && namespace.name() == name);
        of_late.for_each(|(_, namespace, purge)| self.add(namespace, purge));
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<(Namespace, Purge)>> {
        // A queue is never half changed.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn add(queue: &mut VecDeque<(Namespace, Purge)>, namespace: &Namespace, purge: &Purge) {
    let one = (namespace.clone(), purge.clone());
    if queue.contains(&one) {
        return;
    }
    let of_it = |(other, _): &&(Namespace, Purge)| other.name() == namespace.name();
    if queue.iter().filter(of_it).count() < MOST {
        return queue.push_back(one);
    }
    let is_soft = purge.is_soft && queue.iter().filter(of_it).all(|(_, purge)| purge.is_soft);
    queue.retain(|(other, _)| other.name() != namespace.name());
    queue.push_back((namespace.clone(), Purge { is_soft, ..Purge::from(Selector::All) }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_wait_in_their_order_each_once_and_become_one_when_they_are_too_many() {
        let (pending, namespace) = (Pending::default(), Namespace::default());
        let other = Namespace::new("other", 1).expect("a name");
        for purge in [Purge::key("a"), Purge::tag("b"), Purge::key("a")] {
            pending.add(&namespace, &purge);
        }
        let first = pending.first().expect("one");
        assert_eq!(first.1, Purge::key("a"));
        pending.done(&first);
        assert!(pending.is_waiting());
        pending.done(&first);
        assert_eq!(pending.first().expect("another").1, Purge::tag("b"), "only the first can be done");
        pending.add(&other, &Purge::key("c"));
        let mut queue: VecDeque<_> = (0..MOST).map(|n| (namespace.clone(), Purge::tag(n.to_string()).soft())).collect();
        queue.push_back((other.clone(), Purge::key("c")));
        add(&mut queue, &namespace, &Purge::tag("last").soft());
        assert_eq!(queue, [(other, Purge::key("c")), (namespace, Purge::all().soft())]);
    }

    #[test]
    fn what_was_done_of_late_is_done_again() {
        let (pending, namespace) = (Pending::default(), Namespace::default());
        pending.remember(&namespace, &Purge::key("a"));
        pending.repeat("another");
        assert!(!pending.is_waiting());
        pending.repeat(namespace.name());
        assert_eq!(pending.first(), Some((namespace, Purge::key("a"))));
    }
}
