//! Requests whose queries differ and ask for the same, by `No-Vary-Search`.
#![cfg(feature = "testing")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod stage;

use bytes::Bytes;
use http::{Method, Request, request::Parts};
use http_body_util::Empty;
use larder::{Cache, CacheLayer, Key, MemoryStore, Policy, Purge, semantics::search::Variance};
use proptest::prelude::*;
use stage::{Answer, Fields, LONG, Reply, Stage, reply, wait};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

const NO_UTM: &str = "params=(\"utm\")";

/// An answer that says this of queries, and tells for what it was made.
fn made(head: &Parts, call: usize, line: &str, fields: Fields<'_>) -> Reply {
    let (target, call) = (head.uri.to_string(), call.to_string());
    let own = [("cache-control", LONG), ("no-vary-search", line), ("x-target", &target), ("x-call", &call)];
    reply(200, &[&own, fields].concat(), "page")
}

/// A layer that follows what is said.
fn layer(store: &MemoryStore) -> CacheLayer {
    Cache::builder().store(store.clone()).build().unwrap().layer().no_vary_search()
}

fn stage(script: impl Fn(&Parts, usize) -> Reply + Send + Sync + 'static) -> Stage {
    Stage::new(layer(&MemoryStore::default()), script)
}

async fn get(stage: &Stage, uri: &str) -> Answer {
    stage.ask("GET", uri, &[]).await
}

/// The word for a GET, and for what it was made.
async fn told(stage: &Stage, uri: &str) -> (String, String) {
    let answer = get(stage, uri).await;
    (answer.x_cache(), answer.field("x-target"))
}

fn is(x_cache: &str, target: &str) -> (String, String) {
    (x_cache.to_owned(), target.to_owned())
}

#[tokio::test(start_paused = true)]
async fn what_does_not_count_does_not_keep_a_stored_answer_from_a_request() {
    let cases: [(&str, &[&str], &[&str]); 5] = [
        (
            "params=(\"utm\" \"fbclid\")",
            &["/p?utm=1&id=1", "/p?id=1&fbclid=2&utm=3", "/p?id=1", "/p?&i%64=1&%75tm"],
            &["/p?id=2", "/p?id=1&x", "/p", "/q?id=1"],
        ),
        (
            "key-order",
            &["/p?b=2&a=+&b=1", "/p?b=2&b=1&a=%20", "/p?a=+&b=2&b=1", "/p?a=%20&b=2&b=1"],
            &["/p?a=+&b=1&b=2", "/p?a=+&b=2", "/p?a=+&b=2&b=1&c"],
        ),
        ("except=(\"id\")", &["/p?x=1&id=1&id=2", "/p?id=1&x=2&id=2"], &["/p?id=2&id=1", "/p", "/p?id=1"]),
        ("params, except=(\"id\")", &["/p?x=1&id=1", "/p?id=1&x=2"], &["/p?id=2"]),
        ("params", &["/p?x=1", "/p?", "/p", "/p?y&z"], &["/q", "/p/"]),
    ];
    for (line, same, others) in cases {
        let stage = stage(move |head, call| made(head, call, line, &[]));
        assert_eq!(told(&stage, same[0]).await, is("MISS", same[0]), "{line}");
        assert_eq!(told(&stage, same[1]).await, is("MISS", same[1]), "{line}: it knows only now");
        for uri in same {
            assert_eq!(told(&stage, uri).await, is("HIT", same[1]), "{line}: {uri}");
        }
        for uri in others {
            assert_eq!(told(&stage, uri).await, is("MISS", uri), "{line}: {uri}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_followed_without_the_option_or_where_the_layer_has_another_key() {
    let script = |head: &Parts, call| made(head, call, NO_UTM, &[]);
    let shared = CacheLayer::with_policy(Cache::in_memory(), Policy::shared_cache());
    for layer in [Cache::in_memory().layer(), shared] {
        let stage = Stage::new(layer, script);
        for uri in ["/p?utm=1", "/p?utm=2", "/p?utm=3"] {
            assert_eq!(told(&stage, uri).await, is("MISS", uri));
            let answer = get(&stage, uri).await;
            assert_eq!((answer.x_cache(), answer.field("no-vary-search")), ("HIT".to_owned(), NO_UTM.to_owned()));
        }
    }
    let stage = Stage::new(Cache::in_memory().layer().no_vary_search().key("page"), script);
    assert_eq!(told(&stage, "/p?utm=1").await, is("MISS", "/p?utm=1"));
    assert_eq!(told(&stage, "/p?id=2&utm=2").await, is("HIT", "/p?utm=1"), "the key is the operator's");
}

#[tokio::test(start_paused = true)]
async fn the_origin_of_a_sealed_layer_sees_the_whole_query() {
    let sealed = layer(&MemoryStore::default()).sealed();
    let stage = Stage::new(sealed, |head, call| made(head, call, NO_UTM, &[]));
    for uri in ["/p?utm=1", "/p?utm=2"] {
        assert_eq!(told(&stage, uri).await, is("MISS", uri));
    }
    assert_eq!(told(&stage, "/p?utm=3").await, is("HIT", "/p?utm=2"));
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_says_something_else_is_followed_from_then_on() {
    let stage = stage(|head, call| match call {
        1 | 2 => made(head, call, NO_UTM, &[("cache-control", "max-age=10")]),
        3..=5 => made(head, call, "", &[]),
        _ => made(head, call, "params=(\"a\")", &[]),
    });
    told(&stage, "/p?utm=1").await;
    told(&stage, "/p?utm=2").await;
    assert_eq!(told(&stage, "/p?utm=3").await, is("HIT", "/p?utm=2"));
    wait(20).await;
    let other = get(&stage, "/p?utm=3").await;
    assert_eq!((other.x_cache(), other.field("x-target")), ("EXPIRED".to_owned(), "/p?utm=3".to_owned()));
    assert!(other.tells("stored=?0") && other.tells("detail=no-vary-search"), "{other:?}");
    for uri in ["/p?utm=3", "/p?utm=4"] {
        assert_eq!(told(&stage, uri).await, is("MISS", uri));
        assert_eq!(told(&stage, uri).await, is("HIT", uri));
    }
    for uri in ["/p?utm=5&a=1", "/p?utm=5&a=2"] {
        assert_eq!(told(&stage, uri).await, is("MISS", uri));
    }
    assert_eq!(told(&stage, "/p?a=3&utm=5").await, is("HIT", "/p?utm=5&a=2"));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_say_it_itself_answers_its_own_query_only() {
    let stage = stage(|head, call| match head.uri.query() {
        Some("preview=1&utm=1") => made(head, call, "params=(\"preview\")", &[]),
        Some("utm=9") => made(head, call, "params=(utm)", &[]),
        Some("") | None => made(head, call, "", &[]),
        _ => made(head, call, NO_UTM, &[]),
    });
    told(&stage, "/p?x&utm=1").await;
    assert_eq!(told(&stage, "/p?preview=1&utm=1").await, is("MISS", "/p?preview=1&utm=1"));
    assert_eq!(told(&stage, "/p?preview=1&utm=2").await, is("MISS", "/p?preview=1&utm=2"));
    assert_eq!(told(&stage, "/p?utm=2").await, is("MISS", "/p?utm=2"));
    assert_eq!(told(&stage, "/p").await, is("HIT", "/p?utm=2"), "it says that both are the same");
    assert_eq!(told(&stage, "/p?utm=9").await, is("HIT", "/p?utm=2"));

    let stage = Stage { layer: layer(&MemoryStore::default()), ..stage };
    told(&stage, "/p?x&utm=1").await;
    assert_eq!(told(&stage, "/p").await, is("MISS", "/p"));
    told(&stage, "/p?x&utm=2").await;
    assert_eq!(told(&stage, "/p?utm=2").await, is("MISS", "/p?utm=2"), "what is stored for /p is for that only");
    assert_eq!(told(&stage, "/p?utm=3").await, is("HIT", "/p?utm=2"), "its place was taken");
}

#[tokio::test(start_paused = true)]
async fn an_error_does_not_undo_what_was_said() {
    let stage = stage(|head, call| match head.uri.query() {
        Some("utm=404&x") => reply(404, &[], "none"),
        Some("utm=500&x") => reply(500, &[("cache-control", LONG)], "broken"),
        _ => made(head, call, NO_UTM, &[]),
    });
    told(&stage, "/p?utm=1").await;
    told(&stage, "/p?utm=2").await;
    for (uri, status) in [("/p?utm=404&x", 404), ("/p?utm=500&x", 500)] {
        for _ in 0..2 {
            let answer = get(&stage, uri).await;
            assert_eq!((answer.status, answer.x_cache()), (status, "MISS".to_owned()));
            assert!(answer.tells("detail=no-vary-search"), "{answer:?}");
        }
    }
    assert_eq!(told(&stage, "/p?utm=3").await, is("HIT", "/p?utm=2"));
    assert_eq!(told(&stage, "/p?x&utm=3").await, is("MISS", "/p?x&utm=3"));
    assert_eq!(told(&stage, "/p?x&utm=4").await, is("HIT", "/p?x&utm=3"));
}

#[tokio::test(start_paused = true)]
async fn a_process_that_has_asked_once_finds_what_another_has_stored() {
    let store = MemoryStore::default();
    let one = Stage::new(layer(&store), |head, call| made(head, call, NO_UTM, &[]));
    let two = Stage { layer: layer(&store), ..one.clone() };
    told(&one, "/p?utm=1").await;
    assert_eq!(told(&one, "/p?utm=2").await, is("MISS", "/p?utm=2"));
    assert_eq!(told(&two, "/p?utm=3").await, is("MISS", "/p?utm=3"));
    assert_eq!(told(&two, "/p?utm=4").await, is("HIT", "/p?utm=2"));
    assert_eq!(told(&two, "/p").await, is("HIT", "/p?utm=2"));
}

#[tokio::test(start_paused = true)]
async fn what_is_changed_or_purged_is_removed_in_every_form() {
    let script = |head: &Parts, call| match head.method {
        Method::GET => made(head, call, NO_UTM, &[]),
        _ => reply(200, &[("location", "/p?utm=1&y=")], "changed"),
    };
    let purge = |uri: &str| {
        let head = Request::builder()
            .uri(uri)
            .header("host", "shop.example")
            .body(Empty::<Bytes>::new())
            .unwrap()
            .into_parts()
            .0;
        Purge::key(Key::of_request(&head).unwrap())
    };
    let long = format!("/p?utm=1&{}=", "z".repeat(600));
    let cases =
        [("/p?utm=5", true), ("/p?utm&utm=", true), ("/p", true), ("/p?id=1&utm=1", false), ("/q?utm=1", false)];
    for (changed, is_reached) in cases {
        for is_purged in [true, false] {
            let cache = Cache::in_memory();
            let stage = Stage::new(cache.layer().no_vary_search(), script);
            for uri in ["/p?utm=1", "/p?utm=2", "/p?utm=2&y=", &long] {
                assert_eq!(told(&stage, uri).await, is("MISS", uri));
            }
            if is_purged {
                let purged = cache.purge(purge(changed)).await.unwrap();
                assert_eq!(purged.resources, u64::from(is_reached), "{changed}");
            } else {
                stage.ask("DELETE", changed, &[]).await;
            }
            let word = |is_removed| if is_removed { "MISS" } else { "HIT" };
            assert_eq!(told(&stage, "/p?utm=6").await.0, word(is_reached), "{changed}");
            assert_eq!(told(&stage, "/p?utm=6&y=").await.0, word(!is_purged), "where the answer says so, too");
            assert_eq!(told(&stage, &long.replace("utm=1", "utm=6")).await.0, "HIT", "{changed}");
            stage.ask("DELETE", &long.replace("utm=1", "utm=7"), &[]).await;
            assert_eq!(told(&stage, &long).await, is("MISS", &long));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_was_on_its_way_before_a_change_is_not_stored_after_it() {
    let stage = stage(|head, call| match head.method {
        Method::GET => made(head, call, NO_UTM, &[]),
        _ => reply(200, &[], "changed"),
    });
    told(&stage, "/p?utm=1").await;
    let late = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        told(&stage, "/p?utm=2").await
    };
    let (_, late) = tokio::join!(stage.ask("POST", "/p?utm=3", &[]), late);
    assert_eq!(late, is("MISS", "/p?utm=2"));
    assert_eq!(told(&stage, "/p?utm=3").await, is("MISS", "/p?utm=3"));
}

#[tokio::test(start_paused = true)]
async fn what_was_said_before_is_still_removed() {
    let stage = stage(|head, call| match call {
        1 | 2 => made(head, call, NO_UTM, &[]),
        4 => reply(200, &[], "changed"),
        _ => made(head, call, "key-order", &[]),
    });
    told(&stage, "/p?utm=1").await;
    told(&stage, "/p?utm=2").await;
    told(&stage, "/p?a&utm=1").await;
    stage.ask("POST", "/p?utm=3", &[]).await;
    assert_eq!(told(&stage, "/p").await, is("MISS", "/p"));
}

#[tokio::test(start_paused = true)]
async fn another_process_that_has_learned_nothing_removes_the_url_itself_only() {
    let store = MemoryStore::default();
    let one = Stage::new(layer(&store), |head, call| made(head, call, NO_UTM, &[]));
    let two = Stage { layer: layer(&store), ..one.clone() };
    told(&one, "/p?utm=1").await;
    told(&one, "/p?utm=2").await;
    two.ask("POST", "/p?utm=3", &[]).await;
    assert_eq!(told(&one, "/p?utm=3").await, is("HIT", "/p?utm=2"));
    told(&two, "/p?utm=4").await;
    two.ask("POST", "/p?utm=3", &[]).await;
    assert_eq!(told(&one, "/p?utm=3").await, is("MISS", "/p?utm=3"));
}

#[tokio::test(start_paused = true)]
async fn variants_are_told_apart_beside_it() {
    let stage = stage(|head, call| made(head, call, NO_UTM, &[("vary", "accept-language")]));
    let ask = async |uri: &str, language: &str| {
        let answer = stage.ask("GET", uri, &[("accept-language", language)]).await;
        (answer.x_cache(), answer.field("x-target"))
    };
    ask("/p?utm=1", "de").await;
    for (language, first) in [("de", "/p?utm=2"), ("en", "/p?utm=3")] {
        assert_eq!(ask(first, language).await, is("MISS", first));
    }
    assert_eq!(ask("/p?utm=4", "de").await, is("HIT", "/p?utm=2"));
    assert_eq!(ask("/p", "en").await, is("HIT", "/p?utm=3"));
    stage.ask("POST", "/p?utm=5", &[]).await;
    assert_eq!(ask("/p", "en").await, is("MISS", "/p"));
}

#[tokio::test(start_paused = true)]
async fn requests_that_ask_for_the_same_are_one_fetch_and_others_are_not_given_it() {
    let stage = stage(|head, call| match head.uri.query() {
        Some("a&own=1") => made(head, call, "params=(\"own\")", &[]),
        Some("a&own=2") => made(head, call, "", &[]),
        _ => made(head, call, "params=(\"utm\" \"own\")", &[]),
    });
    told(&stage, "/p?utm=1").await;
    let (one, two) = tokio::join!(told(&stage, "/p?utm=2"), told(&stage, "/p?utm=3"));
    assert_eq!((one.1, two.1, stage.calls()), ("/p?utm=2".to_owned(), "/p?utm=2".to_owned(), 2));
    let (one, two) = tokio::join!(told(&stage, "/p?a&own=1"), told(&stage, "/p?a&utm=1"));
    assert_eq!((one.1.as_str(), two.1.as_str()), ("/p?a&own=1", "/p?a&utm=1"));
    wait(2000).await;
    told(&stage, "/p?utm=1").await;
    let (one, two) = tokio::join!(told(&stage, "/p?a&own=2"), told(&stage, "/p?a&own=3"));
    assert_eq!((one.1.as_str(), two.1.as_str()), ("/p?a&own=2", "/p?a&own=3"));
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_post_that_does_not_say_it_is_stored_for_no_other_query_and_tells_nothing() {
    let shared = CacheLayer::with_policy(Cache::in_memory(), Policy::shared_cache()).no_vary_search();
    let stage = Stage::new(shared, |head, call| match head.method {
        Method::GET => made(head, call, NO_UTM, &[]),
        _ => made(head, call, "", &[("content-location", &head.uri.to_string())]),
    });
    told(&stage, "/p?utm=1").await;
    told(&stage, "/p?utm=2").await;
    assert!(!stage.ask("POST", "/p?utm=3", &[]).await.tells("stored"));
    assert_eq!(told(&stage, "/p?utm=4").await, is("MISS", "/p?utm=4"));
    assert_eq!(told(&stage, "/p").await, is("HIT", "/p?utm=4"));
    assert!(stage.ask("POST", "/p", &[]).await.tells("stored"));
    assert_eq!(told(&stage, "/p?utm=5").await, is("MISS", "/p?utm=5"));
}

#[tokio::test(start_paused = true)]
async fn head_stale_answers_and_answers_to_post_follow_it_too() {
    let fields = [("cache-control", "max-age=10, stale-while-revalidate=100"), ("content-location", "/p?utm=5")];
    let shared = CacheLayer::with_policy(Cache::in_memory(), Policy::shared_cache()).no_vary_search();
    let stage = Stage::new(shared, move |head, call| {
        let mut answer = made(head, call, NO_UTM, &[])?;
        for (name, value) in fields {
            answer.headers_mut().insert(name, value.parse().unwrap());
        }
        Ok(answer)
    });
    told(&stage, "/p?utm=1").await;
    told(&stage, "/p?utm=2").await;
    let head = stage.ask("HEAD", "/p?utm=3", &[]).await;
    assert_eq!((head.x_cache(), head.field("x-target")), ("HIT".to_owned(), "/p?utm=2".to_owned()));
    wait(20).await;
    assert_eq!(told(&stage, "/p?utm=3").await, is("STALE", "/p?utm=2"));
    wait(1).await;
    assert_eq!(told(&stage, "/p?utm=4").await, is("HIT", "/p?utm=3"));
    assert!(stage.ask("POST", "/p?utm=5", &[]).await.tells("stored"));
    assert_eq!(told(&stage, "/p?utm=6").await, is("HIT", "/p?utm=5"));
}

/// What a response of the origin says, by the call.
const SAYINGS: [&str; 6] = ["", NO_UTM, "params=(\"a\")", "except=(\"a\")", "key-order", "params"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_an_origin_says_a_url_is_answered_only_by_one_that_was_declared_the_same(
        calls in proptest::collection::vec((0..3_usize, 0..10_usize, any::<bool>()), 1..40),
        said in proptest::collection::vec(0..4_usize, 40),
        are_two in any::<bool>(),
        sayings in Just(SAYINGS.to_vec()).prop_shuffle(),
    ) {
        const URLS: [&str; 10] =
            ["/p", "/p?", "/p?a=1", "/p?a=1&utm=1", "/p?utm=1&a=1", "/p?utm=2", "/p?a=2", "/p?a=", "/p?a", "/p?b&a=1"];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let changed: Arc<Mutex<Vec<(String, usize)>>> = Arc::default();
            let store = MemoryStore::default();
            let log = changed.clone();
            let one = Stage::new(layer(&store), move |head: &Parts, call| {
                if head.method == Method::POST {
                    log.lock().unwrap().push((head.uri.to_string(), call));
                }
                made(head, call, sayings[said[call % said.len()]], &[])
            });
            let two = Stage { layer: layer(&store), ..one.clone() };
            for (action, url, is_other) in calls {
                let (stage, url) = (if is_other && are_two { &two } else { &one }, URLS[url]);
                if action == 0 {
                    stage.ask("POST", url, &[]).await;
                    continue;
                }
                let answer = get(stage, url).await;
                check(url, &answer);
                let made: usize = answer.field("x-call").parse().unwrap();
                let last = changed.lock().unwrap().iter().rfind(|(changed, _)| changed == url).map(|(_, call)| *call);
                assert!(are_two || last.is_none_or(|last| made > last), "{url} was changed: {answer:?}");
            }
        });
    }
}

fn check(url: &str, answer: &Answer) {
    let query = |url: &str| url.split_once('?').map(|(_, query)| query.to_owned());
    let (asked, made) = (query(url), query(&answer.field("x-target")));
    let said = Variance::parse(&answer.headers);
    let is_declared = said.canonical(asked.as_deref()) == said.canonical(made.as_deref());
    assert!(asked == made || is_declared, "{url} is answered by {answer:?}");
}
