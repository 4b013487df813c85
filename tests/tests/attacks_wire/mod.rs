//! One gateway before one upstream whose answers a test makes of the request's text.
#![allow(dead_code, reason = "no file uses all of it")]

use clap::Parser;
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(10);
pub(crate) const FRESH: &str = "Cache-Control: max-age=60\r\n";
pub(crate) const VICTIM: &str = "GET /page HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n";

/// A gateway, and what the upstream behind it was sent.
pub(crate) struct Site {
    pub(crate) gateway: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Site {
    /// The gateway is started with these options.
    pub(crate) async fn start(options: &[&str], answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        let (listener, upstream) = (local().await, local().await);
        let url = format!("--upstream=http://{}", upstream.local_addr().expect("it is bound"));
        let options = gateway::Options::parse_from([&["gateway", &url], options].concat());
        let site = Self { gateway: listener.local_addr().expect("it is bound"), seen: Arc::default() };
        tokio::spawn(async move { gateway::run(&options, listener, std::future::pending()).await });
        let (answer, seen) = (Arc::new(answer), site.seen.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = upstream.accept().await {
                tokio::spawn(serve(stream, seen.clone(), answer.clone()));
            }
        });
        site
    }

    /// What the gateway sends until it closes, which it must.
    pub(crate) async fn ask(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.gateway).await.expect("the gateway listens");
        // A gateway that refuses need not read to the end.
        drop(stream.write_all(request.as_bytes()).await);
        let mut answer = Vec::new();
        let closed = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        assert!(closed.is_ok(), "the connection stays open after {:?}", String::from_utf8_lossy(&answer));
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Whether the upstream was sent this text, in whatever case.
    pub(crate) fn saw(&self, text: &str) -> bool {
        let text = text.to_lowercase();
        self.seen.lock().expect("no panic holds it").iter().any(|request| request.to_lowercase().contains(&text))
    }

    pub(crate) fn requests(&self) -> usize {
        self.seen.lock().expect("no panic holds it").len()
    }
}

async fn local() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.expect("there is a free port")
}

/// Answers one request, and closes.
async fn serve(
    mut stream: TcpStream,
    seen: Arc<Mutex<Vec<String>>>,
    answer: Arc<impl Fn(&str) -> String + Send + Sync>,
) -> std::io::Result<()> {
    let (mut request, mut buffer) = (String::new(), vec![0; 65536]);
    while !is_whole(&request) {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        request.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    seen.lock().expect("no panic holds it").push(request.clone());
    stream.write_all(answer(&request).as_bytes()).await
}

fn is_whole(request: &str) -> bool {
    let Some((head, body)) = request.split_once("\r\n\r\n") else { return false };
    match (field(head, "transfer-encoding"), field(head, "content-length")) {
        ("", "") => true,
        ("", length) => length.parse().is_ok_and(|length| body.len() >= length),
        _ => body.ends_with("0\r\n\r\n"),
    }
}

/// The value of the first field with that name; empty when there is none.
pub(crate) fn field<'a>(message: &'a str, name: &str) -> &'a str {
    let head = message.split("\r\n\r\n").next().unwrap_or_default();
    let mut lines = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value.trim())
}

pub(crate) fn has(message: &str, name: &str) -> bool {
    let head = message.split("\r\n\r\n").next().unwrap_or_default().to_lowercase();
    head.contains(&format!("\r\n{}:", name.to_lowercase()))
}

pub(crate) fn body(message: &str) -> &str {
    message.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

pub(crate) fn is_hit(answer: &str) -> bool {
    field(answer, "x-cache") == "HIT"
}

pub(crate) fn response(status: &str, fields: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{fields}Content-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

pub(crate) fn fresh(body: &str) -> String {
    response("200 OK", FRESH, body)
}

pub(crate) fn get(target: &str, fields: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: shop\r\n{fields}Connection: close\r\n\r\n")
}
