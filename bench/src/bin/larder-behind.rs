//! Four processes write behind and apply what is written, while one of them after the other is killed, and Redis twice: whether
//! what was accepted is applied, all of it, once and in order. `cargo xtask bench behind` runs it.

use bytes::Bytes;
use fred::{
    prelude::{Builder, Client, ClientLike, Config, ReconnectPolicy, Value},
    types::{ClusterHash, CustomCommand},
};
use larder::semantics::{Key, Namespace};
use larder_bench::process::{Outcome, Process};
use larder_redis::{BehindSettings, Failed, RedisStore, Sink, WhenFull, Write, WriteBehind};
use larder_tests::RedisServer;
use std::{
    collections::HashSet,
    process::ExitCode,
    time::{Duration, Instant},
};
use tokio::{runtime::Runtime, task::JoinSet, time::sleep};

const PROCESSES: usize = 4;
const WRITERS: usize = 16;
const KEYS: usize = 500;
const WRITES: u64 = 100_000;
/// One of so many writes cannot be applied.
const POISON: u64 = 1_000;
/// How long it may take until all is applied.
const PATIENCE: Duration = Duration::from_secs(120);

/// A row takes only what is later than what it has, and its table notes all that it took.
const APPLY: &str = "if (tonumber(redis.call('HGET', KEYS[1], 'seq')) or 0) >= tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'seq', ARGV[1]) redis.call('RPUSH', KEYS[2], ARGV[1]) return 1";
/// Notes an accepted write, and how many there are.
const ACCEPT: &str = "redis.call('RPUSH', KEYS[1], ARGV[1]) return redis.call('INCR', 'accepted')";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = Runtime::new().expect("a runtime");
    let done = match &arguments[..] {
        [] => runtime.block_on(measure()),
        [role, redis, database] if role == "instance" => runtime.block_on(write(redis, database)),
        _ => Err("usage: larder-behind; `cargo xtask bench behind` runs it".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("larder-behind: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What is written to in the end: another server, which nobody kills.
#[derive(Clone)]
struct Database(Client);

impl Database {
    async fn connect(url: &str) -> Outcome<Self> {
        let policy = ReconnectPolicy::new_constant(0, 200);
        let client = Builder::from_config(Config::from_url(url)?).set_policy(policy).build()?;
        client.init().await?;
        Ok(Self(client))
    }

    async fn call(&self, command: &'static str, words: &[&str]) -> Outcome<Value> {
        let command = CustomCommand::new_static(command, ClusterHash::FirstKey, false);
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        Ok(self.0.custom::<Value, _>(command, words).await?)
    }

    async fn number(&self, command: &'static str, words: &[&str]) -> Outcome<u64> {
        Ok(self.call(command, words).await?.as_u64().unwrap_or_default())
    }

    async fn list(&self, name: &str) -> Outcome<Vec<u64>> {
        let list = self.call("LRANGE", &[name, "0", "-1"]).await?;
        Ok(list.into_array().iter().filter_map(Value::as_u64).collect())
    }
}

impl Sink for Database {
    async fn apply(&self, writes: &[Write]) -> Result<(), Failed> {
        for (at, Write { key, seq, value, .. }) in writes.iter().enumerate() {
            if value.as_deref() == Some(b"poison".as_slice()) {
                return Err(Failed::at(at, "it is poison"));
            }
            let words = [APPLY, "2", &format!("row:{key}"), &format!("applied:{key}"), &seq.to_string()];
            self.call("EVAL", &words).await.map_err(|error| Failed::at(at, error))?;
        }
        Ok(())
    }
}

async fn behind(redis: &str) -> Outcome<WriteBehind> {
    let settings = BehindSettings::new().attempts(3).retry_after(Duration::from_millis(10));
    let settings = settings.longest(100_000).when_full(WhenFull::Wait(Duration::from_secs(10)));
    Ok(RedisStore::connect(redis).await?.write_behind(&Namespace::new("bench", 1)?, "rows", settings)?)
}

/// A process of the program: it writes, and applies what is written by any.
async fn write(redis: &str, database: &str) -> Outcome<()> {
    let (behind, database) = (behind(redis).await?, Database::connect(database).await?);
    behind.apply_with(database.clone());
    println!("ready");
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        let (behind, database) = (behind.clone(), database.clone());
        writers.spawn(async move {
            loop {
                let key = Key::new("row").part(fastrand::usize(..KEYS).to_string());
                let is_poison = fastrand::u64(..POISON) == 0;
                let value = Bytes::from_static(if is_poison { b"poison" } else { b"value" });
                let Ok(accepted) = behind.put(&key, value).await else {
                    sleep(Duration::from_millis(20)).await;
                    continue;
                };
                let list = if is_poison { format!("poison:{key}") } else { format!("accepted:{key}") };
                let noted = database.call("EVAL", &[ACCEPT, "1", &list, &accepted.seq.to_string()]).await;
                if noted.is_ok_and(|noted| noted.as_u64().unwrap_or_default() >= WRITES) {
                    return;
                }
            }
        });
    }
    writers.join_all().await;
    println!("done");
    // It applies until it is killed.
    std::future::pending().await
}

async fn measure() -> Outcome<()> {
    let options = |server| RedisServer::builder().open().arg("--appendonly", "yes").arg("--appendfsync", server);
    let (mut redis, server) = (options("always").start(), RedisServer::builder().open().start());
    let (url, address) = (redis.url(), server.url());
    let database = Database::connect(&address).await?;
    let start = || Process::start(&["instance", &url, &address]);
    let mut fleet = (0..PROCESSES).map(|_| start()).collect::<Outcome<Vec<_>>>()?;
    let (began, mut processes_killed, mut servers_killed) = (Instant::now(), 0, 0);
    let mut accepted = 0;
    while accepted < WRITES {
        sleep(Duration::from_secs(1)).await;
        accepted = database.number("GET", &["accepted"]).await?;
        if accepted * 3 > WRITES * (servers_killed + 1) && servers_killed < 2 {
            redis.kill();
            redis.restart();
            servers_killed += 1;
        }
        let one = fastrand::usize(..PROCESSES);
        fleet[one].kill()?;
        fleet[one] = start()?;
        processes_killed += 1;
    }
    let took = began.elapsed();
    let behind = behind(&url).await?;
    let left = behind.drain(PATIENCE).await;
    let applied_after = began.elapsed();
    let counts = Counts::of(&database, &behind).await?;
    let second = |took: Duration| accepted as f64 / took.as_secs_f64();
    println!("| write-behind, {PROCESSES} processes, {KEYS} keys | |\n|---|---:|");
    println!("| processes killed | {processes_killed} |\n| times that Redis was killed | {servers_killed} |");
    println!("| accepted | {} |\n| of them poison | {} |", counts.accepted + counts.poison, counts.poison);
    println!("| applied, of those that were accepted | {} |", counts.applied);
    println!("| accepted and not applied | {} |", counts.lost);
    println!("| applied that nobody knew to be accepted, as its writer was killed | {} |", counts.unknown);
    println!("| applied twice | {} |\n| out of order | {} |", counts.twice, counts.disordered);
    println!("| dead letters that are poison | {} |\n| that are not | {} |", counts.dead, counts.wrongly_dead);
    println!("| poison that is no dead letter | {} |", counts.undead);
    println!("| accepted a second | {:.0} |\n| applied a second | {:.0} |", second(took), second(applied_after));
    let wrong = [counts.lost, counts.twice, counts.disordered, counts.wrongly_dead, counts.undead, left.unwrap_or(1)];
    if wrong.iter().any(|count| *count > 0) {
        return Err(format!("something is lost, twice, out of order or left: {wrong:?}").into());
    }
    Ok(())
}

#[derive(Default)]
struct Counts {
    accepted: u64,
    poison: u64,
    applied: u64,
    lost: u64,
    unknown: u64,
    twice: u64,
    disordered: u64,
    dead: u64,
    wrongly_dead: u64,
    undead: u64,
}

impl Counts {
    async fn of(database: &Database, behind: &WriteBehind) -> Outcome<Self> {
        let mut counts = Self::default();
        let letters = behind.dead_letters().await?;
        let dead: HashSet<u64> = letters.iter().map(|letter| letter.write.seq).collect();
        let is_poison = |value: &Option<Bytes>| value.as_deref() == Some(b"poison".as_slice());
        counts.dead = letters.iter().filter(|letter| is_poison(&letter.write.value)).count() as u64;
        counts.wrongly_dead = letters.len() as u64 - counts.dead;
        for number in 0..KEYS {
            let key = Key::new("row").part(number.to_string());
            let accepted = database.list(&format!("accepted:{key}")).await?;
            let poison = database.list(&format!("poison:{key}")).await?;
            let applied = database.list(&format!("applied:{key}")).await?;
            let known: HashSet<u64> = applied.iter().copied().collect();
            counts.accepted += accepted.len() as u64;
            counts.poison += poison.len() as u64;
            counts.applied += accepted.iter().filter(|seq| known.contains(seq)).count() as u64;
            counts.lost += accepted.iter().filter(|seq| !known.contains(seq)).count() as u64;
            let noted: HashSet<u64> = accepted.into_iter().collect();
            counts.unknown += applied.iter().filter(|seq| !noted.contains(seq)).count() as u64;
            counts.twice += (applied.len() - known.len()) as u64;
            counts.disordered += applied.windows(2).filter(|pair| pair[0] > pair[1]).count() as u64;
            counts.undead += poison.iter().filter(|seq| !dead.contains(seq)).count() as u64;
        }
        Ok(counts)
    }
}
