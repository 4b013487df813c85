//! Large entries in pieces, so that no single reply or script holds a connection, or Redis itself, for long.
//!
//! The entry's own key holds a manifest; the bytes stand in chunks beside it, under names that hold the entry's id, so
//! that an entry and the one that replaces it share none.
//!
//! ```text
//! manifest  0 magic "LRDC"   4 version, three zeros   8 id, 16 bytes   24 since when it is stale, or zero
//!           32 chunks        36 length of the whole   44 length of the full name, and the name
//! chunk     0 id, 16 bytes  16 index                 20 a piece of the entry
//! ```
//!
//! Integers are little-endian; the id, and since when it is stale, stand where they do in an entry
//! ([`larder::codec::ID_RANGE`], [`larder::codec::STALE_RANGE`]).

use bytes::{BufMut, Bytes, BytesMut};
use larder::{
    codec::{ID_RANGE, STALE_RANGE},
    semantics::{EntryId, Timestamp},
    store::Unreadable,
};

/// The largest entry that is stored in one piece, in bytes. Scripts copy what they store: at 1 MiB that was measured
/// to cost four times the whole SET.
pub(crate) const LARGEST_WHOLE: usize = 64 << 10;
/// The bytes of an entry in one chunk; with what Redis puts around it, a chunk fits an allocation of 64 KiB.
pub(crate) const PIECE: usize = (64 << 10) - 64;

const MAGIC: [u8; 4] = *b"LRDC";
const VERSION: u8 = 2;
const CHUNK_HEAD: usize = 20;

/// What an entry's key holds when the entry itself is in chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) id: EntryId,
    pub(crate) chunks: u32,
    pub(crate) length: u64,
    /// Since when the entry is stale whatever its lifetime, if it is.
    pub(crate) stale_since: Option<Timestamp>,
}

impl Manifest {
    /// Describes the entry with this id, rendered as `bytes`.
    pub(crate) fn of(id: EntryId, bytes: &Bytes) -> Self {
        let chunks = u32::try_from(bytes.len().div_ceil(PIECE)).unwrap_or(u32::MAX);
        Self { id, chunks, length: bytes.len() as u64, stale_since: None }
    }

    pub(crate) fn is_in(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC)
    }

    pub(crate) fn encode(&self, name: &str) -> Bytes {
        let mut bytes = BytesMut::with_capacity(48 + name.len());
        bytes.put_slice(&MAGIC);
        bytes.put_slice(&[VERSION, 0, 0, 0]);
        bytes.put_slice(&self.id.0);
        bytes.put_u64_le(self.stale_since.map_or(0, Timestamp::as_millis));
        bytes.put_u32_le(self.chunks);
        bytes.put_u64_le(self.length);
        bytes.put_u32_le(u32::try_from(name.len()).unwrap_or(u32::MAX));
        bytes.put_slice(name.as_bytes());
        bytes.freeze()
    }

    /// Reads the manifest that was stored under `name`.
    pub(crate) fn decode(bytes: &[u8], name: &str) -> Result<Self, Unreadable> {
        if !Self::is_in(bytes) {
            return Err(Unreadable::Foreign);
        }
        match bytes.get(MAGIC.len()) {
            Some(&VERSION) => {}
            Some(&version) => return Err(Unreadable::Version(version)),
            None => return Err(Unreadable::Truncated),
        }
        let id = EntryId(array(bytes, ID_RANGE.start)?);
        let stale_since = u64::from_le_bytes(array(bytes, STALE_RANGE.start)?);
        let stale_since = (stale_since > 0).then(|| Timestamp::from_millis(stale_since));
        let chunks = u32::from_le_bytes(array(bytes, 32)?);
        let length = u64::from_le_bytes(array(bytes, 36)?);
        let named = u32::from_le_bytes(array(bytes, 44)?) as usize;
        let rest = bytes.get(48..).ok_or(Unreadable::Truncated)?;
        match rest.len().cmp(&named) {
            std::cmp::Ordering::Less => return Err(Unreadable::Truncated),
            std::cmp::Ordering::Greater => return Err(Unreadable::Corrupt),
            std::cmp::Ordering::Equal if rest != name.as_bytes() => return Err(Unreadable::OtherKey),
            std::cmp::Ordering::Equal => {}
        }
        let fitting = length.div_ceil(PIECE as u64) == u64::from(chunks);
        if fitting { Ok(Self { id, chunks, length, stale_since }) } else { Err(Unreadable::Corrupt) }
    }

    /// Where a chunk of the entry `name` lies: in the same slot.
    pub(crate) fn chunk_name(&self, name: &str, index: u32) -> String {
        format!("{name}:b:{}:{index}", self.id)
    }

    /// Cuts a chunk out of the rendered entry.
    pub(crate) fn cut(&self, entry: &Bytes, index: u32) -> Bytes {
        let start = (index as usize).saturating_mul(PIECE).min(entry.len());
        let end = start.saturating_add(PIECE).min(entry.len());
        let mut chunk = BytesMut::with_capacity(CHUNK_HEAD + end - start);
        chunk.put_slice(&self.id.0);
        chunk.put_u32_le(index);
        chunk.put_slice(&entry[start..end]);
        chunk.freeze()
    }

    /// The piece of the entry in what was stored as its chunk `index`.
    pub(crate) fn piece(&self, chunk: &Bytes, index: u32) -> Result<Bytes, Unreadable> {
        let id: [u8; 16] = array(chunk, 0)?;
        if id != self.id.0 || u32::from_le_bytes(array(chunk, 16)?) != index {
            return Err(Unreadable::OtherKey);
        }
        let last = index.checked_add(1) == Some(self.chunks);
        let expected = if last { self.length - u64::from(index) * PIECE as u64 } else { PIECE as u64 };
        match (chunk.len() as u64 - CHUNK_HEAD as u64).cmp(&expected) {
            std::cmp::Ordering::Less => Err(Unreadable::Truncated),
            std::cmp::Ordering::Greater => Err(Unreadable::Corrupt),
            std::cmp::Ordering::Equal => Ok(chunk.slice(CHUNK_HEAD..)),
        }
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Unreadable> {
    let taken = bytes.get(at..at + N).ok_or(Unreadable::Truncated)?;
    taken.try_into().map_err(|_| Unreadable::Truncated)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NAME: &str = "shop:v2:{user:123}";

    fn entry(length: usize) -> Bytes {
        (0..length).map(|at| u8::try_from(at % 251).expect("below 251")).collect()
    }

    fn manifest(length: usize) -> (Manifest, Bytes) {
        let entry = entry(length);
        (Manifest::of(EntryId([7; 16]), &entry), entry)
    }

    #[test]
    fn an_entry_is_the_same_after_cutting_and_joining() {
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE] {
            let (manifest, entry) = manifest(length);
            let joined: Vec<u8> = (0..manifest.chunks)
                .flat_map(|index| manifest.piece(&manifest.cut(&entry, index), index).expect("a piece"))
                .collect();
            assert_eq!(joined, entry, "{length}");
            let bytes = manifest.encode(NAME);
            assert_eq!(bytes[ID_RANGE], manifest.id.0);
            assert_eq!(Manifest::decode(&bytes, NAME), Ok(manifest));
        }
    }

    #[test]
    fn a_manifest_that_is_not_whole_and_exact_is_refused() {
        let (manifest, _) = manifest(PIECE + 1);
        let whole = manifest.encode(NAME);
        for length in 0..whole.len() {
            let expected = if length < MAGIC.len() { Unreadable::Foreign } else { Unreadable::Truncated };
            assert_eq!(Manifest::decode(&whole[..length], NAME), Err(expected), "{length}");
        }
        let changed = |at: usize, byte: u8| {
            let mut bytes = whole.to_vec();
            bytes[at] = byte;
            Manifest::decode(&bytes, NAME)
        };
        assert_eq!(changed(0, b'X'), Err(Unreadable::Foreign));
        assert_eq!(changed(4, 9), Err(Unreadable::Version(9)));
        assert_eq!(changed(32, 3), Err(Unreadable::Corrupt));
        assert_eq!(Manifest::decode(&whole, "shop:v2:{user:124}"), Err(Unreadable::OtherKey));
        assert_eq!(Manifest::decode(&[&whole[..], b"x"].concat(), NAME), Err(Unreadable::Corrupt));
    }

    #[test]
    fn a_chunk_of_another_entry_or_place_is_refused() {
        let (manifest, entry) = manifest(PIECE + 1);
        let chunk = manifest.cut(&entry, 0);
        assert_eq!(manifest.piece(&chunk, 1), Err(Unreadable::OtherKey));
        assert_eq!(manifest.piece(&chunk.slice(..CHUNK_HEAD - 1), 0), Err(Unreadable::Truncated));
        assert_eq!(manifest.piece(&chunk.slice(..chunk.len() - 1), 0), Err(Unreadable::Truncated));
        assert_eq!(manifest.piece(&[&chunk[..], b"x"].concat().into(), 0), Err(Unreadable::Corrupt));
        let other = Manifest { id: EntryId([8; 16]), ..manifest };
        assert_eq!(other.piece(&chunk, 0), Err(Unreadable::OtherKey));
    }

    #[test]
    fn chunks_lie_in_the_slot_of_their_entry() {
        let (manifest, _) = manifest(1);
        assert_eq!(manifest.chunk_name(NAME, 3), format!("{NAME}:b:{}:3", "07".repeat(16)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(at in 0usize..80, byte: u8, index: u32, tail in proptest::collection::vec(any::<u8>(), 0..40)) {
            let (manifest, entry) = manifest(100);
            let mut bytes = manifest.encode(NAME).to_vec();
            let at = at % bytes.len();
            bytes[at] = byte;
            for bytes in [&bytes[..], &[&bytes[..at], &tail].concat()] {
                if let Ok(read) = Manifest::decode(bytes, NAME) {
                    let _ = read.piece(&read.cut(&entry, index), index);
                    let _ = read.piece(&Bytes::copy_from_slice(&tail), index);
                }
            }
            let _ = manifest.piece(&manifest.cut(&entry, index), index);
        }
    }
}
