//! What the program itself knows: values by key, on the same store, tickets, tags and invalidations as responses.
//!
//! A value is stored as the response that would carry it, in a part of its resource from which no client is answered. So a
//! value is fetched once for all who wait, kept from being older than an invalidation, answered stale while it is fetched
//! anew, and found again in Redis, by what does the same for responses.

mod fetch;
mod format;

pub use format::Format;

use crate::{
    Cache, CacheLayer, Ttl,
    engine::Front,
    layer::Rules,
    observe::RouteMetrics,
    store::{Claim, Copied, Found, Purge, Receipt, Seen, StoreError, Unused},
    write::Concluded,
};
use fetch::{Absence, Finding, Quest, Whole, whole};
use http::{HeaderMap, Request, Response, StatusCode};
use larder_semantics::{
    Asked, Caching, Content, Entry, EntryId, EntryKey, Filling, Intake, Key, Part, Reason, Received, Selected,
    StoredResponse, freshness::Arrival, policy::Early,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fmt,
    future::{Future, poll_fn},
    marker::PhantomData,
    sync::{Arc, OnceLock},
    task::Poll,
    time::{Duration, SystemTime},
};
use tokio::time::Instant;

/// The lifetime of what is known to be absent, when nothing else is said.
const NEGATIVE: Duration = Duration::from_secs(15);
/// From what length on values are compressed, when nothing else is said.
const COMPRESSED_FROM: usize = 4096;

/// What is stored of one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known<T> {
    /// The value.
    Found(T),
    /// That there is none.
    Absent,
    /// Nothing: whether there is one is not known.
    Missing,
}

impl<T> Known<T> {
    /// The value, if it is known.
    pub fn found(self) -> Option<T> {
        if let Self::Found(value) = self { Some(value) } else { None }
    }
}

impl<T: DeserializeOwned> Known<T> {
    fn of(response: &StoredResponse) -> Option<Self> {
        Self::read(response.status, &response.headers, &response.body)
    }

    /// Reads a stored value; nothing, if it cannot be read.
    fn read(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Option<Self> {
        match status {
            StatusCode::NOT_FOUND => Some(Self::Absent),
            StatusCode::OK => Format::read(headers, body).map(Self::Found),
            _ => None,
        }
    }
}

/// What is stored of a value, and how old that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peeked<T> {
    /// The value, or that there is none.
    pub known: Known<T>,
    /// How long ago it was fetched.
    pub age: Duration,
    /// What is left of its lifetime; `None` once that is over.
    pub left: Option<Duration>,
}

/// What was written to the database, and what became of what was stored of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written<T> {
    /// What is in the database.
    pub value: T,
    /// Whether that is stored. If it is not, it is fetched by the next who asks.
    pub is_stored: bool,
    /// Whether what was stored before is yet to be removed, as the store could not be asked.
    pub is_deferred: bool,
}

/// The limit of [`Value::get_or_fetch_within`] was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimedOut;

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the value took longer to fetch than was allowed, and nothing stored may stand in for it")
    }
}

impl std::error::Error for TimedOut {}

/// How values are kept.
#[derive(Clone)]
pub(crate) struct Terms {
    rules: Arc<Rules>,
    format: Format,
    compressed_from: usize,
    /// Those of the rules' route and tier.
    metrics: OnceLock<Arc<RouteMetrics>>,
}

/// One value of a cache: [`Cache::value`] makes it.
///
/// ```
/// # async fn user(cache: larder::Cache) -> Result<String, std::io::Error> {
/// use larder::Ttl;
///
/// async fn from_database(id: u64) -> Result<String, std::io::Error> {
///     Ok(format!("user {id}"))
/// }
///
/// let user: String = cache.value("user:123").ttl(Ttl::FREQUENT).get_or_fetch(|| from_database(123)).await?;
/// # Ok(user)
/// # }
/// ```
#[derive(Clone)]
pub struct Value {
    cache: Cache,
    key: EntryKey,
    /// How it is kept, if not as all are of which nothing is said.
    terms: Option<Arc<Terms>>,
}

impl Cache {
    /// The value under `key`, which an invalidation of that key reaches as it reaches what clients are answered with.
    ///
    /// What comes from a request belongs into [`Key::part`].
    pub fn value(&self, key: impl Into<Key>) -> Value {
        let key = EntryKey { namespace: self.shared.namespace.clone(), key: key.into(), part: Part::Value };
        Value { cache: self.clone(), key, terms: None }
    }

    /// Values of one type, whose keys begin with `name`, and which are kept in one way: `terms` says how.
    ///
    /// ```
    /// # fn users(cache: larder::Cache) -> larder::Typed<String> {
    /// cache.typed("user", |value| value.ttl(larder::Ttl::FREQUENT).tag("users"))
    /// # }
    /// ```
    pub fn typed<T>(&self, name: &str, terms: impl FnOnce(Value) -> Value) -> Typed<T> {
        let model = self.value(name).with(|rules| rules.route = name.to_owned());
        Typed { model: terms(model), value: PhantomData }
    }
}

impl Terms {
    fn new(cache: &Cache) -> Self {
        let layer = CacheLayer::new(cache.clone()).route("value").status(StatusCode::NOT_FOUND, NEGATIVE);
        let (format, compressed_from) = (Format::default(), COMPRESSED_FROM);
        Self { rules: layer.into_rules(), format, compressed_from, metrics: OnceLock::new() }
    }
}

/// How a value is kept.
impl Value {
    /// How long it is fresh. Default [`Ttl::STANDARD`]; zero stores nothing.
    #[must_use]
    pub fn ttl(self, ttl: impl Into<Ttl>) -> Self {
        let ttl = ttl.into();
        self.with(|rules| (rules.policy.lifetime, rules.tier) = (Some(ttl.lifetime()), ttl.name()))
    }

    /// How long it is known that there is no value. Default 15 s, at most 5 minutes; zero stores no such thing.
    #[must_use]
    pub fn negative_ttl(self, ttl: impl Into<Duration>) -> Self {
        let ttl = ttl.into();
        self.with(|rules| rules.policy.statuses = vec![(StatusCode::NOT_FOUND, ttl)])
    }

    /// The largest part by which a lifetime is shortened, from 0 to 1, so that what was stored together does not expire
    /// together. Default 0.1.
    #[must_use]
    pub fn jitter(self, jitter: f64) -> Self {
        self.with(|rules| rules.policy.jitter = jitter)
    }

    /// Adds a tag: at most 64, of up to 256 bytes.
    #[must_use]
    pub fn tag(self, tag: impl Into<String>) -> Self {
        let tag = tag.into();
        self.with(|rules| rules.policy.tags.push(tag))
    }

    /// For how long after its lifetime it still answers while it is fetched anew in the background. Default zero.
    #[must_use]
    pub fn stale_while_revalidate(self, time: Duration) -> Self {
        self.with(|rules| rules.policy.stale_while_revalidate = time)
    }

    /// For how long after its lifetime it still answers when fetching it fails. Default zero.
    #[must_use]
    pub fn stale_if_error(self, time: Duration) -> Self {
        self.with(|rules| (rules.policy.stale_if_error, rules.policy.stale_if_unreachable) = (time, time))
    }

    /// After what time of fetching what is stale answers, if it may; the fetch goes on in the background. Default never.
    #[must_use]
    pub fn soft_timeout(self, time: Duration) -> Self {
        self.with(|rules| rules.policy.soft_timeout = Some(time))
    }

    /// When it is fetched anew before its lifetime is over, in the background, by one caller of the fleet. Default
    /// [`Early::Never`].
    #[must_use]
    pub fn early(self, early: Early) -> Self {
        self.with(|rules| rules.policy.early = early)
    }

    /// The largest value that is stored, in bytes as it is written. Default 1 MiB.
    #[must_use]
    pub fn largest(self, bytes: u64) -> Self {
        self.with(|rules| rules.policy.max_body = bytes)
    }

    /// In which form it is written. Default [`Format::Json`].
    #[must_use]
    pub fn format(mut self, format: Format) -> Self {
        self.own_terms().format = format;
        self
    }

    /// From what length on, in bytes as it is written, it is compressed, if that makes it shorter. Default 4 KiB; only with the
    /// feature `lz4`.
    #[must_use]
    pub fn compressed_from(mut self, bytes: usize) -> Self {
        self.own_terms().compressed_from = bytes;
        self
    }

    fn with(mut self, change: impl FnOnce(&mut Rules)) -> Self {
        let terms = self.own_terms();
        change(Arc::make_mut(&mut terms.rules));
        terms.metrics = OnceLock::new();
        self
    }

    fn own_terms(&mut self) -> &mut Terms {
        let terms = self.terms().clone();
        Arc::make_mut(self.terms.insert(terms))
    }

    fn terms(&self) -> &Arc<Terms> {
        let usual = || self.cache.shared.values.get_or_init(|| Arc::new(Terms::new(&self.cache)));
        self.terms.as_ref().unwrap_or_else(usual)
    }
}

/// What can be done with a value.
impl Value {
    /// What is stored, if it is fresh. Whatever keeps a store from telling counts as [`Known::Missing`].
    pub async fn get<T: DeserializeOwned>(&self) -> Known<T> {
        let (known, reason) = match self.look().await {
            Ok(Some((entry, copied))) => match response(&entry) {
                Some(response) if response.is_fresh(self.cache.store().now()) => match Known::of(response) {
                    Some(Known::Absent) => (Known::Absent, Reason::Negative),
                    Some(known) => (known, copied.into()),
                    None => (Known::Missing, Reason::Decode),
                },
                Some(_) => (Known::Missing, Reason::Expired),
                None => (Known::Missing, Reason::Decode),
            },
            Ok(None) => (Known::Missing, Reason::Never),
            Err(error) => (Known::Missing, Reason::from(&error)),
        };
        self.metrics().request(reason);
        known
    }

    /// What is stored, fresh or stale, and how old it is; nothing is counted, and nothing fetched.
    ///
    /// # Errors
    ///
    /// When the store cannot tell.
    pub async fn peek<T: DeserializeOwned>(&self) -> Result<Option<Peeked<T>>, StoreError> {
        let Some((entry, _)) = self.look().await? else { return Ok(None) };
        let Some(response) = response(&entry) else { return Ok(None) };
        let (age, known) = (response.age(self.cache.store().now()), Known::of(response));
        let left = response.lifetime.checked_sub(age).filter(|left| !left.is_zero());
        Ok(known.map(|known| Peeked { known, age, left }))
    }

    /// The value: what is stored, or what `fetch` brings, which is then stored.
    ///
    /// Of all who ask at the same time, here and in other processes, one fetches. `fetch` goes on in the background when its
    /// caller leaves, or has been answered with what is stale; so what it uses must be its own. Its error is its caller's only,
    /// unless what is stale may answer. A store that fails is no error. That there is no value, known from
    /// [`get_or_find`](Self::get_or_find), is not an answer.
    ///
    /// # Errors
    ///
    /// What `fetch` fails with.
    pub async fn get_or_fetch<T, E, F, Fut>(&self, fetch: F) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Send + 'static,
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        if let Some(Known::Found(value)) = self.at_hand() {
            return Ok(value);
        }
        let present = async || fetch().await.map(Some);
        self.seek(Absence::Unknown, None, present).await.map(|found| found.expect(PRESENT))
    }

    /// The same, for as long as `limit`; the fetch goes on in the background then. What is stale answers, if it may; else the
    /// caller is told by an error.
    ///
    /// # Errors
    ///
    /// What `fetch` fails with, or [`TimedOut`].
    pub async fn get_or_fetch_within<T, E, F, Fut>(&self, limit: Duration, fetch: F) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        E: From<TimedOut> + Send + 'static,
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        if let Some(Known::Found(value)) = self.at_hand() {
            return Ok(value);
        }
        let limit = Limit { time: limit, error: || E::from(TimedOut) };
        let present = async || fetch().await.map(Some);
        self.seek(Absence::Unknown, Some(limit), present).await.map(|found| found.expect(PRESENT))
    }

    /// The value, if there is one: what is stored, also that there is none, or what `find` brings, which is then stored.
    ///
    /// # Errors
    ///
    /// What `find` fails with. The rest is as for [`get_or_fetch`](Self::get_or_fetch).
    pub async fn get_or_find<T, E, F, Fut>(&self, find: F) -> Result<Option<T>, E>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Send + 'static,
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<Option<T>, E>> + Send + 'static,
    {
        match self.at_hand() {
            Some(Known::Found(value)) => Ok(Some(value)),
            Some(Known::Absent) => Ok(None),
            Some(Known::Missing) | None => self.seek(Absence::Known, None, find).await,
        }
    }

    /// Stores a value that is known without being fetched, and invalidates what was stored or is on its way, as
    /// [`Cache::purge`] does. Of two callers at the same time either may win: for a change of what is in a database there is
    /// [`write`](Self::write).
    ///
    /// # Errors
    ///
    /// As [`Cache::purge`]. That the value could not be stored is no error.
    pub async fn insert<T: Serialize>(&self, value: &T) -> Result<Receipt, StoreError> {
        let receipt = self.remove().await?;
        if let Ok(Claim::Granted(ticket)) = self.cache.store().claim(&self.key, Seen::Absent).await {
            let born = ticket.born;
            match self.filling(self.terms().write(Some(value)), born, Duration::ZERO) {
                Some(filling) => _ = self.cache.store().fill(ticket, filling).await,
                None => _ = self.cache.store().release(ticket, Unused::NoAnswer).await,
            }
        }
        Ok(receipt)
    }

    /// Writes through: `write` changes what is in the database, and says what is there afterwards, which is then stored.
    ///
    /// Meanwhile nothing of the resource is found or stored; requests fetch for themselves. What was written is stored unless
    /// somebody else has written or invalidated the same meanwhile; then, and whenever there is doubt, nothing is, and the next
    /// who asks fetches it. So two who write at the same time leave nothing older than what is in the database, and neither
    /// does a process that dies on the way: see [`Cache::begin_write`].
    ///
    /// A store that fails does not make the write fail: what it holds is removed as soon as it can be asked, for a minute in
    /// the background, and [`Written::is_deferred`] says so. Until then it may answer.
    ///
    /// When the future is dropped, what is stored is removed in the background.
    ///
    /// # Errors
    ///
    /// What `write` fails with. What is stored is removed then too, as it is not known what was changed.
    pub async fn write<T, E, Fut>(&self, write: impl FnOnce() -> Fut) -> Result<Written<T>, E>
    where
        T: Serialize,
        Fut: Future<Output = Result<T, E>>,
    {
        self.write_found(async || write().await.map(Some)).await.map(|written| Written {
            value: written.value.expect(PRESENT),
            is_stored: written.is_stored,
            is_deferred: written.is_deferred,
        })
    }

    /// The same, where there may be no value afterwards: of what removes one from the database.
    ///
    /// # Errors
    ///
    /// What `write` fails with.
    pub async fn write_found<T, E, Fut>(&self, write: impl FnOnce() -> Fut) -> Result<Written<Option<T>>, E>
    where
        T: Serialize,
        Fut: Future<Output = Result<Option<T>, E>>,
    {
        let (guard, began) = (self.cache.begin_write(Purge::key(self.key.key.clone())).await, Instant::now());
        let value = write().await?;
        let took = began.elapsed();
        let concluded = guard.conclude(|born| self.filling(self.terms().write(value.as_ref()), born, took)).await;
        let (is_stored, is_deferred) = (concluded == Concluded::Stored, concluded == Concluded::Deferred);
        Ok(Written { value, is_stored, is_deferred })
    }

    /// Removes it, and what clients are answered with under the same key: [`Cache::purge`] of the key.
    ///
    /// # Errors
    ///
    /// As [`Cache::purge`].
    pub async fn remove(&self) -> Result<Receipt, StoreError> {
        self.cache.purge(Purge::key(self.key.key.clone())).await
    }
}

/// What every caller of `seek` that knows no absence relies on.
const PRESENT: &str = "what is fetched is a value, and nothing else answers";

/// How long one caller waits, and what it is told then.
struct Limit<E> {
    time: Duration,
    error: fn() -> E,
}

impl Value {
    fn metrics(&self) -> &Arc<RouteMetrics> {
        let Terms { rules, metrics, .. } = &**self.terms();
        let Rules { route, tier, .. } = &**rules;
        metrics.get_or_init(|| self.cache.observer().route(route, tier))
    }

    async fn look(&self) -> Result<Option<(Arc<Entry>, Copied)>, StoreError> {
        Ok(match self.cache.store().get(&self.key).await? {
            Found::Entry(entry, copied) => Some((entry, copied)),
            Found::Absent | Found::Invalidated(_) | Found::Unreadable(_) => None,
        })
    }

    fn at_hand<T: DeserializeOwned>(&self) -> Option<Known<T>> {
        self.at_hand_of(&self.key)
    }

    /// What this process holds of a value that is kept as this one is, if it is fresh, and not to be fetched anew before its
    /// time.
    fn at_hand_of<T: DeserializeOwned>(&self, key: &EntryKey) -> Option<Known<T>> {
        let (entry, now) = self.cache.store().at_hand(key)?;
        let (response, early) = (response(&entry)?, self.terms().rules.policy.early);
        if !response.is_fresh(now) || early != Early::Never {
            return None;
        }
        let known = Known::of(response)?;
        self.metrics().request(if matches!(known, Known::Absent) { Reason::Negative } else { Reason::Near });
        Some(known)
    }

    /// Has the engine answer, which asks `find` if need be.
    async fn seek<T, E, F, Fut>(&self, absence: Absence, limit: Option<Limit<E>>, find: F) -> Result<Option<T>, E>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Send + 'static,
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<Option<T>, E>> + Send + 'static,
    {
        let mut terms = self.terms().clone();
        if let Some(limit) = &limit {
            Arc::make_mut(&mut Arc::make_mut(&mut terms).rules).policy.hard_timeout = Some(limit.time);
        }
        let quest = Quest::new(find, absence);
        let metrics = OnceLock::from(self.metrics().clone());
        let front = Arc::new(Front { cache: self.cache.clone(), rules: terms.rules.clone(), metrics });
        let reading = quest.clone();
        let reads: Reads = Arc::new(move |response| reading.reads(response));
        let response = Box::pin(front.serve_value(self.key.clone(), reads, Finding::new(quest.clone(), terms))).await?;
        if let (StatusCode::GATEWAY_TIMEOUT, Some(limit)) = (response.status(), limit) {
            return Err((limit.error)());
        }
        let (head, body) = response.into_parts();
        // Also where it is known already: what is stored is what was read to its end.
        let body = whole(body).await;
        if let Some(found) = quest.take_found() {
            return Ok(found);
        }
        match body.and_then(|body| quest.read(head.status, &head.headers, &body)) {
            Some(found) => Ok(found),
            // It came from another caller, whose values are of another type.
            None => match quest.take_find() {
                Some(find) => find().await,
                None => Ok(None),
            },
        }
    }
}

/// Whether a stored value can be read: what cannot is fetched anew.
pub(crate) type Reads = Arc<dyn Fn(&StoredResponse) -> bool + Send + Sync>;

fn response(entry: &Entry) -> Option<&StoredResponse> {
    if let Content::Response(response) = &entry.content { Some(response) } else { None }
}

impl Value {
    /// What is stored of a value that was had at `born`; nothing, if it is not to be stored.
    fn filling(&self, response: Response<Whole>, born: u64, cost: Duration) -> Option<Filling> {
        let policy = &self.terms().rules.policy;
        let asked = Request::new(()).into_parts().0;
        let Intake::Lookup(lookup) = Intake::of(&asked, policy) else { return None };
        let now = self.cache.store().now();
        let Selected::Forward(forward) = lookup.select(None, &asked.headers, now, 1.0) else { return None };
        let (mut head, body) = response.into_parts();
        let caching = head.extensions.remove::<Caching>().unwrap_or_default();
        let asked = Asked { key: self.key.clone(), authority: String::new(), headers: asked.headers };
        let arrival = Arrival { now, calendar: SystemTime::now().into(), delay: cost, seed: fastrand::f64() };
        let Received::Store(admission) = forward.receive(asked, &head, &caching, policy, arrival) else { return None };
        let body = body.0.unwrap_or_default();
        let id = || EntryId(fastrand::u128(..).to_be_bytes());
        (body.len() as u64 <= admission.limit()).then(|| admission.complete(body, cost, born, id(), id()))
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Value").field("key", &self.key.key).finish_non_exhaustive()
    }
}

/// Values of one type that are kept in one way: [`Cache::typed`] makes it. Each is told from the others by an id, which may
/// come from a request.
pub struct Typed<T> {
    model: Value,
    value: PhantomData<fn() -> T>,
}

impl<T: Serialize + DeserializeOwned + Send + 'static> Typed<T> {
    /// One of them, for what is not offered here.
    pub fn value(&self, id: impl fmt::Display) -> Value {
        self.value_at(self.key(id))
    }

    fn value_at(&self, key: EntryKey) -> Value {
        Value { cache: self.model.cache.clone(), key, terms: self.model.terms.clone() }
    }

    fn key(&self, id: impl fmt::Display) -> EntryKey {
        let EntryKey { namespace, key, part } = &self.model.key;
        EntryKey { namespace: namespace.clone(), key: key.with_part(id), part: *part }
    }

    /// As [`Value::get`].
    pub async fn get(&self, id: impl fmt::Display) -> Known<T> {
        self.value(id).get().await
    }

    /// What is stored of many, in their order. What a Redis holds is read with few commands.
    pub async fn get_many<I: fmt::Display>(&self, ids: impl IntoIterator<Item = I>) -> Vec<Known<T>> {
        let values: Vec<Value> = ids.into_iter().map(|id| self.value(id)).collect();
        let mut known = Vec::with_capacity(values.len());
        for some in values.chunks(ABREAST) {
            known.extend(together(some.iter().map(Value::get)).await);
        }
        known
    }

    /// As [`Value::get_or_fetch`].
    ///
    /// # Errors
    ///
    /// What `fetch` fails with.
    pub async fn get_or_fetch<E, F, Fut>(&self, id: impl fmt::Display, fetch: F) -> Result<T, E>
    where
        E: Send + 'static,
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
    {
        let key = self.key(id);
        if let Some(Known::Found(value)) = self.model.at_hand_of(&key) {
            return Ok(value);
        }
        self.value_at(key).get_or_fetch(fetch).await
    }

    /// As [`Value::get_or_find`].
    ///
    /// # Errors
    ///
    /// What `find` fails with.
    pub async fn get_or_find<E, F, Fut>(&self, id: impl fmt::Display, find: F) -> Result<Option<T>, E>
    where
        E: Send + 'static,
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<Option<T>, E>> + Send + 'static,
    {
        let key = self.key(id);
        match self.model.at_hand_of(&key) {
            Some(Known::Found(value)) => Ok(Some(value)),
            Some(Known::Absent) => Ok(None),
            Some(Known::Missing) | None => self.value_at(key).get_or_find(find).await,
        }
    }

    /// As [`Value::write`].
    ///
    /// # Errors
    ///
    /// What `write` fails with.
    pub async fn write<E, Fut>(&self, id: impl fmt::Display, write: impl FnOnce() -> Fut) -> Result<Written<T>, E>
    where
        Fut: Future<Output = Result<T, E>>,
    {
        self.value(id).write(write).await
    }

    /// As [`Value::insert`].
    ///
    /// # Errors
    ///
    /// As [`Cache::purge`].
    pub async fn insert(&self, id: impl fmt::Display, value: &T) -> Result<Receipt, StoreError> {
        self.value(id).insert(value).await
    }

    /// As [`Value::remove`].
    ///
    /// # Errors
    ///
    /// As [`Cache::purge`].
    pub async fn remove(&self, id: impl fmt::Display) -> Result<Receipt, StoreError> {
        self.value(id).remove().await
    }
}

impl<T> Clone for Typed<T> {
    fn clone(&self) -> Self {
        Self { model: self.model.clone(), value: PhantomData }
    }
}

impl<T> fmt::Debug for Typed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Typed").field("name", &self.model.key.key).finish_non_exhaustive()
    }
}

/// How many values are asked for at the same time: fewer than a store lets one process ask.
const ABREAST: usize = 256;

/// Waits for all of them; their outcomes, in their order.
async fn together<F: Future>(work: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut work: Vec<_> = work.map(Box::pin).collect();
    let mut done: Vec<Option<F::Output>> = work.iter().map(|_| None).collect();
    poll_fn(|context| {
        for (work, done) in work.iter_mut().zip(&mut done).filter(|(_, done)| done.is_none()) {
            if let Poll::Ready(output) = work.as_mut().poll(context) {
                *done = Some(output);
            }
        }
        if done.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}
