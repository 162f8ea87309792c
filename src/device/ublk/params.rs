//! What a device is to be: the flags, sizes, limits and attributes that the driver is told.

use libublk_rs_sys as sys;

use super::control::DeviceInfo;
use crate::device::DeviceOptions;
use crate::volume::{Volume, memory::UNMAP_BYTES_MAX};

/// The largest request, in bytes.
pub(super) const REQUEST_BYTES_MAX: u32 = 1 << 20;

/// When the server dies, requests wait for another one, those that the dead one had begun included.
pub(super) const RECOVERY: u64 =
    (sys::UBLK_F_USER_RECOVERY | sys::UBLK_F_USER_RECOVERY_REISSUE) as u64;

/// Requests arrive with their pages registered with the queue's ring.
pub(super) const ZERO_COPY: u64 = (sys::UBLK_F_SUPPORT_ZERO_COPY | sys::UBLK_F_AUTO_BUF_REG) as u64;

/// What to ask of a driver with these `features` for this volume. `mark`: see
/// [`UblkRecord`](crate::device::UblkRecord).
pub(super) fn wanted(
    volume: &Volume,
    options: &DeviceOptions,
    features: u64,
    mark: u64,
) -> DeviceInfo {
    let mut flags = 0;
    if volume.takes_registered_buffers() && features & ZERO_COPY == ZERO_COPY {
        flags |= ZERO_COPY;
    }
    if options.recoverable && !volume.is_memory() && features & RECOVERY == RECOVERY {
        flags |= RECOVERY;
    }
    DeviceInfo {
        nr_hw_queues: options.queues,
        queue_depth: options.depth,
        max_io_buf_bytes: REQUEST_BYTES_MAX,
        ublksrv_pid: std::process::id() as i32,
        // For the server alone: the driver keeps it and gives it back.
        ublksrv_flags: mark,
        flags,
        ..Default::default()
    }
}

/// The device's sizes, limits and attributes.
pub(super) fn params(volume: &Volume, options: &DeviceOptions) -> sys::ublk_params {
    let geometry = volume.geometry();
    let mut attrs = 0;
    if options.read_only || volume.is_read_only() {
        attrs |= sys::UBLK_ATTR_READ_ONLY;
    }
    if volume.has_volatile_cache() {
        attrs |= sys::UBLK_ATTR_VOLATILE_CACHE | sys::UBLK_ATTR_FUA;
    }
    let block_bytes = geometry.logical_block_bytes();
    let block_shift = block_bytes.trailing_zeros() as u8;
    let page_shift = geometry.physical_block_bytes().trailing_zeros() as u8;
    let mut params = sys::ublk_params {
        len: size_of::<sys::ublk_params>() as u32,
        types: sys::UBLK_PARAM_TYPE_BASIC,
        basic: sys::ublk_param_basic {
            attrs,
            logical_bs_shift: block_shift,
            physical_bs_shift: page_shift,
            io_opt_shift: page_shift,
            io_min_shift: page_shift,
            max_sectors: REQUEST_BYTES_MAX >> 9,
            chunk_sectors: 0,
            dev_sectors: geometry.device_bytes() >> 9,
            virt_boundary_mask: 0,
        },
        ..Default::default()
    };
    // Zeros can be written anywhere; discards are offered where they do something.
    params.types |= sys::UBLK_PARAM_TYPE_DISCARD;
    let range_sectors = (UNMAP_BYTES_MAX >> 9) as u32;
    params.discard = sys::ublk_param_discard {
        discard_granularity: block_bytes.max(geometry.physical_block_bytes()),
        max_discard_sectors: if volume.can_discard() {
            range_sectors
        } else {
            0
        },
        max_write_zeroes_sectors: range_sectors,
        max_discard_segments: 1,
        ..Default::default()
    };
    params
}
