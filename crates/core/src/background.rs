//! Work that outlives the request that began it.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};
use tokio::runtime::Handle;

/// How long work goes on after its client has left, at most.
const LONGEST: Duration = Duration::from_secs(60);

/// Does `work` at once as far as it goes, and the rest in a task of its own.
///
/// Outside a tokio runtime the rest is not done.
pub(crate) fn run(work: impl Future<Output = ()> + Send + 'static) {
    let mut work = Box::pin(work);
    if work.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
        spawn(work);
    }
}

/// Goes on with `work` in a task of its own, for a minute at most.
pub(crate) fn spawn<T: Send>(work: impl Future<Output = T> + Send + 'static) {
    if let Ok(runtime) = Handle::try_current() {
        runtime.spawn(async { drop(tokio::time::timeout(LONGEST, work).await) });
    }
}

/// A future that goes on in the background when it is dropped before its end.
pub(crate) struct Outlives<T: Send + 'static> {
    work: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
}

impl<T: Send + 'static> Outlives<T> {
    pub(crate) fn new(work: impl Future<Output = T> + Send + 'static) -> Self {
        Self { work: Some(Box::pin(work)) }
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
        if let Some(work) = self.work.take() {
            spawn(work);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        future::poll_fn,
        panic::{AssertUnwindSafe, catch_unwind},
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
    };

    async fn work(done: Arc<AtomicU32>) {
        tokio::task::yield_now().await;
        done.fetch_add(1, Ordering::SeqCst);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_dropped_goes_on_and_what_has_ended_does_not_run_again() {
        let done = Arc::new(AtomicU32::new(0));
        drop(Outlives::new(work(done.clone())));
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(done.load(Ordering::SeqCst), 1);
        Outlives::new(work(done.clone())).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(done.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_panicked_is_not_polled_again() {
        let polls = Arc::new(AtomicU32::new(0));
        let counted = polls.clone();
        let mut work = Outlives::new(poll_fn(move |_| -> Poll<()> {
            counted.fetch_add(1, Ordering::SeqCst);
            panic!("the handler panics")
        }));
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
        let done = Arc::new(AtomicU32::new(0));
        drop(Outlives::new(work(done.clone())));
        run(work(done.clone()));
        run(async move {
            done.fetch_add(1, Ordering::SeqCst);
        });
    }
}
