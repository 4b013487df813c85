//! `PURGE`: the operator invalidates what is stored, by its URL or by tags.

use crate::options::Secret;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE},
};
use http_body_util::Full;
use larder::{
    Cache, Key, Purge, Receipt,
    semantics::tags::{SURROGATE_KEY, stated},
};
use serde_json::{Value, json};

const SOFT_PURGE: HeaderName = HeaderName::from_static("soft-purge");

/// Whether a request wants something purged.
pub(crate) fn is_asked(method: &Method) -> bool {
    method.as_str() == "PURGE"
}

/// Purges what an admitted request names, if it knows the token: the tags of its `Surrogate-Key`, else its URL.
pub(crate) async fn answer<B>(request: Request<B>, cache: &Cache, token: Option<&Secret>) -> Response<Full<Bytes>> {
    let (mut head, _) = request.into_parts();
    let Some(token) = token else {
        let mut response = told(StatusCode::METHOD_NOT_ALLOWED, &json!({"error": "this gateway has no --admin-token"}));
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
        return response;
    };
    if !knows(&head.headers, token) {
        let mut response =
            told(StatusCode::UNAUTHORIZED, &json!({"error": "Authorization must be Bearer and the admin token"}));
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        return response;
    }
    let tags = stated(&head.headers, &[SURROGATE_KEY]);
    let purge = if head.headers.contains_key(SURROGATE_KEY) {
        Purge::tags(tags)
    } else {
        head.method = Method::GET;
        match Key::of_request(&head) {
            Ok(key) => Purge::key(key),
            Err(error) => return told(StatusCode::BAD_REQUEST, &json!({"error": error.to_string()})),
        }
    };
    let is_soft = head.headers.get(SOFT_PURGE).is_some_and(|value| value.as_bytes() == b"1");
    match cache.purge(if is_soft { purge.soft() } else { purge }).await {
        Ok(receipt) => told(StatusCode::OK, &written(&receipt)),
        Err(error) => told(StatusCode::SERVICE_UNAVAILABLE, &json!({"error": error.to_string()})),
    }
}

fn written(receipt: &Receipt) -> Value {
    json!({
        "resources": receipt.resources,
        "tags": receipt.tags,
        "store": if receipt.is_deferred { "deferred" } else { "done" },
        "local": "done",
        "id": receipt.logged,
    })
}

fn told(status: StatusCode, what: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{what}\n"))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Whether the one `Authorization` is that token.
fn knows(headers: &HeaderMap, token: &Secret) -> bool {
    let mut lines = headers.get_all(AUTHORIZATION).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else { return false };
    match line.as_bytes().split_at_checked("Bearer ".len()) {
        Some((scheme, given)) => scheme.eq_ignore_ascii_case(b"Bearer ") && token.is(given.trim_ascii()),
        None => false,
    }
}
