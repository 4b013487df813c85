//! What a hit costs, roughly.

use std::{
    future::Future,
    pin::Pin,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes},
    routing::get,
};
use http::{Request, header::CACHE_CONTROL};
use http_body_util::BodyExt;
use tokio::runtime::Runtime;
use tower::{ServiceExt, util::BoxCloneSyncService};

use crate::rows::{Inner, Outcome, Service, Subject, Wrong, service};

const SIZES: [usize; 2] = [1 << 10, 64 << 10];

/// The cost of the router that the caches are put around.
pub(crate) fn bare(runtime: &Runtime) -> String {
    runtime.block_on(costs(&service)).unwrap_or_else(|Wrong(seen)| seen)
}

/// The cost of hits.
pub(crate) fn hits(subject: &dyn Subject) -> Pin<Box<dyn Future<Output = Outcome> + Send + '_>> {
    Box::pin(async { costs(&|inner| subject.around(inner)).await })
}

async fn costs(around: &(dyn Fn(Inner) -> Service + Sync)) -> Outcome {
    let mut shown = Vec::new();
    for size in SIZES {
        let body = Bytes::from(vec![b'x'; size]);
        let page = move || async move { ([(CACHE_CONTROL, "max-age=60")], body) };
        let router = Router::new().route("/page", get(page));
        let cost = per_request(around(BoxCloneSyncService::new(router)), size).await?;
        shown.push(format!("{:.1}", cost.as_secs_f64() * 1e6));
    }
    Ok(format!("{} µs", shown.join(" / ")))
}

/// The least of several means, which what else the machine does disturbs least.
async fn per_request(service: Service, size: usize) -> Result<Duration, Wrong> {
    const REQUESTS: u32 = 500;
    let mut least = Duration::MAX;
    for _ in 0..10 {
        let began = Instant::now();
        for _ in 0..REQUESTS {
            let mut request = Request::new(Body::empty());
            *request.uri_mut() = http::Uri::from_static("/page");
            let response = service.clone().oneshot(request).await.map_err(|error| Wrong(error.to_string()))?;
            let body = response.into_body().collect().await.map_err(|error| Wrong(error.to_string()))?;
            if body.to_bytes().len() != size {
                return Err(Wrong("another body came".to_owned()));
            }
        }
        least = least.min(began.elapsed() / REQUESTS);
    }
    Ok(least)
}
