//! `cargo test -p larder-schedules`

/// How many schedules of each are tried.
const SCHEDULES: usize = 5_000;

#[test]
fn one_leads_and_nobody_is_forgotten() {
    shuttle::check_random(larder_schedules::one_leads_and_nobody_is_forgotten, SCHEDULES);
    shuttle::check_pct(larder_schedules::one_leads_and_nobody_is_forgotten, SCHEDULES, 3);
}

#[test]
fn every_reader_gets_every_piece() {
    shuttle::check_random(larder_schedules::every_reader_gets_every_piece, SCHEDULES);
    shuttle::check_pct(larder_schedules::every_reader_gets_every_piece, SCHEDULES, 3);
}
