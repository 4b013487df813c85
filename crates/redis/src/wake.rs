//! Being told: that another process has used its ticket, or given it back; and what it has invalidated.
//!
//! A connection of its own, which is made when there is something to listen for. What is not heard is found a little later by
//! asking, so nothing here is checked twice.

use crate::{
    client::{Heard, Messages},
    lane::Lane,
    log::Log,
};
use larder::semantics::Namespace;
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{
    runtime::Handle,
    sync::{Notify, oneshot},
    task::AbortHandle,
};

pub(crate) struct Wakes {
    shared: Arc<Shared>,
    runtime: Handle,
    tasks: Mutex<Vec<AbortHandle>>,
}

struct Shared {
    lane: Arc<Lane>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    channels: HashSet<String>,
    /// By channel.
    logs: HashMap<String, Arc<Log>>,
    /// By the name of the ticket.
    waiting: HashMap<String, Arc<Notify>>,
}

/// Somebody's interest in a ticket; it ends when this is dropped.
pub(crate) struct Interest {
    shared: Arc<Shared>,
    ticket: String,
    notify: Arc<Notify>,
}

/// Where a namespace's tickets are told of.
pub(crate) fn channel(namespace: &Namespace) -> String {
    format!("{{{}}}:wake", namespace.name())
}

impl Wakes {
    pub(crate) fn new(lane: Arc<Lane>, runtime: Handle) -> Self {
        let shared = Arc::new(Shared { lane, state: Mutex::default() });
        Self { shared, runtime, tasks: Mutex::default() }
    }

    /// Begins to listen for word of `ticket`.
    pub(crate) fn listen(&self, namespace: &Namespace, ticket: String) -> Interest {
        let channel = channel(namespace);
        let mut state = self.shared.state();
        let is_new = state.channels.insert(channel.clone());
        let notify = state.waiting.entry(ticket.clone()).or_default().clone();
        drop(state);
        if is_new {
            self.subscribe(channel);
        }
        Interest { shared: Arc::clone(&self.shared), ticket, notify }
    }

    /// Begins to tell `log` what comes on its channel.
    pub(crate) fn follow(&self, channel: String, log: Arc<Log>) {
        self.shared.state().channels.insert(channel.clone());
        self.shared.state().logs.insert(channel.clone(), log);
        self.subscribe(channel);
    }

    fn subscribe(&self, channel: String) {
        self.start();
        let shared = Arc::clone(&self.shared);
        self.runtime.spawn(async move { shared.lane.subscribe(channel).await });
    }

    /// Makes the connection, the first time.
    fn start(&self) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if tasks.is_empty() {
            let (lane, shared) = (Arc::clone(&self.shared.lane), Arc::clone(&self.shared));
            // Nobody waits for the first attempt.
            let (first, _) = oneshot::channel();
            tasks.push(self.runtime.spawn(lane.keep_up(first)).abort_handle());
            tasks.push(self.runtime.spawn(shared.hear()).abort_handle());
        }
    }
}

impl Drop for Wakes {
    fn drop(&mut self) {
        let tasks = self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner);
        tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Shared {
    /// Passes on what is heard, and subscribes anew whenever the connection was made anew: fred keeps no account of that.
    async fn hear(self: Arc<Self>) {
        let (mut messages, mut connections) = (self.lane.messages(), self.lane.connections());
        loop {
            tokio::select! {
                heard = messages.next() => match heard {
                    Heard::Message { channel, text } => self.tell(&channel, &text),
                    Heard::Lagged => self.tell_all(),
                    // The connection is given up; there will be another.
                    Heard::Ended => messages = Messages::none(),
                },
                changed = connections.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    messages = self.lane.messages();
                    let channels: Vec<String> = self.state().channels.iter().cloned().collect();
                    for channel in channels {
                        self.lane.subscribe(channel).await;
                    }
                    self.tell_all();
                }
            }
        }
    }

    fn tell(&self, channel: &str, text: &str) {
        let log = self.state().logs.get(channel).cloned();
        if let Some(log) = log {
            return log.hear(text);
        }
        if let Some(notify) = self.state().waiting.get(text) {
            // Kept for whoever is about to wait: of this process, that is one at a time.
            notify.notify_one();
        }
    }

    fn tell_all(&self) {
        let state = self.state();
        state.waiting.values().for_each(|notify| notify.notify_one());
        state.logs.values().for_each(|log| log.may_have_missed());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Maps are never half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Interest {
    /// Waits for word.
    pub(crate) async fn heard(&self) {
        self.notify.notified().await;
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        // The map's own, and this one.
        if Arc::strong_count(&self.notify) <= 2 {
            state.waiting.remove(&self.ticket);
        }
    }
}
