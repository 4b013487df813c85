//! The first step: whether a request is looked up at all.

use super::{Lookup, lookup::Choices};
use crate::{directives::RequestDirectives, policy::Policy, reason::Reason, storing::Credentials};
use http::{HeaderMap, HeaderName, Method, Request, header, request};

/// What becomes of a request before anything is looked up.
#[derive(Debug)]
pub enum Intake {
    /// It goes to the origin, and nothing of it is stored.
    Bypass(Reason),
    /// It is looked up.
    Lookup(Lookup),
}

impl Intake {
    /// Judges the head of a request.
    #[inline]
    pub fn of(head: &request::Parts, policy: &Policy) -> Self {
        if !policy.methods.contains(&head.method) {
            return Self::Bypass(Reason::Method);
        }
        let told = Told::by(&head.headers);
        if told.has_content && matches!(head.method, Method::GET | Method::HEAD) {
            return Self::Bypass(Reason::Skipped);
        }
        let client = policy.honor_client_directives.then(|| Box::new(RequestDirectives::parse(&head.headers)));
        let is_keyed = || policy.key_headers.contains(&header::AUTHORIZATION);
        if policy.sealed && told.has_credentials && head.headers.contains_key(header::AUTHORIZATION) && !is_keyed() {
            return Self::Bypass(Reason::Authorization);
        }
        let credentials = if told.has_credentials && !policy.sealed {
            Credentials::of(&head.headers, policy)
        } else {
            Credentials::default()
        };
        let asks_for_less = told.asks_for_less;
        let (method, choices) = (head.method.clone(), Choices::of(policy));
        Self::Lookup(Lookup { method, asks_for_less, credentials, client, choices, sought: None, variant: None })
    }
}

/// What the names of a request's fields tell, read in one pass: every request pays for it.
#[derive(Default)]
struct Told {
    /// There is content, which no key tells apart (the "fat GET").
    has_content: bool,
    /// There may be credentials.
    has_credentials: bool,
    /// There are preconditions, or ranges.
    asks_for_less: bool,
}

const ASK_FOR_LESS: [HeaderName; 6] = [
    header::RANGE,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_MATCH,
    header::IF_UNMODIFIED_SINCE,
    header::IF_RANGE,
];

impl Told {
    #[inline]
    fn by(headers: &HeaderMap) -> Self {
        let mut told = Self::default();
        for (name, value) in headers {
            told.has_content |= *name == header::TRANSFER_ENCODING;
            told.has_content |= *name == header::CONTENT_LENGTH && value.as_bytes() != b"0";
            told.has_credentials |= *name == header::COOKIE || *name == header::AUTHORIZATION;
            told.asks_for_less |= ASK_FOR_LESS.contains(name);
        }
        told
    }
}

/// The fields with which a request asks for less than a whole response.
pub fn conditions(request: &HeaderMap) -> HeaderMap {
    let mut conditions = HeaderMap::new();
    for field in ASK_FOR_LESS {
        for value in request.get_all(&field) {
            let _ = conditions.try_append(field.clone(), value.clone());
        }
    }
    conditions
}

/// Puts those fields back into a request that was made to ask for something else.
pub fn restore(request: &mut HeaderMap, conditions: &HeaderMap) {
    for field in ASK_FOR_LESS {
        request.remove(field);
    }
    for (field, value) in conditions {
        let _ = request.try_append(field.clone(), value.clone());
    }
}

/// Makes a request ask for a whole response.
pub fn ask_for_all<Q>(request: &mut Request<Q>) {
    if *request.method() == Method::HEAD {
        *request.method_mut() = Method::GET;
    }
    restore(request.headers_mut(), &HeaderMap::new());
}
