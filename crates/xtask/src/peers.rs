//! The table of larder and other caches: made by a crate of its own, printed, and kept beside it.

use std::{fs, path::Path, process::Stdio};

use crate::{Result, check::cargo, servers};

/// Builds and runs the peers' crate, whose output is the table.
pub(crate) fn run(root: &Path) -> Result<()> {
    let servers = servers::bring(root)?;
    let folder = root.join("tests/peers");
    let output = |words: &[&str]| -> Result<String> {
        let output = cargo()
            .args(["run", "--release"])
            .args(words)
            .current_dir(&folder)
            .envs(servers.variables())
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| format!("cargo did not start: {error}"))?;
        if !output.status.success() {
            return Err(format!("the peers' crate failed ({})", output.status).into());
        }
        Ok(String::from_utf8(output.stdout)?)
    };
    let allocations = output(&["--features", "allocations"])?;
    let table = output(&["--", allocations.trim_end()])?;
    print!("{table}");
    fs::write(folder.join("README.md"), table)?;
    Ok(())
}
