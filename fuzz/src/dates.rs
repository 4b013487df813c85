//! Dates, `Age` and what is computed from them (RFC 9110 section 5.6.7, RFC 9111 section 4.2): everything comes to what
//! arithmetic without bounds has, and nothing that is stale is ever fresh again.

use super::{
    messages::{Exchange, exchanges},
    shelf::{Served, Shelf},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use larder::semantics::{
    Content, Policy, StoredResponse, Timestamp,
    directives::{CDN_CACHE_CONTROL, ResponseDirectives},
    policy::{LONGEST_HEURISTIC, LONGEST_LIFETIME},
};

/// The fields that this is about; others of a response are left out.
const FIELDS: [HeaderName; 6] =
    [header::AGE, header::CACHE_CONTROL, CDN_CACHE_CONTROL, header::DATE, header::EXPIRES, header::LAST_MODIFIED];

/// Asks it of the input's first exchange, and of the time of its second.
pub fn hold(input: &[u8]) {
    let mut exchanges = exchanges(input).into_iter();
    let Some(mut exchange) = exchanges.next() else { return };
    let headers = &mut exchange.response.headers;
    let others: Vec<HeaderName> = headers.keys().filter(|name| !FIELDS.contains(name)).cloned().collect();
    for other in others {
        headers.remove(other);
    }
    (exchange.request.method, exchange.request.headers) = (Method::GET, HeaderMap::new());
    for field in [header::DATE, header::EXPIRES, header::LAST_MODIFIED] {
        headers.get_all(field).iter().for_each(a_date_is_read_as_it_is_written);
    }
    let later = exchanges.next().map_or(exchange.arrival.now, |exchange| exchange.arrival.now);
    a_lifetime_is_what_was_stated(&exchange, later);
}

fn a_date_is_read_as_it_is_written(value: &HeaderValue) {
    let read = Timestamp::from_http_date(value);
    if let Ok(text) = value.to_str()
        && let Some(seconds) = fixdate(text.trim())
    {
        assert_eq!(read.map(Timestamp::as_millis), seconds.map(|seconds| seconds * 1000), "{text}");
    }
    for bytes in [value.as_bytes().to_ascii_lowercase(), value.as_bytes().to_ascii_uppercase()] {
        let value = HeaderValue::from_bytes(&bytes).expect("letters of another case are as good");
        assert_eq!(Timestamp::from_http_date(&value), read, "{value:?}");
    }
    if let Some(date) = read {
        assert_eq!(Timestamp::from_http_date(&date.to_http_date()), Some(date), "{value:?}");
        let written = date.to_http_date();
        let written = written.to_str().expect("a date is text");
        assert_eq!(fixdate(written), Some(Some(date.as_millis() / 1000)), "{value:?}");
    }
}

/// Seconds since the epoch of a text of the form `Sun, 06 Nov 1994 08:49:37 GMT`; `Some(None)` when it has the form, and
/// is no date from 1970 on.
fn fixdate(text: &str) -> Option<Option<u64>> {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [(&str, u64); 12] = [
        ("Jan", 31),
        ("Feb", 28),
        ("Mar", 31),
        ("Apr", 30),
        ("May", 31),
        ("Jun", 30),
        ("Jul", 31),
        ("Aug", 31),
        ("Sep", 30),
        ("Oct", 31),
        ("Nov", 30),
        ("Dec", 31),
    ];
    let number = |at: std::ops::Range<usize>| {
        let digits = text.get(at)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<u64>().ok())?
    };
    let (day, year) = (number(5..7)?, number(12..16)?);
    let (hour, minute, second) = (number(17..19)?, number(20..22)?, number(23..25)?);
    let weekday = DAYS.iter().position(|name| text.starts_with(name))?;
    let month = MONTHS.iter().position(|(name, _)| text.get(8..11) == Some(name))?;
    let rebuilt =
        format!("{}, {day:02} {} {year:04} {hour:02}:{minute:02}:{second:02} GMT", DAYS[weekday], MONTHS[month].0);
    if rebuilt != text {
        return None;
    }
    let is_leap = |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let of_month = |at: usize| MONTHS[at].1 + u64::from(at == 1 && is_leap(year));
    if year < 1970 || day == 0 || day > of_month(month) || hour > 23 || minute > 59 || second > 60 {
        return Some(None);
    }
    let years: u64 = (1970..year).map(|year| 365 + u64::from(is_leap(year))).sum();
    let days = years + (0..month).map(of_month).sum::<u64>() + day - 1;
    Some(Some(((days * 24 + hour) * 60 + minute) * 60 + second.min(59)))
}

fn a_lifetime_is_what_was_stated(exchange: &Exchange, later: Timestamp) {
    let policy = Policy::shared_cache();
    let mut shelf = Shelf::new(policy.clone());
    let headers = &exchange.response.headers;
    let read = ResponseDirectives::parse(headers, &policy.targets);
    let is_stored = matches!(shelf.serve(exchange, &Bytes::new()), Served::Stored);
    let Some(Content::Response(stored)) = shelf.base().map(|entry| entry.content.clone()) else {
        assert!(!is_stored);
        let is_allowed = !read.no_store && !read.private && !read.no_cache && !read.malformed;
        if exchange.response.status == StatusCode::OK && is_allowed && !read.must_understand {
            let is_over = |lifetime: i128| {
                lifetime.min(LONGEST_LIFETIME.as_millis() as i128) <= age_on_arrival(headers, exchange)
            };
            assert!(stated(headers, &read, exchange).is_none_or(is_over), "it is fresh: {headers:?}");
        }
        return;
    };
    let expected = match stated(headers, &read, exchange) {
        _ if read.no_cache => Some(0),
        Some(lifetime) => Some(lifetime.min(LONGEST_LIFETIME.as_millis() as i128)),
        None => None,
    };
    let lifetime = stored.lifetime.as_millis() as i128;
    match expected {
        Some(expected) => assert_eq!(lifetime, expected, "{headers:?}"),
        None => is_a_fair_guess(lifetime, headers, exchange),
    }
    assert_eq!(stored.initial_age.as_millis() as i128, age_on_arrival(headers, exchange), "{headers:?}");
    assert_eq!(stored.received_at, exchange.arrival.now);
    let windows = stored.stale.while_revalidate.max(stored.stale.if_error);
    let is_of_use = stored.initial_age < stored.lifetime.saturating_add(windows);
    assert!(is_of_use || headers.contains_key(header::LAST_MODIFIED), "stale, and nobody can be asked: {headers:?}");
    it_ages(&stored, exchange.arrival.now, later);
    is_reused_while_it_may_be(shelf, &stored, exchange, later);
}

/// The lifetime that the response states, in milliseconds, if it states one (RFC 9111 section 4.2.1).
fn stated(headers: &HeaderMap, read: &ResponseDirectives, exchange: &Exchange) -> Option<i128> {
    if let Some(seconds) = read.s_maxage.or(read.max_age) {
        return Some(seconds.as_millis() as i128);
    }
    let mut expires = headers.get_all(header::EXPIRES).iter().map(millis).peekable();
    if read.targeted || expires.peek().is_none() {
        return None;
    }
    let first = expires.next()?;
    match first {
        Some(first) if expires.all(|other| other == Some(first)) => {
            let date = headers.get(header::DATE).and_then(millis).unwrap_or(calendar(exchange));
            Some((first - date).max(0))
        }
        _ => Some(0),
    }
}

/// RFC 9111 section 4.2.3.
fn age_on_arrival(headers: &HeaderMap, exchange: &Exchange) -> i128 {
    let apparent = headers.get(header::DATE).and_then(millis).map_or(0, |date| (calendar(exchange) - date).max(0));
    let apparent = apparent / 1000 * 1000;
    let delay = exchange.arrival.delay.as_millis() as i128;
    let first = headers.get(header::AGE).and_then(|line| line.as_bytes().split(|&byte| byte == b',').next());
    let told = first.map(<[u8]>::trim_ascii).filter(|text| !text.is_empty() && text.iter().all(u8::is_ascii_digit));
    let told = told.map_or(0, |digits| {
        let digits = std::str::from_utf8(digits).expect("digits are text");
        i128::from(digits.parse::<u32>().unwrap_or(u32::MAX)) * 1000
    });
    apparent.max(told + delay)
}

fn millis(value: &HeaderValue) -> Option<i128> {
    Timestamp::from_http_date(value).map(|date| date.as_millis().into())
}

fn calendar(exchange: &Exchange) -> i128 {
    exchange.arrival.calendar.as_millis().into()
}

/// A tenth of the time since the last modification, and a day at most; nothing where nobody says when that was.
fn is_a_fair_guess(lifetime: i128, headers: &HeaderMap, exchange: &Exchange) {
    let modified = headers.get(header::LAST_MODIFIED).and_then(millis);
    let date = headers.get(header::DATE).and_then(millis).unwrap_or(calendar(exchange));
    let unchanged = modified.map_or(0, |modified| (date - modified).max(0));
    assert!(lifetime <= unchanged / 10 && lifetime <= LONGEST_HEURISTIC.as_millis() as i128, "{headers:?}");
}

fn it_ages(stored: &StoredResponse, received: Timestamp, later: Timestamp) {
    let (lifetime, initial) = (stored.lifetime.as_millis() as i128, stored.initial_age.as_millis() as i128);
    for now in [received, later, Timestamp::from_millis(0), Timestamp::from_millis(u64::MAX)] {
        let resident = (i128::from(now.as_millis()) - i128::from(received.as_millis())).max(0);
        let age = initial + resident;
        assert_eq!(stored.age(now).as_millis() as i128, age);
        assert_eq!(stored.is_fresh(now), age < lifetime);
        assert_eq!(stored.staleness(now).as_millis() as i128, (age - lifetime).max(0));
        assert_eq!(stored.ttl(now) > 0, lifetime - age >= 1000, "whole seconds");
    }
    let (earlier, later) = (received.min(later), received.max(later));
    assert!(stored.is_fresh(earlier) || !stored.is_fresh(later), "fresh again");
}

fn is_reused_while_it_may_be(mut shelf: Shelf, stored: &StoredResponse, exchange: &Exchange, later: Timestamp) {
    let mut again = exchange.clone();
    again.arrival.now = later;
    // An origin with nothing to say.
    again.response.headers.clear();
    again.response.status = StatusCode::NOT_FOUND;
    let served = shelf.serve(&again, &Bytes::new());
    let may_be = stored.is_fresh(later) || stored.staleness(later) < stored.stale.while_revalidate;
    match served {
        Served::Hit(answer) => {
            assert!(may_be, "stale");
            let age = answer.headers[header::AGE].to_str().ok().and_then(|age| age.parse::<u64>().ok());
            assert_eq!(age, Some(stored.age(later).as_secs()));
        }
        _ => assert!(!may_be, "fresh, and of no use"),
    }
}
