//! The gateway example between a client and an upstream that both speak plain text over sockets.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use clap::Parser;
use http::{HeaderValue, Request, header::COOKIE};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use larder_tests::{Process, RedisServer, program};
use std::{net::SocketAddr, process::Command, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// What is answered to a request, part by part.
type Script = dyn Fn(&str) -> Vec<&'static str> + Send + Sync;

/// A server that answers as it is told, and keeps what it was sent.
struct Upstream {
    address: SocketAddr,
    received: watch::Receiver<String>,
    go_on: Arc<Notify>,
}

impl Upstream {
    async fn answering(answer: &'static str) -> Self {
        Self::answering_in_parts([answer]).await
    }

    /// Waits before each part but the first until it is told to go on.
    async fn answering_in_parts(parts: impl Into<Vec<&'static str>>) -> Self {
        let parts = parts.into();
        Self::answering_by(move |_| parts.clone()).await
    }

    /// Answers each request with the parts that `script` makes of it.
    async fn answering_by(script: impl Fn(&str) -> Vec<&'static str> + Send + Sync + 'static) -> Self {
        let script: Arc<Script> = Arc::new(script);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (received, go_on) = (watch::Sender::default(), Arc::new(Notify::new()));
        let upstream = Self { address, received: received.subscribe(), go_on: go_on.clone() };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, received.clone(), script.clone(), go_on.clone()));
            }
        });
        upstream
    }

    fn received(&self) -> String {
        self.received.borrow().clone()
    }

    fn requests(&self) -> usize {
        self.received().matches(" HTTP/1.1\r\n").count()
    }

    async fn has_received(&self, text: &str) {
        let mut received = self.received.clone();
        let arrived = timeout(PATIENCE, received.wait_for(|received| received.contains(text))).await;
        assert!(arrived.is_ok(), "the upstream never received {text:?}");
    }
}

async fn serve(
    mut stream: TcpStream,
    received: watch::Sender<String>,
    script: Arc<Script>,
    go_on: Arc<Notify>,
) -> std::io::Result<()> {
    let (mut request, mut buffer) = (String::new(), [0; 4096]);
    while !is_complete(&request) {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&buffer[..read]);
        request.push_str(&text);
        received.send_modify(|received| received.push_str(&text));
    }
    for (index, part) in script(&request).into_iter().enumerate() {
        if index > 0 {
            go_on.notified().await;
        }
        stream.write_all(part.as_bytes()).await?;
    }
    Ok(())
}

fn is_complete(request: &str) -> bool {
    let Some((head, body)) = request.split_once("\r\n\r\n") else { return false };
    let head = head.to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    match length {
        Some(length) => body.len() >= length.parse().unwrap(),
        None if head.contains("transfer-encoding: chunked") => {
            body.ends_with("\r\n\r\n") && (body.starts_with("0\r\n") || body.contains("\r\n0\r\n"))
        }
        None => true,
    }
}

struct Gateway {
    address: SocketAddr,
    shutdown: oneshot::Sender<()>,
    ended: JoinHandle<()>,
}

async fn gateway(upstream: SocketAddr, options: &[&str]) -> Gateway {
    let upstream = format!("--upstream=http://{upstream}");
    let options = gateway::Options::parse_from([&["gateway", &upstream], options].concat());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (shutdown, requested) = oneshot::channel::<()>();
    let ended = tokio::spawn(async move {
        let requested = async { drop(requested.await) };
        gateway::run(&options, listener, requested).await.unwrap();
    });
    Gateway { address, shutdown, ended }
}

/// Sends a request as it stands, and reads until the gateway closes.
async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    rest(&mut stream).await
}

async fn rest(stream: &mut TcpStream) -> String {
    let mut response = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut response)).await.expect("the gateway closes in time").unwrap();
    String::from_utf8(response).unwrap()
}

async fn until(stream: &mut TcpStream, text: &str) -> String {
    let (mut read, mut byte) = (String::new(), [0]);
    while !read.contains(text) {
        timeout(PATIENCE, stream.read_exact(&mut byte)).await.expect("the gateway answers in time").unwrap();
        read.push(char::from(byte[0]));
    }
    read
}

const GET: &str = "GET /page HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn a_lifetime_makes_a_hit_and_without_one_the_default_decides() {
    const LIVES: &str = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 4\r\n\r\nbody";
    const SILENT: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody";
    const HEURISTIC: &str =
        "HTTP/1.1 200 OK\r\nLast-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\nContent-Length: 4\r\n\r\nbody";
    for (answer, options, expected) in [
        (LIVES, &[][..], "x-cache: HIT\r\n"),
        (SILENT, &[], "x-cache: BYPASS\r\n"),
        (HEURISTIC, &[], "x-cache: HIT\r\n"),
        (SILENT, &["--default-ttl", "60"], "x-cache: HIT\r\n"),
    ] {
        let gateway = gateway(Upstream::answering(answer).await.address, options).await;
        let first = ask(gateway.address, GET).await;
        assert!(first.contains("x-cache: MISS\r\n") && first.ends_with("\r\n\r\nbody"), "{first}");
        let second = ask(gateway.address, GET).await;
        assert!(second.contains(expected) && second.ends_with("\r\n\r\nbody"), "{answer:?} {options:?}: {second}");
    }
}

#[tokio::test]
async fn what_is_missing_of_a_part_is_asked_for_alone_and_the_whole_if_that_does_not_do() {
    const PART: &str = "HTTP/1.1 206 Partial Content\r\nCache-Control: max-age=60\r\nETag: \"1\"\r\n\
        Content-Range: bytes 0-3/10\r\nContent-Length: 4\r\n\r\n0123";
    const REST: &str = "HTTP/1.1 206 Partial Content\r\nCache-Control: max-age=60\r\nETag: \"1\"\r\n\
        Content-Range: bytes 4-9/10\r\nContent-Length: 6\r\n\r\n456789";
    const OTHER: &str = "HTTP/1.1 206 Partial Content\r\nCache-Control: max-age=60\r\nETag: \"2\"\r\n\
        Content-Range: bytes 4-9/10\r\nContent-Length: 6\r\n\r\nEFGHIJ";
    const WHOLE: &str =
        "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nETag: \"2\"\r\nContent-Length: 10\r\n\r\nABCDEFGHIJ";
    let range = GET.replace("Connection", "Range: bytes=0-3\r\nConnection");
    for (rest, requests, body) in [(REST, 2, "\r\n\r\n0123456789"), (OTHER, 3, "\r\n\r\nABCDEFGHIJ")] {
        let upstream = Upstream::answering_by(move |request| {
            let request = request.to_lowercase();
            let asks_for = |field: &str| request.contains(field);
            vec![match (asks_for("range: bytes=0-3\r\n"), asks_for("range: bytes=4-\r\n")) {
                (true, _) => PART,
                (_, true) if asks_for("if-range: \"1\"\r\n") => rest,
                _ => WHOLE,
            }]
        });
        let upstream = upstream.await;
        let gateway = gateway(upstream.address, &[]).await;
        let part = ask(gateway.address, &range).await;
        assert!(part.starts_with("HTTP/1.1 206 ") && part.ends_with("\r\n\r\n0123"), "{part}");
        for x_cache in ["x-cache: MISS\r\n", "x-cache: HIT\r\n"] {
            let whole = ask(gateway.address, GET).await;
            assert!(whole.starts_with("HTTP/1.1 200 ") && whole.ends_with(body), "{whole}");
            assert!(whole.contains(x_cache) && whole.to_lowercase().contains("content-length: 10\r\n"), "{whole}");
        }
        assert_eq!(upstream.requests(), requests);
    }
}

#[tokio::test]
async fn client_directives_are_honoured_on_request() {
    const ANSWER: &str = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 0\r\n\r\n";
    let reload = GET.replace("Connection", "Cache-Control: no-cache\r\nConnection");
    for (options, requests) in [(&[][..], 1), (&["--honor-client-directives"], 2)] {
        let upstream = Upstream::answering(ANSWER).await;
        let gateway = gateway(upstream.address, options).await;
        ask(gateway.address, GET).await;
        ask(gateway.address, &reload).await;
        assert_eq!(upstream.requests(), requests, "{options:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_share_a_redis() {
    let redis = RedisServer::start();
    let upstream =
        Upstream::answering("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 4\r\n\r\nbody").await;
    let options = ["--redis", &redis.url()];
    let (first, second) = (gateway(upstream.address, &options).await, gateway(upstream.address, &options).await);
    ask(first.address, GET).await;
    // The first client's last byte does not wait for the write to Redis.
    let stored = async { while !ask(first.address, GET).await.contains("x-cache: HIT\r\n") {} };
    timeout(PATIENCE, stored).await.expect("the response is stored");
    let hit = ask(second.address, GET).await;
    assert!(hit.contains("x-cache: HIT\r\n") && hit.ends_with("\r\n\r\nbody"), "{hit}");
}

#[tokio::test]
async fn a_body_streams_through_and_the_method_stays() {
    let upstream = Upstream::answering("HTTP/1.1 201 Quite Created\r\nContent-Length: 2\r\n\r\nok").await;
    let gateway = gateway(upstream.address, &["--default-ttl=60"]).await;
    for method in ["POST", "PATCH", "BREW", "GET"] {
        let mut client = TcpStream::connect(gateway.address).await.unwrap();
        let head = format!("{method} /a?b=%20c HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n");
        client.write_all(format!("{head}Connection: close\r\n\r\n5\r\nfirst\r\n").as_bytes()).await.unwrap();
        upstream.has_received(&format!("{method} /a?b=%20c HTTP/1.1\r\n")).await;
        upstream.has_received("first").await;
        client.write_all(b"6\r\nsecond\r\n0\r\n\r\n").await.unwrap();
        let answer = rest(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 201 Quite Created\r\n"), "{answer}");
        assert!(answer.contains("x-cache: BYPASS\r\n") && answer.ends_with("\r\n\r\nok"), "{answer}");
    }
    assert_eq!(upstream.requests(), 4);
    ask(gateway.address, "PUT / HTTP/1.1\r\nHost: shop\r\nContent-Length: 3\r\nConnection: close\r\n\r\nput").await;
    assert!(upstream.received().contains("Content-Length: 3\r\n"), "{}", upstream.received());
    assert!(upstream.received().ends_with("\r\n\r\nput"), "{}", upstream.received());
}

#[tokio::test]
async fn trailers_pass_in_both_directions() {
    let upstream = Upstream::answering(
        "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nX-Sum: down\r\n\r\n",
    )
    .await;
    let gateway = gateway(upstream.address, &[]).await;
    let answer = ask(
        gateway.address,
        "POST / HTTP/1.1\r\nHost: shop\r\nTE: trailers\r\nConnection: TE, close\r\nTrailer: X-Sum\r\n\
         Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: up\r\n\r\n",
    )
    .await;
    let request = upstream.received().to_lowercase();
    assert!(request.contains("te: trailers\r\n") && request.contains("connection: te\r\n"), "{request}");
    assert!(request.contains("0\r\nx-sum: up\r\n\r\n"), "{request}");
    assert!(answer.to_lowercase().contains("0\r\nx-sum: down\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn repeated_fields_stay_apart_and_in_order() {
    let upstream = Upstream::answering(
        "HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nX-List: 1\r\nSet-Cookie: b=2\r\nX-List: 2\r\nContent-Length: 0\r\n\r\n",
    )
    .await;
    let gateway = gateway(upstream.address, &[]).await;
    let answer =
        ask(gateway.address, &GET.replace("Connection", "X-Twice: 1\r\nAccept: */*\r\nX-Twice: 2\r\nConnection")).await;
    let values = |text: &str, name: &str| {
        text.lines().filter_map(|line| line.strip_prefix(name)).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(values(&upstream.received(), "X-Twice: "), ["1", "2"]);
    assert_eq!(values(&answer, "Set-Cookie: "), ["a=1", "b=2"]);
    assert_eq!(values(&answer, "X-List: "), ["1", "2"]);
}

#[tokio::test]
async fn what_belongs_to_one_connection_goes_no_further() {
    let upstream = Upstream::answering(
        "HTTP/1.1 200 OK\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: timeout=5\r\n\
         Proxy-Authenticate: Basic\r\nVia: 1.1 before\r\nContent-Length: 0\r\n\r\n",
    )
    .await;
    let gateway = gateway(upstream.address, &[]).await;
    let fields = "X-Mine: 1\r\nUpgrade: websocket\r\nProxy-Authorization: Basic YQ==\r\nX-Stays: 1\r\n";
    let answer =
        ask(gateway.address, &GET.replace("Connection: close", &format!("{fields}Connection: close, x-mine, upgrade")))
            .await
            .to_lowercase();
    let request = upstream.received().to_lowercase();
    for gone in ["x-mine", "upgrade", "proxy-auth", "keep-alive"] {
        assert!(!request.contains(gone), "{request}");
        assert!(!answer.contains(gone), "{answer}");
    }
    assert!(request.contains("x-stays: 1\r\n") && request.contains("via: 1.1 larder\r\n"), "{request}");
    assert!(answer.contains("via: 1.1 before\r\nvia: 1.1 larder\r\n"), "{answer}");
}

#[tokio::test]
async fn the_target_wins_over_the_host() {
    const ANSWER: &str = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 0\r\n\r\n";
    let upstream = Upstream::answering(ANSWER).await;
    let gateway = gateway(upstream.address, &[]).await;
    let absolute = "GET http://target/page HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n";
    ask(gateway.address, absolute).await;
    let request = upstream.received().to_lowercase();
    assert!(request.starts_with("get /page http/1.1\r\n") && request.contains("host: target\r\n"), "{request}");
    assert!(!request.contains("other"), "{request}");
    let same = ask(gateway.address, &GET.replace("shop", "target")).await;
    assert!(same.contains("x-cache: HIT\r\n"), "{same}");
    let another = ask(gateway.address, &GET.replace("shop", "other")).await;
    assert!(another.contains("x-cache: MISS\r\n"), "{another}");
    ask(gateway.address, "OPTIONS * HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n").await;
    assert!(upstream.received().contains("OPTIONS * HTTP/1.1\r\n"), "{}", upstream.received());
}

#[tokio::test]
async fn what_cannot_be_forwarded_is_refused() {
    let upstream = Upstream::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let gateway = gateway(upstream.address, &[]).await;
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n", "400 "),
        ("GET / HTTP/1.1\r\nConnection: close\r\n\r\n", "400 "),
        ("CONNECT shop:443 HTTP/1.1\r\nHost: shop:443\r\nConnection: close\r\n\r\n", "501 "),
    ] {
        let answer = ask(gateway.address, request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
        assert!(answer.contains("content-type: text/plain"), "{answer}");
    }
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn an_upstream_without_an_answer_is_502_each_time() {
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for upstream in [
        dead,
        Upstream::answering("what?\r\n\r\n").await.address,
        Upstream::answering("").await.address,
        Upstream::answering("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx").await.address,
    ] {
        let gateway = gateway(upstream, &["--default-ttl=60"]).await;
        for _ in 0..2 {
            let answer = ask(gateway.address, GET).await;
            assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
            assert!(answer.contains("x-cache: MISS\r\n") && answer.contains("content-type: text/plain"), "{answer}");
        }
    }
}

#[tokio::test]
async fn an_upstream_that_takes_too_long_is_504() {
    let upstream = Upstream::answering_in_parts(["", "never"]).await;
    let gateway = gateway(upstream.address, &["--timeout=1", "--default-ttl=60"]).await;
    let answer = ask(gateway.address, GET).await;
    assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("content-type: text/plain"), "{answer}");
}

#[tokio::test]
async fn a_response_that_breaks_off_is_not_made_whole() {
    let upstream =
        Upstream::answering("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 9\r\n\r\nhalf").await;
    let gateway = gateway(upstream.address, &[]).await;
    for requests in 1..=2 {
        let answer = ask(gateway.address, GET).await;
        assert!(answer.contains("content-length: 9\r\n") || answer.contains("Content-Length: 9\r\n"), "{answer}");
        assert!(answer.ends_with("half"), "{answer}");
        assert_eq!(upstream.requests(), requests);
    }
}

#[tokio::test]
async fn a_response_in_progress_ends_before_the_gateway_does() {
    let upstream = Upstream::answering_in_parts(["HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", "world"]).await;
    let gateway = gateway(upstream.address, &[]).await;
    let mut idle = TcpStream::connect(gateway.address).await.unwrap();
    let mut client = TcpStream::connect(gateway.address).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
    until(&mut client, "hello").await;
    gateway.shutdown.send(()).unwrap();
    // The idle connection is closed at once, and then nobody listens any more.
    assert_eq!(rest(&mut idle).await, "");
    assert!(TcpStream::connect(gateway.address).await.is_err());
    assert!(!gateway.ended.is_finished());
    upstream.go_on.notify_one();
    assert_eq!(rest(&mut client).await, "world");
    timeout(PATIENCE, gateway.ended).await.expect("the gateway ends").unwrap();
}

#[tokio::test]
async fn http_2_with_prior_knowledge_becomes_http_1() {
    let upstream = Upstream::answering("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody").await;
    let gateway = gateway(upstream.address, &[]).await;
    let stream = TokioIo::new(TcpStream::connect(gateway.address).await.unwrap());
    let (mut client, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder().uri("http://shop/page").body(Empty::<bytes::Bytes>::new()).unwrap();
    for pair in ["a=1", "b=2"] {
        request.headers_mut().append(COOKIE, HeaderValue::from_static(pair));
    }
    let response = client.send_request(request).await.unwrap();
    assert_eq!(response.headers()["via"], "1.1 larder");
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "body");
    let request = upstream.received();
    assert!(request.starts_with("GET /page HTTP/1.1\r\n") && request.contains("host: shop\r\n"), "{request}");
    assert!(request.contains("cookie: a=1; b=2\r\n") && request.contains("via: 2 larder\r\n"), "{request}");
}

#[tokio::test]
async fn prometheus_reads_how_requests_ended() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let page = listener.local_addr().unwrap();
    tokio::spawn(gateway::metrics::serve(listener, gateway::metrics::install().unwrap()));
    let upstream =
        Upstream::answering("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 0\r\n\r\n").await;
    let gateway = gateway(upstream.address, &[]).await;
    for _ in 0..2 {
        ask(gateway.address, GET).await;
    }
    let page = ask(page, "GET /metrics HTTP/1.1\r\nHost: metrics\r\nConnection: close\r\n\r\n").await;
    let line = |start: &str, label: &str| {
        page.lines().any(|line| line.starts_with(start) && line.contains(label) && !line.ends_with(" 0"))
    };
    assert!(line("larder_requests_total{", "result=\"hit\""), "{page}");
    assert!(line("larder_requests_total{", "result=\"miss\""), "{page}");
    assert!(line("larder_fetch_duration", "le=\"+Inf\""), "{page}");
}

fn purge(fields: &str) -> String {
    format!("PURGE /page HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n{fields}\r\n")
}

#[tokio::test]
async fn who_knows_the_token_purges_by_url_and_by_tag() {
    const PAGE: &str = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60, stale-while-revalidate=60\r\nSurrogate-Key: a b\r\nContent-Length: 4\r\n\r\nbody";
    let token = "Authorization: Bearer 0123456789abcdef\r\n";
    let server = RedisServer::start();
    let url = server.url();
    for options in [&[][..], &["--redis", &url], &["--redis", &url, "--near", "1000000"]] {
        let options = [&["--admin-token", "0123456789abcdef"], options].concat();
        let upstream = Upstream::answering(PAGE).await;
        let gateway = gateway(upstream.address, &options).await;
        let verdict = async || {
            let answer = ask(gateway.address, GET).await;
            answer.lines().find_map(|line| line.strip_prefix("x-cache: ")).unwrap_or_default().to_owned()
        };
        let stored = async || {
            verdict().await;
            while verdict().await != "HIT" {
                tokio::task::yield_now().await;
            }
        };
        for (fields, resources, tags, expected) in [
            ("", 1, 0, "MISS"),
            ("Surrogate-Key: a\r\n", 0, 1, "MISS"),
            ("Surrogate-Key: x b\r\n", 0, 2, "MISS"),
            ("Surrogate-Key: x\r\n", 0, 1, "HIT"),
            ("Soft-Purge: 1\r\n", 1, 0, "STALE"),
            ("Soft-Purge: 1\r\nSurrogate-Key: a\r\n", 0, 1, "STALE"),
            ("Soft-Purge: 0\r\n", 1, 0, "MISS"),
        ] {
            stored().await;
            let answer = ask(gateway.address, &purge(&format!("{token}{fields}"))).await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            assert!(answer.contains("content-type: application/json\r\n"), "{answer}");
            let receipt: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
            assert_eq!(receipt["resources"], resources, "{fields}: {receipt}");
            assert_eq!(receipt["tags"], tags, "{fields}: {receipt}");
            assert_eq!((&receipt["store"], &receipt["local"]), (&"done".into(), &"done".into()));
            assert_eq!(receipt["id"].is_string(), options.len() > 2, "{receipt}");
            assert_eq!(verdict().await, expected, "{fields}");
        }
        assert!(!upstream.received().contains("PURGE"), "it is not for the upstream");
    }
}

#[tokio::test]
async fn who_does_not_know_the_token_purges_nothing() {
    const PAGE: &str = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 4\r\n\r\nbody";
    let wrong = [
        "",
        "Authorization: Bearer \r\n",
        "Authorization: Bearer 0123456789abcdeX\r\n",
        "Authorization: Bearer 0123456789abcdef0\r\n",
        "Authorization: Basic 0123456789abcdef\r\n",
        "Authorization: 0123456789abcdef\r\n",
        "X-Admin-Token: 0123456789abcdef\r\n",
        "Authorization: Bearer no\r\nAuthorization: Bearer 0123456789abcdef\r\n",
    ];
    let right = ["Authorization: Bearer 0123456789abcdef\r\n"];
    for (options, tries, expected) in [
        (&["--admin-token", "0123456789abcdef"][..], &wrong[..], "HTTP/1.1 401 "),
        (&[], &right, "HTTP/1.1 405 "),
        (&[], &wrong, "HTTP/1.1 405 "),
    ] {
        let upstream = Upstream::answering(PAGE).await;
        let gateway = gateway(upstream.address, options).await;
        ask(gateway.address, GET).await;
        for fields in tries {
            let answer = ask(gateway.address, &purge(fields)).await;
            assert!(answer.starts_with(expected), "{fields}: {answer}");
            assert!(ask(gateway.address, GET).await.contains("x-cache: HIT\r\n"), "{fields}");
        }
        assert_eq!(upstream.requests(), 1);
    }
}

/// The gateway as a process of its own, and where it is.
fn started(upstream: SocketAddr, options: &[&str]) -> (Process, SocketAddr) {
    let upstream = format!("--upstream=http://{upstream}");
    let mut process = Process::start(command().args(["--listen", "127.0.0.1:0", &upstream]).args(options));
    let address = printed_address(&process.printed(", storing in "), "gateway: http://");
    (process, address)
}

/// The address that is printed behind `before`.
fn printed_address(printed: &str, before: &str) -> SocketAddr {
    printed.split_once(before).unwrap().1.split([' ', '/']).next().unwrap().parse().unwrap()
}

fn command() -> Command {
    let mut command = Command::new(program("gateway"));
    // What is set where the tests run is not meant for it.
    command.env_remove("GATEWAY_ADMIN_TOKEN").env_remove("RUST_LOG");
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_answers_and_tells_prometheus_how() {
    const PAGE: &str = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 4\r\n\r\nbody";
    let upstream = Upstream::answering(PAGE).await;
    let (process, address) = started(upstream.address, &["--metrics", "127.0.0.1:0"]);
    for (x_cache, requests) in [("MISS", 1), ("HIT", 1), ("HIT", 1)] {
        let answer = ask(address, GET).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nbody"), "{answer}");
        assert!(answer.contains(&format!("x-cache: {x_cache}\r\n")), "{answer}");
        assert_eq!(upstream.requests(), requests);
    }
    let page = printed_address(&process.stdout(), "metrics: http://");
    let page = ask(page, "GET /metrics HTTP/1.1\r\nHost: metrics\r\nConnection: close\r\n\r\n").await;
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n"), "{page}");
    assert!(page.contains("content-type: text/plain; version=0.0.4\r\n"), "{page}");
    assert!(page.contains("# TYPE larder_requests_total counter\n"), "{page}");
    for (result, count) in [("hit", " 2"), ("miss", " 1")] {
        let mut lines = page.lines().filter(|line| line.starts_with("larder_requests_total{"));
        let label = format!("result=\"{result}\"");
        assert!(lines.any(|line| line.contains(&label) && line.ends_with(count)), "{result}: {page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_the_program_once_the_response_on_its_way_has_arrived_whole() {
    const PARTS: [&str; 3] =
        ["HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 15\r\n\r\nfirst", "after", "last!"];
    for signal in ["TERM", "INT"] {
        let upstream = Upstream::answering_in_parts(PARTS).await;
        let (mut process, address) = started(upstream.address, &[]);
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
        let head = until(&mut client, "first").await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        process.signal(signal);
        let refused = async { while TcpStream::connect(address).await.is_ok() {} };
        timeout(PATIENCE, refused).await.expect("new connections are refused");
        upstream.go_on.notify_one();
        assert_eq!(until(&mut client, "after").await, "after");
        assert!(process.is_running(), "it waits for the response");
        upstream.go_on.notify_one();
        assert_eq!(rest(&mut client).await, "last!");
        let status = process.wait();
        assert!(status.success(), "{signal}: {status}: {}", process.stderr());
    }
}

#[test]
fn a_flag_that_cannot_work_is_named_in_the_error() {
    let right = "http://127.0.0.1:1";
    let cases: [(&str, &[&str]); 9] = [
        ("--upstream", &["--upstream", "nonsense"]),
        ("--upstream", &[]),
        ("--redis", &["--upstream", right, "--redis", "nonsense://"]),
        ("--redis", &["--upstream", right, "--redis", "127.0.0.1:6379"]),
        ("--listen", &["--upstream", right, "--listen", "nonsense"]),
        ("--metrics", &["--upstream", right, "--metrics", "nonsense"]),
        ("--timeout", &["--upstream", right, "--timeout", "0"]),
        ("--admin-token", &["--upstream", right, "--admin-token", "short"]),
        ("--redis", &["--upstream", right, "--near", "1000"]),
    ];
    for (flag, arguments) in cases {
        let free = if flag == "--listen" { &[][..] } else { &["--listen", "127.0.0.1:0"] };
        let mut process = Process::start(command().args(free).args(arguments));
        let (status, stderr) = (process.wait(), process.stderr());
        assert!(!status.success() && status.code().is_some(), "{arguments:?}: {status}");
        assert!(stderr.contains(flag), "{arguments:?}: {stderr}");
        assert!(!stderr.contains("panicked"), "{arguments:?}: {stderr}");
    }
}
