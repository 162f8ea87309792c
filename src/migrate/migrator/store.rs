//! The store that a volume is leeched into.

use std::fmt;
use std::fs::{self, OpenOptions as FileOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::backend::{self, Kind, OpenOptions, Resource};
use crate::migrate::protocol::{Records, Standing, VolumeId};
use crate::migrate::records::RecordFile;
use crate::wire::VolumeName;
use crate::{Context, Error, ErrorKind, Geometry, Result};

/// What the name of the file in a directory ends with.
const FILE_SUFFIX: &str = ".img";

/// Where a volume is to be: `file:PATH`, a directory, or `mem:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeechStore {
    /// A file, made if it does not exist, in a directory that does.
    File(PathBuf),
    /// A file, made if it does not exist, as its directory is.
    InDirectory(PathBuf),
    /// A file in this directory, which has the volume's name; both are made if they do not exist.
    Directory(PathBuf),
    /// Memory of this process, with which the volume is gone.
    Memory,
}

impl FromStr for LeechStore {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let path = |rest: &str| PathBuf::from(rest.strip_prefix("//").unwrap_or(rest));
        match text.split_once(':') {
            Some(("mem", "")) => return Ok(Self::Memory),
            Some(("file", rest)) if !path(rest).as_os_str().is_empty() => {
                return Ok(Self::File(path(rest)));
            }
            // A path may have a colon, too.
            Some((scheme, _)) if !scheme.contains(['/', '.']) => {}
            _ if text.is_empty() => {}
            _ => return Ok(Self::Directory(PathBuf::from(text))),
        }
        Err(Error::new(
            ErrorKind::InvalidInput,
            format!("`{text}` is no store; there are file:PATH, a directory and mem:"),
        ))
    }
}

impl fmt::Display for LeechStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) | Self::InDirectory(path) => write!(f, "file:{}", path.display()),
            Self::Directory(path) => path.display().fmt(f),
            Self::Memory => f.write_str("mem:"),
        }
    }
}

impl LeechStore {
    /// The same where a directory is the file in it.
    #[must_use]
    pub fn for_volume(self, volume: &VolumeName) -> Self {
        match self {
            Self::Directory(path) => {
                Self::InDirectory(path.join(format!("{}{FILE_SUFFIX}", volume.as_str())))
            }
            other => other,
        }
    }

    /// In one way of writing it.
    pub fn canonical(&self) -> String {
        backend::canonical(&self.to_string())
    }

    /// What is kept of it, if there is anything.
    fn records(&self) -> Option<Records> {
        let (Self::File(path) | Self::InDirectory(path)) = self else {
            return None;
        };
        let kept = RecordFile::beside(path).and_then(|file| file.read());
        kept.ok().flatten().map(|kept| kept.records)
    }

    /// Whether its record says that a volume has come here, as a whole, and has not left again.
    pub(super) fn has_arrived(&self) -> bool {
        self.records().is_some_and(|records| {
            matches!(records.standing(), Standing::Owner(_)) && records.leech.is_some()
        })
    }

    /// The volume of which its record says that it is here, or may be: only the seeder of that one can be asked.
    pub(super) fn volume(&self) -> Option<VolumeId> {
        let records = self.records()?;
        match records.standing() {
            Standing::Owner(_) | Standing::InDoubt(_) | Standing::Completing(_) => {
                records.leech.map(|record| record.volume)
            }
            _ => None,
        }
    }

    /// What it means that the seeder cannot be reached, by what the store's record says.
    pub(super) fn explained(&self, error: Error) -> Error {
        if error.kind() == ErrorKind::Replaced {
            let what = format!(
                "{self} has another volume than the one of this ticket; leech into another store"
            );
            return Error::new(ErrorKind::Foreign, what);
        }
        let standing = self.records().map(|records| records.standing());
        let meaning = match standing {
            Some(Standing::InDoubt(record)) => {
                let known = "whether the volume is here the seeder alone knows: try again when it is back";
                match record.post_copy {
                    true => known.to_owned(),
                    false => format!("{known}, or, if it is gone for good, with --assume-committed"),
                }
            }
            Some(Standing::Completing(_)) => {
                "the volume is here, but for bytes that the seeder alone has: try again when it is back"
                    .to_owned()
            }
            Some(Standing::Moved(record)) => format!(
                "the volume has moved on to {} (epoch {}): leech it from there, or have `blockferry seed` \
                 answer what that asks",
                record.to, record.epoch.0
            ),
            _ => return error,
        };
        Error::new(error.kind(), format!("{self}: {meaning}")).because(error.chain())
    }

    /// Opens the store for a volume of this geometry, and makes it if it is not there. What is no part of a
    /// volume stays as it is unless it may be overwritten.
    pub(super) fn open(&self, geometry: &Geometry, overwrite: bool) -> Result<Resource> {
        let len_bytes = geometry.resource_bytes();
        let options = OpenOptions {
            block_bytes: Some(geometry.logical_block_bytes()),
            migrates: true,
            ..OpenOptions::default()
        };
        match self {
            Self::Memory => {
                tracing::warn!(
                    "with --store mem: the volume is gone when this process ends, however it does"
                );
                backend::open(&format!("mem:{len_bytes}"), &options)
            }
            Self::Directory(path) => Err(Error::new(
                ErrorKind::InvalidInput,
                format!("{} is a directory: a file in it is needed", path.display()),
            )),
            Self::File(path) | Self::InDirectory(path) => {
                if let (Self::InDirectory(_), Some(directory)) = (self, path.parent()) {
                    make_directory(directory)?;
                }
                let is_new = make(path, len_bytes)?;
                let store = backend::open(&self.to_string(), &options)?;
                // One of another size is refused as that.
                if !is_new && !overwrite && store.geometry.resource_bytes() == len_bytes {
                    refuse_something_else(path, &store)?;
                }
                Ok(store)
            }
        }
    }

    /// Opens it as it is.
    pub(super) fn open_as_it_is(&self) -> Result<Resource> {
        let options = OpenOptions {
            migrates: true,
            ..OpenOptions::default()
        };
        backend::open(&self.to_string(), &options)
    }
}

/// Refuses a file that has data of which no record says that they are of a volume.
fn refuse_something_else(path: &Path, store: &Resource) -> Result<()> {
    let file = match &store.kind {
        // A block device is refused, whatever it has.
        Kind::File(file) if !file.is_block_device() => file,
        _ => return Ok(()),
    };
    if RecordFile::beside(path)?.read()?.is_some() {
        return Ok(());
    }
    let data = file.first_data(0);
    match data.context_io(|| format!("cannot tell whether {} has data", path.display()))? {
        None => Ok(()),
        Some(_) => Err(Error::new(
            ErrorKind::Foreign,
            format!(
                "{} exists, and has data of which nothing says that they are of this volume: they would be \
                 lost. Leech into another file, or have it replaced by --overwrite",
                path.display()
            ),
        )),
    }
}

fn make_directory(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(Error::io(format!("cannot make {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// A file that is not there, or that whoever made it could not give its size, becomes one of holes. Whether
/// it did.
fn make(path: &Path, len_bytes: u64) -> Result<bool> {
    let cannot = || format!("cannot make {}", path.display());
    let made = FileOptions::new().write(true).create_new(true).open(path);
    let file = match made {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            match is_empty_file(path).context_io(cannot)? {
                true => FileOptions::new()
                    .write(true)
                    .open(path)
                    .context_io(cannot)?,
                false => return Ok(false),
            }
        }
        Err(error) => return Err(Error::io(cannot(), error)),
    };
    file.set_len(len_bytes)
        .and_then(|()| file.sync_all())
        .map(|()| true)
        .context_io(cannot)
}

/// Whether it is a file that has nothing and is the rest of nothing.
fn is_empty_file(path: &Path) -> io::Result<bool> {
    let there = fs::metadata(path)?;
    let has_record = || RecordFile::beside(path).is_ok_and(|record| record.path().exists());
    Ok(there.is_file() && there.len() == 0 && !has_record())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_directory_that_was_given_is_made_and_an_empty_file_is_as_good_as_none() {
        let directory = tempfile::tempdir().expect("a directory");
        let geometry = Geometry::new(1 << 20, 512).expect("a geometry");
        let absent = directory.path().join("absent");
        let store = LeechStore::File(absent.join("x.img"));
        let error = store.open(&geometry, false).expect_err("no directory");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(!absent.exists());
        let volume: VolumeName = "disk".parse().expect("a name");
        let store = LeechStore::Directory(absent.clone()).for_volume(&volume);
        // The directory, and then the file in it, is there.
        for _ in 0..2 {
            store.open(&geometry, false).expect("made");
        }
        let path = absent.join("disk.img");
        std::fs::write(&path, "").expect("emptied");
        store.open(&geometry, false).expect("made again");
        assert_eq!(std::fs::metadata(&path).expect("there").len(), 1 << 20);

        // The record is of something that was in it.
        std::fs::write(&path, "").expect("emptied");
        std::fs::write(absent.join("disk.img.blockferry"), "").expect("written");
        store.open(&geometry, false).expect_err("it is empty");
        assert_eq!(std::fs::metadata(&path).expect("there").len(), 0);
    }

    #[test]
    fn a_directory_is_a_file_of_the_volumes_name_and_what_is_no_store_is_refused() {
        let volume: VolumeName = "disk".parse().expect("a name");
        for (text, expected) in [
            ("mem:", "mem:"),
            ("file:/srv/x.img", "file:/srv/x.img"),
            ("file:///srv/x.img", "file:/srv/x.img"),
            ("/srv", "file:/srv/disk.img"),
            ("./a:b", "file:./a:b/disk.img"),
            ("srv", "file:srv/disk.img"),
        ] {
            let store: LeechStore = text.parse().expect(text);
            assert_eq!(store.for_volume(&volume).to_string(), expected);
        }
        for text in ["", "file:", "mem:1GiB", "nbd:x", "blockferry://host/x"] {
            text.parse::<LeechStore>().expect_err(text);
        }
    }
}
