//! Ranges (RFC 9110 section 14) of what is stored, whole or in parts (RFC 9111 sections 3.3 and 3.4): the parts of an
//! answer are those that were asked for, lie inside the representation, and are the bytes that the origin sent for them.

use super::{
    messages::{Exchange, exchanges},
    shelf::{Served, Shelf, generous},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header, request};
use larder::semantics::{Content, Entry, Policy, StoredResponse, Timestamp, exchange::Answer};

/// The longest body, in bytes; an origin that states a longer one sends less than it states.
const LONGEST: u64 = 4096;
const MOST_PARTS: usize = 16;

/// Asks it of a cache that takes part in all of the input's exchanges, and of one that stores wholes only.
pub fn hold(input: &[u8]) {
    let mut exchanges = exchanges(input);
    for exchange in &mut exchanges {
        exchange.response.headers.remove(header::VARY);
    }
    let mut storing_parts = generous();
    storing_parts.store_partial = true;
    for policy in [generous(), storing_parts] {
        take_part(&exchanges, policy);
    }
}

fn take_part(exchanges: &[Exchange], policy: Policy) {
    let mut shelf = Shelf::new(policy);
    let mut is_truthful = true;
    for exchange in exchanges {
        let origin = Origin::of(exchange);
        is_truthful &= origin.is_truthful;
        let before = shelf.base().cloned();
        let (Served::Hit(answer) | Served::Confirmed(answer)) = shelf.serve(exchange, &origin.body) else { continue };
        let Some(Entry { content: Content::Response(stored), .. }) = before else { panic!("nothing was stored") };
        let given = Form::of(&answer);
        given.is_for(&exchange.request, &stored);
        if let Some(expected) = Asked::of(&exchange.request, &stored) {
            assert_eq!(given.asked(), expected, "{:?} of {:?}", exchange.request.headers, stored.headers);
        }
        if is_truthful && exchange.request.method == Method::GET {
            given.is_what_was_sent(&answer.headers);
        }
    }
}

/// What the origin sends in one exchange: a body that is drawn from the entity tag, so that bytes of another
/// representation, or from another place, are told at sight.
struct Origin {
    body: Bytes,
    /// Whether it is as long as its head states.
    is_truthful: bool,
}

impl Origin {
    fn of(exchange: &Exchange) -> Self {
        let headers = &exchange.response.headers;
        let told = exchange.length.map(|length| length.min(LONGEST));
        let is_part = exchange.response.status == StatusCode::PARTIAL_CONTENT;
        let range = headers.get(header::CONTENT_RANGE).and_then(Stated::of).filter(|_| is_part);
        let (first, length, is_truthful) =
            range.map_or((0, told.unwrap_or(10), true), |Stated { first, last, .. }| {
                let stated = last - first + 1;
                let sent = told.unwrap_or(stated.min(LONGEST));
                (first, sent, sent == stated)
            });
        let bytes = (0..length).map(|at| byte_of(headers, first.wrapping_add(at)));
        Self { body: bytes.collect::<Vec<u8>>().into(), is_truthful }
    }
}

/// The byte at one place of the representation that an entity tag names.
fn byte_of(headers: &HeaderMap, at: u64) -> u8 {
    let tag = headers.get(header::ETAG).map_or(&b""[..], HeaderValue::as_bytes);
    let seed = tag.iter().fold(at, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

/// What a `Content-Range` states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stated {
    first: u64,
    last: u64,
    length: u64,
}

impl Stated {
    fn of(value: &HeaderValue) -> Option<Self> {
        let (unit, range) = value.to_str().ok()?.trim().split_once(' ')?;
        let (bounds, length) = range.trim().split_once('/')?;
        let (first, last) = bounds.split_once('-')?;
        let stated = Self { first: number(first)?, last: number(last)?, length: number(length)? };
        let is_sound = unit.eq_ignore_ascii_case("bytes") && stated.first <= stated.last && stated.last < stated.length;
        is_sound.then_some(stated)
    }
}

fn number(digits: &str) -> Option<u64> {
    let are_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| are_digits)
}

/// The form of an answer, taken apart.
#[derive(Debug)]
enum Form {
    Whole(Bytes),
    Parts(Vec<(Stated, Bytes)>),
    NotModified,
    Unsatisfiable,
}

impl Form {
    fn of(answer: &Answer) -> Self {
        let Answer { status, headers, body, .. } = answer;
        let stated = headers.get(header::CONTENT_RANGE);
        match *status {
            StatusCode::NOT_MODIFIED => {
                assert!(body.is_empty(), "a 304 with a body");
                Self::NotModified
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                assert!(body.is_empty() && stated.is_some_and(|value| value.as_bytes().starts_with(b"bytes */")));
                Self::Unsatisfiable
            }
            StatusCode::PARTIAL_CONTENT => Self::Parts(match stated {
                Some(stated) => vec![(Stated::of(stated).expect("a sound range"), body.clone())],
                None => multipart(headers, body),
            }),
            _ => Self::Whole(body.clone()),
        }
    }

    /// Checks that it may answer the request, and speaks of what is stored.
    fn is_for(&self, request: &request::Parts, stored: &StoredResponse) {
        let (asked, told) = (&request.headers, (&request.headers, &stored.headers));
        match self {
            Self::Whole(body) => {
                assert_ne!(stored.status, StatusCode::PARTIAL_CONTENT, "a part for the whole: {told:?}");
                let expected = if request.method == Method::HEAD { &Bytes::new() } else { &stored.body };
                assert_eq!(body, expected, "{told:?}");
                return;
            }
            Self::NotModified => {
                let fields = [header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE];
                assert!(fields.iter().any(|field| asked.contains_key(field)), "{told:?}");
                return;
            }
            Self::Parts(parts) => {
                assert!((1..=MOST_PARTS).contains(&parts.len()), "{told:?}");
                for (at, (part, bytes)) in parts.iter().enumerate() {
                    assert_eq!(bytes.len() as u64, part.last - part.first + 1, "{part:?}: {told:?}");
                    let meets = |other: &Stated| part.first <= other.last && other.first <= part.last;
                    assert!(!parts[..at].iter().any(|(other, _)| meets(other)), "{parts:?}: {told:?}");
                    if stored.status != StatusCode::PARTIAL_CONTENT {
                        assert_eq!(part.length, stored.body.len() as u64, "{told:?}");
                    }
                }
            }
            Self::Unsatisfiable => {}
        }
        assert!(request.method == Method::GET && asked.contains_key(header::RANGE), "{told:?}");
        if let Some(condition) = asked.get(header::IF_RANGE) {
            let of = |field| stored.headers.get(field);
            let is_tag =
                |tag: &HeaderValue| tag == condition.as_bytes().trim_ascii() && !tag.as_bytes().starts_with(b"W/");
            let date = Timestamp::from_http_date(condition);
            let is_date = date.is_some() && of(header::LAST_MODIFIED).and_then(Timestamp::from_http_date) == date;
            assert!(is_date || of(header::ETAG).is_some_and(is_tag), "If-Range does not hold: {told:?}");
        }
    }

    /// Checks every byte against the representation that the answer names.
    fn is_what_was_sent(&self, headers: &HeaderMap) {
        let check = |first: u64, bytes: &Bytes| {
            for (at, byte) in (first..).zip(bytes) {
                assert_eq!(*byte, byte_of(headers, at), "byte {at}: {headers:?}");
            }
        };
        match self {
            Self::Whole(body) => check(0, body),
            Self::Parts(parts) => parts.iter().for_each(|(part, bytes)| check(part.first, bytes)),
            Self::NotModified | Self::Unsatisfiable => {}
        }
    }

    fn asked(&self) -> Asked {
        match self {
            Self::Parts(parts) => Asked::Parts(parts.iter().map(|(part, _)| (part.first, part.last)).collect()),
            Self::Whole(_) | Self::NotModified => Asked::Whole,
            Self::Unsatisfiable => Asked::Unsatisfiable,
        }
    }
}

/// The parts of a `multipart/byteranges` (RFC 9110 section 14.6), read to its last byte.
fn multipart(headers: &HeaderMap, body: &Bytes) -> Vec<(Stated, Bytes)> {
    let media_type = headers[header::CONTENT_TYPE].to_str().expect("a media type");
    let boundary = media_type.strip_prefix("multipart/byteranges; boundary=").expect("several parts");
    let delimiter = format!("\r\n--{boundary}");
    let (mut rest, mut parts) = (body.clone(), Vec::new());
    loop {
        rest = rest.strip_prefix(delimiter.as_bytes()).map(|after| body.slice_ref(after)).expect("a delimiter");
        if &rest[..] == b"--\r\n" {
            assert!(parts.len() > 1, "several parts of which there is one");
            return parts;
        }
        let end = rest.windows(4).position(|four| four == b"\r\n\r\n").expect("the head of a part");
        let head = String::from_utf8_lossy(&rest[..end]).into_owned();
        let range = head.lines().find_map(|line| line.strip_prefix("Content-Range: ")).expect("its range");
        let stated = Stated::of(&HeaderValue::from_str(range).expect("a value")).expect("a sound range");
        let length = usize::try_from(stated.last - stated.first + 1).expect("it is in memory");
        rest = rest.slice(end + 4..);
        parts.push((stated, rest.split_to(length)));
    }
}

/// What a request asks for, as far as its `Range` keeps to the grammar.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Whole,
    /// Each with its first and last byte.
    Parts(Vec<(u64, u64)>),
    Unsatisfiable,
}

impl Asked {
    /// `None` where more than `Range` decides, or it has blanks where the grammar has none.
    fn of(request: &request::Parts, stored: &StoredResponse) -> Option<Self> {
        let others = [
            header::IF_MATCH,
            header::IF_NONE_MATCH,
            header::IF_MODIFIED_SINCE,
            header::IF_UNMODIFIED_SINCE,
            header::IF_RANGE,
        ];
        let is_plain = request.method == Method::GET && stored.status == StatusCode::OK;
        if !is_plain || others.iter().any(|field| request.headers.contains_key(field)) {
            return None;
        }
        let mut lines = request.headers.get_all(header::RANGE).iter();
        let (Some(line), None) = (lines.next(), lines.next()) else { return Some(Self::Whole) };
        let (unit, set) = line.to_str().ok()?.split_once('=')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        let specs: Vec<&str> = set.split(',').map(|spec| spec.trim_matches([' ', '\t'])).collect();
        let specs: Vec<&str> = specs.into_iter().filter(|spec| !spec.is_empty()).collect();
        if specs.iter().any(|spec| spec.contains([' ', '\t'])) {
            return None;
        }
        Some(Self::by(&specs, stored.body.len() as u64))
    }

    fn by(specs: &[&str], length: u64) -> Self {
        let mut parts: Vec<(u64, u64)> = Vec::new();
        for spec in specs {
            let Some((first, last)) = bounds(spec, length) else { return Self::Whole };
            if first < length && first <= last {
                parts.push((first, last.min(length - 1)));
            }
        }
        let overlap =
            |(at, part): (usize, &(u64, u64))| parts[..at].iter().any(|other| part.0 <= other.1 && other.0 <= part.1);
        if specs.is_empty() || specs.len() > MOST_PARTS || parts.iter().enumerate().any(overlap) {
            return Self::Whole;
        }
        if parts.is_empty() { Self::Unsatisfiable } else { Self::Parts(parts) }
    }
}

/// The first and the last byte that are asked for, which need not be there; `None` where nothing is.
fn bounds(spec: &str, length: u64) -> Option<(u64, u64)> {
    let (first, last) = spec.split_once('-')?;
    let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !are_digits(first) || !are_digits(last) || first.is_empty() && last.is_empty() {
        return None;
    }
    let number = |digits: &str| digits.parse::<u64>().unwrap_or(u64::MAX);
    match (first, last) {
        // The last none of the bytes, which is no part.
        ("", last) if number(last) == 0 => Some((length, length)),
        ("", last) => Some((length.saturating_sub(number(last)), length)),
        (first, "") => Some((number(first), u64::MAX)),
        (first, last) => Some((number(first), number(last))).filter(|(first, last)| first <= last),
    }
}
