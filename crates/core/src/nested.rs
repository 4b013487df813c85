//! Layers of one cache within each other: the inner one decides, the outer one stores nothing.

use crate::{Cache, engine::Grant};
use http::{HeaderMap, Request, request::Parts};
use larder_semantics::exchange;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// Marks a request that a layer forwards, so that a layer of the same cache further in decides in its place.
#[derive(Clone)]
pub(crate) struct Around {
    pub(crate) cache: Cache,
    grant: Place,
    /// What the client asked for less than the whole, where the request now asks the origin something else.
    conditions: Option<HeaderMap>,
    /// How long the request may still wait for the store.
    pub(crate) patience: Duration,
}

/// Marks a response on which a layer has decided.
#[derive(Clone)]
pub(crate) struct Decided(pub(crate) Cache);

/// Where a grant lies that a layer further in may take over.
type Place = Arc<Mutex<Option<Box<Grant>>>>;

/// A grant that is lent to whatever layer is further in, and taken back when this is dropped: the origin may keep the
/// request, with its marks, for as long as it likes.
pub(crate) struct Lent(Place);

impl Around {
    /// Marks `request`, and lends `grant` to a layer further in, which also learns what the client asked, and how long it may
    /// still wait for the store.
    pub(crate) fn put<Q>(
        cache: &Cache,
        mut request: Request<Q>,
        grant: Option<Box<Grant>>,
        conditions: Option<HeaderMap>,
        patience: Duration,
    ) -> (Request<Q>, Lent) {
        let place = Place::new(Mutex::new(grant));
        request.extensions_mut().insert(Self { cache: cache.clone(), grant: place.clone(), conditions, patience });
        (request, Lent(place))
    }

    /// Takes the mark of a layer of `cache` off a request, which then asks what the client asked.
    pub(crate) fn take(cache: &Cache, head: &mut Parts) -> Option<Self> {
        if head.extensions.get::<Self>().is_none_or(|around| !around.cache.is(cache)) {
            return None;
        }
        let around: Self = head.extensions.remove()?;
        if let Some(conditions) = &around.conditions {
            exchange::restore(&mut head.headers, conditions);
        }
        Some(around)
    }

    /// Takes over the grant of the layer around.
    pub(crate) fn into_grant(self) -> Option<Box<Grant>> {
        take(&self.grant)
    }
}

impl Lent {
    /// Takes the grant back, if no layer further in has taken it over.
    pub(crate) fn take_back(&self) -> Option<Box<Grant>> {
        take(&self.0)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        drop(self.take_back());
    }
}

fn take(place: &Place) -> Option<Box<Grant>> {
    place.lock().unwrap_or_else(PoisonError::into_inner).take()
}
