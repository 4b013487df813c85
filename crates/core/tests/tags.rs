//! What tags and groups invalidate, seen through a layer.
#![cfg(feature = "testing")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod stage;

use larder::{Cache, CacheLayer, MemoryStore, Policy, Purge, Tiered};
use stage::{Answer, LONG, Stage, reply};
use std::time::Duration;

async fn at(stage: &Stage, uri: &str) -> Answer {
    stage.ask("GET", uri, &[]).await
}

async fn verdict(stage: &Stage, uri: &str) -> String {
    at(stage, uri).await.x_cache()
}

#[tokio::test(start_paused = true)]
async fn a_tag_invalidates_all_that_has_it_and_nothing_else() {
    for cache in [
        Cache::in_memory(),
        Cache::builder().store(Tiered::new(MemoryStore::default(), MemoryStore::default())).build().unwrap(),
    ] {
        let stage = Stage::new(cache.layer().tag("all"), |head, _| {
            let mut answer = reply(200, &[("cache-control", LONG)], "page")?;
            let tags = head.uri.path().trim_matches('/').split('-').fold(larder::Caching::new(), larder::Caching::tag);
            answer.extensions_mut().insert(tags);
            Ok(answer)
        });
        for uri in ["/a", "/b", "/a-b", "/c"] {
            assert_eq!(verdict(&stage, uri).await, "MISS");
            assert_eq!(verdict(&stage, uri).await, "HIT");
        }
        assert_eq!(cache.purge(Purge::tag("a")).await.unwrap().tags, 1);
        let answer = at(&stage, "/a-b").await;
        assert_eq!(answer.x_cache(), "MISS");
        assert!(answer.tells("detail=invalidated-tag") && answer.tells("fwd=miss"), "{answer:?}");
        for (uri, expected) in [("/a-b", "HIT"), ("/a", "MISS"), ("/b", "HIT"), ("/c", "HIT")] {
            assert_eq!(verdict(&stage, uri).await, expected, "{uri}");
        }
        cache.purge(Purge::tags(["b", "none", " c "])).await.unwrap();
        for (uri, expected) in [("/a-b", "MISS"), ("/a", "HIT"), ("/b", "MISS"), ("/c", "MISS")] {
            assert_eq!(verdict(&stage, uri).await, expected, "{uri}");
        }
        cache.purge(Purge::tag("all")).await.unwrap();
        for uri in ["/a", "/b", "/a-b", "/c"] {
            assert_eq!(verdict(&stage, uri).await, "MISS", "{uri}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_on_its_way_while_its_tag_is_invalidated_is_neither_stored_nor_shared() {
    let cache = Cache::in_memory();
    let stage = Stage::new(cache.layer().tag("a"), |_, call| {
        reply(200, &[("cache-control", LONG)], if call == 1 { "old" } else { "new" })
    });
    let early = tokio::spawn({
        let stage = stage.clone();
        async move { at(&stage, "/page").await.body }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    cache.purge(Purge::tag("a")).await.unwrap();
    assert_eq!(at(&stage, "/page").await.body, "new", "who comes after the purge does not join what began before it");
    assert_eq!(early.await.unwrap(), "old");
    let after = at(&stage, "/page").await;
    assert_eq!(after.body, "new");
}

/// Two origins whose pages are all of the group `a`, and whose forms say that it has changed.
fn grouped(status: u16) -> Stage {
    Stage::new(CacheLayer::with_policy(Cache::in_memory(), Policy::shared_cache()), move |head, _| {
        match head.method.as_str() {
            "GET" => {
                let changed = ("cache-group-invalidation", "\"a\"");
                let groups = if head.uri.path() == "/other" { "\"b\"" } else { "\"a\", \"c\"" };
                reply(200, &[("cache-control", LONG), ("cache-groups", groups), changed], "page")
            }
            _ => reply(status, &[("cache-group-invalidation", "\"a\"")], "done"),
        }
    })
}

#[tokio::test(start_paused = true)]
async fn a_request_that_changes_a_group_invalidates_it_on_its_own_origin() {
    let stage = grouped(200);
    let pages = ["/one", "/two", "/other", "http://elsewhere.example/one"];
    for uri in pages {
        assert_eq!(verdict(&stage, uri).await, "MISS");
    }
    for uri in pages {
        assert_eq!(verdict(&stage, uri).await, "HIT", "a safe request changes no group");
    }
    stage.ask("POST", "/form", &[]).await;
    for (uri, expected) in pages.into_iter().zip(["MISS", "MISS", "HIT", "HIT"]) {
        assert_eq!(verdict(&stage, uri).await, expected, "{uri}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_was_not_done_changes_no_group() {
    let stage = grouped(409);
    verdict(&stage, "/one").await;
    stage.ask("POST", "/form", &[]).await;
    assert_eq!(verdict(&stage, "/one").await, "HIT");
}

#[tokio::test(start_paused = true)]
async fn what_is_confirmed_stays_in_its_groups() {
    let stage = Stage::shared(|head, _| match head.method.as_str() {
        "GET" if head.headers.contains_key("if-none-match") => reply(304, &[("cache-control", LONG)], ""),
        "GET" => {
            let fields = [("cache-control", "max-age=1"), ("etag", "\"1\""), ("cache-groups", "\"a\"")];
            reply(200, &fields, "page")
        }
        _ => reply(200, &[("cache-group-invalidation", "\"a\"")], "done"),
    });
    verdict(&stage, "/one").await;
    stage::wait(2).await;
    assert_eq!(verdict(&stage, "/one").await, "REVALIDATED");
    assert_eq!(verdict(&stage, "/one").await, "HIT");
    stage.ask("POST", "/form", &[]).await;
    assert_eq!(verdict(&stage, "/one").await, "MISS");
}
