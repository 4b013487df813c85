//! What there is: routes that are cached, over values that are.

use crate::{Cached, Refused, Shop, database::Database};
use axum::{
    Json, Router,
    extract::{Path, State},
    routing::get,
};
use larder::{Cache, Ttl, Typed};
use larder_axum::{CachingPart, RouterExt};
use serde::{Deserialize, Serialize};
use std::error::Error;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, sqlx::FromRow)]
pub struct Product {
    pub id: i64,
    pub name: String,
    pub category: String,
    /// In cents.
    pub price: i64,
    pub stock: i64,
}

/// Products as values: fetched by one for all who ask, and known for an hour, or until they change.
pub fn products(cache: &Cache) -> Typed<Product> {
    cache.typed("product", |value| value.ttl(Ttl::STANDARD).tag("products"))
}

pub fn routes(shop: &Shop) -> Result<Router<Shop>, Box<dyn Error>> {
    if shop.cached != Cached::RoutesAndValues {
        return Ok(Router::new().route("/products/{id}", get(product)).route("/categories/{name}", get(category)));
    }
    let layer = shop.cache.layer();
    Ok(Router::new()
        // Under the key of the value: one purge reaches both.
        .cached("/products/{id}", get(product), layer.clone().ttl(Ttl::STANDARD).key("product:{id}").tag("products"))?
        .cached("/categories/{name}", get(category), layer.ttl(Ttl::FREQUENT).key("category:{name}").tag("products"))?)
}

impl Shop {
    /// What is known of a product, or what the database says of it: that there is none, too.
    pub async fn product(&self, id: i64) -> Result<Option<Product>, sqlx::Error> {
        let database = self.database.clone();
        match self.cached {
            Cached::Nothing => database.product(id).await,
            Cached::Values | Cached::RoutesAndValues => {
                self.products.get_or_find(id, move || database.product(id)).await
            }
        }
    }
}

async fn product(State(shop): State<Shop>, Path(id): Path<i64>) -> Result<Json<Product>, Refused> {
    shop.product(id).await?.map(Json).ok_or(Refused::Unknown)
}

/// A page that lists many products has the tag of each of them.
async fn category(
    State(shop): State<Shop>,
    Path(name): Path<String>,
) -> Result<(CachingPart, Json<Vec<Product>>), Refused> {
    let products = shop.database.category(&name).await?;
    let tagged = |caching: larder::Caching, product: &Product| caching.tag(format!("product:{}", product.id));
    let caching = products.iter().fold(larder::Caching::new(), tagged);
    Ok((CachingPart(caching), Json(products)))
}

impl Database {
    pub async fn product(self, id: i64) -> Result<Option<Product>, sqlx::Error> {
        let product = sqlx::query_as("SELECT id, name, category, price, stock FROM product WHERE id = $1").bind(id);
        product.fetch_optional(&self.pool).await
    }

    async fn category(&self, name: &str) -> Result<Vec<Product>, sqlx::Error> {
        let products = sqlx::query_as(
            "SELECT id, name, category, price, stock FROM product WHERE category = $1 ORDER BY id LIMIT 50",
        );
        products.bind(name).fetch_all(&self.pool).await
    }
}
