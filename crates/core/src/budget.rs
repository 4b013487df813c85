//! How long one request may wait.

use crate::store::StoreError;
use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};
use tokio::time::{Instant, timeout};

/// Time that a request may still spend on waiting for the store.
pub(crate) struct Budget {
    left: Duration,
    /// The longest that the store takes to answer, one way or the other.
    deadline: Duration,
}

impl Budget {
    pub(crate) fn new(left: Duration, deadline: Duration) -> Self {
        Self { left, deadline }
    }

    /// Waits for an operation of the store: reading no clock when it is done at once, and setting no timer while the
    /// store's own deadline is the shorter one.
    pub(crate) async fn spend<T>(
        &mut self,
        operation: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let mut operation = pin!(operation);
        let at_once = poll_fn(|context| {
            Poll::Ready(match operation.as_mut().poll(context) {
                Poll::Ready(done) => Some(done),
                Poll::Pending => None,
            })
        });
        if let Some(done) = at_once.await {
            return done;
        }
        let began = Instant::now();
        let result = if self.left >= self.deadline {
            operation.await
        } else {
            timeout(self.left, operation).await.unwrap_or(Err(StoreError::Timeout))
        };
        self.left = self.left.saturating_sub(began.elapsed());
        result
    }
}
