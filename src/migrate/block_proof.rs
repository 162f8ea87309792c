//! The proof of some blocks of a store (post-copy): those that the new owner has pulled and nobody has
//! written there.

use std::io;
use std::sync::Arc;

use tokio::task::JoinSet;

use super::protocol::{BlockSet, Proof};
use super::read_blocks::read_blocks;
use crate::AsyncBackend;
use crate::volume::Priority;
use crate::volume::geometry::{BLOCK_BYTES, BlockIndex, BlockRange, in_chunks};
use crate::wire::segment::is_zero;

/// So much is read and hashed at a time, in bytes.
const PIECE_BYTES: u64 = 1 << 20;

/// So many pieces at once.
const PIECES_AT_ONCE: usize = 8;

/// Reads the blocks back, and leaves out those that `still` does not hold for after they were read. Gives
/// the rest, with their proof: it depends on nothing but them and their bytes.
///
/// # Errors
/// When the store cannot be read.
pub(super) async fn prove(
    store: &Arc<dyn AsyncBackend>,
    blocks: &BlockSet,
    still: impl Fn(BlockRange) -> bool + Clone + Send + 'static,
) -> io::Result<(BlockSet, Proof)> {
    let mut pieces = in_chunks(blocks.runs(), PIECE_BYTES).enumerate();
    let mut reading = JoinSet::new();
    let (mut kept, mut digests) = (BlockSet::new(), Vec::new());
    loop {
        if reading.len() < PIECES_AT_ONCE
            && let Some((at, runs)) = pieces.next()
        {
            digests.push(None);
            let (store, still) = (Arc::clone(store), still.clone());
            reading.spawn(async move { (at, piece(&*store, &runs, still).await) });
            continue;
        }
        let Some(read) = reading.join_next().await else {
            break;
        };
        let (at, read) = read.map_err(io::Error::other)?;
        let (of_piece, digest) = read?;
        if !of_piece.is_empty() {
            kept.add(&of_piece);
            digests[at] = Some(digest);
        }
    }
    let mut whole = blake3::Hasher::new();
    for digest in digests.iter().flatten() {
        whole.update(digest.as_bytes());
    }
    Ok((kept, Proof(*whole.finalize().as_bytes())))
}

async fn piece(
    store: &dyn AsyncBackend,
    runs: &[BlockRange],
    still: impl Fn(BlockRange) -> bool,
) -> io::Result<(BlockSet, blake3::Hash)> {
    let (mut kept, mut hasher) = (BlockSet::new(), blake3::Hasher::new());
    for run in runs {
        let mut bytes = read_blocks(store, *run, Priority::Pull).await?;
        // A short last block counts as a whole one.
        bytes.resize(run.len_bytes() as usize, 0);
        for part in those_still(*run, &still) {
            let from = ((part.first.0 - run.first.0) * BLOCK_BYTES) as usize;
            let bytes = &bytes[from..from + (part.len() * BLOCK_BYTES) as usize];
            hasher.update(&part.first.0.to_le_bytes());
            hasher.update(&part.end.0.to_le_bytes());
            // Zeros are zeros at the other end as well, or the digest is another one.
            match is_zero(bytes) {
                true => hasher.update(&[0]),
                false => hasher.update(&[1]).update(bytes),
            };
            kept.insert(part);
        }
    }
    Ok((kept, hasher.finalize()))
}

/// The parts of a run for which it holds.
pub(super) fn those_still(run: BlockRange, still: &impl Fn(BlockRange) -> bool) -> Vec<BlockRange> {
    if still(run) {
        return vec![run];
    }
    let blocks = (run.first.0..run.end.0).map(|block| BlockRange::of(BlockIndex(block)));
    let mut parts: Vec<BlockRange> = Vec::new();
    for block in blocks.filter(|block| still(*block)) {
        match parts.last_mut() {
            Some(last) if last.end == block.first => last.end = block.end,
            _ => parts.push(block),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{OpenOptions, open};

    async fn store(bytes: &[u8]) -> Arc<dyn AsyncBackend> {
        let store = open("mem:8MiB", &OpenOptions::default()).expect("opened");
        let store = store.as_async();
        let written = store.write_at(bytes, 0, false, Priority::Pull).await;
        written.expect("written");
        store
    }

    #[tokio::test]
    async fn stores_that_differ_in_a_block_that_counts_have_other_proofs() {
        let mut bytes: Vec<u8> = (0..8 << 20).map(|at: u32| (at / 4096) as u8).collect();
        let one = store(&bytes).await;
        bytes[5000 * 1000] ^= 1;
        let other = store(&bytes).await;
        let changed = BlockIndex(5000 * 1000 / BLOCK_BYTES);
        let mut asked = BlockSet::of(BlockRange::new(3, 700));
        asked.insert(BlockRange::new(1000, 1600));
        let all = |_: BlockRange| true;
        let (kept, proof) = prove(&one, &asked, all).await.expect("read");
        assert_eq!(kept, asked);
        let (_, differs) = prove(&other, &asked, all).await.expect("read");
        assert_ne!(proof, differs);
        // Written there meanwhile: it does not count, and the other end is not asked for it.
        let (kept, proof) = prove(&other, &asked, move |blocks: BlockRange| {
            changed < blocks.first || changed >= blocks.end
        })
        .await
        .expect("read");
        assert!(!kept.contains(changed) && kept.len() == asked.len() - 1);
        let (_, same) = prove(&one, &kept, all).await.expect("read");
        assert_eq!(proof, same);
    }

    #[tokio::test]
    async fn the_same_bytes_elsewhere_are_no_proof() {
        let store = store(&[1; 1 << 20]).await;
        let all = |_: BlockRange| true;
        let first = prove(&store, &BlockSet::of(BlockRange::new(0, 4)), all).await;
        let second = prove(&store, &BlockSet::of(BlockRange::new(4, 8)), all).await;
        assert_ne!(first.expect("read").1, second.expect("read").1);
    }
}
