//! Layers of one cache within each other: the inner one decides, the outer one stores nothing.

use crate::{Cache, engine::Grant};
use http::{Request, request::Parts};
use std::sync::{Arc, Mutex, PoisonError};

/// Marks a request that a layer forwards, so that a layer of the same cache further in decides in its place.
#[derive(Clone)]
pub(crate) struct Around {
    pub(crate) cache: Cache,
    grant: Arc<Mutex<Option<Box<Grant>>>>,
}

/// Marks a response on which a layer has decided.
#[derive(Clone)]
pub(crate) struct Decided(pub(crate) Cache);

impl Around {
    /// Marks `request`, and lays `grant` where a layer further in can take it over.
    pub(crate) fn put<Q>(cache: &Cache, mut request: Request<Q>, grant: Option<Box<Grant>>) -> (Request<Q>, Self) {
        let around = Self { cache: cache.clone(), grant: Arc::new(Mutex::new(grant)) };
        request.extensions_mut().insert(around.clone());
        (request, around)
    }

    pub(crate) fn take(cache: &Cache, head: &mut Parts) -> Option<Self> {
        head.extensions.get::<Self>().is_some_and(|around| around.cache.is(cache)).then(|| head.extensions.remove())?
    }

    pub(crate) fn into_grant(self) -> Option<Box<Grant>> {
        self.grant.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
