//! What the seeder knows of its own store: which blocks change, for each leecher, and the proof.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::links::Pieces;
use crate::AsyncBackend;
use crate::migrate::block_proof;
use crate::migrate::protocol::{AttemptId, BlockSet, MigrationId, Proof, SessionId};
use crate::migrate::prover::Prover;
use crate::migrate::read_blocks::read_blocks;
use crate::migrate::wire_form::Piece;
use crate::volume::geometry::{BLOCK_BYTES, BlockRange};
use crate::volume::watch::Tracker;
use crate::volume::{Priority, Volume};
use crate::wire::limits::MIGRATION_BYTES_MAX;

/// How much of a run is read and sent at once.
const PIECE_BLOCKS: u64 = MIGRATION_BYTES_MAX as u64 / BLOCK_BYTES;

/// How many pieces are read at once.
const READS_AT_ONCE: usize = 16;

/// What is noted for one who asks: nothing yet, what its tracker has, or, where there is none for it,
/// that everything may have changed.
enum Noted {
    Nothing,
    By(Tracker),
    Everything,
}

type SharedNoted = Arc<Mutex<Noted>>;

/// See the module. Copies are of the same store.
#[derive(Clone)]
pub(super) struct SourceStore {
    volume: Option<Arc<Volume>>,
    backend: Arc<dyn AsyncBackend>,
    all: BlockRange,
}

/// What is noted for the leechers, and for the proof.
#[derive(Default)]
pub(super) struct Noting {
    sessions: HashMap<MigrationId, (SessionId, SharedNoted)>,
    /// From the first leecher to the last.
    proving: Option<Proving>,
}

/// The proof, and what changed since it was caught up with.
#[derive(Clone)]
pub(super) struct Proving {
    prover: Prover,
    noted: SharedNoted,
}

impl SourceStore {
    pub(super) fn new(
        volume: Option<Arc<Volume>>,
        backend: Arc<dyn AsyncBackend>,
        all: BlockRange,
    ) -> Self {
        Self {
            volume,
            backend,
            all,
        }
    }

    /// Notes from now on. What is collected waits until that has begun.
    fn note(&self) -> SharedNoted {
        let noted = Arc::new(Mutex::new(Noted::Nothing));
        let Some(volume) = self.volume.clone() else {
            return noted;
        };
        if let Ok(mut beginning) = Arc::clone(&noted).try_lock_owned() {
            tokio::spawn(async move {
                *beginning = match volume.watch().track().await {
                    Ok(tracker) => Noted::By(tracker),
                    Err(error) => {
                        tracing::warn!(error = error.chain(), "every block counts as changed");
                        Noted::Everything
                    }
                };
            });
        }
        noted
    }

    async fn collect(&self, noted: &SharedNoted, mut each: impl FnMut(BlockRange)) {
        match &*noted.lock().await {
            Noted::Nothing => {}
            Noted::By(tracker) => tracker.collect_each(each),
            Noted::Everything => each(self.all),
        }
    }

    async fn collected(&self, noted: &SharedNoted) -> BlockSet {
        let mut blocks = BlockSet::new();
        self.collect(noted, |range| blocks.insert(range)).await;
        blocks
    }

    /// Does before a hold what would take longer during it.
    pub(super) async fn prepare(&self, proving: Option<Proving>) {
        if let Err(error) = self.backend.flush().await {
            // The flush of the hold says so.
            tracing::debug!(%error, "cannot flush");
        }
        if let Some(proving) = proving
            && let Err(error) = self.catch_up(&proving).await
        {
            tracing::debug!(error, "cannot read back");
        }
    }

    /// Reads back what has changed.
    pub(super) async fn catch_up(&self, proving: &Proving) -> Result<(), String> {
        let Proving { prover, noted } = proving;
        self.collect(noted, |range| prover.change(range)).await;
        prover.catch_up().await.map_err(|error| error.to_string())
    }

    /// The proof of these blocks; none where they cannot be read.
    pub(super) async fn prove(&self, blocks: &BlockSet) -> Option<Proof> {
        match block_proof::prove(&self.backend, blocks, |_| true).await {
            Ok((_, proof)) => Some(proof),
            Err(error) => {
                tracing::error!(%error, "cannot read back what the new owner has pulled");
                None
            }
        }
    }

    /// Reads the blocks, and hands them over in whatever order.
    pub(super) async fn send(&self, attempt: AttemptId, blocks: BlockSet, to: Pieces) {
        let mut pieces = blocks.runs().flat_map(|mut run| {
            std::iter::from_fn(move || (!run.is_empty()).then(|| run.take(PIECE_BLOCKS)))
        });
        let mut reading = JoinSet::new();
        loop {
            if reading.len() < READS_AT_ONCE
                && let Some(piece) = pieces.next()
            {
                let (backend, to) = (Arc::clone(&self.backend), to.clone());
                reading.spawn(async move {
                    let bytes = read_blocks(&*backend, piece, Priority::Demand).await?;
                    let offset = piece.start().0;
                    let piece = Piece { offset, bytes };
                    // The leecher is gone otherwise, which ends the attempt.
                    let _ = to.send((attempt, piece)).await;
                    Ok::<_, io::Error>(())
                });
                continue;
            }
            let read = match reading.join_next().await {
                None => return,
                Some(read) => read.unwrap_or_else(|panic| Err(io::Error::other(panic))),
            };
            if let Err(error) = read {
                // The hold limit ends the attempt.
                tracing::warn!(%error, "cannot read what is to be sent");
                return;
            }
        }
    }

    /// Durable, with what changed since the last collection and the proof if one is wanted. Requests
    /// are held.
    async fn sync(
        &self,
        noted: Option<SharedNoted>,
        proving: Option<Proving>,
    ) -> (BlockSet, Result<Option<Proof>, String>) {
        let flushed = self.backend.flush().await;
        let blocks = match &noted {
            Some(noted) => self.collected(noted).await,
            None => BlockSet::of(self.all),
        };
        if let Err(error) = flushed {
            return (blocks, Err(error.to_string()));
        }
        let Some(proving) = proving else {
            return (blocks, Ok(None));
        };
        let Proving { prover, noted } = &proving;
        self.collect(noted, |range| prover.change(range)).await;
        (blocks, prover.prove().await.map(Some))
    }
}

impl Noting {
    pub(super) fn begin(&mut self, store: &SourceStore, session: SessionId) {
        if self.proving.is_none() {
            self.proving = Some(Proving {
                prover: Prover::new(store.backend.clone()),
                noted: store.note(),
            });
        }
        self.sessions
            .insert(session.migration, (session, store.note()));
    }

    pub(super) fn end(&mut self, migration: MigrationId) {
        self.sessions.remove(&migration);
        if self.sessions.is_empty() {
            self.proving = None;
        }
    }

    /// The proof is of nothing that was read before this.
    pub(super) fn read_anew(&self, store: &SourceStore) {
        if let Some(Proving { prover, .. }) = &self.proving {
            prover.change(store.all);
        }
    }

    pub(super) fn leechers(&self) -> usize {
        self.sessions.len()
    }

    fn of(&self, session: SessionId) -> Option<SharedNoted> {
        let (id, noted) = self.sessions.get(&session.migration)?;
        (*id == session).then(|| Arc::clone(noted))
    }

    pub(super) fn proving(&self) -> Option<Proving> {
        self.proving.clone()
    }

    /// What the session has not been told of yet.
    pub(super) fn collect(
        &self,
        store: &SourceStore,
        session: SessionId,
    ) -> impl Future<Output = BlockSet> + Send + use<> {
        let (noted, store) = (self.of(session), store.clone());
        async move {
            match noted {
                Some(noted) => store.collected(&noted).await,
                None => BlockSet::of(store.all),
            }
        }
    }

    /// See [`SourceStore::sync`].
    pub(super) fn sync(
        &self,
        store: &SourceStore,
        attempt: AttemptId,
        prove: bool,
    ) -> impl Future<Output = (BlockSet, Result<Option<Proof>, String>)> + Send + use<> {
        let noted = self.of(attempt.session);
        let proving = self.proving.clone().filter(|_| prove);
        let store = store.clone();
        async move { store.sync(noted, proving).await }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{OpenOptions, open};
    use crate::migrate::protocol::Instance;

    #[tokio::test]
    async fn a_digest_that_is_wrong_does_not_outlive_a_question_to_read_anew() {
        let backend = open("mem:1MiB", &OpenOptions::default())
            .expect("opened")
            .as_async();
        let all = BlockRange::new(0, (1 << 20) / BLOCK_BYTES);
        let store = SourceStore::new(None, Arc::clone(&backend), all);
        let session = SessionId {
            migration: MigrationId([1; 16]),
            instance: Instance([2; 16]),
            number: 1,
        };
        let attempt = AttemptId { session, number: 1 };
        let mut noting = Noting::default();
        noting.begin(&store, session);
        let (_, before) = noting.sync(&store, attempt, true).await;
        // What it knows of the store is not so.
        let written = backend.write_at(&[1; 4096], 0, false, Priority::Demand);
        written.await.expect("written");
        let (_, wrong) = noting.sync(&store, attempt, true).await;
        assert_eq!(wrong, before);
        noting.read_anew(&store);
        let (_, anew) = noting.sync(&store, attempt, true).await;
        let expected = Prover::new(backend).prove().await;
        assert_eq!(anew, expected.map(Some));
        assert_ne!(anew, before);
    }
}
