//! A stored response on its way to the client.

use crate::{
    partial::Extent,
    range,
    reason::Reason,
    signature::Signature,
    stored::{Content, Entry, StoredResponse},
    time::Timestamp,
    validation::{self, Form},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use std::sync::Arc;

/// A stored response that answers.
#[derive(Debug)]
pub struct Hit {
    pub(super) entry: Arc<Entry>,
    pub(super) form: Form,
    /// Why it may answer although it is stale, if it is.
    pub(super) stale: Option<Reason>,
}

/// A stored response as it answers.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers, with what they tell of the cache and the `Age` of RFC 9111 section 5.1.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// Whether it is the body of the stored response, all of it.
    pub is_whole: bool,
}

impl Answer {
    /// What a rule answers, which no look-up takes for a response.
    fn none() -> Self {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self { status, headers: HeaderMap::new(), body: Bytes::new(), is_whole: false }
    }
}

impl Hit {
    /// What is left of its lifetime, in whole seconds.
    #[inline]
    pub fn ttl(&self, now: Timestamp) -> i64 {
        self.response().map_or(0, |response| response.ttl(now))
    }

    /// Why it may answer although it is stale, if it is.
    #[inline]
    pub fn staleness(&self) -> Option<Reason> {
        self.stale
    }

    /// Whether it is an error that is stored.
    #[inline]
    pub fn is_negative(&self) -> bool {
        self.response().is_some_and(|response| response.status.is_client_error() || response.status.is_server_error())
    }

    /// The same, when another request has it revalidated.
    #[must_use]
    pub fn updating(self) -> Self {
        Self { stale: Some(Reason::SwrUpdating), ..self }
    }

    /// The answer, signed, in the form that the request asked for.
    #[inline]
    pub fn answer(self, signature: Signature<'_>, now: Timestamp) -> Answer {
        let Self { entry, form, .. } = self;
        let id = entry.id;
        if form == Form::Whole {
            return whole(entry, signature, now);
        }
        let Answer { status: stored, mut headers, body, .. } = whole(entry, signature, now);
        let mut status = stored;
        let body = match form {
            Form::Whole => body,
            Form::Head => {
                if !headers.contains_key(header::CONTENT_LENGTH) && status != StatusCode::NO_CONTENT {
                    let _ = headers.try_insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
                }
                Bytes::new()
            }
            Form::NotModified => {
                status = StatusCode::NOT_MODIFIED;
                validation::leave_for_not_modified(&mut headers);
                Bytes::new()
            }
            Form::Parts(parts) => {
                status = StatusCode::PARTIAL_CONTENT;
                let held = Extent::stated(stored, &headers, &body);
                range::partial(&parts, held, id, &mut headers, &body)
            }
            Form::Unsatisfiable => {
                status = StatusCode::RANGE_NOT_SATISFIABLE;
                let held = Extent::stated(stored, &headers, &body);
                range::leave_for_unsatisfiable(&mut headers, held.length());
                Bytes::new()
            }
        };
        Answer { status, headers, body, is_whole: false }
    }

    #[inline]
    fn response(&self) -> Option<&StoredResponse> {
        match &self.entry.content {
            Content::Response(response) => Some(response),
            Content::Variants(_) => None,
        }
    }
}

/// The stored response itself when nobody else holds it, as one that was just read from afar, else a copy.
#[inline]
fn whole(entry: Arc<Entry>, signature: Signature<'_>, now: Timestamp) -> Answer {
    let age = |response: &StoredResponse| i64::try_from(response.age(now).as_secs()).unwrap_or(i64::MAX);
    let read_from_afar = if Arc::strong_count(&entry) == 1 { Arc::try_unwrap(entry) } else { Err(entry) };
    match read_from_afar {
        Ok(Entry { content: Content::Response(response), .. }) => {
            let age = age(&response);
            let StoredResponse { status, mut headers, body, .. } = response;
            signature.write(&mut headers, Some(age));
            Answer { status, headers, body, is_whole: true }
        }
        Err(entry) => match &entry.content {
            Content::Response(response) => {
                let headers = response.delivery.of(&response.headers, signature, age(response));
                Answer { status: response.status, headers, body: response.body.clone(), is_whole: true }
            }
            Content::Variants(_) => Answer::none(),
        },
        Ok(_) => Answer::none(),
    }
}
