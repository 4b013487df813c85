//! Breaks a real Redis under load, in each of the ways there are, and prints what the requests noticed of it.

use larder_bench::faults::{Fault, Figures, measure};
use std::{error::Error, fs, path::PathBuf, process::ExitCode, time::Duration};
use tokio::runtime::Builder;

const USAGE: &str = "usage: larder-faults [--seconds N] [--only PART_OF_A_NAME] [--write FILE]";

fn main() -> ExitCode {
    let done = Arguments::parse(std::env::args().skip(1)).ok_or_else(|| USAGE.into()).and_then(|it| run(&it));
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("larder-faults: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Arguments {
    length: Duration,
    only: String,
    write: Option<PathBuf>,
}

impl Arguments {
    fn parse(mut words: impl Iterator<Item = String>) -> Option<Self> {
        let mut arguments = Self { length: Duration::from_secs(10), only: String::new(), write: None };
        while let Some(name) = words.next() {
            let value = words.next()?;
            match name.as_str() {
                "--seconds" => arguments.length = Duration::from_secs(value.parse().ok()?),
                "--only" => arguments.only = value,
                "--write" => arguments.write = Some(value.into()),
                _ => return None,
            }
        }
        Some(arguments)
    }
}

/// Whether every bound holds.
fn run(arguments: &Arguments) -> Result<bool, Box<dyn Error>> {
    let (mut table, mut broken) = (Figures::head(), Vec::new());
    println!("{table}");
    for fault in Fault::ALL.into_iter().filter(|fault| fault.name().contains(&arguments.only)) {
        // One of its own, as each fault has a store and clients of its own.
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let measured = runtime.block_on(measure(fault, arguments.length));
        let figures = measured.map_err(|error| format!("{}: {error}", fault.name()))?;
        println!("{}", figures.row());
        table = table + "\n" + &figures.row();
        broken.extend(figures.broken().into_iter().map(|sentence| format!("{}: {sentence}", fault.name())));
    }
    for sentence in &broken {
        eprintln!("{sentence}");
    }
    if let Some(path) = &arguments.write {
        let replaced = replaced(&fs::read_to_string(path)?, &table);
        fs::write(path, replaced.ok_or_else(|| format!("{} lacks the two markers", path.display()))?)?;
    }
    Ok(broken.is_empty())
}

/// The page with this table between its markers.
fn replaced(page: &str, table: &str) -> Option<String> {
    let (before, rest) = page.split_once("<!-- faults -->")?;
    let (_, after) = rest.split_once("<!-- /faults -->")?;
    Some(format!("{before}<!-- faults -->\n\n{table}\n\n<!-- /faults -->{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_markers_is_replaced() {
        let page = "a\n<!-- faults -->\nold\n<!-- /faults -->\nb";
        assert_eq!(replaced(page, "new").unwrap(), "a\n<!-- faults -->\n\nnew\n\n<!-- /faults -->\nb");
        assert_eq!(replaced("a", "new"), None);
    }
}
