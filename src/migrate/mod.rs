//! Migration: a volume in use moves from the host that seeds it to one that leeches it.
//!
//! So far there is what decides, the two ends' state machines in [`protocol`]. What carries out
//! what they decide comes on top.

pub mod protocol;

#[cfg(test)]
mod simulation;
