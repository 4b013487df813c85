//! HTTP-dates, read as a cache is asked to read them (RFC 9110 section 5.6.7, RFC 9111 section 4.2).

/// Seconds from the Unix epoch to an HTTP-date in any of its three forms; `None` when it is none, or lies before the epoch.
///
/// Names are matched in any case, and GMT is the only zone, as RFC 9111 section 4.2 asks. A weekday that is not that date's
/// is forgiven: the rest says which day is meant. Years of two digits are those from 1970 to 2069; the window of RFC 9110
/// section 5.6.7 moves with the clock, and until it ends later than this one, it differs on the side of being stale.
pub(crate) fn read(text: &[u8]) -> Option<u64> {
    let text = text.trim_ascii();
    match text.iter().position(|&byte| byte == b',') {
        Some(3) => fixdate(text),
        Some(_) => rfc850(text),
        None => asctime(text),
    }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
fn fixdate(text: &[u8]) -> Option<u64> {
    let (weekday, rest) = text.split_at_checked(3)?;
    let ([b',', b' ', d, e, b' ', date @ .., b' '], time) = rest.split_at_checked(14)? else { return None };
    let (month, [b' ', year @ ..]) = date.split_at_checked(3)? else { return None };
    is_weekday(weekday, 3).then_some(())?;
    Some(day(number(year)?, month, &[*d, *e])? + of_day(gmt(time)?)?)
}

/// `Sunday, 06-Nov-94 08:49:37 GMT`
fn rfc850(text: &[u8]) -> Option<u64> {
    let (weekday, rest) = text.split_at(text.iter().position(|&byte| byte == b',')?);
    let ([b',', b' ', d, e, b'-', date @ .., b' '], time) = rest.split_at_checked(12)? else { return None };
    let (month, [b'-', year @ ..]) = date.split_at_checked(3)? else { return None };
    is_weekday(weekday, usize::MAX).then_some(())?;
    let year = number(year)?;
    let century = if year < 70 { 2000 } else { 1900 };
    Some(day(century + year, month, &[*d, *e])? + of_day(gmt(time)?)?)
}

/// `Sun Nov  6 08:49:37 1994`
fn asctime(text: &[u8]) -> Option<u64> {
    let (weekday, rest) = text.split_at_checked(3)?;
    let ([b' ', month @ .., b' ', d, e, b' '], rest) = rest.split_at_checked(8)? else { return None };
    let (time, [b' ', year @ ..]) = rest.split_at_checked(8)? else { return None };
    is_weekday(weekday, 3).then_some(())?;
    let year = (year.len() == 4).then(|| number(year))??;
    let tens = if *d == b' ' { b'0' } else { *d };
    Some(day(year, month, &[tens, *e])? + of_day(time)?)
}

/// Whether it is a weekday's name, of which at most `length` letters are written.
fn is_weekday(name: &[u8], length: usize) -> bool {
    const NAMES: [&[u8]; 7] = [b"Monday", b"Tuesday", b"Wednesday", b"Thursday", b"Friday", b"Saturday", b"Sunday"];
    NAMES.iter().any(|weekday| weekday[..length.min(weekday.len())].eq_ignore_ascii_case(name))
}

/// The time before the zone, which is GMT.
fn gmt(text: &[u8]) -> Option<&[u8]> {
    let (time, zone) = text.split_at_checked(8)?;
    zone.eq_ignore_ascii_case(b" GMT").then_some(time)
}

/// Seconds from the epoch to the beginning of the day.
fn day(year: u64, month: &[u8], day: &[u8]) -> Option<u64> {
    const MONTHS: [(&[u8], u64); 12] = [
        (b"Jan", 31),
        (b"Feb", 28),
        (b"Mar", 31),
        (b"Apr", 30),
        (b"May", 31),
        (b"Jun", 30),
        (b"Jul", 31),
        (b"Aug", 31),
        (b"Sep", 30),
        (b"Oct", 31),
        (b"Nov", 30),
        (b"Dec", 31),
    ];
    let month = MONTHS.iter().position(|(name, _)| name.eq_ignore_ascii_case(month))?;
    let leap_years_to = |year: u64| year / 4 - year / 100 + year / 400;
    let years = year.checked_sub(1970)?;
    let leap_day = leap_years_to(year) - leap_years_to(year - 1);
    let of_month = |at: usize| MONTHS[at].1 + if at == 1 { leap_day } else { 0 };
    let day = number(day).filter(|day| (1..=of_month(month)).contains(day))?;
    let before = years * 365 + leap_years_to(year - 1) - leap_years_to(1969);
    Some((before + (0..month).map(of_month).sum::<u64>() + day - 1) * 86_400)
}

/// Seconds from the beginning of the day to `08:49:37`; a leap second counts as the one before it.
fn of_day(time: &[u8]) -> Option<u64> {
    let [h, i, b':', m, n, b':', s, t] = time else { return None };
    let (hour, minute, second) = (number(&[*h, *i])?, number(&[*m, *n])?, number(&[*s, *t])?);
    (hour < 24 && minute < 60 && second <= 60).then_some((hour * 60 + minute) * 60 + second.min(59))
}

/// Digits, and nothing but digits; as many as a date has.
fn number(digits: &[u8]) -> Option<u64> {
    let digit = |byte: &u8| byte.is_ascii_digit().then(|| u64::from(byte - b'0'));
    digits.iter().try_fold(0, |number, byte| Some(number * 10 + digit(byte)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_forms_are_read_in_any_case() {
        for text in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            for text in [text.to_owned(), text.to_uppercase(), text.to_lowercase(), format!(" {text} ")] {
                assert_eq!(read(text.as_bytes()), Some(784_111_777), "{text}");
            }
        }
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        let cases = [
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Wed, 31 Dec 1969 23:59:59 GMT", None),
            ("Tue, 29 Feb 2000 12:00:00 GMT", Some(951_825_600)),
            ("Mon, 29 Feb 2100 12:00:00 GMT", None),
            ("Tue, 19 Jan 2038 03:14:08 GMT", Some(1 << 31)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(253_402_300_799)),
            ("Sun, 31 Dec 2016 23:59:60 GMT", Some(1_483_228_799)),
            ("Fri, 31 Dec 9999 23:59:60 GMT", Some(253_402_300_799)),
            ("Tue, 31 Nov 2016 00:00:00 GMT", None),
            ("Tue, 00 Nov 2016 00:00:00 GMT", None),
            ("Tuesday, 01-Jan-69 00:00:00 GMT", Some(3_124_224_000)),
            ("Thursday, 01-Jan-70 00:00:00 GMT", Some(0)),
            ("Thu Aug 18 02:01:18 2050", Some(2_544_400_878)),
        ];
        for (text, expected) in cases {
            assert_eq!(read(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn a_wrong_weekday_is_forgiven() {
        assert_eq!(read(b"Thu Aug  8 02:01:18 2050"), read(b"Mon Aug  8 02:01:18 2050"));
        assert_eq!(read(b"Mon, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
    }

    #[test]
    fn what_is_of_no_form_is_no_date() {
        for text in [
            "",
            ",",
            "0",
            "-1",
            "Thu, ",
            "1994-11-06T08:49:37Z",
            "Thu, 18 Aug 2050 02:01:18 UTC",
            "Thu, 18 Aug 2050 02:01:18 AEST",
            "Thu, 18 Aug 2050 02:01:18",
            "Thu, 18 Aug 50 02:01:18 GMT",
            "Thu 18 Aug 2050 02:01:18 GMT",
            "Thu, 18  Aug  2050 02:01:18 GMT",
            "Thu, 18-Aug-2050 02:01:18 GMT",
            "Thu, 18 Aug 2050 02.01.18 GMT",
            "Thu, 18 Aug 2050 2:01:18 GMT",
            "Thu, 18 Aug 2050 24:00:00 GMT",
            "Thu, 18 Aug 2050 23:60:00 GMT",
            "Thu, 18 Aug 2050 23:59:61 GMT",
            "Thu, 18 Aug +050 02:01:18 GMT",
            "Thu, +8 Aug 2050 02:01:18 GMT",
            "Foo, 18 Aug 2050 02:01:18 GMT",
            "Thu, 18 Foo 2050 02:01:18 GMT",
            "Thursday, 18 Aug 2050 02:01:18 GMT",
            "Thu, 18-Aug-50 02:01:18 GMT",
            "Thurs, 18-Aug-50 02:01:18 GMT",
            "Thu Aug 18 02:01:18 50",
            "Thu Aug 18 02:01:18 2050 GMT",
            "Thu Aug 8 02:01:18 2050",
            "Thu, 18 Aug 2050 02:01:18 GMT, Thu, 18 Aug 2050 02:01:18 GMT",
        ] {
            assert_eq!(read(text.as_bytes()), None, "{text}");
        }
        assert_eq!(read(b"Sun, 06 Nov 1994 08:49:37 \xff"), None);
    }
}
