//! Waiting until what was written is in Redis' file: on a connection of its own, which waits for all who do at the same time.

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

/// How many milliseconds Redis may take to have written its file: it does so once a second, mostly.
const PATIENCE: &str = "1500";

type Waiter = oneshot::Sender<Result<(), StoreError>>;

/// Those who wait until what they have written is in the file.
#[derive(Debug, Clone)]
pub(super) struct File(mpsc::UnboundedSender<Waiter>);

impl File {
    /// What is waited for, and the task that does.
    pub(super) fn new(config: RedisConfig, key: String) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (asking, waiters) = mpsc::unbounded_channel();
        (Self(asking), wait(config, key, waiters))
    }

    /// Waits until all is in the file that Redis had before.
    pub(super) async fn written(&self) -> Result<(), StoreError> {
        let (told, written) = oneshot::channel();
        let asked = self.0.send(told);
        let ended = || StoreError::Unavailable("the store's runtime has ended".to_owned());
        asked.map_err(|_| ended())?;
        written.await.unwrap_or_else(|_| Err(ended()))
    }
}

async fn wait(config: RedisConfig, key: String, mut waiters: mpsc::UnboundedReceiver<Waiter>) {
    let mut store = None;
    while let Some(first) = waiters.recv().await {
        let mut together = vec![first];
        while let Ok(another) = waiters.try_recv() {
            together.push(another);
        }
        let written = match &store {
            Some(store) => written(store, &key).await,
            None => match RedisStore::connect(config.clone()).await {
                Ok(made) => written(store.insert(made), &key).await,
                Err(error) => Err(StoreError::Unavailable(error.to_string())),
            },
        };
        for waiter in together {
            let _ = waiter.send(written.clone());
        }
    }
}

/// Redis waits for the file as far as this connection has written: so it writes something first, after all that it waits for.
async fn written(store: &RedisStore, key: &str) -> Result<(), StoreError> {
    let words = |words: &[&str]| words.iter().map(|word| Bytes::copy_from_slice(word.as_bytes())).collect::<Vec<_>>();
    let lanes = store.data();
    lanes.call(Patience::Write, "SET", 0, words(&[key, "1", "PX", "60000"])).await?;
    let reply = lanes.call(Patience::Purge, "WAITAOF", 0, words(&["1", "0", PATIENCE])).await?;
    match reply.into_array().unwrap_or_default().first() {
        Some(Reply::Number(files)) if *files > 0 => Ok(()),
        Some(Reply::Number(_)) => Err(StoreError::Timeout),
        _ => Err(Fault::Foreign.into()),
    }
}
