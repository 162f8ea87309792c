//! Keeps the proof of a store up to date by reading back what has changed.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::JoinSet;

use super::proof::{Digest, Digests, LEAF_BYTES, TakenLeaf, digest};
use super::protocol::Proof;
use super::read_blocks::read_blocks;
use crate::AsyncBackend;
use crate::volume::Priority;
use crate::volume::geometry::BlockRange;

/// How many leaves are read and hashed at a time.
const LEAVES_AT_ONCE: usize = 8;

/// See the module.
#[derive(Clone)]
pub(super) struct Prover {
    store: Arc<dyn AsyncBackend>,
    digests: Arc<Mutex<Digests>>,
    /// Who has it catches up. Two at once would each leave to the other what neither has read yet.
    catching_up: Arc<tokio::sync::Mutex<()>>,
}

impl Prover {
    pub(super) fn new(store: Arc<dyn AsyncBackend>) -> Self {
        let digests = Digests::new(store.size());
        Self {
            store,
            digests: Arc::new(Mutex::new(digests)),
            catching_up: Arc::default(),
        }
    }

    fn digests(&self) -> MutexGuard<'_, Digests> {
        self.digests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The blocks are not what they were.
    pub(super) fn change(&self, blocks: BlockRange) {
        self.digests().change(blocks);
    }

    /// Hashes all leaves that are stale by now.
    pub(super) async fn catch_up(&self) -> io::Result<()> {
        let _alone = self.catching_up.lock().await;
        self.hash_stale().await
    }

    /// The same, and the proof of what the store holds then.
    pub(super) async fn prove(&self) -> Result<Proof, String> {
        let _alone = self.catching_up.lock().await;
        self.hash_stale().await.map_err(|error| error.to_string())?;
        let mut digests = self.digests();
        digests
            .root()
            .ok_or_else(|| format!("{} leaves were not read back", digests.stale_leaves()))
    }

    async fn hash_stale(&self) -> io::Result<()> {
        let mut reading = JoinSet::new();
        loop {
            let taken = match reading.len() < LEAVES_AT_ONCE {
                true => self.digests().next_stale(),
                false => None,
            };
            if let Some(taken) = taken {
                let prover = self.clone();
                reading.spawn(async move { prover.hash(taken).await.map(drop) });
            } else if let Some(hashed) = reading.join_next().await {
                if let Err(error) = hashed.map_err(io::Error::other).flatten() {
                    reading.shutdown().await;
                    return Err(error);
                }
            } else {
                return Ok(());
            }
        }
    }

    /// Hashes the leaves that these runs lie in. Nobody else may change or hash these meanwhile.
    pub(super) async fn hash_those_of(&self, runs: &[BlockRange]) -> io::Result<()> {
        let mut next = 0;
        for run in runs {
            let first = (run.start().0 / LEAF_BYTES).max(next);
            next = run.end.start().0.div_ceil(LEAF_BYTES);
            for leaf in first..next {
                self.digest_of(leaf).await?;
            }
        }
        Ok(())
    }

    /// The same for one leaf; its digest.
    pub(super) async fn digest_of(&self, leaf: u64) -> io::Result<Digest> {
        let taken = self.digests().take(leaf);
        self.hash(taken).await
    }

    async fn hash(&self, leaf: TakenLeaf) -> io::Result<Digest> {
        let mut taken = Taken(self, Some(leaf));
        let bytes = read_blocks(&*self.store, leaf.blocks(), Priority::Pull).await?;
        let digest = digest(&bytes);
        self.digests().set(leaf, digest);
        taken.1 = None;
        Ok(digest)
    }
}

/// A leaf that is being hashed: stale again, should nothing come of it.
struct Taken<'a>(&'a Prover, Option<TakenLeaf>);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(leaf) = self.1 {
            self.0.digests().put_back(leaf);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{OpenOptions, open};

    async fn store() -> Arc<dyn AsyncBackend> {
        let store = open("mem:1MiB", &OpenOptions::default()).expect("opened");
        let store = store.as_async();
        let bytes: Vec<u8> = (0..1 << 20).map(|at: u32| (at / 4096) as u8).collect();
        let written = store.write_at(&bytes, 0, false, Priority::Pull).await;
        written.expect("written");
        store
    }

    #[tokio::test]
    async fn a_proof_waits_for_what_another_task_has_begun_to_read() {
        let store = store().await;
        let expected = Prover::new(Arc::clone(&store)).prove().await;
        let prover = Prover::new(store);
        let (caught_up, proof) = tokio::join!(prover.catch_up(), prover.prove());
        caught_up.expect("read");
        assert_eq!(proof, expected);
        assert!(proof.is_ok());
    }
}
