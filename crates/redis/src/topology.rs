//! What a configuration comes to: which connections there are, and the tasks that keep them up.

use crate::{
    checkup::check_up,
    client::Dialer,
    clock::Clock,
    cluster::Cluster,
    config::{Address, ConfigError, RedisConfig, Target},
    fault::Fault,
    lane::{Kind, Lane, Place},
    lanes::Lanes,
    measures::Measures,
    sentinel::Sentinels,
};
use std::{future::Future, pin::Pin, sync::Arc};
use tokio::{
    sync::{Notify, oneshot},
    task::AbortHandle,
};

pub(crate) struct Topology {
    pub(crate) data: Arc<Lanes>,
    pub(crate) bulk: Arc<Lanes>,
    /// What listens to whatever all servers tell. It is connected when somebody waits for the first time.
    pub(crate) ear: Arc<Lane>,
    /// The cluster, if it is one.
    pub(crate) cluster: Option<Arc<Cluster>>,
    pub(crate) tasks: Vec<AbortHandle>,
    /// What came of the first attempt to connect.
    pub(crate) first: Pin<Box<dyn Future<Output = Result<(), Fault>> + Send>>,
}

impl Topology {
    /// Begins to connect to what a configuration says.
    pub(crate) fn new(config: &RedisConfig, clock: &Arc<Clock>, measures: &Arc<Measures>) -> Result<Self, ConfigError> {
        let dialer = Arc::new(Dialer::new(config)?);
        match &config.target {
            Target::Server(server) => {
                let place = Arc::new(Place::new(Some(server.clone())));
                Ok(Self::one(&dialer, &place, &Arc::default(), clock, measures))
            }
            Target::Sentinels { sentinels, service } => {
                let (place, alarm) = (Arc::new(Place::new(None)), Arc::new(Notify::new()));
                let sentinels = Sentinels {
                    dialer: Arc::new(Dialer::to_sentinels(config)?),
                    addresses: sentinels.clone(),
                    service: service.clone(),
                    place: Arc::clone(&place),
                    alarm: Arc::clone(&alarm),
                };
                Ok(Self::one(&dialer, &place, &alarm, clock, measures).named_by(sentinels))
            }
            Target::Cluster(seeds) => Ok(Self::cluster(&dialer, seeds, clock, measures)),
        }
    }

    fn one(
        dialer: &Arc<Dialer>,
        place: &Arc<Place>,
        alarm: &Arc<Notify>,
        clock: &Arc<Clock>,
        measures: &Arc<Measures>,
    ) -> Self {
        let lane = |role| {
            let lane = Lane::new(Arc::clone(dialer), Arc::clone(place), role, Arc::clone(measures));
            lane.alarming(Arc::clone(alarm))
        };
        let (data, bulk) = (Arc::new(lane("data").setting(Arc::clone(clock))), Arc::new(lane("bulk")));
        let (data_first, data_outcome) = oneshot::channel();
        let (bulk_first, bulk_outcome) = oneshot::channel();
        let tasks = vec![
            tokio::spawn(check_up(Arc::clone(&data))).abort_handle(),
            tokio::spawn(Arc::clone(&data).keep_up(data_first)).abort_handle(),
            tokio::spawn(Arc::clone(&bulk).keep_up(bulk_first)).abort_handle(),
        ];
        let first = Box::pin(async {
            let (data, _) = tokio::join!(data_outcome, bulk_outcome);
            data.unwrap_or(Err(Fault::Down))
        });
        let lanes = |lane, kind| Arc::new(Lanes::one(lane, kind, dialer.read_timeout()));
        let (data, bulk) = (lanes(data, Kind::Data), lanes(bulk, Kind::Bulk));
        Self { data, bulk, ear: Arc::new(lane("wake")), cluster: None, tasks, first }
    }

    fn named_by(mut self, sentinels: Sentinels) -> Self {
        let (told, named) = oneshot::channel();
        self.tasks.push(tokio::spawn(sentinels.follow(told)).abort_handle());
        let connected = self.first;
        self.first = Box::pin(async {
            named.await.unwrap_or(Err(Fault::Down))?;
            connected.await
        });
        self
    }

    fn cluster(dialer: &Arc<Dialer>, seeds: &[Address], clock: &Arc<Clock>, measures: &Arc<Measures>) -> Self {
        let cluster = Cluster::new(Arc::clone(dialer), seeds, Arc::clone(clock), Arc::clone(measures));
        let (told, outcome) = oneshot::channel();
        let tasks = vec![tokio::spawn(Arc::clone(&cluster).follow(told)).abort_handle()];
        let lanes = |kind| Arc::new(Lanes::Cluster { cluster: Arc::clone(&cluster), kind });
        Self {
            data: lanes(Kind::Data),
            bulk: lanes(Kind::Bulk),
            ear: cluster.ear(None),
            cluster: Some(Arc::clone(&cluster)),
            tasks,
            first: Box::pin(async { outcome.await.unwrap_or(Err(Fault::Down)) }),
        }
    }
}
