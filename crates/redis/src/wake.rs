//! Being told: that another process has used its ticket, or given it back; and what it has invalidated.
//!
//! A connection of its own, which is made when there is something to listen for. What is not heard is found a little later by
//! asking, so nothing here is checked twice.

use crate::{
    client::{Heard, Messages},
    cluster::Cluster,
    lane::{Audience, Lane},
    log::Log,
    slot::slot,
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
    listening: Arc<Listening>,
    /// What hears whatever is told to all.
    ear: Arc<Ear>,
    cluster: Option<Arc<Cluster>>,
    runtime: Handle,
    tasks: Mutex<Vec<AbortHandle>>,
}

/// A connection that listens.
struct Ear {
    lane: Arc<Lane>,
    audience: Audience,
    channels: Mutex<HashSet<String>>,
    listening: Arc<Listening>,
}

/// Who waits for what.
#[derive(Default)]
struct Listening {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By channel.
    logs: HashMap<String, Arc<Log>>,
    /// By the name of the ticket.
    waiting: HashMap<String, Arc<Notify>>,
}

/// Somebody's interest in a ticket; it ends when this is dropped.
pub(crate) struct Interest {
    listening: Arc<Listening>,
    ticket: String,
    notify: Arc<Notify>,
}

/// Where a namespace's tickets are told of.
pub(crate) fn channel(namespace: &Namespace) -> String {
    format!("{{{}}}:wake", namespace.name())
}

impl Wakes {
    pub(crate) fn new(lane: Arc<Lane>, cluster: Option<Arc<Cluster>>, runtime: Handle) -> Self {
        let listening = Arc::<Listening>::default();
        let ear = Arc::new(Ear::new(lane, Audience::All, &listening));
        Self { listening, ear, cluster, runtime, tasks: Mutex::default() }
    }

    /// Begins to listen for word of `ticket`.
    pub(crate) fn listen(&self, namespace: &Namespace, ticket: String) -> Interest {
        let notify = self.listening.state().waiting.entry(ticket.clone()).or_default().clone();
        self.subscribe(&self.ear, channel(namespace));
        Interest { listening: Arc::clone(&self.listening), ticket, notify }
    }

    /// Begins to tell `log` what comes on its channel. In a cluster that is one of the log's slot, so that its servers alone are
    /// kept busy by it.
    pub(crate) fn follow(&self, channel: &str, log: Arc<Log>) {
        self.listening.state().logs.insert(channel.to_owned(), log);
        let ear = match &self.cluster {
            None => Arc::clone(&self.ear),
            Some(cluster) => {
                let lane = cluster.ear(Some(slot(channel.as_bytes())));
                Arc::new(Ear::new(lane, Audience::Slot, &self.listening))
            }
        };
        self.subscribe(&ear, channel.to_owned());
    }

    /// Has a channel listened to; makes the connection for the first.
    fn subscribe(&self, ear: &Arc<Ear>, channel: String) {
        let (is_first, is_new) = {
            let mut channels = ear.channels();
            (channels.is_empty(), channels.insert(channel.clone()))
        };
        if is_first {
            // Nobody waits for the first attempt.
            let (first, _) = oneshot::channel();
            let kept_up = self.runtime.spawn(Arc::clone(&ear.lane).keep_up(first));
            let heard = self.runtime.spawn(Arc::clone(ear).hear());
            let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            tasks.extend([kept_up.abort_handle(), heard.abort_handle()]);
        }
        if is_new {
            let ear = Arc::clone(ear);
            self.runtime.spawn(async move { ear.lane.subscribe(&channel, ear.audience).await });
        }
    }
}

impl Drop for Wakes {
    fn drop(&mut self) {
        let tasks = self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner);
        tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Ear {
    fn new(lane: Arc<Lane>, audience: Audience, listening: &Arc<Listening>) -> Self {
        Self { lane, audience, channels: Mutex::default(), listening: Arc::clone(listening) }
    }

    /// Passes on what is heard, and subscribes anew whenever the connection was made anew: fred keeps no account of that.
    async fn hear(self: Arc<Self>) {
        let (mut messages, mut connections) = (self.lane.messages(), self.lane.connections());
        loop {
            tokio::select! {
                heard = messages.next() => match heard {
                    Heard::Message { channel, text } => self.listening.tell(&channel, &text),
                    Heard::Lagged => self.listening.tell_all(),
                    // The connection is given up; there will be another.
                    Heard::Ended => messages = Messages::none(),
                },
                changed = connections.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    messages = self.lane.messages();
                    let channels: Vec<String> = self.channels().iter().cloned().collect();
                    for channel in channels {
                        self.lane.subscribe(&channel, self.audience).await;
                    }
                    self.listening.tell_all();
                }
            }
        }
    }

    fn channels(&self) -> MutexGuard<'_, HashSet<String>> {
        // It is never half changed.
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listening {
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
        let mut state = self.listening.state();
        // The map's own, and this one.
        if Arc::strong_count(&self.notify) <= 2 {
            state.waiting.remove(&self.ticket);
        }
    }
}
