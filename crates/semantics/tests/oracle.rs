//! Products of everything that decides about storing and reuse, against an oracle in the words of RFC 9111.
//!
//! The oracle knows nothing of how the crate decides. For each case it says every reason for which the response must
//! not be stored; the crate must store it exactly when there is none, and else give one of them. What is stored is
//! followed to the millisecond at which it stops being fresh.

mod common;

use common::{ARRIVAL, CALENDAR, Ended, NOW, Reused, answer, exchange, request, response, reuse};
use http::{Method, StatusCode, request, response};
use larder_semantics::{Caching, Filling, Policy, Reason, Refusal, freshness::Arrival};
use std::time::Duration;

/// Every combination of one index into each of some lists.
fn product<const N: usize>(sizes: [usize; N]) -> impl Iterator<Item = [usize; N]> {
    (0..sizes.iter().product()).map(move |number| {
        let mut rest: usize = number;
        sizes.map(|size| {
            let at = rest % size;
            rest /= size;
            at
        })
    })
}

/// The argument of a directive that takes seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Seconds {
    Absent,
    Are(u64),
    /// No number.
    Unreadable,
}

/// A header field that holds a date, counted in seconds from when the response comes.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Date {
    Absent,
    Is(i64),
    /// `0`, which is no date.
    Unreadable,
}

/// A directive that may name header fields.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    Absent,
    Unqualified,
    Qualified,
}

use Seconds::Are;

const MAX_AGES: [Seconds; 5] = [Seconds::Absent, Are(0), Are(1), Are(60), Seconds::Unreadable];
const S_MAXAGES: [Seconds; 3] = [Seconds::Absent, Are(0), Are(60)];
const EXPIRES: [Date; 4] = [Date::Absent, Date::Is(-60), Date::Is(60), Date::Unreadable];
const DATES: [Date; 7] =
    [Date::Absent, Date::Is(0), Date::Is(-59), Date::Is(-60), Date::Is(-61), Date::Is(30), Date::Unreadable];
/// The last but one does not fit into 32 bits.
const AGES: [Seconds; 6] = [Seconds::Absent, Are(59), Are(60), Are(61), Are(1 << 32), Seconds::Unreadable];
const FORMS: [Form; 3] = [Form::Absent, Form::Unqualified, Form::Qualified];
const STATUSES: [u16; 10] = [200, 203, 204, 206, 299, 301, 304, 404, 500, 599];
const GIVEN: [Option<u64>; 2] = [None, Some(60)];
const YES_NO: [bool; 2] = [false, true];

/// What is asked, answered and configured.
#[derive(Debug, Clone)]
struct Case {
    authorization: bool,
    cookie: bool,
    status: u16,
    no_store: bool,
    private: Form,
    no_cache: Form,
    public: bool,
    must_revalidate: bool,
    must_understand: bool,
    malformed: bool,
    max_age: Seconds,
    s_maxage: Seconds,
    expires: Date,
    date: Date,
    age: Seconds,
    set_cookie: bool,
    vary: &'static str,
    /// Milliseconds from sending the request to receiving the response.
    delay: u64,
    /// The lifetime that the layer gives to responses that state none.
    given: Option<u64>,
    /// The lifetime that the layer gives to this very status.
    opted_in: Option<u64>,
    /// The lifetime that the layer gives in place of the stated one.
    replaced: Option<u64>,
    /// The lifetime that the handler gives.
    handler: Option<u64>,
    /// Whether the handler allows storing.
    handler_stores: bool,
    share_with_cookies: bool,
    share_with_authorization: bool,
}

const PLAIN: Case = Case {
    authorization: false,
    cookie: false,
    status: 200,
    no_store: false,
    private: Form::Absent,
    no_cache: Form::Absent,
    public: false,
    must_revalidate: false,
    must_understand: false,
    malformed: false,
    max_age: Seconds::Absent,
    s_maxage: Seconds::Absent,
    expires: Date::Absent,
    date: Date::Absent,
    age: Seconds::Absent,
    set_cookie: false,
    vary: "",
    delay: 0,
    given: None,
    opted_in: None,
    replaced: None,
    handler: None,
    handler_stores: true,
    share_with_cookies: false,
    share_with_authorization: false,
};

/// Who says how long a response is fresh, and for how many seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Lifetime {
    Stated(u64),
    Given(u64),
}

/// The oracle.
impl Case {
    /// RFC 9111 section 4.2.1: the first match in this list.
    fn stated(&self) -> Option<u64> {
        match (self.s_maxage, self.max_age, self.expires) {
            // "If the cache is shared and the s-maxage response directive is present, use its value."
            (Are(seconds), _, _) => Some(seconds),
            // "If the max-age response directive is present, use its value."
            (_, Are(seconds), _) => Some(seconds),
            // "Caches are encouraged to consider responses that have invalid freshness information to be stale."
            (Seconds::Unreadable, _, _) | (_, Seconds::Unreadable, _) => Some(0),
            // "If the Expires response header field is present, use its value minus the value of the Date response
            // header field (using the time the message was received if it is not present)."
            (_, _, Date::Is(expires)) => Some(u64::try_from(expires - self.dated().unwrap_or(0)).unwrap_or(0)),
            // RFC 9111 section 5.3: invalid dates, "especially the value "0"", are a time in the past.
            (_, _, Date::Unreadable) => Some(0),
            // "Otherwise, no explicit expiration time is present in the response."
            (Seconds::Absent, Seconds::Absent, Date::Absent) => None,
        }
    }

    /// RFC 9110 section 6.6.1: an invalid `Date` may be replaced by the time the response was received.
    fn dated(&self) -> Option<i64> {
        match self.date {
            Date::Is(seconds) => Some(seconds),
            Date::Absent | Date::Unreadable => None,
        }
    }

    fn lifetime(&self) -> Option<Lifetime> {
        // The operator's override and the handler's word come before what the response states.
        if let Some(seconds) = self.replaced.or(self.handler) {
            return Some(Lifetime::Given(seconds));
        }
        self.stated().map(Lifetime::Stated).or(self.opted_in.or(self.given).map(Lifetime::Given))
    }

    /// RFC 9111 section 4.2.3, in milliseconds, when the response has just been received.
    fn age(&self) -> u64 {
        // "age_value": RFC 9111 section 5.1 has an invalid one ignored.
        let age_value = match self.age {
            Are(seconds) => Some(seconds * 1000),
            Seconds::Absent | Seconds::Unreadable => None,
        };
        // Decided here: a lifetime that was given begins on receipt, unless the response comes out of another cache.
        if matches!(self.lifetime(), Some(Lifetime::Given(_))) && age_value.is_none() {
            return 0;
        }
        // "apparent_age = max(0, response_time - date_value)"
        let apparent_age = u64::try_from(-self.dated().unwrap_or(0)).unwrap_or(0) * 1000;
        // "corrected_age_value = age_value + response_delay"
        let corrected_age_value = age_value.unwrap_or(0) + self.delay;
        // "corrected_initial_age = max(apparent_age, corrected_age_value)"
        apparent_age.max(corrected_age_value)
    }

    /// Milliseconds until the response stops being fresh; RFC 9111 section 4.2:
    /// "response_is_fresh = (freshness_lifetime > current_age)".
    fn left(&self) -> u64 {
        match self.lifetime() {
            Some(Lifetime::Stated(seconds) | Lifetime::Given(seconds)) => (seconds * 1000).saturating_sub(self.age()),
            None => 0,
        }
    }

    /// Every reason for which a shared cache must not, or this one will not, store the response to a GET.
    fn refusals(&self) -> Vec<Refusal> {
        let authorization = self.authorization && !self.share_with_authorization;
        let cookie = self.cookie && !self.share_with_cookies;
        let given = matches!(self.lifetime(), Some(Lifetime::Given(_)));
        let shared = self.public || self.s_maxage != Seconds::Absent;
        // The statuses among those tried here that a standard defines.
        let understood = !matches!(self.status, 299 | 599);
        let reasons = [
            // Section 3: "if the response status code is 206 or 304 [...]: the cache understands the response status
            // code". This one holds no parts, and no answers to conditions it did not make (section 3.3, 4.3).
            (matches!(self.status, 206 | 304), Refusal::Partial),
            // Narrower than section 3, decided here: 2xx, and what the operator named.
            (!(200..300).contains(&self.status) && self.opted_in.is_none(), Refusal::Status),
            // Section 3, section 5.2.2.3: must-understand limits storing to statuses that are understood.
            (self.must_understand && !understood, Refusal::Status),
            // Section 3: "the no-store cache directive is not present in the response"; section 5.2.2.3: where
            // must-understand is present and the status understood, no-store is to be ignored.
            (self.no_store && !(self.must_understand && understood), Refusal::NoStore),
            // Section 3: "if the cache is shared: the private response directive is either not present or allows a
            // shared cache to store a modified response", which is one without the fields it names.
            (self.private == Form::Unqualified, Refusal::Private),
            // Section 5.2.2.4: not to be reused "without forwarding it for validation", and without a validator there is
            // nothing to ask for.
            (self.no_cache == Form::Unqualified, Refusal::NoCache),
            // Section 4.2.1 "encourages" to take what is invalid for stale; what cannot be read may have meant private.
            (self.malformed, Refusal::MalformedDirective),
            // Section 7.3: Set-Cookie does not inhibit caching; this cache does.
            (self.set_cookie, Refusal::SetCookie),
            // Section 4.1: "A stored response with a Vary header field value containing a member "*" always fails to
            // match".
            (self.vary.contains('*'), Refusal::VaryStar),
            // Section 3.5: with Authorization, only where the response has "must-revalidate, public, or s-maxage".
            (authorization && !shared && !self.must_revalidate, Refusal::Authorization),
            // Decided here: what the layer gives is not given to requests with credentials, unless the response says
            // that it may be shared.
            (authorization && given && !shared, Refusal::Authorization),
            (cookie && given && !shared, Refusal::Cookie),
            // Section 3: one of public, Expires, max-age, s-maxage, an extension, or a status that is heuristically
            // cacheable; here it must have a lifetime, and section 4.2: one that is not over.
            (self.left() == 0, Refusal::NoLifetime),
            (!self.handler_stores, Refusal::Handler),
        ];
        reasons.into_iter().filter_map(|(holds, refusal)| holds.then_some(refusal)).collect()
    }
}

/// The case as messages and settings.
impl Case {
    fn request(&self) -> request::Parts {
        let mut lines = vec![("host", "example.com")];
        if self.authorization {
            lines.push(("authorization", "Basic YTpi"));
        }
        if self.cookie {
            lines.push(("cookie", "session=1"));
        }
        request(Method::GET, "/", &lines)
    }

    fn response(&self) -> response::Parts {
        let mut members: Vec<&str> = [
            (self.no_store, "no-store"),
            (self.private == Form::Unqualified, "private"),
            (self.private == Form::Qualified, "private=\"x\""),
            (self.no_cache == Form::Unqualified, "no-cache"),
            (self.no_cache == Form::Qualified, "no-cache=\"x\""),
            (self.public, "public"),
            (self.must_revalidate, "must-revalidate"),
            (self.must_understand, "must-understand"),
            (self.malformed, "no store"),
        ]
        .into_iter()
        .filter_map(|(there, member)| there.then_some(member))
        .collect();
        let (max_age, s_maxage) = (directive("max-age", self.max_age), directive("s-maxage", self.s_maxage));
        members.extend(max_age.as_deref());
        members.extend(s_maxage.as_deref());
        let cache_control = members.join(", ");
        let (expires, date) = (self.expires.text(), self.date.text());
        let age = match self.age {
            Seconds::Absent => None,
            Are(seconds) => Some(seconds.to_string()),
            Seconds::Unreadable => Some("bad".to_owned()),
        };
        let lines = [
            ("cache-control", (!members.is_empty()).then_some(&*cache_control)),
            ("expires", expires.as_deref()),
            ("date", date.as_deref()),
            ("age", age.as_deref()),
            ("set-cookie", self.set_cookie.then_some("session=1")),
            ("vary", (!self.vary.is_empty()).then_some(self.vary)),
            ("x", Some("1")),
        ];
        let lines: Vec<_> = lines.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        response(self.status, &lines)
    }

    fn policy(&self) -> Policy {
        let seconds = |given: Option<u64>| given.map(Duration::from_secs);
        let mut policy = Policy::default();
        policy.lifetime = seconds(self.given);
        policy.lifetime_override = seconds(self.replaced);
        policy.statuses = self
            .opted_in
            .map(|given| (StatusCode::from_u16(self.status).expect("a status"), Duration::from_secs(given)))
            .into_iter()
            .collect();
        policy.share_with_cookies = self.share_with_cookies;
        policy.share_with_authorization = self.share_with_authorization;
        policy
    }

    fn caching(&self) -> Caching {
        let caching = if self.handler_stores { Caching::new() } else { Caching::no_store() };
        match self.handler {
            Some(seconds) => caching.ttl(Duration::from_secs(seconds)),
            None => caching,
        }
    }

    /// Lets the crate judge the case, and compares.
    fn check(&self) {
        self.check_with(&self.response());
    }

    /// The same, of a response that should be judged like the case's own.
    fn check_with(&self, response: &response::Parts) {
        let (request, policy) = (self.request(), self.policy());
        let arrival = Arrival { delay: Duration::from_millis(self.delay), ..ARRIVAL };
        let refusals = self.refusals();
        match exchange(&request, response, &self.caching(), &policy, arrival) {
            Ended::Stored(filling) if refusals.is_empty() => self.follow(&filling, &request, &policy),
            Ended::Refused(refusal) if refusals.contains(&refusal) => {}
            other => panic!("{self:?}\nexpected {refusals:?}\ngot {other:?}"),
        }
    }

    /// RFC 9111 section 4: reused while fresh, and not for a millisecond longer.
    fn follow(&self, filling: &Filling, request: &request::Parts, policy: &Policy) {
        let at = |millis| NOW.after(Duration::from_millis(millis));
        for moment in [0, self.left() - 1] {
            let Reused::Hit(hit) = reuse(filling, request, policy, at(moment)) else {
                panic!("{self:?}\nfresh after {moment} ms, but not reused");
            };
            let (status, headers, body) = answer(hit, at(moment));
            assert_eq!((status.as_u16(), &body[..]), (self.status, &b"body"[..]), "{self:?}");
            let is_named = self.private == Form::Qualified || self.no_cache == Form::Qualified;
            assert_eq!(headers.contains_key("x"), !is_named, "{self:?}");
            // Section 4: Age is the current_age. Section 1.2.2: it is a whole number of seconds.
            let ages: Vec<_> = headers.get_all("age").iter().collect();
            assert_eq!(ages, [&*((self.age() + moment) / 1000).to_string()], "{self:?}");
        }
        for moment in [self.left(), self.left() + 1, u64::MAX] {
            let reused = reuse(filling, request, policy, at(moment));
            assert!(
                matches!(reused, Reused::Forwarded(Reason::Expired)),
                "{self:?}\nstale after {moment} ms: {reused:?}"
            );
        }
        assert!(filling.stored_for >= Duration::from_millis(self.left()), "{self:?}");
    }
}

fn directive(name: &str, argument: Seconds) -> Option<String> {
    match argument {
        Seconds::Absent => None,
        Are(seconds) => Some(format!("{name}={seconds}")),
        Seconds::Unreadable => Some(format!("{name}=\"x\"")),
    }
}

impl Date {
    fn text(self) -> Option<String> {
        match self {
            Self::Absent => None,
            Self::Is(offset) => Some(http_date(offset)),
            Self::Unreadable => Some("0".to_owned()),
        }
    }
}

/// The HTTP-date `offset` seconds from when the responses come; within the same hour, so that no calendar is needed.
fn http_date(offset: i64) -> String {
    let second = i64::try_from(CALENDAR).expect("it fits") % 3600 + offset;
    assert!((0..3600).contains(&second), "another hour");
    format!("Sun, 06 Nov 1994 08:{:02}:{:02} GMT", second / 60, second % 60)
}

/// Checks every case, and says how many there were.
fn check_all(cases: impl Iterator<Item = Case>, expected: usize) {
    let mut count = 0;
    for case in cases {
        case.check();
        count += 1;
    }
    assert_eq!(count, expected, "the product has shrunk or grown");
}

#[test]
fn who_may_share_a_response() {
    let sizes = [2, 3, 3, 2, 2, 2, 5, 3, 2, 2, 2, 2];
    let cases = product(sizes).map(|[a, b, c, d, e, f, g, h, i, j, k, l]| Case {
        no_store: YES_NO[a],
        private: FORMS[b],
        no_cache: FORMS[c],
        public: YES_NO[d],
        must_revalidate: YES_NO[e],
        must_understand: YES_NO[f],
        max_age: MAX_AGES[g],
        s_maxage: S_MAXAGES[h],
        authorization: YES_NO[i],
        cookie: YES_NO[j],
        set_cookie: YES_NO[k],
        given: GIVEN[l],
        ..PLAIN
    });
    check_all(cases, sizes.iter().product());
}

#[test]
fn how_long_a_response_is_fresh() {
    const DELAYS: [u64; 2] = [0, 1_000];
    let sizes = [5, 3, 4, 7, 6, 2, 2, 2, 2, 2];
    let cases = product(sizes).map(|[a, b, c, d, e, f, g, h, i, j]| Case {
        max_age: MAX_AGES[a],
        s_maxage: S_MAXAGES[b],
        expires: EXPIRES[c],
        date: DATES[d],
        age: AGES[e],
        delay: DELAYS[f],
        public: YES_NO[g],
        must_revalidate: YES_NO[h],
        authorization: YES_NO[i],
        given: GIVEN[j],
        ..PLAIN
    });
    check_all(cases, sizes.iter().product());
}

#[test]
fn which_statuses_are_stored() {
    const LIFETIMES: [Seconds; 3] = [Seconds::Absent, Are(0), Are(60)];
    let sizes = [10, 2, 2, 2, 2, 2, 2, 2, 3, 4, 2, 2];
    let cases = product(sizes).map(|[a, b, c, d, e, f, g, h, i, j, k, l]| Case {
        status: STATUSES[a],
        opted_in: [None, Some(30)][b],
        no_store: YES_NO[c],
        must_understand: YES_NO[d],
        private: [Form::Absent, Form::Unqualified][e],
        public: YES_NO[f],
        authorization: YES_NO[g],
        cookie: YES_NO[h],
        max_age: LIFETIMES[i],
        expires: EXPIRES[j],
        given: GIVEN[k],
        set_cookie: YES_NO[l],
        ..PLAIN
    });
    check_all(cases, sizes.iter().product());
}

#[test]
fn what_operator_and_handler_say_does_not_undo_what_the_response_forbids() {
    const OTHER: [Option<u64>; 3] = [None, Some(0), Some(40)];
    let sizes = [3, 3, 2, 2, 2, 2, 2, 2, 3, 2, 2, 2, 2, 2];
    let cases = product(sizes).map(|[a, b, c, d, e, f, g, h, i, j, k, l, m, n]| Case {
        replaced: OTHER[a],
        handler: OTHER[b],
        handler_stores: !YES_NO[c],
        share_with_cookies: YES_NO[d],
        share_with_authorization: YES_NO[e],
        authorization: YES_NO[f],
        cookie: YES_NO[g],
        no_store: YES_NO[h],
        max_age: [Seconds::Absent, Are(0), Are(60)][i],
        must_revalidate: YES_NO[j],
        public: YES_NO[k],
        given: GIVEN[l],
        malformed: YES_NO[m],
        s_maxage: [Seconds::Absent, Are(60)][n],
        ..PLAIN
    });
    check_all(cases, sizes.iter().product());
}

#[test]
fn what_varies_by_everything_is_not_stored() {
    const VARY: [&str; 6] = ["", "accept", "accept, x-a", "*", "accept, *", "*, accept"];
    let sizes = [6, 5, 2, 2, 2, 2, 2];
    let cases = product(sizes).map(|[a, b, c, d, e, f, g]| Case {
        vary: VARY[a],
        max_age: MAX_AGES[b],
        given: GIVEN[c],
        public: YES_NO[d],
        authorization: YES_NO[e],
        cookie: YES_NO[f],
        malformed: YES_NO[g],
        ..PLAIN
    });
    check_all(cases, sizes.iter().product());
}

/// RFC 9213 section 2.2: with a valid field for this kind of cache, `Cache-Control` and `Expires` must be ignored; one
/// that cannot be parsed must itself be ignored (section 2.1).
#[test]
fn a_targeted_field_is_heard_alone_or_not_at_all() {
    let targeted: [(&str, Option<Case>); 13] = [
        ("max-age=60", Some(Case { max_age: Are(60), ..PLAIN })),
        ("max-age=0", Some(Case { max_age: Are(0), ..PLAIN })),
        ("public", Some(Case { public: true, ..PLAIN })),
        ("max-age=30, must-revalidate", Some(Case { max_age: Are(30), must_revalidate: true, ..PLAIN })),
        ("s-maxage=30, max-age=60", Some(Case { s_maxage: Are(30), max_age: Are(60), ..PLAIN })),
        ("max-age=x", Some(Case { max_age: Seconds::Unreadable, ..PLAIN })),
        ("no-store", Some(Case { no_store: true, ..PLAIN })),
        ("max-age=60, private", Some(Case { private: Form::Unqualified, max_age: Are(60), ..PLAIN })),
        ("no-cache", Some(Case { no_cache: Form::Unqualified, ..PLAIN })),
        ("no-store, must-understand", Some(Case { no_store: true, must_understand: true, ..PLAIN })),
        ("max-age=\"60", None),
        ("no store", None),
        ("=60", None),
    ];
    let sizes = [targeted.len(), 2, 3, 5, 3, 4, 2, 2, 2];
    for [a, b, c, d, e, f, g, h, i] in product(sizes) {
        let general = Case {
            no_store: YES_NO[b],
            private: FORMS[c],
            max_age: MAX_AGES[d],
            s_maxage: S_MAXAGES[e],
            expires: EXPIRES[f],
            authorization: YES_NO[g],
            cookie: YES_NO[h],
            given: GIVEN[i],
            ..PLAIN
        };
        let (line, alone) = &targeted[a];
        let mut response = general.response();
        response.headers.append("cdn-cache-control", line.parse().expect("a header value"));
        let Case { authorization, cookie, given, .. } = general;
        match alone {
            Some(alone) => Case { authorization, cookie, given, ..alone.clone() }.check_with(&response),
            None => general.check_with(&response),
        }
    }
}

#[test]
fn only_a_whole_get_is_stored() {
    const METHODS: [&str; 11] =
        ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY", "get", "PURGE"];
    const PARTS: [Option<(&str, &str)>; 7] = [
        None,
        Some(("range", "bytes=0-1")),
        Some(("if-none-match", "\"a\"")),
        Some(("if-modified-since", "Sun, 06 Nov 1994 08:49:37 GMT")),
        Some(("if-match", "\"a\"")),
        Some(("if-unmodified-since", "Sun, 06 Nov 1994 08:49:37 GMT")),
        Some(("if-range", "\"a\"")),
    ];
    // RFC 9110 section 9.3.1: content of a GET has no defined meaning, so no key can tell it.
    const CONTENT: [(Option<(&str, &str)>, bool); 5] = [
        (None, false),
        (Some(("content-length", "0")), false),
        (Some(("content-length", "1")), true),
        (Some(("transfer-encoding", "chunked")), true),
        (Some(("content-length", "1, 0")), true),
    ];
    let sizes = [METHODS.len(), PARTS.len(), CONTENT.len(), STATUSES.len(), 2, 2];
    for [a, b, c, d, e, f] in product(sizes) {
        let (content, has_content) = CONTENT[c];
        let asks_for_part = PARTS[b].is_some_and(|(name, _)| name == "range");
        let lines: Vec<_> = PARTS[b].into_iter().chain(content).collect();
        let request = request(METHODS[a].parse().expect("a method"), "/", &lines);
        let case = Case { status: STATUSES[d], max_age: [Are(60), Seconds::Absent][e], given: GIVEN[f], ..PLAIN };
        let ended = exchange(&request, &case.response(), &case.caching(), &case.policy(), ARRIVAL);
        let context = format!("{} {lines:?} {case:?}\n{ended:?}", METHODS[a]);
        match (METHODS[a], ended) {
            // Section 4: "the request method associated with the stored response allows it to be used for the
            // presented request". Only GET and HEAD are ever looked up; methods are case-sensitive.
            (method, Ended::Bypassed(Reason::Method)) => assert!(!matches!(method, "GET" | "HEAD"), "{context}"),
            ("GET" | "HEAD", Ended::Bypassed(Reason::Skipped)) => assert!(has_content, "{context}"),
            // A HEAD has no content to store; a part is not the whole (section 3.3).
            ("GET" | "HEAD", Ended::Untried) => {
                assert!(!has_content && (METHODS[a] == "HEAD" || asks_for_part), "{context}");
            }
            // What a conditional request is answered with is a whole, or a 304.
            ("GET", Ended::Refused(refusal)) => {
                assert!(!has_content && !asks_for_part && case.refusals().contains(&refusal), "{context}");
            }
            ("GET", Ended::Stored(_)) => {
                assert!(!has_content && !asks_for_part && case.refusals().is_empty(), "{context}");
            }
            _ => panic!("{context}"),
        }
    }
}

/// RFC 9110 section 14.4: `Content-Range` "has no meaning" beside a status that does not describe it, such as 200.
#[test]
fn a_part_is_what_its_status_says_is_one() {
    let get = request(Method::GET, "/", &[]);
    let part = response(200, &[("cache-control", "max-age=60, public"), ("content-range", "bytes 0-3/4")]);
    let ended = exchange(&get, &part, &Caching::new(), &Policy::default(), ARRIVAL);
    assert!(matches!(ended, Ended::Stored(_)), "{ended:?}");
}

/// The second request may carry what the first did not.
#[test]
fn a_stored_response_answers_those_it_is_for() {
    let sizes = [2, 3, 2, 2, 2, 2, 2, 2, 2, 2];
    for [a, b, c, d, e, f, g, h, i, j] in product(sizes) {
        let first = Case {
            public: YES_NO[a],
            max_age: [Seconds::Absent, Are(60), Are(1)][b],
            s_maxage: [Seconds::Absent, Are(60)][c],
            must_revalidate: YES_NO[d],
            authorization: YES_NO[e],
            cookie: YES_NO[f],
            given: GIVEN[g],
            share_with_authorization: YES_NO[j],
            ..PLAIN
        };
        if !first.refusals().is_empty() {
            continue;
        }
        let policy = first.policy();
        let ended = exchange(&first.request(), &first.response(), &first.caching(), &policy, ARRIVAL);
        let Ended::Stored(filling) = ended else {
            panic!("{first:?} is to be stored");
        };
        let second = Case { authorization: YES_NO[h], cookie: YES_NO[i], ..first.clone() };
        let given = matches!(first.lifetime(), Some(Lifetime::Given(_)));
        // What the layer gave is for those without credentials; what the response states is for all, as section 3.5
        // is about storing only.
        let personal = (second.authorization && !second.share_with_authorization) || second.cookie;
        let answers = !(given && personal && !first.public);
        for (moment, fresh) in [(0, true), (first.left() - 1, true), (first.left(), false)] {
            let now = NOW.after(Duration::from_millis(moment));
            let reused = reuse(&filling, &second.request(), &policy, now);
            let hit = matches!(reused, Reused::Hit(_));
            assert_eq!(hit, answers && fresh, "{first:?}\n{second:?}\nafter {moment} ms: {reused:?}");
        }
    }
}

/// RFC 9111 section 5.2.1, where the operator honours it; else no client can change what it gets.
#[test]
fn what_a_client_asks_counts_only_where_it_is_honoured() {
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Answer {
        Hit,
        Origin,
        Neither,
    }
    // Stored for 60 s with an age of 20 s: the table says what a client gets at an age of 30 s, and of 60 s.
    const ASKED: [(&str, Answer, Answer); 18] = [
        ("", Answer::Hit, Answer::Origin),
        ("no-store", Answer::Origin, Answer::Origin),
        ("no-cache", Answer::Origin, Answer::Origin),
        ("NO-CACHE", Answer::Origin, Answer::Origin),
        ("max-age=0", Answer::Origin, Answer::Origin),
        ("max-age=29", Answer::Origin, Answer::Origin),
        // "the client prefers a response whose age is less than or equal to the specified number of seconds"
        ("max-age=30", Answer::Hit, Answer::Origin),
        ("max-age=31", Answer::Hit, Answer::Origin),
        ("max-age=x", Answer::Origin, Answer::Origin),
        // "a response whose freshness lifetime is no less than its current age plus the specified time in seconds"
        ("min-fresh=30", Answer::Hit, Answer::Origin),
        ("min-fresh=31", Answer::Origin, Answer::Origin),
        // "the client will accept a response that has exceeded its freshness lifetime"
        ("max-stale", Answer::Hit, Answer::Hit),
        ("max-stale=0", Answer::Hit, Answer::Hit),
        ("max-stale=x", Answer::Hit, Answer::Hit),
        ("only-if-cached", Answer::Hit, Answer::Neither),
        ("only-if-cached, no-cache", Answer::Neither, Answer::Neither),
        ("only-if-cached, max-age=29", Answer::Neither, Answer::Neither),
        ("max-age=30, min-fresh=30", Answer::Hit, Answer::Origin),
    ];
    let case = Case { max_age: Are(60), age: Are(20), ..PLAIN };
    let ended = exchange(&case.request(), &case.response(), &Caching::default(), &case.policy(), ARRIVAL);
    let Ended::Stored(filling) = ended else {
        panic!("it is to be stored");
    };
    let mut honouring = case.policy();
    honouring.honor_client_directives = true;
    for (line, young, old) in ASKED {
        let asking = request(Method::GET, "/", &[("cache-control", line)]);
        for (seconds, honoured) in [(10, young), (40, old)] {
            let now = NOW.after(Duration::from_secs(seconds));
            let ignored = if seconds == 10 { Answer::Hit } else { Answer::Origin };
            for (policy, expected) in [(&case.policy(), ignored), (&honouring, honoured)] {
                let answer = match reuse(&filling, &asking, policy, now) {
                    Reused::Hit(_) => Answer::Hit,
                    Reused::Forwarded(_) => Answer::Origin,
                    Reused::Unsatisfied => Answer::Neither,
                };
                assert_eq!(answer, expected, "{line} after {seconds} s");
            }
        }
        // Section 5.2.1.5: "a cache MUST NOT store any part of either this request or any response to it".
        let ended = exchange(&asking, &case.response(), &Caching::default(), &honouring, ARRIVAL);
        match line {
            "no-store" => assert!(matches!(ended, Ended::Untried), "{ended:?}"),
            _ if line.starts_with("only-if-cached") => assert!(matches!(ended, Ended::Unsatisfied), "{ended:?}"),
            _ => assert!(matches!(ended, Ended::Stored(_)), "{line}: {ended:?}"),
        }
    }
}
