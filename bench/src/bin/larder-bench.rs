//! How long a hit, a miss and a Redis hit take, as ratios taken in one run on one machine.

use larder_bench::{
    hit::{self, CALLS},
    table::{median, ratio},
};
use std::{process::ExitCode, time::Instant};

const ROUNDS: usize = 31;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("hit") => hits(),
        Some("instructions") => instructions(),
        _ => {
            eprintln!("usage: larder-bench hit | instructions CASE TIMES; `cargo xtask bench` runs them all");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

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
