//! The database: SQLite in a file, or PostgreSQL; the same statements do for both.

use sqlx::{AnyPool, any::AnyPoolOptions};

/// How many products there are at first.
pub const PRODUCTS: i64 = 300;
const CATEGORIES: [&str; 5] = ["books", "garden", "kitchen", "music", "tools"];

#[derive(Debug, Clone)]
pub struct Database {
    pub pool: AnyPool,
}

impl Database {
    /// Connects, brings the tables up to date, and puts some products into an empty shop.
    pub async fn open(url: &str) -> Result<Self, sqlx::Error> {
        sqlx::any::install_default_drivers();
        // SQLite has one writer at a time; who waits for it waits here.
        let connections = if url.starts_with("sqlite:") { 1 } else { 10 };
        let pool = AnyPoolOptions::new().max_connections(connections).connect(url).await?;
        sqlx::migrate!().run(&pool).await.map_err(|error| sqlx::Error::Migrate(Box::new(error)))?;
        let database = Self { pool };
        database.seed().await?;
        Ok(database)
    }

    async fn seed(&self) -> Result<(), sqlx::Error> {
        let mut transaction = self.pool.begin().await?;
        for id in 1..=PRODUCTS {
            let category = CATEGORIES[usize::try_from(id).unwrap_or_default() % CATEGORIES.len()];
            sqlx::query(
                "INSERT INTO product (id, name, category, price, stock) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
            )
            .bind(id)
            .bind(format!("Product {id}"))
            .bind(category)
            .bind(100 + id)
            .bind(10_i64)
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await
    }
}
