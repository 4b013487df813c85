//! Whether a response may be stored (RFC 9111 section 3), and the reason when not.

use crate::{
    directives::ResponseDirectives,
    freshness::{Arrival, Lifetime},
    partial::Extent,
    policy::{Caching, Policy},
    reason::Refusal,
    stored::{Basis, StaleUse, Throttle},
    validation::Validators,
    vary::Vary,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use std::time::Duration;

/// What a request carries that makes its response personal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Credentials {
    /// Cookies that are not on the policy's list of ignored ones.
    pub cookie: bool,
    /// `Authorization`.
    pub authorization: bool,
}

impl Credentials {
    /// The credentials among the headers of a request, less those that the policy shares.
    pub fn of(headers: &HeaderMap, policy: &Policy) -> Self {
        Self {
            cookie: !policy.share_with_cookies && has_personal_cookie(headers, &policy.ignored_cookies),
            authorization: !policy.share_with_authorization && headers.contains_key(header::AUTHORIZATION),
        }
    }

    /// Whether there are any.
    pub fn any(self) -> bool {
        self.cookie || self.authorization
    }
}

fn has_personal_cookie(headers: &HeaderMap, ignored: &[String]) -> bool {
    headers.get_all(header::COOKIE).iter().flat_map(|line| line.as_bytes().split(|&byte| byte == b';')).any(|pair| {
        let name = pair.split(|&byte| byte == b'=').next().unwrap_or_default().trim_ascii();
        !pair.trim_ascii().is_empty() && !ignored.iter().any(|known| known.as_bytes() == name)
    })
}

/// Whether a response may be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Storability {
    /// It may.
    Storable {
        /// Its freshness lifetime.
        lifetime: Duration,
        /// Its age on arrival.
        initial_age: Duration,
        /// How it may be used once it is stale.
        stale: StaleUse,
        /// For whom the lifetime counts.
        basis: Basis,
        /// The request headers it varies by.
        fields: Vec<HeaderName>,
        /// The fields that are left out of what is stored.
        unstored: Vec<HeaderName>,
    },
    /// It may not.
    Refused(Refusal),
}

impl Storability {
    /// Judges the head of a response to a GET, or to whatever other method the layer caches.
    pub fn of(
        status: StatusCode,
        headers: &HeaderMap,
        credentials: Credentials,
        caching: &Caching,
        policy: &Policy,
        arrival: Arrival,
    ) -> Self {
        let directives = ResponseDirectives::parse(headers, &policy.targets);
        if let Some(refusal) = refused_outright(status, headers, &directives, caching, policy) {
            return Self::Refused(refusal);
        }
        let Vary::By(fields) = Vary::parse(headers) else {
            return Self::Refused(Refusal::VaryStar);
        };
        if credentials.authorization && !directives.shared_with_credentials() {
            return Self::Refused(Refusal::Authorization);
        }
        let lifetime = match Lifetime::of(status, headers, &directives, caching, policy, arrival) {
            _ if directives.no_cache => Lifetime::Stated(Duration::ZERO),
            Some(lifetime) => lifetime,
            None if policy.store_to_validate && status == StatusCode::OK => Lifetime::Guessed(Duration::ZERO),
            // Says nothing of the resource: the next answer may be another.
            None if !status.is_success() => return Self::Refused(Refusal::Status),
            None => return Self::Refused(Refusal::NoLifetime),
        };
        let basis = match lifetime {
            _ if directives.public || directives.s_maxage.is_some() => Basis::Shared,
            Lifetime::Stated(_) if directives.must_revalidate => Basis::Shared,
            Lifetime::Stated(_) => Basis::Response,
            Lifetime::Given(_) | Lifetime::Guessed(_) => Basis::Policy,
        };
        match basis {
            Basis::Policy if credentials.authorization => return Self::Refused(Refusal::Authorization),
            Basis::Policy if credentials.cookie => return Self::Refused(Refusal::Cookie),
            _ => {}
        }
        let (lifetime, initial_age) = (lifetime.length(), lifetime.initial_age(headers, arrival));
        let stale = stale_use(&directives, policy);
        let can_be_asked = policy.store_to_validate && Validators::of(headers).any();
        let is_of_use = initial_age < lifetime.saturating_add(stale.while_revalidate.max(stale.if_error));
        if !is_of_use && !can_be_asked {
            return Self::Refused(if directives.no_cache { Refusal::NoCache } else { Refusal::NoLifetime });
        }
        Self::Storable { lifetime, initial_age, stale, basis, fields, unstored: directives.unstored_fields }
    }
}

/// How long beyond its lifetime a response may be used (RFC 9111 section 4.2.4, RFC 5861).
///
/// `s-maxage` forbids it as `proxy-revalidate` does (RFC 9111 section 5.2.2.10); where the same response allows it in
/// so many words, as many do, those words are taken to be meant.
fn stale_use(directives: &ResponseDirectives, policy: &Policy) -> StaleUse {
    if directives.no_cache || directives.must_revalidate || directives.proxy_revalidate {
        return StaleUse::default();
    }
    let unsaid = |time| if directives.s_maxage.is_some() { Duration::ZERO } else { time };
    let if_error = directives.stale_if_error.unwrap_or_else(|| unsaid(policy.stale_if_error));
    StaleUse {
        while_revalidate: directives.stale_while_revalidate.unwrap_or_else(|| unsaid(policy.stale_while_revalidate)),
        if_error,
        if_unreachable: if_error.max(unsaid(policy.stale_if_unreachable)),
        if_accepted: unsaid(policy.keep),
        throttle: Throttle::default(),
    }
}

/// The refusals that no lifetime and no credentials can change.
fn refused_outright(
    status: StatusCode,
    headers: &HeaderMap,
    directives: &ResponseDirectives,
    caching: &Caching,
    policy: &Policy,
) -> Option<Refusal> {
    let opted_in = policy.statuses.iter().any(|(known, _)| *known == status);
    let announced = ContentLength::of(headers);
    let leaves_out_cookies = directives.unstored_fields.contains(&header::SET_COOKIE);
    let refusals = [
        (!caching.store, Refusal::Handler),
        (is_of_one_request(status) && !is_part(status, headers, policy), Refusal::Partial),
        (!status.is_success() && !opted_in && !policy.every_status, Refusal::Status),
        (directives.must_understand && !is_understood(status), Refusal::Status),
        (directives.malformed, Refusal::MalformedDirective),
        (directives.no_store && !directives.must_understand, Refusal::NoStore),
        (directives.private, Refusal::Private),
        (headers.contains_key(header::SET_COOKIE) && !leaves_out_cookies, Refusal::SetCookie),
        (is_event_stream(headers), Refusal::TooLarge),
        (announced == ContentLength::Contradictory, Refusal::LengthMismatch),
        (matches!(announced, ContentLength::Bytes(length) if length > policy.max_body), Refusal::TooLarge),
    ];
    refusals.into_iter().find_map(|(refused, refusal)| refused.then_some(refusal))
}

/// The statuses that speak of parts, conditions or expectations of one request, and so answer no other.
fn is_of_one_request(status: StatusCode) -> bool {
    matches!(status.as_u16(), 206 | 304 | 412 | 416 | 417)
}

/// Whether a response is one part of a representation, and is stored as such (RFC 9111 section 3.3).
fn is_part(status: StatusCode, headers: &HeaderMap, policy: &Policy) -> bool {
    status == StatusCode::PARTIAL_CONTENT && policy.store_partial && Extent::of_part(headers).is_some()
}

/// Whether the body is a stream of events, which has no end.
fn is_event_stream(headers: &HeaderMap) -> bool {
    const MEDIA_TYPE: &[u8] = b"text/event-stream";
    let of = |value: &HeaderValue| {
        value.as_bytes().get(..MEDIA_TYPE.len()).is_some_and(|start| start.eq_ignore_ascii_case(MEDIA_TYPE))
    };
    headers.get(header::CONTENT_TYPE).is_some_and(of)
}

/// The statuses whose caching is understood (RFC 9111 section 5.2.2.3): those of RFC 9110 that ask nothing special.
fn is_understood(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        200..=204 | 300..=303 | 307 | 308 | 400 | 401 | 403..=410 | 413..=415 | 421 | 422 | 500..=504
    )
}

/// What `Content-Length` says (RFC 9112 section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContentLength {
    /// Nothing.
    Absent,
    /// The body has so many bytes.
    Bytes(u64),
    /// Two different things, or something that is no number.
    Contradictory,
}

impl ContentLength {
    /// Reads all lines of the field; a list of the same number counts as that number.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let lines = headers.get_all(header::CONTENT_LENGTH).into_iter();
        let mut members = lines.flat_map(|line| line.as_bytes().split(|&byte| byte == b',')).map(|member| {
            let digits = member.trim_ascii();
            let are_digits = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
            std::str::from_utf8(digits).ok().filter(|_| are_digits)?.parse().ok()
        });
        let Some(first) = members.next() else { return Self::Absent };
        match first {
            Some(length) if members.all(|other| other == first) => Self::Bytes(length),
            _ => Self::Contradictory,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_that_contradict_each_other_are_not_believed() {
        let of = |lines: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(header::CONTENT_LENGTH, HeaderValue::from_static(line));
            }
            ContentLength::of(&headers)
        };
        assert_eq!(of(&[]), ContentLength::Absent);
        for lines in [&["4"][..], &["4", "4"], &["4, 4"], &[" 4 "]] {
            assert_eq!(of(lines), ContentLength::Bytes(4), "{lines:?}");
        }
        for lines in [&["4", "5"][..], &["4,5"], &["x"], &["-4"], &["+4"], &[""], &["99999999999999999999"]] {
            assert_eq!(of(lines), ContentLength::Contradictory, "{lines:?}");
        }
    }

    #[test]
    fn cookies_are_personal_unless_every_one_is_ignored() {
        let policy = Policy { ignored_cookies: vec!["_ga".into(), "theme".into()], ..Policy::default() };
        let personal = |line: &'static str| {
            let mut headers = HeaderMap::new();
            headers.append(header::COOKIE, HeaderValue::from_static(line));
            Credentials::of(&headers, &policy).cookie
        };
        for line in ["sid=1", "_ga=1; sid=2", "_GA=1", "_ga", "theme2=1"] {
            assert_eq!(personal(line), line != "_ga", "{line}");
        }
        for line in ["_ga=1", "_ga=1; theme=dark", " ; _ga=1;", ""] {
            assert!(!personal(line), "{line}");
        }
    }
}
