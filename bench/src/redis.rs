//! A hit in Redis, next to the bare client's GET of the same bytes.

use crate::hit;
use bytes::Bytes;
use fred::prelude::{Builder, ClientLike, Config, KeysInterface, ReconnectPolicy};
use http_body_util::BodyExt;
use larder::{Cache, CacheService, Deadlines, Ttl};
use larder_redis::RedisStore;
use larder_tests::RedisServer;
use std::{
    future::Future,
    time::{Duration, Instant},
};
use tower::{Layer, Service};

/// Both sides, over one server and one connection each.
pub struct Sides {
    raw: fred::prelude::Client,
    cached: CacheService<axum::Router>,
    key: String,
    _server: RedisServer,
}

impl Sides {
    /// Starts a server, and stores the page that both will read.
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
        let request = hit::request();
        cached.call(request).await?.into_body().collect().await?;
        while cached.call(hit::request()).await?.headers()["x-cache"] != "HIT" {}
        let key = server.cli(&["KEYS", "*"]).lines().map(str::to_owned).find(|key| key.ends_with('}'));
        Ok(Self { raw, cached, key: key.ok_or("nothing was stored")?, _server: server })
    }

    /// GETs a second of the bare client.
    pub async fn raw(&self, tasks: usize, calls: usize) -> f64 {
        each_second(tasks, calls, || {
            let (raw, key) = (self.raw.clone(), self.key.clone());
            move || {
                let (raw, key) = (raw.clone(), key.clone());
                async move { raw.get::<Option<Bytes>, _>(&key).await.is_ok_and(|bytes| bytes.is_some()) }
            }
        })
        .await
    }

    /// Hits a second through the layer.
    pub async fn cached(&self, tasks: usize, calls: usize) -> f64 {
        each_second(tasks, calls, || {
            let cached = self.cached.clone();
            move || {
                let answer = cached.clone().call(hit::request());
                async move { answer.await.is_ok_and(|response| response.headers()["x-cache"] == "HIT") }
            }
        })
        .await
    }
}

/// Calls answered each second, by so many tasks that each make one after the other.
pub(crate) async fn each_second<C, F>(tasks: usize, calls: usize, caller: impl Fn() -> C) -> f64
where
    C: Fn() -> F + Send + 'static,
    F: Future<Output = bool> + Send,
{
    let began = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..tasks {
        let call = caller();
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
