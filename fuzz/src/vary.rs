//! Variants (RFC 9111 section 4.1, RFC 9110 section 12.5.5): `Vary` is read in every spelling, requests that say the same
//! select the same variant however they spell it, and no variant answers a request that says anything else.

use super::{
    messages::{Exchange, exchanges},
    shelf::{Served, Shelf, generous},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use larder::semantics::{EntryId, VariantId, vary::Vary};
use std::collections::BTreeSet;

/// The most requests that are looked at: each is put beside every other.
const MOST: usize = 5;

/// Asks it of the first response, and of each two requests.
pub fn hold(input: &[u8]) {
    let mut exchanges = exchanges(input);
    exchanges.truncate(MOST);
    for exchange in &mut exchanges {
        asks_for_the_whole(exchange);
    }
    let Some(first) = exchanges.first() else { return };
    let read = Vary::parse(&first.response.headers);
    assert_eq!(read, names(&first.response.headers), "{:?}", first.response.headers);
    for one in &exchanges {
        if let Vary::By(fields) = &read {
            is_the_same_however_it_is_spelt(fields, &one.request.headers);
        }
        for other in &exchanges {
            let answered = Exchange { request: one.request.clone(), ..first.clone() };
            answers_only_what_says_the_same(&read, &answered, &other.request.headers);
        }
    }
}

/// Leaves nothing of an exchange but what varies.
fn asks_for_the_whole(exchange: &mut Exchange) {
    let Exchange { request, response, .. } = exchange;
    (request.method, response.status) = (Method::GET, StatusCode::OK);
    for field in [
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::RANGE,
        header::IF_MATCH,
        header::IF_NONE_MATCH,
        header::IF_MODIFIED_SINCE,
        header::IF_UNMODIFIED_SINCE,
        header::IF_RANGE,
    ] {
        request.headers.remove(field);
    }
    let said = std::mem::take(&mut response.headers);
    for (name, value) in said.iter().filter(|(name, _)| [header::VARY, header::CONTENT_LANGUAGE].contains(name)) {
        response.headers.append(name, value.clone());
    }
}

/// What `Vary` names, each once; `*` when one is no name.
fn names(headers: &HeaderMap) -> Vary {
    let mut names = BTreeSet::new();
    for line in headers.get_all(header::VARY) {
        let members = line.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
        names.extend(members.filter(|member| !member.is_empty()).map(<[u8]>::to_ascii_lowercase));
    }
    if names.contains(&b"*"[..]) {
        return Vary::Star;
    }
    let names: Option<Vec<HeaderName>> = names.iter().map(|name| HeaderName::from_bytes(name).ok()).collect();
    names.map_or(Vary::Star, Vary::By)
}

fn is_the_same_however_it_is_spelt(fields: &[HeaderName], headers: &HeaderMap) {
    let variant = |headers: &HeaderMap| VariantId::of(EntryId([1; 16]), fields, headers);
    let own = variant(headers);
    for field in headers.keys() {
        let lines: Vec<&[u8]> = headers.get_all(field).iter().map(|line| line.as_bytes().trim_ascii()).collect();
        let mut changed = headers.clone();
        let mut put = |lines: &[&[u8]]| {
            changed.remove(field);
            for line in lines {
                changed.append(field, HeaderValue::from_bytes(line).expect("made of values"));
            }
            variant(&changed)
        };
        assert_eq!(own, put(&lines), "blanks around {field}: {headers:?}");
        // A quote that is left open takes in what is put behind it, and of cookies nothing is passed over.
        let (glue, may_be_put_together): (&[u8], _) = match *field {
            header::COOKIE => (b"; ", lines.iter().all(|line| !line.is_empty())),
            _ => (b" ,\t", lines.iter().all(|line| !line.contains(&b'"'))),
        };
        if may_be_put_together {
            assert_eq!(own, put(&[&lines.join(glue)]), "{field} in one line: {headers:?}");
        }
        if is_weighed(field) {
            let mut turned: Vec<Vec<u8>> = lines.iter().map(|line| line.to_ascii_uppercase()).collect();
            turned.reverse();
            let turned: Vec<&[u8]> = turned.iter().map(|line| &line[..]).collect();
            assert_eq!(own, put(&turned), "{field} the other way round, and in capitals: {headers:?}");
        }
        if !fields.contains(field) {
            assert_eq!(own, put(&[b"other"]), "it does not vary by {field}: {headers:?}");
        }
    }
}

fn answers_only_what_says_the_same(vary: &Vary, answered: &Exchange, other: &HeaderMap) {
    let mut policy = generous();
    for by_language in [false, true] {
        policy.select_by_language = by_language;
        let mut shelf = Shelf::new(policy.clone());
        let is_stored = matches!(shelf.serve(answered, &Bytes::new()), Served::Stored);
        let Vary::By(fields) = vary else {
            assert!(!is_stored, "it varies by more than fields");
            continue;
        };
        assert!(is_stored, "{:?}", answered.request.headers);
        let mut next = answered.clone();
        next.request.headers = other.clone();
        let is_hit = matches!(shelf.serve(&next, &Bytes::new()), Served::Hit(_));
        let own = &answered.request.headers;
        let variant = |headers: &HeaderMap| VariantId::of(EntryId([1; 16]), fields, headers);
        let are_one = variant(own) == variant(other);
        let tag = answered.response.headers.get(header::CONTENT_LANGUAGE);
        let is_wanted = by_language && tag.is_some_and(|tag| is_wanted_most(tag.as_bytes(), other));
        assert!(is_hit || !are_one, "it says the same: {own:?}, {other:?}");
        assert!(!is_hit || are_one || is_wanted, "{own:?} for {other:?}");
        for field in fields.iter().filter(|_| is_hit) {
            let is_selected = *field == header::ACCEPT_LANGUAGE && is_wanted;
            assert!(is_selected || say_the_same(field, own, other), "{field}: {own:?} for {other:?}");
        }
    }
}

/// Whether two requests say the same in a field, as far as RFC 9111 section 4.1 lets a cache tell: lines may be put
/// together, blanks around commas do not count, and of what is weighed neither does order, nor case.
fn say_the_same(field: &HeaderName, one: &HeaderMap, other: &HeaderMap) -> bool {
    if one.contains_key(field) != other.contains_key(field) {
        return false;
    }
    let has_quotes = |headers: &HeaderMap| headers.get_all(field).iter().any(|line| line.as_bytes().contains(&b'"'));
    match *field {
        header::COOKIE => list(field, one, b';') == list(field, other, b';'),
        // There are no quotes in the grammar of these fields.
        _ if is_weighed(field) => has_quotes(one) || has_quotes(other) || wanted(field, one) == wanted(field, other),
        _ => list(field, one, b',') == list(field, other, b','),
    }
}

fn is_weighed(field: &HeaderName) -> bool {
    [header::ACCEPT_LANGUAGE, header::ACCEPT_ENCODING, header::ACCEPT_CHARSET].contains(field)
}

fn list(field: &HeaderName, headers: &HeaderMap, separator: u8) -> Vec<Vec<u8>> {
    let lines: Vec<&[u8]> = headers.get_all(field).iter().map(HeaderValue::as_bytes).collect();
    let all = lines.join(&separator);
    let members = all.split(|&byte| byte == separator).map(|member| member.trim_ascii().to_vec());
    members.filter(|member| !member.is_empty()).collect()
}

/// What a list weighs, and how much each is wanted, in thousandths.
fn wanted(field: &HeaderName, headers: &HeaderMap) -> Vec<(Vec<u8>, u16)> {
    let weighed = |member: Vec<u8>| {
        let member: Vec<u8> =
            member.to_ascii_lowercase().into_iter().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let weight = member.windows(3).position(|three| three == b";q=").and_then(|at| {
            let weight = std::str::from_utf8(&member[at + 3..]).ok()?.parse::<f64>().ok()?;
            (0.0..=1.0).contains(&weight).then(|| (member[..at].to_vec(), (weight * 1000.0).round() as u16))
        });
        weight.unwrap_or((member, 1000))
    };
    let mut wanted: Vec<_> = list(field, headers, b',').into_iter().map(weighed).collect();
    wanted.sort();
    wanted
}

/// Whether a request wants a language, and none as much (RFC 9110 section 12.5.4).
fn is_wanted_most(tag: &[u8], headers: &HeaderMap) -> bool {
    let tag = tag.trim_ascii().to_ascii_lowercase();
    let wanted = wanted(&header::ACCEPT_LANGUAGE, headers);
    let of = |(language, weight): &(Vec<u8>, u16)| (*language == tag).then_some(*weight);
    let weight = wanted.iter().filter_map(of).max().unwrap_or_default();
    weight > 0 && wanted.iter().filter(|(_, other)| *other >= weight).count() == 1
}
