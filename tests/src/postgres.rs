//! A real PostgreSQL of one test: in a folder of its own, on a free loopback port, ended when dropped.

use crate::server::free_port;
use std::{
    env, fs,
    fs::File,
    os::unix::{
        fs::{MetadataExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// What is needed of its programs, which lie in one folder.
const PROGRAMS: [&str; 3] = ["initdb", "pg_isready", "postgres"];
/// The user, and the database, of every server.
const USER: &str = "shop";
const DATABASE: &str = "postgres";
/// The user that a server runs as where the tests run as root, which PostgreSQL refuses: `nobody`, on every system.
const NOBODY: u32 = 65_534;

/// A running server.
#[derive(Debug)]
pub struct PostgresServer {
    programs: PathBuf,
    process: Child,
    port: u16,
    folder: TempDir,
}

impl PostgresServer {
    /// Starts a server with an empty database, on a free port.
    ///
    /// # Panics
    ///
    /// When the programs are missing, or the server does not answer within twenty seconds; the message has its log.
    pub fn start() -> Self {
        let (programs, folder) = (programs(), tempfile::tempdir().expect("the folder for temporary files is writable"));
        let data = folder.path().join("data");
        if runs_as_root(folder.path()) {
            chown(folder.path(), Some(NOBODY), Some(NOBODY)).expect("root may give a folder away");
        }
        let made = command(&programs, "initdb", folder.path())
            .args(["--username", USER, "--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync", "-D"])
            .arg(&data)
            .output();
        match made {
            Ok(made) if made.status.success() => {}
            Ok(made) => panic!("initdb failed ({}): {}", made.status, String::from_utf8_lossy(&made.stderr)),
            Err(error) => panic!("{} does not run: {error}", programs.join("initdb").display()),
        }
        let port = free_port();
        let log = File::create(folder.path().join("server.log")).expect("the temporary folder is writable");
        let process = command(&programs, "postgres", folder.path())
            .args(["-F", "-h", "127.0.0.1", "-p", &port.to_string(), "-D"])
            .arg(&data)
            .arg("-k")
            .arg(folder.path())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("initdb ran, and so does the program beside it");
        let server = Self { programs, process, port, folder };
        let began = Instant::now();
        while !server.is_ready() {
            assert!(began.elapsed() < Duration::from_secs(20), "PostgreSQL did not come up:\n{}", server.log());
            thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// The URL for a client.
    pub fn url(&self) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/{DATABASE}", self.port)
    }

    fn is_ready(&self) -> bool {
        let asked = command(&self.programs, "pg_isready", self.folder.path())
            .args(["-q", "-h", "127.0.0.1", "-U", USER, "-p", &self.port.to_string()])
            .status();
        asked.is_ok_and(|status| status.success())
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default()
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        // At once, and its own processes with it.
        let _ = Command::new("kill").args(["-QUIT", &self.process.id().to_string()]).status();
        let _ = self.process.wait();
    }
}

fn command(programs: &Path, program: &str, folder: &Path) -> Command {
    let mut command = Command::new(programs.join(program));
    command.current_dir(folder).stdin(Stdio::null());
    if fs::metadata(folder).is_ok_and(|folder| folder.uid() == NOBODY) {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// Whether what this process makes belongs to root.
fn runs_as_root(made: &Path) -> bool {
    fs::metadata(made).is_ok_and(|made| made.uid() == 0)
}

/// The folder of PostgreSQL's programs.
fn programs() -> PathBuf {
    let named = env::var_os("POSTGRES_BIN").filter(|path| !path.is_empty()).map(PathBuf::from);
    let packaged = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let on_path = env::var_os("PATH").unwrap_or_default();
    let places = env::split_paths(&on_path).chain(packaged.map(|version| version.path().join("bin")));
    let has_all = |folder: &PathBuf| PROGRAMS.iter().all(|program| folder.join(program).is_file());
    let found = match named {
        Some(named) => Some(named).filter(has_all),
        None => places.into_iter().find(has_all),
    };
    found.unwrap_or_else(|| {
        panic!(
            "PostgreSQL was not found: neither POSTGRES_BIN, nor PATH, nor /usr/lib/postgresql/*/bin holds {}. Run \
             `cargo xtask test`, which installs it, or set POSTGRES_BIN to the folder of its programs",
            PROGRAMS.join(", ")
        )
    })
}
