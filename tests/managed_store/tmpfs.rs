//! A file system that is soon full.

use std::fs;
use std::path::PathBuf;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A tmpfs, until it is dropped.
pub(crate) struct Tmpfs {
    pub(crate) path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Tmpfs {
    /// `None`, after it said why, where nothing can be mounted.
    pub(crate) fn new(bytes: u64) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().to_owned();
        let size = format!("size={bytes}");
        let tmpfs = Some("tmpfs");
        match mount(tmpfs, &path, tmpfs, MsFlags::empty(), Some(size.as_str())) {
            Ok(()) => Some(Self {
                path,
                _directory: directory,
            }),
            Err(errno) => {
                eprintln!("skipped: no tmpfs can be mounted here: {errno}");
                None
            }
        }
    }

    /// How many bytes there is room for.
    pub(crate) fn free(&self) -> usize {
        let stat = nix::sys::statvfs::statvfs(&self.path).expect("known");
        (stat.blocks_free() * stat.fragment_size()) as usize
    }

    /// Takes space that can be given back.
    pub(crate) fn take(&self, bytes: usize) -> Ballast {
        let path = self.path.join("ballast");
        fs::write(&path, vec![1; bytes]).expect("room");
        Ballast(path)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}

pub(crate) struct Ballast(PathBuf);

impl Drop for Ballast {
    fn drop(&mut self) {
        fs::remove_file(&self.0).expect("removed");
    }
}
