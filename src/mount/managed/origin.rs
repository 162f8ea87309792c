//! A store and its origin, opened together: whether what the store has is still true (L13).

use std::path::PathBuf;
use std::sync::Arc;

use crate::net::{ManagedStore, Remote, RemoteOptions};
use crate::volume::cache::{
    AfterFailedSync, Begun, CacheDirectory, CacheOptions, Discard, OpenedCache, Opening, discard,
};
use crate::volume::format_size;
use crate::wire::Ticket;
use crate::{AsyncBackend, Error, ErrorKind, Result};

/// Where the local store is, and what it may lose.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Its directory.
    pub path: PathBuf,
    /// Where its live map is: in memory, and only for this user.
    pub run_directory: PathBuf,
    /// On a disk; otherwise in tmpfs.
    pub persistent: bool,
    /// The chunk that is fetched at once.
    pub chunk_bytes: u64,
    /// See [`in_flight_slots`](super::in_flight_slots).
    pub in_flight_slots: u32,
    /// The largest volume that it may be for, in bytes.
    pub size_bytes_max: u64,
    /// Give up local writes that an earlier mount left, where they cannot go to the origin any more.
    pub discard_dirty: bool,
    /// Go on with a store after its disk has failed to sync it: what was written since may be lost.
    pub accept_loss: bool,
}

impl StoreOptions {
    fn cache(&self, origin_name: &str, identity: [u8; 16], size_bytes: u64) -> CacheOptions {
        CacheOptions {
            size_bytes,
            chunk_bytes: self.chunk_bytes,
            identity,
            origin_name: origin_name.to_owned(),
            persistent: self.persistent,
            run_directory: self.run_directory.clone(),
            in_flight_slots: self.in_flight_slots,
            direct_alignment_bytes: Some(512),
            after_failed_sync: match (self.accept_loss, self.discard_dirty) {
                (true, _) => AfterFailedSync::GoOn,
                (false, true) => AfterFailedSync::Drop,
                (false, false) => AfterFailedSync::Refuse,
            },
        }
    }
}

/// Opens the volume that a ticket names and the store in front of it. What the store has counts only
/// if nobody else can have written the volume since; what is clean is dropped otherwise.
///
/// # Errors
/// What connecting and opening the store give; `Dirty` where local writes that an earlier mount left
/// cannot go to the origin any more, or nobody can say what became of them.
pub async fn open(
    target: Ticket,
    remote: RemoteOptions,
    store: &StoreOptions,
) -> Result<(Arc<Remote>, OpenedCache)> {
    let begin = || CacheDirectory::begin(&store.path, &store.run_directory, store.persistent);
    let opening = match begin()? {
        Begun::New(opening) => opening,
        Begun::Known {
            identity,
            size_bytes,
        } => {
            let options = store.cache(&target.url(), identity, size_bytes);
            let cache = CacheDirectory::open(&store.path, &options)
                .map_err(|error| uncertain(store, error))?;
            if let Some(opened) = go_on(&target, &remote, store, cache, identity).await? {
                return Ok(opened);
            }
            discard(&store.path, &store.run_directory, Discard::EvenDirty)?;
            match begin()? {
                Begun::New(opening) => opening,
                Begun::Known { .. } => {
                    let path = store.path.display();
                    return Err(Error::new(
                        ErrorKind::Busy,
                        format!("another process makes a store in {path}"),
                    ));
                }
            }
        }
    };
    make(target, remote, store, opening).await
}

async fn make(
    target: Ticket,
    remote: RemoteOptions,
    store: &StoreOptions,
    opening: Opening,
) -> Result<(Arc<Remote>, OpenedCache)> {
    let name = target.url();
    let options = RemoteOptions {
        managed: Some(managed(opening)),
        ..remote
    };
    let remote = match Remote::connect(target, options).await {
        Ok(remote) => remote,
        Err(error) => {
            let never_heard = error.kind() == ErrorKind::Unreachable && opening.is_first();
            if is_refusal(error.kind()) || never_heard {
                // Nobody knows of this store.
                let _ = CacheDirectory::undo_begin(&store.path, &store.run_directory, opening);
            }
            return Err(error);
        }
    };
    let size_bytes = remote.geometry().resource_bytes();
    if size_bytes > store.size_bytes_max {
        let _ = remote.close().await;
        let _ = CacheDirectory::undo_begin(&store.path, &store.run_directory, opening);
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "{name} has {}, and the local store may have {} at most: it is in memory, of which it gets \
                 half of what is available; leave out --store mem",
                format_size(size_bytes),
                format_size(store.size_bytes_max)
            ),
        ));
    }
    let cache = CacheDirectory::open(
        &store.path,
        &store.cache(&name, remote.identity(), size_bytes),
    )?;
    note_source(&remote, &cache, Some(opening))?;
    Ok((remote, cache))
}

/// Whether the server has said that it grants nothing.
fn is_refusal(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Busy
            | ErrorKind::NotFound
            | ErrorKind::ReadOnly
            | ErrorKind::Unauthenticated
            | ErrorKind::Protocol
    )
}

/// Goes on with a store; `None` where nothing in it counts any more.
async fn go_on(
    target: &Ticket,
    remote: &RemoteOptions,
    store: &StoreOptions,
    cache: OpenedCache,
    identity: [u8; 16],
) -> Result<Option<(Arc<Remote>, OpenedCache)>> {
    let dirty_bytes = cache.found.held.dirty_bytes;
    if remote.read_only && dirty_bytes > 0 {
        let path = cache.directory.path().display();
        return Err(Error::new(
            ErrorKind::Dirty,
            format!(
                "the local store in {path} has {} that were not sent to {}: mount it without --read-only to \
                 send them, or give them up with `blockferry cache drop {path} --discard-dirty`",
                format_size(dirty_bytes),
                cache.directory.origin_name()
            ),
        ));
    }
    if cache.directory.is_fenced() {
        let why = "the server has refused it before, as the volume was written since by others";
        return given_up(store, &cache, why);
    }
    let epoch = cache.directory.epoch();
    // A reader holds no lease, and the server notes nothing of him.
    let opening = match remote.read_only {
        true => None,
        false => Some(cache.directory.next_opening()?),
    };
    let options = RemoteOptions {
        managed: opening.map(managed),
        known_epoch: (epoch != 0 && !remote.read_only).then_some(epoch),
        known_identity: Some(identity),
        ..remote.clone()
    };
    let remote = match Remote::connect(target.clone(), options).await {
        Ok(remote) => remote,
        Err(error) if matches!(error.kind(), ErrorKind::Fenced | ErrorKind::Replaced) => {
            if error.kind() == ErrorKind::Fenced {
                cache.directory.fence()?;
            }
            return given_up(store, &cache, &error.chain());
        }
        Err(error) => {
            // No hello was sent.
            if let Some(opening) = opening
                && error.kind() == ErrorKind::Unreachable
            {
                // If that cannot be noted the next opening names one more.
                let _ = cache.directory.forget(opening);
            }
            return Err(error);
        }
    };
    let cache = match is_true(&remote, &cache, epoch) {
        true => cache,
        false => {
            tracing::info!(
                store = %store.path.display(),
                "the volume may have been written since: what the local store has is dropped"
            );
            cache.drop_clean()?
        }
    };
    note_source(&remote, &cache, opening)?;
    Ok(Some((remote, cache)))
}

/// Nothing of a store counts any more: gives it up, unless it has local writes.
fn given_up<T>(store: &StoreOptions, cache: &OpenedCache, why: &str) -> Result<Option<T>> {
    let dirty_bytes = cache.found.held.dirty_bytes;
    if dirty_bytes > 0 && !store.discard_dirty {
        return Err(unsent(&cache.directory, dirty_bytes, why));
    }
    tracing::warn!(
        store = %store.path.display(), dropped_dirty_bytes = dirty_bytes, why,
        "the local store is dropped"
    );
    Ok(None)
}

/// Whether nobody else can have written the volume since the store was in use.
fn is_true(remote: &Remote, cache: &OpenedCache, epoch: u64) -> bool {
    if epoch != 0 && !remote.is_read_only() {
        // The server has let us in under this epoch.
        return true;
    }
    let seen = cache.directory.generation();
    seen != 0 && generation(remote) == seen
}

/// Notes on behalf of whom the store is filled from now on. Nothing is written before the server's
/// welcome is on record here: a later opening has to name one that the server knows.
fn note_source(remote: &Remote, cache: &OpenedCache, opening: Option<Opening>) -> Result<()> {
    match opening {
        Some(opening) if !remote.is_read_only() => {
            cache.directory.welcomed(opening, remote.epoch())
        }
        _ => cache.directory.set_generation(generation(remote)),
    }
}

/// The generation as it is kept: 0 where it says nothing.
fn generation(remote: &Remote) -> u64 {
    remote.generation().map_or(0, |generation| generation + 1)
}

fn managed(opening: Opening) -> ManagedStore {
    ManagedStore {
        store: opening.store,
        earlier: opening.earlier,
        opening: opening.token,
    }
}

/// Says what can be done about a store of which a sync has failed.
fn uncertain(store: &StoreOptions, error: Error) -> Error {
    if error.kind() != ErrorKind::Dirty {
        return error;
    }
    let path = store.path.display();
    Error::new(
        ErrorKind::Dirty,
        format!(
            "{}. Look at it with `blockferry cache show {path}`; the same mount with --accept-loss goes on \
             with what was flushed before, and sends what is unsent of that, with --discard-dirty it begins anew \
             with what the origin has. Should the disk be failing, copy what matters first",
            error.chain()
        ),
    )
}

fn unsent(cache: &CacheDirectory, dirty_bytes: u64, why: &str) -> Error {
    let (path, origin) = (cache.path().display(), cache.origin_name());
    Error::new(
        ErrorKind::Dirty,
        format!(
            "the local store in {path} has {} that were not sent to {origin} and cannot be: {why}. Look at it \
             with `blockferry cache show {path}`; the same mount with --discard-dirty gives them up",
            format_size(dirty_bytes)
        ),
    )
}
