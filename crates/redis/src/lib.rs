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
//! | `redis-cluster://user:password@host:6379,host:6379` | a [cluster](#clusters); `rediss-cluster://` with TLS |
//! | `redis-sentinel://user:password@host:26379,host:26379/service/0` | what [sentinels](#sentinels) name as the primary of a service; `rediss-sentinel://` with TLS |
//!
//! [`RedisStore::from_env`] reads the environment instead:
//!
//! | variable | meaning |
//! |---|---|
//! | `REDIS_URL` | the URL; the next three are not looked at if it is set |
//! | `REDIS_HOST`, `REDIS_PORT`, `REDIS_TLS` | host, port (6379), and `true` for TLS (`false`) |
//! | `REDIS_USERNAME`, `REDIS_PASSWORD` | count wherever the URL names neither |
//! | `REDIS_SENTINEL_USERNAME`, `REDIS_SENTINEL_PASSWORD` | the sentinels' own, which default to none |
//!
//! # Clusters
//!
//! One node is enough to find the others; name several, so that the one which is away is not the one that is named. All
//! that belongs to a resource lies in one slot. Each master has connections of its own: one that is dead costs the requests
//! for its slots, which go to the origin without waiting, for the reason `store-down`, and costs nobody else anything. When
//! a replica has taken over, or a slot has moved, it is found there.
//!
//! ```text
//! cluster-require-full-coverage no
//! ```
//!
//! is to be set on every node: without it, Redis itself refuses all slots while one has no master, and then all requests go
//! to the origin.
//!
//! - While a slot is being moved from one server to the next, its entries are found on either, and purges of keys reach
//!   them, but nothing is stored there: Redis runs no script on keys of which some have moved. Redis says `TRYAGAIN`, and
//!   the requests that miss are answered for the reason `store-down`.
//! - What belongs to the tags of a namespace lies in one slot. While its master is away, no response that has tags is
//!   found, on any master, and no tag can be invalidated.
//! - The time is that of the master of the lowest slot, so that all processes agree; while it is away, each goes on
//!   counting from what it knew. If the masters' clocks differ, the time jumps by the difference when another takes over
//!   that slot: entries live so much longer, or shorter. More than five seconds are warned of. How long a key lives in
//!   Redis, and how long a ticket lasts, does not depend on it.
//! - A failover can lose what was written last, and a purge with it: the replica may not have heard of it. Its entries then
//!   live as long as they were stored for.
//!
//! # Sentinels
//!
//! Name all of them. They are asked once a second, and at once when a connection breaks or the server refuses to write
//! because it is a replica, and the store connects to whichever server they name. They may ask for a user and a
//! password of their own ([`RedisConfig::sentinel_password`]), who needs `+client|id +sentinel|get-master-addr-by-name`. As
//! in a cluster, a failover can lose what was written last.
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
//!   +asking +client|id +cluster|slots +eval +evalsha +exists +get +getrange +hdel +hget +hkeys +hset +hvals +info +mget
//!   +pexpire +ping +pttl +publish +scan +set +setrange +spublish +ssubscribe +subscribe +time +unlink +xadd +xrange
//!   +xrevrange +xtrim
//! ```
//!
//! The commands are also in [`ACL_COMMANDS`]; [writing behind](WriteBehind) takes [`BEHIND_ACL_COMMANDS`] besides. `+asking`,
//! `+cluster|slots`, `+spublish` and `+ssubscribe` are for clusters only, where every node must know the user; Redis 6.2 does
//! not know the last two, and does without. A database other than 0 takes `+select` too. Without `+client|id` everything
//! works, and without `+info` everything but the start-up check; without `+time`, which the scripts ask for, nothing is
//! stored; without `+publish` and `+subscribe`, or the channels, a request that waits for another process' answer finds it a
//! little later, and what another process invalidates is known after a second; `+scan` is for purges by prefix or pattern.
//!
//! # What it tells
//!
//! Connecting, losing the connection and connecting again are logged once each, through `tracing`. Through `metrics`
//! come the histogram `larder.redis.duration` (seconds, by `op`), the counter `larder.redis.errors` (by `op` and
//! `class`), the counter `larder.redis.foreign_replies`: replies that belonged to another command, and reached nobody; and
//! the counter `larder.redis.swept` (by `keys`): how many keys purges by prefix or pattern have looked at (`looked-at`, about)
//! and reached (`reached`), which is also logged every five seconds while one is under way; and of a cluster the counter
//! `larder.redis.redirects` (by `kind`): commands that a server sent to another, for good (`moved`) or for once (`ask`).

mod behind;
mod checkup;
mod chunks;
mod client;
mod clock;
mod cluster;
mod config;
mod decoded;
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

pub use behind::{
    Accepted, BehindError, BehindSettings, DeadLetter, Durability, Failed, OnFailure, Sink, WhenFull, Write,
    WriteBehind, Written,
};
pub use config::{ConfigError, ConnectError, Recovery, RedisConfig};
pub use store::RedisStore;

/// The commands that an ACL user needs, as words of `ACL SETUSER`.
pub const ACL_COMMANDS: &str = "-@all +asking +client|id +cluster|slots +eval +evalsha +exists +get +getrange +hdel +hget \
                                +hkeys +hset +hvals +info +mget +pexpire +ping +pttl +publish +scan +set +setrange \
                                +spublish +ssubscribe +subscribe +time +unlink +xadd +xrange +xrevrange +xtrim";

/// The commands that an ACL user needs besides who writes behind; `+waitaof` for [`Durability::Aof`] and `+wait` for
/// [`Durability::Replicas`] only.
pub const BEHIND_ACL_COMMANDS: &str = "+hexists +hmget +wait +waitaof +xack +xautoclaim +xclaim +xdel \
                                       +xgroup|create +xlen +xpending +xreadgroup";
