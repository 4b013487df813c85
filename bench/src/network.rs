//! The way from one process to Redis, which breaks as it is told: for all of its connections, or for some of them.

use crate::process::Outcome;
use larder_tests::ReplyScanner;
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    select,
    sync::watch,
    time::sleep,
};

/// What goes wrong on a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Connections are reset, and new ones as well.
    Cut,
    /// Connections are reset once.
    Drop,
    /// What is sent arrives so much later, and what is sent behind it as well.
    Delay(Duration),
    /// What is sent never arrives, not even that a side has closed.
    BlackHole,
    /// What is published does not arrive, and everything else does.
    Mute,
}

/// Which connections a fault meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// All.
    All,
    /// Each as chance has it.
    Some,
    /// Those on which something was subscribed to.
    Subscribers,
}

/// A TCP relay to a server.
#[derive(Debug)]
pub struct Road {
    address: SocketAddr,
    state: watch::Sender<State>,
}

/// What a road is like now.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    trouble: Option<(Fault, Reach)>,
    /// Counts the changes.
    number: u64,
}

impl Road {
    /// Opens a road that nothing is wrong with.
    ///
    /// # Errors
    ///
    /// When there is no free port.
    pub async fn to(server: SocketAddr) -> Outcome<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (address, state) = (listener.local_addr()?, watch::Sender::default());
        let watched = state.subscribe();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(client, server, watched.clone()));
            }
        });
        Ok(Self { address, state })
    }

    /// The URL for a client of the server.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Breaks it, or breaks it in another way.
    pub fn break_by(&self, fault: Fault, reach: Reach) {
        self.state.send_modify(|state| *state = State { trouble: Some((fault, reach)), number: state.number + 1 });
    }

    /// Ends what is wrong with it. Connections that have lost something are reset.
    pub fn mend(&self) {
        self.state.send_modify(|state| *state = State { trouble: None, number: state.number + 1 });
    }
}

/// Carries a connection until one side closes it or the road does.
async fn relay(mut client: TcpStream, server: SocketAddr, state: watch::Receiver<State>) {
    let since = state.borrow().number;
    let (is_subscriber, has_lost) = (AtomicBool::new(false), AtomicBool::new(false));
    let line = Line { state, since, lot: fastrand::bool(), is_subscriber, has_lost };
    if line.fault() != Some(Fault::Cut)
        && let Ok(mut server) = TcpStream::connect(server).await
    {
        // Both only fail when the connection is gone already.
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        select! {
            () = carry(from_client, to_server, Direction::Requests, &line) => {}
            () = carry(from_server, to_client, Direction::Replies, &line) => {}
            () = line.is_ended() => {}
        }
        let _ = server.set_zero_linger();
    }
    let _ = client.set_zero_linger();
}

/// One connection.
struct Line {
    state: watch::Receiver<State>,
    /// The number of the road's changes when it was made.
    since: u64,
    lot: bool,
    is_subscriber: AtomicBool,
    /// Whether a black hole took bytes, without which the rest means nothing.
    has_lost: AtomicBool,
}

impl Line {
    fn fault(&self) -> Option<Fault> {
        self.met_by(&self.state.borrow())
    }

    /// What is wrong with this one.
    fn met_by(&self, state: &State) -> Option<Fault> {
        let (fault, reach) = state.trouble?;
        let is_meant = match reach {
            Reach::All => true,
            Reach::Some => self.lot,
            Reach::Subscribers => self.is_subscriber.load(Ordering::Relaxed),
        };
        let is_new = fault == Fault::Drop && self.since == state.number;
        (is_meant && !is_new).then_some(fault)
    }

    fn lose(&self) {
        self.has_lost.store(true, Ordering::Relaxed);
    }

    /// Returns when the road has ended it.
    async fn is_ended(&self) {
        let is_ended = |state: &State| match self.met_by(state) {
            Some(Fault::Cut | Fault::Drop) => true,
            Some(Fault::BlackHole) => false,
            _ => self.has_lost.load(Ordering::Relaxed),
        };
        // Without a sender there is no road any more.
        let _ = self.state.clone().wait_for(is_ended).await;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Requests,
    Replies,
}

async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, direction: Direction, line: &Line) {
    let (mut buffer, mut muffler) = (vec![0; 64 << 10], Muffler::default());
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let mut bytes = buffer[..length].to_vec();
        if direction == Direction::Requests && bytes.windows(9).any(|word| word == b"SUBSCRIBE") {
            line.is_subscriber.store(true, Ordering::Relaxed);
        }
        let fault = line.fault();
        if direction == Direction::Replies {
            bytes = muffler.pass(&bytes, fault == Some(Fault::Mute));
        }
        match fault {
            Some(Fault::Cut) => return,
            Some(Fault::BlackHole) => {
                line.lose();
                continue;
            }
            Some(Fault::Delay(delay)) => sleep(delay).await,
            Some(Fault::Drop | Fault::Mute) | None => {}
        }
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
    if line.fault() == Some(Fault::BlackHole) {
        line.lose();
        std::future::pending::<()>().await;
    }
}

/// Takes the messages out of a stream of replies.
#[derive(Default)]
struct Muffler {
    scanner: ReplyScanner,
    /// Whether the reply that has begun is taken out.
    takes: bool,
}

impl Muffler {
    fn pass(&mut self, mut bytes: &[u8], is_on: bool) -> Vec<u8> {
        let mut passed = Vec::with_capacity(bytes.len());
        while !bytes.is_empty() {
            if self.scanner.at_boundary() {
                let head = bytes.get(1..).unwrap_or_default();
                self.takes = is_on && head.starts_with(b"3\r\n$7\r\nmessage\r\n");
            }
            let (reply, rest) = bytes.split_at(self.scanner.advance(bytes));
            if !self.takes {
                passed.extend(reply);
            }
            bytes = rest;
        }
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_out_and_nothing_else_is() {
        let message = ">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$2\r\nhi\r\n";
        let stream = format!("+a\r\n{message}$3\r\n+c\r\r\n{message}:1\r\n");
        assert_eq!(Muffler::default().pass(stream.as_bytes(), false), stream.as_bytes());
        let mut muffler = Muffler::default();
        let (first, rest) = stream.split_at(30);
        let passed = [muffler.pass(first.as_bytes(), true), muffler.pass(rest.as_bytes(), true)].concat();
        assert_eq!(String::from_utf8_lossy(&passed), "+a\r\n$3\r\n+c\r\r\n:1\r\n");
    }
}
