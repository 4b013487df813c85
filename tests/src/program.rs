//! Which server a test runs against, and where that server's program is.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

/// The kind of server that a test starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Flavor {
    /// The Redis of the system's package manager.
    #[default]
    Redis,
    /// A recent Valkey.
    Valkey,
}

impl Flavor {
    /// The path of the server's program.
    ///
    /// # Panics
    ///
    /// When there is none; the message says how to get one.
    pub(crate) fn program(self) -> PathBuf {
        let places = Places {
            named: env::var_os(self.variable()).filter(|path| !path.is_empty()),
            path: env::var_os("PATH").unwrap_or_default(),
            kept: Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/servers"),
        };
        match self.locate(&places) {
            Ok(program) => program,
            Err(message) => panic!("{message}"),
        }
    }

    fn locate(self, places: &Places) -> Result<PathBuf, String> {
        let (variable, name) = (self.variable(), self.name());
        if let Some(named) = &places.named {
            let path = PathBuf::from(named);
            return if path.is_file() {
                Ok(path)
            } else {
                Err(format!("{variable} is {}, where there is no file; it must be the path of {name}", path.display()))
            };
        }
        env::split_paths(&places.path)
            .chain([places.kept.clone()])
            .map(|folder| folder.join(name))
            .find(|path| path.is_file())
            .ok_or_else(|| {
                format!(
                    "{name} was not found: {variable} is not set, and neither PATH nor {} holds it. \
                     Run `cargo xtask test`, which installs it, or set {variable} to its path",
                    places.kept.display()
                )
            })
    }

    fn variable(self) -> &'static str {
        match self {
            Self::Redis => "REDIS_SERVER",
            Self::Valkey => "VALKEY_SERVER",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis-server",
            Self::Valkey => "valkey-server",
        }
    }
}

/// Where a program may be, in this order.
struct Places {
    /// The path in the flavor's environment variable.
    named: Option<OsString>,
    /// The value of `PATH`.
    path: OsString,
    /// The folder where `cargo xtask` keeps what it downloads.
    kept: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nowhere() -> Places {
        Places { named: None, path: OsString::new(), kept: PathBuf::from("/nonexistent") }
    }

    #[test]
    fn a_missing_program_says_how_to_get_it() {
        let message = Flavor::Valkey.locate(&nowhere()).unwrap_err();
        for part in ["valkey-server", "cargo xtask test", "VALKEY_SERVER"] {
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_variable_that_names_no_file_is_an_error_and_not_a_fall_back() {
        let places = Places { named: Some("/nonexistent/redis-server".into()), ..nowhere() };
        let message = Flavor::Redis.locate(&places).unwrap_err();
        assert!(message.contains("REDIS_SERVER is /nonexistent/redis-server"), "{message}");
    }

    #[test]
    fn the_variable_wins_over_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let (named, on_path) = (folder.path().join("mine"), folder.path().join("redis-server"));
        std::fs::write(&named, "").unwrap();
        std::fs::write(&on_path, "").unwrap();
        let mut places = Places { named: Some(named.clone().into()), path: folder.path().into(), ..nowhere() };
        assert_eq!(Flavor::Redis.locate(&places), Ok(named));
        places.named = None;
        assert_eq!(Flavor::Redis.locate(&places), Ok(on_path));
    }
}
