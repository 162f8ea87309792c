//! What has to be known of a store before it is opened: the origin is asked on its behalf.

use std::path::Path;

use super::files::OsDirectory;
use super::meta::{Meta, Openings, Token, UNANSWERED_MAX};
use super::open::Place;
use super::{CacheDirectory, discard, lock};
use crate::volume::instance;
use crate::{Context, Result};

/// One opening of a store, as its server is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opening {
    /// The store's UUID.
    pub store: [u8; 16],
    /// The openings of which one was the last that the server heard of; zeros for none.
    pub earlier: [[u8; 16]; EARLIER_OPENINGS],
    /// What tells this one from all others, durable.
    pub token: [u8; 16],
}

impl Opening {
    /// Whether the server can have heard of none before.
    pub fn is_first(&self) -> bool {
        self.earlier == [[0; 16]; EARLIER_OPENINGS]
    }
}

/// How many openings the server may have heard of last.
pub const EARLIER_OPENINGS: usize = 1 + UNANSWERED_MAX;

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
        let locked = place.lock_data(&directory, path)?;
        let data = lock::plain(&locked, path)?;
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
        let mut meta = begun;
        let opening = meta.open_once_more()?;
        meta.write(&*place.directory)
            .context_io(|| format!("cannot begin a cache in {name}"))?;
        Ok(Begun::New(opening))
    }

    /// Undoes [`begin`](Self::begin) for an opening that the server has refused: removes what was begun, unless
    /// another process is about to make a store of it.
    ///
    /// # Errors
    /// `Busy` while another process has it, and what the operating system reports.
    pub fn undo_begin(path: &Path, run_directory: &Path, opening: Opening) -> Result<()> {
        let place = Place::at(path, run_directory)?;
        let locked = lock::open_data(&OsDirectory::at(path), path, false)?;
        let data = lock::plain(&locked, path)?;
        let Some(mut meta) = place.read_meta()? else {
            return Ok(());
        };
        if !meta.making || meta.store != opening.store {
            return Ok(());
        }
        meta.openings.forget(opening.token);
        if meta.openings == Openings::default() {
            return discard::remove(&place, &*data, Some(meta));
        }
        meta.write(&*place.directory)
            .context_io(|| format!("cannot write to the cache in {}", path.display()))
    }

    /// Begins one more opening of the store, durably.
    ///
    /// # Errors
    /// What the operating system reports.
    pub fn next_opening(&self) -> Result<Opening> {
        let mut known = self.meta.get();
        let opening = known.open_once_more()?;
        self.change(|meta| meta.openings = known.openings)?;
        Ok(opening)
    }

    /// Notes durably that the server has certainly not heard of an opening.
    ///
    /// # Errors
    /// What the operating system reports.
    pub fn forget(&self, opening: Opening) -> Result<()> {
        self.change(|meta| meta.openings.forget(opening.token))
    }

    fn change(&self, change: impl FnOnce(&mut Meta)) -> Result<()> {
        self.meta
            .change(change)
            .map(drop)
            .context_io(|| format!("cannot write to the cache in {}", self.path().display()))
    }

    /// Whether the origin has shut the store out.
    pub fn is_fenced(&self) -> bool {
        self.meta.get().fenced
    }

    /// Notes durably that the origin has shut the store out, so that it is not asked again.
    ///
    /// # Errors
    /// What the operating system reports.
    pub fn fence(&self) -> Result<()> {
        self.change(|meta| meta.fenced = true)
    }

    /// What the origin was called when the store was made.
    pub fn origin_name(&self) -> String {
        self.meta.get().origin_name.clone()
    }

    /// The generation of the origin's content that a reader saw last; 0 for none.
    pub fn generation(&self) -> u64 {
        self.meta.get().generation
    }

    /// Notes durably that the server has welcomed an opening, and the epoch under which the store is
    /// written from now on.
    ///
    /// # Errors
    /// What the operating system reports; what is noted is then the old or the new.
    pub fn welcomed(&self, opening: Opening, epoch: u64) -> Result<()> {
        self.change(|meta| {
            (meta.epoch, meta.generation) = (epoch, 0);
            meta.openings = Openings {
                welcomed: opening.token,
                ..Openings::default()
            };
        })
    }

    /// Notes the generation that the store is read of, durably; 0 for none. The store is then written
    /// under no epoch.
    ///
    /// # Errors
    /// What the operating system reports; it is then the old one or the new one.
    pub fn set_generation(&self, generation: u64) -> Result<()> {
        if (self.epoch(), self.generation()) == (0, generation) {
            return Ok(());
        }
        self.change(|meta| (meta.epoch, meta.generation) = (0, generation))
    }
}

impl Meta {
    /// Draws a token for one more opening.
    fn open_once_more(&mut self) -> Result<Opening> {
        let Openings {
            welcomed,
            unanswered,
        } = self.openings;
        let mut earlier = [[0; 16]; EARLIER_OPENINGS];
        earlier[0] = welcomed;
        earlier[1..].copy_from_slice(&unanswered);
        Ok(Opening {
            store: self.store,
            earlier,
            token: self.openings.next(instance::fresh()?),
        })
    }
}

impl Openings {
    /// The token of one more opening: this fresh one; or, where it is open of too many whether the server
    /// has heard of them, the last of those once more, since it may be the one that the server knows.
    fn next(&mut self, fresh: Token) -> Token {
        match self.unanswered.iter_mut().find(|token| **token == [0; 16]) {
            Some(free) => {
                *free = fresh;
                fresh
            }
            None => self.unanswered[UNANSWERED_MAX - 1],
        }
    }

    fn forget(&mut self, token: Token) {
        for place in &mut self.unanswered {
            if *place == token {
                *place = [0; 16];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(path: &Path, run: &Path) -> Opening {
        match CacheDirectory::begin(path, run, true).expect("begun") {
            Begun::New(opening) => opening,
            Begun::Known { .. } => panic!("there is none yet"),
        }
    }

    #[test]
    fn what_another_process_has_begun_is_not_removed_by_one_that_was_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, run) = (directory.path().join("cache"), directory.path().join("run"));
        let refused = begun(&path, &run);
        let other = begun(&path, &run);
        CacheDirectory::undo_begin(&path, &run, refused).expect("undone");
        let again = begun(&path, &run);
        assert_eq!(again.store, other.store, "it is still there");
        assert!(!again.earlier.contains(&refused.token));
        assert!(again.earlier.contains(&other.token));
        for opening in [again, other] {
            CacheDirectory::undo_begin(&path, &run, opening).expect("undone");
        }
        assert_eq!(std::fs::read_dir(&path).expect("there").count(), 0);
    }

    #[test]
    fn each_opening_has_a_token_of_its_own_until_too_many_were_not_answered() {
        let mut openings = Openings::default();
        for number in 1..=UNANSWERED_MAX as u8 {
            assert_eq!(openings.next([number; 16]), [number; 16]);
        }
        let last = [UNANSWERED_MAX as u8; 16];
        assert_eq!(openings.next([9; 16]), last);
        openings.forget([2; 16]);
        assert_eq!(openings.next([9; 16]), [9; 16]);
        assert_eq!(openings.unanswered[1], [9; 16]);
        // What may have arrived is not forgotten.
        assert_eq!(
            (openings.unanswered[0], openings.unanswered[3]),
            ([1; 16], last)
        );
    }
}
