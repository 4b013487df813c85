//! What a hit, a miss and a Redis hit cost, as ratios taken in one run on one machine.

mod hit;

use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("hit") => hit::table(),
        Some("one-hit") => hit::many(),
        _ => {
            eprintln!("usage: larder-bench hit | one-hit; `cargo xtask bench` runs them all");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
