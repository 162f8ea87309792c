//! What travels between two hosts: messages, codec, limits, versions, tickets. No I/O.
//!
//! A connection has one *control stream*: a [`Preamble`](control::Preamble) each way, then
//! length-prefixed messages. Every data request has a bidirectional stream of its own: a fixed
//! little-endian header ([`data`]), then a body in [`segment`]s; the reply likewise. One of these
//! requests makes its stream one of [`migration`] messages.

pub mod codec;
pub mod control;
pub mod data;
pub mod digest;
pub mod error;
pub mod extent;
pub mod limits;
pub mod migration;
pub mod run_list;
pub mod segment;
pub mod ticket;

pub use error::WireError;
pub use ticket::{Fingerprint, HostPort, Secret, Ticket, VolumeName};
