//! Entries as bytes: whatever bytes lie in a store, they are read as an entry or as none; and whatever entry is written,
//! it is read as it was.

use super::{
    messages::exchanges,
    shelf::{Shelf, generous},
};
use bytes::Bytes;
use larder::{
    codec::{ID_RANGE, decode, encode},
    semantics::{Content, Entry},
    store::Unreadable,
};
use std::time::Duration;

/// Asks it of the input as bytes, and of the entries that come of its exchanges.
pub fn hold(input: &[u8]) {
    bytes_are_an_entry_or_none(&Bytes::copy_from_slice(input));
    let mut policy = generous();
    (policy.store_partial, policy.store_to_validate) = (true, true);
    policy.tags = vec!["a".into(), "é".into()];
    let mut shelf = Shelf::new(policy);
    for mut exchange in exchanges(input) {
        // What takes longer than can be counted in microseconds is cut.
        exchange.arrival.delay = exchange.arrival.delay.min(Duration::from_micros(u64::MAX));
        let length = exchange.length.unwrap_or(10).min(300) as usize;
        shelf.serve(&exchange, &Bytes::from(vec![b'x'; length]));
    }
    for (key, entry) in &shelf.entries {
        let (name, written) = (key.name(), encode(entry, &key.name()));
        assert_eq!(decode(written.clone(), &name).as_ref(), Ok(&**entry));
        is_read_whole_or_not_at_all(&written, &name);
    }
}

fn bytes_are_an_entry_or_none(bytes: &Bytes) {
    // An entry under any name that it may have been stored under.
    let name = bytes.get(36..).zip(bytes.get(32..36)).and_then(|(rest, length)| {
        let length = u32::from_le_bytes(length.try_into().ok()?);
        std::str::from_utf8(rest.get(..usize::try_from(length).ok()?)?).ok()
    });
    let name = name.unwrap_or("larder:v1:{resource}");
    let Ok(entry) = decode(bytes.clone(), name) else { return };
    assert_eq!(bytes[ID_RANGE], entry.id.0);
    is_a_slice(bytes, &entry);
    let written = encode(&entry, name);
    assert_eq!(written.len(), bytes.len(), "{entry:?}");
    assert_eq!(decode(written.clone(), name).as_ref(), Ok(&entry));
    assert_eq!(encode(&entry, name), written);
    is_read_whole_or_not_at_all(bytes, name);
}

/// The body is not copied.
fn is_a_slice(bytes: &Bytes, entry: &Entry) {
    if let Content::Response(response) = &entry.content
        && !response.body.is_empty()
    {
        assert!(bytes.as_ptr_range().contains(&response.body.as_ptr()));
    }
}

fn is_read_whole_or_not_at_all(bytes: &Bytes, name: &str) {
    for length in (0..bytes.len()).step_by(1 + bytes.len() / 64) {
        assert!(decode(bytes.slice(..length), name).is_err(), "{length} bytes of {} are an entry", bytes.len());
    }
    let longer = [bytes, &b"x"[..]].concat();
    assert_eq!(decode(longer.into(), name), Err(Unreadable::Corrupt));
    assert_eq!(decode(bytes.clone(), &format!("{name}x")), Err(Unreadable::OtherKey));
}
