//! The crate `http-cache-semantics` 3.0.0 as a second opinion: over products of simple cases, the two agree whether a
//! response may be reused, and until which second, save for the differences explained here.
//!
//! Where the other crate errs:
//!
//! | difference | what it does | the standard |
//! |---|---|---|
//! | [`Why::DateIsAge`] | leaves `Date` out of the age, so what was long on its way is reused too long | RFC 9111 section 4.2.3: the age is at least the apparent age |
//! | [`Why::Case`] | takes `No-Store`, `PRIVATE` or `Max-Age` for directives it does not know | RFC 9111 section 5.2: names of directives are case-insensitive |
//! | [`Why::Sign`] | reads `max-age=+60` and `Age: +59` as numbers | RFC 9111 section 1.2.2: digits only |
//! | [`Why::Large`] | takes a number beyond 64 bits for 0, so that such an `Age` ages nothing, and panics over an `Age` near 2^64 | RFC 9111 section 1.2.2: it counts as 2^31, or the largest that can be represented |
//! | [`Why::AgeList`] | takes `Age: 70, 0` for none | RFC 9111 section 5.1: the first member should be used |
//! | [`Why::OldDate`] | reads only one of the three forms of a date | RFC 9110 section 5.6.7: all three must be accepted |
//! | [`Why::NoDate`] | reads dates of mail (`+0000`) that are no HTTP-dates | RFC 9111 section 5.3: what is no date is in the past |
//! | [`Why::Quoted`] | splits a quoted string at its commas, and sees directives within | RFC 9111 section 5.2, RFC 9110 section 5.6.4: the comma is quoted |
//! | [`Why::MustUnderstand`] | heeds `no-store` beside `must-understand`, though it understands the status | RFC 9111 section 5.2.2.3: should ignore it |
//! | [`Why::ProxyRevalidate`] | takes a response with `proxy-revalidate` for stale at once | RFC 9111 section 5.2.2.8: it counts once the response is stale |
//! | [`Why::Bare`] | takes `max-age` without a number for absent, and goes on to `Expires` | RFC 9111 section 4.2.1: invalid freshness is better taken for stale |
//! | [`Why::Targeted`] | does not know `CDN-Cache-Control` | RFC 9213 section 2.2 (one may leave it out) |
//! | [`Why::Pragma`] | heeds `Pragma: no-cache` in a response | RFC 9111 section 5.4: it says nothing about responses |
//!
//! Where both may stand, and this crate has decided:
//!
//! | difference | the other crate | here |
//! |---|---|---|
//! | [`Why::SetCookie`] | reuses `Set-Cookie` beside `public` (RFC 9111 section 7.3 allows it) | never |
//! | [`Why::Malformed`] | passes over a member that is no token | it may have meant `private` |
//! | [`Why::Twice`] | of two differing values the first (RFC 9111 section 4.2.1: "either the first occurrence should be used or the response should be considered stale") | the shorter |
//! | [`Why::Qualified`] | does not store a response whose `private` or `no-cache` names fields | stores it without those (RFC 9111 sections 5.2.2.4 and 5.2.2.7) |
//! | [`Why::Heuristic`] | a tenth of the time since `Last-Modified` (RFC 9111 section 4.2.2 allows it) | none, unless the layer gives a lifetime |
//! | [`Why::TenYears`] | lifetimes without bound | ten years |

mod common;

use common::{ARRIVAL, CALENDAR, Ended, NOW, Reused, exchange, request, response, reuse};
use http::{Method, Request, Response};
use http_cache_semantics::{CacheOptions, CachePolicy};
use larder_semantics::{Caching, Policy};
use std::{
    collections::BTreeMap,
    panic::catch_unwind,
    time::{Duration, UNIX_EPOCH},
};

/// Why the two disagree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Why {
    DateIsAge,
    Case,
    Sign,
    Large,
    AgeList,
    OldDate,
    NoDate,
    Quoted,
    MustUnderstand,
    ProxyRevalidate,
    Bare,
    Targeted,
    Pragma,
    SetCookie,
    Malformed,
    Twice,
    Qualified,
    Heuristic,
    TenYears,
}

impl Why {
    /// Whether the difference goes the way that the explanation says.
    fn explains(self, ours: u64, theirs: u64) -> bool {
        match self {
            Self::SetCookie | Self::Malformed | Self::Heuristic | Self::NoDate => ours == 0,
            Self::DateIsAge | Self::Twice | Self::TenYears | Self::Bare | Self::AgeList => ours < theirs,
            Self::MustUnderstand | Self::ProxyRevalidate | Self::Qualified | Self::Pragma | Self::OldDate => {
                theirs == 0
            }
            Self::Case | Self::Sign | Self::Large | Self::Quoted | Self::Targeted => true,
        }
    }
}

/// Lines of a message, and the differences that they are known to bring.
type Lines = (&'static [(&'static str, &'static str)], &'static [Why]);

/// The seconds for which a response is reused: none, when it is not stored or stale at once.
fn here(asked: &[(&'static str, &str)], answered: &[(&'static str, &str)]) -> u64 {
    let mut policy = Policy::default();
    policy.lifetime = None;
    let request = request(Method::GET, "/", asked);
    let Ended::Stored(filling) = exchange(&request, &response(200, answered), &Caching::default(), &policy, ARRIVAL)
    else {
        return 0;
    };
    let fresh =
        |seconds| matches!(reuse(&filling, &request, &policy, NOW.after(Duration::from_secs(seconds))), Reused::Hit(_));
    seconds_until_stale(fresh)
}

/// The same, by the other crate.
fn there(asked: &[(&'static str, &str)], answered: &[(&'static str, &str)]) -> u64 {
    seconds_until_stale(|seconds| fresh_there(asked, answered, seconds))
}

/// Whether the other crate answers the same request again after some seconds.
fn fresh_there(asked: &[(&'static str, &str)], answered: &[(&'static str, &str)], seconds: u64) -> bool {
    let received = UNIX_EPOCH + Duration::from_secs(CALENDAR);
    let request = Request::from_parts(request(Method::GET, "/", asked), ());
    let response = Response::from_parts(response(200, answered), ());
    let options = CacheOptions { shared: true, ..CacheOptions::default() };
    let policy = CachePolicy::new_options(&request, &response, received, options);
    let later = received + Duration::from_secs(seconds);
    // A response with `Vary: *` counts as storable there, but answers nobody.
    policy.is_storable() && policy.before_request(&request, later).satisfies_without_revalidation()
}

/// The first whole second at which it is no longer fresh; beyond some years it makes no difference.
fn seconds_until_stale(fresh: impl Fn(u64) -> bool) -> u64 {
    let (mut known_fresh, mut known_stale) = (0, 20 * 365 * 24 * 60 * 60);
    if !fresh(0) || fresh(known_stale) {
        return if fresh(0) { known_stale } else { 0 };
    }
    while known_stale - known_fresh > 1 {
        let middle = (known_fresh + known_stale) / 2;
        *if fresh(middle) { &mut known_fresh } else { &mut known_stale } = middle;
    }
    known_stale
}

/// Compares over the product of `dimensions`; every difference must be explained by one of its lines, and every
/// explanation must have been needed.
fn compare(asked: &[&[(&'static str, &str)]], dimensions: &[&[Lines]]) -> usize {
    let (mut count, mut needed) = (0, BTreeMap::new());
    let total: usize = dimensions.iter().map(|dimension| dimension.len()).product();
    for asked in asked {
        for number in 0..total {
            let (mut rest, mut lines, mut known) = (number, Vec::new(), Vec::new());
            for dimension in dimensions {
                let (these, whys) = dimension[rest % dimension.len()];
                rest /= dimension.len();
                lines.extend_from_slice(these);
                known.extend_from_slice(whys);
            }
            let (ours, theirs) = (here(asked, &lines), there(asked, &lines));
            if ours != theirs {
                let explained = known.iter().any(|why: &Why| why.explains(ours, theirs));
                assert!(explained, "{asked:?} {lines:?}: {ours} s here, {theirs} s there, not explained by {known:?}");
            }
            for why in known {
                *needed.entry(why).or_insert(false) |= ours != theirs;
            }
            count += 1;
        }
    }
    let idle: Vec<_> = needed.into_iter().filter_map(|(why, needed)| (!needed).then_some(why)).collect();
    assert!(idle.is_empty(), "explained, and yet the same: {idle:?}");
    count
}

const ANYBODY: &[&[(&str, &str)]] = &[&[], &[("authorization", "Basic YTpi")]];

/// One line of `Cache-Control`, or none.
const fn plain(line: &'static [(&'static str, &'static str)]) -> Lines {
    (line, &[])
}

#[test]
fn directives() {
    const STORE: &[Lines] = &[plain(&[]), plain(&[("cache-control", "no-store")])];
    const PRIVATE: &[Lines] = &[
        plain(&[]),
        plain(&[("cache-control", "private")]),
        (&[("cache-control", "private=\"x\"")], &[Why::Qualified]),
    ];
    const CACHE: &[Lines] = &[
        plain(&[]),
        plain(&[("cache-control", "no-cache")]),
        (&[("cache-control", "no-cache=\"x\"")], &[Why::Qualified]),
    ];
    const PUBLIC: &[Lines] = &[plain(&[]), plain(&[("cache-control", "public")])];
    const REVALIDATE: &[Lines] = &[
        plain(&[]),
        plain(&[("cache-control", "must-revalidate")]),
        (&[("cache-control", "proxy-revalidate")], &[Why::ProxyRevalidate]),
    ];
    const MAX_AGE: &[Lines] = &[
        plain(&[]),
        plain(&[("cache-control", "max-age=0")]),
        plain(&[("cache-control", "max-age=1")]),
        plain(&[("cache-control", "max-age=60")]),
        plain(&[("cache-control", "max-age=\"60\"")]),
        plain(&[("cache-control", "max-age=x")]),
    ];
    const S_MAXAGE: &[Lines] =
        &[plain(&[]), plain(&[("cache-control", "s-maxage=0")]), plain(&[("cache-control", "s-maxage=90")])];
    const COOKIE: &[Lines] = &[plain(&[]), (&[("set-cookie", "a=1")], &[Why::SetCookie])];
    const VARY: &[Lines] = &[plain(&[]), plain(&[("vary", "accept")]), plain(&[("vary", "accept, *")])];
    let count = compare(ANYBODY, &[STORE, PRIVATE, CACHE, PUBLIC, REVALIDATE, MAX_AGE, S_MAXAGE, COOKIE, VARY]);
    assert_eq!(count, 2 * 2 * 3 * 3 * 2 * 3 * 6 * 3 * 2 * 3);
}

#[test]
fn lifetimes_and_ages() {
    const NOW: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const LIFETIME: &[Lines] = &[
        plain(&[]),
        plain(&[("cache-control", "max-age=0")]),
        plain(&[("cache-control", "max-age=1")]),
        plain(&[("cache-control", "max-age=60")]),
        plain(&[("cache-control", "s-maxage=60, max-age=0")]),
        plain(&[("cache-control", "s-maxage=0, max-age=60")]),
        plain(&[("cache-control", "public")]),
    ];
    const EXPIRES: &[Lines] = &[
        plain(&[]),
        plain(&[("expires", "0")]),
        plain(&[("expires", "Sun, 06 Nov 1994 08:48:37 GMT")]),
        plain(&[("expires", NOW)]),
        plain(&[("expires", "Sun, 06 Nov 1994 08:50:37 GMT")]),
    ];
    const DATE: &[Lines] = &[
        plain(&[]),
        plain(&[("date", NOW)]),
        plain(&[("date", "yesterday")]),
        plain(&[("date", "Sun, 06 Nov 1994 08:50:07 GMT")]),
        (&[("date", "Sun, 06 Nov 1994 08:48:38 GMT")], &[Why::DateIsAge]),
        (&[("date", "Sun, 06 Nov 1994 08:48:37 GMT")], &[Why::DateIsAge]),
        (&[("date", "Sun, 06 Nov 1994 08:48:36 GMT")], &[Why::DateIsAge]),
    ];
    const AGE: &[Lines] = &[
        plain(&[]),
        plain(&[("age", "0")]),
        plain(&[("age", "59")]),
        plain(&[("age", "60")]),
        plain(&[("age", "61")]),
        plain(&[("age", "-1")]),
        plain(&[("age", "bad")]),
    ];
    assert_eq!(compare(ANYBODY, &[LIFETIME, EXPIRES, DATE, AGE]), 2 * 7 * 5 * 7 * 7);
}

#[test]
fn what_either_reads_in_its_own_way() {
    const AROUND: &[Lines] =
        &[plain(&[]), plain(&[("cache-control", "max-age=60")]), plain(&[("cache-control", "s-maxage=60")])];
    const EXPIRES: &[Lines] = &[plain(&[]), plain(&[("expires", "Sun, 06 Nov 1994 08:50:37 GMT")])];
    const ODD: &[Lines] = &[
        plain(&[("cache-control", "")]),
        plain(&[("cache-control", ", ,")]),
        plain(&[("cache-control", "immutable-not")]),
        plain(&[("cache-control", "x=\"private\"")]),
        (&[("cache-control", "private=\"a, b\"")], &[Why::Qualified]),
        plain(&[("cache-control", "no-store=1")]),
        plain(&[("age", "bad, 61")]),
        (&[("cache-control", "No-Store")], &[Why::Case]),
        (&[("cache-control", "PRIVATE")], &[Why::Case]),
        (&[("cache-control", "Max-Age=30")], &[Why::Case]),
        (&[("cache-control", "max-age=+60")], &[Why::Sign]),
        (&[("age", "+59")], &[Why::Sign]),
        (&[("cache-control", "max-age=99999999999999999999")], &[Why::Large, Why::Twice]),
        (&[("age", "99999999999999999999")], &[Why::Large]),
        (&[("age", "70, 0")], &[Why::AgeList]),
        (&[("expires", "Sun Nov  6 08:50:37 1994")], &[Why::OldDate]),
        (&[("expires", "Sunday, 06-Nov-94 08:50:37 GMT")], &[Why::OldDate]),
        (&[("expires", "Sun, 06 Nov 1994 08:51:37 +0000")], &[Why::NoDate]),
        (&[("cache-control", "x=\"a, no-store, b\"")], &[Why::Quoted]),
        (&[("cache-control", "x=\"a, max-age=5, b\"")], &[Why::Quoted]),
        (&[("cache-control", "must-understand, no-store")], &[Why::MustUnderstand]),
        (&[("cache-control", "max-age")], &[Why::Bare]),
        (&[("cdn-cache-control", "max-age=30")], &[Why::Targeted]),
        (&[("cdn-cache-control", "no-store")], &[Why::Targeted]),
        (&[("pragma", "no-cache")], &[Why::Pragma]),
        (&[("cache-control", "no store")], &[Why::Malformed]),
        (&[("cache-control", "max-age =30")], &[Why::Malformed]),
        (&[("cache-control", "x=\"60")], &[Why::Malformed]),
        (&[("cache-control", "max-age=30"), ("cache-control", "max-age=20")], &[Why::Twice]),
        (&[("cache-control", "max-age=30, max-age=0")], &[Why::Twice]),
        (&[("last-modified", "Sun, 06 Nov 1994 07:49:37 GMT")], &[Why::Heuristic]),
        (&[("cache-control", "max-age=400000000")], &[Why::TenYears, Why::Twice]),
    ];
    assert_eq!(compare(ANYBODY, &[ODD, AROUND, EXPIRES]), 2 * 32 * 3 * 2);
}

/// An `Age` that no table above holds, as it would end the test.
#[test]
fn an_age_near_the_end_of_numbers_panics_there_and_is_stale_here() {
    let lines = [("cache-control", "max-age=60"), ("age", "18446744073709551615")];
    assert_eq!(here(&[], &lines), 0);
    assert!(catch_unwind(|| fresh_there(&[], &lines, 1)).is_err(), "it has been mended: move the case to the table");
}
