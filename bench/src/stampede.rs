//! A stampede: many clients of many processes that want the same at once.

use crate::{process::Outcome, table::ratio};
use bytes::Bytes;
use fred::prelude::{Builder, ClientLike, Config, Expiration, KeysInterface, ReconnectPolicy, SetOptions};
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use larder::{Cache, CacheLayer};
use larder_redis::RedisStore;
use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tower::{Layer, ServiceExt, service_fn};

/// Now, by a clock that all processes of a machine share.
pub fn now_nanos() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64)
}

/// How long the origin takes to make a page.
const TAKES: Duration = Duration::from_millis(300);

type Seen = Arc<Mutex<HashMap<String, (usize, u64)>>>;

/// An origin in this process, asked over a socket; a path that begins with `/hang` is not answered the first time.
pub struct Origin {
    address: String,
    /// By path: how often it was asked, and when it had answered first.
    seen: Seen,
}

impl Origin {
    /// Starts to answer.
    ///
    /// # Errors
    ///
    /// When no port can be listened on.
    pub async fn start() -> Outcome<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, seen) = (listener.local_addr()?.to_string(), Seen::default());
        let shared = seen.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, shared.clone()));
            }
        });
        Ok(Self { address, seen })
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// How often a path was asked for.
    pub fn calls(&self, path: &str) -> usize {
        self.of(path).0
    }

    /// When the path was answered first, in nanoseconds.
    pub fn answered(&self, path: &str) -> u64 {
        self.of(path).1
    }

    fn of(&self, path: &str) -> (usize, u64) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(path).copied().unwrap_or_default()
    }
}

async fn answer(mut stream: TcpStream, seen: Seen) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let request = String::from_utf8_lossy(&request);
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let call = {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let of_path = seen.entry(path.clone()).or_default();
        of_path.0 += 1;
        of_path.0
    };
    if path.starts_with("/hang") && call == 1 {
        tokio::time::sleep(Duration::from_secs(3600)).await;
    }
    tokio::time::sleep(TAKES).await;
    stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\na page that took long to make").await?;
    stream.shutdown().await?;
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(of_path) = seen.get_mut(&path).filter(|of_path| of_path.1 == 0) {
        of_path.1 = now_nanos();
    }
    Ok(())
}

async fn fetch(origin: &str, path: &str) -> std::io::Result<Bytes> {
    let mut stream = TcpStream::connect(origin).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: origin\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    Ok(Bytes::from(answer).slice(head + 4..))
}

/// How those who want the same are kept from asking all at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// By larder.
    Larder,
    /// As tutorials have it: SET NX, and whoever does not get it sleeps 50 ms, looks once more, and asks.
    Polled,
}

/// When the clients of one process were answered, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// The one that asked the origin; zero if none did.
    pub leader: u64,
    /// The first.
    pub first: u64,
    /// The one in the middle.
    pub median: u64,
    /// How many were not answered with the page.
    pub failed: usize,
}

/// One process of a fleet.
pub struct Instance {
    layer: CacheLayer,
    raw: fred::prelude::Client,
    origin: String,
}

impl Instance {
    /// Connects to Redis.
    ///
    /// # Errors
    ///
    /// When that is not possible.
    pub async fn connect(redis: &str, origin: &str) -> Outcome<Self> {
        let raw =
            Builder::from_config(Config::from_url(redis)?).set_policy(ReconnectPolicy::new_constant(0, 200)).build()?;
        raw.init().await?;
        let cache = Cache::builder().store(RedisStore::connect(redis).await?).build()?;
        Ok(Self { layer: cache.layer(), raw, origin: origin.to_owned() })
    }

    /// What so many clients are answered who ask for `path` at once.
    pub async fn stampede(&self, lock: Lock, clients: usize, path: &str) -> Times {
        let mut running = JoinSet::new();
        for _ in 0..clients {
            let (layer, raw, origin, path) =
                (self.layer.clone(), self.raw.clone(), self.origin.clone(), path.to_owned());
            running.spawn(async move {
                let answered = match lock {
                    Lock::Larder => layered(layer, &origin, &path).await,
                    Lock::Polled => polled(&raw, &origin, &path).await,
                };
                (now_nanos(), answered)
            });
        }
        let answers = running.join_all().await;
        let leader = answers.iter().find(|(_, answered)| *answered == Some(true)).map_or(0, |(at, _)| *at);
        let mut times: Vec<u64> = answers.iter().map(|(at, _)| *at).collect();
        times.sort_unstable();
        let failed = answers.iter().filter(|(_, answered)| answered.is_none()).count();
        Times { leader, first: times[0], median: times[clients / 2], failed }
    }
}

/// Whether the origin was asked; nothing, if there was no answer.
async fn layered(layer: CacheLayer, origin: &str, path: &str) -> Option<bool> {
    let origin = origin.to_owned();
    let service = layer.layer(service_fn(move |request: Request<Empty<Bytes>>| {
        let (origin, path) = (origin.clone(), request.uri().path().to_owned());
        async move { fetch(&origin, &path).await.map(|page| Response::new(Full::new(page))) }
    }));
    let request = Request::builder().uri(path).header("host", "shop.example").body(Empty::<Bytes>::new()).ok()?;
    let response = service.oneshot(request).await.ok()?;
    let was_asked = response.headers()["cache-status"].to_str().ok()?.contains("fwd-status");
    response.into_body().collect().await.ok()?;
    Some(was_asked)
}

async fn polled(raw: &fred::prelude::Client, origin: &str, path: &str) -> Option<bool> {
    for look in 0..2 {
        if raw.get::<Option<Bytes>, _>(path).await.ok()?.is_some() {
            return Some(false);
        }
        let lock = format!("{path}:lock");
        let life = Some(Expiration::PX(10_000));
        let locked: Option<String> = raw.set(&lock, "1", life, Some(SetOptions::NX), false).await.ok()?;
        if locked.is_some() || look == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let page = fetch(origin, path).await.ok()?;
    raw.set::<(), _, _>(path, page, Some(Expiration::EX(60)), None, false).await.ok()?;
    raw.del::<(), _>(format!("{path}:lock")).await.ok()?;
    Some(true)
}

/// A route whose answers are not stored, behind a layer on Redis : without one; the 50th and the 99th percentile of what 64
/// clients wait, the middle of nine rounds.
///
/// # Errors
///
/// When Redis cannot be reached.
pub async fn uncacheable(redis: &str) -> Outcome<(f64, f64)> {
    let cache = Cache::builder().namespace("uncacheable").store(RedisStore::connect(redis).await?).build()?;
    let handler = service_fn(|_: Request<Empty<Bytes>>| async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let response =
            Response::builder().header("cache-control", "no-store").body(Full::new(Bytes::from_static(b"x")));
        Ok::<_, Infallible>(response.unwrap_or_default())
    });
    let (mut bare, mut layered) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for round in 0..9 {
        let of_bare = percentiles(handler).await;
        let of_layer = percentiles(cache.layer().layer(handler)).await;
        // The first round teaches the cache that it is of no use here.
        if round > 0 {
            for at in 0..2 {
                bare[at].push(of_bare[at]);
                layered[at].push(of_layer[at]);
            }
        }
    }
    Ok((ratio(&layered[0], &bare[0]), ratio(&layered[1], &bare[1])))
}

async fn percentiles<S, B>(service: S) -> [f64; 2]
where
    S: tower::Service<Request<Empty<Bytes>>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: http_body::Body<Data = Bytes, Error: std::fmt::Debug> + Send,
{
    let mut running = JoinSet::new();
    for _ in 0..64 {
        let service = service.clone();
        running.spawn(async move {
            let mut times = Vec::new();
            for _ in 0..100 {
                let request = Request::builder().uri("/private").header("host", "h").body(Empty::<Bytes>::new());
                let began = Instant::now();
                let Ok(response) = service.clone().oneshot(request.unwrap_or_default()).await;
                let _ = response.into_body().collect().await;
                times.push(began.elapsed().as_secs_f64());
            }
            times
        });
    }
    let mut times = running.join_all().await.concat();
    times.sort_by(f64::total_cmp);

    [times[times.len() / 2], times[times.len() * 99 / 100]]
}
