//! Tasks that wait for the same thing, and are all woken when it comes.

use crate::sync::Mutex;
use std::{
    mem,
    sync::{Arc, PoisonError},
    task::{Wake, Waker},
};

/// The wakers of those who wait. It is itself what wakes them, so that one task can wait for all.
#[derive(Debug, Default)]
pub(crate) struct Wakers(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    wakers: Vec<(u64, Waker)>,
    next: u64,
}

/// Where one task stands among those who wait.
#[derive(Debug, Default)]
pub(crate) struct Place(Option<u64>);

impl Wakers {
    /// Has `waker` woken the next time. Whoever calls this looks once more before it waits: what it waits for may have come
    /// just before.
    pub(crate) fn register(&self, place: &mut Place, waker: &Waker) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = place.0.and_then(|place| waiting.wakers.iter().position(|(other, _)| *other == place));
        match known {
            Some(at) => waiting.wakers[at].1.clone_from(waker),
            None => {
                let id = waiting.next;
                waiting.next += 1;
                waiting.wakers.push((id, waker.clone()));
                place.0 = Some(id);
            }
        }
    }

    /// Takes a task that no longer waits off the list.
    pub(crate) fn leave(&self, place: &mut Place) {
        let Some(place) = place.0.take() else { return };
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.wakers.retain(|(other, _)| *other != place);
    }

    /// Wakes them all.
    pub(crate) fn wake_all(&self) {
        let woken = mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).wakers);
        // Without the lock: a waker may do anything.
        woken.into_iter().for_each(|(_, waker)| waker.wake());
    }
}

impl Wake for Wakers {
    fn wake(self: Arc<Self>) {
        self.wake_all();
    }
}
