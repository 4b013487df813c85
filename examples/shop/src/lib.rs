//! A product catalogue, in four files that each show one way to cache and to write:
//!
//! - [`catalogue`]: cached routes, and values behind them (cache-aside);
//! - [`prices`]: a price, written through;
//! - [`orders`]: a transaction with a write guard around it;
//! - [`views`]: counters, written behind.
#![expect(missing_docs, reason = "a program to be read, and no library")]

pub mod catalogue;
pub mod database;
pub mod orders;
pub mod prices;
pub mod views;

use axum::{
    Router,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use database::Database;
use larder::{Cache, MemoryStore, Typed};
use larder_axum::AxumRouting;
use larder_redis::RedisStore;
use std::error::Error;
use views::Views;

/// What is cached: for comparison, mostly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cached {
    Nothing,
    Values,
    #[default]
    RoutesAndValues,
}

/// What every handler needs.
#[derive(Clone)]
pub struct Shop {
    pub database: Database,
    pub cache: Cache,
    pub products: Typed<catalogue::Product>,
    pub views: Views,
    pub cached: Cached,
}

impl Shop {
    /// On `database`, and on Redis if there is one.
    pub async fn new(database: Database, redis: Option<&str>, cached: Cached) -> Result<Self, Box<dyn Error>> {
        let cache = Cache::builder().namespace("shop").routing(AxumRouting);
        let (cache, views) = match redis {
            Some(url) => {
                let store = RedisStore::connect(url).await?;
                let views = Views::behind(&store, database.clone())?;
                (cache.store(store).near(MemoryStore::default()), views)
            }
            None => (cache, Views::at_once(database.clone())),
        };
        let cache = cache.build()?;
        let products = catalogue::products(&cache);
        Ok(Self { database, cache, products, views, cached })
    }

    pub fn router(&self) -> Result<Router, Box<dyn Error>> {
        let router = catalogue::routes(self)?.merge(prices::routes()).merge(orders::routes()).merge(views::routes());
        Ok(router.with_state(self.clone()))
    }
}

/// Why a request is not answered as asked.
#[derive(Debug)]
pub enum Refused {
    Unknown,
    SoldOut,
    Database(sqlx::Error),
}

impl From<sqlx::Error> for Refused {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        match self {
            Self::Unknown => (StatusCode::NOT_FOUND, "there is no such product\n").into_response(),
            Self::SoldOut => (StatusCode::CONFLICT, "there are not so many\n").into_response(),
            Self::Database(error) => {
                tracing::error!(%error, "the database");
                (StatusCode::INTERNAL_SERVER_ERROR, "the database does not answer\n").into_response()
            }
        }
    }
}
