//! The engine: geometry, requests, data paths and the queues that drive them.
//!
//! Nothing here knows a device or a socket. A device kind owns threads and a ring for each; it
//! hands every request to its [`EngineQueue`] and gives the answer back.

pub mod backend;
pub mod bell;
pub mod buffer;
pub mod cache;
pub mod counters;
pub mod file;
pub mod geometry;
pub mod instance;
mod local_io;
pub mod mailbox;
pub mod managed;
pub mod memory;
pub mod misses;
pub mod pool;
pub mod priority_semaphore;
pub mod queue;
mod ranges;
pub mod request;
pub mod ring;
pub mod size;
pub mod state_map;
mod sync_group;
#[allow(
    clippy::module_inception,
    reason = "the volume is what this folder is about"
)]
pub mod volume;
pub mod watch;

pub use backend::{AsyncBackend, Backend, BackendFuture, Capabilities, Extent, Priority};
pub use buffer::{RequestBuffer, RequestMemory};
pub use counters::{Counters, QueueCounters};
pub use file::{FileMark, FileOptions, FileStore};
pub use geometry::{BlockIndex, BlockRange, ByteOffset, ChunkIndex, Geometry, RegionIndex};
pub use managed::{Durability, ManagedStore};
pub use memory::MemoryMap;
pub use misses::{Miss, MissQueue};
pub use pool::Pooled;
pub use priority_semaphore::{PriorityPermit, PrioritySemaphore};
pub use queue::EngineQueue;
pub use request::{Errno, Op, Outcome, Request, Tag};
pub use ring::{Owner, QueueRing};
pub use size::{format_size, parse_size};
pub use state_map::StateMap;
pub use volume::{Store, Volume};
pub use watch::{TRACKERS_MAX, Tracker, Watch};
