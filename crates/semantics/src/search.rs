//! Queries that differ and ask for the same (draft-ietf-httpbis-no-vary-search): what of a query counts for a response,
//! and the one form of all queries between which it does not tell.

use crate::key::decode;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, response};
use sfv::{Dictionary, ListEntry, Parser};
use std::{borrow::Cow, fmt::Write};

/// The header field in which a response says what of a query counts.
pub const NO_VARY_SEARCH: HeaderName = HeaderName::from_static("no-vary-search");

/// What of a query counts for a response; by default all of it, to the letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variance {
    parameters: Parameters,
    /// Whether parameters of different names may change places.
    ignores_order: bool,
}

/// The parameters that count, told by names, which are sorted.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Parameters {
    AllBut(Vec<String>),
    Only(Vec<String>),
}

impl Default for Variance {
    fn default() -> Self {
        Self { parameters: Parameters::AllBut(Vec::new()), ignores_order: false }
    }
}

impl Variance {
    /// Reads what a response says. What is no dictionary, or holds a value of the wrong type, says nothing.
    ///
    /// `params` without a list, alone or with `except`, is how the first versions of the draft had it, and with them
    /// browsers and their manuals; later ones take it for a mistake. It has one meaning only, and is read.
    pub fn parse(headers: &HeaderMap) -> Self {
        Self::read(headers).unwrap_or_default()
    }

    fn read(headers: &HeaderMap) -> Option<Self> {
        let lines: Vec<&[u8]> = headers.get_all(NO_VARY_SEARCH).iter().map(HeaderValue::as_bytes).collect();
        let said = Parser::new(&lines.join(&b", "[..])).parse::<Dictionary>().ok()?;
        let ignores_order = said.get("key-order").map_or(Some(false), boolean)?;
        let parameters = match (said.get("params"), said.get("except")) {
            (None, None) => Parameters::AllBut(Vec::new()),
            (Some(ListEntry::InnerList(_)), Some(_)) => return None,
            (Some(params @ ListEntry::InnerList(_)), None) => Parameters::AllBut(names(params)?),
            (Some(params), _) if boolean(params) != Some(true) => return None,
            (_, None) => Parameters::Only(Vec::new()),
            (_, Some(except)) => Parameters::Only(names(except)?),
        };
        Some(Self { parameters, ignores_order })
    }

    /// Whether it is the default: every letter counts.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The one form of all queries that ask for the same as `query`. It is a query that asks for the same, too.
    pub fn canonical<'q>(&self, query: Option<&'q str>) -> Option<Cow<'q, str>> {
        if self.is_default() {
            return query.map(Cow::Borrowed);
        }
        let mut counted: Vec<_> = parameters(query?).filter(|(name, _)| self.counts(name)).collect();
        if self.ignores_order {
            counted.sort_by(|(a, _), (b, _)| a.cmp(b));
        }
        let mut canonical = String::new();
        for (name, value) in &counted {
            if !canonical.is_empty() {
                canonical.push('&');
            }
            push_encoded(&mut canonical, name);
            canonical.push('=');
            push_encoded(&mut canonical, value);
        }
        (!counted.is_empty()).then_some(Cow::Owned(canonical))
    }

    fn counts(&self, name: &str) -> bool {
        let is_among = |names: &[String]| names.binary_search_by(|known| known.as_str().cmp(name)).is_ok();
        match &self.parameters {
            Parameters::AllBut(names) => !is_among(names),
            Parameters::Only(names) => is_among(names),
        }
    }
}

fn boolean(value: &ListEntry) -> Option<bool> {
    match value {
        ListEntry::Item(item) => item.bare_item.as_boolean(),
        ListEntry::InnerList(_) => None,
    }
}

fn names(value: &ListEntry) -> Option<Vec<String>> {
    let ListEntry::InnerList(list) = value else { return None };
    let name = |text: &sfv::StringRef| form_decoded(text.as_str());
    let names: Option<Vec<String>> = list.items.iter().map(|item| item.bare_item.as_string().map(name)).collect();
    let mut names = names?;
    names.sort();
    names.dedup();
    Some(names)
}

/// The names and values in a query (`application/x-www-form-urlencoded`).
fn parameters(query: &str) -> impl Iterator<Item = (String, String)> {
    query.split('&').filter(|parameter| !parameter.is_empty()).map(|parameter| {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        (form_decoded(name), form_decoded(value))
    })
}

fn form_decoded(text: &str) -> String {
    String::from_utf8_lossy(&decode(text.replace('+', " ").as_bytes())).into_owned()
}

fn push_encoded(query: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            query.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(query, "%{byte:02X}");
        }
    }
}

/// What a response tells of the queries of its path; `None` when it tells nothing, as an error or a part may not have the
/// fields of the whole.
pub fn told(response: &response::Parts) -> Option<Variance> {
    let variance = Variance::parse(&response.headers);
    let is_whole = response.status.is_success() && response.status != StatusCode::PARTIAL_CONTENT;
    (is_whole || !variance.is_default()).then_some(variance)
}

/// A request's query, where the request is looked up by another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sought {
    query: String,
    canonical: Option<String>,
}

impl Sought {
    /// By the canonical form of `query`; `None` where that is the query itself.
    pub fn by(variance: &Variance, query: Option<&str>) -> Option<Self> {
        let canonical = variance.canonical(query);
        let is_other = canonical.as_deref() != query;
        is_other.then_some(Self { query: query?.to_owned(), canonical: canonical.map(Cow::into_owned) })
    }

    /// The query it is looked up by.
    pub fn canonical(&self) -> Option<&str> {
        self.canonical.as_deref()
    }

    /// Whether a response that is stored by the canonical query, or is to be, says itself that both are the same.
    pub fn is_answered_by(&self, response: &HeaderMap) -> bool {
        Variance::parse(response).canonical(Some(&self.query)).as_deref() == self.canonical()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Response;
    use proptest::{collection::vec, prelude::*, sample::select};

    fn head(status: u16, lines: &[&str]) -> response::Parts {
        let mut response = Response::builder().status(status);
        for line in lines {
            response = response.header(NO_VARY_SEARCH, *line);
        }
        response.body(()).expect("a response").into_parts().0
    }

    fn said(lines: &[&str]) -> Variance {
        Variance::parse(&head(200, lines).headers)
    }

    #[test]
    fn what_a_response_says_is_read_in_every_spelling() {
        let strings = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let all_but = |names: &[&str]| Parameters::AllBut(strings(names));
        let only = |names: &[&str]| Parameters::Only(strings(names));
        let cases = [
            (&["key-order"][..], all_but(&[]), true),
            (&["key-order=?1;x=1"], all_but(&[]), true),
            (&["params=(\"b\" \"a\";x \"b\")"], all_but(&["a", "b"]), false),
            (&["params=(\"a\"), key-order"], all_but(&["a"]), true),
            (&["params=(\"a\")", "key-order"], all_but(&["a"]), true),
            (&["params=(\"a\"), params=(\"b\")"], all_but(&["b"]), false),
            (&["params=(\"a\"), key-order=?0, unknown=1"], all_but(&["a"]), false),
            (&["params=(\"%C3%A9+%E6%B0%97\" \"%zz%4\" \"\")"], all_but(&["", "%zz%4", "\u{e9} \u{6c17}"]), false),
            (&["except=(\"x\")"], only(&["x"]), false),
            (&["except=()"], only(&[]), false),
            (&["key-order, except=(\"x\" \"y\")"], only(&["x", "y"]), true),
            (&["params"], only(&[]), false),
            (&["params=?1, except=(\"x\")"], only(&["x"]), false),
        ];
        for (lines, parameters, ignores_order) in cases {
            assert_eq!(said(lines), Variance { parameters, ignores_order }, "{lines:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_says_nothing() {
        let mistaken = [
            "key-order=\"a\"",
            "key-order=1, params=(\"a\")",
            "key-order=()",
            "params=\"a\"",
            "params=a",
            "params=(a)",
            "params=(\"a\" 1)",
            "params=?0, key-order",
            "params=(\"a\"), except=(\"x\")",
            "params=(), except=()",
            "params=?0, except=(\"x\")",
            "params=?1, except=(x)",
            "except=\"x\"",
            "except=?1",
            "except",
            "except=(x)",
            "key-order, except=(1)",
            "(\"a\")",
            "\"a\"",
            "key-order,",
            "params=(\"a\"",
            "Key-Order",
            "params=(\"\u{e9}\")",
        ];
        for line in mistaken.into_iter().chain(["", "params=()", "key-order=?0", "unknown"]) {
            assert!(said(&[line]).is_default(), "{line}");
        }
        assert!(said(&[]).is_default());
    }

    #[test]
    fn queries_have_one_form() {
        let (order, no_a, only_a, all) = (["key-order"], ["params=(\"a\")"], ["except=(\"a\")"], ["except=()"]);
        let none: [&str; 0] = [];
        let cases = [
            (&none[..], Some("b=2&&a"), Some("b=2&&a")),
            (&none, Some(""), Some("")),
            (&none, None, None),
            (&order, None, None),
            (&order, Some(""), None),
            (&order, Some("&&"), None),
            (&order, Some("="), Some("=")),
            (&order, Some("=x&&"), Some("=x")),
            (&order, Some("b=2&a=1&b=1&"), Some("a=1&b=2&b=1")),
            (&order, Some("a&b="), Some("a=&b=")),
            (&order, Some("%61=%78"), Some("a=x")),
            (&order, Some("a=1=2&b=%26c"), Some("a=1%3D2&b=%26c")),
            (&order, Some("a=+&b=%20&c=%2B"), Some("a=%20&b=%20&c=%2B")),
            (&order, Some("a=\u{e9}&b=%C3%A9"), Some("a=%C3%A9&b=%C3%A9")),
            (&order, Some("a=%f6&b=%ef%bf%bd"), Some("a=%EF%BF%BD&b=%EF%BF%BD")),
            (&order, Some("a=%&b=%4&c=%zz&d=%+f"), Some("a=%25&b=%254&c=%25zz&d=%25%20f")),
            (&no_a, Some("b=2&a=1&%61=3&A=4&b=1"), Some("b=2&A=4&b=1")),
            (&no_a, Some("a=1"), None),
            (&only_a, Some("b=2&a=2&c&%61=1"), Some("a=2&a=1")),
            (&only_a, Some("b=2"), None),
            (&all, Some("b=2&a=1"), None),
        ];
        for (lines, query, canonical) in cases {
            assert_eq!(said(lines).canonical(query).as_deref(), canonical, "{lines:?} {query:?}");
        }
    }

    #[test]
    fn an_error_or_a_part_does_not_say_that_all_counts() {
        for status in [206, 304, 404, 500] {
            assert_eq!(told(&head(status, &[])), None, "{status}");
            assert_eq!(told(&head(status, &["key-order"])), Some(said(&["key-order"])), "{status}");
        }
        assert_eq!(told(&head(200, &[])), Some(Variance::default()));
    }

    #[test]
    fn a_response_answers_another_query_only_if_it_says_so_itself() {
        let sought = |query| Sought::by(&said(&["params=(\"a\" \"b\")"]), query);
        assert_eq!((sought(None), sought(Some("c=1"))), (None, None));
        let sought = sought(Some("a=1&c=1")).expect("another query");
        assert_eq!(sought.canonical(), Some("c=1"));
        for (line, is_answered) in [
            ("params=(\"a\")", true),
            ("except=(\"c\")", true),
            ("params=(\"b\")", false),
            ("params=(\"a\" \"c\")", false),
            ("key-order", false),
            ("params=(a)", false),
        ] {
            assert_eq!(sought.is_answered_by(&head(200, &[line]).headers), is_answered, "{line}");
        }
        assert!(!sought.is_answered_by(&HeaderMap::new()));
    }

    const CHARACTERS: [char; 8] = ['a', 'b', ' ', '&', '=', '%', '+', '\u{e9}'];

    fn text() -> impl Strategy<Value = String> {
        prop_oneof![
            3 => select(&["", "a", "b", "ab", "\u{e9} "][..]).prop_map(str::to_owned),
            1 => vec(select(&CHARACTERS[..]), 0..3).prop_map(String::from_iter),
        ]
    }

    type Pairs = Vec<(String, String)>;

    fn pairs() -> impl Strategy<Value = Pairs> {
        vec((text(), text()), 0..4)
    }

    /// Some way to write a text; each character is written as one bit of `how` says.
    fn spelled(text: &str, how: u32) -> String {
        let mut query = String::new();
        for (at, character) in text.chars().enumerate() {
            match character {
                ' ' if how >> at & 1 == 1 => query.push('+'),
                'a' | 'b' | '\u{e9}' if how >> at & 1 == 1 => query.push(character),
                other => other.to_string().bytes().for_each(|byte| query.push_str(&format!("%{byte:02x}"))),
            }
        }
        query
    }

    /// Some way to write a query of these pairs.
    fn query(pairs: &Pairs, how: u32) -> Option<String> {
        let written = pairs.iter().enumerate().map(|(at, (name, value))| {
            let how = how.rotate_left(7 * at as u32);
            let is_bare = value.is_empty() && !name.is_empty() && how & 1 == 1;
            let (name, value) = (spelled(name, how >> 1), spelled(value, how >> 3));
            let ends = if how & 2 == 2 { "&&" } else { "" };
            if is_bare { format!("{name}{ends}") } else { format!("{name}={value}{ends}") }
        });
        let query = written.collect::<Vec<_>>().join("&");
        (!query.is_empty() || how & 4 == 4).then_some(query)
    }

    /// The draft's comparison, word for word, of queries that are parsed already.
    fn are_equivalent(a: &Pairs, b: &Pairs, parameters: &Parameters, ignores_order: bool) -> bool {
        let counted = |pairs: &Pairs| {
            let mut counted = pairs.clone();
            match parameters {
                Parameters::AllBut(names) => counted.retain(|(name, _)| !names.contains(name)),
                Parameters::Only(names) => counted.retain(|(name, _)| names.contains(name)),
            }
            if ignores_order {
                counted.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
            }
            counted
        };
        counted(a) == counted(b)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2048, ..ProptestConfig::default() })]

        #[test]
        fn forms_are_equal_where_the_draft_takes_queries_for_equivalent(
            (a, b) in prop_oneof![
                (pairs(), pairs()),
                pairs().prop_flat_map(|pairs| (Just(pairs.clone()), Just(pairs).prop_shuffle())),
            ],
            how in any::<[u32; 2]>(),
            names in vec(text(), 0..3),
            (is_except, ignores_order) in any::<(bool, bool)>(),
        ) {
            let list: Vec<String> = names.iter().map(|name| format!("\"{}\"", spelled(name, 0))).collect();
            let key = if is_except { "except" } else { "params" };
            let line = format!("{key}=({}), key-order=?{}", list.join(" "), u8::from(ignores_order));
            let variance = said(&[&line]);
            let parameters = if is_except { Parameters::Only(names) } else { Parameters::AllBut(names) };
            let (one, other) = (query(&a, how[0]), query(&b, how[1]));
            let expected = if variance.is_default() {
                one == other
            } else {
                are_equivalent(&a, &b, &parameters, ignores_order)
            };
            let canonical = variance.canonical(one.as_deref());
            prop_assert_eq!(canonical == variance.canonical(other.as_deref()), expected, "{:?} {:?}", one, other);
        }

        #[test]
        fn the_form_of_a_form_is_itself(
            query in vec(select(&["a", "b", "=", "&", "%26", "%3d", "%", "+", "%2B", "\u{e9}", "%e9", "?"][..]), 0..8),
            line in select(&["key-order", "params=(\"a\")", "except=(\"a\" \"&\")"][..]),
        ) {
            let variance = said(&[line]);
            let query = query.concat();
            let canonical = variance.canonical(Some(&query));
            prop_assert_eq!(variance.canonical(canonical.as_deref()), canonical.clone());
            prop_assert_eq!(Sought::by(&variance, canonical.as_deref()), None);
        }
    }
}
