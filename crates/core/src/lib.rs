//! larder caches HTTP responses: a tower layer, and the engine under it.

mod background;
mod body;
mod breaker;
mod budget;
mod builder;
mod cache;
mod changes;
pub mod codec;
mod complete;
mod engine;
mod fill;
mod flights;
mod guard;
pub mod headers;
mod layer;
mod lease;
mod lz4;
mod memory;
mod nested;
mod observe;
mod routing;
mod search;
mod service;
mod share;
pub mod store;
mod stream;
mod sync;
#[cfg(feature = "testing")]
pub mod testing;
mod tiered;
mod ttl;
mod values;
mod wakers;
mod write;

pub use body::{BodyError, CacheBody};
pub use builder::CacheBuilder;
pub use cache::Cache;
pub use complete::{Complete, CompleteFuture, CompleteLayer, CompletedBody};
pub use guard::{Deadlines, Guard};
pub use headers::DebugHeaders;
pub use larder_semantics as semantics;
pub use larder_semantics::{
    Caching, Policy, Reason, Refusal, Verdict,
    key::{Key, KeyError, Template},
    policy::Early,
    sealing::TRACKING_PARAMETERS,
};
pub use layer::{CacheLayer, ConfigError};
pub use memory::MemoryStore;
pub use observe::describe_metrics;
pub use routing::Routing;
pub use service::{CacheFuture, CacheService};
pub use store::{Purge, Receipt, Store, StoreError};
pub use tiered::Tiered;
pub use ttl::Ttl;
pub use values::{Format, Known, Peeked, TimedOut, Typed, Value, Written};
pub use write::WriteGuard;
