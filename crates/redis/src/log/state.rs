//! What this process knows of what was invalidated in a namespace.

use super::entry::Position;
use larder::{
    semantics::{Key, tags::Record},
    store::Selector,
};
use std::{collections::HashMap, time::Instant};

/// What is known of the invalidations of one namespace.
#[derive(Default)]
pub(super) struct State {
    /// The last entry of the log that this process has taken note of.
    pub(super) last: Option<Position>,
    /// What the clock showed last. One that lags makes a response look older than it is, which costs a fetch and no more.
    pub(super) clock: u64,
    pub(super) all: Record,
    /// The same, when this was last all there is to know.
    pub(super) settled: Record,
    /// By name in Redis.
    pub(super) tags: HashMap<String, Record>,
    /// How many are asking for records, and what was invalidated of unknown tags since the first of them asked.
    pub(super) recalls: usize,
    pub(super) meanwhile: HashMap<String, Record>,
    /// How often what was known had to be forgotten.
    pub(super) losses: u64,
    /// What the record of the namespace was before an outage that is yet to be recovered from.
    pub(super) owed: Option<Record>,
    /// Until when this is all there is to know.
    pub(super) vouched: Option<Instant>,
}

impl State {
    pub(super) fn is_vouched(&self) -> bool {
        self.vouched.is_some_and(|until| until > Instant::now())
    }

    /// What the records of a response's tags, and of the namespace, tell together; else the tags whose records are unknown.
    pub(super) fn record(&self, namespace: &str, tags: &[String]) -> Result<Record, Vec<String>> {
        let (mut together, mut unknown) = (self.all, Vec::new());
        for tag in tags {
            match self.tags.get(&record_name(namespace, tag)) {
                Some(record) => together = together.and(*record),
                None => unknown.push(tag.clone()),
            }
        }
        if unknown.is_empty() { Ok(together) } else { Err(unknown) }
    }

    /// Takes note of an invalidation. The record of a tag that is unknown stays so: what Redis holds may tell more than this,
    /// and what was asked for just before may tell less.
    pub(super) fn note(&mut self, namespace: &str, selector: &Selector, at: u64, is_soft: bool) {
        let record = Record::of(at, is_soft);
        self.clock = self.clock.max(at);
        match selector {
            Selector::Tags(tags) => {
                for tag in tags {
                    let name = record_name(namespace, tag);
                    if let Some(known) = self.tags.get_mut(&name) {
                        *known = known.and(record);
                    } else if self.recalls > 0 {
                        let known = self.meanwhile.entry(name).or_default();
                        *known = known.and(record);
                    }
                }
            }
            Selector::All => self.all = self.all.and(record),
            _ => {}
        }
    }

    pub(super) fn remember(&mut self, name: String, record: Record) {
        if self.tags.len() >= MOST_TAGS {
            self.tags.clear();
        }
        let meanwhile = self.meanwhile.get(&name).copied().unwrap_or_default();
        let known = self.tags.entry(name).or_default();
        *known = known.and(record).and(meanwhile);
    }
}

/// The most tags whose records are known here.
const MOST_TAGS: usize = 1 << 16;

/// The name of the record of a tag.
pub(super) fn record_name(namespace: &str, tag: &str) -> String {
    format!("{{{namespace}}}:{}", Key::new("tag").part(tag.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_unknown_tags_leaves_them_unknown() {
        let mut state = State::default();
        let tags = |tags: &[&str]| tags.iter().map(|tag| (*tag).to_owned()).collect::<Vec<_>>();
        state.remember(record_name("n", "a"), Record::of(5, false));
        state.note("n", &Selector::Tags(tags(&["a", "b"])), 9, true);
        assert_eq!(state.record("n", &tags(&["a"])), Ok(Record { gone: 5, stale: 9 }));
        assert_eq!(state.record("n", &tags(&["a", "b"])), Err(tags(&["b"])));
        assert_eq!(state.clock, 9);
        state.recalls = 1;
        state.note("n", &Selector::Tags(tags(&["c"])), 10, false);
        state.remember(record_name("n", "c"), Record::of(7, true));
        assert_eq!(state.record("n", &tags(&["c"])), Ok(Record { gone: 10, stale: 7 }), "asked for before, told after");
        state.note("n", &Selector::All, 12, false);
        assert_eq!(state.record("n", &[]), Ok(Record::of(12, false)));
    }
}
