//! A real server of one test: started on a free loopback port in a folder of its own, killed when dropped.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    hash::{BuildHasher, Hasher, RandomState},
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use larder_redis::{ACL_COMMANDS, BEHIND_ACL_COMMANDS};
use tempfile::TempDir;

use crate::{Connection, Flavor, certificates::Certificates, process::signal};

/// A running server.
#[derive(Debug)]
pub struct RedisServer {
    program: PathBuf,
    options: RedisServerBuilder,
    port: u16,
    folder: TempDir,
    certificates: Option<Certificates>,
    process: Option<Child>,
}

impl RedisServer {
    /// Starts a Redis without password, on a free port.
    pub fn start() -> Self {
        Self::builder().start()
    }

    /// A server with options.
    pub fn builder() -> RedisServerBuilder {
        RedisServerBuilder::default()
    }

    /// The TCP port; 0 for a server that listens on its Unix socket only.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The TCP address.
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The URL for a client: of a user who may do what larder's documentation asks for, on the keys of the namespaces that
    /// tests use, and nothing else; or with the password if there is one.
    pub fn url(&self) -> String {
        let credentials = match &self.options.access {
            Access::Password(password) => format!(":{}@", percent_encoded(password)),
            Access::Limited if self.options.sentinel.is_none() => format!("{USER}:{USER}@"),
            Access::Limited | Access::Open | Access::Acl(_) => String::new(),
        };
        self.url_with(&credentials)
    }

    /// The URL for a client that signs in as a user of the ACL.
    pub fn url_as(&self, user: &str, password: &str) -> String {
        self.url_with(&format!("{}:{}@", percent_encoded(user), percent_encoded(password)))
    }

    fn url_with(&self, credentials: &str) -> String {
        match self.options.transport {
            Transport::Tcp => format!("redis://{credentials}{}", self.addr()),
            Transport::Tls => format!("rediss://{credentials}{}", self.addr()),
            Transport::Unix => {
                format!("redis+unix://{credentials}{}", self.socket_path().display())
            }
        }
    }

    /// The Unix socket, on which every server listens, whatever else it does.
    pub fn socket_path(&self) -> PathBuf {
        self.folder.path().join("redis.sock")
    }

    /// The PEM file of the authority that signed the server's certificate.
    ///
    /// # Panics
    ///
    /// When the server was started without [`RedisServerBuilder::tls`].
    pub fn ca_path(&self) -> &Path {
        let certificates = self.certificates.as_ref();
        &certificates.expect("only a server with tls() has certificates").ca
    }

    /// The id of the server's process.
    ///
    /// # Panics
    ///
    /// When the server was killed.
    pub fn pid(&self) -> u32 {
        let process = self.process.as_ref();
        process.expect("the server was not killed").id()
    }

    /// Whether it was not killed.
    pub fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// What the server has logged since it was last started.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("server.log")
    }

    /// Ends the server at once, as a crash would, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Both only fail when the process is gone already.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Starts the server again on the same port with the same options; its data is lost.
    pub fn restart(&mut self) {
        self.kill();
        self.launch_until(Instant::now() + Duration::from_secs(2));
    }

    /// Freezes the server: the kernel still accepts connections and bytes, nobody answers.
    pub fn stop(&self) {
        signal(self.pid(), "STOP");
    }

    /// Lets a frozen server go on.
    pub fn cont(&self) {
        signal(self.pid(), "CONT");
    }

    /// Sends a command past every password, ACL and proxy, and returns its reply as text:
    /// the elements of an array on a line each, null as the empty text.
    ///
    /// # Panics
    ///
    /// When the server replies with an error, or not at all for five seconds.
    pub fn cli(&self, words: &[&str]) -> String {
        match self.try_cli(words) {
            Ok(reply) => reply,
            Err(error) => panic!("the command {words:?} was answered with the error {error:?}"),
        }
    }

    /// Like [`RedisServer::cli`], for a command that may be answered with an error.
    pub fn try_cli(&self, words: &[&str]) -> Result<String, String> {
        match self.ask(words) {
            Ok(reply) => reply,
            Err(error) => panic!("the command {words:?} got no reply: {error}\n{}", self.log()),
        }
    }

    fn ask(&self, words: &[&str]) -> io::Result<Result<String, String>> {
        let mut connection = Connection::unix(&self.socket_path())?;
        let credentials: Option<&[&str]> = match &self.options.access {
            Access::Open | Access::Limited => None,
            Access::Password(password) => Some(&["AUTH", password]),
            Access::Acl(_) => Some(&["AUTH", ADMIN, ADMIN]),
        };
        if let Some(Err(refused)) = credentials.map(|words| connection.call(words)).transpose()? {
            return Ok(Err(refused));
        }
        connection.call(words)
    }

    /// How often each command was called since the start or the last `CONFIG RESETSTAT`,
    /// by its name in small letters, a subcommand after a bar: `client|setname`.
    ///
    /// The calls of this method and of [`RedisServer::cli`] count as well (`info`, `auth`, and so on).
    pub fn command_stats(&self) -> BTreeMap<String, u64> {
        let info = self.cli(&["INFO", "commandstats"]);
        info.lines().filter_map(command_calls).collect()
    }

    /// Waits until the server answers.
    ///
    /// # Panics
    ///
    /// When it does not within ten seconds.
    pub fn wait_until_ready(&mut self) {
        if let Err(message) = self.ready() {
            panic!("{message}");
        }
    }

    fn ready(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !matches!(self.ask(&["PING"]), Ok(Ok(_))) {
            let process = self.process.as_mut().ok_or("the server was killed")?;
            let ended = process.try_wait().map_err(|error| error.to_string())?;
            if ended.is_some() || Instant::now() > deadline {
                let program = self.program.display();
                return Err(format!("{program} did not come up:\n{}", self.log()));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Between finding a free port and listening on it, another test may take it.
    fn launch_on_a_free_port(&mut self) {
        for _ in 0..10 {
            self.port = free_port();
            match self.launch() {
                Ok(()) => return,
                Err(message) => assert!(self.port_is_taken(), "{message}"),
            }
        }
        panic!("ten free ports were taken by others before the server could listen");
    }

    /// Tries again until then while somebody else holds the port.
    fn launch_until(&mut self, deadline: Instant) {
        while let Err(message) = self.launch() {
            let again = self.port_is_taken() && Instant::now() < deadline;
            assert!(again, "{message}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn launch(&mut self) -> Result<(), String> {
        let log = File::create(self.log_path()).map_err(|error| error.to_string())?;
        let errors = log.try_clone().map_err(|error| error.to_string())?;
        let process = Command::new(&self.program)
            .args(self.arguments())
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(|error| format!("{} did not start: {error}", self.program.display()))?;
        self.process = Some(process);
        self.ready().inspect_err(|_| self.kill())
    }

    fn port_is_taken(&self) -> bool {
        self.log().contains("Address already in use")
    }

    fn arguments(&self) -> Vec<String> {
        let folder = self.folder.path();
        let (port, socket) = (self.port.to_string(), self.socket_path());
        let mut arguments = vec![
            option("--bind", "127.0.0.1"),
            option("--dir", folder.display()),
            option("--unixsocket", socket.display()),
        ];
        if self.options.sentinel.is_none() {
            arguments.extend([option("--save", ""), option("--appendonly", "no")]);
        }
        match (&self.certificates, self.options.transport) {
            (Some(files), Transport::Tls) => arguments.extend([
                option("--port", 0),
                option("--tls-port", port),
                option("--tls-ca-cert-file", files.ca.display()),
                option("--tls-cert-file", files.certificate.display()),
                option("--tls-key-file", files.key.display()),
                option("--tls-auth-clients", "no"),
            ]),
            _ => arguments.push(option("--port", port)),
        }
        match &self.options.access {
            Access::Limited if self.options.sentinel.is_some() => {}
            Access::Open => {}
            Access::Password(password) => arguments.push(option("--requirepass", password)),
            Access::Limited | Access::Acl(_) => arguments.push(option("--aclfile", self.acl_path().display())),
        }
        let mut arguments = arguments.concat();
        if self.options.sentinel.is_some() {
            // A sentinel keeps what it learns in its file, which comes first.
            arguments.insert(0, self.sentinel_path().display().to_string());
            arguments.push("--sentinel".to_owned());
        }
        arguments.extend(self.options.arguments.iter().cloned());
        arguments
    }

    fn sentinel_path(&self) -> PathBuf {
        self.folder.path().join("sentinel.conf")
    }

    fn acl_path(&self) -> PathBuf {
        self.folder.path().join("users.acl")
    }
}

/// The users of a server that was told of none: whoever does not sign in may do all, as the test itself and the other
/// servers of a cluster.
fn users(flavor: Flavor) -> String {
    // Redis 7.0 does not know it.
    let behind = if flavor == Flavor::Redis {
        BEHIND_ACL_COMMANDS.replace("+waitaof", "")
    } else {
        BEHIND_ACL_COMMANDS.to_owned()
    };
    let keys = NAMESPACES.map(|name| format!("~{name}:* ~{{{name}}}* &{{{name}}}*")).join(" ");
    // `+select` is for databases other than 0 only.
    format!(
        "user default on nopass ~* &* +@all\nuser {USER} on >{USER} resetkeys resetchannels {keys} {ACL_COMMANDS} \
         {behind} +select\n"
    )
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let is_limited = matches!(self.options.access, Access::Limited) && self.options.sentinel.is_none();
        let denied = if is_limited && self.is_running() { self.ask(&["ACL", "LOG"]) } else { Ok(Ok(String::new())) };
        self.kill();
        if let Ok(Ok(denied)) = denied
            && !thread::panicking()
        {
            assert!(!denied.contains(USER), "larder wanted to do what its documentation does not ask for: {denied}");
        }
    }
}

/// How a server is to be started.
#[derive(Clone, Debug, Default)]
pub struct RedisServerBuilder {
    flavor: Flavor,
    port: Option<u16>,
    transport: Transport,
    access: Access,
    /// The lines of its file, if it is a sentinel.
    sentinel: Option<String>,
    arguments: Vec<String>,
}

/// How clients reach the server.
#[derive(Clone, Copy, Debug, Default)]
enum Transport {
    #[default]
    Tcp,
    Tls,
    Unix,
}

/// Whom the server lets in.
#[derive(Clone, Debug, Default)]
enum Access {
    /// To who does not sign in, and as far as larder needs to who does so as [`USER`].
    #[default]
    Limited,
    Open,
    Password(String),
    /// The lines of an ACL file.
    Acl(String),
}

/// The name and password of the user that [`RedisServer::url`] names.
pub(crate) const USER: &str = "limited";

/// The namespaces that tests use.
const NAMESPACES: [&str; 9] =
    ["larder", "shop", "elsewhere", "gateway", "quickstart", "test", "rows", "views", "bench"];

/// The name and password of the user that [`RedisServer::cli`] adds to an ACL.
const ADMIN: &str = "larder-tests-admin";

impl RedisServerBuilder {
    /// Which program to start; a Redis if nothing else is said.
    pub fn flavor(mut self, flavor: Flavor) -> Self {
        self.flavor = flavor;
        self
    }

    /// Listens on this port, and not on a free one.
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Adds an option of the server's configuration, such as `.arg("--maxmemory", "1mb")`.
    /// Words of the value that are divided by blanks become arguments of their own.
    pub fn arg(mut self, name: &str, value: &str) -> Self {
        self.arguments.push(name.to_owned());
        if value.is_empty() {
            self.arguments.push(String::new());
        }
        self.arguments.extend(value.split_whitespace().map(str::to_owned));
        self
    }

    /// Listens on a Unix socket only, and on no port.
    pub fn unix_socket(mut self) -> Self {
        self.transport = Transport::Unix;
        self
    }

    /// Listens with TLS only, with a certificate for `localhost` and `127.0.0.1` by an authority
    /// of its own, which [`RedisServer::ca_path`] names.
    pub fn tls(mut self) -> Self {
        self.transport = Transport::Tls;
        self
    }

    /// Has no user but the default one, who may do all.
    pub fn open(mut self) -> Self {
        self.access = Access::Open;
        self
    }

    /// Asks the default user for a password. Replaces an ACL.
    pub fn password(mut self, password: &str) -> Self {
        self.access = Access::Password(password.to_owned());
        self
    }

    /// Lets in the users of these lines (`user name on >password ~prefix:* +get`), and the default
    /// user only as far as they say. Replaces a password.
    pub fn acl(mut self, lines: &str) -> Self {
        self.access = Access::Acl(lines.to_owned());
        self
    }

    /// Is a sentinel, with these lines in its file.
    pub fn sentinel(mut self, lines: &str) -> Self {
        self.sentinel = Some(lines.to_owned());
        self
    }

    /// Starts the server and waits until it answers.
    ///
    /// # Panics
    ///
    /// When the program is missing, or ends at once; the message has its log.
    pub fn start(self) -> RedisServer {
        let folder = tempfile::tempdir().expect("the folder for temporary files is writable");
        let mut server = RedisServer {
            program: self.flavor.program(),
            port: 0,
            certificates: match self.transport {
                Transport::Tls => Some(Certificates::write(folder.path())),
                Transport::Tcp | Transport::Unix => None,
            },
            process: None,
            folder,
            options: self,
        };
        let users = match &server.options.access {
            Access::Limited => users(server.options.flavor),
            Access::Acl(lines) => format!("{}\nuser {ADMIN} on >{ADMIN} ~* &* +@all\n", lines.trim_end()),
            Access::Open | Access::Password(_) => String::new(),
        };
        fs::write(server.acl_path(), users).expect("the temporary folder is writable");
        if let Some(lines) = &server.options.sentinel {
            fs::write(server.sentinel_path(), lines).expect("the temporary folder is writable");
        }
        match (server.options.transport, server.options.port) {
            (Transport::Unix, _) => server.launch_until(Instant::now()),
            (_, Some(port)) => {
                server.port = port;
                server.launch_until(Instant::now() + Duration::from_secs(2));
            }
            (_, None) => server.launch_on_a_free_port(),
        }
        server
    }
}

/// A loopback port on which nobody listens, below those that the kernel gives to outgoing
/// connections: a client that reconnects to a dead server's port could be given that very port,
/// and would then be connected to itself. The port of a cluster's bus, 10,000 above, is below
/// them as well.
pub(crate) fn free_port() -> u16 {
    let random = RandomState::new().build_hasher().finish();
    let first = u16::try_from(random % u64::from(PORTS)).unwrap_or(0);
    (0..PORTS)
        .map(|offset| FIRST_PORT + (first + offset) % PORTS)
        .find(|&port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok())
        .expect("one of thousands of ports is free")
}

const FIRST_PORT: u16 = 15_000;
const PORTS: u16 = 7_000;

fn option(name: &str, value: impl std::fmt::Display) -> [String; 2] {
    [name.to_owned(), value.to_string()]
}

/// One line of `INFO commandstats`: `cmdstat_get:calls=3,usec=7,…`.
fn command_calls(line: &str) -> Option<(String, u64)> {
    let (name, figures) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
    let (calls, _) = figures.split_once(',')?;
    Some((name.to_owned(), calls.parse().ok()?))
}

fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_command_statistics_is_a_name_and_a_count() {
        let line = "cmdstat_client|setname:calls=12,usec=3,usec_per_call=0.25";
        assert_eq!(command_calls(line), Some(("client|setname".to_owned(), 12)));
        assert_eq!(command_calls("# Commandstats"), None);
    }

    #[test]
    fn what_divides_a_url_is_encoded_in_a_password() {
        assert_eq!(percent_encoded("p@ss:w/rd"), "p%40ss%3Aw%2Frd");
    }
}
