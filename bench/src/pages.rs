//! Pages of a database that is another part of a Redis, behind a cache: what is asked for while it changes.

use crate::{faults::detail, process::Outcome};
use bytes::Bytes;
use fred::prelude::{Builder, Client, ClientLike, Config, KeysInterface, ReconnectPolicy};
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use larder::{Cache, Caching, Purge};
use std::{error::Error, time::Duration};
use tower::{Layer, ServiceExt, service_fn};

/// The pages, as one process serves them.
#[derive(Clone)]
pub struct Pages {
    cache: Cache,
    raw: Client,
}

/// What a client was answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// The version of the page.
    pub version: u64,
    /// The word of `Cache-Status` that says where it came from.
    pub detail: &'static str,
}

impl Pages {
    /// Puts a cache before the database in this Redis.
    ///
    /// # Errors
    ///
    /// When Redis cannot be reached.
    pub async fn of(cache: Cache, redis: &str) -> Outcome<Self> {
        Ok(Self { cache, raw: connection(redis).await? })
    }

    /// The database's own connection.
    pub(crate) fn raw(&self) -> &Client {
        &self.raw
    }

    /// Changes a page in the database; its new version.
    pub(crate) async fn change(&self, page: usize) -> Outcome<u64> {
        Ok(self.raw.incr(format!("database:{page}")).await?)
    }

    /// Purges a page by its key.
    pub(crate) async fn purge_by_key(&self, page: usize) -> Outcome<()> {
        self.cache.purge(Purge::key(format!("route:GET:h:/{page}").as_str())).await?;
        Ok(())
    }

    /// Purges a page by its tag.
    pub(crate) async fn purge_by_tag(&self, page: usize) -> Outcome<()> {
        self.cache.purge(Purge::tag(format!("page-{page}"))).await?;
        Ok(())
    }

    /// Asks for a page, as a client.
    pub(crate) async fn read(&self, page: usize) -> Outcome<Answer> {
        let raw = self.raw.clone();
        let service = self.cache.layer().layer(service_fn(move |_: Request<Empty<Bytes>>| {
            let raw = raw.clone();
            async move {
                let version = database(&raw, page).await?;
                let response = Response::builder().header("cache-control", "max-age=3600");
                let response = response.extension(Caching::new().tag(format!("page-{page}")));
                Ok::<_, Box<dyn Error + Send + Sync>>(response.body(Full::new(Bytes::from(version.to_string())))?)
            }
        }));
        let request = Request::builder().uri(format!("/{page}")).header("host", "h").body(Empty::<Bytes>::new())?;
        let response = service.oneshot(request).await?;
        let detail = detail(&response);
        let body = response.into_body().collect().await.map_err(|error| error.to_string())?;
        Ok(Answer { version: std::str::from_utf8(&body.to_bytes())?.parse()?, detail })
    }
}

/// A connection of its own to a Redis.
///
/// # Errors
///
/// When it cannot be reached.
pub async fn connection(redis: &str) -> Outcome<Client> {
    let policy = ReconnectPolicy::new_constant(0, 200);
    let raw = Builder::from_config(Config::from_url(redis)?).set_policy(policy).build()?;
    raw.init().await?;
    Ok(raw)
}

/// What the database says, and then, sometimes, a pause in which it may say something else.
pub(crate) async fn database(raw: &Client, page: usize) -> Outcome<u64> {
    let version = raw.get::<Option<u64>, _>(format!("database:{page}")).await?.unwrap_or_default();
    if fastrand::u8(..4) == 0 {
        tokio::time::sleep(Duration::from_micros(fastrand::u64(..10_000))).await;
    }
    Ok(version)
}
