//! A program of this repository as its users run it: a process of its own, whose output is kept, and which is killed when
//! dropped.

use crate::wait::until;
use std::{
    env, fs,
    fs::File,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// How long a program may take to what is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running program.
#[derive(Debug)]
pub struct Process {
    child: Child,
    folder: TempDir,
}

impl Process {
    /// Starts what a command says, with nothing to read.
    ///
    /// # Panics
    ///
    /// When there is no such program.
    pub fn start(command: &mut Command) -> Self {
        let folder = tempfile::tempdir().expect("the folder for temporary files is writable");
        let kept = |name: &str| File::create(folder.path().join(name)).expect("the temporary folder is writable");
        let child = command.stdin(Stdio::null()).stdout(kept(STDOUT)).stderr(kept(STDERR)).spawn();
        match child {
            Ok(child) => Self { child, folder },
            Err(error) => panic!("{command:?} did not start: {error}"),
        }
    }

    /// What it has written to its standard output.
    pub fn stdout(&self) -> String {
        self.read(STDOUT)
    }

    /// What it has written to its standard error.
    pub fn stderr(&self) -> String {
        self.read(STDERR)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }

    /// Waits until its standard output holds `text`, and returns all of it.
    ///
    /// # Panics
    ///
    /// When it ends before, or takes more than 30 seconds; the message has what it wrote.
    pub fn printed(&mut self, text: &str) -> String {
        let began = Instant::now();
        loop {
            let ended = self.child.try_wait().expect("the state of a process of ours");
            let printed = self.stdout();
            if printed.contains(text) {
                return printed;
            }
            let is_in_time = ended.is_none() && began.elapsed() < PATIENCE;
            assert!(is_in_time, "{text:?} was not printed ({ended:?}), but {printed}{}", self.stderr());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    ///
    /// When it does not within 30 seconds.
    pub fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        let mut status = None;
        until("the process has ended", PATIENCE, || {
            status = child.try_wait().expect("the state of a process of ours");
            status.is_some()
        });
        status.expect("it has ended")
    }

    /// Whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the state of a process of ours").is_none()
    }

    /// Sends a signal, named as `kill` names it.
    ///
    /// # Panics
    ///
    /// When the process has ended.
    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// Freezes it.
    pub fn stop(&self) {
        self.signal("STOP");
    }

    /// Lets it go on.
    pub fn cont(&self) {
        self.signal("CONT");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both only fail when the process is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const STDOUT: &str = "stdout";
const STDERR: &str = "stderr";

/// Sends a signal to a process.
pub(crate) fn signal(process: u32, name: &str) {
    let status = Command::new("kill")
        .args([format!("-{name}"), process.to_string()])
        .status()
        .expect("the command `kill` is part of every Unix");
    assert!(status.success(), "kill -{name} {process} failed ({status})");
    if name == "STOP" {
        until("the process is frozen", PATIENCE, || is_frozen(process));
    }
}

/// Whether all threads of a process stand still. A signal is only sent by `kill`: until one thread has come to take it, which
/// may have to wait for a processor, the others go on. Where there is no `/proc`, that cannot be told.
fn is_frozen(process: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else { return true };
    let mut states = threads.flatten().map(|thread| fs::read_to_string(thread.path().join("stat")).unwrap_or_default());
    // The state stands behind the name, which is in parentheses and may be anything.
    states.all(|stat| stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T')))
}

/// What the variables begin with that cargo sets for a test.
const OF_TEST: [&str; 3] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_"];

/// The program of an example, by the name of its package, built with the profile of this test.
///
/// Cargo builds programs for the tests of their own package only, so this asks it to.
///
/// # Panics
///
/// When it cannot be built; the message says why.
pub fn program(example: &str) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let test = env::current_exe().expect("the program of this test");
    // <target>/<profile>/deps/<test>
    let built = test.ancestors().nth(2).expect("cargo builds tests in a folder of the profile");
    let (target, profile) = (built.parent(), built.file_name().and_then(|name| name.to_str()));
    let (Some(target), Some(profile)) = (target, profile) else {
        panic!("{} is no folder of cargo's", built.display())
    };
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What tells a test of its package would make what looks at it be built anew, here and by whoever comes after.
    let of_test = env::vars_os().map(|(name, _)| name);
    for name in of_test.filter(|name| name.to_str().is_some_and(|name| OF_TEST.iter().any(|of| name.starts_with(of)))) {
        cargo.env_remove(name);
    }
    let output = cargo
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        // All at once: alone, each would have what it depends on built with other features.
        .args(["build", "--quiet", "--package", "gateway", "--package", "quickstart", "--bins"])
        .args(["--profile", if profile == "debug" { "dev" } else { profile }, "--target-dir"])
        .arg(target)
        .output();
    match output {
        Ok(output) if output.status.success() => built.join(example),
        Ok(output) => panic!("the examples cannot be built: {}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => panic!("cargo does not run: {error}"),
    }
}
