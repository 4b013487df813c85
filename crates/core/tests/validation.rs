//! Stored responses that are validated, freshened, replaced, removed, served in parts or stale, as the standards say.
#![cfg(feature = "testing")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod stage;

use bytes::Bytes;
use http::{Method, Request, request::Parts};
use http_body_util::{BodyExt, Empty};
use larder::{
    Cache, CacheLayer, Key, MemoryStore, Policy, Purge, Store,
    semantics::Namespace,
    store::{Claim, Found, Seen},
    testing::Faulty,
};
use stage::{
    AFTER, Answer, BEFORE, Fields, LONG, MODIFIED, Reply, Stage, Unreachable, honest, joined, reply, told, wait,
};
use std::time::Duration;
use tokio::time::Instant;
use tower::{Layer, ServiceExt};

/// An origin with one page of ten bytes, which both validators identify.
fn ten_bytes(_: &Parts, _: usize) -> Reply {
    let fields = [
        ("cache-control", LONG),
        ("content-type", "text/plain"),
        ("content-length", "10"),
        ("content-location", "/page.en"),
        ("etag", "\"a\""),
        ("last-modified", MODIFIED),
        ("vary", "Accept-Language"),
    ];
    reply(200, &fields, "0123456789")
}

#[tokio::test(start_paused = true)]
async fn a_304_freshens_what_is_stored() {
    let stage = Stage::shared(|_, call| match call {
        1 => {
            let fields = [
                ("cache-control", "max-age=10"),
                ("content-type", "text/plain"),
                ("content-length", "3"),
                ("content-encoding", "x-none"),
                ("etag", "\"a\""),
                ("last-modified", MODIFIED),
                ("x-kept", "1"),
                ("x-replaced", "1"),
            ];
            reply(200, &fields, "old")
        }
        _ => {
            let fields = [("cache-control", "max-age=20"), ("etag", "\"a\""), ("x-replaced", "2"), ("x-added", "2")];
            reply(304, &fields, "")
        }
    });
    assert_eq!(stage.get(&[]).await.told(), told("MISS", 200, "old"));
    wait(15).await;
    let answer = stage.get(&[]).await;
    assert_eq!(stage.last("if-none-match"), (Method::GET, "\"a\"".to_owned()));
    assert_eq!(stage.last("if-modified-since").1, MODIFIED);
    assert_eq!(answer.told(), told("REVALIDATED", 200, "old"));
    for parameter in ["fwd=stale", "fwd-status=304", "stored", "detail=not-modified"] {
        assert!(answer.tells(parameter), "{parameter}: {answer:?}");
    }
    wait(5).await;
    let hit = stage.get(&[]).await;
    assert_eq!(hit.told(), told("HIT", 200, "old"));
    assert_eq!(hit.field("age"), "5");
    for answer in [answer, hit] {
        let expected = [
            ("cache-control", "max-age=20"),
            ("content-type", "text/plain"),
            ("content-length", "3"),
            ("content-encoding", "x-none"),
            ("etag", "\"a\""),
            ("last-modified", MODIFIED),
            ("x-kept", "1"),
            ("x-replaced", "2"),
            ("x-added", "2"),
        ];
        for (name, value) in expected {
            assert_eq!(answer.field(name), value, "{name}");
        }
    }
    wait(10).await;
    assert_eq!(stage.get(&[]).await.x_cache(), "HIT");
    wait(10).await;
    assert_eq!(stage.get(&[]).await.x_cache(), "REVALIDATED");
    assert_eq!(stage.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_304_does_not_change_the_length_of_what_is_stored() {
    let stage = Stage::shared(|_, call| match call {
        1 => reply(200, &[("cache-control", "max-age=10"), ("etag", "\"a\""), ("content-length", "3")], "old"),
        _ => reply(304, &[("cache-control", "max-age=20"), ("etag", "\"a\""), ("content-length", "0")], ""),
    });
    stage.get(&[]).await;
    wait(15).await;
    for verdict in ["REVALIDATED", "HIT"] {
        let answer = stage.get(&[]).await;
        assert_eq!(answer.told(), told(verdict, 200, "old"));
        assert_eq!(answer.field("content-length"), "3");
    }
}

#[tokio::test(start_paused = true)]
async fn each_validator_alone_is_enough_to_ask_with() {
    let cases = [("etag", "W/\"a\"", "if-none-match"), ("last-modified", MODIFIED, "if-modified-since")];
    for (name, value, asks) in cases {
        let stage = Stage::shared(move |head, _| {
            let status = if head.headers.contains_key(asks) { 304 } else { 200 };
            reply(status, &[("cache-control", "max-age=10"), (name, value)], if status == 200 { "old" } else { "" })
        });
        stage.get(&[]).await;
        wait(15).await;
        assert_eq!(stage.get(&[]).await.told(), told("REVALIDATED", 200, "old"));
        assert_eq!(stage.last(asks).1, value);
        assert_eq!(stage.get(&[]).await.told(), told("HIT", 200, "old"));
    }
}

/// RFC 9111 section 4.3.4 has such a 304 update nothing; the suite of cache-tests.fyi requires that it does, save for the
/// tag. It answers a question about the one that is stored, so it is believed.
#[tokio::test(start_paused = true)]
async fn a_304_with_another_tag_is_believed_and_the_stored_tag_is_kept() {
    let stage = Stage::shared(|_, call| match call {
        1 => reply(200, &[("cache-control", "max-age=10"), ("etag", "\"a\"")], "old"),
        _ => reply(304, &[("cache-control", "max-age=20"), ("etag", "\"b\"")], ""),
    });
    stage.get(&[]).await;
    wait(15).await;
    assert_eq!(stage.get(&[]).await.told(), told("REVALIDATED", 200, "old"));
    assert_eq!(stage.get(&[("if-none-match", "\"b\"")]).await.told(), told("HIT", 200, "old"));
    assert_eq!(stage.get(&[("if-none-match", "\"a\"")]).await.told(), told("HIT", 304, ""));
    assert_eq!(stage.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_304_that_states_no_lifetime_begins_the_stored_one_anew() {
    let stage = Stage::shared(|_, call| match call {
        1 => reply(200, &[("cache-control", "max-age=10"), ("etag", "\"a\"")], "page"),
        _ => reply(304, &[("etag", "\"a\"")], ""),
    });
    stage.get(&[]).await;
    for _ in 0..2 {
        wait(15).await;
        assert_eq!(stage.get(&[]).await.told(), told("REVALIDATED", 200, "page"));
        wait(5).await;
        let answer = stage.get(&[]).await;
        assert_eq!((answer.told(), answer.field("age").as_str()), (told("HIT", 200, "page"), "5"));
    }
}

#[tokio::test(start_paused = true)]
async fn the_age_of_a_304_counts() {
    let stage = Stage::shared(|_, call| match call {
        1 => reply(200, &[("cache-control", "max-age=10"), ("etag", "\"a\"")], "page"),
        _ => reply(304, &[("cache-control", "max-age=20"), ("etag", "\"a\""), ("age", "12")], ""),
    });
    stage.get(&[]).await;
    wait(15).await;
    assert_eq!(stage.get(&[]).await.told(), told("REVALIDATED", 200, "page"));
    wait(5).await;
    let answer = stage.get(&[]).await;
    assert_eq!((answer.told(), answer.field("age").as_str()), (told("HIT", 200, "page"), "17"));
    wait(5).await;
    assert_eq!(stage.get(&[]).await.x_cache(), "REVALIDATED");
}

#[tokio::test(start_paused = true)]
async fn a_304_that_forbids_reuse_is_obeyed() {
    for cache_control in ["no-store", "private", "no-cache", "max-age=0", "s-maxage=0, max-age=100"] {
        let stage = Stage::shared(move |head, call| match call {
            1 => honest(head, "\"a\"", "max-age=10", "page"),
            _ => honest(head, "\"a\"", cache_control, "page"),
        });
        stage.get(&[]).await;
        wait(15).await;
        for calls in 2..4 {
            let answer = stage.get(&[]).await;
            assert_eq!((answer.status, answer.body.as_str()), (200, "page"), "{cache_control}");
            assert_eq!(stage.calls(), calls, "{cache_control}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_304_says_to_one_client_is_not_told_to_others() {
    let cases: [Fields<'static>; 3] = [
        &[("set-cookie", "session=1"), ("cache-control", "max-age=100")],
        &[("x-secret", "1"), ("cache-control", "max-age=100, no-cache=\"x-secret\"")],
        &[("x-secret", "1"), ("cache-control", "max-age=100, private=\"x-secret\"")],
    ];
    for fields in cases {
        let stage = Stage::shared(move |_, call| match call {
            1 => reply(200, &[("cache-control", "max-age=10"), ("etag", "\"a\"")], "page"),
            2 => reply(304, &[fields, &[("etag", "\"a\"")]].concat(), ""),
            _ => reply(200, &[("cache-control", "max-age=10")], "page"),
        });
        stage.get(&[]).await;
        wait(15).await;
        for _ in 0..2 {
            let answer = stage.get(&[]).await;
            assert_eq!((answer.status, answer.body.as_str()), (200, "page"), "{fields:?}");
        }
        let answer = stage.get(&[]).await;
        assert_eq!(answer.field(fields[0].0), "", "{fields:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn those_who_meet_at_a_stale_response_ask_once() {
    let stage = Stage::shared(|head, _| honest(head, "\"a\"", "max-age=10", "page"));
    stage.get(&[]).await;
    wait(15).await;
    let answers = tokio::join!(stage.get(&[]), stage.get(&[]), stage.get(&[]));
    for answer in <[Answer; 3]>::from(answers) {
        assert_eq!((answer.status, answer.body.as_str()), (200, "page"));
    }
    assert_eq!(stage.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_200_replaces_what_is_stored() {
    let stage = Stage::shared(|_, call| match call {
        1 => reply(200, &[("cache-control", "max-age=10"), ("etag", "\"a\""), ("x-old", "1")], "old"),
        _ => reply(200, &[("cache-control", "max-age=10"), ("etag", "\"b\"")], "new"),
    });
    stage.get(&[]).await;
    wait(15).await;
    let answer = stage.get(&[]).await;
    assert_eq!(answer.told(), told("EXPIRED", 200, "new"));
    assert!(answer.tells("fwd=stale") && answer.tells("fwd-status=200") && answer.tells("stored"), "{answer:?}");
    let hit = stage.get(&[]).await;
    assert_eq!(hit.told(), told("HIT", 200, "new"));
    assert_eq!((hit.field("etag").as_str(), hit.field("x-old").as_str()), ("\"b\"", ""));
}

#[tokio::test(start_paused = true)]
async fn what_the_origin_no_longer_has_is_never_served_again() {
    for (status, cache_control) in [(404, ""), (410, ""), (404, "no-store"), (200, "no-store"), (200, "private")] {
        let stage = Stage::shared(move |_, call| match call {
            1 => reply(200, &[("cache-control", "max-age=10, stale-if-error=1000"), ("etag", "\"a\"")], "old"),
            2 => reply(status, &[("cache-control", cache_control)], "other"),
            _ => reply(503, &[], "error"),
        });
        stage.get(&[]).await;
        wait(15).await;
        let answer = stage.get(&[]).await;
        assert_eq!((answer.status, answer.body.as_str()), (status, "other"));
        for _ in 0..2 {
            let answer = stage.get(&[]).await;
            assert_eq!((answer.status, answer.body.as_str()), (503, "error"), "{status} {cache_control}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_cache_with_a_validator_is_stored_and_asked_about_each_time() {
    for cache_control in ["no-cache", "no-cache, max-age=100", "max-age=0"] {
        let stage = Stage::shared(move |head, _| honest(head, "\"a\"", cache_control, "page"));
        assert_eq!(stage.get(&[]).await.told(), told("MISS", 200, "page"));
        for calls in 2..5 {
            assert_eq!(stage.get(&[]).await.told(), told("REVALIDATED", 200, "page"), "{cache_control}");
            assert_eq!(stage.last("if-none-match").1, "\"a\"");
            assert_eq!(stage.calls(), calls);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_application_does_not_store_no_cache() {
    for layer in [Cache::in_memory().layer(), Cache::in_memory().layer().no_default_ttl()] {
        let stage = Stage::new(layer, |head, _| honest(head, "\"a\"", "no-cache, max-age=100", "page"));
        for calls in 1..4 {
            let answer = stage.get(&[]).await;
            assert_eq!((answer.status, answer.body.as_str(), stage.calls()), (200, "page", calls));
            assert_eq!(stage.last("if-none-match").1, "");
            assert!(!answer.tells("stored"), "{answer:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_fresh_hit_is_answered_as_the_clients_condition_demands() {
    let stages = [Stage::shared(ten_bytes), Stage::application(ten_bytes)];
    let cases: &[(u16, Fields<'_>)] = &[
        (304, &[("if-none-match", "\"a\"")]),
        (304, &[("if-none-match", "W/\"a\"")]),
        (304, &[("if-none-match", "\"x\", \"a\"")]),
        (304, &[("if-none-match", "\"x, y\",W/\"a\" , \"z\"")]),
        (304, &[("if-none-match", "\"x\""), ("if-none-match", "\"a\"")]),
        (304, &[("if-none-match", "*")]),
        (200, &[("if-none-match", "\"x\"")]),
        (200, &[("if-none-match", "\"A\"")]),
        (200, &[("if-none-match", "\"x,\\\"a\\\"\"")]),
        (304, &[("if-modified-since", MODIFIED)]),
        (304, &[("if-modified-since", "Monday, 01-Jan-24 00:00:00 GMT")]),
        (304, &[("if-modified-since", "Mon Jan  1 00:00:00 2024")]),
        (304, &[("if-modified-since", AFTER)]),
        (200, &[("if-modified-since", BEFORE)]),
        (200, &[("if-modified-since", "Sunday, 31-Dec-23 23:59:59 GMT")]),
        (200, &[("if-modified-since", "Sun Dec 31 23:59:59 2023")]),
        (200, &[("if-modified-since", "yesterday")]),
        (200, &[("if-none-match", "\"x\""), ("if-modified-since", AFTER)]),
        (304, &[("if-none-match", "\"a\""), ("if-modified-since", BEFORE)]),
    ];
    for stage in stages {
        stage.get(&[]).await;
        for (status, fields) in cases {
            for method in ["GET", "HEAD"] {
                let answer = stage.ask(method, "/page", fields).await;
                let body = if *status == 200 && method == "GET" { "0123456789" } else { "" };
                assert_eq!(answer.told(), told("HIT", *status, body), "{method} {fields:?}");
            }
        }
        assert_eq!(stage.calls(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_304_from_the_cache_says_what_is_needed_and_nothing_of_the_body() {
    let stage = Stage::shared(ten_bytes);
    let date = stage.get(&[]).await.field("date");
    let answer = stage.get(&[("if-none-match", "\"a\"")]).await;
    assert_eq!(answer.told(), told("HIT", 304, ""));
    let expected = [
        ("cache-control", LONG),
        ("content-length", ""),
        ("content-location", "/page.en"),
        ("content-type", ""),
        ("etag", "\"a\""),
        ("vary", "Accept-Language"),
    ];
    for (name, value) in expected {
        assert_eq!(answer.field(name), value, "{name}");
    }
    assert!(!answer.field("date").is_empty());
    assert!(date.is_empty() || date == answer.field("date"));
}

#[tokio::test(start_paused = true)]
async fn without_last_modified_the_date_counts() {
    let stage = Stage::shared(|_, _| reply(200, &[("cache-control", "max-age=300000000"), ("date", MODIFIED)], "page"));
    stage.get(&[]).await;
    for (since, status) in [(BEFORE, 200), (MODIFIED, 304), (AFTER, 304)] {
        let answer = stage.get(&[("if-modified-since", since)]).await;
        assert_eq!((answer.x_cache().as_str(), answer.status), ("HIT", status), "{since}");
    }
}

#[tokio::test(start_paused = true)]
async fn conditions_do_not_count_where_the_answer_is_an_error_anyway() {
    let fields = [("cache-control", LONG), ("etag", "\"a\""), ("last-modified", MODIFIED)];
    let stage = Stage::shared(move |_, _| reply(404, &fields, "none"));
    stage.get(&[]).await;
    for condition in [("if-none-match", "\"a\""), ("if-modified-since", MODIFIED), ("range", "bytes=0-1")] {
        assert_eq!(stage.get(&[condition]).await.told(), told("HIT", 404, "none"), "{condition:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn conditions_that_protect_an_update_are_for_the_origin_unless_they_hold() {
    let cases = [
        (("if-match", "\"a\""), true),
        (("if-match", "\"x\", \"a\""), true),
        (("if-match", "*"), true),
        (("if-match", "\"x\""), false),
        (("if-unmodified-since", MODIFIED), true),
        (("if-unmodified-since", AFTER), true),
        (("if-unmodified-since", BEFORE), false),
    ];
    for (condition, holds) in cases {
        let stage = Stage::shared(move |head, call| {
            if head.headers.contains_key(condition.0) { reply(412, &[], "changed") } else { ten_bytes(head, call) }
        });
        stage.get(&[]).await;
        let answer = stage.get(&[condition]).await;
        if holds {
            assert_eq!(answer.told(), told("HIT", 200, "0123456789"), "{condition:?}");
            assert_eq!(stage.calls(), 1);
        } else {
            assert_eq!((answer.status, answer.body.as_str()), (412, "changed"), "{condition:?}");
            assert_eq!((stage.calls(), stage.last(condition.0).1.as_str()), (2, condition.1));
        }
        let answer = stage.get(&[]).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "0123456789"));
    }
}

#[derive(Debug, Clone, Copy)]
enum Stored {
    Nothing,
    Fresh,
    Stale,
}

/// What others get after one client's condition or range was refused with a lifetime.
async fn after_refusal(status: u16, condition: (&'static str, &'static str), stored: Stored) -> Answer {
    let stage = Stage::shared(move |head, call| match head.headers.contains_key(condition.0) {
        true => reply(status, &[("cache-control", LONG), ("etag", "\"a\"")], "refused"),
        false if head.headers.contains_key("if-none-match") => reply(304, &[("etag", "\"a\"")], ""),
        false => ten_bytes(head, call),
    });
    if !matches!(stored, Stored::Nothing) {
        stage.get(&[]).await;
    }
    if matches!(stored, Stored::Stale) {
        wait(1_100).await;
    }
    assert_eq!(stage.get(&[condition]).await.status, status, "{condition:?} {stored:?}");
    stage.get(&[]).await
}

#[tokio::test(start_paused = true)]
async fn a_refused_range_is_not_stored_for_others() {
    for stored in [Stored::Nothing, Stored::Fresh, Stored::Stale] {
        let answer = after_refusal(416, ("range", "bytes=20-"), stored).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "0123456789"), "{stored:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_condition_is_not_stored_for_others() {
    for condition in [("if-match", "\"x\""), ("if-unmodified-since", BEFORE)] {
        for stored in [Stored::Fresh, Stored::Stale, Stored::Nothing] {
            let answer = after_refusal(412, condition, stored).await;
            assert_eq!((answer.status, answer.body.as_str()), (200, "0123456789"), "{condition:?} {stored:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn if_match_on_a_stale_response_is_for_the_origin() {
    let cases = [
        ("\"a\"", "\"a\"", 200, "old"),
        ("\"b\"", "\"b\"", 200, "new"),
        ("\"x\"", "\"a\"", 412, "changed"),
        ("\"a\"", "\"b\"", 412, "changed"),
    ];
    for (tag, current, status, body) in cases {
        let stage = Stage::shared(move |head, call| match joined(&head.headers, "if-match").as_str() {
            asked if !asked.is_empty() && asked != current => reply(412, &[], "changed"),
            _ if call == 1 => honest(head, "\"a\"", "max-age=10", "old"),
            _ => honest(head, current, "max-age=10", if current == "\"a\"" { "old" } else { "new" }),
        });
        stage.get(&[]).await;
        wait(15).await;
        let answer = stage.get(&[("if-match", tag)]).await;
        assert_eq!((answer.status, answer.body.as_str()), (status, body), "{tag} where {current} is current");
        assert_eq!(stage.get(&[]).await.status, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_304_to_a_clients_own_condition_is_passed_on_and_not_stored_for_others() {
    let layers = [CacheLayer::with_policy(Cache::in_memory(), Policy::shared_cache()), Cache::in_memory().layer()];
    for layer in layers {
        let stage = Stage::new(layer, |head, _| honest(head, "\"a\"", LONG, "page"));
        let answer = stage.get(&[("if-none-match", "\"a\"")]).await;
        assert_eq!((answer.status, answer.body.as_str()), (304, ""));
        assert_eq!(stage.last("if-none-match").1, "\"a\"");
        let answer = stage.get(&[]).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "page"));
        assert_eq!(stage.last("if-none-match").1, "");
        assert_eq!(stage.get(&[]).await.told(), told("HIT", 200, "page"));
    }
}

#[tokio::test(start_paused = true)]
async fn clients_that_meet_each_get_what_they_asked_for() {
    let stage = Stage::shared(|head, _| match joined(&head.headers, "range").as_str() {
        "bytes=0-1" => reply(206, &[("cache-control", LONG), ("content-range", "bytes 0-1/4")], "pa"),
        _ => honest(head, "\"a\"", LONG, "page"),
    });
    let fields: [(Fields<'_>, (u16, &str)); 4] = [
        (&[("if-none-match", "\"a\"")], (304, "")),
        (&[], (200, "page")),
        (&[("range", "bytes=0-1")], (206, "pa")),
        (&[("if-none-match", "\"x\"")], (200, "page")),
    ];
    for first in 0..fields.len() {
        let leader = fields[first];
        let uri = format!("/page?{first}");
        let visits = async {
            let others = async {
                tokio::time::sleep(Duration::from_millis(10)).await;
                tokio::join!(
                    stage.ask("GET", &uri, fields[0].0),
                    stage.ask("GET", &uri, fields[1].0),
                    stage.ask("GET", &uri, fields[2].0),
                    stage.ask("GET", &uri, fields[3].0),
                )
            };
            tokio::join!(stage.ask("GET", &uri, leader.0), others)
        };
        let (answer, others) = visits.await;
        assert_eq!((answer.status, answer.body.as_str()), leader.1);
        for (answer, (asked, expected)) in [others.0, others.1, others.2, others.3].iter().zip(fields) {
            assert_eq!((answer.status, answer.body.as_str()), expected, "{asked:?} behind {:?}", leader.0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_clients_condition_meets_a_stale_response_that_the_origin_confirms() {
    let cases: &[(Fields<'_>, u16)] = &[
        (&[], 200),
        (&[("if-none-match", "\"a\"")], 304),
        (&[("if-none-match", "W/\"a\"")], 304),
        (&[("if-none-match", "\"b\"")], 200),
        (&[("if-modified-since", MODIFIED)], 304),
        (&[("if-modified-since", BEFORE)], 200),
        (&[("if-none-match", "\"b\""), ("if-modified-since", AFTER)], 200),
    ];
    for (fields, status) in cases {
        let stage = Stage::shared(|head, _| {
            let asked = joined(&head.headers, "if-none-match");
            let known = asked.contains("\"a\"");
            let fields = [("cache-control", "max-age=10"), ("etag", "\"a\""), ("last-modified", MODIFIED)];
            if known { reply(304, &fields, "") } else { reply(200, &fields, "page") }
        });
        stage.get(&[]).await;
        wait(15).await;
        let answer = stage.get(fields).await;
        assert!(stage.last("if-none-match").1.contains("\"a\""), "{fields:?}");
        assert_eq!((answer.status, answer.body.as_str()), (*status, if *status == 200 { "page" } else { "" }));
        assert_eq!(stage.get(&[]).await.told(), told("HIT", 200, "page"), "{fields:?}");
        assert_eq!(stage.calls(), 2);
    }
}

/// RFC 9111 section 4.3.2 lets a cache ask for the client's tags too; this one asks for its own, and sends the whole.
#[tokio::test(start_paused = true)]
async fn a_clients_condition_meets_a_stale_response_that_the_origin_replaces() {
    for (tag, status) in [("\"a\"", 200), ("\"b\"", 200), ("*", 200), ("\"c\"", 200)] {
        let stage = Stage::shared(|head, call| match call {
            1 => honest(head, "\"a\"", "max-age=10", "old"),
            _ => honest(head, "\"b\"", "max-age=10", "new"),
        });
        stage.get(&[]).await;
        wait(15).await;
        let answer = stage.get(&[("if-none-match", tag)]).await;
        assert_eq!((answer.status, answer.body.as_str()), (status, if status == 200 { "new" } else { "" }), "{tag}");
        let answer = stage.get(&[]).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "new"), "{tag}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_range_of_a_stored_whole_is_served_from_it() {
    for stage in [Stage::shared(ten_bytes), Stage::application(ten_bytes)] {
        stage.get(&[]).await;
        let cases = [
            ("bytes=2-4", "234", "bytes 2-4/10"),
            ("bytes=0-0", "0", "bytes 0-0/10"),
            ("bytes=9-9", "9", "bytes 9-9/10"),
            ("bytes=7-", "789", "bytes 7-9/10"),
            ("bytes=7-100", "789", "bytes 7-9/10"),
            ("bytes=-3", "789", "bytes 7-9/10"),
            ("bytes=-100", "0123456789", "bytes 0-9/10"),
            ("bytes=0-", "0123456789", "bytes 0-9/10"),
            ("bytes=7-99999999999999999999999", "789", "bytes 7-9/10"),
            ("Bytes=2-4", "234", "bytes 2-4/10"),
        ];
        for (range, body, content_range) in cases {
            let answer = stage.get(&[("range", range)]).await;
            assert_eq!(answer.told(), ("HIT".to_owned(), 206, body), "{range}");
            assert_eq!(answer.field("content-range"), content_range, "{range}");
            assert_eq!(answer.field("content-length"), body.len().to_string(), "{range}");
            assert_eq!(answer.field("content-type"), "text/plain");
            assert_eq!(answer.field("etag"), "\"a\"");
            assert_eq!(answer.field("cache-control"), LONG);
            assert_eq!(answer.field("vary"), "Accept-Language");
            assert!(!answer.field("date").is_empty());
        }
        assert_eq!(stage.calls(), 1);
    }
}

/// The parts of a `multipart/byteranges`: type, range and bytes of each.
fn parts(answer: &Answer) -> Vec<(String, String, String)> {
    let content_type = answer.field("content-type");
    let boundary = content_type.strip_prefix("multipart/byteranges; boundary=").unwrap().trim_matches('"');
    let body = format!("\r\n{}", answer.body);
    let mut pieces: Vec<_> = body.split(&format!("\r\n--{boundary}")).collect();
    // More line ends may come before the first boundary (RFC 9110 section 14.6).
    assert_eq!(pieces.remove(0).trim_end(), "");
    assert_eq!(pieces.pop().unwrap().trim_end(), "--");
    let part = |piece: &str| {
        let (head, bytes) = piece.strip_prefix("\r\n").unwrap().split_once("\r\n\r\n").unwrap();
        let field = |name: &str| {
            let mut fields = head.split("\r\n").map(|line| line.split_once(':').unwrap());
            fields.find(|(known, _)| known.eq_ignore_ascii_case(name)).unwrap().1.trim().to_owned()
        };
        (field("content-type"), field("content-range"), bytes.to_owned())
    };
    pieces.into_iter().map(part).collect()
}

#[tokio::test(start_paused = true)]
async fn several_ranges_of_a_stored_whole_come_as_parts() {
    let stage = Stage::shared(ten_bytes);
    stage.get(&[]).await;
    let cases: [(&str, &[(&str, &str)]); 3] = [
        ("bytes=0-1,4-5", &[("bytes 0-1/10", "01"), ("bytes 4-5/10", "45")]),
        ("bytes=0-0 , -1", &[("bytes 0-0/10", "0"), ("bytes 9-9/10", "9")]),
        ("bytes=0-1, 4-5,20-30, 8-", &[("bytes 0-1/10", "01"), ("bytes 4-5/10", "45"), ("bytes 8-9/10", "89")]),
    ];
    for (range, expected) in cases {
        let answer = stage.get(&[("range", range)]).await;
        assert_eq!((answer.x_cache().as_str(), answer.status), ("HIT", 206), "{range}");
        assert_eq!(answer.field("content-range"), "", "{range}");
        assert_eq!(answer.field("content-length"), answer.body.len().to_string(), "{range}");
        let expected: Vec<_> =
            expected.iter().map(|(range, bytes)| ("text/plain".into(), (*range).into(), (*bytes).into())).collect();
        assert_eq!(parts(&answer), expected, "{range}");
    }
    assert_eq!(stage.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_range_beyond_the_end_cannot_be_satisfied() {
    let stage = Stage::shared(ten_bytes);
    stage.get(&[]).await;
    for range in ["bytes=10-", "bytes=20-30", "bytes=-0", "bytes=10-11,20-"] {
        let answer = stage.get(&[("range", range)]).await;
        assert_eq!((answer.status, answer.field("content-range").as_str()), (416, "bytes */10"), "{range}");
        assert_ne!(answer.body, "0123456789");
    }
    assert_eq!(stage.calls(), 1);
    assert_eq!(stage.get(&[]).await.told(), told("HIT", 200, "0123456789"));
}

#[tokio::test(start_paused = true)]
async fn ranges_that_are_malformed_or_overlap_are_ignored() {
    let stage = Stage::shared(ten_bytes);
    stage.get(&[]).await;
    let cases = [
        "bytes=4-2",
        "bytes=a-b",
        "bytes=0-1,4-2",
        "bytes=",
        "bytes=-",
        "bytes",
        "bytes=--1",
        "bytes=+1-2",
        "bytes=0-1-2",
        "0-1",
        "lines=0-1",
        "bytes=0-5,3-8",
        "bytes=0-,0-,0-,0-,0-,0-",
    ];
    for range in cases {
        let answer = stage.get(&[("range", range)]).await;
        assert_eq!(answer.told(), told("HIT", 200, "0123456789"), "{range}");
        assert_eq!(answer.field("content-range"), "", "{range}");
    }
}

#[tokio::test(start_paused = true)]
async fn if_range_gives_the_part_only_of_exactly_what_is_stored() {
    let cases = [
        ("\"a\"", "\"a\"", 206),
        ("\"a\"", "\"b\"", 200),
        ("\"a\"", "W/\"a\"", 200),
        ("W/\"a\"", "W/\"a\"", 200),
        ("W/\"a\"", "\"a\"", 200),
        ("\"a\"", MODIFIED, 206),
        ("\"a\"", BEFORE, 200),
        ("\"a\"", AFTER, 200),
        ("\"a\"", "nonsense", 200),
    ];
    for (tag, condition, status) in cases {
        let stage = Stage::shared(move |_, _| {
            reply(200, &[("cache-control", LONG), ("etag", tag), ("last-modified", MODIFIED)], "0123456789")
        });
        stage.get(&[]).await;
        let answer = stage.get(&[("range", "bytes=2-4"), ("if-range", condition)]).await;
        let body = if status == 206 { "234" } else { "0123456789" };
        assert_eq!(answer.told(), told("HIT", status, body), "{tag} {condition}");
        // What is not wanted in parts is not refused for its range either.
        let answer = stage.get(&[("range", "bytes=20-"), ("if-range", condition)]).await;
        assert_eq!(answer.status, if status == 206 { 416 } else { 200 }, "{tag} {condition}");
    }
}

#[tokio::test(start_paused = true)]
async fn conditions_come_before_ranges() {
    let stage = Stage::shared(ten_bytes);
    stage.get(&[]).await;
    for (tag, status, body) in [("\"a\"", 304, ""), ("\"x\"", 206, "234")] {
        let answer = stage.get(&[("range", "bytes=2-4"), ("if-none-match", tag)]).await;
        assert_eq!(answer.told(), told("HIT", status, body));
    }
}

#[tokio::test(start_paused = true)]
async fn head_ignores_ranges() {
    let stage = Stage::shared(ten_bytes);
    stage.get(&[]).await;
    for range in ["bytes=2-4", "bytes=20-"] {
        let answer = stage.ask("HEAD", "/page", &[("range", range)]).await;
        assert_eq!(answer.told(), told("HIT", 200, ""));
        assert_eq!((answer.field("content-length").as_str(), answer.field("content-range").as_str()), ("10", ""));
    }
}

#[tokio::test(start_paused = true)]
async fn a_206_is_never_stored_as_a_whole() {
    let part = |head: &Parts, call| match joined(&head.headers, "range").as_str() {
        "" => ten_bytes(head, call),
        _ => reply(206, &[("cache-control", LONG), ("etag", "\"a\""), ("content-range", "bytes 2-4/10")], "234"),
    };
    for stage in [Stage::shared(part), Stage::application(part), Stage::new(Cache::in_memory().layer(), part)] {
        let answer = stage.get(&[("range", "bytes=2-4")]).await;
        assert_eq!((answer.status, answer.body.as_str()), (206, "234"));
        let answer = stage.get(&[]).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "0123456789"));
        assert_eq!(stage.get(&[("range", "bytes=0-1")]).await.told(), told("HIT", 206, "01"));
    }
    let stage = Stage::shared(|_, _| {
        reply(206, &[("cache-control", LONG), ("etag", "\"a\""), ("content-range", "bytes 2-4/10")], "234")
    });
    for calls in 1..3 {
        stage.get(&[]).await;
        assert_eq!(stage.calls(), calls, "an answer with 206 to a request without a range");
    }
}

#[tokio::test(start_paused = true)]
async fn a_range_of_a_stale_whole_is_served_once_it_is_confirmed() {
    let stage = Stage::shared(|head, _| honest(head, "\"a\"", "max-age=10", "0123456789"));
    stage.get(&[]).await;
    wait(15).await;
    let answer = stage.get(&[("range", "bytes=2-4")]).await;
    assert_eq!((answer.status, answer.body.as_str()), (206, "234"));
    assert_eq!(stage.calls(), 2);
    assert_eq!(stage.get(&[]).await.told(), told("HIT", 200, "0123456789"));
}

#[tokio::test(start_paused = true)]
async fn a_range_of_a_stale_whole_that_has_changed_is_one_of_the_new() {
    let stage = Stage::shared(|head, call| match (call, joined(&head.headers, "range").as_str()) {
        (1, _) => honest(head, "\"a\"", "max-age=10", "0123456789"),
        (_, "bytes=2-4") => {
            reply(206, &[("cache-control", LONG), ("etag", "\"b\""), ("content-range", "bytes 2-4/10")], "cde")
        }
        _ => honest(head, "\"b\"", LONG, "abcdefghij"),
    });
    stage.get(&[]).await;
    wait(15).await;
    let answer = stage.get(&[("range", "bytes=2-4")]).await;
    assert!(matches!((answer.status, answer.body.as_str()), (206, "cde") | (200, "abcdefghij")), "{answer:?}");
    let answer = stage.get(&[]).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "abcdefghij"));
}

/// An old page that is fresh for 10 s, and a new one that is fresh for 1000 s.
fn old_then_new(cache_control: &'static str) -> impl Fn(&Parts, usize) -> Reply + Send + Sync + 'static {
    move |head, call| match call {
        1 => honest(head, "\"a\"", cache_control, "old"),
        _ => honest(head, "\"b\"", LONG, "new"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_stale_response_answers_at_once_while_one_request_revalidates_it() {
    let script = || old_then_new("max-age=10, stale-while-revalidate=30");
    for stage in [Stage::shared(script()), Stage::application(script())] {
        stage.get(&[]).await;
        wait(15).await;
        let began = Instant::now();
        let answers: [Answer; 5] =
            tokio::join!(stage.get(&[]), stage.get(&[]), stage.get(&[]), stage.get(&[]), stage.get(&[])).into();
        assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
        let mut verdicts: Vec<_> = answers.iter().map(Answer::x_cache).collect();
        verdicts.sort();
        assert_eq!(verdicts, ["STALE", "UPDATING", "UPDATING", "UPDATING", "UPDATING"]);
        for answer in answers {
            let detail = if answer.x_cache() == "STALE" { "detail=swr-refresh" } else { "detail=swr-updating" };
            assert!(answer.tells("hit") && answer.tells("ttl=-5") && answer.tells(detail), "{answer:?}");
            assert_eq!((answer.status, answer.body.as_str(), answer.field("age").as_str()), (200, "old", "15"));
        }
        wait(1).await;
        assert_eq!(stage.last("if-none-match").1, "\"a\"");
        assert_eq!(stage.get(&[]).await.told(), told("HIT", 200, "new"));
        assert_eq!(stage.calls(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_304_in_the_background_freshens_what_is_stored() {
    let stage = Stage::shared(|head, _| honest(head, "\"a\"", "max-age=10, stale-while-revalidate=30", "page"));
    stage.get(&[]).await;
    wait(15).await;
    assert_eq!(stage.get(&[]).await.told(), told("STALE", 200, "page"));
    wait(1).await;
    let answer = stage.get(&[]).await;
    assert_eq!(answer.told(), told("HIT", 200, "page"));
    assert!(matches!(answer.field("age").as_str(), "0" | "1"), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn the_background_asks_for_the_whole_whatever_its_client_asked_for() {
    let cases: &[(&str, Fields<'_>, u16, &str)] = &[
        ("GET", &[("if-none-match", "\"a\"")], 304, ""),
        ("GET", &[("if-none-match", "\"b\"")], 200, "old"),
        ("HEAD", &[], 200, ""),
    ];
    for (method, fields, status, body) in cases {
        let stage = Stage::shared(|head, call| match joined(&head.headers, "range").as_str() {
            "" if head.method == Method::HEAD => reply(200, &[("cache-control", LONG), ("etag", "\"b\"")], ""),
            "" => old_then_new("max-age=10, stale-while-revalidate=30")(head, call),
            _ => reply(206, &[("cache-control", LONG), ("etag", "\"b\""), ("content-range", "bytes 0-1/3")], "ne"),
        });
        stage.get(&[]).await;
        wait(15).await;
        let answer = stage.ask(method, "/page", fields).await;
        assert_eq!(answer.told(), ("STALE".to_owned(), *status, *body), "{method} {fields:?}");
        wait(1).await;
        let answer = stage.get(&[]).await;
        assert_eq!((answer.status, answer.body.len()), (200, 3), "{method} {fields:?}");
        wait(1).await;
        assert_eq!(stage.get(&[]).await.told(), told("HIT", 200, "new"), "{method} {fields:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_range_of_a_stale_response_answers_at_once_while_the_whole_is_asked_for() {
    let stage = Stage::shared(|head, call| match joined(&head.headers, "range").as_str() {
        "" => old_then_new("max-age=10, stale-while-revalidate=30")(head, call),
        _ => reply(206, &[("cache-control", LONG), ("etag", "\"b\""), ("content-range", "bytes 0-1/3")], "ne"),
    });
    stage.get(&[]).await;
    wait(15).await;
    assert_eq!(stage.get(&[("range", "bytes=0-1")]).await.told(), told("STALE", 206, "ol"));
    wait(1).await;
    assert_eq!(stage.get(&[]).await.told(), told("HIT", 200, "new"));
}

#[tokio::test(start_paused = true)]
async fn a_background_request_that_fails_leaves_the_stale_response_for_the_rest_of_its_window() {
    for fails in [503, 0] {
        let stage = Stage::shared(move |head, call| match call {
            2 if fails == 0 => Err(Unreachable),
            2 => reply(fails, &[], "error"),
            _ => old_then_new("max-age=10, stale-while-revalidate=30")(head, call),
        });
        stage.get(&[]).await;
        wait(15).await;
        for (calls, seconds, detail) in [(2, 2, "swr-refresh"), (2, 12, "error-throttled"), (3, 1, "swr-refresh")] {
            let answer = stage.get(&[]).await;
            assert_eq!(answer.told(), told("STALE", 200, "old"), "{fails}");
            assert!(answer.tells(&format!("detail={detail}")), "{answer:?}");
            wait(seconds).await;
            assert_eq!(stage.calls(), calls);
        }
        assert_eq!(stage.get(&[]).await.told(), told("HIT", 200, "new"), "{fails}");
    }
}

#[tokio::test(start_paused = true)]
async fn beyond_its_window_a_stale_response_waits_for_the_origin() {
    for (seconds, verdict, body) in [(38, "STALE", "old"), (42, "EXPIRED", "new")] {
        let stage = Stage::shared(old_then_new("max-age=10, stale-while-revalidate=30"));
        stage.get(&[]).await;
        wait(seconds).await;
        assert_eq!(stage.get(&[]).await.told(), told(verdict, 200, body));
    }
}

#[tokio::test(start_paused = true)]
async fn what_must_be_revalidated_is_never_stale_while_that_happens() {
    let cases = [
        "max-age=10, stale-while-revalidate=30, must-revalidate",
        "max-age=10, stale-while-revalidate=30, proxy-revalidate",
        "max-age=10, stale-while-revalidate=30, no-cache",
    ];
    for cache_control in cases {
        let stage = Stage::shared(old_then_new(cache_control));
        stage.get(&[]).await;
        wait(15).await;
        let answer = stage.get(&[]).await;
        assert_eq!((answer.status, answer.body.as_str(), stage.calls()), (200, "new", 2), "{cache_control}");
    }
}

/// A page that is fresh for 10 s, and then an origin that answers with `status`, or none where it is 0.
fn page_then(cache_control: &'static str, status: u16) -> impl Fn(&Parts, usize) -> Reply + Send + Sync + 'static {
    move |_, call| match (call, status) {
        (1, _) => reply(200, &[("cache-control", cache_control), ("etag", "\"a\"")], "page"),
        (_, 0) => Err(Unreachable),
        _ => reply(status, &[], "error"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_stale_response_takes_the_place_of_an_error() {
    let script = |status| page_then("max-age=10, stale-if-error=100", status);
    for status in [500, 502, 503, 504, 0] {
        for stage in [Stage::shared(script(status)), Stage::application(script(status))] {
            stage.get(&[]).await;
            wait(15).await;
            for _ in 0..2 {
                let answer = stage.get(&[]).await;
                assert_eq!(answer.told(), told("STALE", 200, "page"), "{status}");
                assert!(answer.tells("fwd=stale") && answer.tells("detail=error-stale"), "{answer:?}");
                assert_eq!(answer.tells(&format!("fwd-status={status}")), status != 0, "{answer:?}");
                assert_eq!(answer.field("cache-status").contains("fwd-status"), status != 0, "{answer:?}");
                let calls = stage.calls();
                let spared = stage.get(&[]).await;
                assert_eq!(spared.told(), told("STALE", 200, "page"), "{status}");
                assert!(spared.tells("hit") && spared.tells("detail=error-throttled"), "{spared:?}");
                assert_eq!(stage.calls(), calls, "the origin is spared for a while");
                wait(12).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn other_answers_are_no_errors_to_hide() {
    for status in [400, 403, 404, 410, 429, 501] {
        let stage = Stage::shared(page_then("max-age=10, stale-if-error=100", status));
        stage.get(&[]).await;
        wait(15).await;
        let answer = stage.get(&[]).await;
        assert_eq!((answer.status, answer.body.as_str()), (status, "error"));
    }
}

#[tokio::test(start_paused = true)]
async fn errors_come_through_beyond_the_window_and_where_revalidation_is_a_must() {
    let cases = [
        ("max-age=10, stale-if-error=100", 115, 503),
        ("max-age=10", 15, 503),
        ("max-age=10, stale-if-error=100, must-revalidate", 15, 503),
        ("max-age=10, stale-if-error=100, must-revalidate", 15, 0),
        ("max-age=10, stale-if-error=100, proxy-revalidate", 15, 503),
        ("max-age=10, stale-if-error=100, proxy-revalidate", 15, 0),
        ("max-age=10, stale-if-error=100, no-cache", 15, 503),
        ("max-age=10, stale-if-error=100, no-cache", 15, 0),
        ("max-age=10, must-revalidate", 15, 0),
        ("max-age=10, proxy-revalidate", 15, 0),
        ("s-maxage=10", 15, 0),
    ];
    for (cache_control, seconds, status) in cases {
        let stage = Stage::shared(page_then(cache_control, status));
        stage.get(&[]).await;
        wait(seconds).await;
        let answer = stage.try_get().await.map(|answer| (answer.status, answer.body));
        let expected = if status == 0 { Err(Unreachable) } else { Ok((status, "error".to_owned())) };
        assert_eq!(answer, expected, "{cache_control} after {seconds} s");
    }
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_cannot_be_reached_has_the_longer_of_both_windows() {
    let cases = [
        ("max-age=10", 15, true),
        ("max-age=10", 3_500, true),
        ("max-age=10", 3_700, false),
        ("max-age=10, stale-if-error=100", 3_500, true),
        ("max-age=10, stale-if-error=7200", 5_000, true),
        ("max-age=10, stale-if-error=7200", 7_300, false),
    ];
    for (cache_control, seconds, answers) in cases {
        let stage = Stage::shared(page_then(cache_control, 0));
        stage.get(&[]).await;
        wait(seconds).await;
        let answer = stage.try_get().await.map(|answer| (answer.x_cache(), answer.body));
        let expected = if answers { Ok(("STALE".to_owned(), "page".to_owned())) } else { Err(Unreachable) };
        assert_eq!(answer, expected, "{cache_control} after {seconds} s");
    }
    let stage = Stage::application(page_then("max-age=10", 0));
    stage.get(&[]).await;
    wait(15).await;
    assert_eq!(stage.try_get().await.map(|answer| answer.body), Err(Unreachable));
}

#[tokio::test(start_paused = true)]
async fn all_who_wait_for_an_origin_that_fails_get_the_stale_response() {
    for status in [503, 0] {
        let stage = Stage::shared(page_then("max-age=10, stale-if-error=100", status));
        stage.get(&[]).await;
        wait(15).await;
        let answers = tokio::join!(stage.get(&[]), stage.get(&[]), stage.get(&[("if-none-match", "\"a\"")]));
        assert_eq!(answers.0.told(), told("STALE", 200, "page"), "{status}");
        assert_eq!(answers.1.told(), told("STALE", 200, "page"), "{status}");
        assert_eq!(answers.2.told(), told("STALE", 304, ""), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_range_of_a_stale_response_takes_the_place_of_an_error() {
    for status in [503, 0] {
        let stage = Stage::shared(page_then("max-age=10, stale-if-error=100", status));
        stage.get(&[]).await;
        wait(15).await;
        let answer = stage.get(&[("range", "bytes=1-2")]).await;
        assert_eq!(answer.told(), told("STALE", 206, "ag"), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn once_the_origin_is_well_again_the_stale_response_is_replaced() {
    let stage = Stage::shared(|head, call| match call {
        2 => reply(503, &[], "error"),
        _ => old_then_new("max-age=10, stale-if-error=100")(head, call),
    });
    stage.get(&[]).await;
    wait(15).await;
    assert_eq!(stage.get(&[]).await.told(), told("STALE", 200, "old"));
    wait(12).await;
    assert_eq!(stage.get(&[]).await.told(), told("EXPIRED", 200, "new"));
    assert_eq!(stage.get(&[]).await.told(), told("HIT", 200, "new"));
}

/// Answers GET with a page that is fresh for long, and other methods with `status` and `fields`.
fn writes(status: u16, fields: Fields<'static>) -> impl Fn(&Parts, usize) -> Reply + Send + Sync + 'static {
    move |head, _| match head.method {
        Method::GET => reply(200, &[("cache-control", LONG), ("vary", "Accept-Language")], "page"),
        _ => reply(status, fields, ""),
    }
}

#[tokio::test(start_paused = true)]
async fn unsafe_methods_that_are_done_remove_what_is_stored() {
    for method in ["POST", "PUT", "DELETE", "PATCH", "FROB"] {
        for status in [200, 201, 204, 301, 303, 307] {
            for stage in [Stage::shared(writes(status, &[])), Stage::application(writes(status, &[]))] {
                stage.get(&[]).await;
                stage.get(&[("accept-language", "de")]).await;
                assert_eq!(stage.get(&[]).await.x_cache(), "HIT");
                assert_eq!(stage.ask(method, "/page", &[]).await.status, status);
                assert_ne!(stage.get(&[]).await.x_cache(), "HIT", "{method} {status}");
                assert_ne!(stage.get(&[("accept-language", "de")]).await.x_cache(), "HIT", "{method} {status}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn methods_that_are_safe_or_fail_remove_nothing() {
    let failed =
        ["POST", "PUT", "DELETE", "PATCH", "FROB"].map(|method| [400, 404, 409, 500, 503].map(|it| (method, it)));
    let safe = [("OPTIONS", 200), ("OPTIONS", 204), ("TRACE", 200)];
    for (method, status) in failed.into_iter().flatten().chain(safe) {
        let stage = Stage::shared(writes(status, &[("location", "/other"), ("content-location", "/other")]));
        stage.get(&[]).await;
        stage.ask("GET", "/other", &[]).await;
        assert_eq!(stage.ask(method, "/page", &[]).await.status, status);
        assert_eq!(stage.get(&[]).await.x_cache(), "HIT", "{method} {status}");
        assert_eq!(stage.ask("GET", "/other", &[]).await.x_cache(), "HIT", "{method} {status}");
    }
}

#[tokio::test(start_paused = true)]
async fn unsafe_methods_remove_what_their_response_names_on_the_same_origin() {
    let cases = [
        ("http://shop.example/dir/page", "http://shop.example/dir/other", "http://shop.example/dir/other", true),
        ("http://shop.example/dir/page", "HTTP://Shop.Example/dir/other", "http://shop.example/dir/other", true),
        ("http://shop.example/dir/page", "//shop.example/dir/other", "http://shop.example/dir/other", true),
        ("http://shop.example/dir/page", "/dir/other", "http://shop.example/dir/other", true),
        ("http://shop.example/dir/page", "other", "http://shop.example/dir/other", true),
        ("http://shop.example/dir/page", "./other?a=b", "http://shop.example/dir/other?a=b", true),
        ("http://shop.example/dir/page", "../other", "http://shop.example/other", true),
        ("http://shop.example/dir/page", "?a=b", "http://shop.example/dir/page?a=b", true),
        ("http://shop.example/dir/page", "/dir/other#part", "http://shop.example/dir/other", true),
        ("http://shop.example:8080/page", "http://shop.example:8080/other", "http://shop.example:8080/other", true),
        ("/dir/page", "/dir/other", "/dir/other", true),
        ("/dir/page", "other", "/dir/other", true),
        ("/dir/page", "http://shop.example/dir/other", "/dir/other", true),
        ("http://shop.example/dir/page", "http://bank.example/dir/other", "http://bank.example/dir/other", false),
        ("http://shop.example/page", "http://shop.example:8080/other", "http://shop.example:8080/other", false),
        ("http://shop.example/page", "//bank.example/other", "http://bank.example/other", false),
        ("http://shop.example/page", "http://bank.example/other", "http://shop.example/other", false),
        ("/dir/page", "http://bank.example/dir/other", "http://bank.example/dir/other", false),
        ("/dir/page", "http://bank.example/dir/other", "/dir/other", false),
    ];
    for name in ["location", "content-location"] {
        for (target, named, stored, removed) in cases {
            let stage = Stage::shared(move |head, call| {
                if head.method == Method::GET {
                    return writes(200, &[])(head, call);
                }
                reply(201, &[(name, named)], "")
            });
            stage.ask("GET", stored, &[]).await;
            assert_eq!(stage.ask("GET", stored, &[]).await.x_cache(), "HIT");
            assert_eq!(stage.ask("POST", target, &[]).await.status, 201);
            let is_hit = stage.ask("GET", stored, &[]).await.x_cache() == "HIT";
            assert_eq!(is_hit, !removed, "{target} says {name}: {named}, and {stored} is stored");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn unsafe_methods_leave_other_resources_alone() {
    let stage = Stage::shared(writes(204, &[]));
    for uri in ["/other", "/page?a=b", "/page/"] {
        stage.ask("GET", uri, &[]).await;
        stage.ask("POST", "/page", &[]).await;
        assert_eq!(stage.ask("GET", uri, &[]).await.x_cache(), "HIT", "{uri}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_on_its_way_while_an_unsafe_method_was_done_is_not_kept() {
    for (status, before) in [(200, 0), (200, 15), (304, 15)] {
        let stage = Stage::shared(move |head, call| match (&head.method, call) {
            (&Method::GET, 1) => reply(200, &[("cache-control", "max-age=10"), ("etag", "\"a\"")], "old"),
            (&Method::GET, 2 | 3) => {
                reply(status, &[("cache-control", LONG), ("etag", "\"a\"")], if status == 200 { "old" } else { "" })
            }
            (&Method::GET, _) => reply(200, &[("cache-control", LONG), ("etag", "\"b\"")], "new"),
            _ => reply(204, &[], ""),
        });
        if before > 0 {
            stage.get(&[]).await;
            wait(before).await;
        } else {
            stage.ask("GET", "/other", &[]).await;
        }
        let later = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            stage.get(&[]).await
        };
        let (written, read) = tokio::join!(stage.ask("POST", "/page", &[]), later);
        assert_eq!((written.status, read.status, read.body.as_str()), (204, 200, "old"), "{status} after {before} s");
        assert_eq!(stage.get(&[]).await.body, "new", "{status} after {before} s");
    }
}

#[tokio::test(start_paused = true)]
async fn head_is_answered_from_a_stored_get() {
    for stage in [Stage::shared(ten_bytes), Stage::application(ten_bytes)] {
        stage.get(&[]).await;
        let answer = stage.ask("HEAD", "/page", &[]).await;
        assert_eq!(answer.told(), told("HIT", 200, ""));
        assert_eq!(answer.field("content-length"), "10");
        assert_eq!(answer.field("content-type"), "text/plain");
        assert_eq!(answer.field("etag"), "\"a\"");
        assert_eq!(stage.calls(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_head_is_never_the_answer_to_get() {
    let script = |head: &Parts, _| {
        let body = if head.method == Method::HEAD { "" } else { "page" };
        reply(200, &[("cache-control", LONG), ("content-length", "4"), ("etag", "\"a\"")], body)
    };
    for stage in [Stage::shared(script), Stage::application(script), Stage::new(Cache::in_memory().layer(), script)] {
        let answer = stage.ask("HEAD", "/page", &[]).await;
        assert_eq!((answer.status, answer.field("content-length").as_str()), (200, "4"));
        assert_eq!(stage.last("host").0, Method::HEAD);
        let answer = stage.get(&[]).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "page"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_agrees_freshens_the_stale_get_and_one_that_does_not_never() {
    let agreeing = [("etag", "\"a\""), ("last-modified", MODIFIED), ("content-length", "3")];
    let cases: [(Fields<'static>, bool); 4] = [
        (&[("etag", "\"a\""), ("last-modified", MODIFIED), ("content-length", "3"), ("x-added", "1")], true),
        (&[("etag", "\"b\""), ("last-modified", MODIFIED), ("content-length", "3")], false),
        (&[("etag", "\"a\""), ("last-modified", AFTER), ("content-length", "3")], false),
        (&[("etag", "\"a\""), ("last-modified", MODIFIED), ("content-length", "4")], false),
    ];
    for (fields, agrees) in cases {
        let stage = Stage::shared(move |head, call| match head.method {
            Method::HEAD => reply(200, &[fields, &[("cache-control", "max-age=20")]].concat(), ""),
            _ if call == 1 => reply(200, &[&agreeing[..], &[("cache-control", "max-age=10")]].concat(), "old"),
            _ => reply(200, &[("cache-control", LONG)], "new"),
        });
        stage.get(&[]).await;
        wait(15).await;
        let answer = stage.ask("HEAD", "/page", &[]).await;
        assert_eq!((answer.status, answer.body.as_str(), stage.calls()), (200, "", 2));
        assert_eq!(stage.last("host").0, Method::HEAD);
        wait(5).await;
        let answer = stage.get(&[]).await;
        if agrees {
            assert_eq!(answer.told(), told("HIT", 200, "old"));
            assert_eq!((answer.field("x-added").as_str(), answer.field("age").as_str()), ("1", "5"));
            assert_eq!(answer.field("cache-control"), "max-age=20");
        } else {
            assert_eq!((answer.status, answer.body.as_str(), stage.calls()), (200, "new", 3), "{fields:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_is_answered_with_304_freshens_the_stale_get() {
    let stage = Stage::shared(|head, _| {
        let body = if head.method == Method::HEAD { "" } else { "page" };
        honest(head, "\"a\"", "max-age=10", body)
    });
    stage.get(&[]).await;
    wait(15).await;
    let answer = stage.ask("HEAD", "/page", &[]).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    assert_eq!(stage.get(&[]).await.told(), told("HIT", 200, "page"));
}

#[tokio::test(start_paused = true)]
async fn fields_that_are_not_for_all_are_left_out_of_what_is_stored() {
    let cases: [(&str, Fields<'static>); 4] = [
        ("max-age=1000, no-cache=\"set-cookie, x-secret\"", &[("set-cookie", "a=b"), ("x-secret", "1")]),
        ("max-age=1000, no-cache=\"X-Secret\"", &[("x-secret", "1")]),
        ("max-age=1000, private=\"x-secret\"", &[("x-secret", "1")]),
        ("max-age=1000, private=\" Set-Cookie , X-Secret \"", &[("set-cookie", "a=b"), ("x-secret", "1")]),
    ];
    for (cache_control, fields) in cases {
        let stage = Stage::shared(move |_, _| {
            reply(200, &[fields, &[("cache-control", cache_control), ("x-open", "1")]].concat(), "page")
        });
        let answer = stage.get(&[]).await;
        for (name, value) in fields {
            assert_eq!(answer.field(name), *value, "{cache_control}");
        }
        let answer = stage.get(&[]).await;
        assert_eq!(answer.told(), told("HIT", 200, "page"), "{cache_control}");
        assert_eq!(answer.field("x-open"), "1");
        for (name, _) in fields {
            assert_eq!(answer.field(name), "", "{cache_control}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn languages_written_in_another_way_are_the_same_languages() {
    let varying = |_: &Parts, _| reply(200, &[("cache-control", LONG), ("vary", "Accept-Language")], "page");
    for stage in [Stage::shared(varying), Stage::application(varying)] {
        stage.get(&[("accept-language", "en, de;q=0.5")]).await;
        let same: [Fields<'_>; 5] = [
            &[("accept-language", "en,de;q=0.5")],
            &[("accept-language", " EN ,  DE;q=0.5")],
            &[("accept-language", "en, de ; q=0.5")],
            &[("accept-language", "de;q=0.5, en")],
            &[("accept-language", "en"), ("accept-language", "de;q=0.5")],
        ];
        for fields in same {
            assert_eq!(stage.get(fields).await.x_cache(), "HIT", "{fields:?}");
        }
        let other: [Fields<'_>; 5] = [
            &[],
            &[("accept-language", "en")],
            &[("accept-language", "de, en;q=0.5")],
            &[("accept-language", "en-GB, de;q=0.5")],
            &[("accept-language", "en, de;q=0.4")],
        ];
        for fields in other {
            assert_ne!(stage.get(fields).await.x_cache(), "HIT", "{fields:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_varies_by_everything_is_never_reused() {
    for vary in ["*", "Accept-Language, *"] {
        let stage = Stage::shared(move |_, _| reply(200, &[("cache-control", LONG), ("vary", vary)], "page"));
        for calls in 1..4 {
            assert_ne!(stage.get(&[]).await.x_cache(), "HIT", "{vary}");
            assert_eq!(stage.calls(), calls, "{vary}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_without_a_tag_gets_one_where_that_is_asked_for_and_the_same_in_every_process() {
    let tagged = async || {
        let layer = Cache::in_memory().layer().make_etags();
        let stage = Stage::new(layer, |_, _| reply(200, &[("content-type", "text/plain")], "page"));
        stage.get(&[]).await;
        let tag = stage.get(&[]).await.headers["etag"].to_str().unwrap().to_owned();
        assert_eq!(stage.get(&[("if-none-match", &tag)]).await.told(), told("HIT", 304, ""));
        tag
    };
    assert_eq!(tagged().await, tagged().await);
    let stage = Stage::new(Cache::in_memory().layer().make_etags(), |_, _| reply(200, &[("etag", "\"own\"")], "page"));
    stage.get(&[]).await;
    assert_eq!(stage.get(&[]).await.headers["etag"], "\"own\"");
}

#[tokio::test(start_paused = true)]
async fn a_layer_around_another_asks_nothing_in_the_name_of_the_client() {
    let cache = Cache::in_memory();
    let layer = || CacheLayer::with_policy(cache.clone(), Policy::shared_cache());
    let origin = tower::service_fn(|request: Request<Empty<Bytes>>| async move {
        let fields = [("cache-control", "max-age=10"), ("etag", "\"a\"")];
        let confirmed = request.headers().get("if-none-match").is_some_and(|tag| tag == "\"a\"");
        reply(if confirmed { 304 } else { 200 }, &fields, if confirmed { "" } else { "page" })
    });
    let service = layer().layer(layer().layer(origin));
    let ask = async |fields: &[(&str, &str)]| {
        let request = Request::builder().uri("/page").header("host", "shop.example");
        let request = fields.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let response = service.clone().oneshot(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        (status, response.into_body().collect().await.unwrap().to_bytes())
    };
    assert_eq!(ask(&[]).await, (200, Bytes::from("page")));
    wait(15).await;
    assert_eq!(ask(&[]).await, (200, Bytes::from("page")));
    wait(15).await;
    assert_eq!(ask(&[("if-none-match", "\"a\"")]).await, (304, Bytes::new()));
}

#[tokio::test(start_paused = true)]
async fn what_is_immutable_is_not_asked_for_again_when_a_page_is_reloaded() {
    for (cache_control, reloaded, forced, later) in [
        ("max-age=1000, immutable", "HIT", "BYPASS", "MISS"),
        ("max-age=1000", "MISS", "BYPASS", "MISS"),
        ("max-age=10, immutable", "HIT", "BYPASS", "MISS"),
    ] {
        let stage = Stage::new(Cache::in_memory().layer().honor_client_directives(), move |_, _| {
            reply(200, &[("cache-control", cache_control)], "page")
        });
        stage.get(&[]).await;
        wait(5).await;
        assert_eq!(stage.get(&[("cache-control", "max-age=0")]).await.x_cache(), reloaded, "{cache_control}");
        assert_eq!(stage.get(&[("cache-control", "no-cache")]).await.x_cache(), forced, "{cache_control}");
        wait(5).await;
        assert_eq!(stage.get(&[("cache-control", "max-age=3")]).await.x_cache(), later, "{cache_control}");
    }
}

/// Who purges what is wrong under a tag that is right must not have it back, confirmed.
/// By another process, of which this one has not heard: its own copy, near, is still fresh.
#[tokio::test(start_paused = true)]
async fn what_was_purged_since_it_was_read_is_not_confirmed_any_more() {
    let far = MemoryStore::with_capacity(1 << 20);
    let cache = Cache::builder().store(Faulty::new(far.clone())).near(MemoryStore::default()).build().unwrap();
    let stage = Stage::new(cache.layer().honor_client_directives(), |head, call| match call {
        1 => honest(head, "\"a\"", "max-age=10", "wrong"),
        _ => honest(head, "\"a\"", "max-age=10", "right"),
    });
    assert_eq!(stage.get(&[]).await.told(), told("MISS", 200, "wrong"));
    wait(1).await;
    assert_eq!(stage.get(&[]).await.told(), told("HIT", 200, "wrong"));
    far.purge(&Namespace::default(), &Purge::key(Key::new("route:GET:shop.example:/page"))).await.unwrap();
    assert_eq!(stage.get(&[("cache-control", "no-cache")]).await.told(), told("BYPASS", 200, "right"));
    assert_eq!(stage.last("if-none-match").1, "");
    wait(1).await;
    assert_eq!(stage.get(&[]).await.told(), told("HIT", 200, "right"));
}

#[tokio::test(start_paused = true)]
async fn what_was_purged_while_a_request_waited_is_not_confirmed_any_more() {
    let memory = MemoryStore::with_capacity(1 << 20);
    let cache = Cache::builder().store(memory.clone()).build().unwrap();
    let stage = Stage::new(cache.layer().no_default_ttl(), |head, call| match call {
        1 => honest(head, "\"a\"", "max-age=10", "wrong"),
        _ => honest(head, "\"a\"", "max-age=10", "right"),
    });
    assert_eq!(stage.get(&[]).await.told(), told("MISS", 200, "wrong"));
    wait(11).await;
    let (namespace, key) = (Namespace::default(), Key::new("route:GET:shop.example:/page"));
    let entry = namespace.entry(key.clone());
    let Ok(Found::Entry(stored, _)) = memory.get(&entry).await else { panic!("it is kept") };
    let Ok(Claim::Granted(held)) = memory.claim(&entry, Seen::Entry(stored.id)).await else { panic!("nobody has it") };
    let waiting = tokio::spawn({
        let stage = stage.clone();
        async move { stage.get(&[]).await }
    });
    tokio::time::sleep(Duration::from_millis(10)).await;
    memory.purge(&namespace, &Purge::key(key)).await.unwrap();
    assert_eq!(waiting.await.unwrap().told(), told("MISS", 200, "right"));
    assert_eq!(stage.last("if-none-match").1, "");
    assert!(!memory.renew(&held).await.unwrap(), "the purge has voided it");
    assert_eq!(stage.get(&[]).await.told(), told("HIT", 200, "right"));
}
