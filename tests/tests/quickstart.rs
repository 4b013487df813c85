//! The quickstart example: what it prints is true, with Redis and without.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use larder_tests::RedisServer;
use std::{net::SocketAddr, time::Duration};
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
