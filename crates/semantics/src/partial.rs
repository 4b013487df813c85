//! Partial responses (RFC 9110 section 15.3.7) as they are stored, and combined (RFC 9111 sections 3.3 and 3.4).

use crate::{
    range::{self, Part},
    stored::{self, StoredResponse},
    tags,
    validation::{self, Validators},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};

/// Which bytes of a representation a response has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    first: u64,
    end: u64,
    /// Of the whole representation.
    length: u64,
}

impl Extent {
    /// What a stored response has; `None` for a part that does not say which one it is.
    pub(crate) fn of(response: &StoredResponse) -> Option<Self> {
        match response.status {
            StatusCode::PARTIAL_CONTENT => Self::of_part(&response.headers),
            _ => Some(Self::of_whole(&response.body)),
        }
    }

    pub(crate) fn of_whole(body: &Bytes) -> Self {
        let length = body.len() as u64;
        Self { first: 0, end: length, length }
    }

    /// Reads the `Content-Range` of a 206; `None` when it has several parts, does not tell how long the whole is, or
    /// contradicts itself.
    pub(crate) fn of_part(headers: &HeaderMap) -> Option<Self> {
        let mut lines = headers.get_all(header::CONTENT_RANGE).iter();
        let (line, None) = (lines.next()?.to_str().ok()?, lines.next()) else { return None };
        let (unit, range) = line.trim().split_once(' ')?;
        let (bounds, length) = range.trim().split_once('/')?;
        let (first, last) = bounds.split_once('-')?;
        let number = |digits: &str| {
            let are_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            digits.parse::<u64>().ok().filter(|_| are_digits)
        };
        let (first, last, length) = (number(first)?, number(last)?, number(length)?);
        let is_sound = unit.eq_ignore_ascii_case("bytes") && first <= last && last < length && !has_several(headers);
        is_sound.then_some(Self { first, end: last.saturating_add(1), length })
    }

    /// What a response of this status has. `Content-Range` says nothing but in one to a range (RFC 9110 section 14.4).
    pub(crate) fn stated(status: StatusCode, headers: &HeaderMap, body: &Bytes) -> Self {
        let part = if status == StatusCode::PARTIAL_CONTENT { Self::of_part(headers) } else { None };
        part.unwrap_or_else(|| Self::of_whole(body))
    }

    /// How long the whole representation is, in bytes.
    pub(crate) fn length(self) -> u64 {
        self.length
    }

    pub(crate) fn is_whole(self) -> bool {
        self.first == 0 && self.end == self.length
    }

    /// A part of what is stored, and which one it is; `None` when it is not there.
    ///
    /// An origin that sends fewer bytes than its `Content-Range` states is believed about where they begin, and about
    /// where they end when the last bytes are asked for.
    pub(crate) fn slice(self, part: Part, stored: &Bytes) -> Option<(Part, Bytes)> {
        let (first, end) = part.bounds();
        let held = stored.len() as u64;
        let (from, to) = if part.is_suffix() && end == self.end {
            (held.saturating_sub(end - first), held)
        } else {
            (first.checked_sub(self.first)?, end.checked_sub(self.first)?.min(held))
        };
        if self.first > first || end > self.end || from >= to {
            return None;
        }
        let at = |byte| usize::try_from(byte).unwrap_or(usize::MAX).min(stored.len());
        let first = if part.is_suffix() { end - (to - from) } else { first };
        Some((Part::between(first, first + (to - from))?, stored.slice(at(from)..at(to))))
    }

    /// Whether a body is as long as it must be.
    pub(crate) fn is_of(self, body: &Bytes) -> bool {
        self.end - self.first == body.len() as u64
    }

    /// The range that asks for all that is missing, if it is one: the end or the beginning.
    pub(crate) fn missing(self) -> Option<String> {
        match (self.first, self.end) {
            (0, end) if end < self.length => Some(format!("bytes={end}-")),
            (first @ 1.., end) if end == self.length => Some(format!("bytes=0-{}", first - 1)),
            _ => None,
        }
    }

    /// Both together, if there is no gap between them.
    pub(crate) fn with(self, other: Self) -> Option<Self> {
        let is_one = self.length == other.length && self.first <= other.end && other.first <= self.end;
        is_one.then(|| Self { first: self.first.min(other.first), end: self.end.max(other.end), ..self })
    }

    /// Where a part that came, and that meets this one, belongs in the stored body.
    pub(crate) fn gap(self, came: Self, stored: &Bytes) -> Gap {
        let of_stored = |first: u64, end: u64| {
            Part::between(first, end).and_then(|part| self.slice(part, stored)).map_or_else(Bytes::new, |held| held.1)
        };
        let (before, after) = (of_stored(self.first, came.first), of_stored(came.end.max(self.first), self.end));
        Gap { before, length: came.end - came.first, after }
    }
}

/// A gap in what is stored, into which a body is to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// What is stored before it.
    pub before: Bytes,
    /// How many bytes it has.
    pub length: u64,
    /// What is stored after it.
    pub after: Bytes,
}

/// A part that has come, combined with the one that is stored, if both are of the same representation by a strong
/// validator, leave no gap between them, and are no longer than `limit` bytes together (RFC 9111 section 3.4).
pub(crate) fn combined(stored: &StoredResponse, came: &StoredResponse, limit: u64) -> Option<StoredResponse> {
    if came.status != StatusCode::PARTIAL_CONTENT || stored.status != StatusCode::PARTIAL_CONTENT {
        return None;
    }
    let (old, new) = (Extent::of_part(&stored.headers)?, Extent::of_part(&came.headers)?);
    let are_one = Validators::are_same(&stored.headers, &came.headers);
    let is_sound = are_one && old.is_of(&stored.body) && new.is_of(&came.body);
    let extent = old.with(new).filter(|both| is_sound && both.end - both.first <= limit)?;
    let Gap { before, after, .. } = old.gap(new, &stored.body);
    let body = Bytes::from([before, came.body.clone(), after].concat());
    let mut headers = validation::freshened(&stored.headers, &came.headers);
    stored::clean(&mut headers);
    range::leave_digests(&mut headers);
    let told = if extent.is_whole() {
        headers.remove(header::CONTENT_RANGE);
        (StatusCode::OK, None)
    } else {
        let range = format!("bytes {}-{}/{}", extent.first, extent.end - 1, extent.length);
        (StatusCode::PARTIAL_CONTENT, HeaderValue::try_from(range).ok())
    };
    for (name, value) in
        [(header::CONTENT_RANGE, told.1), (header::CONTENT_LENGTH, Some(HeaderValue::from(body.len())))]
    {
        if let Some(value) = value {
            headers.try_insert(name, value).ok()?;
        }
    }
    // What has one tag more than it needs is fetched too often; with one too few, too late.
    let tags = tags::of_entry(stored.tags.iter().chain(&came.tags).map(String::as_str))?;
    Some(StoredResponse { status: told.0, headers, body, tags, ..came.clone() })
}

/// Whether a 206 has several parts in its body, whatever else it says.
fn has_several(headers: &HeaderMap) -> bool {
    let media_type = headers.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    media_type.to_ascii_lowercase().trim_ascii().starts_with(b"multipart/byteranges")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        delivery::Delivery,
        stored::{Basis, StaleUse},
        time::Timestamp,
    };
    use std::time::Duration;

    fn part(range: &'static str, etag: &'static str, body: &'static [u8]) -> StoredResponse {
        let mut headers = HeaderMap::new();
        for (name, value) in [("content-range", range), ("etag", etag)] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        StoredResponse {
            status: StatusCode::PARTIAL_CONTENT,
            headers,
            delivery: Delivery::default(),
            body: Bytes::from_static(body),
            received_at: Timestamp::from_millis(0),
            initial_age: Duration::ZERO,
            lifetime: Duration::from_secs(60),
            keep: Duration::ZERO,
            stale: StaleUse::default(),
            basis: Basis::Response,
            origin_cost: Duration::ZERO,
            tags: Vec::new(),
            born: 0,
            generation: 0,
        }
    }

    #[test]
    fn a_part_says_which_one_it_is_or_it_is_none() {
        let cases = [
            ("bytes 0-4/10", Some((0, 5, 10))),
            ("Bytes 9-9/10", Some((9, 10, 10))),
            ("bytes 0-4/*", None),
            ("bytes */10", None),
            ("bytes 4-0/10", None),
            ("bytes 4-10/10", None),
            ("bytes -4/10", None),
            ("bytes 0-18446744073709551615/18446744073709551616", None),
            ("lines 0-4/10", None),
            ("0-4/10", None),
            ("", None),
        ];
        for (range, expected) in cases {
            let headers = part(range, "\"1\"", b"").headers;
            let expected = expected.map(|(first, end, length)| Extent { first, end, length });
            assert_eq!(Extent::of_part(&headers), expected, "{range}");
        }
    }

    #[test]
    fn parts_that_meet_are_one_and_all_of_them_the_whole() {
        let first = part("bytes 0-4/10", "\"1\"", b"01234");
        type Seen = Option<(&'static str, &'static [u8])>;
        let cases: [(StoredResponse, Seen); 8] = [
            (part("bytes 5-9/10", "\"1\"", b"56789"), Some(("", b"0123456789"))),
            (part("bytes 5-6/10", "\"1\"", b"56"), Some(("bytes 0-6/10", b"0123456"))),
            (part("bytes 3-6/10", "\"1\"", b"XYZW"), Some(("bytes 0-6/10", b"012XYZW"))),
            (part("bytes 1-2/10", "\"1\"", b"XY"), Some(("bytes 0-4/10", b"0XY34"))),
            (part("bytes 6-9/10", "\"1\"", b"6789"), None),
            (part("bytes 5-9/10", "\"2\"", b"56789"), None),
            (part("bytes 5-9/10", "W/\"1\"", b"56789"), None),
            (part("bytes 5-9/10", "\"1\"", b"567"), None),
        ];
        for (came, expected) in cases {
            let combined = combined(&first, &came, 100);
            let seen = combined.as_ref().map(|whole| {
                let range = whole.headers.get("content-range").map_or("", |range| range.to_str().expect("text"));
                (range, &whole.body[..])
            });
            assert_eq!(seen, expected, "{came:?}");
            assert!(combined.is_none_or(|whole| (whole.status == StatusCode::OK) == (whole.body.len() == 10)));
        }
        assert!(combined(&first, &part("bytes 5-9/10", "\"1\"", b"56789"), 9).is_none(), "more than may be stored");
        let backwards = combined(&part("bytes 5-9/10", "\"1\"", b"56789"), &first, 100).expect("a whole");
        assert_eq!((backwards.status, &backwards.body[..]), (StatusCode::OK, &b"0123456789"[..]));
    }
}
