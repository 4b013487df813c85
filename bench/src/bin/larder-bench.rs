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
            eprintln!("usage: larder-bench hit | instructions; `cargo xtask bench` runs them all");
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

/// Answers hits around a router, as often as the second argument says: for an instruction counter, or a profiler.
fn instructions() {
    let mut case = hit::around();
    for _ in 0..std::env::args().nth(2).and_then(|times| times.parse().ok()).unwrap_or(1) {
        case(hit::requests());
    }
}
