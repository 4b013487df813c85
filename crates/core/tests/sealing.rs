//! What the service within is shown of a request, and that nothing else can shape what others get.
#![cfg(feature = "testing")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Empty, Full};
use larder::{Cache, CacheLayer, Purge, TRACKING_PARAMETERS};
use std::{convert::Infallible, time::Duration};
use tower::{Layer, ServiceExt, service_fn};

/// X-Cache, and the request as the service within saw it when the answer was made.
async fn get(layer: &CacheLayer, target: &str, headers: &[(&str, &str)]) -> (String, String) {
    let origin = service_fn(|request: Request<Empty<Bytes>>| async move {
        let mut seen: Vec<String> =
            request.headers().iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        seen.sort();
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(format!("{} {}", request.uri(), seen.join(", "))))))
    });
    let mut request = Request::builder().uri(target).header("host", "shop");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = layer.layer(origin).oneshot(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    let x_cache = response.headers()["x-cache"].to_str().unwrap().to_owned();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (x_cache, String::from_utf8(body.to_vec()).unwrap())
}

fn words(x_cache: &str, seen: &str) -> (String, String) {
    (x_cache.to_owned(), seen.to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_sealed_service_sees_nothing_that_is_not_in_the_key() {
    let layer = Cache::in_memory().layer().sealed();
    let poison = [
        ("x-forwarded-host", "evil"),
        ("x-original-url", "/admin"),
        ("x-http-method-override", "POST"),
        ("cookie", "session=1"),
        ("origin", "https://evil"),
        ("accept-encoding", "gzip"),
        ("range", "bytes=cow"),
        ("if-none-match", "\"a\""),
    ];
    assert_eq!(get(&layer, "/page", &poison[..6]).await, words("MISS", "/page host: shop"));
    assert_eq!(get(&layer, "/page", &[]).await, words("HIT", "/page host: shop"));
    assert_eq!(get(&layer, "/other", &poison).await.1, "/other host: shop, range: bytes=cow");
    assert_eq!(get(&layer, "/other", &[]).await, words("MISS", "/other host: shop"), "a part is not stored");
}

#[tokio::test(start_paused = true)]
async fn credentials_go_past_a_sealed_cache_as_they_are() {
    let layer = Cache::in_memory().layer().sealed();
    let user = [("authorization", "Basic YTpi"), ("x-a", "1")];
    let seen = "/page authorization: Basic YTpi, host: shop, x-a: 1";
    assert_eq!(get(&layer, "/page", &user).await, words("BYPASS", seen));
    assert_eq!(get(&layer, "/page", &[]).await, words("MISS", "/page host: shop"));
    assert_eq!(get(&layer, "/page", &user).await, words("BYPASS", seen));
}

#[tokio::test(start_paused = true)]
async fn the_headers_of_the_key_are_seen_and_tell_requests_apart() {
    let cache = Cache::in_memory();
    let layer = cache.layer().key("page").sealed().key_headers([header::ACCEPT_LANGUAGE]);
    let (de, en) = ([("accept-language", "de")], [("accept-language", "en")]);
    assert_eq!(get(&layer, "/", &de).await, words("MISS", "/ accept-language: de, host: shop"));
    assert_eq!(get(&layer, "/", &en).await, words("MISS", "/ accept-language: en, host: shop"));
    assert_eq!(get(&layer, "/", &[]).await, words("MISS", "/ host: shop"));
    assert_eq!(get(&layer, "/", &[("accept-language", "DE")]).await.0, "HIT");
    cache.purge(Purge::key("page")).await.unwrap();
    for headers in [&de[..], &en, &[]] {
        assert_eq!(get(&layer, "/", headers).await.0, "MISS", "a purge removes all of them");
    }
}

#[tokio::test(start_paused = true)]
async fn parameters_that_are_left_out_are_seen_by_nobody() {
    let layer = Cache::in_memory().layer().without_query(TRACKING_PARAMETERS).sort_query();
    assert_eq!(get(&layer, "/p?utm_source=evil&b=2&a=1", &[]).await, words("MISS", "/p?a=1&b=2 host: shop"));
    assert_eq!(get(&layer, "/p?a=1&fbclid=7&b=2", &[]).await, words("HIT", "/p?a=1&b=2 host: shop"));
    let layer = Cache::in_memory().layer().only_query(["page"]);
    assert_eq!(get(&layer, "/p?x=evil", &[]).await, words("MISS", "/p host: shop"));
    assert_eq!(get(&layer, "/p", &[]).await.0, "HIT");
    assert_eq!(get(&layer, "/p?page=2&x=1", &[]).await, words("MISS", "/p?page=2 host: shop"));
}

#[tokio::test(start_paused = true)]
async fn beyond_sixteen_variants_requests_go_past_the_cache_until_one_has_expired() {
    let layer = Cache::in_memory().layer().ttl(Duration::from_secs(60)).jitter(0.0).key_headers([header::ACCEPT]);
    let ask = async |media: usize| get(&layer, "/", &[("accept", &*media.to_string())]).await.0;
    for media in 0..16 {
        assert_eq!(ask(media).await, "MISS");
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert_eq!(ask(16).await, "BYPASS");
    assert_eq!(ask(15).await, "HIT");
    // Ten minutes beyond its lifetime, the first one is no longer kept.
    tokio::time::advance(Duration::from_secs(44 + 600)).await;
    assert_eq!(ask(16).await, "MISS");
    assert_eq!(ask(16).await, "HIT");
    assert_eq!(ask(17).await, "BYPASS");
}

#[tokio::test(start_paused = true)]
async fn what_the_origin_was_not_shown_makes_no_variant() {
    let layer = Cache::in_memory().layer().sealed().key_headers([header::ACCEPT_LANGUAGE]);
    let get = async |headers: &[(&str, &str)]| {
        let origin = service_fn(|_: Request<Empty<Bytes>>| async {
            let response = Response::builder().header("vary", "Accept-Language, X-A, Cookie");
            Ok::<_, Infallible>(response.body(Full::new(Bytes::from_static(b"page"))).unwrap())
        });
        let request =
            headers.iter().fold(Request::builder().uri("/page").header("host", "shop"), |request, (name, value)| {
                request.header(*name, *value)
            });
        let response = layer.layer(origin).oneshot(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
        let x_cache = response.headers()["x-cache"].to_str().unwrap().to_owned();
        response.into_body().collect().await.unwrap();
        x_cache
    };
    assert_eq!(get(&[("x-a", "1")]).await, "MISS");
    for number in 0..20 {
        assert_eq!(get(&[("x-a", &number.to_string()), ("cookie", "a=1")]).await, "HIT");
    }
    assert_eq!(get(&[("accept-language", "de")]).await, "MISS");
}
