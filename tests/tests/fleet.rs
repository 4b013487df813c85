//! Several instances on one Redis: one of them asks the origin, the others wait for what it brings.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use larder::{Cache, CacheLayer, Deadlines};
use larder_redis::RedisStore;
use larder_tests::RedisServer;
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tower::{Layer, ServiceExt};

/// What an origin answers: `Cache-Control`, and how long it takes.
#[derive(Clone)]
struct Origin {
    calls: Arc<AtomicUsize>,
    cache_control: &'static str,
    takes: Duration,
}

impl Origin {
    fn new(cache_control: &'static str, takes: Duration) -> Self {
        Self { calls: Arc::default(), cache_control, takes }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

async fn instance(server: &RedisServer) -> CacheLayer {
    let store = RedisStore::connect(server.url().as_str()).await.expect("a store");
    // A machine that is busy is no store that is down.
    let patient = Duration::from_secs(2);
    let deadlines = Deadlines { read: patient, fill: patient, ..Deadlines::default() };
    let cache = Cache::builder().store(store).deadlines(deadlines).store_budget(patient);
    cache.build().expect("a cache").layer()
}

/// What one client is answered: `Cache-Status`, the body, and when.
async fn ask(layer: CacheLayer, origin: Origin, path: &'static str) -> (String, String, Instant) {
    let service = layer.layer(tower::service_fn(move |_: Request<Empty<Bytes>>| {
        let origin = origin.clone();
        async move {
            let call = origin.calls.fetch_add(1, Ordering::SeqCst) + 1;
            tokio::time::sleep(origin.takes).await;
            let response = Response::builder().header("cache-control", origin.cache_control);
            Ok::<_, Infallible>(response.body(Full::new(Bytes::from(call.to_string()))).expect("a response"))
        }
    }));
    let request = Request::builder().uri(path).header("host", "h").body(Empty::<Bytes>::new()).expect("a request");
    let response = service.oneshot(request).await.expect("an answer");
    let status = response.headers()["cache-status"].to_str().expect("ASCII").to_owned();
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    (status, String::from_utf8(body.to_vec()).expect("digits"), Instant::now())
}

/// What `each` clients of each instance are answered who ask at the same time.
async fn all(
    layers: &[CacheLayer],
    each: usize,
    origin: &Origin,
    path: &'static str,
) -> Vec<Vec<(String, String, Instant)>> {
    let tasks: Vec<Vec<_>> = layers
        .iter()
        .map(|layer| (0..each).map(|_| tokio::spawn(ask(layer.clone(), origin.clone(), path))).collect())
        .collect();
    let mut answers = Vec::new();
    for of_one in tasks {
        let mut these = Vec::new();
        for task in of_one {
            these.push(task.await.expect("an answer"));
        }
        answers.push(these);
    }
    answers
}

/// What is told of those that went to the origin.
fn forwarded(answers: &[Vec<(String, String, Instant)>]) -> Vec<&str> {
    let all = answers.iter().flatten().map(|answer| answer.0.as_str());
    all.filter(|status| status.contains("fwd-status")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn n_instances_cold_key_one_call() {
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

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_not_stored_is_waited_for_once() {
    let server = RedisServer::start();
    let layers = [instance(&server).await, instance(&server).await];
    let origin = Origin::new("no-store", Duration::from_millis(300));
    let began = Instant::now();
    let answers = all(&layers, 20, &origin, "/private").await;
    assert_eq!(origin.calls(), 40, "each gets its own");
    let last = answers.iter().flatten().map(|answer| answer.2).max().expect("some");
    assert!(last - began < Duration::from_millis(1_500), "two in a row, and not forty: {:?}", last - began);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_holds_the_ticket_and_hangs_is_waited_for_five_seconds() {
    let server = RedisServer::start();
    let layers = [instance(&server).await, instance(&server).await];
    let hangs = Origin::new("max-age=60", Duration::from_secs(3600));
    let hanging = tokio::spawn(ask(layers[0].clone(), hangs.clone(), "/slow"));
    while hangs.calls() == 0 {
        tokio::task::yield_now().await;
    }
    let origin = Origin::new("max-age=60", Duration::from_millis(100));
    let began = Instant::now();
    let answers = all(&layers[1..], 50, &origin, "/slow").await;
    let took = began.elapsed();
    assert_eq!(origin.calls(), 1, "one goes, and the rest follow it: {:?}", forwarded(&answers));
    assert!(took >= Duration::from_millis(4_700) && took < Duration::from_millis(5_500), "{took:?}");
    assert_eq!(answers[0].iter().filter(|answer| answer.0.contains("lock-timeout")).count(), 1);
    hanging.abort();
}
