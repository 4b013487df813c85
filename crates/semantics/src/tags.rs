//! Tags, by which many responses are invalidated at once, and the logical clock that tells which of them are.
//!
//! The clock advances with every invalidation and with nothing else. A response notes what it showed before the origin
//! was asked; a tag, when it was invalidated last. So an invalidation costs the same however many responses it
//! reaches, and no two machines' clocks are ever compared.

/// When a tag was invalidated last, by the clock of its store; zero if never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Record(pub u64);

impl Record {
    /// Whether a response that was born when the clock showed `born` outlasts it.
    pub fn spares(self, born: u64) -> bool {
        self.0 <= born
    }
}

/// The most tags an entry can have.
pub const MOST_TAGS: usize = 64;

/// The longest tag in bytes.
pub const LONGEST_TAG: usize = 256;

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

    #[test]
    fn tags_are_normalised_and_never_dropped_in_silence() {
        assert_eq!(of_entry([" a", "", "b", "a ", "\t"].into_iter()), Some(vec!["a".to_owned(), "b".to_owned()]));
        let many: Vec<String> = (0..=MOST_TAGS).map(|n| n.to_string()).collect();
        assert_eq!(of_entry(many.iter().map(String::as_str)), None);
        assert_eq!(of_entry(many[1..].iter().map(String::as_str)).map(|tags| tags.len()), Some(MOST_TAGS));
        assert_eq!(of_entry(std::iter::once("x".repeat(LONGEST_TAG + 1).as_str())), None);
    }
}
