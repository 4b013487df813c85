//! The service that a [`CacheLayer`](crate::CacheLayer) makes of another.

use crate::{Cache, body::CacheBody, engine::Front, layer::Rules, store::BoxFuture};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};
use tower_service::Service;

/// Answers requests from a cache, or from the service within.
///
/// It is ready at once: a hit needs nothing of the inner service, whose clone is made ready only to be called. It must
/// be called within a tokio runtime.
#[derive(Clone)]
pub struct CacheService<S> {
    front: Arc<Front>,
    inner: S,
}

impl<S> CacheService<S> {
    pub(crate) fn new(cache: Cache, rules: Arc<Rules>, inner: S) -> Self {
        Self { front: Arc::new(Front { cache, rules, metrics: OnceLock::new() }), inner }
    }
}

impl<S, Q, B> Service<Request<Q>> for CacheService<S>
where
    S: Service<Request<Q>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    Q: Body + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
{
    type Response = Response<CacheBody<B>>;
    type Error = S::Error;
    type Future = CacheFuture<B, S::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        self.front.serve(request, &self.inner)
    }
}

pin_project_lite::pin_project! {
    /// The response of a [`CacheService`]: there already, or on its way.
    ///
    /// When it is dropped, what others wait for, or what is to be stored, goes on in the background.
    pub struct CacheFuture<B, E>
    where
        B: Body<Data = Bytes>,
        B: Send,
        B: 'static,
    {
        state: State<B, E>,
    }
}

enum State<B: Body<Data = Bytes> + Send + 'static, E> {
    Ready(Option<Response<CacheBody<B>>>),
    Pending(BoxFuture<'static, Result<Response<CacheBody<B>>, E>>),
}

impl<B: Body<Data = Bytes> + Send + 'static, E> CacheFuture<B, E> {
    pub(crate) fn ready(response: Response<CacheBody<B>>) -> Self {
        Self { state: State::Ready(Some(response)) }
    }

    pub(crate) fn pending(response: impl Future<Output = Result<Response<CacheBody<B>>, E>> + Send + 'static) -> Self {
        Self { state: State::Pending(Box::pin(response)) }
    }
}

impl<B: Body<Data = Bytes> + Send + 'static, E> Future for CacheFuture<B, E> {
    type Output = Result<Response<CacheBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state {
            State::Pending(response) => response.as_mut().poll(context),
            State::Ready(response) => response.take().map_or(Poll::Pending, |response| Poll::Ready(Ok(response))),
        }
    }
}

impl<B: Body<Data = Bytes> + Send + 'static, E> fmt::Debug for CacheFuture<B, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.state {
            State::Ready(_) => "CacheFuture(ready)",
            State::Pending(_) => "CacheFuture(pending)",
        })
    }
}

impl<S: fmt::Debug> fmt::Debug for CacheService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheService").field("inner", &self.inner).finish_non_exhaustive()
    }
}
