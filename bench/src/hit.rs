//! A hit in memory: 1 KiB of JSON with three headers, next to the floor and to the handler it replaces.

use axum::{Router, body::Body, response::IntoResponse, routing::get};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri};
use http_body_util::BodyExt;
use larder::{Cache, DebugHeaders, Ttl};
use larder_axum::AxumRouting;
use quick_cache::sync::Cache as Bounded;
use std::{
    hint::black_box,
    sync::{Arc, Barrier},
    thread::scope,
    time::{Duration, Instant},
};
use tokio::runtime::Runtime;
use tower::{Layer, Service};

/// How many requests a case is given at once.
pub const CALLS: usize = 20_000;

/// 1 KiB of JSON, made anew as a handler would.
fn body() -> Bytes {
    let mut json = String::with_capacity(1024);
    json.push_str("{\"items\":[");
    for at in 0..35 {
        if at > 0 {
            json.push(',');
        }
        json.push_str("{\"id\":12345,\"name\":\"an item\"}");
    }
    json.push_str("]}");
    json.truncate(1024);
    Bytes::from(json)
}

async fn handler() -> impl IntoResponse {
    let headers = [("content-type", "application/json"), ("x-request-cost", "12"), ("cache-control", "max-age=3600")];
    (headers, body())
}

/// The app that is cached.
pub fn router() -> Router {
    Router::new().route("/items/{page}", get(handler))
}

/// Requests for one page, as a client behind a plain HTTP/1.1 connection sends them.
pub fn requests() -> Vec<Request<Body>> {
    (0..CALLS).map(|_| request()).collect()
}

/// One of them.
pub fn request() -> Request<Body> {
    request_for(&Uri::from_static("/items/7?size=35"))
}

/// A request for any page.
pub fn request_for(page: &Uri) -> Request<Body> {
    let request = Request::builder().uri(page.clone()).header("host", "shop.example").body(Body::empty());
    request.expect("a request")
}

/// What any cache in memory has to do: look up, clone the headers, make a response.
fn floor(headers: HeaderMap) -> impl FnMut(Vec<Request<Body>>) {
    let stored = shelf(headers);
    move |requests| on_the_floor(&stored, requests)
}

/// The handler's headers, known beforehand: a clone of them counts nothing.
fn known() -> HeaderMap {
    let fields = [("content-type", "application/json"), ("x-request-cost", "12"), ("cache-control", "max-age=3600")];
    fields.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).into_iter().collect()
}

/// The headers as the handler makes them, which is how a cache gets them.
fn made() -> HeaderMap {
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(router().call(request())).expect("an answer").into_parts().0.headers
}

/// With what a hit tells besides, were all of it known beforehand.
fn telling_all(mut headers: HeaderMap) -> HeaderMap {
    for (name, value) in [
        ("age", "1"),
        ("x-cache", "HIT"),
        ("cache-status", "larder; hit; ttl=3599; detail=near"),
        ("x-cache-key", "route:GET:shop.example:/items/7?size=35"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
}

type Shelf = Bounded<String, Arc<(HeaderMap, Bytes)>>;

fn shelf(headers: HeaderMap) -> Shelf {
    let stored = Bounded::new(1000);
    stored.insert("route:GET:shop.example:/items/7?size=35".to_owned(), Arc::new((headers, body())));
    stored
}

fn on_the_floor(stored: &Shelf, requests: Vec<Request<Body>>) {
    for request in requests {
        let found = stored.get("route:GET:shop.example:/items/7?size=35").expect("stored");
        let mut response = Response::new(Body::from(found.1.clone()));
        *response.headers_mut() = found.0.clone();
        black_box(&response);
        drop((request, response));
    }
}

fn service<S, B>(mut service: S) -> impl FnMut(Vec<Request<Body>>)
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: std::fmt::Debug,
    B: BodyExt<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let runtime = Runtime::new().expect("a runtime");
    move |requests| {
        runtime.block_on(async {
            for request in requests {
                let response = service.call(request).await.expect("an answer");
                black_box(&response);
                drop(response);
            }
        });
    }
}

/// The layer around the whole router.
pub fn around() -> impl FnMut(Vec<Request<Body>>) {
    telling(DebugHeaders::default())
}

fn telling(headers: DebugHeaders) -> impl FnMut(Vec<Request<Body>>) {
    let cache = Cache::builder().routing(AxumRouting).build().expect("a cache");
    warmed(cache.layer().ttl(Ttl::STANDARD).debug_headers(headers).layer(router()))
}

fn within() -> impl FnMut(Vec<Request<Body>>) {
    let cache = Cache::builder().routing(AxumRouting).build().expect("a cache");
    warmed(router().layer(cache.layer().ttl(Ttl::STANDARD)))
}

fn warmed<S, B>(inner: S) -> impl FnMut(Vec<Request<Body>>)
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: std::fmt::Debug,
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let mut inner = inner;
    let runtime = Runtime::new().expect("a runtime");
    let response = runtime.block_on(inner.call(requests().swap_remove(0))).expect("an answer");
    runtime.block_on(response.into_body().collect()).expect("a body");
    service(inner)
}

/// The cases, by name; each takes [`CALLS`] requests.
pub fn cases() -> Vec<(&'static str, Case)> {
    vec![
        ("floor: lookup, header clone, response", Box::new(floor(known()))),
        ("bare router", Box::new(service(router()))),
        ("layer around the router", Box::new(around())),
        ("the same, `DebugHeaders::Off`", Box::new(telling(DebugHeaders::Off))),
        ("floor, of the headers as the handler makes them", Box::new(floor(made()))),
        ("floor, of these and all that the layer tells", Box::new(floor(telling_all(made())))),
        ("layer in the router (`Router::layer`)", Box::new(within())),
    ]
}

/// How many requests a thread of [`together`] makes before it has them answered.
const BATCH: usize = 100;

/// Nanoseconds for each hit of the same page by each of so many threads at the same time, a hundred requests after the other
/// that lie in the processor's own memory: of the floor, of the bare router, and of the layer around it.
pub fn together(threads: usize) -> [f64; 3] {
    let stored = Arc::new(shelf(known()));
    let floor = of_threads(threads, || {
        let stored = stored.clone();
        move |requests| on_the_floor(&stored, requests)
    });
    let bare = of_threads(threads, || service(router()));
    let cache = Cache::builder().routing(AxumRouting).build().expect("a cache");
    let cached = cache.layer().ttl(Ttl::STANDARD).layer(router());
    drop(warmed(cached.clone()));
    let layer = of_threads(threads, || service(cached.clone()));
    [floor, bare, layer]
}

fn of_threads<C: FnMut(Vec<Request<Body>>) + Send>(threads: usize, mut case: impl FnMut() -> C) -> f64 {
    let began = Barrier::new(threads);
    let each = |mut case: C| {
        let (mut taken, rounds) = (Duration::ZERO, 10 * CALLS / BATCH);
        began.wait();
        for _ in 0..rounds {
            let requests = (0..BATCH).map(|_| request()).collect();
            let at = Instant::now();
            case(requests);
            taken += at.elapsed();
        }
        taken.as_nanos() as f64 / (rounds * BATCH) as f64
    };
    let cases: Vec<C> = (0..threads).map(|_| case()).collect();
    let taken: Vec<f64> = scope(|scope| {
        let running: Vec<_> = cases.into_iter().map(|case| scope.spawn(|| each(case))).collect();
        running.into_iter().map(|thread| thread.join().expect("figures")).collect()
    });
    taken.iter().sum::<f64>() / threads as f64
}

/// Something that answers requests.
pub type Case = Box<dyn FnMut(Vec<Request<Body>>)>;
