//! A store in Redis that lacks one part of the protocol: a measurement that finds no fault with it finds none with anything.

use crate::{pages::connection, process::Outcome};
use fred::prelude::{Client, EventInterface, PubsubInterface};
use larder::{
    semantics::{EntryId, EntryKey, Key, Namespace, Timestamp, exchange::Filling},
    store::{Claim, Filled, Found, Listener, Purge, Receipt, Seen, Selector, Store, StoreError, Ticket, Unused},
};
use larder_redis::RedisStore;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// The store, and what it lacks.
pub struct Flawed {
    redis: RedisStore,
    lack: Lack,
}

enum Lack {
    /// What was fetched is stored whether its ticket is void or not.
    Tickets,
    /// What others purge is told on a channel, and what is not heard there is never asked for.
    Log(Channel),
}

impl Flawed {
    /// A store that stores whatever was fetched.
    pub fn without_tickets(redis: RedisStore) -> Self {
        Self { redis, lack: Lack::Tickets }
    }

    /// A store that tells and hears what is to be removed from near tiers by PUBLISH and SUBSCRIBE only, over connections of
    /// its own to the same address, and vouches for that for ever. What is read from Redis itself is judged as ever.
    ///
    /// # Errors
    ///
    /// When Redis cannot be reached.
    pub async fn without_log(redis: RedisStore, address: &str) -> Outcome<Self> {
        let channel = Channel { telling: connection(address).await?, hearing: connection(address).await? };
        Ok(Self { redis, lack: Lack::Log(channel) })
    }
}

/// Where purges are told, as caches do that have no log.
#[derive(Clone)]
struct Channel {
    telling: Client,
    hearing: Client,
}

impl Channel {
    const NAME: &str = "purged";

    async fn tell(&self, selector: &Selector, at: u64) -> Result<(), StoreError> {
        let told = self.telling.publish::<(), _, _>(Self::NAME, message(selector, at)).await;
        told.map_err(|error| StoreError::Unavailable(error.to_string()))
    }

    /// Passes on what is told, and subscribes anew with each connection.
    async fn hear(self, listener: Arc<dyn Listener>) {
        let (mut messages, mut connections) = (self.hearing.message_rx(), self.hearing.reconnect_rx());
        loop {
            // It fails when the connection breaks, and there will be another.
            let _ = self.hearing.subscribe(Self::NAME).await;
            loop {
                tokio::select! {
                    heard = messages.recv() => {
                        let text = heard.ok().and_then(|message| message.value.into_string());
                        if let Some((selector, at)) = text.as_deref().and_then(parse) {
                            listener.invalidated(&selector, at);
                        }
                    }
                    _ = connections.recv() => break,
                }
            }
        }
    }
}

/// Writes `<clock> k<key>` or `<clock> t<tag>`: the measurements purge by one of either.
fn message(selector: &Selector, at: u64) -> String {
    match selector {
        Selector::Key(key) => format!("{at} k{key}"),
        Selector::Tags(tags) => format!("{at} t{}", tags.concat()),
        _ => String::new(),
    }
}

fn parse(text: &str) -> Option<(Selector, u64)> {
    let (at, what) = text.split_once(' ')?;
    let selector = match what.split_at_checked(1)? {
        ("k", key) => Selector::Key(Key::from_stored(key.to_owned())),
        (_, tag) => Selector::Tags(vec![tag.to_owned()]),
    };
    Some((selector, at.parse().ok()?))
}

impl Store for Flawed {
    async fn fill(&self, ticket: Ticket, filling: Filling) -> Result<Filled, StoreError> {
        let key = ticket.key.clone();
        let filled = self.redis.fill(ticket, filling.clone()).await?;
        if filled == Filled::Stored || !matches!(self.lack, Lack::Tickets) {
            return Ok(filled);
        }
        // What a void ticket does not let in comes in with a new one, as if there were none.
        match self.redis.claim(&key, Seen::Changing).await? {
            Claim::Granted(ticket) => self.redis.fill(ticket, filling).await,
            _ => Ok(filled),
        }
    }

    async fn purge(&self, namespace: &Namespace, purge: &Purge) -> Result<Receipt, StoreError> {
        let receipt = self.redis.purge(namespace, purge).await?;
        if let Lack::Log(channel) = &self.lack {
            channel.tell(&purge.selector, receipt.clock).await?;
        }
        Ok(receipt)
    }

    fn follow(&self, namespace: &Namespace, listener: Arc<dyn Listener>) {
        match &self.lack {
            Lack::Tickets => self.redis.follow(namespace, listener),
            Lack::Log(channel) => {
                const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);
                listener.vouched(Instant::now() + FOR_EVER);
                tokio::spawn(channel.clone().hear(listener));
            }
        }
    }

    fn now(&self) -> Timestamp {
        self.redis.now()
    }

    async fn get(&self, key: &EntryKey) -> Result<Found, StoreError> {
        self.redis.get(key).await
    }

    async fn claim(&self, key: &EntryKey, seen: Seen) -> Result<Claim, StoreError> {
        self.redis.claim(key, seen).await
    }

    async fn renew(&self, ticket: &Ticket) -> Result<bool, StoreError> {
        self.redis.renew(ticket).await
    }

    async fn release(&self, ticket: Ticket, why: Unused) -> Result<(), StoreError> {
        self.redis.release(ticket, why).await
    }

    async fn turn(&self, key: &EntryKey, limit: Duration) {
        self.redis.turn(key, limit).await;
    }

    fn staleness_bound(&self) -> Duration {
        self.redis.staleness_bound()
    }

    fn tells(&self) -> bool {
        self.redis.tells()
    }

    async fn supersede(&self, ticket: &Ticket) -> Result<bool, StoreError> {
        self.redis.supersede(ticket).await
    }

    async fn mark(&self, resource: &EntryKey, nonce: EntryId, life: Duration) -> Result<Receipt, StoreError> {
        self.redis.mark(resource, nonce, life).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.redis.probe().await
    }

    async fn reconnected(&self) {
        self.redis.reconnected().await;
    }
}
