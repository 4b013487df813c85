//! The bad cases that take long, many clients, or much load, at full size; the numbers are those of the cases in
//! `tests/BUGS.md`. The quick ones stand in `redis_faults.rs`, `redis_store.rs` and `redis_load.rs`.
//!
//! One of these runs at a time: the load of another would be measured with it. What the machine does besides is in one
//! round of a measurement or two, so medians of rounds count, and ratios of what was measured one right after the other.

mod redis_entries;

use larder::{
    semantics::{EntryKey, Filling},
    store::{Claim, Filled, Seen, Store},
};
use larder_redis::{ACL_COMMANDS, RedisConfig, RedisStore};
use larder_tests::{Connection, FaultProxy, RedisServer};
use redis_entries::*;
use std::{
    fs,
    ops::Range,
    process::{self, Command},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tempfile::NamedTempFile;
use tokio::{
    task::{JoinHandle, JoinSet, block_in_place},
    time::{self, sleep},
};
use tracing::subscriber::DefaultGuard;

static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

const MEBIBYTE: usize = 1 << 20;

/// Whether a body can be stored and found that is in chunks, for which both connections of a store are needed.
async fn is_used(store: &RedisStore) -> bool {
    let key = key(&id().to_string());
    let Ok(Claim::Granted(ticket)) = store.claim(&key, Seen::Absent).await else { return false };
    let filled = store.fill(ticket, filling(&key, &entry(store, vec![7; 100_000]))).await;
    filled == Ok(Filled::Stored) && body(store, &key).await.is_ok_and(|body| body.is_some())
}

async fn are_used(stores: &[RedisStore]) -> bool {
    for store in stores {
        if !is_used(store).await {
            return false;
        }
    }
    true
}

/// Case 5: ten seconds, in which a policy that backs off would have come to pauses of seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_outage_of_ten_seconds_redis_is_used_within_one() {
    let _alone = ALONE.lock().await;
    let mut server = RedisServer::start();
    let store = connect(&server.url()).await;
    assert!(is_used(&store).await);
    server.kill();
    until("it is noticed", async || !is_used(&store).await).await;
    sleep(Duration::from_secs(10)).await;
    assert!(!is_used(&store).await);
    block_in_place(|| server.restart());
    let took = until("Redis is used again", async || is_used(&store).await).await;
    println!("used again after {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
}

/// Case 5: a minute, and each attempt in it. A port of this machine refuses at once, so that nothing but the pauses
/// between attempts takes time, and the clock can be moved.
#[tokio::test]
async fn attempts_to_reconnect_never_end() {
    let _alone = ALONE.lock().await;
    let log = Log::new();
    let mut server = RedisServer::start();
    let store = connect(&server.url()).await;
    assert!(is_used(&store).await);
    server.kill();
    until("it is noticed", async || !is_used(&store).await).await;
    let failed = |role| log.lines(role, &["still not connected", "ConnectionRefused"]);
    let before = [failed("data"), failed("bulk")];
    time::pause();
    sleep(Duration::from_secs(60)).await;
    time::resume();
    for (role, before) in ["data", "bulk"].into_iter().zip(before) {
        let attempts = failed(role) - before;
        // With pauses of 200 to 500 ms.
        assert!((120..=300).contains(&attempts), "{attempts} attempts of {role} in a minute");
    }
    server.restart();
    let took = until("Redis is used again", async || is_used(&store).await).await;
    println!("used again after {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
}

/// Case 6: with two connections each. The server is killed again as soon as all are back, so that every time all of
/// them lose it at the same moment.
///
/// A tenth of a second is a third of what the pauses between attempts are spread over, so that a herd stands out: if all
/// pauses were the same, at least every second tenth would see nobody, and the others all four hundred. The flaps are
/// laid upon each other, as a herd would come at the same time after each, and chance does not. The mean is that of the
/// time without a server, after the first pause, in which nobody may come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_clients_come_back_to_a_flapping_server_one_by_one() {
    const FLAPS: usize = 4;
    let _alone = ALONE.lock().await;
    // Three for each connection: at the store, and on both sides of the proxy.
    may_open(4_096);
    let mut server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr());
    let mut connecting = JoinSet::new();
    let mut stores = Vec::new();
    for _ in 0..200 {
        let url = proxy.url();
        connecting.spawn(async move { connect(&url).await });
        if connecting.len() >= 8 {
            stores.extend(connecting.join_next().await.map(|store| store.expect("a store")));
        }
    }
    stores.extend(connecting.join_all().await);
    until("all are connected", async || are_used(&stores).await).await;

    let mut tenths = Vec::new();
    for _ in 0..FLAPS {
        let (killed, before) = (Instant::now(), proxy.connections());
        block_in_place(|| server.kill());
        sleep(Duration::from_secs(2)).await;
        block_in_place(|| server.restart());
        until("all are back", async || are_used(&stores).await).await;
        for accepted in &proxy.accept_log()[before..] {
            let tenth = usize::try_from((*accepted - killed).as_millis() / 100).expect("a small number");
            if tenths.len() <= tenth {
                tenths.resize(tenth + 1, 0);
            }
            tenths[tenth] += 1;
        }
    }
    let connected = format!("connected_clients:{}\r\n", 3 * stores.len() + 1);
    until("each has its connections, and no more", async || server.cli(&["INFO", "clients"]).contains(&connected))
        .await;

    let away = &tenths[5..20];
    let mean = away.iter().sum::<usize>() / away.len();
    println!("attempts in each tenth of a second, of {FLAPS} flaps: mean {mean}, {tenths:?}");
    assert!(mean > FLAPS * 50, "{tenths:?}");
    assert!(tenths.iter().all(|count| 2 * *count <= 3 * mean), "mean {mean}: {tenths:?}");
}

/// Case 17. The sockets stay open, and whatever is sent is acknowledged, so that no timer of TCP's notices anything.
/// Whoever connected last is a second younger than the first: at the fault, each is at another point of its looks.
#[tokio::test]
async fn idle_connections_that_lead_nowhere_are_noticed_within_four_seconds() {
    const STORES: usize = 16;
    let _alone = ALONE.lock().await;
    let log = Log::new();
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr());
    let mut stores = Vec::new();
    for _ in 0..STORES {
        stores.push(connect(&proxy.url()).await);
        sleep(Duration::from_secs(1) / STORES as u32).await;
    }
    proxy.black_hole();
    let lost = |role| log.lines(role, &["lost the connection"]);
    let took = until("all notice it", async || (lost("data"), lost("bulk")) == (STORES, STORES)).await;
    println!("the last of {} noticed it after {took:?}", 2 * STORES);
    assert!(took < Duration::from_secs(4), "{took:?}");
    proxy.pass();
    until("Redis is used again", async || are_used(&stores).await).await;
}

/// Case 19, for a user who may do nothing that the store does not need; that the whole contract holds for one stands in
/// `redis_store.rs`. A server that purges hold up is slow in every round, one that other programs hold up in some. The
/// purges are made on one thread, so that the server has a processor too.
#[tokio::test]
async fn a_hundred_thousand_purges_hold_up_nobody() {
    const ROUNDS: usize = 10;
    const EACH: usize = 10_000;
    let _alone = ALONE.lock().await;
    let keys = "resetkeys ~shop:* ~{shop}* resetchannels &{shop}*";
    let acl = format!("user larder on >secret {keys} {ACL_COMMANDS}");
    let server = RedisServer::builder().acl(&acl).start();
    let mut connection = Connection::tcp(server.addr()).expect("a connection");
    connection.call(&["AUTH", "larder", "secret"]).expect("a reply").expect("the password");
    for words in [&["KEYS", "*"][..], &["FLUSHALL"], &["FLUSHDB"]] {
        let refused = connection.call(words).expect("a reply").expect_err("it is refused");
        assert!(refused.starts_with("NOPERM"), "{words:?}: {refused}");
    }
    let store = connect_patiently(&server.url_as("larder", "secret")).await;
    let lasting = Duration::from_secs(3600);
    by_many_tasks(0..ROUNDS * EACH, &store, move |store, key| async move {
        let ticket = claim(&store, &key).await;
        let filling = Filling { stored_for: lasting, ..filling(&key, &entry(&store, "x")) };
        assert_eq!(store.fill(ticket, filling).await, Ok(Filled::Stored));
    })
    .await;
    let mut slowest = Vec::new();
    for round in 0..ROUNDS {
        let purges = by_many_tasks(round * EACH..(round + 1) * EACH, &store, |store, key| async move {
            assert_eq!(purge(&store, &key).await, Ok(1));
        });
        slowest.push(slowest_ping(&server, purges).await);
    }
    println!("the slowest PING in each round of {EACH} purges: {slowest:?}");
    slowest.sort();
    assert!(slowest[ROUNDS / 2] < Duration::from_millis(20), "{slowest:?}");
}

/// A store that does not give up when this machine is busy: how long it waits is not what is measured.
async fn connect_patiently(url: &str) -> RedisStore {
    let second = Duration::from_secs(1);
    let config = RedisConfig::url(url).expect("a URL").read_timeout(second).write_timeout(second);
    RedisStore::connect(config).await.expect("a store")
}

/// Does this with each of these keys, in 64 tasks.
async fn by_many_tasks<F: Future<Output = ()> + Send>(
    numbers: Range<usize>,
    store: &RedisStore,
    work: impl Fn(RedisStore, EntryKey) -> F + Copy + Send + 'static,
) {
    const TASKS: usize = 64;
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let (numbers, store) = (numbers.clone().skip(task).step_by(TASKS), store.clone());
        tasks.spawn(async move {
            for number in numbers {
                work(store.clone(), key(&format!("k{number}"))).await;
            }
        });
    }
    tasks.join_all().await;
}

/// The longest that a PING took, each a millisecond after the last, on a connection of its own while the work was done.
async fn slowest_ping(server: &RedisServer, work: impl Future<Output = ()>) -> Duration {
    let mut connection = Connection::tcp(server.addr()).expect("a connection");
    let done = Arc::new(AtomicBool::new(false));
    let pinging = thread::spawn({
        let done = done.clone();
        move || {
            let mut slowest = Duration::ZERO;
            while !done.load(Ordering::Relaxed) {
                let asked = Instant::now();
                connection.call(&["PING"]).expect("a reply").expect("a PONG");
                slowest = slowest.max(asked.elapsed());
                thread::sleep(Duration::from_millis(1));
            }
            slowest
        }
    });
    work.await;
    done.store(true, Ordering::Relaxed);
    pinging.join().expect("each PING is answered")
}

/// Case 20, where the processor is what is scarce: large bodies come and go at about a gigabit per second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_reads_stay_quick_under_a_load_of_mebibytes() {
    let _alone = ALONE.lock().await;
    let server = RedisServer::start();
    let store = connect_patiently(&server.url()).await;
    let ratio = slower_beside_large(&store, Duration::from_millis(10)).await;
    assert!(ratio < 5.0, "{ratio}");
}

/// Case 20, where the line is what is scarce, of which each connection has its part: a mebibyte takes more than a tenth
/// of a second, and there is always one on its way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_reads_do_not_wait_behind_a_mebibyte_on_its_way() {
    let _alone = ALONE.lock().await;
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr());
    let store = connect_patiently(&proxy.url()).await;
    proxy.bandwidth(8_000_000);
    let ratio = slower_beside_large(&store, Duration::ZERO).await;
    assert!(ratio < 5.0, "{ratio}");
}

/// How many times the p99 of small reads is what it was just before, while one task reads a large body and one stores
/// others, with this pause after each: the median of the rounds.
async fn slower_beside_large(store: &RedisStore, pause: Duration) -> f64 {
    const ROUNDS: usize = 11;
    put(store, &key("small"), vec![1; 1024]).await;
    put(store, &key("large"), vec![1; MEBIBYTE]).await;
    let (mut ratios, mut bodies, began) = (Vec::new(), 0, Instant::now());
    for _ in 0..ROUNDS {
        let alone = p99_of_small_reads(store).await;
        let done = Arc::new(AtomicBool::new(false));
        let (read, stored) = (repeated(&done, store, pause, read_large), repeated(&done, store, pause, store_large));
        let beside = p99_of_small_reads(store).await;
        done.store(true, Ordering::Relaxed);
        bodies += read.await.expect("large bodies are read") + stored.await.expect("large bodies are stored");
        ratios.push(beside.as_secs_f64() / alone.as_secs_f64());
    }
    ratios.sort_by(f64::total_cmp);
    println!("p99 of small reads beside {bodies} large bodies in {:?}: {ratios:.1?} times", began.elapsed() / 2);
    ratios[ROUNDS / 2]
}

/// Does this until all is done, in a task that returns how many times it did.
fn repeated<F: Future<Output = ()> + Send>(
    done: &Arc<AtomicBool>,
    store: &RedisStore,
    pause: Duration,
    work: impl Fn(RedisStore) -> F + Send + 'static,
) -> JoinHandle<usize> {
    let (done, store) = (done.clone(), store.clone());
    tokio::spawn(async move {
        let mut times = 0;
        while !done.load(Ordering::Relaxed) {
            work(store.clone()).await;
            times += 1;
            sleep(pause).await;
        }
        times
    })
}

async fn read_large(store: RedisStore) {
    let found = body(&store, &key("large")).await.expect("an answer").expect("a body");
    assert_eq!(found.len(), MEBIBYTE);
}

async fn store_large(store: RedisStore) {
    put(&store, &key(&id().to_string()), vec![2; MEBIBYTE]).await;
}

/// Of sixteen tasks that read all the time, for 300 ms.
async fn p99_of_small_reads(store: &RedisStore) -> Duration {
    let mut readers = JoinSet::new();
    for _ in 0..16 {
        let store = store.clone();
        readers.spawn(async move {
            let (began, mut times) = (Instant::now(), Vec::new());
            while began.elapsed() < Duration::from_millis(300) {
                let asked = Instant::now();
                assert!(body(&store, &key("small")).await.is_ok_and(|body| body.is_some()));
                times.push(asked.elapsed());
            }
            times
        });
    }
    let mut times = readers.join_all().await.concat();
    times.sort();
    times[times.len() * 99 / 100]
}

/// Sets how many files this process may have open; often it is 1024.
fn may_open(files: usize) {
    let arguments = ["--pid", &process::id().to_string(), &format!("--nofile={files}:")];
    let status = Command::new("prlimit").args(arguments).status().expect("the command `prlimit` is part of Linux");
    assert!(status.success(), "this process may not open {files} files: prlimit failed ({status})");
}

/// What the stores log that are made on this thread.
struct Log {
    file: NamedTempFile,
    _logging: DefaultGuard,
}

impl Log {
    fn new() -> Self {
        let file = NamedTempFile::new().expect("the folder for temporary files is writable");
        let writer = Mutex::new(file.reopen().expect("it is there"));
        let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_ansi(false);
        let logging = tracing::subscriber::set_default(subscriber.with_writer(writer).finish());
        Self { file, _logging: logging }
    }

    /// How many lines hold all these parts, of the connections for this kind of traffic.
    fn lines(&self, role: &str, parts: &[&str]) -> usize {
        let (role, text) = (format!("role=\"{role}\""), fs::read_to_string(&self.file).expect("it is there"));
        text.lines().filter(|line| line.contains(&role) && parts.iter().all(|part| line.contains(part))).count()
    }
}
