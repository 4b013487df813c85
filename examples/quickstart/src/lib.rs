//! A small shop whose database is slow, and which is fast all the same.

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    routing::get,
};
use larder::{Cache, Key, Purge, Ttl};
use larder_axum::{AxumRouting, CacheHandle, RouterExt};
use larder_redis::RedisStore;
use std::{
    error::Error,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::AtomicU64, atomic::Ordering::Relaxed},
    time::Duration,
};
use tokio::{net::TcpListener, time::sleep};

/// The cache: in Redis if a URL is given, else in this process.
///
/// # Errors
///
/// When the URL cannot be read, or Redis does not let this program in. Redis may be away: the app then does without.
pub async fn cache(redis_url: Option<&str>) -> Result<Cache, Box<dyn Error>> {
    let cache = Cache::builder().namespace("quickstart").routing(AxumRouting);
    let cache = match redis_url {
        Some(url) => cache.store(RedisStore::connect(url).await?),
        None => cache,
    };
    Ok(cache.build()?)
}

/// The app: each route says how long its responses live, and under which key.
///
/// # Errors
///
/// When the settings of a route cannot work.
pub fn app(cache: &Cache) -> Result<Router, larder::ConfigError> {
    // Without a key of its own a route has one with the host in it, which instances on different ports do not share.
    let products = cache.layer().ttl(Ttl::FREQUENT).key_fn(|head| products_key(head.uri.query()));
    let users = cache.layer().ttl(Ttl::STANDARD).key("user:{id}").tag("users");
    Ok(Router::new()
        .cached("/products", get(all_products), products)?
        .cached("/users/{id}", get(user).post(change_user), users)?
        .with_state(Database::default()))
}

fn products_key(query: Option<&str>) -> Key {
    Key::new("products").part(query.unwrap_or_default())
}

async fn all_products(State(database): State<Database>) -> String {
    let query = database.query().await;
    format!("apples, pears, plums (query {query})\n")
}

async fn user(Path(id): Path<u64>, State(database): State<Database>) -> String {
    let query = database.query().await;
    format!("user {id} (query {query})\n")
}

/// What has changed is purged: who asks from now on gets the new user.
async fn change_user(
    Path(id): Path<u64>,
    State(database): State<Database>,
    CacheHandle(cache): CacheHandle,
) -> Result<String, (StatusCode, String)> {
    let query = database.query().await;
    match cache.purge(Purge::key(format!("user:{id}").as_str())).await {
        Ok(_) => Ok(format!("user {id} is changed (query {query})\n")),
        Err(error) => Err((StatusCode::SERVICE_UNAVAILABLE, format!("user {id} may be seen unchanged: {error}\n"))),
    }
}

/// Takes 200 ms for everything, and counts.
#[derive(Clone, Default)]
struct Database(Arc<AtomicU64>);

impl Database {
    async fn query(&self) -> u64 {
        sleep(Duration::from_millis(200)).await;
        self.0.fetch_add(1, Relaxed) + 1
    }
}

/// Listens on `port`; without one on 3000, or on any free port if that is taken.
///
/// # Errors
///
/// When the port that was asked for is taken, or there is no such host.
pub async fn listen(host: &str, port: Option<u16>) -> io::Result<TcpListener> {
    let bind = async |port| {
        let explained = |error: io::Error| io::Error::new(error.kind(), format!("{host}:{port}: {error}"));
        TcpListener::bind((host, port)).await.map_err(explained)
    };
    match bind(port.unwrap_or(3000)).await {
        Err(error) if port.is_none() && error.kind() == io::ErrorKind::AddrInUse => {
            println!("Port 3000 is taken; this is a free one. PORT chooses another.");
            bind(0).await
        }
        bound => bound,
    }
}

/// Where the app is, what it stores in, and what to try.
pub fn greeting(address: SocketAddr, uses_redis: bool) -> String {
    let port = address.port();
    let address = if address.ip().is_unspecified() { (Ipv4Addr::LOCALHOST, port).into() } else { address };
    let store = if uses_redis { "Redis (REDIS_URL)" } else { "memory; set REDIS_URL to use Redis" };
    format!(
        "quickstart: http://{address}, storing in {store}\n\
         Try this twice, and look at X-Cache and the time it takes:\n  \
         curl -i http://{address}/products\n\
         The next GET of a user is a MISS again after this:\n  \
         curl -i -X POST http://{address}/users/1\n"
    )
}
