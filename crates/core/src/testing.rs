//! For those who write or test a store: the behaviour that every store must show, and a store that fails on request.
//!
//! A panic tells what a store does wrong; there are no other errors here.

mod faulty;

pub use faulty::{Fault, Faulty};

use crate::store::{
    Claim, Filled, Found, Purge, Seen, Store, TICKET_LIFE, Ticket, TicketKind, UNCACHEABLE_LIFE, Unused,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use larder_semantics::{
    Content, Entry, EntryId, EntryKey, Filling, Key, Namespace, StoredResponse, VariantId, Variants,
    delivery::Delivery, stored::Basis,
};
use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Runs the whole suite against a store, which may hold other things.
///
/// `wait` lets the time of the store pass.
pub async fn behaves<S: Store, F: Future<Output = ()>>(store: &S, wait: impl Fn(Duration) -> F) {
    a_miss_is_claimed_filled_and_found(store).await;
    only_one_holds_the_ticket(store).await;
    a_purge_voids_the_fill_in_flight(store).await;
    who_holds_the_ticket_may_purge_and_then_fill(store).await;
    a_tag_reaches_what_was_fetched_before_it_was_invalidated(store).await;
    a_soft_purge_leaves_what_is_stored_stale(store).await;
    a_soft_purge_reaches_every_variant_that_was_stored(store).await;
    what_is_all_goes_at_once(store).await;
    a_pattern_reaches_what_is_like_it_and_what_is_on_its_way(store).await;
    what_is_being_written_is_not_stored(store, &wait).await;
    what_was_written_is_stored_by_whoever_was_alone_with_it(store).await;
    a_value_lies_beside_the_response_and_is_purged_with_it(store).await;
    a_late_release_leaves_the_successor_alone(store).await;
    what_was_seen_can_be_replaced_and_what_is_newer_is_given(store).await;
    variants_are_reached_through_their_rule(store).await;
    a_purge_voids_the_fills_of_every_variant(store).await;
    what_was_seen_and_is_gone_is_looked_for_anew(store).await;
    variants_of_a_purged_rule_never_come_back(store).await;
    what_is_stored_comes_back_byte_for_byte(store).await;
    namespaces_and_versions_do_not_meet(store).await;
    no_answer_begun_before_a_purge_is_found_after_it(store).await;
    what_has_had_its_time_is_gone(store, &wait).await;
    a_ticket_lasts_as_long_as_it_is_renewed(store, &wait).await;
    what_is_not_stored_is_waited_for_by_nobody(store, &wait).await;
    who_waits_for_a_ticket_is_told(store).await;
}

/// A key that nobody else uses.
fn key() -> EntryKey {
    Namespace::default().entry(Key::new("test").part(EntryId(fastrand::u128(..).to_be_bytes()).to_string()))
}

fn id() -> EntryId {
    EntryId(fastrand::u128(..).to_be_bytes())
}

fn response(store: &impl Store, body: impl Into<Bytes>) -> Arc<Entry> {
    let response = StoredResponse {
        status: StatusCode::OK,
        headers: HeaderMap::new(),
        delivery: Delivery::default(),
        body: body.into(),
        received_at: store.now(),
        initial_age: Duration::ZERO,
        lifetime: Duration::from_secs(60),
        keep: Duration::ZERO,
        stale: Default::default(),
        basis: Basis::Response,
        origin_cost: Duration::from_micros(1),
        tags: vec!["tag".to_owned()],
        // No tag is invalidated after that.
        born: 1 << 60,
        generation: 2,
    };
    Arc::new(Entry { id: id(), content: Content::Response(response) })
}

fn filling(key: &EntryKey, response: &Arc<Entry>) -> Filling {
    Filling { key: key.clone(), response: response.clone(), rule: None, stored_for: Duration::from_secs(60) }
}

async fn claim(store: &impl Store, key: &EntryKey, seen: Seen) -> Ticket {
    match store.claim(key, seen).await {
        Ok(Claim::Granted(ticket)) => ticket,
        other => panic!("the ticket for {key:?} should have been granted: {other:?}"),
    }
}

async fn fill(store: &impl Store, key: &EntryKey, response: &Arc<Entry>) {
    let ticket = claim(store, key, Seen::Absent).await;
    assert_eq!(store.fill(ticket, filling(key, response)).await, Ok(Filled::Stored));
}

async fn found(store: &impl Store, key: &EntryKey) -> Option<Arc<Entry>> {
    match store.get(key).await {
        Ok(Found::Entry(entry, _)) => Some(entry),
        Ok(Found::Absent) => None,
        other => panic!("{key:?} should be there or not: {other:?}"),
    }
}

async fn purge(store: &impl Store, key: &EntryKey) -> u64 {
    match store.purge(&key.namespace, &Purge::key(key.key.clone())).await {
        Ok(purged) => purged.resources,
        Err(error) => panic!("{key:?} should have been purged: {error}"),
    }
}

async fn a_miss_is_claimed_filled_and_found(store: &impl Store) {
    let (key, entry) = (key(), response(store, "body"));
    assert_eq!(found(store, &key).await, None);
    fill(store, &key, &entry).await;
    assert_eq!(found(store, &key).await, Some(entry.clone()));
    assert!(matches!(store.claim(&key, Seen::Absent).await, Ok(Claim::Found(there, _)) if there == entry));
    assert_eq!(purge(store, &key).await, 1);
    assert_eq!(found(store, &key).await, None);
    assert_eq!(purge(store, &key).await, 0);
}

async fn only_one_holds_the_ticket(store: &impl Store) {
    let key = key();
    let ticket = claim(store, &key, Seen::Absent).await;
    assert!(matches!(store.claim(&key, Seen::Absent).await, Ok(Claim::Held)));
    store.release(ticket, Unused::NoAnswer).await.expect("a release");
    let ticket = claim(store, &key, Seen::Absent).await;
    assert_eq!(store.fill(ticket, filling(&key, &response(store, "x"))).await, Ok(Filled::Stored));
    purge(store, &key).await;
    drop(claim(store, &key, Seen::Absent).await);
}

async fn a_purge_voids_the_fill_in_flight(store: &impl Store) {
    let key = key();
    let ticket = claim(store, &key, Seen::Absent).await;
    purge(store, &key).await;
    assert_eq!(store.renew(&ticket).await, Ok(false));
    let later = claim(store, &key, Seen::Absent).await;
    assert_eq!(store.fill(ticket, filling(&key, &response(store, "old"))).await, Ok(Filled::Voided));
    assert_eq!(found(store, &key).await, None);
    let new = response(store, "new");
    assert_eq!(store.fill(later, filling(&key, &new)).await, Ok(Filled::Stored));
    assert_eq!(found(store, &key).await, Some(new));
}

async fn who_holds_the_ticket_may_purge_and_then_fill(store: &impl Store) {
    let key = key();
    let (rule, variant, entry) = varying(store, &key, "old").await;
    let of_variant = claim(store, &variant, Seen::Entry(entry.id)).await;
    let ticket = claim(store, &key, Seen::Changing).await;
    let beside = claim(store, &key, Seen::Unreadable).await;
    assert_eq!(store.supersede(&ticket).await, Ok(true));
    assert_eq!(found(store, &key).await, None);
    assert_eq!(store.fill(beside, filling(&key, &response(store, "late"))).await, Ok(Filled::Voided));
    let late = Filling { rule: Some(rule), ..filling(&variant, &response(store, "late")) };
    assert_eq!(store.fill(of_variant, late).await, Ok(Filled::Voided));
    let new = response(store, "new");
    assert_eq!(store.fill(ticket, filling(&key, &new)).await, Ok(Filled::Stored));
    assert_eq!(found(store, &key).await, Some(new));
    let ticket = claim(store, &key, Seen::Changing).await;
    purge(store, &key).await;
    fill(store, &key, &entry).await;
    assert_eq!(store.supersede(&ticket).await, Ok(false), "another purge has voided it");
    assert_eq!(found(store, &key).await, Some(entry));
}

/// A response with tags, born when its ticket was.
fn tagged(store: &impl Store, ticket: &Ticket, tags: &[&str], body: &'static str) -> Arc<Entry> {
    let mut entry = (*response(store, body)).clone();
    if let Content::Response(response) = &mut entry.content {
        (response.tags, response.born) = (tags.iter().map(|tag| (*tag).to_owned()).collect(), ticket.born);
    }
    Arc::new(entry)
}

async fn a_tag_reaches_what_was_fetched_before_it_was_invalidated(store: &impl Store) {
    let (one, two, untagged) = (key(), key(), key());
    // No other test's.
    let (a, b) = (format!("a {}\u{e9}:*", id()), id().to_string());
    let fill_tagged = async |key: &EntryKey, tags: &[&str]| {
        let ticket = claim(store, key, Seen::Unreadable).await;
        let entry = tagged(store, &ticket, tags, "x");
        assert_eq!(store.fill(ticket, filling(key, &entry)).await, Ok(Filled::Stored));
        entry
    };
    let first = fill_tagged(&one, &[&a, &b]).await;
    let second = fill_tagged(&two, &[&b]).await;
    fill(store, &untagged, &response(store, "x")).await;
    assert_eq!(found(store, &one).await, Some(first.clone()));
    let on_its_way = claim(store, &key(), Seen::Absent).await;
    let purged = store.purge(&one.namespace, &Purge::tag(a.as_str())).await.expect("a purge");
    assert_eq!((purged.tags, purged.resources), (1, 0));
    assert!(store.knows_gone(&one, &first) && !store.knows_gone(&two, &second));
    assert!(matches!(store.get(&one).await, Ok(Found::Invalidated(id)) if id == first.id));
    assert_eq!(found(store, &two).await, Some(second.clone()), "another tag");
    assert!(found(store, &untagged).await.is_some());
    let late = on_its_way.key.clone();
    let entry = tagged(store, &on_its_way, &[&a], "late");
    let filled = store.fill(on_its_way, filling(&late, &entry)).await;
    let is_found = async || matches!(store.get(&late).await, Ok(Found::Entry(..)));
    assert!(!is_found().await, "it was asked for before the purge: {filled:?}");
    let claimed = store.claim(&late, Seen::Entry(id())).await;
    assert!(matches!(claimed, Ok(Claim::Moved)), "what was seen is not what is there: {claimed:?}");
    drop(claim(store, &late, Seen::Absent).await);
    assert!(!is_found().await, "what a claim has read is no newer");
    let ticket = claim(store, &one, Seen::Entry(first.id)).await;
    let entry = tagged(store, &ticket, &[&a, &b], "new");
    assert_eq!(store.fill(ticket, filling(&one, &entry)).await, Ok(Filled::Stored));
    assert_eq!(found(store, &one).await, Some(entry));
    store.purge(&one.namespace, &Purge::tags([a.as_str(), b.as_str()])).await.expect("a purge");
    for key in [&one, &two] {
        assert!(matches!(store.get(key).await, Ok(Found::Invalidated(_))), "{key:?}");
    }
    let elsewhere = Namespace::new("elsewhere", 1).expect("a name");
    let new = fill_tagged(&one, &[&b]).await;
    store.purge(&elsewhere, &Purge::tag(b.as_str())).await.expect("a purge");
    assert_eq!(found(store, &one).await, Some(new), "another namespace");
}

/// Whether what is stored under `key` is fresh; nothing, if nothing answers.
async fn is_fresh(store: &impl Store, key: &EntryKey) -> Option<bool> {
    match store.get(key).await {
        Ok(Found::Entry(entry, _)) => match &entry.content {
            Content::Response(response) => Some(response.is_fresh(store.now())),
            Content::Variants(_) => panic!("{key:?} should be a response"),
        },
        Ok(Found::Absent | Found::Invalidated(_)) => None,
        other => panic!("{key:?} should be there or not: {other:?}"),
    }
}

async fn a_soft_purge_leaves_what_is_stored_stale(store: &impl Store) {
    let (key, tag) = (key(), id().to_string());
    let fill_tagged = async || {
        let ticket = claim(store, &key, Seen::Unreadable).await;
        let entry = tagged(store, &ticket, &[&tag], "x");
        assert_eq!(store.fill(ticket, filling(&key, &entry)).await, Ok(Filled::Stored));
        assert_eq!(is_fresh(store, &key).await, Some(true));
        entry
    };
    for purge in [Purge::key(key.key.clone()).soft(), Purge::tag(tag.as_str()).soft()] {
        let entry = fill_tagged().await;
        let on_its_way = claim(store, &key, Seen::Entry(entry.id)).await;
        store.purge(&key.namespace, &purge.clone().dry_run()).await.expect("a count");
        assert_eq!(is_fresh(store, &key).await, Some(true), "{purge:?}");
        let receipt = store.purge(&key.namespace, &purge).await.expect("a purge");
        assert_eq!(receipt.resources + receipt.tags, 1, "{purge:?}");
        assert_eq!(is_fresh(store, &key).await, Some(false), "{purge:?}");
        let late = tagged(store, &on_its_way, &[&tag], "late");
        let _ = store.fill(on_its_way, filling(&key, &late)).await;
        assert_eq!(is_fresh(store, &key).await, Some(false), "{purge:?}: it was asked for before");
        fill_tagged().await;
    }
    store.purge(&key.namespace, &Purge::tag(tag.as_str())).await.expect("a purge");
    store.purge(&key.namespace, &Purge::tag(tag.as_str()).soft()).await.expect("a purge");
    assert_eq!(is_fresh(store, &key).await, None, "a soft purge brings nothing back");
}

async fn a_soft_purge_reaches_every_variant_that_was_stored(store: &impl Store) {
    let key = key();
    let (_, variant, _) = varying(store, &key, "one").await;
    let receipt = store.purge(&key.namespace, &Purge::key(key.key.clone()).soft()).await.expect("a purge");
    assert_eq!(receipt.resources, 1);
    let Some(entry) = found(store, &key).await else { panic!("the rule should be there") };
    let Content::Variants(rule) = &entry.content else { panic!("a rule: {entry:?}") };
    let Some(one) = found(store, &variant).await else { panic!("the variant should be there") };
    let Content::Response(one) = &one.content else { panic!("a response") };
    assert!(rule.stale_since >= one.received_at, "{rule:?}");
    purge(store, &key).await;
}

async fn what_is_all_goes_at_once(store: &impl Store) {
    let of = |version: u32| Namespace::new("elsewhere", version).expect("a name").entry(key().key);
    let (one, two, other) = (of(1), of(2), key());
    let put = async |key: &EntryKey| {
        let ticket = claim(store, key, Seen::Unreadable).await;
        let entry = tagged(store, &ticket, &[], "x");
        assert_eq!(store.fill(ticket, filling(key, &entry)).await, Ok(Filled::Stored));
    };
    for key in [&one, &two, &other] {
        put(key).await;
    }
    let late = of(1);
    let on_its_way = claim(store, &late, Seen::Absent).await;
    store.purge(&one.namespace, &Purge::all().soft()).await.expect("a purge");
    assert_eq!(is_fresh(store, &one).await, Some(false));
    assert_eq!(is_fresh(store, &two).await, Some(false), "another version of it");
    assert_eq!(is_fresh(store, &other).await, Some(true), "another namespace");
    put(&one).await;
    assert_eq!(is_fresh(store, &one).await, Some(true));
    store.purge(&one.namespace, &Purge::all()).await.expect("a purge");
    assert_eq!((is_fresh(store, &one).await, is_fresh(store, &two).await), (None, None));
    let entry = tagged(store, &on_its_way, &[], "late");
    let _ = store.fill(on_its_way, filling(&late, &entry)).await;
    assert_eq!(is_fresh(store, &late).await, None, "it was asked for before");
    assert_eq!(is_fresh(store, &other).await, Some(true));
    put(&one).await;
    assert_eq!(is_fresh(store, &one).await, Some(true));
    purge(store, &other).await;
}

async fn a_pattern_reaches_what_is_like_it_and_what_is_on_its_way(store: &impl Store) {
    let crowd = key();
    let of = |parts: [&str; 2]| {
        let key = parts.into_iter().fold(crowd.key.clone(), Key::part);
        EntryKey { key, ..crowd.clone() }
    };
    let (one, two, long, other) = (of(["a", "1"]), of(["a", "2 *"]), of(["a", "long"]), of(["b", "1"]));
    let prefix = of(["a", ""]).key.to_string();
    for is_soft in [true, false] {
        for key in [&one, &two, &other] {
            fill(store, key, &response(store, "x")).await;
        }
        fill(store, &long, &response(store, vec![7; 200_000])).await;
        let on_its_way = claim(store, &of(["a", "3"]), Seen::Absent).await;
        let base = of(["a", "4"]);
        varying(store, &base, "x").await;
        let purge_all = if is_soft { Purge::prefix(&prefix).soft() } else { Purge::prefix(&prefix) };
        let counted = store.purge(&one.namespace, &purge_all.clone().dry_run()).await.expect("a count");
        assert_eq!(counted.resources, 4);
        assert_eq!(is_fresh(store, &one).await, Some(true), "it was only counted");
        let receipt = store.purge(&one.namespace, &purge_all).await.expect("a purge");
        assert_eq!(receipt.resources, counted.resources);
        let left = if is_soft { Some(false) } else { None };
        for key in [&one, &two, &long] {
            assert_eq!(is_fresh(store, key).await, left, "{key:?}");
        }
        assert_eq!(found(store, &base).await.is_some(), is_soft);
        assert_eq!(is_fresh(store, &other).await, Some(true));
        let late = on_its_way.key.clone();
        assert_eq!(store.fill(on_its_way, filling(&late, &response(store, "late"))).await, Ok(Filled::Voided));
        store.purge(&one.namespace, &Purge::pattern(&format!("{}*", crowd.key))).await.expect("a purge");
        assert_eq!(is_fresh(store, &other).await, None);
        assert_eq!(found(store, &base).await, None);
    }
}

async fn what_is_being_written_is_not_stored<S: Store, F: Future<Output = ()>>(
    store: &S,
    wait: &impl Fn(Duration) -> F,
) {
    let (base, one, two) = (key(), id(), id());
    let is_marked = async || match store.claim(&base, Seen::Unreadable).await {
        Ok(Claim::Marked) => true,
        Ok(Claim::Granted(ticket)) => {
            store.release(ticket, Unused::NoAnswer).await.expect("a release");
            false
        }
        other => panic!("marked or granted: {other:?}"),
    };
    fill(store, &base, &response(store, "old")).await;
    let on_its_way = claim(store, &base, Seen::Unreadable).await;
    let mark = async |nonce, life| store.mark(&base, nonce, life).await.expect("a mark");
    let end = async |nonce| store.release(written(&base, nonce), Unused::NoAnswer).await.expect("an end");
    assert_eq!(mark(one, Duration::from_secs(60)).await.resources, 1);
    assert_eq!(found(store, &base).await, None);
    assert_eq!(store.fill(on_its_way, filling(&base, &response(store, "old"))).await, Ok(Filled::Voided));
    assert!(is_marked().await);
    mark(two, Duration::from_secs(60)).await;
    end(one).await;
    assert!(is_marked().await, "another is writing");
    for purge in [Purge::key(base.key.clone()), Purge::prefix(base.key.as_str()), Purge::key(base.key.clone()).soft()] {
        store.purge(&base.namespace, &purge).await.expect("a purge");
        assert!(is_marked().await, "a purge does not end it: {purge:?}");
    }
    end(two).await;
    assert!(!is_marked().await);
    mark(one, Duration::from_secs(1)).await;
    assert!(is_marked().await);
    wait(Duration::from_millis(1_100)).await;
    assert!(!is_marked().await, "it has run out");
    assert_eq!(store.renew(&written(&base, one)).await, Ok(false));
    mark(one, Duration::from_secs(1)).await;
    assert_eq!(store.renew(&written(&base, one)).await, Ok(true));
    wait(Duration::from_millis(1_100)).await;
    assert!(is_marked().await, "it was extended");
    end(one).await;
}

/// The ticket of who has marked a resource.
fn written(base: &EntryKey, nonce: EntryId) -> Ticket {
    Ticket { key: base.value(), nonce, born: 0, kind: TicketKind::Write }
}

async fn what_was_written_is_stored_by_whoever_was_alone_with_it(store: &impl Store) {
    let life = Duration::from_secs(60);
    for disturbed in 0..7 {
        let (base, value, one, two) = (key(), response(store, "written"), id(), id());
        let (fills, wrote) = (filling(&base.value(), &value), || written(&base, one));
        if disturbed != 1 {
            store.mark(&base, one, life).await.expect("a mark");
        }
        match disturbed {
            2 => _ = store.mark(&base, two, life).await.expect("a mark"),
            3 => {
                store.mark(&base, two, life).await.expect("a mark");
                store.release(written(&base, two), Unused::NoAnswer).await.expect("an end");
            }
            4 => _ = purge(store, &base).await,
            5 => _ = store.purge(&base.namespace, &Purge::pattern(base.key.as_str())).await.expect("a purge"),
            6 => _ = store.purge(&base.namespace, &Purge::key(base.key.clone()).soft()).await.expect("a purge"),
            _ => assert_eq!(store.renew(&wrote()).await, Ok(disturbed == 0)),
        }
        if disturbed == 2 {
            let late = store.fill(written(&base, two), filling(&base.value(), &value)).await;
            assert_eq!(late, Ok(Filled::Voided), "who came to one that was being written");
        }
        let (expected, left) = if disturbed == 0 { (Filled::Stored, Some(value)) } else { (Filled::Voided, None) };
        assert_eq!(store.fill(wrote(), fills.clone()).await, Ok(expected), "{disturbed}");
        assert_eq!(found(store, &base.value()).await, left, "{disturbed}");
        assert_eq!(store.fill(wrote(), fills).await, Ok(Filled::Voided), "it is spent: {disturbed}");
        drop(claim(store, &base, Seen::Unreadable).await);
    }
}

async fn a_value_lies_beside_the_response_and_is_purged_with_it(store: &impl Store) {
    let key = key();
    let (value, pattern) = (key.value(), Purge::pattern(key.key.as_str()));
    let purges = [Purge::key(key.key.clone()), pattern.clone(), Purge::key(key.key.clone()).soft(), pattern.soft()];
    for purge in purges {
        let (one, other) = (response(store, "a response"), response(store, "a value"));
        let ticket = claim(store, &value, Seen::Absent).await;
        fill(store, &key, &one).await;
        assert_eq!(found(store, &value).await, None, "a response answers for no value");
        assert_eq!(store.fill(ticket, filling(&value, &other)).await, Ok(Filled::Stored));
        assert_eq!((found(store, &key).await, found(store, &value).await), (Some(one.clone()), Some(other.clone())));
        let late = [claim(store, &key, Seen::Entry(one.id)).await, claim(store, &value, Seen::Entry(other.id)).await];

        let receipt = store.purge(&key.namespace, &purge).await.expect("a purge");
        assert_eq!(receipt.resources, 1, "one resource: {purge:?}");
        let left = purge.is_soft.then_some(false);
        assert_eq!((is_fresh(store, &key).await, is_fresh(store, &value).await), (left, left), "{purge:?}");
        for ticket in late {
            let late = filling(&ticket.key, &one);
            assert_eq!(store.fill(ticket, late).await, Ok(Filled::Voided), "{purge:?}");
        }
        store.purge(&key.namespace, &Purge::key(key.key.clone())).await.expect("a purge");
    }
    let (nonce, life) = (id(), Duration::from_secs(5));
    store.mark(&key, nonce, life).await.expect("a mark");
    assert!(matches!(store.claim(&value, Seen::Absent).await, Ok(Claim::Marked)));
    store.release(written(&key, nonce), Unused::NoAnswer).await.expect("an end of the mark");
    drop(claim(store, &value, Seen::Absent).await);
}

async fn a_late_release_leaves_the_successor_alone(store: &impl Store) {
    let key = key();
    let early = claim(store, &key, Seen::Absent).await;
    purge(store, &key).await;
    let successor = claim(store, &key, Seen::Absent).await;
    store.release(early, Unused::NoAnswer).await.expect("a release");
    assert_eq!(store.renew(&successor).await, Ok(true));
    assert_eq!(store.fill(successor, filling(&key, &response(store, "x"))).await, Ok(Filled::Stored));
}

async fn what_was_seen_can_be_replaced_and_what_is_newer_is_given(store: &impl Store) {
    let (key, old, new) = (key(), response(store, "old"), response(store, "new"));
    fill(store, &key, &old).await;
    assert!(matches!(store.claim(&key, Seen::Entry(id())).await, Ok(Claim::Found(there, _)) if there == old));
    let ticket = claim(store, &key, Seen::Entry(old.id)).await;
    assert_eq!(store.fill(ticket, filling(&key, &new)).await, Ok(Filled::Stored));
    assert!(matches!(store.claim(&key, Seen::Entry(old.id)).await, Ok(Claim::Found(there, _)) if there == new));
    let ticket = claim(store, &key, Seen::Unreadable).await;
    store.release(ticket, Unused::NoAnswer).await.expect("a release");
}

/// A resource that varies, with one variant stored: the rule, the variant's key, and its response.
async fn varying(store: &impl Store, key: &EntryKey, body: &'static str) -> (Arc<Entry>, EntryKey, Arc<Entry>) {
    let rule =
        Arc::new(Entry { id: id(), content: Content::Variants(Variants::by(vec![HeaderName::from_static("accept")])) });
    let variant = key.of_variant(VariantId { rule: rule.id, digest: id() });
    let entry = response(store, body);
    let filling = Filling { rule: Some(rule.clone()), ..filling(&variant, &entry) };
    let ticket = claim(store, key, Seen::Absent).await;
    assert_eq!(store.fill(ticket, filling).await, Ok(Filled::Stored));
    (rule, variant, entry)
}

async fn variants_are_reached_through_their_rule(store: &impl Store) {
    let key = key();
    let (rule, variant, entry) = varying(store, &key, "one").await;
    assert_eq!(found(store, &key).await, Some(rule.clone()));
    assert_eq!(found(store, &variant).await, Some(entry.clone()));
    let other = key.of_variant(VariantId { rule: rule.id, digest: id() });
    let two = response(store, "two");
    let ticket = claim(store, &other, Seen::Absent).await;
    assert!(matches!(store.claim(&other, Seen::Absent).await, Ok(Claim::Held)));
    let filled = store.fill(ticket, Filling { rule: Some(rule.clone()), ..filling(&other, &two) }).await;
    assert_eq!(filled, Ok(Filled::Stored));
    assert_eq!(found(store, &other).await, Some(two));
    assert_eq!(found(store, &variant).await, Some(entry));
    assert_eq!(found(store, &key).await, Some(rule));
}

async fn a_purge_voids_the_fills_of_every_variant(store: &impl Store) {
    let key = key();
    let (rule, known, entry) = varying(store, &key, "known").await;
    let new = key.of_variant(VariantId { rule: rule.id, digest: id() });
    let for_known = claim(store, &known, Seen::Entry(entry.id)).await;
    let for_new = claim(store, &new, Seen::Absent).await;
    assert_eq!(purge(store, &key).await, 1);
    for (ticket, key) in [(for_known, &known), (for_new, &new)] {
        let filling = Filling { rule: Some(rule.clone()), ..filling(key, &response(store, "old")) };
        assert_eq!(store.fill(ticket, filling).await, Ok(Filled::Voided));
    }
    assert_eq!(found(store, &key).await, None);
}

async fn what_was_seen_and_is_gone_is_looked_for_anew(store: &impl Store) {
    let key = key();
    let (_, variant, of_variant) = varying(store, &key, "seen").await;
    let (other, seen) = (self::key(), response(store, "seen"));
    fill(store, &other, &seen).await;
    purge(store, &key).await;
    purge(store, &other).await;
    for (key, seen) in [(&variant, of_variant.id), (&other, seen.id)] {
        assert!(matches!(store.claim(key, Seen::Entry(seen)).await, Ok(Claim::Moved)), "{key:?}");
    }
    let ticket = claim(store, &other, Seen::Absent).await;
    assert_eq!(store.fill(ticket, filling(&other, &response(store, "new"))).await, Ok(Filled::Stored));
}

async fn variants_of_a_purged_rule_never_come_back(store: &impl Store) {
    let key = key();
    let (old_rule, old, _) = varying(store, &key, "old").await;
    purge(store, &key).await;
    assert!(matches!(store.claim(&old, Seen::Entry(id())).await, Ok(Claim::Moved | Claim::Found(..))));
    let unknown = key.of_variant(VariantId { rule: old_rule.id, digest: id() });
    assert!(matches!(store.claim(&unknown, Seen::Absent).await, Ok(Claim::Moved)));
    let (new_rule, _, _) = varying(store, &key, "new").await;
    assert_ne!(new_rule.id, old_rule.id);
    assert!(matches!(store.claim(&unknown, Seen::Absent).await, Ok(Claim::Moved)), "another rule is there now");
}

async fn what_is_stored_comes_back_byte_for_byte(store: &impl Store) {
    for length in [0, 1, 4096, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, 200_000, 1 << 20] {
        let body: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
        let mut headers = HeaderMap::new();
        headers.append("link", HeaderValue::from_static("<a>"));
        headers.append("link", HeaderValue::from_static("<b>"));
        headers.append("x-latin", HeaderValue::from_bytes(b"caf\xe9").expect("a value"));
        headers.append("x-empty", HeaderValue::from_static(""));
        let mut entry = (*response(store, body)).clone();
        if let Content::Response(response) = &mut entry.content {
            response.headers = headers;
            response.status = StatusCode::IM_A_TEAPOT;
        }
        let (key, entry) = (key(), Arc::new(entry));
        fill(store, &key, &entry).await;
        assert_eq!(found(store, &key).await, Some(entry), "{length} bytes");
    }
}

async fn namespaces_and_versions_do_not_meet(store: &impl Store) {
    let here = key();
    fill(store, &here, &response(store, "here")).await;
    for (name, version) in [("elsewhere", 1), (here.namespace.name(), here.namespace.version() + 1)] {
        let there = Namespace::new(name, version).expect("a name").entry(here.key.clone());
        assert_eq!(found(store, &there).await, None);
        assert_eq!(purge(store, &there).await, 0);
    }
    assert!(found(store, &here).await.is_some());
}

/// Writers change a value and purge; fillers fetch it, slowly; nobody may then find a value older than the purge.
async fn no_answer_begun_before_a_purge_is_found_after_it(store: &impl Store) {
    let (key, value) = (key(), AtomicU64::new(0));
    let fetch = async |pauses: u32| {
        for round in 0..60 {
            let Ok(Claim::Granted(ticket)) = store.claim(&key, Seen::Unreadable).await else {
                tokio::task::yield_now().await;
                continue;
            };
            let fetched = value.load(Ordering::SeqCst);
            for _ in 0..(round + pauses) % 7 {
                tokio::task::yield_now().await;
            }
            let entry = response(store, fetched.to_be_bytes().to_vec());
            store.fill(ticket, filling(&key, &entry)).await.expect("a fill");
        }
    };
    let change = async || {
        for _ in 0..60 {
            let changed = value.fetch_add(1, Ordering::SeqCst) + 1;
            purge(store, &key).await;
            for _ in 0..5 {
                if let Some(entry) = found(store, &key).await
                    && let Content::Response(response) = &entry.content
                {
                    let seen = u64::from_be_bytes(response.body[..].try_into().expect("eight bytes"));
                    assert!(seen >= changed, "{seen} was found after {changed} had been purged for");
                }
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::join!(fetch(0), fetch(3), fetch(5), change());
}

async fn what_has_had_its_time_is_gone<F: Future<Output = ()>>(store: &impl Store, wait: &impl Fn(Duration) -> F) {
    let (key, entry) = (key(), response(store, "x"));
    let ticket = claim(store, &key, Seen::Absent).await;
    let short = Filling { stored_for: Duration::from_millis(300), ..filling(&key, &entry) };
    assert_eq!(store.fill(ticket, short).await, Ok(Filled::Stored));
    assert!(found(store, &key).await.is_some());
    wait(Duration::from_millis(400)).await;
    assert_eq!(found(store, &key).await, None);
}

async fn a_ticket_lasts_as_long_as_it_is_renewed<F: Future<Output = ()>>(
    store: &impl Store,
    wait: &impl Fn(Duration) -> F,
) {
    let key = key();
    let ticket = claim(store, &key, Seen::Absent).await;
    wait(TICKET_LIFE * 2 / 3).await;
    assert_eq!(store.renew(&ticket).await, Ok(true));
    wait(TICKET_LIFE * 2 / 3).await;
    assert!(matches!(store.claim(&key, Seen::Absent).await, Ok(Claim::Held)));
    wait(TICKET_LIFE).await;
    assert_eq!(store.renew(&ticket).await, Ok(false));
    let successor = claim(store, &key, Seen::Absent).await;
    assert_eq!(store.fill(ticket, filling(&key, &response(store, "late"))).await, Ok(Filled::Voided));
    assert_eq!(store.fill(successor, filling(&key, &response(store, "x"))).await, Ok(Filled::Stored));
}

async fn what_is_not_stored_is_waited_for_by_nobody<F: Future<Output = ()>>(
    store: &impl Store,
    wait: &impl Fn(Duration) -> F,
) {
    let (known, purged) = (key(), key());
    for key in [&known, &purged] {
        let ticket = claim(store, key, Seen::Absent).await;
        store.release(ticket, Unused::Uncacheable).await.expect("a release");
        assert!(matches!(store.claim(key, Seen::Absent).await, Ok(Claim::Uncacheable)));
    }
    purge(store, &purged).await;
    drop(claim(store, &purged, Seen::Absent).await);
    wait(UNCACHEABLE_LIFE + Duration::from_millis(100)).await;
    drop(claim(store, &known, Seen::Absent).await);
}

/// However a ticket ends, who waits for it need not wait for a limit that is longer than anything here takes.
async fn who_waits_for_a_ticket_is_told(store: &impl Store) {
    let key = key();
    let limit = Duration::from_secs(20);
    for end in 0..3 {
        let ticket = claim(store, &key, Seen::Unreadable).await;
        let ended = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            match end {
                0 => store.release(ticket, Unused::NoAnswer).await.expect("a release"),
                1 => assert_eq!(store.fill(ticket, filling(&key, &response(store, "x"))).await, Ok(Filled::Stored)),
                _ => _ = purge(store, &key).await,
            }
        };
        let began = tokio::time::Instant::now();
        tokio::join!(ended, store.turn(&key, limit));
        assert!(began.elapsed() < limit / 2, "{end}: {:?}", began.elapsed());
    }
    let began = tokio::time::Instant::now();
    store.turn(&key, limit).await;
    assert!(began.elapsed() < limit / 2, "nobody holds it");
}
