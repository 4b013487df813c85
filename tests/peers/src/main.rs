//! Asks the rows of `tests/tests/peers` of other caches for tower, and prints the table: `cargo xtask peers`.

mod cost;
#[path = "../../tests/peers/larder.rs"]
mod larder_subject;
#[path = "../../tests/peers/rows.rs"]
mod rows;
mod subjects;
mod values;

use std::{
    future::Future,
    io::{self, Write},
    pin::Pin,
    sync::mpsc,
    thread,
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use rows::{Outcome, Subject, Wrong};
use subjects::Peer;
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt;

fn main() -> io::Result<()> {
    // A panic is a result here, and stands in the table.
    std::panic::set_hook(Box::new(|_| {}));
    let peers = subjects::peers();
    let hits = || peers.iter().map(|peer| cell(in_time(peer, cost::hits)));
    if cfg!(feature = "allocations") {
        let asks = format!("the same: allocations; the bare router: {}", cost::bare());
        return writeln!(io::stdout(), "{}", line("P2", &asks, hits()));
    }
    let mut lines = vec![header(&peers)];
    let fits = peers.iter().map(on_router);
    lines.push(line("–", "fits `Router::layer` of axum 0.8", fits.map(cell)));
    for row in &ROWS {
        lines.push(line(row.name, row.asks, peers.iter().map(|peer| cell(ask(row, peer)))));
    }
    let asks = format!("a hit of 1 KiB of JSON with three headers; the bare router: {}", cost::bare());
    lines.push(line("P1", &asks, hits()));
    // What another build of this program has counted, as counting slows every allocation.
    lines.extend(std::env::args().nth(1));
    writeln!(io::stdout(), "{ABOUT}\n\n{}\n\n{VALUES}\n\n{}", lines.join("\n"), values::table()?)
}

const ABOUT: &str = "\
# larder and its peers

Made by `cargo xtask peers`, which runs this crate: the rows of `tests/tests/peers/rows.rs`, asked of larder and of five
other caches for tower from the registry. Each is set up as its documentation says, with its defaults, and in memory
but for R2 and R3. What is wrong is bold. Times are of the machine that ran it. For larder every row but P1 and P2, which are
measured, is a test in `tests/tests/peers.rs`.";

const VALUES: &str = "\
## Values

Beside them, crates that keep values. Each is set up so that one fetches for all who ask, but for quick_cache, which is what
any of them must do at least.";

/// One line of the table.
struct Row {
    name: &'static str,
    asks: &'static str,
    ask: Ask,
}

type Ask = fn(&dyn Subject) -> Pin<Box<dyn Future<Output = Outcome> + Send + '_>>;

const ROWS: [Row; 25] = [
    Row {
        name: "T1",
        asks: "the second GET is a hit; the headers that tell",
        ask: |subject| Box::pin(rows::t1(subject)),
    },
    Row { name: "T2", asks: "the query is in the key", ask: |subject| Box::pin(rows::t2(subject)) },
    Row { name: "T3", asks: "HEAD, then GET", ask: |subject| Box::pin(rows::t3(subject)) },
    Row { name: "T4", asks: "`Vary: Accept-Language`", ask: |subject| Box::pin(rows::t4(subject)) },
    Row { name: "T4b", asks: "`Vary` and `public` without a lifetime", ask: |subject| Box::pin(rows::t4b(subject)) },
    Row {
        name: "T5",
        asks: "`Authorization` of one user, then of another",
        ask: |subject| Box::pin(rows::t5(subject)),
    },
    Row { name: "T6", asks: "`Set-Cookie` is not replayed", ask: |subject| Box::pin(rows::t6(subject)) },
    Row { name: "T7", asks: "POST, PUT and DELETE run every time", ask: |subject| Box::pin(rows::t7(subject)) },
    Row {
        name: "T8",
        asks: "`no-store`, `private` and 500 are not cached",
        ask: |subject| Box::pin(rows::t8(subject)),
    },
    Row { name: "T9", asks: "`max-age=1` is honored", ask: |subject| Box::pin(rows::t9(subject)) },
    Row { name: "T10", asks: "206, then the full GET", ask: |subject| Box::pin(rows::t10(subject)) },
    Row { name: "T12", asks: "50 concurrent cold GETs", ask: |subject| Box::pin(rows::t12(subject)) },
    Row { name: "T13", asks: "the leader's client leaves, 10 follow", ask: |subject| Box::pin(rows::t13(subject)) },
    Row {
        name: "T14",
        asks: "20 concurrent uncacheable of 100 ms, twice",
        ask: |subject| Box::pin(rows::t14(subject)),
    },
    Row { name: "T15", asks: "an endless body streams", ask: |subject| Box::pin(rows::t15(subject)) },
    Row { name: "T17", asks: "trailers survive a miss", ask: |subject| Box::pin(rows::t17(subject)) },
    Row {
        name: "T18",
        asks: "two `Link` lines and a non-ASCII header on a hit",
        ask: |subject| Box::pin(rows::t18(subject)),
    },
    Row { name: "T20", asks: "If-None-Match on a hit", ask: |subject| Box::pin(rows::t20(subject)) },
    Row { name: "T24", asks: "request `no-cache`", ask: |subject| Box::pin(rows::t24(subject)) },
    Row { name: "T24b", asks: "`only-if-cached`, cold", ask: |subject| Box::pin(rows::t24b(subject)) },
    Row { name: "T25", asks: "POST 2xx invalidates GET", ask: |subject| Box::pin(rows::t25(subject)) },
    Row { name: "T26", asks: "gzip inside, outside, of its own", ask: |subject| Box::pin(rows::t26(subject)) },
    Row {
        name: "R1",
        asks: "hits and misses around `ConcurrencyLimit(1)`",
        ask: |subject| Box::pin(rows::r1(subject)),
    },
    Row { name: "R2", asks: "Redis killed for 8 s, 20 ms handler", ask: |subject| Box::pin(rows::r2(subject)) },
    Row { name: "R3", asks: "Redis frozen for 6 s, 20 ms handler", ask: |subject| Box::pin(rows::r3(subject)) },
];

fn ask(row: &Row, peer: &Peer) -> Outcome {
    eprintln!("{}: {}", peer.name, row.name);
    in_time(peer, row.ask)
}

/// Asks on a thread and a runtime of its own, which are left behind when they hang.
fn in_time(peer: &Peer, ask: Ask) -> Outcome {
    const LIMIT: Duration = Duration::from_secs(60);
    let (subject, (tell, told)) = (peer.subject.clone(), mpsc::channel());
    let asking = thread::spawn(move || {
        let runtime = runtime().map_err(|error| Wrong(error.to_string()))?;
        let outcome = runtime.block_on(ask(&*subject));
        runtime.shutdown_background();
        // Nobody listens any more when it took too long.
        let _ = tell.send(outcome);
        Ok::<_, Wrong>(())
    });
    match told.recv_timeout(LIMIT) {
        Ok(outcome) => outcome,
        Err(mpsc::RecvTimeoutError::Timeout) => Err(Wrong(format!("HANG: no end in {} s", LIMIT.as_secs()))),
        Err(mpsc::RecvTimeoutError::Disconnected) => asking
            .join()
            .unwrap_or_else(|panic| Err(Wrong(format!("PANIC: {}", message(&*panic)))))
            .map(|()| String::new()),
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a word")
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

/// Whether it can be put around a router, seen by a request through it.
fn on_router(peer: &Peer) -> Outcome {
    let around = peer.on_router.map_err(|why| Wrong(why.to_owned()))?;
    let asked = async {
        let router = around(Router::new().route("/", get("the body")));
        router.oneshot(http::Request::new(Body::empty())).await.map(|response| response.status())
    };
    let status = runtime().map_err(|error| Wrong(error.to_string()))?.block_on(asked);
    match status {
        Ok(http::StatusCode::OK) => Ok("yes".to_owned()),
        other => Err(Wrong(format!("it answers {other:?}"))),
    }
}

fn header(peers: &[Peer]) -> String {
    let names = peers.iter().map(|peer| format!("{} {}", peer.name, version(peer.name)));
    let rule = vec!["|---"; peers.len() + 2].concat();
    format!("{}\n{rule}|", line("#", "row", names))
}

fn line(name: &str, asks: &str, cells: impl Iterator<Item = String>) -> String {
    let cells: Vec<_> = cells.map(|cell| cell.replace('|', "\\|").replace('\n', " ")).collect();
    format!("| {name} | {asks} | {} |", cells.join(" | "))
}

fn cell(outcome: Outcome) -> String {
    match outcome {
        Ok(told) if told.is_empty() => "ok".to_owned(),
        Ok(told) => told,
        Err(Wrong(seen)) => format!("**{seen}**"),
    }
}

/// The version that is built, as the lock file has it.
fn version(name: &str) -> &'static str {
    let locked = include_str!("../Cargo.lock").split("[[package]]");
    let package = locked.into_iter().find(|package| package.contains(&format!("\nname = \"{name}\"\n")));
    package.and_then(|package| package.split("version = \"").nth(1)?.split('"').next()).unwrap_or("?")
}
