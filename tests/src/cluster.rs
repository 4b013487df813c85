//! A real cluster of one test: three masters with a replica each, formed without redis-cli, killed when dropped.

use crate::{Connection, Flavor, RedisServer, RedisServerBuilder, wait::until};
use std::{
    net::{SocketAddr, TcpStream},
    ops::RangeInclusive,
    time::Duration,
};

/// How long a node may be silent before the others take it for dead, in milliseconds.
const NODE_TIMEOUT: &str = "2000";
/// What the three masters begin with.
const SHARES: [RangeInclusive<u16>; 3] = [0..=5460, 5461..=10922, 10923..=16383];

/// Six nodes, by number: 0 to 2 begin as the masters of a third of the slots each, and 3 to 5 as the replica of the master
/// that is three numbers below.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<RedisServer>,
}

impl RedisCluster {
    /// Starts a cluster of Redis servers, and waits until every node says that it is well.
    pub fn start() -> Self {
        Self::start_as(RedisServer::builder())
    }

    /// Starts a cluster of the servers of this flavor.
    pub fn start_flavor(flavor: Flavor) -> Self {
        Self::start_as(RedisServer::builder().flavor(flavor))
    }

    /// Starts a cluster of servers that have further options.
    ///
    /// # Panics
    ///
    /// When it is not well within twenty seconds.
    pub fn start_as(options: RedisServerBuilder) -> Self {
        let options = options
            .arg("--cluster-enabled", "yes")
            .arg("--cluster-node-timeout", NODE_TIMEOUT)
            .arg("--cluster-replica-validity-factor", "0")
            // Else Redis itself refuses every slot while one has no master.
            .arg("--cluster-require-full-coverage", "no");
        let cluster = Self { nodes: (0..6).map(|_| options.clone().start()).collect() };
        cluster.form();
        cluster
    }

    fn form(&self) {
        for (master, share) in SHARES.iter().enumerate() {
            let (first, last) = (share.start().to_string(), share.end().to_string());
            // Older servers know no ranges, and this works as well.
            let slots: Vec<String> = share.clone().map(|slot| slot.to_string()).collect();
            let range = self.nodes[master].try_cli(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]);
            if range.is_err() {
                let words: Vec<&str> =
                    ["CLUSTER", "ADDSLOTS"].into_iter().chain(slots.iter().map(String::as_str)).collect();
                self.nodes[master].cli(&words);
            }
        }
        for node in &self.nodes[1..] {
            self.nodes[0].cli(&["CLUSTER", "MEET", "127.0.0.1", &node.port().to_string()]);
        }
        until("every node knows every other", Duration::from_secs(20), || {
            (0..6).all(|node| self.info(node, "cluster_known_nodes") == "6")
        });
        for replica in 3..6 {
            let master = self.id(replica - 3);
            until("a replica knows its master", Duration::from_secs(20), || {
                self.nodes[replica].try_cli(&["CLUSTER", "REPLICATE", &master]).is_ok()
            });
        }
        until("every node says that the cluster is well", Duration::from_secs(20), || {
            (0..6).all(|node| self.info(node, "cluster_state") == "ok" && self.info(node, "cluster_size") == "3")
        });
        until("every replica follows its master", Duration::from_secs(20), || {
            (3..6).all(|replica| self.nodes[replica].cli(&["INFO", "replication"]).contains("master_link_status:up"))
        });
        until("every node knows of the replicas", Duration::from_secs(20), || {
            (0..6).all(|node| self.nodes[node].cli(&["CLUSTER", "NODES"]).matches("slave").count() == 3)
        });
    }

    /// The URL for a client, with all nodes and the user of [`RedisServer::url`].
    pub fn url(&self) -> String {
        self.url_with(&self.credentials())
    }

    fn credentials(&self) -> String {
        let url = self.nodes[0].url();
        let credentials = url.split_once("://").and_then(|(_, rest)| rest.split_once('@'));
        credentials.map(|(credentials, _)| format!("{credentials}@")).unwrap_or_default()
    }

    /// The URL for a client that signs in as a user of the ACL.
    pub fn url_as(&self, user: &str, password: &str) -> String {
        self.url_with(&format!("{user}:{password}@"))
    }

    fn url_with(&self, credentials: &str) -> String {
        let nodes: Vec<String> = self.nodes.iter().map(|node| node.addr().to_string()).collect();
        format!("redis-cluster://{credentials}{}", nodes.join(","))
    }

    /// The URL for a client, with one node.
    pub fn url_of(&self, node: usize) -> String {
        format!("redis-cluster://{}{}", self.credentials(), self.nodes[node].addr())
    }

    /// One of the servers.
    pub fn node(&self, node: usize) -> &RedisServer {
        &self.nodes[node]
    }

    /// Ends a node at once, as a crash would.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].kill();
    }

    /// Starts a node again: it finds its place in the cluster in its own file; its data is lost.
    pub fn restart(&mut self, node: usize) {
        self.nodes[node].restart();
    }

    /// The slot of a key.
    pub fn slot(&self, key: &str) -> u16 {
        self.any().cli(&["CLUSTER", "KEYSLOT", key]).parse().expect("a slot is a number")
    }

    /// The node that has a slot, as the nodes see it that are there; `None` while that is none of them.
    pub fn owner(&self, slot: u16) -> Option<usize> {
        let slots = Connection::tcp(self.any_address()).ok()?.call(&["CLUSTER", "NODES"]).ok()?.ok()?;
        let line = slots.lines().find(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let flags = fields.get(2).copied().unwrap_or_default();
            flags.contains("master") && !flags.contains("fail") && fields.iter().skip(8).any(|range| holds(range, slot))
        })?;
        let port: u16 = line.split([':', '@']).nth(1)?.parse().ok()?;
        self.nodes.iter().position(|node| node.port() == port)
    }

    /// Begins to move a slot: what is there stays, and what is not is asked of the new owner.
    pub fn begin_to_move(&self, slot: u16, from: usize, to: usize) {
        let slot = slot.to_string();
        self.nodes[to].cli(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &self.id(from)]);
        self.nodes[from].cli(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &self.id(to)]);
    }

    /// Moves one key of a slot that is being moved; `false` when there is none left.
    pub fn move_a_key(&self, slot: u16, from: usize, to: usize) -> bool {
        let key = self.nodes[from].cli(&["CLUSTER", "GETKEYSINSLOT", &slot.to_string(), "1"]);
        if key.is_empty() {
            return false;
        }
        let port = self.nodes[to].port().to_string();
        self.nodes[from].cli(&["MIGRATE", "127.0.0.1", &port, &key, "0", "5000"]);
        true
    }

    /// Ends the move of a slot: it belongs to its new owner.
    pub fn end_the_move(&self, slot: u16, to: usize) {
        let (slot, id) = (slot.to_string(), self.id(to));
        let masters = (0..6).filter(|node| self.is_master(*node));
        // The new owner first, so that there always is one.
        for node in [to].into_iter().chain(masters) {
            self.nodes[node].cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &id]);
        }
    }

    fn is_master(&self, node: usize) -> bool {
        self.nodes[node].is_running() && self.nodes[node].cli(&["ROLE"]).starts_with("master")
    }

    fn id(&self, node: usize) -> String {
        self.nodes[node].cli(&["CLUSTER", "MYID"])
    }

    fn info(&self, node: usize, field: &str) -> String {
        let info = self.nodes[node].cli(&["CLUSTER", "INFO"]);
        let mut lines = info.lines();
        lines.find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap_or_default().trim().to_owned()
    }

    fn any(&self) -> &RedisServer {
        self.nodes.iter().find(|node| node.is_running()).expect("a node of the cluster is there")
    }

    /// Of a node that answers: one that is frozen accepts connections all the same.
    fn any_address(&self) -> SocketAddr {
        let answers = |node: &&RedisServer| {
            node.is_running() && {
                let connection: std::io::Result<Connection<TcpStream>> = Connection::tcp(node.addr());
                connection.is_ok_and(|mut connection| {
                    let _ = connection.set_patience(Duration::from_millis(200));
                    connection.call(&["PING"]).is_ok()
                })
            }
        };
        self.nodes.iter().find(answers).expect("a node of the cluster answers").addr()
    }
}

/// Whether a field of `CLUSTER NODES`, as `7` or `7-9`, holds a slot.
fn holds(range: &str, slot: u16) -> bool {
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    matches!((first.parse::<u16>(), last.parse::<u16>()), (Ok(first), Ok(last)) if (first..=last).contains(&slot))
}
