//! The two ends of a migration as state machines, without I/O and without a clock.
//!
//! A machine is fed with events (a message arrived, an action ended, a timer fired) and gives the
//! actions that follow from each, in the order in which they are to begin. Whoever carries them out
//! keeps these promises:
//!
//! - an action that has an event of its own ends with exactly one of these, unless the process dies;
//! - a record counts when the event says so; after a failed write nobody knows which one counts;
//! - a seeder of a volume that is here begins when the device serves, or where there is none;
//! - messages may get lost, be doubled, late, and out of order.
//!
//! ```text
//!  leecher                                      seeder
//!    │ Leech ────────────────────────────────────►│ tracks what is written from now on
//!    │◄─────────────────────────────────── Welcome│
//!    │ record `Pulling`                           │
//!    │ Round(n), n-1 is here ────────────────────►│ collects what was written
//!    │◄────────────────────────────────── Round(n)│            again, until little is left
//!    │ Prepare(attempt) ─────────────────────────►│ hook, hold, flush, collect, hook
//!    │◄───────────────────── Dirty(attempt), bytes│
//!    │ durable and equal, record `Prepared`       │
//!    │ Commit(attempt, proof) ───────────────────►│ equal, commit record: the volume has moved
//!    │◄───────────────────────── Committed(attempt)│ requests fail, hook
//!    │ device, record `Complete`                  │
//!    │ Release(attempt) ─────────────────────────►│ removes its device
//!    │◄────────────────────────── Released(attempt)│
//! ```
//!
//! In post-copy `Dirty` comes without bytes. The record is `Owner` until the rest was pulled and
//! proved equal; then it is `Complete`, and `Release` follows.

mod block_set;
mod identity;
mod leecher;
mod message;
mod planted;
mod prediction;
mod record;
mod seeder;

pub use block_set::BlockSet;
pub use identity::{AttemptId, Epoch, Instance, MigrationId, Proof, SessionId, VolumeId};
pub use leecher::{
    Finalize, Leecher, LeecherAction, LeecherConfig, LeecherEvent, LeecherNotice, LeecherTimer,
    Mode,
};
pub use message::{Reason, ToLeecher, ToSeeder};
pub use prediction::{Measured, Prediction};
pub use record::{CommitRecord, LeechRecord, Records, Stage, Standing};
pub use seeder::{
    Hook, Seeder, SeederAction, SeederConfig, SeederEvent, SeederNotice, SeederTimer,
};

#[cfg(test)]
pub(super) use planted::{Bug, plant};

#[cfg(test)]
mod tests;
