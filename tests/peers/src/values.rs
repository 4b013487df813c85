//! What a value costs that is known, in memory: 150 bytes of JSON, as each keeps it best.

use bytes::Bytes;
use hitbox::{
    concurrency::BroadcastConcurrencyManager,
    policy::{ConcurrencyLimit, PolicyConfig},
};
use hitbox_fn::{CacheableResponse, cached};
use hitbox_moka::MokaBackend;
use serde::{Deserialize, Serialize};
use std::{convert::Infallible, future::Future, hint::black_box, time::Duration};
use tick::Clock;
use tokio::{runtime::Runtime, time::Instant};

/// The table, each measured in turn, round by round.
pub(crate) fn table() -> std::io::Result<String> {
    const ROUNDS: usize = 31;
    let runtime = Runtime::new()?;
    let cases = runtime.block_on(Cases::prepare());
    let mut times: [Vec<f64>; 5] = Default::default();
    for _ in 0..ROUNDS {
        let taken = runtime.block_on(cases.round());
        times.iter_mut().zip(taken).for_each(|(times, taken)| times.push(taken));
    }
    let medians = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[ROUNDS / 2]
    });
    let names = [
        "quick_cache, decode",
        "larder `typed.get_or_fetch`",
        "moka `try_get_with`, decode",
        "cachet `try_get_or_insert`, decode",
        "hitbox `#[cached]` in moka, which decodes",
    ];
    let lines = names
        .iter()
        .zip(medians)
        .map(|(name, median)| format!("| {name} | {median:.0} | {:.2} |", median / medians[0]));
    let head = "| a value in memory, 150 bytes of JSON | ns (median) | : quick_cache |\n|---|---:|---:|".to_owned();
    Ok(std::iter::once(head).chain(lines).collect::<Vec<_>>().join("\n"))
}

type User = (u64, String, String, Vec<String>);

fn user() -> User {
    let roles = ["reader", "writer", "administrator of a thing", "auditor"].map(str::to_owned).to_vec();
    (7, "Somebody With A Name".to_owned(), "somebody@shop.example".to_owned(), roles)
}

fn json() -> Bytes {
    serde_json::to_vec(&user()).unwrap_or_default().into()
}

fn read(json: &[u8]) -> Option<User> {
    serde_json::from_slice(json).ok()
}

/// What hitbox keeps, which takes no tuples.
#[derive(Debug, Clone, Serialize, Deserialize, CacheableResponse)]
struct Held {
    user: User,
}

#[cached]
async fn held(id: u64) -> Result<Held, Infallible> {
    let (_, name, mail, roles) = user();
    Ok(Held { user: (id, name, mail, roles) })
}

type Hitbox = hitbox_fn::Cache<MokaBackend, BroadcastConcurrencyManager<Result<Held, Infallible>>>;

/// Every one of them fetches once for all who ask, but for the first.
struct Cases {
    plain: quick_cache::sync::Cache<String, Bytes>,
    larder: larder::Typed<User>,
    moka: moka::future::Cache<String, Bytes>,
    cachet: cachet::Cache<String, Bytes>,
    hitbox: Hitbox,
}

impl Cases {
    async fn prepare() -> Self {
        let plain = quick_cache::sync::Cache::new(1000);
        plain.insert("user:7".to_owned(), json());
        let policy = PolicyConfig::builder().ttl(Duration::from_secs(3600)).concurrency(ConcurrencyLimit::MIN).build();
        Self {
            plain,
            larder: larder::Cache::in_memory().typed("user", |value| value),
            moka: moka::future::Cache::new(1000),
            cachet: cachet::Cache::builder(Clock::new_tokio())
                .memory_with(|memory| memory.max_capacity(1000))
                .stampede_protection()
                .build(),
            hitbox: hitbox_fn::Cache::builder()
                .backend(MokaBackend::builder().max_entries(1000).build())
                .policy(policy)
                .concurrency_manager(BroadcastConcurrencyManager::<Result<Held, Infallible>>::new())
                .build(),
        }
    }

    /// Nanoseconds of each.
    async fn round(&self) -> [f64; 5] {
        let fetch = async || Ok::<_, Infallible>(json());
        [
            each(async || black_box(self.plain.get("user:7").and_then(|json| read(&json))).is_some()).await,
            each(async || black_box(self.larder.get_or_fetch(7, async || Ok::<_, Infallible>(user())).await).is_ok())
                .await,
            each(async || {
                let json = self.moka.try_get_with_by_ref("user:7", fetch()).await;
                black_box(json.ok().and_then(|json| read(&json))).is_some()
            })
            .await,
            each(async || {
                let json = self.cachet.try_get_or_insert("user:7", fetch).await;
                black_box(json.ok().and_then(|json| read(json.value()))).is_some()
            })
            .await,
            each(async || black_box(held(7).cache(&self.hitbox).await).is_ok()).await,
        ]
    }
}

async fn each<F: Future<Output = bool>>(have: impl Fn() -> F) -> f64 {
    const CALLS: u32 = 20_000;
    let began = Instant::now();
    for _ in 0..CALLS {
        assert!(have().await, "there is a value");
    }
    began.elapsed().as_nanos() as f64 / f64::from(CALLS)
}
