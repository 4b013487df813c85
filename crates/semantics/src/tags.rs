//! Tags, by which many responses are invalidated at once, and the logical clock that tells which of them are.
//!
//! The clock advances with every invalidation and with nothing else. A response notes what it showed before the origin
//! was asked; a tag, when it was invalidated last. So an invalidation costs the same however many responses it
//! reaches, and no two machines' clocks are ever compared. It is never behind the time of its store, in microseconds, when
//! it advances: one that was lost begins beyond whatever it had shown.

use crate::time::Timestamp;
use http::{HeaderMap, HeaderName};

/// When a tag, or a whole namespace, was invalidated last, by the clock of its store; zero if never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Record {
    /// So that nothing born before is used.
    pub gone: u64,
    /// So that what was born before is stale.
    pub stale: u64,
}

impl Record {
    /// Of what was invalidated when the clock showed `at`: made stale if `is_soft`, else gone.
    pub fn of(at: u64, is_soft: bool) -> Self {
        if is_soft { Self { gone: 0, stale: at } } else { Self { gone: at, stale: 0 } }
    }

    /// What both tell together. In whatever order invalidations are heard of, it comes to the same.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { gone: self.gone.max(other.gone), stale: self.stale.max(other.stale) }
    }

    /// What it leaves of a response that was born when the clock showed `born`.
    pub fn leaves(self, born: u64) -> Standing {
        match self {
            Self { gone, .. } if gone > born => Standing::Gone,
            Self { stale, .. } if stale > born => Standing::StaleSince(Timestamp::from_millis(stale / 1000)),
            _ => Standing::Valid,
        }
    }
}

/// What invalidations have left of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// All of it.
    Valid,
    /// It is stale, whatever its lifetime was.
    StaleSince(Timestamp),
    /// Nothing.
    Gone,
}

/// The most tags an entry can have.
pub const MOST_TAGS: usize = 64;

/// The longest tag in bytes.
pub const LONGEST_TAG: usize = 256;

/// The tags of a response, separated by blanks: the field that most shared caches read.
pub const SURROGATE_KEY: HeaderName = HeaderName::from_static("surrogate-key");

/// The tags of a response, separated by commas.
pub const CACHE_TAG: HeaderName = HeaderName::from_static("cache-tag");

/// The tags that `fields` of a message list: each separated by commas, those of [`SURROGATE_KEY`] by blanks. A line that is not
/// text names none.
pub fn stated(headers: &HeaderMap, fields: &[HeaderName]) -> Vec<String> {
    let mut tags = Vec::new();
    for field in fields {
        let separates =
            |letter: char| if *field == SURROGATE_KEY { letter.is_ascii_whitespace() } else { letter == ',' };
        let lines = headers.get_all(field).iter().filter_map(|line| std::str::from_utf8(line.as_bytes()).ok());
        tags.extend(
            lines
                .flat_map(|line| line.split(separates))
                .map(str::trim)
                .filter(|tag| !tag.is_empty())
                .map(str::to_owned),
        );
    }
    tags
}

/// The tags of an entry: each once, without blanks around them and without empty ones; `None` when there are more
/// than [`MOST_TAGS`] or one is longer than [`LONGEST_TAG`].
pub fn of_entry<'a>(all: impl Iterator<Item = &'a str>) -> Option<Vec<String>> {
    let mut kept: Vec<String> = Vec::new();
    for tag in all.map(str::trim).filter(|tag| !tag.is_empty()) {
        if kept.iter().any(|known| known == tag) {
            continue;
        }
        if tag.len() > LONGEST_TAG || kept.len() == MOST_TAGS {
            return None;
        }
        kept.push(tag.to_owned());
    }
    Some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn a_soft_invalidation_takes_nothing_back_of_a_hard_one() {
        let record = Record::of(5_000, false).and(Record::of(9_000, true));
        assert_eq!(record, Record::of(9_000, true).and(Record::of(5_000, false)));
        let stale = Standing::StaleSince(Timestamp::from_millis(9));
        for (born, left) in [(4_999, Standing::Gone), (5_000, stale), (8_999, stale), (9_000, Standing::Valid)] {
            assert_eq!(record.leaves(born), left, "{born}");
        }
        assert_eq!(Record::default().leaves(0), Standing::Valid);
    }

    #[test]
    fn tags_are_read_from_fields_in_the_spelling_of_each() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            (SURROGATE_KEY, &b"a  b,c\t"[..]),
            (SURROGATE_KEY, b"d"),
            (CACHE_TAG, b"e f, g,, "),
            (CACHE_TAG, b"\xff, h"),
            (HeaderName::from_static("x-tags"), b"i,j"),
        ] {
            headers.append(name, HeaderValue::from_bytes(value).expect("a value"));
        }
        assert_eq!(stated(&headers, &[SURROGATE_KEY, CACHE_TAG]), ["a", "b,c", "d", "e f", "g"]);
        assert_eq!(stated(&headers, &[HeaderName::from_static("x-tags")]), ["i", "j"]);
        assert!(stated(&headers, &[]).is_empty());
    }

    #[test]
    fn tags_are_normalised_and_never_dropped_in_silence() {
        assert_eq!(of_entry([" a", "", "b", "a ", "\t"].into_iter()), Some(vec!["a".to_owned(), "b".to_owned()]));
        let many: Vec<String> = (0..=MOST_TAGS).map(|n| n.to_string()).collect();
        assert_eq!(of_entry(many.iter().map(String::as_str)), None);
        assert_eq!(of_entry(many[1..].iter().map(String::as_str)).map(|tags| tags.len()), Some(MOST_TAGS));
        assert_eq!(of_entry(std::iter::once("x".repeat(LONGEST_TAG + 1).as_str())), None);
    }
}
