//! What a program fetches for itself, as the origin that the engine asks.

use super::{Known, Terms};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use larder_semantics::{Caching, StoredResponse};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    marker::PhantomData,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};
use tower_service::Service;

/// What one caller brings, and what has come of it so far.
pub(super) struct Quest<F, T> {
    absence: Absence,
    state: Mutex<State<F, T>>,
}

/// What it is to a caller that there is no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Absence {
    /// An answer.
    Known,
    /// None: it has to be fetched.
    Unknown,
}

struct State<F, T> {
    /// How it is found, until it is asked.
    find: Option<F>,
    /// What was found by asking.
    found: Option<Option<T>>,
    /// What was last read of what is stored, and from which bytes.
    read: Option<(Bytes, T)>,
}

impl<F, T> Quest<F, T> {
    pub(super) fn new(find: F, absence: Absence) -> Arc<Self> {
        Arc::new(Self { absence, state: Mutex::new(State { find: Some(find), found: None, read: None }) })
    }

    pub(super) fn take_find(&self) -> Option<F> {
        self.state().find.take()
    }

    pub(super) fn take_found(&self) -> Option<Option<T>> {
        self.state().found.take()
    }

    fn state(&self) -> MutexGuard<'_, State<F, T>> {
        // Nothing in it is ever half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F, T: DeserializeOwned> Quest<F, T> {
    /// Whether a stored value answers this caller; what is read is kept, so that it need not be read again.
    pub(super) fn reads(&self, response: &StoredResponse) -> bool {
        match Known::read(response.status, &response.headers, &response.body) {
            Some(Known::Found(value)) => {
                self.state().read = Some((response.body.clone(), value));
                true
            }
            Some(_) => self.absence == Absence::Known,
            None => false,
        }
    }

    /// What a response tells this caller, if it tells anything.
    pub(super) fn read(&self, status: StatusCode, headers: &HeaderMap, body: &Bytes) -> Option<Option<T>> {
        let is_same = |read: &(Bytes, T)| read.0.as_ptr() == body.as_ptr() && read.0.len() == body.len();
        if let Some((_, value)) = self.state().read.take().filter(is_same) {
            return Some(Some(value));
        }
        match Known::read(status, headers, body)? {
            Known::Found(value) => Some(Some(value)),
            Known::Absent | Known::Missing => (self.absence == Absence::Known).then_some(None),
        }
    }
}

/// The origin of one caller's value.
pub(super) struct Finding<F, T, Fut> {
    quest: Arc<Quest<F, T>>,
    terms: Arc<Terms>,
    future: PhantomData<fn() -> Fut>,
}

impl<F, T, Fut> Finding<F, T, Fut> {
    pub(super) fn new(quest: Arc<Quest<F, T>>, terms: Arc<Terms>) -> Self {
        Self { quest, terms, future: PhantomData }
    }
}

impl<F, T, E, Fut> Service<Request<()>> for Finding<F, T, Fut>
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = Result<Option<T>, E>> + Send + 'static,
    T: Serialize + Send + 'static,
    E: 'static,
{
    type Response = Response<Whole>;
    type Error = E;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Whole>, E>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), E>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        let (quest, terms) = (self.quest.clone(), self.terms.clone());
        Box::pin(async move {
            let Some(find) = quest.take_find() else {
                // The engine asks once.
                return Ok(terms.unstored());
            };
            let found = find().await?;
            let response = terms.write(found.as_ref());
            quest.state().found = Some(found);
            Ok(response)
        })
    }
}

impl Terms {
    /// The response that carries a value, or tells that there is none.
    pub(super) fn write<T: Serialize>(&self, found: Option<&T>) -> Response<Whole> {
        let Some(value) = found else {
            let mut response = Response::new(Whole(None));
            *response.status_mut() = StatusCode::NOT_FOUND;
            return response;
        };
        match self.format.write(value, self.compressed_from) {
            Ok((headers, body)) => {
                let mut response = Response::new(Whole(Some(body)));
                *response.headers_mut() = headers;
                response
            }
            Err(error) => {
                tracing::error!(error, route = self.rules.route, "a value cannot be written: it is not stored");
                self.unstored()
            }
        }
    }

    fn unstored(&self) -> Response<Whole> {
        let mut response = Response::new(Whole(None));
        response.extensions_mut().insert(Caching::no_store());
        response
    }
}

/// A body that is there.
pub(super) struct Whole(pub(super) Option<Bytes>);

impl Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|body| Ok(Frame::data(body))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, Bytes::len) as u64)
    }
}

/// Reads a body to its end; nothing, if it breaks off. What was written in one piece comes in one.
pub(super) async fn whole<B: Body<Data = Bytes>>(body: B) -> Option<Bytes> {
    let mut body = pin!(body);
    let mut read = Bytes::new();
    while let Some(frame) = poll_fn(|context| body.as_mut().poll_frame(context)).await {
        let Ok(piece) = frame.ok()?.into_data() else { continue };
        read = if read.is_empty() { piece } else { [read, piece].concat().into() };
    }
    Some(read)
}
