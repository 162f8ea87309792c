//! Discards, and writes of zeros.

use std::sync::Arc;

use super::Shared;
use super::serve::Serving;
use super::slots::Slot;
use crate::volume::geometry::{
    BLOCK_BYTES, BlockIndex, BlockRange, ByteOffset, REGION_BYTES, RegionIndex,
};
use crate::volume::managed::queue::{edges_of, touched_blocks};
use crate::volume::state_map::{ZeroClaim, ZeroStart};
use crate::volume::{Backend, Errno, Outcome, Request};

impl Shared {
    /// Makes the range read as zeros: whole blocks become a hole, parts of blocks are written.
    pub(super) async fn zero(self: &Arc<Self>, serving: &Serving) -> Outcome {
        let request = &serving.request;
        let inside = self
            .geometry
            .within_resource(request.offset, request.len_bytes);
        let end = request.offset.advanced(inside);
        // The last block of the resource is whole, however short it is.
        let end = if end.0 == self.geometry.resource_bytes() {
            ByteOffset(end.0.next_multiple_of(BLOCK_BYTES))
        } else {
            end
        };
        let whole = BlockRange::inside(request.offset, end.0 - request.offset.0);
        let inside = Request {
            len_bytes: end.0 - request.offset.0,
            ..*request
        };
        self.make_edges_present(serving, &inside).await?;
        for edge in edges_of(&inside, &self.geometry).into_iter().flatten() {
            self.zero_edge(&inside, edge).await?;
        }
        self.zero_blocks(whole).await?;
        if request.len_bytes >= REGION_BYTES {
            self.collapse(touched_blocks(&inside)).await;
        }
        if request.fua {
            self.flush(serving).await
        } else {
            Ok(())
        }
    }

    /// Has the regions that a long discard was the last to make alike give their bits up: those at its
    /// ends, which others have discarded in part as well. (A short one may come between writes, and
    /// is not worth it.)
    async fn collapse(self: &Arc<Self>, blocks: BlockRange) {
        let shared = Arc::clone(self);
        let collapse = move || {
            shared.store.map.collapse_all(blocks);
            Ok(())
        };
        // It cannot fail, and another time does as well.
        let _ = self.tasks.blocking(collapse).await;
    }

    /// Writes zeros to the part of a present block that the request covers.
    async fn zero_edge(self: &Arc<Self>, request: &Request, edge: BlockRange) -> Outcome {
        let from = request.offset.max(edge.first.start());
        let to = request
            .offset
            .advanced(request.len_bytes)
            .min(edge.end.start());
        let slot = self.slots.take().await;
        let start = self.begin_write(&slot, edge).await?;
        let shared = Arc::clone(self);
        self.tasks
            .blocking(move || {
                let zeroed = shared.store.data.write_zeroes(from.0, to.0 - from.0, false);
                let map = &shared.store.map;
                if map.end_write(slot.number, edge, start, zeroed.is_ok()) {
                    shared.store.claim_released();
                }
                drop(slot);
                zeroed
            })
            .await
            .map_err(|error| self.store_failed("zeros", from.0, (to.0 - from.0) as usize, &error))
    }

    /// Makes blocks a hole: all at once, or, where others are at work on some of them, in parts, so
    /// that a discard of the whole device need not find nobody at work anywhere.
    async fn zero_blocks(self: &Arc<Self>, blocks: BlockRange) -> Outcome {
        let mut left = vec![blocks];
        while let Some(part) = left.pop() {
            if part.is_empty() {
                continue;
            }
            match self.claim_zero(part).await? {
                Some((claim, slot)) => self.punch(claim, slot).await?,
                None => match halves_by_region(part) {
                    Some([first, second]) => left.extend([second, first]),
                    None => {
                        self.unclaimed(part).await?;
                        left.push(part);
                    }
                },
            }
        }
        Ok(())
    }

    /// `None`: somebody is at work there.
    async fn claim_zero(
        self: &Arc<Self>,
        blocks: BlockRange,
    ) -> Result<Option<(ZeroClaim, Slot)>, Errno> {
        // There are as many places as the map has for discards.
        let slot = self.slots.take().await;
        loop {
            let shared = Arc::clone(self);
            // A look at each region: of a large volume that takes a while.
            let claim = move || {
                shared.checkpointer.make_zero_ready(blocks)?;
                Ok(shared.store.map.claim_zero(blocks))
            };
            let start =
                self.tasks.blocking(claim).await.map_err(|error| {
                    self.store_failed("write intent", blocks.start().0, 0, &error)
                })?;
            if let ZeroStart::Claimed(claim) = start {
                return Ok(Some((claim, slot)));
            }
            // It may have held claims for a moment.
            self.store.claim_released();
            match start {
                ZeroStart::NotReady(_) => {}
                ZeroStart::Full => return Err(Errno::EIO),
                _ => return Ok(None),
            }
        }
    }

    /// Zeros are holes here whether or not their space was to stay: a store promises nobody room.
    async fn punch(self: &Arc<Self>, claim: ZeroClaim, slot: Slot) -> Outcome {
        let blocks = claim.blocks();
        let (offset, len) = (blocks.start().0, blocks.len_bytes());
        let shared = Arc::clone(self);
        self.tasks
            .blocking(move || {
                let zeroed = shared.store.data.write_zeroes(offset, len, false);
                shared.store.map.finish_zero(claim, zeroed.is_ok());
                shared.store.claim_released();
                drop(slot);
                zeroed
            })
            .await
            .map_err(|error| self.store_failed("zeros", offset, len as usize, &error))
    }
}

/// A range of several regions in two parts, which meet between two regions.
fn halves_by_region(blocks: BlockRange) -> Option<[BlockRange; 2]> {
    let middle = blocks.first.0 + blocks.len().div_ceil(2);
    let after = BlockIndex(middle).region().first_block();
    let before_end = RegionIndex(after.region().0 + 1).first_block();
    let middle = match after > blocks.first {
        true => after,
        false => before_end,
    };
    let second = BlockRange {
        first: middle,
        ..blocks
    };
    let first = BlockRange {
        end: middle,
        ..blocks
    };
    (middle < blocks.end).then_some([first, second])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::geometry::REGION_BLOCKS;

    #[test]
    fn halves_meet_between_two_regions_and_nothing_is_left_out() {
        for (first, end) in [(0, 10), (5, REGION_BLOCKS), (0, REGION_BLOCKS)] {
            assert!(halves_by_region(BlockRange::new(first, end)).is_none());
        }
        for (first, end) in [
            (0, 2 * REGION_BLOCKS),
            (REGION_BLOCKS - 1, REGION_BLOCKS + 1),
            (1, REGION_BLOCKS + 1),
            (7, 5 * REGION_BLOCKS + 3),
        ] {
            let [one, two] = halves_by_region(BlockRange::new(first, end)).expect("several");
            assert_eq!((one.first.0, two.end.0), (first, end));
            assert_eq!(one.end, two.first);
            assert!(one.end.0.is_multiple_of(REGION_BLOCKS) && !one.is_empty() && !two.is_empty());
        }
    }
}
