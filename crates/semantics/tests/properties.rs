//! What holds for whatever bytes come.

mod common;

use common::{ARRIVAL, Ended, NOW, Reused, answer, exchange, receive, request, response, reuse, stored_response};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, request, response};
use larder_semantics::{
    Caching, Content, Entry, EntryId, EntryKey, Intake, Key, Namespace, Policy, Selected, Template, Timestamp,
    VariantId, Variants, freshness::Arrival,
};
use proptest::{collection::vec, option, prelude::*, sample::select};
use std::{collections::HashMap, sync::Arc, time::Duration};

/// Pieces out of which the standards' fields are made, and out of which they are broken.
const PIECES: [&str; 44] = [
    "no-store",
    "private",
    "no-cache",
    "public",
    "must-revalidate",
    "must-understand",
    "max-age",
    "s-maxage",
    "=",
    "=",
    ",",
    ",",
    ", ",
    ";",
    " ",
    "\t",
    "\"",
    "\\",
    "*",
    "0",
    "1",
    "60",
    "-1",
    "+1",
    "1.5",
    "4294967296",
    "99999999999999999999",
    "accept",
    "cookie",
    "x-a",
    "chunked",
    "close",
    "bytes=0-1",
    "only-if-cached",
    "min-fresh",
    "Sun, 06 Nov 1994 08:49:37 GMT",
    "Sun Nov  6 08:50:37 1994",
    "Sunday, 06-Nov-94 08:50:37 GMT",
    "Thu, 01 Jan 1970 00:00:00 GMT",
    "Fri, 31 Dec 9999 23:59:59 GMT",
    "Sun, 30 Feb 2100 25:61:61 GMT",
    "a=1",
    "\u{e9}",
    "{}%",
];

/// Fields that requests and responses are judged by, and one that is not.
const FIELDS: [&str; 24] = [
    "cache-control",
    "cdn-cache-control",
    "vary",
    "age",
    "date",
    "expires",
    "pragma",
    "cookie",
    "set-cookie",
    "authorization",
    "connection",
    "content-length",
    "content-range",
    "transfer-encoding",
    "host",
    "range",
    "if-none-match",
    "if-range",
    "last-modified",
    "trailer",
    "upgrade",
    "keep-alive",
    "accept",
    "x-a",
];

fn value() -> impl Strategy<Value = HeaderValue> {
    let pieced = vec(select(&PIECES[..]), 0..8).prop_map(|pieces| pieces.concat().into_bytes());
    let raw = vec(any::<u8>(), 0..24);
    prop_oneof![3 => pieced, 1 => raw].prop_filter_map("no header value", |bytes| HeaderValue::from_bytes(&bytes).ok())
}

fn headers() -> impl Strategy<Value = HeaderMap> {
    vec((select(&FIELDS[..]), value()), 0..8).prop_map(|lines| {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, value);
        }
        headers
    })
}

fn any_request() -> impl Strategy<Value = request::Parts> {
    const METHODS: [&str; 7] = ["GET", "GET", "GET", "HEAD", "POST", "get", "X-!#$%"];
    const TARGETS: [&str; 6] = ["/", "/a?b", "http://example.com/", "http://[::1]:80/?", "*", "/%2F%00{}"];
    (select(&METHODS[..]), select(&TARGETS[..]), headers()).prop_map(|(method, target, headers)| {
        let mut head = request(method.parse().expect("a method"), target, &[]);
        head.headers = headers;
        head
    })
}

fn any_response() -> impl Strategy<Value = response::Parts> {
    let statuses = prop_oneof![3 => Just(200), 1 => 100..1000u16];
    (statuses, headers()).prop_map(|(status, headers)| {
        let mut head = response(status, &[]);
        head.headers = headers;
        head
    })
}

fn duration() -> impl Strategy<Value = Duration> {
    prop_oneof![
        Just(Duration::ZERO),
        Just(Duration::MAX),
        any::<u64>().prop_map(Duration::from_millis),
        (0..120_000u64).prop_map(Duration::from_millis),
    ]
}

fn moment() -> impl Strategy<Value = Timestamp> {
    let near = (-120_000..120_000i64).prop_map(|offset| NOW.as_millis().saturating_add_signed(offset));
    let ends = prop_oneof![Just(0), Just(u64::MAX), Just(u64::MAX - 1)];
    prop_oneof![any::<u64>(), near, ends].prop_map(Timestamp::from_millis)
}

fn number() -> impl Strategy<Value = f64> {
    prop_oneof![any::<f64>(), 0.0..=1.0, Just(f64::NAN), Just(f64::INFINITY), Just(-1.0)]
}

fn policy() -> impl Strategy<Value = Policy> {
    let lifetimes = (option::of(duration()), option::weighted(0.2, duration()), number(), duration());
    let statuses = vec((100..1000u16, duration()), 0..3);
    let texts = (vec(".{0,4}", 0..3), vec("[a-z]?", 0..3));
    (lifetimes, statuses, texts, any::<[bool; 3]>(), any::<u64>()).prop_map(
        |((lifetime, lifetime_override, jitter, keep), statuses, (tags, ignored), flags, max_body)| {
            let mut policy = Policy::default();
            policy.lifetime = lifetime;
            policy.lifetime_override = lifetime_override;
            policy.jitter = jitter;
            policy.keep = keep;
            policy.statuses = statuses
                .into_iter()
                .map(|(code, given)| (StatusCode::from_u16(code).expect("a status"), given))
                .collect();
            policy.tags = tags;
            policy.ignored_cookies = ignored;
            [policy.share_with_cookies, policy.share_with_authorization, policy.honor_client_directives] = flags;
            policy.max_body = max_body;
            policy
        },
    )
}

fn caching() -> impl Strategy<Value = Caching> {
    (option::weighted(0.2, duration()), vec(".{0,4}", 0..3)).prop_map(|(lifetime, tags)| {
        let caching = tags.into_iter().fold(Caching::new(), Caching::tag);
        match lifetime {
            Some(lifetime) => caching.ttl(lifetime),
            None => caching,
        }
    })
}

fn arrival() -> impl Strategy<Value = Arrival> {
    (moment(), moment(), duration(), number()).prop_map(|(now, calendar, delay, seed)| Arrival {
        now,
        calendar,
        delay,
        seed,
    })
}

/// The policy under which most is stored, for a minute.
fn generous() -> Policy {
    let mut policy = Policy::default();
    policy.lifetime_override = Some(Duration::from_secs(60));
    policy.jitter = 0.0;
    policy.share_with_cookies = true;
    policy.share_with_authorization = true;
    policy
}

fn stored(response: &response::Parts, policy: &Policy) -> bool {
    let ended = exchange(&request(Method::GET, "/", &[]), response, &Caching::default(), policy, ARRIVAL);
    matches!(ended, Ended::Stored(_))
}

/// A member that is well formed and says neither of the two, nor takes `no-store` back.
fn member() -> impl Strategy<Value = String> {
    let quoted = vec(select(&["a", " ", ",", "=", "no-store", "private", "\\\"", "\\\\", "\t"][..]), 0..5)
        .prop_map(|pieces| format!("\"{}\"", pieces.concat()));
    let argument = prop_oneof!["[a-z0-9]{1,3}", quoted];
    let names = select(&["public", "max-age", "s-maxage", "ext", "no-storex", "x-private", "immutable", "!#$%&'"][..]);
    (names, option::of(argument))
        .prop_map(|(name, argument)| argument.map_or(name.to_owned(), |argument| format!("{name}={argument}")))
}

/// `no-store` or `private`, as a sender may spell it who names no fields.
fn forbidding() -> impl Strategy<Value = String> {
    let arguments = select(&["", "", "=x", "=\"a b\"", "=\"a, b c\"", "=\"\"", "=\"\\\"\""][..]);
    (select(&["no-store", "private"][..]), any::<u16>(), arguments).prop_map(|(word, upper, argument)| {
        let spell =
            |(at, letter): (usize, char)| if upper >> at & 1 == 1 { letter.to_ascii_uppercase() } else { letter };
        word.chars().enumerate().map(spell).collect::<String>() + argument
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn nothing_that_comes_can_make_it_panic(
        (first, second) in (any_request(), any_request()),
        head in any_response(),
        caching in caching(),
        policy in policy(),
        arrival in arrival(),
        later in moment(),
    ) {
        let _ = Key::of_request(&first);
        if let Ended::Stored(filling) = exchange(&first, &head, &caching, &policy, arrival) {
            for now in [arrival.now, later, Timestamp::from_millis(u64::MAX)] {
                for request in [&first, &second] {
                    if let Reused::Hit(hit) = reuse(&filling, request, &policy, now) {
                        prop_assert!(hit.ttl(now) >= 0);
                        let (_, headers, _) = answer(hit, now);
                        prop_assert!(headers.contains_key("age"));
                        prop_assert!(!headers.contains_key("set-cookie") && !headers.contains_key("connection"));
                    }
                }
            }
        }
    }

    #[test]
    fn no_store_and_private_are_never_admitted(
        before in vec(member(), 0..4),
        forbidding in forbidding(),
        after in vec(member(), 0..4),
        separators in vec(select(&[",", ", ", " ,\t", ",,", ", ,"][..]), 8),
        lines in any::<u8>(),
    ) {
        let with = |word: String| {
            let members: Vec<String> = before.iter().cloned().chain([word]).chain(after.iter().cloned()).collect();
            let (mut head, mut line) = (response(200, &[]), String::new());
            for (at, member) in members.iter().enumerate() {
                line.push_str(member);
                // The list goes on behind a comma, or in another line of the field.
                if lines >> at & 1 == 1 || at + 1 == members.len() {
                    head.headers.append("cache-control", line.parse().expect("a header value"));
                    line.clear();
                } else {
                    line.push_str(separators[at]);
                }
            }
            head
        };
        prop_assert!(!stored(&with(forbidding), &generous()));
        let harmless = with("ext=1".to_owned());
        prop_assert!(stored(&harmless, &generous()), "it was for nothing else: {:?}", harmless.headers);
    }

    #[test]
    fn no_line_can_hide_the_no_store_of_another(
        lines in vec(value(), 0..3),
        forbidding in forbidding(),
        at in 0..4usize,
    ) {
        let mut head = response(200, &[]);
        let mut lines = lines;
        lines.retain(|line| !line.as_bytes().to_ascii_lowercase().windows(15).any(|part| part == b"must-understand"));
        lines.insert(at.min(lines.len()), forbidding.parse().expect("a header value"));
        for line in lines {
            head.headers.append("cache-control", line);
        }
        prop_assert!(!stored(&head, &generous()), "{:?}", head.headers);
    }

    #[test]
    fn freshness_never_returns(
        (received_at, initial_age, lifetime) in (moment(), duration(), duration()),
        (one, other) in (moment(), moment()),
    ) {
        let get = request(Method::GET, "/", &[]);
        let ended = exchange(&get, &response(200, &[]), &Caching::default(), &generous(), ARRIVAL);
        let Ended::Stored(filling) = ended else {
            panic!("it is to be stored");
        };
        let mut response = stored_response(&filling).clone();
        response.received_at = received_at;
        response.initial_age = initial_age;
        response.lifetime = lifetime;
        response.keep = Duration::MAX;
        let (earlier, later) = (one.min(other), one.max(other));
        prop_assert!(response.is_fresh(earlier) || !response.is_fresh(later));
        prop_assert!(response.age(earlier) <= response.age(later));
        prop_assert!(response.ttl(earlier) >= response.ttl(later));
        prop_assert!(response.age(received_at) == initial_age);
        prop_assert!(response.stored_for() >= lifetime.saturating_sub(initial_age));
    }

    #[test]
    fn what_is_stale_is_never_reused_again(
        head in any_response(),
        policy in policy(),
        arrival in arrival(),
        (one, other) in (moment(), moment()),
    ) {
        let request = request(Method::GET, "/", &[]);
        if let Ended::Stored(filling) = exchange(&request, &head, &Caching::default(), &policy, arrival) {
            let hit = |now| matches!(reuse(&filling, &request, &policy, now), Reused::Hit(_));
            prop_assert!(hit(arrival.now), "stored, and of no use even now");
            prop_assert!(hit(one.min(other)) || !hit(one.max(other)));
        }
    }

    #[test]
    fn jitter_never_lengthens(head in any_response(), policy in policy(), arrival in arrival()) {
        let request = request(Method::GET, "/", &[]);
        let mut plain = policy.clone();
        plain.jitter = 0.0;
        let of = |policy| match exchange(&request, &head, &Caching::default(), policy, arrival) {
            Ended::Stored(filling) => stored_response(&filling).lifetime,
            _ => Duration::ZERO,
        };
        prop_assert!(of(&policy) <= of(&plain));
    }

    #[test]
    fn jitter_leaves_a_stated_lifetime_alone(jitter in number(), seed in number(), stated in 1..1_000_000u64) {
        let head = response(200, &[("cache-control", &format!("max-age={stated}"))]);
        let mut policy = Policy::default();
        policy.jitter = jitter;
        let request = request(Method::GET, "/", &[]);
        let ended = exchange(&request, &head, &Caching::default(), &policy, Arrival { seed, ..ARRIVAL });
        let Ended::Stored(filling) = ended else {
            panic!("it is to be stored");
        };
        prop_assert_eq!(stored_response(&filling).lifetime, Duration::from_secs(stated));
    }
}

const VARYING: [&str; 3] = ["accept", "accept-language", "x-a"];

/// Requests that differ in few fields, in ways that a careless key confuses.
fn varying_headers() -> impl Strategy<Value = HeaderMap> {
    const VALUES: [&str; 11] = ["", "a", "b", "a,b", "a, b", "A", " a", "a:b", "b,a", "x-a", "\u{e9}"];
    vec((select(&VARYING[..]), select(&VALUES[..])), 0..4).prop_map(|lines| {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, HeaderValue::from_bytes(value.as_bytes()).expect("a header value"));
        }
        headers
    })
}

fn vary() -> impl Strategy<Value = Vec<String>> {
    const SPELLED: [&str; 6] = ["accept", "Accept", "accept-language", "X-A", "x-a", ""];
    vec(vec(select(&SPELLED[..]), 0..3).prop_map(|names| names.join(" , ")), 0..3)
}

/// RFC 9111 section 4.1: what may be changed in a field without making it another: lines may be combined, and blanks
/// stand around the commas of a list. An absent field matches only an absent one. Of languages that are wanted alike,
/// neither the order counts nor the case.
fn canonical(headers: &HeaderMap, field: &str) -> Option<Vec<Vec<u8>>> {
    let lines: Vec<&[u8]> = headers.get_all(field).iter().map(HeaderValue::as_bytes).collect();
    let list = lines.join(&b","[..]);
    let members = list.split(|&byte| byte == b',').map(|member| member.trim_ascii().to_vec());
    let mut members: Vec<Vec<u8>> = members.filter(|member| !member.is_empty()).collect();
    if field == "accept-language" {
        members = members.iter().map(|member| member.to_ascii_lowercase()).collect();
        members.sort();
    }
    (!lines.is_empty()).then_some(members)
}

fn matches_by(fields: &[String], one: &HeaderMap, other: &HeaderMap) -> bool {
    fields.iter().all(|field| canonical(one, field) == canonical(other, field))
}

fn named(vary: &[String]) -> Vec<String> {
    let names = vary.iter().flat_map(|line| line.split(',')).map(|name| name.trim().to_ascii_lowercase());
    names.filter(|name| !name.is_empty()).collect()
}

fn varying_response(vary: &[String]) -> response::Parts {
    let mut head = response(200, &[("cache-control", "max-age=60")]);
    for line in vary {
        head.headers.append("vary", line.parse().expect("a header value"));
    }
    head
}

fn get(headers: HeaderMap) -> request::Parts {
    let mut head = request(Method::GET, "/", &[]);
    head.headers = headers;
    head
}

/// A store that holds whatever it is given.
type Shelf = HashMap<EntryKey, Arc<Entry>>;

fn look_up(shelf: &Shelf, base: &EntryKey, request: &request::Parts, now: Timestamp) -> Selected {
    let Intake::Lookup(lookup) = Intake::of(request, &generous()) else {
        panic!("a plain GET is looked up");
    };
    match lookup.select(shelf.get(base).cloned(), &request.headers, now, 1.0) {
        Selected::Variant(lookup, variant) => {
            lookup.select(shelf.get(&base.of_variant(variant)).cloned(), &request.headers, now, 1.0)
        }
        other => other,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_variant_answers_only_requests_that_match_it(
        (first, second) in (varying_headers(), varying_headers()),
        vary in vary(),
    ) {
        let ended =
            exchange(&get(first.clone()), &varying_response(&vary), &Caching::default(), &generous(), ARRIVAL);
        let Ended::Stored(filling) = ended else {
            panic!("it is to be stored: {vary:?}");
        };
        let hit = matches!(reuse(&filling, &get(second.clone()), &generous(), NOW), Reused::Hit(_));
        let fields = named(&vary);
        prop_assert!(!hit || matches_by(&fields, &first, &second), "{fields:?}");
        let same = fields.iter().all(|field| first.get_all(field) == second.get_all(field));
        prop_assert!(hit || !same, "the very same request is a hit");
    }

    /// Rules come, grow and are replaced while other requests are under way.
    #[test]
    fn whatever_was_stored_before_a_hit_matches_by_its_own_vary(
        rounds in vec(vec((varying_headers(), vary(), any::<bool>()), 1..4), 1..6),
    ) {
        let base = Namespace::new("test", 1).expect("a namespace").entry(Key::new("resource"));
        let (mut shelf, mut taken, mut ids) = (Shelf::new(), Vec::new(), 0u8);
        for (round, requests) in rounds.into_iter().enumerate() {
            // A minute and a half: what was stored two rounds ago is stale.
            let now = NOW.after(Duration::from_secs(45 * round as u64));
            let mut under_way = Vec::new();
            for (headers, vary, stores) in requests {
                match look_up(&shelf, &base, &get(headers.clone()), now) {
                    Selected::Hit(hit) => {
                        let number = answer(hit, now).1["x-number"].to_str().expect("text").parse::<usize>().expect("a number");
                        let (theirs, fields): &(HeaderMap, Vec<String>) = &taken[number];
                        prop_assert!(matches_by(fields, theirs, &headers), "{fields:?}: {theirs:?} for {headers:?}");
                    }
                    Selected::Forward(forward) => under_way.push((forward, headers, vary, stores)),
                    other => panic!("{other:?}"),
                }
            }
            for (forward, headers, vary, stores) in under_way {
                let mut head = varying_response(&vary);
                head.headers.insert("x-number", HeaderValue::from(taken.len()));
                let arrival = Arrival { now, ..ARRIVAL };
                let request = get(headers.clone());
                let Ended::Stored(mut filling) =
                    receive(forward, &request, &head, &Caching::default(), &generous(), arrival)
                else {
                    panic!("it is to be stored: {vary:?}");
                };
                taken.push((headers.clone(), named(&vary)));
                // Ids are fresh in every exchange, which those of `receive` are not.
                ids += 1;
                renew(&mut filling, &headers, ids);
                if stores {
                    if let Some(rule) = filling.rule {
                        shelf.insert(filling.key.base(), rule);
                    }
                    shelf.insert(filling.key, filling.response);
                }
            }
        }
    }
}

/// Gives a new rule an id of its own.
fn renew(filling: &mut larder_semantics::Filling, headers: &HeaderMap, id: u8) {
    let id = EntryId([id | 0x80; 16]);
    let rule = filling.rule.clone().filter(|rule| rule.id == EntryId([2; 16]));
    if let Some(Entry { content: Content::Variants(rule), .. }) = rule.as_deref() {
        filling.key = filling.key.of_variant(VariantId::of(id, &rule.fields, headers));
        filling.rule = Some(Arc::new(Entry { id, content: Content::Variants(Variants::by(rule.fields.clone())) }));
    }
}

/// What a target is made of, in spellings that a careless key confuses.
#[derive(Debug, Clone, PartialEq)]
struct Target {
    method: &'static str,
    authority: String,
    path: String,
    query: Option<String>,
}

fn target() -> impl Strategy<Value = Target> {
    const METHODS: [&str; 6] = ["GET", "POST", "get", "A%3A", "G", "*"];
    const AUTHORITIES: [&str; 9] = ["h", "h:1", "h.a", "h%3A1", "[::1]", "[::1]:1", "a.h", "h-", "1"];
    let pieces =
        vec(select(&["/", "a", "A", ":", "%3A", "%", "*", "%2F", ".", "..", ";", "=", "&", "~", "%~"][..]), 0..6);
    let query = vec(select(&["?", "a", "A", "/", ":", "%3F", "&", "=", "{", "}", "%"][..]), 0..4);
    let long = option::weighted(0.2, select(&[1usize, 400, 477, 478, 479, 512, 600][..]));
    (select(&METHODS[..]), select(&AUTHORITIES[..]), pieces, option::of(query), long).prop_map(
        |(method, authority, pieces, query, long)| Target {
            method,
            authority: authority.to_owned(),
            path: format!("/{}{}", "x".repeat(long.unwrap_or_default()), pieces.concat()),
            query: query.map(|pieces| pieces.concat()),
        },
    )
}

impl Target {
    /// As an absolute target, or as a path with `Host`.
    fn request(&self, absolute: bool) -> Option<request::Parts> {
        let query = self.query.as_ref().map_or(String::new(), |query| format!("?{query}"));
        let tail = format!("{}{query}", self.path);
        let builder = Request::builder().method(self.method);
        let builder = if absolute {
            let uri = Uri::builder().scheme("http").authority(&*self.authority).path_and_query(tail).build().ok()?;
            builder.uri(uri).header("host", "another")
        } else {
            builder.uri(tail).header("host", &*self.authority)
        };
        Some(builder.body(()).ok()?.into_parts().0)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn requests_share_a_key_only_if_they_are_for_the_same(
        one in target(),
        other in target(),
        (method, authority, path, query) in any::<(bool, bool, bool, bool)>(),
        absolute in any::<[bool; 2]>(),
    ) {
        // Of two independent targets hardly any are nearly alike: take over some of the parts.
        let mut other = other;
        if method { other.method = one.method; }
        if authority { other.authority.clone_from(&one.authority); }
        if path { other.path.clone_from(&one.path); }
        if query { other.query.clone_from(&one.query); }
        if let (Some(first), Some(second)) = (one.request(absolute[0]), other.request(absolute[1])) {
            let keys = [&first, &second].map(|head| Key::of_request(head).expect("a key"));
            prop_assert_eq!(keys[0] == keys[1], one == other, "{:?}", keys);
            for key in keys {
                prop_assert!(key.as_str().len() <= larder_semantics::key::LONGEST_KEY);
                let plain = |byte: u8| byte.is_ascii_graphic() && !b"{}*[]\"\\".contains(&byte);
                prop_assert!(key.as_str().bytes().all(plain), "{key}");
                prop_assert!(HeaderValue::from_str(key.as_str()).is_ok());
            }
        }
    }
}

/// Every text of at most `longest` letters of an alphabet. What is nearly alike comes up surely here, and hardly ever
/// by chance.
fn texts(alphabet: &[&str], longest: usize) -> Vec<String> {
    let mut all = vec![String::new()];
    let mut last = 0;
    for _ in 0..longest {
        let known = all.len();
        let longer = |text: &String| alphabet.iter().map(|letter| format!("{text}{letter}")).collect::<Vec<_>>();
        let longer: Vec<_> = all[last..].iter().flat_map(longer).collect();
        all.extend(longer);
        last = known;
    }
    all
}

/// Checks that no two of the described things have one key.
fn all_differ<T: std::fmt::Debug>(things: impl Iterator<Item = (T, Key)>) {
    let mut known = HashMap::new();
    for (thing, key) in things {
        if let Some(other) = known.get(&key) {
            panic!("{thing:?} and {other:?} share {key}");
        }
        known.insert(key, thing);
    }
}

#[test]
fn no_part_can_spell_another() {
    let parts = texts(&[":", "%", "3", "A", "?", "\u{e9}"], 3);
    for stretch in [0, 505, 600] {
        let base = Key::new(&format!("page{}", "x".repeat(stretch)));
        let single = parts.iter().map(|part| (vec![part], base.clone().part(part)));
        let short = || parts.iter().filter(|part| part.chars().count() < 3);
        let double = short()
            .flat_map(|one| short().map(move |other| vec![one, other]))
            .map(|pair| (pair.clone(), base.clone().part(pair[0]).part(pair[1])));
        all_differ(single.chain(double));
    }
}

#[test]
fn no_parameter_can_spell_another() {
    let values = texts(&[":", "%", "3", "A", "a", "b", "-"], 2);
    for text in ["{x}:{y}", "a:{x}:{y}:b", "{x}a:{y}", "{x}:a{y}", "{x}b:a{y}", "{x}-a:b-{y}"] {
        let template = Template::parse(text).expect("a template");
        let pairs = values.iter().flat_map(|x| values.iter().map(move |y| (x, y)));
        all_differ(pairs.map(|(x, y)| {
            let value = |name: &str| Some(if name == "x" { x.as_str() } else { y.as_str() });
            ((x, y), template.fill(value).expect("both are known"))
        }));
    }
}

#[test]
fn no_target_can_spell_another() {
    let paths = texts(&["/", ":", "%", "3", "F", "a"], 3);
    let queries = texts(&["?", "/", "%", "a"], 2);
    let queries: Vec<_> =
        std::iter::once(String::new()).chain(queries.iter().map(|query| format!("?{query}"))).collect();
    let targets = ["h", "h:1", "h:"].into_iter().flat_map(|host| {
        let queries = &queries;
        paths.iter().flat_map(move |path| queries.iter().map(move |query| (host, format!("/{path}{query}"))))
    });
    all_differ(targets.map(|(host, target)| {
        let key = Key::of_request(&request(Method::GET, &target, &[("host", host)])).expect("a key");
        ((host, target), key)
    }));
}

#[test]
fn a_host_that_is_none_cannot_spell_another_target() {
    let key =
        |host: &str, target: &str| Key::of_request(&request(Method::GET, target, &[("host", host)])).expect("a key");
    let pairs = [
        (("h/a", "/b"), ("h", "/a/b")),
        (("h:/a", "/b"), ("h", "/a/b")),
        (("h?a", "/b"), ("h", "/?a/b")),
        (("h", "/a?b"), ("h", "/a%3Fb")),
        (("h%3A1", "/"), ("h:1", "/")),
        (("", "/h/"), ("h", "/")),
        (("h", "/?"), ("h", "/")),
        (("h,h", "/"), ("h", "/")),
    ];
    for ((host, target), (other_host, other_target)) in pairs {
        assert_ne!(key(host, target), key(other_host, other_target), "{host} {target}");
    }
}
