//! A store that fails: the budget, the circuit breaker, and what requests see of it.
#![cfg(feature = "testing")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use larder::{
    Cache, CacheLayer, Deadlines, Guard, Key, MemoryStore, Policy, Purge, Store, StoreError,
    semantics::Namespace,
    store::{Claim, Seen, Unused},
    testing::{Fault, Faulty},
};
use metrics_util::{
    CompositeKey,
    debugging::{DebugValue, DebuggingRecorder},
};
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{task::JoinSet, time::Instant};
use tower::{Layer, ServiceExt, service_fn};

const BUDGET: Duration = Duration::from_millis(100);

fn cached() -> (Faulty<MemoryStore>, CacheLayer) {
    let store = Faulty::new(MemoryStore::default());
    let cache = Cache::builder().store(store.clone()).build().unwrap();
    (store, cache.layer())
}

/// X-Cache, the detail in Cache-Status, and how long it took.
async fn get(layer: &CacheLayer, path: &str) -> (String, String, Duration) {
    ask(layer, "GET", path, &[]).await
}

/// The same, of a request with another method, and of an answer with these headers.
async fn ask(
    layer: &CacheLayer,
    method: &str,
    path: &str,
    fields: &'static [(&'static str, &'static str)],
) -> (String, String, Duration) {
    let origin = service_fn(|_: Request<Empty<Bytes>>| async {
        let response =
            fields.iter().fold(Response::builder(), |response, (name, value)| response.header(*name, *value));
        Ok::<_, Infallible>(response.body(page()).unwrap())
    });
    let began = Instant::now();
    let request = Request::builder().method(method).uri(path).body(Empty::<Bytes>::new()).unwrap();
    let (head, body) = layer.layer(origin).oneshot(request).await.unwrap().into_parts();
    assert_eq!(body.collect().await.unwrap().to_bytes(), "page");
    let text = |name: &str| head.headers[name].to_str().unwrap().to_owned();
    let detail = text("cache-status").rsplit("detail=").next().unwrap().to_owned();
    (text("x-cache"), detail, began.elapsed())
}

fn page() -> Full<Bytes> {
    Full::new(Bytes::from_static(b"page"))
}

fn unavailable() -> StoreError {
    StoreError::Unavailable("closed".to_owned())
}

/// A crowd of which too many read at once: nobody goes to the origin for what is stored, and one for what has expired.
#[tokio::test(start_paused = true)]
async fn what_is_found_by_who_could_only_claim_is_for_all_who_follow() {
    const FRESH: &[(&str, &str)] = &[("cache-control", "max-age=60")];
    const VARIES: &[(&str, &str)] = &[("cache-control", "max-age=60"), ("vary", "accept-language")];
    const EXPIRED: &[(&str, &str)] = &[("cache-control", "max-age=1"), ("etag", "\"1\"")];
    for (path, fields, operations, asked) in [("/a", FRESH, 101, 0), ("/b", VARIES, 202, 0), ("/c", EXPIRED, 103, 1)] {
        let (store, layer) = cached();
        assert_eq!(ask(&layer, "GET", path, fields).await.0, "MISS");
        tokio::time::advance(Duration::from_secs(2)).await;
        let before = store.operations();
        store.set(Fault::RefusesReads(StoreError::Busy));
        let (mut crowd, calls) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
        for _ in 0..100 {
            let calls = calls.clone();
            let origin = service_fn(move |request: Request<Empty<Bytes>>| {
                calls.fetch_add(1, Ordering::SeqCst);
                let held = request.headers().get("if-none-match").cloned();
                async move {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    assert_eq!(held.expect("what is held"), "\"1\"");
                    let response = Response::builder().status(304).header("etag", "\"1\"");
                    Ok::<_, Infallible>(response.header("cache-control", "max-age=60").body(page()).unwrap())
                }
            });
            crowd.spawn(layer.layer(origin).oneshot(Request::get(path).body(Empty::<Bytes>::new()).unwrap()));
        }
        let answers = crowd.join_all().await.into_iter().map(|answer| answer.unwrap().headers()["x-cache"].clone());
        let answers: Vec<_> = answers.collect();
        let hits = answers.iter().filter(|answer| *answer == "HIT").count();
        assert_eq!(
            (hits, calls.load(Ordering::SeqCst)),
            (if asked == 0 { 100 } else { 0 }, asked),
            "{path}: {answers:?}"
        );
        // A read for each and every step, and a claim; and the fill of what the origin confirms.
        assert_eq!(store.operations() - before, operations, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_that_a_store_costs_is_bounded_until_the_breaker_opens_and_none_after() {
    for fault in [Fault::Fails(unavailable()), Fault::Hangs, Fault::Dawdles(Duration::from_millis(80))] {
        let (store, layer) = cached();
        assert_eq!(get(&layer, "/a").await.0, "MISS");
        assert_eq!(get(&layer, "/a").await.0, "HIT");
        store.set(fault.clone());
        let mut asked = 0;
        loop {
            let (x_cache, detail, took) = get(&layer, "/a").await;
            assert!(took <= BUDGET, "{fault:?}: {took:?}");
            if (x_cache.as_str(), detail.as_str()) == ("BYPASS", "breaker-open") {
                break assert_eq!(took, Duration::ZERO);
            }
            asked += 1;
            assert!(asked <= 20, "{fault:?}: it never opens");
        }
        if matches!(fault, Fault::Fails(_)) {
            assert_eq!(asked, 5);
        }
    }
}

/// Whether the promise is as long as the deadline, shorter, or too long to go without a timer.
#[tokio::test(start_paused = true)]
async fn a_read_that_is_woken_and_not_done_has_the_rest_of_its_deadline() {
    for promised in [1, 40, 99, 100, 101, 60_000] {
        let store = Faulty::new(MemoryStore::default()).waking(Duration::from_millis(promised));
        let layer = Cache::builder().store(store.clone()).build().unwrap().layer();
        get(&layer, "/a").await;
        assert_eq!(get(&layer, "/a").await.0, "HIT");
        store.set(Fault::Hangs);
        let (x_cache, detail, took) = get(&layer, "/a").await;
        assert_eq!((x_cache.as_str(), detail.as_str(), took), ("BYPASS", "store-timeout", BUDGET), "{promised}");
    }
}

/// A hit on a variant reads its rule first; a miss reads, and then claims; one on a variant does all three.
#[tokio::test(start_paused = true)]
async fn what_a_request_waits_for_the_store_adds_up_to_its_budget_and_no_more() {
    const VARIES: &[(&str, &str)] = &[("vary", "accept-language")];
    let millis = Duration::from_millis;
    let cases = [
        // What each operation takes, the budget, what is asked for, and what comes of it after how long.
        (millis(30), BUDGET, "/plain", "HIT", "near", millis(30)),
        (millis(30), BUDGET, "/varies", "HIT", "near", millis(60)),
        (millis(60), BUDGET, "/varies", "BYPASS", "store-timeout", BUDGET),
        (millis(99), BUDGET, "/varies", "BYPASS", "store-timeout", BUDGET),
        (millis(30), BUDGET, "/new", "MISS", "never", millis(60)),
        (millis(60), BUDGET, "/new", "MISS", "store-refused", BUDGET),
        (millis(99), BUDGET, "/new", "MISS", "store-refused", BUDGET),
        (millis(30), BUDGET, "/expires", "EXPIRED", "expired", millis(90)),
        (millis(40), BUDGET, "/expires", "EXPIRED", "store-refused", BUDGET),
        (millis(30), millis(50), "/varies", "BYPASS", "store-timeout", millis(50)),
        (millis(30), millis(50), "/new", "MISS", "store-refused", millis(50)),
        (millis(60), millis(50), "/plain", "BYPASS", "store-timeout", millis(50)),
        // Each operation has its own deadline of 100 ms beside.
        (millis(90), millis(250), "/varies", "HIT", "near", millis(180)),
        (millis(120), millis(250), "/plain", "BYPASS", "store-timeout", millis(100)),
    ];
    for (takes, budget, path, x_cache, detail, took) in cases {
        let store = Faulty::new(MemoryStore::default());
        let layer = Cache::builder().store(store.clone()).store_budget(budget).build().unwrap().layer();
        ask(&layer, "GET", "/plain", &[]).await;
        ask(&layer, "GET", "/varies", VARIES).await;
        ask(&layer, "GET", "/expires", &[("vary", "accept-language"), ("cache-control", "max-age=1")]).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        store.set(Fault::Dawdles(takes));
        let answer = get(&layer, path).await;
        assert_eq!(answer, (x_cache.to_owned(), detail.to_owned(), took), "{takes:?} of {budget:?}: {path}");
    }
}

/// A POST whose answer may be stored for GET claims before the origin is asked, and takes the place of what is stored after.
#[tokio::test(start_paused = true)]
async fn so_it_is_for_requests_that_change_something() {
    const FOR_GET: &[(&str, &str)] = &[("cache-control", "max-age=60"), ("content-location", "/a")];
    for method in ["POST", "DELETE"] {
        for (takes, budget) in [(60, 100), (99, 100), (60_000, 100), (30, 50), (60_000, 50)]
            .map(|(takes, budget)| (Duration::from_millis(takes), Duration::from_millis(budget)))
        {
            let store = Faulty::new(MemoryStore::default());
            let cache = Cache::builder().store(store.clone()).store_budget(budget).build().unwrap();
            let layer = CacheLayer::with_policy(cache, Policy::shared_cache());
            store.set(Fault::Dawdles(takes));
            let took = ask(&layer, method, "/a", FOR_GET).await.2;
            assert!(took <= budget, "{method} waits {took:?} of {budget:?} for a store that takes {takes:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn layers_within_each_other_share_one_budget() {
    for (method, takes) in [("GET", 60), ("GET", 60_000), ("POST", 60), ("POST", 60_000), ("DELETE", 60_000)] {
        let store = Faulty::new(MemoryStore::default());
        let cache = Cache::builder().store(store.clone()).build().unwrap();
        let layer = CacheLayer::with_policy(cache, Policy::shared_cache());
        let origin = service_fn(|_: Request<Empty<Bytes>>| async {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"page"))))
        });
        store.set(Fault::Dawdles(Duration::from_millis(takes)));
        let began = Instant::now();
        let request = Request::builder().method(method).uri("/a").body(Empty::<Bytes>::new()).unwrap();
        let response =
            layer.clone().key("outer").layer(layer.key("inner").layer(origin)).oneshot(request).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "page");
        assert!(began.elapsed() <= BUDGET, "{method}, {takes} ms: {:?}", began.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_hangs_is_given_up_at_its_deadline() {
    let short = Deadlines { read: Duration::from_millis(3), fill: Duration::from_millis(5), purge: BUDGET };
    for deadlines in [Deadlines::default(), short] {
        let store = Faulty::new(MemoryStore::default());
        let guard = Guard::new(store.clone(), deadlines);
        let key = Namespace::default().entry(Key::new("a"));
        let ticket = async || {
            store.set(Fault::None);
            let Ok(Claim::Granted(ticket)) = guard.claim(&key, Seen::Absent).await else { panic!("it is free") };
            store.set(Fault::Hangs);
            (ticket, Instant::now())
        };
        let (unused, began) = ticket().await;
        assert_eq!(guard.get(&key).await.unwrap_err(), StoreError::Timeout);
        assert_eq!(began.elapsed(), deadlines.read);
        let began = Instant::now();
        assert_eq!(guard.claim(&key, Seen::Absent).await.unwrap_err(), StoreError::Timeout);
        assert_eq!(began.elapsed(), deadlines.read);
        let began = Instant::now();
        assert_eq!(guard.renew(&unused).await, Err(StoreError::Timeout));
        assert_eq!(began.elapsed(), deadlines.fill);
        store.set(Fault::None);
        guard.release(unused, Unused::NoAnswer).await.unwrap();
        let (unused, began) = ticket().await;
        assert_eq!(guard.release(unused, Unused::NoAnswer).await, Err(StoreError::Timeout));
        assert_eq!(began.elapsed(), deadlines.fill);
        let began = Instant::now();
        let purged = guard.purge(&key.namespace, &Purge::key("a")).await;
        assert_eq!((purged.unwrap_err(), began.elapsed()), (StoreError::Timeout, deadlines.purge));
    }
}

/// The client has its answer at once; the store has a quarter of a second for it.
#[test]
fn a_fill_that_hangs_is_given_up_after_its_deadline_and_its_client_does_not_wait() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    // Outcome and reason of what was counted since this was last asked.
    let stored = || {
        let mut counted = Vec::new();
        for (key, _, _, value) in snapshotter.snapshot().into_vec() {
            let key: CompositeKey = key;
            let label = |name| key.key().labels().find(|label| label.key() == name).unwrap().value().to_owned();
            if let ("larder.store", DebugValue::Counter(count @ 1..)) = (key.key().name(), value) {
                counted.push((label("outcome"), label("reason"), count));
            }
        }
        counted
    };
    let once = |outcome: &str, reason: &str| vec![(outcome.to_owned(), reason.to_owned(), 1)];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async {
            let store = Faulty::new(MemoryStore::default());
            let cache = Cache::builder().store(store.clone()).build().unwrap();
            let layer = cache.layer();
            let dawdles = |millis| Fault::Dawdles(Duration::from_millis(millis));
            for (path, fault, ends_after, outcome) in [
                ("/a", dawdles(249), 249, once("stored", "stored")),
                ("/b", dawdles(251), 250, once("skipped", "store-refused")),
                ("/c", Fault::Hangs, 250, once("skipped", "store-refused")),
            ] {
                // The fault begins between the claim and the fill.
                let faulty = store.clone();
                let origin = service_fn(move |_: Request<Empty<Bytes>>| {
                    faulty.set(fault.clone());
                    async { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"page")))) }
                });
                let (began, request) = (Instant::now(), Request::builder().uri(path).body(Empty::new()).unwrap());
                let response = layer.layer(origin).oneshot(request).await.unwrap();
                assert_eq!(response.headers()["x-cache"], "MISS");
                assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "page");
                assert_eq!(began.elapsed(), Duration::ZERO, "{path}");
                tokio::time::sleep(Duration::from_millis(ends_after - 1)).await;
                assert_eq!(stored(), [], "{path}");
                assert_eq!(cache.drain(Duration::from_secs(1)).await, 0);
                assert_eq!((began.elapsed(), stored()), (Duration::from_millis(ends_after), outcome), "{path}");
                store.set(Fault::None);
            }
        });
    });
}

#[tokio::test(start_paused = true)]
async fn it_is_asked_again_when_a_probe_succeeds_and_at_once_when_it_reconnects() {
    let (store, layer) = cached();
    get(&layer, "/a").await;
    for reconnects in [false, true] {
        store.set(Fault::Fails(unavailable()));
        while get(&layer, "/a").await.1 != "breaker-open" {}
        let operations = store.operations();
        // A dead store is left alone, but for the probes.
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(get(&layer, "/a").await.1, "breaker-open");
        }
        assert_eq!(store.operations(), operations);
        store.set(Fault::None);
        let began = Instant::now();
        if reconnects {
            store.reconnect();
        }
        while get(&layer, "/a").await.0 != "HIT" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let limit = Duration::from_millis(if reconnects { 20 } else { 3_100 });
        assert!(began.elapsed() <= limit, "{:?}", began.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_without_memory_left_still_answers() {
    let (store, layer) = cached();
    get(&layer, "/a").await;
    store.set(Fault::RefusesWrites(StoreError::OutOfMemory("OOM".to_owned())));
    for n in 0..20 {
        assert_eq!(get(&layer, &format!("/new/{n}")).await.0, "MISS");
        assert_eq!(get(&layer, "/a").await.0, "HIT");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_only_busy_is_asked_again() {
    let (store, layer) = cached();
    get(&layer, "/a").await;
    store.set(Fault::Fails(StoreError::Busy));
    for _ in 0..50 {
        assert_eq!(get(&layer, "/a").await.1, "store-busy");
    }
    store.set(Fault::None);
    assert_eq!(get(&layer, "/a").await.0, "HIT");
}

/// It has not looked for the answers, and cannot tell that there were none.
#[tokio::test(start_paused = true)]
async fn a_process_that_stalls_does_not_blame_the_store() {
    let deadlines = Deadlines::default();
    for (stalls, error) in [(Duration::from_secs(1), StoreError::Busy), (Duration::ZERO, StoreError::Timeout)] {
        let store = Faulty::new(MemoryStore::default());
        let guard = Arc::new(Guard::new(store.clone(), deadlines));
        store.set(Fault::Hangs);
        let mut reads = JoinSet::new();
        for n in 0..20 {
            let (guard, key) = (guard.clone(), Namespace::default().entry(Key::new(&format!("a:{n}"))));
            reads.spawn(async move { guard.get(&key).await });
        }
        tokio::task::yield_now().await;
        tokio::time::advance(deadlines.read + stalls).await;
        assert!(reads.join_all().await.into_iter().all(|read| read.unwrap_err() == error), "{stalls:?}");
        store.set(Fault::None);
        let read = guard.get(&Namespace::default().entry(Key::new("b"))).await;
        let is_asked = !matches!(read, Err(StoreError::BreakerOpen));
        assert_eq!(is_asked, error == StoreError::Busy, "{read:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_part_of_a_store_that_fails_is_no_reason_not_to_ask_the_others() {
    let store = Faulty::new(MemoryStore::default()).divided();
    let layer = Cache::builder().store(store.clone()).build().unwrap().layer();
    get(&layer, "/a").await;
    for (fault, detail) in [(Fault::Fails(unavailable()), "store-down"), (Fault::Hangs, "store-timeout")] {
        store.set(fault);
        for _ in 0..50 {
            let (x_cache, told, took) = get(&layer, "/a").await;
            assert_eq!((x_cache.as_str(), told.as_str()), ("BYPASS", detail));
            assert!(took <= BUDGET, "{took:?}");
        }
        store.set(Fault::None);
        assert_eq!(get(&layer, "/a").await.0, "HIT", "at once: it was never given up");
    }
}

#[tokio::test(start_paused = true)]
async fn requests_that_their_clients_give_up_do_not_open_the_breaker() {
    let (store, layer) = cached();
    get(&layer, "/a").await;
    store.set(Fault::Dawdles(Duration::from_millis(40)));
    for _ in 0..50 {
        assert!(tokio::time::timeout(Duration::from_millis(10), get(&layer, "/a")).await.is_err());
    }
    store.set(Fault::None);
    assert_eq!(get(&layer, "/a").await.0, "HIT");
}

#[test]
fn a_breaker_tells_its_state_and_how_often_it_changed() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    // The state, and what changed since this was last asked.
    let told = || {
        let mut told: Vec<(String, f64)> = Vec::new();
        for (key, _, _, value) in snapshotter.snapshot().into_vec() {
            let key: CompositeKey = key;
            let label =
                |name| key.key().labels().find(|label| label.key() == name).map(|label| label.value().to_owned());
            match (key.key().name(), label("breaker").as_deref(), value) {
                ("larder.breaker.state", Some("read"), DebugValue::Gauge(state)) => {
                    told.push(("state".into(), state.0));
                }
                ("larder.breaker.transitions", Some("read"), DebugValue::Counter(times)) => {
                    told.push((label("to").unwrap(), times as f64));
                }
                _ => {}
            }
        }
        told.retain(|(_, value)| *value > 0.0);
        told.sort_by(|a, b| a.0.cmp(&b.0));
        told
    };
    let of = |told: &[(&str, f64)]| told.iter().map(|(word, value)| ((*word).to_owned(), *value)).collect::<Vec<_>>();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async {
            let (store, layer) = cached();
            store.set(Fault::Fails(unavailable()));
            for _ in 0..6 {
                get(&layer, "/a").await;
            }
            assert_eq!(told(), of(&[("open", 1.0), ("state", 2.0)]));
            store.set(Fault::None);
            tokio::time::sleep(Duration::from_secs(4)).await;
            get(&layer, "/a").await;
            assert_eq!(told(), of(&[("closed", 1.0), ("half-open", 1.0)]), "and the state is zero");
        });
    });
}

#[tokio::test(start_paused = true)]
async fn without_a_store_one_request_still_fetches_for_many() {
    let (store, layer) = cached();
    store.set(Fault::Fails(unavailable()));
    while get(&layer, "/a").await.1 != "breaker-open" {}
    let calls = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let (layer, calls) = (layer.clone(), calls.clone());
            tokio::spawn(async move {
                let origin = service_fn(move |_: Request<Empty<Bytes>>| {
                    let calls = calls.clone();
                    async move {
                        calls.fetch_add(1, Ordering::SeqCst);
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"page"))))
                    }
                });
                let response = layer
                    .layer(origin)
                    .oneshot(Request::builder().uri("/a").body(Empty::<Bytes>::new()).unwrap())
                    .await
                    .unwrap();
                response.headers()["x-cache"].to_str().unwrap().to_owned()
            })
        })
        .collect();
    let mut verdicts = Vec::new();
    for task in tasks {
        verdicts.push(task.await.unwrap());
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(verdicts.iter().filter(|verdict| *verdict == "BYPASS").count(), 1, "{verdicts:?}");
}
