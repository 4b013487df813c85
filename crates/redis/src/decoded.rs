//! Entries that were decoded before, found again by their bytes.
//!
//! Redis is asked for every hit, and what is popular comes back as the same bytes each time. Reading them anew, and writing
//! the answer's headers anew, costs more than all the rest that this process does for a hit.

use bytes::Bytes;
use larder::{
    codec::{self, ID_RANGE},
    semantics::{Content, Entry},
    store::Unreadable,
};
use std::sync::{Arc, Mutex, TryLockError};

/// How many entries are remembered, at most.
const SLOTS: usize = 1024;
/// The largest of them, in bytes: all together take 8 MiB at most.
const LARGEST: usize = 8 << 10;

/// The entries that were read last, each in the place that its id gives it.
pub(crate) struct Decoded {
    slots: Box<[Mutex<Slot>]>,
}

#[derive(Default)]
enum Slot {
    #[default]
    Empty,
    /// It was read once. Most are not read twice, and remembering them would cost what it saves.
    Seen([u8; 16]),
    Held {
        name: Box<str>,
        bytes: Bytes,
        entry: Arc<Entry>,
    },
}

impl Default for Decoded {
    fn default() -> Self {
        Self { slots: std::iter::repeat_with(Mutex::default).take(SLOTS).collect() }
    }
}

impl Decoded {
    /// Reads the entry that was stored under `name`, as [`codec::decode`] does.
    pub(crate) fn decode(&self, bytes: Bytes, name: &str) -> Result<Arc<Entry>, Unreadable> {
        let id: Option<[u8; 16]> = bytes.get(ID_RANGE).and_then(|id| id.try_into().ok());
        let Some(id) = id.filter(|_| bytes.len() <= LARGEST) else { return codec::decode(bytes, name).map(Arc::new) };
        let mut slot = match self.slots[usize::from(u16::from_le_bytes([id[0], id[1]])) % SLOTS].try_lock() {
            Ok(slot) => slot,
            // What is in it is whole at any time.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Nobody waits here.
            Err(TryLockError::WouldBlock) => return codec::decode(bytes, name).map(Arc::new),
        };
        match &*slot {
            // The name counts apart from the bytes: a reply may be another command's.
            Slot::Held { name: held, bytes: same, entry } if **held == *name && *same == bytes => Ok(entry.clone()),
            Slot::Seen(seen) if *seen == id => {
                // A copy, as a slice would keep all that was read from the connection at the same time.
                let bytes = Bytes::copy_from_slice(&bytes);
                let entry = Arc::new(codec::decode(bytes.clone(), name)?);
                // What was compressed may be many times as long.
                if let Content::Response(response) = &entry.content
                    && response.body.len() > LARGEST
                {
                    return Ok(entry);
                }
                *slot = Slot::Held { name: name.into(), bytes, entry: entry.clone() };
                Ok(entry)
            }
            _ => {
                *slot = Slot::Seen(id);
                codec::decode(bytes, name).map(Arc::new)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder::semantics::{EntryId, Variants};

    fn stored(name: &str, id: u8) -> Bytes {
        codec::encode(&Entry { id: EntryId([id; 16]), content: Content::Variants(Variants::default()) }, name)
    }

    #[test]
    fn what_comes_back_as_the_same_bytes_is_the_same_entry() {
        let (decoded, bytes) = (Decoded::default(), stored("shop:v1:{a}", 1));
        let read = || decoded.decode(Bytes::copy_from_slice(&bytes), "shop:v1:{a}").expect("an entry");
        let (first, second, third) = (read(), read(), read());
        assert_eq!(first, second);
        assert!(!Arc::ptr_eq(&first, &second) && Arc::ptr_eq(&second, &third));
    }

    #[test]
    fn another_key_never_gets_what_is_remembered() {
        let (decoded, bytes) = (Decoded::default(), stored("shop:v1:{a}", 1));
        for _ in 0..3 {
            assert!(decoded.decode(bytes.clone(), "shop:v1:{a}").is_ok());
            assert_eq!(decoded.decode(bytes.clone(), "shop:v1:{b}"), Err(Unreadable::OtherKey));
        }
    }

    #[test]
    fn a_byte_that_differs_is_read_anew() {
        let (decoded, bytes) = (Decoded::default(), stored("shop:v1:{a}", 1));
        for _ in 0..3 {
            assert!(decoded.decode(bytes.clone(), "shop:v1:{a}").is_ok());
        }
        let mut stale = bytes.to_vec();
        stale[codec::STALE_RANGE.start] = 7;
        let entry = decoded.decode(stale.into(), "shop:v1:{a}").expect("an entry");
        let Content::Variants(rule) = &entry.content else { panic!("a rule: {entry:?}") };
        assert_eq!(rule.stale_since.as_millis(), 7);
        assert_eq!(decoded.decode(bytes.slice(..bytes.len() - 1), "shop:v1:{a}"), Err(Unreadable::Truncated));
        assert_eq!(decoded.decode(bytes.slice(..9), "shop:v1:{a}"), Err(Unreadable::Truncated));
    }
}
