//! What tags and groups invalidate, seen through a layer.
#![cfg(feature = "testing")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod stage;

use larder::{
    Cache, CacheLayer, MemoryStore, Policy, Purge, Store, Tiered,
    semantics::Namespace,
    testing::{Fault, Faulty},
};
use stage::{Answer, LONG, Stage, reply};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

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

/// Its tag is invalidated between the look-up and the claim: a validator may hold for longer than a page does.
#[tokio::test(start_paused = true)]
async fn what_is_invalidated_once_it_was_found_stale_is_not_confirmed() {
    for (control, is_purged) in [("max-age=1", true), (SWR, true), ("max-age=1", false), (SWR, false)] {
        let memory = MemoryStore::default();
        let store = Faulty::new(memory.clone());
        let cache = Cache::builder().store(store.clone()).build().unwrap();
        let stage = Stage::new(cache.layer().tag("a"), move |head, call| {
            let (etag, control) = (("etag", "\"1\""), ("cache-control", if call == 1 { control } else { LONG }));
            let status = if head.headers.contains_key("if-none-match") { 304 } else { 200 };
            reply(status, &[etag, control], if call == 1 { "old" } else { "new" })
        });
        at(&stage, "/page").await;
        stage::wait(2).await;
        store.set(Fault::Dawdles(Duration::from_millis(40)));
        let asking = tokio::spawn({
            let stage = stage.clone();
            async move { at(&stage, "/page").await }
        });
        tokio::time::sleep(Duration::from_millis(60)).await;
        if is_purged {
            memory.purge(&Namespace::default(), &Purge::tag("a")).await.unwrap();
        }
        asking.await.unwrap();
        stage::wait(1).await;
        store.set(Fault::None);
        let held = if is_purged { "" } else { "\"1\"" };
        assert_eq!((stage.calls(), stage.last("if-none-match").1.as_str()), (2, held), "{control}");
        let after = at(&stage, "/page").await;
        let body = if is_purged { "new" } else { "old" };
        assert_eq!((after.x_cache().as_str(), after.body.as_str()), ("HIT", body), "{control}");
    }
}

const SWR: &str = "max-age=1, stale-while-revalidate=60";

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

/// Row 14 of other caches' bugs: an empty tag that everything has, and so many that looking through them takes for ever.
#[tokio::test(start_paused = true)]
async fn row_14_tags_that_are_empty_repeated_or_too_many() {
    let cache = Cache::in_memory();
    let stage = Stage::new(cache.layer(), |head, _| {
        let many = (0..10_000).map(|tag| format!("t{tag}")).collect::<Vec<_>>().join(" ");
        let tags = match head.uri.path() {
            "/blank" => " \t ",
            "/twice" => "a  a\ta",
            "/many" => &many,
            _ => "",
        };
        reply(200, &[("cache-control", LONG), ("surrogate-key", tags), ("cache-tag", ", ,,")], "page")
    });
    for uri in ["/empty", "/blank", "/twice"] {
        assert_eq!(verdict(&stage, uri).await, "MISS");
        assert_eq!(verdict(&stage, uri).await, "HIT", "{uri}");
    }
    assert!(at(&stage, "/many").await.tells("detail=too-many-tags"), "none is dropped in silence");
    for tag in ["", " ", ",", "t1"] {
        cache.purge(Purge::tag(tag)).await.unwrap();
    }
    for (uri, expected) in [("/empty", "HIT"), ("/blank", "HIT"), ("/twice", "HIT"), ("/many", "BYPASS")] {
        assert_eq!(verdict(&stage, uri).await, expected, "{uri}: an empty tag is nobody's");
    }
    cache.purge(Purge::tag("a")).await.unwrap();
    assert_eq!(verdict(&stage, "/twice").await, "MISS");
}

#[tokio::test(start_paused = true)]
async fn tags_come_from_the_fields_of_responses_which_clients_need_not_see() {
    let cache = Cache::in_memory();
    for layer in [cache.layer(), cache.layer().strip_tags(), cache.layer().tag_fields([])] {
        cache.purge(Purge::all()).await.unwrap();
        let (reads, strips) =
            (!format!("{layer:?}").contains("tag_fields: []"), format!("{layer:?}").contains("strip_tags: true"));
        let stage = Stage::new(layer, |_, _| {
            let fields = [("surrogate-key", "a b"), ("cache-tag", "c d,e"), ("cache-groups", "\"g\"")];
            reply(200, &[&fields[..], &[("cache-control", LONG)]].concat(), "page")
        });
        for tag in ["a", "b", "c d", "e"] {
            for expected in ["MISS", "HIT"] {
                let answer = at(&stage, "/page").await;
                assert_eq!(answer.x_cache(), expected, "{tag}");
                for field in ["surrogate-key", "cache-tag", "cache-groups"] {
                    assert_eq!(answer.headers.contains_key(field), !strips, "{field}, {expected}");
                }
                if !reads {
                    break;
                }
            }
            if !reads {
                cache.purge(Purge::tag(tag)).await.unwrap();
                assert_eq!(verdict(&stage, "/page").await, "HIT", "{tag} is not read");
                break;
            }
            cache.purge(Purge::tag("c")).await.unwrap();
            assert_eq!(verdict(&stage, "/page").await, "HIT");
            cache.purge(Purge::tag(tag)).await.unwrap();
        }
    }
}

/// A page that may answer stale for a minute, while it is revalidated or in place of an error.
fn patient(cache: &Cache) -> Stage {
    let layer = cache.layer().tag("a").stale_while_revalidate(Duration::from_secs(60));
    Stage::new(layer, |_, call| {
        let body = if call == 1 { "old" } else { "new" };
        reply(200, &[("cache-control", LONG)], body)
    })
}

#[tokio::test(start_paused = true)]
async fn what_is_purged_softly_answers_once_more_while_it_is_revalidated() {
    for purge in
        [Purge::tag("a"), Purge::key("route:GET:shop.example:/page"), Purge::prefix("route:GET:shop"), Purge::all()]
    {
        let cache = Cache::in_memory();
        let stage = patient(&cache);
        assert_eq!(verdict(&stage, "/page").await, "MISS");
        stage::wait(5).await;
        cache.purge(purge.clone().soft()).await.unwrap();
        let answer = at(&stage, "/page").await;
        assert_eq!((answer.body.as_str(), answer.x_cache().as_str()), ("old", "STALE"), "{purge:?}");
        cache.drain(Duration::from_secs(5)).await;
        let answer = at(&stage, "/page").await;
        assert_eq!((answer.body.as_str(), answer.x_cache().as_str()), ("new", "HIT"), "{purge:?}");

        let stage = patient(&cache);
        cache.purge(Purge::all()).await.unwrap();
        assert_eq!(verdict(&stage, "/page").await, "MISS");
        cache.purge(purge.clone().soft()).await.unwrap();
        stage::wait(61).await;
        assert_eq!(at(&stage, "/page").await.body, "new", "{purge:?}: the minute began with the purge");

        let stage = patient(&cache);
        cache.purge(Purge::all()).await.unwrap();
        assert_eq!(verdict(&stage, "/page").await, "MISS");
        cache.purge(purge.clone()).await.unwrap();
        assert_eq!(at(&stage, "/page").await.body, "new", "{purge:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_variant_is_purged_softly_with_its_resource() {
    let cache = Cache::in_memory();
    let layer = cache.layer().stale_while_revalidate(Duration::from_secs(60));
    let stage = Stage::new(layer, |head, call| {
        let body = match (head.headers["accept-language"].as_bytes(), call) {
            (b"de", 1) => "old, de",
            (b"fr", 2) => "old, fr",
            (b"de", _) => "new, de",
            _ => "new, fr",
        };
        reply(200, &[("cache-control", LONG), ("vary", "accept-language")], body)
    });
    let ask = async |language: &str| stage.ask("GET", "/page", &[("accept-language", language)]).await;
    for language in ["de", "fr"] {
        ask(language).await;
    }
    stage::wait(1).await;
    assert_eq!(cache.purge(Purge::key("route:GET:shop.example:/page").soft()).await.unwrap().resources, 1);
    stage::wait(1).await;
    for (language, old, new) in [("de", "old, de", "new, de"), ("fr", "old, fr", "new, fr")] {
        assert_eq!(ask(language).await.body, old);
        cache.drain(Duration::from_secs(5)).await;
        let answer = ask(language).await;
        assert_eq!((answer.body.as_str(), answer.x_cache().as_str()), (new, "HIT"));
    }
}

/// A page of which the database keeps `version`; and the version.
fn versioned(cache: &Cache) -> (Stage, Arc<AtomicBool>) {
    let is_new = Arc::new(AtomicBool::new(false));
    let read = is_new.clone();
    let stage = Stage::new(cache.layer().tag("a"), move |_, _| {
        reply(200, &[("cache-control", LONG)], if read.load(Ordering::SeqCst) { "new" } else { "old" })
    });
    (stage, is_new)
}

#[tokio::test(start_paused = true)]
async fn who_reads_during_a_write_leaves_nothing_behind() {
    for purge in [Purge::key("route:GET:shop.example:/page"), Purge::tag("a"), Purge::prefix("route"), Purge::all()] {
        for is_committed in [true, false] {
            let cache = Cache::in_memory();
            let (stage, is_new) = versioned(&cache);
            at(&stage, "/page").await;
            let write = cache.begin_write(purge.clone()).await;
            assert!(write.is_held());
            let answer = at(&stage, "/page").await;
            assert_eq!((answer.body.as_str(), answer.x_cache().as_str()), ("old", "MISS"), "{purge:?}");
            at(&stage, "/page").await;
            is_new.store(true, Ordering::SeqCst);
            if is_committed {
                write.commit().await.unwrap();
            } else {
                drop(write);
                cache.drain(Duration::from_secs(1)).await;
            }
            assert_eq!(at(&stage, "/page").await.body, "new", "{purge:?}");
            assert_eq!(verdict(&stage, "/page").await, "HIT", "{purge:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_lasts_as_long_as_its_guard_and_no_other_ends_it() {
    let key = || Purge::key("route:GET:shop.example:/page");
    let cache = Cache::in_memory();
    let (stage, _) = versioned(&cache);
    let write = cache.begin_write(key()).await;
    stage::wait(120).await;
    for _ in 0..2 {
        let answer = at(&stage, "/page").await;
        assert_eq!(answer.x_cache(), "MISS");
        assert!(answer.tells("detail=being-written"), "{answer:?}");
    }
    let other = cache.begin_write(key()).await;
    other.commit().await.unwrap();
    assert_eq!(verdict(&stage, "/page").await, "MISS");
    assert_eq!(verdict(&stage, "/page").await, "MISS", "the first still writes");
    write.commit().await.unwrap();
    assert_eq!(verdict(&stage, "/page").await, "MISS");
    assert_eq!(verdict(&stage, "/page").await, "HIT");
}

#[tokio::test(start_paused = true)]
async fn what_replicas_still_answer_is_not_kept_while_they_lag() {
    for purge in [Purge::key("route:GET:shop.example:/page"), Purge::tag("a"), Purge::all()] {
        let cache = Cache::in_memory();
        let (stage, is_new) = versioned(&cache);
        at(&stage, "/page").await;
        cache.purge_and_hold_down(purge.clone(), Duration::from_secs(2)).await.unwrap();
        assert_eq!(at(&stage, "/page").await.body, "old");
        stage::wait(1).await;
        assert_eq!(at(&stage, "/page").await.body, "old");
        is_new.store(true, Ordering::SeqCst);
        stage::wait(2).await;
        assert_eq!(at(&stage, "/page").await.body, "new", "{purge:?}");
        assert_eq!(verdict(&stage, "/page").await, "HIT", "{purge:?}");
    }
}
