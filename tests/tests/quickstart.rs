//! The quickstart example: what it prints is true, with Redis and without.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use larder_tests::{Process, RedisServer, program};
use std::{net::SocketAddr, process::Command, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};

/// Starts the app on a free port, and takes the first URL with a path from what it prints.
async fn start(redis_url: Option<&str>) -> (SocketAddr, String) {
    let cache = quickstart::cache(redis_url).await.unwrap();
    let listener = quickstart::listen("127.0.0.1", Some(0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let printed = quickstart::greeting(address, redis_url.is_some());
    let host = format!("http://{address}/");
    let path = printed.split_once(&host).unwrap().1.split_whitespace().next().unwrap();
    tokio::spawn(axum::serve(listener, quickstart::app(&cache).unwrap()).into_future());
    (address, format!("/{path}"))
}

/// X-Cache and the body.
async fn send(address: SocketAddr, method: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{response}");
    let x_cache = head.lines().find_map(|line| line.strip_prefix("x-cache: ")).unwrap();
    (x_cache.to_owned(), body.to_owned())
}

async fn x_cache(address: SocketAddr, path: &str) -> String {
    send(address, "GET", path).await.0
}

/// Asks until the answer is a hit, for ten seconds.
async fn until_hit(address: SocketAddr, path: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while x_cache(address, path).await != "HIT" {
        assert!(Instant::now() < deadline, "no hit of {path} in ten seconds");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn the_first_url_is_a_miss_and_then_a_hit_without_redis() {
    let (address, path) = start(None).await;
    for path in [path.clone(), format!("{path}?any=query")] {
        assert_eq!(x_cache(address, &path).await, "MISS", "{path}");
        assert_eq!(x_cache(address, &path).await, "HIT", "{path}");
    }
}

#[tokio::test]
async fn a_user_that_was_changed_is_fetched_again() {
    let (address, _) = start(None).await;
    let first = send(address, "GET", "/users/7").await;
    assert_eq!(send(address, "GET", "/users/7").await, ("HIT".to_owned(), first.1.clone()));
    assert_eq!(send(address, "POST", "/users/7").await.0, "BYPASS");
    let (x_cache, body) = send(address, "GET", "/users/7").await;
    assert_eq!(x_cache, "MISS");
    assert_ne!(body, first.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_share_a_redis_and_live_on_without_it() {
    let mut redis = RedisServer::start();
    let (first, path) = start(Some(&redis.url())).await;
    assert_eq!(x_cache(first, &path).await, "MISS");
    until_hit(first, &path).await;
    let (second, _) = start(Some(&redis.url())).await;
    assert_eq!(x_cache(second, &path).await, "HIT");
    redis.kill();
    for address in [first, second, first] {
        let x_cache = x_cache(address, &path).await;
        assert!(["MISS", "BYPASS"].contains(&x_cache.as_str()), "{x_cache}");
    }
    redis.restart();
    until_hit(first, &path).await;
    until_hit(second, &path).await;
}

#[tokio::test]
async fn a_taken_port_is_replaced_only_if_nobody_asked_for_it() {
    // Whoever has it: it is taken.
    let _taken = TcpListener::bind("127.0.0.1:3000").await;
    let free = quickstart::listen("127.0.0.1", None).await.unwrap();
    assert_ne!(free.local_addr().unwrap().port(), 3000);
    let error = quickstart::listen("127.0.0.1", Some(3000)).await.unwrap_err();
    assert!(error.to_string().starts_with("127.0.0.1:3000: "), "{error}");
}

/// The app as a process of its own, with these variables set and no others that it knows; where it is, and the path of the
/// first URL with a path in what it prints.
fn run(variables: &[(&str, &str)]) -> (Process, SocketAddr, String) {
    let mut command = Command::new(program("quickstart"));
    for name in ["REDIS_URL", "PORT", "HOST", "RUST_LOG"] {
        command.env_remove(name);
    }
    let mut process = Process::start(command.envs(variables.iter().copied()));
    let printed = process.printed("/users/1\n");
    let address: SocketAddr =
        printed.split_once("quickstart: http://").unwrap().1.split(',').next().unwrap().parse().unwrap();
    let curl: Vec<&str> = printed.lines().map(str::trim).filter(|line| line.starts_with("curl ")).collect();
    let host = format!("http://{address}/");
    assert!(curl.len() == 2 && curl.iter().all(|line| line.contains(&host)), "{printed}");
    let path = printed.split_once(&host).unwrap().1.split_whitespace().next().unwrap();
    (process, address, format!("/{path}"))
}

#[tokio::test]
async fn the_program_prints_an_address_and_a_path_that_is_cached_with_any_query() {
    for (variables, asked_for) in
        [(&[][..], false), (&[("PORT", "0")], true), (&[("PORT", ""), ("REDIS_URL", "")], false)]
    {
        let (mut process, address, path) = run(variables);
        assert!(address.ip().is_loopback(), "{address}");
        assert!(!asked_for || address.port() != 3000, "{address}");
        for path in [path.clone(), format!("{path}?a=1&a=2"), format!("{path}?utm_source=x"), format!("{path}?=%20&&")]
        {
            assert_eq!(x_cache(address, &path).await, "MISS", "{variables:?} {path}");
            assert_eq!(x_cache(address, &path).await, "HIT", "{variables:?} {path}");
        }
        process.signal("TERM");
        assert!(process.wait().success(), "{}", process.stderr());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_program_caches_is_in_redis() {
    let redis = RedisServer::start();
    let keys = || redis.cli(&["KEYS", "quickstart:*products*"]);
    assert_eq!(keys(), "");
    let (_process, address, path) = run(&[("PORT", "0"), ("REDIS_URL", &redis.url())]);
    assert_eq!(path, "/products");
    assert_eq!(x_cache(address, &path).await, "MISS");
    until_hit(address, &path).await;
    assert!(keys().lines().any(|key| redis.cli(&["TYPE", key]) == "string"), "{}", redis.cli(&["KEYS", "*"]));
    let (_process, other, _) = run(&[("PORT", "0"), ("REDIS_URL", &redis.url())]);
    assert_eq!(x_cache(other, &path).await, "HIT");
}

/// What the handler takes for each request, and what a machine with other work may add.
const HANDLER: Duration = Duration::from_millis(200);
const NOISE: Duration = Duration::from_millis(250);

#[tokio::test(flavor = "multi_thread")]
async fn the_program_starts_without_the_redis_that_it_is_told_of_and_uses_it_when_it_comes() {
    // To build it may take a minute, in which others could take the port.
    program("quickstart");
    let mut redis = RedisServer::start();
    let url = redis.url();
    redis.kill();
    let (process, address, path) = run(&[("PORT", "0"), ("REDIS_URL", &url)]);
    for round in 0..10 {
        let asked = Instant::now();
        assert_eq!(x_cache(address, &path).await, "BYPASS", "{round}");
        let most = if round == 0 { Duration::from_secs(1) } else { HANDLER + NOISE };
        assert!(asked.elapsed() < most, "{round}: {:?}", asked.elapsed());
    }
    redis.restart();
    until_hit(address, &path).await;
    assert!(!redis.cli(&["KEYS", "quickstart:*products*"]).is_empty());
    assert!(!process.stderr().contains("ERROR"), "{}", process.stderr());
}
