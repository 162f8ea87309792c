//! What runs on this host: one directory for each device, and a socket to talk to its process.
//!
//! ```text
//! RUN/NAME/lock          held (F_OFD_SETLK) by the living process: this tells alive from dead
//! RUN/NAME/device.json   how to remove the device, written as soon as there is one
//! RUN/NAME/mount.json    how to repeat the mount, where the device can be taken over
//! RUN/NAME/migration.json  how to repeat a seed or a leech
//! RUN/NAME/store.json    the local store of a managed mount
//! RUN/NAME/client.json   who we are to the server of a remote volume, likewise
//! RUN/NAME/state.json    what runs here, written when the device is ready
//! RUN/NAME/control.sock  one JSON line each way
//! ```
//!
//! RUN is `/run/blockferry` for root, else `$XDG_RUNTIME_DIR/blockferry`.

mod claim;
mod client;
pub mod control;
mod directory;
pub mod doctor;
mod holders;
mod migration;
mod mount_record;
mod name;
mod recovery;
mod running;
mod state;
mod store_record;

pub use claim::Claim;
pub use control::{Answers, Command, Control, MAP_PARTS_MAX, Order};
pub use directory::run_directory;
pub use holders::{Holder, How, holders, in_use};
pub use migration::{abort, clean_dead_migration, dead_migration, finalize};
pub use mount_record::MountRecord;
pub use name::Name;
pub use recovery::{Place, place, refuse_left_over, take_left_over};
pub use running::{Entry, Life, map, running, status, stop, sync};
pub use state::{Running, RunningHook, Status, redacted, unix_seconds};
pub use store_record::{StoreRecord, refuse_waiting_for, unsent};
