//! Four processes meet a cold key, an answer that is not stored, and a leader that is killed: how often the origin is
//! asked, and when those who wait are answered. `cargo xtask bench stampede` runs it.

use larder_bench::{
    process::{Outcome, Process},
    stampede::{Instance, Lock, Origin, now_nanos, uncacheable},
};
use larder_tests::RedisServer;
use std::{process::ExitCode, time::Duration};
use tokio::runtime::Runtime;

const PROCESSES: usize = 4;
const CLIENTS: usize = 500;
const ROUNDS: usize = 5;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = Runtime::new().expect("a runtime");
    let done = match &arguments[..] {
        [] => runtime.block_on(measure()),
        [role, redis, origin] if role == "instance" => runtime.block_on(serve(redis, origin)),
        _ => Err("usage: larder-stampede; `cargo xtask bench stampede` runs it".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("larder-stampede: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A process of the fleet, which does as it is told on its standard input.
async fn serve(redis: &str, origin: &str) -> Outcome<()> {
    let instance = Instance::connect(redis, origin).await?;
    println!("ready");
    for line in std::io::stdin().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let [way, path] = words[..] else { return Err(format!("not an order: {line}").into()) };
        let lock = if way == "poll" { Lock::Polled } else { Lock::Larder };
        let times = instance.stampede(lock, CLIENTS, path).await;
        println!("{} {} {} {}", times.leader, times.first, times.median, times.failed);
    }
    Ok(())
}

/// When the leader of a process was answered, if it had one, its first client and the middle one; and how many failed.
fn times(process: &mut Process) -> Outcome<[u64; 4]> {
    let line = process.line()?;
    let numbers: Vec<u64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    numbers.try_into().map_err(|_| format!("not an answer: {line}").into())
}

async fn measure() -> Outcome<()> {
    let (redis, origin) = (RedisServer::builder().open().start(), Origin::start().await?);
    let mut fleet = Vec::new();
    for _ in 0..PROCESSES {
        fleet.push(Process::start(&["instance", redis.url().as_str(), origin.address()])?);
    }
    println!(
        "| {PROCESSES} processes, {CLIENTS} clients each, one cold key | origin calls | in the leader's process, ms | first of another process, ms | failed |"
    );
    println!("|---|---:|---:|---:|---:|");
    for (name, way) in [("larder", "larder"), ("SET NX, sleep 50 ms, look once more", "poll")] {
        let (mut calls, mut within, mut across, mut failed) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for round in 0..ROUNDS {
            let path = format!("/page/{way}/{round}");
            for process in &mut fleet {
                process.order(&format!("{way} {path}"))?;
            }
            let times = fleet.iter_mut().map(times).collect::<Result<Vec<_>, _>>()?;
            let answered = origin.answered(&path);
            calls.push(origin.calls(&path));
            let millis = |at: u64| at as f64 / 1e6 - answered as f64 / 1e6;
            within.extend(
                times.iter().filter(|times| times[0] > 0).map(|times| times[2] as f64 / 1e6 - times[0] as f64 / 1e6),
            );
            across.extend(times.iter().filter(|times| times[0] == 0).map(|times| millis(times[1])));
            failed += times.iter().map(|times| times[3]).sum::<u64>();
        }
        calls.sort_unstable();
        let calls = format!("{} to {}", calls[0], calls[ROUNDS - 1]);
        println!("| {name} | {calls} | {} | {} | {failed} |", middle(within), middle(across));
    }
    killed(&mut fleet, &origin)?;
    drop(fleet);
    println!("\n| a route that is not stored, 64 clients, Redis | layer : no layer |\n|---|---:|");
    let (half, most) = uncacheable(redis.url().as_str()).await?;
    println!("| p50 | {half:.2} |\n| p99 | {most:.2} |");
    Ok(())
}

fn middle(times: Vec<f64>) -> String {
    if times.is_empty() { "-".to_owned() } else { format!("{:.2}", larder_bench::table::median(times)) }
}

/// The process whose client leads is killed while the origin hangs; how long until another asks.
fn killed(fleet: &mut [Process], origin: &Origin) -> Outcome<()> {
    let path = "/hang/killed";
    fleet[0].order(&format!("larder {path}"))?;
    while origin.calls(path) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    fleet[1].order(&format!("larder {path}"))?;
    std::thread::sleep(Duration::from_millis(500));
    fleet[0].kill()?;
    let killed_at = now_nanos();
    while origin.calls(path) < 2 {
        if now_nanos() - killed_at > 20_000_000_000 {
            return Err("nobody asked the origin again".into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("\n| the leader's process is killed | |\n|---|---:|");
    println!("| the origin is asked again after | {:.2} s |", (now_nanos() - killed_at) as f64 / 1e9);
    let times = times(&mut fleet[1])?;
    println!("| origin calls | {} |\n| clients that failed | {} |", origin.calls(path), times[3]);
    Ok(())
}
