//! What has to be known of a store before it is opened: the origin is asked on its behalf.

use std::path::Path;

use super::files::OsDirectory;
use super::meta::Meta;
use super::open::Place;
use super::{CacheDirectory, lock};
use crate::{Context, Result};

/// One opening of a store. No two are alike, and those of one store grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// The store's UUID.
    pub store: [u8; 16],
    /// Its number, durable.
    pub number: u64,
}

/// What there is in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// Nothing yet: the store will be made when it is opened.
    New(Opening),
    /// A store of this content, to be opened with what it says of itself.
    Known {
        /// The identity of its origin.
        identity: [u8; 16],
        /// How long the resource is.
        size_bytes: u64,
    },
}

impl CacheDirectory {
    /// Begins to use a directory. A new store has its UUID from now on, durably, so that what the
    /// origin grants to it is not lost with this process.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn begin(path: &Path, run_directory: &Path, persistent: bool) -> Result<Begun> {
        let name = path.display();
        let directory =
            OsDirectory::make(path).context_io(|| format!("cannot make the directory {name}"))?;
        let place = Place::at(path, run_directory)?;
        place.refuse_other_things()?;
        let data = lock::plain(&lock::open_data(&directory, path, true)?, path)?;
        let begun = match place.read_meta()? {
            Some(known) if !known.making => {
                return Ok(Begun::Known {
                    identity: known.identity,
                    size_bytes: known.size_bytes,
                });
            }
            Some(begun) => begun,
            None => {
                place.refuse_unless_empty(&*data)?;
                Meta::begun(persistent)?
            }
        };
        let meta = Meta {
            openings: begun.openings + 1,
            ..begun
        };
        meta.write(&*place.directory)
            .context_io(|| format!("cannot begin a cache in {name}"))?;
        Ok(Begun::New(Opening {
            store: meta.store,
            number: meta.openings,
        }))
    }

    /// Counts one more opening of the store, durably.
    ///
    /// # Errors
    /// What the operating system reports.
    pub fn next_opening(&self) -> Result<Opening> {
        let meta = self
            .meta
            .change(|meta| meta.openings += 1)
            .context_io(|| format!("cannot write to the cache in {}", self.path().display()))?;
        Ok(Opening {
            store: meta.store,
            number: meta.openings,
        })
    }

    /// Whether the origin has shut the store out.
    pub fn is_fenced(&self) -> bool {
        self.meta.get().fenced
    }

    /// Notes durably that the origin has shut the store out: with each opening that is tried it looks
    /// later than the store that it is a copy of.
    ///
    /// # Errors
    /// What the operating system reports.
    pub fn fence(&self) -> Result<()> {
        self.meta
            .change(|meta| meta.fenced = true)
            .map(drop)
            .context_io(|| format!("cannot write to the cache in {}", self.path().display()))
    }

    /// What the origin was called when the store was made.
    pub fn origin_name(&self) -> String {
        self.meta.get().origin_name.clone()
    }

    /// The generation of the origin's content that a reader saw last; 0 for none.
    pub fn generation(&self) -> u64 {
        self.meta.get().generation
    }

    /// Notes the epoch under which the store is written from now on, or the generation that it is
    /// read of, durably; 0 for none.
    ///
    /// # Errors
    /// What the operating system reports; they are then the old ones or the new ones.
    pub fn set_source(&self, epoch: u64, generation: u64) -> Result<()> {
        if (self.epoch(), self.generation()) == (epoch, generation) {
            return Ok(());
        }
        self.meta
            .change(|meta| (meta.epoch, meta.generation) = (epoch, generation))
            .map(drop)
            .context_io(|| format!("cannot write to the cache in {}", self.path().display()))
    }
}
