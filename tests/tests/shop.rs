//! The shop: what it shows is never older than what was done, through any instance, with Redis and without.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use axum::{
    Router,
    body::{Body, to_bytes},
    http::{Request, StatusCode, header},
};
use larder_tests::{PostgresServer, RedisServer};
use shop::{Cached, Shop, database::Database};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::time::sleep;
use tower::ServiceExt;

/// An answer: its status, `X-Cache`, and body.
type Answer = (StatusCode, String, String);

async fn ask(router: &Router, method: &str, path: &str, body: &str) -> Answer {
    let request = Request::builder().method(method).uri(path).header(header::HOST, "shop.example");
    let request = request.header(header::CONTENT_TYPE, "application/json").body(Body::from(body.to_owned())).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let x_cache = response.headers().get("x-cache").map_or("", |value| value.to_str().unwrap()).to_owned();
    let status = response.status();
    let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, x_cache, String::from_utf8(body.to_vec()).unwrap())
}

async fn shown(router: &Router, path: &str) -> (String, String) {
    let (status, x_cache, body) = ask(router, "GET", path, "").await;
    assert_eq!(status, StatusCode::OK, "{path}: {body}");
    (x_cache, body)
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// A database of one test, and what it lies in.
struct Place {
    database: Database,
    _folder: Option<TempDir>,
    _server: Option<PostgresServer>,
}

async fn sqlite() -> Place {
    let folder = TempDir::new().unwrap();
    let url = format!("sqlite://{}?mode=rwc", folder.path().join("shop.sqlite").display());
    Place { database: Database::open(&url).await.unwrap(), _folder: Some(folder), _server: None }
}

async fn postgres() -> Place {
    let server = tokio::task::spawn_blocking(PostgresServer::start).await.unwrap();
    Place { database: Database::open(&server.url()).await.unwrap(), _folder: None, _server: Some(server) }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_is_seen_at_once() {
    what_is_done_is_seen(sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_is_seen_at_once_on_postgresql() {
    what_is_done_is_seen(postgres).await;
}

async fn what_is_done_is_seen(place: impl AsyncFn() -> Place) {
    for cached in [Cached::Nothing, Cached::Values, Cached::RoutesAndValues] {
        let place = place().await;
        let router = Shop::new(place.database.clone(), None, cached).await.unwrap().router().unwrap();
        let verdicts = if cached == Cached::RoutesAndValues { ["MISS", "HIT"] } else { ["", ""] };
        for (path, verdict) in [("/products/7", verdicts[0]), ("/products/7", verdicts[1])] {
            let (x_cache, body) = shown(&router, path).await;
            assert!(x_cache == verdict && body.contains(r#""price":107,"stock":10"#), "{x_cache} {body}");
        }
        let listed = shown(&router, "/categories/kitchen").await.1;
        assert!(listed.contains(r#""id":7,"#), "{listed}");

        let changed = ask(&router, "PUT", "/products/7/price", "999").await;
        assert!(changed.0 == StatusCode::OK && changed.2.contains(r#""price":999"#), "{changed:?}");
        let order = r#"{"id":"first","amount":3}"#;
        for _ in 0..2 {
            assert_eq!(ask(&router, "POST", "/products/7/orders", order).await.0, StatusCode::CREATED);
        }
        for path in ["/products/7", "/categories/kitchen"] {
            let body = shown(&router, path).await.1;
            assert!(body.contains(r#""price":999,"stock":7"#), "{cached:?} {path}: {body}");
        }
        let many = r#"{"id":"second","amount":8}"#;
        assert_eq!(ask(&router, "POST", "/products/7/orders", many).await.0, StatusCode::CONFLICT);
        assert!(shown(&router, "/products/7").await.1.contains(r#""stock":7"#));
        assert_eq!(ask(&router, "GET", "/products/9999", "").await.0, StatusCode::NOT_FOUND);
        assert_eq!(ask(&router, "POST", "/products/9999/orders", order).await.0, StatusCode::NOT_FOUND);
        for seen in ["1", "2"] {
            assert_eq!(ask(&router, "POST", "/products/7/views", "").await.2, seen);
        }
        assert_eq!(shown(&router, "/products/7/views").await.1, "2");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_is_sold_than_there_is() {
    for place in [sqlite().await, postgres().await] {
        let router = Shop::new(place.database.clone(), None, Cached::default()).await.unwrap().router().unwrap();
        let mut orders = tokio::task::JoinSet::new();
        for number in 0..20 {
            let router = router.clone();
            let order = format!(r#"{{"id":"order {number}","amount":1}}"#);
            orders.spawn(async move { ask(&router, "POST", "/products/7/orders", &order).await.0 });
        }
        let outcomes = orders.join_all().await;
        let placed = outcomes.iter().filter(|status| **status == StatusCode::CREATED).count();
        let refused = outcomes.iter().filter(|status| **status == StatusCode::CONFLICT).count();
        assert_eq!((placed, refused), (10, 10), "{outcomes:?}");
        assert!(shown(&router, "/products/7").await.1.contains(r#""stock":0"#));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_agree_and_go_on_without_redis() {
    instances_agree(sqlite().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_agree_and_go_on_without_redis_on_postgresql() {
    instances_agree(postgres().await).await;
}

async fn instances_agree(place: Place) {
    let mut redis = RedisServer::start();
    let instance = async || {
        let shop = Shop::new(place.database.clone(), Some(&redis.url()), Cached::default()).await.unwrap();
        (shop.router().unwrap(), shop)
    };
    let ((one, first), (other, second)) = (instance().await, instance().await);
    until("it is stored", async || shown(&one, "/products/7").await.0 == "HIT").await;
    until("the other finds it", async || shown(&other, "/products/7").await.0 == "HIT").await;
    ask(&one, "PUT", "/products/7/price", "999").await;
    assert!(shown(&one, "/products/7").await.1.contains(r#""price":999"#));
    until("the other hears of it", async || shown(&other, "/products/7").await.1.contains(r#""price":999"#)).await;
    ask(&other, "POST", "/products/7/orders", r#"{"id":"an order","amount":3}"#).await;
    assert!(shown(&other, "/products/7").await.1.contains(r#""stock":7"#));
    until("the first hears of it", async || shown(&one, "/products/7").await.1.contains(r#""stock":7"#)).await;

    for _ in 0..20 {
        ask(&one, "POST", "/products/7/views", "").await;
    }
    assert_eq!(shown(&other, "/products/7/views").await.1, "20", "what waits is seen by all");
    first.views.drain(Duration::from_secs(10)).await;
    drop((one, first));
    redis.kill();
    for path in ["/products/7", "/products/8", "/categories/kitchen", "/products/7/views"] {
        shown(&other, path).await;
    }
    let body = ask(&other, "PUT", "/products/7/price", "5").await;
    assert_eq!(body.0, StatusCode::OK, "a price is changed without Redis");
    assert!(shown(&other, "/products/7").await.1.contains(r#""price":5,"#));
    assert_eq!(ask(&other, "POST", "/products/7/views", "").await.2, "21", "what was behind is written");
    drop(second);
}
