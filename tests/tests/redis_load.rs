//! What the Redis store costs in memory and in time, measured on the whole process: these tests have one of their own,
//! and run one after the other.

mod redis_entries;

use larder::store::{Seen, Store, StoreError, Ticket, TicketKind};
use larder_redis::RedisStore;
use larder_tests::RedisServer;
use redis_entries::*;
use std::time::{Duration, Instant};
use tokio::{task::JoinSet, time::sleep};

const MEBIBYTE: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_costs_no_more_than_it_may() {
    fills_of_a_dead_server_are_not_queued().await;
    reads_of_a_frozen_server_are_not_queued().await;
    large_bodies_do_not_hold_up_small_ones().await;
}

/// Case 8.
async fn fills_of_a_dead_server_are_not_queued() {
    let mut server = RedisServer::start();
    let store = connect(&server.url()).await;
    put(&store, &key("a"), "x").await;
    server.kill();
    let refused = Err(StoreError::Unavailable("not connected".to_owned()));
    until("it is noticed", async || store.probe().await == refused).await;
    let (before, large) = (resident(), entry(&store, vec![7; 10 << 10]));
    let (mut fills, mut unavailable) = (JoinSet::new(), 0);
    for number in 0..100_000 {
        let (store, large, key) = (store.clone(), large.clone(), key(&format!("k{number}")));
        fills.spawn(async move {
            let ticket = Ticket { key: key.clone(), nonce: id(), born: 0, kind: TicketKind::Fetch };
            store.fill(ticket, filling(&key, &large)).await
        });
        if fills.len() >= 1_000 {
            unavailable += usize::from(is_unavailable(fills.join_next().await));
        }
    }
    while let Some(fill) = fills.join_next().await {
        unavailable += usize::from(is_unavailable(Some(fill)));
    }
    let grown = resident().saturating_sub(before);
    println!("100,000 fills of a dead server: {} KiB more", grown / 1024);
    assert_eq!(unavailable, 100_000);
    assert!(grown < 50 * MEBIBYTE, "{grown} bytes more");
}

fn is_unavailable<T>(fill: Option<Result<Result<T, StoreError>, tokio::task::JoinError>>) -> bool {
    matches!(fill, Some(Ok(Err(StoreError::Unavailable(_)))))
}

/// Case 7.
async fn reads_of_a_frozen_server_are_not_queued() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await;
    put(&store, &key("a"), vec![0; 1024]).await;
    server.stop();
    // The memory of ten thousand tasks as such is in the figure before.
    let began = Instant::now();
    let outcomes = ten_thousand_requests(&store).await;
    // As many as may be under way, and as many again for each time that those have waited in vain.
    let most = 1_024 * (1 + began.elapsed().as_millis() / 100);
    let before = resident();
    for _ in 0..4 {
        ten_thousand_requests(&store).await;
    }
    sleep(Duration::from_millis(500)).await;
    server.cont();
    let grown = resident().saturating_sub(before);
    let waited = outcomes.iter().filter(|(_, took)| *took > Duration::from_millis(50)).count();
    println!("10,000 requests of a frozen server: {waited} waited; of 40,000 more, {} KiB more", grown / 1024);
    assert!(outcomes.iter().all(|(read, _)| read.is_err()));
    assert!(waited as u128 <= most, "{waited} of at most {most}");
    assert!(grown < 64 * MEBIBYTE, "{grown} bytes more");
    until("it is well again", async || body(&store, &key("a")).await.is_ok_and(|body| body.is_some())).await;
}

/// What each read came to, and how long it took.
async fn ten_thousand_requests(store: &RedisStore) -> Vec<(Result<(), StoreError>, Duration)> {
    let mut requests = JoinSet::new();
    for number in 0..10_000 {
        let store = store.clone();
        requests.spawn(async move {
            let asked = Instant::now();
            let read = (body(&store, &key("a")).await.map(drop), asked.elapsed());
            let _ = store.claim(&key(&format!("k{number}")), Seen::Absent).await;
            read
        });
    }
    requests.join_all().await
}

/// Case 20: four readers of 1 MiB that pause for 10 ms after each.
async fn large_bodies_do_not_hold_up_small_ones() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await;
    put(&store, &key("small"), vec![1; 1024]).await;
    for number in 0..4 {
        put(&store, &key(&format!("large{number}")), vec![1; MEBIBYTE]).await;
    }
    let alone = times(&store).await;
    let mut large = JoinSet::new();
    for number in 0..4 {
        let (store, key) = (store.clone(), key(&format!("large{number}")));
        large.spawn(async move {
            let mut whole = 0_u32;
            while body(&store, &key).await.is_ok_and(|body| body.is_some()) {
                whole += 1;
                sleep(Duration::from_millis(10)).await;
            }
            panic!("after {whole} times, a large body was not read");
        });
    }
    let beside = times(&store).await;
    assert_eq!(large.len(), 4);
    assert!(large.try_join_next().is_none(), "large bodies are read");
    large.shutdown().await;
    for (Times { median, p99 }, when) in [(&alone, "alone"), (&beside, "beside four readers of 1 MiB")] {
        println!("a small GET {when}: median {median:?}, p99 {p99:?}");
    }
    // The slowest hundredth tells more of the machine's other programs; on a quiet one it holds for that as well.
    assert!(beside.median < alone.median * 5, "{beside:?}, {alone:?} alone");
}

#[derive(Debug)]
struct Times {
    median: Duration,
    p99: Duration,
}

async fn times(store: &RedisStore) -> Times {
    let mut times = Vec::new();
    for _ in 0..2_000 {
        let asked = Instant::now();
        assert!(body(store, &key("small")).await.is_ok_and(|body| body.is_some()));
        times.push(asked.elapsed());
    }
    times.sort();
    Times { median: times[times.len() / 2], p99: times[times.len() * 99 / 100] }
}

/// The memory of this process, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
}
