//! Which headers tell of the cache, and to whom.
#![cfg(feature = "testing")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod stage;

use larder::{Cache, CacheLayer, DebugHeaders};
use stage::{Answer, Fields, Stage, answer, reply};
use tower::Layer;

const ALL: &[&str] = &["x-cache", "cache-status", "x-cache-key"];
const STATUS: &[&str] = &["x-cache", "cache-status"];
const NONE: &[&str] = &[];
const KEY: &str = "route:GET:shop.example:/page";

/// Those of a response's fields that tell of the cache, but for `Age`.
fn telling(answer: &Answer) -> Vec<&'static str> {
    ALL.iter().copied().filter(|name| answer.headers.contains_key(*name)).collect()
}

fn layer(headers: &DebugHeaders) -> CacheLayer {
    Cache::in_memory().layer().debug_headers(headers.clone())
}

/// Every setting, what a request shows, and which fields it is told where there is a key to tell.
fn cases() -> Vec<(DebugHeaders, Fields<'static>, &'static [&'static str])> {
    let token = || DebugHeaders::token("open sesame");
    vec![
        (DebugHeaders::default(), &[], ALL),
        (DebugHeaders::Key, &[("x-cache-debug", "of no use")], ALL),
        (DebugHeaders::Status, &[], STATUS),
        (DebugHeaders::Status, &[("x-cache-debug", "")], STATUS),
        (DebugHeaders::Off, &[], NONE),
        (DebugHeaders::Off, &[("x-cache-debug", "open sesame")], NONE),
        (token(), &[("x-cache-debug", "open sesame")], ALL),
        (token(), &[("x-cache-debug", "open sesamE")], STATUS),
        (token(), &[("x-cache-debug", "open sesam")], STATUS),
        (token(), &[("x-cache-debug", "open sesame!")], STATUS),
        (token(), &[("x-cache-debug", "")], STATUS),
        (token(), &[], STATUS),
        (DebugHeaders::token(""), &[("x-cache-debug", "")], STATUS),
        (DebugHeaders::token(""), &[("x-cache-debug", "open sesame")], STATUS),
        (DebugHeaders::token(""), &[], STATUS),
    ]
}

#[tokio::test(start_paused = true)]
async fn each_setting_tells_what_it_says_and_a_hit_its_age_always() {
    for (headers, shown, told) in cases() {
        let stage = Stage::new(layer(&headers), |_, _| reply(200, &[], "page"));
        let miss = stage.get(shown).await;
        assert_eq!(
            (telling(&miss), miss.field("age").as_str()),
            (told.to_vec(), ""),
            "{headers:?} {shown:?}: {miss:?}"
        );
        stage::wait(2).await;
        let hit = stage.get(shown).await;
        assert_eq!((telling(&hit), hit.field("age").as_str()), (told.to_vec(), "2"), "{headers:?} {shown:?}: {hit:?}");
        assert_eq!(stage.calls(), 1);
        let words = [(&miss, "MISS", "fwd=uri-miss"), (&hit, "HIT", "hit")];
        for (answer, word, parameter) in words.into_iter().filter(|_| told.contains(&"x-cache")) {
            assert!(answer.x_cache() == word && answer.tells(parameter), "{headers:?}: {answer:?}");
        }
        for answer in [&miss, &hit].into_iter().filter(|_| told.contains(&"x-cache-key")) {
            assert_eq!(answer.field("x-cache-key"), KEY, "{headers:?}");
        }
    }
}

/// What is not looked up has no key; what is known to be uncacheable has.
#[tokio::test(start_paused = true)]
async fn a_bypass_tells_as_much_as_a_miss_and_no_age() {
    for (headers, shown, told) in cases() {
        let stage = Stage::new(layer(&headers), |_, _| reply(200, &[("cache-control", "no-store")], "page"));
        let without_key: Vec<_> = told.iter().copied().filter(|name| *name != "x-cache-key").collect();
        let by_method = stage.ask("PUT", "/page", shown).await;
        let first = stage.get(shown).await;
        let known = stage.get(shown).await;
        for (answer, told) in [(&by_method, &without_key[..]), (&first, told), (&known, told)] {
            assert_eq!((&telling(answer)[..], answer.field("age").as_str()), (told, ""), "{headers:?} {shown:?}");
        }
        for answer in [&by_method, &known].into_iter().filter(|_| told.contains(&"x-cache")) {
            assert_eq!(answer.x_cache(), "BYPASS", "{headers:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_token_never_reaches_the_service_within() {
    for token in ["open sesame", ""] {
        let stage = Stage::new(layer(&DebugHeaders::token(token)), |_, _| reply(200, &[], "page"));
        for (method, shown) in [("GET", "open sesame"), ("GET", "wrong"), ("POST", "open sesame"), ("DELETE", "")] {
            let uri = format!("/{method}/{}", shown.len());
            stage.ask(method, &uri, &[("x-cache-debug", shown), ("x-cache-debug", "again"), ("x-other", "1")]).await;
            let (seen, debug) = (stage.last("x-other"), stage.last("x-cache-debug"));
            assert_eq!((seen.0.as_str(), seen.1.as_str(), debug.1.as_str()), (method, "1", ""), "{token:?} {shown:?}");
        }
        assert_eq!(stage.calls(), 4);
    }
}

/// What tells the key to one client is kept for others by no cache on the way, and what is stored here stays as it came.
#[tokio::test(start_paused = true)]
async fn the_key_that_the_holder_of_a_token_is_told_is_private() {
    let stage = Stage::new(layer(&DebugHeaders::token("open sesame")), |_, _| {
        reply(200, &[("cache-control", "public, max-age=60"), ("cdn-cache-control", "max-age=70")], "page")
    });
    let told = ("public, max-age=60, private=\"x-cache-key\"", "max-age=70, private=\"x-cache-key\"");
    let untold = ("public, max-age=60", "max-age=70");
    for (method, shown, path, says) in [
        ("GET", "open sesame", "/page", told),
        ("GET", "", "/page", untold),
        ("GET", "open sesame", "/page", told),
        ("GET", "wrong", "/page", untold),
        ("GET", "wrong", "/other", untold),
        ("PUT", "open sesame", "/third", untold),
    ] {
        let answer = stage.ask(method, path, &[("x-cache-debug", shown)]).await;
        let said = (answer.field("cache-control"), answer.field("cdn-cache-control"));
        assert_eq!((said.0.as_str(), said.1.as_str()), says, "{method} {shown:?} {path}");
    }
    assert_eq!(stage.calls(), 3);
}

/// Another cache around this one keeps what the holder of a token was told, but for the key.
#[tokio::test(start_paused = true)]
async fn what_the_holder_of_a_token_asked_for_is_stored_by_another_cache_without_the_key() {
    let inner = layer(&DebugHeaders::token("open sesame"));
    let outer = Cache::in_memory().layer().debug_headers(DebugHeaders::Status);
    let stage = Stage::new(inner, |_, _| reply(200, &[("cache-control", "max-age=60")], "page"));
    for (shown, x_cache, key) in
        [("open sesame", "MISS, MISS", KEY), ("", "MISS, HIT", ""), ("open sesame", "MISS, HIT", "")]
    {
        let service = outer.layer(stage.layer.layer(stage.origin.clone()));
        let answer = answer(service, "GET", "/page", &[("x-cache-debug", shown)]).await.unwrap();
        assert_eq!((answer.x_cache().as_str(), answer.field("x-cache-key").as_str()), (x_cache, key), "{answer:?}");
    }
    assert_eq!(stage.calls(), 1);
}

/// A stored response is delivered in the form that its first delivery has made.
#[tokio::test(start_paused = true)]
async fn layers_that_share_an_entry_tell_each_their_own() {
    let settings = || [(DebugHeaders::Key, ALL), (DebugHeaders::Status, STATUS), (DebugHeaders::Off, NONE)];
    for (filler, _) in settings() {
        for (first, told_first) in settings() {
            for (second, told_second) in settings() {
                let cache = Cache::in_memory();
                let behind = |headers: &DebugHeaders| {
                    Stage::new(cache.layer().debug_headers(headers.clone()), |_, _| {
                        reply(200, &[("x-own", "1")], "page")
                    })
                };
                behind(&filler).get(&[]).await;
                for (headers, told) in [(&first, told_first), (&second, told_second), (&first, told_first)] {
                    let stage = behind(headers);
                    let hit = stage.get(&[]).await;
                    assert_eq!(stage.calls(), 0, "{filler:?}, {first:?}, {second:?}");
                    assert_eq!(telling(&hit), told, "{filler:?}, {first:?}, {second:?}: {hit:?}");
                    assert_eq!((hit.field("age"), hit.field("x-own")), ("0".to_owned(), "1".to_owned()));
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_another_layers_fetch_is_told_by_its_own_setting() {
    let cache = Cache::in_memory();
    let stage = Stage::new(cache.layer(), |_, _| reply(200, &[], "page"));
    let quiet = Stage { layer: cache.layer().debug_headers(DebugHeaders::Off), ..stage.clone() };
    let (leads, follows) = tokio::join!(stage.get(&[]), quiet.get(&[]));
    assert_eq!((telling(&leads), telling(&follows)), (ALL.to_vec(), NONE.to_vec()));
    let (quiet, stage) = (quiet.ask("GET", "/b", &[]), stage.ask("GET", "/b", &[]));
    let (leads, follows) = tokio::join!(quiet, stage);
    assert_eq!((telling(&leads), telling(&follows)), (NONE.to_vec(), ALL.to_vec()));
    assert!(follows.tells("collapsed") && follows.field("x-cache-key").ends_with("/b"), "{follows:?}");
}

#[tokio::test(start_paused = true)]
async fn what_a_nearer_cache_tells_stays_before_ours_and_is_all_there_is_when_ours_is_off() {
    let fields: Fields<'_> = &[("cache-status", "near; hit"), ("x-cache", "HIT"), ("x-cache-key", "theirs")];
    for (headers, told) in [
        (DebugHeaders::Off, ["HIT", "near; hit", "theirs"]),
        (DebugHeaders::Status, ["HIT, ", "near; hit, larder; ", "theirs"]),
        (DebugHeaders::Key, ["HIT, ", "near; hit, larder; ", KEY]),
    ] {
        let stage = Stage::new(layer(&headers), move |_, _| reply(200, fields, "page"));
        for word in ["MISS", "HIT"] {
            let answer = stage.get(&[]).await;
            let found = ["x-cache", "cache-status", "x-cache-key"].map(|name| answer.field(name));
            if matches!(headers, DebugHeaders::Off) {
                assert_eq!(found, told);
            } else {
                assert_eq!(found[0], format!("{}{word}", told[0]));
                assert!(found[1].starts_with(told[1]), "{found:?}");
                assert_eq!(found[2], told[2]);
            }
        }
        assert_eq!(stage.calls(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn layers_within_each_other_are_all_shown_the_token() {
    let stage = Stage::new(layer(&DebugHeaders::token("open sesame")), |_, _| reply(200, &[], "page"));
    let (outer, inner) = (stage.layer.clone(), stage.layer.clone());
    for (shown, told) in [("open sesame", ALL), ("wrong", STATUS)] {
        for word in ["MISS", "HIT"] {
            let service = outer.layer(inner.layer(stage.origin.clone()));
            let fields: Fields<'_> = &[("x-cache-debug", shown)];
            let answer = answer(service, "GET", &format!("/{}", told.len()), fields).await.unwrap();
            assert_eq!((answer.x_cache().as_str(), &telling(&answer)[..]), (word, told), "{shown}: {answer:?}");
            assert_eq!(stage.last("x-cache-debug").1, "");
        }
    }
}
