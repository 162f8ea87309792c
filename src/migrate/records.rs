//! What is kept beside a resource of the migrations that it was part of.
//!
//! For `disk.img` that is `disk.img.blockferry`: which volume it is, that it moved away (the seeder's
//! record, which decides), and how far it came here (the leecher's). It is replaced as a whole and
//! durably. Who holds the resource's lock may write it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::protocol::{CommitRecord, LeechRecord, Records, Standing, VolumeId};
use crate::{Context, Error, ErrorKind, Result};

/// What the file's name ends with.
const SUFFIX: &str = ".blockferry";

/// The version of what is in it.
const FORMAT: u32 = 1;

/// The longest such file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// What is kept of a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Which volume it is, or has a part of.
    pub volume: VolumeId,
    /// Where it came from and where it went.
    pub records: Records,
}

/// As it is written.
#[derive(Debug, Serialize, Deserialize)]
struct Content {
    format: u32,
    volume: VolumeId,
    moved_away: Option<CommitRecord>,
    came_here: Option<LeechRecord>,
}

/// The file beside a resource.
#[derive(Debug, Clone)]
pub struct RecordFile {
    path: PathBuf,
}

impl RecordFile {
    /// That beside the resource at `path`, by whichever name that is known.
    ///
    /// # Errors
    /// When `path` cannot be found.
    pub fn beside(path: &Path) -> Result<Self> {
        let cannot = || format!("cannot find {}", path.display());
        let mut path = fs::canonicalize(path).context_io(cannot)?.into_os_string();
        path.push(SUFFIX);
        Ok(Self { path: path.into() })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is in it; `None` where there is none.
    ///
    /// # Errors
    /// `Damaged` for what makes no sense, `Foreign` for that of a later version, and what the
    /// operating system reports.
    pub fn read(&self) -> Result<Option<Kept>> {
        let cannot = || format!("cannot read {}", self.path.display());
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.context_io(cannot)?,
        };
        let damaged = || {
            let what = format!(
                "{} is damaged: nobody can tell whether the volume is here; restore it, or remove it if \
                 you know that it is",
                self.path.display()
            );
            Error::new(ErrorKind::Damaged, what)
        };
        let length = file.metadata().context_io(cannot)?.len();
        if length > FILE_BYTES_MAX {
            return Err(damaged());
        }
        let value: serde_json::Value =
            serde_json::from_reader(&file).map_err(|error| damaged().because(error))?;
        let format = value.get("format").and_then(serde_json::Value::as_u64);
        if format.is_some_and(|format| format > FORMAT.into()) {
            let what = format!(
                "{} is of a later version of blockferry; use that",
                self.path.display()
            );
            return Err(Error::new(ErrorKind::Foreign, what));
        }
        let content: Content =
            serde_json::from_value(value).map_err(|error| damaged().because(error))?;
        Ok(Some(Kept {
            volume: content.volume,
            records: Records {
                commit: content.moved_away,
                leech: content.came_here,
            },
        }))
    }

    /// Replaces it, durably. After a failure nobody knows which one is there.
    ///
    /// # Errors
    /// What the operating system reports.
    pub fn write(&self, kept: &Kept) -> Result<()> {
        self.prepare(kept)?;
        self.replace()
    }

    /// Writes what is to replace it, durably. After a failure the one before stands.
    ///
    /// # Errors
    /// What the operating system reports.
    pub(super) fn prepare(&self, kept: &Kept) -> Result<()> {
        let content = Content {
            format: FORMAT,
            volume: kept.volume,
            moved_away: kept.records.commit.clone(),
            came_here: kept.records.leech.clone(),
        };
        let new = self.new_path();
        let write = || {
            let mut bytes = serde_json::to_vec_pretty(&content)?;
            bytes.push(b'\n');
            let mut file = File::create(&new)?;
            file.write_all(&bytes)?;
            file.sync_all()
        };
        write().map_err(|error| {
            // On a full disk it would only be in the way.
            let _ = fs::remove_file(&new);
            self.cannot_write(error)
        })
    }

    /// Has what was prepared take its place. After a failure nobody knows which one is there.
    ///
    /// # Errors
    /// What the operating system reports.
    pub(super) fn replace(&self) -> Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        fs::rename(self.new_path(), &self.path)
            .and_then(|()| File::open(directory)?.sync_all())
            .map_err(|error| self.cannot_write(error))
    }

    fn new_path(&self) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(".new");
        path.into()
    }

    fn cannot_write(&self, error: io::Error) -> Error {
        Error::io(format!("cannot write {}", self.path.display()), error)
    }
}

/// Refuses a resource that is not, as a whole, the volume. Its lock has to be held: who moves the
/// volume holds it, too.
///
/// # Errors
/// `Fenced` for one that has moved away, with its owner's name; `Dirty` for one that has a part of
/// a volume; and when the record cannot be read.
pub fn refuse_elsewhere(path: &Path) -> Result<()> {
    let file = RecordFile::beside(path)?;
    match file.read()? {
        Some(kept) => refuse(path, &file, &kept.records.standing()),
        None => Ok(()),
    }
}

fn refuse(path: &Path, file: &RecordFile, standing: &Standing) -> Result<()> {
    let (path, file) = (path.display(), file.path().display());
    let (kind, what) = match standing {
        Standing::Owner(_) => return Ok(()),
        Standing::Moved(record) => (
            ErrorKind::Fenced,
            format!(
                "{path} is not the volume any more: it has moved to {} (epoch {}). Use it there, or leech \
                 it back. To use what was left here as another volume, remove {file}",
                record.to, record.epoch.0
            ),
        ),
        Standing::Pulling(_) => (
            ErrorKind::Dirty,
            format!(
                "{path} is a part of a volume that is on its way here: `blockferry leech` with the same \
                 --store goes on with it. To give that up, remove {file}"
            ),
        ),
        Standing::InDoubt(_) => (
            ErrorKind::Dirty,
            format!(
                "{path} has a volume that may be here or at its seeder: only that knows. `blockferry leech` \
                 with the same --store asks it"
            ),
        ),
        Standing::Completing(_) => (
            ErrorKind::Dirty,
            format!(
                "{path} has a volume of which some bytes are still at its seeder: `blockferry leech` with \
                 the same --store goes on with it"
            ),
        ),
    };
    Err(Error::new(kind, what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::protocol::{AttemptId, Epoch, Instance, MigrationId, SessionId, Stage};

    fn resource() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("disk.img");
        fs::write(&path, "bytes").expect("written");
        (directory, path)
    }

    fn kept(commit: Option<u64>, leech: Option<(u64, Stage)>) -> Kept {
        let volume = VolumeId([7; 16]);
        let attempt = AttemptId {
            session: SessionId {
                migration: MigrationId([1; 16]),
                instance: Instance([2; 16]),
                number: 3,
            },
            number: 4,
        };
        let records = Records {
            commit: commit.map(|epoch| CommitRecord {
                volume,
                epoch: Epoch(epoch),
                attempt,
                to: "storage-b".to_owned(),
                released: false,
                post_copy: false,
            }),
            leech: leech.map(|(epoch, stage)| LeechRecord {
                volume,
                epoch: Epoch(epoch),
                stage,
                attempt: Some(attempt),
                post_copy: false,
            }),
        };
        Kept { volume, records }
    }

    #[test]
    fn what_was_written_is_read_by_whichever_name_the_resource_has() {
        let (directory, path) = resource();
        let file = RecordFile::beside(&path).expect("found");
        assert_eq!(file.read().expect("readable"), None);
        let kept = kept(Some(2), Some((1, Stage::Complete)));
        file.write(&kept).expect("written");
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("made");
        let file = RecordFile::beside(&link).expect("found");
        assert_eq!(file.read().expect("readable"), Some(kept));
        let names = fs::read_dir(directory.path()).expect("readable").count();
        assert_eq!(names, 3, "nothing else is left");
    }

    #[test]
    fn only_a_volume_that_is_here_as_a_whole_is_let_through() {
        let (_directory, path) = resource();
        let file = RecordFile::beside(&path).expect("found");
        refuse_elsewhere(&path).expect("it never moved");
        for (kept, part) in [
            (kept(Some(1), None), "moved to storage-b (epoch 1)"),
            (
                kept(Some(2), Some((1, Stage::Complete))),
                "moved to storage-b",
            ),
            (kept(None, Some((1, Stage::Pulling))), "on its way here"),
            (kept(None, Some((1, Stage::Prepared))), "only that knows"),
            (kept(None, Some((1, Stage::Owner))), "still at its seeder"),
        ] {
            file.write(&kept).expect("written");
            let error = refuse_elsewhere(&path).expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
        for here in [
            kept(None, None),
            kept(None, Some((1, Stage::Complete))),
            kept(Some(1), Some((2, Stage::Complete))),
        ] {
            file.write(&here).expect("written");
            refuse_elsewhere(&path).expect("it is here");
        }
    }

    #[test]
    fn a_record_that_cannot_be_understood_is_not_taken_for_none() {
        let (_directory, path) = resource();
        let file = RecordFile::beside(&path).expect("found");
        for (bytes, kind) in [
            ("", ErrorKind::Damaged),
            ("{\"format\": 1}", ErrorKind::Damaged),
            ("{\"format\": 2}", ErrorKind::Foreign),
            (&" ".repeat(FILE_BYTES_MAX as usize + 1), ErrorKind::Damaged),
        ] {
            fs::write(file.path(), bytes).expect("written");
            assert_eq!(refuse_elsewhere(&path).expect_err("refused").kind(), kind);
        }
    }
}
