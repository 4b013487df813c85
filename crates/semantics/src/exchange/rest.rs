//! What is missing of a stored part, asked of the origin and put together with it (RFC 9111 section 3.4).

use crate::{
    partial::{Extent, Gap},
    policy::Caching,
    range,
    stored::{Content, Entry, StoredResponse},
    storing::ContentLength,
    validation::{self, Validators},
};
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

impl Rest {
    /// The rest of a stored part, if one range has all of it, and may be of use.
    ///
    /// Without a strong validator it cannot be put together with the part (RFC 9111 section 3.4). Where there is no validator
    /// at all, the origin may know no ranges either, and is asked as long as the whole is not too long to be stored: it then
    /// takes the place of the part.
    pub(super) fn of(part: Arc<Entry>, max_body: u64) -> Option<Self> {
        let Content::Response(response) = &part.content else { return None };
        let held = Extent::of(response).filter(|held| held.is_of(&response.body))?;
        let is_strong = validation::strong_validator(&response.headers).is_some();
        let is_bare = !Validators::of(&response.headers).any() && held.length() <= max_body;
        (held.missing().is_some() && (is_strong || is_bare)).then_some(Self { part, held })
    }

    /// Makes a request for the whole ask for the rest alone, unless the origin has another representation by now
    /// (RFC 9110 section 13.1.5).
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
        let is_final = came.extensions.get::<Caching>().is_some_and(|caching| caching.unreachable);
        if is_final || !is_about_the_range(came.status) {
            return Joined::Other(came);
        }
        let Content::Response(part) = &self.part.content else { return Joined::Unusable };
        let Some(gap) = self.gap(part, &came) else { return Joined::Unusable };
        // What the origin says now counts; a date is of the message, not of what is stored.
        let mut stored = part.headers.clone();
        came.headers.keys().chain([&header::DATE]).for_each(|name| _ = stored.remove(name));
        for (name, value) in &stored {
            let _ = came.headers.try_append(name, value.clone());
        }
        // Those are of the part's own message.
        for field in [header::CONTENT_RANGE, header::TRANSFER_ENCODING, header::TRAILER] {
            came.headers.remove(field);
        }
        range::leave_digests(&mut came.headers);
        let _ = came.headers.try_insert(header::CONTENT_LENGTH, HeaderValue::from(self.held.length()));
        came.extensions.get_or_insert_default::<Caching>().tags.extend(part.tags.iter().cloned());
        came.status = StatusCode::OK;
        Joined::Whole(came, gap)
    }

    /// Where what comes belongs, if it is what is missing, and as long as it says.
    fn gap(&self, part: &StoredResponse, came: &response::Parts) -> Option<Gap> {
        let extent = Extent::of_part(&came.headers).filter(|_| came.status == StatusCode::PARTIAL_CONTENT)?;
        let gap = self.held.gap(extent, &part.body);
        let is_sound = match ContentLength::of(&came.headers) {
            ContentLength::Absent => true,
            ContentLength::Bytes(length) => length == gap.length,
            ContentLength::Contradictory => false,
        };
        let is_whole = self.held.with(extent).is_some_and(Extent::is_whole);
        let is_same = Validators::are_same(&part.headers, &came.headers);
        (is_sound && is_whole && is_same).then_some(gap)
    }
}

/// Whether a status may come of the range that was asked for, and the whole have another: what says that a part follows, that
/// there is none, that such a request cannot be understood, or that nothing has changed, which was not asked.
fn is_about_the_range(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::PARTIAL_CONTENT
            | StatusCode::NOT_MODIFIED
            | StatusCode::BAD_REQUEST
            | StatusCode::PRECONDITION_FAILED
            | StatusCode::RANGE_NOT_SATISFIABLE
            | StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::NOT_IMPLEMENTED
    )
}
