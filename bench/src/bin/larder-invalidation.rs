//! What invalidation costs, how soon it is everywhere, and whether any answer is older than it may be: four processes and a
//! real Redis. `cargo xtask bench invalidation` runs it.

use fred::prelude::{Builder, ClientLike, Config, KeysInterface};
use larder::{
    Cache, Purge,
    semantics::{Namespace, Timestamp},
};
use larder_bench::{
    process::{Outcome, Process},
    races::{Instance, PAGES, Way},
    stampede::now_nanos,
};
use larder_redis::RedisStore;
use larder_tests::RedisServer;
use std::{
    process::ExitCode,
    time::{Duration, Instant},
};
use tokio::runtime::Runtime;

const PROCESSES: usize = 4;
const READERS: usize = 16;
/// How often each process reads in the race.
const READS: usize = 250_000;
/// The same where it is known to go wrong.
const FEWER: usize = 25_000;
const ROUNDS: usize = 300;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = Runtime::new().expect("a runtime");
    let done = match &arguments[..] {
        [] => runtime.block_on(measure()),
        [part] if part == "races" => runtime.block_on(races()),
        [part] if part == "coherence" => runtime.block_on(coherence()),
        [part] if part == "tags" => runtime.block_on(tags()),
        [part] if part == "pattern" => runtime.block_on(pattern()),
        [role, redis, way] if role == "instance" => runtime.block_on(serve(redis, way)),
        _ => Err(
            "usage: larder-invalidation [races | coherence | tags | pattern]; `cargo xtask bench invalidation` runs it"
                .into(),
        ),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("larder-invalidation: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A process of the fleet, which does as it is told on its standard input.
async fn serve(redis: &str, way: &str) -> Outcome<()> {
    let instance = Instance::connect(redis, Way::named(way).ok_or("no such way")?).await?;
    println!("ready");
    for line in std::io::stdin().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["race", reads, bound] => {
                let bound = Duration::from_millis(bound.parse()?);
                let (outdated, shared) = instance.readers(READERS, reads.parse()?, bound).await?;
                println!("{outdated} {shared}");
            }
            // Answers when it reads this version of a page, or a later one.
            ["hear", page, version] => {
                let (page, version) = (page.parse()?, version.parse()?);
                while instance.read(page).await?.version < version {}
                println!("{}", now_nanos());
            }
            ["warm", page] => {
                for _ in 0..3 {
                    instance.read(page.parse()?).await?;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                println!("warm");
            }
            _ => return Err(format!("not an order: {line}").into()),
        }
    }
    Ok(())
}

fn fleet(redis: &str, way: &str) -> Outcome<Vec<Process>> {
    (0..PROCESSES).map(|_| Process::start(&["instance", redis, way])).collect()
}

async fn measure() -> Outcome<()> {
    races().await?;
    coherence().await?;
    tags().await?;
    pattern().await
}

/// One changes pages and invalidates them while 64 tasks of four processes read.
async fn races() -> Outcome<()> {
    println!(
        "| {PROCESSES} processes, {READERS} readers each, one writer | reads | writes | answers that were too old | of them shared |"
    );
    println!("|---|---:|---:|---:|---:|");
    for (name, word, reads, bound) in [
        ("larder", "larder", READS, 0),
        ("larder with near tiers, 2 s after it was invalidated", "near", READS, 2_000),
        ("larder, were its tickets not checked", "unchecked", READS, 0),
        ("GET, SET, DEL", "plain", FEWER, 0),
        ("SET NX, stored by whoever owns the lock", "lock", FEWER, 0),
    ] {
        let redis = RedisServer::builder().open().start();
        let mut fleet = fleet(&redis.url(), word)?;
        let writer = Instance::connect(&redis.url(), Way::named(word).ok_or("no such way")?).await?;
        for process in &mut fleet {
            process.order(&format!("race {reads} {bound}"))?;
        }
        let done = tokio::task::spawn_blocking(move || {
            fleet.iter_mut().try_fold((0, 0), |(outdated, shared), process| {
                let line = process.line()?;
                let (one, other) = line.split_once(' ').ok_or_else(|| format!("no figures: {line}"))?;
                Outcome::Ok((outdated + one.parse::<u64>()?, shared + other.parse::<u64>()?))
            })
        });
        let mut writes = 0_u64;
        while !done.is_finished() {
            // With near tiers, half of the pages are left in peace for longer than what is told takes.
            let page = if bound > 0 && writes.is_multiple_of(2) { 0 } else { fastrand::usize(..PAGES) };
            writer.change(page).await?;
            writes += 1;
            let pause = if bound > 0 { 150_000 } else { 4_000 };
            tokio::time::sleep(Duration::from_micros(fastrand::u64(..pause))).await;
        }
        let (outdated, shared) = done.await??;
        println!("| {name} | {} | {writes} | {outdated} | {shared} |", reads * PROCESSES);
        match word {
            "larder" if outdated > shared => return Err("larder has answered with what was invalidated".into()),
            "near" if outdated > 0 => return Err("larder has answered with what was invalidated".into()),
            "unchecked" if outdated == 0 => return Err("the race does not tell whether tickets are checked".into()),
            _ => {}
        }
    }
    println!(
        "\nToo old is an answer with a version whose successor's purge had returned before the request began. Shared are \
         those that\ncame from a fetch which another process than the one that purged had begun before, and which had not heard \
         of the purge by\nthen: that is promised for 2 s at most. With its tickets not checked, larder stores what was fetched \
         whatever was purged\nmeanwhile; everything else is the same."
    );
    Ok(())
}

/// How long after a purge has returned the last of four processes with near tiers answers anew.
async fn coherence() -> Outcome<()> {
    let redis = RedisServer::builder().open().start();
    let mut fleet = fleet(&redis.url(), "near")?;
    let writer = Instance::connect(&redis.url(), Way::Near).await?;
    let mut lags = Vec::new();
    for round in 0..ROUNDS {
        let page = round % PAGES;
        for process in &mut fleet {
            process.order(&format!("warm {page}"))?;
        }
        for process in &mut fleet {
            process.line()?;
        }
        let next = round / PAGES + 1;
        for process in &mut fleet {
            process.order(&format!("hear {page} {next}"))?;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
        writer.change(page).await?;
        let returned = now_nanos();
        let mut last = 0;
        for process in &mut fleet {
            last = last.max(process.line()?.parse::<u64>()?);
        }
        lags.push(last.saturating_sub(returned) as f64 / 1e6);
    }
    lags.sort_by(f64::total_cmp);
    let (half, most) = (lags[ROUNDS / 2], lags[ROUNDS * 99 / 100]);
    println!("\n| from the return of a purge to the last of {PROCESSES} processes, ms | |\n|---|---:|");
    println!("| p50 | {half:.2} |\n| p99 | {most:.2} |");
    Ok(())
}

/// What it costs to invalidate a tag, by how much has it.
async fn tags() -> Outcome<()> {
    println!(
        "\n| entries with the tag | invalidating it, p50 ms | p99 ms | p99 : that of 1000 | bytes for each entry | without tags |"
    );
    println!("|---:|---:|---:|---:|---:|---:|");
    let mut first = None;
    for entries in [1_000, 1_000_000] {
        let with = stored(entries, &["everything", "another"]).await?;
        let without = stored(entries.min(100_000), &[]).await?;
        let cache = Cache::builder().store(RedisStore::connect(with.url().as_str()).await?).build()?;
        let mut took = Vec::new();
        for _ in 0..500 {
            let began = Instant::now();
            cache.purge(Purge::tag("everything")).await?;
            took.push(began.elapsed().as_secs_f64() * 1e3);
        }
        took.sort_by(f64::total_cmp);
        let each = |server: &RedisServer, entries: usize| memory(server) / entries as u64;
        println!(
            "| {entries} | {:.3} | {:.3} | {:.2} | {} | {} |",
            took[250],
            took[495],
            took[495] / *first.get_or_insert(took[495]),
            each(&with, entries),
            each(&without, entries.min(100_000))
        );
    }
    Ok(())
}

/// Going through a million keys for a tenth of them, while others read.
async fn pattern() -> Outcome<()> {
    const ALL: usize = 1_000_000;
    let server = stored(ALL, &[]).await?;
    let cache = Cache::builder().store(RedisStore::connect(server.url().as_str()).await?).build()?;
    let idle = reading(&server, tokio::time::sleep(Duration::from_secs(3))).await?.0;
    let purge = Purge::prefix("item:0");
    let counted = cache.purge(purge.clone().dry_run()).await?.resources;
    let began = Instant::now();
    let (busy, receipt) = reading(&server, cache.purge(purge)).await?;
    let took = began.elapsed();
    println!("\n| a purge by prefix of a tenth of {ALL} keys | |\n|---|---:|");
    println!("| counted by a dry run, and purged | {counted}, {} |", receipt?.resources);
    println!("| it took | {:.1} s |", took.as_secs_f64());
    println!("| GET of others meanwhile, p99 | {busy:.3} ms |\n| the same when idle | {idle:.3} ms |");
    Ok(())
}

/// The 99th percentile, in milliseconds, of single reads while `work` is being done.
async fn reading<T>(server: &RedisServer, work: impl Future<Output = T>) -> Outcome<(f64, T)> {
    let raw = Builder::from_config(Config::from_url(&server.url())?).build()?;
    raw.init().await?;
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let reads = tokio::spawn(async move {
        let mut took = Vec::new();
        while stopped.try_recv().is_err() {
            let began = Instant::now();
            let name = format!("larder:v1:{{item:9{:05}}}", fastrand::u32(..100_000));
            raw.get::<Option<bytes::Bytes>, _>(name).await?;
            took.push(began.elapsed().as_secs_f64() * 1e3);
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        took.sort_by(f64::total_cmp);
        Outcome::Ok(took[took.len() * 99 / 100])
    });
    let done = work.await;
    let _ = stop.send(());
    Ok((reads.await??, done))
}

/// A server that holds so many entries of 100 bytes, of keys `item:000000` and on, written as larder writes them.
async fn stored(entries: usize, tags: &[&str]) -> Outcome<RedisServer> {
    let server = RedisServer::builder().open().start();
    let raw = Builder::from_config(Config::from_url(&server.url())?).build()?;
    raw.init().await?;
    let namespace = Namespace::default();
    for first in (0..entries).step_by(1_000) {
        let pipeline = raw.pipeline();
        for index in first..(first + 1_000).min(entries) {
            let name = namespace.entry(format!("item:{index:06}").as_str().into()).name();
            let entry = larder_bench::races::entry(tags, Timestamp::from_millis(now_nanos() / 1_000_000));
            let bytes = larder::codec::encode(&entry, &name);
            let life = Some(fred::prelude::Expiration::EX(36_000));
            pipeline.set::<(), _, _>(name, bytes, life, None, false).await?;
        }
        pipeline.all::<Vec<()>>().await?;
    }
    Ok(server)
}

fn memory(server: &RedisServer) -> u64 {
    let info = server.cli(&["INFO", "memory"]);
    let used = info.lines().find_map(|line| line.strip_prefix("used_memory_dataset:"));
    used.and_then(|used| used.trim().parse().ok()).unwrap_or_default()
}
