//! What tells a file from another one, and from what it was when nobody had it open.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::time::UNIX_EPOCH;

use nix::sys::stat::{major, minor};
use serde::{Deserialize, Serialize};

use super::len_of;
use crate::Result;
use crate::volume::instance;

/// A file or block device as it was at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMark {
    /// The boot within which device numbers and counters mean something.
    boot: [u8; 16],
    /// A file's file system, or the number of a block device.
    device: u64,
    /// 0 for a block device.
    inode: u64,
    /// Where the file system keeps it. It tells a file from a later one that got its inode.
    born_ns: Option<u64>,
    len_bytes: u64,
    changes: Changes,
}

/// What moves when the bytes change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Changes {
    /// Of a file: when it was last modified.
    ModifiedNs(i64),
    /// Of a block device: sectors written and discarded since the boot, where the kernel counts.
    Sectors(Option<u64>),
}

impl FileMark {
    pub(super) fn of(file: &File) -> Result<Self, io::Error> {
        let metadata = file.metadata()?;
        let boot = instance::of_boot().map_err(io::Error::other)?;
        let len_bytes = len_of(file)?;
        if metadata.file_type().is_block_device() {
            let device = metadata.rdev();
            return Ok(Self {
                boot,
                device,
                inode: 0,
                born_ns: None,
                len_bytes,
                changes: Changes::Sectors(sectors_changed(device)),
            });
        }
        let born = metadata.created().ok();
        let born = born.and_then(|born| born.duration_since(UNIX_EPOCH).ok());
        let modified_ns = metadata.mtime().saturating_mul(1_000_000_000);
        Ok(Self {
            boot,
            device: metadata.dev(),
            inode: metadata.ino(),
            born_ns: born.map(|since| since.as_nanos() as u64),
            len_bytes,
            changes: Changes::ModifiedNs(modified_ns.saturating_add(metadata.mtime_nsec())),
        })
    }

    /// Whether it is the file that it was, of the same size; what is in it may have changed.
    pub fn is_the_file(&self, earlier: &Self) -> bool {
        self.is_the_file_of_any_size(earlier) && self.len_bytes == earlier.len_bytes
    }

    /// Whether it is the file that it was; its size may have changed too.
    pub fn is_the_file_of_any_size(&self, earlier: &Self) -> bool {
        // The number of a file system's device may be another one after each boot.
        let same_device =
            self.device == earlier.device || (self.boot != earlier.boot && self.born_ns.is_some());
        same_device && (self.inode, self.born_ns) == (earlier.inode, earlier.born_ns)
    }

    /// Whether nobody has written it since either, as far as that can be seen: a file's time of
    /// modification, or the count of a block device's sectors, which begins anew with each boot.
    pub fn is_unchanged(&self, earlier: &Self) -> bool {
        let untouched = match (self.changes, earlier.changes) {
            (Changes::ModifiedNs(now), Changes::ModifiedNs(then)) => now == then,
            (Changes::Sectors(now), Changes::Sectors(then)) if self.boot == earlier.boot => {
                now.is_some() && now == then
            }
            (Changes::Sectors(now), Changes::Sectors(_)) => now == Some(0),
            _ => false,
        };
        untouched && self.is_the_file(earlier)
    }
}

/// The sixth and the thirteenth number of the device's statistics, counted from 0.
fn sectors_changed(device: u64) -> Option<u64> {
    let path = format!("/sys/dev/block/{}:{}/stat", major(device), minor(device));
    let text = fs::read_to_string(path).ok()?;
    let numbers: Vec<&str> = text.split_whitespace().collect();
    let written: u64 = numbers.get(6)?.parse().ok()?;
    let discarded = numbers.get(13).and_then(|number| number.parse().ok());
    Some(written + discarded.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn marked(path: &std::path::Path) -> FileMark {
        FileMark::of(&File::open(path).expect("there")).expect("marked")
    }

    #[test]
    fn a_file_is_itself_until_it_is_written_or_another_takes_its_place() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("disk.img");
        fs::write(&path, [1; 4096]).expect("made");
        let first = marked(&path);
        assert!(marked(&path).is_unchanged(&first));

        let file = File::options().write(true).open(&path).expect("there");
        file.write_all_at(&[2; 512], 0).expect("written");
        // The clock of a file system may be slower than two calls.
        file.set_modified(UNIX_EPOCH).expect("dated");
        let written = marked(&path);
        assert!(written.is_the_file(&first));
        assert!(!written.is_unchanged(&first));

        file.set_len(8192).expect("grown");
        assert!(!marked(&path).is_the_file(&first));
        assert!(marked(&path).is_the_file_of_any_size(&first));

        let other = dir.path().join("other.img");
        fs::write(&other, [2; 4096]).expect("made");
        fs::rename(&other, &path).expect("moved");
        assert!(!marked(&path).is_the_file(&first));
        assert!(!marked(&path).is_the_file_of_any_size(&first));
    }

    fn device(boot: u8, number: u64, sectors: Option<u64>) -> FileMark {
        FileMark {
            boot: [boot; 16],
            device: number,
            inode: 0,
            born_ns: None,
            len_bytes: 4096,
            changes: Changes::Sectors(sectors),
        }
    }

    #[test]
    fn a_block_device_is_unchanged_while_its_count_stands_still() {
        let rest = device(1, 7, Some(40));
        assert!(device(1, 7, Some(40)).is_unchanged(&rest));
        assert!(!device(1, 7, Some(48)).is_unchanged(&rest));
        assert!(!device(1, 8, Some(40)).is_the_file(&rest));
        // After another boot the count begins anew.
        assert!(device(2, 7, Some(0)).is_unchanged(&rest));
        assert!(!device(2, 7, Some(40)).is_unchanged(&rest));
        // Without a count nobody can tell.
        assert!(!device(1, 7, None).is_unchanged(&device(1, 7, None)));
        assert!(device(1, 7, None).is_the_file(&rest));
    }

    #[test]
    fn a_file_systems_device_may_have_another_number_after_a_boot() {
        let file = |boot: u8, number, born_ns| FileMark {
            inode: 9,
            born_ns,
            changes: Changes::ModifiedNs(5),
            ..device(boot, number, None)
        };
        let then = file(1, 7, Some(3));
        assert!(file(2, 8, Some(3)).is_unchanged(&then));
        assert!(!file(1, 8, Some(3)).is_the_file(&then));
        assert!(!file(2, 8, Some(4)).is_the_file(&then));
        assert!(!file(2, 8, None).is_the_file(&file(1, 7, None)));
    }
}
