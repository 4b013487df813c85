//! Many reads at the same time: they share commands, and each gets its own answer.

mod redis_entries;

use larder::store::{Found, Store};
use larder_redis::{ACL_COMMANDS, RedisStore};
use larder_tests::RedisServer;
use redis_entries::*;
use std::time::Duration;
use tokio::{task::JoinSet, time::timeout};

const READERS: usize = 200;

async fn filled(server: &RedisServer) -> RedisStore {
    let store = connect(&server.url()).await;
    for number in (0..READERS).step_by(2) {
        put(&store, &key(&format!("k{number}")), format!("body {number}")).await;
    }
    store
}

/// Every second key has an entry; who reads which gets that one, or none.
async fn everybody_gets_their_own(store: &RedisStore) {
    let mut readers = JoinSet::new();
    for number in 0..READERS {
        let store = store.clone();
        readers.spawn(async move { (number, body(&store, &key(&format!("k{number}"))).await) });
    }
    for (number, found) in readers.join_all().await {
        let expected = (number % 2 == 0).then(|| format!("body {number}").into());
        assert_eq!(found, Ok(expected), "k{number}");
    }
}

#[tokio::test]
async fn reads_at_the_same_time_share_commands() {
    let server = RedisServer::start();
    let store = filled(&server).await;
    server.cli(&["CONFIG", "RESETSTAT"]);
    everybody_gets_their_own(&store).await;
    let stats = server.command_stats();
    let sent = |word: &str| stats.get(word).copied().unwrap_or(0);
    assert!(sent("mget") > 0 && sent("get") + sent("mget") < 20, "{stats:?}");
}

#[tokio::test]
async fn a_user_who_may_read_only_one_key_at_a_time_reads_all_the_same() {
    let commands = ACL_COMMANDS.replace("+mget ", "");
    let acl = format!("user larder on >secret ~* resetchannels {commands}");
    let server = RedisServer::builder().acl(&acl).start();
    filled(&server).await;
    everybody_gets_their_own(&connect(&server.url_as("larder", "secret")).await).await;
}

#[tokio::test]
async fn a_key_of_another_type_is_a_miss_among_others() {
    let server = RedisServer::start();
    let store = filled(&server).await;
    server.cli(&["DEL", &key("k100").name()]);
    server.cli(&["LPUSH", &key("k100").name(), "not larder's"]);
    let mut readers = JoinSet::new();
    for number in (0..READERS).step_by(2) {
        let store = store.clone();
        readers.spawn(async move { (number, store.get(&key(&format!("k{number}"))).await) });
    }
    for (number, found) in readers.join_all().await {
        match found {
            Ok(Found::Entry(..)) => assert_ne!(number, 100),
            Ok(Found::Absent | Found::Invalidated(_) | Found::Unreadable(_)) => assert_eq!(number, 100),
            Err(error) => panic!("k{number}: {error}"),
        }
    }
}

#[tokio::test]
async fn readers_who_leave_keep_nobody_from_reading() {
    let server = RedisServer::start();
    let store = filled(&server).await;
    server.stop();
    let mut leaving = JoinSet::new();
    for number in 0..READERS {
        let store = store.clone();
        let reading = async move { store.get(&key(&format!("k{number}"))).await.map(drop) };
        leaving.spawn(timeout(Duration::from_millis(20), reading));
    }
    assert!(leaving.join_all().await.iter().all(Result::is_err), "they leave before there is an answer");
    server.cont();
    until("it is well again", async || body(&store, &key("k0")).await.is_ok_and(|body| body.is_some())).await;
    everybody_gets_their_own(&store).await;
}
