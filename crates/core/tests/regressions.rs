//! Bugs that other caches had, one test a row of `tests/BUGS.md`, as far as one process shows them.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod stage;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use larder::{Cache, CacheLayer, Early, MemoryStore};
use stage::{Answer, Fields, Stage, Unreachable, reply, told, wait};
use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};
use tower::{Layer, Service, ServiceExt};

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// How long the origin of a stage takes.
const FETCH: Duration = millis(100);

/// How long a request waits for another that fetches the same, when nothing else is said.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// A program whose handlers ask their own cache.
#[derive(Clone)]
struct Program {
    layer: CacheLayer,
    calls: Arc<AtomicUsize>,
}

impl Program {
    fn new() -> Self {
        Self { layer: Cache::in_memory().layer(), calls: Arc::default() }
    }

    /// Asks for `path`, with a handler that asks for `needs` before it answers.
    async fn ask(self, path: String, needs: Option<String>) {
        let request = Request::builder().uri(&path).header("host", "h").body(Empty::<Bytes>::new()).unwrap();
        let service = self.layer.layer(Handler { program: self.clone(), path: path.clone(), needs });
        let body = service.oneshot(request).await.unwrap().into_body();
        assert_eq!(body.collect().await.unwrap().to_bytes(), path);
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

/// Takes 100 ms, asks for the page that it needs, and answers with its own path.
#[derive(Clone)]
struct Handler {
    program: Program,
    path: String,
    needs: Option<String>,
}

impl Service<Request<Empty<Bytes>>> for Handler {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Empty<Bytes>>) -> Self::Future {
        let Self { program, path, needs } = self.clone();
        Box::pin(async move {
            program.calls.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(FETCH).await;
            if let Some(needs) = needs {
                program.ask(needs, None).await;
            }
            Ok(Response::new(Full::from(path)))
        })
    }
}

#[tokio::test(start_paused = true)]
async fn row_11_handlers_that_wait_for_each_other_are_answered() {
    for (clients_of_each, hung) in [(1, 1), (10, 4)] {
        let program = Program::new();
        let (began, mut clients) = (Instant::now(), JoinSet::new());
        for _ in 0..clients_of_each {
            for (path, needs) in [("/a", "/b"), ("/b", "/a")] {
                clients.spawn(program.clone().ask(path.into(), Some(needs.into())));
            }
        }
        let all = timeout(hung * LOCK_WAIT + 3 * FETCH, clients.join_all()).await;
        all.unwrap_or_else(|_| panic!("a deadlock of {clients_of_each} clients of each"));
        assert!(began.elapsed() > LOCK_WAIT, "each waited for the other");
    }
}

#[tokio::test(start_paused = true)]
async fn row_11_a_handler_that_asks_for_its_own_page_is_answered() {
    let program = Program::new();
    let answered = timeout(LOCK_WAIT + 3 * FETCH, program.clone().ask("/a".into(), Some("/a".into()))).await;
    assert!(answered.is_ok(), "a deadlock");
    assert_eq!(program.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn row_11_the_locks_of_different_pages_do_not_collide() {
    let program = Program::new();
    let (began, mut clients) = (Instant::now(), JoinSet::new());
    // More than there are parts of any table.
    for page in 0..500 {
        clients.spawn(program.clone().ask(format!("/{page}"), Some(format!("/{page}/part"))));
    }
    timeout(10 * FETCH, clients.join_all()).await.expect("nobody waits for another's page");
    assert_eq!((began.elapsed(), program.calls()), (2 * FETCH, 1_000));
}

/// With a cost below a millisecond it works as well as with one of seconds. Of the paper: with requests at rate `r`, factor
/// `b` and cost `d`, the chance that nobody is early in time is `exp(-r * b * d)`.
#[test]
fn row_12_xfetch_dead_with_delta_below_a_second() {
    const PERIODS: u32 = 4_000;
    for (cost, rate) in [(Duration::from_micros(300), 5_000.0), (Duration::from_millis(200), 8.0)] {
        let (lifetime, mut missed, mut leads) = (Duration::from_secs(10), 0_u32, Duration::ZERO);
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..PERIODS {
            // Only what comes shortly before the end can be early.
            let mut left = cost * 60;
            let early = loop {
                let gap = -(1.0 - random.f64()).ln() / rate;
                match left.checked_sub(Duration::from_secs_f64(gap)) {
                    None => break None,
                    Some(rest) => left = rest,
                }
                if Early::XFetch(1.0).is_due(cost, lifetime, left, random.f64()) {
                    break Some(left);
                }
            };
            match early {
                None => missed += 1,
                Some(left) => leads += left,
            }
        }
        let (seen, expected) = (f64::from(missed) / f64::from(PERIODS), (-rate * cost.as_secs_f64()).exp());
        assert!((seen - expected).abs() < 0.03, "{cost:?}: {seen} of the periods were missed, and not {expected}");
        assert!(leads > Duration::ZERO);
    }
    assert!(
        !Early::XFetch(0.0).is_due(Duration::from_secs(1), Duration::from_secs(10), Duration::from_nanos(1), 0.0),
        "a factor of zero is never"
    );
    assert!(!Early::XFetch(1.0).is_due(Duration::ZERO, Duration::from_secs(10), Duration::from_secs(1), 0.0));
}

/// What `number` clients are answered who ask at the same time, and how long it took.
async fn crowd(stage: &Stage, number: usize) -> (Vec<Answer>, Duration) {
    let (began, mut clients) = (Instant::now(), JoinSet::new());
    for _ in 0..number {
        let stage = stage.clone();
        clients.spawn(async move { stage.get(&[]).await });
    }
    (clients.join_all().await, began.elapsed())
}

/// What says that an answer is for one client only.
const UNCACHEABLE: [Fields<'static>; 4] =
    [&[("cache-control", "no-store")], &[("cache-control", "private")], &[("set-cookie", "a=b")], &[("vary", "*")]];

#[tokio::test(start_paused = true)]
async fn row_26_uncacheable_requests_run_side_by_side() {
    for fields in UNCACHEABLE {
        let stage = Stage::new(Cache::in_memory().layer(), move |_, _| reply(200, fields, "mine"));
        stage.get(&[]).await;
        // For five seconds the store knows as well, and for a minute this process.
        for (later, calls) in [(0, 65), (30, 129)] {
            wait(later).await;
            let (answers, took) = crowd(&stage, 64).await;
            assert_eq!((took, stage.calls()), (FETCH, calls), "{fields:?}");
            assert!(answers.iter().all(|answer| answer.body == "mine"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn row_26_the_first_crowd_is_released_by_the_first_answer() {
    for fields in UNCACHEABLE {
        let stage = Stage::new(Cache::in_memory().layer(), move |_, _| reply(200, fields, "mine"));
        let (_, took) = crowd(&stage, 64).await;
        assert_eq!((took, stage.calls()), (2 * FETCH, 64), "{fields:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn row_26_what_one_instance_learned_spares_the_crowd_of_another() {
    let store = MemoryStore::default();
    let [one, other] = [(); 2].map(|()| {
        let cache = Cache::builder().store(store.clone()).build().unwrap();
        Stage::new(cache.layer(), |_, _| reply(200, &[("cache-control", "no-store")], "mine"))
    });
    one.get(&[]).await;
    assert_eq!(crowd(&other, 64).await.1, FETCH);
}

/// When a leader was answered, and when those were who came after it, at odd times.
async fn leader_and_followers(leading: &Stage, following: &Stage) -> (Instant, Vec<Instant>) {
    let visit = |stage: &Stage, after: Duration| {
        let stage = stage.clone();
        async move {
            tokio::time::sleep(after).await;
            assert_eq!(stage.get(&[]).await.body, "page");
            Instant::now()
        }
    };
    let followers: JoinSet<_> = (1..20).map(|number| visit(following, millis(5 * number - 2))).collect();
    tokio::join!(visit(leading, Duration::ZERO), followers.join_all())
}

#[tokio::test(start_paused = true)]
async fn row_27_followers_are_done_when_their_leader_is() {
    let stage = Stage::new(Cache::in_memory().layer(), |_, _| reply(200, &[], "page"));
    let (leader, followers) = leader_and_followers(&stage, &stage).await;
    assert_eq!(followers, [leader; 19]);
    assert_eq!(stage.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn row_27_so_are_those_of_another_instance() {
    let store = MemoryStore::default();
    let [one, other] = [(); 2].map(|()| {
        let cache = Cache::builder().store(store.clone()).build().unwrap();
        Stage::new(cache.layer(), |_, _| reply(200, &[], "page"))
    });
    let (leader, followers) = leader_and_followers(&one, &other).await;
    assert_eq!(followers, [leader; 19]);
    assert_eq!((one.calls(), other.calls()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn row_31_stale_in_place_of_an_error_comes_at_the_soft_timeout() {
    let layer = Cache::in_memory().layer().ttl(Duration::from_secs(10)).jitter(0.0);
    let layer = layer.stale_if_error(Duration::from_secs(3_600)).soft_timeout(millis(40));
    let stage = Stage::new(layer, |_, call| if call == 1 { reply(200, &[], "page") } else { Err(Unreachable) });
    stage.get(&[]).await;
    wait(20).await;
    let (answers, took) = crowd(&stage, 10).await;
    assert_eq!(took, millis(40), "the origin takes 100 ms to fail");
    assert!(answers.iter().all(|answer| (answer.status, &*answer.body) == (200, "page")), "{answers:?}");
    let late = answers.iter().filter(|answer| answer.tells("detail=soft-timeout")).count();
    assert_eq!((late, stage.calls()), (1, 2));
    wait(1).await;
    let began = Instant::now();
    assert_eq!(stage.get(&[]).await.told(), told("STALE", 200, "page"));
    assert_eq!((began.elapsed(), stage.calls()), (Duration::ZERO, 2), "the failure was noted, and spares the origin");
}
