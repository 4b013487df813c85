//! The Redis store of larder.

mod checkup;
mod chunks;
mod client;
mod clock;
mod config;
mod fault;
mod lane;
mod measures;
mod scripts;
mod store;

pub use config::{ConfigError, ConnectError, RedisConfig};
pub use store::RedisStore;
