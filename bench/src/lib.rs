//! What is measured; the programs in `src/bin` measure it.

pub mod hit;
pub mod table;
