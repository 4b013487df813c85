//! A cache without waiting: the steps of `semantics` in the order in which the engine takes them, over a map.

use super::messages::Exchange;
use bytes::Bytes;
use http::{HeaderMap, Request, header::CONTENT_LENGTH, response};
use larder::semantics::{
    Asked, Caching, Entry, EntryId, EntryKey, Filling, Forward, Hit, Intake, Key, Namespace, Outcome, Policy, Reason,
    Received, Selected, Timestamp,
    exchange::{Answer, Gap, Joined, Rest, ask_for_all},
    signature::{Signature, Tells},
};
use std::{collections::HashMap, sync::Arc, time::Duration};

/// What is stored of one resource.
pub(crate) struct Shelf {
    policy: Policy,
    base: EntryKey,
    pub(crate) entries: HashMap<EntryKey, Arc<Entry>>,
    ids: u64,
}

/// How a request was answered.
pub(crate) enum Served {
    /// From what is stored.
    Hit(Answer),
    /// From what is stored, once the origin was asked, and confirmed it or failed.
    Confirmed(Answer),
    /// By the origin, whose answer is now stored.
    Stored,
    /// By the origin, whose answer is not stored.
    Passed,
    /// With 504, as only what is stored would have done.
    Unsatisfied,
}

/// The policy under which most is stored: for a minute, whoever asks.
pub(crate) fn generous() -> Policy {
    let mut policy = Policy::default();
    policy.lifetime_override = Some(Duration::from_secs(60));
    policy.jitter = 0.0;
    policy.share_with_cookies = true;
    policy.share_with_authorization = true;
    policy
}

impl Shelf {
    pub(crate) fn new(policy: Policy) -> Self {
        let base = Namespace::default().entry(Key::new("resource"));
        Self { policy, base, entries: HashMap::new(), ids: 0 }
    }

    /// What is stored as the resource's own entry.
    pub(crate) fn base(&self) -> Option<&Entry> {
        self.entries.get(&self.base).map(|entry| &**entry)
    }

    /// Answers a request. `body` is that of the origin, should it be asked.
    pub(crate) fn serve(&mut self, exchange: &Exchange, body: &Bytes) -> Served {
        let Exchange { request, arrival, .. } = exchange;
        let Intake::Lookup(lookup) = Intake::of(request, &self.policy) else {
            return Served::Passed;
        };
        let mut key = self.base.clone();
        let mut selected = lookup.select(self.entries.get(&key).cloned(), &request.headers, arrival.now, arrival.seed);
        if let Selected::Variant(lookup, variant) = selected {
            key = key.of_variant(variant);
            selected = lookup.select(self.entries.get(&key).cloned(), &request.headers, arrival.now, arrival.seed);
        }
        match selected {
            Selected::Hit(hit) => Served::Hit(answer(hit, arrival.now)),
            Selected::Refresh(hit, forward) => {
                let mut whole = Request::from_parts(request.clone(), ());
                ask_for_all(&mut whole);
                self.ask(forward, key, whole.headers(), exchange, body);
                Served::Hit(answer(hit, arrival.now))
            }
            Selected::Forward(forward) => self.ask(forward, key, &request.headers, exchange, body),
            Selected::Unsatisfied => Served::Unsatisfied,
            Selected::Variant(..) => panic!("a variant of a variant"),
        }
    }

    /// Asks the origin for what was looked for at `key`.
    fn ask(
        &mut self,
        forward: Forward,
        key: EntryKey,
        headers: &HeaderMap,
        exchange: &Exchange,
        body: &Bytes,
    ) -> Served {
        let Exchange { request, arrival, .. } = exchange;
        let (response, body) = &answered(&forward, headers, &self.policy, exchange, body);
        let _ = forward.fail(headers, &self.policy, arrival.now, arrival.seed);
        let authority = Asked::authority_of(request);
        let asked = Asked { key: self.base.clone(), authority, headers: headers.clone() };
        match forward.receive(asked, response, &Caching::default(), &self.policy, *arrival) {
            Received::Store(admission) => {
                let length = body.len() as u64;
                if length > admission.limit() || admission.announced().is_some_and(|announced| announced != length) {
                    return Served::Passed;
                }
                let (id, rule) = (self.id(), self.id());
                self.put(admission.complete(body.clone(), arrival.delay, 0, id, rule));
                Served::Stored
            }
            Received::Freshened(hit, admitted) => {
                if let Ok(admission) = admitted {
                    let (id, rule) = (self.id(), self.id());
                    self.put(admission.freshened(0, id, rule));
                }
                Served::Confirmed(answer(hit, arrival.now))
            }
            Received::Stale(hit, throttled) => {
                let id = self.id();
                self.put(throttled.filling(key, id));
                Served::Confirmed(answer(hit, arrival.now))
            }
            Received::Pass(_) => Served::Passed,
            Received::Replaced(_) => {
                self.entries.clear();
                Served::Passed
            }
        }
    }

    fn put(&mut self, filling: Filling) {
        if let Some(rule) = filling.rule {
            self.entries.insert(filling.key.base(), rule);
        }
        self.entries.insert(filling.key, filling.response);
    }

    /// An id that no other entry has.
    fn id(&mut self) -> EntryId {
        self.ids += 1;
        EntryId(u128::from(self.ids).to_be_bytes())
    }
}

/// What the origin answers to a request that was prepared: put together with what is stored, if it was asked for the rest.
fn answered(
    forward: &Forward,
    headers: &HeaderMap,
    policy: &Policy,
    exchange: &Exchange,
    body: &Bytes,
) -> (response::Parts, Bytes) {
    let mut head = Request::new(()).into_parts().0;
    head.headers = headers.clone();
    forward.prepare(&mut head, policy);
    let Some(rest) = head.extensions.remove::<Rest>() else { return (exchange.response.clone(), body.clone()) };
    rest.ask(&mut head.headers);
    assert!(head.headers.contains_key("range"), "the rest is asked for");
    match rest.join(exchange.response.clone()) {
        Joined::Whole(response, Gap { before, length, after }) if length == body.len() as u64 => {
            let whole = Bytes::from([before, body.clone(), after].concat());
            let told = response.headers.get(CONTENT_LENGTH).and_then(|told| told.to_str().ok()?.parse().ok());
            assert_eq!((response.status.as_u16(), told), (200, Some(whole.len())), "{response:?}");
            (response, whole)
        }
        _ => (exchange.response.clone(), body.clone()),
    }
}

fn answer(hit: Hit, now: Timestamp) -> Answer {
    let outcome = Outcome::Hit { reason: Reason::Near, ttl: hit.ttl(now) };
    hit.answer(Signature { identifier: "larder", outcome, tells: Tells::Nothing }, now)
}
