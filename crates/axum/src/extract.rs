//! The cache in a handler's hands.

use axum::{
    extract::FromRequestParts,
    response::{IntoResponse, Response},
};
use http::{StatusCode, request::Parts};
use larder::Cache;

/// Extracts the [`Cache`] whose layer the request came through, to purge what the handler has changed.
///
/// A handler that no layer is around takes the cache from its state instead: `State<Cache>`.
#[derive(Debug, Clone)]
pub struct CacheHandle(pub Cache);

impl<S: Sync> FromRequestParts<S> for CacheHandle {
    type Rejection = NoCache;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, NoCache> {
        Cache::of(&parts.extensions).cloned().map(Self).ok_or(NoCache)
    }
}

/// No layer of a cache is around this handler: 500.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoCache;

impl std::fmt::Display for NoCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CacheHandle: no CacheLayer is around this handler; add one, or take the cache from the state")
    }
}

impl std::error::Error for NoCache {}

impl IntoResponse for NoCache {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
    }
}
