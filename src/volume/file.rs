//! A file or block device as a volume: how it is opened, locked and described.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};

use super::backend::{Backend, Capabilities, Extent};
use crate::{Context, Error, ErrorKind, Result};

mod direct_io;
mod mark;

pub use mark::FileMark;

/// How often it is looked whether a lock has become free.
const LOCK_POLL: Duration = Duration::from_millis(5);

/// How a file is to be opened.
#[derive(Debug, Clone, Copy, Default)]
pub struct FileOptions {
    /// Refuse writes.
    pub read_only: bool,
    /// Past the page cache where the file allows it at this alignment, in bytes. Good for a ring,
    /// where it also keeps the kernel from handing requests to worker threads.
    pub direct_alignment_bytes: Option<u32>,
    /// How long to wait for whoever holds its lock: long enough for the last I/O of a process that
    /// has died, whose rings hold the lock until that is over.
    pub lock_patience: Duration,
}

/// An open file or block device, locked against other users of it.
#[derive(Debug)]
pub struct FileStore {
    file: Flock<File>,
    path: PathBuf,
    len_bytes: u64,
    block_device: bool,
    logical_block_bytes: u32,
    read_only: bool,
    flush_failed: AtomicBool,
    /// Made when a flush fails.
    failure_note: Mutex<Option<PathBuf>>,
    syncing: Mutex<()>,
}

impl FileStore {
    /// Opens and locks the file: shared for reading, exclusive for writing.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied`, `InvalidInput` for what is no regular file or block device
    /// or is empty, `Busy` when somebody else holds its lock.
    pub fn open(path: &Path, options: FileOptions) -> Result<Self> {
        let name = path.display();
        let file = OpenOptions::new()
            .read(true)
            .write(!options.read_only)
            .custom_flags(libc::O_CLOEXEC)
            .open(path)
            .context_io(|| format!("cannot open {name}"))?;
        let kind = file
            .metadata()
            .context_io(|| format!("cannot examine {name}"))?
            .file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let what = if kind.is_dir() {
                "a directory"
            } else {
                "a special file"
            };
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("{name} is {what}; a regular file or a block device is needed"),
            ));
        }
        let len_bytes = len_of(&file).context_io(|| format!("cannot find the size of {name}"))?;
        if len_bytes == 0 {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "{name} is empty; give it a size first, for example: truncate -s 1G {name}"
                ),
            ));
        }
        Self::from_locked(lock(file, path, options)?, path, options)
    }

    /// A store of a file that is open and locked already: a regular file or a block device.
    ///
    /// # Errors
    /// What the operating system reports about the file.
    pub(super) fn from_locked(
        file: Flock<File>,
        path: &Path,
        options: FileOptions,
    ) -> Result<Self> {
        let name = path.display();
        let len_bytes = len_of(&file).context_io(|| format!("cannot find the size of {name}"))?;
        let metadata = file
            .metadata()
            .context_io(|| format!("cannot examine {name}"))?;
        let kind = metadata.file_type();
        let logical_block_bytes = if kind.is_block_device() {
            direct_io::logical_block_bytes(&file)
                .context_io(|| format!("cannot find the block size of {name}"))?
        } else {
            512
        };
        if let Some(alignment_bytes) = options.direct_alignment_bytes {
            let alignment_bytes = alignment_bytes.max(logical_block_bytes);
            if len_bytes % u64::from(alignment_bytes) == 0 {
                direct_io::switch_on(&file, path, alignment_bytes);
            }
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            len_bytes,
            block_device: kind.is_block_device(),
            logical_block_bytes,
            read_only: options.read_only,
            flush_failed: AtomicBool::new(false),
            failure_note: Mutex::new(None),
            syncing: Mutex::new(()),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The numbers of its device and of its inode, which tell it from other files.
    pub(super) fn numbers(&self) -> io::Result<[u64; 2]> {
        let metadata = self.file.metadata()?;
        Ok([metadata.dev(), metadata.ino()])
    }

    /// Whether the file is still at its path, and as long as it was when it was opened.
    ///
    /// # Errors
    /// `Foreign`, with what has become of it.
    pub fn check_in_place(&self) -> Result<()> {
        let context = || format!("cannot examine {}", self.path.display());
        let here = self.file.metadata().context_io(context)?;
        let there = match std::fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            there => Some(there.context_io(context)?),
        };
        let what = match there {
            None => "was removed or renamed while it was in use",
            Some(there) if (there.dev(), there.ino()) != (here.dev(), here.ino()) => {
                "is another file than the one in use"
            }
            Some(_) if self.block_device || here.len() == self.len_bytes => return Ok(()),
            Some(_) => "has another length than when it was opened",
        };
        let path = self.path.display();
        Err(Error::new(ErrorKind::Foreign, format!("{path} {what}")))
    }

    /// How long it is.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// The smallest unit it addresses: a block device's own, else 512.
    pub fn logical_block_bytes(&self) -> u32 {
        self.logical_block_bytes
    }

    /// Whether it is a block device.
    pub fn is_block_device(&self) -> bool {
        self.block_device
    }

    /// Whether an earlier flush failed. From then on no flush succeeds, since the kernel has
    /// dropped the error together with the bytes.
    pub fn flush_failed(&self) -> bool {
        self.flush_failed.load(Ordering::Relaxed)
    }

    /// Has an empty file made when a flush fails: a note for whoever opens the store after us.
    pub(super) fn leave_note_of_failure(&self, path: PathBuf) {
        *self.note() = Some(path);
    }

    fn note(&self) -> MutexGuard<'_, Option<PathBuf>> {
        let note = self.failure_note.lock();
        note.unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a flush failed.
    pub fn note_flush_failure(&self, error: &io::Error) {
        if self.flush_failed.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::error!(
            path = %self.path.display(), %error,
            "flush failed: what was written since the last flush may be lost; \
             every further flush fails until the file is opened again and checked"
        );
        if let Some(note) = &*self.note()
            && let Err(error) = std::fs::write(note, b"")
        {
            tracing::error!(
                path = %note.display(), %error,
                "cannot note that; do not open the store again before the machine was restarted"
            );
        }
    }

    /// The descriptor, for I/O on a ring.
    pub fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// The file opened once more, to sync by: the kernel reports a failure to write back once for
    /// each open file description.
    pub(super) fn open_for_syncs(&self) -> io::Result<File> {
        File::open(format!("/proc/self/fd/{}", self.raw_fd()))
    }

    /// What tells it from another file.
    ///
    /// # Errors
    /// Whatever the operating system reports.
    pub fn mark(&self) -> io::Result<FileMark> {
        FileMark::of(&self.file)
    }

    /// Makes everything durable, the time of modification too, and marks the file as it is then.
    ///
    /// # Errors
    /// Whatever the operating system reports, and EIO after a flush that failed.
    pub fn mark_at_rest(&self) -> io::Result<FileMark> {
        self.sync()?;
        self.file.sync_all()?;
        self.mark()
    }

    /// One at a time: the kernel reports a failure to one of those who wait for it.
    fn sync(&self) -> io::Result<()> {
        let _turn = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.flush_failed() {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.file
            .sync_data()
            .inspect_err(|error| self.note_flush_failure(error))
    }

    fn punch(&self, flags: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
        let flags = flags | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&*self.file, flags, offset as i64, len as i64).map_err(io::Error::from)
    }
}

/// Locks an open file: shared for reading, exclusive for writing.
///
/// # Errors
/// `Busy` when somebody else holds the lock for as long as the options have patience.
pub(super) fn lock(mut file: File, path: &Path, options: FileOptions) -> Result<Flock<File>> {
    let how = if options.read_only {
        FlockArg::LockSharedNonblock
    } else {
        FlockArg::LockExclusiveNonblock
    };
    let deadline = Instant::now() + options.lock_patience;
    let mut told = false;
    loop {
        let errno = match Flock::lock(file, how) {
            Ok(locked) => return Ok(locked),
            Err((unlocked, errno)) => {
                file = unlocked;
                errno
            }
        };
        let name = path.display();
        if errno != nix::errno::Errno::EWOULDBLOCK {
            return Err(Error::io(format!("cannot lock {name}"), errno));
        }
        if Instant::now() >= deadline {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("{name} is in use: another process serves or mounts it; stop that first"),
            ));
        }
        if !std::mem::replace(&mut told, true) {
            tracing::info!(path = %name, "waiting for its lock");
        }
        std::thread::sleep(LOCK_POLL);
    }
}

fn len_of(file: &File) -> io::Result<u64> {
    use std::io::{Seek, SeekFrom};
    // A block device's metadata says 0; its end says how long it is.
    let mut file = file;
    file.seek(SeekFrom::End(0))
}

impl Backend for FileStore {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len_bytes)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.sync()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.punch(FallocateFlags::FALLOC_FL_PUNCH_HOLE, offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, no_unmap: bool) -> io::Result<()> {
        let first = if no_unmap {
            FallocateFlags::FALLOC_FL_ZERO_RANGE
        } else {
            FallocateFlags::FALLOC_FL_PUNCH_HOLE
        };
        match self.punch(first, offset, len) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                super::backend::write_zeroes_by_writing(self, offset, len)
            }
            other => other,
        }
    }

    fn allocated(&self, range: Range<u64>) -> io::Result<Vec<Extent>> {
        if self.block_device {
            return Ok(vec![Extent { range, data: true }]);
        }
        data_and_holes(self.raw_fd(), range)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            read_only: self.read_only,
            logical_block_bytes: self.logical_block_bytes,
            // As many as a queue of the usual depth holds.
            max_concurrency: 128,
            sparse_map: !self.block_device,
            discard: true,
            ..Capabilities::default()
        }
    }
}

impl FileStore {
    /// Where the first data from `offset` on is that takes space; `None`: there is none.
    ///
    /// # Errors
    /// What the operating system reports.
    pub fn first_data(&self, offset: u64) -> io::Result<Option<u64>> {
        match self.block_device {
            true => Ok(Some(offset)),
            false => seek(self.raw_fd(), offset, libc::SEEK_DATA),
        }
    }
}

/// Asks the file system where the data is (`SEEK_DATA`, `SEEK_HOLE`).
fn data_and_holes(fd: RawFd, range: Range<u64>) -> io::Result<Vec<Extent>> {
    let mut extents = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let data = seek(fd, at, libc::SEEK_DATA)?.map_or(range.end, |at| at.min(range.end));
        if data > at {
            extents.push(Extent {
                range: at..data,
                data: false,
            });
            at = data;
            continue;
        }
        let hole = seek(fd, at, libc::SEEK_HOLE)?.map_or(range.end, |at| at.min(range.end));
        if hole == at {
            // It was punched since it was found to be data.
            continue;
        }
        extents.push(Extent {
            range: at..hole,
            data: true,
        });
        at = hole;
    }
    Ok(extents)
}

/// `None`: nothing of that kind from there to the end of the file.
fn seek(fd: RawFd, offset: u64, whence: i32) -> io::Result<Option<u64>> {
    // SAFETY: no memory is involved.
    let at = unsafe { libc::lseek(fd, offset as libc::off_t, whence) };
    if at >= 0 {
        return Ok(Some(at as u64));
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_of(len: u64) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("disk.img");
        File::create(&path)
            .expect("made")
            .set_len(len)
            .expect("sized");
        (dir, path)
    }

    #[test]
    fn two_writers_of_one_file_do_not_meet() {
        let (_dir, path) = file_of(4096);
        let _first = FileStore::open(&path, FileOptions::default()).expect("first");
        let error = FileStore::open(&path, FileOptions::default()).expect_err("second");
        assert_eq!(error.kind(), ErrorKind::Busy);
        let reader = FileOptions {
            read_only: true,
            ..FileOptions::default()
        };
        assert_eq!(
            FileStore::open(&path, reader).expect_err("reader").kind(),
            ErrorKind::Busy
        );
    }

    #[test]
    fn a_lock_that_becomes_free_in_time_is_taken() {
        let (_dir, path) = file_of(4096);
        let first = FileStore::open(&path, FileOptions::default()).expect("first");
        let patient = FileOptions {
            lock_patience: Duration::from_secs(60),
            ..FileOptions::default()
        };
        std::thread::scope(|scope| {
            let second = scope.spawn(|| FileStore::open(&path, patient).map(drop));
            drop(first);
            second.join().expect("joined").expect("its turn came");
        });
        let hurried = FileOptions {
            lock_patience: Duration::from_millis(20),
            ..FileOptions::default()
        };
        let _holder = FileStore::open(&path, FileOptions::default()).expect("free again");
        let error = FileStore::open(&path, hurried).expect_err("held for longer");
        assert_eq!(error.kind(), ErrorKind::Busy);
    }

    #[test]
    fn what_makes_no_volume_is_refused_by_name() {
        let (dir, path) = file_of(0);
        for (what, word) in [
            (path.as_path(), "empty"),
            (dir.path(), "directory"),
            (Path::new("/dev/null"), "special"),
        ] {
            let options = FileOptions {
                read_only: true,
                ..FileOptions::default()
            };
            let error = FileStore::open(what, options).expect_err(word);
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn holes_are_found_and_punched_holes_read_as_zeros() {
        let (_dir, path) = file_of(1 << 20);
        let store = FileStore::open(&path, FileOptions::default()).expect("open");
        store.write_at(&[7; 128 << 10], 256 << 10).expect("written");
        store.discard(256 << 10, 64 << 10).expect("punched");
        let extents = store.allocated(0..1 << 20).expect("mapped");
        assert_eq!(extents.first().map(|e| e.range.start), Some(0));
        assert_eq!(extents.last().map(|e| e.range.end), Some(1 << 20));
        for pair in extents.windows(2) {
            assert_eq!(pair[0].range.end, pair[1].range.start);
        }
        let data: u64 = extents
            .iter()
            .filter(|e| e.data)
            .map(|e| e.range.end - e.range.start)
            .sum();
        assert_eq!(data, 64 << 10);
        let mut buf = vec![1; 64 << 10];
        assert_eq!(store.read_at(&mut buf, 256 << 10).expect("read"), 64 << 10);
        assert!(buf.iter().all(|byte| *byte == 0));
    }
}
