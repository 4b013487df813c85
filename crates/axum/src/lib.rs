//! A crate of larder.
