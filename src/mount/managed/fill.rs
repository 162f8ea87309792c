//! How fetched bytes get into the store.

use std::io;

use super::Shared;
use super::buffers::Buffer;
use crate::volume::Backend;
use crate::volume::geometry::{BLOCK_BYTES, BlockRange};
use crate::wire::segment;

impl Shared {
    /// Puts fetched bytes into the store, where nothing was written meanwhile (L6). Blocks.
    pub(super) fn fill(&self, blocks: BlockRange, buffer: &Buffer) -> io::Result<()> {
        let map = &self.store.map;
        for region in blocks.regions() {
            map.prepare_fill(region)?;
        }
        let claim = map.claim_fill(blocks);
        let written = claim.runs().iter().try_for_each(|run| {
            let from = ((run.first.0 - blocks.first.0) * BLOCK_BYTES) as usize;
            let len = (run.len() * BLOCK_BYTES) as usize;
            self.write_run(*run, &buffer.bytes()[from..from + len])
        });
        map.finish_fill(claim, written.is_ok());
        map.collapse_all(blocks);
        self.store.claim_released();
        written
    }

    /// Writes blocks; those that are zeros become holes.
    fn write_run(&self, run: BlockRange, bytes: &[u8]) -> io::Result<()> {
        let mut offset = run.first.start().0;
        for (zeros, part) in runs_of_blocks(bytes) {
            if zeros {
                self.store
                    .data
                    .write_zeroes(offset, part.len() as u64, false)?;
            } else {
                self.store.data.write_at(part, offset)?;
            }
            offset += part.len() as u64;
        }
        Ok(())
    }
}

/// Splits whole blocks into runs that are all zeros or have no block of zeros.
pub(super) fn runs_of_blocks(bytes: &[u8]) -> impl Iterator<Item = (bool, &[u8])> {
    segment::runs(bytes).map(|(segment, range)| (segment.is_zeros(), &bytes[range]))
}

/// How many bytes are in blocks that are not all zeros.
pub(super) fn data_bytes(bytes: &[u8]) -> u64 {
    let data = runs_of_blocks(bytes).filter(|(zeros, _)| !zeros);
    data.map(|(_, part)| part.len() as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_tell_blocks_of_zeros_from_others_and_miss_nothing() {
        let block = BLOCK_BYTES as usize;
        let mut bytes = vec![0; 5 * block];
        bytes[2 * block - 1] = 1;
        bytes[2 * block] = 1;
        let runs: Vec<_> = runs_of_blocks(&bytes)
            .map(|(zeros, part)| (zeros, part.len() / block))
            .collect();
        assert_eq!(runs, [(true, 1), (false, 2), (true, 2)]);
        assert!(segment::is_zero(&bytes[3 * block + 1..]));
        assert!(!segment::is_zero(&bytes[block + 3..3 * block]));
    }
}
