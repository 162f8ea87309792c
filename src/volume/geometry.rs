//! Positions and sizes, each in a type of its own.

use std::fmt;

use crate::{Error, ErrorKind, Result};

/// Bytes in a block, the grain of the state map.
pub const BLOCK_BYTES: u64 = 4096;

/// Blocks in a region, the grain of the words above the state map's bits. (The model checker gets
/// small ones.)
pub const REGION_BLOCKS: u64 = if cfg!(blockferry_loom) { 64 } else { 32768 };

/// Bytes of a volume in a region: 128 MiB.
pub const REGION_BYTES: u64 = REGION_BLOCKS * BLOCK_BYTES;

/// The smallest chunk, in bytes.
pub const CHUNK_BYTES_MIN: u64 = 4096;

/// The largest chunk, in bytes.
pub const CHUNK_BYTES_MAX: u64 = 4 << 20;

/// The chunk that is used unless another one is asked for, in bytes.
pub const CHUNK_BYTES_DEFAULT: u64 = 256 << 10;

/// The largest volume, in bytes: what a Linux block device can address with a signed offset.
pub const VOLUME_BYTES_MAX: u64 = i64::MAX as u64 & !(BLOCK_BYTES - 1);

/// A position in a volume, in bytes from its start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteOffset(pub u64);

/// The number of a block of [`BLOCK_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(pub u64);

/// The number of a chunk; how long chunks are is a property of the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkIndex(pub u64);

/// The number of a region of [`REGION_BLOCKS`]; the last one of a volume may be short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionIndex(pub u64);

/// The blocks from `first` up to, and without, `end`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockRange {
    /// The first block.
    pub first: BlockIndex,
    /// The block after the last one.
    pub end: BlockIndex,
}

impl BlockIndex {
    /// Where the block starts.
    pub fn start(self) -> ByteOffset {
        ByteOffset(self.0 * BLOCK_BYTES)
    }

    /// The region that holds the block.
    pub fn region(self) -> RegionIndex {
        RegionIndex(self.0 / REGION_BLOCKS)
    }
}

impl RegionIndex {
    /// The first block of the region.
    pub fn first_block(self) -> BlockIndex {
        BlockIndex(self.0 * REGION_BLOCKS)
    }
}

impl BlockRange {
    /// The blocks from `first` up to, and without, `end`.
    pub fn new(first: u64, end: u64) -> Self {
        Self {
            first: BlockIndex(first),
            end: BlockIndex(end),
        }
    }

    /// All blocks of which at least one byte lies in the range of bytes.
    ///
    /// # Panics
    /// In debug builds when the range overflows.
    pub fn touched(offset: ByteOffset, len_bytes: u64) -> Self {
        let end = offset.advanced(len_bytes).0;
        let first = offset.block().0;
        if len_bytes == 0 {
            return Self::new(first, first);
        }
        Self::new(first, end.div_ceil(BLOCK_BYTES))
    }

    /// The blocks that lie in the range of bytes as a whole.
    ///
    /// # Panics
    /// In debug builds when the range overflows.
    pub fn inside(offset: ByteOffset, len_bytes: u64) -> Self {
        let first = offset.0.div_ceil(BLOCK_BYTES);
        let end = offset.advanced(len_bytes).block().0;
        Self::new(first, end.max(first))
    }

    /// This block alone.
    pub fn of(block: BlockIndex) -> Self {
        Self::new(block.0, block.0 + 1)
    }

    /// The regions that have a block of the range.
    pub fn regions(self) -> impl Iterator<Item = RegionIndex> {
        let end = match self.is_empty() {
            true => self.first.region().0,
            false => BlockIndex(self.end.0 - 1).region().0 + 1,
        };
        (self.first.region().0..end).map(RegionIndex)
    }

    /// The range in parts, each within one chunk of `chunk_bytes`, a multiple of a block.
    pub fn by_chunk(self, chunk_bytes: u64) -> impl Iterator<Item = (ChunkIndex, Self)> {
        let mut rest = self;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let chunk = rest.start().chunk(chunk_bytes);
            let chunk_end = ChunkIndex(chunk.0 + 1).start(chunk_bytes).block();
            Some((chunk, rest.take(chunk_end.0 - rest.first.0)))
        })
    }

    /// Takes at most `blocks` from its beginning.
    pub fn take(&mut self, blocks: u64) -> Self {
        let taken = Self {
            first: self.first,
            end: BlockIndex(self.first.0.saturating_add(blocks)).min(self.end),
        };
        self.first = taken.end;
        taken
    }

    /// How many blocks there are.
    pub fn len(self) -> u64 {
        self.end.0.saturating_sub(self.first.0)
    }

    /// Whether there is no block.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The blocks, in order.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = BlockIndex> {
        (self.first.0..self.end.0).map(BlockIndex)
    }

    /// Whether both have a block in common.
    pub fn overlaps(self, other: Self) -> bool {
        !self.intersection(other).is_empty()
    }

    /// The blocks that both have; an empty range when there are none.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        let first = self.first.max(other.first);
        Self {
            first,
            end: self.end.min(other.end).max(first),
        }
    }

    /// Where the blocks start.
    pub fn start(self) -> ByteOffset {
        self.first.start()
    }

    /// How long the blocks are, in bytes. In a volume with a short last block that may be more
    /// than the volume holds.
    pub fn len_bytes(self) -> u64 {
        self.len() * BLOCK_BYTES
    }
}

/// Runs that are in order, in groups: those within one chunk of `chunk_bytes`, a multiple of a block.
pub fn in_chunks(
    runs: impl Iterator<Item = BlockRange>,
    chunk_bytes: u64,
) -> impl Iterator<Item = Vec<BlockRange>> {
    let mut parts = runs
        .flat_map(move |run| run.by_chunk(chunk_bytes))
        .peekable();
    std::iter::from_fn(move || {
        let (chunk, first) = parts.next()?;
        let mut runs = vec![first];
        while let Some((_, next)) = parts.next_if(|(other, _)| *other == chunk) {
            runs.push(next);
        }
        Some(runs)
    })
}

impl fmt::Debug for BlockRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.first.0, self.end.0)
    }
}

impl ChunkIndex {
    /// Where the chunk starts, in a volume with chunks of `chunk_bytes`.
    pub fn start(self, chunk_bytes: u64) -> ByteOffset {
        ByteOffset(self.0 * chunk_bytes)
    }
}

impl ByteOffset {
    /// The block that holds this byte.
    pub fn block(self) -> BlockIndex {
        BlockIndex(self.0 / BLOCK_BYTES)
    }

    /// The chunk that holds this byte, in a volume with chunks of `chunk_bytes`.
    pub fn chunk(self, chunk_bytes: u64) -> ChunkIndex {
        ChunkIndex(self.0 / chunk_bytes)
    }

    /// The position `len_bytes` further on, or `None` past the end of what can be addressed.
    pub fn checked_add(self, len_bytes: u64) -> Option<Self> {
        self.0.checked_add(len_bytes).map(Self)
    }

    /// The position `len_bytes` further on, for a range that was already checked.
    ///
    /// # Panics
    /// In debug builds when it overflows.
    #[must_use]
    pub fn advanced(self, len_bytes: u64) -> Self {
        Self(self.0 + len_bytes)
    }
}

impl fmt::Debug for ByteOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{:#x}", self.0)
    }
}

impl fmt::Display for ByteOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The sizes of a volume.
///
/// A resource whose size is no multiple of the logical block shows as a device that is padded with
/// zeros up to the next multiple. The resource itself is never extended.
///
/// ```
/// use blockferry::volume::Geometry;
/// let geometry = Geometry::new(1000, 512)?;
/// assert_eq!(geometry.device_bytes(), 1024);
/// assert_eq!(geometry.padding_bytes(), 24);
/// # Ok::<(), blockferry::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    resource_bytes: u64,
    logical_block_bytes: u32,
    physical_block_bytes: u32,
}

impl Geometry {
    /// A geometry for a resource of `resource_bytes`, with logical blocks of
    /// `logical_block_bytes` (a power of two from 512 to 4096).
    ///
    /// # Errors
    /// `InvalidInput` for an empty or too large resource and for any other block size.
    pub fn new(resource_bytes: u64, logical_block_bytes: u32) -> Result<Self> {
        if resource_bytes == 0 {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "the resource is empty; a block device needs at least one byte",
            ));
        }
        if resource_bytes > VOLUME_BYTES_MAX {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "a size of {resource_bytes} bytes is above the limit of {VOLUME_BYTES_MAX}"
                ),
            ));
        }
        if !logical_block_bytes.is_power_of_two() || !(512..=4096).contains(&logical_block_bytes) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "a block size of {logical_block_bytes} is not one of 512, 1024, 2048, 4096"
                ),
            ));
        }
        Ok(Self {
            resource_bytes,
            logical_block_bytes,
            physical_block_bytes: BLOCK_BYTES as u32,
        })
    }

    /// A geometry for a resource that addresses blocks of `own_block_bytes`, with logical blocks of
    /// `wanted_block_bytes` where that is given.
    ///
    /// # Errors
    /// As [`new`](Self::new), and `InvalidInput` for blocks that are finer than the resource's own.
    pub fn with_blocks(
        resource_bytes: u64,
        own_block_bytes: u32,
        wanted_block_bytes: Option<u32>,
    ) -> Result<Self> {
        let block_bytes = wanted_block_bytes.unwrap_or(own_block_bytes);
        if block_bytes < own_block_bytes {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "a block size of {block_bytes} is below the resource's own of {own_block_bytes}"
                ),
            ));
        }
        Self::new(resource_bytes, block_bytes)
    }

    /// How long the resource is.
    pub fn resource_bytes(&self) -> u64 {
        self.resource_bytes
    }

    /// How long the device is: the resource, padded to a whole logical block.
    pub fn device_bytes(&self) -> u64 {
        self.resource_bytes
            .next_multiple_of(u64::from(self.logical_block_bytes))
    }

    /// How many bytes of the device lie past the end of the resource.
    pub fn padding_bytes(&self) -> u64 {
        self.device_bytes() - self.resource_bytes
    }

    /// The smallest unit that the device reads or writes.
    pub fn logical_block_bytes(&self) -> u32 {
        self.logical_block_bytes
    }

    /// The unit that the device reads or writes best.
    pub fn physical_block_bytes(&self) -> u32 {
        self.physical_block_bytes
    }

    /// Whether the range lies within the device.
    pub fn contains(&self, offset: ByteOffset, len_bytes: u64) -> bool {
        offset
            .checked_add(len_bytes)
            .is_some_and(|end| end.0 <= self.device_bytes())
    }

    /// How many of the `len_bytes` from `offset` lie within the resource; the rest is padding.
    pub fn within_resource(&self, offset: ByteOffset, len_bytes: u64) -> u64 {
        self.resource_bytes.saturating_sub(offset.0).min(len_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn padding_is_shorter_than_a_block_and_never_lost(
            resource in 1u64..1 << 50,
            shift in 9u32..=12,
        ) {
            let geometry = Geometry::new(resource, 1 << shift).expect("legal");
            prop_assert!(geometry.padding_bytes() < 1 << shift);
            prop_assert_eq!(geometry.device_bytes() % (1 << shift), 0);
            prop_assert_eq!(geometry.device_bytes() - geometry.padding_bytes(), resource);
        }

        #[test]
        fn a_range_splits_into_resource_and_padding(
            resource in 1u64..1 << 20,
            offset in 0u64..1 << 21,
            len in 0u64..1 << 21,
        ) {
            let geometry = Geometry::new(resource, 512).expect("legal");
            let inside = geometry.within_resource(ByteOffset(offset), len);
            prop_assert!(inside <= len);
            for at in [0, inside.saturating_sub(1), inside, len.saturating_sub(1)] {
                if at < len {
                    prop_assert_eq!(at < inside, offset + at < resource);
                }
            }
        }

        #[test]
        fn a_range_that_overflows_is_outside(offset in any::<u64>(), len in any::<u64>()) {
            let geometry = Geometry::new(1 << 30, 512).expect("legal");
            let inside = u128::from(offset) + u128::from(len) <= 1 << 30;
            prop_assert_eq!(geometry.contains(ByteOffset(offset), len), inside);
        }
    }

    #[test]
    fn every_byte_lies_in_the_block_and_chunk_that_start_at_or_before_it() {
        for byte in [0, 1, 4095, 4096, 262_143, 262_144] {
            let offset = ByteOffset(byte);
            let chunk_bytes = CHUNK_BYTES_DEFAULT;
            for (start, len) in [
                (offset.block().start(), BLOCK_BYTES),
                (offset.chunk(chunk_bytes).start(chunk_bytes), chunk_bytes),
            ] {
                assert!(start <= offset && offset.0 < start.0 + len, "{byte}");
            }
        }
    }

    proptest! {
        #[test]
        fn whole_and_touched_blocks_are_those_that_the_bytes_say(
            offset in 0u64..20_000,
            len in 0u64..20_000,
        ) {
            let end = offset + len;
            let touched = BlockRange::touched(ByteOffset(offset), len);
            let inside = BlockRange::inside(ByteOffset(offset), len);
            for block in 0u64..12 {
                let (from, to) = (block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES);
                let is_in = |range: BlockRange| range.iter().any(|it| it.0 == block);
                prop_assert_eq!(is_in(touched), len > 0 && from < end && offset < to);
                prop_assert_eq!(is_in(inside), offset <= from && to <= end);
            }
            prop_assert_eq!(touched.len(), touched.iter().count() as u64);
            prop_assert_eq!(inside.intersection(touched), inside);
        }

        #[test]
        fn parts_by_chunk_and_region_are_the_whole(
            first in 0u64..100_000,
            len in 0u64..100_000,
            shift in 12u32..=22,
        ) {
            let range = BlockRange::new(first, first + len);
            let mut next = range.first;
            for (chunk, part) in range.by_chunk(1 << shift) {
                prop_assert_eq!(part.first, next);
                prop_assert!(!part.is_empty());
                let last = BlockIndex(part.end.0 - 1);
                prop_assert_eq!(part.start().chunk(1 << shift), chunk);
                prop_assert_eq!(last.start().chunk(1 << shift), chunk);
                next = part.end;
            }
            prop_assert_eq!(next, range.end);
            let regions: Vec<_> = range.regions().collect();
            for block in [range.first.0, range.end.0.saturating_sub(1)] {
                prop_assert_eq!(regions.contains(&BlockIndex(block).region()), len > 0);
            }
        }

        #[test]
        fn ranges_overlap_where_they_share_a_block(
            (a, b, c, d) in (0u64..20, 0u64..20, 0u64..20, 0u64..20),
        ) {
            let (one, other) = (BlockRange::new(a, b), BlockRange::new(c, d));
            let shared: Vec<_> = one.iter().filter(|it| other.iter().any(|o| o == *it)).collect();
            prop_assert_eq!(one.overlaps(other), !shared.is_empty());
            prop_assert_eq!(one.intersection(other).iter().collect::<Vec<_>>(), shared);
        }
    }

    #[test]
    fn sizes_that_make_no_device_are_refused() {
        assert!(Geometry::new(0, 512).is_err());
        assert!(Geometry::new(u64::MAX, 512).is_err());
        for block in [0, 1, 256, 513, 8192] {
            assert!(Geometry::new(4096, block).is_err(), "{block}");
        }
    }
}
