//! What goes wrong between here and Redis, and which store error it is.

use larder::store::{StoreError, is_late};
use std::time::Duration;

/// Why a command has no reply that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// There was no connection, so nothing was sent.
    Down,
    /// It did not answer in time.
    Timeout,
    /// Its time was over long before this process came to look: its answer may lie there unread.
    Overslept,
    /// The connection broke, or could not be made.
    Connection(String),
    /// Redis replied with this error.
    Server(String),
    /// The reply belongs to another command.
    Foreign,
    /// The sentinels know nothing of the service.
    Unnamed(String),
}

/// Error codes that say that Redis is there, and not ready.
const NOT_READY: [&str; 9] =
    ["LOADING", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "NOAUTH", "WRONGPASS", "BUSY", "NOREPLICAS", "UNKILLABLE"];

impl Fault {
    /// The code that an error of Redis begins with, as in `OOM command not allowed`.
    ///
    /// Redis 6 wraps an error from within a script in one of its own, which begins with `ERR Error running script`
    /// and holds the code with a hyphen before it.
    pub(crate) fn code(&self) -> Option<&str> {
        let Self::Server(text) = self else { return None };
        let inner = text.starts_with("ERR Error running script").then(|| text.split_once(": -")).flatten();
        inner.map_or(text.as_str(), |(_, inner)| inner).split_whitespace().next()
    }

    pub(crate) fn is(&self, code: &str) -> bool {
        self.code() == Some(code)
    }

    /// The same of a command that might take `within`. A process that comes so much too late has not looked for the reply
    /// either, which tells nothing of the server.
    pub(crate) fn judged(self, took: Duration, within: Duration) -> Self {
        if self == Self::Timeout && is_late(took, within) { Self::Overslept } else { self }
    }

    /// Whether it says that the connection, or the server as a whole, is ill.
    pub(crate) fn is_outage(&self) -> bool {
        match self {
            Self::Down | Self::Timeout | Self::Connection(_) | Self::Foreign | Self::Unnamed(_) => true,
            Self::Overslept => false,
            Self::Server(_) => self.code().is_some_and(|code| NOT_READY.contains(&code)),
        }
    }
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        let outage = fault.is_outage();
        let out_of_memory = fault.is("OOM");
        match fault {
            Fault::Timeout => Self::Timeout,
            Fault::Overslept => Self::Busy,
            Fault::Down => Self::Unavailable("not connected".to_owned()),
            Fault::Foreign => Self::Unavailable("foreign reply".to_owned()),
            Fault::Connection(why) | Fault::Unnamed(why) => Self::Unavailable(why),
            Fault::Server(reply) if outage => Self::Unavailable(reply),
            Fault::Server(reply) if out_of_memory => Self::OutOfMemory(reply),
            Fault::Server(reply) => Self::Refused(reply),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_one_class_of_store_error() {
        let server = |text: &str| Fault::Server(text.to_owned());
        let cases = [
            (Fault::Down, "unavailable"),
            (Fault::Timeout, "timeout"),
            (Fault::Overslept, "busy"),
            (Fault::Connection("IO Error: reset".to_owned()), "unavailable"),
            (Fault::Foreign, "unavailable"),
            (server("LOADING Redis is loading the dataset in memory"), "unavailable"),
            (server("CLUSTERDOWN The cluster is down"), "unavailable"),
            (server("MASTERDOWN Link with MASTER is down"), "unavailable"),
            (server("TRYAGAIN Multiple keys request during rehashing of slot"), "unavailable"),
            (server("NOAUTH Authentication required."), "unavailable"),
            (server("WRONGPASS invalid username-password pair"), "unavailable"),
            (server("BUSY Redis is busy running a script."), "unavailable"),
            (server("NOREPLICAS Not enough good replicas to write."), "unavailable"),
            (
                server("OOM command not allowed when used memory > 'maxmemory'. script: 1f, on @user_script:9."),
                "out-of-memory",
            ),
            (
                server(
                    "ERR Error running script (call to f_1): @user_script:9: @user_script: 9: -OOM command not allowed when used memory > 'maxmemory'.",
                ),
                "out-of-memory",
            ),
            (server("READONLY You can't write against a read only replica."), "refused"),
            (server("NOPERM this user has no permissions to run the 'get' command"), "refused"),
            (server("MISCONF Redis is configured to save RDB snapshots"), "refused"),
            (server("WRONGTYPE Operation against a key holding the wrong kind of value"), "refused"),
            (server("ERR unknown command"), "refused"),
            (server(""), "refused"),
        ];
        for (fault, class) in cases {
            assert_eq!(StoreError::from(fault.clone()).class(), class, "{fault:?}");
        }
    }

    #[test]
    fn who_looks_too_late_does_not_blame_the_server() {
        let within = Duration::from_millis(100);
        for (fault, took, judged) in [
            (Fault::Timeout, 100, Fault::Timeout),
            (Fault::Timeout, 125, Fault::Timeout),
            (Fault::Timeout, 126, Fault::Overslept),
            (Fault::Down, 126, Fault::Down),
        ] {
            assert_eq!(fault.judged(Duration::from_millis(took), within), judged, "{took} ms");
        }
    }

    #[test]
    fn a_code_is_found_within_what_redis_6_puts_around_it() {
        let wrapped = "ERR Error running script (call to f_1): @user_script:2: @user_script: 2: -READONLY You can't";
        assert!(Fault::Server(wrapped.to_owned()).is("READONLY"));
        assert!(Fault::Server("ERR Error running script without a code".to_owned()).is("ERR"));
        assert_eq!(Fault::Timeout.code(), None);
    }
}
