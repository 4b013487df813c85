//! Requests that change a resource: what they remove, and when their answer takes its place (RFC 9110 section 9.3.3).
#![cfg(feature = "testing")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod stage;

use http::Method;
use larder::{Cache, CacheLayer, Policy, Purge};
use stage::{Fields, LONG, Stage, reply, told, wait};
use std::time::Duration;

/// An origin whose answer to POST states `fields`, before one layer of a shared cache.
fn posted(status: u16, fields: Fields<'static>) -> Stage {
    Stage::shared(move |head, _| match head.method {
        Method::GET => reply(200, &[("cache-control", LONG)], "fetched"),
        _ => reply(status, fields, "posted"),
    })
}

const FOR_GET: Fields<'static> = &[("cache-control", LONG), ("content-location", "/page")];

#[tokio::test(start_paused = true)]
async fn the_answer_to_a_post_answers_get_where_it_says_so() {
    for location in ["/page", "page", "http://shop.example/page", ""] {
        let stage = Stage::shared(move |head, _| match head.method {
            Method::GET => reply(200, &[("cache-control", LONG)], "fetched"),
            _ => reply(200, &[("cache-control", LONG), ("content-location", location)], "posted"),
        });
        assert_eq!(stage.get(&[]).await.told(), told("MISS", 200, "fetched"));
        let answer = stage.ask("POST", "/page", &[]).await;
        assert_eq!(answer.told(), told("BYPASS", 200, "posted"));
        assert!(answer.tells("stored"), "{answer:?}");
        assert_eq!(stage.get(&[]).await.told(), told("HIT", 200, "posted"), "{location:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn it_does_not_where_it_is_of_something_else_or_states_no_lifetime() {
    let cases: [(&str, u16, Fields<'static>); 7] = [
        ("POST", 200, &[("cache-control", LONG)]),
        ("POST", 200, &[("cache-control", LONG), ("content-location", "/other")]),
        ("POST", 200, &[("cache-control", LONG), ("content-location", "http://other.example/page")]),
        ("POST", 200, &[("content-location", "/page"), ("last-modified", stage::BEFORE)]),
        ("POST", 404, FOR_GET),
        ("POST", 200, &[("cache-control", "no-store"), ("content-location", "/page")]),
        ("PUT", 200, FOR_GET),
    ];
    for (method, status, fields) in cases {
        let stage = posted(status, fields);
        assert_eq!(stage.ask(method, "/page", &[]).await.told(), told("BYPASS", status, "posted"));
        assert_eq!(stage.get(&[]).await.told(), told("MISS", 200, "fetched"), "{method} {status} {fields:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_application_and_a_sealed_layer_do_not_store_it() {
    let sealed = CacheLayer::with_policy(Cache::in_memory(), Policy::shared_cache()).sealed();
    for layer in [Cache::in_memory().layer(), sealed] {
        let stage = Stage { layer, ..posted(200, FOR_GET) };
        stage.ask("POST", "/page", &[]).await;
        assert_eq!(stage.get(&[]).await.told(), told("MISS", 200, "fetched"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_purge_while_the_origin_is_asked_keeps_the_answer_out() {
    let cache = Cache::in_memory();
    let layer = CacheLayer::with_policy(cache.clone(), Policy::shared_cache());
    let stage = Stage { layer, ..posted(200, FOR_GET) };
    let purge = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        cache.purge(Purge::key(larder::Key::new("route:GET:shop.example:/page"))).await.unwrap();
    };
    tokio::join!(stage.ask("POST", "/page", &[]), purge);
    assert_eq!(stage.get(&[]).await.told(), told("MISS", 200, "fetched"));
}

#[tokio::test(start_paused = true)]
async fn what_was_fetched_before_it_was_done_does_not_come_after_it() {
    let stage = posted(200, FOR_GET);
    let late = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        stage.get(&[]).await
    };
    let (answer, late) = tokio::join!(stage.ask("POST", "/page", &[]), late);
    assert_eq!((answer.body.as_str(), late.body.as_str()), ("posted", "fetched"));
    assert_eq!(stage.get(&[]).await.told(), told("HIT", 200, "posted"));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_does_not_keep_what_it_changed() {
    let stage = posted(200, &[]);
    assert_eq!(stage.get(&[]).await.x_cache(), "MISS");
    let left = tokio::time::timeout(Duration::from_millis(50), stage.ask("POST", "/page", &[])).await;
    assert!(left.is_err(), "the origin takes 100 ms");
    wait(1).await;
    assert_eq!(stage.get(&[]).await.x_cache(), "MISS");
}
