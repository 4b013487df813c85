//! One connection with what stands around it: a gate that is shut while there is none, a watchdog, and the task that
//! keeps it up.

use crate::{
    client::{self, Client, Event, Link, Messages, Patience, Reply},
    clock::Clock,
    fault::Fault,
    measures::Measures,
};
use bytes::Bytes;
use larder::store::StoreError;
use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
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
/// The longest pause between two attempts to connect at all.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// The one script.
const SCRIPT: &str = include_str!("store.lua");
/// What Redis knows it by.
static DIGEST: LazyLock<String> = LazyLock::new(|| client::digest(SCRIPT));

/// A connection for one kind of traffic.
#[derive(Debug)]
pub(crate) struct Lane {
    client: Client,
    /// Which kind of traffic, for the log.
    role: &'static str,
    /// Host and port, or the socket's path, for the log.
    server: String,
    open: AtomicBool,
    /// Since when nothing has succeeded, in milliseconds since `started`; zero when it does.
    failing_since: AtomicU64,
    started: Instant,
    /// Set when the connection is to be made anew.
    suspect: Notify,
    /// How often a connection was made.
    made: watch::Sender<u64>,
    clock: Option<Arc<Clock>>,
    measures: Arc<Measures>,
}

impl Lane {
    pub(crate) fn new(
        client: Client,
        role: &'static str,
        server: String,
        clock: Option<Arc<Clock>>,
        measures: Arc<Measures>,
    ) -> Self {
        Self {
            client,
            role,
            server,
            open: AtomicBool::new(false),
            failing_since: AtomicU64::new(0),
            started: Instant::now(),
            suspect: Notify::new(),
            made: watch::Sender::new(0),
            clock,
            measures,
        }
    }

    /// Whether there is a connection, as far as is known.
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    /// Refuses what would only queue up, while there is no connection.
    pub(crate) fn admits(&self) -> Result<(), StoreError> {
        if self.is_open() { Ok(()) } else { Err(Fault::Down.into()) }
    }

    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// Counts the connections that were made.
    pub(crate) fn connections(&self) -> watch::Receiver<u64> {
        self.made.subscribe()
    }

    /// Reads a key, unless there is no connection.
    pub(crate) async fn get(&self, key: Bytes) -> Result<Reply, Fault> {
        if !self.is_open() {
            return Err(Fault::Down);
        }
        let result = self.client.get(key).await;
        self.note(&result);
        result
    }

    /// Reads many keys, unless there is no connection.
    pub(crate) async fn get_all(&self, keys: Vec<Bytes>) -> Result<Vec<Reply>, Fault> {
        if !self.is_open() {
            return Err(Fault::Down);
        }
        let result = self.client.get_all(keys).await;
        self.note(&result);
        result
    }

    /// Asks for the messages of a channel, unless there is no connection: then whoever wants them asks again when there is.
    pub(crate) async fn subscribe(&self, channel: String) {
        if !self.is_open() {
            return;
        }
        if let Err(fault) = self.client.subscribe(channel.clone()).await {
            tracing::warn!(server = self.server, channel, ?fault, "cannot subscribe; what is not heard is asked for");
        }
    }

    /// What comes on the channels that were asked for.
    pub(crate) fn messages(&self) -> Messages {
        self.client.messages()
    }

    /// Sends a command, unless there is no connection.
    pub(crate) async fn call(
        &self,
        patience: Patience,
        command: &'static str,
        key: Option<usize>,
        arguments: Vec<Bytes>,
    ) -> Result<Reply, Fault> {
        if !self.is_open() {
            return Err(Fault::Down);
        }
        let result = self.client.call(patience, command, key, arguments).await;
        self.note(&result);
        result
    }

    /// Runs an operation of the script, whose reply is checked to be the one to this call.
    pub(crate) async fn run(
        &self,
        patience: Patience,
        operation: &'static str,
        keys: &[&str],
        arguments: &[Bytes],
    ) -> Result<Vec<Reply>, Fault> {
        let echo = Bytes::from(format!("{:032x}", fastrand::u128(..)));
        let words = |script: &'static str| {
            let mut words = Vec::with_capacity(4 + keys.len() + arguments.len());
            words.push(Bytes::from_static(script.as_bytes()));
            words.push(Bytes::from(keys.len().to_string()));
            words.extend(keys.iter().map(|key| Bytes::copy_from_slice(key.as_bytes())));
            words.push(echo.clone());
            words.push(Bytes::from_static(operation.as_bytes()));
            words.extend_from_slice(arguments);
            words
        };
        let reply = match self.call(patience, "EVALSHA", Some(2), words(&DIGEST)).await {
            Err(fault) if fault.is("NOSCRIPT") => self.call(patience, "EVAL", Some(2), words(SCRIPT)).await?,
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

    fn note<T>(&self, result: &Result<T, Fault>) {
        match result {
            Err(Fault::Timeout | Fault::Connection(_)) => {
                let now = self.elapsed().max(1);
                let _ = self.failing_since.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
            }
            Err(fault) if fault.is("READONLY") => self.suspect.notify_one(),
            _ if self.failing_since.load(Ordering::Relaxed) == 0 => {}
            _ => self.failing_since.store(0, Ordering::Relaxed),
        }
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Keeps the connection up for as long as the task lives; tells `first` what came of the first attempt.
    pub(crate) async fn keep_up(self: Arc<Self>, first: oneshot::Sender<Result<(), Fault>>) {
        let (mut first, mut told) = (Some(first), None);
        let mut pause = Pause::default();
        loop {
            match self.client.connect().await {
                Ok(link) => {
                    (pause, told) = (Pause::default(), None);
                    self.welcome().await;
                    if let Some(first) = first.take() {
                        let _ = first.send(Ok(()));
                    }
                    self.follow(link).await;
                }
                Err(fault) => {
                    if told.as_ref() != Some(&fault) {
                        let (server, role) = (&self.server, self.role);
                        tracing::warn!(server, role, ?fault, "cannot connect to Redis; trying on in the background");
                        told = Some(fault.clone());
                    }
                    if let Some(first) = first.take() {
                        let _ = first.send(Err(fault));
                    }
                }
            }
            sleep(pause.next()).await;
        }
    }

    /// Follows a connection until it is given up.
    async fn follow(&self, mut link: Link) {
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
                            tracing::error!(server = self.server, role = self.role, ?fault, "Redis refuses to sign in");
                        }
                    }
                    Event::Made => {
                        (suspected, told) = (false, false);
                        self.welcome().await;
                    }
                    Event::Ended => return self.shut("the client gave up"),
                },
                () = self.suspect.notified() => suspected = true,
                _ = looks.tick() => {
                    count = count.wrapping_add(1);
                    match (self.is_open(), self.client.is_connected()) {
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
            // While there is none, one is being made already.
            if (failing || suspected) && spaced && self.is_open() {
                tracing::warn!(
                    server = self.server,
                    role = self.role,
                    reason = if failing { "nothing succeeds" } else { "a reply cannot be trusted, or is READONLY" },
                    "making the connection to Redis anew"
                );
                (forced, suspected) = (Some(Instant::now()), false);
                self.failing_since.store(0, Ordering::Relaxed);
                self.force();
                if failing {
                    // fred still believes in it for half a second, in which every request would wait in vain.
                    self.shut("nothing succeeds");
                }
            }
        }
    }

    /// Makes the connection anew, without waiting for that: it may take as long as an outage does.
    fn force(&self) {
        let client = self.client.clone();
        tokio::spawn(async move { client.reconnect().await });
    }

    /// Opens the gate, once a connection that was made has answered.
    async fn welcome(&self) {
        if self.beat().await && !self.open.swap(true, Ordering::Relaxed) {
            self.failing_since.store(0, Ordering::Relaxed);
            tracing::info!(server = self.server, role = self.role, "connected to Redis");
        }
        if self.is_open() {
            self.made.send_modify(|made| *made += 1);
        }
    }

    fn shut(&self, why: &str) {
        if self.open.swap(false, Ordering::Relaxed) {
            tracing::warn!(server = self.server, role = self.role, why, "lost the connection to Redis");
        } else {
            tracing::debug!(server = self.server, role = self.role, why, "still not connected to Redis");
        }
    }

    /// Asks for a sign of life, which must be the answer to this very question, and for the time.
    async fn beat(&self) -> bool {
        let token = Bytes::from(format!("{:032x}", fastrand::u128(..)));
        let pong = self.client.call(Patience::Check, "PING", None, vec![token.clone()]).await;
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
        self.learn_time().await;
        true
    }

    async fn learn_time(&self) {
        let Some(clock) = &self.clock else { return };
        let asked = Instant::now();
        let reply = self.client.call(Patience::Check, "TIME", None, Vec::new()).await;
        let answered = Instant::now();
        let Some(time) = reply.ok().and_then(millis) else { return };
        if let Some(ahead_ms) = clock.learn(time, asked, answered) {
            tracing::warn!(
                server = self.server,
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
