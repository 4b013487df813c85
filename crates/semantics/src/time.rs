//! Points in time as the cache compares them.

use crate::date;
use http::HeaderValue;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A point in time: milliseconds since the Unix epoch, in the time domain of one store.
///
/// Arithmetic saturates, so no header can make it overflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The point `millis` milliseconds after the Unix epoch.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Reads an HTTP-date (RFC 9110 section 5.6.7), its names in any case and whatever its weekday (RFC 9111 section
    /// 4.2); `None` when it is not one, or lies before the epoch.
    pub fn from_http_date(value: &HeaderValue) -> Option<Self> {
        date::read(value.as_bytes()).map(|seconds| Self(seconds * 1000))
    }

    /// Writes it as an HTTP-date; times that have none (after the year 9999) become the last that does.
    pub fn to_http_date(self) -> HeaderValue {
        const LAST_SECOND: u64 = 253_402_300_799;
        let date = UNIX_EPOCH + Duration::from_secs((self.0 / 1000).min(LAST_SECOND));
        HeaderValue::try_from(httpdate::fmt_http_date(date)).unwrap_or(HeaderValue::from_static(""))
    }

    /// The time from `earlier` to `self`, or zero when `earlier` lies after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// The point `duration` later; the latest point there is when that overflows.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        let millis = duration.as_secs().saturating_mul(1000).saturating_add(u64::from(duration.subsec_millis()));
        Self(self.0.saturating_add(millis))
    }
}

impl From<SystemTime> for Timestamp {
    /// Times before the epoch become the epoch.
    fn from(time: SystemTime) -> Self {
        Self(0).after(time.duration_since(UNIX_EPOCH).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        let early = Timestamp::from_millis(5);
        let late = Timestamp::from_millis(u64::MAX);
        assert_eq!(early.since(late), Duration::ZERO);
        assert_eq!(late.after(Duration::MAX), late);
        assert_eq!(early.after(Duration::MAX), late);
    }

    #[test]
    fn dates_are_written_as_they_are_read() {
        let date = Timestamp::from_millis(784_111_777_999).to_http_date();
        assert_eq!(date, "Sun, 06 Nov 1994 08:49:37 GMT");
        assert!(Timestamp::from_http_date(&Timestamp::from_millis(u64::MAX).to_http_date()).is_some());
    }
}
