//! Validators and preconditions (RFC 9110 sections 8.8 and 13, RFC 9111 section 4.3): what a client's conditional
//! request comes to, how the origin is asked whether a stored response still holds, and how its answer freshens it.

use crate::{
    partial::Extent,
    range::{self, Ranges},
    stored::{self, StoredResponse},
    time::Timestamp,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

/// The fields that make a request conditional.
const PRECONDITIONS: [HeaderName; 5] =
    [header::IF_MATCH, header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE, header::IF_UNMODIFIED_SINCE, header::IF_RANGE];

/// What of a stored response answers a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Form {
    /// All of it.
    Whole,
    /// Its headers, as HEAD asks.
    Head,
    /// That it has not changed: 304.
    NotModified,
    /// Parts of its body: 206.
    Parts(Vec<range::Part>),
    /// That it has no such part: 416.
    Unsatisfiable,
}

impl Form {
    /// Evaluates the preconditions and the ranges of a request in the order of RFC 9110 section 13.2.2; `None` when
    /// only the origin can.
    ///
    /// A stored response that `If-Match` or `If-Unmodified-Since` refuses may differ from what the origin has by now,
    /// so it is not for us to answer 412 (RFC 9111 section 4.3.2).
    pub(crate) fn of(method: &Method, request: &HeaderMap, response: &StoredResponse) -> Option<Self> {
        let extent = Extent::of(response)?;
        let form = if *method == Method::HEAD { Self::Head } else { Self::Whole };
        // A part is no answer to who asks for the whole, be it all there is.
        let whole = (response.status != StatusCode::PARTIAL_CONTENT).then_some(form.clone());
        if !matches!(response.status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) || !is_safe(method) {
            return whole;
        }
        let validators = Validators::of(&response.headers);
        if request.contains_key(header::IF_MATCH) {
            if !lists(request, &header::IF_MATCH, |listed| validators.etag.is_some_and(|etag| strong(etag, listed))) {
                return None;
            }
        } else if let Some(since) = date(request, &header::IF_UNMODIFIED_SINCE)
            && validators.last_modified.is_none_or(|modified| modified > since)
        {
            return None;
        }
        if request.contains_key(header::IF_NONE_MATCH) {
            if lists(request, &header::IF_NONE_MATCH, |listed| validators.etag.is_some_and(|etag| weak(etag, listed))) {
                return Some(Self::NotModified);
            }
        } else if let Some(since) = date(request, &header::IF_MODIFIED_SINCE)
            && validators.modified(&response.headers).is_some_and(|modified| modified <= since)
        {
            return Some(Self::NotModified);
        }
        if form == Self::Head || !request.contains_key(header::RANGE) || !validators.allow_ranges(request) {
            return whole;
        }
        match Ranges::parse(request, extent.length()) {
            Ranges::Ignored => whole,
            Ranges::Parts(parts) => {
                let are_held = parts.iter().all(|part| extent.slice(*part, &response.body).is_some());
                are_held.then_some(Self::Parts(parts))
            }
            Ranges::Unsatisfiable => Some(Self::Unsatisfiable),
        }
    }
}

/// Whether a request has a condition that only the origin can evaluate, as what is stored may be out of date
/// (RFC 9111 section 4.3.2).
pub(crate) fn is_for_origin(request: &HeaderMap) -> bool {
    request.contains_key(header::IF_MATCH) || request.contains_key(header::IF_UNMODIFIED_SINCE)
}

fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// What tells one representation of a resource from another.
pub(crate) struct Validators<'a> {
    etag: Option<&'a [u8]>,
    last_modified: Option<Timestamp>,
}

impl<'a> Validators<'a> {
    pub(crate) fn of(headers: &'a HeaderMap) -> Self {
        Self {
            etag: headers.get(header::ETAG).map(HeaderValue::as_bytes),
            last_modified: date(headers, &header::LAST_MODIFIED),
        }
    }

    /// Whether a part is of the same representation as a stored one, by a strong entity tag.
    ///
    /// There are origins that give the same tag to whatever they code by the way; what a part says of its coding must agree.
    pub(crate) fn are_same(stored: &HeaderMap, came: &HeaderMap) -> bool {
        let tags = Validators::of(stored).etag.zip(Validators::of(came).etag);
        let codings = [stored, came].map(|headers| headers.get_all(header::CONTENT_ENCODING));
        let agree = !came.contains_key(header::CONTENT_ENCODING) || codings[0] == codings[1];
        agree && tags.is_some_and(|(one, two)| strong(one, two))
    }

    /// Whether the origin can be asked if the response still holds.
    pub(crate) fn any(&self) -> bool {
        self.etag.is_some() || self.last_modified.is_some()
    }

    /// When the representation was last modified; without `Last-Modified`, when the response was made
    /// (RFC 9111 section 4.3.2).
    fn modified(&self, headers: &HeaderMap) -> Option<Timestamp> {
        self.last_modified.or_else(|| date(headers, &header::DATE))
    }

    /// Evaluates `If-Range` (RFC 9110 section 13.1.5), by strong comparison.
    fn allow_ranges(&self, request: &HeaderMap) -> bool {
        let Some(condition) = request.get(header::IF_RANGE) else { return true };
        match Timestamp::from_http_date(condition) {
            Some(date) => self.last_modified == Some(date),
            None => self.etag.is_some_and(|etag| strong(etag, condition.as_bytes().trim_ascii())),
        }
    }
}

/// Whether a list of entity tags is `*`, or has one for which `holds`.
fn lists(request: &HeaderMap, field: &HeaderName, holds: impl Fn(&[u8]) -> bool) -> bool {
    let mut lines = request.get_all(field).iter().map(HeaderValue::as_bytes);
    lines.any(|line| line.trim_ascii() == b"*" || entity_tags(line).any(&holds))
}

/// The entity tags of a list (RFC 9110 section 8.8.3), up to the first thing that is none.
fn entity_tags(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = line;
    std::iter::from_fn(move || {
        while let [b',' | b' ' | b'\t', after @ ..] = rest {
            rest = after;
        }
        let opaque = rest.strip_prefix(b"W/").unwrap_or(rest);
        let inner = opaque.strip_prefix(b"\"")?;
        let length = rest.len() - inner.len() + inner.iter().position(|&byte| byte == b'"')? + 1;
        let (tag, after) = rest.split_at(length);
        rest = after;
        Some(tag)
    })
}

/// Whether two entity tags are the same by weak comparison (RFC 9110 section 8.8.3.2).
fn weak(one: &[u8], two: &[u8]) -> bool {
    one.strip_prefix(b"W/").unwrap_or(one) == two.strip_prefix(b"W/").unwrap_or(two)
}

/// The strong entity tag of a response, if it has one.
pub(crate) fn strong_validator(response: &HeaderMap) -> Option<&HeaderValue> {
    response.get(header::ETAG).filter(|etag| strong(etag.as_bytes(), etag.as_bytes()))
}

/// Whether two entity tags are the same by strong comparison.
fn strong(one: &[u8], two: &[u8]) -> bool {
    one == two && !one.starts_with(b"W/")
}

fn date(headers: &HeaderMap, field: &HeaderName) -> Option<Timestamp> {
    headers.get(field).and_then(Timestamp::from_http_date)
}

/// An entity tag made of a body, and of how it is coded: equal for equal representations, in every process.
pub(crate) fn entity_tag(headers: &HeaderMap, body: &[u8]) -> HeaderValue {
    let mut hash = blake3::Hasher::new();
    for field in [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::CONTENT_LANGUAGE] {
        hash.update(headers.get(field).map_or(&[][..], HeaderValue::as_bytes)).update(b"\0");
    }
    let digest = hash.update(body).finalize();
    let text = format!("\"{}\"", &digest.to_hex()[..32]);
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("\"\""))
}

/// Makes a request ask whether `response` still holds, in place of whatever the client asked (RFC 9111 section 4.3.1).
pub(crate) fn ask(request: &mut HeaderMap, response: &StoredResponse) {
    for field in PRECONDITIONS {
        request.remove(field);
    }
    for (validator, condition) in
        [(header::ETAG, header::IF_NONE_MATCH), (header::LAST_MODIFIED, header::IF_MODIFIED_SINCE)]
    {
        if let Some(value) = response.headers.get(validator) {
            let _ = request.try_insert(condition, value.clone());
        }
    }
}

/// The fields that describe the body that is stored, and those that tell it from others: a response without a body
/// says nothing new of them (RFC 9111 section 3.2).
const OF_THE_BODY: [HeaderName; 5] =
    [header::CONTENT_LENGTH, header::CONTENT_ENCODING, header::CONTENT_RANGE, header::ETAG, header::LAST_MODIFIED];

/// The headers of a stored response, updated with those of a response that confirms it (RFC 9111 section 3.2).
///
/// The standard leaves a stored response as it is when a 304 has another strong validator. The 304 answers a question
/// about the one that is stored, so it is believed, and the stored validators are kept.
pub(crate) fn freshened(stored: &HeaderMap, confirming: &HeaderMap) -> HeaderMap {
    let mut update = confirming.clone();
    stored::clean(&mut update);
    for field in OF_THE_BODY {
        update.remove(field);
    }
    range::leave_digests(&mut update);
    // How old the confirmation is counts when the lifetime begins anew.
    for age in confirming.get_all(header::AGE) {
        let _ = update.try_append(header::AGE, age.clone());
    }
    let mut headers = stored.clone();
    for name in update.keys() {
        headers.remove(name);
    }
    for (name, value) in &update {
        let _ = headers.try_append(name.clone(), value.clone());
    }
    headers
}

/// Whether the answer to HEAD speaks of the response that is stored (RFC 9111 section 4.3.5).
pub(crate) fn is_confirmed_by_head(stored: &StoredResponse, headers: &HeaderMap) -> bool {
    let agrees = |field: &HeaderName| headers.get(field).is_none_or(|value| stored.headers.get(field) == Some(value));
    let length = headers.get(header::CONTENT_LENGTH);
    agrees(&header::ETAG)
        && agrees(&header::LAST_MODIFIED)
        && length.is_none_or(|length| length.as_bytes() == stored.body.len().to_string().as_bytes())
}

/// Leaves of the headers of a response what belongs to a 304 (RFC 9110 section 15.4.5): what describes the body that is
/// not sent goes, what says how the response is to be used stays.
pub(crate) fn leave_for_not_modified(headers: &mut HeaderMap) {
    for field in [
        header::CONTENT_LENGTH,
        header::CONTENT_ENCODING,
        header::CONTENT_LANGUAGE,
        header::CONTENT_RANGE,
        header::CONTENT_TYPE,
        header::ACCEPT_RANGES,
    ] {
        headers.remove(field);
    }
    range::leave_digests(headers);
    if headers.contains_key(header::ETAG) {
        headers.remove(header::LAST_MODIFIED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entity_tags_are_read_up_to_the_first_thing_that_is_none() {
        let cases: [(&[u8], &[&[u8]]); 8] = [
            (b"\"a\"", &[b"\"a\""]),
            (b" \"a\" , W/\"b\",\"\"", &[b"\"a\"", b"W/\"b\"", b"\"\""]),
            (b"\"a,b\", \"c\"", &[b"\"a,b\"", b"\"c\""]),
            (b"\"caf\xe9\"", &[b"\"caf\xe9\""]),
            (b"\"a\", b, \"c\"", &[b"\"a\""]),
            (b"w/\"a\"", &[]),
            (b"\"a", &[]),
            (b"", &[]),
        ];
        for (line, expected) in cases {
            assert_eq!(entity_tags(line).collect::<Vec<_>>(), expected, "{}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn comparison_is_weak_for_reuse_and_strong_for_parts() {
        let cases: [(&[u8], &[u8], bool, bool); 4] = [
            (b"\"1\"", b"\"1\"", true, true),
            (b"W/\"1\"", b"\"1\"", true, false),
            (b"W/\"1\"", b"W/\"1\"", true, false),
            (b"\"1\"", b"\"2\"", false, false),
        ];
        for (one, two, is_weak, is_strong) in cases {
            assert_eq!((weak(one, two), strong(one, two)), (is_weak, is_strong));
        }
    }

    #[test]
    fn a_confirmation_changes_what_does_not_describe_the_body() {
        let map = |fields: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, HeaderValue::from_static(value));
            }
            headers
        };
        let stored = map(&[("etag", "\"1\""), ("content-length", "5"), ("x-a", "1"), ("link", "<a>"), ("x-kept", "1")]);
        let confirming = map(&[
            ("etag", "\"2\""),
            ("content-length", "0"),
            ("x-a", "2"),
            ("link", "<b>"),
            ("link", "<c>"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("age", "3"),
        ]);
        let expected = map(&[
            ("etag", "\"1\""),
            ("content-length", "5"),
            ("x-a", "2"),
            ("link", "<b>"),
            ("link", "<c>"),
            ("x-kept", "1"),
            ("age", "3"),
        ]);
        assert_eq!(freshened(&stored, &confirming), expected);
    }
}
