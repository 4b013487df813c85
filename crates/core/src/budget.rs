//! How long one request may wait.

use crate::store::StoreError;
use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::Duration,
};
use tokio::time::{Instant, sleep_until};

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

    /// How long the request may still wait.
    pub(crate) fn left(&self) -> Duration {
        self.left
    }

    /// Waits for an operation of the store: reading no clock when it is done at once, and setting no timer while the
    /// store's own deadline is the shorter one.
    pub(crate) async fn spend<T>(
        &mut self,
        operation: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let (mut operation, mut over) = (pin!(operation), pin!(None));
        let mut began = None;
        // Polled once for each time that it is woken: a guard takes the second for a sign that more is to come.
        let result = poll_fn(|context| {
            if let Poll::Ready(result) = operation.as_mut().poll(context) {
                return Poll::Ready(result);
            }
            let began = *began.get_or_insert_with(Instant::now);
            if self.left < self.deadline && over.is_none() {
                over.set(Some(sleep_until(began + self.left)));
            }
            match over.as_mut().as_pin_mut() {
                Some(over) => over.poll(context).map(|()| Err(StoreError::Timeout)),
                None => Poll::Pending,
            }
        });
        let result = result.await;
        if let Some(began) = began {
            self.left = self.left.saturating_sub(began.elapsed());
        }
        result
    }
}
