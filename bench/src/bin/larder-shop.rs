//! The shop under load: nothing cached, values cached, routes cached, and routes while Redis is killed.

use larder_tests::{PostgresServer, RedisServer};
use std::{
    env,
    error::Error,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    thread::{self, sleep},
    time::{Duration, Instant},
};

const CONNECTIONS: &str = "64";
const WARMING: &str = "2s";
const LENGTH: Duration = Duration::from_secs(10);
/// When Redis is killed, and when it comes back, after the load has begun.
const KILLED_AT: Duration = Duration::from_secs(3);
const BACK_AT: Duration = Duration::from_secs(6);

fn main() -> ExitCode {
    match table() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            eprintln!("larder-shop: {failed} requests failed");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("larder-shop: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints what was measured; how many requests failed.
fn table() -> Result<u64, Box<dyn Error>> {
    let cases = [
        ("nothing cached", "off", false),
        ("values cached", "values", false),
        ("routes and values cached", "routes", false),
        ("routes and values cached, Redis killed for 3 s of 10", "routes", true),
    ];
    println!(
        "| the shop on PostgreSQL, Redis and a near tier, 64 clients | requests/s | p50, ms | p99, ms | longest, ms | failed |"
    );
    println!("|---|---:|---:|---:|---:|---:|");
    let mut all = 0;
    for (name, cache, is_killed) in cases {
        let Figures { requests, micros, p50, p99, max, failed } = measure(cache, is_killed)?;
        let each_second = requests.saturating_mul(1_000_000) / micros.max(1);
        let millis = |micros: u64| micros as f64 / 1000.0;
        println!(
            "| {name} | {each_second} | {:.2} | {:.2} | {:.0} | {failed} |",
            millis(p50),
            millis(p99),
            millis(max)
        );
        all += failed;
    }
    Ok(all)
}

struct Figures {
    requests: u64,
    micros: u64,
    p50: u64,
    p99: u64,
    max: u64,
    failed: u64,
}

fn measure(cache: &str, is_killed: bool) -> Result<Figures, Box<dyn Error>> {
    let (database, mut redis) = (PostgresServer::start(), RedisServer::start());
    let shop = Program::start(&database.url(), &redis.url(), cache)?;
    load(shop.port, WARMING)?;
    if !is_killed {
        return load(shop.port, &format!("{}s", LENGTH.as_secs()));
    }
    let killing = thread::spawn(move || {
        sleep(KILLED_AT);
        redis.kill();
        sleep(BACK_AT - KILLED_AT);
        redis.restart();
        sleep(LENGTH - BACK_AT);
        redis
    });
    let figures = load(shop.port, &format!("{}s", LENGTH.as_secs()));
    drop(killing.join().map_err(|_| "Redis did not come back")?);
    figures
}

/// Has wrk ask for so long.
fn load(port: u16, length: &str) -> Result<Figures, Box<dyn Error>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/shop/load/browse.lua");
    let wrk = env::var_os("WRK").unwrap_or_else(|| "wrk".into());
    let output = Command::new(&wrk)
        .args(["-t2", "-c", CONNECTIONS, "-d", length, "--latency", "-s"])
        .arg(script)
        .arg(format!("http://127.0.0.1:{port}"))
        .output()
        .map_err(|error| format!("{} does not run ({error}): install wrk, or set WRK to its path", wrk.display()))?;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = told.lines().find_map(|line| line.strip_prefix("total "));
    let figure = |name: &str| {
        let of_name = |word: &str| word.split_once('=').filter(|(known, _)| *known == name)?.1.parse::<u64>().ok();
        line.and_then(|line| line.split(' ').find_map(of_name)).ok_or_else(|| format!("wrk told no {name}:\n{told}"))
    };
    Ok(Figures {
        requests: figure("requests")?,
        micros: figure("micros")?,
        p50: figure("p50")?,
        p99: figure("p99")?,
        max: figure("max")?,
        failed: figure("failed")?,
    })
}

/// The shop, in a process of its own.
struct Program {
    process: Child,
    port: u16,
}

impl Program {
    fn start(database: &str, redis: &str, cache: &str) -> Result<Self, Box<dyn Error>> {
        let program: PathBuf = env::current_exe()?.with_file_name("shop");
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let process = Command::new(&program)
            .envs([("DATABASE_URL", database), ("REDIS_URL", redis), ("CACHE", cache), ("RUST_LOG", "error")])
            .env("PORT", port.to_string())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("{} did not start: {error}", program.display()))?;
        let (shop, began) = (Self { process, port }, Instant::now());
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if began.elapsed() > Duration::from_secs(20) {
                return Err("the shop did not open within 20 s".into());
            }
            sleep(Duration::from_millis(50));
        }
        Ok(shop)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
