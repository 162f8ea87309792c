//! Random numbers that stand for a boot of this host and for this process.

use std::io;

use crate::{Context, Result};

/// Differs from boot to boot.
///
/// # Errors
/// Where `/proc` is not there.
pub fn of_boot() -> Result<[u8; 16]> {
    parse_uuid("/proc/sys/kernel/random/boot_id")
}

/// Differs from call to call.
///
/// # Errors
/// Where `/proc` is not there.
pub fn fresh() -> Result<[u8; 16]> {
    parse_uuid("/proc/sys/kernel/random/uuid")
}

fn parse_uuid(path: &str) -> Result<[u8; 16]> {
    let context = || format!("cannot read an identity from {path}");
    let text = std::fs::read_to_string(path).context_io(context)?;
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    u128::from_str_radix(&digits, 16)
        .map(u128::to_be_bytes)
        .map_err(io::Error::other)
        .context_io(context)
}
