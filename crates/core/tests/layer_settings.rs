//! What each setting of a layer changes, and what it leaves alone.
#![cfg(feature = "testing")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod stage;

use http::{Method, StatusCode};
use larder::{Cache, CacheLayer, Caching, Key, Purge, Ttl};
use stage::{Fields, Stage, joined, reply, told, wait};
use std::time::Duration;

fn layer() -> CacheLayer {
    Cache::in_memory().layer().jitter(0.0)
}

/// A layer before an origin that always answers with these fields.
fn answered(layer: CacheLayer, fields: Fields<'static>) -> Stage {
    Stage::new(layer, move |_, _| reply(200, fields, "page"))
}

#[tokio::test(start_paused = true)]
async fn an_override_wins_over_every_lifetime_that_is_stated() {
    let stated: [Fields<'_>; 8] = [
        &[],
        &[("cache-control", "max-age=5")],
        &[("cache-control", "max-age=0")],
        &[("cache-control", "max-age=100000")],
        &[("cache-control", "s-maxage=5, max-age=100000")],
        &[("cdn-cache-control", "max-age=5"), ("cache-control", "max-age=100000")],
        &[("expires", "Thu, 01 Jan 1970 00:00:00 GMT")],
        &[("expires", "Fri, 01 Jan 2100 00:00:00 GMT")],
    ];
    for fields in stated {
        let stage = answered(layer().ttl(Ttl::STATIC).ttl_override(Ttl::secs(60)), fields);
        assert!(stage.get(&[]).await.tells("ttl=60"), "{fields:?}");
        wait(59).await;
        assert_eq!(stage.get(&[]).await.x_cache(), "HIT", "{fields:?}");
        wait(1).await;
        assert_eq!(stage.get(&[]).await.x_cache(), "EXPIRED", "{fields:?}");
    }
    for lifetime in [5, 100_000] {
        let stage = Stage::new(layer().ttl_override(Ttl::secs(60)), move |_, _| {
            let mut answer = reply(200, &[], "page")?;
            answer.extensions_mut().insert(Caching::new().ttl(Ttl::secs(lifetime)));
            Ok(answer)
        });
        assert!(stage.get(&[]).await.tells("ttl=60"), "what a handler says: {lifetime}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_override_leaves_what_forbids_storing() {
    let forbidden: [(Fields<'_>, Fields<'_>); 8] = [
        (&[], &[("cache-control", "no-store")]),
        (&[], &[("cdn-cache-control", "no-store"), ("cache-control", "max-age=60")]),
        (&[], &[("cache-control", "private, max-age=60")]),
        (&[], &[("cache-control", "no-cache")]),
        (&[], &[("set-cookie", "sid=1")]),
        (&[], &[("vary", "*")]),
        (&[("authorization", "Basic eA==")], &[]),
        (&[("cookie", "sid=1")], &[]),
    ];
    for (asked, fields) in forbidden {
        let stage = answered(layer().ttl_override(Ttl::secs(60)), fields);
        assert!(stage.get(asked).await.tells("stored=?0"), "{asked:?} {fields:?}");
        stage.get(asked).await;
        assert_eq!(stage.calls(), 2, "{asked:?} {fields:?}");
    }
}

/// What one client is answered is stored for others just where it is not personal, and what is stored answers it.
#[tokio::test(start_paused = true)]
async fn requests_with_credentials_share_as_far_as_the_layer_says() {
    type Setting = fn(CacheLayer) -> CacheLayer;
    let (sid, both): (Fields<'_>, Fields<'_>) = (&[("cookie", "sid=1")], &[("cookie", "_ga=1; sid=1")]);
    let lines: Fields<'_> = &[("cookie", "_ga=1"), ("cookie", "sid=1")];
    let (ga, ignored): (Fields<'_>, Fields<'_>) = (&[("cookie", "_ga=1")], &[("cookie", "theme=dark; _ga=1")]);
    let key: Fields<'_> = &[("authorization", "Basic eA==")];
    let all: Fields<'_> = &[("authorization", "Basic eA=="), ("cookie", "sid=1")];
    let every = [ga, ignored, sid, both, lines, key, all];
    let settings: [(&str, Setting, &[Fields<'_>]); 5] = [
        ("none", |layer| layer, &[]),
        ("ignore_cookies", |layer| layer.ignore_cookies(["_ga", "theme"]), &[ga, ignored]),
        ("share_with_cookies", CacheLayer::share_with_cookies, &[ga, ignored, sid, both, lines]),
        ("share_with_authorization", CacheLayer::share_with_authorization, &[key]),
        ("both", |layer| layer.share_with_cookies().share_with_authorization(), &every),
    ];
    for (name, setting, shared) in settings {
        for asked in every {
            let is_shared = shared.contains(&asked);
            let stage = answered(setting(layer()), &[]);
            stage.get(&[]).await;
            let second = stage.get(asked).await.x_cache();
            assert_eq!(second, if is_shared { "HIT" } else { "BYPASS" }, "{name}: {asked:?} after none");
            let stage = answered(setting(layer()), &[]);
            stage.get(asked).await;
            let second = stage.get(&[]).await.x_cache();
            assert_eq!(second, if is_shared { "HIT" } else { "MISS" }, "{name}: none after {asked:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_tag_of_a_layer_reaches_what_it_has_stored() {
    for (tag, reaches) in [("users", true), ("team:7", true), ("own", true), ("user", false), ("users,team:7", false)] {
        let cache = Cache::in_memory();
        let tagged = answered(cache.layer().tags(["users", "team:7"]).tag("own"), &[]);
        let other = answered(cache.layer().tags(["others"]), &[]);
        tagged.get(&[]).await;
        other.ask("GET", "/other", &[]).await;
        cache.purge(Purge::tag(tag)).await.unwrap();
        let answer = tagged.get(&[]).await;
        assert_eq!((answer.x_cache() == "MISS", answer.tells("detail=invalidated-tag")), (reaches, reaches), "{tag}");
        assert_eq!(other.ask("GET", "/other", &[]).await.x_cache(), "HIT", "{tag}");
    }
}

/// The key tells apart what the body would; here, what a header says of it.
fn searches(layer: CacheLayer, fields: Fields<'static>) -> Stage {
    let layer = layer.methods([Method::GET, Method::HEAD, Method::POST]).key_fn(|head| {
        let method = if head.method == Method::POST { "search" } else { "page" };
        Key::new(method).part(head.uri.path()).part(joined(&head.headers, "x-query"))
    });
    Stage::new(layer.checked().unwrap(), move |head, _| match head.method {
        Method::GET => reply(200, fields, "page"),
        Method::HEAD => reply(200, fields, ""),
        _ => reply(200, fields, "found"),
    })
}

#[tokio::test(start_paused = true)]
async fn a_method_that_the_layer_caches_is_cached_like_get() {
    let (one, two): (Fields<'_>, Fields<'_>) = (&[("x-query", "1")], &[("x-query", "2")]);
    for (layer, fields, ttl) in [
        (layer(), &[] as Fields<'_>, "ttl=3600"),
        (layer().ttl(Ttl::REALTIME), &[], "ttl=10"),
        (layer().ttl_override(Ttl::REALTIME), &[("cache-control", "max-age=60")], "ttl=10"),
        (layer().no_default_ttl(), &[("cache-control", "max-age=60")], "ttl=59"),
    ] {
        let stage = searches(layer, fields);
        let miss = stage.ask("POST", "/page", one).await;
        assert!(miss.x_cache() == "MISS" && miss.tells(ttl), "{fields:?}: {miss:?}");
        assert_eq!(stage.ask("POST", "/page", one).await.told(), told("HIT", 200, "found"));
        assert_eq!(stage.ask("POST", "/page", two).await.told(), told("MISS", 200, "found"));
        // GET and HEAD share what is theirs, and a POST that is answered from the cache changes nothing of it.
        assert_eq!(stage.get(one).await.told(), told("MISS", 200, "page"));
        assert_eq!(stage.ask("POST", "/page", one).await.told(), told("HIT", 200, "found"));
        assert_eq!(stage.get(one).await.told(), told("HIT", 200, "page"));
        assert_eq!(stage.ask("HEAD", "/page", one).await.told(), told("HIT", 200, ""));
        assert_eq!(stage.calls(), 3);
        assert_eq!(stage.ask("PUT", "/page", one).await.x_cache(), "BYPASS", "it is not on the list");
    }
}

/// What expired is fetched anew by the method that it answers, also in the background; and without a condition, to which an
/// origin answers 412 for other methods than GET and HEAD (RFC 9110 section 13.1.2).
#[tokio::test(start_paused = true)]
async fn what_answers_another_method_is_fetched_anew_by_that_method() {
    for (field, word) in [("max-age=10", "EXPIRED"), ("max-age=10, stale-while-revalidate=60", "STALE")] {
        for (method, body, conditions) in [("POST", "found", ""), ("GET", "page", "\"1\"")] {
            let stage = searches(layer(), &[]);
            let fields = [("cache-control", field), ("etag", "\"1\"")];
            let stage = Stage::new(stage.layer, move |head, _| {
                reply(200, &fields, if head.method == Method::POST { "found" } else { "page" })
            });
            stage.ask(method, "/page", &[]).await;
            wait(11).await;
            assert_eq!(stage.ask(method, "/page", &[]).await.told(), told(word, 200, body), "{method}, {field}");
            wait(1).await;
            assert_eq!(stage.calls(), 2, "{method}, {field}");
            let (asked, condition) = stage.last("if-none-match");
            assert_eq!((asked.as_str(), condition.as_str()), (method, conditions), "{field}");
            assert_eq!(stage.ask(method, "/page", &[]).await.told(), told("HIT", 200, body), "{method}, {field}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_method_that_the_layer_leaves_out_goes_past_the_cache() {
    let stage = answered(layer().methods([Method::POST]).key("search"), &[]);
    for _ in 0..2 {
        for method in ["GET", "HEAD", "PUT"] {
            let answer = stage.ask(method, "/page", &[]).await;
            assert!(answer.x_cache() == "BYPASS" && answer.tells("detail=method"), "{method}: {answer:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_status_that_the_layer_names_is_stored_for_its_own_time() {
    // An error is stored for five minutes at most, whatever the layer says.
    for (status, ttl, seconds) in
        [(404, Ttl::secs(30), 30), (410, Ttl::STANDARD, 300), (503, Ttl::secs(5), 5), (301, Ttl::STANDARD, 3600)]
    {
        let code = StatusCode::from_u16(status).unwrap();
        let is_error = status >= 400;
        let stage = Stage::new(layer().status(code, ttl), move |_, _| reply(status, &[], "none"));
        assert_eq!(stage.get(&[]).await.told(), told("MISS", status, "none"));
        wait(seconds - 1).await;
        let hit = stage.get(&[]).await;
        assert_eq!(hit.told(), told("HIT", status, "none"));
        assert!(hit.tells(if is_error { "detail=negative" } else { "detail=near" }), "{hit:?}");
        wait(1).await;
        assert_eq!(stage.get(&[]).await.x_cache(), "EXPIRED", "{status}");
        // What the response says itself counts for more.
        let stated =
            Stage::new(layer().status(code, ttl), move |_, _| reply(status, &[("cache-control", "max-age=9")], ""));
        stated.get(&[]).await;
        assert!(stated.get(&[]).await.tells("ttl=8"), "{status}: the origin took 100 ms");
    }
    for named in [None, Some(StatusCode::GONE)] {
        let layer = named.into_iter().fold(layer(), |layer, status| layer.status(status, Ttl::secs(30)));
        let stage = Stage::new(layer, |_, _| reply(404, &[], "none"));
        for _ in 0..2 {
            let answer = stage.get(&[]).await;
            assert_eq!(answer.told(), told("MISS", 404, "none"));
            assert!(answer.tells("stored=?0") && answer.tells("detail=status"), "{answer:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_named_tier_lasts_as_long_as_it_says() {
    let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
    for (ttl, name, lifetime) in [
        (Ttl::REALTIME, "realtime", Duration::from_secs(10)),
        (Ttl::FREQUENT, "frequent", minutes(5)),
        (Ttl::STANDARD, "standard", minutes(60)),
        (Ttl::REFERENCE, "reference", minutes(24 * 60)),
        (Ttl::STATIC, "static", minutes(7 * 24 * 60)),
    ] {
        let stage = answered(layer().ttl(ttl), &[]);
        assert!(stage.get(&[]).await.tells(&format!("ttl={}", lifetime.as_secs())), "{name}");
        wait(lifetime.as_secs() - 1).await;
        assert_eq!(stage.get(&[]).await.x_cache(), "HIT", "{name}");
        wait(1).await;
        assert_eq!(stage.get(&[]).await.x_cache(), "EXPIRED", "{name}");
    }
}
