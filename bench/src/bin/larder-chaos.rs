//! Four processes whose ways to Redis break at random while pages change: whether any answer is older than it may be, and
//! whether that would be noticed. `cargo xtask chaos` runs it.

use larder_bench::{
    chaos::{Part, run, serve},
    process::Outcome,
};
use std::{process::ExitCode, time::Duration};
use tokio::runtime::Runtime;

const USAGE: &str = "usage: larder-chaos [--minutes N] [--seed N] [--only defaults|log|channel]";
/// How it is made, for those who read the tables.
const HOW: &str = "
Made by `cargo xtask chaos`. Each of four processes has a near tier before Redis, and all its connections lead over a relay
of its own. At random, that resets all of them, some, or those that subscribe, and lets none be made for a while; or resets
them once; or delays what is sent, by up to 0.6 s; or swallows it; or takes out what is published, while the connection lives.
A fault lasts up to 3 s, one in six up to 12 s. Each process changes pages of its own in a database that it reaches
undisturbed, and purges each by key or by tag, again if that fails, until it returns Ok. It asks for the pages of all
meanwhile. An answer is too old if it is of a version whose successor's purge had returned longer before the request began
than is promised; in the process that has purged it, if it had returned at all.
";
/// How long the parts last at most that come after the first.
const SHORT: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let runtime = Runtime::new().expect("a runtime");
    let done = match &words[..] {
        ["member", part, index, direct, road] => runtime.block_on(member(part, index, direct, road)),
        words => match Arguments::parse(words) {
            Some(arguments) => runtime.block_on(measure(&arguments)),
            None => Err(USAGE.into()),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("larder-chaos: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Arguments {
    length: Duration,
    seed: u64,
    only: Option<Part>,
}

impl Arguments {
    fn parse(words: &[&str]) -> Option<Self> {
        let mut arguments = Self { length: Duration::from_secs(600), seed: fastrand::u64(..1_000_000), only: None };
        for pair in words.chunks(2) {
            match *pair {
                ["--minutes", minutes] => {
                    arguments.length = Duration::try_from_secs_f64(60.0 * minutes.parse::<f64>().ok()?).ok()?;
                }
                ["--seed", seed] => arguments.seed = seed.parse().ok()?,
                ["--only", part] => arguments.only = Some(Part::named(part)?),
                _ => return None,
            }
        }
        Some(arguments)
    }
}

async fn member(part: &str, index: &str, direct: &str, road: &str) -> Outcome<()> {
    serve(Part::named(part).ok_or("no such part")?, index.parse()?, direct, road).await
}

async fn measure(arguments: &Arguments) -> Outcome<()> {
    let Arguments { length, seed, only } = *arguments;
    println!("{}", HOW.trim());
    let mut broken = Vec::new();
    for (_, part) in Part::ALL.into_iter().filter(|(_, part)| only.is_none_or(|only| only == *part)) {
        let is_short = only.is_none() && part != Part::Defaults;
        let figures = run(part, if is_short { length.min(SHORT) } else { length }, seed).await?;
        print!("\n{}", figures.tables());
        broken.extend(figures.broken());
    }
    if broken.is_empty() { Ok(()) } else { Err(broken.join("; ").into()) }
}
