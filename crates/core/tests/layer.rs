//! The layer around a service, in memory, on tokio's paused clock.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use larder::{Cache, CacheLayer, CacheService, Purge, Ttl};
use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tower::{Layer, Service, ServiceExt};

/// What a client saw.
#[derive(Debug)]
struct Seen {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Seen {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }

    fn x_cache(&self) -> &str {
        self.header("x-cache")
    }
}

/// An origin whose answers say how often it was called, and with what headers they are sent.
#[derive(Clone)]
struct Origin {
    calls: Arc<AtomicUsize>,
    headers: Vec<(&'static str, &'static str)>,
    takes: Duration,
}

impl Origin {
    fn new(headers: &[(&'static str, &'static str)]) -> Self {
        Self { calls: Arc::default(), headers: headers.to_vec(), takes: Duration::ZERO }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    fn behind(&self, layer: &CacheLayer) -> CacheService<Self> {
        layer.layer(self.clone())
    }
}

impl Service<Request<Empty<Bytes>>> for Origin {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Empty<Bytes>>) -> Self::Future {
        let origin = self.clone();
        Box::pin(async move {
            let call = origin.calls.fetch_add(1, Ordering::SeqCst) + 1;
            tokio::time::sleep(origin.takes).await;
            let language = request.headers().get("accept-language").map_or("", |value| value.to_str().unwrap());
            let mut response = Response::new(Full::new(Bytes::from(format!("{call}{language}"))));
            for (name, value) in origin.headers {
                response.headers_mut().append(name, value.parse().unwrap());
            }
            Ok(response)
        })
    }
}

async fn get<S, B>(service: &S, request: Request<Empty<Bytes>>) -> Seen
where
    S: Service<Request<Empty<Bytes>>, Response = Response<B>, Error = Infallible> + Clone,
    B: http_body::Body<Data = Bytes, Error: std::fmt::Debug>,
{
    let (head, body) = service.clone().oneshot(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Seen { status: head.status, headers: head.headers, body: String::from_utf8(body.to_vec()).unwrap() }
}

fn request(headers: &[(&str, &str)]) -> Request<Empty<Bytes>> {
    let request = Request::builder().uri("/a?b=c").header("host", "shop.example");
    headers
        .iter()
        .fold(request, |request, (name, value)| request.header(*name, *value))
        .body(Empty::<Bytes>::new())
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_miss_is_followed_by_hits_until_the_lifetime_is_over() {
    let origin = Origin::new(&[]);
    let service = origin.behind(&Cache::in_memory().layer().ttl(Ttl::REALTIME).jitter(0.0));
    let miss = get(&service, request(&[])).await;
    assert_eq!((miss.status, miss.x_cache(), miss.body.as_str()), (StatusCode::OK, "MISS", "1"));
    assert_eq!(miss.header("cache-status"), "larder; fwd=uri-miss; fwd-status=200; stored; ttl=10; detail=never");
    tokio::time::advance(Duration::from_millis(2_500)).await;
    let hit = get(&service, request(&[])).await;
    assert_eq!((hit.x_cache(), hit.body.as_str(), hit.header("age")), ("HIT", "1", "2"));
    assert_eq!(hit.header("cache-status"), "larder; hit; ttl=7; detail=near");
    assert_eq!(hit.header("x-cache-key"), "route:GET:shop.example:/a?b=c");
    tokio::time::advance(Duration::from_millis(7_500)).await;
    let expired = get(&service, request(&[])).await;
    assert_eq!((expired.x_cache(), expired.body.as_str()), ("EXPIRED", "2"));
    assert_eq!(get(&service, request(&[])).await.body, "2");
    assert_eq!(origin.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn variants_are_told_apart() {
    let origin = Origin::new(&[("vary", "Accept-Language")]);
    let service = origin.behind(&Cache::in_memory().layer());
    let fr = [("accept-language", "fr")];
    assert_eq!(get(&service, request(&fr)).await.body, "1fr");
    let other = get(&service, request(&[])).await;
    assert_eq!((other.body.as_str(), other.x_cache()), ("2", "MISS"));
    assert!(other.header("cache-status").contains("fwd=vary-miss"), "{other:?}");
    assert_eq!(get(&service, request(&fr)).await.body, "1fr");
    assert_eq!(get(&service, request(&[])).await.body, "2");
    assert_eq!(origin.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_purge_removes_every_variant() {
    let origin = Origin::new(&[("vary", "Accept-Language")]);
    let cache = Cache::in_memory();
    let service = origin.behind(&cache.layer().key("page"));
    let fr = [("accept-language", "fr")];
    get(&service, request(&fr)).await;
    get(&service, request(&[])).await;
    assert_eq!(cache.purge(Purge::key("page")).await.unwrap().resources, 1);
    assert_eq!(get(&service, request(&fr)).await.body, "3fr");
    assert_eq!(get(&service, request(&[])).await.body, "4");
}

#[tokio::test(start_paused = true)]
async fn an_answer_asked_for_before_a_purge_is_not_stored_after_it() {
    let origin = Origin { takes: Duration::from_secs(1), ..Origin::new(&[]) };
    let cache = Cache::in_memory();
    let service = origin.behind(&cache.layer().key("page"));
    let early = tokio::spawn({
        let service = service.clone();
        async move { get(&service, request(&[])).await }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    cache.purge(Purge::key("page")).await.unwrap();
    assert_eq!(early.await.unwrap().body, "1");
    assert_eq!(get(&service, request(&[])).await.body, "2");
}
