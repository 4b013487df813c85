//! Copies a body while it streams to the client, and offers the copy to the store when it is whole.

use crate::{Cache, background, engine::Grant, flights::Release, store::Filled};
use bytes::{Bytes, BytesMut};
use http_body::Frame;
use larder_semantics::{Admission, EntryId, Filling, Refusal};
use std::time::Duration;
use tokio::time::Instant;

/// The copy of one body, and the right to store it.
pub(crate) struct Fill {
    cache: Cache,
    admission: Box<Admission>,
    grant: Box<Grant>,
    copy: BytesMut,
    asked_at: Instant,
}

/// The most that is reserved for a body before any of it has come, whatever length it announces.
const MOST_RESERVED: u64 = 64 << 10;

impl Fill {
    /// Begins a copy of the answer to a request that was forwarded at `asked_at`.
    pub(crate) fn begin(cache: Cache, admission: Box<Admission>, grant: Box<Grant>, asked_at: Instant) -> Box<Self> {
        if let Some(lead) = &grant.lead {
            lead.arriving();
        }
        let reserved = admission.announced().unwrap_or_default().min(MOST_RESERVED);
        let copy = BytesMut::with_capacity(usize::try_from(reserved).unwrap_or_default());
        Box::new(Self { cache, admission, grant, copy, asked_at })
    }

    /// Takes note of what the body yields; `None` when the copy is done with, complete or not.
    pub(crate) fn take_note<E>(mut self: Box<Self>, polled: &Option<Result<Frame<Bytes>, E>>) -> Option<Box<Self>> {
        let refusal = match polled {
            None => {
                self.complete();
                return None;
            }
            Some(Err(_)) => Refusal::Aborted,
            Some(Ok(frame)) => match frame.data_ref() {
                None => Refusal::Trailers,
                Some(data) if (self.copy.len() + data.len()) as u64 > self.admission.limit() => Refusal::TooLarge,
                Some(data) => {
                    self.copy.extend_from_slice(data);
                    return Some(self);
                }
            },
        };
        self.refuse(refusal);
        None
    }

    /// The body is whole: those who wait get it, and the store is offered it. Nobody waits for the store.
    pub(crate) fn complete(self) {
        if self.admission.announced().is_some_and(|announced| announced != self.copy.len() as u64) {
            return self.refuse(Refusal::LengthMismatch);
        }
        let Self { cache, admission, grant, copy, asked_at } = self;
        let (id, rule) = (EntryId(fastrand::u128(..).to_be_bytes()), EntryId(fastrand::u128(..).to_be_bytes()));
        let filling = admission.complete(copy.freeze(), asked_at.elapsed(), grant.born(), id, rule);
        store(cache, filling, *grant);
    }

    fn refuse(self, refusal: Refusal) {
        self.cache.refuse(self.grant, refusal);
    }
}

/// Offers a stored response that the origin has confirmed to the store anew.
pub(crate) fn freshen(cache: Cache, admission: Admission, grant: Grant) {
    let (id, rule) = (EntryId(fastrand::u128(..).to_be_bytes()), EntryId(fastrand::u128(..).to_be_bytes()));
    store(cache, admission.freshened(grant.born(), id, rule), grant);
}

/// Gives a response to those who wait for it, and offers it to the store.
fn store(cache: Cache, filling: Filling, grant: Grant) {
    let Grant { lead, lease, .. } = grant;
    if let Some(lead) = &lead {
        lead.land(filling.clone());
    }
    let Some(ticket) = lease.and_then(|lease| lease.spend()) else {
        return;
    };
    background::run(async move {
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
