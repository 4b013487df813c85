//! The service that a [`CacheLayer`](crate::CacheLayer) makes of another.

use crate::{Cache, body::CacheBody, layer::Rules};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tower_service::Service;

/// Answers requests from a cache, or from the service within.
///
/// It is ready at once: a hit needs nothing of the inner service, whose clone is made ready only to be called. It must
/// be called within a tokio runtime.
#[derive(Clone)]
pub struct CacheService<S> {
    cache: Cache,
    rules: Arc<Rules>,
    inner: S,
}

impl<S> CacheService<S> {
    pub(crate) fn new(cache: Cache, rules: Arc<Rules>, inner: S) -> Self {
        Self { cache, rules, inner }
    }
}

impl<S, Q, B> Service<Request<Q>> for CacheService<S>
where
    S: Service<Request<Q>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    Q: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
{
    type Response = Response<CacheBody<B>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        Box::pin(self.cache.clone().serve(self.rules.clone(), request, self.inner.clone()))
    }
}

impl<S: fmt::Debug> fmt::Debug for CacheService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheService").field("inner", &self.inner).finish_non_exhaustive()
    }
}
