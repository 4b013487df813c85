//! What each setting of a cache changes for the layers over it.
#![cfg(feature = "testing")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod stage;

use larder::{Cache, CacheBuilder, MemoryStore};
use stage::{Stage, reply, told};
use std::time::Duration;

fn stage(cache: &Cache, body: &'static str) -> Stage {
    Stage::new(cache.layer(), move |_, _| reply(200, &[], body))
}

#[tokio::test(start_paused = true)]
async fn caches_over_one_store_meet_in_a_namespace_of_one_version_only() {
    type Setting = fn(CacheBuilder) -> CacheBuilder;
    let cases: [(&str, Setting, Setting, bool); 6] = [
        ("both by default", |cache| cache, |cache| cache, true),
        ("the default version is the first", |cache| cache, |cache| cache.schema_version(1), true),
        ("one version", |cache| cache.schema_version(7), |cache| cache.schema_version(7), true),
        ("two versions", |cache| cache.schema_version(7), |cache| cache.schema_version(8), false),
        ("a version that the other has not", |cache| cache, |cache| cache.schema_version(2), false),
        ("two names", |cache| cache.namespace("a"), |cache| cache.namespace("b"), false),
    ];
    for (name, one, two, meet) in cases {
        let store = MemoryStore::default();
        let [one, two] = [one, two].map(|setting| setting(Cache::builder().store(store.clone())).build().unwrap());
        let (one, two) = (stage(&one, "one"), stage(&two, "two"));
        assert_eq!(one.get(&[]).await.told(), told("MISS", 200, "one"));
        let expected = if meet { told("HIT", 200, "one") } else { told("MISS", 200, "two") };
        assert_eq!(two.get(&[]).await.told(), expected, "{name}");
        assert_eq!(one.get(&[]).await.told(), told("HIT", 200, "one"), "{name}: its own stays");
    }
}

#[tokio::test(start_paused = true)]
async fn a_cache_calls_itself_by_its_identifier() {
    for (setting, name) in [(None, "larder"), (Some("orders-cache"), "orders-cache"), (Some("a:b/c"), "a:b/c")] {
        let builder = setting.into_iter().fold(Cache::builder(), CacheBuilder::identifier);
        let stage = stage(&builder.build().unwrap(), "page");
        assert!(stage.get(&[]).await.field("cache-status").starts_with(&format!("{name}; fwd=uri-miss; ")), "{name}");
        assert!(stage.get(&[]).await.field("cache-status").starts_with(&format!("{name}; hit; ")), "{name}");
        let bypass = stage.ask("PUT", "/page", &[]).await;
        assert!(bypass.field("cache-status").starts_with(&format!("{name}; fwd=method; ")), "{name}");
    }
}

/// Four clients leave while the origin works for each of them.
#[tokio::test(start_paused = true)]
async fn as_many_fetches_outlive_their_clients_as_the_cache_allows() {
    for (allowed, stored) in [(Some(0), 0), (Some(1), 1), (Some(3), 3), (Some(4), 4), (None, 4)] {
        let builder = allowed.into_iter().fold(Cache::builder(), CacheBuilder::background_fetches);
        let cache = builder.build().unwrap();
        let stage = stage(&cache, "page");
        let visit = |n: usize| {
            let stage = stage.clone();
            async move {
                let uri = format!("/{n}");
                tokio::time::timeout(Duration::from_millis(50), stage.ask("GET", &uri, &[])).await.unwrap_err();
            }
        };
        tokio::join!(visit(0), visit(1), visit(2), visit(3));
        assert_eq!(cache.drain(Duration::from_secs(1)).await, 0);
        let mut hits = 0;
        for n in 0..4 {
            hits += usize::from(stage.ask("GET", &format!("/{n}"), &[]).await.x_cache() == "HIT");
        }
        assert_eq!(hits, stored, "{allowed:?}");
    }
}
