//! A ticket in the hands of the request that fetches: renewed while it is held, given back when it is not used.

use crate::{
    Cache,
    background::Background,
    store::{AnyStore, TICKET_LIFE, Ticket, Unused},
};
use std::{sync::Arc, time::Duration};
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep},
};

/// Holds a ticket, and renews it each second, for a minute at most. Dropped unused, it gives the ticket back.
pub(crate) struct Lease {
    background: Background,
    store: Arc<dyn AnyStore>,
    ticket: Option<Ticket>,
    /// Why it is given back, if it is not used.
    unused: Unused,
    heartbeat: AbortHandle,
}

impl Lease {
    pub(crate) fn hold(cache: &Cache, ticket: Ticket) -> Self {
        let (store, background) = (cache.store().clone(), cache.background().clone());
        let renewed = Ticket { key: ticket.key.clone(), ..ticket };
        let heartbeat = tokio::spawn(renew(store.clone(), renewed));
        Self { background, store, ticket: Some(ticket), unused: Unused::NoAnswer, heartbeat: heartbeat.abort_handle() }
    }

    /// Gives the ticket back, as the answer is of a kind that is not stored.
    pub(crate) fn give_up(mut self) {
        self.unused = Unused::Uncacheable;
    }

    /// The ticket that is held.
    pub(crate) fn ticket(&self) -> Option<&Ticket> {
        self.ticket.as_ref()
    }

    /// Takes the ticket, to fill with it.
    pub(crate) fn spend(mut self) -> Option<Ticket> {
        self.ticket.take()
    }
}

/// How long a ticket is held at most: a body that never ends must not keep others from storing theirs.
const LONGEST_HELD: Duration = Duration::from_secs(60);

async fn renew(store: Arc<dyn AnyStore>, ticket: Ticket) {
    let taken = Instant::now();
    while taken.elapsed() < LONGEST_HELD {
        sleep(TICKET_LIFE / 3).await;
        // A store that cannot be asked now may be asked again before the ticket runs out.
        if let Ok(false) = store.renew(&ticket).await {
            return;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.heartbeat.abort();
        if let Some(ticket) = self.ticket.take() {
            let (store, unused) = (self.store.clone(), self.unused);
            // A ticket that cannot be given back runs out by itself.
            self.background.run(async move { drop(store.release(ticket, unused).await) });
        }
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("ticket", &self.ticket).finish_non_exhaustive()
    }
}
