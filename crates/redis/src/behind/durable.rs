//! Waiting until what was written is in Redis' file, or has reached its replicas: on a connection of its own, which waits for
//! all who do at the same time.

use super::Durability;
use crate::{
    RedisStore,
    client::{Patience, Reply},
    config::RedisConfig,
    fault::Fault,
};
use bytes::Bytes;
use larder::store::StoreError;
use std::future::Future;
use tokio::sync::{mpsc, oneshot};

/// How many milliseconds Redis may take: it writes its file once a second, mostly.
const PATIENCE: &str = "1500";

type Waiter = oneshot::Sender<Result<(), StoreError>>;

/// Those who wait until what they have written is kept as they ask.
#[derive(Debug, Clone)]
pub(super) struct Durable(mpsc::UnboundedSender<Waiter>);

impl Durable {
    /// What is waited for, and the task that does; nothing, where Redis' memory is enough.
    pub(super) fn new(
        durability: Durability,
        config: RedisConfig,
        key: String,
    ) -> Option<(Self, impl Future<Output = ()> + Send + 'static)> {
        let waiting = Waiting::of(durability)?;
        let (asking, waiters) = mpsc::unbounded_channel();
        Some((Self(asking), wait(waiting, config, key, waiters)))
    }

    /// Waits until all is kept that Redis had before.
    pub(super) async fn kept(&self) -> Result<(), StoreError> {
        let (told, written) = oneshot::channel();
        let asked = self.0.send(told);
        let ended = || StoreError::Unavailable("the store's runtime has ended".to_owned());
        asked.map_err(|_| ended())?;
        written.await.unwrap_or_else(|_| Err(ended()))
    }
}

/// How Redis is told to wait.
struct Waiting {
    command: &'static str,
    words: Vec<String>,
    /// How many copies it has to count.
    copies: i64,
}

impl Waiting {
    fn of(durability: Durability) -> Option<Self> {
        let (command, words, copies) = match durability {
            Durability::Memory => return None,
            Durability::Aof => ("WAITAOF", vec!["1".to_owned(), "0".to_owned()], 1),
            Durability::Replicas(copies) => ("WAIT", vec![copies.to_string()], copies.into()),
        };
        Some(Self { command, words: words.into_iter().chain([PATIENCE.to_owned()]).collect(), copies })
    }

    /// Redis waits for what this connection has written: so it writes something first, after all that it waits for.
    async fn wait(&self, store: &RedisStore, key: &str) -> Result<(), StoreError> {
        let words =
            |words: &[&str]| words.iter().map(|word| Bytes::copy_from_slice(word.as_bytes())).collect::<Vec<_>>();
        let lanes = store.data();
        lanes.call(Patience::Write, "SET", 0, words(&[key, "1", "PX", "60000"])).await?;
        let asked: Vec<&str> = self.words.iter().map(String::as_str).collect();
        let reply = lanes.call(Patience::Purge, self.command, 0, words(&asked)).await?;
        // WAIT tells one number, WAITAOF two, of which the first counts the server's own file.
        let copies = match reply {
            Reply::Number(copies) => Some(copies),
            reply => reply.into_array().unwrap_or_default().first().and_then(|first| match first {
                Reply::Number(copies) => Some(*copies),
                _ => None,
            }),
        };
        match copies {
            Some(copies) if copies >= self.copies => Ok(()),
            Some(_) => Err(StoreError::Timeout),
            None => Err(Fault::Foreign.into()),
        }
    }
}

async fn wait(waiting: Waiting, config: RedisConfig, key: String, mut waiters: mpsc::UnboundedReceiver<Waiter>) {
    let mut store = None;
    while let Some(first) = waiters.recv().await {
        let mut together = vec![first];
        while let Ok(another) = waiters.try_recv() {
            together.push(another);
        }
        let kept = match &store {
            Some(store) => waiting.wait(store, &key).await,
            None => match RedisStore::connect(config.clone()).await {
                Ok(made) => waiting.wait(store.insert(made), &key).await,
                Err(error) => Err(StoreError::Unavailable(error.to_string())),
            },
        };
        for waiter in together {
            let _ = waiter.send(kept.clone());
        }
    }
}
