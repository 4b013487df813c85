//! Instances of one program on one Redis, and their clients.
#![allow(dead_code, reason = "each test file uses what it needs")]

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use larder::{Cache, CacheLayer, Deadlines};
use larder_redis::{RedisConfig, RedisStore};
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
pub(crate) struct Origin {
    pub(crate) calls: Arc<AtomicUsize>,
    pub(crate) cache_control: &'static str,
    pub(crate) takes: Duration,
}

impl Origin {
    pub(crate) fn new(cache_control: &'static str, takes: Duration) -> Self {
        Self { calls: Arc::default(), cache_control, takes }
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

pub(crate) async fn instance(server: &RedisServer) -> CacheLayer {
    instance_at(&server.url()).await
}

pub(crate) async fn instance_at(url: &str) -> CacheLayer {
    // A machine that is busy is no store that is down.
    let patient = Duration::from_secs(2);
    let config = RedisConfig::url(url).expect("a URL").read_timeout(patient).write_timeout(patient);
    let store = RedisStore::connect(config).await.expect("a store");
    let deadlines = Deadlines { read: patient, fill: patient, ..Deadlines::default() };
    let cache = Cache::builder().store(store).deadlines(deadlines).store_budget(patient);
    cache.build().expect("a cache").layer()
}

/// What one client is answered: `Cache-Status`, the body, and when.
pub(crate) async fn ask(layer: CacheLayer, origin: Origin, path: &'static str) -> (String, String, Instant) {
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
pub(crate) async fn all(
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
pub(crate) fn forwarded(answers: &[Vec<(String, String, Instant)>]) -> Vec<&str> {
    let all = answers.iter().flatten().map(|answer| answer.0.as_str());
    all.filter(|status| status.contains("fwd-status")).collect()
}
