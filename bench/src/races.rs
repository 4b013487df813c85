//! Invalidations racing fetches: one process changes and invalidates, many read meanwhile, and every answer is checked.

use crate::process::Outcome;
use bytes::Bytes;
use fred::prelude::{Builder, Client, ClientLike, Config, Expiration, KeysInterface, ReconnectPolicy, SetOptions};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use larder::{
    Cache, Caching, Deadlines, MemoryStore, Purge,
    semantics::{
        Content, Entry, EntryId, StoredResponse, Timestamp,
        stored::{Basis, Delivery, StaleUse},
    },
};
use larder_redis::RedisStore;
use std::{
    collections::HashMap,
    error::Error,
    time::{Duration, Instant},
};
use tower::{Layer, ServiceExt, service_fn};

/// How what is stored is kept from being older than what was invalidated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By larder, in Redis only.
    Larder,
    /// By larder, with a near tier in each process.
    Near,
    /// Not at all: GET, SET and DEL.
    Plain,
    /// By a lock: SET NX, stored only by whoever still owns it.
    Lock,
}

impl Way {
    /// All of them, with the words they are ordered by.
    pub const ALL: [(&'static str, Self); 4] =
        [("larder", Self::Larder), ("near", Self::Near), ("plain", Self::Plain), ("lock", Self::Lock)];

    /// Reads one of the words.
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(name, _)| *name == word).map(|(_, way)| *way)
    }
}

/// How many pages there are.
pub const PAGES: usize = 16;

/// One process: a cache, and the database that its handlers read, which is another part of the same Redis.
#[derive(Clone)]
pub struct Instance {
    cache: Cache,
    raw: Client,
    way: Way,
}

impl Instance {
    /// Connects to Redis.
    ///
    /// # Errors
    ///
    /// When that is not possible.
    pub async fn connect(redis: &str, way: Way) -> Outcome<Self> {
        let raw =
            Builder::from_config(Config::from_url(redis)?).set_policy(ReconnectPolicy::new_constant(0, 200)).build()?;
        raw.init().await?;
        // A machine that is busy is no store that is down.
        let patient = Duration::from_secs(5);
        let deadlines = Deadlines { read: patient, fill: patient, purge: patient };
        let cache =
            Cache::builder().store(RedisStore::connect(redis).await?).deadlines(deadlines).store_budget(patient);
        let cache = if way == Way::Near {
            cache.near(MemoryStore::default()).near_life(Duration::from_secs(60))
        } else {
            cache
        };
        Ok(Self { cache: cache.build()?, raw, way })
    }

    /// Changes a page, and has returned only when it is invalidated; its version.
    ///
    /// # Errors
    ///
    /// When Redis is not reached.
    pub async fn change(&self, page: usize) -> Outcome<u64> {
        let version: u64 = self.raw.incr(format!("database:{page}")).await?;
        match self.way {
            Way::Larder | Way::Near if version.is_multiple_of(2) => {
                self.cache.purge(Purge::key(key(page).as_str())).await?;
            }
            Way::Near => _ = self.cache.purge(Purge::tag(format!("page-{page}"))).await?,
            Way::Larder => _ = self.cache.purge(Purge::key(key(page).as_str())).await?,
            Way::Plain | Way::Lock => _ = self.raw.del::<u64, _>(format!("plain:{page}")).await?,
        }
        self.raw.set::<(), _, _>(format!("invalidated:{page}"), version, None, None, false).await?;
        Ok(version)
    }

    /// Which version of a page it must be at least: the last whose invalidation has returned.
    async fn least(&self, page: usize) -> Outcome<u64> {
        Ok(self.raw.get::<Option<u64>, _>(format!("invalidated:{page}")).await?.unwrap_or_default())
    }

    /// The version of a page that a client is answered with.
    pub async fn read(&self, page: usize) -> Outcome<u64> {
        match self.way {
            Way::Larder | Way::Near => self.layered(page).await,
            Way::Plain | Way::Lock => self.plain(page).await,
        }
    }

    async fn layered(&self, page: usize) -> Outcome<u64> {
        let raw = self.raw.clone();
        let service = self.cache.layer().layer(service_fn(move |_: Request<Empty<Bytes>>| {
            let raw = raw.clone();
            async move {
                let version = database(&raw, page).await?;
                let response = Response::builder().header("cache-control", "max-age=3600");
                let response = response.extension(Caching::new().tag(format!("page-{page}")));
                Ok::<_, Box<dyn Error + Send + Sync>>(response.body(Full::new(Bytes::from(version.to_string())))?)
            }
        }));
        let request = Request::builder().uri(format!("/{page}")).header("host", "h").body(Empty::<Bytes>::new())?;
        let body = service.oneshot(request).await?.into_body().collect().await.map_err(|error| error.to_string())?;
        Ok(std::str::from_utf8(&body.to_bytes())?.parse()?)
    }

    async fn plain(&self, page: usize) -> Outcome<u64> {
        let (name, lock) = (format!("plain:{page}"), format!("lock:{page}"));
        if let Some(found) = self.raw.get::<Option<u64>, _>(&name).await? {
            return Ok(found);
        }
        let mine = fastrand::u64(..).to_string();
        let life = Some(Expiration::PX(3_000));
        let owns = self.way == Way::Plain
            || self
                .raw
                .set::<Option<String>, _, _>(&lock, mine.as_str(), life.clone(), Some(SetOptions::NX), false)
                .await?
                .is_some();
        let version = database(&self.raw, page).await?;
        if !owns {
            return Ok(version);
        }
        if self.way == Way::Plain || self.raw.get::<Option<String>, _>(&lock).await? == Some(mine) {
            self.raw.set::<(), _, _>(&name, version, Some(Expiration::EX(3_600)), None, false).await?;
        }
        if self.way == Way::Lock {
            self.raw.del::<u64, _>(&lock).await?;
        }
        Ok(version)
    }

    /// Reads so often, from so many tasks; how many answers were older than they may be `bound` after they were invalidated.
    ///
    /// # Errors
    ///
    /// When a read fails.
    pub async fn readers(&self, tasks: usize, reads: usize, bound: Duration) -> Outcome<u64> {
        let mut running = tokio::task::JoinSet::new();
        for _ in 0..tasks {
            let instance = self.clone();
            running.spawn(async move {
                let (mut stale, mut known) = (0, HashMap::<usize, (u64, Instant)>::new());
                for _ in 0..reads / tasks {
                    let page = fastrand::usize(..PAGES);
                    let least = instance.least(page).await?;
                    let (old, since) = known.get(&page).copied().unwrap_or((0, Instant::now()));
                    // What was invalidated so long ago that everybody must have heard.
                    let due = if since.elapsed() >= bound { old } else { 0 };
                    let due = if bound.is_zero() { least } else { due };
                    if least > old {
                        known.insert(page, (least, Instant::now()));
                    }
                    stale += u64::from(instance.read(page).await? < due);
                }
                Outcome::Ok(stale)
            });
        }
        let mut stale = 0;
        while let Some(done) = running.join_next().await {
            stale += done??;
        }
        Ok(stale)
    }
}

/// What the database says, and then, sometimes, a pause in which it may say something else.
async fn database(raw: &Client, page: usize) -> Outcome<u64> {
    let version = raw.get::<Option<u64>, _>(format!("database:{page}")).await?.unwrap_or_default();
    if fastrand::u8(..4) == 0 {
        tokio::time::sleep(Duration::from_micros(fastrand::u64(..10_000))).await;
    }
    Ok(version)
}

fn key(page: usize) -> String {
    format!("route:GET:h:/{page}")
}

/// A small stored response with these tags.
pub fn entry(tags: &[&str], received_at: Timestamp) -> Entry {
    let response = StoredResponse {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        delivery: Delivery::default(),
        body: Bytes::from_static(&[b'x'; 100]),
        received_at,
        initial_age: Duration::ZERO,
        lifetime: Duration::from_secs(36_000),
        keep: Duration::ZERO,
        stale: StaleUse::default(),
        basis: Basis::Response,
        origin_cost: Duration::from_millis(1),
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        born: 0,
        generation: 0,
    };
    Entry { id: EntryId(fastrand::u128(..).to_be_bytes()), content: Content::Response(response) }
}
