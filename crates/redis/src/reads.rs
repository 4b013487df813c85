//! Reads that are asked for at the same time, sent together: a command of its own for each costs the client, and the
//! server, more than twice as much.

use crate::{client::Reply, fault::Fault, lane::Lane};
use bytes::Bytes;
use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{runtime::Handle, sync::oneshot};

/// How many commands are under way before the next reads wait to be sent together: below that, each is sent at once.
///
/// Two, so that one is on its way while the other is read. More make each carry less: at 64 readers, eight carried a
/// fifth less in all than two, and sixteen a third less.
const ABREAST: usize = 2;
/// The most that are sent together, so that none waits for many bodies of others.
const TOGETHER: usize = 32;

/// The reads of one connection.
pub(crate) struct Reads {
    lane: Arc<Lane>,
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
    answer: oneshot::Sender<Result<Reply, Fault>>,
}

impl Reads {
    pub(crate) fn new(lane: Arc<Lane>, runtime: Handle) -> Arc<Self> {
        Arc::new(Self { lane, runtime, queue: Mutex::default() })
    }

    /// Reads a key, unless there is no connection. A key of another type reads as an error, or as none.
    pub(crate) async fn get(self: &Arc<Self>, key: Bytes) -> Result<Reply, Fault> {
        match self.join(&key) {
            Joined::Sends(_turn) => self.lane.get(key).await,
            Joined::Waits(answer) => answer.await.unwrap_or(Err(Fault::Down)),
        }
    }

    fn join(self: &Arc<Self>, key: &Bytes) -> Joined {
        let mut queue = self.queue();
        if queue.turns < ABREAST {
            queue.turns += 1;
            return Joined::Sends(Turn(self.clone()));
        }
        let (answer, answered) = oneshot::channel();
        queue.waiting.push(Waiting { key: key.clone(), answer });
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

    async fn answer(self: &Arc<Self>, together: Vec<Waiting>) {
        let keys = together.iter().map(|waiting| waiting.key.clone()).collect();
        match self.lane.get_all(keys).await {
            Ok(replies) => {
                for (waiting, reply) in together.into_iter().zip(replies) {
                    let _ = waiting.answer.send(Ok(reply));
                }
            }
            // A server that refuses to read many keys at once may still read one.
            Err(fault @ Fault::Server(_)) if !fault.is_outage() => {
                for Waiting { key, answer } in together {
                    let lane = self.lane.clone();
                    self.runtime.spawn(async move { answer.send(lane.get(key).await) });
                }
            }
            Err(fault) => {
                for waiting in together {
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
