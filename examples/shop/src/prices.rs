//! A price, written through: who asks next finds the new one without asking the database.

use crate::{Refused, Shop, catalogue::Product, database::Database};
use axum::{
    Json, Router,
    extract::{Path, State},
    routing::put,
};
use larder::Purge;

pub fn routes() -> Router<Shop> {
    Router::new().route("/products/{id}/price", put(set))
}

async fn set(State(shop): State<Shop>, Path(id): Path<i64>, Json(price): Json<i64>) -> Result<Json<Product>, Refused> {
    let database = shop.database.clone();
    let written = shop.products.value(id).write_found(|| database.set_price(id, price)).await?;
    // The pages that list it. A cache that cannot be reached is no reason to refuse what is in the database already.
    if let Err(error) = shop.cache.purge(Purge::tag(format!("product:{id}"))).await {
        tracing::warn!(%error, id, "lists may show the old price for five minutes");
    }
    written.value.map(Json).ok_or(Refused::Unknown)
}

impl Database {
    async fn set_price(&self, id: i64, price: i64) -> Result<Option<Product>, sqlx::Error> {
        let changed =
            sqlx::query_as("UPDATE product SET price = $1 WHERE id = $2 RETURNING id, name, category, price, stock");
        changed.bind(price).bind(id).fetch_optional(&self.pool).await
    }
}
