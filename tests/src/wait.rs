//! Waiting for what a server does in its own time.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Waits until `holds`.
///
/// # Panics
///
/// When it does not within `limit`; the message says what.
pub(crate) fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < limit, "{limit:?} have passed, and not: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
