//! A client that leaves at any await: nothing is stuck, nothing is left over, and what it changed is no longer stored.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Empty};
use larder::{
    Cache, CacheLayer, MemoryStore, Policy, Purge,
    semantics::{EntryId, EntryKey, Filling, Key, Namespace, Timestamp},
    store::{Claim, Filled, Found, Receipt, Seen, Store, StoreError, Ticket, Unused},
};
use std::{
    collections::VecDeque,
    convert::Infallible,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    task::yield_now,
    time::{Instant, sleep, timeout},
};
use tower::{Layer, Service, ServiceExt};

/// A store each operation of which waits before and after it is done.
#[derive(Clone, Default)]
struct Hesitant(MemoryStore);

/// Waits for another task, however often it is polled, and for no time.
async fn pause() {
    tokio::spawn(async {}).await.unwrap();
}

impl Hesitant {
    async fn do_it<T>(&self, operation: impl Future<Output = T>) -> T {
        pause().await;
        let done = operation.await;
        pause().await;
        done
    }
}

impl Store for Hesitant {
    fn now(&self) -> Timestamp {
        self.0.now()
    }

    async fn get(&self, key: &EntryKey) -> Result<Found, StoreError> {
        self.do_it(self.0.get(key)).await
    }

    async fn claim(&self, key: &EntryKey, seen: Seen) -> Result<Claim, StoreError> {
        self.do_it(self.0.claim(key, seen)).await
    }

    async fn renew(&self, ticket: &Ticket) -> Result<bool, StoreError> {
        self.do_it(self.0.renew(ticket)).await
    }

    async fn fill(&self, ticket: Ticket, filling: Filling) -> Result<Filled, StoreError> {
        self.do_it(self.0.fill(ticket, filling)).await
    }

    async fn release(&self, ticket: Ticket, why: Unused) -> Result<(), StoreError> {
        self.do_it(self.0.release(ticket, why)).await
    }

    async fn turn(&self, key: &EntryKey, limit: Duration) {
        self.do_it(self.0.turn(key, limit)).await;
    }

    async fn purge(&self, namespace: &Namespace, purge: &Purge) -> Result<Receipt, StoreError> {
        self.do_it(self.0.purge(namespace, purge)).await
    }

    async fn mark(&self, resource: &EntryKey, nonce: EntryId, life: Duration) -> Result<Receipt, StoreError> {
        self.do_it(self.0.mark(resource, nonce, life)).await
    }

    async fn supersede(&self, ticket: &Ticket) -> Result<bool, StoreError> {
        self.do_it(self.0.supersede(ticket)).await
    }
}

/// How long the origin takes, but for the body.
const FETCH: Duration = Duration::from_millis(100);

/// How long somebody may wait at most: a ticket that was on its way to a client who left is valid for three seconds, and
/// whoever waits for it looks again half a second later at most.
const LONGEST: Duration = Duration::from_millis(3_000 + 500 + 100);

/// One page, which tells how often it was changed; a POST changes it, half way.
#[derive(Clone, Default)]
struct Origin {
    begun: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
    version: Arc<AtomicUsize>,
    fields: &'static [(&'static str, &'static str)],
}

impl Service<Request<Empty<Bytes>>> for Origin {
    type Response = Response<Pieces>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Empty<Bytes>>) -> Self::Future {
        let origin = self.clone();
        Box::pin(async move {
            origin.begun.fetch_add(1, Ordering::SeqCst);
            sleep(FETCH / 2).await;
            if request.method() == Method::POST {
                origin.version.fetch_add(1, Ordering::SeqCst);
            }
            let mut response = Response::new(Pieces::of(&origin.page()));
            sleep(FETCH / 2).await;
            for (name, value) in origin.fields {
                response.headers_mut().append(*name, value.parse().unwrap());
            }
            origin.ended.fetch_add(1, Ordering::SeqCst);
            Ok(response)
        })
    }
}

impl Origin {
    fn page(&self) -> String {
        format!("version {}", self.version.load(Ordering::SeqCst))
    }
}

/// A body in pieces, each of which is waited for.
struct Pieces {
    pieces: VecDeque<Bytes>,
    is_near: bool,
}

impl Pieces {
    fn of(text: &str) -> Self {
        let pieces = text.as_bytes().chunks(4).map(Bytes::copy_from_slice).collect();
        Self { pieces, is_near: false }
    }
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.is_near = !self.is_near;
        if self.is_near {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(self.pieces.pop_front().map(|piece| Ok(Frame::data(piece))))
    }
}

/// One layer over a hesitant store, before one origin.
#[derive(Clone)]
struct Program {
    store: Hesitant,
    cache: Cache,
    layer: CacheLayer,
    origin: Origin,
}

impl Program {
    /// With a layer that gives ten seconds, and nothing to chance.
    fn new(configured: impl FnOnce(CacheLayer) -> CacheLayer) -> Self {
        let store = Hesitant::default();
        let cache = Cache::builder().store(store.clone()).build().unwrap();
        let layer = configured(cache.layer().ttl(Duration::from_secs(10)).jitter(0.0));
        Self { store, cache, layer, origin: Origin::default() }
    }

    /// The same, with the page stored, that long ago.
    async fn with_page(configured: impl FnOnce(CacheLayer) -> CacheLayer, ago: u64) -> Self {
        let program = Self::new(configured);
        program.get().await;
        sleep(Duration::from_secs(ago)).await;
        program
    }

    /// Another process with the same store and origin.
    fn elsewhere(&self) -> Self {
        let cache = Cache::builder().store(self.store.clone()).build().unwrap();
        let layer = cache.layer().ttl(Duration::from_secs(10)).jitter(0.0);
        Self { cache, layer, ..self.clone() }
    }

    /// X-Cache and the body.
    async fn ask(&self, method: Method) -> (String, String) {
        let request = Request::builder().method(method).uri("/page").header("host", "h");
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let response = self.layer.layer(self.origin.clone()).oneshot(request).await.unwrap();
        let x_cache = response.headers()["x-cache"].to_str().unwrap().to_owned();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (x_cache, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn get(&self) -> (String, String) {
        self.ask(Method::GET).await
    }

    fn calls(&self) -> usize {
        self.origin.begun.load(Ordering::SeqCst)
    }

    /// After somebody has left: the next is answered, and the origin was asked so often in all; nothing is under way any
    /// more, and nothing holds up those who come later.
    async fn is_well_after(&self, calls: usize) {
        let answer = timeout(LONGEST, self.get()).await.expect("nothing is stuck");
        assert_eq!(answer.1, self.origin.page());
        self.is_at_rest().await;
        assert_eq!(self.calls(), calls, "the origin's work is not wasted");
        let began = Instant::now();
        assert_eq!(self.get().await, ("HIT".to_owned(), self.origin.page()));
        assert_eq!(began.elapsed(), Duration::ZERO);
        sleep(Duration::from_secs(100)).await;
        let began = Instant::now();
        assert_eq!(self.get().await.1, self.origin.page());
        assert_eq!((began.elapsed(), self.calls()), (FETCH, calls + 1), "there is nobody to wait for");
    }

    /// Nothing is done in the background, and nobody holds a ticket.
    async fn is_at_rest(&self) {
        assert_eq!(self.cache.drain(Duration::from_secs(10)).await, 0);
        assert_eq!(self.origin.ended.load(Ordering::SeqCst), self.calls(), "what was begun was ended");
        sleep(larder::store::TICKET_LIFE).await;
        let key = Namespace::default().entry(Key::new("route:GET:h:/page"));
        for seen in [Seen::Unreadable, Seen::Changing] {
            match self.store.claim(&key, seen).await {
                Ok(Claim::Granted(ticket)) => self.store.release(ticket, Unused::NoAnswer).await.unwrap(),
                held => panic!("a ticket is left over: {held:?}"),
            }
        }
    }
}

/// When a client leaves.
#[derive(Debug, Clone, Copy)]
enum Leaves {
    /// After so many polls, while it waits.
    Waiting(usize),
    /// After so many polls, when what it waited for is there.
    Woken(usize),
}

impl Leaves {
    /// Whether the visit had ended before that.
    async fn from(self, visit: impl Future) -> bool {
        let (mut visit, mut polls) = (Box::pin(visit), 0);
        poll_fn(|context| {
            if matches!(self, Self::Waiting(0)) || matches!(self, Self::Woken(most) if polls == most) {
                return Poll::Ready(false);
            }
            polls += 1;
            match (visit.as_mut().poll(context), self) {
                (Poll::Ready(_), _) => Poll::Ready(true),
                (Poll::Pending, Self::Waiting(most)) if polls == most => Poll::Ready(false),
                (Poll::Pending, _) => Poll::Pending,
            }
        })
        .await
    }
}

/// Lets a client leave at one await after the other, until it stays to the end.
async fn at_every_await(act: impl AsyncFn(Leaves) -> bool) {
    for leaves in [Leaves::Waiting, Leaves::Woken] {
        let mut polls = 0;
        loop {
            println!("{:?}", leaves(polls));
            if act(leaves(polls)).await {
                break;
            }
            polls += 1;
        }
        assert!(polls > 1, "it waited somewhere");
    }
}

#[tokio::test(start_paused = true)]
async fn who_leaves_while_nothing_is_stored() {
    at_every_await(async |leaves| {
        let program = Program::new(|layer| layer);
        let stayed = leaves.from(program.get()).await;
        program.is_well_after(1).await;
        stayed
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_leaves_while_something_stale_is_held() {
    at_every_await(async |leaves| {
        let program = Program::with_page(|layer| layer.stale_if_error(Duration::from_secs(3_600)), 20).await;
        let stayed = leaves.from(program.get()).await;
        program.is_well_after(2).await;
        stayed
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_leaves_while_something_stale_is_refreshed() {
    at_every_await(async |leaves| {
        let program = Program::with_page(|layer| layer.stale_while_revalidate(Duration::from_secs(30)), 20).await;
        let stayed = leaves.from(program.get()).await;
        program.is_well_after(2).await;
        stayed
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_leaves_a_hit() {
    at_every_await(async |leaves| {
        let program = Program::with_page(|layer| layer, 1).await;
        let stayed = leaves.from(program.get()).await;
        program.is_well_after(1).await;
        stayed
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_leaves_those_who_follow() {
    at_every_await(async |leaves| {
        let program = Program::new(|layer| layer);
        let following = async {
            yield_now().await;
            timeout(LONGEST, program.get()).await.expect("nothing is stuck")
        };
        let (stayed, followed) = tokio::join!(leaves.from(program.get()), following);
        assert_eq!(followed.1, program.origin.page());
        program.is_well_after(1).await;
        stayed
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_leaves_whom_it_follows() {
    for is_elsewhere in [false, true] {
        at_every_await(async |leaves| {
            let program = Program::new(|layer| layer);
            let leader = if is_elsewhere { program.elsewhere() } else { program.clone() };
            let leading = tokio::spawn(async move { (leader.get().await, leader.cache.drain(FETCH).await) });
            sleep(FETCH / 4).await;
            let stayed = leaves.from(program.get()).await;
            program.is_well_after(1).await;
            assert_eq!(leading.await.unwrap(), (("MISS".to_owned(), program.origin.page()), 0));
            stayed
        })
        .await;
    }
}

/// Whether the answer to a POST is stored for GET, or not.
#[tokio::test(start_paused = true)]
async fn who_leaves_what_it_changes() {
    const FOR_GET: &[(&str, &str)] = &[("cache-control", "max-age=10"), ("content-location", "/page")];
    for is_for_get in [false, true] {
        at_every_await(async |leaves| {
            let mut program = Program::new(|layer| layer);
            if is_for_get {
                program.layer = CacheLayer::with_policy(program.cache.clone(), Policy::shared_cache());
                program.origin.fields = FOR_GET;
            }
            program.get().await;
            let stayed = leaves.from(program.ask(Method::POST)).await;
            program.is_at_rest().await;
            let (was_asked, version) = (program.calls() == 2, program.origin.version.load(Ordering::SeqCst));
            assert_eq!(version, usize::from(was_asked), "a change that was begun is done");
            // The next asks the origin again, unless there was no change, or its own answer was stored.
            let calls = if was_asked && !is_for_get { 3 } else { program.calls() };
            program.is_well_after(calls).await;
            stayed
        })
        .await;
    }
}
