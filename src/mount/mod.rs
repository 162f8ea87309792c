//! Mounts: a volume between a resource and a device.

pub(crate) mod announcer;
mod deadline;
pub mod direct;
pub mod managed;
