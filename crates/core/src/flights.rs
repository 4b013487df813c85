//! One fetch for many requests: the first of them leads, the others wait for what it brings.
//!
//! Knows neither HTTP nor stores. Whatever happens to a leader, its followers are told: it brings something, it lets
//! them go, or it is dropped, and then one of them takes its place.

use crate::{
    sync::{Mutex, MutexGuard},
    wakers::{Place, Wakers},
};
use std::{
    collections::HashMap,
    future::Future,
    hash::{BuildHasher, Hash, RandomState},
    pin::Pin,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

/// The fetches in progress, by resource and by what of the resource is fetched.
#[derive(Debug)]
pub(crate) struct Flights<R, P, T> {
    shards: Vec<Mutex<Shard<R, P, T>>>,
    hasher: RandomState,
}

type Shard<R, P, T> = HashMap<R, Vec<(P, Arc<Flight<T>>)>>;

#[derive(Debug)]
struct Flight<T> {
    /// Since when what it brings may have been fetched.
    since: Instant,
    course: Mutex<Course<T>>,
    followers: Wakers,
    /// How often its leader has begun anew.
    begun: AtomicU32,
}

#[derive(Debug)]
struct Course<T> {
    state: State<T>,
    /// The flight of whoever took over from this one's leader. What this one comes to is for its followers too.
    successor: Option<Arc<Flight<T>>>,
}

#[derive(Debug, Clone)]
enum State<T> {
    Aloft,
    /// The last that was brought.
    Brought(T),
    Released(Release),
}

/// What followers are to do when their leader brings nothing for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Release {
    /// Each goes on its own: whatever the leader got cannot be shared.
    GoAlone,
    /// Look again; one of them leads.
    Compete,
}

/// A request's part in a flight.
#[derive(Debug)]
pub(crate) enum Joined<R: Eq + Hash + Clone, P: PartialEq + Clone, T: Clone> {
    Lead(Lead<R, P, T>),
    Follow(Follow<T>),
    /// The leader has brought something already.
    Brought(T),
}

impl<T: Clone> Flight<T> {
    fn since(since: Instant) -> Self {
        let course = Course { state: State::Aloft, successor: None };
        Self { since, course: Mutex::new(course), followers: Wakers::default(), begun: AtomicU32::new(0) }
    }

    fn course(&self) -> MutexGuard<'_, Course<T>> {
        // A course is never half changed.
        self.course.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and tells those who wait.
    fn turn(&self, state: State<T>) {
        self.course().state = state;
        self.followers.wake_all();
    }

    /// What a flight has brought that has taken its place.
    fn brought_in_its_place(&self) -> Option<T> {
        let mut next = self.course().successor.clone();
        while let Some(flight) = next {
            let course = flight.course();
            if let State::Brought(brought) = &course.state {
                return Some(brought.clone());
            }
            let after = course.successor.clone();
            drop(course);
            next = after;
        }
        None
    }

    /// The same as [`turn`](Self::turn), and of the flights that have taken its place, as far as they have come to nothing yet.
    fn turn_all(&self, state: &State<T>) {
        self.turn(state.clone());
        let mut next = self.course().successor.clone();
        while let Some(flight) = next {
            let mut course = flight.course();
            let is_aloft = matches!(course.state, State::Aloft);
            if is_aloft {
                course.state = state.clone();
            }
            next = course.successor.clone();
            drop(course);
            if is_aloft {
                flight.followers.wake_all();
            }
        }
    }
}

impl<R: Eq + Hash + Clone, P: PartialEq + Clone, T: Clone> Flights<R, P, T> {
    pub(crate) fn new() -> Self {
        let shards = std::iter::repeat_with(|| Mutex::new(HashMap::new())).take(64).collect();
        Self { shards, hasher: RandomState::new() }
    }

    /// Leads the flight for `part` of `resource`, or follows the one that is in the air.
    pub(crate) fn join(self: &Arc<Self>, resource: &R, part: &P) -> Joined<R, P, T> {
        let mut shard = self.shard(resource);
        let flights = shard.entry(resource.clone()).or_default();
        if let Some((_, flight)) = flights.iter().find(|(known, _)| known == part) {
            let brought = match &flight.course().state {
                State::Brought(brought) => Some(brought.clone()),
                State::Aloft | State::Released(_) => None,
            };
            let follow = || Joined::Follow(Follow { flight: flight.clone(), place: Place::default() });
            return brought.map_or_else(follow, Joined::Brought);
        }
        let flight = Arc::new(Flight::since(Instant::now()));
        flights.push((part.clone(), flight.clone()));
        drop(shard);
        Joined::Lead(Lead { flights: self.clone(), resource: resource.clone(), flight })
    }

    /// Joins anew after having followed in vain a leader that had begun so often: who does so first leads a flight in place of
    /// the one it followed, which may still bring something to those who follow either.
    pub(crate) fn take_over(
        self: &Arc<Self>,
        resource: &R,
        part: &P,
        in_vain: &Follow<T>,
        begun: u32,
    ) -> Joined<R, P, T> {
        let mut shard = self.shard(resource);
        let flights = shard.get_mut(resource).into_iter().flatten();
        // One that was detached is no longer there: whoever joins now came after a purge, and is not to have what it brings.
        if let Some((_, flight)) = flights.into_iter().find(|(_, flight)| Arc::ptr_eq(flight, &in_vain.flight)) {
            let mut course = in_vain.flight.course();
            if let State::Brought(brought) = &course.state {
                return Joined::Brought(brought.clone());
            }
            // It has begun anew in the meantime.
            if in_vain.begun() != begun {
                return Joined::Follow(Follow { flight: flight.clone(), place: Place::default() });
            }
            // What the other still brings is for those who follow this one.
            *flight = Arc::new(Flight::since(in_vain.flight.since));
            course.successor = Some(flight.clone());
            return Joined::Lead(Lead { flights: self.clone(), resource: resource.clone(), flight: flight.clone() });
        }
        drop(shard);
        // Who comes late finds what another has brought who took over in time.
        in_vain.flight.brought_in_its_place().map_or_else(|| self.join(resource, part), Joined::Brought)
    }

    /// Takes every flight of `resource` off the map: nobody who comes now joins one of them.
    pub(crate) fn detach(&self, resource: &R) {
        self.shard(resource).remove(resource);
    }

    /// Takes those off the map that may bring what was fetched before `since`.
    pub(crate) fn detach_older(&self, resource: &R, since: Instant) {
        let mut shard = self.shard(resource);
        if let Some(flights) = shard.get_mut(resource) {
            flights.retain(|(_, flight)| flight.since >= since);
        }
    }

    /// Takes every flight off the map.
    pub(crate) fn detach_all(&self) {
        self.shards.iter().for_each(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).clear());
    }

    fn shard(&self, resource: &R) -> MutexGuard<'_, Shard<R, P, T>> {
        let at = usize::try_from(self.hasher.hash_one(resource)).unwrap_or_default() % self.shards.len();
        // Nothing in a shard is ever half done, so a panic elsewhere does not make it wrong.
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one request that fetches. Dropping it takes the flight off the map, and lets the followers compete unless they
/// were told something better.
#[derive(Debug)]
pub(crate) struct Lead<R: Eq + Hash + Clone, P: PartialEq + Clone, T: Clone> {
    flights: Arc<Flights<R, P, T>>,
    resource: R,
    flight: Arc<Flight<T>>,
}

impl<R: Eq + Hash + Clone, P: PartialEq + Clone, T: Clone> Lead<R, P, T> {
    /// Gives the followers what was fetched, and those who come until this is dropped, or something else is brought.
    pub(crate) fn bring(&self, brought: T) {
        self.flight.turn(State::Brought(brought));
    }

    /// The same for good: also to those who by now follow whoever took over.
    pub(crate) fn land(&self, brought: T) {
        self.flight.turn_all(&State::Brought(brought));
    }

    /// Begins anew: whoever follows may wait as long again. Not if one of them has taken over: then this one follows that one.
    pub(crate) fn begin_anew(&self) -> Result<(), Follow<T>> {
        let course = self.flight.course();
        match &course.successor {
            Some(flight) => Err(Follow { flight: flight.clone(), place: Place::default() }),
            None => {
                self.flight.begun.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// Lets the followers go with nothing.
    pub(crate) fn release(self, release: Release) {
        match release {
            Release::GoAlone => self.flight.turn_all(&State::Released(release)),
            // Whoever took over may yet bring something.
            Release::Compete => self.flight.turn(State::Released(release)),
        }
    }
}

impl<R: Eq + Hash + Clone, P: PartialEq + Clone, T: Clone> Drop for Lead<R, P, T> {
    fn drop(&mut self) {
        let mut shard = self.flights.shard(&self.resource);
        if let Some(flights) = shard.get_mut(&self.resource) {
            flights.retain(|(_, flight)| !Arc::ptr_eq(flight, &self.flight));
            if flights.is_empty() {
                shard.remove(&self.resource);
            }
        }
        drop(shard);
        if matches!(self.flight.course().state, State::Aloft) {
            self.flight.turn(State::Released(Release::Compete));
        }
    }
}

/// A request that waits for what its leader brings. Dropping it leaves nothing behind.
#[derive(Debug)]
pub(crate) struct Follow<T: Clone> {
    flight: Arc<Flight<T>>,
    place: Place,
}

/// What a follower waited for.
#[derive(Debug)]
pub(crate) enum Waited<T> {
    Brought(T),
    Released(Release),
}

impl<T: Clone> Follow<T> {
    /// What the leader has brought last, if anything.
    pub(crate) fn brought(&self) -> Option<T> {
        if let State::Brought(brought) = &self.flight.course().state { Some(brought.clone()) } else { None }
    }

    /// How often the leader has begun anew.
    pub(crate) fn begun(&self) -> u32 {
        self.flight.begun.load(Ordering::Relaxed)
    }
}

impl<T: Clone> Future for Follow<T> {
    type Output = Waited<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Waited<T>> {
        let Self { flight, place } = &mut *self;
        flight.followers.register(place, context.waker());
        let waited = match &flight.course().state {
            State::Aloft => return Poll::Pending,
            State::Brought(brought) => Waited::Brought(brought.clone()),
            State::Released(release) => Waited::Released(*release),
        };
        Poll::Ready(waited)
    }
}

impl<T: Clone> Drop for Follow<T> {
    fn drop(&mut self) {
        self.flight.followers.leave(&mut self.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Test = Flights<&'static str, u8, u32>;

    fn lead(flights: &Arc<Test>) -> Lead<&'static str, u8, u32> {
        let Joined::Lead(lead) = flights.join(&"a", &0) else { panic!("nobody else leads") };
        lead
    }

    fn follow(flights: &Arc<Test>) -> Follow<u32> {
        let Joined::Follow(follow) = flights.join(&"a", &0) else { panic!("somebody leads") };
        follow
    }

    #[tokio::test]
    async fn followers_get_what_the_leader_brings_and_so_do_those_who_come_while_it_is_stored() {
        let flights = Arc::new(Test::new());
        let leader = lead(&flights);
        let waiting = tokio::spawn(follow(&flights));
        assert!(matches!(flights.join(&"a", &1), Joined::Lead(_)), "another part is another flight");
        tokio::task::yield_now().await;
        leader.bring(7);
        assert!(matches!(waiting.await, Ok(Waited::Brought(7))));
        assert!(matches!(flights.join(&"a", &0), Joined::Brought(7)));
        leader.bring(8);
        assert!(matches!(flights.join(&"a", &0), Joined::Brought(8)));
        drop(leader);
        drop(lead(&flights));
        assert!(flights.shards.iter().all(|shard| shard.lock().expect("a shard").is_empty()), "nothing stays behind");
    }

    #[tokio::test]
    async fn a_leader_that_is_dropped_lets_them_compete() {
        let flights = Arc::new(Test::new());
        let leader = lead(&flights);
        let waiting = follow(&flights);
        drop(leader);
        assert!(matches!(waiting.await, Waited::Released(Release::Compete)));
        let leader = lead(&flights);
        let waiting = follow(&flights);
        leader.release(Release::GoAlone);
        assert!(matches!(waiting.await, Waited::Released(Release::GoAlone)));
    }

    #[tokio::test]
    async fn who_was_taken_over_from_does_not_begin_anew() {
        let flights = Arc::new(Test::new());
        let (first, in_vain) = (lead(&flights), follow(&flights));
        assert!(first.begin_anew().is_ok(), "nobody has taken over yet");
        assert!(matches!(flights.take_over(&"a", &0, &in_vain, 0), Joined::Follow(_)), "it has only just begun");
        let Joined::Lead(second) = flights.take_over(&"a", &0, &in_vain, 1) else { panic!("nobody else leads") };
        let Err(follows) = first.begin_anew() else { panic!("one of them goes, and not both") };
        assert!(second.begin_anew().is_ok());
        second.land(2);
        drop(second);
        assert!(matches!(follows.await, Waited::Brought(2)));
    }

    #[tokio::test]
    async fn what_is_brought_late_is_for_those_too_who_follow_whoever_took_over() {
        let flights = Arc::new(Test::new());
        let (first, in_vain) = (lead(&flights), follow(&flights));
        let Joined::Lead(second) = flights.take_over(&"a", &0, &in_vain, 0) else {
            panic!("the first to take over leads")
        };
        let (in_vain, waiting) = (follow(&flights), follow(&flights));
        let Joined::Lead(third) = flights.take_over(&"a", &0, &in_vain, 0) else {
            panic!("the first to take over leads")
        };
        let last = follow(&flights);
        first.land(1);
        drop(first);
        assert!(matches!((waiting.await, last.await), (Waited::Brought(1), Waited::Brought(1))));
        third.bring(3);
        second.land(2);
        drop(second);
        assert!(matches!(flights.join(&"a", &0), Joined::Brought(3)), "what is newer stays");
    }

    #[tokio::test]
    async fn who_takes_over_too_late_has_what_another_brought_who_did() {
        let flights = Arc::new(Test::new());
        let (_hangs, in_vain, late) = (lead(&flights), follow(&flights), follow(&flights));
        let Joined::Lead(second) = flights.take_over(&"a", &0, &in_vain, 0) else { panic!("the first leads") };
        second.land(2);
        drop(second);
        assert!(matches!(flights.take_over(&"a", &0, &late, 0), Joined::Brought(2)));
        drop(lead(&flights));
    }

    #[tokio::test]
    async fn what_is_brought_late_is_not_for_those_who_came_after_a_purge() {
        let flights = Arc::new(Test::new());
        let (first, in_vain) = (lead(&flights), follow(&flights));
        flights.detach(&"a");
        let Joined::Lead(_second) = flights.take_over(&"a", &0, &in_vain, 0) else { panic!("nobody else leads") };
        let mut waiting = follow(&flights);
        first.land(1);
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut waiting).poll(&mut context).is_pending());
    }

    #[tokio::test]
    async fn nobody_joins_what_may_bring_something_older_whoever_took_over() {
        let flights = Arc::new(Test::new());
        let (first, in_vain) = (lead(&flights), follow(&flights));
        let later = Instant::now() + std::time::Duration::from_nanos(1);
        let Joined::Lead(_second) = flights.take_over(&"a", &0, &in_vain, 0) else {
            panic!("the first to take over leads")
        };
        flights.detach_older(&"a", first.flight.since);
        drop(follow(&flights));
        flights.detach_older(&"a", later);
        drop(lead(&flights));
    }

    #[tokio::test]
    async fn nobody_joins_a_detached_flight_and_it_does_not_take_its_successor_with_it() {
        let flights = Arc::new(Test::new());
        let old = lead(&flights);
        let waiting = follow(&flights);
        flights.detach(&"a");
        let new = lead(&flights);
        old.bring(1);
        drop(old);
        assert!(matches!(waiting.await, Waited::Brought(1)), "who came before the purge may have it");
        let waiting = follow(&flights);
        new.bring(2);
        assert!(matches!(waiting.await, Waited::Brought(2)));
    }
}
