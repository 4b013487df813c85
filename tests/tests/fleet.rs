//! Several instances on one Redis: one of them asks the origin, the others wait for what it brings.

mod instances;

use instances::{Origin, all, ask, forwarded, instance};
use larder_tests::RedisServer;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_not_stored_is_waited_for_once() {
    let server = RedisServer::start();
    let layers = [instance(&server).await, instance(&server).await];
    let origin = Origin::new("no-store", Duration::from_millis(300));
    let began = Instant::now();
    let answers = all(&layers, 20, &origin, "/private").await;
    assert_eq!(origin.calls(), 40, "each gets its own");
    let last = answers.iter().flatten().map(|answer| answer.2).max().expect("some");
    assert!(last - began < Duration::from_millis(1_500), "two in a row, and not forty: {:?}", last - began);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_holds_the_ticket_and_hangs_is_waited_for_five_seconds() {
    let server = RedisServer::start();
    let layers = [instance(&server).await, instance(&server).await];
    let hangs = Origin::new("max-age=60", Duration::from_secs(3600));
    let hanging = tokio::spawn(ask(layers[0].clone(), hangs.clone(), "/slow"));
    while hangs.calls() == 0 {
        tokio::task::yield_now().await;
    }
    let origin = Origin::new("max-age=60", Duration::from_millis(100));
    let began = Instant::now();
    let answers = all(&layers[1..], 50, &origin, "/slow").await;
    let took = began.elapsed();
    assert_eq!(origin.calls(), 1, "one goes, and the rest follow it: {:?}", forwarded(&answers));
    assert!(took >= Duration::from_millis(4_700) && took < Duration::from_millis(5_500), "{took:?}");
    assert_eq!(answers[0].iter().filter(|answer| answer.0.contains("lock-timeout")).count(), 1);
    hanging.abort();
}
