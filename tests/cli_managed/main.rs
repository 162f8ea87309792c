//! Managed mounts as programs, on a FUSE device: what they tell, how they end, and how they go on.

#![allow(clippy::unwrap_used)]

mod choice;
mod ending;
mod going_on;
mod hooks;
mod killed;
#[path = "../../examples/link_relay/relay.rs"]
#[allow(dead_code, unreachable_pub)]
mod relay;
mod silent;
mod stores;
mod support;
mod telling;
mod writers;
