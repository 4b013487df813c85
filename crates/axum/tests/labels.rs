//! How requests that come through a router are counted.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use axum::{Router, body::Body, extract::Path, routing::get};
use http::Request;
use larder::Cache;
use larder_axum::{AxumRouting, RouterExt};
use metrics_util::{
    CompositeKey,
    debugging::{DebugValue, DebuggingRecorder},
};
use std::collections::BTreeMap;
use tower::{Layer, Service, ServiceExt};

/// How many requests were counted for each route, when these paths have been asked for.
fn counted<S>(app: &S, paths: &[&str]) -> BTreeMap<String, u64>
where
    S: Service<Request<Body>, Error: std::fmt::Debug> + Clone,
{
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async {
            for path in paths {
                app.clone().oneshot(Request::builder().uri(*path).body(Body::empty()).unwrap()).await.unwrap();
            }
        });
    });
    let mut counts = BTreeMap::new();
    for (key, _, _, value) in snapshotter.snapshot().into_vec() {
        let key: CompositeKey = key;
        if let ("larder.requests", DebugValue::Counter(count)) = (key.key().name(), value) {
            let route = key.key().labels().find(|label| label.key() == "route").unwrap().value().to_owned();
            *counts.entry(route).or_default() += count;
        }
    }
    counts
}

async fn echo(Path(id): Path<String>) -> String {
    id
}

#[test]
fn a_route_is_counted_by_its_template_wherever_the_layer_is() {
    let cache = || Cache::builder().routing(AxumRouting).build().unwrap();
    let users = || Router::new().route("/users/{id}", get(echo));
    let on_router = users().route("/posts/{id}", get(echo)).layer(cache().layer().route("given"));
    let on_route = Router::new().route("/users/{id}", get(echo).layer(cache().layer().key("user:{id}")));
    let cached = Router::new().cached("/users/{id}", get(echo), cache().layer().key("user:{id}")).unwrap();
    // The cache knows of no framework; the router tells the layer.
    let untold = Router::new().cached("/users/{id}", get(echo), Cache::in_memory().layer().key("user:{id}")).unwrap();
    let nested = Router::new().nest("/api", users().layer(cache().layer()));
    let paths = ["/users/1", "/users/2", "/users/1"];
    type Counts<'a> = &'a [(&'a str, u64)];
    let cases: [(&str, Router, &[&str], Counts<'_>); 5] = [
        ("on the router", on_router, &["/users/1", "/posts/1", "/users/2"], &[("/posts/{id}", 1), ("/users/{id}", 2)]),
        ("on the route", on_route, &paths, &[("/users/{id}", 3)]),
        ("by cached", cached, &paths, &[("/users/{id}", 3)]),
        ("by cached, and a cache that was told nothing", untold, &paths, &[("/users/{id}", 3)]),
        ("nested", nested, &["/api/users/1", "/api/users/2"], &[("/api/users/{id}", 2)]),
    ];
    for (place, app, paths, expected) in cases {
        let expected = expected.iter().map(|(route, count)| ((*route).to_owned(), *count)).collect();
        assert_eq!(counted(&app, paths), expected, "{place}");
    }
}

/// axum has matched nothing yet.
#[test]
fn around_a_router_a_route_is_what_the_layer_calls_it() {
    let cache = || Cache::builder().routing(AxumRouting).build().unwrap();
    let users = || Router::new().route("/users/{id}", get(echo));
    for (layer, route) in [(cache().layer(), "unknown"), (cache().layer().route("users"), "users")] {
        let counts = counted(&layer.layer(users()), &["/users/1", "/users/2"]);
        assert_eq!(counts, BTreeMap::from([(route.to_owned(), 2)]));
    }
}
