//! The one file that knows fred: how it is set up, how a command is sent, and what its events and errors mean.

use crate::{
    config::{ConfigError, RedisConfig, Secret, Server, Tls},
    fault::Fault,
};
use bytes::Bytes;
use fred::{
    clients::{Pipeline, WithOptions},
    error::{Error, ErrorKind},
    interfaces::{ClientLike, EventInterface, KeysInterface, PubsubInterface, Resp3Frame},
    types::{
        Builder, ClusterHash, ConnectHandle, CustomCommand, Message, RespVersion, Value,
        config::{
            Config, ConnectionConfig, Options, PerformanceConfig, ReconnectError, ServerConfig, TcpConfig,
            TlsConnector, UnresponsiveConfig,
        },
    },
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};
use socket2::TcpKeepalive;
use std::{path::Path, sync::Arc, time::Duration};
use tokio::sync::{broadcast, oneshot};

/// How long a connection may take to be made, and then again to be signed in.
const CONNECTION_TIMEOUT: Duration = Duration::from_millis(500);
/// The least that a purge may take.
const PURGE_TIMEOUT: Duration = Duration::from_secs(2);
/// How much of the time for reading a command of a cluster may take, in tenths: the rest is for noticing that it took too
/// long before whoever waits has gone.
const TENTHS: u32 = 9;
/// How many events may wait to be taken note of; fred drops the oldest beyond that.
const EVENTS: usize = 4096;

/// One connection to Redis, on which the commands of all tasks are pipelined.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    reads: WithOptions<fred::clients::Client>,
    writes: WithOptions<fred::clients::Client>,
    purges: WithOptions<fred::clients::Client>,
    checks: WithOptions<fred::clients::Client>,
}

/// How long a command may take, and whether it waits for a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Patience {
    /// A request waits for it.
    Read,
    /// It stores.
    Write,
    /// It removes: giving up leaves old answers behind.
    Purge,
    /// It asks whether the connection works, and so is sent whatever is known about that.
    Check,
}

impl Patience {
    /// Whether giving up leaves old answers behind.
    pub(crate) fn is_of_purge(self) -> bool {
        matches!(self, Self::Purge)
    }
}

/// A reply that is no error.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Reply {
    Nil,
    Number(i64),
    Bytes(Bytes),
    /// A word of Redis' own, as `OK`; never something that was stored.
    Status(Bytes),
    Array(Vec<Reply>),
}

impl Reply {
    pub(crate) fn into_bytes(self) -> Option<Bytes> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    pub(crate) fn into_array(self) -> Option<Vec<Self>> {
        match self {
            Self::Array(replies) => Some(replies),
            _ => None,
        }
    }
}

/// What happened to a connection.
#[derive(Debug)]
pub(crate) enum Event {
    /// It broke, or could not be made again.
    Broken(Fault),
    /// It was made again.
    Made,
    /// It is given up, and [`Client::connect`] must be called again.
    Ended,
}

/// Prepares connections to the servers of one configuration.
#[derive(Debug)]
pub(crate) struct Dialer {
    sign_in: SignIn,
    tls: Option<TlsConnector>,
    read_timeout: Duration,
    write_timeout: Duration,
}

#[derive(Debug)]
struct SignIn {
    username: Option<String>,
    password: Option<Secret>,
    database: u8,
}

impl Dialer {
    /// For the servers that hold the keys.
    pub(crate) fn new(config: &RedisConfig) -> Result<Self, ConfigError> {
        let sign_in =
            SignIn { username: config.username.clone(), password: config.password.clone(), database: config.database };
        let is_cluster = config.target.is_cluster();
        let read_timeout = if is_cluster { config.read_timeout * TENTHS / 10 } else { config.read_timeout };
        Ok(Self { sign_in, tls: tls(&config.tls)?, read_timeout, write_timeout: config.write_timeout })
    }

    /// For the sentinels, which have users of their own, and no databases.
    pub(crate) fn to_sentinels(config: &RedisConfig) -> Result<Self, ConfigError> {
        let sign_in = SignIn {
            username: config.sentinel_username.clone(),
            password: config.sentinel_password.clone(),
            database: 0,
        };
        Ok(Self { sign_in, ..Self::new(config)? })
    }

    /// How long a command may take on which a request waits.
    pub(crate) fn read_timeout(&self) -> Duration {
        self.read_timeout
    }

    /// How long a command may take.
    pub(crate) fn time_for(&self, patience: Patience) -> Duration {
        match patience {
            Patience::Read => self.read_timeout,
            Patience::Write | Patience::Check => self.write_timeout,
            Patience::Purge => self.write_timeout.max(PURGE_TIMEOUT),
        }
    }

    /// Prepares a connection, which [`Client::connect`] makes.
    pub(crate) fn client(&self, server: &Server) -> Result<Client, ConfigError> {
        let mut builder = Builder::from_config(self.fred_config(server));
        builder
            // Endless, and jittered at any length of an outage; fred's other policies lose their jitter at their cap.
            .set_policy(fred::types::config::ReconnectPolicy::Constant {
                attempts: 0,
                max_attempts: 0,
                delay: 200,
                jitter: 300,
            })
            .set_performance_config(PerformanceConfig {
                default_command_timeout: self.write_timeout,
                broadcast_channel_capacity: EVENTS,
                ..PerformanceConfig::default()
            })
            .set_connection_config(connection_config());
        let client = builder.build().map_err(|error| ConfigError {
            setting: "RedisConfig",
            problem: format!("the client cannot be set up: {}", error.details()),
        })?;
        let with = |patience| {
            let (timeout, fail_fast) = (Some(self.time_for(patience)), !matches!(patience, Patience::Check));
            client.with_options(&Options { max_attempts: Some(1), timeout, fail_fast, ..Options::default() })
        };
        Ok(Client {
            reads: with(Patience::Read),
            writes: with(Patience::Write),
            purges: with(Patience::Purge),
            checks: with(Patience::Check),
        })
    }

    fn fred_config(&self, server: &Server) -> Config {
        let SignIn { username, password, database } = &self.sign_in;
        Config {
            // So that `init` tells of a failure; it is tried again by us.
            fail_fast: true,
            version: RespVersion::RESP3,
            server: match server {
                Server::Tcp(address) => ServerConfig::new_centralized(&address.host, address.port),
                Server::Unix(path) => ServerConfig::new_unix_socket(path),
            },
            username: username.clone(),
            password: password.as_ref().map(|password| password.expose().to_owned()),
            database: (*database > 0).then_some(*database),
            tls: self.tls.clone().map(Into::into),
            ..Config::default()
        }
    }
}

impl Client {
    /// Makes the connection, which then is made again whenever it breaks.
    ///
    /// In a task of its own: fred lives on where its future is dropped, and nobody would close what it then connects.
    pub(crate) async fn connect(&self) -> Result<Link, Fault> {
        let (made, link) = oneshot::channel();
        let client = self.clone();
        tokio::spawn(async move { made.send(client.link().await) });
        link.await.unwrap_or(Err(Fault::Down))
    }

    async fn link(&self) -> Result<Link, Fault> {
        let errors = self.checks.error_rx();
        let task = self.checks.init().await.map_err(fault)?;
        // From here on: fred tells of the first connection as well.
        Ok(Link { errors, reconnects: self.checks.reconnect_rx(), task })
    }

    /// Whether fred believes to be connected. After an error it does so wrongly until its first attempt to reconnect.
    pub(crate) fn is_connected(&self) -> bool {
        self.checks.is_connected()
    }

    /// Drops the connection, with all commands in flight, and makes a new one; returns when it is made.
    pub(crate) async fn reconnect(&self) {
        // It fails when the connection is given up, which `Event::Ended` tells.
        let _ = self.checks.force_reconnection().await;
    }

    /// Reads a key.
    ///
    /// Not as a command of our own: fred writes those to the socket one by one, which halves what a connection carries.
    pub(crate) async fn get(&self, key: Bytes) -> Result<Reply, Fault> {
        let value = Box::pin(self.reads.get::<Value, _>(key)).await.map_err(fault)?;
        stored(value).ok_or(Fault::Foreign)
    }

    /// Reads many keys; there are as many replies, in their order.
    pub(crate) async fn get_all(&self, keys: Vec<Bytes>) -> Result<Vec<Reply>, Fault> {
        let count = keys.len();
        let Value::Array(values) = Box::pin(self.reads.mget::<Value, _>(keys)).await.map_err(fault)? else {
            return Err(Fault::Foreign);
        };
        let replies: Option<Vec<Reply>> = values.into_iter().map(stored).collect();
        replies.filter(|replies| replies.len() == count).ok_or(Fault::Foreign)
    }

    /// Asks for the messages of a channel. They stop when the connection breaks.
    pub(crate) async fn subscribe(&self, channel: String) -> Result<(), Fault> {
        Box::pin(self.checks.subscribe(channel)).await.map_err(fault)
    }

    /// Asks for the messages of a channel of the slot that this server has. They stop when it has that no longer.
    pub(crate) async fn subscribe_of_slot(&self, channel: String) -> Result<(), Fault> {
        Box::pin(self.checks.ssubscribe(channel)).await.map_err(fault)
    }

    /// The messages of all channels that are asked for.
    pub(crate) fn messages(&self) -> Messages {
        Messages(Some(self.checks.message_rx()))
    }

    /// Sends a command whose key, if it has one, is the argument at `key`.
    pub(crate) async fn call(
        &self,
        patience: Patience,
        command: &'static str,
        key: Option<usize>,
        arguments: Vec<Bytes>,
    ) -> Result<Reply, Fault> {
        let slot = key.map_or(ClusterHash::Random, ClusterHash::Offset);
        // fred's futures are of seven kilobytes: on the heap, they are not copied at every level above.
        let frame = Box::pin(
            self.patient(patience).custom_raw(CustomCommand::new_static(command, slot, false), values(arguments)),
        );
        frame.await.map_err(fault).and_then(reply)
    }

    /// Sends a command to a server that is about to take over the key's slot, and answers only if asked to.
    pub(crate) async fn call_asking(
        &self,
        patience: Patience,
        command: &'static str,
        arguments: Vec<Bytes>,
    ) -> Result<Reply, Fault> {
        // The one before holds for the one after, so nothing may be sent between them.
        let pipeline = Pipeline::from(self.patient(patience).clone());
        let custom = |command| CustomCommand::new_static(command, ClusterHash::Random, false);
        pipeline.custom::<(), Value>(custom("ASKING"), Vec::new()).await.map_err(fault)?;
        pipeline.custom::<(), Value>(custom(command), values(arguments)).await.map_err(fault)?;
        let replies = Box::pin(pipeline.try_all::<Value>()).await;
        // An error of the connection is the only one.
        replies.into_iter().next_back().unwrap_or(Ok(Value::Null)).map_err(fault).and_then(converted)
    }

    fn patient(&self, patience: Patience) -> &WithOptions<fred::clients::Client> {
        match patience {
            Patience::Read => &self.reads,
            Patience::Write => &self.writes,
            Patience::Purge => &self.purges,
            Patience::Check => &self.checks,
        }
    }
}

/// fred's own conversions would look through every body for whether it is UTF-8.
fn values(arguments: Vec<Bytes>) -> Vec<Value> {
    arguments.into_iter().map(Value::Bytes).collect()
}

/// What comes on the channels that were asked for.
#[derive(Debug)]
pub(crate) struct Messages(Option<broadcast::Receiver<Message>>);

/// What was heard.
#[derive(Debug)]
pub(crate) enum Heard {
    /// A message.
    Message {
        /// The channel it came on.
        channel: String,
        /// What it says.
        text: String,
    },
    /// More messages than could be kept.
    Lagged,
    /// Nothing, and nothing more will be.
    Ended,
}

impl Messages {
    /// Those of no connection: none ever comes.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    pub(crate) async fn next(&mut self) -> Heard {
        let Some(messages) = &mut self.0 else { return std::future::pending().await };
        match messages.recv().await {
            Ok(message) => Heard::Message {
                channel: message.channel.to_string(),
                text: message.value.into_string().unwrap_or_default(),
            },
            Err(broadcast::error::RecvError::Lagged(_)) => Heard::Lagged,
            Err(broadcast::error::RecvError::Closed) => Heard::Ended,
        }
    }
}

/// A connection that was made; when it is dropped, so is the connection.
#[derive(Debug)]
pub(crate) struct Link {
    errors: broadcast::Receiver<(Error, Option<fred::types::config::Server>)>,
    reconnects: broadcast::Receiver<fred::types::config::Server>,
    task: ConnectHandle,
}

impl Link {
    /// Waits for what happens next. Of what has happened already, errors are told first.
    pub(crate) async fn event(&mut self) -> Event {
        tokio::select! {
            biased;
            error = self.errors.recv() => match error {
                Ok((error, _)) => Event::Broken(fault(error)),
                Err(broadcast::error::RecvError::Lagged(_)) => Event::Broken(Fault::Connection("too many errors at once".to_owned())),
                Err(broadcast::error::RecvError::Closed) => Event::Ended,
            },
            reconnect = self.reconnects.recv() => match reconnect {
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => Event::Made,
                Err(broadcast::error::RecvError::Closed) => Event::Ended,
            },
            _ = &mut self.task => Event::Ended,
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The digest by which Redis knows a script.
pub(crate) fn digest(script: &str) -> String {
    fred::util::sha1_hash(script)
}

/// What a key holds; nothing, if no key of a string could.
fn stored(value: Value) -> Option<Reply> {
    match value {
        Value::Null => Some(Reply::Nil),
        Value::Bytes(bytes) => Some(Reply::Bytes(bytes)),
        Value::String(text) => Some(Reply::Bytes(text.into_inner())),
        _ => None,
    }
}

/// A reply that fred has converted, in which a word of Redis' own cannot be told from what was stored.
fn converted(value: Value) -> Result<Reply, Fault> {
    match value {
        Value::Integer(number) => Ok(Reply::Number(number)),
        Value::Array(values) => values.into_iter().map(converted).collect::<Result<_, _>>().map(Reply::Array),
        value => stored(value).ok_or(Fault::Foreign),
    }
}

fn reply(frame: Resp3Frame) -> Result<Reply, Fault> {
    match frame {
        Resp3Frame::Null => Ok(Reply::Nil),
        Resp3Frame::BlobString { data, .. } | Resp3Frame::VerbatimString { data, .. } => Ok(Reply::Bytes(data)),
        Resp3Frame::SimpleString { data, .. } => Ok(Reply::Status(data)),
        Resp3Frame::Number { data, .. } => Ok(Reply::Number(data)),
        Resp3Frame::Array { data, .. } => data.into_iter().map(reply).collect::<Result<_, _>>().map(Reply::Array),
        // What is told of the servers of a cluster, and not looked at.
        Resp3Frame::Map { .. } => Ok(Reply::Nil),
        Resp3Frame::SimpleError { data, .. } => Err(Fault::Server(data.to_string())),
        Resp3Frame::BlobError { data, .. } => Err(Fault::Server(String::from_utf8_lossy(&data).into_owned())),
        // No command of larder's has a reply of another kind.
        _ => Err(Fault::Foreign),
    }
}

fn fault(error: Error) -> Fault {
    let details = error.details();
    // fred keeps a reply that makes it reconnect as the error's text, with the code in capitals at its start.
    let code = details.split_whitespace().next().unwrap_or_default();
    if code.len() > 2 && code.bytes().all(|byte| byte.is_ascii_uppercase()) {
        return Fault::Server(details.to_owned());
    }
    match error.kind() {
        ErrorKind::Timeout => Fault::Timeout,
        _ => Fault::Connection(error.to_string()),
    }
}

fn tls(tls: &Tls) -> Result<Option<TlsConnector>, ConfigError> {
    Ok(match tls {
        Tls::Off => None,
        Tls::System => Some(tls_connector(system_authorities()?)?),
        Tls::Authorities(path) => Some(tls_connector(authorities_in(path)?)?),
    })
}

fn connection_config() -> ConnectionConfig {
    let keepalive = TcpKeepalive::new();
    ConnectionConfig {
        connection_timeout: CONNECTION_TIMEOUT,
        internal_command_timeout: CONNECTION_TIMEOUT,
        max_command_attempts: 1,
        // Never a limit here: once fred 10.1.0 has refused a command for it, it sends single commands no more.
        max_command_buffer_len: 0,
        reconnect_on_auth_error: true,
        // Not READONLY or CLUSTERDOWN: every command that is refused would cost everybody the connection.
        reconnect_errors: vec![ReconnectError::Loading, ReconnectError::MasterDown],
        unresponsive: UnresponsiveConfig {
            max_timeout: Some(Duration::from_millis(1000)),
            interval: Duration::from_millis(250),
        },
        tcp: TcpConfig {
            nodelay: Some(true),
            // The only cure for a connection on which fred waits to write.
            user_timeout: Some(Duration::from_millis(1500)),
            keepalive: Some(
                keepalive.with_time(Duration::from_secs(2)).with_interval(Duration::from_secs(1)).with_retries(2),
            ),
            ..TcpConfig::default()
        },
        ..ConnectionConfig::default()
    }
}

fn tls_connector(authorities: RootCertStore) -> Result<TlsConnector, ConfigError> {
    // With a provider of its own: the process may have several, and then there is no default.
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| ConfigError { setting: "tls", problem: format!("it cannot be set up: {error}") })?;
    Ok(config.with_root_certificates(authorities).with_no_client_auth().into())
}

fn system_authorities() -> Result<RootCertStore, ConfigError> {
    let found = rustls_native_certs::load_native_certs();
    let mut authorities = RootCertStore::empty();
    authorities.add_parsable_certificates(found.certs);
    if !authorities.is_empty() {
        return Ok(authorities);
    }
    let why = found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
    let problem =
        format!("the system trusts no authority{why}; install its CA certificates, or name a file with tls_ca_file");
    Err(ConfigError { setting: "tls", problem })
}

fn authorities_in(path: &Path) -> Result<RootCertStore, ConfigError> {
    let refused = |problem: String| ConfigError {
        setting: "tls_ca_file",
        problem: format!("{} {problem}; it must be a PEM file of certificates", path.display()),
    };
    let mut authorities = RootCertStore::empty();
    for certificate in
        CertificateDer::pem_file_iter(path).map_err(|error| refused(format!("cannot be read: {error}")))?
    {
        let certificate = certificate.map_err(|error| refused(format!("cannot be read: {error}")))?;
        authorities.add(certificate).map_err(|error| refused(format!("holds what is no authority: {error}")))?;
    }
    if authorities.is_empty() { Err(refused("holds no certificate".to_owned())) } else { Ok(authorities) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_fred_are_told_apart() {
        let cases = [
            (Error::new(ErrorKind::Timeout, "Request timed out."), Fault::Timeout),
            (Error::new(ErrorKind::Unknown, "LOADING Redis is"), Fault::Server("LOADING Redis is".to_owned())),
            (Error::new(ErrorKind::Auth, "NOAUTH Auth"), Fault::Server("NOAUTH Auth".to_owned())),
            (Error::new(ErrorKind::IO, "reset"), Fault::Connection("IO Error: reset".to_owned())),
            (Error::new(ErrorKind::Canceled, "Closed."), Fault::Connection("Canceled: Closed.".to_owned())),
        ];
        for (error, expected) in cases {
            assert_eq!(fault(error), expected);
        }
    }

    #[test]
    fn a_file_that_holds_no_authority_is_refused_by_name() {
        for path in ["/nonexistent/ca.pem", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")] {
            let error = authorities_in(Path::new(path)).expect_err(path);
            assert!(error.to_string().starts_with(&format!("tls_ca_file: {path}")), "{error}");
        }
    }
}
