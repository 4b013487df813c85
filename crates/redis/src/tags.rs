//! The tags of a namespace: when each was invalidated, by the clock of the namespace.

use crate::{client::Patience, client::Reply, fault::Fault, lanes::Lanes};
use bytes::Bytes;
use larder::semantics::{Key, Namespace, tags::Record};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How long Redis keeps the record of a tag. One that is gone counts as invalidated at the present time of the clock, so
/// its length decides how many responses are fetched once too often, and nothing else.
const RECORD_LIFE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What this process knows of the clocks.
pub(crate) struct Tags {
    lanes: Arc<Lanes>,
    /// By namespace: what its clock showed last, as far as is known. One that lags makes a response look older than it is,
    /// which costs a fetch and no more.
    clocks: Mutex<HashMap<String, u64>>,
}

impl Tags {
    pub(crate) fn new(lanes: Arc<Lanes>) -> Self {
        Self { lanes, clocks: Mutex::default() }
    }

    /// What the clock of a namespace shows, or showed a while ago. Asks Redis the first time only.
    pub(crate) async fn clock(&self, namespace: &Namespace) -> Result<u64, Fault> {
        let known = self.clocks().get(namespace.name()).copied();
        match known {
            Some(clock) => Ok(clock),
            None => self.ask("recall", namespace, &[]).await.map(|(clock, _)| clock),
        }
    }

    /// Whether none of the tags was invalidated since the clock showed `born`.
    pub(crate) async fn spare(&self, namespace: &Namespace, tags: &[String], born: u64) -> Result<bool, Fault> {
        if tags.is_empty() {
            return Ok(true);
        }
        let (_, records) = self.ask("recall", namespace, tags).await?;
        Ok(records.iter().all(|record| record.spares(born)))
    }

    /// Invalidates tags, and returns what the clock showed then.
    pub(crate) async fn invalidate(&self, namespace: &Namespace, tags: &[String]) -> Result<u64, Fault> {
        self.ask("invalidate", namespace, tags).await.map(|(clock, _)| clock)
    }

    async fn ask(
        &self,
        operation: &'static str,
        namespace: &Namespace,
        tags: &[String],
    ) -> Result<(u64, Vec<Record>), Fault> {
        let name = namespace.name();
        let mut keys = vec![format!("{{{name}}}:clock")];
        keys.extend(tags.iter().map(|tag| format!("{{{name}}}:{}", Key::new("tag").part(tag.trim()))));
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let life = Bytes::from(RECORD_LIFE.as_millis().to_string());
        let answer = self.lanes.run(Patience::Read, operation, &keys, &[life]).await?;
        let numbers = answer.into_iter().next().and_then(Reply::into_array).unwrap_or_default().into_iter();
        let mut numbers = numbers.map(|reply| std::str::from_utf8(&reply.into_bytes()?).ok()?.parse::<u64>().ok());
        // The echo was right and the rest is not, which no script of larder's does.
        let unexpected = || Fault::Server("ERR a script's reply has an unexpected form".to_owned());
        let clock = numbers.next().flatten().ok_or_else(unexpected)?;
        let records = numbers.map(|number| number.map(Record)).collect::<Option<Vec<_>>>().ok_or_else(unexpected)?;
        if operation == "recall" && records.len() != tags.len() {
            return Err(unexpected());
        }
        let mut clocks = self.clocks();
        let known = clocks.entry(name.to_owned()).or_default();
        *known = clock.max(*known);
        Ok((clock, records))
    }

    fn clocks(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        // Numbers are never half changed.
        self.clocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
