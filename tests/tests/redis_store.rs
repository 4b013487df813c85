//! The Redis store against real servers: the contract over every way to connect, and what it costs in commands.
//!
//! The numbers are those of the cases in `tests/BUGS.md`.

mod logs;
mod redis_entries;

use bytes::Bytes;
use http::HeaderName;
use larder::{
    Deadlines, Guard, MemoryStore, Tiered,
    semantics::{Content, Entry, EntryId, Filling, Namespace, VariantId, Variants},
    store::{
        Claim, Copied, Filled, Found, Listener, Purge, Seen, Selector, Store, StoreError, TICKET_LIFE, Unreadable,
        Unused,
    },
    testing::behaves,
};
use larder_redis::{ACL_COMMANDS, ConnectError, RedisConfig, RedisStore};
use larder_tests::{Flavor, RedisServer};
use logs::{logging, warnings};
use redis_entries::*;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::time::sleep;

const HOUR: i64 = 3_600_000;

async fn it_behaves(store: impl Store) {
    Box::pin(behaves(&store, sleep)).await;
}

#[tokio::test]
async fn it_behaves_on_redis() {
    let server = RedisServer::start();
    it_behaves(connect(&server.url()).await).await;
}

#[tokio::test]
async fn it_behaves_on_valkey() {
    let server = RedisServer::builder().flavor(Flavor::Valkey).start();
    it_behaves(connect(&server.url()).await).await;
}

#[tokio::test]
async fn it_behaves_over_a_unix_socket() {
    let server = RedisServer::builder().unix_socket().password("p@ss:w/rd?%").start();
    it_behaves(connect(&server.url()).await).await;
}

#[tokio::test]
async fn it_behaves_over_tls_with_an_authority_of_its_own() {
    let server = RedisServer::builder().tls().password("secret").start();
    let config = RedisConfig::url(&server.url()).expect("a URL").tls_ca_file(server.ca_path());
    it_behaves(RedisStore::connect(config).await.expect("a store")).await;
}

/// As a cache without a near store has it.
async fn guarded(server: &RedisServer) -> Guard<RedisStore> {
    // A machine that is busy is no store that is down.
    let patient = Duration::from_secs(2);
    Guard::new(connect(&server.url()).await, Deadlines { read: patient, fill: patient, purge: patient })
}

#[tokio::test]
async fn it_behaves_behind_a_guard() {
    let server = RedisServer::start();
    it_behaves(guarded(&server).await).await;
}

/// Hears what is invalidated, as a cache does.
#[derive(Default)]
struct Ear {
    invalidated: AtomicUsize,
    is_vouched: AtomicBool,
}

impl Listener for Ear {
    fn invalidated(&self, _: &Selector, _: u64) {
        self.invalidated.fetch_add(1, Ordering::SeqCst);
    }

    fn lost(&self) {}

    fn vouched(&self, _: tokio::time::Instant) {
        self.is_vouched.store(true, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn it_behaves_behind_a_guard_and_a_near_store_that_is_told_or_not() {
    for is_told in [true, false] {
        let server = RedisServer::start();
        let tiered = Tiered::new(MemoryStore::default(), guarded(&server).await);
        if is_told {
            // Both that the suite uses.
            for namespace in [Namespace::default(), Namespace::new("elsewhere", 1).expect("a name")] {
                tiered.follow(&namespace, Arc::new(Ear::default()));
            }
        }
        it_behaves(tiered).await;
    }
}

/// It was stored between the look-up and the claim, and its tag had been invalidated before this process began.
#[tokio::test]
async fn what_was_invalidated_on_its_way_is_not_kept_near_by_who_claims() {
    let server = RedisServer::start();
    let one = connect(&server.url()).await;
    let (key, ticket) = (key("a"), claim(&one, &key("a")).await);
    one.purge(&key.namespace, &Purge::tag("t")).await.expect("a purge");
    let mut late = Arc::unwrap_or_clone(entry(&one, "late"));
    let Content::Response(response) = &mut late.content else { panic!("a response") };
    (response.tags, response.born) = (vec!["t".to_owned()], ticket.born);
    assert_eq!(one.fill(ticket, filling(&key, &Arc::new(late))).await, Ok(Filled::Stored));
    let two = Tiered::new(MemoryStore::default(), connect(&server.url()).await);
    let claimed = two.claim(&key, Seen::Absent).await;
    assert!(matches!(claimed, Ok(Claim::Granted(_))), "{claimed:?}");
    assert!(matches!(two.get(&key).await, Ok(Found::Invalidated(_))));
}

/// Case 19: none of the commands that walk through all keys is among them.
#[tokio::test]
async fn it_behaves_for_a_user_who_may_do_nothing_else() {
    // The suite uses the default namespace, and a second one.
    let name = Namespace::default().name().to_owned();
    let acl = format!(
        "user default off\nuser larder on >secret resetkeys ~{name}:* ~{{{name}}}* ~elsewhere:* ~{{elsewhere}}* resetchannels \
         &{{{name}}}* &{{elsewhere}}* {ACL_COMMANDS}"
    );
    let server = RedisServer::builder().acl(&acl).start();
    let store = connect(&server.url_as("larder", "secret")).await;
    it_behaves(store.clone()).await;
    assert_eq!(store.probe().await, Ok(()));
    let denied = server.cli(&["ACL", "LOG"]);
    assert!(!denied.contains("larder"), "the user was denied something: {denied}");
}

/// A server whose user may do what is documented but for one command, which cannot be told to evict.
fn server_without(missing: &str) -> RedisServer {
    let commands: Vec<&str> = ACL_COMMANDS.split(' ').filter(|command| *command != missing).collect();
    let acl = format!("user larder on >secret ~* &* {}", commands.join(" "));
    RedisServer::builder().acl(&acl).arg("--maxmemory", "50mb").arg("--maxmemory-policy", "noeviction").start()
}

/// What is documented as a command that can be done without.
#[tokio::test]
async fn a_user_without_a_command_that_can_be_done_without_stores_and_hits_without_a_word() {
    for (missing, is_checked) in [("", true), ("+client|id", true), ("+info", false), ("+publish", true)] {
        assert!(missing.is_empty() || ACL_COMMANDS.split(' ').any(|command| command == missing), "{missing}");
        let (log, _logging) = logging();
        let server = server_without(missing);
        let url = server.url_as("larder", "secret");
        let [one, other] = [connect(&url).await, connect(&url).await];
        for number in 0..100 {
            let key = key(&format!("k{number}"));
            put(&one, &key, format!("body {number}")).await;
            assert_eq!(body(&other, &key).await, Ok(Some(format!("body {number}").into())), "without {missing}");
        }
        let checked = if is_checked { 2 } else { 0 };
        let told = || log.text().matches("its policy is noeviction").count();
        until("the check-up is done", async || told() >= checked).await;
        assert_eq!((told(), warnings(&log.text())), (checked, checked), "without {missing}: {}", log.text());
    }
}

/// Scripts ask for the time, and Redis lets them do what the user may.
#[tokio::test]
async fn a_user_who_may_not_ask_for_the_time_stores_nothing() {
    let (log, _logging) = logging();
    let server = server_without("+time");
    let store = connect(&server.url_as("larder", "secret")).await;
    for number in 0..100 {
        let key = key(&format!("k{number}"));
        assert_eq!(body(&store, &key).await, Ok(None));
        let claimed = store.claim(&key, Seen::Absent).await;
        assert!(matches!(&claimed, Err(error @ StoreError::Refused(_)) if !error.is_outage()), "{claimed:?}");
    }
    assert!(log.text().contains("give it +time"), "{}", log.text());
    assert!(warnings(&log.text()) <= 2, "nothing but the check-up's: {}", log.text());
}

/// How long it takes until another process knows of a purge.
#[tokio::test]
async fn what_is_invalidated_where_nobody_may_be_told_is_known_after_a_second() {
    let (beat, noise) = (Duration::from_secs(1), Duration::from_millis(500));
    for (missing, most) in [("", Duration::ZERO), ("+publish", beat), ("+subscribe", beat)] {
        let server = server_without(missing);
        let url = server.url_as("larder", "secret");
        let [one, other] = [connect(&url).await, connect(&url).await];
        let ear = Arc::new(Ear::default());
        other.follow(&shop(), ear.clone());
        until("it is followed", async || ear.is_vouched.load(Ordering::SeqCst)).await;
        for round in 1..=3 {
            purge(&one, &key("a")).await.expect("a purge");
            let took = until("it is known", async || ear.invalidated.load(Ordering::SeqCst) == round).await;
            assert!(took < most + noise, "without {missing}: {took:?}");
        }
    }
}

#[tokio::test]
async fn a_long_body_is_compressed_and_read_by_all() {
    let server = RedisServer::start();
    let config = RedisConfig::url(&server.url()).expect("a URL").compress_from(4096);
    let (one, other) = (RedisStore::connect(config).await.expect("a store"), connect(&server.url()).await);
    for (lines, longest) in [(10, 500), (4_000, 2_000), (100_000, 20_000)] {
        let (key, text) = (key(&format!("text-{lines}")), "a line of text\n".repeat(lines));
        put(&one, &key, text.clone()).await;
        let stored: usize = server.cli(&["STRLEN", &key.name()]).parse().expect("a number");
        assert!(stored < longest, "{stored} bytes of {}", text.len());
        for store in [&one, &other] {
            assert_eq!(body(store, &key).await, Ok(Some(Bytes::from(text.clone()))));
        }
    }
}

#[tokio::test]
async fn it_speaks_resp3() {
    let server = RedisServer::start();
    let _store = connect(&server.url()).await;
    let clients = server.cli(&["CLIENT", "LIST"]);
    assert_eq!(clients.matches("resp=3").count(), 2, "{clients}");
}

#[tokio::test]
async fn the_last_clone_takes_the_connections_with_it() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await;
    let clone = store.clone();
    drop(store);
    put(&clone, &key("a"), "x").await;
    drop(clone);
    until("they are closed", async || !server.cli(&["CLIENT", "LIST"]).contains("resp=3")).await;
}

#[tokio::test]
async fn a_database_is_selected() {
    let server = RedisServer::start();
    let (zero, three) = (connect(&server.url()).await, connect(&format!("{}/3", server.url())).await);
    put(&three, &key("a"), "x").await;
    assert_eq!(body(&zero, &key("a")).await, Ok(None));
    let error = RedisStore::connect(format!("{}/200", server.url())).await.expect_err("there are 16 databases");
    assert!(error.to_string().contains("DB index is out of range"), "{error}");
}

/// Case 4.
#[tokio::test]
async fn a_wrong_password_is_an_error_at_the_start() {
    let server = RedisServer::builder().password("right").start();
    let urls = [format!("redis://:wrong-one@{}", server.addr()), format!("redis://{}", server.addr())];
    for url in urls {
        let error = RedisStore::connect(&url).await.expect_err("it is refused");
        assert!(matches!(error, ConnectError::Refused { .. }), "{error:?}");
        assert!(!format!("{error}{error:?}").contains("wrong-one"), "{error}");
    }
    let store = connect(&server.url()).await;
    assert!(!format!("{store:?}").contains("right"), "{store:?}");
}

/// Case 4.
#[tokio::test]
async fn a_certificate_of_a_stranger_is_an_error_at_the_start() {
    let (server, stranger) = (RedisServer::builder().tls().start(), RedisServer::builder().tls().start());
    let config = RedisConfig::url(&server.url()).expect("a URL").tls_ca_file(stranger.ca_path());
    let error = RedisStore::connect(config).await.expect_err("it is not accepted");
    assert!(matches!(error, ConnectError::Certificate { .. }), "{error:?}");
}

#[tokio::test]
async fn a_hit_is_one_get_a_miss_one_script_more_and_a_fill_one_commit() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await;
    // The first of each script is sent whole, once in the life of a server.
    put(&store, &key("first"), "x").await;
    let sent = async |words: &[&str]| {
        let stats = server.command_stats();
        words.iter().map(|word| stats.get(*word).copied().unwrap_or(0)).sum::<u64>()
    };
    // Commands within scripts are counted too, so a script is known by what only it does: the beat asks what was logged last.
    let scripts = async || sent(&["eval", "evalsha"]).await - sent(&["xrevrange"]).await;
    server.cli(&["CONFIG", "RESETSTAT"]);
    for _ in 0..50 {
        body(&store, &key("first")).await.expect("an answer");
    }
    assert_eq!((sent(&["get"]).await, scripts().await), (50, 0), "hits");

    server.cli(&["CONFIG", "RESETSTAT"]);
    assert_eq!(body(&store, &key("second")).await, Ok(None));
    let ticket = claim(&store, &key("second")).await;
    assert_eq!((sent(&["get"]).await, scripts().await), (1, 1), "a miss");

    server.cli(&["CONFIG", "RESETSTAT"]);
    let entry = entry(&store, "x");
    assert_eq!(store.fill(ticket, filling(&key("second"), &entry)).await, Ok(Filled::Stored));
    assert_eq!((sent(&["get"]).await, scripts().await, sent(&["set"]).await), (0, 1, 1), "a fill");
}

#[tokio::test]
async fn every_key_dies_by_itself() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await;
    put(&store, &key("small"), "x").await;
    put(&store, &key("large"), vec![0; 300_000]).await;
    let base = key("varying");
    let rule =
        Arc::new(Entry { id: id(), content: Content::Variants(Variants::by(vec![HeaderName::from_static("accept")])) });
    let variant = base.of_variant(VariantId { rule: rule.id, digest: id() });
    let response = entry(&store, "x");
    let longest = Filling { rule: Some(rule), stored_for: Duration::MAX, ..filling(&variant, &response) };
    let ticket = claim(&store, &base).await;
    assert_eq!(store.fill(ticket, longest).await, Ok(Filled::Stored));
    let _held = claim(&store, &key("held")).await;
    store.purge(&shop(), &Purge::tag("users")).await.expect("a purge");
    let keys = server.cli(&["KEYS", "*"]);
    assert_eq!(keys.lines().count(), 14, "{keys}");
    assert!(keys.lines().any(|key| key == "{shop}:tag:users"), "{keys}");
    let control = ["{shop}:clock", "{shop}:gen", "{shop}:log"];
    for key in keys.lines().filter(|key| !control.contains(key)) {
        let life: i64 = server.cli(&["PTTL", key]).parse().expect("a number");
        assert!(life > 0, "{key} lives for {life}");
        assert!(key.starts_with("shop:v2:{") || key == "{shop}:tag:users", "{key}");
    }
}

#[tokio::test]
async fn what_others_wrote_there_is_a_miss_and_is_written_over() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await;
    let name = key("a").name();
    let foreign: [&[&str]; 3] = [&["SET", &name, "hello"], &["LPUSH", &name, "hello"], &["SET", &name, "LRDC\u{2}"]];
    for words in foreign {
        server.cli(words);
        let Ok(Found::Unreadable(found)) = store.get(&key("a")).await else { panic!("{words:?}") };
        assert!(matches!(found, Unreadable::Foreign | Unreadable::Truncated), "{found:?}");
        for seen in [Seen::Absent, Seen::Unreadable] {
            let Ok(Claim::Granted(ticket)) = store.claim(&key("a"), seen).await else { panic!("{words:?}") };
            store.release(ticket, Unused::NoAnswer).await.expect("a release");
        }
        put(&store, &key("a"), "mine").await;
        assert_eq!(body(&store, &key("a")).await, Ok(Some(Bytes::from_static(b"mine"))));
        server.cli(&["DEL", &name]);
    }
    server.cli(&["SET", &format!("{}:t", key("b").name()), "no hash"]);
    put(&store, &key("b"), "mine").await;
    assert_eq!(body(&store, &key("b")).await, Ok(Some(Bytes::from_static(b"mine"))));
}

/// Case 9, at rest: a copy under another name is not served, and does not make the claim wait.
#[tokio::test]
async fn an_entry_under_another_name_is_a_miss() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await;
    for (size, from, to) in [(10, "a", "b"), (300_000, "c", "d")] {
        put(&store, &key(from), vec![1; size]).await;
        server.cli(&["COPY", &key(from).name(), &key(to).name()]);
        let found = store.get(&key(to)).await;
        assert!(matches!(found, Ok(Found::Unreadable(Unreadable::OtherKey))), "{found:?}");
        until("the connection is made anew", async || store.probe().await.is_ok()).await;
        put(&store, &key(to), "mine").await;
        assert_eq!(body(&store, &key(to)).await, Ok(Some(Bytes::from_static(b"mine"))));
    }
}

/// Case 12.
#[tokio::test]
async fn a_lost_ticket_cannot_release_its_successors() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await;
    let key = key("a");
    let lost = claim(&store, &key).await;
    server.cli(&["DEL", &format!("{}:t", key.name())]);
    let successor = claim(&store, &key).await;
    store.release(lost, Unused::NoAnswer).await.expect("a release");
    assert!(matches!(store.claim(&key, Seen::Absent).await, Ok(Claim::Held)));
    assert_eq!(store.fill(successor, filling(&key, &entry(&store, "x"))).await, Ok(Filled::Stored));
}

/// Case 14.
#[tokio::test]
async fn wrong_clocks_make_nothing_immortal_and_nothing_dead() {
    let server = RedisServer::start();
    let mut stores = Vec::new();
    for shift in [-HOUR, 0, HOUR] {
        let config = RedisConfig::url(&server.url()).expect("a URL").wall_clock_shift(shift);
        stores.push(RedisStore::connect(config).await.expect("a store"));
    }
    let apart = stores[0].now().as_millis().abs_diff(stores[2].now().as_millis());
    assert!(apart < 50, "clocks that are two hours apart show the same time within {apart} ms");
    for (at, writer) in stores.iter().enumerate() {
        let key = key(&format!("by-{at}"));
        put(writer, &key, "x").await;
        for reader in &stores {
            let Ok(Found::Entry(entry, Copied::Far)) = reader.get(&key).await else { panic!("{key:?}") };
            let Content::Response(response) = &entry.content else { panic!("{key:?}") };
            assert!(response.age(reader.now()) < Duration::from_secs(1), "{:?}", response.age(reader.now()));
        }
    }
}

/// Case 18: whoever comes after the loss, one of them asks the origin.
#[tokio::test]
async fn after_flushall_each_key_has_one_ticket() {
    let server = RedisServer::start();
    // A machine that is busy is no server that is.
    let config = RedisConfig::url(&server.url()).expect("a URL").read_timeout(Duration::from_secs(2));
    let connect = async || RedisStore::connect(config.clone()).await.expect("a store");
    let stores = [connect().await, connect().await];
    let in_flight = claim(&stores[0], &key("in-flight")).await;
    for at in 0..50 {
        put(&stores[0], &key(&format!("k{at}")), "old").await;
    }
    server.cli(&["FLUSHALL"]);
    let late = stores[0].fill(in_flight, filling(&key("in-flight"), &entry(&stores[0], "old"))).await;
    assert_eq!(late, Ok(Filled::Voided));
    let mut claims = tokio::task::JoinSet::new();
    for round in 0..500 {
        let (store, key) = (stores[round % 2].clone(), key(&format!("k{}", round % 50)));
        claims.spawn(async move { store.claim(&key, Seen::Absent).await });
    }
    let mut granted = Vec::new();
    while let Some(claim) = claims.join_next().await {
        match claim.expect("a task") {
            Ok(Claim::Granted(ticket)) => granted.push(ticket),
            Ok(Claim::Held) => {}
            other => panic!("{other:?}"),
        }
    }
    granted.sort_by_key(|ticket| ticket.key.name());
    granted.dedup_by_key(|ticket| ticket.key.name());
    assert_eq!(granted.len(), 50);
}

/// Case 22: Redis may evict anything at any time. Writers change a value and purge; whatever disappears meanwhile,
/// nobody finds a value that was purged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_evicted_costs_only_misses() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await;
    let key = key("a");
    let mut purged = 0_u32;
    let (mut hits, mut voided) = (0, 0);
    for round in 1..=300_u32 {
        let ticket = match store.claim(&key, Seen::Unreadable).await {
            Ok(Claim::Granted(ticket)) => ticket,
            Ok(Claim::Held) => {
                server.cli(&["DEL", &format!("{}:t", key.name())]);
                continue;
            }
            other => panic!("{other:?}"),
        };
        let fetched = round;
        if round % 3 == 0 {
            purge(&store, &key).await.expect("a purge");
            purged = round;
        }
        let names = server.cli(&["KEYS", "*"]);
        if let Some(name) = fastrand::choice(names.lines().collect::<Vec<_>>()) {
            server.cli(&["DEL", name]);
        }
        // Large, so that there are chunks to be evicted.
        let text = [&fetched.to_le_bytes()[..], &vec![0; 150_000]].concat();
        match store.fill(ticket, filling(&key, &entry(&store, text))).await.expect("a fill") {
            Filled::Stored => assert!(fetched > purged, "what was fetched before the purge of {purged} is stored"),
            Filled::Voided => voided += 1,
        }
        let names = server.cli(&["KEYS", "*"]);
        if let Some(name) = fastrand::choice(names.lines().collect::<Vec<_>>()).filter(|_| fastrand::bool()) {
            server.cli(&["DEL", name]);
        }
        if let Some(body) = body(&store, &key).await.expect("an answer") {
            let found = u32::from_le_bytes(body[..4].try_into().expect("four bytes"));
            assert!(found > purged, "{found} was found after a purge in round {purged}");
            hits += 1;
        }
    }
    assert!(hits > 20 && voided > 20, "{hits} hits, {voided} voided");
}

/// Case 27.
#[tokio::test]
async fn scripts_that_redis_forgot_are_sent_again() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await;
    for round in 0..20 {
        let key = key(&format!("k{round}"));
        let ticket = claim(&store, &key).await;
        server.cli(&["SCRIPT", "FLUSH"]);
        assert_eq!(store.renew(&ticket).await, Ok(true));
        server.cli(&["SCRIPT", "FLUSH"]);
        assert_eq!(store.fill(ticket, filling(&key, &entry(&store, "x"))).await, Ok(Filled::Stored));
        server.cli(&["SCRIPT", "FLUSH"]);
        assert_eq!(purge(&store, &key).await, Ok(1));
    }
}

#[tokio::test]
async fn a_claim_whose_caller_left_gives_its_ticket_back() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await;
    for round in 0..200_u32 {
        let key = key(&format!("k{round}"));
        // Left at the first await, or anywhere up to the answer.
        let patience = Duration::from_micros(u64::from(round) * 10);
        let left = tokio::time::timeout(patience, store.claim(&key, Seen::Absent)).await;
        if let Ok(claim) = left {
            drop(claim);
            continue;
        }
        let began = Instant::now();
        until("the ticket is free again", async || {
            matches!(store.claim(&key, Seen::Absent).await, Ok(Claim::Granted(_)))
        })
        .await;
        assert!(began.elapsed() < TICKET_LIFE / 2, "it was given back, and did not run out");
    }
}

/// An id in a log is the id in Redis.
#[tokio::test]
async fn a_ticket_can_be_read_by_people() {
    let server = RedisServer::start();
    let store = connect(&server.url()).await;
    let ticket = claim(&store, &key("user:123")).await;
    let stored = server.cli(&["HGET", "shop:v2:{user:123}:t", ""]);
    assert!(stored.starts_with(&format!("{}:", ticket.nonce)), "{stored}");
    let ends: u64 = stored[EntryId::default().to_string().len() + 1..].parse().expect("milliseconds");
    assert!(ends.abs_diff(store.now().as_millis() + 3_000) < 200, "{ends}");
}
