//! Texts that are kept once and for good, so that a copy of one is a pointer, which nobody counts.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

/// Texts of one sort, of which a program has few.
pub(crate) struct Lasting(Mutex<BTreeSet<&'static str>>);

impl Lasting {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(BTreeSet::new()))
    }

    /// The same text; `None` if it is not among them, and there are `most` already.
    pub(crate) fn keep(&self, text: &str, most: usize) -> Option<&'static str> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !kept.contains(text) && kept.len() < most {
            kept.insert(Box::leak(text.into()));
        }
        kept.get(text).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_kept_once_and_no_more_than_so_many() {
        let lasting = Lasting::new();
        let first = lasting.keep("a", 1).expect("room");
        assert!(std::ptr::eq(first, lasting.keep("a", 0).expect("it is there")));
        assert_eq!(lasting.keep("b", 1), None);
        assert_eq!(lasting.keep("b", 2), Some("b"));
    }
}
