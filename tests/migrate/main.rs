//! Migrations between processes, on FUSE devices: what arrives, and who has the volume after every kind
//! of failure.

#![allow(clippy::unwrap_used)]

mod chain;
mod ends;
mod failures;
mod library;
mod moves;
mod refusals;
mod resume;
mod versions;
mod writer;
