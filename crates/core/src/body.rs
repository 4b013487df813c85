//! The body of a response that went through the cache.

use crate::{
    background::Background,
    fill::Fill,
    share::{self, Fetched, Following, Piece, Reading, Shared},
    stream::{Cut, Reader, Source, Stream},
};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
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
        Leading { leading: Leading<B> },
        Following { following: Following },
    }
}

impl<B: Body<Data = Bytes> + Send + 'static> CacheBody<B> {
    pub(crate) fn stored(body: Bytes) -> Self {
        Self { kind: Kind::Stored { body: Some(body).filter(|body| !body.is_empty()) } }
    }

    pub(crate) fn forwarded(body: B) -> Self {
        Self { kind: Kind::Forwarded { body } }
    }

    /// The inner body, of which a copy is kept, and which those read too who wait for it.
    pub(crate) fn copied(body: B, fill: Box<Fill>) -> Self {
        if body.is_end_stream() {
            fill.complete(std::iter::empty());
            return Self::forwarded(body);
        }
        let leading = Leading::of(body, fill);
        Self { kind: Kind::Leading { leading } }
    }

    /// The body that another request is reading.
    pub(crate) fn following(following: Following) -> Self {
        Self { kind: Kind::Following { following } }
    }
}

impl<B: Body<Data = Bytes> + Send + 'static> Body for CacheBody<B> {
    type Data = Bytes;
    type Error = BodyError<B::Error>;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = match self.project().kind.project() {
            KindProjected::Stored { body } => return Poll::Ready(body.take().map(|body| Ok(Frame::data(body)))),
            KindProjected::Forwarded { body } => return body.poll_frame(context).map_err(BodyError::Inner),
            KindProjected::Leading { leading } => match &mut leading.0 {
                Some(seat) => seat.poll_next(context),
                None => return Poll::Ready(None),
            },
            KindProjected::Following { following } => {
                following.poll_next(context).map(|next| next.map(|piece| piece.ok_or(BodyError::Broken)))
            }
        };
        polled.map(|next| next.and_then(|piece| piece.map(Piece::into_frame).transpose()))
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Stored { body } => body.is_none(),
            Kind::Forwarded { body } => body.is_end_stream(),
            Kind::Leading { leading } => leading.0.as_ref().is_none_or(|seat| seat.stream.ahead(&seat.reader).0),
            Kind::Following { following } => following.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Stored { body } => SizeHint::with_exact(body.as_ref().map_or(0, Bytes::len) as u64),
            Kind::Forwarded { body } => body.size_hint(),
            Kind::Leading { leading } => {
                let hint = leading.0.as_ref().map(|seat| share::size_hint(&seat.stream, &seat.reader));
                hint.unwrap_or_else(|| SizeHint::with_exact(0))
            }
            Kind::Following { following } => following.size_hint(),
        }
    }
}

impl<B: Body<Data = Bytes> + Send + 'static> fmt::Debug for CacheBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.kind {
            Kind::Stored { .. } => "CacheBody(stored)",
            Kind::Forwarded { .. } => "CacheBody(forwarded)",
            Kind::Leading { .. } => "CacheBody(leading)",
            Kind::Following { .. } => "CacheBody(following)",
        })
    }
}

/// The body of the request that fetched it; what its client leaves unread is read in the background, if it may yet be
/// stored.
struct Leading<B: Body<Data = Bytes> + Send + 'static>(Option<Seat<B>>, Background);

/// The leader's place at a stream, which it leaves however it ends.
struct Seat<B: Body<Data = Bytes> + Send + 'static> {
    stream: Arc<Stream<Reading<B>>>,
    reader: Reader,
}

impl<B: Body<Data = Bytes> + Send + 'static> Seat<B> {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Piece, BodyError<B::Error>>>> {
        self.stream.poll_next(&mut self.reader, context).map(|next| {
            next.map(|piece| {
                piece.map_err(|cut| match cut {
                    Cut::Broken(Some(error)) => BodyError::Inner(error),
                    Cut::Broken(None) | Cut::Behind => BodyError::Broken,
                })
            })
        })
    }

    fn is_wanted(&self) -> bool {
        self.stream.source(Source::is_kept).unwrap_or(false)
    }

    async fn drain(mut self) {
        while self.is_wanted() {
            let next = poll_fn(|context| self.poll_next(context)).await;
            if next.is_none_or(|piece| piece.is_err()) {
                return;
            }
        }
    }
}

impl<B: Body<Data = Bytes> + Send + 'static> Drop for Seat<B> {
    fn drop(&mut self) {
        self.stream.leave(&mut self.reader);
    }
}

impl<B: Body<Data = Bytes> + Send + 'static> Leading<B> {
    fn of(body: B, fill: Box<Fill>) -> Self {
        let background = fill.background().clone();
        let (stream, reader) = Stream::new(Reading::new(body, fill));
        let stream = Arc::new(stream);
        let shared: Arc<dyn Shared> = stream.clone();
        stream.source(|reading| reading.share(Fetched::Coming(Arc::downgrade(&shared))));
        Self(Some(Seat { stream, reader }), background)
    }
}

impl<B: Body<Data = Bytes> + Send + 'static> Drop for Leading<B> {
    fn drop(&mut self) {
        if let Some(seat) = self.0.take().filter(Seat::is_wanted) {
            self.1.spawn_fetch(seat.drain());
        }
    }
}

/// Why a body could not be read to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum BodyError<E> {
    /// The inner service's body failed.
    Inner(E),
    /// The body that several requests shared failed when another one read it, or this one read it too slowly; or what was to
    /// complete a stored part is not as long as it was to be.
    Broken,
}

impl<E: fmt::Display> fmt::Display for BodyError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inner(error) => error.fmt(f),
            Self::Broken => f.write_str("the response that was being shared broke off"),
        }
    }
}

/// For whatever can be shown, boxed errors among them, which are no errors themselves.
impl<E: fmt::Debug + fmt::Display> std::error::Error for BodyError<E> {}
