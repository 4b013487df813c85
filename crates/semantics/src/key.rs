//! Cache keys (RFC 9111 section 2): readable, of bounded length, and injective, so that no request can spell the key
//! of another.
//!
//! A key is a text of parts with colons between them. What stands in a part and could be read as structure, as a
//! pattern or as a control byte is percent-encoded, the percent sign itself included.

use crate::{lasting::Lasting, stored::EntryId, vary::VariantId};
use http::{
    HeaderValue, Method, Uri, header, request,
    uri::{Authority, PathAndQuery},
};
use std::{
    fmt::{self, Write},
    hash::{Hash, Hasher},
};

/// The longest text of a key in bytes; a longer one is cut, and a digest of the whole put in the place of the rest.
pub const LONGEST_KEY: usize = 512;

/// What a resource is stored under, within its namespace.
///
/// [`Key::new`] takes text of your own, colons and all; [`Key::part`] adds a part that came from a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(String);

impl Key {
    /// A key of text of your own: `user:123`, `users:leaderboard`.
    ///
    /// Colons are kept, as they separate parts. Never build `text` out of what a request holds: two requests could
    /// then spell the same key. That is what [`Key::part`] is for. A key without text is refused when it is used.
    pub fn new(text: &str) -> Self {
        let mut key = String::with_capacity(text.len());
        encode(&mut key, text.as_bytes(), |byte| byte == b':');
        Self(shorten(key))
    }

    /// Adds a part, with a colon before it. Whatever stands in `part` cannot reach beyond it.
    #[must_use]
    pub fn part(self, part: impl AsRef<[u8]>) -> Self {
        let mut key = self.0;
        key.push(':');
        encode(&mut key, part.as_ref(), |_| false);
        Self(shorten(key))
    }

    /// The same with a part added, which is written as it shows itself: a number, an id.
    #[must_use]
    pub fn with_part(&self, part: impl fmt::Display) -> Self {
        let mut key = String::with_capacity(self.0.len() + 24);
        key.push_str(&self.0);
        key.push(':');
        // Writing to a String cannot fail, so this does if showing the part does; then it ends where that ended.
        let _ = write!(Encoded(&mut key), "{part}");
        Self(shorten(key))
    }

    /// The default key of a request: `route:METHOD:authority:path?query`, HEAD counting as GET.
    ///
    /// The authority is that of the target when it has one, else `Host` (RFC 9112 section 3.3), in lower case.
    pub fn of_request(head: &request::Parts) -> Result<Self, KeyError> {
        let authority = authority(head)?;
        let (path, query) = (head.uri.path(), head.uri.query());
        let target = path.len() + query.map_or(0, |query| 1 + query.len());
        let mut key = String::with_capacity(8 + head.method.as_str().len() + authority.len() + target);
        if matches!(head.method, Method::GET | Method::HEAD) {
            key.push_str("route:GET:");
        } else {
            key.push_str("route:");
            push_part(&mut key, head.method.as_str());
            key.push(':');
        }
        push_authority(&mut key, authority)?;
        key.push(':');
        let whole = head.uri.path_and_query().map_or("", PathAndQuery::as_str);
        if whole.len() == target && are_all(&PLAIN, path) && are_all(&PLAIN, query.unwrap_or("")) {
            key.push_str(whole);
            return Ok(Self(shorten(key)));
        }
        push_part(&mut key, path);
        if let Some(query) = query {
            key.push('?');
            push_part(&mut key, query);
        }
        Ok(Self(shorten(key)))
    }

    /// The text without the query: of a default key, what it has in common with those of all queries of the path.
    pub fn path(&self) -> &str {
        self.0.split_once('?').map_or(&self.0, |(path, _)| path)
    }

    /// The query in a default key, as it stood in the request; `None` when there is none, or the key was cut.
    pub fn query(&self) -> Option<String> {
        let (_, query) = self.0.split_once('?').filter(|(_, query)| !query.contains("%~"))?;
        String::from_utf8(decode(query.as_bytes())).ok()
    }

    /// The default key of the same path with another query.
    #[must_use]
    pub fn with_query(&self, query: Option<&str>) -> Self {
        let mut key = self.path().to_owned();
        if let Some(query) = query {
            key.push('?');
            push_part(&mut key, query);
        }
        Self(shorten(key))
    }

    /// The text: printable ASCII without blanks, quotes, backslashes, braces and glob characters (save the `?` before
    /// a query), at most [`LONGEST_KEY`] bytes.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text as the value of a field; `None` for a text that was [stored](Self::from_stored) and cannot be one.
    pub fn to_value(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.0).ok()
    }

    /// Whether there is no text, so that the key cannot be used.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes a text as it was stored; it is only ever compared.
    pub fn from_stored(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for Key {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for Key {
    fn from(text: String) -> Self {
        Self::new(&text)
    }
}

/// Why no key could be made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyError {
    /// The key has no text.
    Empty,
    /// The request names more than one host, one that is not text, or a user beside it.
    Host,
    /// A brace without its partner, or a parameter without a name; the template is given.
    Braces(String),
    /// Two parameters without a colon between them could spell the same key in two ways; the template is given.
    NoColonBetween(String),
    /// The template names a parameter that the route does not have.
    UnknownParameter {
        /// The template.
        template: String,
        /// The parameter.
        parameter: String,
    },
    /// The template needs path parameters, and nothing tells them.
    NoRouting(String),
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the key is empty: it needs at least one character"),
            Self::Host => f.write_str("the request has more than one Host, one that is not text, or a user beside it"),
            Self::Braces(template) => {
                write!(
                    f,
                    "key {template:?}: braces stand for path parameters, as in \"user:{{id}}\"; one here is alone or empty"
                )
            }
            Self::NoColonBetween(template) => {
                write!(f, "key {template:?}: put a colon between two parameters, or two requests could share a key")
            }
            Self::UnknownParameter { template, parameter } => {
                write!(f, "key {template:?}: the route has no parameter {parameter:?}")
            }
            Self::NoRouting(template) => write!(
                f,
                "key {template:?}: nothing tells the path parameters; build the cache with `.routing(…)` of your framework's crate"
            ),
        }
    }
}

impl std::error::Error for KeyError {}

/// A key with parameters, such as `user:{id}`, filled from the path of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    text: String,
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Parameter(String),
}

impl Template {
    /// Reads a template. Text without braces is a template without parameters.
    ///
    /// # Errors
    ///
    /// When it is empty, a brace has no partner, a parameter has no name, or two parameters have no colon between
    /// them.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let broken = || KeyError::Braces(text.to_owned());
        let mut pieces = Vec::new();
        let (mut rest, mut separated) = (text, true);
        while !rest.is_empty() {
            let (literal, after) = rest.split_once('{').map_or((rest, None), |(literal, after)| (literal, Some(after)));
            if literal.contains('}') {
                return Err(broken());
            }
            if !literal.is_empty() {
                let mut encoded = String::new();
                encode(&mut encoded, literal.as_bytes(), |byte| byte == b':');
                separated |= literal.contains(':');
                pieces.push(Piece::Text(encoded));
            }
            let Some(after) = after else { break };
            let (name, after) = after.split_once('}').ok_or_else(broken)?;
            let name = name.strip_prefix('*').unwrap_or(name);
            if name.is_empty() || name.contains('{') {
                return Err(broken());
            }
            if !separated {
                return Err(KeyError::NoColonBetween(text.to_owned()));
            }
            pieces.push(Piece::Parameter(name.to_owned()));
            (rest, separated) = (after, false);
        }
        if pieces.is_empty() {
            return Err(KeyError::Empty);
        }
        Ok(Self { text: text.to_owned(), pieces })
    }

    /// The names of the parameters, in order.
    pub fn parameters(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Parameter(name) => Some(name.as_str()),
            Piece::Text(_) => None,
        })
    }

    /// The text it was read from.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Fills in the parameters.
    ///
    /// # Errors
    ///
    /// When `value` does not know one of them.
    pub fn fill<'v>(&self, value: impl Fn(&str) -> Option<&'v str>) -> Result<Key, KeyError> {
        let mut key = String::with_capacity(self.text.len() + 16);
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => key.push_str(text),
                Piece::Parameter(name) => {
                    let value = value(name).ok_or_else(|| KeyError::UnknownParameter {
                        template: self.text.clone(),
                        parameter: name.clone(),
                    })?;
                    encode(&mut key, value.as_bytes(), |_| false);
                }
            }
        }
        Ok(Key(shorten(key)))
    }
}

/// The part of a store that belongs to one cache, and the version of what it keeps there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Namespace {
    /// One of [`lasting`].
    name: &'static str,
    version: u32,
}

impl Default for Namespace {
    /// The namespace `larder`, version 1.
    fn default() -> Self {
        Self { name: lasting("larder"), version: 1 }
    }
}

/// The same name, kept for good: a program has few, and every request copies one.
fn lasting(name: &str) -> &'static str {
    static NAMES: Lasting = Lasting::new();
    NAMES.keep(name, usize::MAX).unwrap_or_default()
}

/// A namespace's name is not one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceError(String);

impl fmt::Display for NamespaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "namespace {:?}: it takes 1 to 64 letters, digits, dots, hyphens and underscores", self.0)
    }
}

impl std::error::Error for NamespaceError {}

impl Namespace {
    /// The namespace `name`, with the schema version of what is kept in it. The name stays in memory for as long as the
    /// program runs.
    ///
    /// # Errors
    ///
    /// When `name` is not 1 to 64 ASCII letters, digits, dots, hyphens and underscores.
    pub fn new(name: &str, version: u32) -> Result<Self, NamespaceError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if name.is_empty() || name.len() > 64 || !name.bytes().all(allowed) {
            return Err(NamespaceError(name.to_owned()));
        }
        Ok(Self { name: lasting(name), version })
    }

    /// The name.
    pub fn name(&self) -> &str {
        self.name
    }

    /// The schema version.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Where the resource `key` lies in this namespace.
    #[inline]
    pub fn entry(&self, key: Key) -> EntryKey {
        EntryKey { namespace: self.clone(), key, part: Part::Response }
    }
}

/// Where one entry lies: a resource in a namespace, and which part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryKey {
    /// The namespace.
    pub namespace: Namespace,
    /// The resource.
    pub key: Key,
    /// Which part of it.
    pub part: Part,
}

/// What is stored of a resource. An invalidation reaches all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Part {
    /// Its only response, or the rule by which it varies.
    Response,
    /// The response that a rule gives to some requests.
    Variant(VariantId),
    /// What the program itself knows of it: no client is ever answered with it.
    Value,
}

/// A store has few namespaces, and keys of equal text in two of them are rare: the text and the variant tell enough.
impl Hash for EntryKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key.hash(state);
        match self.part {
            Part::Response => {}
            Part::Variant(variant) => state.write_u128(u128::from_ne_bytes(variant.digest.0)),
            Part::Value => state.write_u8(1),
        }
    }
}

impl EntryKey {
    /// Where a look-up begins that may end at this entry: of a variant, at the rule.
    #[must_use]
    pub fn base(&self) -> Self {
        match self.part {
            Part::Variant(_) => self.resource(),
            Part::Response | Part::Value => self.clone(),
        }
    }

    /// The resource, all of whose tickets are kept together.
    #[must_use]
    pub fn resource(&self) -> Self {
        Self { part: Part::Response, ..self.clone() }
    }

    /// What the program itself knows of the resource.
    #[must_use]
    pub fn value(&self) -> Self {
        Self { part: Part::Value, ..self.clone() }
    }

    /// The variant that it is, if it is one.
    pub fn variant(&self) -> Option<VariantId> {
        if let Part::Variant(variant) = self.part { Some(variant) } else { None }
    }

    /// The text under which a store of many namespaces keeps it: `shop:v2:{user:123}`, a variant
    /// `shop:v2:{user:123}:v:<digest>`, a value `shop:v2:{user:123}:value`. The braces are literal: they put a resource into one slot of a Redis cluster.
    pub fn name(&self) -> String {
        let Self { namespace, key, part } = self;
        let mut name = String::with_capacity(namespace.name.len() + key.0.len() + 16);
        // Writing to a String cannot fail.
        let _ = write!(name, "{}:v{}:{{{}}}", namespace.name, namespace.version, key.0);
        match part {
            Part::Response => {}
            Part::Variant(variant) => _ = write!(name, ":v:{}", variant.digest),
            Part::Value => name.push_str(":value"),
        }
        name
    }

    /// The entry of one variant.
    #[must_use]
    pub fn of_variant(&self, variant: VariantId) -> Self {
        Self { part: Part::Variant(variant), ..self.clone() }
    }
}

/// Makes a request say in `Host`, once and in the form in which it stands in the key, whom it is for (RFC 9112 section
/// 3.2.2): an origin that reads that field must not be told something else than the key.
pub fn settle_host(head: &mut request::Parts) {
    let Ok(authority) = authority(head) else { return };
    let settled = authority.trim().to_ascii_lowercase();
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let is_settled = hosts.next().is_some_and(|host| host.as_bytes() == settled.as_bytes()) && hosts.next().is_none();
    if !settled.is_empty()
        && !is_settled
        && let Ok(host) = HeaderValue::try_from(settled)
    {
        let _ = head.headers.try_insert(header::HOST, host);
    }
    let is_spelt_otherwise = |authority: &Authority| authority.as_str().bytes().any(|byte| byte.is_ascii_uppercase());
    if head.uri.authority().is_some_and(is_spelt_otherwise) {
        let mut parts = head.uri.clone().into_parts();
        let lower = |authority: Authority| Authority::try_from(authority.as_str().to_ascii_lowercase()).ok();
        parts.authority = parts.authority.and_then(lower);
        if let Ok(uri) = Uri::from_parts(parts) {
            head.uri = uri;
        }
    }
}

/// The authority a request is for, as it was written; empty when it names none, and none when it names two.
pub(crate) fn authority(head: &request::Parts) -> Result<&str, KeyError> {
    if let Some(authority) = head.uri.authority() {
        return Ok(authority.as_str());
    }
    // To look it up by its name takes longer than to pass by all that requests mostly have.
    let mut hosts = head.headers.iter().filter(|(name, _)| *name == header::HOST).map(|(_, host)| host);
    match (hosts.next(), hosts.next()) {
        (None, _) => Ok(""),
        (Some(host), None) => host.to_str().map(str::trim_ascii).map_err(|_| KeyError::Host),
        (Some(_), Some(_)) => Err(KeyError::Host),
    }
}

/// Appends an authority in lower case; a user beside the host, or what is not ASCII, makes it none that is cached.
fn push_authority(key: &mut String, authority: &str) -> Result<(), KeyError> {
    if are_all(&PLAIN_HOST, authority) {
        key.push_str(authority);
        return Ok(());
    }
    if authority.contains('@') || !authority.is_ascii() {
        return Err(KeyError::Host);
    }
    push_part(key, &authority.to_ascii_lowercase());
    Ok(())
}

/// Appends a part of a request, which mostly holds nothing to encode.
fn push_part(key: &mut String, part: &str) {
    if are_all(&PLAIN, part) {
        key.push_str(part);
    } else {
        encode(key, part.as_bytes(), |_| false);
    }
}

/// Percent-encodes what is written to it.
struct Encoded<'k>(&'k mut String);

impl Write for Encoded<'_> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        push_part(self.0, part);
        Ok(())
    }
}

/// Whether all bytes of `part` are among `these`. Nearly always they are, so there is no way out before the end: every
/// request pays for this.
fn are_all(these: &[bool; 256], part: &str) -> bool {
    let are = |bytes: &[u8]| bytes.iter().fold(true, |all, &byte| all & these[usize::from(byte)]);
    let mut pieces = part.as_bytes().chunks_exact(4);
    pieces.by_ref().fold(true, |all, piece| all & are(piece)) & are(pieces.remainder())
}

/// Appends `part`, percent-encoding every byte that is not plain; `kept` names the ones to keep besides.
pub(crate) fn encode(key: &mut String, part: &[u8], kept: impl Fn(u8) -> bool) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut rest = part;
    while !rest.is_empty() {
        let plain = rest.iter().position(|&byte| !PLAIN[usize::from(byte)] && !kept(byte)).unwrap_or(rest.len());
        let (run, after) = rest.split_at(plain);
        // What is plain or kept is ASCII.
        key.push_str(std::str::from_utf8(run).unwrap_or_default());
        let Some((&byte, after)) = after.split_first() else { return };
        key.push('%');
        key.push(char::from(HEX[usize::from(byte >> 4)]));
        key.push(char::from(HEX[usize::from(byte & 15)]));
        rest = after;
    }
}

/// The bytes that were percent-encoded; a percent sign that two digits do not follow stands for itself.
pub(crate) fn decode(encoded: &[u8]) -> Vec<u8> {
    let (mut decoded, mut rest) = (Vec::with_capacity(encoded.len()), encoded);
    let digit = |byte: u8| char::from(byte).to_digit(16);
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = match after {
            [high, low, ..] if byte == b'%' => digit(*high).zip(digit(*low)),
            _ => None,
        };
        let (byte, length) = escaped.map_or((byte, 1), |(high, low)| ((high * 16 + low) as u8, 3));
        decoded.push(byte);
        rest = &rest[length..];
    }
    decoded
}

/// The bytes that stand for themselves in a part: printable ASCII without what is structure, pattern or quote.
const PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = 0x21;
    while byte < 0x7f {
        plain[byte] = !matches!(byte as u8, b':' | b'{' | b'}' | b'%' | b'*' | b'?' | b'[' | b']' | b'"' | b'\\');
        byte += 1;
    }
    plain
};

/// Those that stand for themselves in an authority.
const PLAIN_HOST: [bool; 256] = {
    let mut plain = PLAIN;
    let mut byte = 0;
    while byte < 256 {
        plain[byte] &= byte != b'@' as usize && !(byte as u8).is_ascii_uppercase();
        byte += 1;
    }
    plain
};

/// Cuts a key that is too long, and ends it in a digest of the whole.
///
/// A percent sign is always followed by two digits in a key that was not cut, so `%~` cannot be spelled by one.
fn shorten(key: String) -> String {
    if key.len() <= LONGEST_KEY { key } else { cut(key) }
}

#[cold]
fn cut(key: String) -> String {
    let digest = EntryId(first_half(&blake3::hash(key.as_bytes())));
    let mut cut = key;
    cut.truncate(LONGEST_KEY - 34);
    cut.push_str("%~");
    cut.push_str(&digest.to_string());
    cut
}

pub(crate) fn feed(hash: &mut blake3::Hasher, part: &[u8]) {
    hash.update(&(part.len() as u64).to_le_bytes()).update(part);
}

pub(crate) fn first_half(hash: &blake3::Hash) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&hash.as_bytes()[..16]);
    half
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use proptest::prelude::*;

    fn key_of(method: &str, uri: &str, host: Option<&str>) -> String {
        let mut request = Request::builder().method(method).uri(uri);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let (head, ()) = request.body(()).expect("a request").into_parts();
        Key::of_request(&head).expect("a key").as_str().to_owned()
    }

    #[test]
    fn a_part_that_is_shown_is_the_part_of_its_text() {
        let key = Key::new("user");
        for part in ["", "7", "a:b", "{é}%", &"x".repeat(600)] {
            assert_eq!(key.with_part(part), key.clone().part(part), "{part}");
        }
        assert_eq!(key.with_part(format_args!("{}:{}", 1, 2)), key.part("1:2"));
    }

    #[test]
    fn the_default_key_is_readable() {
        let cases = [
            (key_of("GET", "/products?page=2", Some("shop.example")), "route:GET:shop.example:/products?page=2"),
            (key_of("HEAD", "/products", Some("Shop.Example:8080")), "route:GET:shop.example%3A8080:/products"),
            (key_of("GET", "http://a.example/x", Some("b.example")), "route:GET:a.example:/x"),
            (key_of("GET", "/", None), "route:GET::/"),
            (key_of("GET", "/a?", None), "route:GET::/a?"),
            (key_of("GET", "/a%20b:c*?d=[e]?", None), "route:GET::/a%2520b%3Ac%2A?d=%5Be%5D%3F"),
        ];
        for (key, expected) in cases {
            assert_eq!(key, expected);
        }
    }

    #[test]
    fn a_default_key_tells_its_path_and_query_and_takes_another() {
        let key = |uri: &str| Key(key_of("GET", uri, Some("a.example")));
        for uri in ["/", "/a%3Fb", "/p?", "/p?a=1&b=%20:?*", "/p?\u{e9}"] {
            let query = uri.split_once('?').map(|(_, query)| query.to_owned());
            assert_eq!(key(uri).query(), query, "{uri}");
            assert_eq!(key(uri).with_query(query.as_deref()), key(uri), "{uri}");
            assert_eq!(key(uri).path(), key(uri).with_query(None).as_str());
        }
        let (long, other) = (format!("/p?{}", "a:".repeat(500)), format!("/p?{}", "b:".repeat(500)));
        assert_eq!((key(&long).query(), key(&long).path()), (None, key("/p").as_str()));
        assert_eq!(key(&long).with_query(other.strip_prefix("/p?")), key(&other));
        assert_eq!(key(&long).with_query(Some("b")), key("/p?b"));
    }

    #[test]
    fn two_hosts_or_a_user_are_refused() {
        for uri in ["http://user@a/", "http://user:secret@a/"] {
            let (head, ()) = Request::builder().uri(uri).body(()).expect("a request").into_parts();
            assert_eq!(Key::of_request(&head), Err(KeyError::Host));
        }
        let request = Request::builder().header("host", "a").header("host", "b").body(()).expect("a request");
        assert_eq!(Key::of_request(&request.into_parts().0), Err(KeyError::Host));
    }

    #[test]
    fn parts_cannot_reach_beyond_themselves() {
        assert_eq!(Key::new("user").part("1:2").as_str(), "user:1%3A2");
        assert_eq!(Key::new("user:{id} *").as_str(), "user:%7Bid%7D%20%2A");
        assert_eq!(Key::new("a\u{e9}\n\"\\").as_str(), "a%C3%A9%0A%22%5C");
    }

    #[test]
    fn long_keys_are_cut_and_told_apart() {
        let long = "x".repeat(10_000);
        let (a, b) = (Key::new(&format!("{long}a")), Key::new(&format!("{long}b")));
        assert_ne!(a, b);
        assert_eq!(a.as_str().len(), LONGEST_KEY);
        assert!(a.as_str().starts_with("xxx") && a.as_str().contains("%~"));
        assert_ne!(Key::new(a.as_str()), a, "no text spells a cut key");
    }

    #[test]
    fn templates_are_filled_and_checked() {
        let fill = |template: &str, id: &str| {
            let id = id.to_owned();
            Template::parse(template)?.fill(|name| (name == "id").then_some(id.as_str())).map(|key| key.to_string())
        };
        assert_eq!(fill("user:{id}", "123"), Ok("user:123".into()));
        assert_eq!(fill("user:{id}:posts", "1:2"), Ok("user:1%3A2:posts".into()));
        assert_eq!(fill("files:{*id}", "a/b"), Ok("files:a/b".into()));
        assert_eq!(fill("plain", ""), Ok("plain".into()));
        let broken = |text: &str| Err(KeyError::Braces(text.to_owned()));
        for text in ["user:{id", "user:id}", "user:{}", "a{b{c}}", "}{"] {
            assert_eq!(fill(text, "1"), broken(text));
        }
        assert_eq!(fill("", "1"), Err(KeyError::Empty));
        assert_eq!(fill("{id}{id}", "1"), Err(KeyError::NoColonBetween("{id}{id}".into())));
        assert_eq!(fill("{id}-{id}", "1"), Err(KeyError::NoColonBetween("{id}-{id}".into())));
        assert!(
            matches!(fill("user:{name}", "1"), Err(KeyError::UnknownParameter { parameter, .. }) if parameter == "name")
        );
    }

    #[test]
    fn namespaces_are_plain_names() {
        assert!(Namespace::new("shop-1.eu_west", 2).is_ok());
        for name in ["", "a:b", "{a}", "a b", "é", &"x".repeat(65)] {
            assert!(Namespace::new(name, 1).is_err(), "{name}");
        }
    }

    fn part() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..6),
            proptest::collection::vec(proptest::sample::select(&b":%{}?*~AZ0"[..]), 0..6)
        ]
    }

    proptest! {
        #[test]
        fn equal_keys_only_for_equal_parts(a in proptest::collection::vec(part(), 1..4), b in proptest::collection::vec(part(), 1..4)) {
            let key = |parts: &[Vec<u8>]| parts.iter().fold(Key::new("k"), |key, part| key.part(part));
            prop_assert_eq!(key(&a) == key(&b), a == b);
            let plain = key(&a).as_str().bytes().all(|byte| PLAIN[usize::from(byte)] || byte == b':' || byte == b'%');
            prop_assert!(plain);
        }

        #[test]
        fn long_parts_stay_injective(a in "[a%:]{500,520}", b in "[a%:]{500,520}") {
            prop_assert_eq!(Key::new("k").part(&a) == Key::new("k").part(&b), a == b);
            prop_assert!(Key::new("k").part(&a).as_str().len() <= LONGEST_KEY);
        }

        #[test]
        fn equal_default_keys_only_for_equal_requests(
            a in ("[A-C]{1,2}", "[a-b:]{0,3}", "/[a-b%:/]{0,4}", proptest::option::of("[a-b?%:]{0,3}")),
            b in ("[A-C]{1,2}", "[a-b:]{0,3}", "/[a-b%:/]{0,4}", proptest::option::of("[a-b?%:]{0,3}")),
        ) {
            let key = |(method, host, path, query): &(String, String, String, Option<String>)| {
                let uri = query.as_ref().map_or_else(|| path.clone(), |query| format!("{path}?{query}"));
                key_of(method, &uri, Some(host))
            };
            prop_assert_eq!(key(&a) == key(&b), a == b);
        }
    }
}
