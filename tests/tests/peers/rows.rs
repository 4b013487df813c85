//! The rows of the comparison: what is asked of a cache, whoever made it.
//!
//! Each row puts the cache, new and empty, around an origin of its own, which counts how often it is called.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    BoxError, Router,
    body::{Body, Bytes},
    extract::Request,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
    header::{
        ACCEPT_LANGUAGE, AUTHORIZATION, AsHeaderName, CACHE_CONTROL, DATE, ETAG, IF_NONE_MATCH, LINK, RANGE,
        SET_COOKIE, VARY,
    },
};
use http_body_util::{BodyExt, channel::Channel};
use larder_tests::RedisServer;
use tokio::{
    task::{JoinError, JoinSet, block_in_place},
    time::{Instant, sleep, timeout},
};
use tower::{Layer, Service as _, ServiceExt, limit::ConcurrencyLimitLayer, util::BoxCloneSyncService};
use tower_http::{compression::CompressionLayer, decompression::DecompressionLayer};

/// A cache under test.
pub(crate) trait Subject: Send + Sync {
    /// The cache, new and empty, around a service.
    fn around(&self, inner: Inner) -> Service;

    /// The same with its own compression switched on, if it has any.
    fn compressing(&self, _inner: Inner) -> Option<Service> {
        None
    }

    /// The same with its entries in the Redis at `url`, if it can have them there.
    fn on_redis<'a>(
        &'a self,
        _inner: Inner,
        _url: &'a str,
    ) -> Pin<Box<dyn Future<Output = Option<Service>> + Send + 'a>> {
        Box::pin(async { None })
    }

    /// What a busy machine may add to every time that is measured.
    fn slack(&self) -> Duration {
        Duration::from_millis(50)
    }
}

/// What a cache is put around.
pub(crate) type Inner = BoxCloneSyncService<Request, Response, Infallible>;

/// A service with a cache around it, whatever errors and bodies that one makes.
pub(crate) type Service = BoxCloneSyncService<Request, Response, BoxError>;

/// Gives the service of a cache the types that all are tested with.
pub(crate) fn service<S, B>(cached: S) -> Service
where
    S: tower::Service<Request, Response = http::Response<B>, Error: Into<BoxError>> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    BoxCloneSyncService::new(cached.map_response(|response| response.map(Body::new)).map_err(Into::into))
}

/// What is worth telling of a row that is as it should be, or what was wrong.
pub(crate) type Outcome = Result<String, Wrong>;

/// What was seen in place of what should have been.
#[derive(Debug)]
pub(crate) struct Wrong(pub(crate) String);

fn demand(right: bool, seen: impl FnOnce() -> String) -> Result<(), Wrong> {
    if right { Ok(()) } else { Err(Wrong(seen())) }
}

fn failed(error: BoxError) -> Wrong {
    Wrong(format!("the request failed: {error}"))
}

fn panicked(error: JoinError) -> Wrong {
    let panic = error.try_into_panic().unwrap_or_else(|error| Box::new(error.to_string()));
    let message = panic.downcast_ref::<String>().map(String::as_str);
    Wrong(format!("PANIC: {}", message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default()))
}

/// The second GET is a hit. Tells which headers give it away.
pub(crate) async fn t1(subject: &dyn Subject) -> Outcome {
    let origin = Origin::saying(&[(CACHE_CONTROL, "max-age=60")]);
    let client = origin.client(subject);
    let miss = client.get("/page").await?;
    let hit = client.get("/page").await?;
    demand(origin.calls() == 1, || format!("the origin was called {} times", origin.calls()))?;
    demand(hit.body == miss.body, || format!("{:?} became {:?}", miss.text(), hit.text()))?;
    let telling = hit.headers.keys().filter(|name| hit.headers.get(*name) != miss.headers.get(*name) && *name != DATE);
    let telling: Vec<_> = telling.map(|name| format!("{name}: {}", hit.header(name.as_str()))).collect();
    Ok(if telling.is_empty() { "no header tells".to_owned() } else { telling.join(", ") })
}

/// The query is part of the key.
pub(crate) async fn t2(subject: &dyn Subject) -> Outcome {
    for control in ["max-age=60", "public"] {
        let origin = Origin::new(move |request, _| async move {
            ([(CACHE_CONTROL, control)], request.uri().query().unwrap_or_default().to_owned())
        });
        let client = origin.client(subject);
        for query in ["a=1", "a=2"] {
            let seen = client.get(&format!("/page?{query}")).await?;
            demand(seen.text() == query, || format!("`{control}`: ?{query} got the body of ?{}", seen.text()))?;
        }
    }
    Ok(String::new())
}

/// HEAD and GET do not spoil each other.
pub(crate) async fn t3(subject: &dyn Subject) -> Outcome {
    let origin = Origin::new(|_, _| async { ([(CACHE_CONTROL, "max-age=60")], "the body") });
    let client = origin.client(subject);
    let head = client.ask(request(Method::HEAD, "/page")).await?;
    demand(head.body.is_empty(), || format!("HEAD got the body {:?}", head.text()))?;
    for _ in 0..2 {
        let seen = client.get("/page").await?;
        demand(seen.text() == "the body", || format!("GET after HEAD got the body {:?}", seen.text()))?;
    }
    let head = client.ask(request(Method::HEAD, "/page")).await?;
    demand(head.body.is_empty(), || format!("HEAD after GET got the body {:?}", head.text()))?;
    Ok(String::new())
}

/// `Vary` is respected, and the variants do not evict each other.
pub(crate) async fn t4(subject: &dyn Subject) -> Outcome {
    vary(subject, "max-age=60").await
}

/// `Vary` is respected for a response that is `public`, and states no lifetime.
pub(crate) async fn t4b(subject: &dyn Subject) -> Outcome {
    vary(subject, "public").await
}

async fn vary(subject: &dyn Subject, control: &'static str) -> Outcome {
    let origin = Origin::new(move |request, _| async move {
        ([(CACHE_CONTROL, control), (VARY, "Accept-Language")], text(request.headers(), &ACCEPT_LANGUAGE))
    });
    let client = origin.client(subject);
    for language in ["fr", "en", "fr", "en"] {
        let seen = client.ask(with(get_request("/page"), ACCEPT_LANGUAGE, language)).await?;
        demand(seen.text() == language, || format!("ignored: {language} got {}", seen.text()))?;
    }
    demand(origin.calls() == 2, || format!("{} calls for two variants asked for twice", origin.calls()))?;
    Ok(String::new())
}

/// What one user is answered is not given to the next.
pub(crate) async fn t5(subject: &dyn Subject) -> Outcome {
    for headers in [&[(CACHE_CONTROL, "max-age=60")][..], &[]] {
        let origin =
            Origin::new(move |request, _| async move { (fields(headers), text(request.headers(), &AUTHORIZATION)) });
        let client = origin.client(subject);
        for user in ["Bearer a", "Bearer b"] {
            let seen = client.ask(with(get_request("/me"), AUTHORIZATION, user)).await?;
            demand(seen.text() == user, || format!("LEAK: {user} got the page of {}", seen.text()))?;
        }
        let seen = client.get("/me").await?;
        demand(seen.text().is_empty(), || format!("LEAK: a stranger got the page of {}", seen.text()))?;
    }
    Ok(String::new())
}

/// A cookie is set for nobody but the one who is given it.
pub(crate) async fn t6(subject: &dyn Subject) -> Outcome {
    for control in ["max-age=60", "public"] {
        let origin = Origin::new(move |_, call| async move {
            ([(CACHE_CONTROL, control.to_owned()), (SET_COOKIE, format!("session={call}"))], "the body")
        });
        let client = origin.client(subject);
        let first = client.get("/login").await?;
        let second = client.get("/login").await?;
        let (first, second) = (first.header("set-cookie"), second.header("set-cookie"));
        demand(first != second, || format!("LEAK: `{control}`: {second} was set for two clients"))?;
    }
    Ok(String::new())
}

/// POST, PUT and DELETE reach the handler every time.
pub(crate) async fn t7(subject: &dyn Subject) -> Outcome {
    let mut swallowed = Vec::new();
    for method in [Method::POST, Method::PUT, Method::DELETE] {
        let origin = Origin::saying(&[(CACHE_CONTROL, "max-age=60")]);
        let client = origin.client(subject);
        client.ask(request(method.clone(), "/orders")).await?;
        client.ask(request(method.clone(), "/orders")).await?;
        if origin.calls() != 2 {
            swallowed.push(method.to_string());
        }
    }
    demand(swallowed.is_empty(), || format!("{} swallowed the second time", swallowed.join(", ")))?;
    Ok(String::new())
}

/// What is `no-store` or `private`, and what failed, is not stored.
pub(crate) async fn t8(subject: &dyn Subject) -> Outcome {
    let cases = [
        ("no-store", StatusCode::OK, "no-store"),
        ("private", StatusCode::OK, "private, max-age=60"),
        ("500", StatusCode::INTERNAL_SERVER_ERROR, "max-age=60"),
    ];
    let mut cached = Vec::new();
    for (name, status, control) in cases {
        let origin = Origin::new(move |_, _| async move { (status, [(CACHE_CONTROL, control)], "the body") });
        let client = origin.client(subject);
        client.get("/page").await?;
        client.get("/page").await?;
        if origin.calls() != 2 {
            cached.push(name);
        }
    }
    demand(cached.is_empty(), || format!("{} cached", cached.join(", ")))?;
    Ok(String::new())
}

/// `max-age=1` is a second.
pub(crate) async fn t9(subject: &dyn Subject) -> Outcome {
    let origin = Origin::saying(&[(CACHE_CONTROL, "max-age=1")]);
    let client = origin.client(subject);
    client.get("/page").await?;
    client.get("/page").await?;
    demand(origin.calls() == 1, || "not cached at all".to_owned())?;
    // The clocks of some caches have whole seconds.
    sleep(Duration::from_millis(2_100)).await;
    client.get("/page").await?;
    demand(origin.calls() == 2, || "still a hit after two seconds".to_owned())?;
    Ok(String::new())
}

/// A part is not served for the whole.
pub(crate) async fn t10(subject: &dyn Subject) -> Outcome {
    for control in ["max-age=60", "public"] {
        let origin = Origin::new(move |request, _| async move {
            match request.headers().contains_key(RANGE) {
                true => {
                    let range = HeaderName::from_static("content-range");
                    (StatusCode::PARTIAL_CONTENT, [(CACHE_CONTROL, control), (range, "bytes 0-2/8")], "the")
                        .into_response()
                }
                false => ([(CACHE_CONTROL, control)], "the body").into_response(),
            }
        });
        let client = origin.client(subject);
        client.ask(with(get_request("/page"), RANGE, "bytes=0-2")).await?;
        let seen = client.get("/page").await?;
        let whole = (seen.status, seen.text().as_str()) == (StatusCode::OK, "the body");
        demand(whole, || format!("`{control}`: the full GET got {} {:?}", seen.status, seen.text()))?;
    }
    Ok(String::new())
}

/// Fifty who ask for the same cost the origin one call.
pub(crate) async fn t12(subject: &dyn Subject) -> Outcome {
    let origin = Origin::slow(Duration::from_millis(100), "max-age=60");
    let client = origin.client(subject);
    for seen in client.all((0..50).map(|_| get_request("/page"))).await {
        demand(seen?.text() == "the body", || "another body came".to_owned())?;
    }
    demand(origin.calls() == 1, || format!("{} calls", origin.calls()))?;
    Ok("1 call".to_owned())
}

/// The client for whom the origin was called leaves; the others who wait are answered by that same call.
pub(crate) async fn t13(subject: &dyn Subject) -> Outcome {
    let origin = Origin::slow(Duration::from_millis(200), "max-age=60");
    let client = origin.client(subject);
    let mut leader = JoinSet::new();
    leader.spawn({
        let client = client.clone();
        async move { client.send(get_request("/page")).await }
    });
    sleep(Duration::from_millis(20)).await;
    let mut followers = JoinSet::new();
    followers.spawn({
        let client = client.clone();
        async move { client.all((0..10).map(|_| get_request("/page"))).await }
    });
    sleep(Duration::from_millis(20)).await;
    leader.shutdown().await;
    let answered = followers.join_next().await.and_then(Result::ok).unwrap_or_default();
    let answered = answered.iter().flatten().filter(|seen| seen.text() == "the body").count();
    demand(answered == 10, || format!("HANG: {answered}/10 answered, {} of 11 calls", origin.calls()))?;
    demand(origin.calls() == 1, || format!("10/10 answered, {} calls", origin.calls()))?;
    Ok("10/10 answered, 1 call".to_owned())
}

/// Twenty who ask for what cannot be cached wait for one call before they go on their own, and once it is known, for
/// none.
pub(crate) async fn t14(subject: &dyn Subject) -> Outcome {
    let takes = Duration::from_millis(100);
    let origin = Origin::slow(takes, "no-store");
    let client = origin.client(subject);
    let mut times = Vec::new();
    for _ in 0..2 {
        let began = Instant::now();
        for seen in client.all((0..20).map(|_| get_request("/page"))).await {
            seen?;
        }
        times.push(began.elapsed());
    }
    let shown = format!("{} ms, then {} ms", times[0].as_millis(), times[1].as_millis());
    demand(origin.calls() == 40, || format!("{} calls of 40, {shown}", origin.calls()))?;
    let in_time = times[0] <= takes * 2 + subject.slack() && times[1] <= takes + subject.slack();
    demand(in_time, || shown.clone())?;
    Ok(shown)
}

/// An endless body streams frame by frame, the first at once, to a second client too, and is not stored.
pub(crate) async fn t15(subject: &dyn Subject) -> Outcome {
    for headers in [&[(CACHE_CONTROL, "no-store")][..], &[]] {
        let shown = headers.first().map_or("no Cache-Control", |(_, value)| value);
        let client = Client { patience: Duration::from_secs(10), ..endless(headers).client(subject) };
        for call in 1..=2 {
            let patience = APART / 2;
            let hang = |what: &str| Wrong(format!("HANG: {shown}: client {call} got no {what} in {patience:?}"));
            let opened = timeout(patience, client.open(get_request("/events"))).await;
            let mut body = opened.map_err(|_| hang("response"))??.into_body();
            for event in 1..=2 {
                let frame = timeout(APART * event - APART / 2, frame(&mut body)).await;
                let frame = frame.map_err(|_| hang("frame in time"))??;
                let right = frame == format!("data: {call}.{event}\n\n");
                demand(right, || format!("{shown}: client {call} got as frame {event}: {frame:?}"))?;
            }
        }
    }
    Ok(String::new())
}

/// The time between two events of an endless body.
const APART: Duration = Duration::from_secs(1);

fn endless(headers: &'static [(HeaderName, &'static str)]) -> Origin {
    Origin::new(move |_, call| async move {
        let (mut sender, body) = Channel::<Bytes, Infallible>::new(1);
        tokio::spawn(async move {
            for event in 1.. {
                if sender.send_data(format!("data: {call}.{event}\n\n").into()).await.is_err() {
                    return;
                }
                sleep(APART).await;
            }
        });
        (fields(headers), [("content-type", "text/event-stream")], Body::new(body))
    })
}

async fn frame(body: &mut Body) -> Result<String, Wrong> {
    let frame = body.frame().await.ok_or_else(|| Wrong("the body ended".to_owned()))?;
    let frame = frame.map_err(|error| Wrong(format!("the body failed: {error}")))?;
    Ok(frame.data_ref().map(|data| String::from_utf8_lossy(data).into_owned()).unwrap_or_default())
}

/// Trailers reach the client of a miss.
pub(crate) async fn t17(subject: &dyn Subject) -> Outcome {
    for control in ["no-store", "max-age=60"] {
        let origin = Origin::new(move |_, _| async move {
            let (mut sender, body) = Channel::<Bytes, Infallible>::new(2);
            let checksum = (HeaderName::from_static("x-checksum"), HeaderValue::from_static("1"));
            sender.send_data("the body".into()).await.map_err(|_| StatusCode::GONE)?;
            sender.send_trailers(HeaderMap::from_iter([checksum])).await.map_err(|_| StatusCode::GONE)?;
            Ok::<_, StatusCode>(([(CACHE_CONTROL, control)], Body::new(body)))
        });
        let client = origin.client(subject);
        let seen = client.get("/page").await?;
        demand(seen.text() == "the body", || format!("`{control}`: the body is {:?}", seen.text()))?;
        demand(seen.trailers.contains_key("x-checksum"), || format!("`{control}`: lost"))?;
    }
    Ok(String::new())
}

/// A hit has every line of a repeated header, and bytes beyond ASCII.
pub(crate) async fn t18(subject: &dyn Subject) -> Outcome {
    const NAME: &[u8] = b"caf\xe9";
    let origin = Origin::new(|_, _| async {
        let mut response = ([(CACHE_CONTROL, "max-age=60")], "the body").into_response();
        for link in ["</a>; rel=preload", "</b>; rel=preload"] {
            response.headers_mut().append(LINK, HeaderValue::from_static(link));
        }
        response.headers_mut().insert("x-name", HeaderValue::from_bytes(NAME).map_err(|_| StatusCode::GONE)?);
        Ok::<_, StatusCode>(response)
    });
    let client = origin.client(subject);
    client.get("/page").await?;
    let hit = client.get("/page").await?;
    demand(origin.calls() == 1, || format!("the origin was called {} times", origin.calls()))?;
    let links = hit.headers.get_all(LINK).iter().count();
    demand(links == 2, || format!("{links} of 2 Link lines"))?;
    let name = hit.headers.get("x-name").map(HeaderValue::as_bytes);
    demand(name == Some(NAME), || format!("the non-ASCII header is {name:?}"))?;
    Ok(String::new())
}

/// A client that has the page already is told so. Tells the status.
pub(crate) async fn t20(subject: &dyn Subject) -> Outcome {
    let origin = Origin::saying(&[(CACHE_CONTROL, "max-age=60"), (ETAG, "\"1\"")]);
    let client = origin.client(subject);
    client.get("/page").await?;
    let seen = client.ask(with(get_request("/page"), IF_NONE_MATCH, "\"0\", W/\"1\"")).await?;
    demand(origin.calls() == 1, || format!("{} after {} calls", seen.status, origin.calls()))?;
    demand(seen.status == StatusCode::NOT_MODIFIED && seen.body.is_empty(), || seen.status.to_string())?;
    let other = client.ask(with(get_request("/page"), IF_NONE_MATCH, "\"0\"")).await?;
    demand(other.status == StatusCode::OK, || format!("{} for another tag", other.status))?;
    Ok("304".to_owned())
}

/// `no-cache` in a request: ignored, or the page is fetched anew for everybody. Tells which.
pub(crate) async fn t24(subject: &dyn Subject) -> Outcome {
    let origin = Origin::new(|_, call| async move { ([(CACHE_CONTROL, "max-age=60")], call.to_string()) });
    let client = origin.client(subject);
    client.get("/page").await?;
    let asked = client.ask(with(get_request("/page"), CACHE_CONTROL, "no-cache")).await?;
    let after = client.get("/page").await?;
    demand(asked.body == after.body, || format!("{} was fetched, and {} is kept", asked.text(), after.text()))?;
    Ok(if origin.calls() == 1 { "ignored" } else { "refreshes" }.to_owned())
}

/// A POST that succeeds removes the page, one that fails does not.
pub(crate) async fn t25(subject: &dyn Subject) -> Outcome {
    let origin = Origin::new(|request, _| async move {
        let fails = request.headers().contains_key("x-fails");
        let status = if fails { StatusCode::CONFLICT } else { StatusCode::OK };
        (status, [(CACHE_CONTROL, "max-age=60")], "the body")
    });
    let client = origin.client(subject);
    let post = || {
        let mut request = get_request("/page");
        *request.method_mut() = Method::POST;
        request
    };
    client.get("/page").await?;
    client.ask(with(post(), HeaderName::from_static("x-fails"), "1")).await?;
    client.get("/page").await?;
    demand(origin.calls() == 2, || "a POST that failed removed it".to_owned())?;
    client.ask(post()).await?;
    client.get("/page").await?;
    demand(origin.calls() == 4, || format!("it is served after a POST: {} calls", origin.calls()))?;
    Ok("yes".to_owned())
}

/// `only-if-cached` when nothing is cached. Tells the status: 504 where directives of clients are honoured.
pub(crate) async fn t24b(subject: &dyn Subject) -> Outcome {
    let origin = Origin::saying(&[(CACHE_CONTROL, "max-age=60")]);
    let client = origin.client(subject);
    let seen = client.ask(with(get_request("/page"), CACHE_CONTROL, "only-if-cached")).await?;
    match (seen.status, origin.calls()) {
        (StatusCode::OK, 1) | (StatusCode::GATEWAY_TIMEOUT, 0) => Ok(seen.status.as_str().to_owned()),
        (status, calls) => Err(Wrong(format!("{status} after {calls} calls"))),
    }
}

/// With gzip inside of the cache, outside of it, or its own, everybody can read what he is sent.
pub(crate) async fn t26(subject: &dyn Subject) -> Outcome {
    let origin = || Origin::new(|_, _| async { ([(CACHE_CONTROL, "max-age=60")], "four".repeat(1024)) });
    let inside = |origin: &Origin| subject.around(gzipped(origin.inner()));
    let outside = |origin: &Origin| service(CompressionLayer::new().layer(subject.around(origin.inner())));
    for asks in [["gzip", "identity", "gzip"], ["identity", "gzip", "identity"]] {
        readable("gzip inside", &inside(&origin()), asks).await?;
        readable("gzip outside", &outside(&origin()), asks).await?;
        if let Some(own) = subject.compressing(origin().inner()) {
            readable("gzip of its own", &own, asks).await?;
        }
    }
    Ok(String::new())
}

fn gzipped(inner: Inner) -> Inner {
    BoxCloneSyncService::new(CompressionLayer::new().layer(inner).map_response(|response| response.map(Body::new)))
}

async fn readable(place: &str, service: &Service, asks: [&str; 3]) -> Result<(), Wrong> {
    let plain = Client::new(service.clone());
    let unpacking = Client::new(self::service(DecompressionLayer::new().layer(service.clone())));
    for accepted in asks {
        let client = if accepted == "gzip" { &unpacking } else { &plain };
        let seen = client.ask(with(get_request("/page"), http::header::ACCEPT_ENCODING, accepted)).await?;
        let length = seen.headers.get("content-length").and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        let (text, encoding) = ("four".repeat(1024), seen.header("content-encoding"));
        let whole = seen.body == text && encoding.is_empty() && length.is_none_or(|length| seen.body.len() == length);
        demand(whole, || {
            format!(
                "CORRUPT: {place}: who accepts {accepted} got {} bytes of 4096 with Content-Encoding {encoding:?}",
                seen.body.len()
            )
        })?;
    }
    Ok(())
}

/// Hits and misses at once, around a service that takes one request at a time and must be made ready for each.
pub(crate) async fn r1(subject: &dyn Subject) -> Outcome {
    let origin = Origin::slow(Duration::from_millis(10), "max-age=60");
    let limited = BoxCloneSyncService::new(ConcurrencyLimitLayer::new(1).layer(origin.inner()));
    let client = Client::new(subject.around(limited));
    client.get("/warm").await?;
    let misses = (0..10).map(|page| format!("/{page}"));
    let paths = misses.flat_map(|miss| [miss.clone(), "/warm".to_owned(), miss, "/cold".to_owned()]);
    for seen in client.all(paths.map(|path| get_request(&path))).await {
        demand(seen?.text() == "the body", || "another body came".to_owned())?;
    }
    // As a connection does it: the service lives on while it is answering, with whatever it holds of the one within.
    let mut kept = client.service.clone();
    let requests = ["/kept", "/warm", "/kept", "/kept/too"].map(get_request);
    let answered = client.patiently(async move {
        for request in requests {
            kept.ready().await.map_err(failed)?.call(request).await.map_err(failed)?;
        }
        Ok(())
    });
    answered.await?;
    Ok(String::new())
}

/// A Redis that is killed for eight seconds costs no request more than 100 ms, and fails none.
pub(crate) async fn r2(subject: &dyn Subject) -> Outcome {
    outage(subject, |redis| redis.kill(), Duration::from_secs(8), RedisServer::restart).await
}

/// A Redis that is frozen for six seconds costs no request more than 100 ms, and fails none.
pub(crate) async fn r3(subject: &dyn Subject) -> Outcome {
    outage(subject, |redis| redis.stop(), Duration::from_secs(6), |redis| redis.cont()).await
}

/// Breaks the Redis under load, which is a mix of hits and misses. How long the handler takes is measured beside it,
/// on a machine that is as busy.
async fn outage(
    subject: &dyn Subject,
    breaks: impl FnOnce(&mut RedisServer),
    lasts: Duration,
    mends: impl FnOnce(&mut RedisServer),
) -> Outcome {
    const TAKES: Duration = Duration::from_millis(20);
    let mut redis = block_in_place(|| RedisServer::builder().open().start());
    let origin = Origin::slow(TAKES, "max-age=1");
    let Some(service) = subject.on_redis(origin.inner(), &redis.url()).await else {
        return Ok("no Redis".to_owned());
    };
    let cached = Client { patience: Duration::from_secs(20), ..Client::new(service) };
    let bare = Client::new(self::service(Origin::slow(TAKES, "no-store").inner()));
    let until = Instant::now() + lasts + Duration::from_secs(4);
    let mut load = JoinSet::new();
    for worker in 0..8 {
        load.spawn(cached.clone().longest(worker, until));
    }
    let handler = tokio::spawn(bare.longest(0, until));
    sleep(Duration::from_secs(2)).await;
    let calls = origin.calls();
    // Sixteen pages, each fetched twice or thrice; without a cache it would be hundreds.
    demand(calls < 100, || format!("{calls} calls before anything broke"))?;
    block_in_place(|| breaks(&mut redis));
    sleep(lasts).await;
    block_in_place(|| mends(&mut redis));
    let (mut longest, mut asked) = (Duration::ZERO, 0);
    while let Some(worker) = load.join_next().await {
        let (of_worker, by_worker) = worker.map_err(panicked)??;
        (longest, asked) = (longest.max(of_worker), asked + by_worker);
    }
    let (handler, _) = handler.await.map_err(panicked)??;
    let shown = format!("longest {} ms of {asked} requests", longest.as_millis());
    demand(longest <= handler + Duration::from_millis(100) + subject.slack(), || shown.clone())?;
    Ok(shown)
}

/// What a cache is put around, and how often that was called.
struct Origin {
    calls: Arc<AtomicUsize>,
    router: Router,
}

impl Origin {
    /// Answers every request by what `answer` makes of it and of the number of the call.
    fn new<F, R>(answer: impl Fn(Request, usize) -> F + Clone + Send + Sync + 'static) -> Self
    where
        F: Future<Output = R> + Send,
        R: IntoResponse + 'static,
    {
        let calls = Arc::new(AtomicUsize::new(0));
        let handler = {
            let calls = calls.clone();
            move |request| answer(request, calls.fetch_add(1, Ordering::SeqCst) + 1)
        };
        let methods = get(handler.clone()).post(handler.clone()).put(handler.clone()).delete(handler);
        Self { calls, router: Router::new().route("/{*path}", methods) }
    }

    /// Answers with these headers and the number of the call.
    fn saying(headers: &'static [(HeaderName, &'static str)]) -> Self {
        Self::new(move |_, call| async move { (fields(headers), call.to_string()) })
    }

    /// Takes this long to answer.
    fn slow(takes: Duration, control: &'static str) -> Self {
        Self::new(move |_, _| async move {
            sleep(takes).await;
            ([(CACHE_CONTROL, control)], "the body")
        })
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    fn inner(&self) -> Inner {
        BoxCloneSyncService::new(self.router.clone())
    }

    fn client(&self, subject: &dyn Subject) -> Client {
        Client::new(subject.around(self.inner()))
    }
}

fn fields(headers: &[(HeaderName, &'static str)]) -> HeaderMap {
    headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
}

/// Who asks, and does not wait for ever.
#[derive(Clone)]
struct Client {
    service: Service,
    patience: Duration,
}

impl Client {
    fn new(service: Service) -> Self {
        Self { service, patience: Duration::from_secs(5) }
    }

    async fn get(&self, path: &str) -> Result<Seen, Wrong> {
        self.ask(get_request(path)).await
    }

    /// The whole response, when what was answered before is stored: some caches do that a moment later.
    async fn ask(&self, request: Request) -> Result<Seen, Wrong> {
        sleep(Duration::from_millis(10)).await;
        self.send(request).await
    }

    /// The whole response.
    async fn send(&self, request: Request) -> Result<Seen, Wrong> {
        let client = self.clone();
        self.patiently(async move {
            let (head, body) = client.call(request).await?.into_parts();
            let body = body.collect().await.map_err(|error| Wrong(format!("the body failed: {error}")))?;
            let trailers = body.trailers().cloned().unwrap_or_default();
            Ok(Seen { status: head.status, headers: head.headers, body: body.to_bytes(), trailers })
        })
        .await
    }

    /// The response, its body still to be read.
    async fn open(&self, request: Request) -> Result<Response, Wrong> {
        let client = self.clone();
        self.patiently(async move { client.call(request).await }).await
    }

    /// What comes of requests that are made at the same time.
    async fn all(&self, requests: impl IntoIterator<Item = Request>) -> Vec<Result<Seen, Wrong>> {
        let mut asked = JoinSet::new();
        for request in requests {
            let client = self.clone();
            asked.spawn(async move { client.send(request).await });
        }
        asked.join_all().await
    }

    /// Asks for sixteen pages in turn, and tells the longest time that one took, and how many were asked for.
    async fn longest(self, first: usize, until: Instant) -> Result<(Duration, usize), Wrong> {
        let (mut longest, mut asked) = (Duration::ZERO, 0);
        while Instant::now() < until {
            let began = Instant::now();
            self.send(get_request(&format!("/{}", (first + asked) % 16))).await?;
            longest = longest.max(began.elapsed());
            asked += 1;
            sleep(Duration::from_millis(5)).await;
        }
        Ok((longest, asked))
    }

    async fn call(&self, request: Request) -> Result<Response, Wrong> {
        self.service.clone().oneshot(request).await.map_err(failed)
    }

    /// In a task of its own, so that a panic is seen as one; dropping this ends it.
    async fn patiently<T: Send + 'static>(
        &self,
        asking: impl Future<Output = Result<T, Wrong>> + Send + 'static,
    ) -> Result<T, Wrong> {
        let mut task = JoinSet::new();
        task.spawn(asking);
        match timeout(self.patience, task.join_next()).await {
            Ok(Some(Ok(outcome))) => outcome,
            Ok(Some(Err(error))) => Err(panicked(error)),
            Ok(None) | Err(_) => Err(Wrong(format!("HANG: no answer in {} s", self.patience.as_secs()))),
        }
    }
}

/// What a client saw.
struct Seen {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    trailers: HeaderMap,
}

impl Seen {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn header(&self, name: &str) -> String {
        text(&self.headers, name)
    }
}

/// The value of a header, empty if there is none.
fn text(headers: &HeaderMap, name: impl AsHeaderName) -> String {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).unwrap_or_default()
}

fn get_request(path: &str) -> Request {
    request(Method::GET, path)
}

fn request(method: Method, path: &str) -> Request {
    let mut request = Request::new(Body::empty());
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().expect("a path");
    with(request, http::header::HOST, "shop.example")
}

fn with(mut request: Request, name: HeaderName, value: &str) -> Request {
    request.headers_mut().insert(name, value.parse().expect("a header's value"));
    request
}
