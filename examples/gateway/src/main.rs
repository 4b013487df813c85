//! A caching reverse proxy: hyper with larder in front.
//!
//! ```text
//! cargo run --release -p gateway -- --listen 127.0.0.1:8080 --upstream http://127.0.0.1:8000 \
//!     [--redis redis://127.0.0.1:6379] [--near BYTES] [--default-ttl SECONDS] [--honor-client-directives] [--sealed] \
//!     [--admin-token TOKEN] [--metrics 127.0.0.1:9090] [--timeout SECONDS]
//! ```

use clap::Parser;
use gateway::{BoxError, Options, metrics, serve};
use std::{
    io::{IsTerminal, stderr},
    process::ExitCode,
};
use tokio::net::TcpListener;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    match run(&Options::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gateway: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Result<(), BoxError> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_ansi(stderr().is_terminal()).init();
    // From here on SIGTERM ends the gateway in an orderly way.
    let termination = serve::termination()?;
    if let Some(address) = &options.metrics {
        let listener = bind("--metrics", address).await?;
        println!("metrics: http://{}/metrics", listener.local_addr()?);
        tokio::spawn(metrics::serve(listener, metrics::install()?));
    }
    let listener = bind("--listen", &options.listen).await?;
    let store = if options.redis.is_some() { "Redis" } else { "this process's memory" };
    println!("gateway: http://{} before {}, storing in {store}", listener.local_addr()?, options.upstream);
    gateway::run(options, listener, termination).await
}

async fn bind(flag: &str, address: &str) -> Result<TcpListener, BoxError> {
    Ok(TcpListener::bind(address).await.map_err(|error| format!("{flag}: cannot listen on {address}: {error}"))?)
}
