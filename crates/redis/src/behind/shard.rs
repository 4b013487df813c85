//! What Redis is told of one shard, and what it answers.

use super::Write;
use crate::{
    client::{Patience, Reply},
    fault::Fault,
    lane::Script,
    lanes::Lanes,
};
use bytes::Bytes;
use larder::semantics::{Key, Namespace};
use std::{sync::Arc, sync::LazyLock, time::Duration};

static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("shard.lua")));

/// How long whoever applies the writes of a shard has it to itself without saying so again.
pub(super) const LEASE: Duration = Duration::from_secs(3);
/// How long whoever loads a value may take to store it.
const TICKET_LIFE: Duration = Duration::from_secs(60);
/// The longest that it is known that a key has no value.
const LONGEST_GONE: Duration = Duration::from_secs(15);
/// The version of what is written into a shard's stream.
const WIRE: &str = "1";

/// One shard.
#[derive(Clone)]
pub(super) struct Shard {
    pub(super) lanes: Arc<Lanes>,
    /// What all its keys begin with: in braces what puts them into one slot.
    pub(super) prefix: String,
    /// Where it is told that there is something to apply.
    pub(super) channel: String,
}

/// A write that waits, as it was taken.
#[derive(Debug, Clone)]
pub(super) struct Message {
    /// Where it stands in the stream.
    pub(super) id: String,
    /// None, if it is of a version that this build does not know.
    pub(super) write: Option<Write>,
}

/// What came of asking for writes to apply.
pub(super) enum Taken {
    /// Another process applies those of this shard.
    Held,
    /// Those that are there, and where to go on among those that were taken before, if there are more.
    Messages(Vec<Message>, String),
}

/// What is known of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Nothing, if nothing is known; no value, if there is none.
    pub(super) value: Option<Option<Bytes>>,
    pub(super) is_dirty: bool,
}

impl Shard {
    pub(super) fn new(lanes: Arc<Lanes>, namespace: &Namespace, name: &str, number: u16) -> Self {
        let prefix = format!("{}:v{}:behind:{{{name}:{number}}}", namespace.name(), namespace.version());
        Self { lanes, prefix, channel: crate::wake::channel(namespace) }
    }

    /// What is said on the channel when there is something to apply.
    pub(super) fn word(&self) -> String {
        self.key("log")
    }

    fn key(&self, what: &str) -> String {
        format!("{}:{what}", self.prefix)
    }

    fn entry(&self, key: &Key) -> String {
        format!("{}:entry:{key}", self.prefix)
    }

    /// Accepts a write; none, if as many wait as may.
    pub(super) async fn put(&self, key: &Key, value: Option<&Bytes>, most: u32) -> Result<Option<u64>, Fault> {
        let keys = [self.key("clock"), self.key("log"), self.entry(key)];
        let arguments = [
            text(key),
            mode(value),
            value.cloned().unwrap_or_default(),
            text(most),
            text(&self.channel),
            text(self.word()),
        ];
        let answer = self.run(Patience::Write, "put", &keys, &arguments).await?;
        match answer.as_slice() {
            [word, seq] if word == "accepted" => parse(seq).map(Some),
            [word] if word == "full" => Ok(None),
            _ => Err(unexpected()),
        }
    }

    /// The number of a write that is to be applied past those that wait.
    pub(super) async fn number(&self) -> Result<u64, Fault> {
        let answer = self.run(Patience::Write, "number", &[self.key("clock")], &[]).await?;
        answer.first().ok_or_else(unexpected).and_then(parse)
    }

    /// A write has been applied past those that wait.
    pub(super) async fn applied(&self, write: &Write, life: Duration) -> Result<(), Fault> {
        let life = if write.value.is_some() { life } else { life.min(LONGEST_GONE) };
        let value = write.value.as_ref();
        let arguments =
            [text(&write.key), text(write.seq), mode(value), value.cloned().unwrap_or_default(), millis(life)];
        self.run(Patience::Write, "applied", &[self.entry(&write.key)], &arguments).await.map(drop)
    }

    pub(super) async fn take(&self, nonce: &str, most: u32, from: &str) -> Result<Taken, Fault> {
        let keys = [self.key("lease"), self.key("log")];
        let arguments = [text(nonce), millis(LEASE), text(most), text(from)];
        let answer = self.run(Patience::Write, "take", &keys, &arguments).await?;
        let (next, messages) = match answer.as_slice() {
            [word] if word == "held" => return Ok(Taken::Held),
            [word, next, messages @ ..] if word == "taken" => (utf8(next)?, messages),
            _ => return Err(unexpected()),
        };
        let messages = messages.chunks(7).map(Message::read).collect::<Result<Vec<_>, _>>()?;
        Ok(Taken::Messages(messages, next))
    }

    /// Whether the shard is still this process'.
    pub(super) async fn keep(&self, nonce: &str) -> Result<bool, Fault> {
        let answer = self.run(Patience::Write, "keep", &[self.key("lease")], &[text(nonce), millis(LEASE)]).await?;
        Ok(answer.first().is_some_and(|word| word == "kept"))
    }

    /// Leaves the shard to another process at once.
    pub(super) async fn leave(&self, nonce: &str) -> Result<(), Fault> {
        let arguments = [text(nonce), text(&self.channel), text(self.word())];
        self.run(Patience::Write, "leave", &[self.key("lease")], &arguments).await.map(drop)
    }

    /// Writes have been applied.
    pub(super) async fn done(&self, messages: &[Message], life: Duration) -> Result<(), Fault> {
        let (mut keys, mut arguments) = (vec![self.key("log")], vec![millis(life), millis(life.min(LONGEST_GONE))]);
        for Message { id, write } in messages {
            let Some(write) = write else { continue };
            keys.push(self.entry(&write.key));
            arguments.extend([text(id), text(write.seq), text(keys.len())]);
        }
        self.run(Patience::Write, "done", &keys, &arguments).await.map(drop)
    }

    /// Notes how often a write was tried.
    pub(super) async fn tried(&self, id: &str, attempts: u32) -> Result<(), Fault> {
        // Being taken counts as one.
        let arguments = [text(id), text(attempts.saturating_add(1))];
        self.run(Patience::Write, "tried", &[self.key("log")], &arguments).await.map(drop)
    }

    /// Gives a write up.
    pub(super) async fn bury(&self, id: &str, why: &str) -> Result<(), Fault> {
        let keys = [self.key("log"), self.key("dead")];
        self.run(Patience::Write, "bury", &keys, &[text(id), text(why)]).await.map(drop)
    }

    /// The writes that were given up, after the one with this id, and why.
    pub(super) async fn buried(&self, after: &str, most: u32) -> Result<Vec<(String, Write, String)>, Fault> {
        let answer = self.run(Patience::Write, "buried", &[self.key("dead")], &[text(after), text(most)]).await?;
        let read = |parts: &[Bytes]| {
            let [id, key, seq, op, value, why] = parts else { return Err(unexpected()) };
            Ok((utf8(id)?, write(key, seq, op, value, 0)?, utf8(why)?))
        };
        answer.chunks(6).map(read).collect()
    }

    /// Tries a write again that was given up, or drops it; whether it was still the last of its key.
    pub(super) async fn raise(&self, id: &str, key: &Key, what: &'static str) -> Result<Option<bool>, Fault> {
        let keys = [self.key("dead"), self.key("log"), self.entry(key)];
        let arguments = [text(id), text(what), text(&self.channel), text(self.word())];
        let answer = self.run(Patience::Write, "raise", &keys, &arguments).await?;
        match answer.first().map(AsRef::as_ref) {
            Some(b"raised") => Ok(Some(true)),
            Some(b"superseded") => Ok(Some(false)),
            Some(b"none") => Ok(None),
            _ => Err(unexpected()),
        }
    }

    /// How many writes wait, and how many were given up.
    pub(super) async fn count(&self) -> Result<(u64, u64), Fault> {
        let answer = self.run(Patience::Read, "count", &[self.key("log"), self.key("dead")], &[]).await?;
        let [waiting, dead] = answer.as_slice() else { return Err(unexpected()) };
        Ok((parse(waiting)?, parse(dead)?))
    }

    pub(super) async fn read(&self, key: &Key) -> Result<Entry, Fault> {
        let answer = self.run(Patience::Read, "read", &[self.entry(key)], &[]).await?;
        Entry::read(&answer, key)
    }

    /// The same; where nothing is known, `nonce` gives the right to say.
    pub(super) async fn open(&self, key: &Key, nonce: &str) -> Result<Entry, Fault> {
        let arguments = [text(key), text(nonce), millis(TICKET_LIFE)];
        let answer = self.run(Patience::Read, "open", &[self.entry(key)], &arguments).await?;
        Entry::read(&answer, key)
    }

    pub(super) async fn load(
        &self,
        key: &Key,
        nonce: &str,
        value: Option<&Bytes>,
        life: Duration,
    ) -> Result<bool, Fault> {
        let life = if value.is_some() { life } else { life.min(LONGEST_GONE) };
        let arguments = [text(nonce), millis(life), mode(value), value.cloned().unwrap_or_default()];
        let answer = self.run(Patience::Write, "load", &[self.entry(key)], &arguments).await?;
        Ok(answer.first().is_some_and(|word| word == "stored"))
    }

    /// Forgets a value; whether it may be: not while it is not applied.
    pub(super) async fn forget(&self, key: &Key) -> Result<bool, Fault> {
        let answer = self.run(Patience::Purge, "forget", &[self.entry(key)], &[]).await?;
        Ok(answer.first().is_some_and(|word| word == "forgotten"))
    }

    async fn run(
        &self,
        patience: Patience,
        operation: &'static str,
        keys: &[String],
        arguments: &[Bytes],
    ) -> Result<Vec<Bytes>, Fault> {
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let answer = self.lanes.run_of(&SCRIPT, patience, operation, &keys, arguments).await?;
        let parts = answer.into_iter().next().and_then(Reply::into_array).ok_or_else(unexpected)?;
        parts.into_iter().map(|part| part.into_bytes().ok_or_else(unexpected)).collect()
    }
}

impl Message {
    fn read(parts: &[Bytes]) -> Result<Self, Fault> {
        let [id, taken, wire, key, seq, op, value] = parts else { return Err(unexpected()) };
        let taken = u32::try_from(parse(taken)?).unwrap_or(u32::MAX);
        let write = if wire == WIRE { write(key, seq, op, value, taken.saturating_sub(1)).ok() } else { None };
        Ok(Self { id: utf8(id)?, write })
    }
}

impl Entry {
    fn read(answer: &[Bytes], key: &Key) -> Result<Self, Fault> {
        let [name, _, kind, value, dirty] = answer else { return Err(unexpected()) };
        if !kind.is_empty() && name != key.as_str() {
            return Err(Fault::Foreign);
        }
        let value = match kind.as_ref() {
            b"value" => Some(Some(value.clone())),
            b"gone" => Some(None),
            _ => None,
        };
        Ok(Self { value, is_dirty: !dirty.is_empty() })
    }
}

fn write(key: &Bytes, seq: &Bytes, op: &Bytes, value: &Bytes, attempts: u32) -> Result<Write, Fault> {
    let value = match op.as_ref() {
        b"s" => Some(value.clone()),
        b"r" => None,
        _ => return Err(unexpected()),
    };
    Ok(Write { key: Key::from_stored(utf8(key)?), seq: parse(seq)?, value, attempts })
}

fn mode(value: Option<&Bytes>) -> Bytes {
    Bytes::from_static(if value.is_some() { b"s" } else { b"r" })
}

fn millis(time: Duration) -> Bytes {
    text(time.as_millis().max(1))
}

fn text(value: impl ToString) -> Bytes {
    Bytes::from(value.to_string())
}

fn utf8(bytes: &Bytes) -> Result<String, Fault> {
    String::from_utf8(bytes.to_vec()).map_err(|_| unexpected())
}

fn parse(bytes: &Bytes) -> Result<u64, Fault> {
    std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()).ok_or_else(unexpected)
}

fn unexpected() -> Fault {
    Fault::Server("ERR the reply of a shard has an unexpected form".to_owned())
}
