//! One connection with what stands around it: a gate that is shut while there is none, a watchdog, and the task that
//! keeps it up.

use crate::{
    client::{self, Client, Dialer, Event, Link, Messages, Patience, Reply},
    clock::Clock,
    config::Server,
    fault::Fault,
    measures::Measures,
};
use bytes::Bytes;
use std::{
    sync::{
        Arc, LazyLock, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::{Notify, oneshot, watch},
    time::{MissedTickBehavior, interval, sleep},
};

/// How often the connection is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// How often it is asked for a sign of life, and for the time: every so many looks.
const LOOKS_PER_BEAT: u32 = 4;
/// How long a connection may fail at everything before it is made anew. fred's own check does not see that, as long
/// as something is written.
const FAILING_LIMIT: u64 = 1_500;
/// The least time between two times that a connection is made anew for a reason of ours.
const FORCED_SPACING: Duration = Duration::from_secs(3);
/// How many commands in a row may run out of time before a server of a cluster is not asked for a while, and over how many
/// milliseconds at least: when this process itself stalls, all that is under way runs out of time at once.
const STRIKES: u32 = 5;
const STRIKES_LAST: u64 = 50;
/// The longest pause between two attempts to connect at all.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// A script, whose operations all answer with what they were given to be known by.
pub(crate) struct Script {
    text: &'static str,
    /// What Redis knows it by.
    digest: String,
}

impl Script {
    pub(crate) fn new(text: &'static str) -> Self {
        Self { text, digest: client::digest(text) }
    }
}

/// That of the store.
pub(crate) static STORE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("store.lua")));

/// A connection for one kind of traffic.
#[derive(Debug)]
pub(crate) struct Lane {
    dialer: Arc<Dialer>,
    /// What it leads to, as soon as that is known; it may change.
    place: Arc<Place>,
    client: RwLock<Option<Arc<Client>>>,
    /// Which kind of traffic, for the log.
    role: &'static str,
    open: AtomicBool,
    /// Since when nothing has succeeded, in milliseconds since `started`; zero when it does.
    failing_since: AtomicU64,
    /// Commands in a row that ran out of time, where the lane itself has to spare others from waiting.
    strikes: Option<AtomicU32>,
    started: Instant,
    /// Set when the connection is to be made anew.
    suspect: Notify,
    /// Told when there is no connection any more, or one to a server that is not the right one.
    alarm: Arc<Notify>,
    /// How often a connection was made.
    made: watch::Sender<u64>,
    clock: Option<Arc<Clock>>,
    /// Whether the server is the one whose time counts.
    keeps_time: AtomicBool,
    measures: Arc<Measures>,
}

/// Where a lane leads.
pub(crate) type Place = watch::Sender<Option<Server>>;

/// Which kind of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Whatever is small.
    Data,
    /// The chunks of large entries, behind which nothing small is to wait.
    Bulk,
}

/// How a server is asked for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    Plain,
    /// As one that is about to take over the slot.
    Asking,
}

/// Whom the messages of a channel reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    /// Who listens to any server.
    All,
    /// Who listens to one that has the slot of the channel.
    Slot,
}

impl Lane {
    pub(crate) fn new(dialer: Arc<Dialer>, place: Arc<Place>, role: &'static str, measures: Arc<Measures>) -> Self {
        Self {
            dialer,
            place,
            client: RwLock::default(),
            role,
            open: AtomicBool::new(false),
            failing_since: AtomicU64::new(0),
            strikes: None,
            started: Instant::now(),
            suspect: Notify::new(),
            alarm: Arc::default(),
            made: watch::Sender::new(0),
            clock: None,
            keeps_time: AtomicBool::new(true),
            measures,
        }
    }

    /// Sets the clock by what the server tells.
    pub(crate) fn setting(self, clock: Arc<Clock>) -> Self {
        Self { clock: Some(clock), ..self }
    }

    /// Tells of it when there is no connection any more, or one to a server that is not the right one.
    pub(crate) fn alarming(self, alarm: Arc<Notify>) -> Self {
        Self { alarm, ..self }
    }

    /// Shuts by itself when the server does not answer in time: no breaker stands before it.
    pub(crate) fn sparing(self) -> Self {
        Self { strikes: Some(AtomicU32::new(0)), ..self }
    }

    /// Whether it leads to a part of a cluster, of which the others are to be spared.
    pub(crate) fn is_sparing(&self) -> bool {
        self.strikes.is_some()
    }

    /// Whether it is the server's time that counts.
    pub(crate) fn keep_time(&self, keeps: bool) {
        self.keeps_time.store(keeps, Ordering::Relaxed);
    }

    /// Whether there is a connection, as far as is known.
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    /// Host and port, or the socket's path, for the log.
    pub(crate) fn server(&self) -> String {
        self.place.borrow().as_ref().map_or_else(|| "(not known yet)".to_owned(), ToString::to_string)
    }

    /// The connection, if one may be used.
    fn client(&self) -> Result<Arc<Client>, Fault> {
        if self.is_open() { self.any_client() } else { Err(Fault::Down) }
    }

    /// The connection, whatever is known about it.
    fn any_client(&self) -> Result<Arc<Client>, Fault> {
        // It is never half changed.
        self.client.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or(Fault::Down)
    }

    /// Counts the connections that were made.
    pub(crate) fn connections(&self) -> watch::Receiver<u64> {
        self.made.subscribe()
    }

    /// Reads a key that is asked for since `asked`, unless there is no connection.
    pub(crate) async fn get(&self, key: Bytes, asked: Instant) -> Result<Reply, Fault> {
        let result = self.client()?.get(key).await;
        self.judged(result, asked, Patience::Read)
    }

    /// Reads many keys, unless there is no connection.
    pub(crate) async fn get_all(&self, keys: Vec<Bytes>, asked: Instant) -> Result<Vec<Reply>, Fault> {
        let result = self.client()?.get_all(keys).await;
        self.judged(result, asked, Patience::Read)
    }

    /// Asks for the messages of a channel, unless there is no connection: then whoever wants them asks again when there is.
    pub(crate) async fn subscribe(&self, channel: &str, audience: Audience) {
        let Ok(client) = self.client() else { return };
        let subscribed = match audience {
            Audience::Slot => match client.subscribe_of_slot(channel.to_owned()).await {
                // Before version 7 there are no such channels.
                Err(Fault::Server(reply)) if reply.contains("unknown command") => {
                    client.subscribe(channel.to_owned()).await
                }
                subscribed => subscribed,
            },
            Audience::All => client.subscribe(channel.to_owned()).await,
        };
        if let Err(fault) = subscribed {
            tracing::warn!(server = self.server(), channel, ?fault, "cannot subscribe; what is not heard is asked for");
        }
    }

    /// What comes on the channels that were asked for, as long as [`connections`](Self::connections) stays the same.
    pub(crate) fn messages(&self) -> Messages {
        self.any_client().map_or_else(|_| Messages::none(), |client| client.messages())
    }

    /// Sends a command, unless there is no connection.
    pub(crate) async fn call(
        &self,
        patience: Patience,
        command: &'static str,
        key: Option<usize>,
        arguments: Vec<Bytes>,
    ) -> Result<Reply, Fault> {
        let asked = Instant::now();
        let result = self.client()?.call(patience, command, key, arguments).await;
        self.judged(result, asked, patience)
    }

    /// Sends a command whose key is the argument at `key` in the manner of the cluster.
    pub(crate) async fn call_in(
        &self,
        manner: Manner,
        patience: Patience,
        command: &'static str,
        key: usize,
        arguments: Vec<Bytes>,
    ) -> Result<Reply, Fault> {
        if manner == Manner::Plain {
            return self.call(patience, command, Some(key), arguments).await;
        }
        let asked = Instant::now();
        let result = self.client()?.call_asking(patience, command, arguments).await;
        self.judged(result, asked, patience)
    }

    /// Takes note of what a command came to, which nobody blames on the server if this process was late.
    fn judged<T>(&self, result: Result<T, Fault>, asked: Instant, patience: Patience) -> Result<T, Fault> {
        let within = self.dialer.time_for(patience);
        let result = result.map_err(|fault| fault.judged(asked.elapsed(), within));
        self.note(&result);
        result
    }

    /// Runs an operation of a script, whose reply is checked to be the one to this call.
    pub(crate) async fn run(
        &self,
        script: &'static Script,
        manner: Manner,
        patience: Patience,
        operation: &'static str,
        keys: &[&str],
        arguments: &[Bytes],
    ) -> Result<Vec<Reply>, Fault> {
        let echo = Bytes::from(format!("{:032x}", fastrand::u128(..)));
        let words = |text: &'static str| {
            let mut words = Vec::with_capacity(4 + keys.len() + arguments.len());
            words.push(Bytes::from_static(text.as_bytes()));
            words.push(Bytes::from(keys.len().to_string()));
            words.extend(keys.iter().map(|key| Bytes::copy_from_slice(key.as_bytes())));
            words.push(echo.clone());
            words.push(Bytes::from_static(operation.as_bytes()));
            words.extend_from_slice(arguments);
            words
        };
        let reply = match self.call_in(manner, patience, "EVALSHA", 2, words(&script.digest)).await {
            Err(fault) if fault.is("NOSCRIPT") => self.call_in(manner, patience, "EVAL", 2, words(script.text)).await?,
            reply => reply?,
        };
        let mut parts = reply.into_array().unwrap_or_default();
        if parts.first() != Some(&Reply::Bytes(echo)) {
            self.foreign();
            return Err(Fault::Foreign);
        }
        parts.remove(0);
        Ok(parts)
    }

    /// Takes note that a reply belongs to another command: from now on, every reply on this connection may.
    pub(crate) fn foreign(&self) {
        self.measures.foreign();
        self.suspect.notify_one();
    }

    /// Takes note that a command was given up.
    pub(crate) fn gave_up(&self, fault: &Fault) {
        if *fault == Fault::Timeout {
            self.note::<()>(&Err(Fault::Timeout));
        }
    }

    fn note<T>(&self, result: &Result<T, Fault>) {
        match result {
            Err(Fault::Timeout | Fault::Connection(_)) => {
                let now = self.elapsed().max(1);
                let since = self.failing_since.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
                self.strike(now.saturating_sub(since.err().unwrap_or(now)));
            }
            Err(Fault::Overslept) => {}
            Err(fault) if fault.is("READONLY") => {
                self.suspect.notify_one();
                self.alarm.notify_one();
            }
            _ if self.failing_since.load(Ordering::Relaxed) == 0 => {}
            _ => {
                self.failing_since.store(0, Ordering::Relaxed);
                self.strikes.iter().for_each(|strikes| strikes.store(0, Ordering::Relaxed));
            }
        }
    }

    /// Counts a command that failed as all did for so many milliseconds.
    fn strike(&self, lasting: u64) {
        if let Some(strikes) = &self.strikes
            && strikes.fetch_add(1, Ordering::Relaxed) + 1 >= STRIKES
            && lasting >= STRIKES_LAST
        {
            self.shut("it does not answer in time");
        }
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Keeps the connection up for as long as the task lives; tells `first` what came of the first attempt.
    pub(crate) async fn keep_up(self: Arc<Self>, first: oneshot::Sender<Result<(), Fault>>) {
        let (mut first, mut told) = (Some(first), None);
        let mut pause = Pause::default();
        let mut places = self.place.subscribe();
        loop {
            let Some(server) = places.borrow_and_update().clone() else {
                // The lane itself holds the other end.
                let _ = places.changed().await;
                continue;
            };
            match self.dial(&server).await {
                Ok(link) => {
                    (pause, told) = (Pause::default(), None);
                    self.welcome().await;
                    if let Some(first) = first.take() {
                        let _ = first.send(Ok(()));
                    }
                    self.follow(link, &mut places).await;
                }
                Err(fault) => {
                    if told.as_ref() != Some(&fault) {
                        let (server, role) = (server.to_string(), self.role);
                        tracing::warn!(server, role, ?fault, "cannot connect to Redis; trying on in the background");
                        told = Some(fault.clone());
                    }
                    if let Some(first) = first.take() {
                        let _ = first.send(Err(fault));
                    }
                    self.alarm.notify_one();
                }
            }
            tokio::select! {
                () = sleep(pause.next()) => {}
                _ = places.changed() => places.mark_changed(),
            }
        }
    }

    async fn dial(&self, server: &Server) -> Result<Link, Fault> {
        let client = self.dialer.client(server).map_err(|error| Fault::Connection(error.to_string()))?;
        let link = client.connect().await?;
        *self.client.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(client));
        Ok(link)
    }

    /// Follows a connection until it is given up, or is to lead elsewhere.
    async fn follow(&self, mut link: Link, places: &mut watch::Receiver<Option<Server>>) {
        let Ok(client) = self.any_client() else { return };
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut count = 0_u32;
        let mut forced: Option<Instant> = None;
        let (mut suspected, mut told) = (false, false);
        loop {
            tokio::select! {
                biased;
                event = link.event() => match event {
                    Event::Broken(fault) => {
                        self.shut(&format!("{fault:?}"));
                        if !told && ["NOAUTH", "WRONGPASS"].iter().any(|code| fault.is(code)) {
                            told = true;
                            tracing::error!(server = self.server(), role = self.role, ?fault, "Redis refuses to sign in");
                        }
                    }
                    Event::Made => {
                        (suspected, told) = (false, false);
                        self.welcome().await;
                    }
                    Event::Ended => return self.shut("the client gave up"),
                },
                _ = places.changed() => {
                    places.mark_changed();
                    return self.shut("it is to lead elsewhere");
                }
                () = self.suspect.notified() => suspected = true,
                _ = looks.tick() => {
                    count = count.wrapping_add(1);
                    match (self.is_open(), client.is_connected()) {
                        (true, false) => self.shut("the client is not connected"),
                        (false, true) => self.welcome().await,
                        (true, true) if count.is_multiple_of(LOOKS_PER_BEAT) => _ = self.beat().await,
                        _ => {}
                    }
                }
            }
            let since = self.failing_since.load(Ordering::Relaxed);
            let failing = since != 0 && self.elapsed().saturating_sub(since) > FAILING_LIMIT;
            let spaced = forced.is_none_or(|forced| forced.elapsed() >= FORCED_SPACING);
            // While there is none, one is being made already; what only is not asked may be one that leads nowhere.
            let is_there = self.is_open() || self.strikes.is_some() && client.is_connected();
            if (failing || suspected) && spaced && is_there {
                tracing::warn!(
                    server = self.server(),
                    role = self.role,
                    reason = if failing { "nothing succeeds" } else { "a reply cannot be trusted, or is READONLY" },
                    "making the connection to Redis anew"
                );
                (forced, suspected) = (Some(Instant::now()), false);
                self.failing_since.store(0, Ordering::Relaxed);
                self.force(Arc::clone(&client));
                if failing {
                    // fred still believes in it for half a second, in which every request would wait in vain.
                    self.shut("nothing succeeds");
                }
            }
        }
    }

    /// Makes the connection anew, without waiting for that: it may take as long as an outage does.
    fn force(&self, client: Arc<Client>) {
        tokio::spawn(async move { client.reconnect().await });
    }

    /// Opens the gate, once a connection that was made has answered.
    async fn welcome(&self) {
        let asked = Instant::now();
        let answers = self.beat().await;
        // What would be too slow for those who wait is not asked again before it answers faster.
        let fast = self.strikes.is_none() || asked.elapsed() <= self.dialer.read_timeout();
        if answers && fast && !self.open.swap(true, Ordering::Relaxed) {
            self.failing_since.store(0, Ordering::Relaxed);
            self.strikes.iter().for_each(|strikes| strikes.store(0, Ordering::Relaxed));
            tracing::info!(server = self.server(), role = self.role, "connected to Redis");
        }
        if self.is_open() {
            self.made.send_modify(|made| *made += 1);
        }
    }

    fn shut(&self, why: &str) {
        if self.open.swap(false, Ordering::Relaxed) {
            tracing::warn!(server = self.server(), role = self.role, why, "lost the connection to Redis");
        } else {
            tracing::debug!(server = self.server(), role = self.role, why, "still not connected to Redis");
        }
        self.alarm.notify_one();
    }

    /// Warns of servers that show different times: when the one that keeps it fails, the time jumps by so much.
    fn compare_time(&self, clock: &Clock, time: u64) {
        if let Some(ahead_ms) = clock.compare(time) {
            tracing::warn!(
                server = self.server(),
                ahead_ms,
                "the clocks of this server and of the one that keeps the cluster's time differ"
            );
        }
    }

    /// Asks for a sign of life, which must be the answer to this very question, and for the time.
    async fn beat(&self) -> bool {
        let token = Bytes::from(format!("{:032x}", fastrand::u128(..)));
        let Ok(client) = self.any_client() else { return false };
        let pong = client.call(Patience::Check, "PING", None, vec![token.clone()]).await;
        self.note(&pong);
        match pong {
            Ok(Reply::Bytes(echo)) if echo == token => {}
            // It answers, which is all that is asked.
            Err(fault @ Fault::Server(_)) if !fault.is_outage() => {}
            Ok(_) | Err(Fault::Foreign) => {
                self.foreign();
                return false;
            }
            Err(_) => return false,
        }
        self.learn_time(&client).await;
        true
    }

    async fn learn_time(&self, client: &Client) {
        let Some(clock) = &self.clock else { return };
        let asked = Instant::now();
        let reply = client.call(Patience::Check, "TIME", None, Vec::new()).await;
        let answered = Instant::now();
        let Some(time) = reply.ok().and_then(millis) else { return };
        if !self.keeps_time.load(Ordering::Relaxed) && clock.is_set() {
            return self.compare_time(clock, time);
        }
        if let Some(ahead_ms) = clock.learn(time, asked, answered) {
            tracing::warn!(
                server = self.server(),
                ahead_ms,
                "this machine's clock and that of Redis differ; larder goes by that of Redis"
            );
        }
    }
}

/// Reads the reply to TIME: seconds, and microseconds beyond them.
fn millis(reply: Reply) -> Option<u64> {
    let number = |reply: Reply| std::str::from_utf8(&reply.into_bytes()?).ok()?.parse::<u64>().ok();
    let mut parts = reply.into_array()?.into_iter();
    let (seconds, micros) = (number(parts.next()?)?, number(parts.next()?)?);
    parts.next().is_none().then(|| seconds.saturating_mul(1000).saturating_add(micros / 1000))
}

/// The pauses between attempts to connect at all: 200 to 500 ms, doubling, at most 3 s, jittered at any length.
#[derive(Debug, Default)]
struct Pause {
    attempts: u32,
}

impl Pause {
    fn next(&mut self) -> Duration {
        let jittered = Duration::from_millis(fastrand::u64(200..=500));
        let grown = jittered.saturating_mul(1 << self.attempts.min(4));
        self.attempts = self.attempts.saturating_add(1);
        if grown <= LONGEST_PAUSE { grown } else { LONGEST_PAUSE.mul_f64(0.5 + fastrand::f64() / 2.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pauses_grow_and_stay_jittered() {
        let mut pause = Pause::default();
        let first = pause.next();
        assert!(first >= Duration::from_millis(200) && first <= Duration::from_millis(500), "{first:?}");
        let late: Vec<Duration> = (0..50).map(|_| pause.next()).skip(10).collect();
        assert!(late.iter().all(|pause| *pause <= LONGEST_PAUSE && *pause >= LONGEST_PAUSE / 2), "{late:?}");
        assert!(late.windows(2).any(|two| two[0] != two[1]), "{late:?}");
    }

    #[test]
    fn the_time_is_read_from_two_numbers_and_from_nothing_else() {
        let bytes = |text: &'static str| Reply::Bytes(Bytes::from_static(text.as_bytes()));
        assert_eq!(millis(Reply::Array(vec![bytes("1700000000"), bytes("123999")])), Some(1_700_000_000_123));
        for other in [
            Reply::Nil,
            Reply::Array(vec![]),
            Reply::Array(vec![bytes("1")]),
            Reply::Array(vec![bytes("1"), bytes("x")]),
            Reply::Array(vec![bytes("1"), bytes("2"), bytes("3")]),
        ] {
            assert_eq!(millis(other), None);
        }
    }
}
