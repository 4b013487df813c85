//! Asks the origin for what is missing of a stored part, and for the whole if that does not do.

use crate::{body::BodyError, store::BoxFuture};
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use larder_semantics::exchange::{Gap, Joined, Rest};
use std::{
    fmt,
    future::{Future, poll_fn},
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tower_layer::Layer;
use tower_service::Service;

/// Completes stored parts: between a [`CacheLayer`](crate::CacheLayer) and the service that it caches, it has the origin
/// asked for the rest alone where a client wants the whole and all but its beginning or its end is stored
/// (RFC 9111 section 3.4).
///
/// What the cache then gets is a whole response. Should the origin answer with what cannot be put together with the part, as
/// one may that ignores `If-Range`, it is asked again, for the whole; that is why the layer has to know how an empty body of a
/// request is made. A part with a weak `ETag` only, or `Last-Modified` only, is not completed.
/// It does nothing unless the cache's policy stores parts ([`Policy::store_partial`](crate::Policy::store_partial)).
///
/// ```
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::{Empty, Full};
/// use larder::{Cache, CacheLayer, CompleteLayer, Policy};
/// use std::convert::Infallible;
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Infallible> {
/// let origin = service_fn(|_: Request<Empty<Bytes>>| async {
///     Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("whole")))
/// });
/// let service = ServiceBuilder::new()
///     .layer(CacheLayer::with_policy(Cache::in_memory(), Policy::shared_cache()))
///     .layer(CompleteLayer::new(Empty::<Bytes>::new))
///     .service(origin);
/// let response = service.oneshot(Request::new(Empty::new())).await?;
/// assert_eq!(response.headers()["x-cache"], "MISS");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy)]
pub struct CompleteLayer<E> {
    empty: E,
}

impl<E> CompleteLayer<E> {
    /// With what makes the empty body of a request.
    pub fn new(empty: E) -> Self {
        Self { empty }
    }
}

impl<E: Clone, S> Layer<S> for CompleteLayer<E> {
    type Service = Complete<S, E>;

    fn layer(&self, inner: S) -> Self::Service {
        Complete { inner, empty: self.empty.clone() }
    }
}

impl<E> fmt::Debug for CompleteLayer<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompleteLayer").finish_non_exhaustive()
    }
}

/// The service that a [`CompleteLayer`] makes of another.
#[derive(Clone)]
pub struct Complete<S, E> {
    inner: S,
    empty: E,
}

impl<S, E, Q, B> Service<Request<Q>> for Complete<S, E>
where
    S: Service<Request<Q>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    E: Fn() -> Q + Clone + Send + 'static,
    Q: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
{
    type Response = Response<CompletedBody<B>>;
    type Error = S::Error;
    type Future = CompleteFuture<S::Future, B, S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Q>) -> Self::Future {
        let state = match request.extensions_mut().remove::<Rest>() {
            None => State::Whole { future: self.inner.call(request) },
            Some(rest) => {
                let another = self.inner.clone();
                let completing = Self { inner: mem::replace(&mut self.inner, another), empty: self.empty.clone() };
                State::Rest { future: Box::pin(completing.complete(rest, request)) }
            }
        };
        CompleteFuture { state }
    }
}

impl<S, E> Complete<S, E> {
    /// Asks the inner service, which is ready, for the rest.
    async fn complete<Q, B>(mut self, rest: Rest, request: Request<Q>) -> Result<Response<CompletedBody<B>>, S::Error>
    where
        S: Service<Request<Q>, Response = Response<B>>,
        E: Fn() -> Q,
        B: Body<Data = Bytes>,
    {
        let (mut head, body) = request.into_parts();
        let whole = head.clone();
        rest.ask(&mut head.headers);
        let (head, body) = self.inner.call(Request::from_parts(head, body)).await?.into_parts();
        match rest.join(head) {
            Joined::Whole(head, gap) => Ok(Response::from_parts(head, CompletedBody::within(gap, body))),
            Joined::Other(head) => Ok(Response::from_parts(head, CompletedBody::of(body))),
            Joined::Unusable => {
                drop(body);
                poll_fn(|context| self.inner.poll_ready(context)).await?;
                let response = self.inner.call(Request::from_parts(whole, (self.empty)())).await?;
                Ok(response.map(CompletedBody::of))
            }
        }
    }
}

impl<S: fmt::Debug, E> fmt::Debug for Complete<S, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Complete").field("inner", &self.inner).finish_non_exhaustive()
    }
}

pin_project_lite::pin_project! {
    /// The response of a [`Complete`] service, on its way.
    pub struct CompleteFuture<F, B, X> {
        #[pin]
        state: State<F, B, X>,
    }
}

pin_project_lite::pin_project! {
    #[project = StateProjected]
    enum State<F, B, X> {
        Whole { #[pin] future: F },
        Rest { future: BoxFuture<'static, Result<Response<CompletedBody<B>>, X>> },
    }
}

impl<F, B, X> Future for CompleteFuture<F, B, X>
where
    B: Body<Data = Bytes>,
    F: Future<Output = Result<Response<B>, X>>,
{
    type Output = Result<Response<CompletedBody<B>>, X>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProjected::Whole { future } => {
                future.poll(context).map(|answered| answered.map(|response| response.map(CompletedBody::of)))
            }
            StateProjected::Rest { future } => future.as_mut().poll(context),
        }
    }
}

impl<F, B, X> fmt::Debug for CompleteFuture<F, B, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.state {
            State::Whole { .. } => "CompleteFuture(whole)",
            State::Rest { .. } => "CompleteFuture(rest)",
        })
    }
}

pin_project_lite::pin_project! {
    /// A body as it came, or in its place between what is stored before it and after it.
    ///
    /// In a gap it must have as many bytes as were announced; else it [breaks off](BodyError::Broken). Its trailers are left
    /// out there: they are of the part.
    pub struct CompletedBody<B> {
        before: Bytes,
        #[pin]
        body: B,
        // How many bytes are yet to come, if there is a gap.
        awaited: Option<u64>,
        after: Bytes,
        is_over: bool,
    }
}

impl<B: Body<Data = Bytes>> CompletedBody<B> {
    fn of(body: B) -> Self {
        Self { before: Bytes::new(), body, awaited: None, after: Bytes::new(), is_over: false }
    }

    fn within(gap: Gap, body: B) -> Self {
        let Gap { before, length, after } = gap;
        Self { before, body, awaited: Some(length), after, is_over: false }
    }
}

impl<B: Body<Data = Bytes>> Body for CompletedBody<B> {
    type Data = Bytes;
    type Error = BodyError<B::Error>;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let mut this = self.project();
        let Some(awaited) = this.awaited else { return this.body.poll_frame(context).map_err(BodyError::Inner) };
        if !this.before.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(mem::take(this.before)))));
        }
        while !*this.is_over {
            let error = match ready!(this.body.as_mut().poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Err(_) => continue,
                    Ok(data) => match awaited.checked_sub(data.len() as u64) {
                        Some(left) => {
                            *awaited = left;
                            return Poll::Ready(Some(Ok(Frame::data(data))));
                        }
                        None => BodyError::Broken,
                    },
                },
                Some(Err(error)) => BodyError::Inner(error),
                None if *awaited > 0 => BodyError::Broken,
                None => {
                    *this.is_over = true;
                    break;
                }
            };
            // What follows would stand in the wrong place.
            (*this.is_over, *awaited) = (true, 0);
            this.after.clear();
            return Poll::Ready(Some(Err(error)));
        }
        let after = mem::take(this.after);
        Poll::Ready((!after.is_empty()).then(|| Ok(Frame::data(after))))
    }

    fn is_end_stream(&self) -> bool {
        let has_more = !self.before.is_empty() || !self.after.is_empty() || self.awaited.is_some_and(|left| left > 0);
        !has_more && (self.is_over || self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let Some(awaited) = self.awaited else { return self.body.size_hint() };
        SizeHint::with_exact(awaited.saturating_add((self.before.len() + self.after.len()) as u64))
    }
}

impl<B> fmt::Debug for CompletedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, after) = (self.before.len(), self.after.len());
        f.debug_struct("CompletedBody").field("before", &before).field("after", &after).finish_non_exhaustive()
    }
}
