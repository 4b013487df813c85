//! The concurrent core of the engine, as it stands in `crates/core`, under schedules that are drawn at random: every lock
//! is shuttle's, so that each of them is a place where another task may come first.
//!
//! A task that is never woken is a deadlock, which shuttle reports, with the schedule that led to it.

#[path = "../../../crates/core/src/flights.rs"]
#[allow(dead_code, reason = "the engine uses the rest")]
mod flights;
#[path = "../../../crates/core/src/stream.rs"]
#[allow(dead_code, reason = "the engine uses the rest")]
mod stream;
#[path = "../../../crates/core/src/wakers.rs"]
mod wakers;

mod sync {
    pub(crate) use shuttle::sync::{Mutex, MutexGuard};
}

use flights::{Flights, Joined, Release, Waited};
use shuttle::{
    future::{block_on, spawn, yield_now},
    rand::{Rng, thread_rng},
};
use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};
use stream::{Cut, Reader, Source, Stream};
use sync::Mutex;

/// Some who want the same: each leads or follows until it has it. Leaders bring, let go, or leave; followers may leave too.
pub fn one_leads_and_nobody_is_forgotten() {
    block_on(async {
        let flights = Arc::new(Flights::<u8, u8, u32>::new());
        let (leading, brought) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let tasks: Vec<_> = (0..4)
            .map(|number| {
                let (flights, leading, brought) = (flights.clone(), leading.clone(), brought.clone());
                spawn(async move {
                    if number == 3 && thread_rng().gen_bool(0.3) {
                        flights.detach(&1);
                    }
                    seek(&flights, &leading, &brought, number == 3).await;
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("a task");
        }
        assert!(brought.load(Ordering::SeqCst) >= 1, "somebody has fetched it");
        let Joined::Lead(_) = flights.join(&1, &1) else { panic!("a flight was left behind") };
    });
}

async fn seek(flights: &Arc<Flights<u8, u8, u32>>, leading: &AtomicUsize, brought: &AtomicUsize, detaches: bool) {
    for _ in 0..20 {
        match flights.join(&1, &1) {
            Joined::Brought(_) => return,
            Joined::Lead(lead) => {
                // A detached flight has a successor beside it.
                let others = leading.fetch_add(1, Ordering::SeqCst);
                assert!(others < 2 || detaches, "{others} others lead");
                yield_now().await;
                leading.fetch_sub(1, Ordering::SeqCst);
                match thread_rng().gen_range(0..4) {
                    0 => lead.release(Release::GoAlone),
                    1 => drop(lead),
                    _ => {
                        brought.fetch_add(1, Ordering::SeqCst);
                        lead.bring(7);
                        yield_now().await;
                        return;
                    }
                }
            }
            Joined::Follow(mut follow) => {
                if thread_rng().gen_bool(0.2) {
                    // It looks once, and goes away.
                    let looked = poll_fn(|context| {
                        Poll::Ready(Future::poll(std::pin::Pin::new(&mut follow), context).is_ready())
                    });
                    looked.await;
                    continue;
                }
                match follow.await {
                    Waited::Brought(what) => return assert_eq!(what, 7),
                    Waited::Released(_) => {}
                }
            }
        }
    }
    brought.fetch_add(1, Ordering::SeqCst);
}

/// Pieces that another task makes, and that wake whoever asked last.
#[derive(Clone)]
struct Made {
    made: Arc<Mutex<(u32, Option<Waker>)>>,
    read: u32,
    last: u32,
    kept_to: u32,
    ended: bool,
}

impl Made {
    fn make(&self) {
        let mut made = self.made.lock().expect("a lock");
        made.0 += 1;
        let waker = made.1.take();
        drop(made);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Source for Made {
    type Piece = u32;
    type Error = ();

    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<u32, ()>>> {
        let mut made = self.made.lock().expect("a lock");
        if self.read == self.last {
            return Poll::Ready(None);
        }
        if self.read == made.0 {
            made.1 = Some(context.waker().clone());
            return Poll::Pending;
        }
        self.read += 1;
        Poll::Ready(Some(Ok(self.read)))
    }

    fn is_at_end(&self) -> bool {
        false
    }

    fn length(_: &u32) -> usize {
        stream::WINDOW / 2
    }

    fn is_kept(&self) -> bool {
        !self.ended && self.read <= self.kept_to
    }

    fn end(&mut self, pieces: &VecDeque<u32>) {
        assert_eq!(pieces.len(), self.last as usize, "all of it was kept");
        self.ended = true;
    }
}

async fn next(stream: &Stream<Made>, reader: &mut Reader) -> Option<Result<u32, Cut<()>>> {
    poll_fn(|context| stream.poll_next(reader, context)).await
}

/// A leader and two who follow, at their own pace; one may leave at any time. Whoever stays gets every piece in order, or
/// is told that it fell behind, which nobody can while all is kept, and the leader never.
pub fn every_reader_gets_every_piece() {
    block_on(async {
        const LAST: u32 = 4;
        let kept_to = if thread_rng().gen_bool(0.5) { LAST } else { 1 };
        let made = Arc::new(Mutex::new((0, None)));
        let source = Made { made, read: 0, last: LAST, kept_to, ended: false };
        let maker = source.clone();
        let (stream, leader) = Stream::new(source);
        let stream = Arc::new(stream);
        let leaver = thread_rng().gen_range(0..6);
        let mut tasks = vec![spawn(async move {
            for _ in 0..LAST {
                maker.make();
                yield_now().await;
            }
        })];
        let followers = (0..2).filter_map(|_| stream.attach(|_| Some(()))).map(|((), reader)| reader);
        for (number, mut reader) in [leader].into_iter().chain(followers.collect::<Vec<_>>()).enumerate() {
            let stream = stream.clone();
            tasks.push(spawn(async move {
                let mut expected = 1;
                loop {
                    if number == leaver && expected == 3 {
                        return stream.leave(&mut reader);
                    }
                    match next(&stream, &mut reader).await {
                        Some(Ok(piece)) => assert_eq!(piece, expected),
                        Some(Err(cut)) => {
                            assert!(cut == Cut::Behind && number != 0 && kept_to < LAST, "{number}: {cut:?}");
                            return stream.leave(&mut reader);
                        }
                        None => {
                            assert_eq!(expected, LAST + 1);
                            return stream.leave(&mut reader);
                        }
                    }
                    expected += 1;
                }
            }));
        }
        for task in tasks {
            task.await.expect("a task");
        }
    });
}
