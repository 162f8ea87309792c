//! Migrations between processes, on FUSE devices: what arrives, and who has the volume after every kind
//! of failure.

#![allow(clippy::unwrap_used)]

mod chain;
mod cut_link;
mod ends;
mod failures;
mod in_doubt;
mod library;
mod moves;
mod post_copy;
mod refusals;
#[path = "../../examples/link_relay/relay.rs"]
#[allow(dead_code, unreachable_pub)]
mod relay;
mod resume;
mod seeder_ends;
mod slow_link;
mod versions;
mod writer;
