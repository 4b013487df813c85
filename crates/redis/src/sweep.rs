//! Purges by pattern: going through all keys there are.
//!
//! They are gone through twice. `SCAN` returns what is there during a whole pass, and may miss what comes or goes meanwhile. A
//! fill that was in flight at the start has its ticket there, and the first pass finds that, unless the fill is done before;
//! then what it stored is there during the whole second pass. So after both, nothing is left, or will be stored, that was asked
//! for before.

use crate::{
    client::{Patience, Reply},
    fault::Fault,
    lane::Lane,
    lanes::Lanes,
    measures::Measures,
};
use bytes::Bytes;
use larder::semantics::{Namespace, Pattern};
use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::sleep;

/// How many keys Redis looks at for one command, while all others wait: about 40 microseconds.
const STEP: u32 = 64;
/// How often all keys are gone through.
const PASSES: u32 = 2;
/// How much of the time that was lost is made up for.
const OVERSLEPT: Duration = Duration::from_millis(5);
/// How often it is logged how far it is.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// Goes through the keys of one namespace and version.
pub(crate) struct Sweep<'s> {
    pub(crate) lanes: &'s Arc<Lanes>,
    pub(crate) namespace: &'s Namespace,
    pub(crate) pattern: &'s Pattern,
    /// The most keys that are looked at in a second.
    pub(crate) rate: u32,
    pub(crate) measures: &'s Measures,
}

/// How far it is.
struct Progress {
    began: Instant,
    pass: u32,
    looked_at: u64,
    told: Instant,
}

impl Progress {
    fn begin() -> Self {
        let now = Instant::now();
        Self { began: now, pass: 0, looked_at: 0, told: now }
    }

    /// Waits for as long as those that were looked at take at this rate. What a timer oversleeps is made up for, and a server
    /// that was slow is not hurried.
    async fn keep_to(&mut self, rate: u32) {
        let due = Duration::from_secs_f64(self.looked_at as f64 / f64::from(rate.max(1)));
        let late = self.began.elapsed().saturating_sub(due);
        self.began += late.saturating_sub(OVERSLEPT);
        sleep(due.saturating_sub(self.began.elapsed())).await;
    }
}

impl Sweep<'_> {
    /// How many resources a purge would reach.
    pub(crate) async fn count(&self) -> Result<u64, Fault> {
        let (mut resources, mut progress) = (HashSet::new(), Progress::begin());
        for lane in self.lanes.each()? {
            let mut pass = Some(Bytes::from_static(b"0"));
            while let Some(cursor) = pass {
                let (next, names) = self.step(&lane, cursor, &mut progress).await?;
                resources.extend(names.iter().filter_map(|name| entry_of(name)).map(str::to_owned));
                pass = next;
            }
        }
        Ok(resources.len() as u64)
    }

    /// Removes what is there, or makes it stale, and voids what is in flight; how many resources that were.
    pub(crate) async fn purge(&self, is_soft: bool) -> Result<u64, Fault> {
        let (mut resources, mut progress) = (HashSet::new(), Progress::begin());
        for pass in 1..=PASSES {
            progress.pass = pass;
            for lane in self.lanes.each()? {
                let mut pass = Some(Bytes::from_static(b"0"));
                while let Some(cursor) = pass {
                    let (next, names) = self.step(&lane, cursor, &mut progress).await?;
                    self.reach(&names, is_soft).await?;
                    resources.extend(names.iter().filter_map(|name| entry_of(name)).map(str::to_owned));
                    self.tell(&mut progress, names.len(), resources.len());
                    pass = next;
                }
            }
        }
        Ok(resources.len() as u64)
    }

    /// Counts a step, and logs every few seconds how far it is.
    fn tell(&self, progress: &mut Progress, keys: usize, reached: usize) {
        self.measures.swept(STEP, keys);
        if progress.told.elapsed() >= TOLD_EVERY {
            progress.told = Instant::now();
            let (namespace, Progress { pass, looked_at, .. }) = (self.namespace.name(), progress);
            tracing::info!(namespace, pattern = %self.pattern, pass, looked_at, reached, "purging, in two passes over all keys");
        }
    }

    async fn reach(&self, names: &[String], is_soft: bool) -> Result<(), Fault> {
        if names.is_empty() {
            return Ok(());
        }
        if !is_soft {
            let (marks, names): (Vec<_>, Vec<_>) = names.iter().partition(|name| name.ends_with("}:w"));
            for marks in marks {
                // Whoever is writing a resource goes on.
                self.lanes.run(Patience::Purge, "disturb", &[marks], &[]).await?;
            }
            let keys: Vec<Bytes> = names.iter().map(|name| Bytes::copy_from_slice(name.as_bytes())).collect();
            if keys.is_empty() {
                return Ok(());
            }
            return self.lanes.unlink(keys).await;
        }
        let bases: HashSet<&str> = names.iter().filter_map(|name| base(name)).collect();
        for base in bases {
            self.make_stale(base).await?;
        }
        Ok(())
    }

    async fn make_stale(&self, base: &str) -> Result<(), Fault> {
        let [tickets, value, marks] = [":t", ":value", ":w"].map(|part| format!("{base}{part}"));
        let mode = Bytes::from_static(b"soft");
        self.lanes.run(Patience::Purge, "purge", &[&tickets, base, &value, &marks], &[mode]).await.map(drop)
    }

    /// Looks at some keys more; where to go on, if there are more, and those that match.
    async fn step(
        &self,
        lane: &Lane,
        cursor: Bytes,
        progress: &mut Progress,
    ) -> Result<(Option<Bytes>, Vec<String>), Fault> {
        progress.keep_to(self.rate).await;
        let (glob, step) = (Bytes::from(self.glob()), Bytes::from(STEP.to_string()));
        let arguments = vec![cursor, Bytes::from_static(b"MATCH"), glob, Bytes::from_static(b"COUNT"), step];
        let reply = lane.call(Patience::Purge, "SCAN", None, arguments).await?;
        progress.looked_at += u64::from(STEP);
        let (next, names) = parse(reply).ok_or_else(unexpected)?;
        Ok(((next != "0").then_some(next), names))
    }

    /// Everything of a resource: its entry, variants, chunks and tickets. The key stands in braces, which it holds none of.
    fn glob(&self) -> String {
        format!("{}:v{}:{{{}}}*", self.namespace.name(), self.namespace.version(), self.pattern.glob())
    }
}

/// The name that all of a resource begins with, in that of anything which tells that it is there, or may be soon.
fn base(name: &str) -> Option<&str> {
    let beside = name.strip_suffix(":t").or_else(|| name.strip_suffix(":w")).filter(|name| name.ends_with('}'));
    beside.or_else(|| entry_of(name))
}

/// The same, in that of its response or its value.
fn entry_of(name: &str) -> Option<&str> {
    Some(name.strip_suffix(":value").unwrap_or(name)).filter(|name| name.ends_with('}'))
}

fn parse(reply: Reply) -> Option<(Bytes, Vec<String>)> {
    let mut parts = reply.into_array()?.into_iter();
    let (cursor, names) = (parts.next()?.into_bytes()?, parts.next()?.into_array()?);
    let names = names.into_iter().map(|name| String::from_utf8(name.into_bytes()?.into()).ok());
    // What is not text has not been named by larder.
    Some((cursor, names.flatten().collect()))
}

fn unexpected() -> Fault {
    Fault::Server("ERR the reply to SCAN has an unexpected form".to_owned())
}
