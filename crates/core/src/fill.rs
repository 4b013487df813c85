//! Keeps a body while it streams to its clients, and offers it to the store when it is whole.

use crate::{Cache, background::Background, engine::Grant, flights::Release, share::Fetched, store::Filled};
use bytes::{Bytes, BytesMut};
use larder_semantics::{Admission, EntryId, Filling, Refusal, exchange::Throttled};
use std::time::Duration;
use tokio::time::Instant;

/// The right to store one body, and what it is to be stored as.
pub(crate) struct Fill {
    cache: Cache,
    admission: Box<Admission>,
    grant: Box<Grant>,
    asked_at: Instant,
    length: u64,
    ids: Ids,
}

/// Fresh ids for what is stored, and for the rule it varies by.
#[derive(Clone, Copy)]
struct Ids {
    response: EntryId,
    rule: EntryId,
}

impl Ids {
    fn draw() -> Self {
        let id = || EntryId(fastrand::u128(..).to_be_bytes());
        Self { response: id(), rule: id() }
    }
}

impl Fill {
    /// Begins to keep the answer to a request that was forwarded at `asked_at`.
    pub(crate) fn begin(cache: Cache, admission: Box<Admission>, grant: Box<Grant>, asked_at: Instant) -> Box<Self> {
        Box::new(Self { cache, admission, grant, asked_at, length: 0, ids: Ids::draw() })
    }

    pub(crate) fn background(&self) -> &Background {
        self.cache.background()
    }

    /// Gives those who wait what comes, while it comes.
    pub(crate) fn share(&self, fetched: Fetched) {
        if let Some(lead) = self.grant.lead.as_ref().filter(|_| self.admission.is_told_by_its_head()) {
            lead.bring(fetched);
        }
    }

    /// What will be stored, but for its body; none where that decides on it.
    pub(crate) fn preview(&self) -> Option<Filling> {
        let Ids { response, rule } = self.ids;
        let admission = (*self.admission).clone();
        self.admission.is_told_by_its_head().then(|| admission.freshened(self.grant.born(), response, rule))
    }

    /// Takes note of so many bytes; gives up when there are more than are stored.
    pub(crate) fn take_note(mut self: Box<Self>, length: usize) -> Option<Box<Self>> {
        self.length = self.length.saturating_add(length as u64);
        if self.length > self.admission.limit() {
            self.refuse(Refusal::TooLarge);
            return None;
        }
        Some(self)
    }

    /// The body is whole: those who wait get it, and the store is offered it. Nobody waits for the store.
    pub(crate) fn complete<'p>(self, pieces: impl Iterator<Item = &'p Bytes>) {
        if self.admission.announced().is_some_and(|announced| announced != self.length) {
            return self.refuse(Refusal::LengthMismatch);
        }
        let Self { cache, admission, grant, asked_at, length, ids } = self;
        let mut body = BytesMut::with_capacity(usize::try_from(length).unwrap_or_default());
        pieces.for_each(|piece| body.extend_from_slice(piece));
        let filling = admission.complete(body.freeze(), asked_at.elapsed(), grant.born(), ids.response, ids.rule);
        store(cache, filling, *grant);
    }

    pub(crate) fn refuse(self, refusal: Refusal) {
        self.cache.refuse(self.grant, refusal);
    }
}

/// Offers a stored response that the origin has confirmed to the store anew.
pub(crate) fn freshen(cache: Cache, admission: Admission, grant: Grant) {
    let ids = Ids::draw();
    store(cache, admission.freshened(grant.born(), ids.response, ids.rule), grant);
}

/// Stores anew what is held of an origin that has failed, with the time until which it is spared, and gives it to those who
/// wait.
pub(crate) fn throttle(cache: Cache, throttled: Throttled, grant: Grant) {
    let filling = throttled.filling(grant.key.clone(), Ids::draw().response);
    store(cache, filling, grant);
}

/// Gives a response to those who wait for it, and offers it to the store.
fn store(cache: Cache, filling: Filling, grant: Grant) {
    let Grant { lead, lease, .. } = grant;
    if let Some(lead) = &lead {
        lead.land(Fetched::Whole(filling.clone()));
    }
    let Some(ticket) = lease.and_then(|lease| lease.spend()) else {
        return;
    };
    let background = cache.background().clone();
    background.run(async move {
        let refusal = match cache.store().fill(ticket, filling).await {
            Ok(Filled::Stored) => return cache.observer().stored(),
            Ok(Filled::Voided) => Refusal::TicketLost,
            Err(_) => Refusal::StoreRefused,
        };
        cache.observer().skipped(refusal);
        // Until here, whoever comes gets what was just fetched.
        drop(lead);
    });
}

/// How long the responses of a resource count as uncacheable after one was refused.
pub(crate) const UNCACHEABLE_FOR: Duration = Duration::from_secs(60);

/// What the followers of a refused answer are to do.
pub(crate) fn release_after(refusal: Refusal) -> Release {
    match refusal {
        Refusal::Aborted | Refusal::LengthMismatch => Release::Compete,
        _ => Release::GoAlone,
    }
}
