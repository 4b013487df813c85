//! Writes that Redis accepts now, and that are applied later: whoever dies on the way, none is lost, and none out of order.

use larder::semantics::{Key, Namespace};
use larder_redis::{
    BEHIND_ACL_COMMANDS, BehindError, BehindSettings, Durability, Failed, OnFailure, RedisConfig, RedisStore, Sink,
    WhenFull, Write, WriteBehind, Written,
};
use larder_tests::{FaultProxy, Flavor, RedisCluster, RedisServer};
use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::time::sleep;

/// A table whose rows know the last write they saw, and everything that was tried on it.
#[derive(Clone, Default)]
struct Table(Arc<Mutex<Rows>>);

#[derive(Default)]
struct Rows {
    rows: HashMap<String, (u64, Option<String>)>,
    applied: Vec<(String, String)>,
    /// Writes that came although a later one of their key had been applied, or the same.
    late: usize,
    given: Vec<usize>,
}

/// Applies to a table, but for what it is told to fail at.
#[derive(Clone)]
struct Applies {
    table: Table,
    takes: Duration,
    fails: fn(&Write) -> bool,
    is_transaction: bool,
    tried: Arc<AtomicUsize>,
}

impl Applies {
    fn to(table: &Table) -> Self {
        Self {
            table: table.clone(),
            takes: Duration::ZERO,
            fails: |_| false,
            is_transaction: false,
            tried: Arc::default(),
        }
    }
}

impl Sink for Applies {
    async fn apply(&self, writes: &[Write]) -> Result<(), Failed> {
        self.table.0.lock().expect("rows").given.push(writes.len());
        let failing = writes.iter().position(self.fails);
        if let Some(at) = failing {
            self.tried.fetch_add(1, Ordering::SeqCst);
            if self.is_transaction {
                return Err(Failed::all("something of it is wrong"));
            }
            self.table.apply(&writes[..at]);
            return Err(Failed::at(at, "it is wrong"));
        }
        sleep(self.takes).await;
        self.table.apply(writes);
        Ok(())
    }
}

impl Table {
    fn apply(&self, writes: &[Write]) {
        let mut rows = self.0.lock().expect("rows");
        for write in writes {
            let (key, value) = (write.key.to_string(), write.value.as_ref());
            let value = value.map(|value| String::from_utf8(value.to_vec()).expect("text"));
            if rows.rows.get(&key).is_some_and(|(seq, _)| *seq >= write.seq) {
                rows.late += 1;
                continue;
            }
            rows.rows.insert(key.clone(), (write.seq, value.clone()));
            rows.applied.push((key, value.unwrap_or_else(|| "gone".to_owned())));
        }
    }

    fn row(&self, key: &Key) -> Option<String> {
        self.0.lock().expect("rows").rows.get(key.as_str()).and_then(|(_, value)| value.clone())
    }

    /// What was applied of a key, in its order.
    fn applied(&self, key: &Key) -> Vec<String> {
        let rows = self.0.lock().expect("rows");
        rows.applied.iter().filter(|(applied, _)| applied == key.as_str()).map(|(_, value)| value.clone()).collect()
    }

    fn late(&self) -> usize {
        self.0.lock().expect("rows").late
    }
}

fn namespace() -> Namespace {
    Namespace::new("shop", 2).expect("a name")
}

fn key(number: usize) -> Key {
    Key::new("row").part(number.to_string())
}

async fn behind(url: &str, settings: BehindSettings) -> WriteBehind {
    let store = RedisStore::connect(RedisConfig::url(url).expect("a URL")).await.expect("a store");
    store.write_behind(&namespace(), "rows", settings).expect("a name")
}

fn settings() -> BehindSettings {
    BehindSettings::new().shards(4).retry_after(Duration::from_millis(5))
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < Duration::from_secs(30), "{what}");
        sleep(Duration::from_millis(5)).await;
    }
}

async fn drained(behind: &WriteBehind) {
    assert_eq!(behind.drain(Duration::from_secs(30)).await, Some(0), "all is applied");
}

fn numbers(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|number| number.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_accepted_is_found_at_once_and_applied_in_its_order() {
    for flavor in [Flavor::Redis, Flavor::Valkey] {
        let server = RedisServer::builder().flavor(flavor).start();
        let (behind, table) = (behind(&server.url(), settings().life(Duration::from_secs(60))).await, Table::default());
        for round in 0..20 {
            for number in 0..10 {
                behind.put(&key(number), round.to_string()).await.expect("accepted");
                assert_eq!(behind.get(&key(number)).await, Ok(Written::Found(round.to_string().into())));
            }
        }
        behind.remove(&key(3)).await.expect("accepted");
        assert_eq!(behind.get(&key(3)).await, Ok(Written::Gone));
        assert_eq!(behind.get(&key(99)).await, Ok(Written::Missing));
        assert_eq!(behind.waiting().await, Ok(201));
        let entries = server.cli(&["KEYS", "shop:v2:behind:*:entry:*"]);
        assert!(entries.lines().all(|entry| server.cli(&["PTTL", entry]).trim() == "-1"), "what waits has no end");
        behind.apply_with(Applies::to(&table));
        drained(&behind).await;
        for number in (0..10).filter(|number| *number != 3) {
            assert_eq!(table.applied(&key(number)), numbers(0..20));
            assert_eq!(behind.get(&key(number)).await, Ok(Written::Found("19".into())), "for a while");
        }
        assert_eq!((table.row(&key(3)), table.late()), (None, 0));
        for entry in entries.lines() {
            let life: i64 = server.cli(&["PTTL", entry]).trim().parse().expect("a number");
            assert!((1..=60_000).contains(&life), "{entry}: {life}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_processes_one_applies_each_shard() {
    let server = RedisServer::start();
    let table = Table::default();
    let mut all = Vec::new();
    for _ in 0..4 {
        let one = behind(&server.url(), settings()).await;
        one.apply_with(Applies::to(&table));
        all.push(one);
    }
    for round in 0..50 {
        for number in 0..8 {
            all[round % 4].put(&key(number), round.to_string()).await.expect("accepted");
        }
    }
    drained(&all[0]).await;
    assert!((0..8).all(|number| table.applied(&key(number)) == numbers(0..50)) && table.late() == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_process_has_taken_another_applies() {
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr());
    let (table, slow) = (Table::default(), Duration::from_secs(6));
    let (dying, other) = (behind(&proxy.url(), settings()).await, behind(&server.url(), settings()).await);
    dying.apply_with(Applies { takes: slow, ..Applies::to(&table) });
    for number in 0..20 {
        other.put(&key(number), "first").await.expect("accepted");
    }
    until("it has taken them", async || !table.0.lock().expect("rows").given.is_empty()).await;
    sleep(Duration::from_millis(200)).await;
    // From here on it is as good as dead, and does not know.
    proxy.black_hole();
    other.apply_with(Applies::to(&table));
    let began = Instant::now();
    drained(&other).await;
    assert!((0..20).all(|number| table.applied(&key(number)) == ["first"]), "{:?}", began.elapsed());
    for number in 0..20 {
        other.put(&key(number), "second").await.expect("accepted");
    }
    drained(&other).await;
    // What it had in hand may still come: later than what came after it.
    sleep(slow.saturating_sub(began.elapsed()) + Duration::from_millis(500)).await;
    assert!((0..20).all(|number| table.row(&key(number)).as_deref() == Some("second")));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stops_leaves_its_shards_and_nothing_is_lost() {
    let server = RedisServer::start();
    let table = Table::default();
    let one = behind(&server.url(), settings()).await;
    one.apply_with(Applies { takes: Duration::from_millis(50), ..Applies::to(&table) });
    for number in 0..40 {
        one.put(&key(number), "here").await.expect("accepted");
    }
    let leases = || server.cli(&["KEYS", "shop:v2:behind:*:lease"]).lines().count();
    until("it has them", async || leases() == 4).await;
    // They would outlast this.
    for lease in server.cli(&["KEYS", "shop:v2:behind:*:lease"]).lines() {
        server.cli(&["PEXPIRE", lease, "100000"]);
    }
    drop(one);
    let other = behind(&server.url(), settings()).await;
    other.apply_with(Applies::to(&table));
    drained(&other).await;
    assert!((0..40).all(|number| table.row(&key(number)).is_some()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_applied_is_kept_and_may_be_tried_again() {
    let server = RedisServer::start();
    for is_transaction in [false, true] {
        server.cli(&["FLUSHALL"]);
        let (table, bad) = (Table::default(), |write: &Write| write.value.as_deref() == Some(b"bad".as_slice()));
        let sink = Applies { fails: bad, is_transaction, ..Applies::to(&table) };
        let behind = behind(&server.url(), settings().shards(1).attempts(3)).await;
        for number in 0..10 {
            behind.put(&key(number), if number == 4 { "bad" } else { "good" }).await.expect("accepted");
        }
        behind.apply_with(sink.clone());
        drained(&behind).await;
        assert!((0..10).all(|number| table.row(&key(number)).is_some() == (number != 4)), "only the bad one is not");
        let letters = behind.dead_letters().await.expect("letters");
        let [letter] = letters.as_slice() else { panic!("{letters:?}") };
        assert_eq!((&letter.write.key, letter.write.value.as_deref()), (&key(4), Some(b"bad".as_slice())));
        assert!(letter.why.contains("wrong"), "{}", letter.why);
        assert_eq!(behind.get(&key(4)).await, Ok(Written::Found("bad".into())), "it is not forgotten");

        assert_eq!(behind.retry(letter).await, Ok(true));
        until("it is given up again", async || behind.dead_letters().await.expect("letters").len() == 1).await;
        let letters = behind.dead_letters().await.expect("letters");
        behind.put(&key(4), "good").await.expect("accepted");
        drained(&behind).await;
        assert_eq!(behind.retry(&letters[0]).await, Ok(false), "it was written since");
        assert_eq!((behind.dead_letters().await, table.row(&key(4)).as_deref()), (Ok(Vec::new()), Some("good")));

        behind.put(&key(5), "bad").await.expect("accepted");
        until("it is given up", async || behind.dead_letters().await.expect("letters").len() == 1).await;
        let letters = behind.dead_letters().await.expect("letters");
        behind.discard(&letters[0]).await.expect("a discard");
        assert_eq!((behind.dead_letters().await, behind.get(&key(5)).await), (Ok(Vec::new()), Ok(Written::Missing)));
        assert_eq!(table.late(), 0);
    }
}

/// Whether something fails for now.
static IS_DOWN: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(true);

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_holds_up_its_shard_or_its_key_only() {
    let server = RedisServer::start();
    for on_failure in [OnFailure::Hold, OnFailure::Park] {
        server.cli(&["FLUSHALL"]);
        IS_DOWN.store(true, Ordering::SeqCst);
        let table = Table::default();
        let fails = |write: &Write| write.key == key(0) && IS_DOWN.load(Ordering::SeqCst);
        let behind = behind(&server.url(), settings().shards(1).attempts(1000).on_failure(on_failure)).await;
        behind.apply_with(Applies { fails, ..Applies::to(&table) });
        for round in 0..5 {
            for number in 0..3 {
                behind.put(&key(number), round.to_string()).await.expect("accepted");
            }
        }
        let goes_on = on_failure == OnFailure::Park;
        if goes_on {
            until("the others are applied", async || table.applied(&key(2)).len() == 5).await;
        } else {
            sleep(Duration::from_millis(300)).await;
            assert!(table.applied(&key(2)).len() < 5, "they wait behind it");
        }
        assert_eq!(table.applied(&key(0)).len(), 0);
        IS_DOWN.store(false, Ordering::SeqCst);
        drained(&behind).await;
        assert!((0..3).all(|number| table.applied(&key(number)) == numbers(0..5)) && table.late() == 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_writes_of_a_key_the_last_may_be_enough() {
    let server = RedisServer::start();
    let (behind, table) = (behind(&server.url(), settings().coalesce()).await, Table::default());
    for round in 0..50 {
        for number in 0..3 {
            behind.put(&key(number), round.to_string()).await.expect("accepted");
        }
    }
    behind.apply_with(Applies::to(&table));
    drained(&behind).await;
    for number in 0..3 {
        let applied = table.applied(&key(number));
        assert!(applied.last().is_some_and(|last| last == "49") && applied.len() < 10, "{applied:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_wait_than_may_and_none_is_dropped() {
    let server = RedisServer::start();
    let refusing = behind(&server.url(), settings().shards(1).longest(5).when_full(WhenFull::Refuse)).await;
    let waiting = settings().shards(1).longest(5).when_full(WhenFull::Wait(Duration::from_secs(20)));
    let (waiting, table) = (behind(&server.url(), waiting).await, Table::default());
    for number in 0..5 {
        refusing.put(&key(number), "x").await.expect("accepted");
    }
    assert_eq!(refusing.put(&key(5), "x").await, Err(BehindError::Full));
    assert_eq!(refusing.get(&key(5)).await, Ok(Written::Missing));
    let fifth = key(5);
    let (late, ()) = tokio::join!(waiting.put(&fifth, "x"), async {
        sleep(Duration::from_millis(100)).await;
        waiting.apply_with(Applies::to(&table));
    });
    late.expect("accepted as soon as there is room");
    drained(&waiting).await;
    assert!((0..6).all(|number| table.row(&key(number)).is_some()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_finds_no_room_may_be_applied_at_once_and_what_waited_comes_too_late() {
    let server = RedisServer::start();
    let through = settings().shards(1).longest(5).attempts(1000).when_full(WhenFull::WriteThrough);
    let (one, table) = (behind(&server.url(), through).await, Table::default());
    for number in 0..5 {
        one.put(&key(number), "waits").await.expect("accepted");
    }
    assert_eq!(one.put(&key(1), "now").await, Err(BehindError::Full), "there is no sink in this process");
    IS_SLOW.store(true, Ordering::SeqCst);
    one.apply_with(Applies {
        fails: |write| write.value.as_deref() == Some(b"waits") && is_slow(),
        ..Applies::to(&table)
    });
    one.put(&key(1), "now").await.expect("applied");
    assert_eq!(
        (table.applied(&key(1)), one.get(&key(1)).await),
        (vec!["now".to_owned()], Ok(Written::Found("now".into())))
    );
    IS_SLOW.store(false, Ordering::SeqCst);
    drained(&one).await;
    assert_eq!((table.applied(&key(1)), table.late()), (vec!["now".to_owned()], 1), "it came too late");
    assert_eq!(one.get(&key(1)).await, Ok(Written::Found("now".into())));
    assert!((0..5).all(|number| table.row(&key(number)).is_some()));
}

static IS_SLOW: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

fn is_slow() -> bool {
    IS_SLOW.load(Ordering::SeqCst)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_could_drop_writes_is_refused() {
    let evicting = RedisServer::builder().arg("--maxmemory", "100mb").arg("--maxmemory-policy", "allkeys-lru").start();
    let error = behind(&evicting.url(), settings()).await.put(&key(1), "x").await.expect_err("a refusal");
    assert!(error.to_string().contains("allkeys-lru") && error.to_string().contains("noeviction"), "{error}");
    evicting.cli(&["CONFIG", "SET", "maxmemory-policy", "volatile-lru"]);
    behind(&evicting.url(), settings()).await.put(&key(1), "x").await.expect("accepted");
    let durable = settings().durability(Durability::Aof);
    let error = behind(&evicting.url(), durable).await.put(&key(1), "x").await.expect_err("a refusal");
    assert!(error.to_string().contains("appendonly yes"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_file_outlives_redis() {
    let server =
        RedisServer::builder().flavor(Flavor::Valkey).arg("--appendonly", "yes").arg("--appendfsync", "everysec");
    let mut server = server.start();
    let (one, table) = (behind(&server.url(), settings().durability(Durability::Aof)).await, Table::default());
    let mut writing = tokio::task::JoinSet::new();
    for number in 0..200 {
        let one = one.clone();
        writing.spawn(async move { one.put(&key(number), "kept").await });
    }
    assert!(writing.join_all().await.iter().all(Result::is_ok), "they wait for the file together");
    server.kill();
    server.restart();
    one.apply_with(Applies::to(&table));
    until("Redis is there again", async || one.waiting().await.is_ok()).await;
    drained(&one).await;
    assert!((0..200).all(|number| table.row(&key(number)).as_deref() == Some("kept")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_replicas_have_outlives_the_primary() {
    let mut primary = RedisServer::builder().arg("--repl-diskless-sync-delay", "0").start();
    let replica = RedisServer::builder().arg("--replicaof", &format!("127.0.0.1 {}", primary.port())).start();
    until("the replica follows", async || replica.cli(&["INFO", "replication"]).contains("master_link_status:up"))
        .await;
    let one = behind(&primary.url(), settings().durability(Durability::Replicas(1))).await;
    let mut writing = tokio::task::JoinSet::new();
    for number in 0..200 {
        let one = one.clone();
        writing.spawn(async move { one.put(&key(number), "kept").await });
    }
    assert!(writing.join_all().await.iter().all(Result::is_ok), "they wait for the replica together");
    let both = behind(&primary.url(), settings().durability(Durability::Replicas(2))).await;
    assert!(both.put(&key(0), "unsure").await.is_err(), "there is one replica only");
    primary.kill();
    replica.cli(&["REPLICAOF", "NO", "ONE"]);
    let (other, table) = (behind(&replica.url(), settings()).await, Table::default());
    other.apply_with(Applies::to(&table));
    drained(&other).await;
    assert!((1..200).all(|number| table.row(&key(number)).as_deref() == Some("kept")));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_replica_is_nothing_to_wait_for() {
    let store = RedisStore::connect(RedisServer::start().url().as_str()).await.expect("a store");
    let none = settings().durability(Durability::Replicas(0));
    let error = store.write_behind(&Namespace::new("behind", 1).expect("a namespace"), "views", none);
    assert!(error.is_err_and(|error| error.to_string().contains("Replicas(0)")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_loaded_is_never_older_than_what_was_written() {
    let server = RedisServer::start();
    let (behind, table) = (behind(&server.url(), settings()).await, Table::default());
    let load = |value: &'static str| async move { Ok::<_, Infallible>(Some(value.into())) };
    assert_eq!(behind.get_or_load(&key(1), || load("from the table")).await, Ok(Some("from the table".into())));
    assert_eq!(behind.get_or_load(&key(1), || load("again")).await, Ok(Some("from the table".into())), "it is known");
    assert_eq!(behind.get_or_load(&key(2), async || Ok::<_, Infallible>(None)).await, Ok(None));
    assert_eq!(behind.get(&key(2)).await, Ok(Written::Gone));
    let third = key(3);
    let loaded = behind.get_or_load(&third, async || {
        behind.put(&key(3), "written").await.expect("accepted");
        Ok::<_, Infallible>(Some("as it was".into()))
    });
    assert_eq!(loaded.await, Ok(Some("as it was".into())));
    assert_eq!(behind.get(&key(3)).await, Ok(Written::Found("written".into())));
    assert_eq!(behind.forget(&key(3)).await, Err(BehindError::Dirty));
    behind.apply_with(Applies::to(&table));
    drained(&behind).await;
    assert_eq!((behind.forget(&key(3)).await, behind.get(&key(3)).await), (Ok(()), Ok(Written::Missing)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_one_can_read_is_kept_and_holds_up_nothing() {
    let server = RedisServer::start();
    let (behind, table) = (behind(&server.url(), settings().shards(1)).await, Table::default());
    let log = "shop:v2:behind:{rows:0}:log";
    server.cli(&["XADD", log, "*", "w", "9", "key", "row:1", "seq", "1", "op", "s", "value", "x"]);
    server.cli(&["XADD", log, "*", "strange", "1"]);
    behind.put(&key(1), "x").await.expect("accepted");
    behind.apply_with(Applies::to(&table));
    drained(&behind).await;
    assert_eq!(table.row(&key(1)).as_deref(), Some("x"));
    assert_eq!(server.cli(&["XLEN", "shop:v2:behind:{rows:0}:dead"]).trim(), "2");
}

/// Redis dies while writes are accepted and applied; with its file, what it had accepted is applied.
#[tokio::test(flavor = "multi_thread")]
async fn row_24_redis_is_killed_and_no_write_is_lost() {
    let server = RedisServer::builder().arg("--appendonly", "yes").arg("--appendfsync", "always");
    let mut server = server.start();
    let table = Table::default();
    let (one, other) = (behind(&server.url(), settings()).await, behind(&server.url(), settings()).await);
    for behind in [&one, &other] {
        behind.apply_with(Applies { takes: Duration::from_millis(2), ..Applies::to(&table) });
    }
    let mut accepted = [0; 8];
    for round in 1..=60 {
        if round % 25 == 0 {
            server.kill();
            server.restart();
            until("Redis is there again", async || one.waiting().await.is_ok()).await;
        }
        for (number, accepted) in accepted.iter_mut().enumerate() {
            if one.put(&key(number), round.to_string()).await.is_ok() {
                *accepted = round;
            }
        }
    }
    until("Redis is there again", async || one.waiting().await.is_ok()).await;
    drained(&one).await;
    for (number, accepted) in accepted.iter().enumerate() {
        let applied: Vec<usize> =
            table.applied(&key(number)).iter().map(|value| value.parse().expect("a number")).collect();
        assert!(applied.is_sorted() && applied.last() == Some(accepted), "{number}: {applied:?}, accepted {accepted}");
    }
    assert_eq!(one.dead_letters().await, Ok(Vec::new()));
}

/// With the commands that the documentation lists, and no others.
#[tokio::test(flavor = "multi_thread")]
async fn it_works_for_a_user_who_may_do_nothing_else() {
    let rights = format!("{} {BEHIND_ACL_COMMANDS}", larder_redis::ACL_COMMANDS);
    let users = format!("user app on >secret resetkeys ~shop:* ~{{shop}}* resetchannels &{{shop}}* {rights}\n");
    let server = RedisServer::builder().flavor(Flavor::Valkey).arg("--appendonly", "yes").acl(&users).start();
    let url = server.url_as("app", "secret");
    let (table, bad) = (Table::default(), |write: &Write| write.value.as_deref() == Some(b"bad".as_slice()));
    let one = behind(&url, settings().durability(Durability::Aof)).await;
    one.apply_with(Applies { fails: bad, ..Applies::to(&table) });
    for number in 0..10 {
        one.put(&key(number), if number == 4 { "bad" } else { "good" }).await.expect("accepted");
    }
    one.remove(&key(2)).await.expect("accepted");
    drained(&one).await;
    let letters = one.dead_letters().await.expect("letters");
    assert_eq!((letters.len(), one.retry(&letters[0]).await), (1, Ok(true)));
    assert_eq!(one.get(&key(1)).await, Ok(Written::Found("good".into())));
    let loaded = one.get_or_load(&key(50), async || Ok::<_, Infallible>(Some("x".into()))).await;
    assert_eq!((loaded, one.forget(&key(50)).await), (Ok(Some("x".into())), Ok(())));
    assert_eq!((table.row(&key(1)).as_deref(), table.row(&key(2))), (Some("good"), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_are_applied_on_a_cluster() {
    let cluster = RedisCluster::start();
    let (behind, table) = (behind(&cluster.url(), settings().shards(16)).await, Table::default());
    behind.apply_with(Applies::to(&table));
    for round in 0..5 {
        for number in 0..40 {
            until("it is accepted", async || behind.put(&key(number), round.to_string()).await.is_ok()).await;
        }
    }
    drained(&behind).await;
    assert!((0..40).all(|number| table.applied(&key(number)).last().is_some_and(|last| last == "4")));
    assert_eq!(table.late(), 0);
}
