//! Settings and requests of every kind: a clear answer, and the response unharmed.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use larder::{Cache, CacheLayer, ConfigError, Deadlines, Key, Ttl};
#[cfg(feature = "testing")]
use larder::{
    MemoryStore,
    testing::{Fault, Faulty},
};
use metrics_util::{
    CompositeKey,
    debugging::{DebugValue, DebuggingRecorder},
};
use proptest::prelude::*;
use std::{convert::Infallible, time::Duration};
use tower::{Layer, ServiceExt, service_fn};

/// X-Cache of two requests, the second after the first; the body must come as it is.
async fn twice(
    layer: &CacheLayer,
    request: impl Fn() -> Request<Empty<Bytes>>,
    headers: &[(HeaderName, HeaderValue)],
) -> [String; 2] {
    let mut seen = [String::new(), String::new()];
    for seen in &mut seen {
        let headers = headers.to_vec();
        let origin = service_fn(move |_: Request<Empty<Bytes>>| {
            let headers = headers.clone();
            async move {
                let mut response = Response::new(Full::new(Bytes::from_static(b"page")));
                response.headers_mut().extend(headers);
                Ok::<_, Infallible>(response)
            }
        });
        let response = layer.layer(origin).oneshot(request()).await.unwrap();
        // The response may have an X-Cache of its own, of whatever bytes, before the word.
        let x_cache = String::from_utf8_lossy(response.headers()["x-cache"].as_bytes()).into_owned();
        *seen = x_cache.rsplit(", ").next().unwrap_or_default().to_owned();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "page");
    }
    seen
}

fn page() -> Request<Empty<Bytes>> {
    Request::builder().uri("/page").body(Empty::<Bytes>::new()).unwrap()
}

#[test]
fn a_setting_that_cannot_work_is_named() {
    for namespace in ["", "shop:eu", "{shop}", "a b"] {
        let error = Cache::builder().namespace(namespace).build().unwrap_err();
        assert!(matches!(error, ConfigError::Namespace(_)) && error.to_string().contains(namespace), "{error}");
    }
    let error = Cache::builder().identifier("my cache").build().unwrap_err();
    assert!(error.to_string().contains("my cache"), "{error}");
    let error = Cache::builder().store_budget(Duration::ZERO).build().unwrap_err();
    assert!(error.to_string().contains("store_budget"), "{error}");
    let (usual, none) = (Deadlines::default(), Duration::ZERO);
    for (name, deadlines) in [
        ("read", Deadlines { read: none, ..usual }),
        ("fill", Deadlines { fill: none, ..usual }),
        ("purge", Deadlines { purge: none, ..usual }),
    ] {
        let error = Cache::builder().deadlines(deadlines).build().unwrap_err();
        assert!(error.to_string().contains(name), "{name}: {error}");
    }
    for key in ["user:{id", "}", ""] {
        assert!(matches!(Cache::in_memory().layer().key(key).checked(), Err(ConfigError::Key(_))), "{key}");
    }
}

#[tokio::test(start_paused = true)]
async fn extreme_settings_do_what_they_say() {
    let layer = || Cache::in_memory().layer();
    let words = |one: &str, two: &str| [one.to_owned(), two.to_owned()];
    assert_eq!(twice(&layer().ttl(Ttl::secs(0)), page, &[]).await, words("MISS", "BYPASS"));
    assert_eq!(twice(&layer().ttl(Ttl::secs(1_000_000_000_000)), page, &[]).await, words("MISS", "HIT"));
    assert_eq!(twice(&layer().ttl(Duration::MAX), page, &[]).await, words("MISS", "HIT"));
    for jitter in [f64::NAN, f64::INFINITY, -1.0] {
        assert_eq!(twice(&layer().jitter(jitter), page, &[]).await[0], "MISS", "{jitter}");
    }
    assert_eq!(twice(&layer().key_fn(|_| Key::new("")), page, &[]).await, words("BYPASS", "BYPASS"));
    for key in ["x".repeat(10 << 20), "\0\r\n\u{7f} {}*?[]\"\\".to_owned(), "é".repeat(300)] {
        assert_eq!(twice(&layer().key_fn(move |_| Key::new(&key)), page, &[]).await, words("MISS", "HIT"));
    }
}

/// A year is as good as for ever, but for arithmetic.
#[cfg(feature = "testing")]
#[tokio::test(start_paused = true)]
async fn what_may_take_for_ever_may() {
    let store = Faulty::new(MemoryStore::default());
    let ever = Duration::MAX;
    let cache = Cache::builder()
        .store(store.clone())
        .near_life(ever)
        .deadlines(Deadlines { read: ever, fill: ever, purge: ever })
        .store_budget(ever)
        .lock_wait(ever);
    // They are compared as they were given, so the longest two contradict each other.
    assert!(cache.build().is_err());
    let cache = Cache::builder()
        .store(store.clone())
        .near_life(ever)
        .deadlines(Deadlines { read: ever - Duration::from_secs(1), fill: ever, purge: ever })
        .store_budget(ever)
        .lock_wait(ever)
        .build()
        .unwrap();
    let layer = cache.layer().hard_timeout(ever).stale_while_revalidate(ever).stale_if_error(ever).throttle(ever);
    // So that every operation waits.
    store.set(Fault::Dawdles(Duration::from_secs(60)));
    let post = || Request::builder().method("POST").uri("/page").body(Empty::<Bytes>::new()).unwrap();
    assert_eq!(twice(&layer, page, &[]).await, ["MISS", "HIT"].map(str::to_owned));
    assert_eq!(twice(&layer, post, &[]).await, ["BYPASS", "BYPASS"].map(str::to_owned));
    assert_eq!(cache.drain(ever).await, 0);
    assert_eq!(twice(&layer, page, &[]).await[0], "MISS");
}

#[test]
fn every_request_is_counted_once_with_its_reason() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async {
            let layer = Cache::in_memory().layer().ttl(Ttl::REALTIME).key("page");
            twice(&layer, page, &[]).await;
            twice(&layer, || Request::builder().method("POST").body(Empty::<Bytes>::new()).unwrap(), &[]).await;
        });
    });
    let mut counted: Vec<(Vec<String>, u64)> = Vec::new();
    let mut named = Vec::new();
    for (key, _, _, value) in snapshotter.snapshot().into_vec() {
        let key: CompositeKey = key;
        named.push(key.key().name().to_owned());
        if let (DebugValue::Counter(count), "larder.requests") = (value, key.key().name()) {
            let label = |name: &str| key.key().labels().find(|label| label.key() == name).unwrap().value().to_owned();
            counted.push((["route", "tier", "result", "reason", "layer"].map(label).to_vec(), count));
        }
    }
    counted.sort();
    let expected = [
        (["page", "realtime", "bypass", "method", "origin"], 2),
        (["page", "realtime", "hit", "near", "near"], 1),
        (["page", "realtime", "miss", "never", "origin"], 1),
    ];
    assert_eq!(counted, expected.map(|(labels, count)| (labels.map(str::to_owned).to_vec(), count)));
    for name in ["larder.fetch.duration", "larder.store"] {
        assert!(named.iter().any(|known| known == name), "{name}: {named:?}");
    }
}

fn field() -> impl Strategy<Value = (HeaderName, HeaderValue)> {
    let names = [
        "cache-control",
        "vary",
        "age",
        "date",
        "expires",
        "set-cookie",
        "connection",
        "content-length",
        "cdn-cache-control",
        "host",
        "cookie",
        "authorization",
        "range",
        "x-cache",
        "cache-status",
        "no-vary-search",
        "x-other",
    ];
    let words = proptest::sample::select(
        &[
            "max-age=60",
            "no-store",
            "public",
            "*",
            "accept",
            "0",
            "-1",
            "99999999999999999999",
            "\"",
            ",",
            ";",
            "=",
            " ",
        ][..],
    );
    let spelled = proptest::collection::vec(words, 0..4).prop_map(|words| words.concat().into_bytes());
    let value = prop_oneof![spelled, proptest::collection::vec(any::<u8>(), 0..12)];
    let value = value.prop_filter_map("a header value", |bytes| HeaderValue::from_bytes(&bytes).ok());
    (proptest::sample::select(names.to_vec()).prop_map(HeaderName::from_static), value)
}

#[test]
fn waits_that_contradict_each_other_are_refused_by_name() {
    let second = Duration::from_secs(1);
    for (soft, hard, is_right) in [(second, 2 * second, true), (second, second, false), (2 * second, second, false)] {
        let layer = Cache::in_memory().layer().soft_timeout(soft).hard_timeout(hard).checked();
        assert_eq!(layer.is_ok(), is_right, "{soft:?}, {hard:?}");
    }
    let read = Deadlines::default().read;
    for (lock_wait, is_right) in [(read * 2, true), (read, false), (Duration::ZERO, false)] {
        let cache = Cache::builder().lock_wait(lock_wait).build();
        assert_eq!(cache.is_ok(), is_right, "{lock_wait:?}");
        if let Err(error) = cache {
            assert!(error.to_string().contains("lock_wait") && error.to_string().contains("100ms"), "{error}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_header_bytes_harm_a_response(
        asked in proptest::collection::vec(field(), 0..5),
        answered in proptest::collection::vec(field(), 0..5),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let request = || {
            let mut request = page();
            request.headers_mut().extend(asked.clone());
            request
        };
        let layer = || Cache::in_memory().layer();
        for layer in [layer(), layer().honor_client_directives(), layer().no_vary_search()] {
            let is_shed = asked.iter().any(|(_, value)| value.as_bytes().windows(14).any(|word| word == b"only-if-cached"));
            prop_assume!(!is_shed);
            runtime.block_on(twice(&layer, request, &answered));
        }
    }
}
