//! What counts of the queries of each path, as this process has learned it, and the keys that come of it.

use crate::engine::Front;
use http::{Uri, response};
use larder_semantics::{
    EntryKey, Key, Reason,
    search::{self, Sought, Variance},
};
use quick_cache::sync::{Cache as Bounded, EntryAction, EntryResult};
use std::{iter, sync::Arc};

/// How many paths are remembered.
const MOST_PATHS: usize = 10_000;

/// How many variances of one path are remembered, so that a purge reaches what was stored by those before the last one:
/// two releases of an origin may answer in turn.
const MOST_VARIANCES: usize = 4;

/// The variances that responses have told, by path.
pub(crate) struct Variances {
    /// The last one first.
    told: Bounded<String, Arc<[Variance]>>,
}

impl Variances {
    pub(crate) fn new() -> Self {
        Self { told: Bounded::new(MOST_PATHS) }
    }

    /// The keys of everything that may answer `query`, as far as is known, where `key` is the one of all of it.
    pub(crate) fn keys_of(&self, key: Key, query: Option<&str>) -> Vec<Key> {
        let told = self.told.get(key.path());
        let sought = told.iter().flat_map(|told| told.iter()).filter_map(|variance| Sought::by(variance, query));
        let mut others: Vec<Key> = sought.map(|sought| key.with_query(sought.canonical())).collect();
        others.sort();
        others.dedup();
        iter::once(key).chain(others).collect()
    }

    /// By what other query `query` is looked up, if so, where `key` is the one of all of it.
    fn sought(&self, key: &Key, query: Option<&str>) -> Option<Sought> {
        Sought::by(self.told.get(key.path())?.first()?, query)
    }

    fn learn(&self, path: &str, last: Variance) {
        match self.told.get(path) {
            None if last.is_default() => return,
            Some(told) if told.first() == Some(&last) => return,
            _ => {}
        }
        let after = |told: &[Variance]| {
            let former = told.iter().filter(|variance| **variance != last);
            iter::once(&last).chain(former).take(MOST_VARIANCES).cloned().collect()
        };
        let place = self.told.entry(path, None, |_, told| {
            *told = after(told);
            EntryAction::Retain(())
        });
        if let EntryResult::Vacant(place) = place {
            // It fails only if the path was told of meanwhile.
            let _ = place.insert(after(&[]));
        }
    }
}

impl Front {
    /// Makes of the key of a request for `target` the one that it is looked up under, and tells by what other query, if so.
    #[inline]
    pub(crate) fn seek(&self, key: &mut Key, target: &Uri) -> Option<Arc<Sought>> {
        if !self.rules.may_seek() {
            return None;
        }
        let sought = self.cache.shared.variances.sought(key, target.query())?;
        *key = key.with_query(sought.canonical());
        Some(Arc::new(sought))
    }

    /// Takes note of what an answer to GET or HEAD tells of the queries of its path.
    pub(crate) fn learn(&self, reason: Reason, key: Option<&EntryKey>, answer: &response::Parts) {
        if self.rules.may_seek()
            && reason != Reason::Method
            && let Some(key) = key
            && let Some(told) = search::told(answer)
        {
            self.cache.shared.variances.learn(key.key.path(), told);
        }
    }
}
