//! One layer before one origin that answers as its script says.
#![allow(dead_code, unreachable_pub, reason = "each test file uses what it needs")]

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, request::Parts};
use http_body::Body;
use http_body_util::{BodyExt, Empty, Full};
use larder::{Cache, CacheLayer, Policy};
use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};
use tower::{Layer, Service, ServiceExt};

/// What the inner service calls an error: the layer passes it on as it is.
#[derive(Debug, PartialEq, Eq)]
pub struct Unreachable;

pub type Reply = Result<Response<Full<Bytes>>, Unreachable>;
pub type Script = dyn Fn(&Parts, usize) -> Reply + Send + Sync;
pub type Fields<'a> = &'a [(&'a str, &'a str)];

/// Takes 100 ms to answer as its script says, and remembers what it was asked.
#[derive(Clone)]
pub struct Origin {
    pub script: Arc<Script>,
    pub seen: Arc<Mutex<Vec<(Method, HeaderMap)>>>,
}

impl Service<Request<Empty<Bytes>>> for Origin {
    type Response = Response<Full<Bytes>>;
    type Error = Unreachable;
    type Future = Pin<Box<dyn Future<Output = Reply> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Unreachable>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Empty<Bytes>>) -> Self::Future {
        let origin = self.clone();
        Box::pin(async move {
            let head = request.into_parts().0;
            let call = {
                let mut seen = origin.seen.lock().unwrap();
                seen.push((head.method.clone(), head.headers.clone()));
                seen.len()
            };
            tokio::time::sleep(Duration::from_millis(100)).await;
            (origin.script)(&head, call)
        })
    }
}

/// What a client got.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    /// The values of a field, joined; empty when it is not there.
    pub fn field(&self, name: &str) -> String {
        joined(&self.headers, name)
    }

    pub fn x_cache(&self) -> String {
        self.field("x-cache")
    }

    /// Whether `Cache-Status` has this parameter, with this value if one is given.
    pub fn tells(&self, parameter: &str) -> bool {
        self.field("cache-status").split(';').any(|part| part.trim() == parameter)
    }

    /// The verdict, the status and the body.
    pub fn told(&self) -> (String, u16, &str) {
        (self.x_cache(), self.status, &self.body)
    }
}

pub fn joined(headers: &HeaderMap, name: &str) -> String {
    headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>().join(", ")
}

pub fn told(x_cache: &str, status: u16, body: &'static str) -> (String, u16, &'static str) {
    (x_cache.to_owned(), status, body)
}

/// One layer before one origin.
#[derive(Clone)]
pub struct Stage {
    pub layer: CacheLayer,
    pub origin: Origin,
}

impl Stage {
    pub fn new(layer: CacheLayer, script: impl Fn(&Parts, usize) -> Reply + Send + Sync + 'static) -> Self {
        Self { layer, origin: Origin { script: Arc::new(script), seen: Arc::default() } }
    }

    /// Behind the policy of a shared cache.
    pub fn shared(script: impl Fn(&Parts, usize) -> Reply + Send + Sync + 'static) -> Self {
        Self::new(CacheLayer::with_policy(Cache::in_memory(), Policy::shared_cache()), script)
    }

    /// Behind the defaults of an application, but that it stores only what states a lifetime.
    pub fn application(script: impl Fn(&Parts, usize) -> Reply + Send + Sync + 'static) -> Self {
        Self::new(Cache::in_memory().layer().no_default_ttl(), script)
    }

    pub async fn try_ask(&self, method: &str, uri: &str, fields: Fields<'_>) -> Result<Answer, Unreachable> {
        answer(self.layer.layer(self.origin.clone()), method, uri, fields).await
    }

    pub async fn ask(&self, method: &str, uri: &str, fields: Fields<'_>) -> Answer {
        self.try_ask(method, uri, fields).await.unwrap()
    }

    pub async fn get(&self, fields: Fields<'_>) -> Answer {
        self.ask("GET", "/page", fields).await
    }

    pub async fn try_get(&self) -> Result<Answer, Unreachable> {
        self.try_ask("GET", "/page", &[]).await
    }

    pub fn calls(&self) -> usize {
        self.origin.seen.lock().unwrap().len()
    }

    /// The method and one field of the last request that the origin saw.
    pub fn last(&self, name: &str) -> (Method, String) {
        let seen = self.origin.seen.lock().unwrap();
        let (method, headers) = seen.last().unwrap();
        (method.clone(), joined(headers, name))
    }
}

/// What a service answers.
pub async fn answer<S, B>(service: S, method: &str, uri: &str, fields: Fields<'_>) -> Result<Answer, Unreachable>
where
    S: Service<Request<Empty<Bytes>>, Response = Response<B>, Error = Unreachable>,
    B: Body<Data = Bytes, Error: std::fmt::Debug>,
{
    let request = Request::builder().method(method).uri(uri);
    let request = if uri.starts_with('/') { request.header("host", "shop.example") } else { request };
    let request = fields.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let response = service.oneshot(request.body(Empty::new()).unwrap()).await?;
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
}

pub fn reply(status: u16, fields: Fields<'_>, body: &'static str) -> Reply {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in fields {
        response.headers_mut().append(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
    }
    Ok(response)
}

/// What an origin answers that knows of validators: 304 if one of the tags asked for is the current one.
pub fn honest(head: &Parts, tag: &str, cache_control: &str, body: &'static str) -> Reply {
    let asked = joined(&head.headers, "if-none-match");
    let is_known = asked.split(',').any(|one| one.trim().trim_start_matches("W/") == tag);
    let fields = [("cache-control", cache_control), ("etag", tag)];
    if is_known { reply(304, &fields, "") } else { reply(200, &fields, body) }
}

pub async fn wait(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

pub const BEFORE: &str = "Sun, 31 Dec 2023 23:59:59 GMT";
pub const MODIFIED: &str = "Mon, 01 Jan 2024 00:00:00 GMT";
pub const AFTER: &str = "Mon, 01 Jan 2024 00:00:01 GMT";
pub const LONG: &str = "max-age=1000";
