//! One of the processes: it asks for every page all the time, checks every answer, and changes the pages that are its own.

use super::{
    PAGES, PROCESSES, Part,
    ledger::{Ledger, Promise},
};
use crate::{
    flawed::Flawed,
    pages::{Answer, Pages},
    process::Outcome,
    stampede::now_nanos,
};
use larder::{Cache, MemoryStore, semantics::Reason, store::Store};
use larder_redis::RedisStore;
use std::{
    collections::BTreeMap,
    str::FromStr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

const READERS: usize = 4;
const WRITERS: usize = 2;
/// The pages of one writer.
const SHARE: usize = PAGES / PROCESSES / WRITERS;
/// Between two requests of one reader.
const PAUSE: Duration = Duration::from_millis(4);
/// Between two tries of a purge.
const AGAIN: Duration = Duration::from_millis(50);
/// A request that takes longer hangs.
const HANGS: Duration = Duration::from_secs(10);
/// How many answers that are too old are described.
const DESCRIBED: u64 = 5;

/// A process of the fleet, until the ledger is closed: then it tells what it has counted.
///
/// # Errors
///
/// When Redis is not reached on the connections that nothing is wrong with.
pub async fn serve(part: Part, index: usize, direct: &str, road: &str) -> Outcome<()> {
    let member = Arc::new(Member::join(part, index, direct, road).await?);
    println!("ready");
    let mut running = JoinSet::new();
    running.spawn(member.clone().follow());
    (0..READERS).for_each(|_| _ = running.spawn(member.clone().visit()));
    (0..WRITERS).for_each(|writer| _ = running.spawn(member.clone().edit((index * WRITERS + writer) * SHARE)));
    while let Some(done) = running.join_next().await {
        done??;
    }
    println!("{}", member.account().line());
    Ok(())
}

struct Member {
    index: usize,
    pages: Pages,
    ledger: Ledger,
    /// How long after a purge has returned in another process the old version may still answer.
    bound: Duration,
    is_closed: AtomicBool,
    seen: Mutex<Seen>,
}

/// What was promised and answered of each page, and the counts.
struct Seen {
    promised: Vec<Vec<Promise>>,
    /// When each version was last asked for that answered.
    answered: Vec<BTreeMap<u64, u64>>,
    account: Account,
}

impl Member {
    /// Connects: the cache over the road, and everything else directly.
    async fn join(part: Part, index: usize, direct: &str, road: &str) -> Outcome<Self> {
        const KEPT: Duration = Duration::from_secs(60);
        let (cache, store) = (Cache::builder().near(MemoryStore::default()), RedisStore::connect(road).await?);
        let of_log = store.staleness_bound();
        let cache = match part {
            Part::Defaults => cache.store(store),
            Part::Log => cache.store(store).near_life(KEPT),
            Part::Channel => cache.store(Flawed::without_log(store, road).await?).near_life(KEPT),
        };
        let cache = cache.build()?;
        let bound = if part == Part::Defaults { cache.staleness_bound() } else { of_log };
        let pages = Pages::of(cache, direct).await?;
        let account = Account { bound: u64::try_from(bound.as_millis())?, ..Account::default() };
        let seen = Seen { promised: vec![Vec::new(); PAGES], answered: vec![BTreeMap::new(); PAGES], account };
        let (ledger, is_closed) = (Ledger::from(&pages), AtomicBool::new(false));
        Ok(Self { index, pages, ledger, bound, is_closed, seen: seen.into() })
    }

    /// Takes note of what the others promise.
    async fn follow(self: Arc<Self>) -> Outcome<()> {
        let mut known = 0;
        while !self.is_closed() {
            let new = self.ledger.promises(known).await?;
            known += new.len();
            new.into_iter().filter(|promise| promise.by != self.index).for_each(|promise| self.note(promise));
            self.is_closed.store(self.ledger.is_closed().await?, Ordering::Relaxed);
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Asks for one page after the other.
    async fn visit(self: Arc<Self>) -> Outcome<()> {
        while !self.is_closed() {
            let (page, began) = (fastrand::usize(..PAGES), now_nanos());
            let answered = timeout(HANGS, self.pages.read(page)).await.ok().and_then(Result::ok);
            if self.check(page, began, answered) {
                self.ledger.blame().await?;
            }
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Changes one of its pages after the other, some of them often and some rarely, and purges each until that is done.
    async fn edit(self: Arc<Self>, first: usize) -> Outcome<()> {
        while !self.is_closed() {
            let page = first + fastrand::usize(..SHARE).min(fastrand::usize(..SHARE));
            let version = self.pages.change(page).await?;
            while self.purge(page, version).await.is_err() {
                if self.is_closed() {
                    return Ok(());
                }
                self.seen().account.retried += 1;
                sleep(AGAIN).await;
            }
            let promise = Promise { page, version, by: self.index, at: now_nanos() };
            self.note(promise);
            self.ledger.promise(promise).await?;
            sleep(Duration::from_millis(fastrand::u64(..800))).await;
        }
        Ok(())
    }

    async fn purge(&self, page: usize, version: u64) -> Outcome<()> {
        if version.is_multiple_of(2) {
            self.pages.purge_by_key(page).await
        } else {
            self.pages.purge_by_tag(page).await
        }
    }

    fn note(&self, promise: Promise) {
        let mut seen = self.seen();
        seen.account.purged += u64::from(promise.by == self.index);
        seen.promised[promise.page].push(promise);
    }

    /// Takes note of what a request came to that began then; whether its answer was too old.
    fn check(&self, page: usize, began: u64, answered: Option<Answer>) -> bool {
        let took = (now_nanos() - began) / 1_000_000;
        let mut seen = self.seen();
        let Seen { promised, answered: last, account } = &mut *seen;
        account.requests += 1;
        account.slowest = account.slowest.max(took);
        let Some(Answer { version, detail }) = answered else {
            account.failed += 1;
            return false;
        };
        account.near += u64::from(detail == Reason::Near.as_str());
        account.far += u64::from(detail == Reason::Far.as_str());
        let asked = last[page].entry(version).or_default();
        *asked = began.max(*asked);
        let broken = promised[page].iter().rev().take_while(|promise| promise.version > version).last();
        let Some(broken) = broken.filter(|promise| began > self.due(promise)) else { return false };
        account.outdated += 1;
        if account.outdated <= DESCRIBED {
            let (late, by) = ((began - broken.at) / 1_000_000, self.index);
            eprintln!("process {by}: {page} answered with {version} ({detail}) {late} ms after {broken:?}");
        }
        true
    }

    /// From when on nothing older may answer here. This process is bound by its own purges at once.
    fn due(&self, promise: &Promise) -> u64 {
        let bound = if promise.by == self.index { Duration::ZERO } else { self.bound };
        promise.at.saturating_add(u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX))
    }

    /// All that was counted, and for how long after each promise of another process something older has answered.
    fn account(&self) -> Account {
        let seen = self.seen();
        let of_others = seen.promised.iter().flatten().filter(|promise| promise.by != self.index);
        let lag = |promise: &Promise| {
            let older = seen.answered[promise.page].range(..promise.version).map(|(_, asked)| *asked);
            older.max().unwrap_or_default().saturating_sub(promise.at) / 1_000
        };
        Account { lags: of_others.map(lag).collect(), ..seen.account.clone() }
    }

    fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // Nobody panics in the middle of a note.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was counted.
#[derive(Debug, Clone, Default)]
pub(super) struct Account {
    pub(super) requests: u64,
    /// Answered from this process, and from Redis.
    pub(super) near: u64,
    pub(super) far: u64,
    pub(super) failed: u64,
    /// In milliseconds.
    pub(super) slowest: u64,
    /// Purges that have returned, and tries that have failed.
    pub(super) purged: u64,
    pub(super) retried: u64,
    pub(super) outdated: u64,
    /// What is promised, in milliseconds.
    pub(super) bound: u64,
    /// In microseconds.
    pub(super) lags: Vec<u64>,
}

impl Account {
    fn line(&self) -> String {
        let Self { requests, near, far, failed, slowest, purged, retried, outdated, bound, lags } = self;
        let counts = [requests, near, far, failed, slowest, purged, retried, outdated, bound];
        counts.into_iter().chain(lags).map(u64::to_string).collect::<Vec<_>>().join(" ")
    }

    /// Reads what a process has told.
    pub(super) fn parse(line: &str) -> Outcome<Self> {
        let numbers: Vec<u64> = line.split(' ').map(u64::from_str).collect::<Result<_, _>>()?;
        let [requests, near, far, failed, slowest, purged, retried, outdated, bound, lags @ ..] = &numbers[..] else {
            return Err(format!("not an account: {line}").into());
        };
        Ok(Self {
            requests: *requests,
            near: *near,
            far: *far,
            failed: *failed,
            slowest: *slowest,
            purged: *purged,
            retried: *retried,
            outdated: *outdated,
            bound: *bound,
            lags: lags.to_vec(),
        })
    }

    /// Both together.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.lags.extend(other.lags);
        Self {
            requests: self.requests + other.requests,
            near: self.near + other.near,
            far: self.far + other.far,
            failed: self.failed + other.failed,
            slowest: self.slowest.max(other.slowest),
            purged: self.purged + other.purged,
            retried: self.retried + other.retried,
            outdated: self.outdated + other.outdated,
            bound: self.bound.max(other.bound),
            lags: self.lags,
        }
    }
}
