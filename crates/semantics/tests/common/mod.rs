//! One exchange from the request to what would be stored, and from what is stored to the next request.

#![allow(dead_code, reason = "each of the files that share it uses a part")]

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, request, response};
use larder_semantics::{
    Asked, Caching, Content, EntryId, Filling, Forward, Hit, Intake, Key, Lookup, Namespace, Outcome, Policy, Reason,
    Received, Refusal, Selected, StoredResponse, Storing, Timestamp,
    freshness::Arrival,
    signature::{Signature, Tells},
};
use std::time::Duration;

/// The store's clock when a response comes; it has nothing to do with the calendar.
pub(crate) const NOW: Timestamp = Timestamp::from_millis(5_000_000_000);

/// The calendar when a response comes: Sun, 06 Nov 1994 08:49:37 GMT.
pub(crate) const CALENDAR: u64 = 784_111_777;

/// A response that comes at once.
pub(crate) const ARRIVAL: Arrival =
    Arrival { now: NOW, calendar: Timestamp::from_millis(CALENDAR * 1000), delay: Duration::ZERO, seed: 0.0 };

/// How an exchange with the origin ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Nothing was looked up.
    Bypassed(Reason),
    /// Only a stored response would have done.
    Unsatisfied,
    /// The request is not one whose response is stored.
    Untried,
    /// The response is not stored.
    Refused(Refusal),
    /// The response is stored.
    Stored(Filling),
}

/// What a stored response does for a request.
#[derive(Debug)]
pub(crate) enum Reused {
    /// It answers.
    Hit(Hit),
    /// The origin is asked.
    Forwarded(Reason),
    /// 504.
    Unsatisfied,
}

/// The head of a request.
pub(crate) fn request(method: Method, target: &str, lines: &[(&'static str, &str)]) -> request::Parts {
    let mut builder = Request::builder().method(method).uri(target);
    for (name, value) in lines {
        builder = builder.header(*name, *value);
    }
    builder.body(()).expect("a request").into_parts().0
}

/// The head of a response.
pub(crate) fn response(status: u16, lines: &[(&'static str, &str)]) -> response::Parts {
    let mut head = Response::new(()).into_parts().0;
    head.status = StatusCode::from_u16(status).expect("a status");
    for (name, value) in lines {
        head.headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).expect("a header value"));
    }
    head
}

/// Takes a request to the origin, with nothing stored before, and judges the answer.
pub(crate) fn exchange(
    request: &request::Parts,
    response: &response::Parts,
    caching: &Caching,
    policy: &Policy,
    arrival: Arrival,
) -> Ended {
    let lookup = match Intake::of(request, policy) {
        Intake::Bypass(reason) => return Ended::Bypassed(reason),
        Intake::Lookup(lookup) => lookup,
    };
    match lookup.select(None, &request.headers, arrival.now, 1.0) {
        Selected::Forward(forward) => receive(forward, request, response, caching, policy, arrival),
        Selected::Unsatisfied => Ended::Unsatisfied,
        other => panic!("nothing is stored, and yet: {other:?}"),
    }
}

/// Judges the origin's answer, and completes it with a body.
pub(crate) fn receive(
    forward: Forward,
    request: &request::Parts,
    response: &response::Parts,
    caching: &Caching,
    policy: &Policy,
    arrival: Arrival,
) -> Ended {
    let key = Namespace::new("test", 1).expect("a namespace").entry(Key::new("resource"));
    let asked = Asked { key, authority: Asked::authority_of(request), headers: request.headers.clone() };
    match forward.receive(asked, response, caching, policy, arrival) {
        Received::Store(admission) => {
            let body = Bytes::from_static(b"body");
            Ended::Stored(admission.complete(body, Duration::ZERO, 0, EntryId([1; 16]), EntryId([2; 16])))
        }
        Received::Pass(Storing::Refused(refusal)) => Ended::Refused(refusal),
        Received::Pass(Storing::Untried) => Ended::Untried,
        other => panic!("nothing was held, and yet {other:?}"),
    }
}

/// What one filling does for a request of the same resource.
pub(crate) fn reuse(filling: &Filling, request: &request::Parts, policy: &Policy, now: Timestamp) -> Reused {
    let lookup = match Intake::of(request, policy) {
        Intake::Bypass(reason) => return Reused::Forwarded(reason),
        Intake::Lookup(lookup) => lookup,
    };
    let base = filling.rule.clone().unwrap_or_else(|| filling.response.clone());
    let outcome = match lookup.select(Some(base), &request.headers, now, 1.0) {
        Selected::Variant(lookup, variant) => {
            let found = (filling.key.variant() == Some(variant)).then(|| filling.response.clone());
            Lookup::select(lookup, found, &request.headers, now, 1.0)
        }
        other => other,
    };
    match outcome {
        Selected::Hit(hit) | Selected::Refresh(hit, _) => Reused::Hit(hit),
        Selected::Forward(forward) => Reused::Forwarded(forward.reason()),
        Selected::Unsatisfied => Reused::Unsatisfied,
        Selected::Variant(..) => panic!("a variant of a variant"),
    }
}

/// What a hit answers.
pub(crate) fn answer(hit: Hit, now: Timestamp) -> (StatusCode, HeaderMap, Bytes) {
    let outcome = Outcome::Hit { reason: Reason::Near, ttl: hit.ttl(now) };
    let answer = hit.answer(Signature { identifier: "larder", outcome, tells: Tells::Nothing }, now);
    (answer.status, answer.headers, answer.body)
}

/// The response that is to be stored.
pub(crate) fn stored_response(filling: &Filling) -> &StoredResponse {
    match &filling.response.content {
        Content::Response(response) => response,
        Content::Variants(_) => panic!("a rule in the place of a response"),
    }
}
