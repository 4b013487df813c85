//! Accepting connections, and letting them end.

use crate::{BoxError, proxy::MOST_FIELDS};
use bytes::Buf;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use std::{convert::Infallible, io, pin::pin, time::Duration};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    time::{sleep, timeout},
};
use tower::Service;

/// How long connections may take to end, and what they left to be done.
pub(crate) const DRAIN_FOR: Duration = Duration::from_secs(10);

/// Is over at SIGTERM or Ctrl-C.
///
/// # Errors
///
/// When the system refuses to tell of signals.
pub fn termination() -> io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Answers with `service` until `shutdown` is over. Then no connection is accepted any more, and requests in progress
/// have ten seconds to end.
pub(crate) async fn until<S, B>(shutdown: impl Future<Output = ()>, listener: TcpListener, service: S)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Body<Data: Buf + Send, Error: Into<BoxError>> + Send + 'static,
{
    let server = server();
    let connections = GracefulShutdown::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "no connection could be accepted");
                // Out of file descriptors, for instance: connections that end give some back.
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Only makes small answers faster.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(service.clone());
        let connection = server.serve_connection(TokioIo::new(stream), service).into_owned();
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error, "a connection broke off");
            }
        });
    }
    drop(listener);
    tracing::info!(connections = connections.count(), "draining");
    if timeout(DRAIN_FOR, connections.shutdown()).await.is_err() {
        tracing::warn!("some connections did not end in time");
    }
}

/// HTTP/1 and HTTP/2, told apart by their first bytes.
fn server() -> auto::Builder<TokioExecutor> {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().half_close(true).preserve_header_case(true).max_headers(MOST_FIELDS).timer(TokioTimer::new());
    server.http2().max_header_list_size(64 << 10).timer(TokioTimer::new());
    server
}
