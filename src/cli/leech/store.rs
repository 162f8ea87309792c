//! The store that a volume is leeched into.

use std::fmt;
use std::fs::OpenOptions as FileOptions;
use std::io;
use std::str::FromStr;

use blockferry::backend::{self, OpenOptions, Resource};
use blockferry::migrate::protocol::Standing;
use blockferry::migrate::records::RecordFile;
use blockferry::{Context, Error, ErrorKind, Geometry, Result};

use super::path_of;

/// `file:PATH`, or memory.
#[derive(Debug, Clone)]
pub(super) enum StoreUrl {
    File(String),
    Memory,
}

impl FromStr for StoreUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once(':') {
            Some(("mem", "")) => Ok(Self::Memory),
            Some(("file", path)) if !path_of(path).as_os_str().is_empty() => {
                Ok(Self::File(path.to_owned()))
            }
            _ => Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "`{text}` is no store; there are file:PATH and mem: (as long as the volume)"
                ),
            )),
        }
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{path}"),
            Self::Memory => f.write_str("mem:"),
        }
    }
}

impl StoreUrl {
    /// In one way of writing it.
    pub(super) fn canonical(&self) -> String {
        backend::canonical(&self.to_string())
    }

    /// What it means that the seeder cannot be reached, by what the store's record says.
    pub(super) fn explained(&self, error: Error) -> Error {
        let Self::File(path) = self else {
            return error;
        };
        let kept = RecordFile::beside(&path_of(path)).and_then(|file| file.read());
        let Ok(Some(kept)) = kept else {
            return error;
        };
        let meaning = match (kept.records.standing(), kept.records.leech) {
            (Standing::Owner(_), Some(_)) => {
                "the volume has moved here already: `blockferry mount` and `seed` take it as it is"
            }
            (Standing::InDoubt(_), _) => {
                "whether the volume is here the seeder alone knows: try again when it is back"
            }
            _ => return error,
        };
        Error::new(error.kind(), format!("{self}: {meaning}")).because(error.chain())
    }

    /// Opens the store for a volume of this geometry, and makes it if it is not there.
    pub(super) fn open(&self, geometry: &Geometry) -> Result<Resource> {
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
            Self::File(path) => {
                make(path, len_bytes)?;
                backend::open(&self.to_string(), &options)
            }
        }
    }
}

/// A file that is not there becomes one of holes.
fn make(path: &str, len_bytes: u64) -> Result<()> {
    let path = path_of(path);
    let cannot = || format!("cannot make {}", path.display());
    let made = FileOptions::new().write(true).create_new(true).open(&path);
    match made {
        Ok(file) => file
            .set_len(len_bytes)
            .and_then(|()| file.sync_all())
            .context_io(cannot),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(Error::io(cannot(), error)),
    }
}
