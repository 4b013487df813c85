//! What axum knows of a request's route.

use axum::extract::{FromRequestParts, MatchedPath, RawPathParams};
use http::request::Parts;
use larder::Routing;
use std::{
    pin::pin,
    task::{Context, Poll, Waker},
};

/// Tells larder axum's matched path and path parameters.
///
/// Both are known to layers on a route, and to those of `Router::layer`; not to a layer around the whole router
/// (`layer.layer(router)`), which acts before axum has matched anything.
#[derive(Debug, Clone, Copy, Default)]
pub struct AxumRouting;

impl Routing for AxumRouting {
    fn route<'a>(&self, head: &'a Parts) -> Option<&'a str> {
        head.extensions.get::<MatchedPath>().map(MatchedPath::as_str)
    }

    fn parameters(&self, head: &mut Parts) -> Option<Vec<(String, String)>> {
        // The extractor is asynchronous by its signature only: it reads an extension.
        let extraction = pin!(RawPathParams::from_request_parts(head, &()));
        let Poll::Ready(Ok(parameters)) = extraction.poll(&mut Context::from_waker(Waker::noop())) else { return None };
        Some(parameters.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }
}
