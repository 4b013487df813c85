//! One fetch for many requests: the first of them leads, the others wait for what it brings.
//!
//! Knows neither HTTP nor stores. Whatever happens to a leader, its followers are told: it lands, it lets them go, or
//! it is dropped, and then one of them takes its place.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

/// How long a follower waits for the rest of what has begun to come: an endless body must not hold it up.
pub(crate) const ARRIVAL: Duration = Duration::from_millis(250);

/// The fetches in progress, by resource and by what of the resource is fetched.
#[derive(Debug)]
pub(crate) struct Flights<R, P, T> {
    shards: Vec<Mutex<Shard<R, P, T>>>,
    hasher: RandomState,
}

type Shard<R, P, T> = HashMap<R, Vec<(P, Arc<watch::Sender<State<T>>>)>>;

#[derive(Debug, Clone)]
enum State<T> {
    Aloft,
    /// What comes has begun to come.
    Arriving,
    Landed(T),
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
    /// The leader has landed already, and what it brought is being stored.
    Landed(T),
}

impl<R: Eq + Hash + Clone, P: PartialEq + Clone, T: Clone> Flights<R, P, T> {
    pub(crate) fn new() -> Self {
        Self { shards: std::iter::repeat_with(Mutex::default).take(64).collect(), hasher: RandomState::new() }
    }

    /// Leads the flight for `part` of `resource`, or follows the one that is in the air.
    pub(crate) fn join(self: &Arc<Self>, resource: &R, part: &P) -> Joined<R, P, T> {
        let mut shard = self.shard(resource);
        let flights = shard.entry(resource.clone()).or_default();
        if let Some((_, state)) = flights.iter().find(|(known, _)| known == part) {
            let receiver = state.subscribe();
            let landed = match &*receiver.borrow() {
                State::Landed(brought) => Some(brought.clone()),
                State::Aloft | State::Arriving | State::Released(_) => None,
            };
            return landed.map_or(Joined::Follow(Follow { receiver }), Joined::Landed);
        }
        let state = Arc::new(watch::Sender::new(State::Aloft));
        flights.push((part.clone(), state.clone()));
        drop(shard);
        Joined::Lead(Lead { flights: self.clone(), resource: resource.clone(), state })
    }

    /// Takes every flight of `resource` off the map: nobody who comes now joins one of them.
    pub(crate) fn detach(&self, resource: &R) {
        self.shard(resource).remove(resource);
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
    state: Arc<watch::Sender<State<T>>>,
}

impl<R: Eq + Hash + Clone, P: PartialEq + Clone, T: Clone> Lead<R, P, T> {
    /// Tells the followers that what they wait for has begun to come: they wait [`ARRIVAL`] for the rest of it.
    pub(crate) fn arriving(&self) {
        self.state.send_replace(State::Arriving);
    }

    /// Gives the followers what was fetched, and those who come until this is dropped.
    pub(crate) fn land(&self, brought: T) {
        self.state.send_replace(State::Landed(brought));
    }

    /// Lets the followers go with nothing.
    pub(crate) fn release(self, release: Release) {
        self.state.send_replace(State::Released(release));
    }
}

impl<R: Eq + Hash + Clone, P: PartialEq + Clone, T: Clone> Drop for Lead<R, P, T> {
    fn drop(&mut self) {
        let mut shard = self.flights.shard(&self.resource);
        if let Some(flights) = shard.get_mut(&self.resource) {
            flights.retain(|(_, state)| !Arc::ptr_eq(state, &self.state));
            if flights.is_empty() {
                shard.remove(&self.resource);
            }
        }
        drop(shard);
        self.state.send_if_modified(|state| {
            let aloft = matches!(state, State::Aloft | State::Arriving);
            if aloft {
                *state = State::Released(Release::Compete);
            }
            aloft
        });
    }
}

/// A request that waits.
#[derive(Debug)]
pub(crate) struct Follow<T> {
    receiver: watch::Receiver<State<T>>,
}

/// What a follower waited for.
#[derive(Debug)]
pub(crate) enum Waited<T> {
    Landed(T),
    Released(Release),
    TimedOut,
}

impl<T: Clone> Follow<T> {
    /// Waits for the leader, `limit` at most. Dropping the wait leaves nothing behind.
    pub(crate) async fn wait(mut self, limit: Duration) -> Waited<T> {
        let deadline = Instant::now() + limit;
        let begun = self.receiver.wait_for(|state| !matches!(state, State::Aloft));
        let deadline = match timeout_at(deadline, begun).await {
            Err(_) => return Waited::TimedOut,
            Ok(Err(_)) => return Waited::Released(Release::Compete),
            Ok(Ok(_)) => deadline.min(Instant::now() + ARRIVAL),
        };
        let ended = self.receiver.wait_for(|state| matches!(state, State::Landed(_) | State::Released(_)));
        match timeout_at(deadline, ended).await {
            Err(_) => Waited::TimedOut,
            Ok(Err(_)) => Waited::Released(Release::Compete),
            Ok(Ok(state)) => match &*state {
                State::Landed(brought) => Waited::Landed(brought.clone()),
                State::Released(release) => Waited::Released(*release),
                State::Aloft | State::Arriving => Waited::Released(Release::Compete),
            },
        }
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

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn followers_get_what_the_leader_brings_and_so_do_those_who_come_while_it_is_stored() {
        let flights = Arc::new(Test::new());
        let leader = lead(&flights);
        let waiting = tokio::spawn(follow(&flights).wait(LIMIT));
        assert!(matches!(flights.join(&"a", &1), Joined::Lead(_)), "another part is another flight");
        leader.land(7);
        assert!(matches!(waiting.await, Ok(Waited::Landed(7))));
        assert!(matches!(flights.join(&"a", &0), Joined::Landed(7)));
        drop(leader);
        drop(lead(&flights));
        assert!(flights.shards.iter().all(|shard| shard.lock().expect("a shard").is_empty()), "nothing stays behind");
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_is_dropped_lets_them_compete() {
        let flights = Arc::new(Test::new());
        let leader = lead(&flights);
        let waiting = follow(&flights);
        drop(leader);
        assert!(matches!(waiting.wait(LIMIT).await, Waited::Released(Release::Compete)));
        let leader = lead(&flights);
        let waiting = follow(&flights);
        leader.release(Release::GoAlone);
        assert!(matches!(waiting.wait(LIMIT).await, Waited::Released(Release::GoAlone)));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_joins_a_detached_flight_and_it_does_not_take_its_successor_with_it() {
        let flights = Arc::new(Test::new());
        let old = lead(&flights);
        let waiting = follow(&flights);
        flights.detach(&"a");
        let new = lead(&flights);
        old.land(1);
        drop(old);
        assert!(matches!(waiting.wait(LIMIT).await, Waited::Landed(1)), "who came before the purge may have it");
        let waiting = follow(&flights);
        new.land(2);
        assert!(matches!(waiting.wait(LIMIT).await, Waited::Landed(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_begun_to_come_is_waited_for_a_moment_only() {
        let flights = Arc::new(Test::new());
        let leader = lead(&flights);
        let (early, began) = (tokio::spawn(follow(&flights).wait(LIMIT)), Instant::now());
        tokio::time::sleep(Duration::from_secs(1)).await;
        leader.arriving();
        assert!(matches!(early.await, Ok(Waited::TimedOut)));
        assert!(began.elapsed() <= Duration::from_secs(1) + 2 * ARRIVAL, "{:?}", began.elapsed());
        let late = tokio::spawn(follow(&flights).wait(LIMIT));
        tokio::task::yield_now().await;
        leader.land(3);
        assert!(matches!(late.await, Ok(Waited::Landed(3))));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_longer_than_the_limit() {
        let flights = Arc::new(Test::new());
        let _leader = lead(&flights);
        assert!(matches!(follow(&flights).wait(LIMIT).await, Waited::TimedOut));
    }
}
