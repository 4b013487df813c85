//! How long the upstream is waited for: what it takes to send a large request does not count.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::{
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

/// A request's body that tells when it last moved.
pub(crate) struct Watched<B> {
    body: B,
    moved: watch::Sender<Instant>,
}

/// Tells when a request's body last moved, or when it was made.
pub(crate) struct Progress(watch::Receiver<Instant>);

impl<B> Watched<B> {
    pub(crate) fn new(body: B) -> (Self, Progress) {
        let (moved, progress) = watch::channel(Instant::now());
        (Self { body, moved }, Progress(progress))
    }
}

impl Progress {
    /// What `response` comes to; `None` when nothing has moved for as long as `patience`.
    pub(crate) async fn wait<T>(self, response: impl Future<Output = T>, patience: Duration) -> Option<T> {
        let mut response = pin!(response);
        loop {
            let deadline = *self.0.borrow() + patience;
            match timeout_at(deadline, &mut response).await {
                Ok(response) => return Some(response),
                Err(_) if *self.0.borrow() + patience > deadline => {}
                Err(_) => return None,
            }
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Watched<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        self.moved.send_replace(Instant::now());
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, Full};
    use std::future::pending;
    use tokio::time::sleep;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn the_upstream_is_waited_for_while_the_request_moves() {
        let (body, progress) = Watched::new(Full::new(Bytes::from_static(b"slow")));
        let began = Instant::now();
        let upload = async {
            sleep(SECOND / 2).await;
            body.collect().await.ok();
            pending::<()>().await;
        };
        assert_eq!(progress.wait(upload, SECOND).await, None);
        assert_eq!(began.elapsed(), SECOND * 3 / 2);
    }
}
