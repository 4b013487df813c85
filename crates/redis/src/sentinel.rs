//! Which server the sentinels name as the primary.
//!
//! They are asked once a second, and at once when a connection to Redis breaks: a primary that is cut off, and does not
//! know that it is none any more, keeps its connections.

use crate::{
    client::{Dialer, Reply},
    config::{Address, Server},
    fault::Fault,
    inquiry::Inquiry,
    lane::Place,
    slot::named,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, oneshot},
    time::{sleep, timeout},
};

/// How often they are asked while all is well, and at most after a connection broke.
const ASKED_EVERY: Duration = Duration::from_secs(1);
/// How often they are asked at most.
const ASKED_AT_MOST: Duration = Duration::from_millis(100);

pub(crate) struct Sentinels {
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) addresses: Vec<Address>,
    pub(crate) service: String,
    /// Where the connections to Redis lead.
    pub(crate) place: Arc<Place>,
    pub(crate) alarm: Arc<Notify>,
}

impl Sentinels {
    /// Follows what they say for as long as the task lives; tells `first` what came of asking for the first time.
    pub(crate) async fn follow(self, first: oneshot::Sender<Result<(), Fault>>) {
        let (mut inquiry, mut first, mut told) = (Inquiry::new(Arc::clone(&self.dialer)), Some(first), None);
        let mut begin = fastrand::usize(..self.addresses.len().max(1));
        loop {
            let outcome = self.ask(&mut inquiry, begin).await.map(|server| self.lead_to(server));
            match &outcome {
                Ok(()) => told = None,
                Err(fault) if told.as_ref() != Some(fault) => {
                    tracing::warn!(service = self.service, ?fault, "no sentinel names the primary; asking on");
                    told = Some(fault.clone());
                }
                Err(_) => {}
            }
            if let Some(first) = first.take() {
                let _ = first.send(outcome);
            }
            sleep(ASKED_AT_MOST.mul_f64(1.0 + fastrand::f64())).await;
            if timeout(ASKED_EVERY.mul_f64(1.0 - fastrand::f64() / 4.0), self.alarm.notified()).await.is_ok() {
                // The one that was asked may be the one that is behind.
                inquiry.forget();
                begin = begin.wrapping_add(1);
            }
        }
    }

    async fn ask(&self, inquiry: &mut Inquiry, begin: usize) -> Result<Server, Fault> {
        let sentinels = (0..self.addresses.len()).map(|at| {
            let address = &self.addresses[begin.wrapping_add(at) % self.addresses.len()];
            Server::Tcp(address.clone())
        });
        let words = ["get-master-addr-by-name", &self.service];
        let (reply, sentinel) = inquiry.ask(sentinels, "SENTINEL", &words).await?;
        match reply {
            Reply::Nil => {
                Err(Fault::Unnamed(format!("the sentinel at {sentinel} knows no service {:?}", self.service)))
            }
            reply => primary(reply, &sentinel).ok_or(Fault::Foreign),
        }
    }

    fn lead_to(&self, server: Server) {
        self.place.send_if_modified(|place| {
            let moved = place.as_ref() != Some(&server);
            if moved {
                tracing::info!(service = self.service, server = %server, "the sentinels name the primary");
                *place = Some(server);
            }
            moved
        });
    }
}

/// Reads a host and a port.
fn primary(reply: Reply, sentinel: &Server) -> Option<Server> {
    let mut parts = reply.into_array()?.into_iter().map(Reply::into_bytes);
    let (host, port) = (parts.next()??, parts.next()??);
    let port = std::str::from_utf8(&port).ok()?.parse().ok()?;
    named(std::str::from_utf8(&host).ok()?, port, sentinel)
}
