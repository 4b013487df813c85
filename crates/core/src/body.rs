//! The body of a response that went through the cache.

use crate::{background, fill::Fill};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

pin_project_lite::pin_project! {
    /// A stored body, or the inner service's, of which a copy may be made while it streams.
    ///
    /// When it is dropped before its end, and its copy is still wanted, the rest is read in the background.
    pub struct CacheBody<B>
    where
        B: Body<Data = Bytes>,
        B: Send,
        B: 'static,
    {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project_lite::pin_project! {
    #[project = KindProjected]
    enum Kind<B>
    where
        B: Body<Data = Bytes>,
        B: Send,
        B: 'static,
    {
        Stored { body: Option<Bytes> },
        Forwarded { #[pin] body: B },
        Copied { copying: Copying<B> },
    }
}

impl<B: Body<Data = Bytes> + Send + 'static> CacheBody<B> {
    pub(crate) fn stored(body: Bytes) -> Self {
        Self { kind: Kind::Stored { body: Some(body).filter(|body| !body.is_empty()) } }
    }

    pub(crate) fn forwarded(body: B) -> Self {
        Self { kind: Kind::Forwarded { body } }
    }

    pub(crate) fn copied(body: B, fill: Box<Fill>) -> Self {
        if body.is_end_stream() {
            fill.complete();
            return Self::forwarded(body);
        }
        let reading = Reading { body: Box::pin(body), fill: Some(fill) };
        Self { kind: Kind::Copied { copying: Copying(Some(reading)) } }
    }
}

impl<B: Body<Data = Bytes> + Send + 'static> Body for CacheBody<B> {
    type Data = Bytes;
    type Error = BodyError<B::Error>;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = match self.project().kind.project() {
            KindProjected::Stored { body } => return Poll::Ready(body.take().map(|body| Ok(Frame::data(body)))),
            KindProjected::Forwarded { body } => body.poll_frame(context),
            KindProjected::Copied { copying } => copying.poll_frame(context),
        };
        polled.map_err(BodyError::Inner)
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Stored { body } => body.is_none(),
            Kind::Forwarded { body } => body.is_end_stream(),
            Kind::Copied { copying } => copying.0.as_ref().is_none_or(|reading| reading.body.is_end_stream()),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Stored { body } => SizeHint::with_exact(body.as_ref().map_or(0, Bytes::len) as u64),
            Kind::Forwarded { body } => body.size_hint(),
            Kind::Copied { copying } => {
                copying.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |reading| reading.body.size_hint())
            }
        }
    }
}

impl<B: Body<Data = Bytes> + Send + 'static> fmt::Debug for CacheBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.kind {
            Kind::Stored { .. } => "CacheBody(stored)",
            Kind::Forwarded { .. } => "CacheBody(forwarded)",
            Kind::Copied { .. } => "CacheBody(copied)",
        })
    }
}

/// A body of which a copy is made; what a client leaves unread is read in the background for the copy's sake.
struct Copying<B: Body<Data = Bytes> + Send + 'static>(Option<Reading<B>>);

impl<B: Body<Data = Bytes> + Send + 'static> Copying<B> {
    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        // Taken out while it runs: a body that panics is gone, and never polled again.
        let Some(mut reading) = self.0.take() else { return Poll::Ready(None) };
        let polled = reading.poll_frame(context);
        if !matches!(polled, Poll::Ready(None)) {
            self.0 = Some(reading);
        }
        polled
    }
}

impl<B: Body<Data = Bytes> + Send + 'static> Drop for Copying<B> {
    fn drop(&mut self) {
        if let Some(reading) = self.0.take_if(|reading| reading.fill.is_some()) {
            background::spawn(reading.drain());
        }
    }
}

struct Reading<B> {
    body: Pin<Box<B>>,
    /// `None` once the copy is complete, or given up.
    fill: Option<Box<Fill>>,
}

impl<B: Body<Data = Bytes>> Reading<B> {
    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let polled = ready!(self.body.as_mut().poll_frame(context));
        self.fill = self.fill.take().and_then(|fill| fill.take_note(&polled));
        // Whoever reads by length never asks again after the last byte.
        if self.body.is_end_stream()
            && let Some(fill) = self.fill.take()
        {
            fill.complete();
        }
        Poll::Ready(polled)
    }

    async fn drain(mut self) {
        while self.fill.is_some() {
            let polled = poll_fn(|context| self.poll_frame(context)).await;
            if polled.is_none_or(|frame| frame.is_err()) {
                return;
            }
        }
    }
}

/// Why a body could not be read to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum BodyError<E> {
    /// The inner service's body failed.
    Inner(E),
}

impl<E: fmt::Display> fmt::Display for BodyError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inner(error) => error.fmt(f),
        }
    }
}

/// For whatever can be shown, boxed errors among them, which are no errors themselves.
impl<E: fmt::Debug + fmt::Display> std::error::Error for BodyError<E> {}
