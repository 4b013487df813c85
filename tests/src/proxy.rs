//! A TCP proxy in front of a server whose network can be made bad, and good again, while it runs.

use crate::server::USER;
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc as blocking},
    thread,
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, TcpSocket},
    runtime, select,
    sync::{mpsc, watch},
};

mod injections;
mod relay;

use injections::Injections;
use relay::relay;

/// A proxy that passes every byte on until it is told otherwise.
///
/// It runs on a thread of its own, so that it works for blocking and for asynchronous clients and
/// keeps its time when the tested code blocks. Every method has taken effect when it returns. One
/// fault replaces another; [`reset`](Self::reset) and the injections combine with any. The proxy
/// and its connections end when it is dropped.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    orders: Option<mpsc::UnboundedSender<Order>>,
    injections: Arc<Injections>,
    accepted: Arc<Mutex<Vec<Instant>>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl FaultProxy {
    /// Starts a proxy on a free port. The server need not be there yet: a client whose connection
    /// cannot be passed on is accepted and then reset.
    pub fn start(server: SocketAddr) -> Self {
        let reserved = bind((Ipv4Addr::LOCALHOST, 0).into());
        let address = reserved.local_addr().expect("a bound socket has an address");
        let (orders, received) = mpsc::unbounded_channel();
        let injections = Arc::new(Injections::default());
        let accepted = Arc::new(Mutex::new(Vec::new()));
        let gate =
            Gate { reserved, address, server, injections: Arc::clone(&injections), accepted: Arc::clone(&accepted) };
        let runtime =
            runtime::Builder::new_current_thread().enable_all().build().expect("a process can have one more runtime");
        let thread = thread::spawn(move || runtime.block_on(gate.keep(received)));
        let proxy = Self { address, orders: Some(orders), injections, accepted, thread: Some(thread) };
        // The first order is answered by an open gate.
        proxy.set(Fault::None);
        proxy
    }

    /// Where clients connect to.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// The port of [`FaultProxy::addr`].
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The URL for a client, with the user of [`RedisServer::url`](crate::RedisServer::url).
    pub fn url(&self) -> String {
        format!("redis://{USER}:{USER}@{}", self.address)
    }

    /// Ends every fault and injection. Connections that a black hole took bytes of are reset.
    pub fn pass(&self) {
        self.injections.clear();
        self.set(Fault::None);
    }

    /// Delays every byte by this long, in each direction.
    pub fn latency(&self, delay: Duration) {
        self.set(Fault::Latency(delay));
    }

    /// Accepts connections and takes bytes, in both directions, and answers nothing, not even
    /// that a side has closed.
    pub fn black_hole(&self) {
        self.set(Fault::BlackHole);
    }

    /// Passes on so many bytes of the server's replies on each connection, counted from now, then
    /// closes it.
    pub fn truncate_after(&self, bytes: u64) {
        self.set(Fault::Truncate(bytes));
    }

    /// Passes on no more than so many bytes per second, in each direction of each connection.
    pub fn bandwidth(&self, bytes_per_second: u64) {
        self.set(Fault::Bandwidth(bytes_per_second.max(1)));
    }

    /// Refuses new connections, as the port of a server that is down does; those that are open
    /// stay, unless they are [`reset`](Self::reset).
    pub fn refuse(&self) {
        self.set(Fault::Refuse);
    }

    /// Ends every open connection with a TCP reset.
    pub fn reset(&self) {
        self.order(|network| network.resets += 1);
    }

    /// Puts a foreign reply before the next reply of the server that begins on any connection.
    pub fn inject(&self, reply: &[u8]) {
        self.injections.once(reply);
    }

    /// Puts a foreign reply after every `n`-th reply of the server on each connection; it is sent
    /// together with the reply that follows it.
    pub fn inject_every(&self, n: u64, reply: &[u8]) {
        self.injections.every(n, reply);
    }

    /// How many connections were accepted so far.
    pub fn connections(&self) -> usize {
        lock(&self.accepted).len()
    }

    /// When each connection was accepted, in order.
    pub fn accept_log(&self) -> Vec<Instant> {
        lock(&self.accepted).clone()
    }

    fn set(&self, fault: Fault) {
        self.order(move |network| {
            network.fault = fault;
            network.epoch += 1;
        });
    }

    fn order(&self, change: impl FnOnce(&mut Network) + Send + 'static) {
        let (done, carried_out) = blocking::channel();
        let order = Order { change: Box::new(change), done };
        let sent = self.orders.as_ref().is_some_and(|orders| orders.send(order).is_ok());
        let answered = sent && carried_out.recv().is_ok();
        assert!(answered, "the proxy's thread has ended before its time");
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // A panic of that thread was printed when it happened.
            let _ = thread.join();
        }
    }
}

/// A change of the network, and whom to tell that it has taken effect.
struct Order {
    change: Box<dyn FnOnce(&mut Network) + Send>,
    done: blocking::Sender<()>,
}

/// What the network is like now.
#[derive(Clone, Copy, Debug, Default)]
struct Network {
    fault: Fault,
    /// Counts the changes of the fault.
    epoch: u64,
    /// Counts the orders to reset every connection.
    resets: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fault {
    #[default]
    None,
    Latency(Duration),
    BlackHole,
    Truncate(u64),
    Bandwidth(u64),
    Refuse,
}

/// The proxy's thread: it carries out orders and accepts connections.
struct Gate {
    /// Bound but not listening: clients are refused, and nobody else is given the port.
    reserved: TcpSocket,
    address: SocketAddr,
    server: SocketAddr,
    injections: Arc<Injections>,
    accepted: Arc<Mutex<Vec<Instant>>>,
}

impl Gate {
    /// Ends when the last sender of orders is gone.
    async fn keep(self, mut orders: mpsc::UnboundedReceiver<Order>) {
        let (network, watched) = watch::channel(Network::default());
        let mut listener = None;
        loop {
            select! {
                order = orders.recv() => {
                    let Some(order) = order else { break };
                    network.send_modify(order.change);
                    if network.borrow().fault == Fault::Refuse {
                        listener = None;
                    } else if listener.is_none() {
                        listener = Some(self.listen());
                    }
                    // The sender waits for this unless its test has panicked.
                    let _ = order.done.send(());
                }
                client = accept(listener.as_ref()) => {
                    lock(&self.accepted).push(Instant::now());
                    tokio::spawn(relay(client, self.server, watched.clone(), Arc::clone(&self.injections)));
                }
            }
        }
        drop(self.reserved);
    }

    fn listen(&self) -> TcpListener {
        bind(self.address).listen(1024).expect("the port is reserved for this proxy")
    }
}

/// The next client; never one while nobody listens.
async fn accept(listener: Option<&TcpListener>) -> tokio::net::TcpStream {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    loop {
        // A client that has gone again before it was accepted is not worth a word.
        if let Ok((client, _)) = listener.accept().await {
            return client;
        }
    }
}

/// A socket that shares its port with the others of this proxy.
fn bind(address: SocketAddr) -> TcpSocket {
    let bound = || {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.set_reuseport(true)?;
        socket.bind(address)?;
        Ok::<_, std::io::Error>(socket)
    };
    bound().unwrap_or_else(|error| panic!("the proxy cannot bind {address}: {error}"))
}

/// Nothing panics while it holds a lock of this module.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
