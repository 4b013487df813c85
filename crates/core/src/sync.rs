//! The one lock that what is checked under every schedule is built on.

pub(crate) use std::sync::{Mutex, MutexGuard};
