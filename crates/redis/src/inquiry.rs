//! Asking servers one after another, until one answers: where the others are is known to each of them.

use crate::{
    client::{Client, Dialer, Link, Patience, Reply},
    config::Server,
    fault::Fault,
};
use bytes::Bytes;
use std::sync::Arc;

/// Asks over a connection of its own, which is kept as long as it answers.
pub(crate) struct Inquiry {
    dialer: Arc<Dialer>,
    kept: Option<Kept>,
}

struct Kept {
    server: Server,
    client: Client,
    /// With it, the connection ends.
    _link: Link,
}

impl Inquiry {
    pub(crate) fn new(dialer: Arc<Dialer>) -> Self {
        Self { dialer, kept: None }
    }

    /// What the first of `servers` answers that does, and which it is; else what is wrong with the last of them.
    ///
    /// The one that answered before is asked first.
    pub(crate) async fn ask(
        &mut self,
        servers: impl IntoIterator<Item = Server>,
        command: &'static str,
        words: &[&str],
    ) -> Result<(Reply, Server), Fault> {
        let mut last = Fault::Down;
        let kept = self.kept.as_ref().map(|kept| kept.server.clone());
        for server in kept.into_iter().chain(servers) {
            match self.ask_one(&server, command, words).await {
                Ok(reply) => return Ok((reply, server)),
                Err(fault) => last = fault,
            }
            self.forget();
        }
        Err(last)
    }

    /// Gives up the connection, so that another server may be asked first.
    pub(crate) fn forget(&mut self) {
        self.kept = None;
    }

    async fn ask_one(&mut self, server: &Server, command: &'static str, words: &[&str]) -> Result<Reply, Fault> {
        let client = match &self.kept {
            Some(kept) if kept.server == *server => kept.client.clone(),
            _ => {
                let client = self.dialer.client(server).map_err(|error| Fault::Connection(error.to_string()))?;
                let link = client.connect().await?;
                self.kept = Some(Kept { server: server.clone(), client: client.clone(), _link: link });
                client
            }
        };
        let words = words.iter().map(|word| Bytes::copy_from_slice(word.as_bytes())).collect();
        client.call(Patience::Check, command, None, words).await
    }
}
