//! Bugs that other caches had, one test a row of the list they stand in, as far as several processes or Redis are their
//! subject.

mod instances;

use instances::{Origin, all, forwarded, instance};
use larder_tests::RedisServer;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn row_34_n_instances_cold_key_one_call() {
    let server = RedisServer::start();
    let mut layers = Vec::new();
    for _ in 0..4 {
        layers.push(instance(&server).await);
    }
    for path in ["/a", "/b", "/c"] {
        let origin = Origin::new("max-age=60", Duration::from_millis(300));
        let answers = all(&layers, 100, &origin, path).await;
        assert_eq!(origin.calls(), 1, "{path}: {:?}", forwarded(&answers));
        assert!(answers.iter().flatten().all(|(_, body, _)| body == "1"));
        let mut last: Vec<Instant> =
            answers.iter().map(|these| these.iter().map(|answer| answer.2).max().expect("some")).collect();
        last.sort();
        println!("{path}: the last instance was done {:?} after the first", last[3] - last[0]);
    }
}
