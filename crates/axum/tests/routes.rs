//! larder in a real axum router.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use axum::{
    Json, Router,
    body::Body,
    extract::Path,
    routing::{get, post},
};
use http::{Method, Request};
use http_body_util::BodyExt;
use larder::{Cache, Caching, ConfigError, Key, KeyError, Purge, Ttl};
use larder_axum::{AxumRouting, CacheHandle, CachingPart, RouterExt};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use tower::{Layer, ServiceExt};

fn cache() -> Cache {
    Cache::builder().routing(AxumRouting).build().unwrap()
}

/// X-Cache, X-Cache-Key and the body.
async fn send(app: &Router, method: Method, path: &str) -> (String, String, String) {
    let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
    let (head, body) = app.clone().oneshot(request).await.unwrap().into_parts();
    let header = |name: &str| head.headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    let body = body.collect().await.unwrap().to_bytes();
    (header("x-cache"), header("x-cache-key"), String::from_utf8_lossy(&body).into_owned())
}

async fn x_cache(app: &Router, path: &str) -> String {
    send(app, Method::GET, path).await.0
}

async fn echo(Path(id): Path<String>) -> String {
    id
}

#[tokio::test]
async fn a_template_is_filled_from_the_path() {
    let layer = cache().layer().ttl(Ttl::STANDARD).key("user:{id}");
    let app = Router::new().cached("/users/{id}", get(echo), layer).unwrap();
    assert_eq!(send(&app, Method::GET, "/users/1").await, ("MISS".into(), "user:1".into(), "1".into()));
    assert_eq!(send(&app, Method::GET, "/users/1").await, ("HIT".into(), "user:1".into(), "1".into()));
    assert_eq!(send(&app, Method::GET, "/users/2").await.2, "2");
    assert_eq!(send(&app, Method::GET, "/users/a%3Ab%2Fc").await.1, "user:a%3Ab/c");
}

#[tokio::test]
async fn layers_work_wherever_axum_takes_them() {
    let cache = cache();
    let on_route = Router::new().route("/u/{id}", get(echo).layer(cache.layer().key("a:{id}")));
    let on_router = Router::new().route("/u/{id}", get(echo)).layer(cache.layer().key("b:{id}"));
    let nested = Router::new().nest(
        "/{tenant}",
        Router::new().route("/u/{id}", get(|| async { "" }).layer(cache.layer().key("c:{tenant}:{id}"))),
    );
    for (app, path, key) in [(on_route, "/u/1", "a:1"), (on_router, "/u/1", "b:1"), (nested, "/t/u/1", "c:t:1")] {
        assert_eq!(send(&app, Method::GET, path).await.1, key);
        assert_eq!(x_cache(&app, path).await, "HIT");
    }
    let around = cache.layer().layer(Router::new().route("/u/{id}", get(echo)));
    let request = || Request::builder().uri("/u/1").body(Body::empty()).unwrap();
    for expected in ["MISS", "HIT"] {
        let response = around.clone().oneshot(request()).await.unwrap();
        assert_eq!(response.headers()["x-cache"], expected);
        response.into_body().collect().await.unwrap();
    }
}

#[tokio::test]
async fn a_parameter_that_the_route_lacks_is_an_error_and_never_a_shared_key() {
    let layer = cache().layer().key("user:{name}");
    let error = Router::<()>::new().cached("/users/{id}", get(echo), layer.clone()).unwrap_err();
    let expected = KeyError::UnknownParameter { template: "user:{name}".into(), parameter: "name".into() };
    assert_eq!(error, ConfigError::Key(expected));
    let app = Router::new().route("/users/{id}", get(echo).layer(layer));
    for id in ["1", "2", "1"] {
        assert_eq!(send(&app, Method::GET, &format!("/users/{id}")).await, ("BYPASS".into(), String::new(), id.into()));
    }
}

#[tokio::test]
async fn keys_that_are_none_are_errors_of_configuration() {
    for key in ["", "user:{id", "user:}", "{a}{b}"] {
        let layer = cache().layer().key(key);
        assert!(matches!(layer.clone().checked(), Err(ConfigError::Key(_))), "{key}");
        let app = Router::new().route("/", get(|| async { "body" }).layer(layer));
        assert_eq!(send(&app, Method::GET, "/").await, ("BYPASS".into(), String::new(), "body".into()), "{key}");
    }
    let without_routing = Cache::in_memory().layer().key("user:{id}");
    assert!(matches!(without_routing.checked(), Err(ConfigError::Key(KeyError::NoRouting(_)))));
    let post = cache().layer().methods([Method::POST]);
    assert_eq!(post.checked().unwrap_err(), ConfigError::MethodWithoutKey(Method::POST));
}

#[tokio::test]
async fn handlers_adjust_and_refuse() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let app = Router::new()
        .route("/refused", get(|| async { (CachingPart(Caching::no_store()), "x") }))
        .route("/short", get(|| async { (CachingPart(Caching::new().ttl(Ttl::secs(0))), "x") }))
        .route(
            "/tagged",
            get(move || async move {
                counted.fetch_add(1, Ordering::SeqCst);
                (CachingPart(Caching::new().ttl(Ttl::REALTIME).tag("users")), Json(1))
            }),
        )
        .layer(cache().layer());
    for path in ["/refused", "/short"] {
        assert_eq!(x_cache(&app, path).await, "MISS");
        assert_eq!(x_cache(&app, path).await, "BYPASS", "known to be uncacheable");
    }
    assert_eq!(x_cache(&app, "/tagged").await, "MISS");
    assert_eq!(x_cache(&app, "/tagged").await, "HIT");
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_handler_purges_what_it_has_changed() {
    let cache = cache();
    let change = |Path(id): Path<String>, CacheHandle(cache): CacheHandle| async move {
        cache.purge(Purge::key(Key::new("user").part(id))).await.map_err(|error| error.to_string()).map(|_| "changed")
    };
    let app = Router::new().route("/users/{id}", get(echo).post(change)).layer(cache.layer().key("user:{id}"));
    assert_eq!(x_cache(&app, "/users/1").await, "MISS");
    assert_eq!(x_cache(&app, "/users/1").await, "HIT");
    assert_eq!(send(&app, Method::POST, "/users/1").await.2, "changed");
    assert_eq!(x_cache(&app, "/users/1").await, "MISS");
    let bare = Router::<()>::new().route("/", post(|_: CacheHandle| async {}));
    assert!(send(&bare, Method::POST, "/").await.2.contains("no CacheLayer"));
}

#[tokio::test]
async fn of_two_layers_the_inner_decides() {
    let cache = cache();
    let inner = cache.layer().ttl(Ttl::secs(60)).jitter(0.0).key("user:{id}");
    let app = Router::new()
        .route("/users/{id}", get(echo).layer(inner))
        .route("/never", get(|| async { "x" }).layer(cache.layer().skip(|_| true)))
        .layer(cache.layer().ttl(Ttl::STATIC));
    let (x_cache, key, _) = send(&app, Method::GET, "/users/1").await;
    assert_eq!((x_cache.as_str(), key.as_str()), ("MISS", "user:1"));
    let (x_cache, key, _) = send(&app, Method::GET, "/users/1").await;
    assert_eq!((x_cache.as_str(), key.as_str()), ("HIT", "user:1"));
    for _ in 0..2 {
        assert_eq!(send(&app, Method::GET, "/never").await.0, "BYPASS");
    }
    let same_key = Router::new().route("/a", get(|| async { "x" }).layer(cache.layer())).layer(cache.layer());
    assert_eq!(send(&same_key, Method::GET, "/a").await.0, "MISS");
    assert_eq!(send(&same_key, Method::GET, "/a").await.0, "HIT");
}
