//! What is still at the seeder when the volume is here already (post-copy): the store gets a map of which
//! blocks it has, and the seeder is the origin of the rest.
//!
//! The map is that of a managed mount, around the store. It is made before the commit and is durable by
//! then; it goes when the record says that the volume is complete.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::task::spawn_blocking;

use super::announced::Announced;
use crate::AsyncBackend;
use crate::backend::{Kind, Resource};
use crate::migrate::block_proof;
use crate::migrate::protocol::{AttemptId, BlockSet, Proof, Standing};
use crate::migrate::records::RecordFile;
use crate::mount::managed::{Hooks, ManagedMount, ManagedOptions, in_flight_slots};
use crate::net::Remote;
use crate::volume::cache::{
    AfterFailedSync, CacheDirectory, CacheOptions, OpenedCache, forget_around,
};
use crate::volume::file::FileStore;
use crate::volume::geometry::{
    BLOCK_BYTES, BlockIndex, BlockRange, CHUNK_BYTES_DEFAULT, ChunkIndex,
};
use crate::{Error, ErrorKind, Result};

/// What the name of the map's directory ends with, beside the store.
const SUFFIX: &str = ".blockferry-part";

/// What it takes to leave bytes at the seeder.
#[derive(Debug, Clone)]
pub struct RestOptions {
    /// Where live maps are: in memory, and only for this user.
    pub run_directory: PathBuf,
    /// How many requests the device holds at most. A process that goes on after one that was killed
    /// needs the same.
    pub requests_max: usize,
    /// How long a request waits for the seeder; `None`: for ever.
    pub io_timeout: Option<Duration>,
    /// The most bytes a second that are pulled while nobody waits for them.
    pub pull_rate: Option<u64>,
    /// Go on with a store whose disk has failed to sync it: what was written since may be lost.
    pub accept_loss: bool,
}

/// See the module. Copies are of the same.
#[derive(Clone)]
pub(super) struct Rest {
    store: Resource,
    file: Arc<FileStore>,
    remote: Arc<Remote>,
    directory: PathBuf,
    options: RestOptions,
    /// Is told what has come.
    announced: Option<Arc<Announced>>,
    /// Of the last attempt that was begun.
    last: Arc<AtomicU32>,
    opened: Arc<Mutex<Option<(AttemptId, OpenedCache)>>>,
    mount: watch::Sender<Option<Arc<ManagedMount>>>,
}

impl Rest {
    /// `None` for a store that has no place for a map.
    pub(super) fn of(
        store: &Resource,
        remote: &Arc<Remote>,
        options: RestOptions,
        announced: Option<Arc<Announced>>,
    ) -> Result<Option<Self>> {
        let Kind::File(file) = &store.kind else {
            return Ok(None);
        };
        Ok(Some(Self {
            directory: beside(file.path())?,
            store: store.clone(),
            file: Arc::clone(file),
            remote: Arc::clone(remote),
            options,
            announced,
            last: Arc::default(),
            opened: Arc::default(),
            mount: watch::Sender::new(None),
        }))
    }

    /// Opens the map that a process before this one has made for the attempt.
    pub(super) fn reopen(&self, attempt: AttemptId) -> Result<()> {
        let options = self.cache_options(attempt);
        let cache = CacheDirectory::open_around(&self.directory, Arc::clone(&self.file), &options)
            .map_err(uncertain)?;
        let mut opened = self.opened.try_lock().map_err(|_| busy())?;
        *opened = Some((attempt, cache));
        Ok(())
    }

    /// Removes what an attempt that is over has left.
    pub(super) fn forget(&self) -> Result<()> {
        forget_around(&self.directory, &self.file, &self.options.run_directory)
    }

    /// Begins to make the map of an attempt that is just asked for: what is done by the time of the answer
    /// need not be done while nobody takes requests.
    pub(super) fn begin(&self, attempt: AttemptId) {
        if self.last.swap(attempt.number, Ordering::Relaxed) == attempt.number {
            return;
        }
        let rest = self.clone();
        tokio::spawn(async move {
            let mut opened = rest.opened.lock().await;
            if let Err(error) = rest.make(attempt, &mut opened).await {
                // Whoever needs it tries again.
                tracing::debug!(error = error.chain(), "cannot make the map of what is here");
            }
        });
    }

    /// Has these blocks be absent, and all others be here, durably.
    pub(super) fn leave(
        &self,
        attempt: AttemptId,
        absent: BlockSet,
    ) -> impl Future<Output = Result<(), String>> + Send + use<> {
        self.last.store(attempt.number, Ordering::Relaxed);
        let rest = self.clone();
        async move {
            let flushed = rest.store.as_async().flush().await;
            flushed.map_err(|error| error.to_string())?;
            let mut opened = rest.opened.lock().await;
            let left = rest.leave_within(attempt, absent, &mut opened).await;
            left.map_err(|error| error.chain())
        }
    }

    async fn leave_within(
        &self,
        attempt: AttemptId,
        absent: BlockSet,
        opened: &mut Option<(AttemptId, OpenedCache)>,
    ) -> Result<()> {
        self.make(attempt, opened).await?;
        let all = BlockRange::new(0, self.store.geometry.resource_bytes() / BLOCK_BYTES);
        let (_, cache) = opened.take().ok_or_else(busy)?;
        let cache = blocking(move || {
            cache.has(gaps(all, absent.runs()))?;
            Ok(cache)
        });
        *opened = Some((attempt, cache.await?));
        Ok(())
    }

    /// Makes the map of this attempt, with all blocks absent, unless that was done.
    async fn make(
        &self,
        attempt: AttemptId,
        opened: &mut Option<(AttemptId, OpenedCache)>,
    ) -> Result<()> {
        if self.last.load(Ordering::Relaxed) != attempt.number {
            return Err(Error::new(ErrorKind::Busy, "there is a later attempt"));
        }
        if matches!(opened, Some((of, _)) if *of == attempt) {
            return Ok(());
        }
        *opened = None;
        let (directory, file) = (self.directory.clone(), Arc::clone(&self.file));
        let options = self.cache_options(attempt);
        let made = blocking(move || CacheDirectory::make_around(&directory, file, &options));
        *opened = Some((attempt, made.await?));
        Ok(())
    }

    fn cache_options(&self, attempt: AttemptId) -> CacheOptions {
        CacheOptions {
            size_bytes: self.store.geometry.resource_bytes(),
            chunk_bytes: CHUNK_BYTES_DEFAULT,
            identity: identity_of(attempt),
            origin_name: "the seeder".to_owned(),
            persistent: true,
            run_directory: self.options.run_directory.clone(),
            in_flight_slots: in_flight_slots(self.options.requests_max),
            direct_alignment_bytes: None,
            after_failed_sync: match self.options.accept_loss {
                true => AfterFailedSync::GoOn,
                false => AfterFailedSync::Refuse,
            },
        }
    }

    /// Serves the volume from here on, and fetches what is not here.
    pub(super) async fn start(&self) -> Result<Arc<ManagedMount>> {
        let (_, cache) = self.opened.lock().await.take().ok_or_else(busy)?;
        let backend: Arc<dyn AsyncBackend> = Arc::<Remote>::clone(&self.remote);
        let origin = Resource {
            geometry: self.store.geometry,
            read_only: false,
            kind: Kind::Other(backend),
            ..self.store.clone()
        };
        let options = ManagedOptions {
            chunk_bytes: CHUNK_BYTES_DEFAULT,
            push: false,
            io_timeout: self.options.io_timeout,
            pull_rate: self.options.pull_rate,
            seedable: true,
            hooks: self.hooks(),
            ..ManagedOptions::default()
        };
        let mount = ManagedMount::start(&origin, cache, options, self.options.requests_max)?;
        let mount = Arc::new(mount);
        self.mount.send_replace(Some(Arc::clone(&mount)));
        Ok(mount)
    }

    fn hooks(&self) -> Hooks {
        let blocks = BlockIndex(self.store.geometry.resource_bytes() / BLOCK_BYTES);
        let tell = self.announced.clone().map(|announced| {
            let tell = move |chunk: ChunkIndex| {
                let first = chunk.start(CHUNK_BYTES_DEFAULT).block().0;
                let end = first + CHUNK_BYTES_DEFAULT / BLOCK_BYTES;
                announced.came(&[BlockRange::new(first, end.min(blocks.0))]);
            };
            Arc::new(tell) as Arc<dyn Fn(ChunkIndex) + Send + Sync>
        });
        Hooks {
            chunk_is_local: tell,
            ..Hooks::default()
        }
    }

    async fn mount(&self) -> Option<Arc<ManagedMount>> {
        let mut mount = self.mount.subscribe();
        let started = mount.wait_for(Option::is_some).await;
        started.ok().and_then(|mount| mount.clone())
    }

    /// Waits until everything is here.
    pub(super) async fn pulled(&self) -> Result<(), String> {
        match self.mount().await {
            Some(mount) => {
                mount.pulled().await;
                Ok(())
            }
            None => Err("it does not run".to_owned()),
        }
    }

    /// Makes everything durable, and proves what came from the seeder and was not written here: during
    /// the rounds, too.
    pub(super) async fn secure(&self) -> Result<(BlockSet, Proof), String> {
        let mount = self.mount().await.ok_or("it does not run")?;
        mount.checkpoint().await.map_err(|error| error.chain())?;
        let all = BlockRange::new(0, self.store.geometry.resource_bytes() / BLOCK_BYTES);
        let looking = Arc::clone(&mount);
        let clean = spawn_blocking(move || {
            let mut clean = BlockSet::new();
            for (_, part) in all.by_chunk(CHUNK_BYTES_DEFAULT) {
                for part in block_proof::those_still(part, &|blocks| looking.is_clean(blocks)) {
                    clean.insert(part);
                }
            }
            clean
        });
        let clean = clean.await.map_err(|panic| panic.to_string())?;
        let still = move |blocks| mount.is_clean(blocks);
        let proved = block_proof::prove(&self.store.as_async(), &clean, still).await;
        proved.map_err(|error: io::Error| error.to_string())
    }

    /// How many bytes are not here yet, and what went wrong last; none where that is not known yet.
    pub(super) fn left(&self) -> Option<(u64, Option<String>)> {
        let mount = self.mount.borrow().clone()?;
        let status = mount.status();
        let left_bytes = status.size_bytes.saturating_sub(status.local_bytes);
        Some((left_bytes, status.last_error))
    }
}

/// Removes the map of a store, its mount gone, unless bytes of its volume are at the seeder alone.
///
/// # Errors
/// What the operating system reports, and a record that cannot be read.
pub fn forget_map(store: &Resource, run_directory: &Path) -> Result<()> {
    let Kind::File(file) = &store.kind else {
        return Ok(());
    };
    let kept = RecordFile::beside(file.path())?.read()?;
    let standing = kept.map(|kept| kept.records.standing());
    match standing.as_ref().and_then(leaving) {
        Some(_) => Ok(()),
        None => forget_around(&beside(file.path())?, file, run_directory),
    }
}

/// The attempt by which bytes were, or may have been, left at the seeder.
pub(super) fn leaving(standing: &Standing) -> Option<AttemptId> {
    match standing {
        Standing::InDoubt(record) | Standing::Completing(record) if record.post_copy => {
            record.attempt
        }
        _ => None,
    }
}

/// The directory of the map of the store at `path`, by whichever name that is known.
fn beside(path: &Path) -> Result<PathBuf> {
    let cannot = |error| Error::io(format!("cannot find {}", path.display()), error);
    let mut path = std::fs::canonicalize(path)
        .map_err(cannot)?
        .into_os_string();
    path.push(SUFFIX);
    Ok(path.into())
}

fn busy() -> Error {
    Error::new(
        ErrorKind::Busy,
        "the map of what is here is in use, or gone",
    )
}

/// Says what to do about a map that was refused since nobody knows what of the store is durable.
fn uncertain(error: Error) -> Error {
    if error.kind() != ErrorKind::Dirty {
        return error;
    }
    let what = format!(
        "{}. `blockferry leech` with the same --store and --accept-loss goes on with what was flushed before; \
         should the disk be failing, copy what matters first",
        error.chain()
    );
    Error::new(ErrorKind::Dirty, what)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = spawn_blocking(work).await;
    done.unwrap_or_else(|panic| Err(Error::new(ErrorKind::Io, panic.to_string())))
}

/// A map counts for the attempt alone that it was made for.
fn identity_of(attempt: AttemptId) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&attempt.session.migration.0);
    hasher.update(&attempt.session.instance.0);
    hasher.update(&attempt.session.number.to_le_bytes());
    hasher.update(&attempt.number.to_le_bytes());
    let mut identity = [0; 16];
    hasher.finalize_xof().fill(&mut identity);
    identity
}

/// What is between the runs.
fn gaps(
    all: BlockRange,
    runs: impl Iterator<Item = BlockRange>,
) -> impl Iterator<Item = BlockRange> {
    let mut at = all.first.0;
    let end = BlockRange::new(all.end.0, all.end.0);
    runs.chain([end]).filter_map(move |run| {
        let gap = (at, run.first.0.min(all.end.0));
        at = at.max(run.end.0);
        (gap.0 < gap.1).then(|| BlockRange::new(gap.0, gap.1))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_absent_is_here_and_nothing_beyond_the_volume() {
        let of = |runs: &[(u64, u64)]| {
            let runs = runs
                .iter()
                .map(|(first, end)| BlockRange::new(*first, *end));
            let gaps = gaps(BlockRange::new(0, 100), runs);
            gaps.map(|gap| (gap.first.0, gap.end.0)).collect::<Vec<_>>()
        };
        assert_eq!(of(&[]), [(0, 100)]);
        assert_eq!(of(&[(0, 100)]), []);
        assert_eq!(of(&[(0, 3), (7, 9)]), [(3, 7), (9, 100)]);
        assert_eq!(of(&[(90, 120), (130, 140)]), [(0, 90)]);
    }
}
