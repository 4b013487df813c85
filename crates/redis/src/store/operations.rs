//! What the operations of the contract are as commands to Redis.

use super::place::{CHANGE, Place};
use crate::{
    chunks::{LARGEST_WHOLE, Manifest},
    client::{Patience, Reply},
    clock::Clock,
    decoded::Decoded,
    fault::Fault,
    lanes::Lanes,
    log::Logs,
    measures::Measures,
    pending::Pending,
    sweep::Sweep,
};
use bytes::{Bytes, BytesMut};
use larder::{
    codec,
    semantics::{Entry, EntryId, EntryKey, Namespace, Pattern, exchange::Filling, stored::Content, tags::Standing},
    store::{
        Claim, Copied, Filled, Found, MARK_LIFE, Purge, Receipt, Seen, Selector, StoreError, TICKET_LIFE, Ticket,
        TicketKind, UNCACHEABLE_LIFE, Unreadable, Unused,
    },
};
use std::{sync::Arc, time::Duration};
use tokio::{runtime::Handle, sync::Semaphore, time::timeout};

/// After what time a purge is deferred, if it may be.
const DEFERRED_AFTER: Duration = Duration::from_millis(1_500);
/// The longest that anything is stored; beyond some length, Redis refuses.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How much longer than their entry its chunks live, so that they outlast whoever has just read the manifest.
const CHUNKS_OUTLIVE: u64 = 10_000;
/// The memory that is set aside for an entry in chunks before any is read: the default limit of bodies, and a head.
const USUAL: usize = (1 << 20) + (16 << 10);
/// How many chunks of one entry are in flight at the same time.
const ABREAST: u32 = 4;

/// What the operations need that run in tasks of their own.
pub(super) struct Core {
    /// For everything that is small.
    pub(super) data: Arc<Lanes>,
    /// For the chunks of large entries, behind which nothing small is to wait.
    pub(super) bulk: Arc<Lanes>,
    pub(super) clock: Arc<Clock>,
    pub(super) decoded: Decoded,
    pub(super) logs: Logs,
    /// Purges that are yet to be done.
    pub(super) pending: Arc<Pending>,
    /// Whether those that cannot be done are left to be.
    pub(super) defers: bool,
    pub(super) measures: Arc<Measures>,
    pub(super) scan_rate: u32,
    pub(super) compress_from: usize,
    pub(super) reads: Semaphore,
    /// Apart from the reads: were they to take all there is, nobody could claim what they all miss.
    pub(super) others: Arc<Semaphore>,
    pub(super) fill_bytes: Arc<Semaphore>,
}

/// What a claim came to, on its way to whoever asked. If nobody takes it, its ticket is given back.
pub(super) struct Offer {
    pub(super) claim: Option<Claim>,
    pub(super) core: Arc<Core>,
    pub(super) runtime: Handle,
}

impl Drop for Offer {
    fn drop(&mut self) {
        if let Some(Claim::Granted(ticket)) = self.claim.take() {
            let core = Arc::clone(&self.core);
            self.runtime.spawn(async move {
                // When it fails, the ticket runs out.
                let _ = core.release(&ticket, Unused::NoAnswer).await;
            });
        }
    }
}

impl Core {
    /// Reads an entry, and whether its tags still let it answer.
    pub(super) async fn get_valid(&self, key: &EntryKey, name: &str) -> Result<Found, Fault> {
        match self.get(name).await? {
            Found::Entry(entry, copied) => self.judge(&key.namespace, entry, copied).await,
            found => Ok(found),
        }
    }

    /// What invalidations have left of an entry.
    async fn judge(&self, namespace: &Namespace, entry: Arc<Entry>, copied: Copied) -> Result<Found, Fault> {
        let Content::Response(response) = &entry.content else { return Ok(Found::Entry(entry, copied)) };
        let log = self.logs.of(namespace);
        let standing = match log.known_standing(&response.tags, response.born) {
            Some(standing) => standing,
            // Boxed, as it is rare, and large enough to tell in every other read.
            None => Box::pin(log.standing(&response.tags, response.born)).await?,
        };
        Ok(match standing {
            Standing::Valid => Found::Entry(entry, copied),
            Standing::StaleSince(at) => Found::Entry(Arc::new(entry.stale_since(at)), copied),
            Standing::Gone => Found::Invalidated(entry.id),
        })
    }

    pub(super) async fn get(&self, name: &str) -> Result<Found, Fault> {
        let key = Bytes::copy_from_slice(name.as_bytes());
        let bytes = match self.data.get(key).await {
            Ok(Reply::Bytes(bytes)) => bytes,
            Ok(Reply::Nil) => return Ok(Found::Absent),
            Err(fault) if fault.is("WRONGTYPE") => return Ok(Found::Unreadable(Unreadable::Foreign)),
            Ok(_) | Err(Fault::Foreign) => {
                self.data.foreign(name);
                return Ok(Found::Unreadable(Unreadable::OtherKey));
            }
            Err(fault) => return Err(fault),
        };
        Ok(match self.read(name, bytes).await? {
            Ok(entry) => Found::Entry(entry, Copied::Far),
            Err(unreadable) => {
                if unreadable == Unreadable::OtherKey {
                    self.data.foreign(name);
                }
                Found::Unreadable(unreadable)
            }
        })
    }

    /// Reads the entry in what was found under `name`.
    pub(super) async fn read(&self, name: &str, bytes: Bytes) -> Result<Result<Arc<Entry>, Unreadable>, Fault> {
        if !Manifest::is_in(&bytes) {
            return Ok(self.decoded.decode(bytes, name));
        }
        match Manifest::decode(&bytes, name) {
            // Boxed, as it is four times as large as the rest, and rare.
            Ok(manifest) => Ok(Box::pin(self.join(name, &manifest)).await?.map(Arc::new)),
            Err(unreadable) => Ok(Err(unreadable)),
        }
    }

    /// Puts together an entry that is in chunks.
    pub(super) async fn join(&self, name: &str, manifest: &Manifest) -> Result<Result<Entry, Unreadable>, Fault> {
        // Beyond the usual, it grows with what is really there: the manifest's word is not enough.
        let mut entry = BytesMut::with_capacity(usize::try_from(manifest.length).unwrap_or(0).min(USUAL));
        for first in (0..manifest.chunks).step_by(ABREAST as usize) {
            let chunk = |ahead| self.chunk(name, manifest, first.saturating_add(ahead));
            let (one, two, three, four) = tokio::join!(chunk(0), chunk(1), chunk(2), chunk(3));
            for piece in [one?, two?, three?, four?] {
                match piece {
                    Ok(piece) => entry.extend_from_slice(&piece),
                    Err(unreadable) => return Ok(Err(unreadable)),
                }
            }
        }
        let entry = codec::decode(entry.freeze(), name);
        let entry = entry.and_then(|entry| if entry.id == manifest.id { Ok(entry) } else { Err(Unreadable::Corrupt) });
        Ok(match manifest.stale_since {
            Some(at) => entry.map(|entry| entry.stale_since(at)),
            None => entry,
        })
    }

    /// Reads one chunk; nothing, beyond the last.
    pub(super) async fn chunk(
        &self,
        name: &str,
        manifest: &Manifest,
        index: u32,
    ) -> Result<Result<Bytes, Unreadable>, Fault> {
        if index >= manifest.chunks {
            return Ok(Ok(Bytes::new()));
        }
        let key = Bytes::from(manifest.chunk_name(name, index));
        let piece = match self.bulk.get(key).await {
            Ok(Reply::Bytes(bytes)) => manifest.piece(&bytes, index),
            Ok(Reply::Nil) => return Ok(Err(Unreadable::Truncated)),
            Err(fault) if fault.is("WRONGTYPE") => return Ok(Err(Unreadable::Foreign)),
            Ok(_) | Err(Fault::Foreign) => Err(Unreadable::OtherKey),
            Err(fault) => return Err(fault),
        };
        if piece == Err(Unreadable::OtherKey) {
            self.bulk.foreign(name);
            // The entry itself is this key's; what it lacks is a chunk.
            return Ok(Err(Unreadable::Truncated));
        }
        Ok(piece)
    }

    pub(super) async fn claim(&self, key: &EntryKey, nonce: EntryId, seen: Seen) -> Result<Claim, StoreError> {
        self.admits()?;
        // Before the ticket is placed, and so before the origin is asked.
        let born = self.logs.of(&key.namespace).clock().await?;
        let kind = kind(seen);
        let place = if kind == TicketKind::Change { Place::of_field(key, CHANGE.to_owned()) } else { Place::of(key) };
        let rule = key.variant().map(|variant| Bytes::copy_from_slice(&variant.rule.0)).unwrap_or_default();
        let mut seen = match seen {
            Seen::Absent => Bytes::new(),
            Seen::Entry(id) => Bytes::copy_from_slice(&id.0),
            Seen::Unreadable | Seen::Changing => UNREADABLE,
        };
        let keys = [place.tickets.as_str(), &place.name, &place.base, &place.marks];
        loop {
            let had_seen = !seen.is_empty();
            let arguments = [place.field.clone(), text(nonce), ticket_life(), seen, rule.clone()];
            let mut answer = self.data.run(Patience::Read, "claim", &keys, &arguments).await?.into_iter();
            match (word(answer.next())?.as_ref(), answer.next()) {
                (b"granted", None) => return Ok(Claim::Granted(Ticket { key: key.clone(), nonce, born, kind })),
                (b"held", None) => return Ok(Claim::Held),
                (b"moved", None) => return Ok(Claim::Moved),
                (b"marked", None) => return Ok(Claim::Marked),
                (b"uncacheable", None) => return Ok(Claim::Uncacheable),
                (b"found", Some(Reply::Bytes(bytes))) => {
                    // For what cannot be read, the script grants a ticket or says who has it; so it does for what is
                    // invalidated, unless that has been replaced.
                    seen = match self.read(&place.name, bytes).await? {
                        Err(_) => UNREADABLE,
                        Ok(entry) => match self.judge(&key.namespace, entry, Copied::Far).await? {
                            Found::Entry(entry, copied) => return Ok(Claim::Found(entry, copied)),
                            Found::Invalidated(id) if !had_seen => Bytes::copy_from_slice(&id.0),
                            _ => return Ok(Claim::Moved),
                        },
                    };
                }
                _ => return Err(unexpected()),
            }
        }
    }

    pub(super) async fn renew(&self, place: &Place, nonce: EntryId, kind: TicketKind) -> Result<bool, StoreError> {
        let answer = if kind == TicketKind::Write {
            let arguments = [text(nonce), text(MARK_LIFE.as_millis())];
            self.data.run(Patience::Write, "remark", &[&place.marks], &arguments).await?
        } else {
            let arguments = [place.field.clone(), text(nonce), ticket_life()];
            self.data.run(Patience::Write, "renew", &[&place.tickets], &arguments).await?
        };
        match word(answer.into_iter().next())?.as_ref() {
            b"renewed" => Ok(true),
            b"void" => Ok(false),
            _ => Err(unexpected()),
        }
    }

    pub(super) async fn fill(&self, ticket: &Ticket, filling: &Filling) -> Result<Filled, StoreError> {
        let (place, name) = (Place::of_ticket(ticket), filling.key.name());
        let life = filling.stored_for.clamp(Duration::from_millis(1), LONGEST);
        let life = u64::try_from(life.as_millis()).unwrap_or(u64::MAX);
        let mut entry = codec::encode_compressed(&filling.response, &name, self.compress_from);
        if entry.len() > LARGEST_WHOLE {
            let manifest = Manifest::of(filling.response.id, &entry);
            Box::pin(self.cut(&name, &manifest, &entry, life.saturating_add(CHUNKS_OUTLIVE))).await?;
            entry = manifest.encode(&name);
        }
        if ticket.kind == TicketKind::Write {
            return self.conclude(ticket, &place, &name, text(life), entry).await;
        }
        let mut keys = vec![place.tickets.as_str(), &name];
        let mut arguments = vec![place.field, text(ticket.nonce), text(life), entry];
        if let Some(rule) = &filling.rule {
            keys.push(&place.base);
            arguments.push(codec::encode(rule, &place.base));
        }
        let answer = self.data.run(Patience::Write, "fill", &keys, &arguments).await?;
        match word(answer.into_iter().next())?.as_ref() {
            b"stored" => {
                self.know_tags(filling).await;
                Ok(Filled::Stored)
            }
            b"void" => Ok(Filled::Voided),
            _ => Err(unexpected()),
        }
    }

    /// Stores what was written, and tells others, who may be fetching what was there before.
    pub(super) async fn conclude(
        &self,
        ticket: &Ticket,
        place: &Place,
        name: &str,
        life: Bytes,
        entry: Bytes,
    ) -> Result<Filled, StoreError> {
        let arguments = [text(ticket.nonce), life, entry];
        let answer = self.data.run(Patience::Write, "conclude", &[&place.marks, name], &arguments).await?;
        match word(answer.into_iter().next())?.as_ref() {
            b"stored" => {
                self.logs.of(&ticket.key.namespace).tell(&Selector::Key(ticket.key.key.clone()), false).await?;
                Ok(Filled::Stored)
            }
            b"void" => Ok(Filled::Voided),
            _ => Err(unexpected()),
        }
    }

    /// Writes the chunks of an entry. They are nothing to anyone before their manifest is there.
    pub(super) async fn cut(&self, name: &str, manifest: &Manifest, entry: &Bytes, life: u64) -> Result<(), Fault> {
        let life = text(life);
        let chunk = async |index: u32| {
            if index >= manifest.chunks {
                return Ok(());
            }
            let key = Bytes::from(manifest.chunk_name(name, index));
            let arguments = vec![key, manifest.cut(entry, index), Bytes::from_static(b"PX"), life.clone()];
            self.bulk.call(Patience::Write, "SET", 0, arguments).await.map(drop)
        };
        for first in (0..manifest.chunks).step_by(ABREAST as usize) {
            let ahead = |ahead| chunk(first.saturating_add(ahead));
            tokio::try_join!(ahead(0), ahead(1), ahead(2), ahead(3))?;
        }
        Ok(())
    }

    /// Leaves word that somebody waits for a ticket; whether there is one to wait for.
    pub(super) async fn leave_word(&self, place: &Place, channel: String) -> Result<bool, StoreError> {
        let arguments = [place.field.clone(), Bytes::from(channel)];
        let answer = self.data.run(Patience::Read, "await", &[&place.tickets], &arguments).await?;
        match word(answer.into_iter().next())?.as_ref() {
            b"held" => Ok(true),
            b"free" => Ok(false),
            _ => Err(unexpected()),
        }
    }

    pub(super) async fn release(&self, ticket: &Ticket, why: Unused) -> Result<(), StoreError> {
        let (place, nonce) = (Place::of_ticket(ticket), ticket.nonce);
        if ticket.kind == TicketKind::Write {
            self.data.run(Patience::Purge, "unmark", &[&place.marks], &[text(nonce)]).await?;
            return Ok(());
        }
        let mark = match why {
            Unused::NoAnswer => Bytes::from_static(b"0"),
            Unused::Uncacheable => text(UNCACHEABLE_LIFE.as_millis()),
        };
        let arguments = [place.field.clone(), text(nonce), mark];
        self.data.run(Patience::Write, "release", &[&place.tickets], &arguments).await?;
        Ok(())
    }

    /// Has a record made for each tag of what was stored, so that the first to read it finds them.
    pub(super) async fn know_tags(&self, filling: &Filling) {
        if let Content::Response(response) = &filling.response.content
            && !response.tags.is_empty()
            && let Err(fault) = self.logs.of(&filling.key.namespace).know(&response.tags).await
        {
            tracing::debug!(?fault, "the records of tags are left to whoever reads them");
        }
    }

    /// Refuses what is read while there is no connection, or while purges wait that it may be about.
    pub(super) fn admits(&self) -> Result<(), StoreError> {
        self.data.admits()?;
        if self.pending.is_waiting() {
            return Err(StoreError::Unavailable("purges are yet to be done".to_owned()));
        }
        Ok(())
    }

    pub(super) fn defer(&self, namespace: &Namespace, purge: &Purge) -> Receipt {
        self.pending.add(namespace, purge);
        Receipt { is_deferred: true, ..Receipt::default() }
    }

    pub(super) async fn purge_or_defer(&self, namespace: &Namespace, purge: &Purge) -> Result<Receipt, StoreError> {
        if !self.defers {
            return self.purge(namespace, purge).await;
        }
        // Sooner than whoever asks gives up.
        let is_long = matches!(purge.selector, Selector::Pattern(_));
        let purged = if is_long {
            self.purge(namespace, purge).await
        } else {
            timeout(DEFERRED_AFTER, self.purge(namespace, purge)).await.unwrap_or(Err(StoreError::Timeout))
        };
        match purged {
            Err(error) if error.is_outage() && !purge.is_dry => Ok(self.defer(namespace, purge)),
            purged => purged,
        }
    }

    /// Removes first, and tells others then.
    pub(super) async fn purge(&self, namespace: &Namespace, purge: &Purge) -> Result<Receipt, StoreError> {
        let Purge { selector, is_soft, is_dry } = purge;
        let log = self.logs.of(namespace);
        let resources = match selector {
            Selector::Pattern(pattern) if *is_dry => self.sweep(namespace, pattern).count().await?,
            _ if *is_dry => 0,
            Selector::Pattern(pattern) => self.sweep(namespace, pattern).purge(*is_soft).await?,
            Selector::Key(key) => self.purge_key(&Place::of(&namespace.entry(key.clone())), *is_soft).await?,
            _ => {
                let done = log.invalidate(selector, *is_soft).await?;
                self.pending.remember(namespace, purge);
                let tags = if let Selector::Tags(tags) = selector { tags.len() as u64 } else { 0 };
                return Ok(Receipt { tags, clock: done.clock, logged: Some(done.logged), ..Receipt::default() });
            }
        };
        let logged = if *is_dry { None } else { Some(log.tell(selector, *is_soft).await?) };
        if !is_dry {
            self.pending.remember(namespace, purge);
        }
        Ok(Receipt { resources, logged, ..Receipt::default() })
    }

    pub(super) fn sweep<'s>(&'s self, namespace: &'s Namespace, pattern: &'s Pattern) -> Sweep<'s> {
        Sweep { lanes: &self.bulk, namespace, pattern, rate: self.scan_rate, measures: &self.measures }
    }

    pub(super) async fn mark(&self, resource: EntryKey, nonce: EntryId, life: Duration) -> Result<Receipt, StoreError> {
        let (place, log) = (Place::of(&resource), self.logs.of(&resource.namespace));
        let clock = log.clock().await?;
        let keys = [place.tickets.as_str(), &place.base, &place.value, &place.marks];
        let life = life.clamp(Duration::from_millis(1), LONGEST);
        let arguments = [Bytes::from_static(b"hard"), text(nonce), text(life.as_millis())];
        let answer = self.data.run(Patience::Purge, "mark", &keys, &arguments).await?;
        let had = word(answer.into_iter().next())? == "had";
        let logged = log.tell(&Selector::Key(resource.key), false).await?;
        Ok(Receipt { resources: u64::from(had), clock, logged: Some(logged), ..Receipt::default() })
    }

    pub(super) async fn purge_key(&self, place: &Place, is_soft: bool) -> Result<u64, StoreError> {
        let mode = Bytes::from_static(if is_soft { b"soft" } else { b"hard" });
        let keys = [place.tickets.as_str(), &place.base, &place.value, &place.marks];
        let answer = match self.data.run(Patience::Purge, "purge", &keys, &[mode]).await {
            Err(fault) if fault.is("TRYAGAIN") => return Ok(self.purge_key_by_key(place).await?),
            answer => answer?,
        };
        match word(answer.into_iter().next())?.as_ref() {
            b"had" => Ok(1),
            b"none" => Ok(0),
            _ => Err(unexpected()),
        }
    }

    /// Purges a resource of which a cluster has moved one key to another server, and not yet the rest: no script runs there.
    ///
    /// The tickets first: no fill that was in flight is stored after that, and what was stored before goes with the entry.
    pub(super) async fn purge_key_by_key(&self, place: &Place) -> Result<u64, Fault> {
        let unlink = async |key: &str| {
            let key = Bytes::copy_from_slice(key.as_bytes());
            self.data.call(Patience::Purge, "UNLINK", 0, vec![key]).await
        };
        unlink(&place.tickets).await?;
        self.data.run(Patience::Purge, "disturb", &[&place.marks], &[]).await?;
        let had = unlink(&place.base).await? == Reply::Number(1);
        let had_value = unlink(&place.value).await? == Reply::Number(1);
        Ok(u64::from(had || had_value))
    }

    pub(super) async fn supersede(&self, place: &Place, nonce: EntryId) -> Result<bool, StoreError> {
        let arguments = [place.field.clone(), text(nonce), ticket_life()];
        let keys = [place.tickets.as_str(), &place.base, &place.value, &place.marks];
        let answer = self.data.run(Patience::Write, "supersede", &keys, &arguments).await?;
        match word(answer.into_iter().next())?.as_ref() {
            b"superseded" => Ok(true),
            b"void" => Ok(false),
            _ => Err(unexpected()),
        }
    }

    pub(super) async fn probe(&self, key: Option<&String>) -> Result<(), Fault> {
        self.data.ping().await?;
        if let Some(key) = key {
            let key = Bytes::copy_from_slice(key.as_bytes());
            match self.data.get(key).await {
                Err(fault) if !fault.is("WRONGTYPE") => return Err(fault),
                _ => {}
            }
        }
        Ok(())
    }
}

pub(super) fn kind(seen: Seen) -> TicketKind {
    if seen == Seen::Changing { TicketKind::Change } else { TicketKind::Fetch }
}

/// What the claim's script takes for [`Seen::Unreadable`]; no id is one byte long.
const UNREADABLE: Bytes = Bytes::from_static(b"*");

fn ticket_life() -> Bytes {
    text(TICKET_LIFE.as_millis())
}

fn text(value: impl ToString) -> Bytes {
    Bytes::from(value.to_string())
}

/// The word in which a script says what it did.
fn word(reply: Option<Reply>) -> Result<Bytes, StoreError> {
    reply.and_then(Reply::into_bytes).ok_or_else(unexpected)
}

/// The echo was right and the rest is not, which no script of larder's does.
fn unexpected() -> StoreError {
    StoreError::Refused("a script's reply has an unexpected form".to_owned())
}
