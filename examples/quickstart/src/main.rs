//! A cached axum app in a page of code, `lib.rs` beside this file.
//!
//! ```text
//! cargo run -p quickstart
//! REDIS_URL=redis://127.0.0.1:6379 PORT=8080 cargo run -p quickstart
//! ```
//!
//! `HOST` is the address to listen on: 127.0.0.1 unless set.

use std::{
    env,
    error::Error,
    io::{IsTerminal, stderr},
    process::ExitCode,
};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quickstart: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,larder=info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_ansi(stderr().is_terminal()).init();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);

    let variable = |name| env::var(name).ok().filter(|value| !value.is_empty());
    let host = variable("HOST").unwrap_or_else(|| "127.0.0.1".to_owned());
    let port = variable("PORT").map(|port| port.parse()).transpose();
    let port = port.map_err(|_| "PORT: it takes a number from 0 to 65535; 0 is any free port")?;
    let redis_url = variable("REDIS_URL");

    let cache = quickstart::cache(redis_url.as_deref()).await?;
    let listener = quickstart::listen(&host, port).await?;
    print!("{}", quickstart::greeting(listener.local_addr()?, redis_url.is_some()));
    let server = axum::serve(listener, quickstart::app(&cache)?).with_graceful_shutdown(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    Ok(server.await?)
}
