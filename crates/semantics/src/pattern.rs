//! Patterns of keys, by which an operator names many resources at once.

use crate::key::{self, Key};
use std::fmt;

/// A text that keys are compared with, in which `*` stands for any other, also for none.
///
/// It is compared with a key as it reads, in `X-Cache-Key` or in Redis: what no key holds as it is (blanks, quotes, braces)
/// is percent-encoded first, as keys are. Of a key that was cut for its length, only what was left is compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Pattern {
    /// What stands between the stars.
    pieces: Vec<String>,
}

impl Pattern {
    /// Reads a pattern.
    pub fn new(text: &str) -> Self {
        Self { pieces: text.split('*').map(encoded).collect() }
    }

    /// The pattern of keys that begin with `text`, whatever it holds.
    pub fn prefix(text: &str) -> Self {
        Self { pieces: vec![encoded(text), String::new()] }
    }

    /// Whether a key is like this.
    pub fn matches(&self, key: &Key) -> bool {
        let Some((first, rest)) = self.pieces.split_first() else { return false };
        let Some(mut text) = key.as_str().strip_prefix(first.as_str()) else { return false };
        let Some((last, between)) = rest.split_last() else { return text.is_empty() };
        for piece in between {
            let Some(at) = text.find(piece.as_str()) else { return false };
            text = &text[at + piece.len()..];
        }
        text.ends_with(last.as_str())
    }

    /// The same as the glob-style pattern of Redis (`SCAN … MATCH`).
    pub fn glob(&self) -> String {
        let quoted = self.pieces.iter().map(|piece| piece.replace('?', "\\?"));
        quoted.collect::<Vec<_>>().join("*")
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.pieces.join("*"))
    }
}

/// As it stands in keys. What is encoded already stays as it is, and so does the `?` before a query.
fn encoded(piece: &str) -> String {
    let mut text = String::with_capacity(piece.len());
    key::encode(&mut text, piece.as_bytes(), |byte| b":?%".contains(&byte));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_text_and_nothing_else_does() {
        let key = Key::new("user").part("4 2").part("orders");
        assert_eq!(key.as_str(), "user:4%202:orders");
        for (pattern, matches) in [
            ("user:*", true),
            ("*", true),
            ("*:orders", true),
            ("user:*:orders", true),
            ("user:4 2:*", true),
            ("user:4%202:orders", true),
            ("user:4%202:orders*", true),
            ("*4*2*o*", true),
            ("user", false),
            ("user:*:order", false),
            ("user:4?202:orders", false),
            ("user:[4]*", false),
            ("", false),
            ("*orders*orders", false),
        ] {
            assert_eq!(Pattern::new(pattern).matches(&key), matches, "{pattern}");
        }
        assert!(Pattern::prefix("user:").matches(&key) && !Pattern::prefix("user:*").matches(&key));
    }

    #[test]
    fn redis_is_told_the_same() {
        assert_eq!(Pattern::new("route:GET:a:/b?*").glob(), "route:GET:a:/b\\?*");
        assert_eq!(Pattern::new("a[b]{c}\\*").glob(), "a%5Bb%5D%7Bc%7D%5C*");
        assert_eq!(Pattern::prefix("a*").glob(), "a%2A*");
    }
}
