//! One timeline: fresh, early, stale while revalidated, stale in place of an error, gone; and who asks the origin when.
#![cfg(feature = "testing")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod stage;

use http::StatusCode;
use larder::{Cache, CacheLayer, Early, MemoryStore};
use stage::{Reply, Stage, Unreachable, reply, told, wait};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A layer that gives ten seconds, and nothing to chance.
fn ten_seconds(cache: &Cache) -> CacheLayer {
    cache.layer().ttl(seconds(10)).jitter(0.0)
}

/// Pages that tell how often the origin was asked, by an origin that can be switched off.
fn counted(is_down: &Arc<AtomicBool>) -> impl Fn(&http::request::Parts, usize) -> Reply + Send + Sync + 'static {
    let is_down = is_down.clone();
    move |_, call| {
        if is_down.load(Ordering::SeqCst) {
            return Err(Unreachable);
        }
        reply(200, &[], ["", "one", "two", "three"].get(call).copied().unwrap_or("more"))
    }
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_is_down_is_asked_seldom_and_nobody_notices() {
    let is_down = Arc::new(AtomicBool::new(false));
    let layer = ten_seconds(&Cache::in_memory()).stale_if_error(seconds(3600));
    let stage = Stage::new(layer, counted(&is_down));
    stage.get(&[]).await;
    is_down.store(true, Ordering::SeqCst);
    wait(20).await;
    let (asked, failed) = (stage.calls(), AtomicUsize::new(0));
    for _ in 0..60 {
        for _ in 0..10 {
            let hundred = (0..100).map(|_| stage.try_get());
            for answer in futures_of(hundred).await {
                failed.fetch_add(usize::from(answer.is_err()), Ordering::SeqCst);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    let attempts = stage.calls() - asked;
    assert!((2..=7).contains(&attempts), "{attempts} attempts in a minute of a thousand requests a second");
    assert_eq!(failed.load(Ordering::SeqCst), 0);
    is_down.store(false, Ordering::SeqCst);
    wait(66).await;
    assert_eq!(stage.get(&[]).await.x_cache(), "EXPIRED", "the longest pause is a minute");
}

/// The outcomes of futures that are all under way at the same time.
async fn futures_of<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.map(Box::pin).collect();
    let mut outcomes: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, outcome) in futures.iter_mut().zip(&mut outcomes).filter(|(_, outcome)| outcome.is_none()) {
            if let std::task::Poll::Ready(done) = future.as_mut().poll(context) {
                *outcome = Some(done);
            }
        }
        if outcomes.iter().all(Option::is_some) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    outcomes.into_iter().map(Option::unwrap).collect()
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_one_instance_met_spares_the_origin_the_others() {
    let (store, is_down) = (MemoryStore::default(), Arc::new(AtomicBool::new(false)));
    let stages = [(); 3].map(|()| {
        let cache = Cache::builder().store(store.clone()).build().unwrap();
        Stage::new(ten_seconds(&cache).stale_if_error(seconds(3600)), counted(&is_down))
    });
    stages[0].get(&[]).await;
    is_down.store(true, Ordering::SeqCst);
    wait(20).await;
    for stage in &stages {
        assert_eq!(stage.get(&[]).await.told(), told("STALE", 200, "one"));
    }
    assert_eq!(stages.each_ref().map(Stage::calls), [2, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn what_is_stale_is_refreshed_by_one_and_served_to_all() {
    let is_down = Arc::default();
    let layer = ten_seconds(&Cache::in_memory()).stale_while_revalidate(seconds(30));
    let stage = Stage::new(layer, counted(&is_down));
    stage.get(&[]).await;
    wait(20).await;
    let began = Instant::now();
    let answers = futures_of((0..50).map(|_| stage.get(&[]))).await;
    assert_eq!(began.elapsed(), Duration::ZERO, "nobody waits");
    let told_of = |verdict: &str| answers.iter().filter(|answer| answer.x_cache() == verdict).count();
    assert_eq!((told_of("STALE"), told_of("UPDATING")), (1, 49));
    wait(1).await;
    assert_eq!(stage.calls(), 2);
    assert_eq!(stage.get(&[]).await.told(), told("HIT", 200, "two"));
}

#[tokio::test(start_paused = true)]
async fn refreshes_are_bounded_in_all_and_waited_for_at_the_end() {
    let is_down = Arc::default();
    let cache = Cache::builder().background_refreshes(2).build().unwrap();
    let stage = Stage::new(ten_seconds(&cache).stale_while_revalidate(seconds(30)), counted(&is_down));
    let pages = ["/1", "/2", "/3", "/4", "/5"];
    for page in pages {
        stage.ask("GET", page, &[]).await;
    }
    wait(20).await;
    for page in pages {
        assert_eq!(stage.ask("GET", page, &[]).await.x_cache(), "STALE");
    }
    let began = Instant::now();
    assert_eq!(cache.drain(Duration::from_millis(10)).await, 2, "they take 100 ms");
    assert_eq!(cache.drain(seconds(1)).await, 0);
    assert!(began.elapsed() < Duration::from_millis(150), "{:?}", began.elapsed());
    assert_eq!(stage.calls(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_slow_origin_is_waited_for_as_long_as_the_soft_timeout_says() {
    let layer = ten_seconds(&Cache::in_memory()).stale_if_error(seconds(3600)).soft_timeout(Duration::from_millis(40));
    let stage = Stage::new(layer, counted(&Arc::default()));
    let began = Instant::now();
    assert_eq!(stage.get(&[]).await.told(), told("MISS", 200, "one"), "there is nothing else to give");
    assert_eq!(began.elapsed(), Duration::from_millis(100));
    wait(20).await;
    let began = Instant::now();
    let (first, second) = tokio::join!(stage.get(&[]), async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        (stage.get(&[]).await, began.elapsed())
    });
    assert_eq!(began.elapsed(), Duration::from_millis(40));
    assert_eq!(first.told(), told("STALE", 200, "one"));
    assert!(first.tells("fwd=stale") && first.tells("detail=soft-timeout"), "{first:?}");
    assert_eq!(
        (second.0.x_cache(), second.1),
        ("UPDATING".to_owned(), Duration::from_millis(10)),
        "it waits for nobody"
    );
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(stage.get(&[]).await.told(), told("HIT", 200, "two"), "the origin went on");
    assert_eq!(stage.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_hangs_is_given_up() {
    // The stage's origin takes 100 ms.
    let short = Duration::from_millis(60);
    let stage = Stage::new(ten_seconds(&Cache::in_memory()).hard_timeout(short), counted(&Arc::default()));
    let answer = stage.get(&[]).await;
    assert_eq!(answer.told(), told("MISS", 504, ""));
    assert!(answer.field("cache-status").is_empty(), "it is nobody's answer but ours: {answer:?}");
    wait(1).await;
    assert_eq!(stage.get(&[]).await.told(), told("HIT", 200, "one"), "what it answered in the end is stored");
    let layer = ten_seconds(&Cache::in_memory()).hard_timeout(short).stale_if_error(seconds(3600));
    let stage = Stage::new(layer, counted(&Arc::default()));
    stage.get(&[]).await;
    wait(20).await;
    assert_eq!(stage.get(&[]).await.told(), told("STALE", 200, "one"), "what is stale is better than a 504");
    wait(1).await;
    assert_eq!(stage.get(&[]).await.told(), told("HIT", 200, "two"));
}

#[tokio::test(start_paused = true)]
async fn what_must_be_revalidated_is_never_stale_whatever_the_layer_says() {
    for directive in ["must-revalidate, max-age=10", "no-cache", "proxy-revalidate, max-age=10", "s-maxage=10"] {
        let is_down = Arc::new(AtomicBool::new(false));
        let down = is_down.clone();
        let layer =
            ten_seconds(&Cache::in_memory()).stale_if_error(seconds(3600)).stale_while_revalidate(seconds(3600));
        let stage = Stage::new(layer, move |_, _| {
            if down.load(Ordering::SeqCst) {
                return Err(Unreachable);
            }
            reply(200, &[("cache-control", directive)], "page")
        });
        stage.get(&[]).await;
        is_down.store(true, Ordering::SeqCst);
        wait(80).await;
        assert!(stage.try_get().await.is_err(), "{directive}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_is_fetched_anew_before_its_time_by_one_instance() {
    let store = MemoryStore::default();
    let stages = [(); 4].map(|()| {
        let cache = Cache::builder().store(store.clone()).build().unwrap();
        Stage::new(ten_seconds(&cache).early(Early::At(0.8)), counted(&Arc::default()))
    });
    stages[0].get(&[]).await;
    wait(7).await;
    assert_eq!(stages[0].get(&[]).await.told(), told("HIT", 200, "one"));
    assert_eq!(stages.iter().map(Stage::calls).sum::<usize>(), 1, "it is not time yet");
    wait(2).await;
    let began = Instant::now();
    let answers = futures_of(stages.iter().flat_map(|stage| (0..20).map(|_| stage.get(&[])))).await;
    assert_eq!(began.elapsed(), Duration::ZERO, "nobody waits");
    assert!(answers.iter().all(|answer| answer.told() == told("HIT", 200, "one")));
    wait(2).await;
    assert_eq!(stages.iter().map(Stage::calls).sum::<usize>(), 2);
    assert_eq!(stages[3].get(&[]).await.x_cache(), "HIT", "it never expired");
}

#[tokio::test(start_paused = true)]
async fn what_fails_before_its_time_is_not_seen() {
    let is_down = Arc::new(AtomicBool::new(false));
    let stage = Stage::new(ten_seconds(&Cache::in_memory()).early(Early::At(0.1)), counted(&is_down));
    stage.get(&[]).await;
    is_down.store(true, Ordering::SeqCst);
    for _ in 0..6 {
        wait(1).await;
        assert_eq!(stage.get(&[]).await.told(), told("HIT", 200, "one"));
    }
    assert_eq!(stage.calls(), 2, "and not tried again before the pause is over");
}

#[tokio::test(start_paused = true)]
async fn an_error_is_stored_where_that_is_asked_for_and_not_for_long() {
    let layer = ten_seconds(&Cache::in_memory()).status(StatusCode::NOT_FOUND, seconds(3600));
    let stage = Stage::new(layer, |_, _| reply(404, &[], "none"));
    assert_eq!(stage.get(&[]).await.told(), told("MISS", 404, "none"));
    let hit = stage.get(&[]).await;
    assert_eq!(hit.told(), told("HIT", 404, "none"));
    assert!(hit.tells("detail=negative"), "{hit:?}");
    wait(299).await;
    assert_eq!(stage.get(&[]).await.x_cache(), "HIT");
    wait(2).await;
    assert_eq!(stage.get(&[]).await.x_cache(), "EXPIRED", "five minutes, whatever was said");
}

#[tokio::test(start_paused = true)]
async fn a_client_may_want_less_of_what_is_stale_and_not_more() {
    for (honours, asked, stale_for) in [
        (true, "stale-if-error=20", 20),
        (true, "stale-if-error=x", 0),
        (true, "stale-if-error=600", 60),
        (false, "stale-if-error=20", 60),
    ] {
        let (cache, is_down) = (Cache::in_memory(), Arc::new(AtomicBool::new(false)));
        let layer = ten_seconds(&cache).stale_if_error(seconds(60)).throttle(seconds(1));
        let layer = if honours { layer.honor_client_directives() } else { layer };
        let stage = Stage::new(layer, counted(&is_down));
        stage.ask("GET", "/page", &[]).await;
        is_down.store(true, Ordering::SeqCst);
        for (at, waited) in [(15, 15), (40, 25), (75, 35)] {
            wait(waited).await;
            let answer = stage.try_ask("GET", "/page", &[("cache-control", asked)]).await;
            assert_eq!(answer.is_ok(), at - 10 < stale_for, "{asked}, {honours}, {at}");
        }
    }
}
