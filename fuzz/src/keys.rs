//! Keys (RFC 9111 section 2): no text spells the key of another, and a key is short and plain whatever it is made of.

use super::messages::{messages, request};
use http::{HeaderValue, Method, header, request};
use larder::semantics::{
    EntryId, EntryKey, Key, Namespace, Template, VariantId,
    key::LONGEST_KEY,
    sealing::{Query, TRACKING_PARAMETERS},
};
use std::fmt::Debug;

/// Asks it of each two messages of the input: as requests, as texts with parts, and as the parameters of a template, which
/// is the first line of the input.
pub fn hold(input: &[u8]) {
    let messages = messages(input);
    let heads: Vec<request::Parts> = messages.iter().filter_map(|lines| request(lines)).collect();
    let named: Vec<_> = heads.iter().filter_map(named).collect();
    no_two_share_a_key(&named);
    what_is_alike_shares_a_key(&named);
    let parted: Vec<_> = messages.iter().filter_map(|lines| parted(lines)).collect();
    no_two_share_a_key(&parted);
    let filled = filled(&messages);
    no_two_share_a_key(&filled);
    what_is_alike_shares_a_key(&filled);
    let keys = named.iter().map(|(_, key)| key).chain(parted.iter().map(|(_, key)| key));
    no_two_share_a_key(&keys.flat_map(entries).collect::<Vec<_>>());
    heads.iter().for_each(a_query_is_settled_once);
}

fn no_two_share_a_key<T: PartialEq + Debug, K: PartialEq + Debug>(things: &[(T, K)]) {
    for (at, (one, key)) in things.iter().enumerate() {
        let other = things[..at].iter().find(|(other, its_key)| its_key == key && other != one);
        assert!(other.is_none(), "{one:?} has the {key:?} of {other:?}");
    }
}

fn what_is_alike_shares_a_key<T: PartialEq + Debug, K: PartialEq + Debug>(things: &[(T, K)]) {
    for (at, (one, key)) in things.iter().enumerate() {
        let other = things[..at].iter().find(|(other, its_key)| its_key != key && other == one);
        assert!(other.is_none(), "{one:?} has {key:?} and {other:?}");
    }
}

fn is_plain(key: &Key) {
    let text = key.as_str();
    assert!(text.len() <= LONGEST_KEY, "{} bytes: {text}", text.len());
    let is_reserved = |byte: u8| !byte.is_ascii_graphic() || b"{}*[]\"\\".contains(&byte);
    assert!(!text.bytes().any(is_reserved), "{text}");
    assert!(text.matches('?').count() <= 1, "{text}");
    assert!(HeaderValue::from_str(text).is_ok(), "{text}");
    let is_cut = text.len() == LONGEST_KEY && text.contains("%~");
    let mut escapes = text.split('%').skip(1);
    let is_digit = |byte: u8| b"0123456789ABCDEF".contains(&byte);
    let is_escape = |rest: &str| rest.get(..2).is_some_and(|digits| digits.bytes().all(is_digit));
    assert!(is_cut || escapes.all(is_escape), "{text}");
}

/// What a request is for.
#[derive(Debug, PartialEq)]
struct Target<'a> {
    method: &'a Method,
    authority: String,
    path: &'a str,
    query: Option<&'a str>,
}

/// What a request is for, and its key, if it has one.
fn named(head: &request::Parts) -> Option<(Target<'_>, Key)> {
    let key = Key::of_request(head).ok()?;
    is_plain(&key);
    let host =
        || head.headers.get(header::HOST).map_or("", |host| host.to_str().expect("a host of a key is text").trim());
    let authority = head.uri.authority().map_or_else(host, |authority| authority.as_str()).to_ascii_lowercase();
    let method = if head.method == Method::HEAD { &Method::GET } else { &head.method };
    Some((Target { method, authority, path: head.uri.path(), query: head.uri.query() }, key))
}

/// The first line as a text of one's own, and the others as parts. Colons of such a text stand between parts as well.
fn parted<'a>(lines: &[&'a [u8]]) -> Option<(Vec<&'a [u8]>, Key)> {
    let (start, parts) = lines.split_first()?;
    let text = std::str::from_utf8(start).ok()?;
    let key = parts.iter().fold(Key::new(text), |key, part| key.part(part));
    is_plain(&key);
    Some((start.split(|&byte| byte == b':').chain(parts.iter().copied()).collect(), key))
}

/// The keys of the input's first line as a template, with the lines of each message in the place of its parameters.
fn filled<'a>(messages: &[Vec<&'a [u8]>]) -> Vec<(Vec<&'a str>, Key)> {
    let Some(text) = messages.first().and_then(|lines| std::str::from_utf8(lines[0]).ok()) else { return Vec::new() };
    let Ok(template) = Template::parse(text) else { return Vec::new() };
    assert_eq!(template.as_str(), text);
    let mut names: Vec<&str> = template.parameters().collect();
    names.sort_unstable();
    names.dedup();
    let fill = |lines: &Vec<&'a [u8]>| {
        let values: Option<Vec<&str>> = lines.iter().skip(1).map(|line| std::str::from_utf8(line).ok()).collect();
        let values: Vec<&str> = names.iter().zip(values?).map(|(_, value)| value).collect();
        let value = |name: &str| values.get(names.iter().position(|known| *known == name)?).copied();
        let filled = template.fill(value);
        assert_eq!(filled.is_ok(), values.len() == names.len(), "{text}: {values:?}");
        let key = filled.ok()?;
        is_plain(&key);
        Some((values, key))
    };
    messages.iter().filter_map(fill).collect()
}

/// Where a resource and its variants lie, with the names that stores know them by.
fn entries(key: &Key) -> Vec<(EntryKey, String)> {
    let mut entries = Vec::new();
    for (name, version) in [("shop", 1), ("shop", 11), ("shop.v1", 1)] {
        let entry = Namespace::new(name, version).expect("a namespace").entry(key.clone());
        let variant = |byte| entry.of_variant(VariantId { rule: EntryId([1; 16]), digest: EntryId([byte; 16]) });
        entries.extend([entry.clone(), variant(1), variant(2)]);
    }
    let named = |entry: EntryKey| {
        let name = entry.name();
        assert_eq!((name.matches('{').count(), name.matches('}').count()), (1, 1), "{name}");
        (entry, name)
    };
    entries.into_iter().map(named).collect()
}

fn a_query_is_settled_once(head: &request::Parts) {
    let without = TRACKING_PARAMETERS.map(str::to_owned).to_vec();
    for query in [Query { sort: true, ..Query::default() }, Query { sort: true, only: None, without }] {
        if let Some(settled) = query.settle(&head.uri) {
            assert_eq!(query.settle(&settled), None, "{} became {settled}", head.uri);
            assert_eq!((settled.path(), settled.authority()), (head.uri.path(), head.uri.authority()));
        }
    }
}
