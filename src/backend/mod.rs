//! The kinds of resource: one file a kind, and the registry from URL to backend.

pub mod faults;
mod local;
mod registry;

pub use registry::{Kind, OpenOptions, Resource, canonical, check, open};
