//! A managed volume behaves as an array of bytes does, whatever is pulled, pushed, synced, slow, or has
//! failed meanwhile, and over restarts; what was synced is at the origin.
//!
//! `sequential` has one request at a time, so that a failure becomes a short list of steps;
//! `concurrent` has several queues with many requests each. `scripts/model` runs both at length.

#[path = "../engine_support/mod.rs"]
mod engine_support;
#[path = "../managed_support/mod.rs"]
mod managed_support;

mod concurrent;
mod model;
mod sequential;
mod worker;

use proptest::test_runner::Config;

/// As many cases as a run is to have.
fn cases(usual: u32) -> Config {
    let wanted = std::env::var("BLOCKFERRY_MODEL_CASES").ok();
    let cases = wanted.map_or(usual, |wanted| wanted.parse().expect("a number of cases"));
    Config {
        cases,
        // Threads do not repeat themselves, so what is shrunk may be another failure.
        max_shrink_iters: 100,
        failure_persistence: None,
        ..Config::default()
    }
}
