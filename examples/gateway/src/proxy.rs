//! What a reverse proxy does with one request: takes it, forwards it, and passes the answer back.

use crate::{
    fields::{add_via, is_coded, remove_hop_by_hop},
    options::Upstream,
    patience::Watched,
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{CONNECTION, CONTENT_TYPE, COOKIE, HOST, MAX_FORWARDS, TE, TRANSFER_ENCODING},
    request::Parts,
    uri::Authority,
};
use http_body::Body;
use http_body_util::{BodyExt, Either, Empty, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use larder::Caching;
use std::time::Duration;

/// How many fields a message may have.
pub(crate) const MOST_FIELDS: usize = 256;

/// How long an idle connection to the upstream is kept: less than most servers do, as a request can meet a connection
/// that is just being closed, and not every request can be sent again.
const IDLE_FOR: Duration = Duration::from_secs(4);

/// An answer of the gateway's own.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal(StatusCode, &'static str);

impl Refusal {
    pub(crate) fn into_response(self) -> Response<Full<Bytes>> {
        let Self(status, text) = self;
        let mut response = Response::new(Full::new(Bytes::from(format!("{status}: {text}.\n"))));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        response
    }
}

/// The request to look up and to forward: without what belonged to the client's connection, its target a path, and its
/// authority in `Host`.
pub(crate) fn admit<B: Body>(request: Request<B>) -> Result<Request<B>, Refusal> {
    let (mut head, body) = request.into_parts();
    if head.method == Method::CONNECT {
        return Err(Refusal(StatusCode::NOT_IMPLEMENTED, "this is no tunnel"));
    }
    if is_coded(&head.headers) {
        return Err(Refusal(StatusCode::NOT_IMPLEMENTED, "the only transfer coding known here is chunked"));
    }
    count_forward(&mut head)?;
    remove_hop_by_hop(&mut head.headers);
    // Says to the cache that there is a body, and to the client that it is to be sent whatever the method.
    if !body.is_end_stream() && body.size_hint().exact().is_none() {
        head.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    settle_host(&mut head)?;
    if head.version == Version::HTTP_2 {
        join_cookies(&mut head.headers);
    }
    Ok(Request::from_parts(head, body))
}

/// RFC 9110 section 7.6.2.
fn count_forward(head: &mut Parts) -> Result<(), Refusal> {
    if !matches!(head.method, Method::OPTIONS | Method::TRACE) {
        return Ok(());
    }
    let left = head.headers.get(MAX_FORWARDS).and_then(|left| left.to_str().ok()?.parse::<u32>().ok());
    match left {
        Some(0) if head.method == Method::OPTIONS => Err(Refusal(StatusCode::OK, "this is a gateway")),
        Some(0) => Err(Refusal(StatusCode::NOT_IMPLEMENTED, "TRACE is not for gateways")),
        Some(left) => {
            head.headers.insert(MAX_FORWARDS, HeaderValue::from(left - 1));
            Ok(())
        }
        None => Ok(()),
    }
}

/// The target's authority wins over `Host` (RFC 9112 section 3.2.2); neither may be missing, save in HTTP/1.0.
fn settle_host(head: &mut Parts) -> Result<(), Refusal> {
    let wrong = |text| Err(Refusal(StatusCode::BAD_REQUEST, text));
    let mut hosts = head.headers.get_all(HOST).iter();
    let (host, another) = (hosts.next(), hosts.next());
    if another.is_some() {
        return wrong("there is more than one Host");
    }
    if host.is_some_and(|host| !is_host(host.as_bytes())) {
        return wrong("Host is no host");
    }
    match (head.uri.authority(), host) {
        (_, None) if head.version == Version::HTTP_11 => return wrong("there is no Host"),
        (None, None) if head.version == Version::HTTP_2 => return wrong("there is no authority"),
        (Some(authority), _) => match HeaderValue::from_str(authority.as_str()) {
            Ok(host) if is_host(host.as_bytes()) => {
                head.headers.insert(HOST, host);
            }
            _ => return wrong("the target's authority is no host"),
        },
        (None, _) => {}
    }
    head.uri = head.uri.path_and_query().map_or(Uri::from_static("/"), |target| Uri::from(target.clone()));
    Ok(())
}

/// A host and perhaps a port; or nothing at all, for targets without an authority.
fn is_host(text: &[u8]) -> bool {
    text.is_empty() || (!text.contains(&b'@') && Authority::try_from(text).is_ok())
}

/// HTTP/2 sends the pairs of `Cookie` as fields of their own, HTTP/1.1 knows one field (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let pairs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if pairs.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&pairs.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

/// The way to the upstream. Clones share their connections.
#[derive(Clone)]
pub(crate) struct Proxy {
    client: Client<HttpConnector, Watched<Asking>>,
    upstream: Upstream,
    timeout: Duration,
}

/// The body of a client's request, or of one of the gateway's own.
pub(crate) type Asking = Either<Incoming, Empty<Bytes>>;

/// A body of the upstream's, or of the gateway's own.
type Answered = UnsyncBoxBody<Bytes, hyper::Error>;

impl Proxy {
    pub(crate) fn new(upstream: Upstream, timeout: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_FOR)
            .pool_timer(TokioTimer::new())
            .http1_preserve_header_case(true)
            .http1_max_headers(MOST_FIELDS)
            .build(connector);
        Self { client, upstream, timeout }
    }

    /// The upstream's answer; or 502 when it gives none, and 504 when it takes too long.
    pub(crate) async fn forward(&self, request: Request<Asking>) -> Response<Answered> {
        let (mut head, body) = request.into_parts();
        let (body, progress) = Watched::new(body);
        head.uri = self.upstream.uri(head.uri.path_and_query());
        add_via(&mut head.headers, head.version);
        if head.headers.contains_key(TE) {
            head.headers.insert(CONNECTION, HeaderValue::from_static("te"));
        }
        head.version = Version::HTTP_11;
        let request = Request::from_parts(head, body);
        match progress.wait(self.client.request(request), self.timeout).await {
            Some(Ok(response)) => pass_back(response),
            Some(Err(error)) => {
                tracing::warn!(upstream = %self.upstream, error = %chain(&error), "the upstream gave no answer");
                let text =
                    if error.is_connect() { "the upstream cannot be reached" } else { "the upstream's answer is none" };
                Err(Refusal(StatusCode::BAD_GATEWAY, text))
            }
            None => {
                tracing::warn!(upstream = %self.upstream, timeout = ?self.timeout, "the upstream took too long");
                Err(Refusal(StatusCode::GATEWAY_TIMEOUT, "the upstream took too long"))
            }
        }
        .unwrap_or_else(|refusal| {
            let mut response = refusal.into_response().map(|body| body.map_err(|never| match never {}).boxed_unsync());
            response.extensions_mut().insert(Caching::unreachable());
            response
        })
    }
}

/// The upstream's response, without what belonged to the upstream's connection.
fn pass_back(mut response: Response<Incoming>) -> Result<Response<Answered>, Refusal> {
    if response.status().is_informational() || is_coded(response.headers()) {
        return Err(Refusal(StatusCode::BAD_GATEWAY, "the upstream's answer is none"));
    }
    let received = response.version();
    *response.version_mut() = Version::HTTP_11;
    remove_hop_by_hop(response.headers_mut());
    add_via(response.headers_mut(), received);
    Ok(response.map(BodyExt::boxed_unsync))
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::Empty;

    fn admitted(request: http::request::Builder) -> Result<(String, String), StatusCode> {
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let request = admit(request).map_err(|Refusal(status, _)| status)?;
        let host = request.headers().get(HOST).map_or("", |host| host.to_str().unwrap()).to_owned();
        Ok((host, request.uri().to_string()))
    }

    #[test]
    fn one_host_is_settled_or_the_request_is_refused() {
        let of = |target: &str, hosts: &[&str]| {
            let request = Request::builder().uri(target);
            admitted(hosts.iter().fold(request, |request, host| request.header(HOST, *host)))
        };
        let settled = |host: &str, target: &str| Ok((host.to_owned(), target.to_owned()));
        assert_eq!(of("/a?b", &["h:1"]), settled("h:1", "/a?b"));
        assert_eq!(of("http://t/a", &["h"]), settled("t", "/a"));
        assert_eq!(of("http://t", &["h"]), settled("t", "/"));
        assert_eq!(of("/", &[""]), settled("", "/"));
        for hosts in [&[][..], &["a", "b"], &["a", "a"], &["u@a"], &["a/b"]] {
            assert_eq!(of("/", hosts), Err(StatusCode::BAD_REQUEST), "{hosts:?}");
        }
        assert_eq!(of("http://u@t/", &["h"]), Err(StatusCode::BAD_REQUEST));
        assert_eq!(admitted(Request::builder().version(Version::HTTP_10)), settled("", "/"));
        let second = Request::builder().version(Version::HTTP_2).uri("http://t/a");
        assert_eq!(admitted(second), settled("t", "/a"));
    }

    #[test]
    fn forwards_are_counted_where_the_request_says_so() {
        let of = |method, left: &str| {
            let request = Request::builder().method(method).header(HOST, "h").header(MAX_FORWARDS, left);
            let request = admit(request.body(Empty::<Bytes>::new()).unwrap());
            request.map(|request| request.headers()[MAX_FORWARDS].clone()).map_err(|Refusal(status, _)| status)
        };
        assert_eq!(of(Method::OPTIONS, "0"), Err(StatusCode::OK));
        assert_eq!(of(Method::TRACE, "0"), Err(StatusCode::NOT_IMPLEMENTED));
        assert_eq!(of(Method::OPTIONS, "2"), Ok(HeaderValue::from(1)));
        assert_eq!(of(Method::GET, "2"), Ok(HeaderValue::from(2)));
    }

    #[test]
    fn cookies_become_one_field() {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, HeaderValue::from_static("a=1"));
        headers.append(COOKIE, HeaderValue::from_static("b=2"));
        join_cookies(&mut headers);
        assert_eq!(headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }
}
