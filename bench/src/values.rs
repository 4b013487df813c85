//! A value that is known: next to what any cache has to do for it, and to other ways to have it.

use crate::hit::CALLS;
use bytes::Bytes;
use fred::prelude::{Builder, ClientLike, Config, KeysInterface, ReconnectPolicy};
use larder::{Cache, Deadlines, Typed, Value};
use larder_redis::RedisStore;
use larder_tests::RedisServer;
use quick_cache::sync::Cache as Bounded;
use std::{convert::Infallible, hint::black_box, time::Duration};
use tokio::runtime::Runtime;

/// What is kept: 200 bytes of JSON.
type User = (u64, String, String, Vec<String>);

fn user() -> User {
    let roles = ["reader", "writer", "administrator of a thing", "auditor"].map(str::to_owned).to_vec();
    (7, "Somebody With A Name".to_owned(), "somebody@shop.example".to_owned(), roles)
}

async fn fetch() -> Result<User, Infallible> {
    Ok(user())
}

/// Has a value so many times.
pub type Case = Box<dyn FnMut()>;

/// The cases in memory, by name; each has a value [`CALLS`] times.
pub fn cases() -> Vec<(&'static str, Case)> {
    vec![
        ("floor: quick_cache, decode", Box::new(floor())),
        ("`typed.get_or_fetch`", Box::new(typed())),
        ("`cache.value(…).get_or_fetch`", Box::new(value())),
        ("moka `get`, decode", Box::new(got())),
        ("moka `try_get_with`, decode", Box::new(moka())),
        ("moka `try_get_with`, clone", Box::new(cloned())),
    ]
}

fn floor() -> impl FnMut() {
    let stored = Bounded::new(1000);
    stored.insert("user:7".to_owned(), Bytes::from(serde_json::to_vec(&user()).expect("JSON")));
    move || {
        for _ in 0..CALLS {
            let bytes: Bytes = stored.get("user:7").expect("stored");
            black_box(serde_json::from_slice::<User>(&bytes).expect("a user"));
        }
    }
}

fn typed() -> impl FnMut() {
    let runtime = Runtime::new().expect("a runtime");
    let users: Typed<User> = Cache::in_memory().typed("user", |value| value);
    move || {
        runtime.block_on(async {
            for _ in 0..CALLS {
                black_box(users.get_or_fetch(7, fetch).await.expect("a user"));
            }
        });
    }
}

fn value() -> impl FnMut() {
    let (runtime, cache) = (Runtime::new().expect("a runtime"), Cache::in_memory());
    move || {
        runtime.block_on(async {
            for _ in 0..CALLS {
                let value: Value = cache.value("user:7");
                black_box(value.get_or_fetch(fetch).await.expect("a user"));
            }
        });
    }
}

fn got() -> impl FnMut() {
    let (runtime, stored) = (Runtime::new().expect("a runtime"), moka::future::Cache::<String, Bytes>::new(1000));
    runtime.block_on(stored.insert("user:7".to_owned(), Bytes::from(serde_json::to_vec(&user()).expect("JSON"))));
    move || {
        runtime.block_on(async {
            for _ in 0..CALLS {
                let bytes = stored.get("user:7").await.expect("stored");
                black_box(serde_json::from_slice::<User>(&bytes).expect("a user"));
            }
        });
    }
}

fn moka() -> impl FnMut() {
    let (runtime, stored) = (Runtime::new().expect("a runtime"), moka::future::Cache::<String, Bytes>::new(1000));
    let fetch = async || Ok::<_, Infallible>(Bytes::from(serde_json::to_vec(&user()).expect("JSON")));
    move || {
        runtime.block_on(async {
            for _ in 0..CALLS {
                let bytes = stored.try_get_with_by_ref("user:7", fetch()).await.expect("a user");
                black_box(serde_json::from_slice::<User>(&bytes).expect("a user"));
            }
        });
    }
}

fn cloned() -> impl FnMut() {
    let (runtime, stored) = (Runtime::new().expect("a runtime"), moka::future::Cache::<String, User>::new(1000));
    move || {
        runtime.block_on(async {
            for _ in 0..CALLS {
                black_box(stored.try_get_with_by_ref("user:7", fetch()).await.expect("a user"));
            }
        });
    }
}

/// Values in Redis, next to the bare client's GET of the same bytes, which are decoded too.
pub struct Sides {
    raw: fred::prelude::Client,
    users: Typed<User>,
    key: &'static str,
    _server: RedisServer,
}

impl Sides {
    /// Starts a server, and stores the value that both will read.
    pub async fn start() -> Result<Self, Box<dyn std::error::Error>> {
        let server = RedisServer::builder().open().start();
        let raw = Builder::from_config(Config::from_url(&server.url())?)
            .set_policy(ReconnectPolicy::new_constant(0, 200))
            .build()?;
        raw.init().await?;
        let patient = Duration::from_secs(5);
        let deadlines = Deadlines { read: patient, fill: patient, purge: patient };
        let store = RedisStore::connect(server.url().as_str()).await?;
        let cache = Cache::builder().store(store).deadlines(deadlines).store_budget(patient).lock_wait(2 * patient);
        let users: Typed<User> = cache.build()?.typed("user", |value| value);
        users.insert(7, &user()).await?;
        let json = Bytes::from(serde_json::to_vec(&user())?);
        let key = "user:7:raw";
        raw.set::<(), _, _>(key, json, None, None, false).await?;
        Ok(Self { raw, users, key, _server: server })
    }

    /// Values a second of the bare client.
    pub async fn raw(&self, tasks: usize, calls: usize) -> f64 {
        crate::redis::each_second(tasks, calls, |_| {
            let (raw, key) = (self.raw.clone(), self.key);
            move || {
                let raw = raw.clone();
                async move {
                    let bytes = raw.get::<Option<Bytes>, _>(key).await.ok().flatten();
                    bytes.is_some_and(|bytes| serde_json::from_slice::<User>(&bytes).is_ok())
                }
            }
        })
        .await
    }

    /// Values a second that are known.
    pub async fn cached(&self, tasks: usize, calls: usize) -> f64 {
        crate::redis::each_second(tasks, calls, |_| {
            let users = self.users.clone();
            move || {
                let users = users.clone();
                async move { users.get(7).await.found().is_some() }
            }
        })
        .await
    }
}
