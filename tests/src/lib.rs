//! What the tests against real servers share: starting a server, and breaking the network in front of it.
//!
//! Everything here panics with a full sentence when it cannot do its work, because a test that
//! cannot run fails: it does not skip.

mod certificates;
mod cluster;
mod connection;
mod postgres;
mod process;
mod program;
mod proxy;
mod replies;
mod sentinel;
mod server;
mod wait;

pub use cluster::RedisCluster;
pub use connection::Connection;
pub use postgres::PostgresServer;
pub use process::{Process, program};
pub use program::Flavor;
pub use proxy::FaultProxy;
pub use replies::ReplyScanner;
pub use sentinel::RedisSentinels;
pub use server::{RedisServer, RedisServerBuilder};

/// The README's example, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
mod readme {}
