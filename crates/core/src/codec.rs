//! Entries as bytes, for stores outside the process.
//!
//! ```text
//! 0   magic "LRDR"       4  wire version    5  kind: 1 response, 2 variants, 3 response whose body is compressed
//! 6   status             8  id, 16 bytes    24 since when it is stale whatever its lifetime, or zero
//! 32  the full name the entry was stored under, length first
//! ..  times, origin cost, born clock, generation, tags, headers, each text with its length first
//! ..  length of the body as it is stored, and the body: the tail of the same bytes, not copied unless it is compressed
//! ```
//!
//! Integers are little-endian. Whatever does not read exactly to its end is [`Unreadable`], and so a miss.

use crate::{lz4, store::Unreadable};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use larder_semantics::{
    Content, Entry, EntryId, StoredResponse, Timestamp, Variants,
    delivery::Delivery,
    stored::{Basis, StaleUse, Throttle},
    vary::{Known, Language},
};
use std::{ops::Range, time::Duration};

/// The first bytes of every entry.
pub const MAGIC: [u8; 4] = *b"LRDR";
/// The version of the layout; a build reads its own only.
pub const WIRE_VERSION: u8 = 4;
/// Where the id of an entry stands among its bytes.
pub const ID_RANGE: Range<usize> = 8..24;
/// Where it stands since when an entry is stale, in milliseconds: a store may write it into what it holds already.
pub const STALE_RANGE: Range<usize> = 24..32;

/// Room for the fields that a delivery adds.
const DELIVERY_FIELDS: usize = 4;

const RESPONSE: u8 = 1;
const VARIANTS: u8 = 2;
const COMPRESSED: u8 = 3;

/// Renders `entry` as it is stored under `name`.
pub fn encode(entry: &Entry, name: &str) -> Bytes {
    match &entry.content {
        Content::Response(response) => put_entry(entry, name, RESPONSE, &response.body),
        Content::Variants(_) => put_entry(entry, name, VARIANTS, &[]),
    }
}

/// The same, with a body of so many bytes or more compressed, if that makes it shorter by an eighth and it has no content coding
/// already. Only with the feature `lz4`, which whoever reads it needs too: to others it is a miss.
pub fn encode_compressed(entry: &Entry, name: &str, from: usize) -> Bytes {
    if let Content::Response(response) = &entry.content
        && !response.headers.contains_key(header::CONTENT_ENCODING)
        && let Some(shorter) = lz4::compressed(&response.body, from)
        && shorter.len() <= response.body.len() / 8 * 7
    {
        return put_entry(entry, name, COMPRESSED, &shorter);
    }
    encode(entry, name)
}

fn put_entry(entry: &Entry, name: &str, kind: u8, body: &[u8]) -> Bytes {
    let status = match &entry.content {
        Content::Response(response) => response.status.as_u16(),
        Content::Variants(_) => 0,
    };
    let mut bytes = BytesMut::with_capacity(256 + name.len() + body.len());
    bytes.put_slice(&MAGIC);
    bytes.put_u8(WIRE_VERSION);
    bytes.put_u8(kind);
    bytes.put_u16_le(status);
    bytes.put_slice(&entry.id.0);
    bytes.put_u64_le(match &entry.content {
        Content::Variants(rule) => rule.stale_since.as_millis(),
        Content::Response(_) => 0,
    });
    put_text(&mut bytes, name.as_bytes());
    match &entry.content {
        Content::Response(response) => put_response(&mut bytes, response, body),
        Content::Variants(Variants { fields, known, .. }) => {
            put_count(&mut bytes, fields.len());
            fields.iter().for_each(|field| put_text(&mut bytes, field.as_str().as_bytes()));
            put_count(&mut bytes, known.len());
            for Known { digest, until, language } in known {
                bytes.put_slice(&digest.0);
                bytes.put_u64_le(until.as_millis());
                put_text(&mut bytes, language.as_ref().map_or("", |language| &language.tag).as_bytes());
                bytes.put_slice(&language.as_ref().map_or(EntryId::default(), |language| language.beside).0);
            }
        }
    }
    bytes.freeze()
}

fn put_response(bytes: &mut BytesMut, response: &StoredResponse, body: &[u8]) {
    bytes.put_u64_le(response.received_at.as_millis());
    put_millis(bytes, response.initial_age);
    put_millis(bytes, response.lifetime);
    put_millis(bytes, response.keep);
    for window in windows(response.stale) {
        put_millis(bytes, window);
    }
    let Throttle { until, failures, unreachable } = response.stale.throttle;
    bytes.put_u64_le(until.as_millis());
    bytes.put_u8(failures);
    bytes.put_u8(unreachable.into());
    bytes.put_u64_le(u64::try_from(response.origin_cost.as_micros()).unwrap_or(u64::MAX));
    bytes.put_u64_le(response.born);
    bytes.put_u64_le(response.generation);
    bytes.put_u8(match response.basis {
        Basis::Response => 0,
        Basis::Shared => 1,
        Basis::Policy => 2,
    });
    put_count(bytes, response.tags.len());
    response.tags.iter().for_each(|tag| put_text(bytes, tag.as_bytes()));
    put_count(bytes, response.headers.len());
    for (name, value) in &response.headers {
        put_text(bytes, name.as_str().as_bytes());
        put_text(bytes, value.as_bytes());
    }
    bytes.put_u64_le(body.len() as u64);
    bytes.put_slice(body);
}

/// The times for which a stale response may be used, in the order in which they are stored.
fn windows(stale: StaleUse) -> [Duration; 4] {
    [stale.while_revalidate, stale.if_error, stale.if_unreachable, stale.if_accepted]
}

fn put_millis(bytes: &mut BytesMut, duration: Duration) {
    bytes.put_u64_le(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
}

fn put_count(bytes: &mut BytesMut, count: usize) {
    bytes.put_u32_le(u32::try_from(count).unwrap_or(u32::MAX));
}

fn put_text(bytes: &mut BytesMut, text: &[u8]) {
    put_count(bytes, text.len());
    bytes.put_slice(text);
}

/// Reads the entry that was stored under `name`; header values and body are slices of `bytes`.
///
/// # Errors
///
/// When the bytes are not, whole and exactly, an entry of this wire version under this name.
pub fn decode(bytes: Bytes, name: &str) -> Result<Entry, Unreadable> {
    let mut reader = Reader { bytes, at: 0 };
    if reader.bytes.len() < MAGIC.len() || reader.take(MAGIC.len())? != MAGIC {
        return Err(Unreadable::Foreign);
    }
    match reader.u8()? {
        WIRE_VERSION => {}
        version => return Err(Unreadable::Version(version)),
    }
    let (kind, status) = (reader.u8()?, reader.u16()?);
    let id = EntryId(reader.array()?);
    let stale_since = Timestamp::from_millis(reader.u64()?);
    if reader.text()? != name.as_bytes() {
        return Err(Unreadable::OtherKey);
    }
    let content = match kind {
        RESPONSE => Content::Response(reader.response(status)?),
        COMPRESSED => {
            let stored = reader.response(status)?;
            let body = lz4::decompressed(&stored.body).ok_or(Unreadable::Corrupt)?.into();
            Content::Response(StoredResponse { body, ..stored })
        }
        VARIANTS => Content::Variants(reader.variants()?),
        _ => return Err(Unreadable::Corrupt),
    };
    let entry = Entry { id, content };
    Ok(if stale_since == Timestamp::default() { entry } else { entry.stale_since(stale_since) })
}

struct Reader {
    bytes: Bytes,
    at: usize,
}

impl Reader {
    fn response(&mut self, status: u16) -> Result<StoredResponse, Unreadable> {
        let status = StatusCode::from_u16(status).map_err(|_| Unreadable::Corrupt)?;
        let received_at = Timestamp::from_millis(self.u64()?);
        let (initial_age, lifetime, keep) = (self.millis()?, self.millis()?, self.millis()?);
        let stale = StaleUse {
            while_revalidate: self.millis()?,
            if_error: self.millis()?,
            if_unreachable: self.millis()?,
            if_accepted: self.millis()?,
            throttle: Throttle {
                until: Timestamp::from_millis(self.u64()?),
                failures: self.u8()?,
                unreachable: self.u8()? != 0,
            },
        };
        let origin_cost = Duration::from_micros(self.u64()?);
        let (born, generation) = (self.u64()?, self.u64()?);
        let basis = match self.u8()? {
            0 => Basis::Response,
            1 => Basis::Shared,
            2 => Basis::Policy,
            _ => return Err(Unreadable::Corrupt),
        };
        let tags = (0..self.count()?)
            .map(|_| Ok(std::str::from_utf8(self.text()?).map_err(|_| Unreadable::Corrupt)?.to_owned()))
            .collect::<Result<_, _>>()?;
        let count = self.count()?;
        let mut headers = HeaderMap::try_with_capacity(count + DELIVERY_FIELDS).map_err(|_| Unreadable::Corrupt)?;
        for _ in 0..count {
            let name = HeaderName::from_bytes(self.text()?).map_err(|_| Unreadable::Corrupt)?;
            let value = HeaderValue::from_maybe_shared(self.slice()?).map_err(|_| Unreadable::Corrupt)?;
            headers.try_append(name, value).map_err(|_| Unreadable::Corrupt)?;
        }
        let length = usize::try_from(self.u64()?).map_err(|_| Unreadable::Corrupt)?;
        let body = match (self.bytes.len() - self.at).cmp(&length) {
            std::cmp::Ordering::Less => return Err(Unreadable::Truncated),
            std::cmp::Ordering::Equal => self.bytes.slice(self.at..),
            std::cmp::Ordering::Greater => return Err(Unreadable::Corrupt),
        };
        Ok(StoredResponse {
            status,
            headers,
            delivery: Delivery::default(),
            body,
            received_at,
            initial_age,
            lifetime,
            keep,
            stale,
            basis,
            origin_cost,
            tags,
            born,
            generation,
        })
    }

    fn variants(&mut self) -> Result<Variants, Unreadable> {
        let fields = (0..self.count()?)
            .map(|_| HeaderName::from_bytes(self.text()?).map_err(|_| Unreadable::Corrupt))
            .collect::<Result<_, _>>()?;
        let known = (0..self.count()?)
            .map(|_| {
                let (digest, until) = (EntryId(self.array()?), Timestamp::from_millis(self.u64()?));
                let tag = std::str::from_utf8(self.text()?).map_err(|_| Unreadable::Corrupt)?.to_owned();
                let beside = EntryId(self.array()?);
                Ok(Known { digest, until, language: (!tag.is_empty()).then_some(Language { tag, beside }) })
            })
            .collect::<Result<_, _>>()?;
        if self.at == self.bytes.len() {
            Ok(Variants { fields, known, stale_since: Timestamp::default() })
        } else {
            Err(Unreadable::Corrupt)
        }
    }

    fn take(&mut self, length: usize) -> Result<&[u8], Unreadable> {
        let end = self.at.checked_add(length).filter(|&end| end <= self.bytes.len()).ok_or(Unreadable::Truncated)?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Unreadable> {
        self.take(N)?.try_into().map_err(|_| Unreadable::Truncated)
    }

    fn u8(&mut self) -> Result<u8, Unreadable> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn u16(&mut self) -> Result<u16, Unreadable> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Unreadable> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn millis(&mut self) -> Result<Duration, Unreadable> {
        self.u64().map(Duration::from_millis)
    }

    /// A number of things that follow; each takes four bytes at least, so a count beyond that is cut short here,
    /// before anything is reserved for it.
    fn count(&mut self) -> Result<usize, Unreadable> {
        let count = u32::from_le_bytes(self.array()?) as usize;
        if count > (self.bytes.len() - self.at) / 4 { Err(Unreadable::Truncated) } else { Ok(count) }
    }

    fn text(&mut self) -> Result<&[u8], Unreadable> {
        let length = u32::from_le_bytes(self.array()?) as usize;
        self.take(length)
    }

    fn slice(&mut self) -> Result<Bytes, Unreadable> {
        let length = self.text()?.len();
        Ok(self.bytes.slice(self.at - length..self.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn response(body: &'static [u8]) -> Entry {
        let mut headers = HeaderMap::new();
        headers.append("link", HeaderValue::from_static("<a>"));
        headers.append("link", HeaderValue::from_static("<b>"));
        headers.append("x-latin", HeaderValue::from_bytes(b"caf\xe9").expect("a value"));
        let response = StoredResponse {
            status: StatusCode::OK,
            headers,
            delivery: Delivery::default(),
            body: Bytes::from_static(body),
            received_at: Timestamp::from_millis(1),
            initial_age: Duration::from_millis(2),
            lifetime: Duration::from_millis(3),
            keep: Duration::from_millis(4),
            stale: StaleUse {
                while_revalidate: Duration::from_millis(8),
                if_error: Duration::from_millis(9),
                if_unreachable: Duration::from_millis(10),
                if_accepted: Duration::from_millis(11),
                throttle: Throttle { until: Timestamp::from_millis(12), failures: 13, unreachable: true },
            },
            basis: Basis::Shared,
            origin_cost: Duration::from_micros(5),
            tags: vec!["a".into(), "é".into()],
            born: 6,
            generation: 7,
        };
        Entry { id: EntryId([9; 16]), content: Content::Response(response) }
    }

    fn rule() -> Entry {
        let fields = vec![HeaderName::from_static("accept")];
        let language = Some(Language { tag: "de".into(), beside: EntryId([6; 16]) });
        let known = |language| Known { digest: EntryId([7; 16]), until: Timestamp::from_millis(9), language };
        let rule =
            Variants { fields, known: vec![known(language), known(None)], stale_since: Timestamp::from_millis(14) };
        Entry { id: EntryId([8; 16]), content: Content::Variants(rule) }
    }

    #[test]
    fn entries_come_back_as_they_were() {
        for entry in [response(b"body"), response(b""), rule()] {
            let bytes = encode(&entry, "n:v1:{k}");
            assert_eq!(bytes[ID_RANGE], entry.id.0);
            assert_eq!(decode(bytes, "n:v1:{k}"), Ok(entry));
        }
    }

    #[cfg(feature = "lz4")]
    #[test]
    fn a_body_is_compressed_where_that_is_worth_it() {
        let of = |body: &'static [u8]| response(body);
        let long = of(&[b'x'; 5000]);
        let bytes = encode_compressed(&long, "k", 4096);
        assert!(bytes.len() < 500, "{}", bytes.len());
        assert_eq!(decode(bytes.clone(), "k"), Ok(long.clone()));
        assert_eq!(encode_compressed(&long, "k", 5001), encode(&long, "k"), "it is shorter than that");
        let mut coded = long;
        if let Content::Response(response) = &mut coded.content {
            response.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("br"));
        }
        assert_eq!(encode_compressed(&coded, "k", 1), encode(&coded, "k"), "it is coded already");
        let random: &'static [u8] = Vec::leak((0..5000).map(|_| fastrand::u8(..)).collect());
        assert_eq!(encode_compressed(&of(random), "k", 1), encode(&of(random), "k"), "it does not get shorter");
        assert_eq!(encode_compressed(&rule(), "k", 1), encode(&rule(), "k"));
        // The length of what comes out stands before the block.
        let length = bytes.len() - lz4::compressed(&[b'x'; 5000], 1).expect("it is shorter").len();
        for claimed in [4999_u32, 5001, u32::MAX] {
            let mut damaged = bytes.to_vec();
            damaged[length..length + 4].copy_from_slice(&claimed.to_le_bytes());
            assert_eq!(decode(damaged.into(), "k"), Err(Unreadable::Corrupt), "{claimed}");
        }
    }

    #[test]
    fn what_is_stale_since_a_moment_is_told_at_one_place_for_all() {
        for entry in [response(b"body"), rule()] {
            let mut bytes = encode(&entry, "k").to_vec();
            bytes[STALE_RANGE].copy_from_slice(&90_u64.to_le_bytes());
            let at = Timestamp::from_millis(90);
            assert_eq!(decode(bytes.into(), "k"), Ok(entry.stale_since(at)));
        }
        let mut long = response(b"body");
        if let Content::Response(response) = &mut long.content {
            response.lifetime = Duration::from_secs(60);
        }
        let mut bytes = encode(&long, "k").to_vec();
        bytes[STALE_RANGE].copy_from_slice(&900_u64.to_le_bytes());
        let read = decode(bytes.into(), "k").map(|entry| entry.content);
        let Ok(Content::Response(read)) = read else { panic!("a response") };
        assert_eq!(
            read.lifetime,
            Duration::from_millis(801),
            "899 ms after it was received at an age of 2 ms, less 100"
        );
    }

    #[test]
    fn the_body_is_a_slice_of_what_was_read() {
        let bytes = encode(&response(b"body"), "k");
        let range = bytes.as_ptr_range();
        let Ok(Entry { content: Content::Response(read), .. }) = decode(bytes, "k") else { panic!("a response") };
        assert!(range.contains(&read.body.as_ptr()));
    }

    #[test]
    fn what_is_not_exactly_an_entry_is_a_miss_with_its_reason() {
        let whole = encode(&response(b"body"), "k");
        for length in 0..whole.len() {
            let expected = if length < MAGIC.len() { Unreadable::Foreign } else { Unreadable::Truncated };
            assert_eq!(decode(whole.slice(..length), "k"), Err(expected), "{length}");
        }
        let changed = |at: usize, byte: u8| {
            let mut bytes = whole.to_vec();
            bytes[at] = byte;
            decode(bytes.into(), "k")
        };
        assert_eq!(changed(0, b'X'), Err(Unreadable::Foreign));
        assert_eq!(changed(4, 200), Err(Unreadable::Version(200)));
        assert_eq!(changed(5, 77), Err(Unreadable::Corrupt));
        assert_eq!(decode(whole.clone(), "other"), Err(Unreadable::OtherKey));
        assert_eq!(decode([&whole[..], b"more"].concat().into(), "k"), Err(Unreadable::Corrupt));
        assert_eq!(decode([&encode(&rule(), "k")[..], b"more"].concat().into(), "k"), Err(Unreadable::Corrupt));
        assert_eq!(decode(Bytes::from_static(b"$-1\r\n"), "k"), Err(Unreadable::Foreign));
    }

    #[test]
    fn more_fields_than_a_map_can_hold_are_no_entry() {
        let empty = response(b"");
        let Content::Response(mut silent) = empty.content else { panic!("a response") };
        silent.headers.clear();
        let bytes = encode(&Entry { id: empty.id, content: Content::Response(silent) }, "k");
        // The number of fields stands before the length of the body, which is the end.
        let (head, body) = bytes.split_at(bytes.len() - 12);
        for count in [20_000_u32, 24_576, 24_577, 32_769, 100_000, u32::MAX] {
            let field = [&1_u32.to_le_bytes()[..], b"a", &0_u32.to_le_bytes()].concat();
            let fields = field.repeat(usize::try_from(count.min(100_000)).expect("it fits"));
            let hostile = [head, &count.to_le_bytes(), &fields, &body[4..]].concat();
            let read = decode(hostile.into(), "k");
            assert_eq!(read.is_ok(), count <= 20_000, "{count}: {:?}", read.err());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(at in 0usize..300, byte: u8, tail in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut bytes = encode(&response(b"body"), "k").to_vec();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = decode(bytes.clone().into(), "k");
            bytes.truncate(at);
            bytes.extend(tail);
            let _ = decode(bytes.into(), "k");
        }
    }
}
