//! A crate of larder.
fn main() {}
