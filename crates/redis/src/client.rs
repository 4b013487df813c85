//! The one file that knows fred: how it is set up, how a command is sent, and what its events and errors mean.

use crate::{
    config::{ConfigError, RedisConfig, Target, Tls},
    fault::Fault,
};
use bytes::Bytes;
use fred::{
    clients::WithOptions,
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

impl Client {
    /// Prepares a connection, which [`connect`](Self::connect) makes.
    pub(crate) fn new(config: &RedisConfig) -> Result<Self, ConfigError> {
        let mut builder = Builder::from_config(fred_config(config)?);
        builder
            // Endless, and jittered at any length of an outage; fred's other policies lose their jitter at their cap.
            .set_policy(fred::types::config::ReconnectPolicy::Constant {
                attempts: 0,
                max_attempts: 0,
                delay: 200,
                jitter: 300,
            })
            .set_performance_config(PerformanceConfig {
                default_command_timeout: config.write_timeout,
                broadcast_channel_capacity: EVENTS,
                ..PerformanceConfig::default()
            })
            .set_connection_config(connection_config());
        let client = builder.build().map_err(|error| ConfigError {
            setting: "RedisConfig",
            problem: format!("the client cannot be set up: {}", error.details()),
        })?;
        let patience = |timeout, fail_fast| {
            let options = Options { max_attempts: Some(1), timeout: Some(timeout), fail_fast, ..Options::default() };
            client.with_options(&options)
        };
        Ok(Self {
            reads: patience(config.read_timeout, true),
            writes: patience(config.write_timeout, true),
            purges: patience(config.write_timeout.max(PURGE_TIMEOUT), true),
            checks: patience(config.write_timeout, false),
        })
    }

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

    /// The messages of all channels that are asked for.
    pub(crate) fn messages(&self) -> Messages {
        Messages(self.checks.message_rx())
    }

    /// Sends a command whose key, if it has one, is the argument at `key`.
    pub(crate) async fn call(
        &self,
        patience: Patience,
        command: &'static str,
        key: Option<usize>,
        arguments: Vec<Bytes>,
    ) -> Result<Reply, Fault> {
        let client = match patience {
            Patience::Read => &self.reads,
            Patience::Write => &self.writes,
            Patience::Purge => &self.purges,
            Patience::Check => &self.checks,
        };
        let slot = key.map_or(ClusterHash::Random, ClusterHash::Offset);
        // fred's own conversions would look through every body for whether it is UTF-8.
        let arguments: Vec<Value> = arguments.into_iter().map(Value::Bytes).collect();
        // fred's futures are of seven kilobytes: on the heap, they are not copied at every level above.
        let frame = Box::pin(client.custom_raw(CustomCommand::new_static(command, slot, false), arguments));
        frame.await.map_err(fault).and_then(reply)
    }
}

/// What comes on the channels that were asked for.
#[derive(Debug)]
pub(crate) struct Messages(broadcast::Receiver<Message>);

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
    pub(crate) async fn next(&mut self) -> Heard {
        match self.0.recv().await {
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

fn reply(frame: Resp3Frame) -> Result<Reply, Fault> {
    match frame {
        Resp3Frame::Null => Ok(Reply::Nil),
        Resp3Frame::BlobString { data, .. } | Resp3Frame::VerbatimString { data, .. } => Ok(Reply::Bytes(data)),
        Resp3Frame::SimpleString { data, .. } => Ok(Reply::Status(data)),
        Resp3Frame::Number { data, .. } => Ok(Reply::Number(data)),
        Resp3Frame::Array { data, .. } => data.into_iter().map(reply).collect::<Result<_, _>>().map(Reply::Array),
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

fn fred_config(config: &RedisConfig) -> Result<Config, ConfigError> {
    let server = match &config.target {
        Target::Tcp { host, port } => ServerConfig::new_centralized(host, *port),
        Target::Unix(path) => ServerConfig::new_unix_socket(path),
    };
    let tls = match &config.tls {
        Tls::Off => None,
        Tls::System => Some(tls_connector(system_authorities()?)?.into()),
        Tls::Authorities(path) => Some(tls_connector(authorities_in(path)?)?.into()),
    };
    Ok(Config {
        // So that `init` tells of a failure; it is tried again by us.
        fail_fast: true,
        version: RespVersion::RESP3,
        server,
        username: config.username.clone(),
        password: config.password.as_ref().map(|password| password.expose().to_owned()),
        database: (config.database > 0).then_some(config.database),
        tls,
        ..Config::default()
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
        // Not READONLY: every write that is refused would cost everybody the connection.
        reconnect_errors: vec![ReconnectError::ClusterDown, ReconnectError::Loading, ReconnectError::MasterDown],
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
