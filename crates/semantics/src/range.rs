//! Byte ranges (RFC 9110 section 14), answered from what is stored.

use crate::{partial::Extent, stored::EntryId};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, header};

/// The most parts that are answered: more of them, or parts that overlap, ask for more than the whole
/// (RFC 9110 section 14.2).
const MOST_PARTS: usize = 16;

/// A part of a body: its first byte, and the one after its last. It is never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    first: u64,
    end: u64,
    /// Whether it was asked for as the last bytes, however many there are.
    is_suffix: bool,
}

/// What a request asks of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ranges {
    /// Nothing that can be read, or more than the whole: the whole answers.
    Ignored,
    /// These parts, in the order in which they were asked for; at least one.
    Parts(Vec<Part>),
    /// Only parts that the body does not have.
    Unsatisfiable,
}

impl Ranges {
    /// Reads the `Range` of a request for a body of so many bytes.
    pub(crate) fn parse(request: &HeaderMap, length: u64) -> Self {
        let mut lines = request.get_all(header::RANGE).iter();
        let (Some(line), None) = (lines.next(), lines.next()) else { return Self::Ignored };
        let Some((unit, set)) = line.to_str().ok().and_then(|line| line.split_once('=')) else { return Self::Ignored };
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return Self::Ignored;
        }
        let mut parts: Vec<Part> = Vec::new();
        let mut seen = 0;
        for spec in set.split(',').map(str::trim).filter(|spec| !spec.is_empty()) {
            seen += 1;
            match Part::parse(spec, length) {
                None => return Self::Ignored,
                Some(None) => {}
                Some(Some(part)) if parts.iter().any(|other| part.first < other.end && other.first < part.end) => {
                    return Self::Ignored;
                }
                Some(Some(part)) => parts.push(part),
            }
            if seen > MOST_PARTS {
                return Self::Ignored;
            }
        }
        match (seen, parts.is_empty()) {
            (0, _) => Self::Ignored,
            (_, true) => Self::Unsatisfiable,
            _ => Self::Parts(parts),
        }
    }
}

impl Part {
    /// Reads `first-last`, `first-` or `-length`; `None` when it is none of these, `Some(None)` when the body has no
    /// such part.
    fn parse(spec: &str, length: u64) -> Option<Option<Self>> {
        let (first, last) = spec.split_once('-')?;
        let number = |digits: &str| {
            let digits = digits.trim();
            let are_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            are_digits.then(|| digits.parse().unwrap_or(u64::MAX))
        };
        let (first, end) = match (first.trim().is_empty(), last.trim().is_empty()) {
            (true, true) => return None,
            (true, false) => (length.saturating_sub(number(last)?), length),
            (false, true) => (number(first)?, length),
            (false, false) => {
                let (first, last) = (number(first)?, number(last)?);
                if last < first {
                    return None;
                }
                (first, last.saturating_add(1).min(length))
            }
        };
        let is_suffix = spec.trim_start().starts_with('-');
        Some(Self::between(first, end).map(|part| Self { is_suffix, ..part }))
    }

    /// A part that is known not to be empty.
    pub(crate) fn between(first: u64, end: u64) -> Option<Self> {
        (first < end).then_some(Self { first, end, is_suffix: false })
    }

    pub(crate) fn is_suffix(self) -> bool {
        self.is_suffix
    }

    /// Its first byte, and the one after its last.
    pub(crate) fn bounds(self) -> (u64, u64) {
        (self.first, self.end)
    }

    fn content_range(self, length: u64) -> String {
        format!("bytes {}-{}/{length}", self.first, self.end.saturating_sub(1))
    }
}

/// The body of a 206 with these parts, and in the headers what tells which they are (RFC 9110 section 15.3.7).
///
/// `id` makes the boundary between several parts: it was drawn after the body was made, which so cannot hold it.
pub(crate) fn partial(parts: &[Part], held: Extent, id: EntryId, headers: &mut HeaderMap, stored: &Bytes) -> Bytes {
    let length = held.length();
    let mut tell = |name, value: String| {
        if let Ok(value) = HeaderValue::try_from(value) {
            let _ = headers.try_insert(name, value);
        }
    };
    if let [part] = parts {
        let (part, body) = held.slice(*part, stored).unwrap_or((*part, Bytes::new()));
        tell(header::CONTENT_RANGE, part.content_range(length));
        tell(header::CONTENT_LENGTH, body.len().to_string());
        if body.len() != stored.len() {
            leave_digests(headers);
        }
        return body;
    }
    let boundary = id.to_string();
    let media_type = headers.get(header::CONTENT_TYPE).cloned();
    let mut body = BytesMut::new();
    for part in parts {
        let Some((part, bytes)) = held.slice(*part, stored) else { continue };
        body.put_slice(format!("\r\n--{boundary}\r\n").as_bytes());
        if let Some(media_type) = &media_type {
            body.put_slice(b"Content-Type: ");
            body.put_slice(media_type.as_bytes());
            body.put_slice(b"\r\n");
        }
        body.put_slice(format!("Content-Range: {}\r\n\r\n", part.content_range(length)).as_bytes());
        body.put_slice(&bytes);
    }
    body.put_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    let body = body.freeze();
    headers.remove(header::CONTENT_RANGE);
    leave_digests(headers);
    for (name, value) in [
        (header::CONTENT_TYPE, format!("multipart/byteranges; boundary={boundary}")),
        (header::CONTENT_LENGTH, body.len().to_string()),
    ] {
        if let Ok(value) = HeaderValue::try_from(value) {
            let _ = headers.try_insert(name, value);
        }
    }
    body
}

/// The fields with a digest of what a message carries, which is not that of another part, nor of the whole (RFC 9530
/// section 2, and RFC 1864 before it).
pub(crate) const DIGESTS: [HeaderName; 2] =
    [HeaderName::from_static("content-digest"), HeaderName::from_static("content-md5")];

/// Takes the digests out of the headers of what is no longer what they were made of.
pub(crate) fn leave_digests(headers: &mut HeaderMap) {
    DIGESTS.iter().for_each(|field| _ = headers.remove(field));
}

/// Leaves of the headers of a response what belongs to a 416 (RFC 9110 section 15.5.17).
pub(crate) fn leave_for_unsatisfiable(headers: &mut HeaderMap, length: u64) {
    for field in [
        header::CONTENT_TYPE,
        header::CONTENT_ENCODING,
        header::CONTENT_LANGUAGE,
        header::ETAG,
        header::LAST_MODIFIED,
        // They speak of the representation; a cache further on could else store the error in its place.
        header::CACHE_CONTROL,
        header::EXPIRES,
        crate::directives::CDN_CACHE_CONTROL,
    ] {
        headers.remove(field);
    }
    leave_digests(headers);
    let _ = headers.try_insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    if let Ok(range) = HeaderValue::try_from(format!("bytes */{length}")) {
        let _ = headers.try_insert(header::CONTENT_RANGE, range);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(range: &'static str, length: u64) -> Ranges {
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, HeaderValue::from_static(range));
        Ranges::parse(&headers, length)
    }

    #[test]
    fn ranges_are_those_of_the_standard() {
        let parts = |parts: &[(u64, u64)]| {
            let part = |&(first, end)| Part { first, end, is_suffix: false };
            Ranges::Parts(parts.iter().map(part).collect::<Vec<_>>())
        };
        let cases = [
            ("bytes=0-1", parts(&[(0, 2)])),
            ("Bytes=0-1", parts(&[(0, 2)])),
            ("bytes=0-", parts(&[(0, 10)])),
            ("bytes=9-100", parts(&[(9, 10)])),
            ("bytes=-3", parts(&[(7, 10)])),
            ("bytes=-30", parts(&[(0, 10)])),
            ("bytes= 0-0 , -1 ,", parts(&[(0, 1), (9, 10)])),
            ("bytes=0-0,20-30", parts(&[(0, 1)])),
            ("bytes=10-", Ranges::Unsatisfiable),
            ("bytes=-0", Ranges::Unsatisfiable),
            ("bytes=99999999999999999999-", Ranges::Unsatisfiable),
            ("bytes=3-2", Ranges::Ignored),
            ("bytes=0-4,4-5", Ranges::Ignored),
            ("bytes=cow", Ranges::Ignored),
            ("bytes=", Ranges::Ignored),
            ("bytes=-", Ranges::Ignored),
            ("bytes=1-2-3", Ranges::Ignored),
            ("lines=0-1", Ranges::Ignored),
            ("bytes", Ranges::Ignored),
        ];
        for (range, expected) in cases {
            let parsed = match parse(range, 10) {
                Ranges::Parts(parts) => {
                    assert_eq!(parts.iter().any(|part| part.is_suffix), range.contains("=-") || range.contains(" -"));
                    Ranges::Parts(parts.into_iter().map(|part| Part { is_suffix: false, ..part }).collect())
                }
                other => other,
            };
            assert_eq!(parsed, expected, "{range}");
        }
        assert_eq!(parse("bytes=-5", 0), Ranges::Unsatisfiable);
        assert_eq!(
            parse("bytes=0-0,1-1,2-2,3-3,4-4,5-5,6-6,7-7,8-8,9-9,10-10,11-11,12-12,13-13,14-14,15-15,16-16", 99),
            Ranges::Ignored
        );
    }

    #[test]
    fn several_parts_stand_between_boundaries_with_what_they_are() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        let Ranges::Parts(parts) = parse("bytes=0-1,-2", 10) else { panic!("two parts") };
        let body = Bytes::from_static(b"0123456789");
        let body = partial(&parts, Extent::of_whole(&body), EntryId([0xab; 16]), &mut headers, &body);
        let boundary = "ab".repeat(16);
        let expected = format!(
            "\r\n--{boundary}\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-1/10\r\n\r\n01\
             \r\n--{boundary}\r\nContent-Type: text/plain\r\nContent-Range: bytes 8-9/10\r\n\r\n89\
             \r\n--{boundary}--\r\n"
        );
        assert_eq!(body, expected);
        assert_eq!(headers[header::CONTENT_TYPE], format!("multipart/byteranges; boundary={boundary}"));
        assert_eq!(headers[header::CONTENT_LENGTH], expected.len().to_string());
    }
}
