//! What a request fetches for others too: the whole, or what comes while it comes.

use crate::{
    fill::Fill,
    store::Copied,
    stream::{Cut, Reader, Source, Stream},
};
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use larder_semantics::{Entry, Filling, Refusal};
use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, ready},
};

/// What those get who wait for another request's fetch.
#[derive(Clone)]
pub(crate) enum Fetched {
    /// A response, the body of which is still coming.
    ///
    /// Only those who read it keep it: when they have all left, and with them its leader, there is nothing to share.
    Coming(Weak<dyn Shared>),
    /// A whole response.
    Whole(Filling),
    /// What was in the store after all: nothing was fetched.
    Found(Arc<Entry>, Copied),
}

/// A body that is read by others too, whatever it is made of.
pub(crate) trait Shared: Send + Sync {
    /// One more reader, and what it reads will be stored as, but for its body.
    fn attach(&self) -> Option<(Filling, Reader)>;

    fn poll_next(&self, reader: &mut Reader, context: &mut Context<'_>) -> Poll<Option<Result<Piece, Cut<()>>>>;

    /// Whether there is nothing more for a reader.
    fn is_over(&self, reader: &Reader) -> bool;

    fn size_hint(&self, reader: &Reader) -> SizeHint;

    fn leave(&self, reader: &mut Reader);
}

/// A reader of what another request fetches.
pub(crate) struct Following {
    stream: Arc<dyn Shared>,
    reader: Reader,
}

impl Following {
    /// Begins to read from the first piece on, and tells what will be stored, but for its body.
    pub(crate) fn attach(stream: &Weak<dyn Shared>) -> Option<(Filling, Self)> {
        let stream = stream.upgrade()?;
        let (filling, reader) = stream.attach()?;
        Some((filling, Self { stream, reader }))
    }

    /// The next piece; the inner `None` when it breaks off.
    pub(crate) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Option<Piece>>> {
        self.stream.poll_next(&mut self.reader, context).map(|next| next.map(Result::ok))
    }

    pub(crate) fn is_over(&self) -> bool {
        self.stream.is_over(&self.reader)
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.stream.size_hint(&self.reader)
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.stream.leave(&mut self.reader);
    }
}

/// A part of a body.
#[derive(Debug, Clone)]
pub(crate) enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    /// Of a kind that nobody knows.
    Other,
}

impl Piece {
    /// The frame it came in.
    pub(crate) fn into_frame(self) -> Option<Frame<Bytes>> {
        match self {
            Self::Data(data) => Some(Frame::data(data)),
            Self::Trailers(trailers) => Some(Frame::trailers(trailers)),
            Self::Other => None,
        }
    }
}

/// A body of which a copy is kept, as long as it may be stored.
pub(crate) struct Reading<B> {
    body: Pin<Box<B>>,
    /// `None` once the copy is complete, or given up.
    fill: Option<Box<Fill>>,
}

impl<B: Body<Data = Bytes>> Reading<B> {
    pub(crate) fn new(body: B, fill: Box<Fill>) -> Self {
        Self { body: Box::pin(body), fill: Some(fill) }
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    /// Gives what comes to those who wait for it.
    pub(crate) fn share(&self, coming: Fetched) {
        if let Some(fill) = &self.fill {
            fill.share(coming);
        }
    }
}

impl<B: Body<Data = Bytes>> Source for Reading<B> {
    type Piece = Piece;
    type Error = B::Error;

    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Piece, B::Error>>> {
        let polled = ready!(self.body.as_mut().poll_frame(context));
        let piece = polled.map(|frame| {
            let piece = frame?
                .into_data()
                .map_or_else(|frame| frame.into_trailers().map_or(Piece::Other, Piece::Trailers), Piece::Data);
            Ok(piece)
        });
        let Some(fill) = self.fill.take() else { return Poll::Ready(piece) };
        match &piece {
            None => self.fill = Some(fill),
            Some(Ok(Piece::Data(data))) => self.fill = fill.take_note(data.len()),
            Some(Ok(Piece::Trailers(_) | Piece::Other)) => fill.refuse(Refusal::Trailers),
            Some(Err(_)) => fill.refuse(Refusal::Aborted),
        }
        Poll::Ready(piece)
    }

    fn is_at_end(&self) -> bool {
        self.body.is_end_stream()
    }

    fn length(piece: &Piece) -> usize {
        match piece {
            Piece::Data(data) => data.len(),
            Piece::Trailers(_) | Piece::Other => 0,
        }
    }

    fn is_kept(&self) -> bool {
        self.fill.is_some()
    }

    fn end(&mut self, pieces: &VecDeque<Piece>) {
        if let Some(fill) = self.fill.take() {
            fill.complete(pieces.iter().filter_map(|piece| match piece {
                Piece::Data(data) => Some(data),
                Piece::Trailers(_) | Piece::Other => None,
            }));
        }
    }
}

impl<B: Body<Data = Bytes> + Send + 'static> Shared for Stream<Reading<B>> {
    fn attach(&self) -> Option<(Filling, Reader)> {
        self.attach(|reading| reading.fill.as_ref()?.preview())
    }

    fn poll_next(&self, reader: &mut Reader, context: &mut Context<'_>) -> Poll<Option<Result<Piece, Cut<()>>>> {
        self.poll_next(reader, context).map(|next| {
            next.map(|piece| {
                piece.map_err(|cut| match cut {
                    Cut::Broken(_) => Cut::Broken(None),
                    Cut::Behind => Cut::Behind,
                })
            })
        })
    }

    fn is_over(&self, reader: &Reader) -> bool {
        self.ahead(reader).0
    }

    fn size_hint(&self, reader: &Reader) -> SizeHint {
        size_hint(self, reader)
    }

    fn leave(&self, reader: &mut Reader) {
        self.leave(reader);
    }
}

/// What is left of a body for a reader: what has come and it has not read, and what is to come.
pub(crate) fn size_hint<B: Body<Data = Bytes>>(stream: &Stream<Reading<B>>, reader: &Reader) -> SizeHint {
    let unread = stream.ahead(reader).1 as u64;
    let to_come = stream.source(Reading::size_hint).unwrap_or_default();
    let mut hint = SizeHint::new();
    hint.set_lower(to_come.lower().saturating_add(unread));
    if let Some(upper) = to_come.upper() {
        hint.set_upper(upper.saturating_add(unread));
    }
    hint
}

impl fmt::Debug for Fetched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coming(_) => f.write_str("Coming"),
            Self::Whole(filling) => f.debug_tuple("Whole").field(filling).finish(),
            Self::Found(entry, copied) => f.debug_tuple("Found").field(entry).field(copied).finish(),
        }
    }
}
