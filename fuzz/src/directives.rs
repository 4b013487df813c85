//! Cache directives (RFC 9111 section 5.2, RFC 9213): a field that keeps to the grammar is read as the grammar has it, one
//! that does not is known as such, and what forbids storing is never stored.

use super::{
    messages::{Exchange, exchanges},
    shelf::{Served, Shelf, generous},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use larder::semantics::{
    Content,
    directives::{CDN_CACHE_CONTROL, RequestDirectives, ResponseDirectives, Target},
};
use std::time::Duration;

/// Asks it of the input's first exchange.
pub fn hold(input: &[u8]) {
    let exchanges = exchanges(input);
    let Some(exchange) = exchanges.first() else { return };
    of_a_response(&exchange.response.headers);
    of_a_targeted_field(&exchange.response.headers);
    of_a_request(&exchange.request.headers);
    what_forbids_storing_is_not_stored(exchange);
    what_the_client_refuses_is_not_given(exchange);
}

fn of_a_response(headers: &HeaderMap) {
    let read = ResponseDirectives::parse(headers, &[]);
    let Some(members) = grammatical(headers, &header::CACHE_CONTROL) else {
        assert!(read.malformed, "it does not keep to the grammar: {headers:?}");
        return;
    };
    let members = Members(members);
    let told = [
        ("no-store", read.no_store),
        ("no-cache", read.no_cache),
        ("private", read.private),
        ("public", read.public),
        ("must-revalidate", read.must_revalidate),
        ("proxy-revalidate", read.proxy_revalidate),
        ("must-understand", read.must_understand),
    ];
    for (name, told) in told {
        let is_qualified = |member: &&Member| matches!(name, "no-cache" | "private") && member.fields().is_some();
        let said = members.named(name).any(|member| !is_qualified(&member));
        assert_eq!(told, said, "{name}: {headers:?}");
    }
    let stated = [
        ("max-age", read.max_age),
        ("s-maxage", read.s_maxage),
        ("stale-while-revalidate", read.stale_while_revalidate),
        ("stale-if-error", read.stale_if_error),
    ];
    for (name, stated) in stated {
        let said = members.named(name).map(|member| member.seconds().unwrap_or_default()).min();
        assert_eq!(stated, said, "{name}: {headers:?}");
    }
    let named: Vec<HeaderName> = ["no-cache", "private"]
        .iter()
        .flat_map(|name| members.named(name))
        .filter_map(Member::fields)
        .flatten()
        .collect();
    assert!(named.iter().all(|field| read.unstored_fields.contains(field)), "{headers:?}");
    assert_eq!(named.len(), read.unstored_fields.len(), "{headers:?}");
    assert_eq!(read.malformed, members.0.iter().any(Member::is_misspelt), "{headers:?}");
}

fn of_a_targeted_field(headers: &HeaderMap) {
    let read = ResponseDirectives::parse(headers, &[Target::Field(CDN_CACHE_CONTROL)]);
    if !read.targeted {
        assert_eq!(read, ResponseDirectives::parse(headers, &[]), "as good as none");
        return;
    }
    let mut alone = headers.clone();
    alone.remove(header::CACHE_CONTROL);
    assert_eq!(
        read,
        ResponseDirectives::parse(&alone, &[Target::Field(CDN_CACHE_CONTROL)]),
        "Cache-Control does not count beside it"
    );
    let lines: Vec<&[u8]> = headers.get_all(CDN_CACHE_CONTROL).iter().map(HeaderValue::as_bytes).collect();
    let is_plain = lines.iter().all(|line| !line.iter().any(|byte| b"\"();".contains(byte)));
    let is_said = |word: &[u8]| {
        let mut members = lines.iter().flat_map(|line| line.split(|&byte| byte == b','));
        members.any(|member| member.split(|&byte| byte == b'=').next().is_some_and(|name| name.trim_ascii() == word))
    };
    if is_plain {
        for (word, told) in [("no-store", read.no_store), ("private", read.private), ("no-cache", read.no_cache)] {
            assert_eq!(told, is_said(word.as_bytes()), "{word}: {headers:?}");
        }
    }
}

fn of_a_request(headers: &HeaderMap) {
    let read = RequestDirectives::parse(headers);
    let Some(members) = grammatical(headers, &header::CACHE_CONTROL) else { return };
    let members = Members(members);
    let is_said = |name| members.named(name).next().is_some();
    if headers.contains_key(header::CACHE_CONTROL) {
        assert_eq!(read.no_cache, is_said("no-cache"), "{headers:?}");
    }
    assert_eq!((read.no_store, read.only_if_cached), (is_said("no-store"), is_said("only-if-cached")), "{headers:?}");
    let least = |name| members.named(name).map(|member| member.seconds().unwrap_or_default()).min();
    assert_eq!(read.max_age, least("max-age"), "{headers:?}");
    let accepted = members.named("max-stale").map(|member| match member.value {
        None => Duration::MAX,
        Some(_) => member.seconds().unwrap_or_default(),
    });
    assert_eq!(read.max_stale, accepted.min(), "{headers:?}");
    let asked = members.named("min-fresh").map(|member| member.seconds().unwrap_or(Duration::MAX));
    assert_eq!(read.min_fresh, asked.max(), "{headers:?}");
}

fn what_forbids_storing_is_not_stored(exchange: &Exchange) {
    let policy = generous();
    let headers = &exchange.response.headers;
    let read = ResponseDirectives::parse(headers, &policy.targets);
    let mut shelf = Shelf::new(policy);
    let plain = plain_request(exchange);
    let is_stored = matches!(shelf.serve(&plain, &Bytes::new()), Served::Stored);
    let allowed = (!read.no_store || read.must_understand) && !read.private && !read.malformed && !read.no_cache;
    assert!(allowed || !is_stored, "{headers:?}");
    let says_nothing_else = headers.keys().all(|name| *name == header::CACHE_CONTROL || *name == CDN_CACHE_CONTROL);
    if says_nothing_else && exchange.response.status == 200 {
        assert_eq!(is_stored, allowed, "{headers:?}");
    }
    // Whatever else is said, and however it is broken.
    let forbids = |line: &HeaderValue| [&b"no-store"[..], b"private"].iter().any(|word| is_word(line, word));
    if !read.targeted && !read.must_understand && headers.get_all(header::CACHE_CONTROL).iter().any(forbids) {
        assert!(!is_stored, "a line of its own says so: {headers:?}");
    }
    for entry in shelf.entries.values() {
        if let Content::Response(response) = &entry.content {
            let left = read.unstored_fields.iter().find(|field| response.headers.contains_key(*field));
            // The date of its storing is ours.
            assert!(left.is_none_or(|field| *field == header::DATE), "{left:?} of {headers:?}");
        }
    }
}

fn is_word(line: &HeaderValue, word: &[u8]) -> bool {
    line.as_bytes().trim_ascii().eq_ignore_ascii_case(word)
}

fn what_the_client_refuses_is_not_given(exchange: &Exchange) {
    let mut policy = generous();
    policy.honor_client_directives = true;
    let mut shelf = Shelf::new(policy);
    let mut first = plain_request(exchange);
    first.response.headers.clear();
    first.response.status = StatusCode::OK;
    assert!(matches!(shelf.serve(&first, &Bytes::new()), Served::Stored));
    let before = shelf.entries.clone();
    let read = RequestDirectives::parse(&exchange.request.headers);
    let served = shelf.serve(exchange, &Bytes::new());
    let (is_hit, headers) = (matches!(served, Served::Hit(_)), &exchange.request.headers);
    assert!(!is_hit || !read.no_store && !read.no_cache, "{headers:?}");
    assert!(!read.no_store || shelf.entries == before, "{headers:?}");
    assert!(!read.only_if_cached || !matches!(served, Served::Stored | Served::Confirmed(_)), "{headers:?}");
}

/// The same exchange, begun by a request that says nothing.
fn plain_request(exchange: &Exchange) -> Exchange {
    let mut plain = exchange.clone();
    plain.request.method = Method::GET;
    plain.request.headers.clear();
    plain
}

/// A member of a list of directives.
#[derive(Debug)]
struct Member {
    name: String,
    value: Option<Vec<u8>>,
    is_quoted: bool,
}

impl Member {
    /// What the value says as delta-seconds; `None` when it says none.
    fn seconds(&self) -> Option<Duration> {
        let digits = std::str::from_utf8(self.value.as_deref()?).ok()?;
        let are_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        are_digits.then(|| Duration::from_secs(digits.parse::<u32>().unwrap_or(u32::MAX).into()))
    }

    /// Whether it is no directive, but has all the letters of one that forbids.
    fn is_misspelt(&self) -> bool {
        let letters: String = self.name.chars().filter(char::is_ascii_alphabetic).collect();
        let is_meant = matches!(&*letters, "nostore" | "nocache" | "private");
        is_meant && !matches!(&*self.name, "no-store" | "no-cache" | "private")
    }

    /// The fields that a quoted value names, each a name.
    fn fields(&self) -> Option<Vec<HeaderName>> {
        let list = self.value.as_deref().filter(|_| self.is_quoted)?;
        let names = list.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|name| !name.is_empty());
        let fields: Vec<HeaderName> = names.map(|name| HeaderName::from_bytes(name).ok()).collect::<Option<_>>()?;
        (!fields.is_empty()).then_some(fields)
    }
}

struct Members(Vec<Member>);

impl Members {
    fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Member> {
        self.0.iter().filter(move |member| member.name == name)
    }
}

/// The members of a field whose lines all keep to `#( token [ "=" ( token / quoted-string ) ] )`; `None` when one does
/// not.
fn grammatical(headers: &HeaderMap, field: &HeaderName) -> Option<Vec<Member>> {
    let mut members = Vec::new();
    for line in headers.get_all(field) {
        let mut rest = line.as_bytes();
        loop {
            rest = without(rest, b" \t,");
            if rest.is_empty() {
                break;
            }
            let member;
            (member, rest) = directive(rest)?;
            members.push(member);
            rest = without(rest, b" \t");
            if !rest.is_empty() && rest[0] != b',' {
                return None;
            }
        }
    }
    Some(members)
}

fn directive(text: &[u8]) -> Option<(Member, &[u8])> {
    let (name, rest) = token(text)?;
    let name = std::str::from_utf8(name).ok()?.to_ascii_lowercase();
    let Some(value) = rest.strip_prefix(b"=") else {
        return Some((Member { name, value: None, is_quoted: false }, rest));
    };
    if let Some(inner) = value.strip_prefix(b"\"") {
        let (value, rest) = quoted(inner)?;
        return Some((Member { name, value: Some(value), is_quoted: true }, rest));
    }
    let (value, rest) = token(value)?;
    Some((Member { name, value: Some(value.to_vec()), is_quoted: false }, rest))
}

fn without<'a>(text: &'a [u8], bytes: &[u8]) -> &'a [u8] {
    &text[text.iter().position(|byte| !bytes.contains(byte)).unwrap_or(text.len())..]
}

fn token(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let length = text.iter().position(|byte| !is_part(byte)).unwrap_or(text.len());
    (length > 0).then(|| text.split_at(length))
}

/// The text of a quoted string whose opening quote is gone, and what comes after it.
fn quoted(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut value = Vec::new();
    let mut rest = text;
    loop {
        rest = match rest {
            [b'"', after @ ..] => return Some((value, after)),
            [b'\\', byte, after @ ..] | [byte, after @ ..] => {
                value.push(*byte);
                after
            }
            [] => return None,
        };
    }
}
