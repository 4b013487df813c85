//! Values on a real Redis: several instances of one program, one database.

use larder::{Cache, Deadlines, Known, MemoryStore, Purge, Ttl, Typed, Written};
use larder_redis::{RedisConfig, RedisStore};
use larder_tests::RedisServer;
use std::{
    convert::Infallible,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    task::{JoinSet, yield_now},
    time::sleep,
};

/// One number in a database, that takes a while to read and to write.
#[derive(Clone, Default)]
struct Database {
    number: Arc<AtomicU64>,
    reads: Arc<AtomicUsize>,
}

/// A moment of random length, within which others come in between.
async fn moment() {
    for _ in 0..fastrand::usize(..20) {
        yield_now().await;
    }
    sleep(Duration::from_micros(fastrand::u64(..1500))).await;
}

impl Database {
    async fn read(self) -> Result<u64, Infallible> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        moment().await;
        let number = self.number.load(Ordering::SeqCst);
        moment().await;
        Ok(number)
    }

    async fn raise(self) -> Result<u64, Infallible> {
        moment().await;
        let number = self.number.fetch_add(1, Ordering::SeqCst) + 1;
        moment().await;
        Ok(number)
    }

    async fn seen_by(&self, instance: &Instance) -> u64 {
        let database = self.clone();
        instance.numbers.get_or_fetch(1, || database.read()).await.expect("a number")
    }

    async fn written_by(&self, instance: &Instance) -> Written<u64> {
        let database = self.clone();
        instance.numbers.write(1, || database.raise()).await.expect("a number")
    }
}

#[derive(Clone)]
struct Instance {
    cache: Cache,
    numbers: Typed<u64>,
}

impl Instance {
    async fn on(server: &RedisServer) -> Self {
        Self::with(server, None).await
    }

    async fn with(server: &RedisServer, near: Option<MemoryStore>) -> Self {
        let store = RedisStore::connect(RedisConfig::url(&server.url()).expect("a URL")).await.expect("a store");
        // A machine that is busy is no store that is down.
        let patient = Duration::from_secs(5);
        let deadlines = Deadlines { read: patient, fill: patient, purge: patient };
        let cache = Cache::builder().store(store).deadlines(deadlines).store_budget(patient).lock_wait(2 * patient);
        let cache = near.into_iter().fold(cache, |cache, near| cache.near(near)).build().expect("a cache");
        let numbers = cache.typed("number", |value| value.ttl(Ttl::STANDARD).tag("numbers"));
        Self { cache, numbers }
    }
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}");
        sleep(Duration::from_millis(5)).await;
    }
}

async fn together<T: Send + 'static, F: Future<Output = T> + Send + 'static>(work: impl Iterator<Item = F>) -> Vec<T> {
    work.collect::<JoinSet<_>>().join_all().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_fetches_once_and_a_hit_is_one_get() {
    let server = RedisServer::start();
    let (one, other) = (Instance::on(&server).await, Instance::on(&server).await);
    let database = Database::default();
    let asking = (0..200).map(|at| {
        let (database, instance) = (database.clone(), if at % 2 == 0 { one.clone() } else { other.clone() });
        async move { database.seen_by(&instance).await }
    });
    assert_eq!(together(asking).await, [0; 200]);
    assert_eq!(database.reads.load(Ordering::SeqCst), 1);

    until("it is stored", async || other.numbers.get(1).await == Known::Found(0)).await;
    let gets = |server: &RedisServer| server.command_stats().get("get").copied().unwrap_or_default();
    let scripts = |server: &RedisServer| server.command_stats().get("set").copied().unwrap_or_default();
    let (before, sets) = (gets(&server), scripts(&server));
    for _ in 0..100 {
        assert_eq!(database.seen_by(&other).await, 0);
    }
    let beats = 20;
    assert!(gets(&server) - before < 100 + beats, "{} GETs for 100 hits", gets(&server) - before);
    assert_eq!(scripts(&server), sets);
    let numbers = one.numbers.get_many(0..50).await;
    assert_eq!(numbers.iter().filter(|known| **known == Known::Found(0)).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_removes_is_gone_for_all_near_tiers_too() {
    let server = RedisServer::start();
    let one = Instance::with(&server, Some(MemoryStore::default())).await;
    let other = Instance::with(&server, Some(MemoryStore::default())).await;
    let database = Database::default();
    for purge in [Purge::key("number:1"), Purge::tag("numbers"), Purge::prefix("number:"), Purge::all()] {
        let (seen, is) = (database.seen_by(&one).await, database.number.fetch_add(1, Ordering::SeqCst) + 1);
        until("it is near", async || other.numbers.get(1).await == Known::Found(seen)).await;
        one.cache.purge(purge.clone()).await.expect("a purge");
        assert_eq!(database.seen_by(&one).await, is, "{purge:?}");
        until("the other hears of it", async || other.numbers.get(1).await == Known::Found(is)).await;
    }
}

/// The database is read and written at the same time by many, through several instances; after a write has returned, nobody
/// is answered with what was there before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_reads_after_a_write_reads_no_less() {
    let server = RedisServer::start();
    let mut instances = Vec::new();
    for _ in 0..3 {
        instances.push(Instance::on(&server).await);
    }
    let (database, written) = (Database::default(), Arc::new(AtomicU64::new(0)));
    let end = Instant::now() + Duration::from_secs(4);
    let readers = (0..24).map(|at| {
        let (database, instance, written) = (database.clone(), instances[at % 3].clone(), written.clone());
        async move {
            let mut reads = 0_u64;
            while Instant::now() < end {
                let least = written.load(Ordering::SeqCst);
                let seen = database.seen_by(&instance).await;
                assert!(seen >= least, "{seen} was read after {least} had been written");
                reads += 1;
            }
            reads
        }
    });
    let writers = (0..4).map(|at| {
        let (database, instance, written) = (database.clone(), instances[at % 3].clone(), written.clone());
        async move {
            let mut stored = 0_u64;
            while Instant::now() < end {
                let outcome = database.written_by(&instance).await;
                assert!(!outcome.is_deferred);
                written.fetch_max(outcome.value, Ordering::SeqCst);
                stored += u64::from(outcome.is_stored);
                sleep(Duration::from_millis(fastrand::u64(..40))).await;
            }
            stored
        }
    });
    let (reads, stored) = tokio::join!(together(readers), together(writers));
    let (reads, stored) = (reads.iter().sum::<u64>(), stored.iter().sum::<u64>());
    let writes = database.number.load(Ordering::SeqCst);
    println!("{reads} reads, {writes} writes of which {stored} were stored");
    assert!(reads > 500 && writes > 50 && stored > 0 && stored < writes, "{reads} {writes} {stored}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_mark_is_evicted_stores_nothing() {
    let server = RedisServer::start();
    let (one, database) = (Instance::on(&server).await, Database::default());
    assert_eq!(database.seen_by(&one).await, 0);
    let raise = async || {
        assert_eq!(server.cli(&["DEL", "larder:v1:{number:1}:w"]).trim(), "1");
        database.clone().raise().await
    };
    let written = one.numbers.write(1, raise).await.expect("a number");
    assert!(!written.is_stored && !written.is_deferred);
    assert_eq!(one.numbers.get(1).await, Known::Missing);
    assert_eq!(database.seen_by(&one).await, 1);
}

/// Redis is killed, is away, and comes back, while values are read and written: nobody fails.
#[tokio::test(flavor = "multi_thread")]
async fn row_21_a_redis_that_dies_fails_nobody() {
    let mut server = RedisServer::start();
    let (one, database) = (Instance::on(&server).await, Database::default());
    assert_eq!(database.seen_by(&one).await, 0);
    assert!(database.written_by(&one).await.is_stored);
    server.kill();
    for _ in 0..20 {
        let written = database.written_by(&one).await;
        assert!(!written.is_stored && written.is_deferred);
        assert_eq!(database.seen_by(&one).await, written.value);
    }
    assert_eq!(one.numbers.get(1).await, Known::Missing);
    server.restart();
    until("Redis is used again", async || {
        let is = database.seen_by(&one).await;
        assert_eq!(is, 21);
        one.numbers.get(1).await == Known::Found(is)
    })
    .await;
    until("a write is stored again", async || database.written_by(&one).await.is_stored).await;
}
