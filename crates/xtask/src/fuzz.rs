//! The properties of `fuzz/`, asked of whatever libFuzzer comes up with: each target runs for a while, and what it found is
//! told.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use crate::{Result, check::cargo, servers::run as running};

/// Runs every target, or the one that is named, for so many minutes each, and prints a line for each.
///
/// What it comes up with is kept beside the build, where the next run begins; the cases in `fuzz/corpus` are only read.
pub(crate) fn run(root: &Path, minutes: u32, target: Option<&str>) -> Result<()> {
    let fuzzer = Fuzzer::bring(root)?;
    let targets = fuzzer.targets(target)?;
    let built = fuzzer.command("build").args(target).status()?;
    if !built.success() {
        return Err("the targets were not built".into());
    }
    let mut found = 0;
    for target in &targets {
        eprintln!("    {target}: {minutes} min");
        let report = fuzzer.report(target, minutes)?;
        found += usize::from(report.finding.is_some());
        println!("{}", report.line(target));
    }
    if found > 0 {
        return Err(
            format!("{found} of {} targets found something: their lines tell what, and where", targets.len()).into()
        );
    }
    Ok(())
}

/// cargo-fuzz, and what it needs.
struct Fuzzer {
    folder: PathBuf,
    /// Where what it comes up with is kept.
    kept: PathBuf,
    /// Whether the compiler must be told to do what only nightlies do.
    is_stable: bool,
}

impl Fuzzer {
    fn bring(root: &Path) -> Result<Self> {
        let is_there = || {
            let asked = cargo().args(["fuzz", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
            asked.is_ok_and(|status| status.success())
        };
        if !is_there() {
            running(cargo().args(["install", "cargo-fuzz", "--locked"]))?;
        }
        let rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())).arg("--version").output()?;
        let is_stable = !String::from_utf8_lossy(&rustc.stdout).contains("nightly");
        Ok(Self { folder: root.join("fuzz"), kept: root.join("target/fuzz"), is_stable })
    }

    fn command(&self, subcommand: &str) -> Command {
        let mut command = cargo();
        command.args(["fuzz", subcommand]).current_dir(&self.folder);
        if self.is_stable {
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        command
    }

    /// All targets, or the one that is asked for.
    fn targets(&self, only: Option<&str>) -> Result<Vec<String>> {
        let listed = self.command("list").stderr(Stdio::inherit()).output()?;
        let targets: Vec<String> = String::from_utf8(listed.stdout)?.lines().map(str::to_owned).collect();
        match only {
            None => Ok(targets),
            Some(only) if targets.iter().any(|target| target == only) => Ok(vec![only.to_owned()]),
            Some(only) => Err(format!("there is no target {only:?}; there are {}", targets.join(", ")).into()),
        }
    }

    fn report(&self, target: &str, minutes: u32) -> Result<Report> {
        let corpus = self.kept.join(target);
        fs::create_dir_all(&corpus)?;
        let log = self.kept.join(format!("{target}.log"));
        let status = self
            .command("run")
            .arg(target)
            .args([&corpus, &self.folder.join("corpus").join(target)])
            .arg("--")
            .args([
                format!("-max_total_time={}", minutes * 60),
                format!("-dict={}", self.folder.join("http.dict").display()),
            ])
            // An input of a few thousand bytes that takes so long, or so much memory, is a finding.
            .args(["-timeout=10", "-rss_limit_mb=2048", "-malloc_limit_mb=256", "-print_final_stats=1"])
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .status()?;
        let told = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        let report = Report::read(&told, fs::read_dir(&corpus)?.count(), status);
        report.ok_or_else(|| format!("{target} did not run ({status}); {} tells why", log.display()).into())
    }
}

/// What came of one target.
#[derive(Debug, PartialEq)]
struct Report {
    executions: u64,
    /// How many cases are kept for the next run.
    cases: usize,
    finding: Option<Finding>,
}

#[derive(Debug, PartialEq)]
struct Finding {
    /// The first that was said of it.
    what: String,
    input: PathBuf,
}

impl Report {
    /// Reads what libFuzzer told; `None` when it did not come to an end, nor to a finding.
    fn read(told: &str, cases: usize, status: ExitStatus) -> Option<Self> {
        let after = |mark: &str| told.lines().find_map(|line| Some(line.split_once(mark)?.1.trim()));
        let executions = after("stat::number_of_executed_units:").and_then(|number| number.parse().ok()).unwrap_or(0);
        let input = after("Test unit written to ").map(PathBuf::from);
        if !status.success() && input.is_none() {
            return None;
        }
        let finding = input.map(|input| {
            let mut lines = told.lines().skip_while(|line| !line.contains("panicked at") && !line.contains("ERROR: "));
            let what: Vec<&str> = lines.by_ref().take(2).collect();
            Finding { what: what.join("\n    "), input }
        });
        Some(Self { executions, cases, finding })
    }

    fn line(&self, target: &str) -> String {
        let Self { executions, cases, finding } = self;
        let counted = format!("{target:<11}{executions:>12} executions{cases:>7} cases");
        match finding {
            None => format!("{counted}   nothing found"),
            Some(Finding { what, input }) => format!("{counted}   found {}\n    {what}", input.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    const QUIET: &str =
        "#2\tINITED cov: 9 ft: 9 corp: 1/1b\n#700\tDONE   cov: 12\nstat::number_of_executed_units: 700\n";
    const FOUND: &str = "\nthread '<unnamed>' (7) panicked at src/range.rs:1:2:\nit is not so\nnote: run with\n\
                         ==7== ERROR: libFuzzer: deadly signal\nstat::number_of_executed_units: 70\n\
                         artifact_prefix='a/'; Test unit written to a/crash-0b\nBase64: AA==\n";

    #[test]
    fn what_was_found_is_told_with_its_input() {
        let (ended, failed) = (ExitStatus::from_raw(0), ExitStatus::from_raw(77 << 8));
        let quiet = Report::read(QUIET, 5, ended).expect("it came to an end");
        assert_eq!(quiet, Report { executions: 700, cases: 5, finding: None });
        let found = Report::read(FOUND, 5, failed).expect("it came to a finding");
        let line = found.line("ranges");
        assert!(line.contains("found a/crash-0b") && line.contains("it is not so"), "{line}");
        assert_eq!(Report::read("error: could not compile", 0, failed), None);
    }
}
