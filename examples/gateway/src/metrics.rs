//! The page that Prometheus reads. The names come from larder; see its documentation.

use crate::serve;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::body::Incoming;
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use std::{convert::Infallible, future::pending, time::Duration};
use tokio::{net::TcpListener, time::interval};
use tower::service_fn;

/// The upper bounds of the buckets of durations, in seconds.
const BOUNDS: [f64; 14] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// How often samples are moved into their buckets, so that they do not heap up where nobody reads the page.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Collects what larder counts in this process from now on.
///
/// # Errors
///
/// When something else collects it already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new().with_recommended_naming(true).set_buckets(&BOUNDS)?.install_recorder()?;
    larder::describe_metrics();
    Ok(handle)
}

/// Answers `GET /metrics`, as long as the process lives.
pub async fn serve(listener: TcpListener, collected: PrometheusHandle) {
    let page = collected.clone();
    let pages = service_fn(move |request: Request<Incoming>| {
        let page = page.clone();
        async move { Ok::<_, Infallible>(answer(&request, &page)) }
    });
    let upkeep = async {
        let mut ticks = interval(UPKEEP_EVERY);
        loop {
            ticks.tick().await;
            collected.run_upkeep();
        }
    };
    tokio::join!(serve::until(pending(), listener, pages), upkeep);
}

fn answer(request: &Request<Incoming>, page: &PrometheusHandle) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => {
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4"));
            *response.body_mut() = Full::from(page.render());
        }
        (_, "/metrics") => *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED,
        _ => *response.status_mut() = StatusCode::NOT_FOUND,
    }
    response
}
