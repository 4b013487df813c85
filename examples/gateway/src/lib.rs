//! The parts of the gateway; `main.rs` tells how it is run.

mod fields;
pub mod metrics;
mod options;
mod patience;
mod proxy;
mod purge;
pub mod serve;

pub use options::{Options, Secret, Upstream};

use http_body_util::{Either, Empty};
use larder::{Cache, CacheLayer, CompleteLayer, MemoryStore, Policy, Ttl};
use larder_redis::RedisStore;
use proxy::Proxy;
use std::convert::Infallible;
use tokio::net::TcpListener;
use tower::{ServiceBuilder, ServiceExt, service_fn};

/// An error of any kind.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Answers those who connect to `listener`, until `shutdown` is over and the last answers are given.
///
/// # Errors
///
/// When an option cannot work, or Redis does not let the gateway in. That Redis is away is no error.
pub async fn run(options: &Options, listener: TcpListener, shutdown: impl Future<Output = ()>) -> Result<(), BoxError> {
    let proxy = Proxy::new(options.upstream.clone(), options.timeout());
    let cache = cache(options).await?;
    let upstream = service_fn(move |request| {
        let proxy = proxy.clone();
        async move { Ok::<_, Infallible>(proxy.forward(request).await) }
    });
    let cached = ServiceBuilder::new()
        .layer(layer(options, cache.clone())?)
        .layer(CompleteLayer::new(|| Either::Right(Empty::new())))
        .service(upstream);
    // What is no request to forward is answered before the cache is asked, which thus sees what the upstream sees.
    let (purged, token) = (cache.clone(), options.admin_token.clone());
    let gateway = service_fn(move |request| {
        let (cached, purged, token) = (cached.clone(), purged.clone(), token.clone());
        async move {
            match proxy::admit(request) {
                Ok(request) if purge::is_asked(request.method()) => {
                    Ok(purge::answer(request, &purged, token.as_ref()).await.map(Either::Right))
                }
                Ok(request) => {
                    cached.oneshot(request.map(Either::Left)).await.map(|response| response.map(Either::Left))
                }
                Err(refusal) => Ok(refusal.into_response().map(Either::Right)),
            }
        }
    });
    serve::until(shutdown, listener, gateway).await;
    let left = cache.drain(serve::DRAIN_FOR).await;
    if left > 0 {
        tracing::warn!(left, "some of what clients had left to be done was not done in time");
    }
    Ok(())
}

async fn cache(options: &Options) -> Result<Cache, BoxError> {
    let cache = Cache::builder().namespace("gateway");
    let cache = match &options.redis {
        Some(url) => cache.store(RedisStore::connect(url).await.map_err(|error| format!("--redis: {error}"))?),
        None => cache,
    };
    let cache = match options.near {
        Some(bytes) => cache.near(MemoryStore::with_capacity(bytes)),
        None => cache,
    };
    Ok(cache.build()?)
}

/// Without `--default-ttl` a response must state its lifetime to be stored: a proxy does not know what it carries.
fn layer(options: &Options, cache: Cache) -> Result<CacheLayer, BoxError> {
    let layer = CacheLayer::with_policy(cache, Policy::shared_cache());
    let layer = match options.default_ttl {
        Some(seconds) => layer.ttl(Ttl::secs(seconds)),
        None => layer,
    };
    let layer = if options.honor_client_directives { layer.honor_client_directives() } else { layer };
    let layer = if options.sealed { layer.sealed() } else { layer };
    Ok(layer.checked()?)
}
