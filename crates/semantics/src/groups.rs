//! Groups of responses (RFC 9875): one response names those it belongs to, another that they have changed.
//!
//! A group is a tag within its origin: two origins' groups of one name are two groups.

use crate::key::Key;
use http::{HeaderMap, HeaderName, HeaderValue};
use sfv::{BareItem, List, ListEntry, Parser};

/// The groups that a response belongs to.
pub const CACHE_GROUPS: HeaderName = HeaderName::from_static("cache-groups");

/// The groups that a request has changed, says its response.
pub const CACHE_GROUP_INVALIDATION: HeaderName = HeaderName::from_static("cache-group-invalidation");

/// The tags of the groups that `field` lists, of the origin that `authority` names.
///
/// What is no list of strings names no group (RFC 9875 sections 2 and 3).
pub fn tags(headers: &HeaderMap, field: &HeaderName, authority: &str) -> Vec<String> {
    let lines: Vec<&[u8]> = headers.get_all(field).iter().map(HeaderValue::as_bytes).collect();
    if lines.is_empty() {
        return Vec::new();
    }
    let list = Parser::new(&lines.join(&b", "[..])).parse::<List>().unwrap_or_default();
    let names = list.iter().map(|member| match member {
        ListEntry::Item(item) => match &item.bare_item {
            BareItem::String(name) => Some(name.as_str()),
            _ => None,
        },
        ListEntry::InnerList(_) => None,
    });
    let names: Option<Vec<&str>> = names.collect();
    let origin = Key::new("group").part(authority.to_ascii_lowercase());
    names.unwrap_or_default().into_iter().map(|name| format!("{origin}:{name}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_strings_and_of_one_origin() {
        let of = |lines: &[&'static str], authority| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(CACHE_GROUPS, HeaderValue::from_static(line));
            }
            tags(&headers, &CACHE_GROUPS, authority)
        };
        assert_eq!(
            of(&["\"a\", \"b c\";x=1", "\"a:b\""], "H:8080"),
            ["group:h%3A8080:a", "group:h%3A8080:b c", "group:h%3A8080:a:b"]
        );
        assert_ne!(of(&["\"b\""], "h:a"), of(&["\"a:b\""], "h"), "no group reaches into another origin");
        for nothing in [&[][..], &[""], &["a"], &["\"a\", b"], &["(\"a\")"], &["\"a"]] {
            assert!(of(nothing, "h").is_empty(), "{nothing:?}");
        }
    }
}
