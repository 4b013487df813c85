//! The headers of a stored response as they go out: what every delivery of a popular response pays for.
//!
//! Threads that deliver the same response at the same time pass between them whatever they count together, which costs more
//! than all the rest. So a delivery shares as little as it can: values that many responses have are those of this program,
//! and what tells of this one delivery is each thread's own. The key is shared: to write it anew each time takes longer still.

use crate::{
    key::Key,
    lasting::Lasting,
    reason::{Outcome, Reason, Verdict},
    signature::{CACHE_STATUS, Signature, Tells, X_CACHE, X_CACHE_KEY},
    status::{cache_status, seconds},
};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use std::{cell::RefCell, sync::OnceLock};

/// The headers of a stored response with room for what a delivery tells, made by the first one.
#[derive(Debug, Default)]
pub struct Delivery(OnceLock<Option<Form>>);

impl Delivery {
    /// A copy of `headers` with `signature` and the age, in seconds, written into it.
    #[inline]
    pub fn of(&self, headers: &HeaderMap, signature: Signature<'_>, age: i64) -> HeaderMap {
        let is_plain = signature.outcome.reason().verdict() == Verdict::Hit;
        match self.0.get_or_init(|| Form::of(headers, signature.tells)) {
            Some(form) if is_plain && form.tells.is(signature.tells) => form.filled(signature, age),
            _ => {
                let mut written = headers.clone();
                signature.write(&mut written, Some(age));
                written
            }
        }
    }
}

/// A copy has been delivered to nobody.
impl Clone for Delivery {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// It is made of the headers, so it does not tell responses apart.
impl PartialEq for Delivery {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Delivery {}

/// The fields that differ between deliveries.
static OWN: [HeaderName; 2] = [header::AGE, CACHE_STATUS];

/// What `X-Cache` says of what is delivered so.
const HIT: &str = "HIT";

#[derive(Debug)]
struct Form {
    tells: Telling,
    /// Those that differ between deliveries, empty and before all others: to look them up by their names would take as long
    /// as all the rest. Then what tells the same each time, and those of the response.
    headers: HeaderMap,
}

/// What a delivery tells besides the age: [`Tells`], of one key.
#[derive(Debug)]
enum Telling {
    Nothing,
    Status,
    Key(Key),
}

impl Telling {
    fn of(tells: Tells<'_>) -> Self {
        match tells {
            Tells::Nothing => Self::Nothing,
            Tells::Status => Self::Status,
            Tells::Key(key) => Self::Key(key.clone()),
        }
    }

    fn is(&self, tells: Tells<'_>) -> bool {
        match (self, tells) {
            (Self::Nothing, Tells::Nothing) | (Self::Status, Tells::Status) => true,
            (Self::Key(key), Tells::Key(told)) => key == told,
            _ => false,
        }
    }
}

impl Form {
    /// None for a response of which a cache nearer to the origin has told: that stays before what this one tells. And none
    /// for one that has as many fields as it can.
    fn of(headers: &HeaderMap, tells: Tells<'_>) -> Option<Self> {
        if headers.contains_key(X_CACHE) || headers.contains_key(CACHE_STATUS) {
            return None;
        }
        let own = if tells == Tells::Nothing { &OWN[..1] } else { &OWN };
        let mut form = HeaderMap::try_with_capacity(headers.len() + OWN.len() + 2).ok()?;
        for name in own {
            form.try_insert(name, HeaderValue::from_static("")).ok()?;
        }
        if tells != Tells::Nothing {
            form.try_insert(X_CACHE, HeaderValue::from_static(HIT)).ok()?;
        }
        if let Tells::Key(key) = tells {
            form.try_insert(X_CACHE_KEY, key.to_value()?).ok()?;
        }
        let told = form.clone();
        for (name, value) in headers.iter().filter(|(name, _)| !told.contains_key(*name)) {
            form.try_append(lasting_name(name), lasting_value(name, value)).ok()?;
        }
        form.keys().zip(own).all(|(first, own)| first == own).then(|| Self { tells: Telling::of(tells), headers: form })
    }

    /// Every value is made where it is put: to pass it on takes longer than to make it.
    #[inline]
    fn filled(&self, signature: Signature<'_>, age: i64) -> HeaderMap {
        let mut headers = self.headers.clone();
        let mut places = headers.values_mut();
        if let Some(place) = places.next()
            && let Some(age) = seconds(age)
        {
            *place = age;
        }
        if signature.tells != Tells::Nothing
            && let Some(place) = places.next()
        {
            tell(place, signature.identifier, signature.outcome);
        }
        headers
    }
}

/// How many of the members that a thread has written last it keeps.
const KEPT: usize = 64;

/// The member of `Cache-Status` of a plain hit, and what it tells.
struct Told {
    identifier: Box<str>,
    ttl: i64,
    member: HeaderValue,
}

thread_local! {
    static TOLD: RefCell<[Option<Told>; KEPT]> = const { RefCell::new([const { None }; KEPT]) };
}

/// Puts in `place` the member of `Cache-Status`; that of a plain hit is written once a second, by each thread for itself.
#[inline]
fn tell(place: &mut HeaderValue, identifier: &str, outcome: Outcome) {
    if let Outcome::Hit { reason: Reason::Near, ttl } = outcome
        && let Ok(true) = TOLD.try_with(|told| {
            let Ok(mut told) = told.try_borrow_mut() else { return false };
            let kept = &mut told[ttl as usize % KEPT];
            let last = match kept {
                Some(last) if last.ttl == ttl && *last.identifier == *identifier => last,
                _ => {
                    let Some(member) = cache_status(identifier, outcome) else { return false };
                    kept.insert(Told { identifier: identifier.into(), ttl, member })
                }
            };
            *place = last.member.clone();
            true
        })
    {
        return;
    }
    if let Some(member) = cache_status(identifier, outcome) {
        *place = member;
    }
}

/// How many names of fields are kept for good, and how long each may be.
const MOST_NAMES: usize = 512;
const LONGEST_NAME: usize = 64;

/// The same name, of which nobody counts who has it: programs know few, so those that come first are kept for good.
fn lasting_name(name: &HeaderName) -> HeaderName {
    static NAMES: Lasting = Lasting::new();
    let most = if name.as_str().len() <= LONGEST_NAME { MOST_NAMES } else { 0 };
    NAMES.keep(name.as_str(), most).map_or_else(|| name.clone(), HeaderName::from_static)
}

/// The same value, of which nobody counts who has it if it is a common one, or a number; what is sensitive stays so.
fn lasting_value(name: &HeaderName, value: &HeaderValue) -> HeaderValue {
    if value.is_sensitive() {
        return value.clone();
    }
    let is_it = |(field, known): &&(HeaderName, &str)| field == name && value.as_bytes() == known.as_bytes();
    let common = || KNOWN.iter().find(is_it).map(|(_, known)| HeaderValue::from_static(known));
    let number = value.to_str().ok().and_then(|text| seconds(text.parse().ok()?));
    number.filter(|number| number == value).or_else(common).unwrap_or_else(|| value.clone())
}

/// Values that many responses have, beginning with those that RFC 9204 appendix A knows: nobody counts who has them.
static KNOWN: [(HeaderName, &str); 42] = [
    (header::CONTENT_TYPE, "application/json"),
    (header::CONTENT_TYPE, "text/html; charset=utf-8"),
    (header::CONTENT_TYPE, "text/plain"),
    (header::CONTENT_TYPE, "text/plain;charset=utf-8"),
    (header::CONTENT_TYPE, "text/css"),
    (header::CONTENT_TYPE, "application/javascript"),
    (header::CONTENT_TYPE, "application/x-www-form-urlencoded"),
    (header::CONTENT_TYPE, "image/gif"),
    (header::CONTENT_TYPE, "image/jpeg"),
    (header::CONTENT_TYPE, "image/png"),
    (header::CONTENT_TYPE, "text/html"),
    (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
    (header::CONTENT_TYPE, "text/javascript"),
    (header::CONTENT_TYPE, "application/octet-stream"),
    (header::CONTENT_TYPE, "application/xml"),
    (header::CONTENT_TYPE, "image/svg+xml"),
    (header::CONTENT_TYPE, "image/webp"),
    (header::CACHE_CONTROL, "max-age=0"),
    (header::CACHE_CONTROL, "max-age=604800"),
    (header::CACHE_CONTROL, "max-age=2592000"),
    (header::CACHE_CONTROL, "no-cache"),
    (header::CACHE_CONTROL, "public, max-age=31536000"),
    (header::CACHE_CONTROL, "max-age=10"),
    (header::CACHE_CONTROL, "max-age=60"),
    (header::CACHE_CONTROL, "max-age=300"),
    (header::CACHE_CONTROL, "max-age=3600"),
    (header::CACHE_CONTROL, "max-age=86400"),
    (header::CACHE_CONTROL, "max-age=31536000"),
    (header::CACHE_CONTROL, "public, max-age=60"),
    (header::CACHE_CONTROL, "public, max-age=300"),
    (header::CACHE_CONTROL, "public, max-age=3600"),
    (header::CACHE_CONTROL, "public, max-age=86400"),
    (header::CACHE_CONTROL, "public, max-age=31536000, immutable"),
    (header::CONTENT_ENCODING, "br"),
    (header::CONTENT_ENCODING, "gzip"),
    (header::ACCEPT_RANGES, "bytes"),
    (header::VARY, "accept-encoding"),
    (header::VARY, "origin"),
    (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::STRICT_TRANSPORT_SECURITY, "max-age=31536000"),
    (header::STRICT_TRANSPORT_SECURITY, "max-age=31536000; includesubdomains"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let fields = fields.iter().map(|(name, value)| {
            (HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).expect("a value"))
        });
        fields.collect()
    }

    /// Every kind of delivery after every other, of responses that leave room for it and of some that do not.
    #[test]
    fn what_is_filled_in_reads_as_what_is_written() {
        let mut full = HeaderMap::new();
        let names = (0..).map(|n| HeaderName::try_from(format!("x-{n}")).expect("a name"));
        names.take_while(|name| full.try_insert(name, HeaderValue::from_static("1")).is_ok()).for_each(drop);
        let responses = [
            stored(&[]),
            stored(&[("content-type", "application/json"), ("cache-control", "max-age=3600"), ("x-cost", "12")]),
            stored(&[
                ("content-length", "1024"),
                ("x-cost", "012"),
                ("x-left", "-1"),
                ("x-rate", "+5"),
                ("etag", "10000"),
            ]),
            stored(&[("content-type", "application/xhtml+xml"), ("vary", "Origin"), ("x-cache-key", "another's")]),
            stored(&[("x-cache", "MISS"), ("cache-status", "origin; fwd=miss")]),
            stored(&[("cache-status", "origin; fwd=miss"), ("etag", "\"1\"")]),
            full,
        ];
        let keys = [Key::new("user:7"), Key::new("user:8")];
        let tells = [Tells::Nothing, Tells::Status, Tells::Key(&keys[0]), Tells::Key(&keys[1])];
        let outcomes = [
            Outcome::Hit { reason: Reason::Near, ttl: 59 },
            Outcome::Hit { reason: Reason::Near, ttl: 59 + KEPT as i64 },
            Outcome::Hit { reason: Reason::SwrUpdating, ttl: -3 },
            Outcome::Collapsed { ttl: 1 },
            Outcome::Shed { reason: Reason::OnlyIfCached },
        ];
        for headers in responses {
            for first in tells {
                let delivery = Delivery::default();
                for (tells, outcome, age) in [first].into_iter().chain(tells).flat_map(|tells| {
                    outcomes.into_iter().zip([0, 9, 10, 9_999, 10_000]).map(move |(outcome, age)| (tells, outcome, age))
                }) {
                    for identifier in ["larder", "other"] {
                        let signature = Signature { identifier, outcome, tells };
                        let mut written = headers.clone();
                        signature.write(&mut written, Some(age));
                        assert_eq!(delivery.of(&headers, signature, age), written, "{outcome:?} {age} {tells:?}");
                    }
                }
            }
        }
    }
}
