//! Points in time as the cache compares them.

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

    /// Reads an HTTP-date (RFC 9110 section 5.6.7); `None` when it is not one.
    pub fn from_http_date(value: &HeaderValue) -> Option<Self> {
        httpdate::parse_http_date(value.to_str().ok()?.trim()).ok().map(Self::from)
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
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
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

    #[test]
    fn dates_are_read_in_the_three_forms_and_in_no_other() {
        for text in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            let value = HeaderValue::from_static(text);
            assert_eq!(Timestamp::from_http_date(&value), Some(Timestamp::from_millis(784_111_777_000)), "{text}");
        }
        for text in ["", "0", "-1", "tomorrow", "1994-11-06T08:49:37Z"] {
            assert_eq!(Timestamp::from_http_date(&HeaderValue::from_static(text)), None, "{text}");
        }
        let bytes = HeaderValue::from_bytes(b"Sun, 06 Nov 1994 08:49:37 \xff").expect("obs-text is allowed");
        assert_eq!(Timestamp::from_http_date(&bytes), None);
    }
}
