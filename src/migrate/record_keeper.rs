//! The records of a resource in use: with a file, or with this process where it is memory.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::protocol::{CommitRecord, LeechRecord, Records, Stage, VolumeId};
use super::records::{Kept, RecordFile};
use crate::backend::{Kind, Resource};
use crate::volume::{FileStore, instance};
use crate::{Error, ErrorKind, Result};

/// See the module. Who has it holds the resource's lock. Clones keep the same records.
#[derive(Debug, Clone)]
pub struct RecordKeeper {
    /// The file that the records are of.
    store: Option<Arc<FileStore>>,
    file: Option<RecordFile>,
    kept: Arc<Mutex<Option<Kept>>>,
    /// A write has failed of which nobody knows whether it counts.
    in_doubt: Arc<AtomicBool>,
}

impl RecordKeeper {
    /// That of an open resource.
    ///
    /// # Errors
    /// `Unsupported` for one that has no place for records, and as [`RecordFile::read`].
    pub fn of(resource: &Resource) -> Result<Self> {
        let file = match &resource.kind {
            Kind::Memory(_) => None,
            Kind::File(store) if store.is_block_device() => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "{} is a block device, which has no place for the record of a move: later nobody could \
                         tell whether the volume is there. Make a file system on it, and use a file of that",
                        store.path().display()
                    ),
                ));
            }
            Kind::File(store) => Some(RecordFile::beside(store.path())?),
            Kind::Other(_) => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "{} has no place for the record of a move: files and memory can be migrated",
                        resource.url
                    ),
                ));
            }
        };
        let kept = match &file {
            Some(file) => file.read()?,
            None => None,
        };
        let store = match &resource.kind {
            Kind::File(store) => Some(Arc::clone(store)),
            Kind::Memory(_) | Kind::Other(_) => None,
        };
        Ok(Self {
            store,
            file,
            kept: Arc::new(Mutex::new(kept)),
            in_doubt: Arc::default(),
        })
    }

    /// What is kept by now.
    pub fn records(&self) -> Records {
        let kept = self.kept();
        let kept = kept.as_ref();
        kept.map(|kept| kept.records.clone()).unwrap_or_default()
    }

    /// Whether it is a volume that was seeded from here and has never moved.
    pub fn is_first_owner(&self) -> bool {
        let kept = self.kept();
        kept.as_ref()
            .is_some_and(|kept| kept.records == Records::default())
    }

    /// Which volume it is; from the first time on it stays that one.
    ///
    /// # Errors
    /// What keeps that from being written.
    pub fn volume(&mut self) -> Result<VolumeId> {
        if let Some(kept) = &*self.kept() {
            return Ok(kept.volume);
        }
        let volume = VolumeId(instance::fresh()?);
        self.write(Kept {
            volume,
            records: Records::default(),
        })?;
        Ok(volume)
    }

    /// Makes the record that the volume moved away durable. After a failure [`restore`](Self::restore)
    /// makes what was there before count.
    ///
    /// # Errors
    /// `Foreign` where the file was removed, renamed or changed in length, and what keeps it from being
    /// written.
    pub fn write_commit(&mut self, record: CommitRecord) -> Result<()> {
        // A record beside another file would be one of that.
        if !record.released {
            self.check_in_place()?;
        }
        let volume = record.volume;
        let records = Records {
            commit: Some(record),
            ..self.records()
        };
        self.write(Kept { volume, records })
    }

    /// Makes it durable that the new owner has everything.
    ///
    /// # Errors
    /// `Foreign` where the last record is of another move, and what keeps it from being written.
    pub fn write_released(&mut self, record: &CommitRecord) -> Result<()> {
        let commit = self.records().commit;
        match commit.filter(|commit| commit.attempt == record.attempt) {
            Some(commit) => self.write_commit(CommitRecord {
                released: true,
                ..commit
            }),
            None => Err(Error::new(
                ErrorKind::Foreign,
                "the record is of another move of the volume",
            )),
        }
    }

    /// Makes the record of how far the volume has come here durable.
    ///
    /// # Errors
    /// `Foreign` where it has come, and the file was removed, renamed or changed in length; and what keeps
    /// it from being written.
    pub fn write_leech(&mut self, record: LeechRecord) -> Result<()> {
        // It says that the volume is in the file.
        if record.stage != Stage::Pulling {
            self.check_in_place()?;
        }
        let volume = record.volume;
        let records = Records {
            leech: Some(record),
            ..self.records()
        };
        self.write(Kept { volume, records })
    }

    /// Has what was there before a write that failed count. Where the write did not get so far that it may
    /// count itself, that takes nothing, and so no space on a full disk.
    ///
    /// # Errors
    /// What keeps it from being written.
    pub fn restore(&mut self) -> Result<()> {
        let kept = self.kept().clone();
        match kept {
            Some(kept) if self.in_doubt.load(Ordering::Relaxed) => self.write(kept),
            _ => Ok(()),
        }
    }

    fn check_in_place(&self) -> Result<()> {
        match &self.store {
            Some(store) => store.check_in_place(),
            None => Ok(()),
        }
    }

    fn write(&mut self, kept: Kept) -> Result<()> {
        if let Some(file) = &self.file {
            file.prepare(&kept)?;
            self.in_doubt.store(true, Ordering::Relaxed);
            file.replace()?;
            self.in_doubt.store(false, Ordering::Relaxed);
        }
        *self.kept() = Some(kept);
        Ok(())
    }

    fn kept(&self) -> MutexGuard<'_, Option<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::backend::{self, OpenOptions};
    use crate::migrate::protocol::Epoch;

    /// The records of a volume there, the file that they are in, and one that is still to be written.
    fn kept_in(directory: &Path) -> (RecordKeeper, RecordFile, LeechRecord) {
        let path = directory.join("disk.img");
        std::fs::write(&path, [0; 4096]).expect("written");
        let url = format!("file:{}", path.display());
        let resource = backend::open(&url, &OpenOptions::default()).expect("opened");
        let mut records = RecordKeeper::of(&resource).expect("none yet");
        let record = LeechRecord {
            volume: records.volume().expect("written"),
            epoch: Epoch(1),
            stage: Stage::Pulling,
            attempt: None,
            post_copy: false,
        };
        let file = RecordFile::beside(&path).expect("found");
        (records, file, record)
    }

    #[test]
    fn a_write_that_certainly_does_not_count_takes_no_space_to_be_undone() {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut records, file, record) = kept_in(directory.path());
        let before = file.read().expect("readable");
        // Nothing can be written where the next one is prepared.
        let in_the_way = directory.path().join("disk.img.blockferry.new");
        std::fs::create_dir(&in_the_way).expect("made");
        records.write_leech(record.clone()).expect_err("it cannot");
        records.restore().expect("the one before stands");
        assert_eq!(file.read().expect("readable"), before);

        std::fs::remove_dir(&in_the_way).expect("removed");
        records.write_leech(record.clone()).expect("written");
        let after = file.read().expect("readable").expect("there");
        assert_eq!(after.records.leech, Some(record));
    }

    #[test]
    fn a_write_that_may_count_is_undone_by_another() {
        let directory = tempfile::tempdir().expect("a directory");
        let (mut records, file, record) = kept_in(directory.path());
        let before = file.read().expect("readable").expect("there");
        // A directory is in the place of the record: it cannot be replaced.
        std::fs::remove_file(file.path()).expect("removed");
        std::fs::create_dir(file.path()).expect("made");
        records.write_leech(record).expect_err("it cannot");
        records.restore().expect_err("nor can the one before");
        std::fs::remove_dir(file.path()).expect("removed");
        records.restore().expect("written");
        assert_eq!(file.read().expect("readable"), Some(before));
    }
}
