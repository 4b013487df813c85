//! One connection through the proxy: its bytes in both directions, under whatever the network is like.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    select,
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};

use super::{
    Fault, Network,
    injections::{Injections, Splicer},
};

/// Carries a connection until one side closes it or the network ends it.
pub(super) async fn relay(
    mut client: TcpStream,
    server: SocketAddr,
    network: watch::Receiver<Network>,
    injections: Arc<Injections>,
) {
    let resets = network.borrow().resets;
    let line = Line { network, resets, lost: AtomicBool::new(false) };
    if line.fault() == Fault::BlackHole {
        select! {
            () = swallow(&mut client, &line) => {}
            () = line.is_cut() => {}
        }
        return reset(&client);
    }
    let Ok(mut server) = TcpStream::connect(server).await else {
        return reset(&client);
    };
    // Both only fail when the connection is gone already.
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);

    let cut = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        select! {
            () = carry(from_client, to_server, Direction::Requests, &line) => false,
            () = carry(from_server, to_client, Direction::replies(&injections), &line) => false,
            () = line.is_cut() => true,
        }
    };
    if cut {
        reset(&client);
        reset(&server);
    }
}

/// What both directions of a connection know of it.
struct Line {
    network: watch::Receiver<Network>,
    /// The number of resets when the connection was accepted.
    resets: u64,
    /// Whether a black hole took bytes, without which the rest means nothing.
    lost: AtomicBool,
}

impl Line {
    fn fault(&self) -> Fault {
        self.network.borrow().fault
    }

    fn lose(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    /// Returns when the connection is to be reset.
    async fn is_cut(&self) {
        let cut = |network: &Network| {
            let resumed = network.fault != Fault::BlackHole && self.lost.load(Ordering::Relaxed);
            network.resets > self.resets || resumed
        };
        // Without a sender the proxy is about to end.
        let _ = self.network.clone().wait_for(cut).await;
    }
}

/// Requests go as they are; replies have others put between them, and may be truncated.
enum Direction<'a> {
    Requests,
    Replies { injections: &'a Injections, splicer: Splicer },
}

impl<'a> Direction<'a> {
    fn replies(injections: &'a Injections) -> Self {
        Self::Replies { injections, splicer: Splicer::default() }
    }

    fn edit(&mut self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Requests => bytes.to_vec(),
            Self::Replies { injections, splicer } => splicer.splice(bytes, injections),
        }
    }
}

/// Bytes on their way, and when they may arrive.
struct Parcel {
    due: Instant,
    bytes: Vec<u8>,
}

/// Carries one direction until its end, with what is still on its way then.
///
/// Reading goes on while earlier bytes wait: a delay is not also a limit on the throughput.
async fn carry(from: impl AsyncRead + Unpin, to: impl AsyncWrite + Unpin, direction: Direction<'_>, line: &Line) {
    let truncated = matches!(direction, Direction::Replies { .. });
    let (way, arriving) = mpsc::channel(64);
    let taking = async {
        take(from, way, direction, line).await;
        std::future::pending::<()>().await;
    };
    select! {
        () = taking => {}
        () = give(to, arriving, truncated, line) => {}
    }
}

async fn take(mut from: impl AsyncRead + Unpin, way: mpsc::Sender<Parcel>, mut direction: Direction<'_>, line: &Line) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let delay = match line.fault() {
            Fault::BlackHole => {
                line.lose();
                continue;
            }
            Fault::Latency(delay) => delay,
            _ => Duration::ZERO,
        };
        let parcel = Parcel { due: Instant::now() + delay, bytes: direction.edit(&buffer[..length]) };
        if way.send(parcel).await.is_err() {
            return;
        }
    }
    if line.fault() == Fault::BlackHole {
        // The end of a stream is swallowed like everything else in it.
        line.lose();
        std::future::pending::<()>().await;
    }
}

async fn give(mut to: impl AsyncWrite + Unpin, mut arriving: mpsc::Receiver<Parcel>, truncated: bool, line: &Line) {
    let mut given = Given::default();
    while let Some(Parcel { due, bytes }) = arriving.recv().await {
        // A timer that is due already still takes a millisecond.
        if due > Instant::now() {
            sleep_until(due).await;
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let network = *line.network.borrow();
            let share = match network.fault {
                Fault::BlackHole => {
                    line.lose();
                    break;
                }
                Fault::Truncate(limit) if truncated => given.share(limit, network.epoch, rest.len()),
                Fault::Bandwidth(rate) => Share::paced(rate, rest.len()),
                _ => Share::whole(rest.len()),
            };
            let (now, later) = rest.split_at(share.length);
            if to.write_all(now).await.is_err() {
                return;
            }
            if share.last {
                // It only fails when the connection is gone already.
                let _ = to.shutdown().await;
                return;
            }
            rest = later;
            if !share.pause.is_zero() {
                sleep(share.pause).await;
            }
        }
    }
}

/// What is given next of the bytes that have arrived.
struct Share {
    length: usize,
    pause: Duration,
    /// Whether the connection closes after it.
    last: bool,
}

impl Share {
    fn whole(length: usize) -> Self {
        Self { length, pause: Duration::ZERO, last: false }
    }

    /// A fiftieth of a second's bytes, and the time that they take.
    fn paced(rate: u64, length: usize) -> Self {
        let piece = usize::try_from((rate / 50).max(1)).map_or(length, |piece| piece.min(length));
        Self { length: piece, pause: Duration::from_secs_f64(piece as f64 / rate as f64), last: false }
    }
}

/// How many bytes of replies were given since the fault last changed.
#[derive(Default)]
struct Given {
    epoch: u64,
    bytes: u64,
}

impl Given {
    /// As much as the limit leaves.
    fn share(&mut self, limit: u64, epoch: u64, length: usize) -> Share {
        if self.epoch != epoch {
            *self = Self { epoch, bytes: 0 };
        }
        let left = limit.saturating_sub(self.bytes);
        let length = usize::try_from(left).map_or(length, |left| left.min(length));
        self.bytes += length as u64;
        Share { length, pause: Duration::ZERO, last: self.bytes >= limit }
    }
}

/// Takes what a client sends to a server that it never reaches.
async fn swallow(client: &mut TcpStream, line: &Line) {
    line.lose();
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(1..) = client.read(&mut buffer).await {}
    std::future::pending::<()>().await;
}

/// Makes the connection end with a TCP reset when it is dropped.
fn reset(stream: &TcpStream) {
    // It only fails when the connection is gone already.
    let _ = stream.set_zero_linger();
}
