//! The other caches for tower as subjects of the rows, each as its documentation sets it up, with its defaults.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    response::Response,
};
use axum_response_cache::CacheLayer as ResponseCacheLayer;
use hitbox::{
    Config,
    backend::CacheBackend,
    concurrency::BroadcastConcurrencyManager,
    policy::{ConcurrencyLimit, PolicyConfig},
};
use hitbox_http::{
    BufferedBody, CacheableHttpResponse,
    extractors::{
        Method, NeutralExtractor, Path,
        path::PathExtractor,
        query::{Query, QueryExtractor},
    },
    predicates::{NeutralRequestPredicate, NeutralResponsePredicate},
};
use hitbox_moka::MokaBackend;
use hitbox_redis::{ConnectionMode, RedisBackend as HitboxRedis};
use http_body::{Frame, SizeHint};
use http_cache::MokaManager;
use http_cache_tower_server::ServerCacheLayer;
use tower::{Layer, ServiceExt};
use tower_http_cache::prelude::{
    CacheLayer as HttpCacheLayer, CompressionConfig, CompressionStrategy, InMemoryBackend, RedisBackend,
};
use tower_http_cache_plus::{
    CachingLayer,
    cache::{
        CommonCacheKey,
        implementation::moka::{ForHttpResponse, MokaCacheImplementation},
    },
};

use crate::{
    larder_subject::Larder,
    rows::{Inner, Service, Subject, service},
};

/// How long entries live where there is no default.
const LIFETIME: Duration = Duration::from_secs(60);

/// A cache, by the name of its crate.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) subject: Arc<dyn Subject>,
    /// Puts it around the routes of a router, or why that does not compile.
    pub(crate) on_router: Result<fn(Router) -> Router, &'static str>,
}

/// Every cache of the table, larder first.
pub(crate) fn peers() -> [Peer; 6] {
    [
        Peer {
            name: "larder",
            subject: Arc::new(Larder { honors_client_directives: false, slack: Duration::from_millis(50) }),
            on_router: Ok(|router| router.layer(larder::Cache::in_memory().layer())),
        },
        Peer {
            name: "tower-http-cache",
            subject: Arc::new(TowerHttpCache),
            on_router: Err("does not compile: it asks for `ResBody: Sync`, and its error is `BoxError`"),
        },
        Peer {
            name: "http-cache-tower-server",
            subject: Arc::new(HttpCacheTowerServer),
            on_router: Err("does not compile: its error is `BoxError`; inside a `HandleErrorLayer` it does"),
        },
        Peer {
            name: "axum-response-cache",
            subject: Arc::new(AxumResponseCache),
            on_router: Ok(|router| router.layer(ResponseCacheLayer::with_lifespan(LIFETIME))),
        },
        Peer {
            name: "tower-http-cache-plus",
            subject: Arc::new(TowerHttpCachePlus),
            on_router: Ok(|router| router.layer(plus())),
        },
        Peer {
            name: "hitbox-tower",
            subject: Arc::new(Hitbox),
            on_router: Ok(|router| router.layer(hitbox(in_moka()))),
        },
    ]
}

/// tower-http-cache.
struct TowerHttpCache;

impl Subject for TowerHttpCache {
    fn around(&self, inner: Inner) -> Service {
        service(HttpCacheLayer::builder(InMemoryBackend::new(10_000)).build().layer(synced(inner)))
    }

    fn compressing(&self, inner: Inner) -> Option<Service> {
        let gzip = CompressionConfig { strategy: CompressionStrategy::Gzip, ..CompressionConfig::default() };
        let layer = HttpCacheLayer::builder(InMemoryBackend::new(10_000)).compression(gzip).build();
        Some(service(layer.layer(synced(inner))))
    }

    fn on_redis<'a>(
        &'a self,
        inner: Inner,
        url: &'a str,
    ) -> Pin<Box<dyn Future<Output = Option<Service>> + Send + 'a>> {
        Box::pin(async move {
            let client = redis::Client::open(url).expect("the URL of a Redis");
            let connection = client.get_connection_manager().await.expect("a Redis that was just started");
            Some(service(HttpCacheLayer::builder(RedisBackend::new(connection)).build().layer(synced(inner))))
        })
    }
}

/// Makes the body `Sync`, which tower-http-cache asks for, and axum's is not.
fn synced(
    inner: Inner,
) -> impl tower::Service<
    http::Request<Body>,
    Response = http::Response<SyncBody>,
    Error = Infallible,
    Future: Send + 'static,
> + Clone
+ Send
+ Sync
+ 'static {
    inner.map_response(|response: Response| response.map(|body| SyncBody(Mutex::new(body))))
}

struct SyncBody(Mutex<Body>);

impl http_body::Body for SyncBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match self.0.get_mut() {
            Ok(body) => Pin::new(body).poll_frame(context),
            Err(_) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().is_ok_and(|body| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().map(|body| body.size_hint()).unwrap_or_default()
    }
}

/// http-cache-tower-server.
struct HttpCacheTowerServer;

impl Subject for HttpCacheTowerServer {
    fn around(&self, inner: Inner) -> Service {
        service(ServerCacheLayer::new(MokaManager::default()).layer(inner))
    }
}

/// axum-response-cache.
struct AxumResponseCache;

impl Subject for AxumResponseCache {
    fn around(&self, inner: Inner) -> Service {
        service(ResponseCacheLayer::with_lifespan(LIFETIME).layer(inner))
    }
}

/// tower-http-cache-plus.
struct TowerHttpCachePlus;

impl Subject for TowerHttpCachePlus {
    fn around(&self, inner: Inner) -> Service {
        service(plus().layer(inner))
    }
}

fn plus() -> CachingLayer<Body, MokaCacheImplementation, CommonCacheKey> {
    let cache = moka::future::Cache::<CommonCacheKey, _, _>::builder()
        .for_http_response()
        .max_capacity(64 << 20)
        .time_to_live(LIFETIME)
        .build();
    CachingLayer::default().cache(MokaCacheImplementation::new(cache))
}

/// hitbox-tower, with its protection against stampedes, and keys of method, path and one named parameter.
struct Hitbox;

impl Subject for Hitbox {
    fn around(&self, inner: Inner) -> Service {
        service(hitbox(in_moka()).layer(own_bodies(inner)))
    }

    fn on_redis<'a>(
        &'a self,
        inner: Inner,
        url: &'a str,
    ) -> Pin<Box<dyn Future<Output = Option<Service>> + Send + 'a>> {
        let backend = HitboxRedis::builder().connection(ConnectionMode::single(url)).build();
        let service = service(hitbox(backend.expect("the URL of a Redis")).layer(own_bodies(inner)));
        Box::pin(async move { Some(service) })
    }
}

fn in_moka() -> MokaBackend {
    MokaBackend::builder().max_entries(1000).build()
}

type Flights = BroadcastConcurrencyManager<Result<CacheableHttpResponse<Body>, Infallible>>;
type Keys = Query<Path<Method<NeutralExtractor<Body>>>>;
type HitboxConfig = Config<NeutralRequestPredicate<Body>, NeutralResponsePredicate<Body>, Keys>;

fn hitbox<B: CacheBackend>(backend: B) -> hitbox_tower::Cache<B, HitboxConfig, Arc<Flights>> {
    let config = Config::builder()
        .request_predicate(NeutralRequestPredicate::new())
        .response_predicate(NeutralResponsePredicate::new())
        .extractor(Method::new().path("/{page}").query("a".to_owned()))
        .policy(PolicyConfig::builder().ttl(LIFETIME).concurrency(ConcurrencyLimit::MIN).build())
        .build();
    let flights = Arc::new(Flights::new());
    hitbox_tower::Cache::builder().backend(backend).config(config).concurrency_manager(flights).build()
}

/// hitbox-tower hands on requests with a body of its own.
fn own_bodies(
    inner: Inner,
) -> impl tower::Service<http::Request<BufferedBody<Body>>, Response = Response, Error = Infallible, Future: Send + 'static>
+ Clone
+ Send
+ Sync
+ 'static {
    inner.map_request(|request: http::Request<BufferedBody<Body>>| request.map(Body::new))
}
