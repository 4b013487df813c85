//! Variants of a resource (RFC 9111 section 4.1, RFC 9110 section 12.5.5): what a response varies by, and which of the
//! stored ones a request selects.

use crate::{
    directives::split_members,
    key::{feed, first_half},
    stored::EntryId,
};
use http::{HeaderMap, HeaderName, header};

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
    let mut members: Vec<&[u8]> = lines.iter().flat_map(|line| split_members(line)).collect();
    if ![header::ACCEPT_LANGUAGE, header::ACCEPT_ENCODING, header::ACCEPT_CHARSET].contains(field) {
        return members.join(&b","[..]);
    }
    let lower: Vec<Vec<u8>> = members
        .drain(..)
        .map(|member| member.iter().filter(|byte| !byte.is_ascii_whitespace()).map(u8::to_ascii_lowercase).collect())
        .collect();
    let mut wanted: Vec<(u16, &[u8])> = lower.iter().map(|member| weight(member)).collect();
    wanted.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    let members = wanted.into_iter().map(|(weight, member)| [member, b";", weight.to_string().as_bytes()].concat());
    members.collect::<Vec<_>>().join(&b","[..])
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
}
