//! A cluster: which master has which slot, and a connection of each kind to each master.
//!
//! Not fred's own cluster client: that one stops all traffic while one master is dead. Here, each master has lanes of its
//! own with a gate of their own, so that one which is dead costs the keys of its slots, and those no waiting.

use crate::{
    checkup,
    client::{Dialer, Patience, Reply},
    clock::Clock,
    config::{Address, Server},
    fault::Fault,
    inquiry::Inquiry,
    lane::{Kind, Lane, Manner, Place},
    measures::Measures,
    slot::{Redirect, SLOTS, named, slot},
};
use bytes::Bytes;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    sync::{Notify, oneshot, watch},
    task::AbortHandle,
    time::{sleep, timeout},
};

/// How often the cluster is asked for its slots while all is well.
const SURVEYED_EVERY: Duration = Duration::from_secs(15);
/// The pauses between two times while something is amiss; they double.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// How often a command is sent elsewhere: to where the slot has moved, and from there to where it is moving.
const REDIRECTS: u32 = 2;

pub(crate) struct Cluster {
    dialer: Arc<Dialer>,
    seeds: Vec<Server>,
    clock: Arc<Clock>,
    measures: Arc<Measures>,
    table: RwLock<Table>,
    /// Told when the table may be wrong.
    alarm: Arc<Notify>,
    /// Where the connections lead that listen: to a master of one slot, or to any, where all tell the same.
    ears: Mutex<Vec<(Option<usize>, Arc<Place>)>>,
    changes: watch::Sender<u64>,
    runtime: Handle,
}

/// Who has which slot, as far as is known.
struct Table {
    owners: Vec<Option<Arc<Node>>>,
    /// Every master that has a slot, or that a command was sent to lately.
    nodes: HashMap<Server, Arc<Node>>,
    /// Every other server that was named.
    replicas: Vec<Server>,
}

/// A master, and the connections to it, which end when nobody needs them.
struct Node {
    server: Server,
    data: Arc<Lane>,
    bulk: Arc<Lane>,
    tasks: Vec<AbortHandle>,
}

impl Node {
    fn lane(&self, kind: Kind) -> &Arc<Lane> {
        match kind {
            Kind::Data => &self.data,
            Kind::Bulk => &self.bulk,
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Cluster {
    pub(crate) fn new(dialer: Arc<Dialer>, seeds: &[Address], clock: Arc<Clock>, measures: Arc<Measures>) -> Arc<Self> {
        let table = Table { owners: vec![None; SLOTS], nodes: HashMap::new(), replicas: Vec::new() };
        Arc::new(Self {
            dialer,
            seeds: seeds.iter().cloned().map(Server::Tcp).collect(),
            clock,
            measures,
            table: RwLock::new(table),
            alarm: Arc::default(),
            ears: Mutex::default(),
            changes: watch::Sender::new(0),
            runtime: Handle::current(),
        })
    }

    /// Whether there is a connection to any master.
    pub(crate) fn is_open(&self) -> bool {
        self.table().nodes.values().any(|node| node.data.is_open())
    }

    /// Counts the times that the table was found changed.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// A connection to any master.
    pub(crate) fn any(&self, kind: Kind) -> Option<Arc<Lane>> {
        let table = self.table();
        table.nodes.values().map(|node| node.lane(kind)).find(|lane| lane.is_open()).cloned()
    }

    /// The connections to all masters; an error, as long as one of them is not to be reached.
    pub(crate) fn each(&self, kind: Kind) -> Result<Vec<Arc<Lane>>, Fault> {
        let table = self.table();
        let lanes: Vec<Arc<Lane>> = table.nodes.values().map(|node| node.lane(kind).clone()).collect();
        let is_whole = table.owners.iter().all(Option::is_some) && lanes.iter().all(|lane| lane.is_open());
        if is_whole { Ok(lanes) } else { Err(Fault::Down) }
    }

    /// The way to a key, if anybody is known to have its slot.
    pub(crate) fn route(self: &Arc<Self>, key: &[u8], kind: Kind) -> Result<Route, Fault> {
        let Some(node) = self.table().owners[slot(key)].clone() else {
            self.alarm.notify_one();
            return Err(Fault::Down);
        };
        Ok(Route { cluster: Arc::clone(self), node, kind, manner: Manner::Plain, redirects: 0 })
    }

    /// A connection that listens to the master of a slot, or to any.
    pub(crate) fn ear(&self, slot: Option<usize>) -> Arc<Lane> {
        let place = Arc::new(Place::new(None));
        self.ears().push((slot, Arc::clone(&place)));
        self.listen(&self.table());
        let lane = Lane::new(Arc::clone(&self.dialer), place, "wake", Arc::clone(&self.measures));
        Arc::new(lane.alarming(Arc::clone(&self.alarm)))
    }

    /// Follows the cluster for as long as the task lives; tells `first` what came of asking for the first time.
    pub(crate) async fn follow(self: Arc<Self>, first: oneshot::Sender<Result<(), Fault>>) {
        let (mut inquiry, mut first, mut told) = (Inquiry::new(Arc::clone(&self.dialer)), Some(first), None);
        let mut pause = SHORTEST_PAUSE;
        loop {
            let outcome = self.survey(&mut inquiry).await;
            match &outcome {
                Ok(()) => told = None,
                Err(fault) if told.as_ref() != Some(fault) => {
                    tracing::warn!(?fault, "no server tells of the cluster's slots; asking on in the background");
                    told = Some(fault.clone());
                }
                Err(_) => {}
            }
            if let Some(first) = first.take() {
                if outcome.is_ok() {
                    self.settled().await;
                    self.listen(&self.table());
                }
                let _ = first.send(outcome);
            }
            let jitter = 0.75 + fastrand::f64() / 2.0;
            if self.is_whole() {
                pause = SHORTEST_PAUSE;
                let _ = timeout(SURVEYED_EVERY.mul_f64(jitter), self.alarm.notified()).await;
                // Whoever raised it raises it often.
                sleep(SHORTEST_PAUSE.mul_f64(jitter)).await;
            } else {
                sleep(pause.mul_f64(jitter)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    /// Whether every slot has an owner that is connected, and there is somebody to listen to.
    fn is_whole(&self) -> bool {
        let table = self.table();
        self.ears().iter().all(|(_, place)| place.borrow().is_some())
            && table.owners.iter().all(Option::is_some)
            && table.nodes.values().all(|node| node.data.is_open())
    }

    /// Waits until each master was tried to be connected to, for as long as one may take.
    async fn settled(&self) {
        let nodes: Vec<_> = self.table().nodes.values().cloned().collect();
        let connected = async {
            for node in nodes {
                node.connected().await;
            }
        };
        let _ = timeout(self.dialer.read_timeout(), connected).await;
    }

    /// Asks who has which slot, and connects to whoever is new.
    async fn survey(self: &Arc<Self>, inquiry: &mut Inquiry) -> Result<(), Fault> {
        let (reply, teller) = match self.ask_the_connected().await {
            Some(answer) => answer,
            None => inquiry.ask(self.known(), "CLUSTER", &["SLOTS"]).await?,
        };
        let shares = shares(reply, &teller).ok_or(Fault::Foreign)?;
        self.take_over(shares);
        Ok(())
    }

    async fn ask_the_connected(&self) -> Option<(Reply, Server)> {
        let mut nodes: Vec<_> = self.table().nodes.values().filter(|node| node.data.is_open()).cloned().collect();
        fastrand::shuffle(&mut nodes);
        for node in nodes {
            let asked = node.data.call(Patience::Check, "CLUSTER", None, vec![Bytes::from_static(b"SLOTS")]);
            if let Ok(reply) = asked.await {
                return Some((reply, node.server.clone()));
            }
        }
        None
    }

    /// Every server that was ever named, in any order, and at last those that the configuration names.
    fn known(&self) -> Vec<Server> {
        let table = self.table();
        let mut known: Vec<_> = table.replicas.iter().chain(table.nodes.keys()).cloned().collect();
        fastrand::shuffle(&mut known);
        let strangers: Vec<_> = self.seeds.iter().filter(|seed| !known.contains(seed)).cloned().collect();
        known.extend(strangers);
        known
    }

    fn take_over(self: &Arc<Self>, shares: Vec<Share>) {
        let mut table = self.table_mut();
        let mut owners = vec![None; SLOTS];
        let (mut nodes, mut replicas) = (HashMap::new(), Vec::new());
        for share in shares {
            let node = nodes.entry(share.master.clone()).or_insert_with(|| {
                let known = table.nodes.get(&share.master).cloned();
                known.unwrap_or_else(|| self.connect(share.master.clone()))
            });
            owners[share.first..=share.last].fill(Some(Arc::clone(node)));
            replicas.extend(share.replicas);
        }
        let is_same = |(new, old): (&Option<Arc<Node>>, &Option<Arc<Node>>)| {
            new.as_ref().map(|node| &node.server) == old.as_ref().map(|node| &node.server)
        };
        if !owners.iter().zip(&table.owners).all(is_same) {
            let masters: Vec<_> = nodes.keys().map(ToString::to_string).collect();
            tracing::info!(masters = masters.join(","), "the slots of the cluster have moved");
            self.changes.send_modify(|changes| *changes += 1);
        }
        // Of all processes the same one, so that they agree; while it is away, the clock runs on by itself.
        let keeper = owners.iter().flatten().next().map(|node| node.server.clone());
        for node in nodes.values() {
            node.data.keep_time(Some(&node.server) == keeper.as_ref());
        }
        replicas.retain(|replica| !nodes.contains_key(replica));
        replicas.dedup();
        *table = Table { owners, nodes, replicas };
        self.listen(&table);
    }

    /// Leads the connections that listen to where what they listen for is told. One that listens to any master stays where it
    /// is while that is there.
    fn listen(&self, table: &Table) {
        let is_well = |server: &Server| table.nodes.get(server).is_some_and(|node| node.data.is_open());
        for (slot, place) in self.ears().iter() {
            place.send_if_modified(|server| {
                let next = match slot {
                    Some(slot) => table.owners[*slot].as_ref(),
                    None if server.as_ref().is_some_and(is_well) => None,
                    None => {
                        fastrand::choice(table.nodes.values().filter(|node| node.data.is_open()).collect::<Vec<_>>())
                    }
                };
                match next {
                    Some(next) if server.as_ref() != Some(&next.server) => {
                        *server = Some(next.server.clone());
                        true
                    }
                    _ => false,
                }
            });
        }
    }

    /// Takes note that a slot has moved.
    fn learn(self: &Arc<Self>, slot: usize, server: Server) -> Arc<Node> {
        self.alarm.notify_one();
        let node = self.node(server);
        self.table_mut().owners[slot] = Some(Arc::clone(&node));
        node
    }

    /// The connections to a server, which are begun to be made if there are none.
    fn node(self: &Arc<Self>, server: Server) -> Arc<Node> {
        let mut table = self.table_mut();
        Arc::clone(table.nodes.entry(server.clone()).or_insert_with(|| self.connect(server)))
    }

    fn connect(&self, server: Server) -> Arc<Node> {
        let lane = |role| {
            let place = Arc::new(Place::new(Some(server.clone())));
            let lane = Lane::new(Arc::clone(&self.dialer), place, role, Arc::clone(&self.measures));
            lane.alarming(Arc::clone(&self.alarm)).sparing()
        };
        let data = lane("data").setting(Arc::clone(&self.clock));
        data.keep_time(false);
        let (data, bulk) = (Arc::new(data), Arc::new(lane("bulk")));
        let keep_up =
            |lane: &Arc<Lane>| self.runtime.spawn(Arc::clone(lane).keep_up(oneshot::channel().0)).abort_handle();
        let tasks = vec![
            keep_up(&data),
            keep_up(&bulk),
            self.runtime.spawn(checkup::check_up(Arc::clone(&data))).abort_handle(),
        ];
        Arc::new(Node { server, data, bulk, tasks })
    }

    fn ears(&self) -> MutexGuard<'_, Vec<(Option<usize>, Arc<Place>)>> {
        // It only grows.
        self.ears.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn table(&self) -> RwLockReadGuard<'_, Table> {
        // It is replaced as a whole.
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    /// Waits until it is connected for the first time.
    async fn connected(&self) {
        for lane in [&self.data, &self.bulk] {
            // The lane lives as long as this does.
            let _ = lane.connections().wait_for(|made| *made > 0).await;
        }
    }
}

/// The way to one key, of which the server may say that it leads elsewhere.
pub(crate) struct Route {
    cluster: Arc<Cluster>,
    node: Arc<Node>,
    kind: Kind,
    manner: Manner,
    redirects: u32,
}

impl Route {
    pub(crate) fn lane(&self) -> &Lane {
        self.node.lane(self.kind)
    }

    pub(crate) fn manner(&self) -> Manner {
        self.manner
    }

    /// What came of sending a command this way, or nothing if it is to be sent once more, another way.
    pub(crate) async fn settle<T>(&mut self, reply: Result<T, Fault>) -> Option<Result<T, Fault>> {
        let Err(fault) = &reply else { return Some(reply) };
        if fault.is("CLUSTERDOWN") {
            self.cluster.alarm.notify_one();
        }
        let redirect = Redirect::of(fault, &self.node.server).filter(|_| self.redirects < REDIRECTS);
        let Some(redirect) = redirect else { return Some(reply) };
        self.redirects += 1;
        (self.node, self.manner) = match redirect {
            Redirect::Moved(slot, server) => (self.cluster.learn(slot, server), Manner::Plain),
            Redirect::Ask(server) => (self.cluster.node(server), Manner::Asking),
        };
        self.cluster.measures.redirected(self.manner);
        if !self.lane().is_open() {
            // A server that was not known before is connected to within milliseconds, or not at all.
            let _ = timeout(self.cluster.dialer.read_timeout() / 2, self.node.connected()).await;
        }
        None
    }
}

/// A range of slots, and who has it.
#[derive(Debug, PartialEq, Eq)]
struct Share {
    first: usize,
    last: usize,
    master: Server,
    replicas: Vec<Server>,
}

/// Reads the reply to CLUSTER SLOTS by `teller`.
fn shares(reply: Reply, teller: &Server) -> Option<Vec<Share>> {
    let slot = |reply: Option<Reply>| match reply {
        Some(Reply::Number(number)) => usize::try_from(number).ok().filter(|slot| *slot < SLOTS),
        _ => None,
    };
    let share = |reply: Reply| {
        let mut parts = reply.into_array()?.into_iter();
        let (first, last) = (slot(parts.next())?, slot(parts.next())?);
        let mut servers = parts.map(|reply| server(reply, teller));
        let master = servers.next()??;
        (first <= last).then(|| Share { first, last, master, replicas: servers.flatten().collect() })
    };
    reply.into_array()?.into_iter().map(share).collect()
}

/// Reads a host, a port, and whatever follows.
fn server(reply: Reply, teller: &Server) -> Option<Server> {
    let mut parts = reply.into_array()?.into_iter();
    let host = match parts.next()? {
        Reply::Nil => Bytes::new(),
        host => host.into_bytes()?,
    };
    let Reply::Number(port) = parts.next()? else { return None };
    named(std::str::from_utf8(&host).ok()?, u16::try_from(port).ok()?, teller)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Server {
        Server::Tcp(Address { host: host.to_owned(), port })
    }

    fn told(host: Reply, port: i64) -> Reply {
        Reply::Array(vec![host, Reply::Number(port), Reply::Bytes(Bytes::from_static(b"id")), Reply::Nil])
    }

    #[test]
    fn the_slots_are_read() {
        let host = |text: &'static str| Reply::Bytes(Bytes::from_static(text.as_bytes()));
        let teller = tcp("10.0.0.9", 7000);
        let range = |first, last, servers: Vec<Reply>| {
            Reply::Array([vec![Reply::Number(first), Reply::Number(last)], servers].concat())
        };
        let reply = Reply::Array(vec![
            range(0, 5460, vec![told(host("10.0.0.1"), 7000), told(host("10.0.0.2"), 7001)]),
            range(5461, 16383, vec![told(Reply::Nil, 7002), told(host("?"), 7003)]),
        ]);
        let expected = vec![
            Share { first: 0, last: 5460, master: tcp("10.0.0.1", 7000), replicas: vec![tcp("10.0.0.2", 7001)] },
            Share { first: 5461, last: 16383, master: tcp("10.0.0.9", 7002), replicas: vec![tcp("10.0.0.9", 7003)] },
        ];
        assert_eq!(shares(reply, &teller), Some(expected));
        for other in [
            Reply::Nil,
            Reply::Array(vec![range(0, 16384, vec![told(host("h"), 1)])]),
            Reply::Array(vec![range(2, 1, vec![told(host("h"), 1)])]),
            Reply::Array(vec![range(0, 1, vec![])]),
            Reply::Array(vec![range(0, 1, vec![told(host("h"), 0)])]),
        ] {
            assert_eq!(shares(other.clone(), &teller), None, "{other:?}");
        }
        assert_eq!(shares(Reply::Array(Vec::new()), &teller), Some(Vec::new()));
    }
}
