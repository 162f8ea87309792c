//! The engine: geometry, requests, data paths and the queues that drive them.
//!
//! Nothing here knows a device or a socket. A device kind owns threads and a ring for each; it
//! hands every request to its [`EngineQueue`](queue::EngineQueue) and gives the answer back.

pub mod backend;
pub mod geometry;
pub mod request;

pub use backend::{AsyncBackend, Backend, BackendFuture, Capabilities, Extent, Priority};
pub use geometry::{BlockIndex, ByteOffset, ChunkIndex, Geometry};
pub use request::{Errno, Op, Outcome, Request, Tag};
