//! The connections for one kind of traffic: one to one server, or one to each master of a cluster.

use crate::{
    client::{Patience, Reply},
    cluster::{Cluster, Route},
    fault::Fault,
    lane::{Kind, Lane, Manner, STORE, Script},
    reads::Reads,
    slot::slot,
};
use bytes::Bytes;
use larder::store::StoreError;
use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{runtime::Handle, sync::watch, task::JoinSet};

pub(crate) enum Lanes {
    One { lane: Arc<Lane>, reads: Option<Arc<Reads>> },
    Cluster { cluster: Arc<Cluster>, kind: Kind },
}

impl Lanes {
    /// One connection, on which a read may take so long.
    pub(crate) fn one(lane: Arc<Lane>, kind: Kind, within: Duration) -> Self {
        // Chunks are there so that no reply is long.
        let reads = (kind == Kind::Data).then(|| Reads::new(Arc::clone(&lane), within, Handle::current()));
        Self::One { lane, reads }
    }

    /// After how long at most a read that waits is woken, if that is known.
    pub(crate) fn wakes_within(&self) -> Option<Duration> {
        match self {
            Self::One { reads, .. } => reads.as_ref().map(|reads| reads.within()),
            Self::Cluster { .. } => None,
        }
    }

    /// Whether it leads to parts of which one may be down, and costs the others nothing.
    pub(crate) fn is_divided(&self) -> bool {
        matches!(self, Self::Cluster { .. })
    }

    /// Whether there is a connection, as far as is known.
    pub(crate) fn is_open(&self) -> bool {
        match self {
            Self::One { lane, .. } => lane.is_open(),
            Self::Cluster { cluster, .. } => cluster.is_open(),
        }
    }

    /// Refuses what would only queue up, while there is no connection at all.
    pub(crate) fn admits(&self) -> Result<(), StoreError> {
        if self.is_open() { Ok(()) } else { Err(Fault::Down.into()) }
    }

    /// Counts the connections that were made; in a cluster, the times that it was found changed.
    pub(crate) fn connections(&self) -> watch::Receiver<u64> {
        match self {
            Self::One { lane, .. } => lane.connections(),
            Self::Cluster { cluster, .. } => cluster.changes(),
        }
    }

    /// Reads a key, unless there is no connection. Small ones that are read at the same time are read together; from a cluster
    /// they are not, because one command reads keys of one slot only. A key of another type reads as an error, or as none.
    pub(crate) async fn get(&self, key: Bytes) -> Result<Reply, Fault> {
        match self {
            Self::One { reads: Some(reads), .. } => reads.get(key).await,
            Self::One { lane, reads: None } => lane.get(key, Instant::now()).await,
            // Boxed, so that it adds nothing to the size of every other read.
            Self::Cluster { cluster, kind } => Box::pin(cluster.route(&key, *kind)?.read(key)).await,
        }
    }

    /// Sends a command whose key is the argument at `key`, unless there is no connection.
    pub(crate) async fn call(
        &self,
        patience: Patience,
        command: &'static str,
        key: usize,
        arguments: Vec<Bytes>,
    ) -> Result<Reply, Fault> {
        let mut route = match self {
            Self::One { lane, .. } => return lane.call(patience, command, Some(key), arguments).await,
            Self::Cluster { cluster, kind } => cluster.route(&arguments[key], *kind)?,
        };
        loop {
            let reply = route.lane().call_in(route.manner(), patience, command, key, arguments.clone()).await;
            if let Some(reply) = route.settle(reply).await {
                return reply;
            }
        }
    }

    /// Asks any server for a sign of life, which must be the answer to this very question.
    pub(crate) async fn ping(&self) -> Result<(), Fault> {
        let lane = match self {
            Self::One { lane, .. } => Arc::clone(lane),
            Self::Cluster { cluster, kind } => cluster.any(*kind).ok_or(Fault::Down)?,
        };
        let token = Bytes::from(fastrand::u64(..).to_string());
        if lane.call(Patience::Read, "PING", None, vec![token.clone()]).await? == Reply::Bytes(token) {
            return Ok(());
        }
        lane.foreign();
        Err(Fault::Foreign)
    }

    /// The connection to each server; an error, as long as one of them is not to be reached.
    pub(crate) fn each(&self) -> Result<Vec<Arc<Lane>>, Fault> {
        match self {
            Self::One { lane, .. } => Ok(vec![Arc::clone(lane)]),
            Self::Cluster { cluster, kind } => cluster.each(*kind),
        }
    }

    /// Removes keys, wherever they are; of a cluster, one command names keys of one slot only, and all are sent at once.
    pub(crate) async fn unlink(self: &Arc<Self>, keys: Vec<Bytes>) -> Result<(), Fault> {
        if !self.is_divided() {
            return self.call(Patience::Purge, "UNLINK", 0, keys).await.map(drop);
        }
        let mut slots: HashMap<usize, Vec<Bytes>> = HashMap::new();
        for key in keys {
            slots.entry(slot(&key)).or_default().push(key);
        }
        let mut calls = JoinSet::new();
        for keys in slots.into_values() {
            let lanes = Arc::clone(self);
            calls.spawn(async move { lanes.unlink_of_slot(keys).await });
        }
        calls.join_all().await.into_iter().collect()
    }

    async fn unlink_of_slot(&self, keys: Vec<Bytes>) -> Result<(), Fault> {
        match self.call(Patience::Purge, "UNLINK", 0, keys.clone()).await {
            // The slot is moving, and some of them have: each alone is found wherever it is.
            Err(fault) if fault.is("TRYAGAIN") => {
                for key in keys {
                    self.call(Patience::Purge, "UNLINK", 0, vec![key]).await?;
                }
                Ok(())
            }
            unlinked => unlinked.map(drop),
        }
    }

    /// Runs an operation of the store's script on keys of one slot.
    pub(crate) async fn run(
        &self,
        patience: Patience,
        operation: &'static str,
        keys: &[&str],
        arguments: &[Bytes],
    ) -> Result<Vec<Reply>, Fault> {
        self.run_of(&STORE, patience, operation, keys, arguments).await
    }

    /// Runs an operation of a script, whose reply is checked to be the one to this call, on keys of one slot.
    ///
    /// Behind a pointer: what waits for it is nested deep enough for the compiler to give up else.
    pub(crate) fn run_of<'r>(
        &'r self,
        script: &'static Script,
        patience: Patience,
        operation: &'static str,
        keys: &'r [&'r str],
        arguments: &'r [Bytes],
    ) -> Pin<Box<dyn Future<Output = Result<Vec<Reply>, Fault>> + Send + 'r>> {
        Box::pin(async move {
            let mut route = match self {
                Self::One { lane, .. } => {
                    return lane.run(script, Manner::Plain, patience, operation, keys, arguments).await;
                }
                Self::Cluster { cluster, kind } => cluster.route(keys[0].as_bytes(), *kind)?,
            };
            loop {
                let reply = route.lane().run(script, route.manner(), patience, operation, keys, arguments).await;
                if let Some(reply) = route.settle(reply).await {
                    return reply;
                }
            }
        })
    }

    /// Takes note that what was read at `key` belongs to another command.
    pub(crate) fn foreign(&self, key: &str) {
        match self {
            Self::One { lane, .. } => lane.foreign(),
            Self::Cluster { cluster, kind } => {
                if let Ok(route) = cluster.route(key.as_bytes(), *kind) {
                    route.lane().foreign();
                }
            }
        }
    }
}

impl Route {
    /// Reads a key, from whichever server has it in the end.
    async fn read(mut self, key: Bytes) -> Result<Reply, Fault> {
        loop {
            let reply = self.get(key.clone()).await;
            if let Some(reply) = self.settle(reply).await {
                return reply;
            }
        }
    }

    async fn get(&self, key: Bytes) -> Result<Reply, Fault> {
        match self.manner() {
            Manner::Plain => self.lane().get(key, Instant::now()).await,
            Manner::Asking => self.lane().call_in(Manner::Asking, Patience::Read, "GET", 0, vec![key]).await,
        }
    }
}
