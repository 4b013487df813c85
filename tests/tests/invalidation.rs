//! What one process invalidates, as others see it: several instances on one Redis, with a tier of their own before it or
//! without one. How soon they hear of it is the question, so time is real here.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use larder::{Cache, Caching, Deadlines, MemoryStore, Purge, semantics::policy::Early};
use larder_redis::{Recovery, RedisConfig, RedisStore};
use larder_tests::{FaultProxy, RedisServer};
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tower::{Layer, ServiceExt};

/// How old an answer may be that another process has invalidated: twice the beat, whatever was lost on the way.
const BOUND: Duration = Duration::from_secs(2);

/// What the origin knows; every change is followed by an invalidation.
#[derive(Clone, Default)]
struct Truth(Arc<AtomicU64>);

impl Truth {
    fn is(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    fn change(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }
}

#[derive(Clone)]
struct Instance {
    cache: Cache,
    truth: Truth,
}

impl Instance {
    /// With a near tier that keeps for a minute what it is not told of.
    async fn near(url: &str, truth: &Truth) -> Self {
        Self::start(url, truth, true).await
    }

    async fn far(url: &str, truth: &Truth) -> Self {
        Self::start(url, truth, false).await
    }

    async fn start(url: &str, truth: &Truth, is_near: bool) -> Self {
        let store = RedisStore::connect(url).await.expect("a store");
        let patient = Duration::from_secs(2);
        let deadlines = Deadlines { read: patient, fill: patient, ..Deadlines::default() };
        let mut cache = Cache::builder().store(store).deadlines(deadlines).store_budget(patient);
        if is_near {
            cache = cache.near(MemoryStore::default()).near_life(Duration::from_secs(60));
        }
        Self { cache: cache.build().expect("a cache"), truth: truth.clone() }
    }

    /// What the origin knew when it was asked for this, and `Cache-Status`. Its tags are `all`, and its own path.
    async fn ask(&self, path: &str) -> (u64, String) {
        let truth = self.truth.clone();
        let origin = move |request: Request<Empty<Bytes>>| {
            let truth = truth.clone();
            async move {
                let tag = request.uri().path().trim_start_matches('/').to_owned();
                let response = Response::builder().header("cache-control", "max-age=3600");
                let body = Full::new(Bytes::from(truth.is().to_string()));
                let response = response.extension(Caching::new().tag(tag).tag("all")).body(body);
                Ok::<_, Infallible>(response.expect("a response"))
            }
        };
        let service = self.cache.layer().layer(tower::service_fn(origin));
        let request = Request::builder().uri(path).header("host", "h").body(Empty::<Bytes>::new()).expect("a request");
        let response = service.oneshot(request).await.expect("an answer");
        let status = response.headers()["cache-status"].to_str().expect("ASCII").to_owned();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (String::from_utf8(body.to_vec()).expect("digits").parse().expect("a number"), status)
    }

    /// Asks until what is stored answers.
    async fn warm(&self, path: &str) {
        let began = Instant::now();
        while !self.ask(path).await.1.contains("; hit") {
            assert!(began.elapsed() < Duration::from_secs(5), "{path} is not stored");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Asks until what another has invalidated is gone; how long that took.
    async fn hears(&self, path: &str, version: u64) -> Duration {
        let began = Instant::now();
        while self.ask(path).await.0 < version {
            assert!(began.elapsed() < BOUND + Duration::from_millis(500), "{path} is older than {version}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        began.elapsed()
    }
}

fn purges(path: &str) -> [Purge; 5] {
    [
        Purge::key(format!("route:GET:h:{path}").as_str()),
        Purge::tag(path.trim_start_matches('/')),
        Purge::prefix("route:GET:h:/"),
        Purge::pattern("*:h:*"),
        Purge::all(),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_purges_no_other_answers_from_memory() {
    let (server, truth) = (RedisServer::start(), Truth::default());
    let (one, two) = (Instance::near(&server.url(), &truth).await, Instance::near(&server.url(), &truth).await);
    for purge in purges("/a") {
        for is_soft in [false, true] {
            let purge = if is_soft { purge.clone().soft() } else { purge.clone() };
            for instance in [&one, &two] {
                instance.warm("/a").await;
                let gets = server.command_stats().get("get").copied().unwrap_or_default();
                assert!(instance.ask("/a").await.1.contains("; hit"));
                let asked = server.command_stats().get("get").copied().unwrap_or_default() - gets;
                assert_eq!(asked, 0, "it is near");
            }
            let version = truth.change();
            let receipt = one.cache.purge(purge.clone()).await.expect("a purge");
            assert!(receipt.logged.is_some() && !receipt.is_deferred, "{receipt:?}");
            assert_eq!(one.ask("/a").await.0, version, "{purge:?}: the process itself sees it at once");
            let took = two.hears("/a", version).await;
            assert!(took < Duration::from_millis(500), "{purge:?}: the message was to tell, not the beat: {took:?}");
        }
    }
}

/// Row 7 of other caches' bugs: a message is lost, and stale copies stay.
#[tokio::test(flavor = "multi_thread")]
async fn row_07_what_was_not_heard_is_asked_for() {
    let (server, truth) = (RedisServer::start(), Truth::default());
    let (one, two) = (Instance::near(&server.url(), &truth).await, Instance::near(&server.url(), &truth).await);
    for _ in 0..3 {
        for instance in [&one, &two] {
            instance.warm("/a").await;
        }
        server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        let version = truth.change();
        one.cache.purge(Purge::tag("a")).await.expect("a purge");
        two.hears("/a", version).await;
    }
}

/// Row 8: after the connection has broken, nobody listens any more.
#[tokio::test(flavor = "multi_thread")]
async fn row_08_who_was_cut_off_listens_again() {
    let (server, truth) = (RedisServer::start(), Truth::default());
    let (one, two) = (Instance::near(&server.url(), &truth).await, Instance::near(&server.url(), &truth).await);
    one.warm("/a").await;
    for _ in 0..5 {
        server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    }
    let began = Instant::now();
    loop {
        two.warm("/a").await;
        let version = truth.change();
        one.cache.purge(Purge::tag("a")).await.expect("a purge");
        if two.hears("/a", version).await < Duration::from_millis(100) {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "it is told by the beat only");
    }
}

/// Row 5: what is known of tags is kept for ever.
#[tokio::test(flavor = "multi_thread")]
async fn row_05_a_tag_that_was_read_before_is_known_to_be_invalid_elsewhere() {
    let (server, truth) = (RedisServer::start(), Truth::default());
    let (one, two) = (Instance::far(&server.url(), &truth).await, Instance::far(&server.url(), &truth).await);
    for _ in 0..20 {
        two.warm("/a").await;
        let version = truth.change();
        one.cache.purge(Purge::tag("a")).await.expect("a purge");
        two.hears("/a", version).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hit_with_tags_is_one_get() {
    let (server, truth) = (RedisServer::start(), Truth::default());
    let one = Instance::far(&server.url(), &truth).await;
    one.warm("/a").await;
    server.cli(&["CONFIG", "RESETSTAT"]);
    for _ in 0..50 {
        assert!(one.ask("/a").await.1.contains("; hit"));
    }
    let stats = server.command_stats();
    let count = |word: &str| stats.get(word).copied().unwrap_or_default();
    assert_eq!((count("get"), count("evalsha") - count("xrevrange")), (50, 0), "{stats:?}");
}

/// Row 3: the record of a tag is made anew, and everything everywhere counts as invalid.
#[tokio::test(flavor = "multi_thread")]
async fn row_03_a_tag_whose_record_is_gone_costs_its_own_responses_once() {
    let (server, truth) = (RedisServer::start(), Truth::default());
    let one = Instance::far(&server.url(), &truth).await;
    for path in ["/a", "/b"] {
        one.warm(path).await;
    }
    // The clock goes on, so that a record made anew is later than what is stored.
    one.cache.purge(Purge::tag("other")).await.expect("a purge");
    server.cli(&["DEL", "{larder}:tag:a"]);
    let two = Instance::far(&server.url(), &truth).await;
    assert!(two.ask("/b").await.1.contains("; hit"), "another tag");
    assert!(!two.ask("/a").await.1.contains("; hit"), "it may have been invalidated");
    two.warm("/a").await;
    assert!(one.ask("/b").await.1.contains("; hit"));
}

/// What is lost of the log is lost for what is near, too: it may have named anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_lost_empties_what_is_near() {
    for lose in [&["DEL", "{larder}:log"][..], &["FLUSHALL"]] {
        let (server, truth) = (RedisServer::start(), Truth::default());
        let (one, two) = (Instance::near(&server.url(), &truth).await, Instance::near(&server.url(), &truth).await);
        for tag in ["x", "y"] {
            one.cache.purge(Purge::tag(tag)).await.expect("a purge");
        }
        for instance in [&one, &two] {
            instance.warm("/a").await;
        }
        // As if the invalidation had been on a primary that is gone, and with it what it had stored.
        server.cli(&["DEL", "larder:v1:{route:GET:h:/a}"]);
        let version = truth.change();
        server.cli(lose);
        two.hears("/a", version).await;
    }
}

/// While Redis is not reached, nobody answers from memory longer than it is sure.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_cut_off_answers_from_memory_for_two_seconds_at_most() {
    let (server, truth) = (RedisServer::start(), Truth::default());
    let proxy = FaultProxy::start(server.addr());
    let (one, two) = (Instance::near(&server.url(), &truth).await, Instance::near(&proxy.url(), &truth).await);
    for instance in [&one, &two] {
        instance.warm("/a").await;
    }
    proxy.black_hole();
    let version = truth.change();
    one.cache.purge(Purge::tag("a")).await.expect("a purge");
    two.hears("/a", version).await;
    proxy.pass();
    assert_eq!(two.ask("/a").await.0, version);
}

/// Nor does it share with those who come later what it asked the origin for before it was cut off.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_cut_off_shares_a_fetch_for_two_seconds_at_most() {
    let (server, truth) = (RedisServer::start(), Truth::default());
    let proxy = FaultProxy::start(server.addr());
    let (one, two) = (Instance::far(&server.url(), &truth).await, Instance::far(&proxy.url(), &truth).await);
    let began = Arc::new(tokio::sync::Notify::new());
    let (go, wait) = tokio::sync::oneshot::channel::<()>();
    let wait = Arc::new(tokio::sync::Mutex::new(Some(wait)));
    let (began_here, truth_here) = (began.clone(), truth.clone());
    let origin = move |_: Request<Empty<Bytes>>| {
        let (began, wait, truth) = (began_here.clone(), wait.clone(), truth_here.clone());
        async move {
            let version = truth.is();
            began.notify_one();
            if let Some(wait) = wait.lock().await.take() {
                wait.await.expect("a word");
            }
            let response = Response::builder().header("cache-control", "max-age=3600");
            Ok::<_, Infallible>(response.body(Full::new(Bytes::from(version.to_string()))).expect("a response"))
        }
    };
    let request = || Request::builder().uri("/a").header("host", "h").body(Empty::<Bytes>::new()).expect("a request");
    let service = two.cache.layer().layer(tower::service_fn(origin));
    two.warm("/b").await;
    let early = tokio::spawn(service.clone().oneshot(request()));
    began.notified().await;
    proxy.refuse();
    proxy.reset();
    let version = truth.change();
    one.cache.purge(Purge::key("route:GET:h:/a")).await.expect("a purge");
    tokio::time::sleep(BOUND).await;
    let mut late = tokio::spawn(service.oneshot(request()));
    let waited = tokio::time::timeout(Duration::from_secs(1), &mut late).await;
    go.send(()).expect("somebody waits");
    let late = if let Ok(late) = waited { late } else { late.await };
    let body = late.expect("no panic").expect("an answer").into_body().collect().await.expect("a body").to_bytes();
    assert_eq!(body, version.to_string(), "it came later than the old answer may be given");
    early.await.expect("no panic").expect("an answer");
}

/// Row 1, and 32: what was asked for before an invalidation is stored after it; one purge is enough.
#[tokio::test(flavor = "multi_thread")]
async fn row_01_an_invalidation_during_a_fetch_is_not_lost() {
    let (server, truth) = (RedisServer::start(), Truth::default());
    let url = server.url();
    for purge in purges("/a") {
        for instance in [Instance::near(&url, &truth).await, Instance::far(&url, &truth).await] {
            let began = Arc::new(tokio::sync::Notify::new());
            let (go, wait) = tokio::sync::oneshot::channel::<()>();
            let wait = Arc::new(tokio::sync::Mutex::new(Some(wait)));
            let (began_here, truth_here) = (began.clone(), truth.clone());
            let origin = move |_: Request<Empty<Bytes>>| {
                let (began, wait, truth) = (began_here.clone(), wait.clone(), truth_here.clone());
                async move {
                    let version = truth.is();
                    began.notify_one();
                    if let Some(wait) = wait.lock().await.take() {
                        wait.await.expect("a word");
                    }
                    let response = Response::builder().header("cache-control", "max-age=3600");
                    let response = response.extension(Caching::new().tag("a"));
                    Ok::<_, Infallible>(response.body(Full::new(Bytes::from(version.to_string()))).expect("a response"))
                }
            };
            instance.cache.purge(Purge::all()).await.expect("a purge");
            let request = || Request::builder().uri("/a").header("host", "h").body(Empty::<Bytes>::new()).expect("one");
            let service = instance.cache.layer().layer(tower::service_fn(origin));
            let early = tokio::spawn(service.clone().oneshot(request()));
            began.notified().await;
            let version = truth.change();
            let other = Instance::far(&url, &truth).await;
            other.cache.purge(purge.clone()).await.expect("a purge");
            go.send(()).expect("somebody waits");
            let early = early.await.expect("no panic").expect("an answer");
            early.into_body().collect().await.expect("a body");
            instance.cache.drain(Duration::from_secs(5)).await;
            assert_eq!(instance.hears("/a", version).await.as_secs(), 0);
            assert_eq!(other.ask("/a").await.0, version, "{purge:?}");
        }
    }
}

/// Row 6: the near tier is filled again from a far one that is not yet purged.
#[tokio::test(flavor = "multi_thread")]
async fn row_06_readers_during_a_purge_leave_nothing_old_behind() {
    let (server, truth) = (RedisServer::start(), Truth::default());
    let (one, two) = (Instance::near(&server.url(), &truth).await, Instance::near(&server.url(), &truth).await);
    for round in 0..60 {
        let readers: Vec<_> = [&one, &two].into_iter().cycle().take(8).cloned().collect();
        let readers: Vec<_> = readers
            .into_iter()
            .map(|reader| {
                tokio::spawn(async move {
                    for _ in 0..20 {
                        reader.ask("/a").await;
                    }
                })
            })
            .collect();
        let version = truth.change();
        one.cache
            .purge(if round % 2 == 0 { Purge::tag("a") } else { Purge::key("route:GET:h:/a") })
            .await
            .expect("one");
        assert!(one.ask("/a").await.0 >= version, "round {round}");
        for reader in readers {
            reader.await.expect("no panic");
        }
        assert!(one.ask("/a").await.0 >= version, "round {round}");
        two.hears("/a", version).await;
    }
}

/// Row 30: every notice makes every instance read the shared store again.
#[tokio::test(flavor = "multi_thread")]
async fn row_30_being_told_costs_no_reads() {
    let (server, truth) = (RedisServer::start(), Truth::default());
    let (one, two) = (Instance::near(&server.url(), &truth).await, Instance::near(&server.url(), &truth).await);
    two.warm("/a").await;
    server.cli(&["CONFIG", "RESETSTAT"]);
    for n in 0..100 {
        one.cache.purge(Purge::tag(format!("t{n}"))).await.expect("a purge");
    }
    let stats = server.command_stats();
    assert!(stats.get("xrange").copied().unwrap_or_default() <= 4, "they were told: {stats:?}");
    let gets = stats.get("get").copied().unwrap_or_default();
    assert!(two.ask("/a").await.1.contains("; hit"));
    let later = server.command_stats().get("get").copied().unwrap_or_default();
    assert_eq!(later, gets, "it is near still");
    // The script that invalidates reads clock and record.
    assert!(gets <= 200, "{gets}");
}

/// A store that is told what was lost as `recovery` has it, after an outage of so long.
async fn recovering(server: &RedisServer, recovery: Recovery, after: Duration, truth: &Truth) -> Instance {
    let config = RedisConfig::url(&server.url()).expect("a URL").recovery(recovery).outage_after(after);
    let store = RedisStore::connect(config).await.expect("a store");
    Instance { cache: Cache::builder().store(store).build().expect("a cache"), truth: truth.clone() }
}

/// Freezes the server for longer than an outage takes to count as one.
async fn outage(server: &RedisServer) {
    server.stop();
    tokio::time::sleep(BOUND + Duration::from_millis(1_500)).await;
    server.cont();
}

/// Asks until Redis answers again; what came first that was not around it.
async fn returns(instance: &Instance, path: &str) -> (u64, String) {
    let began = Instant::now();
    loop {
        let (version, status) = instance.ask(path).await;
        let is_around = ["breaker-open", "store-down", "store-timeout"].iter().any(|reason| status.contains(reason));
        if !is_around {
            return (version, status);
        }
        assert!(began.elapsed() < Duration::from_secs(10), "Redis does not return: {status}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_outage_what_may_have_been_invalidated_is_dealt_with_as_the_policy_has_it() {
    for (recovery, after, expected) in [
        (Recovery::Expire, BOUND, "fwd=stale"),
        (Recovery::Purge, BOUND, "fwd=miss"),
        (Recovery::Repeat, BOUND, "hit"),
        (Recovery::Trust, BOUND, "hit"),
        (Recovery::Expire, Duration::MAX, "hit"),
    ] {
        let (server, truth) = (RedisServer::start(), Truth::default());
        let one = recovering(&server, recovery, after, &truth).await;
        one.warm("/a").await;
        let version = truth.change();
        outage(&server).await;
        let (found, status) = returns(&one, "/a").await;
        assert!(status.contains(expected), "{recovery:?}: {status}");
        assert_eq!(found == version, expected != "hit", "{recovery:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_that_saw_an_outage_expire_the_namespace_once() {
    let (server, truth) = (RedisServer::start(), Truth::default());
    let mut instances = Vec::new();
    for _ in 0..8 {
        instances.push(recovering(&server, Recovery::Expire, BOUND, &truth).await);
    }
    for instance in &instances {
        instance.warm("/a").await;
    }
    outage(&server).await;
    for instance in &instances {
        returns(instance, "/a").await;
    }
    for instance in &instances {
        instance.warm("/a").await;
    }
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(server.cli(&["XLEN", "{larder}:log"]), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_purged_is_purged_before_anything_is_read_again() {
    for (purge, is_killed) in purges("/a").into_iter().flat_map(|purge| [(purge.clone(), true), (purge, false)]) {
        let (mut server, truth) = (RedisServer::builder().arg("--appendonly", "yes").start(), Truth::default());
        let config = RedisConfig::url(&server.url()).expect("a URL").recovery(Recovery::Trust).defer_purges();
        let store = RedisStore::connect(config).await.expect("a store");
        let cache = Cache::builder().store(store).near(MemoryStore::default()).build().expect("a cache");
        let one = Instance { cache, truth: truth.clone() };
        one.warm("/a").await;
        if is_killed {
            server.kill();
        } else {
            server.stop();
        }
        let version = truth.change();
        let receipt = one.cache.purge(purge.clone()).await.expect("a receipt");
        assert!(receipt.is_deferred, "{receipt:?}");
        assert_eq!(one.ask("/a").await.0, version, "{purge:?}");
        if is_killed {
            server.restart();
        } else {
            server.cont();
        }
        let (found, status) = returns(&one, "/a").await;
        assert_eq!(found, version, "{purge:?}: {status}");
        one.warm("/a").await;
        assert_eq!(one.ask("/a").await.0, version, "{purge:?}");
    }
}

/// Row 2: what is fetched anew in the background, before its time or after it, brings back what was invalidated meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn row_02_a_refresh_in_the_background_brings_nothing_back() {
    let (server, truth) = (RedisServer::start(), Truth::default());
    for early in [Early::At(0.0), Early::Never] {
        for purge in [Purge::tag("a"), Purge::key("route:GET:h:/a"), Purge::all()] {
            let one = Instance::far(&server.url(), &truth).await;
            one.cache.purge(Purge::all()).await.expect("a purge");
            let (began, go) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
            let (began_here, go_here, truth_here) = (began.clone(), go.clone(), truth.clone());
            let calls = Arc::new(AtomicU64::new(0));
            let calls_here = calls.clone();
            let origin = move |_: Request<Empty<Bytes>>| {
                let (began, go, truth, calls) =
                    (began_here.clone(), go_here.clone(), truth_here.clone(), calls_here.clone());
                async move {
                    let version = truth.is();
                    // The second is the refresh: it has read what is about to change.
                    if calls.fetch_add(1, Ordering::SeqCst) == 1 {
                        began.notify_one();
                        go.notified().await;
                    }
                    let response = Response::builder().header("cache-control", "max-age=1, stale-while-revalidate=60");
                    let response = response.extension(Caching::new().tag("a"));
                    Ok::<_, Infallible>(response.body(Full::new(Bytes::from(version.to_string()))).expect("a response"))
                }
            };
            let service = one.cache.layer().early(early).layer(tower::service_fn(origin));
            let ask = async || {
                let request = Request::builder().uri("/a").header("host", "h").body(Empty::<Bytes>::new());
                let response = service.clone().oneshot(request.expect("a request")).await.expect("an answer");
                response.into_body().collect().await.expect("a body").to_bytes()
            };
            let began_at = Instant::now();
            while calls.load(Ordering::SeqCst) < 2 {
                ask().await;
                tokio::time::sleep(Duration::from_millis(20)).await;
                assert!(began_at.elapsed() < Duration::from_secs(5), "nothing is refreshed");
            }
            began.notified().await;
            let version = truth.change();
            one.cache.purge(purge.clone()).await.expect("a purge");
            go.notify_one();
            one.cache.drain(Duration::from_secs(5)).await;
            assert_eq!(ask().await, version.to_string(), "{early:?}, {purge:?}");
        }
    }
}

/// Row 4: whether a tag is invalid depends on the clock of whoever reads.
#[tokio::test(flavor = "multi_thread")]
async fn row_04_wrong_clocks_tell_the_same() {
    let (server, truth) = (RedisServer::start(), Truth::default());
    let mut instances = Vec::new();
    for shift in [0, 300_000, -300_000] {
        let config = RedisConfig::url(&server.url()).expect("a URL").wall_clock_shift(shift);
        let store = RedisStore::connect(config).await.expect("a store");
        instances.push(Instance { cache: Cache::builder().store(store).build().expect("one"), truth: truth.clone() });
    }
    for writer in &instances {
        for filler in &instances {
            filler.cache.purge(Purge::all()).await.expect("a purge");
            filler.warm("/a").await;
            for reader in &instances {
                assert!(reader.hears("/a", truth.is()).await < BOUND);
                assert!(reader.ask("/a").await.1.contains("; hit"));
            }
            let version = truth.change();
            writer.cache.purge(Purge::tag("a")).await.expect("a purge");
            for reader in &instances {
                reader.hears("/a", version).await;
                assert_eq!(reader.ask("/a").await.0, version);
            }
        }
    }
}

/// Row 15: what a request or an invalidation costs grows with the number of keys.
#[tokio::test(flavor = "multi_thread")]
async fn row_15_no_request_looks_through_all_keys() {
    let (server, truth) = (RedisServer::builder().arg("--enable-debug-command", "yes").start(), Truth::default());
    let one = Instance::far(&server.url(), &truth).await;
    let mut spent = Vec::new();
    for keys in ["5", "10", "200000"] {
        server.cli(&["DEBUG", "POPULATE", keys, "larder:v1:{other"]);
        server.cli(&["CONFIG", "RESETSTAT"]);
        one.warm("/a").await;
        one.cache.purge(Purge::tag("a")).await.expect("a purge");
        one.cache.purge(Purge::key("route:GET:h:/a")).await.expect("a purge");
        one.cache.purge(Purge::all()).await.expect("a purge");
        one.ask("/a").await;
        let stats = server.command_stats();
        for walks in ["scan", "keys", "flushall", "flushdb", "dbsize", "randomkey"] {
            assert!(!stats.contains_key(walks), "{walks}: {stats:?}");
        }
        // How often it is asked for a hit, and the beat, depend on the time that this takes.
        spent.push(["set", "unlink", "hset", "xadd"].map(|word| stats.get(word).copied().unwrap_or_default()));
    }
    // In the first round, the records of the tags were made. A fill may have to be tried once more.
    let grows = spent[1].iter().zip(&spent[2]).any(|(few, many)| many.abs_diff(*few) > 3);
    assert!(!grows, "{spent:?}");
}

/// Row 16: a response is stored, and its tags are not yet.
#[tokio::test(flavor = "multi_thread")]
async fn row_16_a_response_is_never_found_without_its_tags() {
    let (server, truth) = (RedisServer::start(), Truth::default());
    let one = Instance::far(&server.url(), &truth).await;
    one.warm("/a").await;
    // As if the process had died before it made the records; one that never knew of the tag invalidates it.
    server.cli(&["DEL", "{larder}:tag:a", "{larder}:tag:all"]);
    let (two, three) = (Instance::far(&server.url(), &truth).await, Instance::far(&server.url(), &truth).await);
    let version = truth.change();
    two.cache.purge(Purge::tag("a")).await.expect("a purge");
    assert_eq!(three.ask("/a").await.0, version);
}

/// A write that cannot be told to Redis at its end is not forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_ends_while_redis_is_away_is_purged_once_it_is_back() {
    let (server, truth) = (RedisServer::start(), Truth::default());
    let config = RedisConfig::url(&server.url()).expect("a URL").recovery(Recovery::Trust).defer_purges();
    let store = RedisStore::connect(config).await.expect("a store");
    let one = Instance { cache: Cache::builder().store(store).build().expect("a cache"), truth: truth.clone() };
    one.warm("/a").await;
    server.stop();
    let write = one.cache.begin_write(Purge::key("route:GET:h:/a")).await;
    assert!(!write.is_held());
    let version = truth.change();
    assert!(write.commit().await.expect("a receipt").is_deferred);
    server.cont();
    assert_eq!(returns(&one, "/a").await.0, version);
}

/// What others write into the keys of the clock, the records and the log is as if it were not there.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_bytes_in_the_control_keys_cost_misses_only() {
    let foreign: [&[&str]; 12] = [
        &["SET", "{larder}:clock", "x"],
        &["SET", "{larder}:clock", "1.5"],
        &["SET", "{larder}:clock", "0x10"],
        &["SET", "{larder}:clock", "99999999999999999999999"],
        &["LPUSH", "{larder}:clock", "1"],
        &["SET", "{larder}:gen", "hello"],
        &["SET", "{larder}:gen", "99999999999999999999999:1"],
        &["LPUSH", "{larder}:gen", "1"],
        &["SET", "{larder}:tag:a", "hello"],
        &["XADD", "{larder}:log", "*", "a", "b"],
        &["XADD", "{larder}:log", "*", "before", "0-0", "text", "x"],
        &["SET", "{larder}:log", "hello"],
    ];
    let (server, truth) = (RedisServer::start(), Truth::default());
    for words in foreign {
        let one = Instance::far(&server.url(), &truth).await;
        one.warm("/a").await;
        // In one step, or an instance makes the key anew in between.
        let script = match words[0] {
            "XADD" => "return redis.call(unpack(ARGV))",
            _ => "redis.call('DEL', KEYS[1]) return redis.call(unpack(ARGV))",
        };
        server.cli(&[&["EVAL", script, "1", words[1]], words].concat());
        let two = Instance::far(&server.url(), &truth).await;
        for instance in [&two, &one] {
            instance.warm("/a").await;
        }
        for purge in [Purge::tag("a"), Purge::all(), Purge::key("route:GET:h:/a")] {
            let version = truth.change();
            two.cache.purge(purge.clone()).await.unwrap_or_else(|error| panic!("{words:?}, {purge:?}: {error}"));
            one.hears("/a", version).await;
            one.warm("/a").await;
        }
    }
}
