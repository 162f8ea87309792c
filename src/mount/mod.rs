//! Mounts: a volume between a resource and a device.

mod deadline;
pub mod direct;
pub mod managed;
