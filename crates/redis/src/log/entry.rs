//! What is invalidated, as one line of text: as it stands in the log, and is told.

use larder::{
    semantics::{Key, Pattern},
    store::Selector,
};

/// Where an entry stands in the log: the id that Redis gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position(pub(super) u64, pub(super) u64);

impl Position {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (time, count) = text.split_once('-')?;
        Some(Self(time.parse().ok()?, count.parse().ok()?))
    }
}

/// An entry of the log.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry<'t> {
    pub(super) position: Position,
    pub(super) before: Position,
    pub(super) sender: &'t str,
    pub(super) at: u64,
    pub(super) is_soft: bool,
    pub(super) selector: Selector,
}

impl<'t> Entry<'t> {
    /// Reads `<position>|<position before>|<sender>|<clock>|<s or h><what>`.
    pub(super) fn parse(text: &'t str) -> Option<Self> {
        let mut parts = text.splitn(5, '|');
        let (position, before) = (Position::parse(parts.next()?)?, Position::parse(parts.next()?)?);
        let (sender, at, rest) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?);
        let (mode, what) = rest.split_at_checked(1)?;
        Some(Self { position, before, sender, at, is_soft: mode == "s", selector: parse_selector(what)? })
    }
}

/// Writes what is invalidated as one line of text.
pub(super) fn line(selector: &Selector) -> String {
    match selector {
        Selector::Key(key) => format!("k{key}"),
        Selector::Pattern(pattern) => format!("p{pattern}"),
        Selector::Tags(tags) => {
            tags.iter().map(|tag| tag.trim()).fold("t".to_owned(), |line, tag| format!("{line}{}:{tag}", tag.len()))
        }
        _ => "a".to_owned(),
    }
}

fn parse_selector(what: &str) -> Option<Selector> {
    let (kind, mut rest) = what.split_at_checked(1)?;
    match kind {
        "k" => Some(Selector::Key(Key::from_stored(rest.to_owned()))),
        "p" => Some(Selector::Pattern(Pattern::new(rest))),
        "a" => Some(Selector::All),
        "t" => {
            let mut tags = Vec::new();
            while !rest.is_empty() {
                let (length, after) = rest.split_once(':')?;
                let (tag, after) = after.split_at_checked(length.parse().ok()?)?;
                tags.push(tag.to_owned());
                rest = after;
            }
            Some(Selector::Tags(tags))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_logged_is_read_as_it_was_written() {
        for selector in [
            Selector::Key(Key::new("user:1").part("a b")),
            Selector::Pattern(Pattern::new("user:*:x y")),
            Selector::Pattern(Pattern::prefix("user*")),
            Selector::Tags(vec![]),
            Selector::Tags(vec!["a".into(), "7:|\n\u{e9}".into(), "".into()]),
            Selector::All,
        ] {
            let text = format!("12-3|11-0|me|99|s{}", line(&selector));
            let (position, before) = (Position(12, 3), Position(11, 0));
            let expected = Entry { position, before, sender: "me", at: 99, is_soft: true, selector };
            assert_eq!(Entry::parse(&text), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_others_have_put_there_is_no_entry() {
        for text in [
            "",
            "1-1",
            "1-1|0-0|me|1",
            "1-1|0-0|me|1|",
            "1-1|0-0|me|1|h",
            "1|0-0|me|1|ha",
            "1-1|0-0|me|x|ha",
            "1-1|0-0|me|1|hq",
            "1-1|0-0|me|1|ht9:a",
            "1-1|0-0|me|1|ht1:\u{e9}",
            "1-1|0-0|me|1|htx",
        ] {
            assert_eq!(Entry::parse(text), None, "{text}");
        }
    }
}
