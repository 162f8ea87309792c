//! Mounts: a volume between a resource and a device.

pub mod direct;
