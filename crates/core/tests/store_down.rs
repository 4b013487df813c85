//! A store that fails: the budget, the circuit breaker, and what requests see of it.
#![cfg(feature = "testing")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use larder::{
    Cache, CacheLayer, MemoryStore, StoreError,
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
use tokio::time::Instant;
use tower::{Layer, ServiceExt, service_fn};

const BUDGET: Duration = Duration::from_millis(100);

fn cached() -> (Faulty<MemoryStore>, CacheLayer) {
    let store = Faulty::new(MemoryStore::default());
    let cache = Cache::builder().store(store.clone()).build().unwrap();
    (store, cache.layer())
}

/// X-Cache, the detail in Cache-Status, and how long it took.
async fn get(layer: &CacheLayer, path: &str) -> (String, String, Duration) {
    let origin = service_fn(|_: Request<Empty<Bytes>>| async {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"page"))))
    });
    let began = Instant::now();
    let request = Request::builder().uri(path).body(Empty::<Bytes>::new()).unwrap();
    let (head, body) = layer.layer(origin).oneshot(request).await.unwrap().into_parts();
    assert_eq!(body.collect().await.unwrap().to_bytes(), "page");
    let text = |name: &str| head.headers[name].to_str().unwrap().to_owned();
    let detail = text("cache-status").rsplit("detail=").next().unwrap().to_owned();
    (text("x-cache"), detail, began.elapsed())
}

fn unavailable() -> StoreError {
    StoreError::Unavailable("closed".to_owned())
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
