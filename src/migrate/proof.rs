//! The proof that two stores are equal (L17): BLAKE3 digests of their leaves, and a tree above them.
//!
//! A leaf's digest is one of what was read back from the store after the leaf's last change. Nodes have
//! many children and few levels, so that a root costs little where few leaves have changed.

use std::collections::HashMap;

use roaring::RoaringTreemap;

use super::protocol::Proof;
use crate::volume::geometry::{BLOCK_BYTES, BlockRange};
pub use crate::wire::digest::{Digest, LEAF_BYTES, digest};

/// Blocks in a leaf.
const LEAF_BLOCKS: u64 = LEAF_BYTES / BLOCK_BYTES;

/// Children of a node.
const FANOUT: usize = 64;

/// A leaf that is read and hashed from when it was taken.
#[derive(Debug, Clone, Copy)]
pub struct TakenLeaf {
    leaf: u64,
    number: u64,
}

impl TakenLeaf {
    /// Its blocks. In the last one there may be some that the store does not have.
    pub fn blocks(&self) -> BlockRange {
        BlockRange::new(self.leaf * LEAF_BLOCKS, (self.leaf + 1) * LEAF_BLOCKS)
    }
}

/// The digests of a store.
#[derive(Debug)]
pub struct Digests {
    len_bytes: u64,
    /// Leaves whose digest is not that of what the store holds, and that nobody reads.
    stale: RoaringTreemap,
    /// Those that are being read, with the number of the last time that each was taken: what an earlier
    /// reading finds, or one from before a change, does not count. As many as are read at a time.
    taken: HashMap<u64, u64>,
    takings: u64,
    /// The leaves, then the nodes above them, up to the root. An empty vector costs nothing before it is
    /// written to.
    levels: Vec<Vec<Digest>>,
    /// Leaves that changed since the last root.
    changed: RoaringTreemap,
}

impl Digests {
    /// Those of a store of which nothing is known yet.
    pub fn new(len_bytes: u64) -> Self {
        let leaves = len_bytes.div_ceil(LEAF_BYTES);
        let mut all = RoaringTreemap::new();
        all.insert_range(0..leaves);
        let mut levels = vec![vec![[0; 32]; leaves as usize]];
        let mut len = leaves as usize;
        while len > 1 {
            len = len.div_ceil(FANOUT);
            levels.push(vec![[0; 32]; len]);
        }
        Self {
            len_bytes,
            stale: all.clone(),
            taken: HashMap::new(),
            takings: 0,
            levels,
            changed: all,
        }
    }

    /// These blocks are not what they were.
    pub fn change(&mut self, blocks: BlockRange) {
        if blocks.is_empty() {
            return;
        }
        let first = blocks.first.0 / LEAF_BLOCKS;
        let end = blocks
            .end
            .0
            .div_ceil(LEAF_BLOCKS)
            .min(self.levels[0].len() as u64);
        self.stale.insert_range(first..end);
        self.taken.retain(|leaf, _| !(first..end).contains(leaf));
    }

    /// Takes a leaf to be read and hashed from now on; none where all digests are true, or about to be.
    pub fn next_stale(&mut self) -> Option<TakenLeaf> {
        let leaf = self.stale.min()?;
        Some(self.take(leaf))
    }

    /// The leaf is read and hashed from now on.
    pub fn take(&mut self, leaf: u64) -> TakenLeaf {
        self.stale.remove(leaf);
        self.takings += 1;
        let number = self.takings;
        self.taken.insert(leaf, number);
        TakenLeaf { leaf, number }
    }

    /// How many leaves are to be hashed, or are being.
    pub fn stale_leaves(&self) -> u64 {
        self.stale.len() + self.taken.len() as u64
    }

    /// Whether what is read of it still counts. It is nobody's from here on.
    fn give_back(&mut self, taken: TakenLeaf) -> bool {
        let counts = self.taken.get(&taken.leaf) == Some(&taken.number);
        if counts {
            self.taken.remove(&taken.leaf);
        }
        counts
    }

    /// The leaf's digest, of what was read back since it was taken.
    pub fn set(&mut self, taken: TakenLeaf, digest: Digest) {
        if self.give_back(taken)
            && let Some(place) = self.levels[0].get_mut(taken.leaf as usize)
        {
            *place = digest;
            self.changed.insert(taken.leaf);
        }
    }

    /// What could not be hashed is stale again.
    pub fn put_back(&mut self, taken: TakenLeaf) {
        if self.give_back(taken) {
            self.stale.insert(taken.leaf);
        }
    }

    /// The proof; none while a leaf is stale, or is being read.
    pub fn root(&mut self) -> Option<Proof> {
        if self.stale_leaves() > 0 {
            return None;
        }
        let mut changed = std::mem::take(&mut self.changed);
        for level in 1..self.levels.len() {
            let mut parents = RoaringTreemap::new();
            for child in &changed {
                parents.insert(child / FANOUT as u64);
            }
            let (below, above) = self.levels.split_at_mut(level);
            let (children, nodes) = (&below[level - 1], &mut above[0]);
            for parent in &parents {
                let first = parent as usize * FANOUT;
                let end = (first + FANOUT).min(children.len());
                let mut hasher = blake3::Hasher::new();
                for child in &children[first..end] {
                    hasher.update(child);
                }
                nodes[parent as usize] = *hasher.finalize().as_bytes();
            }
            changed = parents;
        }
        let top = self.levels.last().and_then(|level| level.first());
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.len_bytes.to_le_bytes());
        hasher.update(top.unwrap_or(&[0; 32]));
        Some(Proof(*hasher.finalize().as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Hashes what is stale, and counts it.
    fn proof_of(digests: &mut Digests, store: &[u8]) -> (Proof, u64) {
        let mut hashed = 0;
        while let Some(taken) = digests.next_stale() {
            let bytes = &store[taken.blocks().start().0 as usize..];
            let len = bytes.len().min(LEAF_BYTES as usize);
            digests.set(taken, digest(&bytes[..len]));
            hashed += 1;
        }
        (digests.root().expect("nothing is stale"), hashed)
    }

    #[test]
    fn there_is_no_proof_while_a_leaf_is_stale() {
        let store = vec![1; 3 * LEAF_BYTES as usize + 512];
        let mut digests = Digests::new(store.len() as u64);
        assert_eq!(digests.root(), None);
        let (first, hashed) = proof_of(&mut digests, &store);
        assert_eq!(hashed, 4);
        digests.change(BlockRange::new(16, 17));
        assert_eq!(digests.root(), None);
        assert_eq!(proof_of(&mut digests, &store), (first, 1));
        assert!(digests.next_stale().is_none());
        let taken = digests.take(2);
        assert_eq!(digests.root(), None, "it is being read");
        digests.put_back(taken);
        assert_eq!(digests.root(), None);
    }

    #[test]
    fn what_was_read_before_a_change_does_not_count_however_late_it_comes() {
        let old = vec![1; 2 * LEAF_BYTES as usize];
        let mut new = old.clone();
        new[0] = 2;
        let (expected, _) = proof_of(&mut Digests::new(new.len() as u64), &new);
        let mut digests = Digests::new(old.len() as u64);
        proof_of(&mut digests, &old);
        let before = digests.take(0);
        digests.change(BlockRange::new(0, 1));
        digests.set(before, digest(&old[..LEAF_BYTES as usize]));
        assert_eq!(digests.root(), None, "it is still to be read");
        assert_eq!(proof_of(&mut digests, &new), (expected, 1));

        // It comes when another reading is under way, or has ended.
        let before = digests.take(0);
        digests.change(BlockRange::new(0, 1));
        let since = digests.next_stale().expect("stale");
        digests.set(before, digest(&old[..LEAF_BYTES as usize]));
        assert_eq!(digests.root(), None, "the later one has not ended");
        digests.set(since, digest(&new[..LEAF_BYTES as usize]));
        digests.put_back(before);
        assert_eq!(digests.root(), Some(expected));
    }

    #[test]
    fn stores_that_differ_in_a_byte_or_in_length_have_other_proofs() {
        let len = 70 * LEAF_BYTES as usize + 4096;
        let mut store = vec![0; len];
        let (zeros, _) = proof_of(&mut Digests::new(len as u64), &store);
        let (shorter, _) = proof_of(&mut Digests::new(len as u64 - 1), &store);
        assert_ne!(zeros, shorter);
        for at in [0, LEAF_BYTES as usize, 65 * LEAF_BYTES as usize, len - 1] {
            store[at] = 1;
            let (other, _) = proof_of(&mut Digests::new(len as u64), &store);
            assert_ne!(zeros, other, "{at}");
            store[at] = 0;
        }
    }

    proptest! {
        /// Kept up change by change it is the same as made at once.
        #[test]
        fn a_proof_that_was_kept_up_is_that_of_the_store(
            leaves in 1..300_u64,
            writes in prop::collection::vec((any::<prop::sample::Index>(), 1..40_u64, any::<u8>()), 0..12),
        ) {
            let blocks = leaves * LEAF_BLOCKS - 3;
            let mut store = vec![0; (blocks * BLOCK_BYTES) as usize];
            let mut kept_up = Digests::new(store.len() as u64);
            proof_of(&mut kept_up, &store);
            for (at, len, value) in writes {
                let first = at.index(blocks as usize) as u64;
                let range = BlockRange::new(first, (first + len).min(blocks));
                let bytes = (range.first.0 * BLOCK_BYTES) as usize..(range.end.0 * BLOCK_BYTES) as usize;
                store[bytes].fill(value);
                kept_up.change(range);
                let (proof, hashed) = proof_of(&mut kept_up, &store);
                prop_assert!(hashed <= len / LEAF_BLOCKS + 2);
                prop_assert_eq!(proof, proof_of(&mut Digests::new(store.len() as u64), &store).0);
            }
        }
    }
}
