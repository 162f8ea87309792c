//! Migration: a volume in use moves from the host that seeds it to one that leeches it.
//!
//! [`protocol`] decides: the two ends' state machines, without I/O. [`source`] and [`destination`] carry
//! out what they decide; [`records`] is what each end keeps of it with its resource, [`proof`] how they
//! know that their stores are equal. [`migrator`] is both ends with their devices, for programs.

mod block_proof;
pub mod destination;
mod explained;
mod freeze;
pub mod migrator;
mod on_their_way;
pub mod proof;
pub mod protocol;
mod prover;
mod read_blocks;
mod record_keeper;
pub mod records;

#[cfg(test)]
mod simulation;
pub mod source;
mod status;
mod timers;
mod wire_form;

pub use destination::{
    Destination, DestinationParts, DestinationStatus, PartCall, RestOptions, RestStatus,
    StartDevice, forget_map,
};
pub use freeze::Freeze;
pub use migrator::{Arrived, LeechOptions, LeechStore, Leeching, Migrator, SeedOptions, Seeding};
pub use record_keeper::RecordKeeper;
pub use source::{
    Call, CallWithBytes, HOLD_LIMIT_DEFAULT, Source, SourceHooks, SourceParts, SourceStatus,
};
pub use status::MigrationStatus;
