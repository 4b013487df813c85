//! How a handler speaks about its own response.

use axum::response::{IntoResponseParts, ResponseParts};
use larder::Caching;
use std::convert::Infallible;

/// A response part that carries [`Caching`]: `(CachingPart::from(Caching::new().tag("users")), Json(user))`.
#[derive(Debug, Clone)]
pub struct CachingPart(pub Caching);

impl From<Caching> for CachingPart {
    fn from(caching: Caching) -> Self {
        Self(caching)
    }
}

impl IntoResponseParts for CachingPart {
    type Error = Infallible;

    fn into_response_parts(self, mut parts: ResponseParts) -> Result<ResponseParts, Infallible> {
        parts.extensions_mut().insert(self.0);
        Ok(parts)
    }
}
