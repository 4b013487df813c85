//! How often a product was looked at, written behind: a counter is not worth a transaction of its own, and may be late.

use crate::{Refused, Shop, database::Database};
use axum::{
    Json, Router,
    extract::{Path, State},
    routing::{get, post},
};
use larder::semantics::{Key, Namespace};
use larder_redis::{BehindSettings, Failed, RedisStore, Sink, Write, WriteBehind};
use std::{error::Error, time::Duration};

/// Without Redis, views are written at once.
#[derive(Clone)]
pub enum Views {
    Behind(WriteBehind, Database),
    AtOnce(Database),
}

pub fn routes() -> Router<Shop> {
    Router::new().route("/products/{id}/views", get(count)).route("/products/{id}/views", post(look))
}

async fn count(State(shop): State<Shop>, Path(id): Path<i64>) -> Result<Json<i64>, Refused> {
    Ok(Json(shop.views.of(id).await?))
}

async fn look(State(shop): State<Shop>, Path(id): Path<i64>) -> Result<Json<i64>, Refused> {
    Ok(Json(shop.views.one_more(id).await?))
}

impl Views {
    /// Of several looks that wait, the last count is enough.
    pub fn behind(store: &RedisStore, database: Database) -> Result<Self, Box<dyn Error>> {
        let views = store.write_behind(&Namespace::new("shop", 1)?, "views", BehindSettings::new().coalesce())?;
        views.apply_with(database.clone());
        Ok(Self::Behind(views, database))
    }

    pub fn at_once(database: Database) -> Self {
        Self::AtOnce(database)
    }

    /// How many: also what waits to be written.
    pub async fn of(&self, product: i64) -> Result<i64, sqlx::Error> {
        match self {
            Self::AtOnce(database) => database.views(product).await,
            Self::Behind(views, database) => {
                let key = key(product);
                let seen = views.get_or_load(&key, async || {
                    let seen = database.views(product).await?;
                    Ok::<_, sqlx::Error>(Some(seen.to_string().into()))
                });
                let seen = seen.await?.unwrap_or_default();
                Ok(std::str::from_utf8(&seen).ok().and_then(|seen| seen.parse().ok()).unwrap_or_default())
            }
        }
    }

    /// Two who look at the same moment may count as one. If Redis does not take it, the database does.
    pub async fn one_more(&self, product: i64) -> Result<i64, sqlx::Error> {
        let seen = self.of(product).await? + 1;
        match self {
            Self::AtOnce(database) => database.set_views(product, seen, 0).await?,
            Self::Behind(views, database) => {
                if let Err(error) = views.put(&key(product), seen.to_string()).await {
                    tracing::warn!(%error, product, "written at once");
                    database.set_views(product, seen, 0).await?;
                }
            }
        }
        Ok(seen)
    }

    /// Waits until all is written, for the end of the program; what is left is written by another process, or later.
    pub async fn drain(&self, limit: Duration) {
        if let Self::Behind(views, _) = self {
            views.drain(limit).await;
        }
    }
}

fn key(product: i64) -> Key {
    Key::new("product").part(product.to_string())
}

impl Sink for Database {
    async fn apply(&self, writes: &[Write]) -> Result<(), Failed> {
        for (at, write) in writes.iter().enumerate() {
            let product = write.key.as_str().rsplit(':').next().and_then(|id| id.parse().ok());
            let seen = write.value.as_ref().and_then(|seen| std::str::from_utf8(seen).ok()?.parse().ok());
            let (Some(product), Some(seen)) = (product, seen) else {
                return Err(Failed::at(at, "it is no count of views"));
            };
            let seq = i64::try_from(write.seq).unwrap_or(i64::MAX);
            self.set_views(product, seen, seq).await.map_err(|error| Failed::at(at, error))?;
        }
        Ok(())
    }
}

impl Database {
    async fn views(&self, product: i64) -> Result<i64, sqlx::Error> {
        let seen = sqlx::query_scalar("SELECT seen FROM views WHERE product = $1").bind(product);
        Ok(seen.fetch_optional(&self.pool).await?.unwrap_or_default())
    }

    /// Takes a count unless a later one is there. One that came past the queue counts as of now.
    async fn set_views(&self, product: i64, seen: i64, seq: i64) -> Result<(), sqlx::Error> {
        let taken = sqlx::query(
            "INSERT INTO views (product, seen, seq) VALUES ($1, $2, $3) ON CONFLICT (product) DO UPDATE \
             SET seen = excluded.seen, seq = CASE WHEN excluded.seq = 0 THEN views.seq ELSE excluded.seq END \
             WHERE excluded.seq = 0 OR views.seq < excluded.seq",
        );
        taken.bind(product).bind(seen).bind(seq).execute(&self.pool).await.map(drop)
    }
}
