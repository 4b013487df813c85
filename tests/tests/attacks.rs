//! Published attacks on response caches, against the gateway example over sockets.
//!
//! Each test is named after its case. An attacker's request goes first, then a victim's plain one, which must never get
//! what the first made the upstream produce.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use clap::Parser;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{sleep, timeout},
};

const PATIENCE: Duration = Duration::from_secs(10);
const FRESH: &str = "Cache-Control: max-age=60\r\n";
const OLD: &str = "Last-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\n";
const VICTIM: &str = "GET /page HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n";

/// A server that answers each request, given its text and how many came so far, with whatever bytes a test likes.
struct Upstream {
    address: SocketAddr,
    requests: watch::Receiver<Vec<String>>,
    open: watch::Sender<bool>,
}

type Answer = dyn Fn(&str, usize) -> String + Send + Sync;

impl Upstream {
    async fn answering(answer: impl Fn(&str, usize) -> String + Send + Sync + 'static) -> Self {
        Self::start(Arc::new(answer), true).await
    }

    /// Receives requests, and answers none until it is released.
    async fn holding(answer: impl Fn(&str, usize) -> String + Send + Sync + 'static) -> Self {
        Self::start(Arc::new(answer), false).await
    }

    async fn start(answer: Arc<Answer>, open: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (log, open) = (watch::Sender::<Vec<String>>::default(), watch::Sender::new(open));
        let upstream = Self { address: listener.local_addr().unwrap(), requests: log.subscribe(), open: open.clone() };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer_one(stream, log.clone(), open.subscribe(), answer.clone()));
            }
        });
        upstream
    }

    fn count(&self) -> usize {
        self.requests.borrow().len()
    }

    async fn has_received(&self, count: usize) {
        let mut requests = self.requests.clone();
        let arrived = timeout(PATIENCE, requests.wait_for(|requests| requests.len() >= count)).await;
        assert!(arrived.is_ok(), "the upstream never received request {count}");
    }

    fn release(&self) {
        self.open.send_replace(true);
    }
}

async fn answer_one(
    mut stream: TcpStream,
    log: watch::Sender<Vec<String>>,
    mut open: watch::Receiver<bool>,
    answer: Arc<Answer>,
) -> std::io::Result<()> {
    let (mut request, mut buffer) = (String::new(), vec![0; 65536]);
    while !is_whole(&request) {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        request.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    log.send_modify(|log| log.push(request.clone()));
    let number = log.borrow().len();
    drop(open.wait_for(|open| *open).await);
    stream.write_all(answer(&request, number).as_bytes()).await
}

fn is_whole(request: &str) -> bool {
    let Some((head, body)) = request.split_once("\r\n\r\n") else { return false };
    let chunked = field(head, "transfer-encoding").is_some();
    let length = field(head, "content-length").map_or(0, |length| length.parse().unwrap());
    if chunked { body.ends_with("0\r\n\r\n") } else { body.len() >= length }
}

/// The value of the first field with that name.
fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let head = head.split_once("\r\n\r\n").map_or(head, |(head, _)| head);
    let lines = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    lines.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).next()
}

fn target(request: &str) -> &str {
    request.split(' ').nth(1).unwrap_or_default()
}

fn body(message: &str) -> &str {
    message.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

fn response(status: &str, fields: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{fields}Content-Length: {}\r\n\r\n{body}", body.len())
}

fn fresh(body: &str) -> String {
    response("200 OK", FRESH, body)
}

fn get(target: &str, host: &str, fields: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n{fields}Connection: close\r\n\r\n")
}

async fn gateway(upstream: &Upstream, options: &[&str]) -> SocketAddr {
    let upstream = format!("--upstream=http://{}", upstream.address);
    let options = gateway::Options::parse_from([&["gateway", &upstream], options].concat());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { gateway::run(&options, listener, std::future::pending()).await });
    address
}

async fn send(address: SocketAddr, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // A gateway that refuses need not read to the end.
    drop(stream.write_all(request.as_bytes()).await);
    stream
}

/// What the gateway sends until it closes, which it must.
async fn receive(mut stream: TcpStream) -> String {
    let mut response = Vec::new();
    let closed = timeout(PATIENCE, stream.read_to_end(&mut response)).await;
    let response = String::from_utf8_lossy(&response).into_owned();
    assert!(closed.is_ok(), "the connection stays open after {response:?}");
    response
}

async fn ask(address: SocketAddr, request: &str) -> String {
    receive(send(address, request).await).await
}

/// Followers are seen by nobody while they wait for another's fetch, so this gives them a moment to arrive.
async fn a_moment() {
    sleep(Duration::from_millis(50)).await;
}

fn is_hit(answer: &str) -> bool {
    field(answer, "x-cache") == Some("HIT")
}

/// What the victim gets from a gateway of its own after the attack.
async fn after(
    attack: &str,
    victim: &str,
    answer: impl Fn(&str, usize) -> String + Send + Sync + 'static,
) -> (String, String) {
    let gateway = gateway(&Upstream::answering(answer).await, &[]).await;
    (ask(gateway, attack).await, ask(gateway, victim).await)
}

/// Without reuse of a plain fresh page, every other result is empty.
#[tokio::test]
async fn control_hit() {
    let upstream = Upstream::answering(|_, number| fresh(&format!("number {number}"))).await;
    let gateway = gateway(&upstream, &[]).await;
    assert!(!is_hit(&ask(gateway, VICTIM).await));
    let second = ask(gateway, VICTIM).await;
    assert!(is_hit(&second) && body(&second) == "number 1", "{second}");
    assert_eq!(upstream.count(), 1);
}

/// Two sites share a path, and the page of one is given for that of the other.
#[tokio::test]
async fn key_host() {
    for other in ["evil", "shop.", "sho", "shopp", "shop.evil", "evil.shop", "127.0.0.1", "[::1]", "sh%6fp", "xn--shop"]
    {
        let echo = |request: &str, _| fresh(field(request, "host").unwrap_or("nobody"));
        let (attack, answer) = after(&get("/page", other, ""), VICTIM, echo).await;
        assert_eq!(body(&answer), "shop", "{other}: {attack}");
    }
}

/// A port that nobody serves comes back in a redirect, and everybody is sent there.
#[tokio::test]
async fn key_host_port() {
    for host in [
        "shop:1337",
        "shop:81",
        "shop:443",
        "shop:8",
        "shop:0",
        "shop:8080",
        "shop:65535",
        "shop:65536",
        "shop:99999",
        "shop:180",
        "shop:800",
        "shop:x",
        "shop:-80",
        "shop:+80",
        "shop:80:81",
        "shop:80x",
        "shop: 81",
        "shop :81",
        "user@shop",
        "user:1337@shop",
        "shop@evil",
        "shop:80@evil",
        "shop#evil",
        "shop/evil",
        "shop?evil",
        "shop\\evil",
        "shop evil",
        "shop,evil",
        "evil, shop",
        "shop;evil",
        "shop\tevil",
        "shop\"evil",
        "shop%00evil",
        "shop%3a1337",
        "[shop]:1337",
    ] {
        let redirect = |request: &str, _| {
            let host = field(request, "host").unwrap_or("nobody");
            response("302 Found", &format!("{FRESH}Location: http://{host}/login\r\n"), "")
        };
        let (attack, answer) = after(&get("/page", host, ""), VICTIM, redirect).await;
        assert_eq!(field(&answer, "location"), Some("http://shop/login"), "{host}: {attack}\n{answer}");
    }
}

/// The target names one site and the Host another, and the cache believes one where the application believes the other.
#[tokio::test]
async fn key_absolute_form() {
    for (target, hosts) in [
        ("http://evil/page", "Host: shop\r\n"),
        ("http://shop/page", "Host: evil\r\n"),
        ("http://shop/page", "Host: shop\r\nHost: evil\r\n"),
        ("http://shop/page", ""),
        ("http://evil/page", ""),
        ("HTTP://evil/page", "Host: shop\r\n"),
        ("https://evil/page", "Host: shop\r\n"),
        ("ftp://evil/page", "Host: shop\r\n"),
        ("http://evil:1/page", "Host: shop\r\n"),
        ("http://shop:1/page", "Host: shop\r\n"),
        ("http://shop@evil/page", "Host: shop\r\n"),
        ("http://evil@shop/page", "Host: shop\r\n"),
        ("http://evil#@shop/page", "Host: shop\r\n"),
        ("http://evil?@shop/page", "Host: shop\r\n"),
        ("http://evil\\@shop/page", "Host: shop\r\n"),
        ("http:///page", "Host: shop\r\n"),
        ("http:/page", "Host: shop\r\n"),
        ("http:page", "Host: shop\r\n"),
        ("//evil/page", "Host: shop\r\n"),
        ("@evil/page", "Host: shop\r\n"),
        ("evil/page", "Host: shop\r\n"),
        ("evil", "Host: shop\r\n"),
        ("shop/page", "Host: shop\r\n"),
        ("http://evil", "Host: shop\r\n"),
        ("http://evil/http://shop/page", "Host: shop\r\n"),
        ("/http://shop/page", "Host: shop\r\n"),
    ] {
        let echo = |request: &str, _| {
            fresh(&format!("{} at {}", self::target(request), field(request, "host").unwrap_or("nobody")))
        };
        let attack = format!("GET {target} HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n");
        let (attack, answer) = after(&attack, VICTIM, echo).await;
        assert_eq!(body(&answer), "/page at shop", "{target} {hosts:?}: {attack}");
    }
}

/// Asks for every target at one host, after all others, and at a host of its own: the upstream must have seen the same.
async fn told_apart(targets: &[&str]) {
    let upstream = Upstream::answering(|request, _| fresh(&format!("<{}>", target(request)))).await;
    let gateway = gateway(&upstream, &[]).await;
    for round in 0..2 {
        for (index, target) in targets.iter().enumerate() {
            let alone = ask(gateway, &get(target, &format!("alone-{index}"), "")).await;
            let shared = ask(gateway, &get(target, "shop", "")).await;
            assert_eq!(body(&shared), body(&alone), "{target:?} in round {round}");
        }
    }
}

/// The application tells two spellings of a path apart, and the cache does not.
#[tokio::test]
async fn key_path_forms() {
    told_apart(&[
        "/page",
        "/page/",
        "/page//",
        "//page",
        "///page",
        "/./page",
        "/page/.",
        "/../page",
        "/x/../page",
        "/page/x/..",
        "/page/..",
        "/page/../",
        "/Page",
        "/PAGE",
        "/%70age",
        "/%50age",
        "/p%61ge",
        "/pag%65",
        "/page%2f",
        "/page%2F",
        "/%2fpage",
        "/%2Fpage",
        "%2fpage",
        "/page%00",
        "/page%00.css",
        "/page%20",
        "/page%09",
        "/page%0a",
        "/page%0A",
        "/page%0d%0a",
        "/page;",
        "/page;x",
        "/page;x=1",
        "/page%3b",
        "/page%3B",
        "/page.",
        "/page.css",
        "/page%2ecss",
        "/page/.css",
        "/page/x.css",
        "/page%2fx.css",
        "/page%23",
        "/page%23x",
        "/page%3f",
        "/page%3F",
        "/page%3fa=1",
        "/page?",
        "/page?a=1",
        "/page%5c",
        "/page%5C",
        "/page\\",
        "/\\page",
        "/x\\..\\page",
        "/x%5c..%5cpage",
        "/x%2f..%2fpage",
        "/x/%2e%2e/page",
        "/x/%2E%2E/page",
        "/x/.%2e/page",
        "/x/..;/page",
        "/%2e/page",
        "/%2e%2e/page",
        "/page%25",
        "/page%2525",
        "/page%2500",
        "/page%252f",
        "/page%",
        "/page%2",
        "/page%zz",
        "/page%u002f",
        "/page%ff",
        "/page%FF",
        "/page%c3%a9",
        "/page%C3%A9",
        "/page\u{e9}",
        "/pag\u{ff45}",
        "/page|x",
        "/page{x}",
        "/page<x>",
        "/page^x",
        "/page`x",
        "/page\"x",
        "/page~",
        "/page%7e",
        "/page%7E",
        "/page+",
        "/page%2b",
        "/page!",
        "/page%21",
        "/page*",
        "/page,",
        "/page'",
        "/page:80",
        "/page@x",
        "/page&a=1",
        "/page=1",
        "/page$",
        "/page#",
        "/page#x",
        "/page\t",
        "/",
        "/?",
        "//",
        "/.",
        "/..",
        "/%",
        "/%2f",
        "*",
        "/*",
        "/shop/page",
    ])
    .await;
}

/// The application tells two query strings apart, and the cache sorts, cuts, decodes or drops parameters.
#[tokio::test]
async fn key_query_forms() {
    told_apart(&[
        "/page",
        "/page?",
        "/page??",
        "/page?&",
        "/page?&&",
        "/page?a",
        "/page?a=",
        "/page?a=1",
        "/page?a=1&",
        "/page?a=1&&",
        "/page?&a=1",
        "/page?a=1&b=2",
        "/page?b=2&a=1",
        "/page?a=1;b=2",
        "/page?a=1&amp;b=2",
        "/page?a=1&a=2",
        "/page?a=2&a=1",
        "/page?a=1,2",
        "/page?a=%31",
        "/page?%61=1",
        "/page?A=1",
        "/page?a[]=1",
        "/page?a%5b%5d=1",
        "/page?a%5B%5D=1",
        "/page?a=1?b=2",
        "/page?a=1%26b=2",
        "/page?a=1%3bb=2",
        "/page?a=1%23",
        "/page?a=1#",
        "/page?a=1#b",
        "/page?#a=1",
        "/page?a=+",
        "/page?a=%20",
        "/page?a=%2b",
        "/page?a=%2B",
        "/page?a=1%00",
        "/page?a=1%0d%0a",
        "/page?a=\u{e9}",
        "/page?a=%c3%a9",
        "/page?a=%C3%A9",
        "/page?utm_source=x",
        "/page?utm_content=1",
        "/page?utm_content=x;a=2",
        "/page?utm_content=x%26a=2",
        "/page?a=1&utm_source=x",
        "/page?a=1&utm_source=x;a=2",
        "/page?fbclid=1",
        "/page?gclid=1",
        "/page?_=1",
        "/page?cb=1",
        "/page?callback=x",
        "/page?callback=y",
        "/page?jsessionid=1",
        "/page?sid=1",
        "/page?v=1",
        "/page?__proto__=1",
        "/page?_method=POST",
        "/page?=",
        "/page?==",
        "/page?=1",
        "/page?a==1",
        "/page?a=1=",
        "/page?/",
        "/page?.",
        "/page?../x",
        "/page?a=../x",
        "/page?a=/./x",
        "/page?a=//x",
        "/page?%",
        "/page?%2",
        "/page?%zz",
        "/page?a|b",
        "/page?{a}",
        "/page?\"a\"",
        "/page?'a'",
        "/page?a\\b",
        "/page?a^b",
        "/page?a`b",
        "/page?<a>",
        "/page?*",
        "/page?a=1:",
        "/page?a=1@shop",
        "/page?a=1%20",
        "/page?%3fa=1",
        "/page?%3Fa=1",
        "/page?%26",
        "/page?%3d",
        "/page?a%3d1",
        "/page?a%3D1",
    ])
    .await;
}

/// A varying header's value holds the separator of the key, so that two different pairs of values make the same key.
#[tokio::test]
async fn key_vary_delimiter() {
    let lines = |a: &str, b: &str| format!("X-A: {a}\r\nX-B: {b}\r\n");
    let mut pairs = vec![
        (String::new(), "X-A: \r\n".to_owned()),
        ("X-A: \r\n".to_owned(), String::new()),
        ("X-A: 1\r\n".to_owned(), "X-B: 1\r\n".to_owned()),
        ("X-A: \r\nX-B: 1\r\n".to_owned(), "X-B: 1\r\n".to_owned()),
        ("X-A: a\r\nX-A: b\r\n".to_owned(), "X-A: ab\r\n".to_owned()),
        ("X-A: a\r\nX-A: b\r\n".to_owned(), "X-A: b\r\nX-A: a\r\n".to_owned()),
        ("X-A: a\r\nX-A: a\r\n".to_owned(), "X-A: a\r\n".to_owned()),
        ("X-A: 1\r\nX-A: 2\r\nX-B: 3\r\n".to_owned(), "X-A: 1\r\nX-B: 2\r\nX-B: 3\r\n".to_owned()),
        (lines("A", "b"), lines("a", "b")),
        (lines("a", "b"), lines("b", "a")),
        (lines("\u{e9}", "b"), lines("\u{ea}", "b")),
        (lines("", "a"), lines("a", "")),
        (lines("ab", "c"), lines("a", "bc")),
    ];
    for mark in [
        ",",
        ", ",
        ";",
        ":",
        ": ",
        "|",
        "||",
        "&",
        "=",
        "\t",
        " ",
        "\"",
        "'",
        "\\",
        "/",
        "-",
        "--",
        "_",
        "__",
        "#",
        "@",
        "$",
        "%",
        "%00",
        "%0a",
        "%0d%0a",
        "\\n",
        "\\0",
        "\\r\\n",
        "{",
        "}",
        "[",
        "]",
        "(",
        ")",
        "<",
        ">",
        "~",
        "^",
        "+",
        "*",
        "!",
        "\u{a0}",
        "\u{2028}",
        "\u{ff}",
        "x-b:",
        "x-b: ",
        "x-b=",
        ",x-b=",
        "&x-b=",
        "\";x-b=\"",
        "|x-b:",
        ";x-b:",
        "\\nx-b: ",
    ] {
        pairs.push((lines(&format!("a{mark}b"), "c"), lines("a", &format!("b{mark}c"))));
        pairs.push((format!("X-A: a{mark}b\r\n"), lines("a", "b")));
        pairs.push((lines("a", "b"), format!("X-A: a{mark}b\r\n")));
        pairs.push((format!("X-A: a{mark}\r\n"), lines("a", "")));
        pairs.push((format!("X-B: {mark}b\r\n"), lines("", "b")));
    }
    let upstream = Upstream::answering(|request, _| {
        let own = |line: &&str| line.to_ascii_lowercase().starts_with("x-") && !line.contains("Cache");
        let seen = request.split("\r\n").filter(own).map(|line| format!("{line}|")).collect::<String>();
        response("200 OK", &format!("{FRESH}Vary: X-A, X-B\r\n"), &seen.to_lowercase().replace("x-forwarded", "!"))
    })
    .await;
    let gateway = gateway(&upstream, &[]).await;
    for (index, (attack, victim)) in pairs.into_iter().enumerate() {
        let path = format!("/{index}");
        let poison = ask(gateway, &get(&path, "shop", &attack)).await;
        assert!(poison.starts_with("HTTP/1.1 200"), "{attack:?}: {poison}");
        let answer = ask(gateway, &get(&path, "shop", &victim)).await;
        assert!(!is_hit(&answer), "{attack:?} answers {victim:?}: {answer}");
        // The second request of the same kind may be, and must be, a hit on its own.
        let again = ask(gateway, &get(&path, "shop", &victim)).await;
        assert!(is_hit(&again) && body(&again) == body(&answer), "{victim:?}: {again}");
    }
}

/// An answer that varies by everything is given to another.
#[tokio::test]
async fn vary_star() {
    for fields in [
        "Vary: *",
        "vary: *",
        "VARY: *",
        "Vary:*",
        "Vary:  *  ",
        "Vary:\t*\t",
        "Vary: *, Accept",
        "Vary: Accept, *",
        "Vary: Accept,*",
        "Vary: *,Accept",
        "Vary: ,*",
        "Vary: *,",
        "Vary: , ,*, ,",
        "Vary: *, *",
        "Vary: Accept\t,\t*\t,",
        "Vary: Accept\r\nVary: *",
        "Vary: *\r\nVary: Accept",
        "Vary: *\r\nVary: *",
        "Vary: \r\nVary: *",
        "Vary: Accept, Cookie, *, X-A",
        "Vary: Accept,\r\n *",
        "Vary: a\r\nX: y\r\nvAry: b, *",
        "Vary : *",
        "Vary: * Accept",
        "Vary: *;q=1",
        "Vary: Accept\r\nVary: a, b\r\nVary: c,*",
    ] {
        let fields = format!("{FRESH}{fields}\r\n");
        let counted = move |_: &str, number| response("200 OK", &fields, &format!("number {number}"));
        let named = fields_of(&counted("", 0));
        let (_, answer) = after(VICTIM, VICTIM, counted).await;
        assert!(!is_hit(&answer) && body(&answer) != "number 1", "{named}: {answer}");
    }
}

fn fields_of(message: &str) -> String {
    format!("{:?}", message.split_once("\r\n\r\n").map_or(message, |(head, _)| head))
}

/// The bodiless answer to HEAD is stored and given to GET.
#[tokio::test]
async fn method_head() {
    for length in ["Content-Length: 4\r\n", "Content-Length: 0\r\n", "Transfer-Encoding: chunked\r\n", ""] {
        let answer = move |request: &str, _| {
            if request.starts_with("HEAD ") { format!("HTTP/1.1 200 OK\r\n{FRESH}{length}\r\n") } else { fresh("body") }
        };
        let (head, answer) = after(&VICTIM.replace("GET", "HEAD"), VICTIM, answer).await;
        assert!(head.starts_with("HTTP/1.1 200") && body(&head).is_empty(), "{head}");
        assert!(answer.starts_with("HTTP/1.1 200") && body(&answer) == "body", "{length:?}: {answer}");
    }
}

/// The answer to another method is stored and given to GET.
#[tokio::test]
async fn method_other() {
    for method in [
        "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get", "Get", "gET", "head", "GETS", "GE", "XGET",
        "PURGE", "BREW", "PROPFIND", "SEARCH", "QUERY", "REPORT", "LINK", "M-SEARCH", "PRI", "CONNECT", "G", "!",
        "GET\t", "GET|", "GET'",
    ] {
        for body_fields in ["", "Content-Length: 4\r\n", "Transfer-Encoding: chunked\r\n"] {
            let content = match body_fields {
                "" => "",
                "Content-Length: 4\r\n" => "evil",
                _ => "4\r\nevil\r\n0\r\n\r\n",
            };
            let fields = format!("{body_fields}Connection");
            let attack = VICTIM.replacen("GET", method, 1).replace("Connection", &fields) + content;
            let echo = |request: &str, _| fresh(request.split(' ').next().unwrap_or_default());
            let (attack, answer) = after(&attack, VICTIM, echo).await;
            assert_eq!(body(&answer), "GET", "{method} {body_fields:?}: {attack}");
        }
    }
}

/// A page for one user, however the application says so, is given to another.
#[tokio::test]
async fn private_spellings() {
    for value in [
        "private",
        "'private', max-age=60",
        "private, max-age=60",
        "max-age=60, private",
        "PRIVATE, max-age=60",
        "Private, Max-Age=60",
        "pRiVaTe,max-age=60",
        "private,max-age=60",
        "max-age=60,private",
        "max-age=60 ,\tprivate\t",
        ", ,private, ,max-age=60,",
        "s-maxage=60, private",
        "public, private, max-age=60",
        "private, public, s-maxage=60",
        "private=\"\", max-age=60",
        "private=, max-age=60",
        "private=1, max-age=60",
        "private=x-user, max-age=60",
        "private=\"x-user\", max-age=60",
        "PRIVATE=\"X-User\", max-age=60",
        "private=\"x-user, max-age=60",
        "max-age=60, private=\"x-user",
        "private = \"x-user\", max-age=60",
        "max-age=60; private",
        "private; max-age=60",
        "private;max-age=60",
        "max-age=60 private",
        "private max-age=60",
        "\"private\", max-age=60",
        "max-age=60, \"private\"",
        "\"max-age=60, private\"",
        "max-age=60, x=\"a, private",
        "max-age=60, x=\"a\\\", private",
        "x=\"a\\\", max-age=60, private",
        "max-age=60, x=\"a\"b, private",
        "max-age=60\", private",
        "max-age=\"60\", private",
        "max-age=\"60, private",
        "immutable, private, max-age=60",
        "stale-while-revalidate=60, private",
        "must-revalidate, private, max-age=60",
        "private, private, max-age=60",
        "no-store",
        "no-store, max-age=60",
        "max-age=60, no-store",
        "NO-STORE, max-age=60",
        "No-Store,max-age=60",
        "public, max-age=60, no-store",
        "no-store=1, max-age=60",
        "no-store=\"\", max-age=60",
        "no-store=, max-age=60",
        "no-store; max-age=60",
        "max-age=60; no-store",
        "max-age=60 no-store",
        "no-store, s-maxage=60, public, immutable",
        "max-age=60, \"no-store\"",
        "max-age=60, x=\", no-store",
        "no-cache",
        "no-cache, max-age=60",
        "max-age=60, no-cache",
        "NO-CACHE, max-age=60",
        "no-cache, s-maxage=60, public",
        "no-cache=1, max-age=60",
        "no-cache=\"\", max-age=60",
        "no-cache=\"x-user\", max-age=60",
        "no-cache=x-user, max-age=60",
        "no-cache=\"x-user, max-age=60",
        "no-cache; max-age=60",
        "max-age=60; no-cache",
        "max-age=60 no-cache",
        "max-age=60\r\nCache-Control: private",
        "private\r\nCache-Control: max-age=60",
        "max-age=60\r\ncache-control: PRIVATE",
        "public, max-age=60\r\nCache-Control: no-store",
        "max-age=60\r\nX-Between: 1\r\nCACHE-CONTROL: no-cache",
        "max-age=60\r\nCache-Control:private",
        "\r\nCache-Control: private",
        "max-age=60, x=\"\r\nCache-Control: private",
        "max-age=60,\r\n private",
        "max-age=60\r\nCache-Control : private",
        "max-age=0",
        "max-age=0, s-maxage=0",
        "s-maxage=0, max-age=60",
        "max-age=-1",
        "max-age=x",
        "max-age=",
        "max-age",
        "max-age=1e9x",
        "max-age=\"0\"",
        "s-maxage=\"0\", max-age=60",
        "S-MAXAGE=0, max-age=60",
        "s-maxage=x, max-age=60",
        "public, max-age=0",
        "x\r\nExpires: 0",
        "x\r\nExpires: -1",
        "x\r\nExpires: Thu, 01 Jan 1970 00:00:00 GMT",
        "x\r\nExpires: ",
        "x\r\nExpires: never",
    ] {
        let personal = move |_: &str, number| {
            let fields = format!("Cache-Control: {value}\r\nX-User: {number}\r\n{OLD}");
            response("200 OK", &fields, &format!("number {number}"))
        };
        let (first, answer) = after(VICTIM, VICTIM, personal).await;
        // One field alone may be private: then the rest may be reused, and the field not.
        let one_field = ["private=x-user,", "private=\"x-user\",", "no-cache=x-user,", "no-cache=\"x-user\","]
            .iter()
            .any(|start| value.to_lowercase().starts_with(start));
        let leaks = is_hit(&answer) && (field(&answer, "x-user").is_some() || !one_field);
        assert!(!leaks, "{value:?}: {first}\n{answer}");
    }
}

/// A page that needed credentials is given to those who have none, or others.
#[tokio::test]
async fn authorization() {
    for own in
        ["Authorization: Basic YTpi\r\n", "authorization: Bearer a\r\n", "AUTHORIZATION: x\r\n", "Authorization:\r\n"]
    {
        for other in ["", "Authorization: Basic Yjpj\r\n", own] {
            for directive in ["max-age=60", "max-age=60, immutable", "max-age=60, stale-while-revalidate=60"] {
                let echo = move |_: &str, number| {
                    response("200 OK", &format!("Cache-Control: {directive}\r\n"), &format!("number {number}"))
                };
                let (_, answer) = after(&get("/page", "shop", own), &get("/page", "shop", other), echo).await;
                assert_eq!(body(&answer), "number 2", "{own:?} {other:?} {directive}: {answer}");
            }
        }
    }
}

/// An answer that opens a session is given to everybody.
#[tokio::test]
async fn set_cookie() {
    for name in ["Set-Cookie", "set-cookie", "SET-COOKIE"] {
        for cookie in ["session=1", "session=1; Path=/; HttpOnly", ""] {
            for directive in ["max-age=60", "public, max-age=60", "s-maxage=60"] {
                let session = move |_: &str, number| {
                    let fields = format!("Cache-Control: {directive}\r\n{name}: {cookie}\r\n");
                    response("200 OK", &fields, &format!("number {number}"))
                };
                let (_, answer) = after(VICTIM, VICTIM, session).await;
                assert!(!is_hit(&answer) && body(&answer) == "number 2", "{name}: {cookie:?} {directive}: {answer}");
            }
        }
    }
}

const STATIC_LOOKING: [&str; 14] = [
    "/account/x.css",
    "/account/x.js",
    "/account.png",
    "/account;x.css",
    "/account%2fx.css",
    "/account%00.css",
    "/account%0ax.css",
    "/account%23x.css",
    "/account%3fx.css",
    "/static/..%2faccount",
    "/static/../account",
    "/robots.txt",
    "/favicon.ico",
    "/account?x.css",
];

/// A victim is led to a private page under a name that looks static, and the attacker fetches it from the cache.
#[tokio::test]
async fn deception_no_store() {
    for target in STATIC_LOOKING {
        let account = |request: &str, _| {
            let user = field(request, "cookie").unwrap_or("nobody");
            response("200 OK", &format!("Cache-Control: no-store\r\n{OLD}Content-Type: text/css\r\n"), user)
        };
        let lured = get(target, "shop", "Cookie: user=alice\r\n");
        let (_, answer) = after(&lured, &get(target, "shop", ""), account).await;
        assert_eq!(body(&answer), "nobody", "{target}");
    }
}

/// The same page, of which the application says nothing, so that its age would make it fresh.
#[tokio::test]
async fn deception_silent() {
    for credentials in ["Cookie: user=alice\r\n", "cookie: user=alice\r\n", "Authorization: Basic YTpi\r\n"] {
        for (target, other) in
            STATIC_LOOKING.iter().flat_map(|target| [(target, ""), (target, "Cookie: user=mallory\r\n")])
        {
            let account = |request: &str, _| {
                response(
                    "200 OK",
                    OLD,
                    if request.contains("alice") || request.contains("YTpi") { "secret" } else { "login" },
                )
            };
            let (first, answer) = after(&get(target, "shop", credentials), &get(target, "shop", other), account).await;
            assert_eq!(body(&first), "secret");
            assert_eq!(body(&answer), "login", "{target} {credentials:?} {other:?}");
        }
    }
}

/// A part of a page is given for the whole.
#[tokio::test]
async fn range_206() {
    for range in [
        "Range: bytes=0-1\r\n",
        "Range: bytes=0-1\r\nIf-Range: \"e\"\r\n",
        "Range: bytes=0-0,1-1\r\n",
        "Range: x=1\r\n",
        "",
    ] {
        for part in [
            "Content-Range: bytes 0-1/4\r\n",
            "Content-Range: bytes 0-1/4\r\nETag: \"e\"\r\n",
            "Content-Range: bytes 0-1/2\r\n",
            "Content-Range: bytes 0-1/*\r\n",
            "Content-Type: multipart/byteranges; boundary=x\r\n",
            "",
        ] {
            let answer = move |request: &str, number| {
                if field(request, "range").is_some() || (range.is_empty() && number == 1) {
                    response("206 Partial Content", &format!("{FRESH}{part}"), "bo")
                } else {
                    response("200 OK", &format!("{FRESH}ETag: \"e\"\r\n"), "body")
                }
            };
            let (first, answer) = after(&get("/page", "shop", range), VICTIM, answer).await;
            assert!(
                answer.starts_with("HTTP/1.1 200") && body(&answer) == "body",
                "{range:?} {part:?}: {first}\n{answer}"
            );
        }
    }
    // A part is not another part either.
    let answer = |request: &str, _| {
        let first = field(request, "range") == Some("bytes=0-1");
        let (range, part) = if first { ("0-1", "bo") } else { ("2-3", "dy") };
        response("206 Partial Content", &format!("{FRESH}Content-Range: bytes {range}/4\r\n"), part)
    };
    let (part, other) = (get("/page", "shop", "Range: bytes=0-1\r\n"), get("/page", "shop", "Range: bytes=2-3\r\n"));
    let (_, answer) = after(&part, &other, answer).await;
    assert!(answer.starts_with("HTTP/1.1 206") && body(&answer) == "dy", "{answer}");
}

/// A client's own precondition fails or holds on a miss, and the empty answer is given to those who had none.
#[tokio::test]
async fn conditional_304() {
    for precondition in [
        "If-None-Match: \"e\"\r\n",
        "If-None-Match: W/\"e\"\r\n",
        "If-None-Match: *\r\n",
        "If-None-Match: x\r\n",
        "if-none-match: \"e\", \"f\"\r\n",
        "If-None-Match: \"e\"\r\nIf-None-Match: \"f\"\r\n",
        "If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT\r\n",
        "If-Modified-Since: x\r\n",
    ] {
        for fields in [FRESH, "Cache-Control: max-age=60\r\nETag: \"e\"\r\n", OLD] {
            let answer = move |request: &str, _| {
                let head = request.to_lowercase();
                if head.contains("if-none-match") || head.contains("if-modified-since") {
                    format!("HTTP/1.1 304 Not Modified\r\n{fields}\r\n")
                } else {
                    response("200 OK", "Cache-Control: max-age=60\r\nETag: \"e\"\r\n", "body")
                }
            };
            let (first, answer) = after(&get("/page", "shop", precondition), VICTIM, answer).await;
            assert!(
                answer.starts_with("HTTP/1.1 200") && body(&answer) == "body",
                "{precondition:?} {fields:?}: {first}\n{answer}"
            );
        }
    }
    for precondition in ["If-Match: \"x\"\r\n", "If-Unmodified-Since: Mon, 01 Jan 2001 00:00:00 GMT\r\n"] {
        let answer = |request: &str, _| {
            let failed = request.to_lowercase().contains("if-");
            if failed { response("412 Precondition Failed", OLD, "failed") } else { fresh("body") }
        };
        let (first, answer) = after(&get("/page", "shop", precondition), VICTIM, answer).await;
        assert_eq!(body(&answer), "body", "{precondition:?}: {first}");
    }
}

/// A request that the application stumbles over takes the page away, though nothing says that errors are fresh.
#[tokio::test]
async fn error_silent() {
    for status in (400..=431).chain([451, 499]).chain(500..=511).chain([520, 599]) {
        for fields in ["", OLD, "ETag: \"e\"\r\n", "Cache-Control: \r\n", "Retry-After: 60\r\n", "Age: 1\r\n"] {
            // Of these the standard lets a cache guess a lifetime: see `error_silent_old`.
            if fields == OLD && [404, 405, 410, 414, 501].contains(&status) {
                continue;
            }
            error_stays_alone(status, fields).await;
        }
    }
}

async fn error_stays_alone(status: u16, fields: &'static str) {
    let answer = move |request: &str, _| {
        let bad = request.to_lowercase().contains("x-bad");
        if bad { response(&format!("{status} Bad"), fields, "bad") } else { fresh("body") }
    };
    let (first, answer) = after(&get("/page", "shop", "X-Bad: 1\r\n"), VICTIM, answer).await;
    assert!(body(&first) == "bad" && body(&answer) == "body", "{status} {fields:?}: {first}\n{answer}");
}

/// The same with an error of which the standard lets a cache guess the lifetime from its Last-Modified: it is kept for a
/// minute at most.
#[tokio::test]
async fn error_silent_old() {
    for status in [404, 405, 410, 414, 501] {
        let answer = move |_: &str, _| response(&format!("{status} Bad"), OLD, "bad");
        let (_, answer) = after(&get("/page", "shop", "X-Bad: 1\r\n"), VICTIM, answer).await;
        let ttl = answer.split("ttl=").nth(1).and_then(|rest| rest.split(';').next()).map(str::parse::<u64>);
        assert!(matches!(ttl, Some(Ok(0..=60))), "{status}: {answer}");
    }
}

/// A header larger than the application takes, though the cache takes it, makes an error for everybody.
#[tokio::test]
async fn header_oversize() {
    for size in [4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10, 300 << 10, 1 << 20] {
        let single = format!("X-Big: {}\r\n", "a".repeat(size));
        let several = format!("X-Big: {}\r\n", "a".repeat(100)).repeat(size / 100);
        let target = format!("Referer: http://shop/{}\r\n", "a".repeat(size));
        let cookie = format!("Cookie: a={}\r\n", "a".repeat(size));
        for fields in [single, several, target, cookie] {
            let answer = |request: &str, _| {
                if request.len() > 4096 {
                    response("431 Request Header Fields Too Large", "", "too large")
                } else {
                    fresh("body")
                }
            };
            let (first, answer) = after(&get("/page", "shop", &fields), VICTIM, answer).await;
            assert!(!first.starts_with("HTTP/1.1 2"), "{size}: {first}");
            assert!(answer.starts_with("HTTP/1.1 200") && body(&answer) == "body", "{size}: {first}\n{answer}");
        }
    }
}

/// A control character that the cache forwards makes the application produce something else.
#[tokio::test]
async fn header_meta() {
    let control = |text: &str| text.replace("\r\n", "").replace('\t', "").chars().any(|char| char.is_control());
    let mut values = (0..32).chain([127]).map(|code| format!("a{}b", char::from(code))).collect::<Vec<_>>();
    values.retain(|value| control(value));
    values.extend(["\u{7}".to_owned(), "\r".to_owned(), "a\rX-Evil: 1".to_owned(), "a\0\r\n X-Evil: 1".to_owned()]);
    for value in values {
        for fields in [
            format!("X-Meta: {value}\r\n"),
            format!("X-Me{value}ta: 1\r\n"),
            format!("Accept: {value}\r\n"),
            format!("Cookie: {value}\r\n"),
        ] {
            let answer = move |request: &str, _| fresh(if control(request) { "meta" } else { "body" });
            let (first, answer) = after(&get("/page", "shop", &fields), VICTIM, answer).await;
            assert!(answer.starts_with("HTTP/1.1 200") && body(&answer) == "body", "{fields:?}: {first}\n{answer}");
        }
        for attack in [get(&format!("/page{value}"), "shop", ""), get("/page", &format!("shop{value}"), "")] {
            let answer = move |request: &str, _| fresh(if control(request) { "meta" } else { "body" });
            let (first, answer) = after(&attack, VICTIM, answer).await;
            assert!(answer.starts_with("HTTP/1.1 200") && body(&answer) == "body", "{attack:?}: {first}\n{answer}");
        }
    }
}

/// A body that was cut short is given as the whole page.
#[tokio::test]
async fn split_truncated() {
    for (length, content) in [
        ("Content-Length: 100", "half"),
        ("Content-Length: 5", "half"),
        ("Content-Length: 4", ""),
        ("Transfer-Encoding: chunked", "4\r\nhalf\r\n"),
        ("Transfer-Encoding: chunked", "4\r\nhalf"),
        ("Transfer-Encoding: chunked", "8\r\nhalf"),
        ("Transfer-Encoding: chunked", "4\r\nhalf\r\n0\r\n"),
        ("Transfer-Encoding: chunked", "4\r\nhalf\r\n0\r\nX-Trailer: 1\r\n"),
        ("Transfer-Encoding: chunked", "4\r\nhalf\r\n0"),
        ("Transfer-Encoding: chunked", "4\r\nhalf\r\nx\r\n\r\n"),
        ("Transfer-Encoding: chunked", "4\r\nhalf\r\n-1\r\n\r\n"),
        ("Transfer-Encoding: chunked", "4\r\nhalfway\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked", "fffffffffffffffff\r\nhalf\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked", ""),
        ("Transfer-Encoding: gzip, chunked", "4\r\nhalf\r\n"),
        ("Transfer-Encoding: gzip", "half"),
        ("Transfer-Encoding: identity", "half"),
        ("Transfer-Encoding: chunked, identity", "4\r\nhalf\r\n"),
        ("Transfer-Encoding: xchunked", "4\r\nhalf\r\n"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 4", "4\r\nhalf\r\n"),
        ("Content-Length: 100\r\nTransfer-Encoding: chunked", "4\r\nhalf\r\n"),
    ] {
        for fields in [FRESH, "Cache-Control: max-age=60\r\nETag: \"e\"\r\n"] {
            let cut = move |_: &str, number| match number {
                1 => format!("HTTP/1.1 200 OK\r\n{fields}{length}\r\n\r\n{content}"),
                _ => fresh("the whole"),
            };
            let (first, answer) = after(VICTIM, VICTIM, cut).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{length:?} {content:?}: {first}\n{answer}");
            assert_eq!(body(&answer), "the whole", "{length:?} {content:?}: {first}");
        }
    }
}

/// An answer whose end depends on which length one believes is stored.
#[tokio::test]
async fn split_two_lengths() {
    for lengths in [
        "Content-Length: 4\r\nContent-Length: 9",
        "Content-Length: 9\r\nContent-Length: 4",
        "Content-Length: 4\r\ncontent-length: 0",
        "Content-Length: 4, 9",
        "Content-Length: 4,9",
        "Content-Length: 4 9",
        "Content-Length: 4\r\nContent-Length: x",
        "Content-Length: 4, x",
        "Content-Length: +4",
        "Content-Length: -4",
        "Content-Length: 0x4",
        "Content-Length: 4.0",
        "Content-Length: 4;",
        "Content-Length: \"4\"",
        "Content-Length: ",
        "Content-Length: 18446744073709551620",
        "Content-Length: 4\r\nContent-Length: 4\r\nContent-Length: 9",
    ] {
        let split = move |_: &str, number| match number {
            1 => format!("HTTP/1.1 200 OK\r\n{FRESH}{lengths}\r\n\r\nevil!evil"),
            _ => fresh("body"),
        };
        let (first, answer) = after(VICTIM, VICTIM, split).await;
        assert!(answer.starts_with("HTTP/1.1 200") && body(&answer) == "body", "{lengths:?}: {first}\n{answer}");
    }
}

/// Line ends and quotes in the request break the fields that the cache writes itself.
#[tokio::test]
async fn split_reflection() {
    let upstream = Upstream::answering(|_, _| fresh("body")).await;
    let gateway = gateway(&upstream, &[]).await;
    let plain = ask(gateway, VICTIM).await;
    let names = |answer: &str| {
        let head = answer.split("\r\n\r\n").next().unwrap_or_default().to_lowercase();
        let mut names =
            head.split("\r\n").skip(1).map(|line| line.split(':').next().unwrap().to_owned()).collect::<Vec<_>>();
        names.retain(|name| name != "age");
        names.sort();
        names
    };
    for mark in [
        "%0d%0aX-Evil:%201",
        "%0d%0a%0d%0aevil",
        "%0aX-Evil:1",
        "%0dX-Evil:1",
        "\"",
        "\";key=evil",
        "%22;evil=%22",
        "\\\"",
        "'",
        ";hit",
        ",evil;hit",
        "%5c%22",
        "\u{10a}",
        "\u{e5}\u{98}\u{8a}",
        "%E5%98%8A%E5%98%8DX-Evil:1",
        "\r\nX-Evil: 1\r\nX: ",
        "\nX-Evil: 1\nX: ",
        "\rX-Evil: 1",
        "<script>",
    ] {
        let attacks = [
            get(&format!("/page{mark}"), "shop", ""),
            get(&format!("/page?a={mark}"), "shop", ""),
            get("/page", &format!("shop{mark}"), ""),
            get(
                &format!("/page{mark}"),
                "shop",
                "X-Cache-Debug: 1\r\nPragma: akamai-x-get-cache-key\r\nFastly-Debug: 1\r\n",
            ),
        ];
        for attack in attacks.iter().chain(&attacks) {
            let answer = ask(gateway, attack).await;
            let head = answer.split("\r\n\r\n").next().unwrap_or_default();
            for line in head.split("\r\n") {
                // The key is shown, in a form that means nothing to anybody.
                let is_key = line.strip_prefix("x-cache-key: ");
                let harmless = |char: char| char.is_ascii_alphanumeric() || "%:/.-_?&=[];,'".contains(char);
                let reflects = line.to_lowercase().contains("evil") || line.contains("script");
                assert!(is_key.map_or(!reflects, |key| key.chars().all(harmless)), "{attack:?}: {answer}");
            }
            if answer.starts_with("HTTP/1.1 200") {
                assert_eq!(names(&answer), names(&plain), "{attack:?}: {answer}");
                assert_eq!(body(&answer), "body", "{attack:?}");
            }
        }
    }
    let answer = ask(gateway, VICTIM).await;
    assert!(is_hit(&answer) && body(&answer) == "body" && names(&answer) == names(&plain), "{answer}");
}

/// A request whose end is uncertain hides another, whose answer the next client would get.
#[tokio::test]
async fn smuggle_request() {
    const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: shop\r\n\r\n";
    for (fields, start) in [
        ("Content-Length: 43\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 43\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", "0\r\n\r\n"),
        ("Content-Length: 0\r\nContent-Length: 38\r\n", ""),
        ("Content-Length: 38\r\nContent-Length: 0\r\n", ""),
        ("Content-Length: 0, 38\r\n", ""),
        ("Content-Length: 38, 0\r\n", ""),
        ("Content-Length: +0\r\n", ""),
        ("Content-Length: -0\r\n", ""),
        ("Content-Length: -1\r\n", ""),
        ("Content-Length: 0x26\r\n", ""),
        ("Content-Length: 0 38\r\n", ""),
        ("Content-Length: x\r\n", ""),
        ("Content-Length: \r\n", ""),
        ("Content-Length: 18446744073709551616\r\n", ""),
        ("Content-Length : 38\r\n", ""),
        ("Content-Length\t: 38\r\n", ""),
        (" Content-Length: 38\r\n", ""),
        ("X: y\r\n Content-Length: 38\r\n", ""),
        ("Content-Length:\r\n 38\r\n", ""),
        ("Content-Length\0: 38\r\n", ""),
        ("Content-Length: 0\0\r\n", ""),
        ("X: y\rContent-Length: 38\r\n", ""),
        ("Transfer-Encoding: gzip\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: identity\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunkedx\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked, gzip\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked;q=1\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: \u{b}chunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding\t: chunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n"),
        ("X: y\r\n Transfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: \r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "x\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "-0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "+0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "0x0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "10000000000000000\r\n"),
        ("Transfer-Encoding: chunked\r\n", "1\r\nab\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "1\r\na0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "0\r\nX Y\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "1;a=\n\r\na\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "1;\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "0\n\n"),
    ] {
        for method in ["POST", "GET"] {
            let upstream = Upstream::answering(|request, _| fresh(&format!("<{}>", target(request)))).await;
            let gateway = gateway(&upstream, &[]).await;
            let attack = format!("{method} /page HTTP/1.1\r\nHost: shop\r\n{fields}\r\n{start}{HIDDEN}");
            let mut stream = send(gateway, &attack).await;
            let mut read = Vec::new();
            let closed = timeout(Duration::from_secs(2), stream.read_to_end(&mut read)).await.is_ok();
            let answer = String::from_utf8_lossy(&read);
            let seen = upstream.requests.borrow().clone();
            assert!(!answer.contains("hidden"), "{method} {fields:?} {start:?} is answered twice: {answer}");
            assert!(
                !seen.iter().any(|request| target(request) == "/hidden"),
                "{method} {fields:?} {start:?}: {seen:?}"
            );
            assert!(closed, "{method} {fields:?} {start:?} leaves the connection open: {answer} {seen:?}");
            for request in &seen {
                let head = request.split("\r\n\r\n").next().unwrap_or_default().to_lowercase();
                let lengths = head.matches("content-length").count() + head.matches("transfer-encoding").count();
                assert!(lengths <= 1, "{method} {fields:?} {start:?} is passed on: {request:?}");
            }
            assert_eq!(body(&ask(gateway, VICTIM).await), "</page>", "{method} {fields:?} {start:?}");
        }
    }
}

/// A bare line feed ends the body for one reader and begins a trailer for the next: it must be the latter for good.
#[tokio::test]
async fn smuggle_in_trailers() {
    for start in ["0\r\n\n", "0\r\nX: y\n\n", "0\r\nX: y\n", "0\r\nX: y\r", "1\r\na\r\n0\r\n\n"] {
        let upstream = Upstream::answering(|request, _| fresh(&format!("<{}>", target(request)))).await;
        let gateway = gateway(&upstream, &[]).await;
        let hidden = "GET /hidden HTTP/1.1\r\nHost: shop\r\n\r\n";
        let fields = "Transfer-Encoding: chunked\r\n";
        let attack = format!("POST /page HTTP/1.1\r\nHost: shop\r\n{fields}\r\n{start}{hidden}");
        let answers = ask(gateway, &(attack + &get("/next", "shop", ""))).await;
        assert!(!answers.contains("hidden"), "{start:?}: {answers}");
        let seen = upstream.requests.borrow().clone();
        assert!(!seen.iter().any(|request| request.contains("hidden")), "{start:?}: {seen:?}");
        assert_eq!(body(&ask(gateway, &get("/hidden", "shop", "")).await), "</hidden>", "{start:?}: {answers}");
        let answer = ask(gateway, &get("/hidden", "shop", "")).await;
        assert!(is_hit(&answer), "{answer}");
    }
}

/// A change of protocol is stored, or opens a way past the cache.
#[tokio::test]
async fn upgrade_101() {
    const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                          Cache-Control: max-age=60\r\n\r\n";
    for (always, fields) in [false, true].into_iter().flat_map(|always| {
        [
            (always, "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AQIDBAUGBwgJCgsMDQ4PEA==\r\n"),
            (always, "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"),
            (always, "Connection: upgrade, close\r\nUpgrade: h2c\r\n"),
            (always, "Upgrade: websocket\r\n"),
            (always, "Connection: close\r\n"),
        ]
    }) {
        let upstream = Upstream::answering(move |request, number| {
            let asked = request.to_lowercase().contains("\r\nupgrade: ");
            if asked || (always && number == 1) { format!("{SWITCH}evil") } else { fresh("body") }
        })
        .await;
        let gateway = gateway(&upstream, &[]).await;
        let mut attacker = send(gateway, &format!("GET /page HTTP/1.1\r\nHost: shop\r\n{fields}\r\n")).await;
        let mut first = vec![0; 4096];
        let read = timeout(PATIENCE, attacker.read(&mut first)).await.expect("the gateway answers in time").unwrap();
        let first = String::from_utf8_lossy(&first[..read]);
        let answer = ask(gateway, VICTIM).await;
        assert!(answer.starts_with("HTTP/1.1 200") && body(&answer) == "body", "{fields:?}: {first}\n{answer}");
        assert!(!first.contains("evil"), "{fields:?}: {first}");
    }
}

/// A client that wants the cache alone to answer gets an error, and after it everybody.
#[tokio::test]
async fn client_only_if_cached() {
    for options in [&[][..], &["--honor-client-directives"]] {
        for directive in
            ["only-if-cached", "ONLY-IF-CACHED, max-stale", "max-age=0, only-if-cached", "no-cache, only-if-cached"]
        {
            let upstream = Upstream::answering(|_, _| fresh("body")).await;
            let gateway = gateway(&upstream, options).await;
            ask(gateway, &get("/page", "shop", &format!("Cache-Control: {directive}\r\n"))).await;
            let answer = ask(gateway, VICTIM).await;
            assert!(answer.starts_with("HTTP/1.1 200") && body(&answer) == "body", "{options:?} {directive}: {answer}");
        }
    }
}

/// A request that the application refuses throws the page away, so that anybody can empty the cache.
#[tokio::test]
async fn invalidate_error() {
    for method in ["POST", "PUT", "PATCH", "DELETE", "BREW"] {
        for status in [400, 401, 403, 404, 405, 413, 429, 500, 502, 503] {
            let upstream = Upstream::answering(move |request, _| {
                let refusal = format!("{FRESH}Location: /page\r\nContent-Location: /page\r\n");
                if request.starts_with("GET ") {
                    fresh("body")
                } else {
                    response(&format!("{status} No"), &refusal, "no")
                }
            })
            .await;
            let gateway = gateway(&upstream, &[]).await;
            ask(gateway, VICTIM).await;
            for path in ["/page", "/other"] {
                let attack = VICTIM.replacen("GET", method, 1).replace("/page", path);
                ask(gateway, &attack.replace("Connection", "Content-Length: 0\r\nConnection")).await;
                let answer = ask(gateway, VICTIM).await;
                assert!(is_hit(&answer) && body(&answer) == "body", "{method} {path} {status}: {answer}");
            }
            assert_eq!(upstream.count(), 3);
        }
    }
}

/// Somebody else's site names this site's page as changed.
#[tokio::test]
async fn invalidate_other_origin() {
    for (field, uri) in ["Location", "Content-Location"].into_iter().flat_map(|field| {
        ["http://shop/page", "//shop/page", "http://SHOP/page", "http://shop:80/page", "http://evil@shop/page"]
            .map(|uri| (field, uri))
    }) {
        let upstream = Upstream::answering(move |request, _| {
            let changed = format!("{field}: {uri}\r\n");
            if request.starts_with("GET ") { fresh("body") } else { response("201 Created", &changed, "") }
        })
        .await;
        let gateway = gateway(&upstream, &[]).await;
        ask(gateway, VICTIM).await;
        ask(gateway, "POST /x HTTP/1.1\r\nHost: evil\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
        assert!(is_hit(&ask(gateway, VICTIM).await), "{field}: {uri}");
    }
}

/// A GET with a body: the application reads its parameters there, and the cache does not look.
#[tokio::test]
async fn fat_get() {
    for (fields, content) in [
        ("Content-Length: 6\r\n", "a=evil"),
        ("Content-Length: 6\r\nContent-Type: application/x-www-form-urlencoded\r\n", "a=evil"),
        ("Transfer-Encoding: chunked\r\n", "6\r\na=evil\r\n0\r\n\r\n"),
        ("transfer-encoding: Chunked\r\n", "6\r\na=evil\r\n0\r\n\r\n"),
        ("Content-Length: 006\r\n", "a=evil"),
        ("Content-Length: 6\r\nExpect: 100-continue\r\n", "a=evil"),
        ("Content-Length: 6\r\nX-HTTP-Method-Override: POST\r\n", "a=evil"),
    ] {
        for target in ["/page", "/page?a=good"] {
            let echo = |request: &str, _| fresh(if body(request).contains("evil") { "evil" } else { "good" });
            let attack = get(target, "shop", fields) + content;
            let (first, answer) = after(&attack, &get(target, "shop", ""), echo).await;
            assert_eq!(body(&answer), "good", "{target} {fields:?}: {first}");
        }
    }
}

/// Anybody asks the cache to forget a page.
#[tokio::test]
async fn purge_open() {
    let upstream = Upstream::answering(|request, _| {
        let allowed = request.starts_with("GET ");
        if allowed { fresh("body") } else { response("405 Method Not Allowed", "Allow: GET\r\n", "no") }
    })
    .await;
    let gateway = gateway(&upstream, &[]).await;
    ask(gateway, VICTIM).await;
    let methods = [
        "PURGE",
        "BAN",
        "BANURL",
        "REFRESH",
        "FLUSH",
        "INVALIDATE",
        "PURGEKEYS",
        "PURGETAG",
        "URIBAN",
        "XCACHE",
        "purge",
        "DELETE",
        "SOFTPURGE",
        "REFETCH",
    ];
    let named = methods.map(|method| VICTIM.replacen("GET", method, 1));
    let fields = [
        "X-Purge: 1",
        "X-Purge: all",
        "X-Purge-URL: /page",
        "X-Purge-Method: regex",
        "X-Purge-Key: shop",
        "X-Ban: .",
        "X-Ban-Url: .",
        "X-Purge-Regex: .*",
        "X-Cache-Tags: *",
        "Cache-Tag: *",
        "Surrogate-Key: *",
        "xkey: *",
        "xkey-purge: *",
        "Fastly-Soft-Purge: 1",
        "X-Invalidate: *",
        "X-Refresh: 1",
        "X-LiteSpeed-Purge: *",
        "X-Magento-Tags-Pattern: .*",
        "Cache-Control: no-cache",
        "Cache-Control: no-store",
        "Cache-Control: max-age=0",
        "Pragma: no-cache",
        "X-HTTP-Method-Override: PURGE",
    ]
    .map(|line| get("/page", "shop", &format!("{line}\r\n")));
    for attack in named.iter().chain(&fields) {
        ask(gateway, attack).await;
        let answer = ask(gateway, VICTIM).await;
        assert!(is_hit(&answer) && body(&answer) == "body", "{attack:?}: {answer}");
    }
}

/// Those who wait for one fetch receive its answer though that is for one user alone.
#[tokio::test]
async fn coalesce_private() {
    for fields in [
        "Cache-Control: private, max-age=60\r\n",
        "Cache-Control: no-store\r\n",
        "Cache-Control: no-cache\r\n",
        "Cache-Control: max-age=0\r\n",
        "Cache-Control: max-age=60\r\nSet-Cookie: session=1\r\n",
        "Cache-Control: max-age=60\r\nVary: *\r\n",
        "",
    ] {
        let upstream = Upstream::holding(move |request, number| {
            let user = field(request, "cookie").unwrap_or("nobody");
            response("200 OK", fields, &format!("{user} number {number}"))
        })
        .await;
        let gateway = gateway(&upstream, &[]).await;
        let mut clients = vec![send(gateway, &get("/page", "shop", "Cookie: user-0\r\n")).await];
        upstream.has_received(1).await;
        for index in 1..=5 {
            clients.push(send(gateway, &get("/page", "shop", &format!("Cookie: user-{index}\r\n"))).await);
        }
        a_moment().await;
        upstream.release();
        for (index, client) in clients.into_iter().enumerate() {
            let answer = receive(client).await;
            assert!(body(&answer).starts_with(&format!("user-{index} ")), "{fields:?} {index}: {answer}");
        }
        assert_eq!(upstream.count(), 6, "{fields:?}");
    }
}

/// Those who wait for one fetch receive an answer that depends on a header in which they differ.
#[tokio::test]
async fn coalesce_vary() {
    let languages = ["en", "de", "", "fr", "en", "de"];
    let upstream = Upstream::holding(|request, _| {
        let language = field(request, "accept-language").unwrap_or("none");
        response("200 OK", &format!("{FRESH}Vary: Accept-Language\r\n"), language)
    })
    .await;
    let gateway = gateway(&upstream, &[]).await;
    let mut clients = Vec::new();
    for language in languages {
        let line = if language.is_empty() { String::new() } else { format!("Accept-Language: {language}\r\n") };
        clients.push(send(gateway, &get("/page", "shop", &line)).await);
        upstream.has_received(1).await;
    }
    a_moment().await;
    upstream.release();
    for (language, client) in languages.into_iter().zip(clients) {
        let answer = receive(client).await;
        assert_eq!(body(&answer), if language.is_empty() { "none" } else { language }, "{answer}");
    }
}

/// Those who wait for one fetch receive what only a special request deserves: a part, a 304, an answer to credentials.
#[tokio::test]
async fn coalesce_special() {
    for fields in [
        "Range: bytes=0-1\r\n",
        "If-None-Match: \"e\"\r\n",
        "Authorization: Basic YTpi\r\n",
        "Cache-Control: no-store\r\n",
        "Host-X: 1\r\nContent-Length: 4\r\n",
    ] {
        let upstream = Upstream::holding(|request, _| {
            let head = request.to_lowercase();
            match head.as_str() {
                head if head.contains("range:") => {
                    response("206 Partial Content", &format!("{FRESH}Content-Range: bytes 0-1/4\r\n"), "bo")
                }
                head if head.contains("if-none-match:") => format!("HTTP/1.1 304 Not Modified\r\n{FRESH}\r\n"),
                head if head.contains("authorization:") || head.contains("evil") => fresh("secret"),
                _ => fresh("body"),
            }
        })
        .await;
        let gateway = gateway(&upstream, &[]).await;
        let content = if fields.contains("Length") { "evil" } else { "" };
        let leader = send(gateway, &(get("/page", "shop", fields) + content)).await;
        upstream.has_received(1).await;
        let followers = [send(gateway, VICTIM).await, send(gateway, VICTIM).await];
        a_moment().await;
        upstream.release();
        for follower in followers {
            let answer = receive(follower).await;
            assert!(answer.starts_with("HTTP/1.1 200") && body(&answer) == "body", "{fields:?}: {answer}");
        }
        drop(leader);
    }
}

/// The first client leaves, and those who wait for its fetch wait for nothing.
#[tokio::test]
async fn coalesce_leader_gone() {
    let upstream = Upstream::holding(|_, _| fresh("body")).await;
    let gateway = gateway(&upstream, &[]).await;
    let leader = send(gateway, VICTIM).await;
    upstream.has_received(1).await;
    let followers = [send(gateway, VICTIM).await, send(gateway, VICTIM).await, send(gateway, VICTIM).await];
    a_moment().await;
    drop(leader);
    a_moment().await;
    upstream.release();
    for follower in followers {
        let answer = receive(follower).await;
        assert!(answer.starts_with("HTTP/1.1 200") && body(&answer) == "body", "{answer}");
    }
}

/// The first client does not read, and those who wait for its fetch wait for it to.
#[tokio::test]
async fn coalesce_leader_stalls() {
    for size in [1 << 10, 512 << 10, 16 << 20] {
        let upstream = Upstream::answering(move |_, _| fresh(&"a".repeat(size))).await;
        let gateway = gateway(&upstream, &[]).await;
        let leader = send(gateway, VICTIM).await;
        upstream.has_received(1).await;
        a_moment().await;
        let follower = send(gateway, VICTIM).await;
        let answer = receive(follower).await;
        assert!(answer.starts_with("HTTP/1.1 200") && body(&answer).len() == size, "{size}: {} bytes", answer.len());
        drop(leader);
    }
}
