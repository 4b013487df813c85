//! Variants of a resource (RFC 9111 section 4.1, RFC 9110 section 12.5.5): what a response varies by, and which of the
//! stored ones a request selects.

use crate::{
    directives::split_members,
    key::{feed, first_half},
    stored::EntryId,
    time::Timestamp,
};
use http::{HeaderMap, HeaderName, header};

/// The rule by which a resource varies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Variants {
    /// The header fields that tell its responses apart, sorted.
    pub fields: Vec<HeaderName>,
    /// The variants that are stored, as far as is known: two may be stored at the same time.
    pub known: Vec<Known>,
    /// When all of them were made stale, if they were; zero if not.
    pub stale_since: Timestamp,
}

/// A variant that is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The digest of the rule and the headers.
    pub digest: EntryId,
    /// Until when it is stored.
    pub until: Timestamp,
    /// The language it is in, if it is in one and the resource varies by that.
    pub language: Option<Language>,
}

/// The language of a variant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Language {
    /// Its tag, in lower case.
    pub tag: String,
    /// The digest of what the request's headers said beside the languages it wanted.
    pub beside: EntryId,
}

impl Variants {
    /// The rule for responses that vary by `fields`, before any is stored.
    pub fn by(fields: Vec<HeaderName>) -> Self {
        Self { fields, known: Vec::new(), stale_since: Timestamp::default() }
    }

    /// The variant that a request with `headers` selects, where this rule is the entry `rule`.
    ///
    /// It is the one stored for the very same headers. If there is none and `by_language`, it is one in the language that
    /// the request wants more than any other, if the headers are the same but for that.
    pub(crate) fn select(&self, rule: EntryId, headers: &HeaderMap, by_language: bool, now: Timestamp) -> VariantId {
        let own = VariantId::of(rule, &self.fields, headers);
        let is_stored = |known: &&Known| known.until > now;
        if !by_language || self.known.iter().filter(is_stored).any(|known| known.digest == own.digest) {
            return own;
        }
        let Some(wanted) = wanted_most(headers) else { return own };
        let wanted = Language { tag: wanted, beside: self.beside_language(rule, headers) };
        let known = self.known.iter().filter(is_stored).find(|known| known.language.as_ref() == Some(&wanted));
        known.map_or(own, |known| VariantId { rule, digest: known.digest })
    }

    /// Whether one more variant may be stored at `now`, where there may be so `many`.
    pub(crate) fn have_room(&self, variant: EntryId, many: usize, now: Timestamp) -> bool {
        let is_known = self.known.iter().any(|known| known.digest == variant);
        is_known || self.known.iter().filter(|known| known.until > now).count() < many
    }

    /// The same, with a variant that is stored, and without those that are no longer at `now`.
    pub(crate) fn knowing(mut self, variant: Known, now: Timestamp) -> Self {
        self.known.retain(|known| known.digest != variant.digest && known.until > now);
        self.known.push(variant);
        self
    }

    /// The language of the answer to a request, if the resource varies by it and the answer is in one.
    pub(crate) fn language(&self, rule: EntryId, request: &HeaderMap, response: &HeaderMap) -> Option<Language> {
        let mut lines = response.get_all(header::CONTENT_LANGUAGE).iter();
        let (Some(line), None) = (lines.next(), lines.next()) else { return None };
        let tag = line.to_str().ok()?.trim().to_ascii_lowercase();
        let is_one = is_language(tag.as_bytes()) && self.fields.contains(&header::ACCEPT_LANGUAGE);
        is_one.then(|| Language { tag, beside: self.beside_language(rule, request) })
    }

    fn beside_language(&self, rule: EntryId, headers: &HeaderMap) -> EntryId {
        let others: Vec<HeaderName> =
            self.fields.iter().filter(|field| **field != header::ACCEPT_LANGUAGE).cloned().collect();
        VariantId::of(rule, &others, headers).digest
    }
}

/// The language that a request wants more than any other (RFC 9110 section 12.5.4).
fn wanted_most(headers: &HeaderMap) -> Option<String> {
    let lines: Vec<&[u8]> = headers.get_all(header::ACCEPT_LANGUAGE).iter().map(|line| line.as_bytes()).collect();
    let members: Vec<Vec<u8>> = lower(&lines);
    let mut wanted: Vec<(u16, &[u8])> = members.iter().map(|member| weight(member)).collect();
    wanted.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
    match wanted[..] {
        [(first, _), (second, _), ..] if first == second => None,
        [(weight, tag), ..] if weight > 0 && is_language(tag) => String::from_utf8(tag.to_vec()).ok(),
        _ => None,
    }
}

fn is_language(tag: &[u8]) -> bool {
    !tag.is_empty() && tag.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
}

/// One variant of a resource: a digest of the request headers named by `Vary`, under one rule.
///
/// The rule's id is part of it, so that variants stored under a rule that is gone can never be reached again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VariantId {
    /// The id of the entry that holds the rule.
    pub rule: EntryId,
    /// The digest of the rule and the headers.
    pub digest: EntryId,
}

impl VariantId {
    /// The variant that a request with `headers` belongs to, where the resource varies by `fields`.
    ///
    /// The values are compared in a normal form, as far as RFC 9111 section 4.1 allows: several lines of a field are one
    /// list, blanks around its commas do not count, and of languages and codings neither does case, nor the order of
    /// those that are wanted as much. Those of `Cookie` are joined as RFC 9113 section 8.2.3 has it.
    pub fn of(rule: EntryId, fields: &[HeaderName], headers: &HeaderMap) -> Self {
        let mut hash = blake3::Hasher::new();
        hash.update(&rule.0);
        for field in fields {
            feed(&mut hash, field.as_str().as_bytes());
            let lines: Vec<&[u8]> = headers.get_all(field).iter().map(|line| line.as_bytes().trim_ascii()).collect();
            hash.update(&[u8::from(!lines.is_empty())]);
            feed(&mut hash, &normal(field, &lines));
        }
        Self { rule, digest: EntryId(first_half(&hash.finalize())) }
    }
}

/// The normal form of a field's value.
fn normal(field: &HeaderName, lines: &[&[u8]]) -> Vec<u8> {
    if *field == header::COOKIE {
        return lines.join(&b"; "[..]);
    }
    if ![header::ACCEPT_LANGUAGE, header::ACCEPT_ENCODING, header::ACCEPT_CHARSET].contains(field) {
        return lines.iter().flat_map(|line| split_members(line)).collect::<Vec<_>>().join(&b","[..]);
    }
    let members = lower(lines);
    let mut wanted: Vec<(u16, &[u8])> = members.iter().map(|member| weight(member)).collect();
    wanted.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    let members = wanted.into_iter().map(|(weight, member)| [member, b";", weight.to_string().as_bytes()].concat());
    members.collect::<Vec<_>>().join(&b","[..])
}

/// The members of a list in lower case, without blanks.
fn lower(lines: &[&[u8]]) -> Vec<Vec<u8>> {
    let members = lines.iter().flat_map(|line| split_members(line));
    let lower = |member: &[u8]| {
        member.iter().filter(|byte| !byte.is_ascii_whitespace()).map(u8::to_ascii_lowercase).collect::<Vec<u8>>()
    };
    members.map(lower).collect()
}

/// How much a member of a list is wanted, in thousandths, and the member without that (RFC 9110 section 12.4.2).
/// A weight that cannot be read is left where it is.
fn weight(member: &[u8]) -> (u16, &[u8]) {
    let Some(at) = member.windows(3).position(|three| three == b";q=") else { return (1000, member) };
    let weight = std::str::from_utf8(&member[at + 3..]).ok().and_then(|digits| {
        let is_plain = digits.len() <= 5 && digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        digits.parse::<f64>().ok().filter(|weight| is_plain && *weight <= 1.0)
    });
    match weight {
        Some(weight) => ((weight * 1000.0).round() as u16, &member[..at]),
        None => (1000, member),
    }
}

/// The header fields by which a response varies (RFC 9110 section 12.5.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vary {
    /// By these, sorted, each once; by none when there are none.
    By(Vec<HeaderName>),
    /// By something beyond header fields, or by what cannot be read.
    Star,
}

impl Vary {
    /// Reads the `Vary` of a response. Whatever is no field name counts as `*`.
    pub fn parse(headers: &HeaderMap) -> Self {
        let mut fields = Vec::new();
        for line in headers.get_all(header::VARY) {
            for member in line.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
                match HeaderName::from_bytes(member) {
                    Ok(name) if name.as_str() != "*" => fields.push(name),
                    Err(_) if member.is_empty() => {}
                    _ => return Self::Star,
                }
            }
        }
        fields.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        fields.dedup();
        Self::By(fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn vary_is_read_in_every_spelling() {
        let vary = |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append("vary", HeaderValue::from_str(line).expect("a value"));
            }
            Vary::parse(&headers)
        };
        let by = |names: &[&'static str]| Vary::By(names.iter().map(|name| HeaderName::from_static(name)).collect());
        assert_eq!(vary(&[]), by(&[]));
        assert_eq!(vary(&["Accept-Language, ,ACCEPT", "accept"]), by(&["accept", "accept-language"]));
        for lines in [&["*"][..], &["accept, *"], &["accept", " * "], &["a b"], &["\"accept\""]] {
            assert_eq!(vary(lines), Vary::Star, "{lines:?}");
        }
    }

    #[test]
    fn variants_differ_by_rule_by_presence_and_by_value() {
        let fields = [HeaderName::from_static("a"), HeaderName::from_static("b")];
        let variant = |rule: u8, headers: &[(&'static str, &'static str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(*name, HeaderValue::from_static(value));
            }
            VariantId::of(EntryId([rule; 16]), &fields, &map)
        };
        assert_eq!(variant(1, &[("a", "x"), ("a", "y")]), variant(1, &[("a", "x,y")]));
        assert_eq!(variant(1, &[("c", "x")]), variant(1, &[]));
        let different = [
            variant(1, &[]),
            variant(2, &[]),
            variant(1, &[("a", "")]),
            variant(1, &[("a", "x")]),
            variant(1, &[("b", "x")]),
        ];
        for (at, one) in different.iter().enumerate() {
            assert!(different[..at].iter().all(|other| other != one));
        }
    }

    #[test]
    fn a_language_is_selected_only_where_it_is_wanted_most_and_all_else_is_the_same() {
        let rule = EntryId([1; 16]);
        let request = |language: &'static str, other: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_LANGUAGE, HeaderValue::from_static(language));
            headers.insert("other", HeaderValue::from_static(other));
            headers
        };
        let mut response = HeaderMap::new();
        response.insert(header::CONTENT_LANGUAGE, HeaderValue::from_static("DE"));
        let (now, until) = (Timestamp::from_millis(5), Timestamp::from_millis(10));
        let rules = Variants::by(vec![header::ACCEPT_LANGUAGE, HeaderName::from_static("other")]);
        let asked = request("en, de", "1");
        let stored = VariantId::of(rule, &rules.fields, &asked);
        let language = rules.language(rule, &asked, &response);
        let rules = rules.knowing(Known { digest: stored.digest, until, language }, now);
        let cases = [
            ("fr;q=0.5, de;q=1.0", "1", true),
            ("de", "1", true),
            ("De;q=0.3", "1", true),
            ("de", "2", false),
            ("de, fr", "1", false),
            ("fr, de;q=0.9", "1", false),
            ("de;q=0", "1", false),
            ("de-AT", "1", false),
            ("*", "1", false),
            ("", "1", false),
        ];
        for (language, other, expected) in cases {
            let headers = request(language, other);
            assert_eq!(rules.select(rule, &headers, true, now) == stored, expected, "{language}");
            assert_ne!(rules.select(rule, &headers, false, now), stored, "{language}");
            assert_ne!(rules.select(rule, &headers, true, until), stored, "{language}, when it is gone");
        }
        assert_eq!(rules.select(rule, &request("de, en", "1"), false, until), stored);
    }
}
