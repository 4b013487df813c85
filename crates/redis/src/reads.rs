//! Reads that are asked for at the same time, sent together: a command of its own for each costs the client, and the
//! server, more than twice as much.
//!
//! Whoever waits to read the same key gets the same reply. None of them gets an older one than a command of its own would
//! have brought: the command that they share is sent after all of them have asked.

use crate::{client::Reply, fault::Fault, lane::Lane};
use bytes::Bytes;
use larder::store::is_late;
use std::{
    collections::{HashMap, VecDeque},
    mem,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::oneshot,
    time::{Instant, timeout_at},
};

/// How many commands are under way before the next reads wait to be sent together: below that, each is sent at once.
///
/// Two, so that one is on its way while the other is read. More make each carry less: at 64 readers, eight carried a
/// fifth less in all than two, and sixteen a third less.
const ABREAST: usize = 2;
/// The most that are sent together, so that none waits for many bodies of others.
const TOGETHER: usize = 32;

/// How long a command has at least that is sent for those whose time was over because this process had stalled: the reply of a
/// server that is well is there at once.
const MOMENT: Duration = Duration::from_millis(1);

/// The reads of one connection.
///
/// None waits longer than it may, unless this process stalls, and yet those that wait have no timer each. They are sent in the
/// order in which they came, and what is under way is given up when the last of those it is for has waited long enough: so
/// whoever is not sent yet, and came later, still has time, or hardly had less.
pub(crate) struct Reads {
    lane: Arc<Lane>,
    /// How long a read may take.
    within: Duration,
    runtime: Handle,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    /// How many commands are under way.
    turns: usize,
    waiting: Vec<Waiting>,
}

struct Waiting {
    key: Bytes,
    asked: Instant,
    answer: oneshot::Sender<Result<Reply, Fault>>,
}

impl Reads {
    pub(crate) fn new(lane: Arc<Lane>, within: Duration, runtime: Handle) -> Arc<Self> {
        Arc::new(Self { lane, within, runtime, queue: Mutex::default() })
    }

    /// How long a read may take.
    pub(crate) fn within(&self) -> Duration {
        self.within
    }

    /// Reads a key, unless there is no connection. A key of another type reads as an error, or as none.
    pub(crate) async fn get(self: &Arc<Self>, key: Bytes) -> Result<Reply, Fault> {
        let asked = Instant::now();
        match self.join(&key, asked) {
            Joined::Sends(_turn) => self.get_alone(key, asked).await,
            Joined::Waits(answer) => answer.await.unwrap_or(Err(Fault::Down)),
        }
    }

    /// Reads a key that was asked for at this time.
    async fn get_alone(&self, key: Bytes, asked: Instant) -> Result<Reply, Fault> {
        let due = asked + self.within;
        match timeout_at(due, self.lane.get(key, asked.into_std())).await {
            Ok(result) => result.map_err(|fault| self.judged(fault, asked)),
            Err(_) => {
                let fault = self.judged(Fault::Timeout, asked);
                self.lane.gave_up(&fault);
                Err(fault)
            }
        }
    }

    fn judged(&self, fault: Fault, asked: Instant) -> Fault {
        fault.judged(asked.elapsed(), self.within)
    }

    fn join(self: &Arc<Self>, key: &Bytes, asked: Instant) -> Joined {
        let mut queue = self.queue();
        if queue.turns < ABREAST {
            queue.turns += 1;
            return Joined::Sends(Turn(self.clone()));
        }
        let (answer, answered) = oneshot::channel();
        queue.waiting.push(Waiting { key: key.clone(), asked, answer });
        Joined::Waits(answered)
    }

    /// Those who waited longest, and still do; without any, a turn ends.
    fn next(&self) -> Vec<Waiting> {
        let mut queue = self.queue();
        queue.waiting.retain(|waiting| !waiting.answer.is_closed());
        let later = if queue.waiting.len() > TOGETHER { queue.waiting.split_off(TOGETHER) } else { Vec::new() };
        let next = mem::replace(&mut queue.waiting, later);
        if next.is_empty() {
            queue.turns -= 1;
        }
        next
    }

    async fn answer(self: &Arc<Self>, mut together: Vec<Waiting>) {
        let sent = Instant::now();
        let due = |waiting: &Waiting| waiting.asked + self.within;
        let has_stalled = together.first().is_some_and(|first| is_late(first.asked.elapsed(), self.within));
        if !has_stalled {
            // They have waited for as long as they may, and this process was not why.
            let over = together.extract_if(.., |waiting| due(waiting) <= sent);
            over.for_each(|waiting| _ = waiting.answer.send(Err(Fault::Timeout)));
        }
        if together.is_empty() {
            return;
        }
        let (keys, places) = distinct(together.iter().map(|waiting| &waiting.key));
        let mut together: VecDeque<_> = together.into_iter().zip(places).collect();
        let mut command = pin!(self.lane.get_all(keys, sent.into_std()));
        let mut last = Fault::Overslept;
        let result = loop {
            // They came one after the other, so that the first is the first to have waited long enough.
            let Some((first, _)) = together.front() else { return self.lane.gave_up(&last) };
            let due = due(first);
            if let Ok(result) = timeout_at(due.max(sent + MOMENT), command.as_mut()).await {
                break result.map_err(|fault| self.judged(fault, sent));
            }
            if let Some((first, _)) = together.pop_front() {
                // The server was not asked for it in time.
                last = if due <= sent { Fault::Overslept } else { self.judged(Fault::Timeout, first.asked) };
                let _ = first.answer.send(Err(last.clone()));
            }
        };
        match result {
            Ok(replies) => {
                for (waiting, place) in together {
                    let _ = waiting.answer.send(replies.get(place).cloned().ok_or(Fault::Down));
                }
            }
            // A server that refuses to read many keys at once may still read one.
            Err(fault @ Fault::Server(_)) if !fault.is_outage() => {
                for (Waiting { key, asked, answer }, _) in together {
                    let reads = self.clone();
                    self.runtime.spawn(async move { answer.send(reads.get_alone(key, asked).await) });
                }
            }
            Err(fault) => {
                for (waiting, _) in together {
                    let _ = waiting.answer.send(Err(fault.clone()));
                }
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // A queue is never half changed.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Each key once, and for each of those that are given its place among these.
fn distinct<'a>(keys: impl Iterator<Item = &'a Bytes>) -> (Vec<Bytes>, Vec<usize>) {
    let (mut distinct, mut known) = (Vec::new(), HashMap::new());
    let place = |key: &'a Bytes| {
        *known.entry(key).or_insert_with(|| {
            distinct.push(key.clone());
            distinct.len() - 1
        })
    };
    let places = keys.map(place).collect();
    (distinct, places)
}

enum Joined {
    Sends(Turn),
    Waits(oneshot::Receiver<Result<Reply, Fault>>),
}

/// The right to have a command under way. It passes to those who wait, also when its reader goes away.
struct Turn(Arc<Reads>);

impl Drop for Turn {
    fn drop(&mut self) {
        let together = self.0.next();
        if !together.is_empty() {
            let turn = Self(self.0.clone());
            self.0.runtime.spawn(async move { turn.0.answer(together).await });
        }
    }
}
