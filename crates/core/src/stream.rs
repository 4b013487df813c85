//! A body that several clients read while it comes: whoever wants more of it than has come has it read on.
//!
//! Knows neither HTTP nor stores. As long as the source is kept whole, all of it stays here, and a reader may begin at
//! any time; after that only what the slowest reader still needs, and no more than a window of that. The first reader is
//! never cut off: the others wait for it, and are cut off when they fall behind.

use crate::{
    sync::{Mutex, MutexGuard},
    wakers::{Place, Wakers},
};
use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError},
    task::{Context, Poll, Waker},
};

/// What is read, piece by piece.
pub(crate) trait Source {
    type Piece: Clone;
    type Error;

    /// The next piece; `None` after the last.
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Self::Piece, Self::Error>>>;

    /// Whether the last piece has been read, as far as can be told without reading on.
    fn is_at_end(&self) -> bool;

    /// The length of a piece, in bytes.
    fn length(piece: &Self::Piece) -> usize;

    /// Whether all pieces are to be kept: until the end, or until this says otherwise.
    fn is_kept(&self) -> bool;

    /// Takes all pieces, if they were kept to the end.
    fn end(&mut self, pieces: &VecDeque<Self::Piece>);
}

/// How many bytes of what is not kept whole wait for slow readers.
pub(crate) const WINDOW: usize = 256 << 10;

pub(crate) struct Stream<S: Source> {
    inner: Mutex<Inner<S>>,
    readers: Arc<Wakers>,
}

struct Inner<S: Source> {
    /// Taken out while it is asked: one that panics is gone, and never asked again.
    source: Option<S>,
    pieces: VecDeque<S::Piece>,
    /// Which piece the first of `pieces` is.
    first: usize,
    /// How many bytes they are.
    held: usize,
    end: Option<End>,
    /// How far each reader is, the leader first; `None` for one that has left.
    at: Vec<Option<usize>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Whole,
    Broken,
}

/// One who reads.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    number: usize,
    place: Place,
}

/// Why a reader gets no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut<E> {
    /// The source failed, with the error for whoever had it read on.
    Broken(Option<E>),
    /// The reader fell behind.
    Behind,
}

/// What a reader gets next; nothing after the end.
pub(crate) type Next<S> = Option<Result<<S as Source>::Piece, Cut<<S as Source>::Error>>>;

/// Rings when it is dropped, after the lock: whatever happened, those who wait look again.
struct Bell<'a> {
    readers: &'a Wakers,
    rings: bool,
}

impl Drop for Bell<'_> {
    fn drop(&mut self) {
        if self.rings {
            self.readers.wake_all();
        }
    }
}

impl<S: Source> Stream<S> {
    /// A stream, and its leader.
    pub(crate) fn new(source: S) -> (Self, Reader) {
        let (pieces, at) = (VecDeque::new(), vec![Some(0)]);
        let inner = Inner { source: Some(source), pieces, first: 0, held: 0, end: None, at };
        (Self { inner: Mutex::new(inner), readers: Arc::default() }, Reader { number: 0, place: Place::default() })
    }

    /// One more reader, from the first piece on, with what `look` finds in the source; `None` when the beginning is gone,
    /// or there will be no end.
    pub(crate) fn attach<T>(&self, look: impl FnOnce(&S) -> Option<T>) -> Option<(T, Reader)> {
        let mut inner = self.inner();
        let found = look(inner.source.as_ref()?)?;
        if inner.first > 0 || inner.end == Some(End::Broken) {
            return None;
        }
        inner.at.push(Some(0));
        Some((found, Reader { number: inner.at.len() - 1, place: Place::default() }))
    }

    /// The next piece for `reader`.
    pub(crate) fn poll_next(&self, reader: &mut Reader, context: &mut Context<'_>) -> Poll<Next<S>> {
        // Before looking, so that what comes after the look wakes this reader.
        self.readers.register(&mut reader.place, context.waker());
        let mut bell = Bell { readers: &self.readers, rings: false };
        let mut inner = self.inner();
        let next = loop {
            if let Some(next) = inner.next(reader.number) {
                // The leader has made room.
                bell.rings |= reader.number == 0 && !inner.is_kept();
                break next;
            }
            if inner.waits_for_the_leader() && reader.number != 0 {
                return Poll::Pending;
            }
            let Some(mut source) = inner.source.take() else {
                inner.end = Some(End::Broken);
                continue;
            };
            bell.rings = true;
            match source.poll_piece(&mut Context::from_waker(&Waker::from(self.readers.clone()))) {
                Poll::Pending => {
                    bell.rings = false;
                    inner.source = Some(source);
                    return Poll::Pending;
                }
                Poll::Ready(Some(Err(error))) => {
                    inner.end = Some(End::Broken);
                    break Some(Err(Cut::Broken(Some(error))));
                }
                Poll::Ready(Some(Ok(piece))) => inner.take_note(source, Some(piece)),
                Poll::Ready(None) => inner.take_note(source, None),
            }
        };
        self.readers.leave(&mut reader.place);
        Poll::Ready(next)
    }

    /// Whether there is nothing more for `reader`, and how many bytes have come that it has not read.
    pub(crate) fn ahead(&self, reader: &Reader) -> (bool, usize) {
        let inner = self.inner();
        let at = inner.at[reader.number].unwrap_or(usize::MAX);
        let unread = inner.pieces.iter().skip(at.saturating_sub(inner.first));
        let length = unread.map(S::length).sum();
        let is_all = inner.end.is_some() || inner.source.as_ref().is_none_or(S::is_at_end);
        (is_all && at >= inner.first + inner.pieces.len(), length)
    }

    /// What `look` finds in the source, as long as there is one.
    pub(crate) fn source<T>(&self, look: impl FnOnce(&S) -> T) -> Option<T> {
        self.inner().source.as_ref().map(look)
    }

    /// Lets a reader go, and with it what only it still needed.
    pub(crate) fn leave(&self, reader: &mut Reader) {
        self.readers.leave(&mut reader.place);
        let _bell = Bell { readers: &self.readers, rings: true };
        let mut inner = self.inner();
        inner.at[reader.number] = None;
        inner.forget();
    }

    fn inner(&self) -> MutexGuard<'_, Inner<S>> {
        // What a panic in a source leaves behind is looked for where the source is asked.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Source> Inner<S> {
    /// What is there for a reader, if it need not wait.
    fn next(&mut self, number: usize) -> Option<Next<S>> {
        let at = self.at[number]?;
        let Some(at_piece) = at.checked_sub(self.first) else { return Some(Some(Err(Cut::Behind))) };
        if let Some(piece) = self.pieces.get(at_piece).cloned() {
            self.at[number] = Some(at + 1);
            self.forget();
            return Some(Some(Ok(piece)));
        }
        Some(match self.end? {
            End::Whole => None,
            End::Broken => Some(Err(Cut::Broken(None))),
        })
    }

    fn is_kept(&self) -> bool {
        self.source.as_ref().is_some_and(S::is_kept)
    }

    /// Whether as much waits for the leader as may.
    fn waits_for_the_leader(&self) -> bool {
        !self.is_kept() && self.held >= WINDOW && self.at[0].is_some_and(|at| at <= self.first)
    }

    /// Takes note of the next piece, or of the end.
    fn take_note(&mut self, mut source: S, piece: Option<S::Piece>) {
        // Whoever reads by length never asks again after the last byte.
        if piece.is_none() || source.is_at_end() {
            self.end = Some(End::Whole);
        }
        if let Some(piece) = piece {
            self.held += S::length(&piece);
            self.pieces.push_back(piece);
        }
        if self.end.is_some() && source.is_kept() {
            source.end(&self.pieces);
        }
        self.source = Some(source);
        self.forget();
    }

    /// Drops the pieces that nobody needs, and those that only readers need who have fallen too far behind.
    fn forget(&mut self) {
        if self.is_kept() {
            return;
        }
        // Once all is here, it is no more than was to be kept, or than the window.
        let window = if self.end.is_some() { usize::MAX } else { WINDOW };
        let come = self.first + self.pieces.len();
        let slowest = self.at.iter().flatten().min().copied().unwrap_or(come);
        while let Some(piece) = self.pieces.front() {
            let (is_needed, is_the_leaders) = (slowest <= self.first, self.at[0].is_some_and(|at| at <= self.first));
            if is_needed && (is_the_leaders || self.held <= window) {
                return;
            }
            self.held -= S::length(piece);
            self.pieces.pop_front();
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        future::poll_fn,
        panic::{AssertUnwindSafe, catch_unwind},
    };

    /// Numbers up to an end, of a kilobyte each; it waits once before each of them.
    struct Numbers {
        next: u32,
        last: u32,
        kept_to: u32,
        waits: bool,
        fails: bool,
        panics: bool,
        ended_with: Arc<Mutex<Option<usize>>>,
    }

    impl Numbers {
        fn up_to(last: u32) -> Self {
            let (next, kept_to, ended_with) = (0, u32::MAX, Arc::default());
            Self { next, last, kept_to, waits: true, fails: false, panics: false, ended_with }
        }
    }

    impl Source for Numbers {
        type Piece = u32;
        type Error = &'static str;

        fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<u32, &'static str>>> {
            if std::mem::replace(&mut self.waits, false) {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.waits = true;
            self.next += 1;
            Poll::Ready(match self.next.cmp(&(self.last + 1)) {
                std::cmp::Ordering::Less => Some(Ok(self.next)),
                _ if self.panics => panic!("the body panics"),
                _ if self.fails => Some(Err("broken")),
                _ => None,
            })
        }

        fn is_at_end(&self) -> bool {
            false
        }

        fn length(_: &u32) -> usize {
            1024
        }

        fn is_kept(&self) -> bool {
            self.next <= self.kept_to && self.ended_with.lock().expect("a lock").is_none()
        }

        fn end(&mut self, pieces: &VecDeque<u32>) {
            *self.ended_with.lock().expect("a lock") = Some(pieces.len());
        }
    }

    async fn next(stream: &Stream<Numbers>, reader: &mut Reader) -> Option<Result<u32, Cut<&'static str>>> {
        poll_fn(|context| stream.poll_next(reader, context)).await
    }

    async fn rest(stream: &Stream<Numbers>, reader: &mut Reader) -> Vec<u32> {
        let mut all = Vec::new();
        while let Some(piece) = next(stream, reader).await {
            all.push(piece.expect("a piece"));
        }
        all
    }

    fn attached(stream: &Stream<Numbers>) -> Option<Reader> {
        stream.attach(|_| Some(())).map(|((), reader)| reader)
    }

    #[tokio::test]
    async fn all_get_all_of_it_whoever_reads_first() {
        let numbers = Numbers::up_to(5);
        let ended_with = numbers.ended_with.clone();
        let (stream, mut leader) = Stream::new(numbers);
        let mut early = attached(&stream).expect("a reader");
        assert_eq!(next(&stream, &mut early).await, Some(Ok(1)), "the leader has not read anything");
        assert_eq!(next(&stream, &mut early).await, Some(Ok(2)));
        let mut late = attached(&stream).expect("a reader");
        let (one, two, three) =
            tokio::join!(rest(&stream, &mut leader), rest(&stream, &mut early), rest(&stream, &mut late));
        assert_eq!((one, two, three), (vec![1, 2, 3, 4, 5], vec![3, 4, 5], vec![1, 2, 3, 4, 5]));
        assert_eq!(*ended_with.lock().expect("a lock"), Some(5));
        assert!(attached(&stream).is_none(), "its pieces are gone");
        assert_eq!(stream.ahead(&late), (true, 0));
    }

    #[tokio::test]
    async fn what_is_not_kept_cuts_off_who_falls_behind_but_never_the_leader() {
        let (stream, mut leader) = Stream::new(Numbers { kept_to: 2, ..Numbers::up_to(1000) });
        let (mut quick, mut slow) = (attached(&stream).expect("a reader"), attached(&stream).expect("a reader"));
        assert_eq!(next(&stream, &mut slow).await, Some(Ok(1)));
        let mut read = 0;
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..2000 {
            read += usize::from(stream.poll_next(&mut quick, &mut context).is_ready());
        }
        assert_eq!(read, WINDOW / 1024, "then it waits for the leader");
        let (led, quickly) = tokio::join!(rest(&stream, &mut leader), rest(&stream, &mut quick));
        assert_eq!((led.len(), quickly.len()), (1000, 1000 - read));
        assert_eq!(next(&stream, &mut slow).await, Some(Err(Cut::Behind)));
    }

    #[tokio::test]
    async fn what_has_come_whole_waits_for_the_slowest() {
        let (stream, mut leader) = Stream::new(Numbers::up_to(1000));
        let mut slow = attached(&stream).expect("a reader");
        assert_eq!(rest(&stream, &mut leader).await.len(), 1000);
        assert_eq!(rest(&stream, &mut slow).await.len(), 1000);
    }

    #[tokio::test]
    async fn an_error_is_for_who_meets_it_and_a_break_for_the_others() {
        let (stream, mut leader) = Stream::new(Numbers { fails: true, ..Numbers::up_to(1) });
        let mut follower = attached(&stream).expect("a reader");
        assert_eq!(next(&stream, &mut follower).await, Some(Ok(1)));
        assert_eq!(next(&stream, &mut follower).await, Some(Err(Cut::Broken(Some("broken")))));
        assert_eq!(next(&stream, &mut leader).await, Some(Ok(1)));
        assert_eq!(next(&stream, &mut leader).await, Some(Err(Cut::Broken(None))));
        assert!(attached(&stream).is_none());
    }

    #[tokio::test]
    async fn a_source_that_panics_is_never_asked_again() {
        let (stream, mut leader) = Stream::new(Numbers { panics: true, waits: false, ..Numbers::up_to(0) });
        let mut follower = attached(&stream).expect("a reader");
        let mut context = Context::from_waker(Waker::noop());
        let caught = catch_unwind(AssertUnwindSafe(|| stream.poll_next(&mut leader, &mut context)));
        assert!(caught.is_err());
        assert_eq!(next(&stream, &mut follower).await, Some(Err(Cut::Broken(None))));
    }

    #[tokio::test]
    async fn who_leaves_is_waited_for_no_longer() {
        let (stream, mut leader) = Stream::new(Numbers { kept_to: 0, ..Numbers::up_to(1000) });
        let mut follower = attached(&stream).expect("a reader");
        stream.leave(&mut leader);
        assert_eq!(rest(&stream, &mut follower).await.len(), 1000);
    }
}
