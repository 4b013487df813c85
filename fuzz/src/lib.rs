//! What holds for whatever bytes come: one property for each part of larder that reads what others wrote.
//!
//! Each is a function of bytes that panics when it does not hold. `cargo xtask fuzz` looks for bytes for which one does
//! not; `tests/tests/corpora.rs` asks them of the cases in `corpus/`. All but the bytes of [`envelope`] are HTTP messages,
//! written as in [`messages`].

pub mod dates;
pub mod directives;
pub mod envelope;
pub mod keys;
mod messages;
pub mod ranges;
mod shelf;
pub mod vary;
