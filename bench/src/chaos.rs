//! Processes whose ways to Redis break at random while pages change: no answer may be older than it may be, and none fail.

use crate::{
    chaos::{ledger::Ledger, member::Account},
    network::{Fault, Reach, Road},
    pages::connection,
    process::{Outcome, Process},
};
use fastrand::Rng;
use larder_tests::RedisServer;
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    task::{AbortHandle, block_in_place},
    time::sleep,
};

mod ledger;
mod member;

pub use member::serve;

const PROCESSES: usize = 4;
/// How many pages there are. Each is changed by one process only.
const PAGES: usize = 64;
/// When so many answers were too old, there is no doubt.
const ENOUGH: u64 = 10;

/// What keeps the processes from answering with what was purged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// larder with every setting at its default.
    Defaults,
    /// The same, but that copies are kept near for so long that only the log keeps them from answering.
    Log,
    /// PUBLISH and SUBSCRIBE in place of the log, and copies kept for as long.
    Channel,
}

impl Part {
    /// All of them, with the words they are ordered by.
    pub const ALL: [(&'static str, Self); 3] =
        [("defaults", Self::Defaults), ("log", Self::Log), ("channel", Self::Channel)];

    /// Reads one of the words.
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(name, _)| *name == word).map(|(_, part)| *part)
    }

    fn word(self) -> &'static str {
        Self::ALL.iter().find(|(_, part)| *part == self).map_or("", |(word, _)| word)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Defaults => "larder at its defaults",
            Self::Log => "larder, copies kept near for a minute",
            Self::Channel => "PUBLISH and SUBSCRIBE in place of its log, copies kept near for a minute",
        }
    }
}

/// Runs one part for so long, on a Redis of its own; without the log, only until there is no doubt.
///
/// # Errors
///
/// When the processes cannot be started, or one ends.
pub async fn run(part: Part, length: Duration, seed: u64) -> Outcome<Figures> {
    let server = block_in_place(|| RedisServer::builder().open().start());
    let (mut fleet, mut weather) = (Vec::new(), Vec::new());
    let faults = Faults::default();
    for index in 0..PROCESSES {
        let road = Road::to(server.addr()).await?;
        let (number, direct, url) = (index.to_string(), server.url(), road.url());
        fleet.push(block_in_place(|| Process::start(&["member", part.word(), &number, &direct, &url]))?);
        let rng = Rng::with_seed(seed.wrapping_add(index as u64));
        weather.push(tokio::spawn(break_at_random(road, rng, faults.clone())).abort_handle());
    }
    let (ledger, began) = (Ledger::of(connection(&server.url()).await?), Instant::now());
    while began.elapsed() < length && (part != Part::Channel || ledger.outdated().await? < ENOUGH) {
        sleep(Duration::from_millis(200)).await;
    }
    ledger.close().await?;
    let took = began.elapsed();
    let told = |process: &mut Process| Account::parse(&process.line()?);
    let accounts = block_in_place(|| fleet.iter_mut().map(told).collect::<Outcome<Vec<_>>>())?;
    weather.iter().for_each(AbortHandle::abort);
    Ok(Figures::of(part, seed, took, accounts, faults))
}

/// Breaks a road and mends it, again and again.
async fn break_at_random(road: Road, mut rng: Rng, faults: Faults) {
    loop {
        sleep(Duration::from_millis(rng.u64(300..4_000))).await;
        let fault = any_fault(&mut rng);
        let reach = if fault == Fault::Mute { Reach::Subscribers } else { any_reach(&mut rng) };
        faults.count(fault);
        road.break_by(fault, reach);
        // Some of the long ones count as an outage.
        let length = if rng.u8(..6) == 0 { rng.u64(3_000..12_000) } else { rng.u64(50..3_000) };
        sleep(Duration::from_millis(length)).await;
        road.mend();
    }
}

fn any_fault(rng: &mut Rng) -> Fault {
    match rng.u8(..5) {
        0 => Fault::Cut,
        1 => Fault::Drop,
        2 => Fault::Delay(Duration::from_millis(rng.u64(20..600))),
        3 => Fault::BlackHole,
        _ => Fault::Mute,
    }
}

fn any_reach(rng: &mut Rng) -> Reach {
    match rng.u8(..3) {
        0 => Reach::All,
        1 => Reach::Some,
        _ => Reach::Subscribers,
    }
}

/// How many faults there were, by kind.
#[derive(Debug, Clone, Default)]
struct Faults(Arc<Mutex<BTreeMap<&'static str, u64>>>);

impl Faults {
    fn count(&self, fault: Fault) {
        let name = match fault {
            Fault::Cut => "cut",
            Fault::Drop => "dropped",
            Fault::Delay(_) => "delayed",
            Fault::BlackHole => "black hole",
            Fault::Mute => "mute",
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let each: Vec<String> = counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
        f.write_str(&each.join(", "))
    }
}

/// What one part came to.
#[derive(Debug)]
pub struct Figures {
    part: Part,
    seed: u64,
    took: Duration,
    all: Account,
    faults: Faults,
}

impl Figures {
    fn of(part: Part, seed: u64, took: Duration, accounts: Vec<Account>, faults: Faults) -> Self {
        let mut all = accounts.into_iter().reduce(Account::and).unwrap_or_default();
        all.lags.sort_unstable();
        Self { part, seed, took, all, faults }
    }

    /// The tables of one part.
    pub fn tables(&self) -> String {
        let Self { part, seed, took, all, faults } = self;
        let lag = |share: usize| {
            let last = all.lags.len().saturating_sub(1);
            all.lags.get(last * share / 1000).map_or(0.0, |micros| *micros as f64 / 1e3)
        };
        let rows = [
            ("seed of the faults", seed.to_string()),
            ("minutes", format!("{:.1}", took.as_secs_f64() / 60.0)),
            ("faults", faults.to_string()),
            ("requests", all.requests.to_string()),
            ("of them near hits, hits in Redis", format!("{}, {}", all.near, all.far)),
            ("failed, or took 10 s", all.failed.to_string()),
            ("slowest, ms", all.slowest.to_string()),
            ("purges that returned Ok", all.purged.to_string()),
            ("purges that failed, and were tried again", all.retried.to_string()),
            ("an old version answered in another process, p50 ms", format!("{:.1}", lag(500))),
            ("p99 ms", format!("{:.1}", lag(990))),
            ("p99.9 ms", format!("{:.1}", lag(999))),
            ("longest ms", format!("{:.1}", lag(1000))),
            ("what is promised, ms", all.bound.to_string()),
            ("answers that were too old", all.outdated.to_string()),
        ];
        let rows: String = rows.iter().map(|(name, value)| format!("| {name} | {value} |\n")).collect();
        format!("| {} | |\n|---|---:|\n{rows}", part.name())
    }

    /// What is not as it must be, in sentences.
    pub fn broken(&self) -> Vec<String> {
        let (name, Account { failed, outdated, .. }) = (self.part.name(), &self.all);
        let mut broken = Vec::new();
        match self.part {
            Part::Channel if *outdated == 0 => broken.push(format!("{name}: no fault was found with that")),
            Part::Channel => {}
            _ if *outdated > 0 => broken.push(format!("{name}: {outdated} answers were older than is promised")),
            _ => {}
        }
        if *failed > 0 {
            broken.push(format!("{name}: {failed} requests failed"));
        }
        broken
    }
}
