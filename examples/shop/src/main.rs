//! A product catalogue on a database, `lib.rs` beside this file.
//!
//! ```text
//! cargo run -p shop
//! DATABASE_URL=postgres://user:password@localhost/shop REDIS_URL=redis://127.0.0.1:6379 PORT=8080 cargo run -p shop
//! ```
//!
//! Without `DATABASE_URL` it is SQLite, in a file that is gone afterwards. `CACHE` is `off`, `values` or `routes`: what is
//! cached, routes and values unless set.

use shop::{Cached, Shop, database::Database};
use std::{env, error::Error, process::ExitCode, time::Duration};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shop: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,larder=info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);

    let variable = |name| env::var(name).ok().filter(|value| !value.is_empty());
    let file = env::temp_dir().join(format!("larder-shop-{}.sqlite", std::process::id()));
    let url = variable("DATABASE_URL").unwrap_or_else(|| format!("sqlite://{}?mode=rwc", file.display()));
    let cached = match variable("CACHE").as_deref() {
        None | Some("routes") => Cached::RoutesAndValues,
        Some("values") => Cached::Values,
        Some("off") => Cached::Nothing,
        Some(other) => return Err(format!("CACHE is {other:?}: it takes off, values or routes").into()),
    };
    let port: u16 = variable("PORT").map_or(Ok(3000), |port| port.parse()).map_err(|_| "PORT: it takes a number")?;

    let shop = Shop::new(Database::open(&url).await?, variable("REDIS_URL").as_deref(), cached).await?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let address = listener.local_addr()?;
    println!("The shop is open. Twice for a MISS and a HIT, then with a new price:");
    println!("  curl -i http://{address}/products/7");
    println!("  curl -X PUT -H 'content-type: application/json' -d 999 http://{address}/products/7/price");
    let server = axum::serve(listener, shop.router()?).with_graceful_shutdown(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    server.await?;
    shop.cache.drain(Duration::from_secs(10)).await;
    shop.views.drain(Duration::from_secs(10)).await;
    let _ = std::fs::remove_file(file);
    Ok(())
}
