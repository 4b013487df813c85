//! A miss: 1 MiB in 64 pieces, stored while it streams, next to the same without a layer.

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use larder::{Cache, Ttl};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tower::{Layer, Service};

const PIECE: usize = 16 << 10;
const PIECES: usize = 64;

/// A body that comes in pieces from a task of its own, as one from a database or an upstream does.
async fn stream() -> Body {
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        let piece = Bytes::from(vec![b'x'; PIECE]);
        for _ in 0..PIECES {
            if sender.send(piece.clone()).await.is_err() {
                return;
            }
        }
    });
    Body::new(Pieces(receiver))
}

struct Pieces(mpsc::Receiver<Bytes>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| Ok(http_body::Frame::data(piece))))
    }
}

fn router() -> Router {
    Router::new().route("/stream/{page}", get(stream))
}

/// The time to the first byte, and to the last.
pub type Times = (Duration, Duration);

/// Without a layer.
pub async fn bare(page: usize) -> Times {
    timed(router(), page).await
}

/// Through a layer, each page for the first time.
pub async fn stored(cache: &Cache, page: usize) -> Times {
    timed(cache.layer().ttl(Ttl::STANDARD).layer(router()), page).await
}

async fn timed<S, B>(mut service: S, page: usize) -> Times
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: std::fmt::Debug,
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Debug,
{
    let request = Request::builder().uri(format!("/stream/{page}")).body(Body::empty()).expect("a request");
    let began = Instant::now();
    let mut body = service.call(request).await.expect("an answer").into_body();
    let mut first = None;
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        first.get_or_insert_with(|| began.elapsed());
        length += frame.expect("a frame").data_ref().map_or(0, Bytes::len);
    }
    assert_eq!(length, PIECE * PIECES);
    (first.unwrap_or_default(), began.elapsed())
}
