//! Compression of what is stored: a block of LZ4 after its length. Without the feature `lz4` nothing is compressed, and what
//! is cannot be read.

#[cfg(feature = "lz4")]
pub(crate) fn compressed(plain: &[u8], from: usize) -> Option<Vec<u8>> {
    if plain.len() < from {
        return None;
    }
    Some(lz4_flex::compress_prepend_size(plain)).filter(|shorter| shorter.len() < plain.len())
}

#[cfg(not(feature = "lz4"))]
pub(crate) fn compressed(_: &[u8], _: usize) -> Option<Vec<u8>> {
    None
}

/// A block of LZ4 expands to no more than this many times its length: one that claims more is damaged, and nothing is set
/// aside for it.
#[cfg(feature = "lz4")]
const MOST_EXPANDED: usize = 256;

#[cfg(feature = "lz4")]
pub(crate) fn decompressed(stored: &[u8]) -> Option<Vec<u8>> {
    let (length, block) = lz4_flex::block::uncompressed_size(stored).ok()?;
    if length > block.len().saturating_mul(MOST_EXPANDED) {
        return None;
    }
    lz4_flex::decompress(block, length).ok().filter(|plain| plain.len() == length)
}

#[cfg(not(feature = "lz4"))]
pub(crate) fn decompressed(_: &[u8]) -> Option<Vec<u8>> {
    None
}
