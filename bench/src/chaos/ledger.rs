//! What the processes tell each other on connections that nothing is wrong with: which purges have returned, and the end.

use crate::{pages::Pages, process::Outcome};
use fred::prelude::{Client, KeysInterface, ListInterface};

/// That no version before this one may answer any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Promise {
    pub(super) page: usize,
    pub(super) version: u64,
    /// Which process made it.
    pub(super) by: usize,
    /// When its purge had returned.
    pub(super) at: u64,
}

impl Promise {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ').map(|word| word.parse().ok());
        let mut next = || words.next().flatten();
        let (page, version, by, at) = (next()?, next()?, next()?, next()?);
        Some(Self { page: usize::try_from(page).ok()?, version, by: usize::try_from(by).ok()?, at })
    }
}

/// Where all of that stands: in Redis, beside the database.
#[derive(Clone)]
pub(super) struct Ledger {
    raw: Client,
}

impl Ledger {
    pub(super) fn of(raw: Client) -> Self {
        Self { raw }
    }

    pub(super) async fn promise(&self, Promise { page, version, by, at }: Promise) -> Outcome<()> {
        Ok(self.raw.rpush("promised", format!("{page} {version} {by} {at}")).await?)
    }

    /// The promises from this one on, in the order in which they were made of each page.
    pub(super) async fn promises(&self, first: usize) -> Outcome<Vec<Promise>> {
        let lines: Vec<String> = self.raw.lrange("promised", i64::try_from(first)?, -1).await?;
        lines.iter().map(|line| Promise::parse(line).ok_or_else(|| "not a promise".into())).collect()
    }

    /// Takes note of an answer that was too old.
    pub(super) async fn blame(&self) -> Outcome<()> {
        Ok(self.raw.incr("outdated").await?)
    }

    /// How many answers were too old.
    pub(super) async fn outdated(&self) -> Outcome<u64> {
        Ok(self.raw.get::<Option<u64>, _>("outdated").await?.unwrap_or_default())
    }

    pub(super) async fn close(&self) -> Outcome<()> {
        Ok(self.raw.set("closed", "yes", None, None, false).await?)
    }

    pub(super) async fn is_closed(&self) -> Outcome<bool> {
        Ok(self.raw.exists("closed").await?)
    }
}

impl From<&Pages> for Ledger {
    fn from(pages: &Pages) -> Self {
        Self::of(pages.raw().clone())
    }
}
