//! The command line.

use clap::Parser;
use http::{
    Uri,
    uri::{Authority, PathAndQuery, Scheme},
};
use std::{fmt, str::FromStr, time::Duration};

/// A caching reverse proxy: hyper with larder in front.
// Not `Debug`: the URL of Redis can hold a password.
#[derive(Clone, Parser)]
#[command(name = "gateway")]
pub struct Options {
    /// Where clients connect to.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    pub listen: String,
    /// The server that requests are forwarded to, as in http://127.0.0.1:8000.
    #[arg(long, value_name = "URL")]
    pub upstream: Upstream,
    /// The Redis that stores responses, as in redis://127.0.0.1:6379, redis-cluster://host:6379,host:6379 or
    /// redis-sentinel://host:26379/service. Without it, they are kept in memory.
    #[arg(long, value_name = "URL")]
    pub redis: Option<String>,
    /// Keeps so many bytes of what is in Redis in memory too.
    #[arg(long, value_name = "BYTES", requires = "redis")]
    pub near: Option<u64>,
    /// The lifetime of responses that state none. Without it, they are not stored.
    #[arg(long, value_name = "SECONDS")]
    pub default_ttl: Option<u64>,
    /// Honours the Cache-Control of requests.
    #[arg(long)]
    pub honor_client_directives: bool,
    /// Shows the upstream nothing of a request that may be stored but its method, target and Host.
    #[arg(long)]
    pub sealed: bool,
    /// Where Prometheus finds /metrics.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics: Option<String>,
    /// Lets whoever knows it purge what is stored: `PURGE url` with `Authorization: Bearer TOKEN`. At least 16 characters.
    #[arg(long, value_name = "TOKEN", env = "GATEWAY_ADMIN_TOKEN", hide_env_values = true)]
    pub admin_token: Option<Secret>,
    /// How long the upstream may take to the head of its response.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: u64,
}

impl Options {
    /// How long the upstream may take to the head of its response.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

/// What only the operator knows; it is never printed.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Whether it is `given`; that takes as long whatever part of it is right.
    pub(crate) fn is(&self, given: &[u8]) -> bool {
        let own = self.0.as_bytes();
        let differing = own.iter().zip(given).fold(0, |differing, (own, given)| differing | (own ^ given));
        own.len() == given.len() && differing == 0
    }
}

impl FromStr for Secret {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_writable = text.bytes().all(|byte| byte.is_ascii_graphic());
        if text.len() < 16 || !is_writable {
            return Err("it takes at least 16 characters, printable ASCII without blanks".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

/// The server that requests are forwarded to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream(Authority);

impl Upstream {
    /// Where a request for `target` goes.
    pub(crate) fn uri(&self, target: Option<&PathAndQuery>) -> Uri {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(self.0.clone());
        parts.path_and_query = Some(target.cloned().unwrap_or_else(|| PathAndQuery::from_static("/")));
        Uri::from_parts(parts).expect("a scheme, an authority and a path are a URI")
    }
}

impl FromStr for Upstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("it is {text:?}; it takes http://, a host, and a port unless that is 80, and no path");
        let parts = text.parse::<Uri>().map_err(|_| wrong())?.into_parts();
        match (parts.scheme, parts.authority, parts.path_and_query) {
            (Some(scheme), Some(authority), None) if is_plain(&scheme, &authority) => Ok(Self(authority)),
            (Some(scheme), Some(authority), Some(path)) if path == "/" && is_plain(&scheme, &authority) => {
                Ok(Self(authority))
            }
            _ => Err(wrong()),
        }
    }
}

fn is_plain(scheme: &Scheme, authority: &Authority) -> bool {
    *scheme == Scheme::HTTP && !authority.as_str().contains('@')
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_long_and_is_itself_only() {
        for bad in ["", "short", "has a blank in the middle", "beyond-ascii-\u{e9}-and-long"] {
            assert!(bad.parse::<Secret>().is_err(), "{bad}");
        }
        let secret: Secret = "0123456789abcdef".parse().expect("a secret");
        assert!(secret.is(b"0123456789abcdef"));
        for other in ["", "0123456789abcde", "0123456789abcdefg", "0123456789abcdeg"] {
            assert!(!secret.is(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn an_upstream_is_a_server_and_no_path() {
        for good in ["http://127.0.0.1:8000", "http://localhost/", "http://[::1]:80"] {
            assert!(good.parse::<Upstream>().is_ok(), "{good}");
        }
        for bad in ["127.0.0.1:8000", "https://127.0.0.1", "http://host/path", "http://user@host", "/", ""] {
            assert!(bad.parse::<Upstream>().is_err(), "{bad}");
        }
    }
}
