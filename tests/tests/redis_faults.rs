//! The Redis store while Redis or the way to it is broken: it fails fast, tells nobody a wrong body, and recovers.
//!
//! The numbers are those of the cases in `tests/BUGS.md`.

mod logs;
mod redis_entries;

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Request, StatusCode},
    routing::get,
};
use bytes::Bytes;
use larder::{
    Cache, Deadlines, Guard,
    semantics::EntryKey,
    store::{Claim, Filled, Found, Seen, Store, StoreError, Ticket, TicketKind, is_late},
};
use larder_redis::{RedisConfig, RedisStore};
use larder_tests::{FaultProxy, RedisServer};
use logs::{logging, warnings};
use metrics::{SharedString, Unit};
use metrics_util::{
    CompositeKey,
    debugging::{DebugValue, DebuggingRecorder, Snapshotter},
};
use redis_entries::*;
use std::{
    future::Future,
    sync::{Arc, OnceLock},
    task::{Context, Waker},
    time::{Duration, Instant},
};
use tokio::{task::JoinSet, time::sleep};
use tower::ServiceExt;

/// What a request may lose to a store that is broken, before its connection is known to be.
const READ_TIMEOUT: Duration = Duration::from_millis(100);

fn key_of(number: usize) -> EntryKey {
    key(&format!("k{number}"))
}

fn text(number: usize) -> Bytes {
    Bytes::from(format!("the body of {number}"))
}

async fn usable(store: &RedisStore) -> bool {
    body(store, &key("usable")).await.is_ok()
}

/// How long one read took, and what it came to.
async fn read(store: &RedisStore) -> (Duration, Result<(), StoreError>) {
    let asked = Instant::now();
    let outcome = body(store, &key("load")).await.map(drop);
    (asked.elapsed(), outcome)
}

/// Reads for so long, every 10 ms, and returns how long each read took, with what it came to.
async fn load(store: &RedisStore, length: Duration) -> Vec<(Duration, Result<(), StoreError>)> {
    let began = Instant::now();
    let mut reads = Vec::new();
    while began.elapsed() < length {
        reads.push(read(store).await);
        sleep(Duration::from_millis(10)).await;
    }
    reads
}

/// Each read fails as an outage, but for one or two that succeed before it or that this process is late for; none takes longer
/// than its timeout, and most take no time.
fn assert_fails_fast(reads: &[(Duration, Result<(), StoreError>)]) {
    let outages = reads.iter().filter(|(_, outcome)| outcome.as_ref().is_err_and(StoreError::is_outage)).count();
    assert!(outages + 2 >= reads.len(), "{outages} of {}: {reads:?}", reads.len());
    let is_told = |(took, outcome): &(Duration, Result<(), StoreError>)| match outcome {
        Err(StoreError::Busy) => is_late(*took, READ_TIMEOUT),
        Err(error) => error.is_outage(),
        Ok(()) => true,
    };
    assert!(reads.iter().all(is_told), "{reads:?}");
    let longest = reads.iter().map(|(took, _)| *took).max().unwrap_or_default();
    assert!(longest < READ_TIMEOUT + Duration::from_millis(150), "one took {longest:?}");
    let last = &reads[reads.len() - 20..];
    let slow = last.iter().filter(|(took, _)| *took > Duration::from_millis(5)).count();
    assert!(slow <= 2, "{slow} of the last 20 were slow: {last:?}");
}

/// Cases 1, 2 and 5.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_costs_nothing_and_is_used_again() {
    let mut server = RedisServer::start();
    let store = connect(&server.url()).await;
    put(&store, &key("load"), "x").await;
    server.kill();
    assert_fails_fast(&load(&store, Duration::from_secs(4)).await);
    let connected = tokio::spawn({
        let store = store.clone();
        async move { store.reconnected().await }
    });
    sleep(Duration::from_millis(20)).await;
    assert!(!connected.is_finished(), "it is not connected");
    server.restart();
    let took = until("Redis is used again", async || usable(&store).await).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    tokio::time::timeout(Duration::from_secs(1), connected).await.expect("it is told").expect("a task");
    put(&store, &key("load"), "y").await;
}

/// Case 1. The server that is frozen accepts connections and bytes, so nothing but silence tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_server_costs_little_and_is_used_again() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await;
    put(&store, &key("load"), "x").await;
    server.stop();
    let reads = load(&store, Duration::from_secs(5)).await;
    server.cont();
    assert_fails_fast(&reads);
    let took = until("Redis is used again", async || usable(&store).await).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
}

/// Cases 1 and 17: nothing comes back, not even a refusal, and nobody asks anything meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_leads_nowhere_is_noticed_while_idle() {
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr());
    let store = connect(&proxy.url()).await;
    put(&store, &key("load"), "x").await;
    proxy.black_hole();
    sleep(Duration::from_secs(4)).await;
    let asked = Instant::now();
    assert!(matches!(body(&store, &key("load")).await, Err(StoreError::Unavailable(_))));
    assert!(asked.elapsed() < Duration::from_millis(5), "{:?}", asked.elapsed());
    proxy.pass();
    until("Redis is used again", async || usable(&store).await).await;
}

/// Case 3.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_at_once_is_busy_and_no_outage() {
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr());
    let config = RedisConfig::url(&proxy.url()).expect("a URL").in_flight(8).fill_bytes(1000);
    let store = RedisStore::connect(config).await.expect("a store");
    put(&store, &key("small"), "x").await;
    let ticket = claim(&store, &key("large")).await;
    let large = store.fill(ticket, filling(&key("large"), &entry(&store, vec![0; 1001]))).await;
    assert_eq!(large, Err(StoreError::Busy));
    assert!(matches!(store.claim(&key("large"), Seen::Absent).await, Ok(Claim::Granted(_))), "the ticket is free");

    proxy.latency(Duration::from_millis(20));
    let small = key("small");
    let mut waiting: Vec<_> = (0..8).map(|_| Box::pin(store.get(&small))).collect();
    for read in &mut waiting {
        assert!(read.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    assert_eq!(body(&store, &small).await, Err(StoreError::Busy));
    let claimed = store.claim(&key("missed"), Seen::Absent).await;
    assert!(matches!(claimed, Ok(Claim::Granted(_))), "reads leave room for who fetches what they miss: {claimed:?}");
    drop(waiting);

    let mut reads = JoinSet::new();
    for _ in 0..100 {
        let store = store.clone();
        reads.spawn(async move { body(&store, &key("small")).await });
    }
    let outcomes = reads.join_all().await;
    let well = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    let busy = outcomes.iter().filter(|outcome| **outcome == Err(StoreError::Busy)).count();
    assert!(well >= 8 && busy > 0 && well + busy == 100, "{well} well, {busy} busy");
    assert!(!StoreError::Busy.is_outage());
}

/// The replies come while this process does not look, and so does the end of their time.
#[tokio::test]
async fn a_process_that_stalls_does_not_blame_redis() {
    let server = RedisServer::start();
    let guard = Guard::new(connect(&server.url()).await, Deadlines::default());
    let guard = Arc::new(guard);
    for _ in 0..5 {
        let mut reads = JoinSet::new();
        for number in 0..50 {
            let guard = guard.clone();
            reads.spawn(async move { guard.get(&key_of(number)).await });
        }
        // They are sent, and the only thread reads nothing before the stall is over: the wire is the subject, whose replies no
        // clock holds back that can be moved.
        tokio::task::yield_now().await;
        std::thread::sleep(3 * READ_TIMEOUT);
        let outcomes = reads.join_all().await;
        let blames = |outcome: &&Result<Found, StoreError>| matches!(outcome, Err(error) if *error != StoreError::Busy);
        let blaming: Vec<_> = outcomes.iter().filter(blames).collect();
        assert!(blaming.is_empty(), "{blaming:?}");
        let outcome = guard.get(&key_of(0)).await;
        assert!(outcome.is_ok(), "{outcome:?}");
    }
}

/// Also those that waited for their turn behind a read that it never answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_at_a_frozen_server_blames_it_in_time() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await;
    put(&store, &key("load"), "x").await;
    server.stop();
    let mut reads = JoinSet::new();
    for _ in 0..1_000 {
        let store = store.clone();
        reads.spawn(async move { read(&store).await });
    }
    let outcomes = reads.join_all().await;
    // But for those that this process comes to late.
    let blaming = outcomes.iter().filter(|(_, outcome)| *outcome == Err(StoreError::Timeout)).count();
    let longest = outcomes.iter().map(|(took, _)| *took).max().unwrap_or_default();
    println!("{blaming} of 1,000 timed out, the last after {longest:?}");
    assert!(blaming > 500, "{blaming}");
    assert!(longest < READ_TIMEOUT + Duration::from_millis(150), "{longest:?}");
}

/// Reads that wait for others' turns have no timer each, and yet each has its own time, whenever it was asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_that_wait_together_have_each_their_own_time() {
    let within = Duration::from_millis(400);
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr());
    let config = RedisConfig::url(&proxy.url()).expect("a URL").read_timeout(within);
    let store = RedisStore::connect(config).await.expect("a store");
    assert_eq!(store.wakes_within(), Some(within));
    put(&store, &key("load"), "x").await;
    proxy.black_hole();
    let mut reads = JoinSet::new();
    // More than go into one command, and than are under way at once, over a time in which the first are given up.
    for _ in 0..300 {
        let store = store.clone();
        reads.spawn(async move { read(&store).await });
        sleep(Duration::from_millis(1)).await;
    }
    for (took, outcome) in reads.join_all().await {
        assert_eq!(outcome, Err(StoreError::Timeout));
        assert!(took >= within && took < within + Duration::from_millis(150), "{took:?}");
    }
}

/// Case 4.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_there_at_the_start_is_used_when_it_comes() {
    let mut server = RedisServer::start();
    let url = server.url();
    server.kill();
    let began = Instant::now();
    let store = connect(&url).await;
    assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
    assert!(matches!(body(&store, &key("a")).await, Err(StoreError::Unavailable(_))));
    sleep(Duration::from_millis(1500)).await;
    server.restart();
    let took = until("Redis is used", async || usable(&store).await).await;
    assert!(took < Duration::from_millis(3_500), "{took:?}");
    put(&store, &key("a"), "x").await;
}

/// An app whose pages are cached in Redis, with every setting at its default.
async fn app(url: &str) -> Router {
    let cache = Cache::builder().namespace("shop").store(connect(url).await).build().expect("a cache");
    Router::new().route("/{page}", get(|| async { "a page" })).layer(cache.layer())
}

/// How a page is answered: `X-Cache`. It is answered in any case.
async fn x_cache(app: &Router, page: &str) -> String {
    let request = Request::get(page).header("host", "shop").body(Body::empty()).expect("a request");
    let response = app.clone().oneshot(request).await.expect("an answer");
    assert_eq!(response.status(), StatusCode::OK);
    let x_cache = response.headers()["x-cache"].to_str().expect("ASCII").to_owned();
    let body = to_bytes(response.into_body(), 1000).await.expect("a body");
    assert_eq!(body, "a page");
    x_cache
}

/// Case 4, as the clients of an app see it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_that_starts_before_redis_answers_at_once_and_hits_when_redis_comes() {
    // What a cache without its store may cost, and what a machine with other work adds to a single request.
    let (most, noise) = (Duration::from_millis(50), Duration::from_millis(150));
    let mut server = RedisServer::start();
    let url = server.url();
    server.kill();
    let app = app(&url).await;
    let mut times = Vec::new();
    // The pauses between attempts to connect have come to their longest by then.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(6) {
        let asked = Instant::now();
        assert_eq!(x_cache(&app, "/page").await, "BYPASS");
        times.push(asked.elapsed());
        sleep(Duration::from_millis(20)).await;
    }
    assert!(times[0] < most + noise, "the first took {:?}", times[0]);
    times.sort();
    let (median, slowest) = (times[times.len() / 2], times[times.len() - 1]);
    assert!(median < most && slowest < most + noise, "{median:?}, and {slowest:?} at most");
    server.restart();
    let took = until("a page is a hit", async || x_cache(&app, "/page").await == "HIT").await;
    assert!(took < Duration::from_secs(4), "{took:?}");
}

/// Case 4: a server that accepts and is silent is as bad as can be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_does_not_keep_a_program_from_starting() {
    let server = RedisServer::start();
    server.stop();
    let began = Instant::now();
    let store = connect(&server.url()).await;
    assert!(began.elapsed() < Duration::from_millis(600), "{:?}", began.elapsed());
    server.cont();
    until("Redis is used", async || usable(&store).await).await;
}

/// Case 6.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_processes_do_not_reconnect_at_the_same_time() {
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr());
    let mut stores = Vec::new();
    for _ in 0..60 {
        stores.push(connect(&proxy.url()).await);
    }
    let before = proxy.connections();
    assert_eq!(before, 120);
    proxy.truncate_after(0);
    proxy.reset();
    sleep(Duration::from_secs(4)).await;
    proxy.pass();
    let log = proxy.accept_log();
    let attempts = &log[before..];
    // After the first round, which is over in half a second, in fifths of a second.
    let (first, mut bins) = (attempts[0] + Duration::from_millis(500), [0_usize; 15]);
    for at in attempts.iter().filter_map(|at| at.checked_duration_since(first)) {
        let bin = usize::try_from(at.as_millis() / 200).expect("a small number");
        if let Some(count) = bins.get_mut(bin) {
            *count += 1;
        }
    }
    let mean = bins.iter().sum::<usize>() / bins.len();
    assert!(mean > 20 && bins.iter().all(|count| *count < 2 * mean), "mean {mean}: {bins:?}");
    until("all are back", async || {
        let mut back = 0;
        for store in &stores {
            back += usize::from(usable(store).await);
        }
        back == stores.len()
    })
    .await;
}

/// Case 9. Replies are shifted by one, as a fault in the client or a server could do: each body would be somebody
/// else's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_reply_never_reaches_anybody() {
    let metrics = snapshotter();
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr());
    let store = connect(&proxy.url()).await;
    for number in 0..64 {
        put(&store, &key_of(number), text(number)).await;
    }
    let before = proxy.connections();
    proxy.inject_every(100, b"$6\r\nPOISON\r\n");
    let mut readers = JoinSet::new();
    for reader in 0..64_usize {
        let store = store.clone();
        readers.spawn(async move {
            let (mut right, mut refused) = (0, 0);
            for round in 0..150 {
                let number = (reader + round) % 64;
                match body(&store, &key_of(number)).await {
                    Ok(Some(found)) => {
                        assert_eq!(found, text(number), "the body of another key");
                        right += 1;
                    }
                    Ok(None) | Err(_) => refused += 1,
                }
                if round % 10 == 0 {
                    // A claim of what is there finds just that, or fails.
                    match store.claim(&key_of(number), Seen::Absent).await {
                        Ok(Claim::Found(found, _)) => {
                            assert_eq!(body_of(&found), Some(text(number)), "the body of another key");
                        }
                        Ok(Claim::Granted(ticket)) => panic!("{ticket:?} of an entry that is there"),
                        _ => {}
                    }
                }
                sleep(Duration::from_millis(10)).await;
            }
            (right, refused)
        });
    }
    let (mut right, mut refused) = (0, 0);
    while let Some(counts) = readers.join_next().await {
        let counts = counts.expect("no wrong body");
        (right, refused) = (right + counts.0, refused + counts.1);
    }
    assert!(right > 500 && refused > 100, "{right} right, {refused} refused");
    let measured = metrics.snapshot().into_vec();
    assert!(count(&measured, "larder.redis.foreign_replies") > 0);
    assert!(count(&measured, "larder.redis.errors") > 0);
    assert!(count(&measured, "larder.redis.duration") > 1_000);
    assert!(proxy.connections() > before, "the connection was made anew");
    proxy.pass();
    until("replies are trusted again", async || body(&store, &key_of(1)).await == Ok(Some(text(1)))).await;
}

/// Case 10.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_request_left_behind_in_an_outage_is_not_done_after_it() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await;
    let key = key("a");
    let ticket = claim(&store, &key).await;
    server.stop();
    let fill = store.fill(ticket, filling(&key, &entry(&store, "old")));
    assert!(tokio::time::timeout(Duration::from_millis(20), fill).await.is_err(), "its caller goes");
    for number in 0..20 {
        let (claim_key, patience) = (key_of(number), Duration::from_millis(5));
        let claim = store.claim(&claim_key, Seen::Absent);
        assert!(tokio::time::timeout(patience, claim).await.is_err(), "its caller goes");
    }
    sleep(Duration::from_millis(3_100)).await;
    server.cont();
    until("Redis is used again", async || usable(&store).await).await;
    sleep(Duration::from_millis(300)).await;
    assert_eq!(body(&store, &key).await, Ok(None), "its ticket had run out");
    for number in 0..20 {
        assert!(matches!(store.claim(&key_of(number), Seen::Absent).await, Ok(Claim::Granted(_))), "{number}");
    }
}

/// Case 23.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demoted_master_is_read_from_and_written_to_when_it_is_back() {
    let (server, master) = (RedisServer::start(), RedisServer::start());
    let store = connect(&server.url()).await;
    // So that the replica has it too when it has synchronised.
    put(&connect(&master.url()).await, &key("a"), "x").await;
    let port = master.port().to_string();
    server.cli(&["REPLICAOF", "127.0.0.1", &port]);
    until("it has synchronised", async || server.cli(&["EXISTS", &key("a").name()]) == "1").await;
    until("it is used again", async || usable(&store).await).await;
    let (mut reads, mut refused) = (Vec::new(), 0);
    for number in 0..100 {
        let asked = Instant::now();
        let read = body(&store, &key("a")).await;
        reads.push((asked.elapsed(), read.is_ok_and(|body| body.is_some())));
        refused += usize::from(matches!(store.claim(&key_of(number), Seen::Absent).await, Err(StoreError::Refused(_))));
        sleep(Duration::from_millis(10)).await;
    }
    let well = reads.iter().filter(|(took, hit)| *hit && *took < Duration::from_millis(5)).count();
    assert!(well >= 90 && refused >= 90, "{well} of 100 reads were well, {refused} claims were refused");
    server.cli(&["REPLICAOF", "NO", "ONE"]);
    let claimed = async || matches!(store.claim(&key("b"), Seen::Absent).await, Ok(Claim::Granted(_)));
    let took = until("it is written to again", claimed).await;
    assert!(took < Duration::from_secs(2), "{took:?}");
}

/// Case 25.
#[tokio::test]
async fn a_full_server_still_answers_reads() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await;
    put(&store, &key("a"), "x").await;
    let ticket = claim(&store, &key("b")).await;
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let large = claim_error(&store, &key("c")).await;
    assert!(matches!(large, StoreError::OutOfMemory(_)), "{large:?}");
    for body in [vec![0; 10], vec![0; 100_000]] {
        let ticket =
            Ticket { key: ticket.key.clone(), nonce: ticket.nonce, born: ticket.born, kind: TicketKind::Fetch };
        let filled = store.fill(ticket, filling(&key("b"), &entry(&store, body))).await;
        assert!(matches!(filled, Err(StoreError::OutOfMemory(_)) | Ok(Filled::Voided)), "{filled:?}");
    }
    assert_eq!(body(&store, &key("a")).await, Ok(Some(Bytes::from_static(b"x"))));
    assert_eq!(purge(&store, &key("a")).await, Ok(1), "what is wrong can be removed");
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    put(&store, &key("a"), "y").await;
}

async fn claim_error(store: &RedisStore, key: &EntryKey) -> StoreError {
    store.claim(key, Seen::Absent).await.expect_err("nothing can be stored")
}

/// The password is changed while the store is connected, and changed back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_changes_is_an_outage_until_it_is_right_again() {
    let mut server = RedisServer::builder().password("right").start();
    let url = server.url();
    let store = connect(&url).await;
    server.cli(&["CONFIG", "SET", "requirepass", "other"]);
    let mut connection = larder_tests::Connection::unix(&server.socket_path()).expect("a connection");
    connection.call(&["AUTH", "other"]).expect("a reply").expect("the password");
    connection.call(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]).expect("a reply").expect("a number");
    until("it is noticed", async || !usable(&store).await).await;
    sleep(Duration::from_secs(1)).await;
    assert!(body(&store, &key("a")).await.is_err_and(|error| error.is_outage()));
    server.restart();
    until("it is used again", async || usable(&store).await).await;
}

/// Connecting, losing the connection and connecting again are one line each, however many requests there are.
#[tokio::test]
async fn an_outage_is_logged_once() {
    let (log, _logging) = logging();
    let mut server = RedisServer::builder().arg("--maxmemory", "50mb").arg("--maxmemory-policy", "noeviction").start();
    let store = connect(&server.url()).await;
    until("the check-up is done", async || log.text().contains("noeviction")).await;
    for _ in 0..2 {
        server.kill();
        for _ in 0..300 {
            let _ = body(&store, &key("a")).await;
            sleep(Duration::from_millis(3)).await;
        }
        server.restart();
        until("Redis is used again", async || usable(&store).await).await;
    }
    sleep(Duration::from_millis(100)).await;
    let count =
        |part: &str| log.text().lines().filter(|line| line.contains(part) && line.contains("role=\"data\"")).count();
    assert_eq!((count("lost the connection"), count("connected to Redis")), (2, 3), "{}", log.text());
    assert_eq!(log.text().matches("CONFIG SET maxmemory-policy").count(), 1, "{}", log.text());
}

/// The same for those who ask an app, of all that larder logs: whether Redis is gone or silent.
#[tokio::test]
async fn five_hundred_requests_in_an_outage_are_a_few_lines_in_the_log() {
    for is_silent in [false, true] {
        let (log, _logging) = logging();
        let mut server = RedisServer::start();
        let app = app(&server.url()).await;
        until("a page is a hit", async || x_cache(&app, "/page").await == "HIT").await;
        let before = log.text().len();
        if is_silent {
            server.stop();
        } else {
            server.kill();
        }
        for number in 0..500 {
            assert_ne!(x_cache(&app, &format!("/page-{number}")).await, "HIT");
            sleep(Duration::from_millis(5)).await;
        }
        let during = log.text()[before..].to_owned();
        if is_silent {
            server.cont();
        } else {
            server.restart();
        }
        until("a page is a hit again", async || x_cache(&app, "/page").await == "HIT").await;
        sleep(Duration::from_millis(100)).await;
        let after = log.text()[before + during.len()..].to_owned();
        let warnings = warnings(&during) + warnings(&after);
        assert!(warnings < 20, "{warnings} lines:\n{during}{after}");
        for told in ["lost the connection to Redis", "answering without it"] {
            assert!(during.contains(told), "{told}: {during}");
        }
        for told in ["connected to Redis", "the store answers again"] {
            assert!(after.contains(told), "{told}: {after}");
        }
    }
}

/// What is measured in this process, from its first test on.
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

type Measured = (CompositeKey, Option<Unit>, Option<SharedString>, DebugValue);

/// The sum of the counters of this name, or how often its histograms were written to.
fn count(measured: &[Measured], name: &str) -> u64 {
    let values = measured.iter().filter(|(key, ..)| key.key().name() == name).map(|(.., value)| match value {
        DebugValue::Counter(count) => *count,
        DebugValue::Histogram(values) => values.len() as u64,
        DebugValue::Gauge(_) => 0,
    });
    values.sum()
}
