//! Work that outlives the request that began it: bounded, and waited for at the end.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
};

/// How long work goes on after its client has left, at most.
const LONGEST: Duration = Duration::from_secs(60);

/// The work of one cache that nobody waits for.
#[derive(Debug, Clone)]
pub(crate) struct Background(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    running: AtomicUsize,
    idle: Notify,
    refreshes: Arc<Semaphore>,
    fetches: Arc<Semaphore>,
}

impl Background {
    /// With so many refreshes, and so many fetches whose clients have left, at the same time at most.
    pub(crate) fn new(refreshes: usize, fetches: usize) -> Self {
        let limit = |most: usize| Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        let (refreshes, fetches) = (limit(refreshes), limit(fetches));
        Self(Arc::new(Inner { running: AtomicUsize::new(0), idle: Notify::new(), refreshes, fetches }))
    }

    /// Does `work` at once as far as it goes, and the rest in a task of its own.
    ///
    /// Outside a tokio runtime the rest is not done.
    pub(crate) fn run(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut work = Box::pin(work);
        if work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            self.spawn(work);
        }
    }

    /// Goes on with `work` in a task of its own, for a minute at most.
    pub(crate) fn spawn<T: Send>(&self, work: impl Future<Output = T> + Send + 'static) {
        if let Ok(runtime) = Handle::try_current() {
            let counted = Counted::new(self);
            runtime.spawn(async move {
                drop(tokio::time::timeout(LONGEST, work).await);
                drop(counted);
            });
        }
    }

    /// Goes on with a fetch whose client has left, unless there are too many of those: then it ends here.
    pub(crate) fn spawn_fetch<T: Send>(&self, work: impl Future<Output = T> + Send + 'static) {
        if let Ok(permit) = self.0.fetches.clone().try_acquire_owned() {
            self.spawn(async move {
                let came = work.await;
                // What comes of it may have to go on too, such as a body that is not read to its end.
                drop(permit);
                drop(came);
            });
        }
    }

    /// The right to refresh something, unless too much is being refreshed already.
    pub(crate) fn refresh(&self) -> Option<OwnedSemaphorePermit> {
        self.0.refreshes.clone().try_acquire_owned().ok()
    }

    /// Waits until nothing is left to do, and returns how much is after `limit`.
    pub(crate) async fn drain(&self, limit: Duration) -> usize {
        let all_done = async {
            loop {
                // Before the look, so that what ends after it is heard of.
                let idle = self.0.idle.notified();
                if self.0.running.load(Ordering::Acquire) == 0 {
                    return;
                }
                idle.await;
            }
        };
        let _ = tokio::time::timeout(limit, all_done).await;
        self.0.running.load(Ordering::Acquire)
    }
}

/// One piece of work, until it is dropped, done or not.
struct Counted(Background);

impl Counted {
    fn new(background: &Background) -> Self {
        background.0.running.fetch_add(1, Ordering::AcqRel);
        Self(background.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.0.0.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.0.idle.notify_waiters();
        }
    }
}

/// A future that goes on in the background when it is dropped before its end.
pub(crate) struct Outlives<T: Send + 'static> {
    work: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    background: Background,
    is_change: bool,
}

impl<T: Send + 'static> Outlives<T> {
    /// What is fetched: if too much goes on in the background already, it ends with its client.
    pub(crate) fn fetch(background: &Background, work: impl Future<Output = T> + Send + 'static) -> Self {
        Self::new(background, work, false)
    }

    /// What changes something, and is followed by an invalidation that must not be left out.
    pub(crate) fn change(background: &Background, work: impl Future<Output = T> + Send + 'static) -> Self {
        Self::new(background, work, true)
    }

    fn new(background: &Background, work: impl Future<Output = T> + Send + 'static, is_change: bool) -> Self {
        Self { work: Some(Box::pin(work)), background: background.clone(), is_change }
    }
}

impl<T: Send + 'static> Future for Outlives<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        // Taken out while it runs: work that panics is gone, and never polled again.
        let Some(mut work) = self.work.take() else { return Poll::Pending };
        let polled = work.as_mut().poll(context);
        if polled.is_pending() {
            self.work = Some(work);
        }
        polled
    }
}

impl<T: Send + 'static> Drop for Outlives<T> {
    fn drop(&mut self) {
        match self.work.take() {
            Some(work) if self.is_change => self.background.spawn(work),
            Some(work) => self.background.spawn_fetch(work),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        future::poll_fn,
        panic::{AssertUnwindSafe, catch_unwind},
        sync::atomic::AtomicU32,
    };

    async fn work(done: Arc<AtomicU32>) {
        tokio::task::yield_now().await;
        done.fetch_add(1, Ordering::SeqCst);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_dropped_goes_on_and_what_has_ended_does_not_run_again() {
        let (done, background) = (Arc::new(AtomicU32::new(0)), Background::new(1, 1));
        drop(Outlives::fetch(&background, work(done.clone())));
        assert_eq!(background.drain(Duration::from_millis(1)).await, 0);
        assert_eq!(done.load(Ordering::SeqCst), 1);
        Outlives::fetch(&background, work(done.clone())).await;
        assert_eq!(background.drain(Duration::from_millis(1)).await, 0);
        assert_eq!(done.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn of_too_many_fetches_the_rest_end_and_every_change_goes_on() {
        let (done, background) = (Arc::new(AtomicU32::new(0)), Background::new(1, 2));
        for _ in 0..5 {
            drop(Outlives::fetch(&background, work(done.clone())));
        }
        assert_eq!(background.drain(Duration::from_millis(1)).await, 0);
        assert_eq!(done.swap(0, Ordering::SeqCst), 2);
        for _ in 0..5 {
            drop(Outlives::change(&background, work(done.clone())));
        }
        assert_eq!(background.drain(Duration::from_millis(1)).await, 0);
        assert_eq!(done.load(Ordering::SeqCst), 5);
        background.spawn_fetch(work(done.clone()));
        assert_eq!(background.drain(Duration::from_millis(1)).await, 0);
        assert_eq!(done.load(Ordering::SeqCst), 6, "those that have ended make room");
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_panicked_is_not_polled_again() {
        let polls = Arc::new(AtomicU32::new(0));
        let (counted, background) = (polls.clone(), Background::new(1, 1));
        let mut work = Outlives::fetch(
            &background,
            poll_fn(move |_| -> Poll<()> {
                counted.fetch_add(1, Ordering::SeqCst);
                panic!("the handler panics")
            }),
        );
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let _ = Pin::new(&mut work).poll(&mut Context::from_waker(Waker::noop()));
        }));
        assert!(caught.is_err());
        drop(work);
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(polls.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn outside_a_runtime_nothing_panics() {
        let (done, background) = (Arc::new(AtomicU32::new(0)), Background::new(1, 1));
        drop(Outlives::fetch(&background, work(done.clone())));
        background.run(work(done.clone()));
        background.run(async move {
            done.fetch_add(1, Ordering::SeqCst);
        });
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_done_in_time_is_counted_and_what_panics_is_not() {
        let background = Background::new(1, 1);
        background.spawn(tokio::time::sleep(Duration::from_secs(10)));
        background.spawn(async { panic!("it panics") });
        assert_eq!(background.drain(Duration::from_secs(5)).await, 1);
        assert_eq!(background.drain(Duration::from_secs(6)).await, 0);
        let one = background.refresh();
        assert!(one.is_some() && background.refresh().is_none());
    }
}
