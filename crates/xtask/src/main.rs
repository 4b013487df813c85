//! The project's own commands, run as `cargo xtask <command>`.

use std::{
    error::Error,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

mod check;
mod conformance;
mod fuzz;
mod measure;
mod peers;
mod servers;

/// Any failure of a command; its text is all that the user is shown.
type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own commands.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// One variant per command, each answered by one function of a module of its own.
#[derive(Subcommand)]
enum Command {
    /// Run the whole check: format, lints, documentation, and every test against real servers.
    Test,
    /// Find or install the servers that the tests start, and print their paths for a shell.
    Servers,
    /// Run the public suite of cache-tests.fyi against the gateway, print what came of it, and write it to
    /// tests/conformance/README.md.
    Conformance {
        /// A checkout of the suite, in place of the release on npm.
        #[arg(long, value_name = "DIR")]
        suite: Option<PathBuf>,
        /// Another cache to run the suite against, side by side.
        #[arg(long, value_name = "CACHE")]
        compare: Option<conformance::Other>,
    },
    /// Ask the same of larder and of other caches for tower, print the table, and write it to tests/peers/README.md.
    Peers,
    /// Measure hits, misses, Redis hits, a stampede and invalidations, print the tables, and write them to bench/README.md.
    Bench {
        /// The only thing that is measured; nothing is then written.
        only: Option<measure::Only>,
    },
    /// Break a real Redis under load in every way, print what it cost, and write it to tests/README.md.
    Faults,
    /// Break the ways from four processes to Redis at random while pages change, print what came of it, and fail when an
    /// answer was older than it may be, or when the same without the log of invalidations is not found out.
    Chaos {
        /// How long the first part runs, with every setting at its default; those after it run two minutes at most.
        #[arg(long, value_name = "N", default_value_t = 10.0)]
        minutes: f64,
        /// What the faults are drawn from. The default is another one each time, which is printed.
        #[arg(long, value_name = "N")]
        seed: Option<u64>,
    },
    /// Look for inputs for which a property of fuzz/ does not hold, and fail when one is found.
    Fuzz {
        /// How long each target runs.
        #[arg(long, value_name = "N", default_value_t = 10)]
        minutes: u32,
        /// The only target that runs.
        #[arg(long, value_name = "NAME")]
        target: Option<String>,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Test => check::run(&root()),
        Command::Servers => servers::print(&root()),
        Command::Conformance { suite, compare } => conformance::conformance(&root(), suite.as_deref(), compare),
        Command::Peers => peers::run(&root()),
        Command::Bench { only: None } => measure::bench(&root()),
        Command::Bench { only: Some(only) } => measure::one(&root(), only),
        Command::Faults => measure::faults(&root()),
        Command::Chaos { minutes, seed } => measure::chaos(&root(), minutes, seed),
        Command::Fuzz { minutes, target } => fuzz::run(&root(), minutes, target.as_deref()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's root, two folders above this crate.
fn root() -> PathBuf {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_dir.ancestors().nth(2).unwrap_or(crate_dir).to_path_buf()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_root_holds_the_workspace_manifest() {
        let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[workspace]"));
    }
}
