//! The Redis store on a cluster: the contract, a master that dies or freezes, and slots that move while they are used.

mod redis_entries;
mod traffic;

use bytes::Bytes;
use larder::{
    CacheLayer,
    semantics::Namespace,
    store::{Claim, Filled, Listener, Purge, Seen, Selector, Store, StoreError},
    testing::behaves,
};
use larder_redis::{ACL_COMMANDS, ConnectError, RedisConfig, RedisStore};
use larder_tests::{Flavor, RedisCluster, RedisServer};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use redis_entries::*;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant},
};
use tokio::time::sleep;
use traffic::{Asked, Load, ask, layer, outcomes, until_hits, warm};

async fn it_behaves(store: RedisStore) {
    Box::pin(behaves(&store, sleep)).await;
}

#[tokio::test]
async fn it_behaves_on_a_cluster() {
    let cluster = RedisCluster::start();
    it_behaves(ready(connect(&cluster.url()).await).await).await;
}

#[tokio::test]
async fn it_behaves_on_a_cluster_of_valkey() {
    let cluster = RedisCluster::start_flavor(Flavor::Valkey);
    it_behaves(ready(connect(&cluster.url()).await).await).await;
}

/// The default user is the servers' own, who copy from each other.
#[tokio::test]
async fn it_behaves_for_a_user_who_may_do_nothing_else() {
    let name = Namespace::default().name().to_owned();
    let acl = format!(
        "user default on nopass ~* &* +@all\nuser larder on >secret resetkeys ~{name}:* ~{{{name}}}* ~elsewhere:* \
         ~{{elsewhere}}* resetchannels &{{{name}}}* &{{elsewhere}}* {ACL_COMMANDS}"
    );
    let cluster = RedisCluster::start_as(RedisServer::builder().acl(&acl));
    it_behaves(ready(connect(&cluster.url_as("larder", "secret")).await).await).await;
    for node in 0..3 {
        let denied = cluster.node(node).cli(&["ACL", "LOG"]);
        assert!(!denied.contains("larder"), "the user was denied something: {denied}");
    }
}

#[tokio::test]
async fn it_is_reached_over_tls() {
    // The servers must trust each other, so all have the certificates of this one.
    let first = RedisServer::builder().tls().start();
    let file = |name: &str| first.ca_path().with_file_name(name).display().to_string();
    let options = RedisServer::builder()
        .tls()
        .arg("--tls-cluster", "yes")
        .arg("--tls-replication", "yes")
        .arg("--tls-ca-cert-file", &file("ca.pem"))
        .arg("--tls-cert-file", &file("server.pem"))
        .arg("--tls-key-file", &file("server.key"));
    let cluster = RedisCluster::start_as(options);
    let url = cluster.url().replace("redis-", "rediss-");
    let config = RedisConfig::url(&url).expect("a URL").tls_ca_file(first.ca_path());
    let store = ready(RedisStore::connect(config).await.expect("a store")).await;
    for at in 0..100 {
        put(&store, &key(&format!("k{at}")), "x").await;
    }
}

/// A store that has found its way to every master, which on a busy machine takes longer than connecting may.
async fn ready(store: RedisStore) -> RedisStore {
    let reaches_all = async || {
        for at in 0..50 {
            let anything = Namespace::default().entry(format!("anything:{at}").into());
            if store.get(&anything).await.is_err() {
                return false;
            }
        }
        true
    };
    until("every master is reached", reaches_all).await;
    store
}

/// A replica knows the masters as well as they do.
#[tokio::test]
async fn one_node_is_enough_to_find_the_others() {
    let cluster = RedisCluster::start();
    for node in [0, 5] {
        let store = ready(connect(&cluster.url_of(node)).await).await;
        for at in 0..100 {
            put(&store, &key(&format!("from-{node}-{at}")), "x").await;
        }
    }
    let sizes: Vec<u32> = (0..3).map(|node| cluster.node(node).cli(&["DBSIZE"]).parse().expect("a number")).collect();
    assert!(sizes.iter().all(|size| *size > 20) && sizes.iter().sum::<u32>() >= 200, "{sizes:?}");
}

#[tokio::test]
async fn what_is_no_cluster_is_an_error_at_the_start() {
    let server = RedisServer::start();
    let url = format!("redis-cluster://{}", server.addr());
    let error = RedisStore::connect(url).await.expect_err("it is none");
    assert!(matches!(error, ConnectError::Config(_)), "{error:?}");
    assert!(error.to_string().contains("no cluster; write redis://"), "{error}");
}

#[tokio::test]
async fn a_cluster_that_is_not_there_at_the_start_is_used_when_it_comes() {
    let (mut server, other) = (RedisServer::builder().arg("--cluster-enabled", "yes").start(), RedisCluster::start());
    server.kill();
    let began = Instant::now();
    let store = connect(&format!("redis-cluster://{}", server.addr())).await;
    assert!(began.elapsed() < Duration::from_millis(700), "{:?}", began.elapsed());
    assert!(matches!(body(&store, &key("a")).await, Err(StoreError::Unavailable(_))));
    server.restart();
    other.node(0).cli(&["CLUSTER", "MEET", "127.0.0.1", &server.port().to_string()]);
    until("the cluster is used", async || body(&store, &key("a")).await.is_ok()).await;
    put(&store, &key("a"), "x").await;
}

/// Paths, by the master that has their slot.
struct Parts {
    paths: Vec<String>,
    slots: BTreeMap<String, u16>,
    owners: BTreeMap<String, usize>,
}

impl Parts {
    async fn of(cluster: &RedisCluster, layer: &CacheLayer) -> Self {
        let paths: Vec<String> = (0..60).map(|at| format!("/page/{at}")).collect();
        let keys = warm(layer, &paths).await;
        let slot = |(path, key): (&String, &String)| (path.clone(), cluster.slot(&format!("{{{key}}}")));
        let slots: BTreeMap<String, u16> = keys.iter().map(slot).collect();
        let owner = |(path, slot): (&String, &u16)| (path.clone(), cluster.owner(*slot).expect("an owner"));
        let owners: BTreeMap<String, usize> = slots.iter().map(owner).collect();
        Self { paths, slots, owners }
    }

    fn are_of(&self, node: usize) -> impl Fn(&Asked) -> bool {
        move |asked| self.owners[&asked.path] == node
    }

    /// A slot that a node has.
    fn slot_of(&self, node: usize) -> u16 {
        let (path, _) = self.owners.iter().find(|(_, owner)| **owner == node).expect("some path is there");
        self.slots[path]
    }
}

/// The master that has the control keys of the namespace: the clock, the records and the log. Without them nobody knows what
/// has been invalidated, so what it costs to lose that one is told apart.
fn control(cluster: &RedisCluster) -> usize {
    cluster.owner(cluster.slot("{larder}:log")).expect("an owner")
}

/// The requests for the healthy parts went on being hits.
fn assert_healthy_hit(asked: &[Asked], parts: &Parts, dead: usize, since: Instant) {
    let healthy: Vec<&Asked> = asked.iter().filter(|asked| asked.at > since && !parts.are_of(dead)(asked)).collect();
    let hits = healthy.iter().filter(|asked| asked.is_hit()).count();
    println!("healthy parts: {hits} hits of {}", healthy.len());
    assert!(hits > 200, "{hits}");
    let missed = outcomes(healthy.iter().copied().filter(|asked| !asked.is_hit()));
    // A machine that stalls for a moment makes some miss.
    assert!(hits * 20 >= healthy.len() * 19, "{missed:?}");
}

/// What the requests for one part came to. None waited longer than a store may cost, but for a moment in which the machine
/// stalls.
fn assert_waited_little(name: &str, asked: &[Asked], parts: &Parts, node: usize, since: Instant) {
    let of_part: Vec<&Asked> = asked.iter().filter(|asked| asked.at > since && parts.are_of(node)(asked)).collect();
    let longest = of_part.iter().map(|asked| asked.took).max().unwrap_or_default();
    let slow = of_part.iter().filter(|asked| asked.took > Duration::from_millis(10)).count();
    println!(
        "{name}: {} requests, longest {longest:?}, over 10 ms {slow}: {:?}",
        of_part.len(),
        outcomes(of_part.iter().copied())
    );
    let waited = of_part.iter().filter(|asked| asked.took > Duration::from_millis(150)).count();
    assert!(waited <= 20 && longest < Duration::from_secs(3), "{waited} waited, the longest {longest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_is_killed_costs_its_own_slots_until_its_replica_takes_over() {
    let mut cluster = RedisCluster::start();
    let layer = layer(RedisConfig::url(&cluster.url()).expect("a URL")).await;
    let parts = Parts::of(&cluster, &layer).await;
    let dead = (control(&cluster) + 1) % 3;
    let load = Load::begin(&layer, &parts.paths, 4);
    load.until_asked(200).await;
    let killed = Instant::now();
    cluster.kill(dead);
    let slot = parts.slot_of(dead);
    until("a replica takes over", async || cluster.owner(slot).is_some_and(|owner| owner != dead)).await;
    let took_over = killed.elapsed();
    let recovered = until_hits(&load, killed, parts.are_of(dead)).await;
    let asked = load.end().await;
    println!("taken over after {took_over:?}, hits again after {recovered:?}");
    assert_waited_little("the killed part", &asked, &parts, dead, killed);
    assert_healthy_hit(&asked, &parts, dead, killed);
    assert!(recovered < took_over + Duration::from_millis(2_500), "{recovered:?}");
}

/// As long as nobody can tell what was invalidated, what is stored answers for two seconds, and then nothing of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_master_with_the_control_keys_costs_the_cache_until_its_replica_takes_over() {
    let mut cluster = RedisCluster::start();
    let layer = layer(RedisConfig::url(&cluster.url()).expect("a URL")).await;
    let parts = Parts::of(&cluster, &layer).await;
    let dead = control(&cluster);
    let load = Load::begin(&layer, &parts.paths, 4);
    sleep(Duration::from_millis(300)).await;
    let killed = Instant::now();
    cluster.kill(dead);
    let recovered = until_hits(&load, killed, |_| true).await;
    let asked = load.end().await;
    println!("hits again after {recovered:?}");
    let longest = asked.iter().filter(|asked| asked.at > killed).map(|asked| asked.took).max().unwrap_or_default();
    println!("longest {longest:?}: {:?}", outcomes(asked.iter().filter(|asked| asked.at > killed)));
    assert!(longest < Duration::from_millis(250), "{longest:?}");
    assert!(recovered < Duration::from_secs(12), "{recovered:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_freezes_costs_its_own_slots_until_its_replica_takes_over() {
    let cluster = RedisCluster::start();
    let layer = layer(RedisConfig::url(&cluster.url()).expect("a URL")).await;
    let parts = Parts::of(&cluster, &layer).await;
    let frozen = (control(&cluster) + 2) % 3;
    let load = Load::begin(&layer, &parts.paths, 4);
    load.until_asked(200).await;
    let stopped = Instant::now();
    cluster.node(frozen).stop();
    let recovered = until_hits(&load, stopped, parts.are_of(frozen)).await;
    cluster.node(frozen).cont();
    load.until_asked(load.so_far().len() + 500).await;
    let asked = load.end().await;
    println!("hits again after {recovered:?}");
    assert_waited_little("the frozen part", &asked, &parts, frozen, stopped);
    let slow = asked.iter().filter(|asked| asked.at > stopped && asked.took > Duration::from_millis(50)).count();
    assert!(slow <= 40, "{slow} requests waited for what does not answer");
    assert_healthy_hit(&asked, &parts, frozen, stopped);
    assert!(recovered < Duration::from_secs(10), "{recovered:?}");
}

/// The old master goes on as a replica, and says where the slots are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_failover_costs_hardly_a_hit() {
    let cluster = RedisCluster::start();
    let layer = layer(RedisConfig::url(&cluster.url()).expect("a URL")).await;
    let parts = Parts::of(&cluster, &layer).await;
    let load = Load::begin(&layer, &parts.paths, 4);
    load.until_asked(200).await;
    let ordered = Instant::now();
    cluster.node(4).cli(&["CLUSTER", "FAILOVER"]);
    let slot = parts.slot_of(1);
    until("the replica takes over", async || cluster.owner(slot) == Some(4)).await;
    println!("taken over after {:?}", ordered.elapsed());
    load.until_asked(2_000).await;
    until_hits(&load, Instant::now(), parts.are_of(1)).await;
    let asked = load.end().await;
    assert_waited_little("the part that was handed over", &asked, &parts, 1, ordered);
    assert_healthy_hit(&asked, &parts, 1, ordered);
    let missed = asked.iter().filter(|asked| asked.at > ordered && !asked.is_hit()).count();
    assert!(missed <= 40, "{:?}", outcomes(&asked));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_without_a_replica_costs_its_own_slots_nothing_but_the_cache() {
    let mut cluster = RedisCluster::start();
    let lost = (control(&cluster) + 1) % 3;
    cluster.kill(lost + 3);
    let layer = layer(RedisConfig::url(&cluster.url()).expect("a URL")).await;
    let parts = Parts::of(&cluster, &layer).await;
    let load = Load::begin(&layer, &parts.paths, 4);
    let killed = Instant::now();
    cluster.kill(lost);
    sleep(Duration::from_secs(4)).await;
    let asked = load.so_far();
    assert_healthy_hit(&asked, &parts, lost, killed);
    assert_waited_little("the lost part", &asked, &parts, lost, killed);
    let later: Vec<&Asked> = asked
        .iter()
        .filter(|asked| asked.at > killed + Duration::from_millis(500) && parts.are_of(lost)(asked))
        .collect();
    let waited = later.iter().filter(|asked| asked.took > Duration::from_millis(20)).count();
    assert!(later.len() > 50 && waited * 50 <= later.len(), "{waited} of {} waited", later.len());
    // Who asks for the same page at the same time still gets one answer with the others.
    let passed_by =
        |asked: &&&Asked| asked.word == "BYPASS" || ["collapsed", "near"].iter().any(|way| asked.status.contains(way));
    assert_eq!(later.iter().filter(passed_by).count(), later.len(), "{:?}", outcomes(later.iter().copied()));
    let restarted = Instant::now();
    cluster.restart(lost);
    let recovered = until_hits(&load, restarted, parts.are_of(lost)).await;
    println!("hits again {recovered:?} after its master was started again");
    load.end().await;
}

/// Redis' own default: while one slot has no master, it refuses them all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_wants_all_its_slots_costs_nothing_but_the_cache() {
    let mut cluster = RedisCluster::start();
    for node in 0..6 {
        cluster.node(node).cli(&["CONFIG", "SET", "cluster-require-full-coverage", "yes"]);
    }
    let layer = layer(RedisConfig::url(&cluster.url()).expect("a URL")).await;
    let parts = Parts::of(&cluster, &layer).await;
    let load = Load::begin(&layer, &parts.paths, 4);
    load.until_asked(200).await;
    let killed = Instant::now();
    cluster.kill(1);
    let recovered = until_hits(&load, killed, parts.are_of(1)).await;
    let healthy = until_hits(&load, killed, |asked| !parts.are_of(1)(asked)).await;
    let asked = load.end().await;
    println!("hits again after {recovered:?}, in the healthy parts after {healthy:?}");
    assert_waited_little("the killed part", &asked, &parts, 1, killed);
    let others: Vec<&Asked> = asked.iter().filter(|asked| asked.at > killed && !parts.are_of(1)(asked)).collect();
    println!("the healthy parts: {} requests: {:?}", others.len(), outcomes(others.iter().copied()));
    assert!(recovered < Duration::from_secs(10) && healthy < Duration::from_secs(10), "{recovered:?}, {healthy:?}");
}

/// How often a server sent a command elsewhere: for good, and for once.
fn redirects() -> (u64, u64) {
    let measured = snapshotter().snapshot().into_vec();
    let of = |kind: &str| {
        let values = measured.iter().filter(|(key, ..)| {
            key.key().name() == "larder.redis.redirects" && key.key().labels().any(|label| label.value() == kind)
        });
        values.map(|(.., value)| if let DebugValue::Counter(count) = value { *count } else { 0 }).sum()
    };
    (of("moved"), of("ask"))
}

fn snapshotter() -> Snapshotter {
    static SNAPSHOTTER: OnceLock<Snapshotter> = OnceLock::new();
    let installed = SNAPSHOTTER.get_or_init(|| {
        let recorder = DebuggingRecorder::new();
        let snapshotter = recorder.snapshotter();
        recorder.install().expect("nobody else installs one");
        snapshotter
    });
    installed.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_may_move_while_they_are_used() {
    snapshotter();
    let cluster = RedisCluster::start();
    let layer = layer(RedisConfig::url(&cluster.url()).expect("a URL")).await;
    let parts = Parts::of(&cluster, &layer).await;
    let moving: Vec<(&String, u16)> = parts
        .owners
        .iter()
        .filter(|(_, owner)| **owner == 0)
        .take(8)
        .map(|(path, _)| (path, parts.slots[path]))
        .collect();
    let paths: Vec<String> = moving.iter().map(|(path, _)| (*path).clone()).collect();
    redirects();
    let load = Load::begin(&layer, &paths, 4);
    let (mut moved, mut asked) = (0, 0);
    for (path, slot) in &moving {
        cluster.begin_to_move(*slot, 0, 1);
        let begun = Instant::now();
        until_hits(&load, begun, |asked| asked.path == **path).await;
        while cluster.move_a_key(*slot, 0, 1) {}
        let there = Instant::now();
        until_hits(&load, there, |asked| asked.path == **path).await;
        cluster.end_the_move(*slot, 1);
        let done = Instant::now();
        until_hits(&load, done, |asked| asked.path == **path).await;
        let (more_moved, more_asked) = redirects();
        (moved, asked) = (moved + more_moved, asked + more_asked);
    }
    let all = load.end().await;
    let hits = all.iter().filter(|asked| asked.is_hit()).count();
    println!("{hits} hits of {}, {moved} MOVED, {asked} ASK: {:?}", all.len(), outcomes(&all));
    assert!(moved >= 8, "each slot is found to have moved once: {moved}");
    assert!(asked >= 8 * 20, "each is asked of its next owner for a while: {asked}");
    assert!(moved < 100, "and then it is known: {moved}");
    assert!(hits * 50 >= all.len() * 49, "{:?}", outcomes(&all));
    for (_, slot) in &moving {
        assert_eq!(cluster.owner(*slot), Some(1));
        assert_ne!(cluster.node(1).cli(&["CLUSTER", "COUNTKEYSINSLOT", &slot.to_string()]), "0", "it was found there");
    }
}

/// Scripts have several keys, and Redis runs none in a slot of which a part has moved. A purge must not fail for that.
#[tokio::test]
async fn a_purge_reaches_what_is_half_moved() {
    let cluster = RedisCluster::start();
    let store = ready(connect(&cluster.url()).await).await;
    for is_moved in [false, true] {
        let key = key(&format!("half-{is_moved}"));
        put(&store, &key, "old").await;
        let slot = cluster.slot(&key.name());
        let from = cluster.owner(slot).expect("an owner");
        let to = (from + 1) % 3;
        let in_flight = match store.claim(&key, Seen::Unreadable).await {
            Ok(Claim::Granted(ticket)) => ticket,
            other => panic!("{other:?}"),
        };
        cluster.begin_to_move(slot, from, to);
        if is_moved {
            cluster.move_a_key(slot, from, to);
        }
        assert_eq!(body(&store, &key).await, Ok(Some(Bytes::from_static(b"old"))));
        let claimed = store.claim(&key, Seen::Unreadable).await;
        // No script runs that names a key which is there and one which may have been moved, or was never there.
        let is_to_be_tried_again = matches!(&claimed, Err(StoreError::Unavailable(why)) if why.contains("TRYAGAIN"));
        assert!(is_to_be_tried_again || !is_moved && matches!(claimed, Ok(Claim::Held)), "{claimed:?}");
        store.purge(&key.namespace, &Purge::key(key.key.clone())).await.expect("it is purged");
        assert_eq!(body(&store, &key).await, Ok(None));
        while cluster.move_a_key(slot, from, to) {}
        cluster.end_the_move(slot, to);
        let late = store.fill(in_flight, filling(&key, &entry(&store, "old"))).await;
        assert_eq!(late, Ok(Filled::Voided));
        put(&store, &key, "new").await;
        assert_eq!(body(&store, &key).await, Ok(Some(Bytes::from_static(b"new"))));
    }
}

/// The clock, the log and the records of tags lie in one slot too: a purge by tag waits until they are all in one place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_by_tag_waits_for_the_slot_of_its_records() {
    let cluster = RedisCluster::start();
    let store = ready(connect(&cluster.url()).await).await;
    let namespace = Namespace::default();
    let purge = Purge::tag("users");
    store.purge(&namespace, &purge).await.expect("there is a record now");
    let slot = cluster.slot(&format!("{{{}}}:log", namespace.name()));
    let from = cluster.owner(slot).expect("an owner");
    let to = (from + 1) % 3;
    cluster.begin_to_move(slot, from, to);
    // Three of the four are the purge's: clock, log and record. The fourth is that of the whole namespace.
    assert!(cluster.move_a_key(slot, from, to) && cluster.move_a_key(slot, from, to), "there are four keys");
    let purging = tokio::spawn({
        let (store, namespace) = (store.clone(), namespace.clone());
        async move { store.purge(&namespace, &purge).await }
    });
    sleep(Duration::from_millis(200)).await;
    assert!(!purging.is_finished(), "half of the keys are elsewhere");
    while cluster.move_a_key(slot, from, to) {}
    cluster.end_the_move(slot, to);
    let receipt = purging.await.expect("no panic").expect("it is purged");
    assert!(receipt.tags == 1 && receipt.logged.is_some(), "{receipt:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_by_pattern_reaches_every_master() {
    let cluster = RedisCluster::start();
    let store = ready(connect(&cluster.url()).await).await;
    for at in 0..60 {
        put(&store, &key(&format!("user:{at}")), "old").await;
    }
    put(&store, &key("users"), "kept").await;
    let (namespace, users) = (key("users").namespace, Purge::prefix("user:"));
    let dry = store.purge(&namespace, &users.clone().dry_run()).await.expect("they are counted");
    let receipt = store.purge(&namespace, &users).await.expect("they are purged");
    assert_eq!((dry.resources, receipt.resources), (60, 60));
    for at in 0..60 {
        assert_eq!(body(&store, &key(&format!("user:{at}"))).await, Ok(None));
    }
    assert_eq!(body(&store, &key("users")).await, Ok(Some(Bytes::from_static(b"kept"))));
}

#[derive(Default)]
struct Heard(Mutex<Vec<Selector>>);

impl Listener for Heard {
    fn invalidated(&self, selector: &Selector, _: u64) {
        self.0.lock().expect("no panic").push(selector.clone());
    }

    fn lost(&self) {}

    fn vouched(&self, _: tokio::time::Instant) {}
}

/// What is invalidated is told on a channel of the slot in which it is logged, which keeps no other server busy, and is heard
/// wherever that slot goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_invalidated_is_told_in_its_own_slot() {
    for flavor in [Flavor::Redis, Flavor::Valkey] {
        let cluster = RedisCluster::start_flavor(flavor);
        let (one, other) = (ready(connect(&cluster.url()).await).await, ready(connect(&cluster.url()).await).await);
        let (namespace, heard) = (Namespace::default(), Arc::new(Heard::default()));
        other.follow(&namespace, heard.clone());
        let channel = format!("{{{}}}:told", namespace.name());
        let slot = cluster.slot(&channel);
        let from = cluster.owner(slot).expect("an owner");
        let is_heard_at = async |node: usize| {
            let listen = async || cluster.node(node).cli(&["PUBSUB", "SHARDNUMSUB", &channel]).ends_with('2');
            until("both listen there", listen).await;
            for at in 0..5 {
                let purge = Purge::tag(format!("{node}-{at}"));
                one.purge(&namespace, &purge).await.expect("it is purged");
                until("it is heard", async || heard.0.lock().expect("no panic").contains(&purge.selector)).await;
            }
            let stats = cluster.node(node).cli(&["INFO", "commandstats"]);
            assert!(stats.contains("cmdstat_spublish:calls=5,"), "{stats}");
            assert!(!stats.contains("cmdstat_publish:"), "{stats}");
        };
        // A listener makes a store follow the log, and so does whoever invalidates.
        one.purge(&namespace, &Purge::tag("first")).await.expect("it is purged");
        cluster.node(from).cli(&["CONFIG", "RESETSTAT"]);
        is_heard_at(from).await;
        let to = (from + 1) % 3;
        cluster.begin_to_move(slot, from, to);
        while cluster.move_a_key(slot, from, to) {}
        cluster.end_the_move(slot, to);
        is_heard_at(to).await;
    }
}

/// The connection that listens leads to one node, and to another when that one dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_is_told_also_after_the_node_that_told_has_died() {
    let mut cluster = RedisCluster::start();
    let (one, other) = (ready(connect(&cluster.url()).await).await, ready(connect(&cluster.url()).await).await);
    let limit = Duration::from_secs(20);
    let told = async |key: &larder::semantics::EntryKey| {
        let ticket = claim(&one, key).await;
        let released = async {
            sleep(Duration::from_millis(300)).await;
            one.release(ticket, larder::store::Unused::NoAnswer).await.expect("a release");
        };
        let began = Instant::now();
        tokio::join!(released, other.turn(key, limit));
        began.elapsed()
    };
    assert!(Box::pin(told(&key("a"))).await < Duration::from_secs(5));
    let listening = |cluster: &RedisCluster| {
        (0..3).find(|node| {
            cluster.node(*node).is_running()
                && cluster.node(*node).cli(&["CLIENT", "LIST", "TYPE", "pubsub"]).contains(" sub=1")
        })
    };
    let ear = listening(&cluster).expect("it listens somewhere");
    cluster.kill(ear);
    let moved = until("it listens elsewhere", async || listening(&cluster).is_some()).await;
    println!("it listens to another node after {moved:?}");
    let elsewhere = (0..100).map(|at| key(&format!("k{at}"))).find(|key| {
        let slot = cluster.slot(&key.name());
        cluster.owner(slot).is_some_and(|owner| owner != ear)
    });
    let took = Box::pin(told(&elsewhere.expect("some key"))).await;
    assert!(took < Duration::from_secs(5), "{took:?}");
}

/// A cluster's servers say where a slot is; the path of a request still has one answer.
#[tokio::test]
async fn a_hit_is_one_get() {
    let cluster = RedisCluster::start();
    let layer = layer(RedisConfig::url(&cluster.url()).expect("a URL")).await;
    let parts = Parts::of(&cluster, &layer).await;
    for node in 0..3 {
        cluster.node(node).cli(&["CONFIG", "RESETSTAT"]);
    }
    for path in &parts.paths {
        assert!(ask(&layer, path).await.0.is_hit());
    }
    let calls =
        |word: &str| (0..3).map(|node| cluster.node(node).command_stats().get(word).copied().unwrap_or(0)).sum::<u64>();
    assert_eq!((calls("get"), calls("mget"), calls("evalsha")), (60, 0, 0));
}
