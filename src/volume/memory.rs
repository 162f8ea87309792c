//! Memory as a volume: one private mapping, filled with zeros, that grows as it is written.

use std::io;
use std::ptr::NonNull;

use memmap2::{MmapOptions, MmapRaw};

use super::backend::{Backend, Capabilities};
use crate::{Context, Error, ErrorKind, Result};

/// What `madvise` works on, in bytes.
const PAGE_BYTES: u64 = 4096;

/// Below this many bytes zeros are written; above, pages are given back.
const UNMAP_BYTES_MIN: u64 = 64 << 10;

/// The largest range given back by one operation on the ring, in bytes.
pub const UNMAP_BYTES_MAX: u64 = 1 << 30;

/// A volume in this process's memory. Its bytes are gone when the process ends.
///
/// Requests that overlap and run at once leave a mix of their bytes, as on any disk.
#[derive(Debug)]
pub struct MemoryMap {
    map: MmapRaw,
    len_bytes: u64,
}

impl MemoryMap {
    /// `len_bytes` of zeros. Pages are taken as they are written, in huge pages where the machine
    /// has them.
    ///
    /// # Errors
    /// When the machine has not got that much memory available.
    pub fn new(len_bytes: u64) -> Result<Self> {
        let available = available_bytes();
        if len_bytes > available {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "mem: {} is more than the {} that this machine has available",
                    super::size::format_size(len_bytes),
                    super::size::format_size(available),
                ),
            ));
        }
        let context = || format!("mem: cannot map {len_bytes} bytes");
        let map: MmapRaw = MmapOptions::new()
            .len(
                usize::try_from(len_bytes)
                    .map_err(io::Error::other)
                    .context_io(context)?,
            )
            .no_reserve_swap()
            .map_anon()
            .context_io(context)?
            .into();
        // Only a hint: kernels built without huge pages refuse it.
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self { map, len_bytes })
    }

    /// How long it is.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Copies `len_bytes` from `offset` to `to`.
    ///
    /// # Panics
    /// If the range lies outside.
    pub fn read(&self, offset: u64, to: &mut [u8]) {
        let from = self.at(offset, to.len() as u64);
        // SAFETY: `at` checked the range; `to` is no part of the mapping, which nobody borrows.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_mut_ptr(), to.len()) };
    }

    /// Copies `from` to `offset`.
    ///
    /// # Panics
    /// If the range lies outside.
    pub fn write(&self, offset: u64, from: &[u8]) {
        let to = self.at(offset, from.len() as u64);
        // SAFETY: `at` checked the range; `from` is no part of the mapping, which nobody borrows.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), from.len()) };
    }

    /// Writes zeros at both ends of the range and gives back which whole pages in between are to
    /// be zeroed by [`Unmap`]; `None` when nothing is left to do.
    ///
    /// # Panics
    /// If the range lies outside.
    pub fn zero_edges(&self, offset: u64, len_bytes: u64) -> Option<Unmap> {
        let end = offset + len_bytes;
        let (first, last) = (
            offset.next_multiple_of(PAGE_BYTES),
            end / PAGE_BYTES * PAGE_BYTES,
        );
        if len_bytes < UNMAP_BYTES_MIN {
            self.zero(offset, len_bytes);
            return None;
        }
        self.zero(offset, first - offset);
        self.zero(last, end - last);
        Some(Unmap {
            address: self.at(first, last - first),
            len_bytes: last - first,
        })
    }

    fn zero(&self, offset: u64, len_bytes: u64) {
        let to = self.at(offset, len_bytes);
        // SAFETY: `at` checked the range, and nobody borrows the mapping.
        unsafe { std::ptr::write_bytes(to.as_ptr(), 0, len_bytes as usize) };
    }

    fn at(&self, offset: u64, len_bytes: u64) -> NonNull<u8> {
        assert!(
            offset
                .checked_add(len_bytes)
                .is_some_and(|end| end <= self.len_bytes),
            "a request within the volume"
        );
        // SAFETY: within the mapping, so no overflow, and a mapping is never at address 0.
        unsafe { NonNull::new_unchecked(self.map.as_mut_ptr().add(offset as usize)) }
    }
}

/// Whole pages of a [`MemoryMap`] that are to read as zeros again.
#[derive(Debug, Clone, Copy)]
pub struct Unmap {
    address: NonNull<u8>,
    len_bytes: u64,
}

// SAFETY: an address alone; whoever uses it argues for itself.
unsafe impl Send for Unmap {}

impl Unmap {
    /// The next operation for a ring, and what is left after it.
    pub fn next_entry(self) -> (io_uring::squeue::Entry, Option<Self>) {
        let piece = self.len_bytes.min(UNMAP_BYTES_MAX);
        let entry = io_uring::opcode::Madvise::new(
            self.address.as_ptr().cast::<libc::c_void>(),
            piece as libc::off_t,
            libc::MADV_DONTNEED,
        )
        .build();
        let rest = (self.len_bytes > piece).then(|| Self {
            // SAFETY: still within the same mapping, since `piece` is less than what is left.
            address: unsafe { self.address.add(piece as usize) },
            len_bytes: self.len_bytes - piece,
        });
        (entry, rest)
    }

    pub(super) fn run(self) -> io::Result<()> {
        // SAFETY: whole pages of a private anonymous mapping, which read as zeros afterwards;
        // nobody borrows them.
        let result = unsafe {
            libc::madvise(
                self.address.as_ptr().cast(),
                self.len_bytes as usize,
                libc::MADV_DONTNEED,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

impl Backend for MemoryMap {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len_bytes)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read(offset, buf);
        Ok(buf.len())
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.write(offset, buf);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.zero_edges(offset, len).map_or(Ok(()), Unmap::run)
    }

    fn write_zeroes(&self, offset: u64, len: u64, _no_unmap: bool) -> io::Result<()> {
        self.discard(offset, len)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            flush_is_durable: false,
            discard: true,
            ..Capabilities::default()
        }
    }
}

/// What the kernel would give without swapping (`MemAvailable`), in bytes.
pub fn available_bytes() -> u64 {
    std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text
                .lines()
                .find(|line| line.starts_with("MemAvailable:"))?;
            let kib: u64 = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
            Some(kib << 10)
        })
        .unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn zeroing_takes_exactly_its_range(
            offset in 0u64..1 << 20,
            len in 0u64..1 << 20,
        ) {
            let size = 2 << 20;
            let memory = MemoryMap::new(size).expect("2 MiB");
            memory.write(0, &vec![0xa5; size as usize]);
            memory.discard(offset, len).expect("zeroed");
            let mut after = vec![1; size as usize];
            memory.read(0, &mut after);
            let (from, to) = (offset as usize, (offset + len) as usize);
            prop_assert!(after[from..to].iter().all(|byte| *byte == 0));
            prop_assert!(after[..from].iter().chain(&after[to..]).all(|byte| *byte == 0xa5));
        }
    }

    #[test]
    fn more_than_the_machine_has_is_refused() {
        let error = MemoryMap::new(1 << 60).expect_err("an exbibyte");
        assert!(error.to_string().contains("available"), "{error}");
    }
}
