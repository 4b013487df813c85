//! Clients who go on asking a cache, and what each of their requests came to.
#![allow(dead_code, reason = "no file uses all of it")]

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use larder::{Cache, CacheLayer};
use larder_redis::{RedisConfig, RedisStore};
use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{task::JoinHandle, time::sleep};
use tower::{Layer, ServiceExt};

/// One request, and its answer.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) at: Instant,
    pub(crate) took: Duration,
    pub(crate) path: String,
    /// `X-Cache`.
    pub(crate) word: String,
    /// `Cache-Status`.
    pub(crate) status: String,
}

impl Asked {
    pub(crate) fn is_hit(&self) -> bool {
        self.word == "HIT"
    }
}

/// A cache on a store, without a tier of its own in front, so that every hit comes from Redis.
pub(crate) async fn layer(config: RedisConfig) -> CacheLayer {
    let store = RedisStore::connect(config).await.expect("a store");
    Cache::builder().store(store).build().expect("a cache").layer()
}

/// Asks for a path, and panics if the answer is any but the origin's.
pub(crate) async fn ask(layer: &CacheLayer, path: &str) -> (Asked, String) {
    let origin = layer.clone().layer(tower::service_fn(|request: Request<Empty<Bytes>>| async move {
        let body = format!("the body of {}", request.uri().path());
        let response = Response::builder().header("cache-control", "max-age=600");
        Ok::<_, Infallible>(response.body(Full::new(Bytes::from(body))).expect("a response"))
    }));
    let request = Request::builder().uri(path).header("host", "h").body(Empty::<Bytes>::new()).expect("a request");
    let at = Instant::now();
    let response = origin.oneshot(request).await.expect("the layer has no error of its own");
    let header = |name| {
        let value = response.headers().get(name).map(|value| value.to_str().expect("ASCII"));
        value.unwrap_or_default().to_owned()
    };
    let (word, status, key) = (header("x-cache"), header("cache-status"), header("x-cache-key"));
    assert_eq!(response.status(), 200, "{path}: {status}");
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    assert_eq!(body, format!("the body of {path}"), "{status}");
    (Asked { at, took: at.elapsed(), path: path.to_owned(), word, status }, key)
}

/// Asks for paths until each is a hit, and returns the key of each.
pub(crate) async fn warm(layer: &CacheLayer, paths: &[String]) -> BTreeMap<String, String> {
    let mut keys = BTreeMap::new();
    for path in paths {
        let began = Instant::now();
        loop {
            let (asked, key) = ask(layer, path).await;
            if asked.is_hit() {
                keys.insert(path.clone(), key);
                break;
            }
            assert!(began.elapsed() < Duration::from_secs(10), "it does not become a hit: {asked:?}");
            sleep(Duration::from_millis(2)).await;
        }
    }
    keys
}

/// Clients who ask for one of the paths every few milliseconds.
pub(crate) struct Load {
    ended: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<Asked>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    pub(crate) fn begin(layer: &CacheLayer, paths: &[String], clients: usize) -> Self {
        let (ended, asked) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let client = |_| {
            let (layer, paths, ended, asked) = (layer.clone(), paths.to_vec(), Arc::clone(&ended), Arc::clone(&asked));
            tokio::spawn(async move {
                while !ended.load(Ordering::Relaxed) {
                    let path = fastrand::choice(&paths).expect("some path");
                    let (this, _) = ask(&layer, path).await;
                    let asked: &Mutex<Vec<Asked>> = &asked;
                    asked.lock().expect("no panic holds it").push(this);
                    sleep(Duration::from_millis(2)).await;
                }
            })
        };
        let clients = (0..clients).map(client).collect();
        Self { ended, asked, clients }
    }

    /// What was asked so far.
    pub(crate) fn so_far(&self) -> Vec<Asked> {
        self.asked.lock().expect("no panic holds it").clone()
    }

    /// Waits until so many requests were answered in all; panics after fifteen seconds.
    pub(crate) async fn until_asked(&self, count: usize) {
        let began = Instant::now();
        while self.so_far().len() < count {
            assert!(began.elapsed() < Duration::from_secs(15), "{} of {count} were asked", self.so_far().len());
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends it, and returns everything; a client's panic is this test's.
    pub(crate) async fn end(self) -> Vec<Asked> {
        self.ended.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.expect("no request fails");
        }
        let asked = self.asked.lock().expect("no panic holds it").clone();
        assert!(!asked.is_empty(), "somebody asked");
        asked
    }
}

/// Waits until the last twenty requests for what `which` holds for were hits, and returns how long after `since` the first of
/// them was asked; panics after fifteen seconds.
pub(crate) async fn until_hits(load: &Load, since: Instant, which: impl Fn(&Asked) -> bool) -> Duration {
    let began = Instant::now();
    loop {
        let asked = load.so_far();
        let mut last = asked.iter().filter(|asked| asked.at > since && which(asked)).rev().take(20);
        let hits: Vec<&Asked> = last.by_ref().take_while(|asked| asked.is_hit()).collect();
        if hits.len() == 20 {
            // The first of the whole row of hits.
            let row =
                asked.iter().filter(|asked| asked.at > since && which(asked)).rev().take_while(|asked| asked.is_hit());
            return row.map(|asked| asked.at).min().map_or(Duration::ZERO, |first| first - since);
        }
        let latest = asked.iter().rev().filter(|asked| which(asked)).take(3).collect::<Vec<_>>();
        assert!(began.elapsed() < Duration::from_secs(15), "fifteen seconds, and no hits again: {latest:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// How many requests came to each `Cache-Status`, without what differs between requests.
pub(crate) fn outcomes<'a>(asked: impl IntoIterator<Item = &'a Asked>) -> BTreeMap<String, usize> {
    let mut outcomes = BTreeMap::new();
    for asked in asked {
        let parts = asked.status.split("; ").filter(|part| !part.starts_with("ttl=") && !part.starts_with("key="));
        *outcomes.entry(parts.collect::<Vec<_>>().join("; ")).or_insert(0) += 1;
    }
    outcomes
}
