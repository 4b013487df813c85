//! Several instances on one Redis: one of them asks the origin, the others wait for what it brings.

mod instances;

use instances::{Origin, all, ask, forwarded, instance, instance_at};
use larder::store::TICKET_LIFE;
use larder_redis::ACL_COMMANDS;
use larder_tests::{Process, RedisServer, program};
use std::{
    io,
    net::SocketAddr,
    process::Command,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_not_stored_is_waited_for_once() {
    let server = RedisServer::start();
    let layers = [instance(&server).await, instance(&server).await];
    let origin = Origin::new("no-store", Duration::from_millis(300));
    let began = Instant::now();
    let answers = all(&layers, 20, &origin, "/private").await;
    assert_eq!(origin.calls(), 40, "each gets its own");
    let last = answers.iter().flatten().map(|answer| answer.2).max().expect("some");
    assert!(last - began < Duration::from_millis(1_500), "two in a row, and not forty: {:?}", last - began);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_holds_the_ticket_and_hangs_is_waited_for_five_seconds() {
    let server = RedisServer::start();
    let layers = [instance(&server).await, instance(&server).await];
    let hangs = Origin::new("max-age=60", Duration::from_secs(3600));
    let hanging = tokio::spawn(ask(layers[0].clone(), hangs.clone(), "/slow"));
    while hangs.calls() == 0 {
        tokio::task::yield_now().await;
    }
    let origin = Origin::new("max-age=60", Duration::from_millis(100));
    let began = Instant::now();
    let answers = all(&layers[1..], 50, &origin, "/slow").await;
    let took = began.elapsed();
    assert_eq!(origin.calls(), 1, "one goes, and the rest follow it: {:?}", forwarded(&answers));
    assert!(took >= Duration::from_millis(4_700) && took < Duration::from_millis(5_500), "{took:?}");
    assert_eq!(answers[0].iter().filter(|answer| answer.0.contains("lock-timeout")).count(), 1);
    hanging.abort();
}

/// What one fetches, the other finds by asking where it is not told.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_another_instance_and_may_not_be_told_finds_its_answer_a_little_later() {
    let takes = Duration::from_millis(700);
    // The longest pause between two questions, with its jitter, and what a machine with other work adds.
    let later = Duration::from_millis(950);
    for (missing, most) in [("", Duration::from_millis(300)), ("+publish", later), ("+subscribe", later)] {
        let commands: Vec<&str> = ACL_COMMANDS.split(' ').filter(|command| *command != missing).collect();
        let acl = format!("user larder on >secret ~* &* {}", commands.join(" "));
        let server = RedisServer::builder().acl(&acl).start();
        let url = server.url_as("larder", "secret");
        let layers = [instance_at(&url).await, instance_at(&url).await];
        let origin = Origin::new("max-age=60", takes);
        let began = Instant::now();
        let answers = all(&layers, 20, &origin, "/page").await;
        assert_eq!(origin.calls(), 1, "without {missing}: {:?}", forwarded(&answers));
        let last = answers.iter().flatten().map(|answer| answer.2).max().expect("some");
        assert!(last - began < takes + most, "without {missing}: {:?}", last - began);
    }
}

/// Two gateways in processes of their own. The one that fetches is frozen for longer than its ticket lasts; the other fetches
/// and stores meanwhile, and what the first has when it goes on is refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_frozen_beyond_its_ticket_cannot_commit() {
    let redis = RedisServer::start();
    let upstream = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let upstream_address = upstream.local_addr().expect("an address");
    let [(frozen, first), (_other, second)] = [(); 2].map(|()| gateway(upstream_address, &redis.url()));

    let late = tokio::spawn(get(first, "/page"));
    let mut fetch = asked(&upstream).await;
    fetch
        .write_all(b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 4\r\n\r\nla")
        .await
        .expect("read");
    let tickets = || redis.cli(&["KEYS", "*:t"]);
    assert_eq!(tickets().lines().count(), 1, "it fetches for all: {}", tickets());
    frozen.stop();
    // It is there when it goes on, before it can find out that its ticket is lost.
    fetch.write_all(b"te").await.expect("the kernel takes it");
    sleep(TICKET_LIFE + Duration::from_millis(200)).await;
    assert_eq!(tickets(), "", "it has run out");

    let new = tokio::spawn(get(second, "/page"));
    let answer = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 3\r\n\r\nnew";
    asked(&upstream).await.write_all(answer).await.expect("read");
    let miss = new.await.expect("an answer");
    assert!(miss.contains("x-cache: MISS\r\n") && miss.ends_with("\r\n\r\nnew"), "{miss}");
    until(|| hits(second, "new"), "what the other fetched is stored").await;

    frozen.cont();
    let answered = timeout(PATIENCE, late).await.expect("in time").expect("an answer");
    assert!(answered.ends_with("\r\n\r\nlate"), "its own client gets what it fetched: {answered}");
    let metrics = printed_address(&frozen.stdout(), "metrics: http://");
    let refused = async || {
        let page = get(metrics, "/metrics").await;
        let mut stores = page.lines().filter(|line| line.starts_with("larder_store_total{"));
        stores.any(|line| line.contains("reason=\"ticket-lost\"") && line.ends_with(" 1"))
    };
    until(refused, "what it fetched is offered, and refused").await;
    for gateway in [first, second] {
        assert!(hits(gateway, "new").await, "what the other fetched stays");
    }
}

const PATIENCE: Duration = Duration::from_secs(20);

/// A gateway in a process of its own, and where it is.
fn gateway(upstream: SocketAddr, redis: &str) -> (Process, SocketAddr) {
    let upstream = format!("http://{upstream}");
    let options = ["--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--upstream", &upstream, "--redis", redis];
    let mut process = Process::start(Command::new(program("gateway")).args(options));
    let address = printed_address(&process.printed(", storing in "), "gateway: http://");
    (process, address)
}

/// The address that is printed behind `before`.
fn printed_address(printed: &str, before: &str) -> SocketAddr {
    let address = printed.split_once(before).and_then(|(_, rest)| rest.split([' ', '/']).next()?.parse().ok());
    address.unwrap_or_else(|| panic!("no address behind {before:?}: {printed}"))
}

/// The connection on which the upstream is asked next.
async fn asked(upstream: &TcpListener) -> TcpStream {
    let (mut stream, _) = timeout(PATIENCE, upstream.accept()).await.expect("in time").expect("a connection");
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await.expect("a request"));
    }
    stream
}

/// An answer as it is sent.
async fn get(address: SocketAddr, path: &str) -> String {
    let send = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        io::Result::Ok(answer)
    };
    timeout(PATIENCE, send).await.expect("in time").expect("an answer")
}

async fn hits(gateway: SocketAddr, body: &str) -> bool {
    let answer = get(gateway, "/page").await;
    answer.contains("x-cache: HIT\r\n") && answer.ends_with(&format!("\r\n\r\n{body}"))
}

async fn until(mut is_so: impl AsyncFnMut() -> bool, what: &str) {
    let began = Instant::now();
    while !is_so().await {
        assert!(began.elapsed() < PATIENCE, "{what}");
        sleep(Duration::from_millis(10)).await;
    }
}
