//! What is worth a warning about the server itself, judged once after connecting.

use crate::{client::Patience, lane::Lane};
use bytes::Bytes;
use std::sync::Arc;

/// The oldest version of Redis that larder works with.
const OLDEST: (u32, u32) = (6, 2);

/// Warns once of what is wrong with the server, as far as the user may see it.
pub(crate) async fn check_up(lane: Arc<Lane>) {
    let mut connections = lane.connections();
    if connections.wait_for(|made| *made > 0).await.is_err() {
        return;
    }
    drop(connections);
    let mut info = String::new();
    for section in ["server", "memory"] {
        match lane.call(Patience::Write, "INFO", None, vec![Bytes::from_static(section.as_bytes())]).await {
            Ok(reply) => {
                info.push_str(&String::from_utf8_lossy(&reply.into_bytes().unwrap_or_default()));
            }
            Err(fault) => {
                tracing::debug!(server = lane.server(), section, ?fault, "INFO is refused; it is not checked");
            }
        }
    }
    for warning in judge(&info) {
        tracing::warn!(server = lane.server(), "{warning}");
    }
    if let Some(warning) = misnamed(&info).filter(|_| !lane.is_sparing()) {
        tracing::warn!(server = lane.server(), "{warning}");
    }
    if lane.call(Patience::Write, "TIME", None, Vec::new()).await.is_err_and(|fault| fault.is("NOPERM")) {
        tracing::warn!(
            server = lane.server(),
            "the user may not ask for the time, as whatever stores or purges does, so that nothing is stored: give it +time, \
             and the others of ACL_COMMANDS"
        );
    }
}

/// Judges `INFO server` and `INFO memory`: each sentence says what is wrong, and how to mend it.
///
/// What the text does not tell is not judged.
fn judge(info: &str) -> Vec<String> {
    let field = |name: &str| {
        info.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(|value| value.trim_end().to_owned()))
    };
    let mut warnings = Vec::new();
    // Valkey states a redis_version for the sake of such checks; it is 7.2.4.
    if let Some(version) = field("redis_version")
        && number(&version).is_some_and(|version| version < OLDEST)
    {
        warnings.push(format!("Redis is version {version}; larder needs 6.2 or newer: upgrade the server"));
    }
    let policy = field("maxmemory_policy");
    let mend = "CONFIG SET maxmemory-policy allkeys-lru";
    match field("maxmemory").and_then(|bytes| bytes.parse::<u64>().ok()) {
        Some(0) => warnings.push(format!(
            "Redis has no memory limit, and will grow until the machine has no memory left: set one, as in \
             CONFIG SET maxmemory 256mb, and {mend}"
        )),
        Some(limit) if policy.as_deref() == Some("noeviction") => warnings.push(format!(
            "Redis will refuse to store anything once its {limit} bytes are full, because its policy is noeviction: \
             {mend}"
        )),
        _ => {}
    }
    warnings
}

/// Judges in `INFO server` whether one server that was named is one that is not to be named alone.
fn misnamed(info: &str) -> Option<&'static str> {
    match info.lines().find_map(|line| line.strip_prefix("redis_mode:"))?.trim_end() {
        "cluster" => Some(
            "the server is a node of a cluster, and refuses whatever is in the slots of others: connect to \
             redis-cluster://host:port",
        ),
        "sentinel" => {
            Some("the server is a sentinel, and stores nothing: connect to redis-sentinel://host:port/service")
        }
        _ => None,
    }
}

fn number(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_of_a_server_is_one_warning() {
        let cases: [(&str, &[&str]); 9] = [
            ("redis_version:7.0.15\r\nmaxmemory:1000\r\nmaxmemory_policy:allkeys-lru\r\n", &[]),
            ("redis_version:6.2.5\r\nmaxmemory:1000\r\nmaxmemory_policy:volatile-lfu\r\n", &[]),
            ("redis_version:6.0.16\r\nmaxmemory:1000\r\nmaxmemory_policy:allkeys-lru\r\n", &["6.2 or newer"]),
            ("redis_version:5.0\nmaxmemory:0\nmaxmemory_policy:noeviction\n", &["6.2 or newer", "no memory limit"]),
            ("# Memory\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\n", &["no memory limit"]),
            ("maxmemory:1000\r\nmaxmemory_human:1K\r\nmaxmemory_policy:noeviction\r\n", &["noeviction"]),
            ("maxmemory:1000\r\n", &[]),
            ("redis_version:x\r\nmaxmemory:y\r\n", &[]),
            ("", &[]),
        ];
        for (info, expected) in cases {
            let warnings = judge(info);
            assert_eq!(warnings.len(), expected.len(), "{info:?}: {warnings:?}");
            for (warning, part) in warnings.iter().zip(expected) {
                assert!(warning.contains(part), "{warning}");
            }
        }
    }

    #[test]
    fn a_server_that_is_not_to_be_named_alone_is_told_of() {
        assert_eq!(misnamed("redis_version:7.0.15\r\nredis_mode:standalone\r\n"), None);
        assert_eq!(misnamed(""), None);
        assert!(misnamed("redis_mode:cluster\r\n").is_some_and(|warning| warning.contains("redis-cluster://")));
        assert!(misnamed("redis_mode:sentinel\r\n").is_some_and(|warning| warning.contains("redis-sentinel://")));
    }

    #[test]
    fn a_warning_says_how_to_mend_it() {
        for info in ["maxmemory:0", "maxmemory:1\nmaxmemory_policy:noeviction"] {
            assert!(judge(info)[0].contains("CONFIG SET maxmemory-policy allkeys-lru"));
        }
    }
}
