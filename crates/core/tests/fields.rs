//! What an origin's response is made of reaches the client as it was sent, whether it was stored in between or not.
#![cfg(feature = "testing")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod stage;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use larder::{Cache, CacheLayer, DebugHeaders, MemoryStore, Policy, Ttl, testing::Faulty};
use proptest::prelude::*;
use stage::{Answer, Fields, Stage, reply};

/// Those that the layer writes itself.
const WRITTEN: [&str; 4] = ["age", "x-cache", "x-cache-key", "cache-status"];

/// Those of one connection, which are not stored (RFC 9111 section 3.1), beside those that `Connection` names.
const OF_ONE_CONNECTION: [&str; 10] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

fn names() -> impl Strategy<Value = HeaderName> {
    let names = [
        "cache-control",
        "cdn-cache-control",
        "surrogate-control",
        "surrogate-key",
        "cache-tag",
        "cache-groups",
        "vary",
        "date",
        "expires",
        "last-modified",
        "etag",
        "pragma",
        "warning",
        "set-cookie",
        "content-type",
        "content-encoding",
        "content-language",
        "content-range",
        "accept-ranges",
        "content-length",
        "location",
        "link",
        "no-vary-search",
        "x-cache-debug",
        "x-other",
        "x-named",
        "host",
        "range",
    ];
    let all = names.iter().chain(&WRITTEN).chain(&OF_ONE_CONNECTION).copied().collect::<Vec<_>>();
    proptest::sample::select(all).prop_map(HeaderName::from_static)
}

fn values() -> impl Strategy<Value = HeaderValue> {
    let words = [
        "max-age=60",
        "public",
        "no-store",
        "accept-language",
        "x-named",
        "close",
        "4",
        "100",
        "\"1\"",
        "W/",
        "Sun, 31 Dec 2023 23:59:59 GMT",
        "text/html",
        "hit",
        ",",
        ";",
        " ",
        "\t",
        "é",
    ];
    let spelled =
        proptest::collection::vec(proptest::sample::select(words.to_vec()), 0..4).prop_map(|words| words.concat());
    let bytes = prop_oneof![
        2 => spelled.prop_map(String::into_bytes),
        1 => proptest::collection::vec(any::<u8>(), 0..40),
    ];
    bytes.prop_filter_map("a header value", |bytes| HeaderValue::from_bytes(&bytes).ok())
}

fn fields() -> impl Strategy<Value = HeaderMap> {
    // Few names, so that some are there more than once.
    let names = proptest::collection::vec(names(), 1..6);
    let picks = proptest::collection::vec((any::<proptest::sample::Index>(), values()), 0..10);
    (names, picks).prop_map(|(names, picks)| {
        let mut fields = HeaderMap::new();
        for (pick, value) in picks {
            fields.append(pick.get(&names), value);
        }
        fields
    })
}

/// Whether a field is the layer's own affair, or that of one connection.
fn is_left_out(sent: &HeaderMap, name: &HeaderName) -> bool {
    let named = |line: &HeaderValue| {
        line.as_bytes()
            .split(|byte| *byte == b',')
            .any(|one| one.trim_ascii().eq_ignore_ascii_case(name.as_str().as_bytes()))
    };
    WRITTEN.contains(&name.as_str())
        || OF_ONE_CONNECTION.contains(&name.as_str())
        || sent.get_all(header::CONNECTION).iter().any(named)
}

/// Whether every field that was sent has come, as it was and in its order, and none that was not.
fn check(sent: &HeaderMap, answer: &Answer, may_be_stored: bool) -> Result<(), TestCaseError> {
    for name in sent.keys().chain(answer.headers.keys()).filter(|name| !is_left_out(sent, name)) {
        let [sent, came] = [sent, &answer.headers].map(|fields| fields.get_all(name).iter().collect::<Vec<_>>());
        // Whoever stores a response without a date gives it one (RFC 9110 section 6.6.1).
        let is_dated = may_be_stored && *name == header::DATE && sent.is_empty() && came.len() == 1;
        prop_assert!(came == sent || is_dated, "{name}: sent {sent:?}, came {came:?}");
    }
    let lines = |fields: &HeaderMap| fields.get_all("cache-status").iter().cloned().collect::<Vec<_>>();
    prop_assert!(lines(&answer.headers).starts_with(&lines(sent)), "what nearer caches tell stays before: {answer:?}");
    Ok(())
}

/// Layers whose ways to a response are not the same.
fn layers() -> [CacheLayer; 5] {
    let far = Cache::builder().store(Faulty::new(MemoryStore::default())).build().unwrap();
    [
        Cache::in_memory().layer(),
        Cache::in_memory().layer().debug_headers(DebugHeaders::Off).ttl_override(Ttl::REALTIME).no_vary_search(),
        Cache::in_memory().layer().debug_headers(DebugHeaders::Status).status(StatusCode::NOT_FOUND, Ttl::REALTIME),
        CacheLayer::with_policy(Cache::in_memory(), Policy::shared_cache()),
        far.layer(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_field_arrives_as_it_was_sent(
        sent in fields(),
        status in proptest::sample::select(vec![200, 200, 200, 200, 203, 301, 404, 500]),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        for layer in layers() {
            let fields = sent.clone();
            let stage = Stage::new(layer, move |_, _| {
                let mut response = Response::new(Full::new(Bytes::from_static(b"page")));
                *response.status_mut() = StatusCode::from_u16(status).unwrap();
                *response.headers_mut() = fields.clone();
                Ok(response)
            });
            runtime.block_on(async {
                // The second one gets what the first one fetches, if it may.
                let (first, second) = tokio::join!(stage.get(&[]), stage.get(&[]));
                for (answer, may_be_stored) in [(first, false), (second, true), (stage.get(&[]).await, true)] {
                    prop_assert_eq!((answer.status, answer.body.as_str()), (status, "page"));
                    check(&sent, &answer, may_be_stored)?;
                }
                Ok(())
            })?;
        }
    }
}

/// So that it is seen what the property above lets pass.
#[tokio::test(start_paused = true)]
async fn what_is_of_one_connection_is_not_stored_and_neither_is_what_the_response_says() {
    let cases: [(Fields<'_>, &[&str]); 4] = [
        (
            &[("connection", "x-named, close"), ("x-named", "1"), ("keep-alive", "timeout=5")],
            &["connection", "x-named", "keep-alive"],
        ),
        (
            &[("proxy-authenticate", "Basic"), ("upgrade", "h2c"), ("trailer", "x-sum")],
            &["proxy-authenticate", "upgrade", "trailer"],
        ),
        (
            &[
                ("cache-control", "max-age=60, private=\"x-named, set-cookie\""),
                ("x-named", "1"),
                ("set-cookie", "a=1"),
            ],
            &["x-named", "set-cookie"],
        ),
        (&[("cache-control", "max-age=60, no-cache=\"x-named\""), ("x-named", "1")], &["x-named"]),
    ];
    for (fields, unstored) in cases {
        let stage = Stage::new(Cache::in_memory().layer(), move |_, _| {
            let mut answer = reply(200, fields, "page")?;
            answer.headers_mut().append("x-other", HeaderValue::from_static("1"));
            answer.headers_mut().append("x-other", HeaderValue::from_static("2"));
            Ok(answer)
        });
        let (first, second) = (stage.get(&[]).await, stage.get(&[]).await);
        assert_eq!((first.x_cache().as_str(), second.x_cache().as_str()), ("MISS", "HIT"), "{fields:?}");
        assert!(fields.iter().all(|(name, value)| first.headers[*name] == *value), "{first:?}");
        assert!(unstored.iter().all(|name| !second.headers.contains_key(*name)), "{second:?}");
        assert_eq!((first.field("x-other"), second.field("x-other")), ("1, 2".to_owned(), "1, 2".to_owned()));
    }
}
