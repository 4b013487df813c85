//! The labels of what is counted.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use bytes::Bytes;
use http::{Request, Response, request::Parts};
use http_body_util::{Empty, Full};
use larder::{Cache, CacheLayer, Routing, Ttl};
use metrics_util::{
    CompositeKey,
    debugging::{DebugValue, DebuggingRecorder},
};
use std::{collections::BTreeMap, convert::Infallible, time::Duration};
use tower::{Layer, ServiceExt, service_fn};

/// How many requests were counted for each value of a label, when each of these has gone through its layer.
fn counted(label: &str, requests: impl IntoIterator<Item = (CacheLayer, String)>) -> BTreeMap<String, u64> {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async {
            for (layer, path) in requests {
                let origin = service_fn(|_: Request<Empty<Bytes>>| async {
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"page"))))
                });
                let request = Request::builder().uri(path).body(Empty::new()).unwrap();
                layer.layer(origin).oneshot(request).await.unwrap();
            }
        });
    });
    let mut counts = BTreeMap::new();
    for (key, _, _, value) in snapshotter.snapshot().into_vec() {
        let key: CompositeKey = key;
        if let ("larder.requests", DebugValue::Counter(count)) = (key.key().name(), value) {
            let value = key.key().labels().find(|known| known.key() == label).unwrap().value().to_owned();
            *counts.entry(value).or_default() += count;
        }
    }
    counts
}

fn counts<const N: usize>(expected: [(&str, u64); N]) -> BTreeMap<String, u64> {
    expected.map(|(value, count)| (value.to_owned(), count)).into()
}

#[test]
fn a_tier_is_counted_by_its_name() {
    let layer = || Cache::in_memory().layer();
    for (layer, tier) in [
        (layer(), "standard"),
        (layer().ttl(Ttl::REALTIME), "realtime"),
        (layer().ttl(Ttl::FREQUENT), "frequent"),
        (layer().ttl(Ttl::STANDARD), "standard"),
        (layer().ttl(Ttl::REFERENCE), "reference"),
        (layer().ttl(Ttl::STATIC), "static"),
        (layer().ttl(Ttl::secs(10)), "custom"),
        (layer().ttl(Duration::from_secs(10)), "custom"),
        (layer().ttl(Ttl::tier("night", Duration::from_secs(10))), "night"),
        (layer().ttl(Ttl::STATIC).ttl_override(Ttl::REALTIME), "realtime"),
        (layer().no_default_ttl(), "stated"),
    ] {
        let requests = ["/a", "/a", "/b"].map(|path| (layer.clone(), path.to_owned()));
        assert_eq!(counted("tier", requests), counts([(tier, 3)]));
    }
}

/// A framework that makes a route of each path but one.
#[derive(Debug)]
struct EachPath;

impl Routing for EachPath {
    fn route<'a>(&self, head: &'a Parts) -> Option<&'a str> {
        Some(head.uri.path()).filter(|path| *path != "/unrouted")
    }

    fn parameters(&self, _: &mut Parts) -> Option<Vec<(String, String)>> {
        None
    }
}

#[test]
fn a_route_is_what_the_framework_says_else_the_layer_else_its_key() {
    let (told, untold) = (Cache::builder().routing(EachPath).build().unwrap(), Cache::in_memory());
    for (layer, path, route) in [
        (told.layer().key("page").route("given"), "/a", "/a"),
        (told.layer().key("page").route("given"), "/unrouted", "given"),
        (untold.layer().routing(EachPath).key("page"), "/b", "/b"),
        (untold.layer().key("page").route("given"), "/a", "given"),
        (untold.layer().key("page"), "/a", "page"),
        (untold.layer(), "/a", "unknown"),
    ] {
        assert_eq!(counted("route", [(layer, path.to_owned())]), counts([(route, 1)]));
    }
}

/// In each tier, so that no layer of another takes their room.
#[test]
fn of_more_than_five_hundred_routes_the_rest_count_as_other() {
    let cache = Cache::builder().routing(EachPath).build().unwrap();
    let layer = cache.layer();
    let paths = (0..503).chain([0, 499, 500]).map(|n| format!("/{n}"));
    let requests =
        paths.map(|path| (layer.clone(), path)).chain([(cache.layer().ttl(Ttl::REALTIME), "/700".to_owned())]);
    let counts = counted("route", requests.collect::<Vec<_>>());
    assert_eq!(counts["other"], 4, "500 to 502, and 500 once more");
    assert_eq!((counts["/0"], counts["/499"], counts["/700"]), (2, 2, 1));
    assert_eq!(counts.len(), 502);
    assert!(!counts.contains_key("/500"));
}
