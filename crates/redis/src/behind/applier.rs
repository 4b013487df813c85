//! The task that applies the writes of one shard, as long as it is the one in the fleet that does.

use super::{
    BehindSettings, Failed, Sink, Write,
    settings::OnFailure,
    shard::{LEASE, Message, Shard, Taken},
};
use crate::{fault::Fault, wake::Interest};
use larder::semantics::Key;
use metrics::counter;
use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, interval_at, sleep, timeout};

/// How long to wait for word before looking again.
const LOOK: Duration = Duration::from_secs(1);
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// The most writes that stand aside before no others are taken, in batches.
const MOST_PARKED: usize = 10;

pub(super) struct Applier<S> {
    pub(super) name: String,
    pub(super) shard: Shard,
    pub(super) sink: Arc<S>,
    pub(super) settings: BehindSettings,
    pub(super) nonce: String,
    pub(super) interest: Interest,
}

/// Why to begin anew with what was taken and is not applied.
enum Interrupted {
    /// Another process has the shard.
    Lost,
    /// Redis cannot be asked.
    Away(Fault),
}

impl From<Fault> for Interrupted {
    fn from(fault: Fault) -> Self {
        Self::Away(fault)
    }
}

/// The writes of a key that stand aside, as the first of them could not be applied.
struct Parked {
    due: Instant,
    messages: VecDeque<Message>,
}

impl<S: Sink> Applier<S> {
    pub(super) async fn run(self) {
        let mut is_told = false;
        loop {
            match self.hold().await {
                Interrupted::Lost => is_told = false,
                Interrupted::Away(fault) => {
                    if !std::mem::replace(&mut is_told, true) {
                        let shard = &self.shard.prefix;
                        tracing::warn!(shard, ?fault, "writes wait in Redis, which cannot be asked for them");
                    }
                }
            }
            // Whoever had the shard has given it up by then, or keeps it.
            let _ = timeout(LOOK.mul_f64(0.5 + fastrand::f64()), self.interest.heard()).await;
        }
    }

    /// Applies what there is, for as long as the shard is this process'.
    async fn hold(&self) -> Interrupted {
        let (mut from, mut parked) = ("0-0".to_owned(), HashMap::new());
        loop {
            if let Err(interrupted) = self.step(&mut from, &mut parked).await {
                return interrupted;
            }
        }
    }

    /// Takes some writes, and applies them, and those that have stood aside long enough.
    async fn step(&self, from: &mut String, parked: &mut HashMap<Key, Parked>) -> Result<(), Interrupted> {
        let now = Instant::now();
        let due = parked.iter().find(|(_, parked)| parked.due <= now).map(|(key, _)| key.clone());
        if let Some(Parked { messages, .. }) = due.and_then(|key| parked.remove(&key)) {
            self.apply(messages, parked).await?;
        }
        let aside: usize = parked.values().map(|parked| parked.messages.len()).sum();
        let has_room = aside < MOST_PARKED * self.settings.batch as usize;
        let messages = if has_room {
            match self.shard.take(&self.nonce, self.settings.batch, from).await? {
                Taken::Held => return Err(Interrupted::Lost),
                Taken::Messages(messages, next) => {
                    *from = next;
                    messages
                }
            }
        } else {
            self.keep().await?;
            Vec::new()
        };
        if messages.is_empty() && from.is_empty() {
            let next = parked.values().map(|parked| parked.due).min();
            let wait = next.map_or(LOOK, |due| due.saturating_duration_since(Instant::now()).min(LOOK));
            let _ = timeout(wait, self.interest.heard()).await;
            return Ok(());
        }
        let mut ready = VecDeque::new();
        for message in messages {
            match message.write.as_ref().and_then(|write| parked.get_mut(&write.key)) {
                Some(parked) => parked.messages.push_back(message),
                None => ready.push_back(message),
            }
        }
        self.apply(ready, parked).await
    }

    /// Applies writes in their order, until none is left but those that are parked.
    async fn apply(&self, mut left: VecDeque<Message>, parked: &mut HashMap<Key, Parked>) -> Result<(), Interrupted> {
        // One at a time, where it cannot be told which of many is the one that fails.
        let mut is_single = false;
        while let Some(first) = left.front() {
            let Some(write) = &first.write else {
                self.bury(&first.id.clone(), "this version of the program cannot read it").await?;
                left.pop_front();
                continue;
            };
            if write.attempts >= self.settings.attempts {
                self.bury(&first.id.clone(), "it was taken that often, and never applied").await?;
                left.pop_front();
                continue;
            }
            let most = if is_single { 1 } else { self.settings.batch as usize };
            let readable = left.iter().take(most).take_while(|message| self.is_due(message)).count();
            let given: Vec<Message> = left.iter().take(readable).cloned().collect();
            let (writes, places) = self.given(&given);
            let applied = self.keeping(timeout(self.settings.longest_apply, self.sink.apply(&writes))).await?;
            let failed = match applied {
                Ok(Ok(())) => {
                    self.done(&given).await?;
                    left.drain(..readable);
                    is_single = false;
                    continue;
                }
                Ok(Err(failed)) => failed,
                Err(_) => Failed::all(format!("it took longer than {:?}", self.settings.longest_apply)),
            };
            let at = places.get(failed.at).copied().unwrap_or_default();
            self.done(&given[..at]).await?;
            left.drain(..at);
            if given.len() > 1 && failed.at == 0 {
                is_single = true;
                continue;
            }
            self.fail(&mut left, &failed.why, parked).await?;
        }
        Ok(())
    }

    fn is_due(&self, message: &Message) -> bool {
        message.write.as_ref().is_some_and(|write| write.attempts < self.settings.attempts)
    }

    /// What the sink is given of these, and which of them each is: of those that count for nothing any more, the next that does.
    fn given(&self, messages: &[Message]) -> (Vec<Write>, Vec<usize>) {
        let (mut writes, mut places, mut first) = (Vec::new(), Vec::new(), 0);
        for (place, message) in messages.iter().enumerate() {
            let Some(write) = &message.write else { continue };
            let is_last = || {
                let later = messages[place + 1..].iter().filter_map(|message| message.write.as_ref());
                later.into_iter().all(|later| later.key != write.key)
            };
            if !self.settings.coalesces || is_last() {
                writes.push(write.clone());
                places.push(first);
                first = place + 1;
            }
        }
        (writes, places)
    }

    /// The first of these could not be applied, alone.
    async fn fail(
        &self,
        left: &mut VecDeque<Message>,
        why: &str,
        parked: &mut HashMap<Key, Parked>,
    ) -> Result<(), Interrupted> {
        let Some(Message { id, write: Some(write) }) = left.front_mut() else { return Ok(()) };
        write.attempts += 1;
        let (id, key, attempts) = (id.clone(), write.key.clone(), write.attempts);
        if attempts >= self.settings.attempts {
            left.pop_front();
            return self.bury(&id, why).await;
        }
        self.count("retried", 1);
        self.shard.tried(&id, attempts).await?;
        let pause =
            self.settings.retry_after.saturating_mul(1 << attempts.min(16).saturating_sub(1)).min(LONGEST_PAUSE);
        match self.settings.on_failure {
            OnFailure::Hold => self.keeping(sleep(pause)).await,
            OnFailure::Park => {
                let is_its = |message: &Message| message.write.as_ref().is_some_and(|write| write.key == key);
                let (its, others) = std::mem::take(left).into_iter().partition::<VecDeque<_>, _>(is_its);
                *left = others;
                parked.insert(key, Parked { due: Instant::now() + pause, messages: its });
                Ok(())
            }
        }
    }

    async fn done(&self, messages: &[Message]) -> Result<(), Interrupted> {
        if !messages.is_empty() {
            self.shard.done(messages, self.settings.life).await?;
            self.count("applied", messages.len() as u64);
        }
        Ok(())
    }

    async fn bury(&self, id: &str, why: &str) -> Result<(), Interrupted> {
        let shard = &self.shard.prefix;
        tracing::error!(shard, id, why, "a write is given up: it is among the dead letters");
        self.shard.bury(id, why).await?;
        self.count("buried", 1);
        Ok(())
    }

    async fn keep(&self) -> Result<(), Interrupted> {
        if self.shard.keep(&self.nonce).await? { Ok(()) } else { Err(Interrupted::Lost) }
    }

    /// Waits for `work`, and keeps the shard meanwhile; whoever has lost it works no more.
    async fn keeping<T>(&self, work: impl Future<Output = T>) -> Result<T, Interrupted> {
        tokio::pin!(work);
        let mut beat = interval_at(Instant::now() + LEASE / 3, LEASE / 3);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                _ = beat.tick() => self.keep().await?,
            }
        }
    }

    fn count(&self, outcome: &'static str, writes: u64) {
        counter!("larder.behind.writes", "behind" => self.name.clone(), "outcome" => outcome).increment(writes);
    }
}
