//! A primary with a replica, and three sentinels that watch over them, killed when dropped.

use crate::{Flavor, RedisServer, wait::until};
use std::time::Duration;

/// What the sentinels call the two servers together.
const SERVICE: &str = "cache";

/// Two servers, by number, of which one is the primary: at first 0.
#[derive(Debug)]
pub struct RedisSentinels {
    servers: [RedisServer; 2],
    sentinels: Vec<RedisServer>,
}

impl RedisSentinels {
    /// Starts servers without passwords.
    pub fn start() -> Self {
        Self::start_with(Flavor::Redis, None, None)
    }

    /// Starts servers of a flavor; with passwords, if they are given: of the servers, and of the sentinels.
    ///
    /// # Panics
    ///
    /// When the sentinels do not know each other and the replica within twenty seconds.
    pub fn start_with(flavor: Flavor, password: Option<&str>, sentinel_password: Option<&str>) -> Self {
        let server = |primary: Option<&RedisServer>| {
            let mut options = RedisServer::builder().flavor(flavor).arg("--repl-diskless-sync-delay", "0");
            if let Some(password) = password {
                options = options.password(password).arg("--masterauth", password);
            }
            if let Some(primary) = primary {
                options = options.arg("--replicaof", &format!("127.0.0.1 {}", primary.port()));
            }
            options.start()
        };
        let primary = server(None);
        let replica = server(Some(&primary));
        let sentinel = |_| {
            let mut lines = format!("sentinel monitor {SERVICE} 127.0.0.1 {} 2\n", primary.port());
            lines += &format!("sentinel down-after-milliseconds {SERVICE} 1500\n");
            lines += &format!("sentinel failover-timeout {SERVICE} 5000\n");
            if let Some(password) = password {
                lines += &format!("sentinel auth-pass {SERVICE} {password}\n");
            }
            let mut options = RedisServer::builder().flavor(flavor).sentinel(&lines);
            if let Some(password) = sentinel_password {
                options = options.password(password);
            }
            options.start()
        };
        let sentinels = (0..3).map(sentinel).collect();
        let all = Self { servers: [primary, replica], sentinels };
        let limit = Duration::from_secs(20);
        until("the replica follows the primary", limit, || {
            all.servers[1].cli(&["INFO", "replication"]).contains("master_link_status:up")
        });
        until("the sentinels know each other and the replica", limit, || {
            all.sentinels.iter().all(|sentinel| {
                let info = sentinel.cli(&["INFO", "sentinel"]);
                info.contains("status=ok") && info.contains("slaves=1") && info.contains("sentinels=3")
            })
        });
        all
    }

    /// The URL for a client, with the password of the servers if there is one.
    pub fn url(&self) -> String {
        let sentinels: Vec<String> = self.sentinels.iter().map(|sentinel| sentinel.addr().to_string()).collect();
        let url = self.servers[0].url();
        let credentials = url.strip_prefix("redis://").and_then(|rest| rest.split_once('@'));
        let credentials = credentials.map(|(credentials, _)| format!("{credentials}@")).unwrap_or_default();
        format!("redis-sentinel://{credentials}{}/{SERVICE}", sentinels.join(","))
    }

    /// One of the two servers.
    pub fn server(&self, server: usize) -> &RedisServer {
        &self.servers[server]
    }

    /// One of the two servers, to be killed or started again.
    pub fn server_mut(&mut self, server: usize) -> &mut RedisServer {
        &mut self.servers[server]
    }

    /// One of the three sentinels, to be killed or started again.
    pub fn sentinel_mut(&mut self, sentinel: usize) -> &mut RedisServer {
        &mut self.sentinels[sentinel]
    }

    /// The server that a sentinel names as the primary.
    pub fn primary(&self) -> usize {
        let sentinel = self.sentinels.iter().find(|sentinel| sentinel.is_running());
        let sentinel = sentinel.expect("a sentinel is there");
        let answer = sentinel.cli(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE]);
        let port = answer.lines().nth(1).unwrap_or_default();
        let named = self.servers.iter().position(|server| server.port().to_string() == port);
        named.unwrap_or_else(|| panic!("the sentinel names {answer:?}"))
    }

    /// Tells every sentinel that this server is the primary, as an operator does who has made it that.
    pub fn name_by_hand(&self, server: usize) {
        let port = self.servers[server].port().to_string();
        for sentinel in &self.sentinels {
            sentinel.cli(&["SENTINEL", "REMOVE", SERVICE]);
            sentinel.cli(&["SENTINEL", "MONITOR", SERVICE, "127.0.0.1", &port, "2"]);
        }
    }

    /// Has the sentinels hand over to the replica, and waits until they say that they did.
    ///
    /// # Panics
    ///
    /// When they do not within twenty seconds.
    pub fn fail_over(&self) {
        let before = self.primary();
        let limit = Duration::from_secs(20);
        until("a sentinel begins the failover", limit, || {
            self.sentinels[0].try_cli(&["SENTINEL", "FAILOVER", SERVICE]).is_ok()
        });
        until("the sentinels name the other one", limit, || self.primary() != before);
    }
}
