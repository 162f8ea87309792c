//! The file that a state map lies in while it is used: a shared mapping, which outlives the
//! process, so that a successor goes on where it was.
//!
//! ```text
//! 0        header page: 0 magic (8 bytes), 8 version (u32), 12 slots (u32), 16 boot id (16 bytes),
//!          32 store's UUID (16 bytes), 48 open counter (u64), 56 size in bytes (u64)
//! 4096     in-flight table: first block and end (u64 each) a slot, then up to a whole page
//! ...      a word (u64) a region, then up to a whole page
//! ...      places for the bits of mixed regions, as many as there are regions: four pages each,
//!          present, claimed, dirty, sending; holes until they are used for the first time
//! ```
//! Numbers are little-endian. The magic is written last, when the state of a checkpoint is in it:
//! a file whose maker died before that is no live map.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use memmap2::{MmapOptions, MmapRaw};
use nix::fcntl::{FallocateFlags, fallocate};
use thiserror::Error;

use crate::volume::geometry::{BLOCK_BYTES, REGION_BLOCKS, REGION_BYTES};

#[cfg(not(blockferry_loom))]
pub(super) mod words;

const MAGIC: [u8; 8] = *b"BfLiveMp";

/// The version of the layout.
pub const LIVE_MAP_VERSION: u32 = 2;

/// The most slots that a map can have: one for each request of the most and deepest queues, and some
/// for changes of the asynchronous side.
pub const SLOTS_MAX: u32 = 64 * 4096 + 256;

/// The largest volume that can have a live map, in bytes (4 PiB): each region takes a word at once.
pub const LIVE_MAP_VOLUME_BYTES_MAX: u64 = 1 << 52;

const HEADER_BYTES: usize = 64;
const PAGE_BYTES: u64 = 4096;
/// What the bits of a region take: the length of a place.
const REGION_BITS_BYTES: u64 = 4 * REGION_BLOCKS / 8;

/// What a live map belongs to. It counts only where all of it is as expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveMapKey {
    /// The boot that the store's bytes in the page cache belong to.
    pub boot_id: [u8; 16],
    /// The store that it describes.
    pub store_uuid: [u8; 16],
    /// The count of openings of the store that did not go on with a live map. It has to be raised
    /// durably before a live map is created, and not when one is adopted.
    pub open_counter: u64,
    /// How long the volume is.
    pub size_bytes: u64,
    /// How many requests the queues have under way at most (queues × depth). A live map that has
    /// room for more is adopted too.
    pub queue_slots: u32,
}

/// Why a live map cannot be adopted.
#[derive(Debug, Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages say it")]
pub enum AdoptError {
    #[error("there is no live map")]
    Missing,
    #[error("it is no live map, or its maker died before it was complete")]
    NotALiveMap,
    #[error("it has version {found} of the layout; this program knows {LIVE_MAP_VERSION}")]
    Version { found: u32 },
    #[error("it was made before the machine was last started")]
    BootId,
    #[error("it belongs to another store")]
    Store,
    #[error("the store was opened without it since: its open counter is {found}, not {expected}")]
    OpenCounter { found: u64, expected: u64 },
    #[error("it is for a volume of {found} bytes, not of {expected}")]
    Size { found: u64, expected: u64 },
    #[error("it has room for {found} requests under way, not for {expected}")]
    Slots { found: u32, expected: u32 },
    #[error("it is {found} bytes long in place of {expected}")]
    Truncated { found: u64, expected: u64 },
    #[error("it cannot be used")]
    Io(#[from] io::Error),
}

/// A live map, mapped.
#[derive(Debug)]
pub struct LiveMap {
    file: File,
    #[cfg_attr(
        blockferry_loom,
        allow(dead_code, reason = "the model checker has words of its own")
    )]
    map: MmapRaw,
    layout: Layout,
    size_bytes: u64,
    adopted: bool,
}

/// Where everything lies, in bytes from the file's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) slots: u64,
    pub(super) regions: u64,
    regions_at: u64,
    bits_at: u64,
    end: u64,
}

impl Layout {
    /// `None` where the sizes do not fit.
    fn of(size_bytes: u64, queue_slots: u32) -> Option<Self> {
        let slots = queue_slots.checked_add(super::ZERO_SLOTS)?;
        if slots > SLOTS_MAX || !(1..=LIVE_MAP_VOLUME_BYTES_MAX).contains(&size_bytes) {
            return None;
        }
        let (slots, regions) = (u64::from(slots), size_bytes.div_ceil(REGION_BYTES));
        let regions_at = PAGE_BYTES + (slots * 16).next_multiple_of(PAGE_BYTES);
        let bits_at = regions_at + regions.checked_mul(8)?.next_multiple_of(PAGE_BYTES);
        let end = bits_at.checked_add(regions.checked_mul(REGION_BITS_BYTES)?)?;
        Some(Self {
            slots,
            regions,
            regions_at,
            bits_at,
            end,
        })
    }
}

impl LiveMap {
    /// A new live map in which everything is absent. A file that is there is replaced. It cannot
    /// be adopted before it has become a [`StateMap`](super::StateMap).
    ///
    /// # Errors
    /// Where the file cannot be made, or has no room, or the volume is too large to be mapped.
    pub fn create(path: &Path, key: &LiveMapKey) -> io::Result<Self> {
        let layout = layout_of(key)?;
        remove(path)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_CLOEXEC)
            .open(path)?;
        let fill = || {
            file.set_len(layout.end)?;
            allocate(&file, 0, layout.bits_at)?;
            let map = map(&file, layout)?;
            file.write_all_at(&header(key)[MAGIC.len()..], MAGIC.len() as u64)?;
            Ok(map)
        };
        match fill() {
            Ok(map) => Ok(Self {
                file,
                map,
                layout,
                size_bytes: key.size_bytes,
                adopted: false,
            }),
            Err(error) => {
                // What was refused shall not take room; the first error says more than this one.
                let _ = remove(path);
                Err(error)
            }
        }
    }

    /// The live map that a process left behind. The caller has made sure that it is dead: by the
    /// lock on the store.
    ///
    /// # Errors
    /// The first thing that is not as `expected` says.
    pub fn adopt(path: &Path, expected: &LiveMapKey) -> Result<Self, AdoptError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
            .open(path)
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => AdoptError::Missing,
                _ => AdoptError::Io(error),
            })?;
        let len = file.metadata()?.len();
        let mut found = [0; HEADER_BYTES];
        if len < PAGE_BYTES {
            return Err(AdoptError::NotALiveMap);
        }
        file.read_exact_at(&mut found, 0)?;
        let queue_slots = compare(&found, expected)?;
        let layout = layout_of(&LiveMapKey {
            queue_slots,
            ..*expected
        })?;
        if len != layout.end {
            return Err(AdoptError::Truncated {
                found: len,
                expected: layout.end,
            });
        }
        Ok(Self {
            map: map(&file, layout)?,
            file,
            layout,
            size_bytes: expected.size_bytes,
            adopted: true,
        })
    }

    /// Takes room for the first `pages` (of four) of a place.
    pub(super) fn allocate_bits(&self, place: u32, pages: u64) -> io::Result<()> {
        let offset = self.layout.bits_at + u64::from(place) * REGION_BITS_BYTES;
        allocate(&self.file, offset, REGION_BITS_BYTES / 4 * pages)
    }

    /// Writes the magic.
    pub(super) fn complete(&self) -> io::Result<()> {
        self.file.write_all_at(&MAGIC, 0)
    }

    /// Whether another process had it before.
    pub fn is_adopted(&self) -> bool {
        self.adopted
    }

    /// How long the volume is.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    #[cfg(blockferry_loom)]
    pub(super) fn layout(&self) -> Layout {
        self.layout
    }
}

fn layout_of(key: &LiveMapKey) -> io::Result<Layout> {
    Layout::of(key.size_bytes, key.queue_slots).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "no live map for {} bytes and {} requests under way",
                key.size_bytes, key.queue_slots
            ),
        )
    })
}

/// The header but for the magic.
fn header(key: &LiveMapKey) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[8..12].copy_from_slice(&LIVE_MAP_VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&key.queue_slots.to_le_bytes());
    header[16..32].copy_from_slice(&key.boot_id);
    header[32..48].copy_from_slice(&key.store_uuid);
    header[48..56].copy_from_slice(&key.open_counter.to_le_bytes());
    header[56..64].copy_from_slice(&key.size_bytes.to_le_bytes());
    header
}

/// Gives back how many slots for queues there are.
fn compare(found: &[u8; HEADER_BYTES], expected: &LiveMapKey) -> Result<u32, AdoptError> {
    if found[..8] != MAGIC {
        return Err(AdoptError::NotALiveMap);
    }
    let version = u32_at(found, 8);
    if version != LIVE_MAP_VERSION {
        return Err(AdoptError::Version { found: version });
    }
    if found[16..32] != expected.boot_id {
        return Err(AdoptError::BootId);
    }
    if found[32..48] != expected.store_uuid {
        return Err(AdoptError::Store);
    }
    let (counter, size) = (u64_at(found, 48), u64_at(found, 56));
    if counter != expected.open_counter {
        return Err(AdoptError::OpenCounter {
            found: counter,
            expected: expected.open_counter,
        });
    }
    if size != expected.size_bytes {
        return Err(AdoptError::Size {
            found: size,
            expected: expected.size_bytes,
        });
    }
    let slots = u32_at(found, 12);
    if slots < expected.queue_slots {
        return Err(AdoptError::Slots {
            found: slots,
            expected: expected.queue_slots,
        });
    }
    Ok(slots)
}

fn u32_at(header: &[u8; HEADER_BYTES], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&header[at..at + 4]);
    u32::from_le_bytes(bytes)
}

fn u64_at(header: &[u8; HEADER_BYTES], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&header[at..at + 8]);
    u64::from_le_bytes(bytes)
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn map(file: &File, layout: Layout) -> io::Result<MmapRaw> {
    let len = usize::try_from(layout.end).map_err(io::Error::other)?;
    MmapOptions::new().len(len).map_raw(file)
}

/// Takes room, so that touching it cannot fail: a full file system is an error here and not a
/// signal later.
fn allocate(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_KEEP_SIZE;
    loop {
        match fallocate(file, flags, offset as i64, len as i64) {
            Err(nix::errno::Errno::EINTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

#[cfg(all(test, not(blockferry_loom)))]
mod tests;

const _: () = assert!(REGION_BITS_BYTES == 4 * PAGE_BYTES || cfg!(blockferry_loom));
const _: () = assert!(BLOCK_BYTES == 4096);
