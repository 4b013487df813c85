//! How long a hit, a miss and a Redis hit take, as ratios taken in one run on one machine.

use larder::Cache;
use larder_bench::{
    hit::{self, CALLS},
    miss,
    redis::{Reading, Sides},
    table::{median, ratio},
    values,
};
use std::{process::ExitCode, time::Instant};
use tokio::runtime::Runtime;

const ROUNDS: usize = 31;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("hit") => hits(),
        Some("redis") => redis(),
        Some("redis-side") => redis_side(),
        Some("values") => values(),
        Some("miss") => misses(),
        Some("instructions") => instructions(),
        _ => {
            eprintln!(
                "usage: larder-bench hit | redis | redis-side raw|cached CALLS TASKS one|own|any | values | miss | instructions CASE TIMES; `cargo xtask bench` runs them all"
            );
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// How often threads hit one page at the same time.
const TOGETHER: usize = 7;

fn hits() {
    let mut cases = hit::cases();
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); cases.len()];
    for _ in 0..ROUNDS {
        for ((_, case), times) in cases.iter_mut().zip(&mut times) {
            let requests = hit::requests();
            let began = Instant::now();
            case(requests);
            times.push(began.elapsed().as_nanos() as f64 / CALLS as f64);
        }
    }
    println!("| a hit in memory, 1 KiB | ns (median) | : floor | : bare router |");
    println!("|---|---:|---:|---:|");
    for ((name, _), taken) in cases.iter().zip(&times) {
        let (floor, bare) = (ratio(taken, &times[0]), ratio(taken, &times[1]));
        println!("| {name} | {:.0} | {floor:.2} | {bare:.2} |", median(taken.clone()));
    }
    println!(
        "\nThe floor clones headers that the program knows beforehand, which counts nothing. A handler makes its headers anew, \
         and their\nclones count who has them; and an answer from larder tells of the cache. The other two floors have that too."
    );
    println!("What other caches for tower take for the same stands in tests/peers/README.md.");
    println!(
        "\n| hits of one page, 1 KiB, by threads at the same time, a hundred each | floor, ns | bare router, ns | layer, ns | layer : floor | layer : bare |"
    );
    println!("|---|---:|---:|---:|---:|---:|");
    for threads in [1, 2] {
        let mut times = [const { Vec::new() }; 3];
        for each in (0..TOGETHER).map(|_| hit::together(threads)) {
            times.iter_mut().zip(each).for_each(|(times, each)| times.push(each));
        }
        let [floor, bare, layer] = &times;
        let [a, b, c] = [floor, bare, layer].map(|times| median(times.clone()));
        println!("| {threads} | {a:.0} | {b:.0} | {c:.0} | {:.2} | {:.2} |", ratio(layer, floor), ratio(layer, bare));
    }
}

/// Through the layer : the bare client, reading the same bytes from the same server.
fn redis() {
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let sides = Sides::start().await.expect("a Redis with a page in it");
        println!("| a hit in Redis, 1 KiB | bare GET, k/s | hit, k/s | hit : bare GET |");
        println!("|---|---:|---:|---:|");
        for (reading, what) in [
            (Reading::OnePage, "of the same page"),
            (Reading::OwnPage, "each of another page"),
            (Reading::ManyPages, "of any of 10,000 pages"),
        ] {
            for (tasks, calls) in [(1, 5_000), (64, 40_000), (256, 40_000)] {
                let (mut raw, mut cached) = (Vec::new(), Vec::new());
                for _ in 0..11 {
                    raw.push(sides.raw(reading, tasks, calls).await);
                    cached.push(sides.cached(reading, tasks, calls).await);
                }
                let (a, b) = (median(raw.clone()) / 1e3, median(cached.clone()) / 1e3);
                println!("| {tasks} at a time, {what} | {a:.1} | {b:.1} | {:.2} |", ratio(&cached, &raw));
            }
        }
    });
}

/// Values that are known, in memory and in Redis.
fn values() {
    let mut cases = values::cases();
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); cases.len()];
    for _ in 0..ROUNDS {
        for ((_, case), times) in cases.iter_mut().zip(&mut times) {
            let began = Instant::now();
            case();
            times.push(began.elapsed().as_nanos() as f64 / CALLS as f64);
        }
    }
    println!("| a value in memory, 150 bytes of JSON | ns (median) | : floor |\n|---|---:|---:|");
    for ((name, _), taken) in cases.iter().zip(&times) {
        println!("| {name} | {:.0} | {:.2} |", median(taken.clone()), ratio(taken, &times[0]));
    }
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let sides = values::Sides::start().await.expect("a Redis with a value in it");
        println!("\n| a value in Redis | bare GET and decode, k/s | `typed.get`, k/s | ratio |\n|---|---:|---:|---:|");
        for tasks in [1, 64, 256] {
            let (mut raw, mut cached) = (Vec::new(), Vec::new());
            for _ in 0..11 {
                raw.push(sides.raw(tasks, 40_000).await);
                cached.push(sides.cached(tasks, 40_000).await);
            }
            let (a, b) = (median(raw.clone()) / 1e3, median(cached.clone()) / 1e3);
            println!("| {tasks} at a time | {a:.1} | {b:.1} | {:.2} |", ratio(&cached, &raw));
        }
    });
}

/// Only one side of a hit in Redis (`raw` or `cached`), as often as the third argument says, so many at a time as the fourth
/// does, of the page that the fifth does (`one`, `own` or `any`): for a profiler, or an instruction counter.
fn redis_side() {
    let mut arguments = std::env::args().skip(2);
    let is_raw = arguments.next().as_deref() == Some("raw");
    let mut number = |default| arguments.next().and_then(|number| number.parse().ok()).unwrap_or(default);
    let (calls, tasks) = (number(400_000), number(64));
    let reading = match arguments.next().as_deref() {
        Some("one") => Reading::OnePage,
        Some("own") => Reading::OwnPage,
        _ => Reading::ManyPages,
    };
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let sides = Sides::start().await.expect("a Redis with a page in it");
        let rate =
            if is_raw { sides.raw(reading, tasks, calls).await } else { sides.cached(reading, tasks, calls).await };
        println!("{rate:.0} a second");
    });
}

/// 1 MiB through the layer for the first time : without a layer.
fn misses() {
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let cache = Cache::in_memory();
        let mut times = [const { Vec::new() }; 4];
        for page in 0..400 {
            let bare = miss::bare(page).await;
            let stored = miss::stored(&cache, page).await;
            for (times, time) in times.iter_mut().zip([bare.0, stored.0, bare.1, stored.1]) {
                times.push(time.as_nanos() as f64 / 1e3);
            }
        }
        println!("| a miss, 1 MiB streamed in 64 pieces | no layer, µs | stored, µs | stored : no layer |");
        println!("|---|---:|---:|---:|");
        for (name, bare, stored) in [("first byte", 0, 1), ("last byte", 2, 3)] {
            let (a, b) = (median(times[bare].clone()), median(times[stored].clone()));
            println!("| {name} | {a:.0} | {b:.0} | {:.2} |", ratio(&times[stored], &times[bare]));
        }
    });
}

/// Runs the case named second as often as the third argument says: for an instruction counter, or a profiler. `none`
/// only makes the requests.
fn instructions() {
    let mut arguments = std::env::args().skip(2);
    let name = arguments.next().unwrap_or_default();
    let times = arguments.next().and_then(|times| times.parse().ok()).unwrap_or(1);
    let mut case = hit::cases().into_iter().find(|(known, _)| *known == name).map(|(_, case)| case);
    for _ in 0..times {
        let requests = hit::requests();
        if let Some(case) = &mut case {
            case(requests);
        }
    }
}
