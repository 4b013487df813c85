//! larder as a subject of the rows.

use std::{future::Future, pin::Pin, time::Duration};

use larder::Cache;
use larder_redis::RedisStore;
use tower::Layer;

use crate::rows::{Inner, Service, Subject, service};

/// larder with its defaults.
pub(crate) struct Larder {
    pub(crate) honors_client_directives: bool,
    pub(crate) slack: Duration,
}

impl Subject for Larder {
    fn around(&self, inner: Inner) -> Service {
        let layer = Cache::in_memory().layer();
        let layer = if self.honors_client_directives { layer.honor_client_directives() } else { layer };
        service(layer.layer(inner))
    }

    fn on_redis<'a>(
        &'a self,
        inner: Inner,
        url: &'a str,
    ) -> Pin<Box<dyn Future<Output = Option<Service>> + Send + 'a>> {
        Box::pin(async move {
            let store = RedisStore::connect(url).await.expect("a Redis that was just started");
            let cache = Cache::builder().store(store).build().expect("the default settings work");
            Some(service(cache.layer().layer(inner)))
        })
    }

    fn slack(&self) -> Duration {
        self.slack
    }
}
