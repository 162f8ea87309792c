//! blockferry turns any resource into a Linux block device.
//!
//! The front page of the library: what a program that embeds it needs, re-exported.

pub mod backend;
pub mod device;
pub mod error;
pub mod migrate;
pub mod mount;
pub mod net;
pub mod ops;
#[cfg(test)]
mod seeded_random;
pub mod volume;
pub mod wire;

pub use error::{Context, Error, ErrorKind, Result};
pub use volume::{AsyncBackend, Backend, Capabilities, Geometry};
