//! The whole check: its steps in order, each timed, stopping at the first that fails.

use std::{env, path::Path, process::Command, time::Instant};

use crate::{
    Result, conformance,
    servers::{self, Servers},
};

/// Brings the servers, then runs every step from the workspace's root.
pub(crate) fn run(root: &Path) -> Result<()> {
    let started = Instant::now();
    println!("==> servers");
    let servers = servers::bring(root)?;
    println!("==> servers: ok in {}", seconds(started));

    for step in &STEPS {
        step.run(root, &servers)?;
    }
    println!("==> conformance");
    let began = Instant::now();
    conformance::check(root).map_err(|error| format!("step `conformance` failed: {error}"))?;
    println!("==> conformance: ok in {}", seconds(began));
    println!("==> all {} steps passed in {}", STEPS.len() + 1, seconds(started));
    Ok(())
}

const STEPS: [Step; 4] = [
    Step { name: "format", cargo: &["fmt", "--all", "--check"], rustdocflags: None },
    Step {
        name: "lints",
        cargo: &["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"],
        rustdocflags: None,
    },
    Step {
        name: "documentation",
        cargo: &["doc", "--workspace", "--no-deps", "--all-features"],
        rustdocflags: Some("-D warnings"),
    },
    Step { name: "tests", cargo: &["test", "--workspace", "--all-features"], rustdocflags: None },
];

/// One run of cargo.
struct Step {
    name: &'static str,
    cargo: &'static [&'static str],
    rustdocflags: Option<&'static str>,
}

impl Step {
    fn run(&self, root: &Path, servers: &Servers) -> Result<()> {
        println!("==> {}: {self}", self.name);
        let started = Instant::now();
        let status = cargo()
            .args(self.cargo)
            .current_dir(root)
            .envs(self.rustdocflags.map(|flags| ("RUSTDOCFLAGS", flags)))
            .envs(servers.variables())
            .status()
            .map_err(|error| format!("step `{}`: cargo did not start: {error}", self.name))?;
        if !status.success() {
            return Err(format!("step `{}` failed after {} ({status}): {self}", self.name, seconds(started)).into());
        }
        println!("==> {}: ok in {}", self.name, seconds(started));
        Ok(())
    }
}

impl std::fmt::Display for Step {
    /// The step as one would type it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(flags) = self.rustdocflags {
            write!(f, "RUSTDOCFLAGS=\"{flags}\" ")?;
        }
        write!(f, "cargo {}", self.cargo.join(" "))
    }
}

/// The cargo that started this program, so that a toolchain chosen with `+` holds for every step.
///
/// It is not told what cargo tells this program of itself: build scripts that look at such variables would run anew after
/// every build that was started in another way, and with them what depends on them.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let is_own = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_own)) {
        cargo.env_remove(name);
    }
    cargo
}

fn seconds(since: Instant) -> String {
    format!("{:.1} s", since.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_shown_as_one_would_type_it() {
        let shown = STEPS.map(|step| step.to_string());
        assert_eq!(shown[0], "cargo fmt --all --check");
        assert_eq!(shown[2], "RUSTDOCFLAGS=\"-D warnings\" cargo doc --workspace --no-deps --all-features");
    }
}
