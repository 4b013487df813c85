//! What is logged in a test.

use std::{
    io,
    sync::{Arc, Mutex, OnceLock},
};
use tracing::{Dispatch, subscriber::DefaultGuard};

/// What was logged so far.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

/// Keeps what is logged on this thread, as long as the guard is there; that of a runtime which has no other runs all its tasks.
pub(crate) fn logging() -> (Log, DefaultGuard) {
    // With a single subscriber, tracing takes the word of whichever thread first comes to a line that nobody wants it.
    static SECOND: OnceLock<Dispatch> = OnceLock::new();
    SECOND.get_or_init(|| Dispatch::new(tracing_subscriber::fmt().with_writer(io::sink).finish()));
    let log = Log::default();
    let written = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || written.clone()).finish();
    (log, tracing::subscriber::set_default(subscriber))
}

impl Log {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no panic holds it")).into_owned()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic holds it").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How many lines larder has written to a log as warnings or errors.
pub(crate) fn warnings(log: &str) -> usize {
    let is_warning = |line: &&str| line.contains(" WARN larder") || line.contains("ERROR larder");
    log.lines().filter(is_warning).count()
}
