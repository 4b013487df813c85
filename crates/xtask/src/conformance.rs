//! The public suite of cache-tests.fyi, run against the gateway.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use crate::{
    Result,
    check::cargo,
    servers::{self, Package, run},
};

/// The release of the suite that is run when no checkout is named.
const RELEASE: &str = "http-cache-tests@0.4.5";
/// What the suite makes its requests with.
const NODE_FETCH: &str = "node-fetch@2";
/// Where what is known of each case that fails is kept: a line each, with its kind, its id, and the reason.
const KNOWN: &str = "tests/conformance/known.txt";
const PAGE: &str = "tests/conformance/README.md";
/// Where the table in the page begins.
const TABLE: &str = "\n## Results\n";

/// Runs the suite on memory, on Redis and on both as two tiers, next to another cache if one is named, and prints what came of it; for the
/// release, also writes the page.
pub(crate) fn conformance(root: &Path, suite: Option<&Path>, compare: Option<Other>) -> Result<()> {
    let tools = Tools::bring(root)?;
    let suite = suite.map_or(Ok(tools.release.clone()), std::path::absolute)?;
    let servers = servers::bring(root)?;
    let mut columns = vec![("memory", tools.judge(&suite, &Cache::Memory)?)];
    let redis = Redis::start(&servers)?;
    columns.push(("Redis", tools.judge(&suite, &Cache::Redis(&redis))?));
    columns.push(("two tiers", tools.judge(&suite, &Cache::TwoTiers(&redis))?));
    if let Some(other) = compare {
        columns.push((other.name(), tools.judge(&suite, &Cache::Other(other))?));
    }
    let table = table(&columns);
    println!("{table}");
    for (name, results) in &columns {
        println!("{name}:\n{}", results.failures());
    }
    if suite == tools.release {
        let known = Known::read(root)?;
        let page = fs::read_to_string(root.join(PAGE))?;
        let head = page.split(TABLE).next().unwrap_or_default();
        fs::write(root.join(PAGE), format!("{head}{TABLE}\n{table}\n{}", known.table(&columns[0].1)))?;
        for (name, results) in columns.iter().take(3) {
            known.check(results).map_err(|error| format!("on {name}: {error}"))?;
        }
    }
    Ok(())
}

/// Runs the release on memory, as a step of the whole check: no case may fail that is not known to.
pub(crate) fn check(root: &Path) -> Result<()> {
    let tools = Tools::bring(root)?;
    let results = tools.judge(&tools.release, &Cache::Memory)?;
    println!("{}", table(&[("memory", results.clone())]));
    Known::read(root)?.check(&results)
}

/// Another cache, from the system's packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Other {
    Nginx,
    Varnish,
}

impl Other {
    fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Varnish => "Varnish",
        }
    }
}

/// What the suite needs to run.
struct Tools {
    root: PathBuf,
    /// Where everything is kept that is downloaded or written.
    folder: PathBuf,
    release: PathBuf,
}

impl Tools {
    fn bring(root: &Path) -> Result<Self> {
        for (program, package) in [("node", &Package::NODE), ("npm", &Package::NPM)] {
            if servers::on_path(program).is_none() {
                servers::install(package)?;
            }
        }
        let folder = root.join("target/conformance");
        let release = folder.join("node_modules/http-cache-tests");
        if !release.join("client/runner.mjs").is_file() || !folder.join("node_modules/node-fetch").is_dir() {
            fs::create_dir_all(&folder)?;
            // The release itself depends on a whole npm, which nothing of it uses here.
            run(Command::new("npm").args(["pack", "--silent", RELEASE]).current_dir(&folder))?;
            run(Command::new("npm")
                .args(["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--no-save", NODE_FETCH])
                .current_dir(&folder))?;
            let archive = format!("{}.tgz", RELEASE.replace('@', "-"));
            fs::create_dir_all(&release)?;
            run(Command::new("tar")
                .args(["-xzf", &archive, "--strip-components=1", "-C"])
                .arg(&release)
                .current_dir(&folder))?;
        }
        Ok(Self { root: root.to_owned(), folder, release })
    }

    /// What comes of a suite before a cache.
    fn judge(&self, suite: &Path, cache: &Cache<'_>) -> Result<Results> {
        let origin = free()?;
        let engine =
            if suite.join("test-engine").is_dir() { "test-engine/server/server.mjs" } else { "server/server.mjs" };
        let _origin = Running::start(
            Command::new("node")
                .args(["--no-warnings", engine])
                .current_dir(suite)
                .env("npm_config_protocol", "http")
                .env("npm_config_port", origin.port().to_string())
                .env("npm_config_pidfile", self.folder.join("origin.pid")),
            origin,
        )?;
        let address = free()?;
        let (_cache, name) = match cache {
            Cache::Memory => (self.gateway(address, origin, &[])?, "memory"),
            Cache::Redis(redis) => (self.gateway(address, origin, &["--redis", &redis.url()])?, "redis"),
            Cache::TwoTiers(redis) => {
                let arguments = ["--redis", &redis.url(), "--near", "67108864"];
                (self.gateway(address, origin, &arguments)?, "two-tiers")
            }
            Cache::Other(other) => (self.other(*other, address, origin)?, other.name()),
        };
        let output = Command::new("node")
            .arg("--no-warnings")
            .arg(self.root.join("tests/conformance/run.mjs"))
            .arg(suite)
            .arg(self.folder.join("node_modules/node-fetch"))
            .arg(format!("http://{address}"))
            .arg(self.folder.join(format!("{name}.json")))
            .stderr(Stdio::inherit())
            .output()?;
        if !output.status.success() {
            return Err(format!("the suite did not run ({})", output.status).into());
        }
        Results::parse(&String::from_utf8(output.stdout)?)
    }

    fn gateway(&self, address: SocketAddr, origin: SocketAddr, arguments: &[&str]) -> Result<Running> {
        let built = cargo().args(["build", "-p", "gateway"]).current_dir(&self.root).status()?;
        if !built.success() {
            return Err("the gateway was not built".into());
        }
        let mut gateway = Command::new(self.root.join("target/debug/gateway"));
        gateway.args(["--listen", &address.to_string(), "--upstream", &format!("http://{origin}")]);
        Running::start(gateway.args(arguments).stderr(Stdio::null()), address)
    }

    fn other(&self, other: Other, address: SocketAddr, origin: SocketAddr) -> Result<Running> {
        let folder = self.folder.join(other.name());
        fs::create_dir_all(&folder)?;
        let mut command = match other {
            Other::Nginx => {
                if servers::on_path("nginx").is_none() {
                    servers::install(&Package::NGINX)?;
                }
                let path = folder.display();
                let configuration = format!(
                    "daemon off; master_process off; pid {path}/pid; error_log {path}/error.log;\nevents {{}}\nhttp {{\n\
                     access_log off;\nproxy_cache_path {path}/cache keys_zone=all:10m;\nserver {{\nlisten {address};\n\
                     location / {{\nproxy_pass http://{origin};\nproxy_http_version 1.1;\nproxy_set_header Host $http_host;\n\
                     proxy_cache all;\nproxy_cache_revalidate on;\n}}\n}}\n}}\n"
                );
                let file = folder.join("nginx.conf");
                fs::write(&file, configuration)?;
                let mut command = Command::new("nginx");
                command.arg("-c").arg(file);
                command
            }
            Other::Varnish => {
                if servers::on_path("varnishd").is_none() {
                    servers::install(&Package::VARNISH)?;
                }
                let mut command = Command::new("varnishd");
                command.args(["-F", "-a", &address.to_string(), "-b", &origin.to_string(), "-s", "malloc,64m", "-n"]);
                command.arg(&folder);
                command
            }
        };
        Running::start(command.stdout(Stdio::null()).stderr(Stdio::null()), address)
    }
}

/// A cache that the suite is run against.
enum Cache<'a> {
    Memory,
    Redis(&'a Redis),
    TwoTiers(&'a Redis),
    Other(Other),
}

/// A program that listens, and is killed when this is dropped.
struct Running(Child);

impl Running {
    fn start(command: &mut Command, address: SocketAddr) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let mut running = Self(child.map_err(|error| format!("{name} did not start: {error}"))?);
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            if let Some(status) = running.0.try_wait()? {
                return Err(format!("{name} ended ({status}) instead of listening on {address}").into());
            }
            if began.elapsed() > Duration::from_secs(20) {
                return Err(format!("{name} does not listen on {address}").into());
            }
            sleep(Duration::from_millis(20));
        }
        Ok(running)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A Redis of the suite's own.
struct Redis {
    address: SocketAddr,
    _running: Running,
}

impl Redis {
    fn start(servers: &servers::Servers) -> Result<Self> {
        let address = free()?;
        let port = address.port().to_string();
        let (_, program) = servers.variables()[0];
        let mut command = Command::new(program);
        command.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        Ok(Self { address, _running: Running::start(&mut command, address)? })
    }

    fn url(&self) -> String {
        format!("redis://{}", self.address)
    }
}

/// An address on which nobody listens at present.
fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// What came of each case.
#[derive(Debug, Clone, Default)]
struct Results(Vec<Case>);

#[derive(Debug, Clone)]
struct Case {
    suite: String,
    kind: String,
    id: String,
    passed: bool,
    told: String,
}

const KINDS: [&str; 3] = ["required", "optimal", "check"];

impl Results {
    fn parse(lines: &str) -> Result<Self> {
        let case = |line: &str| {
            let mut columns = line.split('\t').map(str::to_owned);
            let mut column = || columns.next();
            let (suite, kind, id) = (column()?, column()?, column()?);
            Some(Case { suite, kind, id, passed: column()? == "pass", told: column()? })
        };
        let cases: Option<Vec<Case>> = lines.lines().map(case).collect();
        let cases = cases.filter(|cases| !cases.is_empty()).ok_or_else(|| format!("no results: {lines}"))?;
        Ok(Self(cases))
    }

    /// How many passed, and of how many.
    fn count(&self, is_counted: impl Fn(&Case) -> bool) -> (usize, usize) {
        let counted: Vec<&Case> = self.0.iter().filter(|case| is_counted(case)).collect();
        (counted.iter().filter(|case| case.passed).count(), counted.len())
    }

    fn failures(&self) -> String {
        let mut text = String::new();
        for kind in KINDS {
            for case in self.0.iter().filter(|case| !case.passed && case.kind == kind) {
                let Case { suite, id, told, .. } = case;
                let _ = writeln!(text, "  {kind:8} {suite}: {id} ({told})");
            }
        }
        text
    }
}

/// A line for each suite, and the totals by kind.
fn table(columns: &[(&str, Results)]) -> String {
    let mut text = String::from("| suite |");
    for (name, _) in columns {
        let _ = write!(text, " {name} |");
    }
    let _ = writeln!(text, "\n|---|{}", "---:|".repeat(columns.len()));
    let Some((_, first)) = columns.first() else { return text };
    let mut suites: Vec<&str> = first.0.iter().map(|case| case.suite.as_str()).collect();
    suites.dedup();
    let mut row = |name: &str, is_counted: &dyn Fn(&Case) -> bool| {
        let _ = write!(text, "| {name} |");
        for (_, results) in columns {
            let (passed, all) = results.count(is_counted);
            let _ = write!(text, " {passed} of {all} |");
        }
        let _ = writeln!(text);
    };
    for suite in suites {
        row(suite, &|case| case.suite == suite);
    }
    for kind in KINDS {
        row(&format!("**{kind}**"), &|case| case.kind == kind);
    }
    text
}

/// The cases that are known to fail, each with its reason.
struct Known(BTreeMap<String, String>);

impl Known {
    fn read(root: &Path) -> Result<Self> {
        let text = fs::read_to_string(root.join(KNOWN))?;
        let line = |line: &str| {
            let (id, reason) = line.split_once(' ')?;
            Some((id.to_owned(), reason.trim().to_owned()))
        };
        let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
        let known: Option<BTreeMap<_, _>> = lines.map(line).collect();
        Ok(Self(known.ok_or_else(|| format!("{KNOWN}: each line takes an id, and the reason why it fails"))?))
    }

    fn check(&self, results: &Results) -> Result<()> {
        let failed: BTreeSet<&str> = results.0.iter().filter(|case| !case.passed).map(|case| &*case.id).collect();
        let new: Vec<&&str> = failed.iter().filter(|id| !self.0.contains_key(**id)).collect();
        let mended: Vec<&String> = self.0.keys().filter(|id| !failed.contains(id.as_str())).collect();
        if !mended.is_empty() {
            println!("these pass now; take them out of {KNOWN}: {mended:?}");
        }
        if new.is_empty() {
            Ok(())
        } else {
            Err(format!("these cases of the suite have passed before: {new:?}").into())
        }
    }

    /// Why each case that fails does.
    fn table(&self, results: &Results) -> String {
        let mut text = String::from("| kind | case | why it fails |\n|---|---|---|\n");
        for kind in KINDS {
            for case in results.0.iter().filter(|case| !case.passed && case.kind == kind) {
                let why = self.0.get(&case.id).map_or("not explained yet", String::as_str);
                let _ = writeln!(text, "| {kind} | `{}` | {why} |", case.id);
            }
        }
        text
    }
}
