//! The `Cache-Status` member of one outcome (RFC 9211).

use crate::reason::{Outcome, Reason, Refusal, Storing};
use http::HeaderValue;

/// The name by which this cache calls itself in `Cache-Status`, when the operator gives none.
pub const IDENTIFIER: &str = "larder";

/// Renders the member for `outcome`; `None` for answers that this cache made itself (RFC 9211 section 2).
///
/// `identifier` must be a token of structured fields. The key stands in `X-Cache-Key`, so that a member is the same for many.
pub fn cache_status(identifier: &str, outcome: Outcome) -> Option<HeaderValue> {
    let reason = outcome.reason();
    let mut digits = [[0; 20]; 2];
    let [ttl_digits, status_digits] = &mut digits;
    let forwarded = |status: u16, stored: &str, ttl: &str, detail: &str| {
        let mut digits = [0; 20];
        let (forward, status) = (reason.forward().unwrap_or("bypass"), decimal(i64::from(status), &mut digits));
        let parts = ["; fwd=", forward, "; fwd-status=", status, stored, ttl, "; detail=", detail];
        [&[identifier][..], &parts].concat().concat()
    };
    let member = match outcome {
        Outcome::Hit { ttl, .. } => {
            let ttl = decimal(ttl, ttl_digits);
            [identifier, "; hit; ttl=", ttl, "; detail=", reason.as_str()].concat()
        }
        Outcome::Collapsed { ttl } => {
            let ttl = decimal(ttl, ttl_digits);
            let parts = ["; fwd=uri-miss; collapsed; ttl=", ttl, "; detail=", reason.as_str()];
            [&[identifier][..], &parts].concat().concat()
        }
        Outcome::Failed { status, ttl, .. } => {
            let (before, status) = match status {
                Some(status) => ("; fwd=stale; fwd-status=", decimal(i64::from(status), status_digits)),
                None => ("; fwd=stale", ""),
            };
            let parts = [before, status, "; ttl=", decimal(ttl, ttl_digits), "; detail=", reason.as_str()];
            [&[identifier][..], &parts].concat().concat()
        }
        Outcome::Forwarded { status, storing: Storing::Untried, .. } => forwarded(status, "", "", reason.as_str()),
        Outcome::Forwarded { status, storing: Storing::Offered { ttl }, .. } => {
            forwarded(status, "; stored; ttl=", decimal(ttl, ttl_digits), reason.as_str())
        }
        // Whoever waited in vain has not the right to store; that it waited tells more.
        Outcome::Forwarded { status, storing: Storing::Refused(Refusal::TicketLost), .. }
            if reason == Reason::LockTimeout =>
        {
            forwarded(status, "; stored=?0", "", reason.as_str())
        }
        Outcome::Forwarded { status, storing: Storing::Refused(refusal), .. } => {
            forwarded(status, "; stored=?0", "", refusal.as_str())
        }
        Outcome::Shed { .. } => return None,
    };
    HeaderValue::try_from(member).ok()
}

/// A number of seconds as a field has it. Those of a few hours are written down once and for all: every response has one, and
/// nobody counts who has it.
pub(crate) fn seconds(number: i64) -> Option<HeaderValue> {
    const KNOWN: usize = 10_000;
    const WIDTH: usize = 4;
    static BYTES: [u8; KNOWN * WIDTH] = {
        let (mut digits, mut at) = ([b'0'; KNOWN * WIDTH], 0);
        while at < digits.len() {
            digits[at] += (at / WIDTH / [1000, 100, 10, 1][at % WIDTH] % 10) as u8;
            at += 1;
        }
        digits
    };
    static DIGITS: &str = match std::str::from_utf8(&BYTES) {
        Ok(digits) => digits,
        Err(_) => "",
    };
    let known = usize::try_from(number).ok().filter(|number| *number < KNOWN).and_then(|number| {
        let written = 1 + usize::from(number > 9) + usize::from(number > 99) + usize::from(number > 999);
        DIGITS.get((number + 1) * WIDTH - written..(number + 1) * WIDTH)
    });
    match known {
        Some(digits) => Some(HeaderValue::from_static(digits)),
        None => HeaderValue::from_str(decimal(number, &mut [0; 20])).ok(),
    }
}

/// Writes a number into `digits`, from the right: every response carries one or two, and formatting them costs more
/// than all the rest.
pub(crate) fn decimal(number: i64, digits: &mut [u8; 20]) -> &str {
    let (mut at, mut rest) = (digits.len(), number.unsigned_abs());
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 || at == 1 {
            break;
        }
    }
    if number < 0 {
        at -= 1;
        digits[at] = b'-';
    }
    // Digits are ASCII.
    std::str::from_utf8(&digits[at..]).unwrap_or_default()
}

/// Whether `name` can stand as an identifier: a token of structured fields (RFC 9651 section 3.3.4).
pub fn is_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'*')
        && bytes.all(|byte| crate::directives::is_token_byte(byte) || byte == b':' || byte == b'/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reason::Verdict;

    #[test]
    fn seconds_are_written_as_numbers_are() {
        for number in (0..10_020).chain([-1, i64::MIN, i64::MAX, 1 << 31]) {
            assert_eq!(seconds(number), Some(HeaderValue::from(number)));
        }
    }

    #[test]
    fn members_read_as_the_standard_has_them() {
        let rendered =
            |outcome| cache_status(IDENTIFIER, outcome).map(|value| value.to_str().expect("ASCII").to_owned());
        let forwarded = |reason, storing| Outcome::Forwarded { reason, status: 200, storing };
        let cases = [
            (Outcome::Hit { reason: Reason::Near, ttl: 43 }, "larder; hit; ttl=43; detail=near"),
            (Outcome::Collapsed { ttl: 9 }, "larder; fwd=uri-miss; collapsed; ttl=9; detail=collapsed"),
            (
                forwarded(Reason::Never, Storing::Offered { ttl: 60 }),
                "larder; fwd=uri-miss; fwd-status=200; stored; ttl=60; detail=never",
            ),
            (
                forwarded(Reason::Expired, Storing::Refused(Refusal::SetCookie)),
                "larder; fwd=stale; fwd-status=200; stored=?0; detail=set-cookie",
            ),
            (
                Outcome::Failed { reason: Reason::ErrorStale, status: Some(502), ttl: -70 },
                "larder; fwd=stale; fwd-status=502; ttl=-70; detail=error-stale",
            ),
            (
                Outcome::Failed { reason: Reason::ErrorStale, status: None, ttl: -70 },
                "larder; fwd=stale; ttl=-70; detail=error-stale",
            ),
            (
                forwarded(Reason::BreakerOpen, Storing::Untried),
                "larder; fwd=bypass; fwd-status=200; detail=breaker-open",
            ),
        ];
        for (outcome, expected) in cases {
            assert_eq!(rendered(outcome).as_deref(), Some(expected));
        }
        assert_eq!(rendered(Outcome::Shed { reason: Reason::OnlyIfCached }), None);
    }

    #[test]
    fn every_outcome_is_a_structured_field_with_hit_or_fwd_and_never_both() {
        for reason in Reason::all() {
            let outcomes = match reason.verdict() {
                _ if matches!(reason, Reason::ErrorStale | Reason::SoftTimeout) => vec![
                    Outcome::Failed { reason, status: Some(502), ttl: -70 },
                    Outcome::Failed { reason, status: None, ttl: 0 },
                ],
                Verdict::Hit | Verdict::Stale => vec![Outcome::Hit { reason, ttl: -3 }],
                Verdict::Shed => continue,
                _ => vec![
                    Outcome::Forwarded { reason, status: 503, storing: Storing::Untried },
                    Outcome::Forwarded { reason, status: 200, storing: Storing::Offered { ttl: i64::from(i32::MAX) } },
                    Outcome::Forwarded { reason, status: 200, storing: Storing::Refused(Refusal::NoStore) },
                    Outcome::Collapsed { ttl: 0 },
                ],
            };
            for outcome in outcomes {
                let value = cache_status("a-cache", outcome).expect("a member");
                let list = sfv::Parser::new(value.as_bytes()).parse::<sfv::List>().expect("a list");
                let [sfv::ListEntry::Item(member)] = &list[..] else { panic!("one member: {value:?}") };
                let canonical = sfv::FieldType::serialize(&list).expect("what was read");
                assert_eq!(value.to_str().expect("ASCII").replace("; ", ";"), canonical, "in the one canonical form");
                assert_ne!(member.params.contains_key("hit"), member.params.contains_key("fwd"), "{value:?}");
                assert!(member.params.contains_key("detail"));
            }
        }
    }

    #[test]
    fn identifiers_are_tokens() {
        assert!(["larder", "orders-cache", "a:b/c", "*x"].iter().all(|name| is_identifier(name)));
        assert!(["", "1a", "a b", "a;b", "a\"", "é"].iter().all(|name| !is_identifier(name)));
    }
}
