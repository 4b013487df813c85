//! Cache directives of requests and responses, parsed once (RFC 9111 section 5.2, RFC 5861, RFC 8246, RFC 9213).
//!
//! Where a directive cannot be read as it was meant, the reading that caches less is taken: a lifetime that is no
//! number is zero, of two lifetimes the shorter counts, a qualified `no-cache` or `private` whose field names cannot be
//! read counts as the unqualified form, and a member that is not even a token marks the whole field as malformed.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use sfv::{Dictionary, ListEntry, Parser};
use std::time::Duration;

/// The header field that RFC 9213 targets at shared caches run by the origin's operator.
pub const CDN_CACHE_CONTROL: HeaderName = HeaderName::from_static("cdn-cache-control");

/// An older one of the same purpose (W3C Note, Edge Architecture Specification 1.0).
pub const SURROGATE_CONTROL: HeaderName = HeaderName::from_static("surrogate-control");
/// How a surrogate tells an origin its name, and what it understands.
pub const SURROGATE_CAPABILITY: HeaderName = HeaderName::from_static("surrogate-capability");

/// A field whose directives count in place of those of `Cache-Control`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// One of RFC 9213, such as `CDN-Cache-Control`.
    Field(HeaderName),
    /// `Surrogate-Control`: its directives for everybody, and those for the surrogate of this name, a token.
    ///
    /// The origin is told the name by `Surrogate-Capability`, which replaces what a client says there: the answer may
    /// depend on it, and it is part of no key. Behind a sealed policy it sees no such field.
    Surrogate(String),
}

impl Target {
    /// Tells the origin of it, if there is anything to tell.
    pub fn announce(&self, request: &mut HeaderMap) {
        if let Self::Surrogate(name) = self
            && let Ok(capability) = HeaderValue::try_from(format!("{name}=\"Surrogate/1.0\""))
        {
            request.insert(SURROGATE_CAPABILITY, capability);
        }
    }
}

/// What a response says about being cached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResponseDirectives {
    /// `no-store`.
    pub no_store: bool,
    /// `no-cache` without field names.
    pub no_cache: bool,
    /// `private` without field names.
    pub private: bool,
    /// The fields named by qualified forms of `no-cache` and `private`, which are not stored (RFC 9111 sections 5.2.2.4
    /// and 5.2.2.7).
    pub unstored_fields: Vec<HeaderName>,
    /// `public`.
    pub public: bool,
    /// `must-revalidate`.
    pub must_revalidate: bool,
    /// `proxy-revalidate`.
    pub proxy_revalidate: bool,
    /// `must-understand`.
    pub must_understand: bool,
    /// `max-age`; zero when its value is no number.
    pub max_age: Option<Duration>,
    /// `s-maxage`; zero when its value is no number.
    pub s_maxage: Option<Duration>,
    /// `stale-while-revalidate` (RFC 5861 section 3); zero when its value is no number.
    pub stale_while_revalidate: Option<Duration>,
    /// `stale-if-error` (RFC 5861 section 4); zero when its value is no number.
    pub stale_if_error: Option<Duration>,
    /// A member could not be read at all, and might have been anything.
    pub malformed: bool,
    /// The directives come from a targeted field, beside which `Expires` does not count (RFC 9213 section 2.2).
    pub targeted: bool,
}

impl ResponseDirectives {
    /// Parses the directives of a response: those of the first of `targets` that is there, a dictionary and not empty
    /// (RFC 9213 section 2.2), else those of `Cache-Control`.
    pub fn parse(headers: &HeaderMap, targets: &[Target]) -> Self {
        let targeted = targets.iter().find_map(|target| match target {
            Target::Field(field) => Self::targeted(headers, field),
            Target::Surrogate(name) => Self::for_surrogate(headers, name),
        });
        targeted.unwrap_or_else(|| Self::of_field(headers, &header::CACHE_CONTROL))
    }

    /// What `Surrogate-Control` says of storing to everybody, and to the surrogate `name`: each directive may be followed
    /// by the names of those that it is for. `max-age=600+60` lets what is stale for no more than 60 seconds answer.
    fn for_surrogate(headers: &HeaderMap, name: &str) -> Option<Self> {
        let mut all = Self { targeted: true, ..Self::default() };
        for directive in headers.get_all(SURROGATE_CONTROL).iter().flat_map(|line| split_members(line.as_bytes())) {
            let mut parts = split_unquoted(directive, b';');
            let member = Member::parse(parts.next().unwrap_or_default());
            let mut names = parts.peekable();
            if names.peek().is_some() && !names.any(|other| other.eq_ignore_ascii_case(name.as_bytes())) {
                continue;
            }
            let value = member.value.as_deref().unwrap_or_default();
            match (member.name(), value.iter().position(|&byte| byte == b'+')) {
                (Some("max-age"), Some(at)) => {
                    all.set("max-age", || delta_seconds(&value[..at]), None);
                    all.set("stale-while-revalidate", || delta_seconds(&value[at + 1..]), None);
                }
                (Some(name), _) => all.set(name, || member.seconds(), member.quoted()),
                (None, _) => all.malformed = true,
            }
        }
        // What it says of contents leaves storing to `Cache-Control`.
        (all != Self { targeted: true, ..Self::default() }).then_some(all)
    }

    fn targeted(headers: &HeaderMap, target: &HeaderName) -> Option<Self> {
        let lines: Vec<&[u8]> = headers.get_all(target).iter().map(HeaderValue::as_bytes).collect();
        if lines.is_empty() {
            return None;
        }
        let dictionary = Parser::new(&lines.join(&b", "[..])).parse::<Dictionary>().ok()?;
        if dictionary.is_empty() {
            return None;
        }
        let mut all = Self { targeted: true, ..Self::default() };
        for (name, value) in dictionary {
            let (seconds, fields) = match &value {
                ListEntry::Item(item) => {
                    let number = item.bare_item.as_integer().and_then(|n| u64::try_from(i64::from(n)).ok());
                    (number, item.bare_item.as_string().map(|text| text.as_str().as_bytes().to_vec()))
                }
                ListEntry::InnerList(_) => (None, None),
            };
            all.set(name.as_str(), || seconds.map(Duration::from_secs), fields.as_deref());
        }
        Some(all)
    }

    fn of_field(headers: &HeaderMap, field: &HeaderName) -> Self {
        let mut all = Self::default();
        for member in members(headers, field) {
            match member.name() {
                Some(name) => all.set(name, || member.seconds(), member.quoted()),
                None => all.malformed = true,
            }
        }
        all
    }

    /// Takes note of a directive, whose value may be a number or a quoted list of fields. Whatever value stands where
    /// none belongs, the directive counts.
    fn set(&mut self, name: &str, seconds: impl FnOnce() -> Option<Duration>, quoted: Option<&[u8]>) {
        match name {
            "no-store" => self.no_store = true,
            "no-cache" | "private" => match quoted.and_then(fields) {
                Some(fields) => self.unstored_fields.extend(fields),
                None if name == "private" => self.private = true,
                None => self.no_cache = true,
            },
            "public" => self.public = true,
            "must-revalidate" => self.must_revalidate = true,
            "proxy-revalidate" => self.proxy_revalidate = true,
            "must-understand" => self.must_understand = true,
            "max-age" => shorten(&mut self.max_age, seconds()),
            "s-maxage" => shorten(&mut self.s_maxage, seconds()),
            "stale-while-revalidate" => shorten(&mut self.stale_while_revalidate, seconds()),
            "stale-if-error" => shorten(&mut self.stale_if_error, seconds()),
            // An unknown directive is passed over (RFC 9111 section 5.2.3), but not one that was meant to forbid.
            other => self.malformed |= is_misspelt(other),
        }
    }

    /// Whether the response allows a shared cache to give it to requests that carry credentials
    /// (RFC 9111 section 3.5).
    pub fn shared_with_credentials(&self) -> bool {
        self.public || self.s_maxage.is_some() || self.must_revalidate
    }
}

/// Whether a response says that it does not change while it is fresh (RFC 8246).
pub fn is_immutable(headers: &HeaderMap) -> bool {
    members(headers, &header::CACHE_CONTROL).any(|member| member.name() == Some("immutable"))
}

/// What a request says about being answered from a cache (RFC 9111 section 5.2.1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestDirectives {
    /// `no-store`.
    pub no_store: bool,
    /// `no-cache`, or `Pragma: no-cache` without `Cache-Control` (RFC 9111 section 5.4).
    pub no_cache: bool,
    /// `only-if-cached`.
    pub only_if_cached: bool,
    /// `max-stale`; the longest time there is without a value, none when its value is no number.
    pub max_stale: Option<Duration>,
    /// `max-age`; zero when its value is no number.
    pub max_age: Option<Duration>,
    /// `stale-if-error` (RFC 5861 section 4); zero when its value is no number. It only shortens what a response allows: else
    /// any client could keep what is stale.
    pub stale_if_error: Option<Duration>,
    /// `min-fresh`; the longest time there is when its value is no number.
    pub min_fresh: Option<Duration>,
}

impl RequestDirectives {
    /// No directive.
    pub(crate) const NOTHING: Self = Self {
        no_store: false,
        no_cache: false,
        only_if_cached: false,
        max_stale: None,
        max_age: None,
        stale_if_error: None,
        min_fresh: None,
    };

    /// Parses the directives of a request.
    pub fn parse(headers: &HeaderMap) -> Self {
        let mut all = Self::NOTHING;
        for member in members(headers, &header::CACHE_CONTROL) {
            match member.name() {
                Some("no-store") => all.no_store = true,
                Some("no-cache") => all.no_cache = true,
                Some("only-if-cached") => all.only_if_cached = true,
                Some("max-age") => shorten(&mut all.max_age, member.seconds()),
                Some("max-stale") if member.value.is_none() => {
                    all.max_stale = Some(all.max_stale.unwrap_or(Duration::MAX));
                }
                Some("max-stale") => shorten(&mut all.max_stale, member.seconds()),
                Some("stale-if-error") => shorten(&mut all.stale_if_error, member.seconds()),
                Some("min-fresh") => {
                    let asked = member.seconds().unwrap_or(Duration::MAX);
                    all.min_fresh = Some(all.min_fresh.map_or(asked, |known| known.max(asked)));
                }
                Some(_) | None => {}
            }
        }
        if !headers.contains_key(header::CACHE_CONTROL) {
            all.no_cache = members(headers, &header::PRAGMA).any(|member| member.name() == Some("no-cache"));
        }
        all
    }
}

/// Keeps the shorter of two lifetimes; one that is no number is zero (RFC 9111 section 4.2.1).
fn shorten(kept: &mut Option<Duration>, seconds: Option<Duration>) {
    let stated = seconds.unwrap_or(Duration::ZERO);
    *kept = Some(kept.map_or(stated, |known| known.min(stated)));
}

/// Whether a name has the letters of a directive that forbids, and something else in its hyphen's place or around them:
/// `no_store`, `nostore`, `'private'`.
fn is_misspelt(name: &str) -> bool {
    let letters = || name.bytes().filter(u8::is_ascii_alphabetic);
    ["private", "nostore", "nocache"].iter().any(|meant| letters().eq(meant.bytes()))
}

/// The field names of a qualified directive; `None` when there are none, or one is no name.
fn fields(list: &[u8]) -> Option<Vec<HeaderName>> {
    let names = list.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|name| !name.is_empty());
    let fields: Vec<HeaderName> = names.map(HeaderName::from_bytes).collect::<Result<_, _>>().ok()?;
    (!fields.is_empty()).then_some(fields)
}

/// One member of a comma-separated directive list: `name` or `name=value`.
struct Member {
    name: Option<String>,
    value: Option<Vec<u8>>,
    is_quoted: bool,
}

impl Member {
    /// The name in lower case, or `None` when the member is not of the form the standard gives it.
    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    fn seconds(&self) -> Option<Duration> {
        delta_seconds(self.value.as_deref()?)
    }

    /// The text of a quoted value. A list of fields has no other form (RFC 9111 section 5.2.2.4).
    fn quoted(&self) -> Option<&[u8]> {
        self.value.as_deref().filter(|_| self.is_quoted)
    }

    fn parse(text: &[u8]) -> Self {
        let malformed = Self { name: None, value: None, is_quoted: false };
        let (name, value) = match text.iter().position(|&byte| byte == b'=') {
            Some(at) => (&text[..at], Some(&text[at + 1..])),
            None => (text, None),
        };
        if name.is_empty() || !name.iter().all(|&byte| is_token_byte(byte)) {
            return malformed;
        }
        let is_quoted = value.is_some_and(|value| value.starts_with(b"\""));
        let value = match value.map(unquote) {
            Some(None) => return malformed,
            Some(value) => value,
            None => None,
        };
        Self { name: Some(String::from_utf8_lossy(name).to_ascii_lowercase()), value, is_quoted }
    }
}

/// The members of every line of `field`, in order; empty ones are passed over (RFC 9110 section 5.6.1.2).
fn members<'a>(headers: &'a HeaderMap, field: &HeaderName) -> impl Iterator<Item = Member> + use<'a> {
    headers.get_all(field).into_iter().flat_map(|line| split_members(line.as_bytes())).map(Member::parse)
}

/// Splits at the commas that stand outside quoted strings; a quote that never ends takes the rest of the line with it.
pub(crate) fn split_members(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    split_unquoted(line, b',')
}

fn split_unquoted(line: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    line.split(move |&byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if byte == separator => return !quoted,
            _ => {}
        }
        false
    })
    .map(<[u8]>::trim_ascii)
    .filter(|member| !member.is_empty())
}

/// The text of a token or of a quoted string; `None` when it is neither.
fn unquote(value: &[u8]) -> Option<Vec<u8>> {
    let Some(inner) = value.strip_prefix(b"\"") else {
        let is_token = !value.is_empty() && value.iter().all(|&byte| is_token_byte(byte));
        return is_token.then(|| value.to_vec());
    };
    let (mut text, mut escaped) = (Vec::with_capacity(inner.len()), false);
    for (at, &byte) in inner.iter().enumerate() {
        match byte {
            _ if escaped => {
                text.push(byte);
                escaped = false;
            }
            b'\\' => escaped = true,
            b'"' => return (at + 1 == inner.len()).then_some(text),
            _ => text.push(byte),
        }
    }
    None
}

/// Reads delta-seconds (RFC 9111 section 1.2.2); numbers too large to hold become the largest.
pub(crate) fn delta_seconds(digits: &[u8]) -> Option<Duration> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let seconds = digits.iter().fold(0u32, |sum, digit| sum.saturating_mul(10).saturating_add(u32::from(digit - b'0')));
    Some(Duration::from_secs(u64::from(seconds)))
}

/// A byte of a token (RFC 9110 section 5.6.2).
pub(crate) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn response(lines: &[&str]) -> ResponseDirectives {
        ResponseDirectives::parse(&fields("cache-control", lines), &[Target::Field(CDN_CACHE_CONTROL)])
    }

    fn fields(name: &'static str, lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(name, HeaderValue::from_bytes(line.as_bytes()).expect("a header value"));
        }
        headers
    }

    const fn seconds(n: u64) -> Option<Duration> {
        Some(Duration::from_secs(n))
    }

    #[test]
    fn lifetimes_are_read_on_the_safe_side() {
        let cases = [
            ("max-age=60", seconds(60)),
            ("MAX-AGE=60", seconds(60)),
            ("max-age=\"60\"", seconds(60)),
            ("max-age=0060", seconds(60)),
            (", ,max-age=60,", seconds(60)),
            ("a=\"max-age=1\", max-age=60", seconds(60)),
            ("a=\"\\\",max-age=1\", max-age=60", seconds(60)),
            ("max-age=60, max-age=30", seconds(30)),
            ("max-age=60, max-age=x", seconds(0)),
            ("max-age", seconds(0)),
            ("max-age=-1", seconds(0)),
            ("max-age=1.5", seconds(0)),
            ("max-age=a60", seconds(0)),
            ("max-age=99999999999999999999999", seconds(u64::from(u32::MAX))),
            ("s-maxage=60", None),
            ("extension", None),
        ];
        for (line, expected) in cases {
            assert_eq!(response(&[line]).max_age, expected, "{line}");
        }
        assert_eq!(response(&["max-age=60", "max-age=20"]).max_age, seconds(20), "two lines are one list");
    }

    #[test]
    fn what_cannot_be_read_is_malformed() {
        for line in [
            "max-age=\"60",
            "no store",
            "=60",
            "\"private\"",
            "max-age =60",
            "max-age= 60",
            "a=b c",
            "a=\"b\"c",
            "p\u{e9}=1",
            "max-age=60; private",
            "a=",
        ] {
            assert!(response(&[line]).malformed, "{line}");
        }
        for line in ["no_store", "nostore", "No--Store", "'private'", "private;x", "no-cache!", "max-age=1, nocache=1"]
        {
            assert!(response(&[line]).malformed, "{line}");
        }
        for line in ["", "max-age=60", "private-ext", "x-no-store", "unknown, other=1, third=\"x y\""] {
            assert!(!response(&[line]).malformed, "{line}");
        }
    }

    #[test]
    fn qualified_forms_name_fields_and_count_as_the_unqualified_when_they_do_not() {
        let read = |line| {
            let read = response(&[line]);
            (
                read.private,
                read.no_cache,
                read.unstored_fields.iter().map(HeaderName::as_str).collect::<Vec<_>>().join(" "),
            )
        };
        let cases = [
            ("private=\"set-cookie\"", (false, false, "set-cookie")),
            ("no-cache=\"A, b\", private=\"c\"", (false, false, "a b c")),
            ("private, private=\"c\"", (true, false, "c")),
            ("private=\"\"", (true, false, "")),
            ("private=set-cookie", (true, false, "")),
            ("private=\"set cookie\"", (true, false, "")),
            ("no-cache=\",\"", (false, true, "")),
            ("no-cache=1", (false, true, "")),
        ];
        for (line, (private, no_cache, fields)) in cases {
            assert_eq!(read(line), (private, no_cache, fields.to_owned()), "{line}");
        }
        assert!(response(&["no-store=1"]).no_store);
        assert!(response(&["no-store=\"a\""]).no_store);
    }

    #[test]
    fn a_targeted_field_replaces_cache_control() {
        let read = |targeted: &'static str, other: &'static str| {
            let mut headers = fields("cache-control", &[other]);
            headers.insert(CDN_CACHE_CONTROL, HeaderValue::from_static(targeted));
            ResponseDirectives::parse(&headers, &[Target::Field(CDN_CACHE_CONTROL)])
        };
        let taken = read("max-age=60", "private");
        assert_eq!((taken.private, taken.max_age, taken.targeted), (false, seconds(60), true));
        for ban in ["no-store;x=1", "no-store=?1", "no-store=?0", "no-store=(\"a\" \"b\")", "max-age=60, no-store"] {
            assert!(read(ban, "max-age=60").no_store, "{ban}");
        }
        for value in ["max-age=-1", "max-age=1.5", "max-age=\"60\"", "max-age", "max-age=(60)"] {
            assert_eq!(read(value, "max-age=9").max_age, seconds(0), "{value}");
        }
    }

    #[test]
    fn a_targeted_field_that_is_empty_or_no_dictionary_is_as_good_as_none() {
        for targeted in ["", ",", "Max-Age=60", "max-age=60,", "0a=1, max-age=60", "max-age=\"60", "max-age=60 s"] {
            let mut headers = fields("cache-control", &["no-store"]);
            headers.insert(CDN_CACHE_CONTROL, HeaderValue::from_static(targeted));
            assert!(ResponseDirectives::parse(&headers, &[Target::Field(CDN_CACHE_CONTROL)]).no_store, "{targeted}");
        }
    }

    #[test]
    fn a_surrogate_heeds_what_is_for_everybody_and_for_itself() {
        let read = |line: &str| {
            let mut headers = fields("surrogate-control", &[line]);
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, max-age=9"));
            ResponseDirectives::parse(&headers, &[Target::Surrogate("larder".to_owned())])
        };
        let cases = [
            ("max-age=60", seconds(60), None),
            ("Max-Age=60", seconds(60), None),
            ("max-age=60;larder", seconds(60), None),
            ("max-age=60 ; other ; Larder", seconds(60), None),
            ("max-age=5;other, max-age=60;larder", seconds(60), None),
            ("max-age=60+30", seconds(60), seconds(30)),
            ("max-age=60+x", seconds(60), seconds(0)),
            ("content=\"ESI/1.0;x\", max-age=60", seconds(60), None),
        ];
        for (line, max_age, stale) in cases {
            let all = read(line);
            assert!(all.targeted && !all.private, "{line}");
            assert_eq!((all.max_age, all.stale_while_revalidate), (max_age, stale), "{line}");
        }
        assert!(read("no-store").no_store && read("no-store;larder, max-age=60").no_store);
        assert!(read("max-age=\"60").malformed && read("no_store").malformed);
        for line in ["", "max-age=60;other", "content=\"ESI/1.0\"", "no-store;other"] {
            let all = read(line);
            assert!(!all.targeted && all.private && !all.no_store, "{line}");
        }
    }

    #[test]
    fn an_origin_is_told_the_name_and_not_what_a_client_says() {
        let mut request = HeaderMap::new();
        request.insert(SURROGATE_CAPABILITY, HeaderValue::from_static("other=\"ESI/1.0\""));
        Target::Surrogate("larder".to_owned()).announce(&mut request);
        assert_eq!(request[SURROGATE_CAPABILITY], "larder=\"Surrogate/1.0\"");
    }

    #[test]
    fn request_directives_and_pragma() {
        let of = |line: &str| RequestDirectives::parse(&fields("cache-control", &[line]));
        assert!(of("no-cache").no_cache && of("no-store").no_store && of("only-if-cached").only_if_cached);
        assert_eq!(of("min-fresh=5, min-fresh=9").min_fresh, seconds(9));
        assert_eq!(of("min-fresh=x").min_fresh, Some(Duration::MAX));
        assert_eq!(of("max-age=x").max_age, seconds(0));
        let mut headers = fields("pragma", &["no-cache"]);
        assert!(RequestDirectives::parse(&headers).no_cache);
        headers.insert("cache-control", HeaderValue::from_static("max-age=1"));
        assert!(!RequestDirectives::parse(&headers).no_cache, "Pragma counts only without Cache-Control");
    }
}
