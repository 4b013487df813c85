//! The Redis store of larder: responses that all processes of a service share.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use larder::Cache;
//! use larder_redis::RedisStore;
//!
//! let cache = Cache::builder().store(RedisStore::connect("redis://127.0.0.1:6379").await?).build()?;
//! # Ok(())
//! # }
//! ```
//!
//! Redis may be away when the program starts, and go away at any time: the store then fails fast, and the cache answers
//! without it. Only what an operator must mend keeps [`RedisStore::connect`] from returning a store: a setting that
//! cannot be used, a wrong password, a certificate that is not accepted.
//!
//! # Where Redis is
//!
//! | URL | what it is |
//! |---|---|
//! | `redis://user:password@host:6379/0` | TCP; everything but the host may be left out |
//! | `rediss://…` | the same with TLS, with the authorities that the system trusts, or [`RedisConfig::tls_ca_file`] |
//! | `redis+unix://user:password@/run/redis.sock?db=0` | a Unix socket; also spelled `unix://` |
//!
//! [`RedisStore::from_env`] reads the environment instead:
//!
//! | variable | meaning |
//! |---|---|
//! | `REDIS_URL` | the URL; the next three are not looked at if it is set |
//! | `REDIS_HOST`, `REDIS_PORT`, `REDIS_TLS` | host, port (6379), and `true` for TLS (`false`) |
//! | `REDIS_USERNAME`, `REDIS_PASSWORD` | count wherever the URL names neither |
//!
//! # The server
//!
//! Redis 6.2 or newer, or Valkey 7.2 or newer, with a limit to its memory and a policy that evicts:
//!
//! ```text
//! maxmemory 256mb
//! maxmemory-policy allkeys-lru
//! ```
//!
//! A start-up check warns of what is amiss there. Evicting anything at any time costs misses only.
//!
//! A user of its own may do what larder does, on the keys of one namespace, here `shop`:
//!
//! ```text
//! ACL SETUSER larder on >the-password resetkeys ~shop:* ~{shop}* resetchannels &{shop}* -@all
//!   +client|id +eval +evalsha +exists +get +getrange +hdel +hget +hkeys +hset +hvals +info +mget +pexpire +ping +pttl +publish +scan
//!   +set +setrange +subscribe +time +unlink +xadd +xrange +xrevrange +xtrim
//! ```
//!
//! The commands are also in [`ACL_COMMANDS`]. A database other than 0 takes `+select` too. Without `+client|id` and
//! `+info` everything works but the start-up check; without `+time` the machine's clock counts instead of Redis'; without
//! `+publish` and `+subscribe`, or the channels, a request that waits for another process' answer finds it a little later,
//! and what another process invalidates is known after a second; `+scan` is for purges by prefix or pattern.
//!
//! # What it tells
//!
//! Connecting, losing the connection and connecting again are logged once each, through `tracing`. Through `metrics`
//! come the histogram `larder.redis.duration` (seconds, by `op`), the counter `larder.redis.errors` (by `op` and
//! `class`), and the counter `larder.redis.foreign_replies`: replies that belonged to another command, and reached
//! nobody.

mod checkup;
mod chunks;
mod client;
mod clock;
mod cluster;
mod config;
mod fault;
mod inquiry;
mod lane;
mod lanes;
mod log;
mod measures;
mod pending;
mod reads;
mod sentinel;
mod slot;
mod store;
mod sweep;
mod topology;
mod wake;

pub use config::{ConfigError, ConnectError, Recovery, RedisConfig};
pub use store::RedisStore;

/// The commands that an ACL user needs, as words of `ACL SETUSER`.
pub const ACL_COMMANDS: &str = "-@all +client|id +eval +evalsha +exists +get +getrange +hdel +hget +hkeys +hset +hvals +info +mget +pexpire \
                                +ping +pttl +publish +scan +set +setrange +subscribe +time +unlink +xadd +xrange +xrevrange +xtrim";
