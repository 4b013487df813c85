//! Requests that meet: who leads, who follows, and what becomes of them when the leader fails.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use larder::{Cache, CacheLayer, Deadlines};
use std::{
    fmt,
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

/// What the inner service calls an error: the layer passes it on as it is.
#[derive(Debug, PartialEq, Eq)]
struct Broken(usize);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "call {} broke", self.0)
    }
}

impl std::error::Error for Broken {}

#[derive(Clone, Copy)]
enum First {
    Panics,
    Fails,
    IsPrivate,
    /// So do those after it, so many in all.
    Hangs(usize),
}

/// Takes 100 ms to answer; its first call is out of the ordinary.
#[derive(Clone)]
struct Origin {
    first: First,
    calls: Arc<AtomicUsize>,
    /// What a handler may keep of its request, longer than it takes to answer.
    kept: Arc<std::sync::Mutex<Vec<Request<Empty<Bytes>>>>>,
}

impl Origin {
    fn new(first: First) -> Self {
        Self { first, calls: Arc::default(), kept: Arc::default() }
    }
}

impl Service<Request<Empty<Bytes>>> for Origin {
    type Response = Response<Full<Bytes>>;
    type Error = Broken;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Broken>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Empty<Bytes>>) -> Self::Future {
        let origin = self.clone();
        Box::pin(async move {
            let call = origin.calls.fetch_add(1, Ordering::SeqCst) + 1;
            origin.kept.lock().unwrap().push(request);
            tokio::time::sleep(Duration::from_millis(100)).await;
            let mut response = Response::new(Full::from(call.to_string()));
            match origin.first {
                First::Panics if call == 1 => panic!("the handler panics"),
                First::Fails if call == 1 => return Err(Broken(call)),
                First::Hangs(calls) if call <= calls => std::future::pending().await,
                First::IsPrivate => drop(response.headers_mut().insert("cache-control", "private".parse().unwrap())),
                First::Panics | First::Fails | First::Hangs(_) => {}
            }
            Ok(response)
        })
    }
}

async fn get(layer: CacheLayer, origin: Origin, authorization: Option<&str>) -> Result<String, Broken> {
    let request = Request::builder().uri("/page");
    let request = authorization.into_iter().fold(request, |request, value| request.header("authorization", value));
    let response = layer.layer(origin).oneshot(request.body(Empty::<Bytes>::new()).unwrap()).await?;
    Ok(String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
}

/// One leader, then five followers, and how long it took them all.
async fn meet(origin: &Origin) -> (Result<Result<String, Broken>, tokio::task::JoinError>, Vec<String>, Duration) {
    let layer = Cache::in_memory().layer();
    let began = Instant::now();
    let leader = tokio::spawn(get(layer.clone(), origin.clone(), None));
    tokio::time::sleep(Duration::from_millis(10)).await;
    let followers: Vec<_> = (0..5).map(|_| tokio::spawn(get(layer.clone(), origin.clone(), None))).collect();
    let leader = leader.await;
    let mut bodies = Vec::new();
    for follower in followers {
        bodies.push(follower.await.unwrap().unwrap());
    }
    (leader, bodies, began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_panics_or_fails_leaves_its_place_to_one_follower() {
    for first in [First::Panics, First::Fails] {
        let origin = Origin::new(first);
        let (leader, bodies, took) = meet(&origin).await;
        match first {
            First::Fails => assert_eq!(leader.unwrap(), Err(Broken(1)), "its own error, to its own client"),
            _ => assert!(leader.unwrap_err().is_panic()),
        }
        assert_eq!(bodies, ["2"; 5]);
        assert_eq!(origin.calls.load(Ordering::SeqCst), 2);
        assert!(took <= Duration::from_millis(250), "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_is_given_a_private_answer_that_was_fetched_for_another() {
    let origin = Origin::new(First::IsPrivate);
    let (leader, mut bodies, took) = meet(&origin).await;
    bodies.push(leader.unwrap().unwrap());
    bodies.sort();
    assert_eq!(bodies, ["1", "2", "3", "4", "5", "6"]);
    assert!(took <= Duration::from_millis(250), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn requests_with_credentials_wait_for_nobody() {
    let origin = Origin::new(First::IsPrivate);
    let (layer, began) = (Cache::in_memory().layer(), Instant::now());
    let visits = ["Bearer a", "Bearer b"].map(|who| get(layer.clone(), origin.clone(), Some(who)));
    let [one, two] = visits;
    let (one, two) = tokio::join!(one, two);
    assert_ne!(one, two);
    assert_eq!(began.elapsed(), Duration::from_millis(100));
}

/// When those were answered, and with which of the origin's answers, who asked at the same time and wait less long for each
/// other than the origin takes.
async fn hurry(origin: &Origin) -> Vec<(u128, String)> {
    let deadlines = Deadlines { read: Duration::from_millis(20), ..Deadlines::default() };
    let cache = Cache::builder().deadlines(deadlines).lock_wait(Duration::from_millis(40)).build();
    let layer = cache.unwrap().layer();
    let (began, mut clients) = (Instant::now(), JoinSet::new());
    for _ in 0..10 {
        let (layer, origin) = (layer.clone(), origin.clone());
        clients.spawn(async move {
            let answer = timeout(Duration::from_secs(1), get(layer, origin, None)).await;
            (began.elapsed().as_millis(), answer.map_or_else(|_| "none".to_owned(), Result::unwrap))
        });
    }
    let mut answers = clients.join_all().await;
    answers.sort();
    answers
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_for_a_slow_origin_get_the_first_answer_that_comes() {
    let origin = Origin::new(First::Hangs(0));
    let mut expected = vec![(100, "1".to_owned()); 8];
    // They went at 40 and at 80 ms, in place of the one who seemed to hang.
    expected.extend([(140, "2".to_owned()), (180, "3".to_owned())]);
    assert_eq!(hurry(&origin).await, expected);
    assert_eq!(origin.calls.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn the_first_answer_of_a_slow_origin_releases_them_if_it_is_private() {
    let answers = hurry(&Origin::new(First::IsPrivate)).await;
    assert_eq!(
        answers.iter().map(|(at, _)| *at).collect::<Vec<_>>(),
        [100, 140, 180, 200, 200, 200, 200, 200, 200, 200]
    );
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_more_than_four_who_hang_one_after_the_other() {
    let answers = hurry(&Origin::new(First::Hangs(4))).await;
    let none = answers.iter().filter(|(_, answer)| answer == "none").count();
    assert_eq!((none, answers[5].0), (4, 260), "{answers:?}");
}

/// Many times, as it takes a follower that sees a body begin and loses it before it has laid hold of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_sees_a_body_begin_and_comes_too_late_for_it_gets_it_all_the_same() {
    let (layer, calls) = (Cache::in_memory().layer(), Arc::new(AtomicUsize::new(0)));
    const ROUNDS: usize = 2_000;
    for round in 0..ROUNDS {
        let mut clients = JoinSet::new();
        for _ in 0..16 {
            let calls = calls.clone();
            let service = layer.layer(tower::service_fn(move |_: Request<Empty<Bytes>>| {
                let calls = calls.clone();
                async move {
                    calls.fetch_add(1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    Ok::<_, Broken>(Response::new(Full::from("page")))
                }
            }));
            let request = Request::builder().uri(format!("/{round}")).body(Empty::<Bytes>::new()).unwrap();
            clients.spawn(async move {
                let body = service.oneshot(request).await.unwrap().into_body();
                body.collect().await.unwrap();
            });
        }
        clients.join_all().await;
    }
    assert_eq!(calls.load(Ordering::SeqCst), ROUNDS);
}
