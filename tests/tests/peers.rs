//! What other caches for tower were seen to do wrong, asked of larder. `cargo xtask peers` asks them all.

#[path = "peers/larder.rs"]
mod larder_subject;
#[path = "peers/rows.rs"]
mod rows;

use std::time::Duration;

use larder_subject::Larder;
use rows::{Outcome, Wrong};

/// On the paused clock nothing takes longer than it says.
const LARDER: Larder = Larder { honors_client_directives: false, slack: Duration::ZERO };

/// What the row tells.
fn right(outcome: Outcome) -> String {
    match outcome {
        Ok(told) => told,
        Err(Wrong(seen)) => panic!("{seen}"),
    }
}

#[tokio::test(start_paused = true)]
async fn t1_second_get_is_a_hit() {
    let told = right(rows::t1(&LARDER).await);
    assert!(told.contains("x-cache: HIT"), "{told}");
}

#[tokio::test(start_paused = true)]
async fn t2_the_query_is_in_the_key() {
    right(rows::t2(&LARDER).await);
}

#[tokio::test(start_paused = true)]
async fn t3_head_and_get_do_not_spoil_each_other() {
    right(rows::t3(&LARDER).await);
}

#[tokio::test(start_paused = true)]
async fn t4_vary_is_respected() {
    right(rows::t4(&LARDER).await);
}

#[tokio::test(start_paused = true)]
async fn t4b_vary_is_respected_where_no_lifetime_is_stated() {
    right(rows::t4b(&LARDER).await);
}

#[tokio::test(start_paused = true)]
async fn t5_one_user_is_not_shown_the_page_of_another() {
    right(rows::t5(&LARDER).await);
}

#[tokio::test(start_paused = true)]
async fn t6_a_cookie_is_not_set_for_others() {
    right(rows::t6(&LARDER).await);
}

#[tokio::test(start_paused = true)]
async fn t7_unsafe_methods_reach_the_handler_every_time() {
    right(rows::t7(&LARDER).await);
}

#[tokio::test(start_paused = true)]
async fn t8_what_is_not_to_be_stored_is_not() {
    right(rows::t8(&LARDER).await);
}

#[tokio::test(start_paused = true)]
async fn t9_max_age_is_honored() {
    right(rows::t9(&LARDER).await);
}

#[tokio::test(start_paused = true)]
async fn t10_a_part_is_not_served_for_the_whole() {
    right(rows::t10(&LARDER).await);
}

#[tokio::test(start_paused = true)]
async fn t12_fifty_concurrent_gets_are_one_call() {
    right(rows::t12(&LARDER).await);
}

#[tokio::test(start_paused = true)]
async fn t13_the_others_are_answered_when_the_leaders_client_leaves() {
    right(rows::t13(&LARDER).await);
}

#[tokio::test(start_paused = true)]
async fn t14_uncacheable_requests_do_not_queue() {
    assert_eq!(right(rows::t14(&LARDER).await), "200 ms, then 100 ms");
}

#[tokio::test(start_paused = true)]
async fn t15_an_endless_body_streams() {
    right(rows::t15(&LARDER).await);
}

#[tokio::test(start_paused = true)]
async fn t17_trailers_survive_a_miss() {
    right(rows::t17(&LARDER).await);
}

#[tokio::test(start_paused = true)]
async fn t18_a_hit_has_every_header_as_it_was() {
    right(rows::t18(&LARDER).await);
}

#[tokio::test(start_paused = true)]
async fn t20_a_client_that_has_the_page_is_told_so() {
    right(rows::t20(&LARDER).await);
}

#[tokio::test(start_paused = true)]
async fn t24_no_cache_of_a_request_is_ignored_by_default_and_else_refreshes_the_page() {
    assert_eq!(right(rows::t24(&LARDER).await), "ignored");
    assert_eq!(right(rows::t24(&Larder { honors_client_directives: true, ..LARDER }).await), "refreshes");
}

#[tokio::test(start_paused = true)]
async fn t25_a_post_removes_the_page() {
    right(rows::t25(&LARDER).await);
}

#[tokio::test(start_paused = true)]
async fn t24b_only_if_cached_is_ignored_by_default() {
    assert_eq!(right(rows::t24b(&LARDER).await), "200");
}

#[tokio::test(start_paused = true)]
async fn t24b_only_if_cached_is_a_504_where_client_directives_are_honored() {
    let honoring = Larder { honors_client_directives: true, ..LARDER };
    assert_eq!(right(rows::t24b(&honoring).await), "504");
}

#[tokio::test(start_paused = true)]
async fn t26_gzip_around_or_within_corrupts_no_hit() {
    right(rows::t26(&LARDER).await);
}

#[tokio::test(start_paused = true)]
async fn r1_an_inner_limit_of_one_is_no_deadlock() {
    right(rows::r1(&LARDER).await);
}

/// Sockets need the real clock, and a machine that is busy with other tests adds to every time.
const ON_REDIS: Larder = Larder { slack: Duration::from_millis(50), ..LARDER };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r2_a_killed_redis_costs_no_request_more_than_100_ms() {
    println!("{}", right(rows::r2(&ON_REDIS).await));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r3_a_frozen_redis_costs_no_request_more_than_100_ms() {
    println!("{}", right(rows::r3(&ON_REDIS).await));
}
