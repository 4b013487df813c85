//! The helpers of the other tests: a server does what it is told, and the proxy breaks what it says it breaks.

use std::{
    io::{self, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use larder_tests::{Connection, FaultProxy, Flavor, RedisServer};

/// The errors of a connection that its peer has ended with a TCP reset.
const RESET: [io::ErrorKind; 2] = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
/// The errors of a read that nobody answers in time.
const SILENT: [io::ErrorKind; 2] = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];

fn connect(proxy: &FaultProxy) -> Connection<TcpStream> {
    let mut connection = Connection::tcp(proxy.addr()).expect("the proxy accepts connections");
    assert_eq!(ping(&mut connection), "PONG");
    connection
}

fn ping(connection: &mut Connection<TcpStream>) -> String {
    let reply = connection.call(&["PING"]).expect("the connection is whole");
    reply.expect("PING is no error")
}

fn failure(connection: &mut Connection<TcpStream>) -> io::ErrorKind {
    connection.call(&["PING"]).expect_err("the connection is broken").kind()
}

#[test]
fn both_flavors_start() {
    let redis = RedisServer::start();
    assert_eq!(redis.cli(&["PING"]), "PONG");
    let valkey = RedisServer::builder().flavor(Flavor::Valkey).start();
    assert!(valkey.cli(&["INFO", "server"]).contains("valkey_version:"));
    assert_ne!(redis.port(), valkey.port());
    assert_eq!(redis.url(), format!("redis://limited:limited@127.0.0.1:{}", redis.port()));
}

#[test]
fn servers_that_start_at_once_each_get_a_port() {
    let starting: Vec<_> = (0..8).map(|_| thread::spawn(RedisServer::start)).collect();
    let servers: Vec<_> = starting.into_iter().map(|server| server.join().unwrap()).collect();
    for server in &servers {
        let mut connection = Connection::tcp(server.addr()).unwrap();
        let info = connection.call(&["INFO", "server"]).unwrap().unwrap();
        assert!(info.contains(&format!("process_id:{}\r\n", server.pid())));
    }
}

#[test]
fn a_killed_server_comes_back_empty_on_its_port() {
    let mut server = RedisServer::builder().arg("--maxmemory", "1mb").start();
    let (port, pid) = (server.port(), server.pid());
    server.cli(&["SET", "key", "value"]);

    server.kill();
    assert_eq!(TcpStream::connect(server.addr()).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);

    server.restart();
    assert_eq!(server.port(), port);
    assert_ne!(server.pid(), pid);
    assert_eq!(server.cli(&["GET", "key"]), "");
    assert_eq!(server.cli(&["CONFIG", "GET", "maxmemory"]), "maxmemory\n1048576");
}

#[test]
fn a_port_that_was_asked_for_is_taken() {
    let port = RedisServer::start().port();
    assert_eq!(RedisServer::builder().port(port).start().port(), port);
}

#[test]
fn a_dropped_server_is_gone() {
    let address = RedisServer::start().addr();
    assert!(TcpStream::connect(address).is_err());
}

#[test]
#[should_panic(expected = "did not come up")]
fn a_server_that_refuses_its_options_fails_with_its_log() {
    RedisServer::builder().arg("--no-such-option", "1").start();
}

#[test]
fn a_frozen_server_answers_when_it_goes_on() {
    let server = RedisServer::start();
    let mut connection = Connection::tcp(server.addr()).unwrap();
    assert_eq!(ping(&mut connection), "PONG");

    server.stop();
    connection.set_patience(Duration::from_millis(100)).unwrap();
    assert!(SILENT.contains(&failure(&mut connection)));

    server.cont();
    connection.set_patience(Duration::from_secs(5)).unwrap();
    assert_eq!(ping(&mut connection), "PONG");
}

#[test]
fn a_password_is_asked_for_and_known_to_the_cli() {
    let server = RedisServer::builder().password("p@ss").start();
    assert_eq!(server.cli(&["PING"]), "PONG");
    assert_eq!(server.url(), format!("redis://:p%40ss@127.0.0.1:{}", server.port()));

    let mut connection = Connection::tcp(server.addr()).unwrap();
    let refused = connection.call(&["PING"]).unwrap().unwrap_err();
    assert!(refused.starts_with("NOAUTH"), "{refused}");
    assert_eq!(connection.call(&["AUTH", "p@ss"]).unwrap(), Ok("OK".to_owned()));
    assert_eq!(ping(&mut connection), "PONG");
}

#[test]
fn an_acl_holds_for_its_users_and_not_for_the_cli() {
    let server = RedisServer::builder().acl("user default off\nuser app on >secret ~shop:* +get +set").start();
    assert_eq!(server.cli(&["SET", "other", "1"]), "OK");

    let mut connection = Connection::tcp(server.addr()).unwrap();
    assert_eq!(connection.call(&["AUTH", "app", "secret"]).unwrap(), Ok("OK".to_owned()));
    assert_eq!(connection.call(&["SET", "shop:1", "1"]).unwrap(), Ok("OK".to_owned()));
    assert!(connection.call(&["GET", "other"]).unwrap().is_err());
    assert_eq!(server.url_as("app", "secret"), format!("redis://app:secret@127.0.0.1:{}", server.port()));
}

#[test]
fn a_unix_server_listens_on_no_port() {
    let server = RedisServer::builder().unix_socket().start();
    assert_eq!(server.cli(&["CONFIG", "GET", "port"]), "port\n0");
    assert_eq!(Connection::unix(&server.socket_path()).unwrap().call(&["PING"]).unwrap(), Ok("PONG".to_owned()));
    assert!(server.url().starts_with("redis+unix://limited:limited@/"));
}

#[test]
fn a_tls_server_speaks_nothing_else_and_names_its_authority() {
    let server = RedisServer::builder().tls().start();
    assert_eq!(server.cli(&["CONFIG", "GET", "tls-port"]), format!("tls-port\n{}", server.port()));
    assert!(server.url().starts_with("rediss://limited:limited@127.0.0.1:"));
    assert!(std::fs::read_to_string(server.ca_path()).unwrap().starts_with("-----BEGIN CERTIFICATE-----"));

    let mut plain = Connection::tcp(server.addr()).unwrap();
    assert!(plain.call(&["PING"]).is_err());
}

#[test]
fn commands_are_counted_by_name() {
    let server = RedisServer::start();
    server.cli(&["CONFIG", "RESETSTAT"]);
    for _ in 0..3 {
        server.cli(&["GET", "key"]);
    }
    let stats = server.command_stats();
    assert_eq!(stats.get("get"), Some(&3));
    assert_eq!(stats.get("config|resetstat"), Some(&1));
    assert_eq!(stats.get("set"), None);
}

#[test]
fn a_proxy_passes_on_and_counts_connections() {
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr());
    let started = Instant::now();
    let _open = [connect(&proxy), connect(&proxy)];
    assert_eq!(proxy.connections(), 2);
    assert!(proxy.accept_log().iter().all(|accepted| *accepted >= started));
    assert_ne!(proxy.port(), server.port());
}

#[test]
fn latency_delays_both_directions_and_does_not_add_up() {
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr());
    let mut connection = connect(&proxy);

    proxy.latency(Duration::from_millis(40));
    let started = Instant::now();
    ping(&mut connection);
    assert!(started.elapsed() >= Duration::from_millis(80));

    // A megabyte passes in many pieces, all of them on their way at the same time.
    let started = Instant::now();
    let value = "x".repeat(1 << 20);
    assert_eq!(connection.call(&["ECHO", &value]).unwrap(), Ok(value));
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[test]
fn a_black_hole_swallows_and_its_end_resets_what_was_lost() {
    let mut server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr());
    let (mut used, mut idle) = (connect(&proxy), connect(&proxy));

    proxy.black_hole();
    let mut new = Connection::tcp(proxy.addr()).unwrap();
    for connection in [&mut used, &mut new] {
        connection.set_patience(Duration::from_millis(100)).unwrap();
        assert!(SILENT.contains(&failure(connection)));
    }

    proxy.pass();
    for connection in [&mut used, &mut new] {
        connection.set_patience(Duration::from_secs(5)).unwrap();
        assert!(RESET.contains(&failure(connection)));
    }
    assert_eq!(ping(&mut idle), "PONG");

    // Not even the end of the server is seen through a black hole.
    proxy.black_hole();
    server.kill();
    idle.set_patience(Duration::from_millis(100)).unwrap();
    assert!(SILENT.contains(&failure(&mut idle)));
}

#[test]
fn a_reset_ends_open_connections_and_lets_new_ones_in() {
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr());
    let mut connection = connect(&proxy);
    proxy.reset();
    assert!(RESET.contains(&failure(&mut connection)));
    connect(&proxy);
}

#[test]
fn a_dead_server_behind_the_proxy_is_a_reset() {
    let mut server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr());
    server.kill();
    // The reset may come before the connection is used.
    let failed = Connection::tcp(proxy.addr()).and_then(|mut connection| connection.call(&["PING"]));
    assert!(RESET.contains(&failed.unwrap_err().kind()));
    server.restart();
    connect(&proxy);
}

#[test]
fn a_truncated_reply_ends_within() {
    let server = RedisServer::start();
    server.cli(&["SET", "key", "0123456789"]);
    let proxy = FaultProxy::start(server.addr());
    let mut connection = connect(&proxy);

    proxy.truncate_after(7 + 7);
    assert_eq!(ping(&mut connection), "PONG");
    let error = connection.call(&["GET", "key"]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);

    // The count begins anew for a new connection.
    let mut again = connect(&proxy);
    assert!(again.call(&["GET", "key"]).is_err());
}

#[test]
fn bandwidth_bounds_the_bytes_per_second() {
    let server = RedisServer::start();
    server.cli(&["SET", "key", &"x".repeat(10_000)]);
    let proxy = FaultProxy::start(server.addr());
    let mut connection = connect(&proxy);

    proxy.bandwidth(50_000);
    let started = Instant::now();
    assert_eq!(connection.call(&["GET", "key"]).unwrap().unwrap().len(), 10_000);
    let elapsed = started.elapsed();
    assert!(elapsed > Duration::from_millis(150), "{elapsed:?}");

    proxy.bandwidth(1);
    thread::scope(|scope| {
        let reading = scope.spawn(|| connection.call(&["GET", "key"]));
        proxy.pass();
        assert_eq!(reading.join().unwrap().unwrap().unwrap().len(), 10_000);
    });
}

#[test]
fn a_refusing_proxy_keeps_its_port_and_its_connections() {
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr());
    let mut open = connect(&proxy);
    for _ in 0..3 {
        proxy.refuse();
        let refused = TcpStream::connect(proxy.addr()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(ping(&mut open), "PONG");
        proxy.pass();
        connect(&proxy);
    }
    assert_eq!(proxy.connections(), 4);
}

#[test]
fn an_injected_reply_shifts_those_of_the_server_by_one() {
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr());
    let mut connection = connect(&proxy);
    proxy.inject(b"$5\r\nwrong\r\n");
    for (asked, answered) in [("a", "wrong"), ("b", "a"), ("c", "b")] {
        assert_eq!(connection.call(&["ECHO", asked]).unwrap(), Ok(answered.to_owned()));
    }
}

#[test]
fn a_reply_is_injected_after_every_nth_of_many_that_are_read_at_once() {
    let server = RedisServer::start();
    let proxy = FaultProxy::start(server.addr());
    proxy.inject_every(3, b"-X\r\n");
    let mut stream = TcpStream::connect(proxy.addr()).unwrap();
    stream.write_all(&[&b"PING\r\n".repeat(6)[..], b"QUIT\r\n"].concat()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let replies = io::read_to_string(stream).unwrap();
    assert_eq!(replies.replace("\r\n", ""), "+PONG+PONG+PONG-X+PONG+PONG+PONG-X+OK");
}
