//! Bugs that other caches had, one test a row of `tests/BUGS.md`, as far as several processes or Redis are their
//! subject.

mod instances;

use instances::{Origin, all, ask, forwarded, instance, instance_at};
use larder::CacheLayer;
use larder_tests::RedisServer;
use std::{
    env,
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

#[tokio::test(flavor = "multi_thread")]
async fn row_34_n_instances_cold_key_one_call() {
    let server = RedisServer::start();
    let mut layers = Vec::new();
    for _ in 0..4 {
        layers.push(instance(&server).await);
    }
    for path in ["/a", "/b", "/c"] {
        let origin = Origin::new("max-age=60", Duration::from_millis(300));
        let answers = all(&layers, 100, &origin, path).await;
        assert_eq!(origin.calls(), 1, "{path}: {:?}", forwarded(&answers));
        assert!(answers.iter().flatten().all(|(_, body, _)| body == "1"));
        let mut last: Vec<Instant> =
            answers.iter().map(|these| these.iter().map(|answer| answer.2).max().expect("some")).collect();
        last.sort();
        println!("{path}: the last instance was done {:?} after the first", last[3] - last[0]);
    }
}

/// In the environment of a process that is to hold a ticket: the URL of the server.
const HOLDER: &str = "LARDER_TESTS_ROW_10";

/// The test is also the program of the process that is killed.
#[tokio::test(flavor = "multi_thread")]
async fn row_10_a_killed_holder_keeps_nobody_from_other_keys_and_its_own_for_three_seconds() {
    let hangs = Origin::new("max-age=60", Duration::from_secs(3600));
    if let Ok(url) = env::var(HOLDER) {
        ask(instance_at(&url).await, hangs, "/held").await;
    }
    let server = RedisServer::start();
    let layer = instance(&server).await;
    let test = "row_10_a_killed_holder_keeps_nobody_from_other_keys_and_its_own_for_three_seconds";
    let mut holder = Command::new(env::current_exe().expect("this program"));
    let mut holder =
        holder.args(["--exact", test]).env(HOLDER, server.url()).stdout(Stdio::null()).spawn().expect("it");
    let tickets = || server.cli(&["KEYS", "*:t"]).lines().count();
    while tickets() == 0 {
        assert!(holder.try_wait().expect("its state").is_none(), "the holder ended");
        tokio::task::yield_now().await;
    }
    holder.kill().and_then(|()| holder.wait()).expect("a dead holder");
    let (killed, origin) = (Instant::now(), Origin::new("max-age=60", Duration::ZERO));
    for path in ["/other", "/another"] {
        let (status, ..) = ask(layer.clone(), origin.clone(), path).await;
        assert!(status.contains("; stored"), "{status}");
    }
    assert!(tickets() > 0, "those were asked for while the dead process's ticket was valid");
    let (status, _, answered) = ask(layer.clone(), origin.clone(), "/held").await;
    assert!(status.contains("; stored") && !status.contains("lock-timeout"), "{status}");
    let waited = answered - killed;
    // A ticket lasts for three seconds, and who waits looks again after half a second at most.
    assert!(waited > Duration::from_secs(1) && waited < Duration::from_millis(4_500), "{waited:?}");
    assert!(ask(layer, origin.clone(), "/held").await.0.contains("; hit"));
    assert_eq!(origin.calls(), 3);
}

/// Neither those who follow in the process of the leader, nor those of another.
#[tokio::test(flavor = "multi_thread")]
async fn row_13_ten_thousand_who_wait_take_no_connection_and_few_commands() {
    const WAITING: usize = 10_000;
    let server = RedisServer::start();
    let layers = [instance(&server).await, instance(&server).await];
    let counted = server.command_stats().values().sum::<u64>();
    let origin = Origin::new("max-age=60", Duration::from_secs(3));
    let crowd = tokio::spawn({
        let (layers, origin) = (layers.clone(), origin.clone());
        async move { all(&layers, WAITING / 2, &origin, "/crowd").await }
    });
    while origin.calls() == 0 {
        tokio::task::yield_now().await;
    }
    let other = Origin::new("max-age=60", Duration::ZERO);
    // So many at once are more than may ask the store; those who only wait are not among them.
    for layer in &layers {
        while ask(layer.clone(), other.clone(), "/first").await.0.contains("store-busy") {}
    }
    for path in ["/1", "/2", "/3", "/4", "/5"] {
        let (stored, ..) = ask(layers[0].clone(), other.clone(), path).await;
        // Nobody waits for the write; once it is done, both have it.
        while !ask(layers[0].clone(), other.clone(), path).await.0.contains("; hit") {}
        let (hit, ..) = ask(layers[1].clone(), other.clone(), path).await;
        assert!(stored.contains("; stored") && hit.contains("; hit"), "{stored}, {hit}");
    }
    assert!(!crowd.is_finished(), "they still wait");
    let clients = server.cli(&["CLIENT", "LIST"]);
    let answers = crowd.await.expect("answers");
    assert_eq!(answers.iter().map(Vec::len).sum::<usize>(), WAITING);
    assert_eq!(origin.calls(), 1, "{:?}", forwarded(&answers));
    let spent = server.command_stats().values().sum::<u64>() - counted;
    println!("{spent} commands, {} connections", clients.lines().count());
    assert!(spent < 1_000, "{spent} commands");
    // Each instance has one for what is small, one for what is large, and one to be told on; the rest are of this test.
    assert!(clients.lines().count() <= 2 * 3 + 2, "{clients}");
}

/// How long after its leader, of another process, a follower is done.
async fn delay(leader: CacheLayer, follower: CacheLayer, path: &'static str, takes: Duration) -> Duration {
    let origin = Origin::new("max-age=60", takes);
    let leading = tokio::spawn(ask(leader, origin.clone(), path));
    while origin.calls() == 0 {
        tokio::task::yield_now().await;
    }
    let (status, _, followed) = ask(follower, origin.clone(), path).await;
    assert_eq!(origin.calls(), 1, "{status}");
    followed.saturating_duration_since(leading.await.expect("an answer").2)
}

#[tokio::test(flavor = "multi_thread")]
async fn row_27_a_follower_elsewhere_is_woken_by_word_and_not_by_its_next_look() {
    let server = RedisServer::start();
    let (one, other) = (instance(&server).await, instance(&server).await);
    let mut rounds = JoinSet::new();
    for round in 0..9 {
        // By then, who waits looks every 400 ms, more or less.
        let takes = Duration::from_millis(1_000 + 40 * round);
        rounds.spawn(delay(one.clone(), other.clone(), format!("/{round}").leak(), takes));
    }
    let mut delays = rounds.join_all().await;
    delays.sort();
    println!("{delays:?} after the leader");
    // The shortest pause between two looks is that of the first.
    assert!(delays[4] < Duration::from_millis(37), "{delays:?}");
    assert_eq!(server.command_stats().get("publish"), Some(&9), "one word for each");
}
