//! A hit in Redis, next to the bare client's GET of the same bytes.

use crate::hit;
use bytes::Bytes;
use fred::{
    bytes_utils::Str,
    prelude::{Builder, ClientLike, Config, KeysInterface, ReconnectPolicy},
};
use http::Uri;
use http_body_util::BodyExt;
use larder::{Cache, CacheService, Deadlines, Ttl};
use larder_redis::RedisStore;
use larder_tests::RedisServer;
use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};
use tower::{Layer, Service};

/// How many pages are stored.
const PAGES: usize = 10_000;

/// Which pages are read at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// All clients read the same one.
    OnePage,
    /// Each client reads one of its own.
    OwnPage,
    /// Each client reads another one each time.
    ManyPages,
}

/// Both sides, over one server and one connection each.
pub struct Sides {
    raw: fred::prelude::Client,
    cached: CacheService<axum::Router>,
    pages: Arc<[Uri]>,
    /// What they are stored under, in any order.
    keys: Arc<[Str]>,
    _server: RedisServer,
}

impl Sides {
    /// Starts a server, and stores the pages that both will read.
    pub async fn start() -> Result<Self, Box<dyn std::error::Error>> {
        let server = RedisServer::builder().open().start();
        let raw = Builder::from_config(Config::from_url(&server.url())?)
            .set_policy(ReconnectPolicy::new_constant(0, 200))
            .build()?;
        raw.init().await?;
        let store = RedisStore::connect(server.url().as_str()).await?;
        // A profiler slows everything down, and a deadline that passes is no hit.
        let patient = Duration::from_secs(5);
        let deadlines = Deadlines { read: patient, fill: patient, purge: patient };
        let cache =
            Cache::builder().store(store).deadlines(deadlines).store_budget(patient).lock_wait(2 * patient).build()?;
        let mut cached = cache.layer().ttl(Ttl::STANDARD).layer(hit::router());
        let mut pages = Vec::with_capacity(PAGES);
        for page in 0..PAGES {
            let uri: Uri = format!("/items/{page}?size=35").parse()?;
            cached.call(hit::request_for(&uri)).await?.into_body().collect().await?;
            pages.push(uri);
        }
        for page in &pages {
            while cached.call(hit::request_for(page)).await?.headers()["x-cache"] != "HIT" {}
        }
        let keys = server.cli(&["KEYS", "*"]);
        let keys: Arc<[Str]> = keys.lines().filter(|key| key.ends_with('}')).map(Str::from).collect();
        if keys.len() != PAGES {
            return Err(format!("{PAGES} pages were read, and {} are stored", keys.len()).into());
        }
        Ok(Self { raw, cached, pages: pages.into(), keys, _server: server })
    }

    /// GETs a second of the bare client.
    pub async fn raw(&self, reading: Reading, tasks: usize, calls: usize) -> f64 {
        each_second(tasks, calls, |task| {
            let (raw, keys, mut turn) = (self.raw.clone(), self.keys.clone(), Turn::of(reading, task));
            move || {
                let (raw, key) = (raw.clone(), keys[turn.next()].clone());
                async move { raw.get::<Option<Bytes>, _>(key).await.is_ok_and(|bytes| bytes.is_some()) }
            }
        })
        .await
    }

    /// Hits a second through the layer.
    pub async fn cached(&self, reading: Reading, tasks: usize, calls: usize) -> f64 {
        each_second(tasks, calls, |task| {
            let (mut cached, pages, mut turn) = (self.cached.clone(), self.pages.clone(), Turn::of(reading, task));
            move || {
                let answer = cached.call(hit::request_for(&pages[turn.next()]));
                async move { answer.await.is_ok_and(|response| response.headers()["x-cache"] == "HIT") }
            }
        })
        .await
    }
}

/// Which page a client reads next.
struct Turn {
    reading: Reading,
    task: usize,
}

impl Turn {
    fn of(reading: Reading, task: usize) -> Self {
        Self { reading, task }
    }

    fn next(&mut self) -> usize {
        match self.reading {
            Reading::OnePage => 7,
            Reading::OwnPage => self.task % PAGES,
            Reading::ManyPages => fastrand::usize(..PAGES),
        }
    }
}

/// Calls answered each second, by so many tasks that each make one after the other.
pub(crate) async fn each_second<C, F>(tasks: usize, calls: usize, caller: impl Fn(usize) -> C) -> f64
where
    C: FnMut() -> F + Send + 'static,
    F: Future<Output = bool> + Send,
{
    let began = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for task in 0..tasks {
        let mut call = caller(task);
        running.spawn(async move {
            let mut answered = 0;
            for _ in 0..calls / tasks {
                answered += usize::from(call().await);
            }
            answered
        });
    }
    let answered: usize = running.join_all().await.into_iter().sum();
    assert!(answered * 100 >= calls * 99, "{answered} of {calls} were answered from Redis");
    answered as f64 / began.elapsed().max(Duration::from_nanos(1)).as_secs_f64()
}
