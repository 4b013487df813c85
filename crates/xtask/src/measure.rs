//! What larder costs, and what faults cost: programs of their own, built for release, whose tables are printed and kept.

use std::{
    fmt::Write,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use crate::{Result, check::cargo, servers};

/// How many requests a case of `larder-bench instructions` answers each time.
const CALLS: u64 = 20_000;

/// Where the figures are kept.
const PAGE: &str = "bench/README.md";
/// What stands there around those of `chaos`, which the others leave as they are.
const BEGINS: &str = "<!-- chaos -->\n";
const ENDS: &str = "<!-- /chaos -->\n";

/// Runs every measurement, prints the tables, and writes them to bench/README.md.
pub(crate) fn bench(root: &Path) -> Result<()> {
    servers::bring_wrk()?;
    servers::bring_valgrind()?;
    build(root, None)?;
    let before = fs::read_to_string(root.join(PAGE))?;
    let mut page = String::from(
        "# What larder costs\n\nMade by `cargo xtask bench`: ratios taken in one run on one machine, round by round. Absolute \
         figures are that\nmachine's; compare ratios.\n",
    );
    let tables: [(&str, &[&str]); 9] = [
        ("larder-bench", &["hit"]),
        ("larder-allocations", &[]),
        ("larder-bench", &["redis"]),
        ("larder-bench", &["values"]),
        ("larder-bench", &["miss"]),
        ("larder-stampede", &[]),
        ("larder-invalidation", &[]),
        ("larder-behind", &[]),
        ("larder-shop", &[]),
    ];
    for (program, arguments) in tables {
        let table = output(root, program, arguments)?;
        print!("\n{table}");
        write!(page, "\n{table}")?;
    }
    let table = instructions(root)?;
    print!("\n{table}");
    write!(page, "\n{table}\n{BEGINS}{}{ENDS}", divided(&before).map_or("", |(_, figures, _)| figures))?;
    fs::write(root.join(PAGE), page)?;
    Ok(())
}

/// What can be measured by itself.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Only {
    /// A hit in memory, next to the floor and to the handler that it replaces.
    Hit,
    /// A hit in Redis, next to a bare GET.
    Redis,
    /// A value in memory and in Redis, next to what else keeps values.
    Values,
    /// A miss whose body streams through.
    Miss,
    /// Four processes that meet a cold key.
    Stampede,
    /// Writes behind, while processes and Redis are killed.
    Behind,
    /// The shop under load: nothing cached, values, routes, and routes while Redis is killed.
    Shop,
    /// What invalidation costs, how soon it is everywhere, and whether any answer is older than it may be.
    Invalidation,
}

/// Measures one thing by itself, and prints its tables.
pub(crate) fn one(root: &Path, only: Only) -> Result<()> {
    let (program, arguments): (&str, &[&str]) = match only {
        Only::Hit => ("larder-bench", &["hit"]),
        Only::Redis => ("larder-bench", &["redis"]),
        Only::Values => ("larder-bench", &["values"]),
        Only::Miss => ("larder-bench", &["miss"]),
        Only::Stampede => ("larder-stampede", &[]),
        Only::Behind => ("larder-behind", &[]),
        Only::Invalidation => ("larder-invalidation", &[]),
        Only::Shop => ("larder-shop", &[]),
    };
    build(root, Some(program))?;
    print!("{}", output(root, program, arguments)?);
    Ok(())
}

/// Breaks a real Redis in every way there is while clients go on, and writes what it cost to tests/README.md.
pub(crate) fn faults(root: &Path) -> Result<()> {
    build(root, Some("larder-faults"))?;
    let table = output(root, "larder-faults", &["--write", "tests/README.md"])?;
    print!("{table}");
    Ok(())
}

/// Breaks the ways from four processes to Redis at random, and prints whether anything was answered that may not be; a run
/// of ten minutes and more is written to bench/README.md.
pub(crate) fn chaos(root: &Path, minutes: f64, seed: Option<u64>) -> Result<()> {
    build(root, Some("larder-chaos"))?;
    let mut words = vec!["--minutes".to_owned(), minutes.to_string()];
    words.extend(seed.into_iter().flat_map(|seed| ["--seed".to_owned(), seed.to_string()]));
    let tables = output(root, "larder-chaos", &words.iter().map(String::as_str).collect::<Vec<_>>())?;
    print!("{tables}");
    if minutes >= 10.0 {
        let page = fs::read_to_string(root.join(PAGE))?;
        let (before, _, after) = divided(&page).ok_or_else(|| format!("{PAGE} lacks {BEGINS} or {ENDS}"))?;
        fs::write(root.join(PAGE), format!("{before}{BEGINS}\n{tables}\n{ENDS}{after}"))?;
    }
    Ok(())
}

/// What stands before the figures of `chaos`, they themselves, and what stands behind them.
fn divided(page: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = page.split_once(BEGINS)?;
    let (figures, after) = rest.split_once(ENDS)?;
    Some((before, figures, after))
}

/// Builds one of the programs, or all; the shop is what one of them puts under load.
fn build(root: &Path, program: Option<&str>) -> Result<()> {
    let mut build = cargo();
    build.args(["build", "--release", "-p", "larder-bench", "-p", "shop"]).current_dir(root);
    if let Some(program) = program {
        build.args(["--bin", program, "--bin", "shop"]);
    }
    if build.status()?.success() { Ok(()) } else { Err("larder-bench was not built".into()) }
}

fn output(root: &Path, program: &str, arguments: &[&str]) -> Result<String> {
    let servers = servers::bring(root)?;
    if program == "larder-shop" {
        servers::bring_wrk()?;
    }
    let output = Command::new(root.join("target/release").join(program))
        .args(arguments)
        .current_dir(root)
        .envs(servers.variables())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("{program} did not start: {error}"))?;
    let table = String::from_utf8(output.stdout)?;
    if !output.status.success() {
        return Err(format!("{program} {} failed ({})\n{table}", arguments.join(" "), output.status).into());
    }
    Ok(table)
}

/// Instructions for each hit, counted by callgrind: what making the requests takes is counted by itself, and taken off.
fn instructions(root: &Path) -> Result<String> {
    let cases = ["floor: lookup, header clone, response", "bare router", "layer around the router"];
    let requests = each(root, "none")?;
    let mut table = String::from("| a hit in memory, 1 KiB | instructions (callgrind) |\n|---|---:|\n");
    for case in cases {
        writeln!(table, "| {case} | {} |", each(root, case)?.saturating_sub(requests))?;
    }
    Ok(table)
}

fn each(root: &Path, case: &str) -> Result<u64> {
    Ok((counted(root, case, "3")?.saturating_sub(counted(root, case, "1")?)) / (2 * CALLS))
}

fn counted(root: &Path, case: &str, times: &str) -> Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(root.join("target/release/larder-bench"))
        .args(["instructions", case, times])
        .output()
        .map_err(|error| format!("valgrind did not start: {error}"))?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let count = told.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    count.ok_or_else(|| format!("valgrind told no count:\n{told}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_chaos_stand_apart() {
        let page = format!("a\n{BEGINS}\nfigures\n{ENDS}b\n");
        assert_eq!(divided(&page), Some(("a\n", "\nfigures\n", "b\n")));
        assert_eq!(divided("a\n"), None);
    }
}
