//! Write-behind: writes that are accepted by Redis now, and applied to a database later, in order.

mod applier;
mod durable;
mod settings;
mod shard;
mod sink;

pub use settings::{BehindSettings, Durability, OnFailure, WhenFull};
pub use sink::{Failed, Sink, Write};

use crate::{RedisStore, client::Patience, config::ConfigError, fault::Fault, slot::slot};
use applier::Applier;
use bytes::Bytes;
use durable::Durable;
use larder::{
    semantics::{Key, Namespace},
    store::StoreError,
};
use metrics::counter;
use shard::Shard;
use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};
use tokio::{
    sync::OnceCell,
    task::AbortHandle,
    time::{Instant, sleep, timeout},
};

/// How long after it was refused a write is offered again.
const FULL_PAUSE: Duration = Duration::from_millis(20);
/// How often it is looked whether all is applied.
const DRAIN_LOOK: Duration = Duration::from_millis(50);
/// The most dead letters of a shard that are listed at once.
const MOST_LISTED: u32 = 1000;

/// Writes that are accepted by Redis now, and applied later: [`RedisStore::write_behind`] makes it.
///
/// A write is accepted once Redis has it, in a stream, and is found by whoever reads the key from then on. It is applied by one
/// process at a time for each shard, those of one key in the order in which they were accepted, and tried again when that fails;
/// what fails too often is kept among the dead letters. It is forgotten only when it is applied: the death of any process of
/// the program loses none.
///
/// What can still be lost is what Redis itself loses. In memory only ([`Durability::Memory`]), that is whatever it had not yet
/// written to its file when it died: about a second with `appendfsync everysec`, everything without a file. With
/// [`Durability::Aof`] it is nothing, as long as the disk lives. A failover loses what had not reached the replica, which
/// [`Durability::Replicas`] waits for. And a write that was answered with an error, or not at all, may have been accepted all
/// the same. A server that may evict anything (`allkeys-…`) is refused: it would drop writes, and say nothing.
///
/// It is cheap to clone; what it does for others ends with the last clone, and loses nothing then either.
///
/// ```no_run
/// use larder::semantics::{Key, Namespace};
/// use larder_redis::{BehindSettings, Failed, RedisStore, Sink, Write};
///
/// struct Database;
///
/// impl Sink for Database {
///     async fn apply(&self, writes: &[Write]) -> Result<(), Failed> {
///         for write in writes {
///             println!("UPDATE … SET value = {:?}, seq = {} WHERE key = {} AND seq < {1}", write.value, write.seq, write.key);
///         }
///         Ok(())
///     }
/// }
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let store = RedisStore::connect("redis://127.0.0.1:6379").await?;
/// let views = store.write_behind(&Namespace::new("shop", 1)?, "views", BehindSettings::new())?;
/// views.apply_with(Database);
/// views.put(&Key::new("product").part("7"), "42").await?;
/// let left = views.drain(std::time::Duration::from_secs(10)).await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct WriteBehind {
    shared: Arc<Shared>,
}

struct Shared {
    store: RedisStore,
    namespace: Namespace,
    name: String,
    settings: BehindSettings,
    shards: Vec<Shard>,
    /// What is waited for before a write counts as accepted, if anything is.
    durable: Option<Durable>,
    /// Whether the server keeps what it is given.
    checked: OnceCell<()>,
    tasks: Mutex<Vec<AbortHandle>>,
    /// The sink of this process, if it has one.
    direct: OnceLock<Box<Direct>>,
}

/// Applies one write.
type Direct = dyn Fn(Write) -> Pin<Box<dyn Future<Output = Result<(), Failed>> + Send>> + Send + Sync;

/// That a write was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// Tells a later write of a key from an earlier one.
    pub seq: u64,
}

/// What is known of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// Its value, the last that was written or loaded.
    Found(Bytes),
    /// That it has none.
    Gone,
    /// Nothing.
    Missing,
}

/// A write that was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// What was to be written.
    pub write: Write,
    /// Why it could not be.
    pub why: String,
    id: String,
}

/// Why a write was not accepted, or something about writes not done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum BehindError {
    /// As many writes wait as may.
    Full,
    /// It is yet to be applied.
    Dirty,
    /// The server may lose what it is given.
    Unsafe(String),
    /// It was to be applied at once, and could not be.
    Failed(Failed),
    /// Redis cannot be reached, or refuses. What was asked for may have been done.
    Store(StoreError),
}

impl fmt::Display for BehindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("as many writes wait to be applied as may: the sink does not keep up"),
            Self::Dirty => f.write_str("its last write is yet to be applied"),
            Self::Unsafe(why) => f.write_str(why),
            Self::Failed(failed) => write!(f, "it could not be applied: {}", failed.why),
            Self::Store(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for BehindError {}

impl From<Fault> for BehindError {
    fn from(fault: Fault) -> Self {
        Self::Store(fault.into())
    }
}

impl RedisStore {
    /// Writes behind, under keys of `namespace`, apart from those of other names.
    ///
    /// The server must keep what it is given, so it is mostly not the one for what is cached. It is asked at the first write,
    /// which is refused if it may evict what has no end.
    ///
    /// # Errors
    ///
    /// When the name is not of 1 to 64 letters, digits, dots, hyphens and underscores, or the durability is one that cannot be
    /// had from a cluster.
    pub fn write_behind(
        &self,
        namespace: &Namespace,
        name: &str,
        settings: BehindSettings,
    ) -> Result<WriteBehind, ConfigError> {
        if Namespace::new(name, 1).is_err() {
            let problem = format!("{name:?}: it takes 1 to 64 letters, digits, dots, hyphens and underscores");
            return Err(ConfigError { setting: "write_behind", problem });
        }
        let lanes = self.data();
        if settings.durability != Durability::Memory && lanes.is_divided() {
            let problem = format!(
                "{:?}: the files and replicas of a cluster are not waited for; write Durability::Memory",
                settings.durability
            );
            return Err(ConfigError { setting: "durability", problem });
        }
        if settings.durability == Durability::Replicas(0) {
            let problem = "Replicas(0): no replica is nothing to wait for; write Durability::Memory".to_owned();
            return Err(ConfigError { setting: "durability", problem });
        }
        let shards: Vec<_> =
            (0..settings.shards).map(|number| Shard::new(lanes.clone(), namespace, name, number)).collect();
        let durable = Durable::new(settings.durability, self.config().clone(), format!("{}:file", shards[0].prefix));
        let (durable, task) = durable.unzip();
        let tasks = task.into_iter().map(|task| self.runtime().spawn(task).abort_handle()).collect();
        let (namespace, name) = (namespace.clone(), name.to_owned());
        let (store, checked, tasks) = (self.clone(), OnceCell::new(), Mutex::new(tasks));
        let direct = OnceLock::new();
        let shared = Shared { store, namespace, name, settings, shards, durable, checked, tasks, direct };
        Ok(WriteBehind { shared: Arc::new(shared) })
    }
}

impl WriteBehind {
    /// Writes a value, which is found from now on, and applied later.
    ///
    /// # Errors
    ///
    /// When it is not accepted, or that cannot be told.
    pub async fn put(&self, key: &Key, value: impl Into<Bytes>) -> Result<Accepted, BehindError> {
        self.accept(key, Some(value.into())).await
    }

    /// Removes a value: a write like any other.
    ///
    /// # Errors
    ///
    /// As [`put`](Self::put).
    pub async fn remove(&self, key: &Key) -> Result<Accepted, BehindError> {
        self.accept(key, None).await
    }

    /// What is known of a key: the last that was written, applied or not.
    ///
    /// # Errors
    ///
    /// When Redis cannot tell.
    pub async fn get(&self, key: &Key) -> Result<Written, BehindError> {
        Ok(self.shard(key).read(key).await?.into())
    }

    /// The value of a key: what is known, or what `load` brings from where it is kept, which is then known, unless the key is
    /// written meanwhile. A Redis that fails is no error: it is loaded.
    ///
    /// # Errors
    ///
    /// What `load` fails with.
    pub async fn get_or_load<E, Fut>(&self, key: &Key, load: impl FnOnce() -> Fut) -> Result<Option<Bytes>, E>
    where
        Fut: Future<Output = Result<Option<Bytes>, E>>,
    {
        let nonce = nonce();
        let opened = self.shard(key).open(key, &nonce).await;
        if let Ok(shard::Entry { value: Some(value), .. }) = opened {
            return Ok(value);
        }
        let value = load().await?;
        if opened.is_ok() {
            // Whether it is known from now on makes no difference to this caller.
            let _ = self.shard(key).load(key, &nonce, value.as_ref(), self.shared.settings.life).await;
        }
        Ok(value)
    }

    /// Forgets what is known of a key, as it has changed elsewhere.
    ///
    /// # Errors
    ///
    /// [`BehindError::Dirty`] while its last write is not applied; or when Redis cannot be asked.
    pub async fn forget(&self, key: &Key) -> Result<(), BehindError> {
        if self.shard(key).forget(key).await? { Ok(()) } else { Err(BehindError::Dirty) }
    }

    /// Has `sink` apply what is accepted, here or by any other process, while this process lives: each shard in the one
    /// process that holds it. To be called once in each process that is to apply.
    pub fn apply_with<S: Sink>(&self, sink: S) {
        let Shared { store, namespace, name, settings, shards, .. } = &*self.shared;
        let sink = Arc::new(sink);
        let direct = sink.clone();
        // The first that is given is as good as any.
        let _ = self.shared.direct.set(Box::new(move |write| {
            let sink = direct.clone();
            Box::pin(async move { sink.apply(&[write]).await })
        }));
        let mut tasks = self.shared.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        for shard in shards {
            let applier = Applier {
                name: name.clone(),
                interest: store.wakes().listen(namespace, shard.word()),
                shard: shard.clone(),
                sink: sink.clone(),
                settings: settings.clone(),
                nonce: nonce(),
            };
            let leaving = Leaving { shard: shard.clone(), nonce: applier.nonce.clone(), store: store.clone() };
            let task = async move {
                applier.run().await;
                drop(leaving);
            };
            tasks.push(store.runtime().spawn(task).abort_handle());
        }
    }

    /// How many writes wait to be applied.
    ///
    /// # Errors
    ///
    /// When Redis cannot tell.
    pub async fn waiting(&self) -> Result<u64, BehindError> {
        let mut waiting = 0;
        for shard in &self.shared.shards {
            waiting += shard.count().await?.0;
        }
        Ok(waiting)
    }

    /// Waits until all is applied that has been accepted, by whichever process, and returns how much is left after `limit`;
    /// nothing, if Redis cannot tell. For the end of a program; what is left is applied by another process, or later.
    pub async fn drain(&self, limit: Duration) -> Option<u64> {
        let began = Instant::now();
        loop {
            let waiting = self.waiting().await.ok();
            if waiting == Some(0) || began.elapsed() >= limit {
                return waiting;
            }
            sleep(DRAIN_LOOK).await;
        }
    }

    /// The writes that were given up, those of one shard in their order, at most a thousand of each.
    ///
    /// # Errors
    ///
    /// When Redis cannot tell.
    pub async fn dead_letters(&self) -> Result<Vec<DeadLetter>, BehindError> {
        let mut letters = Vec::new();
        for shard in &self.shared.shards {
            let buried = shard.buried("0-0", MOST_LISTED).await?;
            letters.extend(buried.into_iter().map(|(id, write, why)| DeadLetter { write, why, id }));
        }
        Ok(letters)
    }

    /// Has a write tried again that was given up, unless its key was written since: then it is dropped, and this is `false`.
    ///
    /// # Errors
    ///
    /// When Redis cannot be asked.
    pub async fn retry(&self, letter: &DeadLetter) -> Result<bool, BehindError> {
        let raised = self.shard(&letter.write.key).raise(&letter.id, &letter.write.key, "retry").await?;
        Ok(raised.unwrap_or(false))
    }

    /// Drops a write that was given up; unless its key was written since, nothing is known of it then.
    ///
    /// # Errors
    ///
    /// When Redis cannot be asked.
    pub async fn discard(&self, letter: &DeadLetter) -> Result<(), BehindError> {
        self.shard(&letter.write.key).raise(&letter.id, &letter.write.key, "discard").await?;
        Ok(())
    }

    fn shard(&self, key: &Key) -> &Shard {
        let shards = &self.shared.shards;
        &shards[slot(key.as_str().as_bytes()) % shards.len()]
    }

    async fn accept(&self, key: &Key, value: Option<Bytes>) -> Result<Accepted, BehindError> {
        let Shared { settings, checked, durable, .. } = &*self.shared;
        checked.get_or_try_init(|| self.check()).await?;
        let began = Instant::now();
        let seq = loop {
            match (self.shard(key).put(key, value.as_ref(), settings.longest).await?, settings.when_full) {
                (Some(seq), _) => break seq,
                (None, WhenFull::Wait(limit)) if began.elapsed() < limit => sleep(FULL_PAUSE).await,
                (None, WhenFull::WriteThrough) if self.shared.direct.get().is_some() => {
                    return self.through(key, value).await;
                }
                (None, _) => {
                    self.count("refused");
                    return Err(BehindError::Full);
                }
            }
        };
        if let Some(durable) = durable {
            durable.kept().await.map_err(BehindError::Store)?;
        }
        self.count("accepted");
        Ok(Accepted { seq })
    }

    /// Applies a write at once, past those that wait.
    async fn through(&self, key: &Key, value: Option<Bytes>) -> Result<Accepted, BehindError> {
        let (shard, settings) = (self.shard(key), &self.shared.settings);
        let (Some(apply), seq) = (self.shared.direct.get(), shard.number().await?) else {
            return Err(BehindError::Full);
        };
        let write = Write { key: key.clone(), seq, value, attempts: 0 };
        let applied = timeout(settings.longest_apply, apply(write.clone())).await;
        applied.unwrap_or_else(|_| Err(Failed::all("it took too long"))).map_err(BehindError::Failed)?;
        // If it cannot be told, it is loaded by who asks next, once what is known has had its time.
        let _ = shard.applied(&write, settings.life).await;
        self.count("through");
        Ok(Accepted { seq })
    }

    /// Asks the server whether it keeps what it is given.
    async fn check(&self) -> Result<(), BehindError> {
        let settings = &self.shared.settings;
        if !settings.checks {
            return Ok(());
        }
        for lane in self.shared.store.data().each()? {
            let mut info = String::new();
            for section in ["memory", "persistence"] {
                let arguments = vec![Bytes::from_static(section.as_bytes())];
                match lane.call(Patience::Write, "INFO", None, arguments).await {
                    Ok(reply) => info.push_str(&String::from_utf8_lossy(&reply.into_bytes().unwrap_or_default())),
                    Err(fault) if fault.is("NOPERM") => {}
                    Err(fault) => return Err(fault.into()),
                }
            }
            judge(&info, settings.durability).map_err(BehindError::Unsafe)?;
        }
        Ok(())
    }

    fn count(&self, outcome: &'static str) {
        counter!("larder.behind.writes", "behind" => self.shared.name.clone(), "outcome" => outcome).increment(1);
    }
}

/// Judges `INFO memory` and `INFO persistence`: what may lose writes, and how to mend it.
fn judge(info: &str, durability: Durability) -> Result<(), String> {
    let field =
        |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim_end));
    let Some(policy) = field("maxmemory_policy") else {
        return Err(
            "the server may not be asked whether it evicts: give the user +info, or write unchecked()".to_owned()
        );
    };
    if policy.starts_with("allkeys-") && field("maxmemory") != Some("0") {
        return Err(format!(
            "maxmemory-policy is {policy}, under which Redis may drop writes that wait: CONFIG SET maxmemory-policy \
             noeviction, or volatile-lru, on a server of its own"
        ));
    }
    if durability == Durability::Aof && field("aof_enabled") != Some("1") {
        return Err(
            "there is no append-only file, and Durability::Aof asks for one: CONFIG SET appendonly yes".to_owned()
        );
    }
    Ok(())
}

/// Leaves a shard to others when its task ends, however it does.
struct Leaving {
    shard: Shard,
    nonce: String,
    store: RedisStore,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let (shard, nonce, store) = (self.shard.clone(), self.nonce.clone(), self.store.clone());
        self.store.runtime().spawn(async move {
            // If it fails, the lease runs out.
            let _ = shard.leave(&nonce).await;
            // The connection ends with the last who has the store.
            drop(store);
        });
    }
}

fn nonce() -> String {
    format!("{:032x}", fastrand::u128(..))
}

impl From<shard::Entry> for Written {
    fn from(entry: shard::Entry) -> Self {
        match entry.value {
            Some(Some(value)) => Self::Found(value),
            Some(None) => Self::Gone,
            None => Self::Missing,
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let tasks = self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner);
        tasks.iter().for_each(AbortHandle::abort);
    }
}

impl fmt::Debug for WriteBehind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { namespace, name, settings, .. } = &*self.shared;
        f.debug_struct("WriteBehind")
            .field("namespace", namespace)
            .field("name", name)
            .field("settings", settings)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_may_lose_writes_is_refused_and_told_why() {
        let info = |policy, maxmemory, aof| {
            format!("maxmemory:{maxmemory}\r\nmaxmemory_policy:{policy}\r\naof_enabled:{aof}\r\n")
        };
        for (info, durability, problem) in [
            (info("noeviction", 0, 0), Durability::Memory, None),
            (info("volatile-lru", 100, 0), Durability::Memory, None),
            (info("allkeys-lru", 0, 0), Durability::Memory, None),
            (info("allkeys-lru", 100, 1), Durability::Memory, Some("maxmemory-policy is allkeys-lru")),
            (info("allkeys-random", 100, 1), Durability::Aof, Some("maxmemory-policy is allkeys-random")),
            (info("noeviction", 100, 0), Durability::Aof, Some("appendonly yes")),
            (info("noeviction", 100, 1), Durability::Aof, None),
            (String::new(), Durability::Memory, Some("unchecked()")),
        ] {
            let judged = judge(&info, durability).err();
            assert_eq!(judged.is_some(), problem.is_some(), "{info:?}: {judged:?}");
            assert!(judged.unwrap_or_default().contains(problem.unwrap_or_default()));
        }
    }
}
