//! Bodies on their way through the layer: never delayed, never changed, stored only when whole.
#![cfg(feature = "testing")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Empty};
use larder::{
    Cache, CacheBody, CacheLayer, MemoryStore,
    testing::{Fault, Faulty},
};
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
use tokio::{sync::mpsc, time::Instant};
use tower::{Layer, Service, ServiceExt};

type Piece = Result<Frame<Bytes>, &'static str>;

/// Frames from a channel; the sender's end is the body's end.
struct Pieces(mpsc::UnboundedReceiver<Piece>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Piece>> {
        self.0.poll_recv(context)
    }
}

/// Sends the pieces of one body.
type Script = fn(mpsc::UnboundedSender<Piece>) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// Answers each call with the pieces that `script` sends, in a task of its own.
#[derive(Clone)]
struct Origin {
    calls: Arc<AtomicUsize>,
    headers: Vec<(&'static str, &'static str)>,
    script: Script,
}

impl Origin {
    fn new(script: Script) -> Self {
        Self { calls: Arc::default(), headers: Vec::new(), script }
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

impl Service<Request<Empty<Bytes>>> for Origin {
    type Response = Response<Pieces>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Empty<Bytes>>) -> Self::Future {
        let origin = self.clone();
        Box::pin(async move {
            origin.calls.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(100)).await;
            let (sender, receiver) = mpsc::unbounded_channel();
            tokio::spawn((origin.script)(sender));
            let mut response = Response::new(Pieces(receiver));
            for (name, value) in origin.headers {
                response.headers_mut().append(name, HeaderValue::from_static(value));
            }
            Ok(response)
        })
    }
}

fn data(text: &'static str) -> Piece {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

async fn open(layer: &CacheLayer, origin: &Origin) -> Response<CacheBody<Pieces>> {
    let request = Request::builder().uri("/page").body(Empty::<Bytes>::new()).unwrap();
    layer.layer(origin.clone()).oneshot(request).await.unwrap()
}

/// X-Cache, and the body as far as it came.
async fn get(layer: &CacheLayer, origin: &Origin) -> (String, String) {
    let response = open(layer, origin).await;
    let x_cache = response.headers()["x-cache"].to_str().unwrap().to_owned();
    let (mut body, mut text) = (response.into_body(), String::new());
    while let Some(Ok(frame)) = body.frame().await {
        text.extend(frame.data_ref().map(|data| String::from_utf8_lossy(data).into_owned()));
    }
    (x_cache, text)
}

fn words(x_cache: &str, text: &str) -> (String, String) {
    (x_cache.to_owned(), text.to_owned())
}

#[tokio::test(start_paused = true)]
async fn the_first_piece_is_passed_on_before_the_second_is_there() {
    let origin = Origin::new(|sender| {
        Box::pin(async move {
            sender.send(data("one")).unwrap();
            tokio::time::sleep(Duration::from_secs(3)).await;
            sender.send(data("two")).unwrap();
        })
    });
    let layer = Cache::in_memory().layer();
    let began = Instant::now();
    let mut body = open(&layer, &origin).await.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().data_ref().unwrap(), "one");
    assert!(began.elapsed() < Duration::from_millis(150), "{:?}", began.elapsed());
    assert_eq!(body.frame().await.unwrap().unwrap().data_ref().unwrap(), "two");
    assert!(body.frame().await.is_none());
    assert_eq!(get(&layer, &origin).await, words("HIT", "onetwo"));
}

#[tokio::test(start_paused = true)]
async fn what_is_aborted_has_trailers_or_another_length_is_not_stored() {
    let aborted = Origin::new(|sender| {
        Box::pin(async move {
            for piece in [data("one"), Err("gone")] {
                sender.send(piece).unwrap();
            }
        })
    });
    let trailers = Origin::new(|sender| {
        Box::pin(async move {
            let mut fields = HeaderMap::new();
            fields.insert("x-sum", HeaderValue::from_static("1"));
            for piece in [data("one"), Ok(Frame::trailers(fields))] {
                sender.send(piece).unwrap();
            }
        })
    });
    let short = Origin {
        headers: vec![("content-length", "5")],
        ..Origin::new(|sender| Box::pin(async move { sender.send(data("one")).unwrap() }))
    };
    for origin in [aborted, trailers, short] {
        let layer = Cache::in_memory().layer();
        assert_eq!(get(&layer, &origin).await.1, "one");
        assert_eq!(get(&layer, &origin).await.1, "one");
        assert_eq!(origin.calls(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn bodies_up_to_the_limit_are_stored_and_larger_ones_stream_through() {
    for (limit, stored) in [(6, true), (5, false), (0, false)] {
        let origin = Origin::new(|sender| {
            Box::pin(async move {
                for piece in [data("one"), data("two")] {
                    sender.send(piece).unwrap();
                }
            })
        });
        let layer = Cache::in_memory().layer().max_body(limit);
        assert_eq!(get(&layer, &origin).await, words("MISS", "onetwo"));
        assert_eq!(get(&layer, &origin).await.1, "onetwo");
        assert_eq!(origin.calls(), if stored { 1 } else { 2 }, "{limit}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_does_not_waste_the_origins_work() {
    let origin = Origin::new(|sender| {
        Box::pin(async move {
            for piece in [data("one"), data("two")] {
                tokio::time::sleep(Duration::from_millis(100)).await;
                // Who reads may be gone.
                let _ = sender.send(piece);
            }
        })
    });
    for leaves_after in [50, 120, 250] {
        let layer = Cache::in_memory().layer();
        let before = origin.calls();
        let visit = async {
            let mut body = open(&layer, &origin).await.into_body();
            while body.frame().await.is_some() {}
        };
        assert!(tokio::time::timeout(Duration::from_millis(leaves_after), visit).await.is_err());
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(get(&layer, &origin).await, words("HIT", "onetwo"), "left after {leaves_after} ms");
        assert_eq!(origin.calls(), before + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn an_endless_body_is_let_go_a_while_after_its_client() {
    static ALIVE: AtomicUsize = AtomicUsize::new(0);
    let origin = Origin::new(|sender| {
        Box::pin(async move {
            ALIVE.fetch_add(1, Ordering::SeqCst);
            while sender.send(data("tick")).is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            ALIVE.fetch_sub(1, Ordering::SeqCst);
        })
    });
    let layer = Cache::in_memory().layer();
    let mut body = open(&layer, &origin).await.into_body();
    body.frame().await.unwrap().unwrap();
    drop(body);
    tokio::time::sleep(Duration::from_secs(90)).await;
    assert_eq!(ALIVE.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn the_client_never_waits_for_the_write() {
    let store = Faulty::new(MemoryStore::default());
    let cache = Cache::builder().store(store.clone()).build().unwrap();
    let layer = cache.layer();
    let origin = Origin::new(|sender| Box::pin(async move { sender.send(data("one")).unwrap() }));
    let response = open(&layer, &origin).await;
    store.set(Fault::Hangs);
    let began = Instant::now();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "one");
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn head_is_answered_from_a_stored_get_and_never_stored_itself() {
    let origin = Origin::new(|sender| Box::pin(async move { sender.send(data("one")).unwrap() }));
    let layer = Cache::in_memory().layer();
    let head = async || {
        let request = Request::builder().method(Method::HEAD).uri("/page").body(Empty::<Bytes>::new()).unwrap();
        let response = layer.layer(origin.clone()).oneshot(request).await.unwrap();
        let x_cache = response.headers()["x-cache"].to_str().unwrap().to_owned();
        (x_cache, response.headers().get("content-length").cloned())
    };
    assert_eq!(head().await.0, "MISS");
    assert_eq!(get(&layer, &origin).await, words("MISS", "one"));
    assert_eq!(head().await, ("HIT".to_owned(), Some(HeaderValue::from_static("3"))));
    assert_eq!(get(&layer, &origin).await, words("HIT", "one"));
}

#[tokio::test(start_paused = true)]
async fn a_ticket_is_held_for_a_minute_at_most() {
    fn lasting<const SECONDS: u64>() -> Origin {
        Origin::new(|sender| {
            Box::pin(async move {
                sender.send(data("one")).unwrap();
                tokio::time::sleep(Duration::from_secs(SECONDS)).await;
                sender.send(data("two")).unwrap();
            })
        })
    }
    let layer = Cache::in_memory().layer();
    assert_eq!(get(&layer, &lasting::<70>()).await, words("MISS", "onetwo"));
    assert_eq!(get(&layer, &lasting::<40>()).await, words("MISS", "onetwo"));
    assert_eq!(get(&layer, &lasting::<70>()).await, words("HIT", "onetwo"));
}

/// Panics when it is read.
struct Bomb;

impl http_body::Body for Bomb {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        panic!("the body panics")
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_panics_is_read_once_and_leaves_its_place_to_the_next() {
    let layer = Cache::in_memory().layer();
    let bomb = tower::service_fn(|_: Request<Empty<Bytes>>| async { Ok::<_, Infallible>(Response::new(Bomb)) });
    let request = Request::builder().uri("/page").body(Empty::<Bytes>::new()).unwrap();
    let mut body = layer.layer(bomb).oneshot(request).await.unwrap().into_body();
    let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut context = Context::from_waker(std::task::Waker::noop());
        http_body::Body::poll_frame(Pin::new(&mut body), &mut context).is_ready()
    }));
    assert!(read.is_err());
    let after = body.frame().await;
    assert!(matches!(after, Some(Err(larder::BodyError::Broken))), "not polled again, nor taken for whole: {after:?}");
    drop(body);
    let began = Instant::now();
    let origin = Origin::new(|sender| Box::pin(async move { sender.send(data("whole")).unwrap() }));
    assert_eq!(get(&layer, &origin).await, words("MISS", "whole"));
    assert!(began.elapsed() < Duration::from_secs(1), "nobody waited for the one that panicked");
    assert_eq!(get(&layer, &origin).await, words("HIT", "whole"));
}

/// Ten seconds between the first word and the second.
fn slow() -> Origin {
    Origin::new(|sender| {
        Box::pin(async move {
            sender.send(data("one ")).unwrap();
            tokio::time::sleep(Duration::from_secs(10)).await;
            let _ = sender.send(data("two"));
        })
    })
}

async fn first_word(body: &mut CacheBody<Pieces>) -> String {
    let frame = body.frame().await.unwrap().unwrap();
    String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_body_gets_what_has_come_of_it_at_once() {
    let (layer, origin) = (Cache::in_memory().layer(), slow());
    let leader = tokio::spawn({
        let (layer, origin) = (layer.clone(), origin.clone());
        async move { get(&layer, &origin).await }
    });
    tokio::time::sleep(Duration::from_secs(3)).await;
    let began = Instant::now();
    let response = open(&layer, &origin).await;
    let status = response.headers()["cache-status"].to_str().unwrap().to_owned();
    assert!(status.contains("; collapsed; "), "{status}");
    let mut body = response.into_body();
    assert_eq!(first_word(&mut body).await, "one ");
    assert!(began.elapsed() <= Duration::from_millis(50), "{:?}", began.elapsed());
    assert_eq!(body.collect().await.unwrap().to_bytes(), "two");
    assert_eq!(began.elapsed().as_secs(), 7);
    assert_eq!(leader.await.unwrap(), words("MISS", "one two"));
    assert_eq!((get(&layer, &origin).await, origin.calls()), (words("HIT", "one two"), 1));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_holds_up_nobody() {
    let (layer, origin) = (Cache::in_memory().layer(), slow());
    let idle = open(&layer, &origin).await;
    let also_idle = open(&layer, &origin).await;
    assert_eq!(get(&layer, &origin).await, words("MISS", "one two"));
    assert_eq!(get(&layer, &origin).await, words("HIT", "one two"));
    for response in [idle, also_idle] {
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "one two");
    }
    assert_eq!(origin.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_leaves_takes_nothing_from_those_who_follow() {
    let (layer, origin) = (Cache::in_memory().layer(), slow());
    let mut leader = open(&layer, &origin).await.into_body();
    first_word(&mut leader).await;
    let follower = open(&layer, &origin).await;
    let left = open(&layer, &origin).await;
    drop((leader, left));
    assert_eq!(follower.into_body().collect().await.unwrap().to_bytes(), "one two");
    assert_eq!((get(&layer, &origin).await, origin.calls()), (words("HIT", "one two"), 1));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_off_breaks_off_for_all_and_is_not_stored() {
    let layer = Cache::in_memory().layer();
    let origin = Origin::new(|sender| {
        Box::pin(async move {
            sender.send(data("one ")).unwrap();
            tokio::time::sleep(Duration::from_secs(10)).await;
            let _ = sender.send(Err("broken"));
        })
    });
    let (mut leader, mut follower) = (open(&layer, &origin).await.into_body(), open(&layer, &origin).await.into_body());
    assert_eq!((first_word(&mut leader).await, first_word(&mut follower).await), ("one ".into(), "one ".into()));
    assert!(follower.frame().await.unwrap().is_err() && leader.frame().await.unwrap().is_err());
    assert_eq!((get(&layer, &origin).await, origin.calls()), (words("MISS", "one "), 2));
}

#[tokio::test(start_paused = true)]
async fn a_body_over_the_limit_reaches_those_who_share_it() {
    let layer = Cache::in_memory().layer().max_body(6);
    let origin = slow();
    let (leader, follower) = (open(&layer, &origin).await, open(&layer, &origin).await);
    let (leader, follower) = tokio::join!(leader.into_body().collect(), follower.into_body().collect());
    assert_eq!((leader.unwrap().to_bytes(), follower.unwrap().to_bytes()), ("one two".into(), "one two".into()));
    assert_eq!(origin.calls(), 1);
    let alone = get(&layer, &origin).await;
    assert_eq!((alone, origin.calls()), (words("BYPASS", "one two"), 2));
}
