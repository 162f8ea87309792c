//! The memory that a queue shares with the driver.

use std::fs::File;
use std::io;
use std::ptr::NonNull;

use libublk_rs_sys as sys;
use memmap2::{MmapOptions, MmapRaw};

use crate::volume::{RequestMemory, Tag};

/// The requests of one queue, as the driver writes them (`struct ublksrv_io_desc` for each tag).
pub(super) struct Descriptors {
    map: MmapRaw,
    depth: u16,
}

impl Descriptors {
    /// Maps the descriptors of queue `queue` from the queues' device.
    pub(super) fn map(device: &File, queue: u16, depth: u16) -> io::Result<Self> {
        let page_bytes = 4096;
        let entry_bytes = size_of::<sys::ublksrv_io_desc>();
        // Queues lie apart by the room that the deepest one takes (`ublk_max_cmd_buf_size`).
        let stride =
            (sys::UBLK_MAX_QUEUE_DEPTH as usize * entry_bytes).next_multiple_of(page_bytes);
        let offset = sys::UBLKSRV_CMD_BUF_OFFSET as usize + usize::from(queue) * stride;
        let len = (usize::from(depth) * entry_bytes).next_multiple_of(page_bytes);
        let map = MmapOptions::new()
            .offset(offset as u64)
            .len(len)
            .populate()
            .map_raw_read_only(device)?;
        Ok(Self { map, depth })
    }

    /// What the driver wrote for this tag. It does so before it hands the tag over, and not again
    /// before it got the tag back.
    pub(super) fn read(&self, tag: Tag) -> sys::ublksrv_io_desc {
        assert!(tag.0 < self.depth, "a tag of this queue");
        let entry = self.map.as_ptr().cast::<sys::ublksrv_io_desc>();
        // SAFETY: within the mapping, aligned, integers only, and not being written (see above).
        unsafe { entry.add(tag.index()).read_volatile() }
    }
}

/// The buffers of a queue in copy mode: the driver copies a write's bytes in before it hands the
/// tag over, and a read's bytes out when it is committed.
pub(super) struct TagBuffers {
    map: MmapRaw,
    each_bytes: usize,
}

impl TagBuffers {
    /// A buffer of `each_bytes` for each tag. Pages are taken as they are used.
    pub(super) fn new(depth: u16, each_bytes: u32) -> io::Result<Self> {
        let each_bytes = each_bytes as usize;
        let map = MmapOptions::new()
            .len(usize::from(depth) * each_bytes)
            .no_reserve_swap()
            .map_anon()?
            .into();
        Ok(Self { map, each_bytes })
    }

    /// Where the tag's buffer starts.
    pub(super) fn address(&self, tag: Tag) -> *mut u8 {
        let offset = tag.index() * self.each_bytes;
        assert!(offset < self.map.len(), "a tag of this queue");
        // SAFETY: within the mapping.
        unsafe { self.map.as_mut_ptr().add(offset) }
    }

    /// The first `len_bytes` of the tag's buffer, for the length of one request.
    pub(super) fn lend(&self, tag: Tag, len_bytes: usize) -> RequestMemory {
        let len_bytes = len_bytes.min(self.each_bytes);
        // SAFETY: a mapping never starts at address 0. The tag was handed over by the driver and
        // is lent once until it is committed; the queue drops its buffers after that.
        unsafe { RequestMemory::new(NonNull::new_unchecked(self.address(tag)), len_bytes) }
    }
}
