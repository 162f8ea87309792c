//! Keeps the proof of a store up to date by reading back what has changed.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::JoinSet;

use super::proof::{Digest, Digests, LEAF_BYTES, digest};
use super::protocol::Proof;
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
}

impl Prover {
    pub(super) fn new(store: Arc<dyn AsyncBackend>) -> Self {
        let digests = Digests::new(store.size());
        Self {
            store,
            digests: Arc::new(Mutex::new(digests)),
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
        let mut reading = JoinSet::new();
        loop {
            let leaf = match reading.len() < LEAVES_AT_ONCE {
                true => self.digests().next_stale(),
                false => None,
            };
            if let Some(leaf) = leaf {
                let prover = self.clone();
                reading.spawn(async move { prover.hash(leaf).await.map(drop) });
            } else if let Some(hashed) = reading.join_next().await {
                hashed.map_err(io::Error::other)??;
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
        self.digests().take(leaf);
        self.hash(leaf).await
    }

    /// Of a leaf that was taken.
    async fn hash(&self, leaf: u64) -> io::Result<Digest> {
        let (offset, len) = self.digests().place(leaf);
        let mut taken = Taken(self, Some(leaf));
        let mut bytes = vec![0; len];
        let read = self.store.read_at(&mut bytes, offset, Priority::Pull);
        let filled = read.await?;
        bytes[filled.min(len)..].fill(0);
        let digest = digest(&bytes);
        self.digests().set(leaf, digest);
        taken.1 = None;
        Ok(digest)
    }

    /// The proof; an error while a leaf is stale.
    pub(super) fn root(&self) -> Result<Proof, String> {
        let mut digests = self.digests();
        digests
            .root()
            .ok_or_else(|| format!("{} leaves were not read back", digests.stale_leaves()))
    }
}

/// A leaf that is being hashed: stale again, should nothing come of it.
struct Taken<'a>(&'a Prover, Option<u64>);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(leaf) = self.1 {
            self.0.digests().put_back(leaf);
        }
    }
}
