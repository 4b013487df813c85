//! What a hit costs: of the page that larder's own bench is measured with, 1 KiB of JSON with three headers.

use crate::rows::{Inner, Outcome, Service, Subject, Wrong, service};
use axum::body::Body;
use http::{Request, Response};
use http_body_util::BodyExt;
use larder_bench::hit;
use std::{
    future::{Future, ready},
    pin::Pin,
    thread,
};
use tokio::runtime::{Builder, Runtime};
use tower::{Service as _, ServiceExt, util::BoxCloneSyncService};

/// How many requests are made before they are answered, and how often.
const REQUESTS: usize = 2_000;
#[cfg(not(feature = "allocations"))]
const ROUNDS: usize = 21;

/// The cost of the router that the caches are put around.
pub(crate) fn bare() -> String {
    cost(&service).unwrap_or_else(|Wrong(seen)| seen)
}

/// The cost of hits.
pub(crate) fn hits(subject: &dyn Subject) -> Pin<Box<dyn Future<Output = Outcome> + Send + '_>> {
    Box::pin(ready(cost(&|inner| subject.around(inner))))
}

/// On a thread of its own, whose runtime nothing else uses.
fn cost(around: &(dyn Fn(Inner) -> Service + Sync)) -> Outcome {
    let measured = thread::scope(|scope| scope.spawn(|| measured(around)).join());
    measured.unwrap_or_else(|_| Err(Wrong("PANIC".to_owned())))
}

fn measured(around: &(dyn Fn(Inner) -> Service + Sync)) -> Outcome {
    let runtime = Builder::new_current_thread().enable_all().build().map_err(|error| Wrong(error.to_string()))?;
    let mut service = runtime.block_on(async { around(BoxCloneSyncService::new(hit::router())) });
    for _ in 0..10 {
        runtime.block_on(warm(&mut service))?;
    }
    each(&runtime, &mut service)
}

async fn warm(service: &mut Service) -> Result<(), Wrong> {
    let response = answered(service, hit::request()).await?;
    let body = response.into_body().collect().await.map_err(|error| Wrong(error.to_string()))?;
    if body.to_bytes().len() == 1024 { Ok(()) } else { Err(Wrong("another body came".to_owned())) }
}

async fn answered(service: &mut Service, request: Request<Body>) -> Result<Response<Body>, Wrong> {
    let ready = service.ready().await.map_err(|error| Wrong(error.to_string()))?;
    ready.call(request).await.map_err(|error| Wrong(error.to_string()))
}

/// Nanoseconds for each: the middle one of several rounds.
#[cfg(not(feature = "allocations"))]
fn each(runtime: &Runtime, service: &mut Service) -> Outcome {
    let round = |_| {
        let requests = (0..REQUESTS).map(|_| hit::request()).collect();
        let began = std::time::Instant::now();
        all(runtime, service, requests)?;
        Ok(began.elapsed().as_nanos() as f64 / REQUESTS as f64)
    };
    let times = (0..ROUNDS).map(round).collect::<Result<Vec<f64>, Wrong>>()?;
    Ok(format!("{:.2} µs", larder_bench::table::median(times) / 1e3))
}

/// Allocations for each, and bytes.
#[cfg(feature = "allocations")]
fn each(runtime: &Runtime, service: &mut Service) -> Outcome {
    let requests = (0..REQUESTS).map(|_| hit::request()).collect();
    let mut done = Ok(());
    let counted = allocation_counter::measure(|| done = all(runtime, service, requests));
    done?;
    let each = |total: u64| total as f64 / REQUESTS as f64;
    Ok(format!("{:.1}, {:.0} bytes", each(counted.count_total), each(counted.bytes_total)))
}

fn all(runtime: &Runtime, service: &mut Service, requests: Vec<Request<Body>>) -> Result<(), Wrong> {
    runtime.block_on(async {
        for request in requests {
            drop(std::hint::black_box(answered(service, request).await?));
        }
        Ok(())
    })
}
