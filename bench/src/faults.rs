//! What a broken Redis does to the requests of an app that is cached in it: nobody may notice.

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    routing::get,
};
use http::{Request, Response, header::HeaderName};
use http_body_util::BodyExt;
use larder::{
    Cache, CacheService, Purge, Ttl,
    semantics::{Key, Namespace, Reason, Refusal},
};
use larder_redis::RedisStore;
use larder_tests::{Connection, FaultProxy, RedisServer};
use std::{
    os::unix::net::UnixStream,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::{
    task::{JoinSet, block_in_place},
    time::{sleep, timeout},
};
use tower::{Layer, ServiceExt};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Who makes requests at the same time, each one after the other.
const CLIENTS: usize = 64;
/// Between two requests of one client, so that what is measured is not the wait for a processor.
const PAUSE: Duration = Duration::from_millis(5);
/// The pages that are asked for again and again, and change.
const PAGES: usize = 20;
/// Every so many requests, a client asks for a page that nobody has asked for.
const NEW_PAGE: usize = 16;
/// A page that is asked for from the fault's beginning on, to see when the cache works again.
const PROBED: usize = PAGES;
const BETWEEN_CHANGES: Duration = Duration::from_millis(200);
const HEALTHY: Duration = Duration::from_secs(2);
/// The load goes on for so long after the first hit.
const AFTERWARDS: Duration = Duration::from_secs(1);
/// A request that takes longer hangs.
const HANGS: Duration = Duration::from_secs(2);

/// What a request may wait for the store by default.
const BUDGET: Duration = Duration::from_millis(100);
/// What a machine with other work may add to that.
const MARGIN: Duration = Duration::from_millis(50);
/// The middle of the requests past an open breaker takes less.
const OPEN: Duration = Duration::from_millis(1);
const RECOVERY: Duration = Duration::from_secs(15);

/// Measures one fault that lasts for so long: a Redis of its own, healthy, broken, and healthy again, under load.
///
/// # Errors
///
/// When the fault cannot be brought about.
pub async fn measure(fault: Fault, length: Duration) -> Result<Figures> {
    let mut redis = block_in_place(|| Redis::start(fault, length))?;
    let store = RedisStore::connect(redis.url().as_str()).await?;
    let site = Arc::new(Site::new(Cache::builder().store(store).build()?));
    let mut clients: JoinSet<_> = (0..CLIENTS).map(|client| site.clone().visit(client)).collect();
    let editor = tokio::spawn(site.clone().edit());
    sleep(HEALTHY).await;

    let began = Instant::now();
    block_in_place(|| redis.begin())?;
    let ended = Arc::new(OnceLock::new());
    let probing = tokio::spawn(site.clone().probe(ended.clone()));
    while began.elapsed() < length {
        sleep(Duration::from_millis(100)).await;
        block_in_place(|| redis.go_on())?;
    }
    block_in_place(|| redis.end())?;
    let ended = *ended.get_or_init(Instant::now);

    let first_hit = timeout(RECOVERY, probing).await.ok().transpose()?;
    let course = Course { began, ended, first_hit };
    sleep(AFTERWARDS).await;
    site.closed.store(true, Ordering::Relaxed);
    let mut answers = Vec::new();
    while let Some(client) = clients.join_next().await {
        answers.extend(client?);
    }
    Ok(Figures::of(fault, &course, &answers, editor.await?))
}

/// When the fault began and ended, and when there was a hit again.
struct Course {
    began: Instant,
    ended: Instant,
    first_hit: Option<Instant>,
}

/// How often a purge was asked for, and how often it was done.
#[derive(Debug, Default)]
struct Purges {
    asked: usize,
    done: usize,
}

/// What was measured of one fault.
#[derive(Debug)]
pub struct Figures {
    fault: Fault,
    /// Those that began during the fault; the others count for `failed`, `outdated` and `slowest` only.
    requests: usize,
    /// Those that did not get their page within two seconds.
    failed: usize,
    /// Those that got a page that had been purged before they began.
    outdated: usize,
    /// Before the fault, which tells what the machine adds.
    slowest_healthy: Duration,
    /// Since its beginning, of those that asked the store.
    slowest: Duration,
    /// Of those that found the breaker open.
    open: Option<Spread>,
    /// Whether any request met the fault.
    met: bool,
    first_hit: Option<Duration>,
    purges: Purges,
}

impl Figures {
    fn of(fault: Fault, course: &Course, answers: &[Answer], purges: Purges) -> Self {
        let Course { began, ended, first_hit } = *course;
        let is_during = |answer: &&Answer| (began..ended).contains(&answer.began);
        let is_open = |answer: &&Answer| answer.detail == Reason::BreakerOpen.as_str();
        let slowest = |of: &dyn Fn(&Answer) -> bool| {
            answers.iter().filter(|answer| of(answer)).map(|answer| answer.took).max().unwrap_or_default()
        };
        let open = answers.iter().filter(is_during).filter(is_open).map(|answer| answer.took).collect();
        Self {
            fault,
            requests: answers.iter().filter(is_during).count(),
            failed: answers.iter().filter(|answer| answer.page == Page::Failed).count(),
            outdated: answers.iter().filter(|answer| answer.page == Page::Outdated).count(),
            slowest_healthy: slowest(&|answer| answer.began + answer.took < began),
            slowest: slowest(&|answer| answer.began >= began && !is_open(&answer)),
            open: if fault.opens_the_breaker() { Spread::of(open) } else { None },
            met: answers.iter().filter(is_during).any(|answer| answer.detail == fault.sign()),
            first_hit: first_hit.map(|at| at - ended),
            purges,
        }
    }

    /// The head of the table.
    pub fn head() -> String {
        "| fault | requests | failed or hung | outdated | slowest before the fault | slowest that asked the store \
         | breaker open: median | p99 | slowest | recovery to first HIT | purges done |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
            .to_owned()
    }

    /// The row of the table.
    pub fn row(&self) -> String {
        let millis = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
        let micros = |time: Duration| format!("{:.1} µs", time.as_secs_f64() * 1e6);
        let open = self
            .open
            .as_ref()
            .map_or(["-"; 3].map(str::to_owned), |open| [open.median, open.p99, open.slowest].map(micros));
        let first_hit = self.first_hit.map_or_else(|| "never".to_owned(), |took| format!("{} ms", took.as_millis()));
        format!(
            "| {} | {} | {} | {} | {} | {} | {} | {first_hit} | {} of {} |",
            self.fault.name(),
            self.requests,
            self.failed,
            self.outdated,
            millis(self.slowest_healthy),
            millis(self.slowest),
            open.join(" | "),
            self.purges.done,
            self.purges.asked,
        )
    }

    /// What is not as it must be, in sentences.
    pub fn broken(&self) -> Vec<String> {
        let bounds = [
            (!self.met, format!("no request met the fault, which shows as `{}`", self.fault.sign())),
            (self.failed > 0, format!("{} requests failed or hung", self.failed)),
            (self.outdated > 0, format!("{} answers had been invalidated", self.outdated)),
            (self.slowest > BUDGET + MARGIN, format!("a request took {:?}", self.slowest)),
            (
                self.open.as_ref().is_some_and(|open| open.p99 >= OPEN),
                "one request in a hundred took 1 ms and more while the breaker was open".to_owned(),
            ),
            (
                self.open.as_ref().is_some_and(|open| open.slowest > BUDGET + MARGIN),
                "a request took longer than the budget while the breaker was open".to_owned(),
            ),
            (self.first_hit.is_none(), format!("there was no hit within {RECOVERY:?} of the recovery")),
        ];
        bounds.into_iter().filter(|(is_broken, _)| *is_broken).map(|(_, sentence)| sentence).collect()
    }
}

/// How long many requests took.
#[derive(Debug, PartialEq, Eq)]
struct Spread {
    median: Duration,
    p99: Duration,
    slowest: Duration,
}

impl Spread {
    fn of(mut times: Vec<Duration>) -> Option<Self> {
        times.sort_unstable();
        let slowest = *times.last()?;
        Some(Self { median: times[times.len() / 2], p99: times[times.len() * 99 / 100], slowest })
    }
}

/// The app behind its cache, and what its clients may expect of it.
struct Site {
    cache: Cache,
    app: CacheService<Router>,
    versions: Arc<[AtomicU64; PAGES]>,
    /// The version of each page that a purge has returned for: no older one is right any more.
    promised: [AtomicU64; PAGES],
    /// Pages that somebody has asked for.
    asked: AtomicUsize,
    closed: AtomicBool,
}

impl Site {
    fn new(cache: Cache) -> Self {
        let versions = Arc::<[AtomicU64; PAGES]>::default();
        let router = Router::new().route("/pages/{page}", get(page)).with_state(versions.clone());
        let key = |head: &http::request::Parts| key(head.uri.path().trim_start_matches("/pages/"));
        let app = cache.layer().ttl(Ttl::STANDARD).key_fn(key).layer(router);
        Self {
            cache,
            app,
            versions,
            promised: Default::default(),
            asked: AtomicUsize::new(PROBED + 1),
            closed: AtomicBool::new(false),
        }
    }

    /// Asks for one page after the other, as one of the clients.
    async fn visit(self: Arc<Self>, client: usize) -> Vec<Answer> {
        let mut answers = Vec::new();
        for turn in client.. {
            if self.closed.load(Ordering::Relaxed) {
                break;
            }
            let page = match turn % NEW_PAGE {
                0 => self.asked.fetch_add(1, Ordering::Relaxed),
                _ => turn % PAGES,
            };
            answers.push(self.ask(page).await);
            sleep(PAUSE).await;
        }
        answers
    }

    /// Asks for one page until it is a hit after the fault has ended, and returns when that is answered.
    async fn probe(self: Arc<Self>, ended: Arc<OnceLock<Instant>>) -> Instant {
        loop {
            let answer = self.ask(PROBED).await;
            if answer.detail == Reason::Far.as_str() && ended.get().is_some_and(|ended| answer.began >= *ended) {
                return answer.began + answer.took;
            }
            sleep(PAUSE).await;
        }
    }

    /// Changes one page after the other, and purges each.
    async fn edit(self: Arc<Self>) -> Purges {
        let mut purges = Purges::default();
        loop {
            sleep(BETWEEN_CHANGES).await;
            if self.closed.load(Ordering::Relaxed) {
                return purges;
            }
            let page = purges.asked % PAGES;
            purges.asked += 1;
            let version = 1 + self.versions[page].fetch_add(1, Ordering::SeqCst);
            if self.cache.purge(Purge::key(key(&page.to_string()))).await.is_ok() {
                self.promised[page].store(version, Ordering::SeqCst);
                purges.done += 1;
            }
        }
    }

    async fn ask(&self, page: usize) -> Answer {
        let request = Request::builder().uri(format!("/pages/{page}")).header("host", "shop.example");
        let promised = self.promised.get(page).map_or(0, |promised| promised.load(Ordering::SeqCst));
        let began = Instant::now();
        let answered = timeout(HANGS, async {
            let response = self.app.clone().oneshot(request.body(Body::empty()).ok()?).await.ok()?;
            let detail = detail(&response);
            let is_ok = response.status().is_success();
            let body = response.into_body().collect().await.ok().filter(|_| is_ok)?.to_bytes();
            Some((detail, version(&body, page)?))
        });
        let answered = answered.await.ok().flatten();
        let took = began.elapsed();
        let (detail, page) = match answered {
            None => ("", Page::Failed),
            Some((detail, version)) if version < promised => (detail, Page::Outdated),
            Some((detail, _)) => (detail, Page::Right),
        };
        Answer { began, took, detail, page }
    }
}

fn key(page: &str) -> Key {
    Key::new("page").part(page)
}

/// The handler, which takes no time: what a request takes is what the cache adds.
async fn page(State(versions): State<Arc<[AtomicU64; PAGES]>>, Path(page): Path<usize>) -> String {
    let version = versions.get(page).map_or(0, |version| version.load(Ordering::SeqCst));
    format!("{page} {version}")
}

fn version(body: &[u8], page: usize) -> Option<u64> {
    let (of, version) = std::str::from_utf8(body).ok()?.split_once(' ')?;
    if of == page.to_string() { version.parse().ok() } else { None }
}

/// The word of `Cache-Status` that says why.
pub(crate) fn detail<B>(response: &Response<B>) -> &'static str {
    const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
    let status = response.headers().get(CACHE_STATUS).and_then(|status| status.to_str().ok()).unwrap_or_default();
    let word = status.rsplit_once("detail=").map_or("", |(_, word)| word);
    let mut words = Reason::all().map(Reason::as_str).chain(Refusal::all().map(Refusal::as_str));
    words.find(|known| *known == word).unwrap_or_default()
}

/// What one request came to.
struct Answer {
    began: Instant,
    took: Duration,
    detail: &'static str,
    page: Page,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Page {
    Right,
    /// It had been purged before the request began.
    Outdated,
    /// It did not come, or is not the one that was asked for.
    Failed,
}

/// Something that goes wrong with Redis, or on the way to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Killed, and started anew without its data.
    Kill,
    /// Frozen, and let go on.
    Freeze,
    /// Nothing comes back, not even a refusal.
    BlackHole,
    /// Every connection is reset, ten times a second.
    Reset,
    /// The password is changed, and changed back.
    Password,
    /// It reads its data, and answers nothing else.
    Loading,
    /// Its memory is full, and it evicts nothing.
    Memory,
    /// It has become a replica.
    Readonly,
    /// It has no connection left.
    Clients,
    /// Entries are replaced by lists, ten times a second.
    Type,
    /// Entries are replaced by bytes that are none, or made longer, ten times a second.
    Garbage,
}

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 11] = [
        Self::Kill,
        Self::Freeze,
        Self::BlackHole,
        Self::Reset,
        Self::Password,
        Self::Loading,
        Self::Memory,
        Self::Readonly,
        Self::Clients,
        Self::Type,
        Self::Garbage,
    ];

    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "SIGKILL, restart",
            Self::Freeze => "SIGSTOP, SIGCONT",
            Self::BlackHole => "black hole",
            Self::Reset => "connection reset",
            Self::Password => "wrong password",
            Self::Loading => "LOADING",
            Self::Memory => "OOM, noeviction",
            Self::Readonly => "READONLY",
            Self::Clients => "MAXCLIENTS",
            Self::Type => "WRONGTYPE",
            Self::Garbage => "garbage in entries",
        }
    }

    /// Whether it stops the cache from reading.
    fn opens_the_breaker(self) -> bool {
        !matches!(self, Self::Memory | Self::Readonly | Self::Type | Self::Garbage)
    }

    /// The word in `Cache-Status` of those who meet it.
    fn sign(self) -> &'static str {
        match self {
            Self::Memory | Self::Readonly => Refusal::StoreRefused.as_str(),
            Self::Type | Self::Garbage => Reason::Decode.as_str(),
            _ => Reason::BreakerOpen.as_str(),
        }
    }
}

/// A server, the way to it, and what is to become of both.
struct Redis {
    fault: Fault,
    server: RedisServer,
    proxy: FaultProxy,
    /// Stays signed in and connected whatever becomes of the others.
    held: Connection<UnixStream>,
}

impl Redis {
    fn start(fault: Fault, length: Duration) -> Result<Self> {
        let builder = RedisServer::builder();
        let server = match fault {
            Fault::Password => builder.password(PASSWORD),
            Fault::Loading => builder
                .arg("--enable-debug-command", "yes")
                .arg("--rdbcompression", "no")
                .arg("--loading-process-events-interval-bytes", "1024"),
            _ => builder,
        };
        let server = server.start();
        let proxy = FaultProxy::start(server.addr());
        let held = Connection::unix(&server.socket_path())?;
        let mut redis = Self { fault, server, proxy, held };
        match fault {
            Fault::Password => redis.call(&["AUTH", PASSWORD])?,
            // A key takes a millisecond to load.
            Fault::Loading => {
                let keys = (length.as_millis() + 5_000).to_string();
                redis.call(&["DEBUG", "POPULATE", &keys, "filler", "200"])?;
            }
            _ => {}
        }
        Ok(redis)
    }

    fn url(&self) -> String {
        match self.fault {
            Fault::BlackHole | Fault::Reset => self.proxy.url(),
            _ => self.server.url(),
        }
    }

    fn begin(&mut self) -> Result<()> {
        match self.fault {
            Fault::Kill => self.server.kill(),
            Fault::Freeze => self.server.stop(),
            Fault::BlackHole => self.proxy.black_hole(),
            Fault::Password => {
                self.call(&["CONFIG", "SET", "requirepass", "another"])?;
                self.disconnect_others()?;
            }
            Fault::Loading => self.reload()?,
            Fault::Memory => self.call(&["CONFIG", "SET", "maxmemory", "1"])?,
            // Nobody listens there, so it keeps what it has.
            Fault::Readonly => self.call(&["REPLICAOF", "127.0.0.1", "1"])?,
            Fault::Clients => {
                self.call(&["CONFIG", "SET", "maxclients", "1"])?;
                self.disconnect_others()?;
            }
            Fault::Reset | Fault::Type | Fault::Garbage => self.go_on()?,
        }
        Ok(())
    }

    /// Does again what lasts only for a moment.
    fn go_on(&mut self) -> Result<()> {
        match self.fault {
            Fault::Reset => self.proxy.reset(),
            Fault::Type => {
                // In one step, as an entry may come between two.
                let replace = "redis.call('DEL', KEYS[1]) redis.call('LPUSH', KEYS[1], 'an element')";
                for name in names() {
                    self.call(&["EVAL", replace, "1", &name])?;
                }
            }
            Fault::Garbage => {
                for (at, name) in names().enumerate() {
                    let command = if at % 2 == 0 { "SET" } else { "APPEND" };
                    // What is not there is no entry either once something is appended to it.
                    self.call(&[command, &name, "garbage"])?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        match self.fault {
            Fault::Kill => self.server.restart(),
            Fault::Freeze => self.server.cont(),
            Fault::BlackHole | Fault::Reset => self.proxy.pass(),
            Fault::Password => self.call(&["CONFIG", "SET", "requirepass", PASSWORD])?,
            Fault::Loading => {
                self.call(&["CONFIG", "SET", "key-load-delay", "0"])?;
                self.server.wait_until_ready();
            }
            Fault::Memory => self.call(&["CONFIG", "SET", "maxmemory", "0"])?,
            Fault::Readonly => self.call(&["REPLICAOF", "NO", "ONE"])?,
            Fault::Clients => self.call(&["CONFIG", "SET", "maxclients", "10000"])?,
            Fault::Type | Fault::Garbage => {}
        }
        Ok(())
    }

    /// Saves the data and reads it again, slowly; returns when that has begun.
    fn reload(&mut self) -> Result<()> {
        self.call(&["CONFIG", "SET", "key-load-delay", "1000"])?;
        let mut connection = Connection::tcp(self.server.addr())?;
        thread::spawn(move || connection.call(&["DEBUG", "RELOAD"]));
        let patience = Instant::now() + Duration::from_secs(5);
        while !matches!(self.held.call(&["PING"])?, Err(error) if error.starts_with("LOADING")) {
            if Instant::now() > patience {
                return Err("the server does not load".into());
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn disconnect_others(&mut self) -> Result<()> {
        self.call(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])
    }

    fn call(&mut self, words: &[&str]) -> Result<()> {
        match self.held.call(words)? {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("{words:?} was answered with {error:?}").into()),
        }
    }
}

const PASSWORD: &str = "right";

/// The names of the pages' entries in Redis.
fn names() -> impl Iterator<Item = String> {
    (0..=PROBED).map(|page| Namespace::default().entry(key(&page.to_string())).name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_told_by_three_of_its_times() {
        let millis = Duration::from_millis;
        let spread = Spread { median: millis(51), p99: millis(100), slowest: millis(100) };
        assert_eq!(Spread::of((1..=100).rev().map(millis).collect()), Some(spread));
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn an_outdated_answer_and_a_slow_one_break_a_bound_each() {
        let now = Instant::now();
        let answer = |took, page| Answer { began: now, took: Duration::from_millis(took), detail: "decode", page };
        let later = now + Duration::from_secs(1);
        let course = Course { began: now, ended: later, first_hit: Some(later) };
        let broken = |answers: &[Answer]| Figures::of(Fault::Type, &course, answers, Purges::default()).broken().len();
        assert_eq!(broken(&[answer(150, Page::Right)]), 0);
        assert_eq!(broken(&[answer(1, Page::Outdated), answer(151, Page::Right)]), 2);
    }
}
