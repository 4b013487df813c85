//! Published attacks on response caches, against an application's layer, with no HTTP parser before it.
//!
//! Each test is named after its case. An attacker's request goes first, then a victim's plain one, which must never get
//! what the first made the application answer. Where nothing else is said the layer is `cache.layer()`; the cases
//! `unkeyed_*` are what a sealed layer is for.
//!
//! What only a wire can carry is tried on one, in `tests/tests/attacks.rs`:
//!
//! - `smuggle-request`: where a request ends is decided before there is a request; here it has ended.
//! - `header-meta`: `http` refuses control characters, so that no service sees one; what it lets through is tried here.
//! - `split-truncated`: broken chunks become a body that ends with an error, and that is tried here.
//! - `split-two-lengths`: what arrives here is two fields in one map.
//! - `split-reflection`: `http` refuses raw line ends in targets and fields; encoded ones and quotes are tried here.
#![cfg(feature = "testing")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod stage;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, request::Parts};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full};
use larder::{Cache, CacheLayer};
use stage::{Answer, Fields, Reply, Stage, Unreachable, joined, wait};
use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{task::JoinHandle, time::Instant};
use tower::{Layer, ServiceExt, service_fn};

const FRESH: (&str, &str) = ("cache-control", "max-age=60");
const COOKIE: (&str, &str) = ("cookie", "user=alice");

fn request(method: &str, target: &str, fields: Fields<'_>) -> Request<Empty<Bytes>> {
    fields
        .iter()
        .fold(Request::builder().method(method).uri(target), |all, field| all.header(field.0, field.1))
        .body(Empty::<Bytes>::new())
        .unwrap()
}

/// A GET of `target` at the shop.
fn get(target: &str, fields: Fields<'_>) -> Request<Empty<Bytes>> {
    request("GET", target, &[&[("host", "shop")], fields].concat())
}

fn victim() -> Request<Empty<Bytes>> {
    get("/page", &[])
}

fn answer(status: u16, fields: Fields<'_>, body: impl Into<Bytes>) -> Reply {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in fields {
        response.headers_mut().append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
    }
    Ok(response)
}

fn fresh(body: impl Into<Bytes>) -> Reply {
    answer(200, &[FRESH], body)
}

fn number(call: usize) -> String {
    format!("number {call}")
}

async fn ask(stage: &Stage, request: Request<Empty<Bytes>>) -> Answer {
    let response = stage.layer.layer(stage.origin.clone()).oneshot(request).await.unwrap();
    let (head, body) = response.into_parts();
    let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    Answer { status: head.status.as_u16(), headers: head.headers, body }
}

/// An application's layer over a cache of its own.
fn open() -> CacheLayer {
    Cache::in_memory().layer()
}

fn sealed() -> CacheLayer {
    open().sealed()
}

const BOTH: [fn() -> CacheLayer; 2] = [open, sealed];

fn default(app: impl Fn(&Parts, usize) -> Reply + Send + Sync + 'static) -> Stage {
    Stage::new(open(), app)
}

/// What the victim gets from a cache of its own after the attack.
async fn after(
    attack: Request<Empty<Bytes>>,
    victim: Request<Empty<Bytes>>,
    app: impl Fn(&Parts, usize) -> Reply + Send + Sync + 'static,
) -> (Answer, Answer) {
    let stage = default(app);
    (ask(&stage, attack).await, ask(&stage, victim).await)
}

/// Without reuse of a plain fresh page, every other result is empty.
#[tokio::test(start_paused = true)]
async fn control_hit() {
    let stage = default(|_, call| fresh(number(call)));
    assert_eq!(ask(&stage, victim()).await.x_cache(), "MISS");
    let second = ask(&stage, victim()).await;
    assert_eq!((second.x_cache().as_str(), second.body.as_str(), stage.calls()), ("HIT", "number 1", 1));
}

/// An application's page depends on a request header that it does not name in `Vary`.
///
/// Sealed, nothing of it reaches the application. Where `Vary` names the header, or a sealed layer declares it, it does
/// reach it, and tells requests apart.
async fn unkeyed(name: &'static str, value: &str, app: fn(&Parts) -> Reply) {
    let attack = || get("/page", &[(name, value)]);
    let clean = ask(&default(move |head, _| app(head)), victim()).await.told_apart();

    let closed = Stage::new(sealed(), move |head, _| app(head));
    ask(&closed, attack()).await;
    assert_eq!(closed.last(name).1, "", "a sealed application sees {name}");
    let answer = ask(&closed, victim()).await;
    assert_eq!((answer.x_cache().as_str(), answer.told_apart()), ("HIT", clean.clone()), "{name}: {value}");

    let varying = move |head: &Parts, _| {
        let mut answer = app(head)?;
        answer.headers_mut().append("vary", name.parse().unwrap());
        Ok(answer)
    };
    let declared = sealed().key_headers([HeaderName::from_static(name)]);
    for stage in [default(varying), Stage::new(declared, move |head, _| app(head))] {
        let poison = ask(&stage, attack()).await;
        assert_eq!(stage.last(name).1, value, "an open application sees {name}");
        assert_ne!(poison.told_apart(), clean, "the application does not stumble over {name}: {value}");
        assert_eq!(ask(&stage, victim()).await.told_apart(), clean, "{name}: {value}");
    }
}

/// The fields by which answers of these applications differ.
trait ToldApart {
    fn told_apart(&self) -> (u16, String, String);
}

impl ToldApart for Answer {
    fn told_apart(&self) -> (u16, String, String) {
        let fields = ["location", "access-control-allow-origin", "content-encoding"].map(|name| self.field(name));
        (self.status, fields.join("|"), self.body.clone())
    }
}

fn seen(head: &Parts, name: &str) -> String {
    joined(&head.headers, name)
}

/// The application builds links with what a proxy is believed to have said of the host.
#[tokio::test(start_paused = true)]
async fn unkeyed_forwarding() {
    const NAMES: [&str; 12] = [
        "x-forwarded-host",
        "x-forwarded-server",
        "x-forwarded-port",
        "x-forwarded-prefix",
        "x-forwarded-for",
        "x-host",
        "x-real-ip",
        "x-http-host-override",
        "x-original-host",
        "forwarded",
        "true-client-ip",
        "via",
    ];
    for name in NAMES {
        unkeyed(name, "evil", |head| {
            let host = NAMES.iter().map(|name| seen(head, name)).find(|host| !host.is_empty());
            fresh(format!("<script src=//{}>", host.unwrap_or_else(|| seen(head, "host"))))
        })
        .await;
    }
}

/// The application believes that it was asked over plain HTTP, and sends everybody to where they are.
#[tokio::test(start_paused = true)]
async fn unkeyed_scheme_redirect() {
    const NAMES: [(&str, &str); 7] = [
        ("x-forwarded-proto", "http"),
        ("x-forwarded-protocol", "http"),
        ("x-forwarded-scheme", "http"),
        ("x-forwarded-ssl", "off"),
        ("x-url-scheme", "http"),
        ("front-end-https", "off"),
        ("cloudfront-forwarded-proto", "http"),
    ];
    for (name, value) in NAMES {
        unkeyed(name, value, |head| {
            if NAMES.iter().all(|(name, _)| seen(head, name).is_empty()) {
                return fresh("body");
            }
            answer(301, &[FRESH, ("location", "https://shop/page")], "moved")
        })
        .await;
    }
}

/// The application answers for another path than the one that was asked for.
#[tokio::test(start_paused = true)]
async fn unkeyed_url_rewrite() {
    const NAMES: [&str; 5] = ["x-original-url", "x-rewrite-url", "x-original-uri", "x-request-uri", "x-forwarded-path"];
    for name in NAMES {
        unkeyed(name, "/admin", |head| {
            let path = NAMES.iter().map(|name| seen(head, name)).find(|path| !path.is_empty());
            fresh(path.unwrap_or_else(|| head.uri.path().to_owned()))
        })
        .await;
    }
}

/// The application answers another method than the one that was asked for.
#[tokio::test(start_paused = true)]
async fn unkeyed_method_override() {
    const NAMES: [&str; 3] = ["x-http-method-override", "x-http-method", "x-method-override"];
    for (name, method) in NAMES.into_iter().flat_map(|name| ["POST", "HEAD", "PURGE"].map(|method| (name, method))) {
        unkeyed(name, method, |head| {
            let method = NAMES.iter().map(|name| seen(head, name)).find(|method| !method.is_empty());
            fresh(method.unwrap_or_else(|| head.method.to_string()))
        })
        .await;
    }
}

/// A cookie is written into a page for everybody.
#[tokio::test(start_paused = true)]
async fn unkeyed_cookie() {
    for cookie in ["language=evil", "user=mallory; language=evil", "fehost=\"};alert(1)\""] {
        unkeyed("cookie", cookie, |head| fresh(format!("<{}>", seen(head, "cookie")))).await;
    }
}

/// Scripts of one site may read the page, and those of no other.
#[tokio::test(start_paused = true)]
async fn unkeyed_origin() {
    for origin in ["https://evil", "null"] {
        unkeyed("origin", origin, |head| {
            let origin = seen(head, "origin");
            let allowed = if origin.is_empty() { "https://shop" } else { &origin };
            answer(200, &[FRESH, ("access-control-allow-origin", allowed)], "body")
        })
        .await;
    }
}

/// A body in a coding that the victim cannot undo.
#[tokio::test(start_paused = true)]
async fn unkeyed_encoding() {
    for coding in ["gzip", "br", "x-evil"] {
        unkeyed("accept-encoding", coding, |head| {
            let coding = seen(head, "accept-encoding");
            if coding.is_empty() {
                fresh("body")
            } else {
                answer(200, &[FRESH, ("content-encoding", &coding)], "coded")
            }
        })
        .await;
    }
}

/// A page that a sealed layer would hold, poisoned if the application ever sees the header while its answer is stored.
fn reflecting(fields: Fields<'static>) -> impl Fn(&Parts, usize) -> Reply + Send + Sync + 'static {
    move |head, _| answer(200, fields, format!("<{}>", seen(head, "x-forwarded-host")))
}

const FORGED: (&str, &str) = ("x-forwarded-host", "evil");

/// What was refused once goes past the cache for a while, and is stored again as soon as it may be.
#[tokio::test(start_paused = true)]
async fn unkeyed_after_a_refusal() {
    for refused in [("cache-control", "private"), ("set-cookie", "a=1"), ("vary", "*")] {
        let stage = Stage::new(sealed(), move |head, call| {
            let field = if call <= 2 { refused } else { FRESH };
            answer(200, &[field], format!("<{}>", seen(head, "x-forwarded-host")))
        });
        ask(&stage, victim()).await;
        assert_eq!(ask(&stage, victim()).await.x_cache(), "BYPASS", "{refused:?}");
        for _ in 0..2 {
            ask(&stage, get("/page", &[FORGED])).await;
            assert_eq!(ask(&stage, victim()).await.body, "<>", "{refused:?}");
        }
    }
}

/// The answer to a confirmation, and to the refresh behind a stale answer, is stored as well.
#[tokio::test(start_paused = true)]
async fn unkeyed_when_expired() {
    for fields in [
        &[("cache-control", "max-age=1")][..],
        &[("cache-control", "max-age=1"), ("etag", "\"e\"")],
        &[("cache-control", "max-age=1, stale-while-revalidate=60")],
        &[("cache-control", "max-age=1, stale-if-error=60"), ("last-modified", stage::MODIFIED)],
    ] {
        let stage = Stage::new(sealed(), reflecting(fields));
        for _ in 0..3 {
            ask(&stage, get("/page", &[FORGED])).await;
            assert_eq!(ask(&stage, victim()).await.body, "<>", "{fields:?}");
            wait(2).await;
        }
        assert!(stage.calls() >= 3, "{fields:?}");
    }
}

/// A request with credentials passes as it is, and its answer is nobody else's, whatever it says.
#[tokio::test(start_paused = true)]
async fn unkeyed_beside_authorization() {
    for directive in ["public, max-age=60", "s-maxage=60", "max-age=60, must-revalidate"] {
        let stage = Stage::new(sealed(), move |head, _| {
            answer(200, &[("cache-control", directive)], format!("<{}>", seen(head, "x-forwarded-host")))
        });
        ask(&stage, get("/page", &[("authorization", "Basic YTpi"), FORGED])).await;
        assert_eq!(ask(&stage, victim()).await.body, "<>", "{directive}");
    }
}

/// A client that asks for the application itself, where it is heard, and that asks without a body, or for a part.
#[tokio::test(start_paused = true)]
async fn unkeyed_by_special_requests() {
    let heard = || sealed().honor_client_directives();
    for (method, field) in [
        ("GET", ("cache-control", "no-cache")),
        ("GET", ("cache-control", "no-store")),
        ("GET", ("cache-control", "max-age=0")),
        ("GET", ("pragma", "no-cache")),
        ("GET", ("range", "bytes=0-1")),
        ("GET", ("if-none-match", "\"e\"")),
        ("GET", ("if-match", "\"e\"")),
        ("GET", ("if-range", "\"e\"")),
        ("GET", ("content-length", "4")),
        ("GET", ("upgrade", "h2c")),
        ("HEAD", FRESH),
        ("POST", FRESH),
        ("QUERY", FRESH),
    ] {
        for layer in [sealed(), heard()] {
            let stage = Stage::new(layer, reflecting(&[FRESH, ("etag", "\"e\""), ("content-location", "/page")]));
            for _ in 0..2 {
                ask(&stage, request(method, "/page", &[("host", "shop"), field, FORGED])).await;
                let answer = ask(&stage, victim()).await;
                assert_eq!((answer.status, answer.body.as_str()), (200, "<>"), "{method} {field:?}");
            }
        }
    }
}

/// Beyond the number of variants that are kept, requests pass the cache.
#[tokio::test(start_paused = true)]
async fn unkeyed_beyond_the_variants() {
    let layer = sealed().key_headers([http::header::ACCEPT]);
    let stage = Stage::new(layer, reflecting(&[FRESH]));
    for media in 0..20 {
        let media = ("accept", &*format!("a/{media}"));
        ask(&stage, get("/page", &[media, FORGED])).await;
        assert_eq!(ask(&stage, get("/page", &[media])).await.body, "<>", "{media:?}");
    }
}

/// What the victim gets after a GET with a body and these fields: an application answers with what it reads there.
async fn after_a_body(layer: CacheLayer, fields: Fields<'_>) -> Bytes {
    let get = async |fields: Fields<'_>, body: &'static str| {
        let app = service_fn(async |request: Request<Full<Bytes>>| {
            let read = request.into_body().collect().await?.to_bytes();
            let response = Response::builder().header(FRESH.0, FRESH.1).body(Full::new(read));
            Ok::<_, Infallible>(response.unwrap())
        });
        let response = layer.layer(app).oneshot(get("/page", fields).map(|_| Full::from(body))).await.unwrap();
        response.into_body().collect().await.unwrap().to_bytes()
    };
    assert_eq!(get(fields, "evil").await, "evil");
    get(&[], "").await
}

/// A GET with a body: the application reads its parameters there, and the cache does not look.
#[tokio::test(start_paused = true)]
async fn fat_get() {
    for layer in BOTH {
        for field in [("content-length", "4"), ("transfer-encoding", "chunked"), ("content-length", "004")] {
            assert_eq!(after_a_body(layer(), &[field]).await, "", "{field:?}");
        }
    }
}

/// The same as HTTP/2 has it, where no field needs to say that there is a body (RFC 9113 section 8.1).
#[tokio::test(start_paused = true)]
async fn fat_get_without_a_field() {
    for layer in BOTH {
        assert_eq!(after_a_body(layer(), &[]).await, "");
    }
}

/// What the victim reads of its host after an attack, in an application that reads it so.
async fn host_after(
    layer: CacheLayer,
    attack: (&str, Fields<'_>),
    victim: Request<Empty<Bytes>>,
    read: fn(&Parts) -> String,
) -> String {
    let stage = Stage::new(layer, move |head, _| fresh(read(head)));
    ask(&stage, request("GET", attack.0, attack.1)).await;
    ask(&stage, victim).await.body
}

fn by_host(head: &Parts) -> String {
    seen(head, "host")
}

/// As RFC 9112 section 3.3 has it.
fn by_target(head: &Parts) -> String {
    head.uri.authority().map_or_else(|| by_host(head), ToString::to_string)
}

/// Two sites share a path, and the page of one is given for that of the other.
#[tokio::test(start_paused = true)]
async fn key_host() {
    for layer in BOTH {
        for other in ["evil", "shop.", "sho", "shopp", "shop.evil", "127.0.0.1", "[::1]", "sh%6fp", "xn--shop", ""] {
            assert_eq!(
                host_after(layer(), ("/page", &[("host", other)]), victim(), by_host).await,
                "shop",
                "{other:?}"
            );
        }
        for hosts in [&[("host", "shop"), ("host", "evil")][..], &[("host", "evil"), ("host", "shop")], &[]] {
            assert_eq!(host_after(layer(), ("/page", hosts), victim(), by_host).await, "shop", "{hosts:?}");
        }
    }
}

/// A spelling of the host that the key does not tell apart makes the application answer for one that it does not know.
#[tokio::test(start_paused = true)]
async fn key_host_spelling() {
    for layer in BOTH {
        for other in ["SHOP", "Shop", " shop", "shop\t"] {
            assert_eq!(
                host_after(layer(), ("/page", &[("host", other)]), victim(), by_host).await,
                "shop",
                "{other:?}"
            );
        }
        for target in ["http://SHOP/page", "http://Shop/page"] {
            assert_eq!(host_after(layer(), (target, &[]), victim(), by_target).await, "shop", "{target}");
        }
    }
}

/// A port that nobody serves comes back in a redirect, and everybody is sent there.
#[tokio::test(start_paused = true)]
async fn key_host_port() {
    for host in "shop:1337 shop:80 shop:443 shop:0 shop:65536 shop: shop:x shop:80:81 user@shop shop@evil shop#evil \
                 shop/evil shop?evil shop\\evil shop,evil shop\tevil shop\"x shop%00 [shop]:1337 shop%3a1337"
        .split(' ')
        .chain(["shop: 81", "shop :81"])
    {
        for layer in BOTH {
            assert_eq!(host_after(layer(), ("/page", &[("host", host)]), victim(), by_host).await, "shop", "{host}");
        }
    }
}

/// Targets in absolute form, as HTTP/2 has them all, with a `Host` that agrees, disagrees, or is not there.
async fn absolute_forms(read: fn(&Parts) -> String) {
    for layer in BOTH {
        for target in ["http://shop/page", "http://evil/page", "https://shop/page", "http://shop:1/page"] {
            for hosts in [&[("host", "evil")][..], &[("host", "shop")], &[("host", "shop"), ("host", "evil")]] {
                for victim in [victim(), get("http://shop/page", &[])] {
                    let host = host_after(layer(), (target, hosts), victim, read).await;
                    assert_eq!(host, "shop", "{target} {hosts:?}");
                }
            }
        }
    }
}

/// The target names one site and `Host` another, to an application that goes by the target.
#[tokio::test(start_paused = true)]
async fn key_absolute_form() {
    absolute_forms(by_target).await;
}

/// The same, to an application that goes by `Host`, which it ought to find replaced (RFC 9112 section 3.2.2).
#[tokio::test(start_paused = true)]
async fn key_absolute_form_by_host() {
    absolute_forms(by_host).await;
}

/// Asks for every target, and then again: each must have an entry of its own.
async fn told_apart(targets: &str) {
    let stage = default(|head, _| fresh(head.uri.to_string()));
    // What is no target for `http`, no service sees.
    let targets: Vec<Uri> = targets.split(' ').filter_map(|target| target.parse().ok()).collect();
    assert!(targets.len() > 50, "too many are refused before the cache");
    for (x_cache, target) in
        ["MISS", "HIT"].into_iter().flat_map(|x_cache| targets.iter().map(move |target| (x_cache, target)))
    {
        let text = target.to_string();
        assert_eq!(ask(&stage, get(&text, &[])).await.told(), (x_cache.to_owned(), 200, text.as_str()));
    }
}

/// The application tells two spellings of a path apart, and the cache does not.
#[tokio::test(start_paused = true)]
async fn key_path_forms() {
    told_apart(
        "/page /page/ //page /./page /page/. /../page /x/../page /page/x/.. /Page /%70age /p%61ge /page%2f /page%2F \
         /%2fpage /page%00 /page%00.css /page%20 /page%0a /page%0A /page%0d%0a /page; /page;x.css /page%3b /page%3B \
         /page. /page.css /page%2ecss /page/x.css /page%2fx.css /page%23 /page%23x /page%3f /page%3F /page%3fa=1 \
         /page?a=1 /page%5c /page%5C /x%5c..%5cpage /x%2f..%2fpage /x/%2e%2e/page /x/%2E%2E/page /x/..;/page /page%25 \
         /page%2525 /page%2500 /page%252f /page% /page%2 /page%zz /page%ff /page%FF /page%c3%a9 /page%C3%A9 \
         /page\u{e9} /page|x /page{x} /page}x{ /page~ /page%7e /page+ /page%2b /page! /page%21 /page* /page%2A /page, \
         /page' /page:80 /page%3A80 /page@x /page&a=1 /page=1 /page\"x /page[x] / // /. /%2f * /* /shop:/page \
         /page:/page",
    )
    .await;
}

/// The application tells two query strings apart, and the cache sorts, cuts, decodes or drops parameters.
#[tokio::test(start_paused = true)]
async fn key_query_forms() {
    told_apart(
        "/page /page? /page?? /page?& /page?a /page?a= /page?a=1 /page?a=1& /page?&a=1 /page?a=1&b=2 /page?b=2&a=1 \
         /page?a=1;b=2 /page?a=1&amp;b=2 /page?a=1&a=2 /page?a=2&a=1 /page?a=1,2 /page?a=%31 /page?%61=1 /page?A=1 \
         /page?a%5b%5d=1 /page?a%5B%5D=1 /page?a[]=1 /page?a=1%26b=2 /page?a=1%3bb=2 /page?a=1%23 /page?a=+ \
         /page?a=%20 /page?a=%2b /page?a=%2B /page?a=1%00 /page?a=1%0d%0a /page?a=%c3%a9 /page?a=%C3%A9 \
         /page?a=\u{e9} /page?utm_source=x /page?utm_content=x;a=2 /page?a=1&utm_source=x;a=2 /page?fbclid=1 \
         /page?gclid=1 /page?_=1 /page?callback=x /page?callback=y /page?jsessionid=1 /page?_method=POST /page?= \
         /page?== /page?=1 /page?a==1 /page?/ /page?a=../x /page?a=//x /page?% /page?%2 /page?%zz /page?a|b /page?{a} \
         /page?\"a\" /page?'a' /page?a\\b /page?* /page?a=1: /page?a=1@shop /page?%3fa=1 /page?a=1?b=2 /page?%26 \
         /page?%3d /page?a%3d1 /page?a%3D1",
    )
    .await;
}

/// Fields of a request.
type Lines = Vec<(&'static str, String)>;

/// A varying header's value holds the separator of the key, so that two different pairs of values make the same key.
#[tokio::test(start_paused = true)]
async fn key_vary_delimiter() {
    let echo = |head: &Parts, _| {
        let lines = |name| head.headers.get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>();
        answer(200, &[FRESH, ("vary", "X-A, X-B")], format!("{:?} {:?}", lines("x-a"), lines("x-b")))
    };
    let stage = default(echo);
    let mut pairs: Vec<(Lines, Lines)> = vec![
        (vec![], vec![("x-a", String::new())]),
        (vec![("x-a", "1".into())], vec![("x-b", "1".into())]),
        (vec![("x-a", String::new()), ("x-b", "1".into())], vec![("x-b", "1".into())]),
        (vec![("x-a", "a".into()), ("x-a", "b".into())], vec![("x-a", "b".into()), ("x-a", "a".into())]),
        (vec![("x-a", "\u{e9}".into())], vec![("x-a", "\u{ea}".into())]),
        (vec![("x-a", "ab".into()), ("x-b", "c".into())], vec![("x-a", "a".into()), ("x-b", "bc".into())]),
    ];
    for mark in
        ",; ,; ;:;: ;|;&;=;\t; ;\";';\\;/;-;_;#;%00;%0a;%0d%0a;\\n;\\0;{;};[;];\u{a0};\u{2028};\u{ff};x-b:;x-b: ;x-b=;\
                 ,x-b=;&x-b=;\"x-b=\""
            .split(';')
            .chain([";"])
    {
        let (a, b) = (format!("a{mark}b"), format!("b{mark}c"));
        pairs.push((vec![("x-a", a.clone()), ("x-b", "c".into())], vec![("x-a", "a".into()), ("x-b", b)]));
        pairs.push((vec![("x-a", a.clone())], vec![("x-a", "a".into()), ("x-b", "b".into())]));
        pairs.push((vec![("x-a", "a".into()), ("x-b", "b".into())], vec![("x-b", a)]));
    }
    for (index, (attack, victim)) in pairs.iter().enumerate() {
        let of = |fields: &Lines| {
            let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
            get(&format!("/{index}"), &fields)
        };
        ask(&stage, of(attack)).await;
        let answer = ask(&stage, of(victim)).await;
        assert_eq!(answer.x_cache(), "MISS", "{attack:?} answers {victim:?}");
        assert_eq!(ask(&stage, of(victim)).await.told(), ("HIT".into(), 200, answer.body.as_str()), "{victim:?}");
    }
}

/// An answer that varies by everything is given to another.
#[tokio::test(start_paused = true)]
async fn vary_star() {
    for value in "* /   *   / \t*\t / *, Accept / Accept,* / ,* / *, / , ,*, , / *, * / Accept|* / *|Accept / |* / \
                  Accept|a, b|c,* / * Accept / *;q=1 / \"*\""
        .split(" / ")
    {
        let app = |_: &Parts, call| {
            let vary = value.split('|').map(|line| ("vary", line));
            answer(200, &vary.chain([FRESH]).collect::<Vec<_>>(), number(call))
        };
        let (_, answer) = after(victim(), victim(), app).await;
        assert_eq!(answer.body, "number 2", "{value:?}");
    }
}

/// The bodiless answer to HEAD is stored and given to GET.
#[tokio::test(start_paused = true)]
async fn method_head() {
    for length in [("content-length", "4"), ("content-length", "0"), ("x-none", "")] {
        let app = move |head: &Parts, _| match head.method {
            Method::HEAD => answer(200, &[FRESH, length], ""),
            _ => fresh("body"),
        };
        let (_, answer) = after(request("HEAD", "/page", &[("host", "shop")]), victim(), app).await;
        assert_eq!(answer.body, "body", "{length:?}");
    }
}

/// The answer to another method is stored and given to GET.
#[tokio::test(start_paused = true)]
async fn method_other() {
    for method in "POST PUT PATCH DELETE OPTIONS TRACE CONNECT get Get head GETS GE PURGE BREW PROPFIND QUERY \
                   SEARCH ! GET| GET'"
        .split(' ')
    {
        for fields in [&[("host", "shop")][..], &[("host", "shop"), ("content-length", "4")]] {
            let echo = |head: &Parts, _| answer(200, &[FRESH, ("content-location", "/page")], head.method.to_string());
            let (_, answer) = after(request(method, "/page", fields), victim(), echo).await;
            assert_eq!(answer.body, "GET", "{method} {fields:?}");
        }
    }
}

/// Values of `Cache-Control`, its lines divided by a bar.
const PRIVATE: &str = r#"private
private, max-age=60
max-age=60,private
PRIVATE, max-age=60
max-age=60 ,	private	
, ,private, ,max-age=60,
public, private, s-maxage=60
private="", max-age=60
private=, max-age=60
private=1, max-age=60
private=x-user, max-age=60
private="x-user, max-age=60
private = "x-user", max-age=60
max-age=60; private
private;max-age=60
max-age=60 private
private max-age=60
"private", max-age=60
'private', max-age=60
"max-age=60, private"
max-age=60, x="a, private
x="a\", max-age=60, private
max-age="60", private
max-age=60", private
no-store
max-age=60, no-store
NO-STORE,max-age=60
no-store=1, max-age=60
max-age=60; no-store
max-age=60 no-store
max-age=60, "no-store"
no-cache
NO-CACHE, max-age=60
no-cache=1, max-age=60
no-cache="x-user, max-age=60
max-age=60; no-cache
max-age=60 no-cache
max-age=60 | private
private | max-age=60
public, max-age=60 | no-store
 | private
max-age=60, x=" | private
max-age=0
s-maxage=0, max-age=60
max-age=-1
max-age=x
max-age=
max-age
s-maxage=x, max-age=60
max-age="0"
max-age=60, max-age=0
max-age=60 | max-age=0"#;

/// A page for one user, however the application says so, is given to another.
#[tokio::test(start_paused = true)]
async fn private_spellings() {
    for value in PRIVATE.lines() {
        let app = |_: &Parts, call| {
            let lines = value.split(" | ").map(|line| ("cache-control", line));
            answer(200, &lines.collect::<Vec<_>>(), number(call))
        };
        let (_, answer) = after(victim(), victim(), app).await;
        assert_eq!(answer.body, "number 2", "{value}");
    }
    // One field alone may be private: the rest may be reused, and the field not.
    for directive in
        ["private=\"x-user\", max-age=60", "PRIVATE=\"X-User\", max-age=60", "no-cache=\"x-user\", max-age=60"]
    {
        let app =
            move |_: &Parts, call| answer(200, &[("cache-control", directive), ("x-user", &number(call))], "body");
        let (_, answer) = after(victim(), victim(), app).await;
        assert_ne!(answer.field("x-user"), "number 1", "{directive}");
    }
    for expires in ["0", "-1", "Thu, 01 Jan 1970 00:00:00 GMT", "", "never"] {
        let app = move |_: &Parts, call| answer(200, &[("expires", expires)], number(call));
        let (_, answer) = after(victim(), victim(), app).await;
        assert_eq!(answer.body, "number 2", "Expires: {expires}");
    }
}

/// A page that needed credentials is given to those who have none, or others.
#[tokio::test(start_paused = true)]
async fn authorization() {
    for own in ["Basic YTpi", "Bearer a", "x", ""] {
        for other in [&[][..], &[("authorization", "Basic Yjpj")], &[("authorization", own)]] {
            for field in [FRESH, ("cache-control", "max-age=60, immutable"), ("x-silent", "")] {
                let app = move |_: &Parts, call| answer(200, &[field], number(call));
                let (_, answer) = after(get("/page", &[("authorization", own)]), get("/page", other), app).await;
                assert_eq!(answer.body, "number 2", "{own:?} {other:?} {field:?}");
            }
        }
    }
}

/// An answer that opens a session is given to everybody.
#[tokio::test(start_paused = true)]
async fn set_cookie() {
    let shared = || open().share_with_cookies();
    for layer in [open, sealed, shared] {
        for cookie in ["session=1", "session=1; Path=/; HttpOnly", ""] {
            for directive in ["max-age=60", "public, max-age=60", "s-maxage=60", "x-silent"] {
                let stage = Stage::new(layer(), move |_, call| {
                    answer(200, &[("cache-control", directive), ("set-cookie", cookie)], number(call))
                });
                ask(&stage, victim()).await;
                assert_eq!(ask(&stage, victim()).await.body, "number 2", "{cookie:?} {directive}");
            }
        }
    }
}

const STATIC_LOOKING: &str = "/account/x.css /account.png /account;x.css /account%2fx.css /account%00.css \
                             /account%0ax.css /account%23x.css /static/..%2faccount /robots.txt /account?x.css";

/// A victim is led to a private page under a name that looks static, and the attacker fetches it from the cache.
#[tokio::test(start_paused = true)]
async fn deception_no_store() {
    for target in STATIC_LOOKING.split(' ') {
        let app = |head: &Parts, _| {
            answer(200, &[("cache-control", "no-store"), ("content-type", "text/css")], seen(head, "cookie"))
        };
        let (first, answer) = after(get(target, &[COOKIE]), get(target, &[]), app).await;
        assert_eq!((first.body.as_str(), answer.body.as_str()), ("user=alice", ""), "{target}");
    }
}

/// The same page, of which the application says nothing; sealed, it never sees whose it is.
#[tokio::test(start_paused = true)]
async fn deception_silent() {
    let app = |head: &Parts, _| {
        let is_alice = !seen(head, "authorization").is_empty() || seen(head, "cookie").contains("alice");
        answer(200, &[("last-modified", stage::MODIFIED)], if is_alice { "secret" } else { "login" })
    };
    for layer in BOTH {
        for credentials in [COOKIE, ("authorization", "Basic YTpi")] {
            for target in STATIC_LOOKING.split(' ') {
                for other in [&[][..], &[("cookie", "user=mallory")]] {
                    let stage = Stage::new(layer(), app);
                    ask(&stage, get(target, &[credentials])).await;
                    assert_eq!(
                        ask(&stage, get(target, other)).await.body,
                        "login",
                        "{target} {credentials:?} {other:?}"
                    );
                }
            }
        }
    }
}

/// A part of a page is given for the whole.
#[tokio::test(start_paused = true)]
async fn range_206() {
    for range in [&[("range", "bytes=0-1")][..], &[("range", "bytes=0-0,1-1")], &[("range", "x=1")], &[]] {
        for part in [
            ("content-range", "bytes 0-1/4"),
            ("content-range", "bytes 0-1/2"),
            ("content-type", "multipart/byteranges; boundary=x"),
            ("x-none", ""),
        ] {
            let app = move |head: &Parts, call| {
                let is_part = head.headers.contains_key("range") || (range.is_empty() && call == 1);
                if is_part { answer(206, &[FRESH, part], "bo") } else { fresh("body") }
            };
            let (_, answer) = after(get("/page", range), victim(), app).await;
            assert_eq!((answer.status, answer.body.as_str()), (200, "body"), "{range:?} {part:?}");
        }
    }
}

/// A bad `Range` gives an error that the application marks fresh.
#[tokio::test(start_paused = true)]
async fn range_416() {
    for layer in BOTH {
        for (range, status) in ["bytes=cow", "bytes=9-", "bytes=-0", "cow", "bytes=5-1"]
            .into_iter()
            .flat_map(|range| [416, 400, 206].map(|status| (range, status)))
        {
            let stage = Stage::new(layer(), move |head, _| {
                if head.headers.contains_key("range") { answer(status, &[FRESH], "bad") } else { fresh("body") }
            });
            ask(&stage, get("/page", &[("range", range)])).await;
            let answer = ask(&stage, victim()).await;
            assert_eq!((answer.status, answer.body.as_str()), (200, "body"), "{range} {status}");
        }
    }
}

/// A client's own precondition holds or fails on a miss, and the empty answer is given to those who had none.
#[tokio::test(start_paused = true)]
async fn conditional_304() {
    for (name, value, status) in [
        ("if-none-match", "\"e\"", 304),
        ("if-none-match", "W/\"e\"", 304),
        ("if-none-match", "*", 304),
        ("if-none-match", "x", 304),
        ("if-modified-since", stage::AFTER, 304),
        ("if-modified-since", "x", 304),
        ("if-match", "\"x\"", 412),
        ("if-unmodified-since", stage::BEFORE, 412),
    ] {
        for fields in [&[FRESH][..], &[FRESH, ("etag", "\"e\"")], &[("last-modified", stage::MODIFIED)]] {
            let app = move |head: &Parts, _| {
                if head.headers.contains_key(name) {
                    answer(status, fields, "")
                } else {
                    answer(200, &[FRESH, ("etag", "\"e\"")], "body")
                }
            };
            let (_, answer) = after(get("/page", &[(name, value)]), victim(), app).await;
            assert_eq!((answer.status, answer.body.as_str()), (200, "body"), "{name}: {value} {fields:?}");
        }
    }
}

/// A request that the application stumbles over takes the page away, though nothing says that the error is fresh.
#[tokio::test(start_paused = true)]
async fn error_silent() {
    for fields in [&[][..], &[("last-modified", stage::MODIFIED)], &[("etag", "\"e\"")], &[("retry-after", "60")]] {
        errors_stay_alone(fields).await;
    }
}

/// No error of a client's, of the application's, and no redirect, is stored.
async fn errors_stay_alone(fields: Fields<'static>) {
    for status in (300..=308).chain(400..=431).chain([451, 499]).chain(500..=511).chain([520, 599]) {
        let app = move |head: &Parts, _| {
            if head.headers.contains_key("x-bad") { answer(status, fields, "bad") } else { fresh("body") }
        };
        let (_, answer) = after(get("/page", &[("x-bad", "1")]), victim(), app).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "body"), "{status} {fields:?}");
    }
}

/// The same, marked fresh as everything is: an application's layer stores none, whatever it states.
#[tokio::test(start_paused = true)]
async fn error_fresh() {
    for fields in [
        &[FRESH][..],
        &[("cache-control", "public, s-maxage=60")],
        &[("cache-control", "max-age=60, immutable")],
        &[("cache-control", "max-age=0, stale-if-error=60")],
        &[("cdn-cache-control", "max-age=60")],
    ] {
        errors_stay_alone(fields).await;
    }
}

/// A header larger than the application takes makes an error for everybody.
#[tokio::test(start_paused = true)]
async fn header_oversize() {
    for (name, size) in
        ["x-big", "cookie", "referer"].into_iter().flat_map(|name| [8 << 10, 1 << 20].map(|size| (name, size)))
    {
        for fields in [&[][..], &[FRESH]] {
            let app = move |head: &Parts, _| {
                let is_large = head.headers.values().any(|value| value.len() > 4096);
                if is_large { answer(431, fields, "too large") } else { fresh("body") }
            };
            let (_, answer) = after(get("/page", &[(name, &"a".repeat(size))]), victim(), app).await;
            assert_eq!((answer.status, answer.body.as_str()), (200, "body"), "{name} {size} {fields:?}");
        }
    }
}

/// What is left of odd characters once `http` has refused its part makes an error, or answers for another value.
#[tokio::test(start_paused = true)]
async fn header_meta() {
    for byte in (0..32).chain([127]).filter(|byte| *byte != b'\t') {
        assert!(HeaderValue::from_bytes(&[b'a', byte, b'b']).is_err(), "{byte}");
        assert!(HeaderName::from_bytes(&[b'a', byte, b'b']).is_err(), "{byte}");
        assert!(Uri::try_from(&[b'/', byte, b'b'][..]).is_err(), "{byte}");
    }
    for value in [&b"a\tb"[..], b"\x80", b"\xff\xfe", b"\xc0\x80", b"\xc4\x8d\xc4\x8a", "\u{2028}".as_bytes()] {
        for name in ["x-meta", "cookie", "accept", "user-agent"] {
            let mut attack = victim();
            attack.headers_mut().insert(name, HeaderValue::from_bytes(value).unwrap());
            let app = move |head: &Parts, _| {
                if head.headers.contains_key(name) { answer(400, &[FRESH], "meta") } else { fresh("body") }
            };
            assert_eq!(after(attack, victim(), app).await.1.body, "body", "{name}: {value:?}");
        }
    }
}

/// Sends its text, and then breaks.
struct Cut(Option<Bytes>);

impl http_body::Body for Cut {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        Poll::Ready(Some(self.0.take().map(Frame::data).ok_or("the origin is gone")))
    }
}

/// A body that was cut short is given as the whole page.
#[tokio::test(start_paused = true)]
async fn split_truncated() {
    for half in [Some(Bytes::from("half")), None] {
        let layer = open();
        for _ in 0..2 {
            let half = half.clone();
            let app = service_fn(move |_: Request<Empty<Bytes>>| {
                let response = Response::builder().header(FRESH.0, FRESH.1).body(Cut(half.clone())).unwrap();
                async { Ok::<_, Infallible>(response) }
            });
            let response = layer.layer(app).oneshot(victim()).await.unwrap();
            assert_eq!(response.headers()["x-cache"], "MISS");
            assert!(response.into_body().collect().await.is_err(), "who gets a half is told so");
        }
    }
    for (length, body) in [("100", "half"), ("5", "half"), ("4", ""), ("3", "half"), ("0", "half")] {
        let app = move |_: &Parts, call| match call {
            1 => answer(200, &[FRESH, ("content-length", length)], body),
            _ => fresh("the whole"),
        };
        let (_, answer) = after(victim(), victim(), app).await;
        assert_eq!(answer.body, "the whole", "{length} {body:?}");
    }
}

/// An answer whose end depends on which length one believes is stored.
#[tokio::test(start_paused = true)]
async fn split_two_lengths() {
    for lengths in "4|9 / 9|4 / 4|0 / 4, 9 / 4,9 / 4 9 / 4|x / 4, x / +4 / -4 / 0x4 / 4.0 / 4; / \"4\" /  / \
                    18446744073709551620 / 4|4|9"
        .split(" / ")
    {
        let app = |_: &Parts, call| match call {
            1 => {
                let lengths = lengths.split('|').map(|length| ("content-length", length));
                answer(200, &lengths.chain([FRESH]).collect::<Vec<_>>(), "evil")
            }
            _ => fresh("body"),
        };
        let (_, answer) = after(victim(), victim(), app).await;
        assert_eq!(answer.body, "body", "{lengths:?}");
    }
}

/// Line ends and quotes in the request break the fields that the cache writes itself.
#[tokio::test(start_paused = true)]
async fn split_reflection() {
    let stage = default(|_, _| fresh("body"));
    let names = |answer: &Answer| {
        let mut names: Vec<String> = answer.headers.keys().map(ToString::to_string).collect();
        names.retain(|name| !["age", "date"].contains(&name.as_str()));
        names.sort();
        names
    };
    let plain = names(&ask(&stage, victim()).await);
    for mark in
        "%0d%0aX-Evil:%201 %0d%0a%0d%0aevil %0aX-Evil:1 \" \";key=evil %22;evil=%22 \\\" ' ;hit ,evil;hit %5c%22 \
                 \u{10a} \u{e5}\u{98}\u{8a} %E5%98%8A%E5%98%8DX-Evil:1 <script> } {evil} * [a]"
            .split(' ')
    {
        for (target, host) in
            [(format!("/page{mark}"), ""), (format!("/page?a={mark}"), ""), ("/page".to_owned(), mark)]
        {
            if target.parse::<Uri>().is_err() {
                continue;
            }
            for _ in 0..2 {
                let answer = ask(&stage, request("GET", &target, &[("host", &format!("shop{host}"))])).await;
                for (name, value) in &answer.headers {
                    let value = value.to_str().unwrap();
                    let harmless = |char: char| char.is_ascii_alphanumeric() || "%:/.-_?&=,;'<>".contains(char);
                    let is_key = name == "x-cache-key" && value.chars().all(harmless);
                    assert!(
                        is_key || !(value.contains("evil") || value.contains("script")),
                        "{target} {host}: {value}"
                    );
                }
                // A host that is none has no key.
                let mut expected = plain.clone();
                expected.retain(|name| name != "x-cache-key" || answer.headers.contains_key("x-cache-key"));
                assert_eq!((names(&answer), answer.body.as_str()), (expected, "body"), "{target} {host}");
            }
        }
    }
}

/// A change of protocol is stored.
#[tokio::test(start_paused = true)]
async fn upgrade_101() {
    let upgrades = [&[("connection", "Upgrade"), ("upgrade", "websocket")][..], &[("upgrade", "h2c")], &[]];
    for (fields, status) in upgrades.into_iter().flat_map(|fields| [100, 101, 103].map(|status| (fields, status))) {
        let app = move |_: &Parts, call| match call {
            1 => answer(status, &[FRESH, ("upgrade", "websocket")], "evil"),
            _ => fresh("body"),
        };
        let (_, answer) = after(get("/page", fields), victim(), app).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "body"), "{status} {fields:?}");
    }
}

/// A client that wants the cache alone to answer gets an error, and after it everybody.
#[tokio::test(start_paused = true)]
async fn client_only_if_cached() {
    let heard = || open().honor_client_directives();
    for layer in [open, heard] {
        for directive in
            ["only-if-cached", "ONLY-IF-CACHED, max-stale", "max-age=0, only-if-cached", "no-cache, only-if-cached"]
        {
            let stage = Stage::new(layer(), |_, _| fresh("body"));
            ask(&stage, get("/page", &[("cache-control", directive)])).await;
            let answer = ask(&stage, victim()).await;
            assert_eq!((answer.status, answer.body.as_str()), (200, "body"), "{directive}");
        }
    }
}

/// A request that the application refuses throws the page away, so that anybody can empty the cache.
#[tokio::test(start_paused = true)]
async fn invalidate_error() {
    for method in ["POST", "PUT", "PATCH", "DELETE", "BREW"] {
        for status in [400, 401, 403, 404, 405, 413, 429, 500, 503].map(Some).into_iter().chain([None]) {
            let stage = default(move |head, _| match (status, &head.method) {
                (_, &Method::GET) => fresh("body"),
                (Some(status), _) => {
                    answer(status, &[FRESH, ("location", "/page"), ("content-location", "/page")], "no")
                }
                (None, _) => Err(Unreachable),
            });
            ask(&stage, victim()).await;
            for target in ["/page", "/other"] {
                let attack = request(method, target, &[("host", "shop"), ("content-length", "0")]);
                let refused = stage.layer.layer(stage.origin.clone()).oneshot(attack).await;
                assert_eq!(refused.is_err(), status.is_none());
                assert_eq!(ask(&stage, victim()).await.x_cache(), "HIT", "{method} {target} {status:?}");
            }
        }
    }
}

/// Anybody asks the cache to forget a page.
#[tokio::test(start_paused = true)]
async fn purge_open() {
    for layer in BOTH {
        let stage = Stage::new(layer(), |head, _| match head.method {
            Method::GET => fresh("body"),
            _ => answer(405, &[("allow", "GET")], "no"),
        });
        ask(&stage, victim()).await;
        for method in "PURGE BAN BANURL REFRESH FLUSH INVALIDATE PURGETAG URIBAN SOFTPURGE purge DELETE".split(' ') {
            ask(&stage, request(method, "/page", &[("host", "shop")])).await;
            assert_eq!(ask(&stage, victim()).await.x_cache(), "HIT", "{method}");
        }
        for name in "x-purge x-purge-key x-purge-regex x-ban x-ban-url x-cache-tags cache-tag surrogate-key xkey-purge \
                     x-invalidate x-refresh x-magento-tags-pattern cache-control pragma cache-groups \
                     cache-group-invalidation"
            .split(' ')
        {
            for value in ["1", "*", "/page", "no-cache", "\"shop\""] {
                ask(&stage, get("/page", &[(name, value)])).await;
                assert_eq!(ask(&stage, victim()).await.x_cache(), "HIT", "{name}: {value}");
            }
        }
    }
}

/// A client who asks for the page now, and reads the answer when it comes.
fn client(stage: &Stage, fields: Fields<'_>) -> JoinHandle<Answer> {
    let (stage, request) = (stage.clone(), get("/page", fields));
    tokio::spawn(async move { ask(&stage, request).await })
}

/// Those who wait for one fetch receive its answer though that is for one user alone.
#[tokio::test(start_paused = true)]
async fn coalesce_private() {
    for fields in [
        &[("cache-control", "private, max-age=60")][..],
        &[("cache-control", "no-store")],
        &[("cache-control", "no-cache")],
        &[("cache-control", "max-age=0")],
        &[FRESH, ("set-cookie", "session=1")],
        &[FRESH, ("vary", "*")],
        &[],
    ] {
        let stage = default(move |head, _| answer(200, fields, seen(head, "cookie")));
        let users = [0, 1, 2, 3, 4, 5].map(|user| format!("user-{user}"));
        let clients = users.each_ref().map(|user| client(&stage, &[("cookie", user)]));
        for (user, client) in users.iter().zip(clients) {
            assert_eq!(client.await.unwrap().body, *user, "{fields:?}");
        }
        assert_eq!(stage.calls(), 6);
    }
}

/// Those who wait for one fetch receive an answer that depends on a header in which they differ.
#[tokio::test(start_paused = true)]
async fn coalesce_vary() {
    let app = |head: &Parts, _| answer(200, &[FRESH, ("vary", "accept-language")], seen(head, "accept-language"));
    let stage = default(app);
    let languages = ["en", "de", "", "fr", "en", "de"];
    let clients = languages.map(|language| client(&stage, &[("accept-language", language)]));
    for (language, client) in languages.into_iter().zip(clients) {
        assert_eq!(client.await.unwrap().body, language);
    }
}

/// Those who wait for one fetch receive what only a special request deserves.
#[tokio::test(start_paused = true)]
async fn coalesce_special() {
    for layer in BOTH {
        for special in [
            ("range", "bytes=0-1"),
            ("if-none-match", "\"e\""),
            ("authorization", "Basic YTpi"),
            ("cache-control", "no-store"),
            ("content-length", "4"),
        ] {
            let stage = Stage::new(layer(), |head, _| match |name| head.headers.contains_key(name) {
                has if has("range") => answer(206, &[FRESH, ("content-range", "bytes 0-1/4")], "bo"),
                has if has("if-none-match") => answer(304, &[FRESH], ""),
                has if has("authorization") || has("content-length") => fresh("secret"),
                _ => fresh("body"),
            });
            let leader = client(&stage, &[special]);
            let followers = [client(&stage, &[]), client(&stage, &[])];
            for follower in followers {
                let answer = follower.await.unwrap();
                assert_eq!((answer.status, answer.body.as_str()), (200, "body"), "{special:?}");
            }
            leader.await.unwrap();
        }
    }
}

/// The first client leaves, and those who wait for its fetch wait for nothing.
#[tokio::test(start_paused = true)]
async fn coalesce_leader_gone() {
    for moment in [0, 50, 99, 100] {
        let (stage, began) = (default(|_, _| fresh("body")), Instant::now());
        let leader = client(&stage, &[]);
        tokio::task::yield_now().await;
        let followers = [(); 3].map(|()| client(&stage, &[]));
        tokio::time::sleep(Duration::from_millis(moment)).await;
        leader.abort();
        for follower in followers {
            assert_eq!(follower.await.unwrap().body, "body");
        }
        assert!(began.elapsed() <= Duration::from_millis(250), "{moment}: {:?}", began.elapsed());
    }
}
