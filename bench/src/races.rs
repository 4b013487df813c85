//! Invalidations racing fetches: one process changes and invalidates, many read meanwhile, and every answer is checked.

use crate::{
    flawed::Flawed,
    pages::{Answer, Pages, database},
    process::Outcome,
};
use bytes::Bytes;
use fred::prelude::{Expiration, KeysInterface, SetOptions};
use http::{HeaderMap, StatusCode};
use larder::{
    Cache, Deadlines, MemoryStore,
    semantics::{
        Content, Entry, EntryId, StoredResponse, Timestamp,
        delivery::Delivery,
        stored::{Basis, StaleUse},
    },
};
use larder_redis::RedisStore;
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// How what is stored is kept from being older than what was invalidated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By larder, in Redis only.
    Larder,
    /// By larder, with a near tier in each process.
    Near,
    /// By larder, in Redis only, but that tickets are not checked.
    Unchecked,
    /// Not at all: GET, SET and DEL.
    Plain,
    /// By a lock: SET NX, stored only by whoever still owns it.
    Lock,
}

impl Way {
    /// All of them, with the words they are ordered by.
    pub const ALL: [(&'static str, Self); 5] = [
        ("larder", Self::Larder),
        ("near", Self::Near),
        ("unchecked", Self::Unchecked),
        ("plain", Self::Plain),
        ("lock", Self::Lock),
    ];

    /// Reads one of the words.
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(name, _)| *name == word).map(|(_, way)| *way)
    }
}

/// How `Cache-Status` tells that an answer came from a fetch of this process that was on its way, or had just come.
const SHARED: [&str; 2] = ["collapsed", "near"];

/// How many pages there are.
pub const PAGES: usize = 16;

/// One process: a cache, and the database that its handlers read, which is another part of the same Redis.
#[derive(Clone)]
pub struct Instance {
    pages: Pages,
    way: Way,
}

impl Instance {
    /// Connects to Redis.
    ///
    /// # Errors
    ///
    /// When that is not possible.
    pub async fn connect(redis: &str, way: Way) -> Outcome<Self> {
        // A machine that is busy is no store that is down.
        let patient = Duration::from_secs(5);
        let deadlines = Deadlines { read: patient, fill: patient, purge: patient };
        let (cache, store) = (Cache::builder(), RedisStore::connect(redis).await?);
        let cache = match way {
            Way::Unchecked => cache.store(Flawed::without_tickets(store)),
            Way::Near => cache.store(store).near(MemoryStore::default()).near_life(Duration::from_secs(60)),
            Way::Larder | Way::Plain | Way::Lock => cache.store(store),
        };
        let cache = cache.deadlines(deadlines).store_budget(patient).lock_wait(2 * patient).build()?;
        Ok(Self { pages: Pages::of(cache, redis).await?, way })
    }

    /// Changes a page, and has returned only when it is invalidated; its version.
    ///
    /// # Errors
    ///
    /// When Redis is not reached.
    pub async fn change(&self, page: usize) -> Outcome<u64> {
        let (version, raw) = (self.pages.change(page).await?, self.pages.raw());
        match self.way {
            Way::Near if version % 2 == 1 => self.pages.purge_by_tag(page).await?,
            Way::Larder | Way::Near | Way::Unchecked => self.pages.purge_by_key(page).await?,
            Way::Plain | Way::Lock => _ = raw.del::<u64, _>(format!("plain:{page}")).await?,
        }
        raw.set::<(), _, _>(format!("invalidated:{page}"), version, None, None, false).await?;
        Ok(version)
    }

    /// Which version of a page it must be at least: the last whose invalidation has returned.
    async fn least(&self, page: usize) -> Outcome<u64> {
        let least = self.pages.raw().get::<Option<u64>, _>(format!("invalidated:{page}")).await?;
        Ok(least.unwrap_or_default())
    }

    /// What a client is answered with that asks for a page.
    ///
    /// # Errors
    ///
    /// When Redis is not reached.
    pub async fn read(&self, page: usize) -> Outcome<Answer> {
        match self.way {
            Way::Larder | Way::Near | Way::Unchecked => self.pages.read(page).await,
            Way::Plain | Way::Lock => Ok(Answer { version: self.plain(page).await?, detail: "" }),
        }
    }

    async fn plain(&self, page: usize) -> Outcome<u64> {
        let (name, lock, raw) = (format!("plain:{page}"), format!("lock:{page}"), self.pages.raw());
        if let Some(found) = raw.get::<Option<u64>, _>(&name).await? {
            return Ok(found);
        }
        let mine = fastrand::u64(..).to_string();
        let life = Some(Expiration::PX(3_000));
        let owns = self.way == Way::Plain
            || raw
                .set::<Option<String>, _, _>(&lock, mine.as_str(), life.clone(), Some(SetOptions::NX), false)
                .await?
                .is_some();
        let version = database(raw, page).await?;
        if !owns {
            return Ok(version);
        }
        if self.way == Way::Plain || raw.get::<Option<String>, _>(&lock).await? == Some(mine) {
            raw.set::<(), _, _>(&name, version, Some(Expiration::EX(3_600)), None, false).await?;
        }
        if self.way == Way::Lock {
            raw.del::<u64, _>(&lock).await?;
        }
        Ok(version)
    }

    /// Reads so often, from so many tasks; how many answers were older than they may be `bound` after they were invalidated, and
    /// how many of those were shared with a fetch that had begun before.
    ///
    /// # Errors
    ///
    /// When a read fails.
    pub async fn readers(&self, tasks: usize, reads: usize, bound: Duration) -> Outcome<(u64, u64)> {
        let mut running = tokio::task::JoinSet::new();
        for _ in 0..tasks {
            let instance = self.clone();
            running.spawn(async move {
                let (mut stale, mut shared, mut known) = (0, 0, HashMap::<usize, (u64, Instant)>::new());
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
                    let Answer { version, detail } = instance.read(page).await?;
                    stale += u64::from(version < due);
                    shared += u64::from(version < due && SHARED.contains(&detail));
                }
                Outcome::Ok((stale, shared))
            });
        }
        let mut sum = (0, 0);
        while let Some(done) = running.join_next().await {
            let (stale, shared) = done??;
            sum = (sum.0 + stale, sum.1 + shared);
        }
        Ok(sum)
    }
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
