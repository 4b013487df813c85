//! Freshness lifetime and age of a response (RFC 9111 section 4.2), decided once, when it is received.

use crate::{
    directives::{ResponseDirectives, delta_seconds},
    policy::{Caching, LONGEST_GUESSED_ERROR, LONGEST_HEURISTIC, LONGEST_LIFETIME, LONGEST_NEGATIVE, Policy},
    time::Timestamp,
};
use http::{HeaderMap, StatusCode, header};
use std::time::Duration;

/// When a response came, by the clocks that matter.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// Now, in the time domain of the store.
    pub now: Timestamp,
    /// Now, by the calendar, against which `Date` and `Expires` are read.
    pub calendar: Timestamp,
    /// The time from sending the request to receiving the response's head.
    pub delay: Duration,
    /// A number from 0 to 1 that draws the jitter.
    pub seed: f64,
}

/// How long a response is fresh, and who said so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// The response itself (RFC 9111 section 4.2.1).
    Stated(Duration),
    /// The policy, or the handler; jitter has been taken off.
    Given(Duration),
    /// Nobody: it was guessed from when the response was last modified (RFC 9111 section 4.2.2).
    Guessed(Duration),
}

impl Lifetime {
    /// The freshness lifetime, or `None` when nobody states or gives one.
    pub fn of(
        status: StatusCode,
        headers: &HeaderMap,
        directives: &ResponseDirectives,
        caching: &Caching,
        policy: &Policy,
        arrival: Arrival,
    ) -> Option<Self> {
        let given = |lifetime| Self::Given(jittered(lifetime, policy.jitter, arrival.seed));
        if let Some(lifetime) = policy.lifetime_override.or(caching.lifetime) {
            return Some(given(lifetime));
        }
        if let Some(lifetime) = stated(headers, directives, arrival) {
            return Some(Self::Stated(lifetime.min(LONGEST_LIFETIME)));
        }
        let of_status = policy.statuses.iter().find(|(known, _)| *known == status).map(|(_, lifetime)| *lifetime);
        // What is missing today may be there soon, and a policy cannot know.
        let is_error = status.is_client_error() || status.is_server_error();
        let of_status = of_status.map(|lifetime| if is_error { lifetime.min(LONGEST_NEGATIVE) } else { lifetime });
        let lifetime = of_status.or(policy.lifetime.filter(|_| status.is_success()));
        lifetime.map(given).or_else(|| guessed(status, headers, directives, policy, arrival).map(Self::Guessed))
    }

    /// Its length.
    pub fn length(self) -> Duration {
        match self {
            Self::Stated(length) | Self::Given(length) | Self::Guessed(length) => length,
        }
    }

    /// The age when the response was received (RFC 9111 section 4.2.3).
    ///
    /// A lifetime that was given begins when the response is received: it is not about how long the answer took.
    pub fn initial_age(self, headers: &HeaderMap, arrival: Arrival) -> Duration {
        let apparent = date(headers).map_or(Duration::ZERO, |date| arrival.calendar.since(date));
        let apparent = Duration::from_secs(apparent.as_secs());
        match (age(headers), self) {
            (Some(age), _) => apparent.max(age.saturating_add(arrival.delay)),
            (None, Self::Given(_)) => Duration::ZERO,
            (None, Self::Stated(_) | Self::Guessed(_)) => apparent.max(arrival.delay),
        }
    }
}

/// The lifetime that the response states itself.
fn stated(headers: &HeaderMap, directives: &ResponseDirectives, arrival: Arrival) -> Option<Duration> {
    let expires = || (!directives.targeted).then(|| from_expires(headers, arrival)).flatten();
    directives.s_maxage.or(directives.max_age).or_else(expires)
}

/// A tenth, or what part the policy says, of the time since the response was last modified, where the standard lets a
/// cache guess: for statuses that say so, and for any response that is `public`.
fn guessed(
    status: StatusCode,
    headers: &HeaderMap,
    directives: &ResponseDirectives,
    policy: &Policy,
    arrival: Arrival,
) -> Option<Duration> {
    let part = policy.heuristic.filter(|part| part.is_finite())?.clamp(0.0, 1.0);
    if !(directives.public || is_heuristically_cacheable(status)) {
        return None;
    }
    let modified = headers.get(header::LAST_MODIFIED).and_then(Timestamp::from_http_date)?;
    let unchanged = date(headers).unwrap_or(arrival.calendar).since(modified);
    let longest =
        if status.is_client_error() || status.is_server_error() { LONGEST_GUESSED_ERROR } else { LONGEST_HEURISTIC };
    Some(unchanged.min(LONGEST_LIFETIME).mul_f64(part).min(longest))
}

/// The statuses whose definitions allow it (RFC 9110 section 15.1).
fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// `Expires` less `Date` (RFC 9111 section 5.3); one that is no date, or says two things, is in the past.
fn from_expires(headers: &HeaderMap, arrival: Arrival) -> Option<Duration> {
    let mut lines = headers.get_all(header::EXPIRES).iter();
    let first = Timestamp::from_http_date(lines.next()?);
    if lines.any(|line| Timestamp::from_http_date(line) != first) {
        return Some(Duration::ZERO);
    }
    Some(first.map_or(Duration::ZERO, |expires| expires.since(date(headers).unwrap_or(arrival.calendar))))
}

fn date(headers: &HeaderMap) -> Option<Timestamp> {
    headers.get(header::DATE).and_then(Timestamp::from_http_date)
}

/// The first value of `Age`; one that is no number is as good as none (RFC 9111 section 5.1).
fn age(headers: &HeaderMap) -> Option<Duration> {
    let line = headers.get(header::AGE)?.as_bytes();
    delta_seconds(line.split(|&byte| byte == b',').next().unwrap_or_default().trim_ascii())
}

fn jittered(lifetime: Duration, jitter: f64, seed: f64) -> Duration {
    let taken_off = jitter * seed;
    let taken_off = if taken_off.is_finite() { taken_off.clamp(0.0, 1.0) } else { 0.0 };
    lifetime.min(LONGEST_LIFETIME).mul_f64(1.0 - taken_off)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    const ARRIVAL: Arrival = Arrival {
        now: Timestamp::from_millis(5_000),
        // Sun, 06 Nov 1994 08:49:37 GMT
        calendar: Timestamp::from_millis(784_111_777_000),
        delay: Duration::from_secs(2),
        seed: 1.0,
    };

    type Lines = &'static [(&'static str, &'static str)];

    fn headers(lines: Lines) -> HeaderMap {
        lines.iter().map(|(name, value)| ((*name).parse().expect("a name"), HeaderValue::from_static(value))).fold(
            HeaderMap::new(),
            |mut headers, (name, value): (http::HeaderName, _)| {
                headers.append(name, value);
                headers
            },
        )
    }

    fn lifetime(lines: Lines, policy: &Policy) -> Option<Lifetime> {
        let headers = headers(lines);
        let directives = ResponseDirectives::parse(&headers, &Policy::default().targets);
        Lifetime::of(StatusCode::OK, &headers, &directives, &Caching::default(), policy, ARRIVAL)
    }

    #[test]
    fn the_most_specific_statement_counts() {
        const LATER: (&str, &str) = ("expires", "Sun, 06 Nov 1994 08:50:37 GMT");
        const DATE: (&str, &str) = ("date", "Sun, 06 Nov 1994 08:50:07 GMT");
        let silent = Policy { lifetime: None, ..Policy::default() };
        let stated = |seconds| Some(Lifetime::Stated(Duration::from_secs(seconds)));
        let cases: [(Lines, Option<Lifetime>); 9] = [
            (&[], None),
            (&[("cache-control", "max-age=5, s-maxage=9"), LATER], stated(9)),
            (&[("cache-control", "max-age=5"), LATER], stated(5)),
            (&[LATER], stated(60)),
            (&[LATER, DATE], stated(30)),
            (&[("expires", "0")], stated(0)),
            (&[LATER, ("expires", "Sun, 06 Nov 1994 08:50:38 GMT")], stated(0)),
            (&[("cdn-cache-control", "max-age=7"), ("cache-control", "max-age=5"), LATER], stated(7)),
            (&[("cdn-cache-control", "public"), LATER], None),
        ];
        for (lines, expected) in cases {
            assert_eq!(lifetime(lines, &silent), expected, "{lines:?}");
        }
    }

    #[test]
    fn jitter_shortens_only_what_was_given() {
        let policy = Policy { lifetime: Some(Duration::from_secs(100)), jitter: 0.1, ..Policy::default() };
        assert_eq!(lifetime(&[], &policy), Some(Lifetime::Given(Duration::from_secs(90))));
        assert_eq!(
            lifetime(&[("cache-control", "max-age=100")], &policy),
            Some(Lifetime::Stated(Duration::from_secs(100)))
        );
        let replaced = Policy { lifetime_override: Some(Duration::MAX), jitter: f64::NAN, ..policy };
        assert!(
            lifetime(&[("cache-control", "max-age=1")], &replaced)
                .is_some_and(|given| given.length() <= LONGEST_LIFETIME)
        );
    }

    #[test]
    fn the_age_on_arrival_is_the_largest_that_can_be_shown() {
        let stated = Lifetime::Stated(Duration::from_secs(60));
        let age = |lifetime: Lifetime, lines: Lines| lifetime.initial_age(&headers(lines), ARRIVAL).as_secs();
        assert_eq!(age(stated, &[]), 2, "the time the answer took");
        assert_eq!(age(stated, &[("age", "10")]), 12);
        assert_eq!(age(stated, &[("age", "10, 20")]), 12);
        assert_eq!(age(stated, &[("age", "-10")]), 2);
        assert_eq!(age(stated, &[("date", "Sun, 06 Nov 1994 08:49:07 GMT"), ("age", "10")]), 30);
        assert_eq!(age(stated, &[("age", "99999999999999999999")]), u64::from(u32::MAX) + 2);
        let given = Lifetime::Given(Duration::from_secs(60));
        assert_eq!(age(given, &[("date", "Sun, 06 Nov 1994 08:49:07 GMT")]), 0);
        assert_eq!(age(given, &[("age", "10")]), 12);
    }
}
