//! larder caches HTTP responses.

pub mod codec;
pub mod store;

pub use larder_semantics as semantics;
