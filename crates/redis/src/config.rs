//! Where Redis is, how to sign in, and how much may wait for it.

use std::{convert::Infallible, fmt, path::PathBuf, time::Duration};

/// How a [`RedisStore`](crate::RedisStore) connects, and the limits it keeps.
///
/// ```
/// # fn main() -> Result<(), larder_redis::ConfigError> {
/// use larder_redis::RedisConfig;
///
/// let config = RedisConfig::url("rediss://app:s3cret@cache.internal:6380/0")?.in_flight(256);
/// assert!(!format!("{config:?}").contains("s3cret"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct RedisConfig {
    pub(crate) target: Target,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<Secret>,
    pub(crate) database: u8,
    pub(crate) sentinel_username: Option<String>,
    pub(crate) sentinel_password: Option<Secret>,
    pub(crate) tls: Tls,
    pub(crate) in_flight: usize,
    pub(crate) fill_bytes: usize,
    pub(crate) scan_rate: u32,
    pub(crate) compress_from: usize,
    pub(crate) defer_purges: bool,
    pub(crate) recovery: Recovery,
    pub(crate) outage_after: Duration,
    pub(crate) read_timeout: Duration,
    pub(crate) write_timeout: Duration,
    pub(crate) wall_clock_shift: i64,
}

/// What the store is kept in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// One server.
    Server(Server),
    /// A cluster, of which these servers are asked for the others.
    Cluster(Vec<Address>),
    /// The server that these sentinels name as the primary of a service.
    Sentinels { sentinels: Vec<Address>, service: String },
}

impl Target {
    pub(crate) fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }
}

/// What one connection leads to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Server {
    Tcp(Address),
    Unix(PathBuf),
}

/// A name or an address, an IPv6 address without brackets, and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |addresses: &[Address]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        match self {
            Self::Server(server) => server.fmt(f),
            Self::Cluster(servers) => f.write_str(&list(servers)),
            Self::Sentinels { sentinels, service } => write!(f, "{}/{service}", list(sentinels)),
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// Whether the connection is encrypted, and who signed the server's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tls {
    Off,
    /// One of the authorities that the system trusts.
    System,
    /// One of the authorities in a PEM file.
    Authorities(PathBuf),
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(String);

impl Secret {
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// Redis' own port.
const PORT: u16 = 6379;
/// That of sentinels.
const SENTINEL_PORT: u16 = 26379;

/// What is done once Redis is reached again, where invalidations may have been lost: this process did not reach it for
/// [`outage_after`](RedisConfig::outage_after), or what Redis has logged of invalidations does not go on from what was known,
/// as after a failover to a replica that lacked the last of it.
///
/// It is done once, by whichever process sees it first. What no process lived to see is not recovered from: responses that an
/// invalidation was lost for then answer until their lifetime ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Recovery {
    /// All of the namespace is made stale: it may answer while it is revalidated, and not longer.
    #[default]
    Expire,
    /// All of the namespace is removed.
    Purge,
    /// Each process purges again what it has purged in the last minute. What processes had purged that have ended since is not.
    Repeat,
    /// Nothing.
    Trust,
}

impl RedisConfig {
    /// Connects to `host` over TCP; `host` is a name or an address, an IPv6 address without brackets.
    pub fn tcp(host: impl Into<String>, port: u16) -> Self {
        Self::to(Target::Server(Server::Tcp(Address { host: host.into(), port })))
    }

    /// Connects to the cluster of which these servers, by host and port, are asked for all the others. One is enough as
    /// long as it is there.
    ///
    /// ```
    /// let config = larder_redis::RedisConfig::cluster([("10.0.0.1", 6379), ("10.0.0.2", 6379)]);
    /// ```
    pub fn cluster<H: Into<String>>(servers: impl IntoIterator<Item = (H, u16)>) -> Self {
        Self::to(Target::Cluster(addresses(servers)))
    }

    /// Connects to the server that these sentinels, by host and port, name as the primary of `service`: the name in their
    /// `sentinel monitor`.
    ///
    /// ```
    /// let config = larder_redis::RedisConfig::sentinel([("10.0.0.1", 26379), ("10.0.0.2", 26379)], "cache");
    /// ```
    pub fn sentinel<H: Into<String>>(
        sentinels: impl IntoIterator<Item = (H, u16)>,
        service: impl Into<String>,
    ) -> Self {
        Self::to(Target::Sentinels { sentinels: addresses(sentinels), service: service.into() })
    }

    /// Connects to the Unix socket at `path`.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self::to(Target::Server(Server::Unix(path.into())))
    }

    /// Reads a URL:
    ///
    /// - `redis://[[user]:password@]host[:port][/database]`;
    /// - `redis+unix://[[user]:password@]/path/of/the.sock[?db=database]`, of which `unix://…` is another spelling;
    /// - `redis-cluster://[[user]:password@]host[:port][,host[:port]…]`, a cluster;
    /// - `redis-sentinel://[[user]:password@]host[:port][,host[:port]…]/service[/database]`, the primary that sentinels
    ///   name; user and password are those of Redis, and the sentinels' own are
    ///   [`sentinel_username`](Self::sentinel_username) and [`sentinel_password`](Self::sentinel_password).
    ///
    /// `rediss://…`, `rediss-cluster://…` and `rediss-sentinel://…` are the same with TLS. The port defaults to 6379, that
    /// of a sentinel to 26379, the database to 0. In user name, password, service and path, the characters `@ : / ? %`
    /// are written percent-encoded.
    ///
    /// # Errors
    ///
    /// When the URL is none of these; the error names the part and what would be right, and shows no secret.
    pub fn url(url: &str) -> Result<Self, ConfigError> {
        parse(url).map_err(|problem| ConfigError { setting: "the Redis URL", problem })
    }

    /// Reads the environment: `REDIS_URL`, or else `REDIS_HOST`, with `REDIS_PORT` (default 6379) and `REDIS_TLS`
    /// (`true` or `false`, the default). `REDIS_USERNAME` and `REDIS_PASSWORD` count wherever a URL names no user and
    /// no password, `REDIS_SENTINEL_USERNAME` and `REDIS_SENTINEL_PASSWORD` for sentinels. A variable that is empty counts
    /// as not set.
    ///
    /// # Errors
    ///
    /// When neither `REDIS_URL` nor `REDIS_HOST` is set, or a variable cannot be read.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_lookup(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let lookup = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let mut config = match (lookup("REDIS_URL"), lookup("REDIS_HOST")) {
            (Some(url), _) => parse(&url).map_err(|problem| ConfigError { setting: "REDIS_URL", problem })?,
            (None, Some(host)) => {
                let port = lookup("REDIS_PORT").map_or(Ok(PORT), |port| parse_port(&port));
                let port = port.map_err(|problem| ConfigError { setting: "REDIS_PORT", problem })?;
                let config = Self::tcp(host, port);
                match lookup("REDIS_TLS").map_or(Ok(false), |text| parse_switch(&text)) {
                    Ok(true) => config.tls(),
                    Ok(false) => config,
                    Err(problem) => return Err(ConfigError { setting: "REDIS_TLS", problem }),
                }
            }
            (None, None) => {
                let problem = "it is not set, and neither is REDIS_HOST; set it to where Redis is, as in \
                               redis://127.0.0.1:6379"
                    .to_owned();
                return Err(ConfigError { setting: "REDIS_URL", problem });
            }
        };
        if config.username.is_none() && config.password.is_none() {
            config.username = lookup("REDIS_USERNAME");
            config.password = lookup("REDIS_PASSWORD").map(Secret);
        }
        if matches!(config.target, Target::Sentinels { .. }) {
            config.sentinel_username = lookup("REDIS_SENTINEL_USERNAME");
            config.sentinel_password = lookup("REDIS_SENTINEL_PASSWORD").map(Secret);
        }
        Ok(config)
    }

    /// Signs in as this ACL user; it takes a [`password`](Self::password) too. The default is Redis' own `default`.
    #[must_use]
    pub fn username(mut self, username: impl Into<String>) -> Self {
        self.username = Some(username.into());
        self
    }

    /// Signs in with this password. It is shown nowhere.
    #[must_use]
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(Secret(password.into()));
        self
    }

    /// Signs in to the sentinels as this ACL user; it takes a [`sentinel_password`](Self::sentinel_password) too.
    #[must_use]
    pub fn sentinel_username(mut self, username: impl Into<String>) -> Self {
        self.sentinel_username = Some(username.into());
        self
    }

    /// Signs in to the sentinels with this password; the default is none, whatever that of Redis is. It is shown nowhere.
    #[must_use]
    pub fn sentinel_password(mut self, password: impl Into<String>) -> Self {
        self.sentinel_password = Some(Secret(password.into()));
        self
    }

    /// Selects this database; the default is 0, and the only one of a cluster. Other than 0, the ACL user needs `+select` too.
    #[must_use]
    pub fn database(mut self, database: u8) -> Self {
        self.database = database;
        self
    }

    /// Encrypts the connection; the server's certificate must be signed by an authority that the system trusts. The
    /// default is what the URL says, and off without one.
    #[must_use]
    pub fn tls(mut self) -> Self {
        if self.tls == Tls::Off {
            self.tls = Tls::System;
        }
        self
    }

    /// Encrypts the connection; the server's certificate must be signed by an authority in this PEM file, which is
    /// read once, when the store connects.
    #[must_use]
    pub fn tls_ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.tls = Tls::Authorities(path.into());
        self
    }

    /// How many reads may wait for Redis at the same time, and how many other operations beside them, before the next is
    /// refused as [`Busy`](larder::store::StoreError::Busy); the default is 1024.
    #[must_use]
    pub fn in_flight(mut self, operations: usize) -> Self {
        self.in_flight = operations;
        self
    }

    /// Has purges that Redis cannot be asked for wait in this process, and done in their order once it can, before anything is
    /// read from it again; their receipts tell so. They are lost if the process ends before. Default: such a purge is an
    /// error.
    #[must_use]
    pub fn defer_purges(mut self) -> Self {
        self.defer_purges = true;
        self
    }

    /// What is done after an outage in which invalidations may have been lost. Default [`Recovery::Expire`].
    #[must_use]
    pub fn recovery(mut self, recovery: Recovery) -> Self {
        self.recovery = recovery;
        self
    }

    /// From what time on Redis was out of reach for this process, that counts as such an outage. Default 5 s, at least 2 s.
    #[must_use]
    pub fn outage_after(mut self, time: Duration) -> Self {
        self.outage_after = time;
        self
    }

    /// How many keys a purge by prefix or pattern looks at in a second, so that Redis is left to others meanwhile. Default
    /// 100,000, at least 1.
    #[must_use]
    pub fn scan_rate(mut self, keys: u32) -> Self {
        self.scan_rate = keys;
        self
    }

    /// From what length on, in bytes, bodies are compressed in Redis, by LZ4, if that makes them shorter by an eighth. What has a
    /// `Content-Encoding` is left alone. Default never; 4 KiB is a good start for JSON and HTML. All processes that share the
    /// entries need the feature `lz4`: to others they are misses.
    #[cfg(feature = "lz4")]
    #[must_use]
    pub fn compress_from(mut self, bytes: usize) -> Self {
        self.compress_from = bytes;
        self
    }

    /// How many bytes of bodies may be on their way into Redis at the same time, before the next fill is refused as
    /// [`Busy`](larder::store::StoreError::Busy); the default is 32 MiB. A larger body than this is never stored.
    #[must_use]
    pub fn fill_bytes(mut self, bytes: usize) -> Self {
        self.fill_bytes = bytes;
        self
    }

    /// How long a command that a request waits for may take; the default is 100 ms.
    #[must_use]
    pub fn read_timeout(mut self, timeout: Duration) -> Self {
        self.read_timeout = timeout;
        self
    }

    /// How long a command that stores may take; the default is 250 ms. A purge may take 2 s, or this if it is longer.
    #[must_use]
    pub fn write_timeout(mut self, timeout: Duration) -> Self {
        self.write_timeout = timeout;
        self
    }

    /// Sets this machine's clock apart from the true one by so many milliseconds, as the store sees it.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn wall_clock_shift(mut self, millis: i64) -> Self {
        self.wall_clock_shift = millis;
        self
    }

    fn to(target: Target) -> Self {
        Self {
            target,
            username: None,
            password: None,
            database: 0,
            sentinel_username: None,
            sentinel_password: None,
            tls: Tls::Off,
            in_flight: 1024,
            fill_bytes: 32 << 20,
            scan_rate: 100_000,
            compress_from: usize::MAX,
            defer_purges: false,
            recovery: Recovery::default(),
            outage_after: Duration::from_secs(5),
            read_timeout: Duration::from_millis(100),
            write_timeout: Duration::from_millis(250),
            wall_clock_shift: 0,
        }
    }

    /// Refuses what cannot work together, before anything is connected.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let longest = Duration::from_secs(60);
        let timeout = |timeout: Duration| timeout < Duration::from_millis(1) || timeout > longest;
        let most = tokio::sync::Semaphore::MAX_PERMITS.min(u32::MAX as usize);
        let (setting, problem) = if timeout(self.read_timeout) {
            ("read_timeout", format!("it is {:?}; it must be from 1 ms to 60 s", self.read_timeout))
        } else if timeout(self.write_timeout) {
            ("write_timeout", format!("it is {:?}; it must be from 1 ms to 60 s", self.write_timeout))
        } else if self.in_flight == 0 || self.in_flight > most {
            ("in_flight", format!("it is {}; it must be from 1 to {most} operations", self.in_flight))
        } else if self.outage_after < Duration::from_secs(2) {
            ("outage_after", format!("it is {:?}; it must be at least 2 s", self.outage_after))
        } else if self.scan_rate == 0 {
            ("scan_rate", "it is 0; it must be at least 1 key a second".to_owned())
        } else if self.fill_bytes == 0 || self.fill_bytes > most {
            ("fill_bytes", format!("it is {}; it must be from 1 to {most} bytes", self.fill_bytes))
        } else if self.username.is_some() && self.password.is_none() {
            ("password", "it is not set, and a user name is; set both, or neither".to_owned())
        } else if self.sentinel_username.is_some() && self.sentinel_password.is_none() {
            ("sentinel_password", "it is not set, and a user name is; set both, or neither".to_owned())
        } else if let Some(wrong) = self.wrong_target() {
            wrong
        } else {
            return Ok(());
        };
        Err(ConfigError { setting, problem })
    }

    fn wrong_target(&self) -> Option<(&'static str, String)> {
        let nameless = |addresses: &[Address]| addresses.iter().any(|address| address.host.is_empty());
        let host = || Some(("host", "it is empty; it must be a name or an address".to_owned()));
        match &self.target {
            Target::Server(Server::Unix(_)) if self.tls != Tls::Off => Some((
                "tls",
                "it is on, and a Unix socket does not encrypt; turn it off, or connect over TCP".to_owned(),
            )),
            Target::Server(Server::Tcp(address)) if address.host.is_empty() => host(),
            Target::Cluster(servers) if servers.is_empty() => {
                Some(("cluster", "it names no server; name one at least".to_owned()))
            }
            Target::Cluster(servers) if nameless(servers) => host(),
            Target::Cluster(_) if self.database > 0 => {
                Some(("database", format!("it is {}; a cluster has database 0 only", self.database)))
            }
            Target::Sentinels { sentinels, .. } if sentinels.is_empty() => {
                Some(("sentinel", "it names no sentinel; name one at least, better all".to_owned()))
            }
            Target::Sentinels { sentinels, .. } if nameless(sentinels) => host(),
            Target::Sentinels { service, .. } if service.is_empty() => Some((
                "service",
                "it is empty; it must be the name in the `sentinel monitor` of the sentinels".to_owned(),
            )),
            _ => None,
        }
    }
}

fn addresses<H: Into<String>>(named: impl IntoIterator<Item = (H, u16)>) -> Vec<Address> {
    named.into_iter().map(|(host, port)| Address { host: host.into(), port }).collect()
}

impl TryFrom<&str> for RedisConfig {
    type Error = ConfigError;

    fn try_from(url: &str) -> Result<Self, ConfigError> {
        Self::url(url)
    }
}

impl TryFrom<&String> for RedisConfig {
    type Error = ConfigError;

    fn try_from(url: &String) -> Result<Self, ConfigError> {
        Self::url(url)
    }
}

impl TryFrom<String> for RedisConfig {
    type Error = ConfigError;

    fn try_from(url: String) -> Result<Self, ConfigError> {
        Self::url(&url)
    }
}

/// A setting cannot be used. It says which one, what was found, and what would be right; never a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    pub(crate) setting: &'static str,
    pub(crate) problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.setting, self.problem)
    }
}

impl std::error::Error for ConfigError {}

/// Why a store is not even started. That Redis cannot be reached is no such reason.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectError {
    /// A setting cannot be used.
    Config(ConfigError),
    /// Redis does not let the user in, or not into the database.
    Refused {
        /// Host and port, or the path of the socket.
        server: String,
        /// What Redis replied.
        reply: String,
    },
    /// The server's certificate is not signed by a trusted authority, or is not for this host.
    Certificate {
        /// Host and port.
        server: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The server is none that larder works with: it must be Redis 6.2 or Valkey 7.2, or newer.
    Unsupported {
        /// Host and port, or the path of the socket.
        server: String,
        /// What it replied.
        reply: String,
    },
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::Refused { server, reply } => {
                write!(f, "Redis at {server} refused to sign in: {reply}; check user name, password and database")
            }
            Self::Certificate { server, reason } => {
                write!(f, "the certificate of Redis at {server} is not accepted: {reason}; check the CA file and host")
            }
            Self::Unsupported { server, reply } => {
                write!(f, "the server at {server} does not know RESP3: {reply}; larder needs Redis 6.2 or newer")
            }
        }
    }
}

impl std::error::Error for ConnectError {}

impl From<ConfigError> for ConnectError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl From<Infallible> for ConnectError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// The problems that are returned here quote nothing that could be part of a password.
fn parse(url: &str) -> Result<RedisConfig, String> {
    let (scheme, rest) = url.split_once("://").ok_or("it has no scheme; write redis://host:port")?;
    match scheme.to_ascii_lowercase().as_str() {
        "redis" => parse_tcp(rest),
        "rediss" => Ok(parse_tcp(rest)?.tls()),
        "redis-cluster" => parse_cluster(rest),
        "rediss-cluster" => Ok(parse_cluster(rest)?.tls()),
        "redis-sentinel" => parse_sentinel(rest),
        "rediss-sentinel" => Ok(parse_sentinel(rest)?.tls()),
        "unix" | "redis+unix" => parse_unix(rest),
        other => Err(format!(
            "the scheme is {other:?}; it must be redis, redis-cluster, redis-sentinel, one of them with TLS (rediss, \
             rediss-cluster, rediss-sentinel), or redis+unix"
        )),
    }
}

fn parse_tcp(rest: &str) -> Result<RedisConfig, String> {
    let parts = Parts::of(rest)?;
    let config = RedisConfig::to(Target::Server(Server::Tcp(parse_address(parts.hosts, PORT)?)));
    let database = parts.database(parts.path)?;
    Ok(parts.sign_in(config)?.database(database))
}

fn parse_cluster(rest: &str) -> Result<RedisConfig, String> {
    let parts = Parts::of(rest)?;
    let database = parts.database(parts.path)?;
    if database > 0 {
        return Err(format!("the database is {database}; a cluster has database 0 only"));
    }
    parts.sign_in(RedisConfig::to(Target::Cluster(parse_addresses(parts.hosts, PORT)?)))
}

fn parse_sentinel(rest: &str) -> Result<RedisConfig, String> {
    let parts = Parts::of(rest)?;
    let sentinels = parse_addresses(parts.hosts, SENTINEL_PORT)?;
    let (service, database) = parts.path.split_once('/').unwrap_or((parts.path, ""));
    let service = decode(service).ok_or("the service holds a % that begins no percent-encoded byte; write %25")?;
    if service.is_empty() {
        return Err("the service is missing; write redis-sentinel://host:port/service, with the name in the \
                    `sentinel monitor` of the sentinels"
            .to_owned());
    }
    let database = parts.database(database)?;
    Ok(parts.sign_in(RedisConfig::to(Target::Sentinels { sentinels, service }))?.database(database))
}

/// What stands in a URL after its scheme.
struct Parts<'a> {
    credentials: &'a str,
    hosts: &'a str,
    /// Without the slash that begins it.
    path: &'a str,
}

impl<'a> Parts<'a> {
    fn of(rest: &'a str) -> Result<Self, String> {
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if path.contains('@') {
            return Err(
                "there is a slash or a question mark before an @; in user name and password, write %2F, %3F and \
                        %40 for them"
                    .to_owned(),
            );
        }
        let (credentials, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        Ok(Self { credentials, hosts, path: path.strip_prefix('/').unwrap_or(path) })
    }

    fn sign_in(&self, mut config: RedisConfig) -> Result<RedisConfig, String> {
        (config.username, config.password) = parse_credentials(self.credentials)?;
        Ok(config)
    }

    fn database(&self, text: &str) -> Result<u8, String> {
        if self.path.contains('?') {
            return Err("there is a question mark; the URL takes no options, they are set on RedisConfig".to_owned());
        }
        if text.is_empty() { Ok(0) } else { parse_database(text) }
    }
}

fn parse_addresses(text: &str, port: u16) -> Result<Vec<Address>, String> {
    text.split(',').map(|address| parse_address(address, port)).collect()
}

fn parse_address(address: &str, default: u16) -> Result<Address, String> {
    let (host, port) = match address.strip_prefix('[') {
        Some(bracketed) => {
            let (host, after) = bracketed.split_once(']').ok_or("the IPv6 address lacks its closing bracket")?;
            let port = after.strip_prefix(':');
            if port.is_none() && !after.is_empty() {
                return Err("after the bracket of the IPv6 address, only a colon and the port may stand".to_owned());
            }
            (host, port)
        }
        None => address.split_once(':').map_or((address, None), |(host, port)| (host, Some(port))),
    };
    if host.is_empty() {
        return Err("the host is missing; write redis://host:port".to_owned());
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:".contains(&byte);
    if !host.bytes().all(plain) {
        return Err(format!("the host is {host:?}; it must be a name or an address"));
    }
    Ok(Address { host: host.to_owned(), port: port.map_or(Ok(default), parse_port)? })
}

fn parse_unix(rest: &str) -> Result<RedisConfig, String> {
    let at = rest.find('/').ok_or("the path is missing; write redis+unix:///path/of/the.sock")?;
    let (authority, path) = rest.split_at(at);
    let credentials = match authority.strip_suffix('@') {
        Some(credentials) => credentials,
        None if authority.is_empty() => "",
        None => return Err("the path must begin with a slash: redis+unix:///path/of/the.sock".to_owned()),
    };
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    let path = decode(path).ok_or("the path holds a % that begins no percent-encoded byte; write %25")?;
    let mut config = RedisConfig::unix(path);
    (config.username, config.password) = parse_credentials(credentials)?;
    if let Some(query) = query {
        let number = query.strip_prefix("db=").ok_or("after the question mark, only db=number may stand")?;
        config.database = parse_database(number)?;
    }
    Ok(config)
}

fn parse_credentials(text: &str) -> Result<(Option<String>, Option<Secret>), String> {
    let (username, password) = text.split_once(':').unwrap_or((text, ""));
    let username = decode(username).ok_or("the user name holds a % that begins no percent-encoded byte; write %25")?;
    let password = decode(password).ok_or("the password holds a % that begins no percent-encoded byte; write %25")?;
    let given = |text: String| (!text.is_empty()).then_some(text);
    Ok((given(username), given(password).map(Secret)))
}

fn parse_port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("the port is {text:?}; it must be a number from 1 to 65535")),
    }
}

fn parse_database(text: &str) -> Result<u8, String> {
    text.parse().map_err(|_| format!("the database is {text:?}; it must be a number from 0 to 255"))
}

fn parse_switch(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(format!("it is {text:?}; it must be true or false")),
    }
}

/// Percent-decodes; `None` when the result is no text.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (high, low) = (char::from(rest.next()?).to_digit(16)?, char::from(rest.next()?).to_digit(16)?);
        bytes.push(u8::try_from(high << 4 | low).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The target, user, password, database and TLS of a configuration, as one text.
    fn shown(config: &RedisConfig) -> String {
        let secret = config.password.as_ref().map_or("-", Secret::expose);
        let user = config.username.as_deref().unwrap_or("-");
        format!("{} {user} {secret} {} {:?}", config.target, config.database, config.tls)
    }

    #[test]
    fn urls_are_read() {
        let cases = [
            ("redis://h", "h:6379 - - 0 Off"),
            ("redis://127.0.0.1:7000", "127.0.0.1:7000 - - 0 Off"),
            ("REDIS://h:1/", "h:1 - - 0 Off"),
            ("redis://h/15", "h:6379 - - 15 Off"),
            ("rediss://h:6380/1", "h:6380 - - 1 System"),
            ("redis://[::1]:7000/2", "[::1]:7000 - - 2 Off"),
            ("redis://[::1]", "[::1]:6379 - - 0 Off"),
            ("redis://:pw@h", "h:6379 - pw 0 Off"),
            ("redis://me:pw@h:1", "h:1 me pw 0 Off"),
            ("redis://me:p%40%3A%2F%3F%25@h", "h:6379 me p@:/?% 0 Off"),
            ("redis://me:a@b:c#d@h", "h:6379 me a@b:c#d 0 Off"),
            ("redis://m%C3%A9:%c3%a9@h", "h:6379 mé é 0 Off"),
            ("unix:///run/redis.sock", "/run/redis.sock - - 0 Off"),
            ("redis+unix:///run/a%20b.sock?db=3", "/run/a b.sock - - 3 Off"),
            ("redis+unix://me:pw@/run/@.sock", "/run/@.sock me pw 0 Off"),
            ("redis-cluster://h", "h:6379 - - 0 Off"),
            ("redis-cluster://me:pw@a:1,[::1]:2,c/0", "a:1,[::1]:2,c:6379 me pw 0 Off"),
            ("rediss-cluster://a:1", "a:1 - - 0 System"),
            ("redis-sentinel://:pw@a,b:2/cache", "a:26379,b:2/cache - pw 0 Off"),
            ("rediss-sentinel://a/my%20cache/3", "a:26379/my cache - - 3 System"),
        ];
        for (url, expected) in cases {
            assert_eq!(RedisConfig::url(url).map(|config| shown(&config)), Ok(expected.to_owned()), "{url}");
        }
    }

    #[test]
    fn a_malformed_url_is_refused_with_what_would_be_right() {
        let cases = [
            ("", "no scheme"),
            ("127.0.0.1:6379", "write redis://host:port"),
            ("http://h", "the scheme is \"http\""),
            ("redis-cluster://", "the host is missing"),
            ("redis-cluster://a,,b", "the host is missing"),
            ("redis-cluster://a:1,b:x", "the port is \"x\""),
            ("redis-cluster://h/1", "a cluster has database 0 only"),
            ("rediss-cluster://h?x", "takes no options"),
            ("rediss-sentinel://h", "the service is missing"),
            ("redis-sentinel://h/", "the service is missing"),
            ("redis-sentinel:///cache", "the host is missing"),
            ("redis-sentinel://h/cache/x", "the database is \"x\""),
            ("redis-sentinel://h/cache?x", "takes no options"),
            ("redis-sentinel://h/ca%che", "the service holds a %"),
            ("redis://", "the host is missing"),
            ("redis:///1", "the host is missing"),
            ("redis://:6379", "the host is missing"),
            ("redis://h:", "the port is \"\""),
            ("redis://h:0", "from 1 to 65535"),
            ("redis://h:65536", "the port is \"65536\""),
            ("redis://h:1:2", "the port is \"1:2\""),
            ("redis://h/x", "the database is \"x\""),
            ("redis://h/1/2", "the database is \"1/2\""),
            ("redis://h/256", "from 0 to 255"),
            ("redis://h?timeout=1", "takes no options"),
            ("redis://a b", "the host is \"a b\""),
            ("redis://[::1", "closing bracket"),
            ("redis://[::1]7000", "a colon and the port"),
            ("redis://u:%4@h", "the password holds a %"),
            ("redis://%zz:p@h", "the user name holds a %"),
            ("redis://u:%ff@h", "the password holds a %"),
            ("unix://run/redis.sock", "begin with a slash"),
            ("unix://", "the path is missing"),
            ("unix:///s?x=1", "only db=number"),
            ("unix:///s?db=x", "the database is \"x\""),
        ];
        for (url, part) in cases {
            let error = RedisConfig::url(url).expect_err(url).to_string();
            assert!(error.starts_with("the Redis URL: ") && error.contains(part), "{url}: {error}");
        }
    }

    #[test]
    fn no_error_and_no_debug_shows_a_secret() {
        let broken = [
            "redis://me:s3cr/et@h",
            "redis://me:s3cr?et@h",
            "redis://me:s3cr%et@h",
            "redis://me:s3cret@h:x",
            "redis://me:s3cret@h/x",
            "redis://me:s3cret@",
            "redis+unix://me:s3cr/et@/run/redis.sock",
            "unix://me:s3cret/run/redis.sock",
            "me:s3cret@h",
        ];
        for url in broken {
            let error = RedisConfig::url(url).expect_err(url);
            assert!(!format!("{error}{error:?}").contains("s3cr"), "{error}");
        }
        let config = RedisConfig::url("redis://me:s3cret@h").expect("a URL");
        assert!(!format!("{config:?}{config:#?}").contains("s3cret"));
    }

    fn from(variables: &[(&str, &str)]) -> Result<RedisConfig, ConfigError> {
        RedisConfig::from_lookup(|name| {
            variables.iter().find_map(|(variable, value)| (*variable == name).then(|| (*value).to_owned()))
        })
    }

    #[test]
    fn the_environment_is_read() {
        let cases: [(&[(&str, &str)], &str); 8] = [
            (&[("REDIS_URL", "redis-cluster://a,b"), ("REDIS_PASSWORD", "p")], "a:6379,b:6379 - p 0 Off"),
            (&[("REDIS_URL", "redis://a:1")], "a:1 - - 0 Off"),
            (&[("REDIS_URL", "redis://a:1"), ("REDIS_HOST", "b"), ("REDIS_PORT", "x")], "a:1 - - 0 Off"),
            (&[("REDIS_URL", "redis://u:p@a"), ("REDIS_PASSWORD", "q")], "a:6379 u p 0 Off"),
            (&[("REDIS_URL", "redis://a"), ("REDIS_USERNAME", "u"), ("REDIS_PASSWORD", "q@")], "a:6379 u q@ 0 Off"),
            (&[("REDIS_URL", ""), ("REDIS_HOST", "b")], "b:6379 - - 0 Off"),
            (&[("REDIS_HOST", "b"), ("REDIS_PORT", "7"), ("REDIS_TLS", "TRUE")], "b:7 - - 0 System"),
            (&[("REDIS_HOST", "b"), ("REDIS_PASSWORD", "p"), ("REDIS_TLS", "0")], "b:6379 - p 0 Off"),
        ];
        for (variables, expected) in cases {
            assert_eq!(from(variables).map(|config| shown(&config)), Ok(expected.to_owned()), "{variables:?}");
        }
    }

    #[test]
    fn sentinels_have_a_password_of_their_own() {
        let url = ("REDIS_URL", "redis-sentinel://:p@a/cache");
        let config = from(&[url, ("REDIS_SENTINEL_USERNAME", "s"), ("REDIS_SENTINEL_PASSWORD", "s3cret")]);
        let config = config.expect("an environment");
        assert_eq!(config.sentinel_username.as_deref(), Some("s"));
        assert_eq!(config.sentinel_password.as_ref().map(Secret::expose), Some("s3cret"));
        assert_eq!(shown(&config), "a:26379/cache - p 0 Off");
        assert!(!format!("{config:?}").contains("s3cret"));
        assert_eq!(from(&[url]).expect("an environment").sentinel_password, None);
    }

    #[test]
    fn a_variable_that_cannot_be_read_is_named() {
        let cases: [(&[(&str, &str)], &str); 4] = [
            (&[("REDIS_PASSWORD", "s3cret")], "REDIS_URL: it is not set"),
            (&[("REDIS_URL", "a:1"), ("REDIS_HOST", "b")], "REDIS_URL: it has no scheme"),
            (&[("REDIS_HOST", "b"), ("REDIS_PORT", "70000")], "REDIS_PORT: the port is \"70000\""),
            (&[("REDIS_HOST", "b"), ("REDIS_TLS", "maybe")], "REDIS_TLS: it is \"maybe\""),
        ];
        for (variables, part) in cases {
            let error = from(variables).expect_err(part).to_string();
            assert!(error.starts_with(part), "{error}");
        }
    }

    #[test]
    fn what_cannot_work_together_is_refused() {
        let config = || RedisConfig::tcp("h", 1);
        let cases = [
            (config().read_timeout(Duration::ZERO), "read_timeout"),
            (config().write_timeout(Duration::from_secs(61)), "write_timeout"),
            (config().in_flight(0), "in_flight"),
            (config().scan_rate(0), "scan_rate"),
            (config().outage_after(Duration::from_secs(1)), "outage_after"),
            (config().fill_bytes(usize::MAX), "fill_bytes"),
            (config().username("u"), "password"),
            (RedisConfig::unix("/s").tls(), "tls"),
            (RedisConfig::tcp("", 1), "host"),
            (RedisConfig::cluster([("", 1)]), "host"),
            (RedisConfig::cluster(Vec::<(String, u16)>::new()), "cluster"),
            (RedisConfig::cluster([("h", 1)]).database(1), "database"),
            (RedisConfig::sentinel(Vec::<(String, u16)>::new(), "s"), "sentinel"),
            (RedisConfig::sentinel([("h", 1)], ""), "service"),
            (RedisConfig::sentinel([("h", 1)], "s").sentinel_username("u"), "sentinel_password"),
        ];
        for (config, setting) in cases {
            assert_eq!(config.check().map_err(|error| error.setting), Err(setting));
        }
        assert_eq!(config().username("u").password("p").tls_ca_file("ca.pem").tls().check(), Ok(()));
    }
}
