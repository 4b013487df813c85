//! [larder] for axum: keys from path parameters, labels from matched paths, and handlers that speak back.
//!
//! ```
//! use axum::{Router, extract::Path, routing::get};
//! use larder::{Cache, Ttl};
//! use larder_axum::{AxumRouting, RouterExt};
//!
//! async fn user(Path(id): Path<u64>) -> String {
//!     format!("user {id}")
//! }
//!
//! # fn main() -> Result<(), larder::ConfigError> {
//! let cache = Cache::builder().namespace("shop").routing(AxumRouting).build()?;
//! let app: Router = Router::new()
//!     .cached("/users/{id}", get(user), cache.layer().ttl(Ttl::STANDARD).key("user:{id}").tag("users"))?
//!     .cached("/users", get(|| async { "all of them" }), cache.layer().ttl(Ttl::FREQUENT))?;
//! # let _ = app;
//! # Ok(())
//! # }
//! ```
//!
//! A layer can as well be put around a single handler (`get(user).layer(cache.layer())`), or around a whole router
//! (`Router::layer`): [`AxumRouting`] tells the path parameters wherever axum has matched a route.

mod caching;
mod extract;
mod router;
mod routing;

pub use caching::CachingPart;
pub use extract::{CacheHandle, NoCache};
pub use router::RouterExt;
pub use routing::AxumRouting;
