//! The Redis store on the primary that sentinels name: the contract, and every way in which another becomes the primary.

mod redis_entries;
mod traffic;

use larder::{
    store::{Claim, Seen, Store, StoreError},
    testing::behaves,
};
use larder_redis::{ConnectError, RedisConfig, RedisStore};
use larder_tests::{Flavor, RedisSentinels};
use redis_entries::*;
use std::time::{Duration, Instant};
use tokio::time::sleep;
use traffic::{Asked, Load, layer, outcomes, until_hits, warm};

async fn it_behaves(store: RedisStore) {
    Box::pin(behaves(&store, sleep)).await;
}

fn config(url: &str) -> RedisConfig {
    RedisConfig::url(url).expect("a URL")
}

#[tokio::test]
async fn it_behaves_on_what_sentinels_name() {
    let sentinels = RedisSentinels::start();
    it_behaves(connect(&sentinels.url()).await).await;
}

#[tokio::test]
async fn it_behaves_on_valkey_with_passwords_of_their_own() {
    let sentinels = RedisSentinels::start_with(Flavor::Valkey, Some("secret"), Some("other"));
    let config = config(&sentinels.url()).sentinel_password("other");
    it_behaves(RedisStore::connect(config).await.expect("a store")).await;
}

#[tokio::test]
async fn what_the_sentinels_refuse_is_an_error_at_the_start() {
    let sentinels = RedisSentinels::start_with(Flavor::Redis, Some("secret"), Some("other"));
    let without = RedisStore::connect(config(&sentinels.url())).await.expect_err("they want a password");
    assert!(matches!(without, ConnectError::Refused { .. }), "{without:?}");
    let wrong = config(&sentinels.url()).sentinel_password("wrong-one");
    let wrong = RedisStore::connect(wrong).await.expect_err("it is the wrong one");
    assert!(matches!(wrong, ConnectError::Refused { .. }), "{wrong:?}");
    assert!(!format!("{wrong}{wrong:?}").contains("wrong-one"), "{wrong}");
    let unknown = config(&sentinels.url().replace("/cache", "/casche")).sentinel_password("other");
    let unknown = RedisStore::connect(unknown).await.expect_err("they know no such service");
    assert!(unknown.to_string().contains("knows no service \"casche\""), "{unknown}");
}

#[tokio::test]
async fn a_user_of_the_sentinels_needs_two_commands() {
    let mut sentinels = RedisSentinels::start();
    for sentinel in 0..3 {
        let user = ["ACL", "SETUSER", "larder", "on", ">secret", "-@all"];
        let may = ["+client|id", "+sentinel|get-master-addr-by-name"];
        sentinels.sentinel_mut(sentinel).cli(&[&user[..], &may[..]].concat());
    }
    let config = config(&sentinels.url()).sentinel_username("larder").sentinel_password("secret");
    let store = RedisStore::connect(config).await.expect("a store");
    put(&store, &key("a"), "x").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_that_are_not_there_are_done_without() {
    let mut sentinels = RedisSentinels::start();
    sentinels.sentinel_mut(0).kill();
    let store = connect(&sentinels.url()).await;
    put(&store, &key("a"), "x").await;
    for sentinel in 1..3 {
        sentinels.sentinel_mut(sentinel).kill();
    }
    sleep(Duration::from_secs(2)).await;
    assert!(body(&store, &key("a")).await.is_ok_and(|body| body.is_some()), "the primary is still there");
    let began = Instant::now();
    let later = connect(&sentinels.url()).await;
    assert!(began.elapsed() < Duration::from_millis(700), "{:?}", began.elapsed());
    assert!(matches!(body(&later, &key("a")).await, Err(StoreError::Unavailable(_))));
    sentinels.sentinel_mut(1).restart();
    until("the primary is found", async || body(&later, &key("a")).await.is_ok_and(|body| body.is_some())).await;
}

/// Clients ask while `change` is done to the primary; returns what they asked since, and when hits came back.
async fn while_it_changes(
    mut sentinels: RedisSentinels,
    change: impl FnOnce(&mut RedisSentinels),
) -> (RedisSentinels, Vec<Asked>, Duration) {
    let layer = layer(config(&sentinels.url())).await;
    let paths: Vec<String> = (0..20).map(|at| format!("/page/{at}")).collect();
    warm(&layer, &paths).await;
    let load = Load::begin(&layer, &paths, 4);
    load.until_asked(200).await;
    let since = Instant::now();
    change(&mut sentinels);
    until("another is the primary", async || sentinels.primary() == 1).await;
    println!("the sentinels name another after {:?}", since.elapsed());
    let connected = |sentinels: &RedisSentinels| sentinels.server(1).cli(&["CLIENT", "LIST"]).contains("resp=3");
    until("it is connected to", async || connected(&sentinels)).await;
    let recovered = until_hits(&load, since, |_| true).await;
    let asked: Vec<Asked> = load.end().await.into_iter().filter(|asked| asked.at > since).collect();
    let longest = asked.iter().map(|asked| asked.took).max().unwrap_or_default();
    let slow = asked.iter().filter(|asked| asked.took > Duration::from_millis(10)).count();
    println!("hits again after {recovered:?}; of {} the longest took {longest:?}, {slow} over 10 ms", asked.len());
    println!("{:?}", outcomes(&asked));
    let waited = asked.iter().filter(|asked| asked.took > Duration::from_millis(150)).count();
    assert!(waited <= 20 && longest < Duration::from_secs(3), "{waited} waited, the longest {longest:?}");
    (sentinels, asked, recovered)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_is_killed_is_followed_by_another() {
    let (_, _, recovered) = while_it_changes(RedisSentinels::start(), |all| all.server_mut(0).kill()).await;
    assert!(recovered < Duration::from_secs(8), "{recovered:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_freezes_is_followed_by_another() {
    let (sentinels, _, recovered) = while_it_changes(RedisSentinels::start(), |all| all.server(0).stop()).await;
    assert!(recovered < Duration::from_secs(8), "{recovered:?}");
    sentinels.server(0).cont();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_failover_costs_hardly_a_hit() {
    let (_, asked, _) = while_it_changes(RedisSentinels::start(), |all| all.fail_over()).await;
    let hits = asked.iter().filter(|asked| asked.is_hit()).count();
    println!("{hits} hits of {}", asked.len());
    let elsewhere = asked.iter().filter(|asked| !asked.is_hit()).map(|asked| asked.at);
    let (first, last) = (elsewhere.clone().min(), elsewhere.max());
    let gap = first.zip(last).map_or(Duration::ZERO, |(first, last)| last - first);
    println!("from the first request without a hit to the last: {gap:?}");
    assert!(gap < Duration::from_secs(3), "{gap:?}");
}

/// A server that is demoted by hand keeps its connections, and refuses to write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_was_demoted_is_left() {
    let sentinels = RedisSentinels::start();
    let store = connect(&sentinels.url()).await;
    put(&store, &key("a"), "x").await;
    sentinels.server(1).cli(&["REPLICAOF", "NO", "ONE"]);
    sentinels.server(0).cli(&["REPLICAOF", "127.0.0.1", &sentinels.server(1).port().to_string()]);
    let refused = store.claim(&key("b"), Seen::Absent).await;
    assert!(matches!(&refused, Err(StoreError::Refused(why)) if why.contains("READONLY")), "{refused:?}");
    sentinels.name_by_hand(1);
    let named = Instant::now();
    let writes = async || matches!(store.claim(&key("b"), Seen::Unreadable).await, Ok(Claim::Granted(_)));
    until("it is written to the other", writes).await;
    println!("written to the other {:?} after it was named", named.elapsed());
    assert!(named.elapsed() < Duration::from_secs(3), "{:?}", named.elapsed());
}
