//! HTTP messages as text: what an input is made of, so that its cases can be read and written by hand.
//!
//! ```text
//! GET / HTTP/1.1
//! range: bytes=0-4
//! x-now: 1000
//!
//! HTTP/1.1 200 OK
//! cache-control: max-age=60
//! x-length: 10
//! ```
//!
//! Blank lines stand between messages, and requests and the origin's answers to them take turns. A blank after the colon
//! is not part of the value; any other is. The version of HTTP and the reason phrase are for the reader, and what is not
//! there or cannot be read has a default.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, request, response};
use larder::semantics::{Timestamp, freshness::Arrival};
use std::{str::FromStr, time::Duration};

/// The time, by the clock of the store, unless `x-now` says something else.
const NOW: Timestamp = Timestamp::from_millis(5_000_000_000);
/// What the calendar shows unless `x-calendar` says something else: Sun, 06 Nov 1994 08:49:37 GMT.
const CALENDAR: u64 = 784_111_777_000;

/// A request, and what the origin answers if it is asked.
#[derive(Clone)]
pub(crate) struct Exchange {
    pub(crate) request: request::Parts,
    pub(crate) response: response::Parts,
    /// When it takes place: `x-now`, `x-calendar` and `x-delay` of the request, in milliseconds.
    pub(crate) arrival: Arrival,
    /// How long the body of the answer is: `x-length` of the response.
    pub(crate) length: Option<u64>,
}

/// The exchanges that an input is made of.
pub(crate) fn exchanges(input: &[u8]) -> Vec<Exchange> {
    let mut messages = messages(input).into_iter();
    let mut exchanges = Vec::new();
    while let Some(request) = messages.next() {
        let response = messages.next().unwrap_or_default();
        exchanges.push(Exchange::of(&request, &response));
    }
    exchanges
}

/// The messages, each as its lines.
pub(crate) fn messages(input: &[u8]) -> Vec<Vec<&[u8]>> {
    let lines: Vec<&[u8]> = input.split(|&byte| byte == b'\n').collect();
    let messages = lines.split(|line| line.is_empty()).filter(|lines| !lines.is_empty());
    messages.map(<[&[u8]]>::to_vec).collect()
}

/// The request that some lines spell; `None` when its target or its method is none.
pub(crate) fn request(lines: &[&[u8]]) -> Option<request::Parts> {
    let mut words = std::str::from_utf8(lines.first()?).ok()?.split(' ');
    let (method, target) = (Method::from_str(words.next()?).ok()?, words.next()?);
    let mut head = Request::builder().method(method).uri(target).body(()).ok()?.into_parts().0;
    head.headers = headers(lines);
    Some(head)
}

fn response(lines: &[&[u8]]) -> response::Parts {
    let mut head = Response::new(()).into_parts().0;
    let code = lines.first().and_then(|start| start.split(|&byte| byte == b' ').nth(1));
    head.status = code.and_then(|code| StatusCode::from_bytes(code).ok()).unwrap_or_default();
    head.headers = headers(lines);
    head
}

/// The fields of a message. Lines that are none are passed over.
fn headers(lines: &[&[u8]]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in lines.iter().skip(1) {
        let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
        let value = line[colon + 1..].strip_prefix(b" ").unwrap_or(&line[colon + 1..]);
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    headers
}

impl Exchange {
    fn of(asked: &[&[u8]], answered: &[&[u8]]) -> Self {
        let mut request = request(asked).unwrap_or_else(|| {
            let mut head = Request::new(()).into_parts().0;
            head.headers = headers(asked);
            head
        });
        let mut response = response(answered);
        let arrival = Arrival {
            now: taken(&mut request.headers, "x-now").map_or(NOW, Timestamp::from_millis),
            calendar: Timestamp::from_millis(taken(&mut request.headers, "x-calendar").unwrap_or(CALENDAR)),
            delay: Duration::from_millis(taken(&mut request.headers, "x-delay").unwrap_or_default()),
            seed: 0.0,
        };
        let length = taken(&mut response.headers, "x-length");
        Self { request, response, arrival, length }
    }
}

/// Takes a field that is about the input out of a message.
fn taken<N: FromStr>(headers: &mut HeaderMap, name: &'static str) -> Option<N> {
    headers.remove(name)?.to_str().ok()?.parse().ok()
}
