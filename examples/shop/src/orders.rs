//! An order: a transaction, with a write guard around it, so that nobody keeps a stock that was read before it.

use crate::{Refused, Shop, database::Database};
use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::post,
};
use larder::Purge;
use serde::Deserialize;

#[derive(Debug, Deserialize)]
pub struct Order {
    /// Chosen by the client: an order that comes twice counts once.
    pub id: String,
    pub amount: i64,
}

pub fn routes() -> Router<Shop> {
    Router::new().route("/products/{id}/orders", post(place))
}

async fn place(State(shop): State<Shop>, Path(id): Path<i64>, Json(order): Json<Order>) -> Result<StatusCode, Refused> {
    let write = shop.cache.begin_write(Purge::key(format!("product:{id}"))).await;
    // Whatever comes of it, dropping the guard, too, removes what is stored.
    shop.database.place(id, &order).await?;
    let committed = write.commit().await;
    let listed = shop.cache.purge(Purge::tag(format!("product:{id}"))).await;
    if let Some(error) = committed.err().or(listed.err()) {
        tracing::warn!(%error, id, "the old stock may be shown until Redis is there again");
    }
    Ok(StatusCode::CREATED)
}

impl Database {
    async fn place(&self, product: i64, order: &Order) -> Result<(), Refused> {
        let mut transaction = self.pool.begin().await?;
        let known = sqlx::query("SELECT id FROM product WHERE id = $1").bind(product);
        if known.fetch_optional(&mut *transaction).await?.is_none() {
            return Err(Refused::Unknown);
        }
        let placed = sqlx::query("INSERT INTO orders (id, product, amount) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
            .bind(&order.id)
            .bind(product)
            .bind(order.amount)
            .execute(&mut *transaction)
            .await?;
        if placed.rows_affected() == 0 {
            return Ok(());
        }
        let taken = sqlx::query("UPDATE product SET stock = stock - $1 WHERE id = $2 AND stock >= $1 AND $1 > 0")
            .bind(order.amount)
            .bind(product)
            .execute(&mut *transaction)
            .await?;
        if taken.rows_affected() == 0 {
            return Err(Refused::SoldOut);
        }
        Ok(transaction.commit().await?)
    }
}
