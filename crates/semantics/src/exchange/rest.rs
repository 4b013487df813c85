//! What is missing of a stored part, asked of the origin and put together with it (RFC 9111 section 3.4).

use crate::{
    partial::Extent,
    policy::Caching,
    stored::{Content, Entry},
    validation::{self, Validators},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header, response};
use std::sync::Arc;

/// What is missing of a stored part, as the extension of a request for the whole: whoever can send that request again
/// may ask the origin for the rest alone.
#[derive(Debug, Clone)]
pub struct Rest {
    part: Arc<Entry>,
    held: Extent,
}

/// What the origin's answer comes to when it was asked for the rest.
#[derive(Debug)]
pub enum Joined {
    /// The rest: the head of the whole, and where the body that comes belongs.
    Whole(response::Parts, Gap),
    /// Something that cannot be put together with what is stored, and is no answer to who wants the whole.
    Unusable,
    /// An answer of its own.
    Other(response::Parts),
}

/// A gap in what is stored, into which a body is to come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gap {
    /// What is stored before it.
    pub before: Bytes,
    /// How many bytes it has.
    pub length: u64,
    /// What is stored after it.
    pub after: Bytes,
}

impl Rest {
    /// The rest of a stored part, if one range has all of it.
    pub(super) fn of(part: Arc<Entry>) -> Option<Self> {
        let Content::Response(response) = &part.content else { return None };
        let held = Extent::of(response).filter(|held| held.is_of(&response.body))?;
        held.missing()?;
        Some(Self { part, held })
    }

    /// Makes a request for the whole ask for the rest alone, unless the origin has another representation by now
    /// (RFC 9110 section 13.1.5).
    ///
    /// Nothing tells whether it has, where the part has no strong validator. What comes can then be used only if it is
    /// the whole; asking costs a request for nothing at most once, as the whole takes the place of the part.
    pub fn ask(&self, request: &mut HeaderMap) {
        let (Some(range), Content::Response(part)) = (self.held.missing(), &self.part.content) else { return };
        let range = HeaderValue::try_from(range).ok();
        let condition = validation::strong_validator(&part.headers);
        for (name, value) in [(header::RANGE, range), (header::IF_RANGE, condition.cloned())] {
            if let Some(value) = value {
                let _ = request.try_insert(name, value);
            }
        }
    }

    /// Puts the head of the origin's answer together with what is stored (RFC 9110 section 15.3.7.3).
    pub fn join(&self, mut came: response::Parts) -> Joined {
        // An error may be about the range, whatever it says; but not that of an origin that could not be reached.
        let is_error = came.status.is_client_error() || came.status.is_server_error();
        let is_final = came.extensions.get::<Caching>().is_some_and(|caching| caching.unreachable);
        if is_final || !is_error && came.status != StatusCode::PARTIAL_CONTENT {
            return Joined::Other(came);
        }
        let Content::Response(part) = &self.part.content else { return Joined::Unusable };
        let gap = Extent::of_part(&came.headers)
            .filter(|_| came.status == StatusCode::PARTIAL_CONTENT)
            .filter(|_| Validators::are_same(&part.headers, &came.headers))
            .filter(|extent| self.held.with(*extent).is_some_and(Extent::is_whole))
            .map(|extent| self.held.gap(extent, &part.body));
        let Some(gap) = gap else { return Joined::Unusable };
        // What the origin says now counts; a date is of the message, not of what is stored.
        let mut stored = part.headers.clone();
        came.headers.keys().chain([&header::DATE]).for_each(|name| _ = stored.remove(name));
        for (name, value) in &stored {
            let _ = came.headers.try_append(name, value.clone());
        }
        came.headers.remove(header::CONTENT_RANGE);
        let _ = came.headers.try_insert(header::CONTENT_LENGTH, HeaderValue::from(self.held.length()));
        came.status = StatusCode::OK;
        Joined::Whole(came, gap)
    }
}
