//! What is invalidated in a namespace, and how every process comes to know it.
//!
//! Redis keeps a clock that advances with every invalidation, a record for each tag and one for the whole namespace, and a
//! log of the invalidations, whose entries each name the one before. An invalidation is told on a channel as it is logged;
//! whoever misses a message sees that by the next, or by the beat, which asks for what was missed once a second. So what
//! this process knows is never older than its last beat; while that is [`LEASE`] ago at most, it needs to ask for nothing.

mod entry;
mod state;

use crate::{
    client::{Patience, Reply},
    config::{Recovery, RedisConfig},
    fault::Fault,
    lanes::Lanes,
    pending::Pending,
    wake::Wakes,
};
use bytes::Bytes;
use entry::{Entry, Position, line};
use larder::{
    semantics::{
        Namespace,
        tags::{Record, Standing},
    },
    store::{Listener, Selector},
};
use state::{State, record_name};
use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};
use tokio::{runtime::Handle, sync::Notify, task::AbortHandle, time::sleep};

/// How often a process asks for what it has missed.
const BEAT: Duration = Duration::from_secs(1);
/// For how long after a beat what a process knows counts as all there is to know.
pub(crate) const LEASE: Duration = Duration::from_secs(2);
/// How long Redis keeps the record of a tag. One that is gone counts as invalidated at the present time of the clock, so
/// its length decides how many responses are fetched once too often, and nothing else.
const RECORD_LIFE: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How long an invalidation waits for a cluster that is moving the namespace's keys to be done, and how often it asks.
const MOVED_WITHIN: Duration = Duration::from_millis(1_500);
const MOVING: Duration = Duration::from_millis(25);

/// The logs of a store's namespaces.
pub(crate) struct Logs {
    lanes: Arc<Lanes>,
    wakes: Arc<Wakes>,
    runtime: Handle,
    /// What tells the messages of this process from others'.
    sender: String,
    recovery: Recovery,
    outage_after: Duration,
    pending: Arc<Pending>,
    /// The log that was asked for first: mostly the only one.
    first: OnceLock<Arc<Log>>,
    known: RwLock<HashMap<String, Arc<Log>>>,
    tasks: Mutex<Vec<AbortHandle>>,
}

impl Logs {
    pub(crate) fn new(
        config: &RedisConfig,
        lanes: Arc<Lanes>,
        wakes: Arc<Wakes>,
        pending: Arc<Pending>,
        runtime: Handle,
    ) -> Self {
        let sender = format!("{:016x}", fastrand::u64(..));
        let (recovery, outage_after) = (config.recovery, config.outage_after);
        let (first, known, tasks) = (OnceLock::new(), RwLock::default(), Mutex::default());
        Self { lanes, wakes, runtime, sender, recovery, outage_after, pending, first, known, tasks }
    }

    /// The log of a namespace, which is followed from now on.
    pub(crate) fn of(&self, namespace: &Namespace) -> Cow<'_, Arc<Log>> {
        let first = self.first.get_or_init(|| self.open(namespace));
        if first.name == namespace.name() {
            return Cow::Borrowed(first);
        }
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).get(namespace.name()).cloned();
        Cow::Owned(known.unwrap_or_else(|| self.open(namespace)))
    }

    fn open(&self, namespace: &Namespace) -> Arc<Log> {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let log = known.entry(namespace.name().to_owned()).or_insert_with(|| {
            let log = Arc::new(Log::new(namespace, self));
            let task = self.runtime.spawn(log.clone().keep_up()).abort_handle();
            self.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(task);
            self.wakes.follow(&log.channel, log.clone());
            log
        });
        log.clone()
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        let tasks = self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner);
        tasks.iter().for_each(AbortHandle::abort);
    }
}

/// The log of one namespace, and what this process knows of it.
pub(crate) struct Log {
    name: String,
    lanes: Arc<Lanes>,
    sender: String,
    recovery: Recovery,
    outage_after: Duration,
    pending: Arc<Pending>,
    channel: String,
    /// What tells the script whom the channel reaches.
    mark: &'static str,
    state: RwLock<State>,
    listeners: Mutex<Vec<Arc<dyn Listener>>>,
    /// Rung when something was missed.
    missed: Notify,
    /// Held by whoever asks for what was missed.
    asking: tokio::sync::Mutex<()>,
}

/// What follows from a beat.
enum Next {
    /// All is known that is to be known.
    Done,
    /// There is more to ask for.
    Again,
    /// An outage is to be recovered from, before which this was the record of the namespace.
    Recover(Record),
}

/// What an invalidation by the clock came to.
pub(crate) struct Invalidated {
    pub(crate) clock: u64,
    pub(crate) logged: String,
}

impl Log {
    fn new(namespace: &Namespace, logs: &Logs) -> Self {
        let name = namespace.name();
        Self {
            channel: format!("{{{name}}}:told"),
            mark: if logs.lanes.is_divided() { "!" } else { "" },
            name: name.to_owned(),
            lanes: logs.lanes.clone(),
            sender: logs.sender.clone(),
            recovery: logs.recovery,
            outage_after: logs.outage_after,
            pending: logs.pending.clone(),
            state: RwLock::default(),
            listeners: Mutex::default(),
            missed: Notify::new(),
            asking: tokio::sync::Mutex::new(()),
        }
    }

    /// Tells `listener` from now on what other processes invalidate.
    pub(crate) fn follow(&self, listener: Arc<dyn Listener>) {
        self.listeners().push(listener);
        // It is told for how long that is all, as soon as it is known.
        self.missed.notify_one();
    }

    /// What the clock shows, or showed a while ago. Asks Redis the first time only.
    pub(crate) async fn clock(&self) -> Result<u64, Fault> {
        if self.state().last.is_none() {
            self.catch_up().await?;
        }
        Ok(self.state().clock)
    }

    /// What is left of a response with these tags that was born when the clock showed `born`, if nothing has to be asked for.
    pub(crate) fn known_standing(&self, tags: &[String], born: u64) -> Option<Standing> {
        let state = self.state();
        let record = state.record(&self.name, tags).ok().filter(|_| state.is_vouched());
        record.map(|record| record.leaves(born))
    }

    /// What is left of a response with these tags that was born when the clock showed `born`.
    pub(crate) async fn standing(&self, tags: &[String], born: u64) -> Result<Standing, Fault> {
        if !self.state().is_vouched() {
            self.catch_up().await?;
        }
        let unknown = match self.state().record(&self.name, tags) {
            Ok(record) => return Ok(record.leaves(born)),
            Err(unknown) => unknown,
        };
        let learned = self.recall(&unknown).await?;
        // Those are kept beside what was known before, also when there are too many to be remembered.
        let known = tags.iter().filter(|tag| !unknown.contains(tag)).cloned().collect::<Vec<_>>();
        let known = self.state().record(&self.name, &known).unwrap_or(Record { gone: u64::MAX, stale: 0 });
        Ok(known.and(learned).leaves(born))
    }

    /// Has a record for each of these tags in Redis, if it is not known that there is one.
    pub(crate) async fn know(&self, tags: &[String]) -> Result<(), Fault> {
        let unknown = self.state().record(&self.name, tags).err();
        match unknown {
            Some(unknown) => self.recall(&unknown).await.map(drop),
            None => Ok(()),
        }
    }

    /// Invalidates tags, or all there is, by the clock.
    pub(crate) async fn invalidate(&self, selector: &Selector, is_soft: bool) -> Result<Invalidated, Fault> {
        let mut keys = vec![self.key("clock"), self.key("log")];
        match selector {
            Selector::Tags(tags) => keys.extend(tags.iter().map(|tag| self.record_name(tag))),
            _ => keys.push(self.key("gen")),
        }
        let (mode, line) = (if is_soft { "s" } else { "h" }, line(selector));
        let arguments = [record_life(), self.address(), text(&self.sender), text(mode), text(line)];
        let answer = self.run(Patience::Purge, "invalidate", &keys, &arguments).await?;
        let [clock, logged] = answer.as_slice() else { return Err(unexpected()) };
        let clock = clock.parse().map_err(|_| unexpected())?;
        self.state_mut().note(&self.name, selector, clock, is_soft);
        Ok(Invalidated { clock, logged: logged.clone() })
    }

    /// Tells others what was invalidated; what it did is done.
    pub(crate) async fn tell(&self, selector: &Selector, is_soft: bool) -> Result<String, Fault> {
        let mode = if is_soft { "s" } else { "h" };
        let arguments = [self.address(), text(&self.sender), text(mode), text(line(selector))];
        let answer = self.run(Patience::Purge, "log", &[self.key("log")], &arguments).await?;
        answer.into_iter().next().ok_or_else(unexpected)
    }

    /// Takes note of a message.
    pub(crate) fn hear(&self, message: &str) {
        let Some(entry) = Entry::parse(message) else { return self.missed.notify_one() };
        let mut state = self.state_mut();
        match state.last {
            // What was logged before this process began to follow.
            None => {}
            Some(last) if entry.position <= last => {}
            Some(last) if entry.before == last => self.take_note(&mut state, &entry),
            Some(_) => self.missed.notify_one(),
        }
    }

    /// Asks soon for what was missed.
    pub(crate) fn may_have_missed(&self) {
        self.missed.notify_one();
    }

    async fn keep_up(self: Arc<Self>) {
        loop {
            if let Err(fault) = self.beat().await {
                tracing::debug!(namespace = self.name, ?fault, "what was invalidated cannot be asked for");
            }
            tokio::select! {
                () = sleep(BEAT) => {}
                () = self.missed.notified() => {}
            }
        }
    }

    /// Asks for what was missed, unless somebody else just has.
    async fn catch_up(&self) -> Result<(), Fault> {
        let turn = self.asking.lock().await;
        if self.state().is_vouched() {
            return Ok(());
        }
        self.ask(turn).await
    }

    async fn beat(&self) -> Result<(), Fault> {
        self.ask(self.asking.lock().await).await
    }

    async fn ask(&self, _turn: tokio::sync::MutexGuard<'_, ()>) -> Result<(), Fault> {
        loop {
            let (asked, mine) = (Instant::now(), self.state().last);
            let known = mine.map(|Position(time, count)| format!("{time}-{count}")).unwrap_or_default();
            let keys = [self.key("clock"), self.key("gen"), self.key("log")];
            let answer = self.run(Patience::Read, "beat", &keys, &[text(known)]).await?;
            match self.take_in(asked, mine, &answer).ok_or_else(unexpected)? {
                Next::Done => return Ok(()),
                Next::Again => {}
                Next::Recover(before) => {
                    self.recover(before).await?;
                    let mut state = self.state_mut();
                    (state.owed, state.vouched) = (None, None);
                }
            }
        }
    }

    /// Takes in what a beat brought that was asked for when `mine` was the last entry known; nothing, if it cannot be read.
    fn take_in(&self, asked: Instant, mine: Option<Position>, answer: &[String]) -> Option<Next> {
        let [clock, all, last, missed @ ..] = answer else { return None };
        let (clock, all, last) = (clock.parse::<u64>().ok()?, record(all)?, Position::parse(last)?);
        let mut state = self.state_mut();
        let was_out =
            state.vouched.is_some_and(|until| (asked + LEASE).saturating_duration_since(until) > self.outage_after);
        (state.clock, state.all) = (state.clock.max(clock), state.all.and(all));
        let is_whole = mine.is_none_or(|mine| {
            // Where something was logged and it may not be read, it is lost as well.
            let is_told = last == mine || !missed.is_empty();
            last >= mine && is_told && self.take_note_of_missed(&mut state, missed)
        });
        if !is_whole {
            tracing::warn!(namespace = self.name, "invalidations were lost: what was known of them is forgotten");
            state.tags.clear();
            (state.last, state.losses) = (Some(last), state.losses + 1);
            self.listeners().iter().for_each(|listener| listener.lost());
        }
        if mine.is_some() && (was_out || !is_whole) {
            let before = state.settled;
            state.owed.get_or_insert(before);
        }
        match state.owed {
            Some(before) if state.all == before => return Some(Next::Recover(before)),
            // Another process has done it already.
            _ => state.owed = None,
        }
        if *state.last.get_or_insert(last) < last {
            return Some(Next::Again);
        }
        let until = asked + LEASE;
        (state.vouched, state.settled) = (Some(until), state.all);
        self.listeners().iter().for_each(|listener| listener.vouched(until.into()));
        Some(Next::Done)
    }

    /// Does what is to be done where invalidations may have been lost, unless another process has by now.
    async fn recover(&self, before: Record) -> Result<(), Fault> {
        let (namespace, recovery) = (&self.name, self.recovery);
        tracing::warn!(namespace, ?recovery, "invalidations may have been lost while Redis was out of reach");
        let is_soft = match self.recovery {
            Recovery::Trust => return Ok(()),
            Recovery::Repeat => {
                self.pending.repeat(&self.name);
                return Ok(());
            }
            Recovery::Expire => true,
            Recovery::Purge => false,
        };
        let keys = [self.key("clock"), self.key("log"), self.key("gen")];
        let (mode, known) = (if is_soft { "s" } else { "h" }, format!("{}:{}", before.gone, before.stale));
        let line = line(&Selector::All);
        let arguments = [record_life(), self.address(), text(&self.sender), text(mode), text(line), text(known)];
        let answer = self.run(Patience::Read, "recover", &keys, &arguments).await?;
        if let [clock, _] = answer.as_slice() {
            let clock = clock.parse().map_err(|_| unexpected())?;
            self.state_mut().note(&self.name, &Selector::All, clock, is_soft);
            self.listeners().iter().for_each(|listener| listener.invalidated(&Selector::All, clock));
        }
        Ok(())
    }

    /// Takes note of what was missed, in its order; whether it goes on from what was known.
    fn take_note_of_missed(&self, state: &mut State, missed: &[String]) -> bool {
        missed.iter().all(|message| {
            let (Some(entry), Some(last)) = (Entry::parse(message), state.last) else { return false };
            if entry.position > last && entry.before != last {
                return false;
            }
            if entry.position > last {
                self.take_note(state, &entry);
            }
            true
        })
    }

    /// Takes note of the entry after the last one. What this process has invalidated itself, it has dealt with.
    fn take_note(&self, state: &mut State, entry: &Entry<'_>) {
        state.last = Some(entry.position);
        state.note(&self.name, &entry.selector, entry.at, entry.is_soft);
        if entry.sender != self.sender {
            self.listeners().iter().for_each(|listener| listener.invalidated(&entry.selector, entry.at));
        }
    }

    /// Reads the records of tags, each made anew where there is none; what they tell together.
    async fn recall(&self, tags: &[String]) -> Result<Record, Fault> {
        let mut keys = vec![self.key("clock"), self.key("log")];
        keys.extend(tags.iter().map(|tag| self.record_name(tag)));
        let recall = Recall::begin(self);
        let answer = self.run(Patience::Read, "recall", &keys, &[record_life()]).await?;
        let Some((clock, records)) = answer.split_first() else { return Err(unexpected()) };
        let clock = clock.parse::<u64>().map_err(|_| unexpected())?;
        let records = records.iter().map(|text| record(text)).collect::<Option<Vec<_>>>().ok_or_else(unexpected)?;
        if records.len() != tags.len() {
            return Err(unexpected());
        }
        let mut state = self.state_mut();
        state.clock = state.clock.max(clock);
        if state.losses == recall.losses {
            for (name, record) in keys.drain(2..).zip(&records) {
                state.remember(name, *record);
            }
        }
        drop(state);
        Ok(records.into_iter().fold(Record::default(), Record::and))
    }

    async fn run(
        &self,
        patience: Patience,
        operation: &'static str,
        keys: &[String],
        arguments: &[Bytes],
    ) -> Result<Vec<String>, Fault> {
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let began = Instant::now();
        let answer = loop {
            match self.lanes.run(patience, operation, &keys, arguments).await {
                // A cluster is moving these keys, one after the other.
                Err(fault) if fault.is("TRYAGAIN") && patience.is_of_purge() && began.elapsed() < MOVED_WITHIN => {
                    sleep(MOVING).await;
                }
                answer => break answer?,
            }
        };
        let words = answer.into_iter().next().and_then(Reply::into_array).unwrap_or_default().into_iter();
        let words = words.map(|word| String::from_utf8(word.into_bytes()?.into()).ok());
        words.collect::<Option<Vec<_>>>().ok_or_else(unexpected)
    }

    fn key(&self, what: &str) -> String {
        format!("{{{}}}:{what}", self.name)
    }

    /// The channel, as the script is told it.
    fn address(&self) -> Bytes {
        text(format_args!("{}{}", self.mark, self.channel))
    }

    fn record_name(&self, tag: &str) -> String {
        record_name(&self.name, tag)
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        // Nothing in it is ever half changed.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<Arc<dyn Listener>>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody asking for records.
struct Recall<'l> {
    log: &'l Log,
    losses: u64,
}

impl<'l> Recall<'l> {
    fn begin(log: &'l Log) -> Self {
        let mut state = log.state_mut();
        state.recalls += 1;
        Self { log, losses: state.losses }
    }
}

impl Drop for Recall<'_> {
    fn drop(&mut self) {
        let mut state = self.log.state_mut();
        state.recalls -= 1;
        if state.recalls == 0 {
            state.meanwhile.clear();
        }
    }
}

/// Reads a record: since when what is older is gone, and since when stale.
fn record(text: &str) -> Option<Record> {
    let (gone, stale) = text.split_once(':')?;
    Some(Record { gone: gone.parse().ok()?, stale: stale.parse().ok()? })
}

fn record_life() -> Bytes {
    text(RECORD_LIFE.as_millis())
}

fn text(value: impl ToString) -> Bytes {
    Bytes::from(value.to_string())
}

/// The echo was right and the rest is not, which no script of larder's does.
fn unexpected() -> Fault {
    Fault::Server("ERR a script's reply has an unexpected form".to_owned())
}
