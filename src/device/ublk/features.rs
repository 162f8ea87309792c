//! What this kernel's ublk driver can do.

use std::fmt;

use libublk_rs_sys as sys;

use super::control::Control;
use crate::Result;

/// The driver's features, bit 0 first, as `linux/ublk_cmd.h` has them.
const NAMES: [&str; 21] = [
    "SUPPORT_ZERO_COPY",
    "URING_CMD_COMP_IN_TASK",
    "NEED_GET_DATA",
    "USER_RECOVERY",
    "USER_RECOVERY_REISSUE",
    "UNPRIVILEGED_DEV",
    "CMD_IOCTL_ENCODE",
    "USER_COPY",
    "ZONED",
    "USER_RECOVERY_FAIL_IO",
    "UPDATE_SIZE",
    "AUTO_BUF_REG",
    "QUIESCE",
    "PER_IO_DAEMON",
    "BUF_REG_OFF_DAEMON",
    "BATCH_IO",
    "INTEGRITY",
    "SAFE_STOP_DEV",
    "NO_AUTO_PART_SCAN",
    "SHMEM_ZC",
    "IO_DESC_SIZE",
];

/// A set of features of the driver: bits of `UBLK_F_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features(pub u64);

/// Asks the driver. Changes nothing and makes no device.
///
/// # Errors
/// Without the driver, without the right to use it, from a driver too old to answer (before Linux
/// 6.5), and when the driver does not answer in time.
pub fn query() -> Result<Features> {
    Control::open()?.features().map(Features)
}

impl Features {
    /// Whether all features of a mask of `UBLK_F_*` are there.
    pub fn has(self, mask: u64) -> bool {
        self.0 & mask == mask
    }

    /// Whether the driver makes devices for those who are not root.
    pub fn makes_unprivileged_devices(self) -> bool {
        self.has(sys::UBLK_F_UNPRIVILEGED_DEV.into())
    }

    /// Whether a device whose process has died can wait for another process.
    pub fn keep_devices_of_the_dead(self) -> bool {
        self.has(super::params::RECOVERY)
    }

    /// The names of the features; one that was added after this program has its bit in hex.
    pub fn names(self) -> Vec<String> {
        (0..u64::BITS as usize)
            .filter(|bit| self.has(1 << bit))
            .map(|bit| match NAMES.get(bit) {
                Some(name) => (*name).to_owned(),
                None => format!("{:#x}", 1u64 << bit),
            })
            .collect()
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_at_their_bits() {
        for (bit, name) in [
            (sys::UBLK_F_SUPPORT_ZERO_COPY, "SUPPORT_ZERO_COPY"),
            (sys::UBLK_F_USER_COPY, "USER_COPY"),
            (sys::UBLK_F_AUTO_BUF_REG, "AUTO_BUF_REG"),
            (sys::UBLK_F_BATCH_IO, "BATCH_IO"),
            (sys::UBLK_F_SHMEM_ZC, "SHMEM_ZC"),
        ] {
            assert_eq!(Features(bit.into()).to_string(), name);
        }
    }

    #[test]
    fn a_feature_of_a_later_kernel_is_shown_and_not_dropped() {
        let features = Features(1 | 1 << 40);
        assert_eq!(features.names(), ["SUPPORT_ZERO_COPY", "0x10000000000"]);
    }
}
