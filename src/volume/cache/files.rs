//! What a cache asks of its files, behind traits, so that tests can record and lose what was written.

use std::fmt;
use std::fs::{File, FileType, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::volume::{Backend, FileStore};

/// A file of a cache.
pub(super) trait StoreFile: fmt::Debug + Send + Sync {
    /// How long it is.
    fn len_bytes(&self) -> io::Result<u64>;

    /// Fills `buf` from `offset`; says how much of it, less than all only at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Fills `buf` from `offset`; `UnexpectedEof` if the file is too short.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if self.read_at(buf, offset)? == buf.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    /// Writes all of `buf` at `offset`.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Makes everything that was written before durable, the length of the file included.
    fn sync_data(&self) -> io::Result<()>;

    /// Whether a sync has failed, here or elsewhere: then no later one succeeds.
    fn has_sync_failed(&self) -> bool {
        false
    }

    /// Gives the space of the range back; it reads as zeros.
    fn punch(&self, offset: u64, len_bytes: u64) -> io::Result<()>;

    /// Cuts the file, or extends it with a hole.
    fn set_len(&self, len_bytes: u64) -> io::Result<()>;

    /// Lets go of what memory holds of the file, so that it is read from the disk again.
    fn forget_cached(&self) -> io::Result<()>;
}

/// The directory that the files of a cache are in. Names are plain file names.
pub(super) trait StoreDirectory: fmt::Debug + Send + Sync {
    /// Opens a file that is there.
    fn open(&self, name: &str) -> io::Result<Arc<dyn StoreFile>>;

    /// Makes an empty file, in place of one that is there.
    fn create(&self, name: &str) -> io::Result<Arc<dyn StoreFile>>;

    /// Gives a file another name, in place of one that has it.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file. It is no error if it is not there.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// What tells a file from the one of its name in a copy of the directory: the numbers of its
    /// device and of its inode.
    fn file_numbers(&self, name: &str) -> io::Result<[u64; 2]>;

    /// The names of everything in it.
    fn names(&self) -> io::Result<Vec<String>>;

    /// Makes what was created, renamed and removed durable.
    fn sync(&self) -> io::Result<()>;
}

/// A file as the operating system has it.
#[derive(Debug)]
pub(super) struct OsFile(pub(super) File);

impl StoreFile for OsFile {
    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.0.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn punch(&self, offset: u64, len_bytes: u64) -> io::Result<()> {
        use nix::fcntl::{FallocateFlags, fallocate};
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&self.0, flags, offset as i64, len_bytes as i64).map_err(io::Error::from)
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.0.set_len(len_bytes)
    }

    fn forget_cached(&self) -> io::Result<()> {
        use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
        posix_fadvise(&self.0, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
            .map_err(io::Error::from)
    }
}

/// `data`, through the store whose descriptor the rings use as well, and its sticky flush error.
#[derive(Debug)]
pub(super) struct DataFile(pub(super) Arc<FileStore>);

impl StoreFile for DataFile {
    fn len_bytes(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        Backend::read_at(&*self.0, buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        Backend::write_at(&*self.0, buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.flush()
    }

    fn has_sync_failed(&self) -> bool {
        self.0.flush_failed()
    }

    fn punch(&self, offset: u64, len_bytes: u64) -> io::Result<()> {
        self.0.discard(offset, len_bytes)
    }

    fn set_len(&self, _len_bytes: u64) -> io::Result<()> {
        // A store that is in use keeps its size.
        Err(io::ErrorKind::Unsupported.into())
    }

    fn forget_cached(&self) -> io::Result<()> {
        // SAFETY: no memory is involved, and the store keeps its descriptor open.
        let code = unsafe { libc::posix_fadvise(self.0.raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        if code == 0 {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(code))
        }
    }
}

/// A directory as the operating system has it.
#[derive(Debug)]
pub(super) struct OsDirectory {
    path: PathBuf,
}

impl OsDirectory {
    /// Makes the directory, durably and for its owner alone, unless it is there; and those above it.
    pub(super) fn make(path: &Path) -> io::Result<Self> {
        make_durable(path)?;
        Ok(Self::at(path))
    }

    /// A directory that is there.
    pub(super) fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Opens a file for reading and writing. Never through a link, nor anything but a plain file.
    pub(super) fn open_file(&self, name: &str, create: bool) -> io::Result<File> {
        let path = self.path.join(name);
        match std::fs::symlink_metadata(&path).map(|found| kind_of(found.file_type())) {
            Ok(Some(kind)) => {
                return Err(io::Error::other(format!(
                    "it is {kind}, where a cache has a plain file: name another directory, or move it away"
                )));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
            .open(path)
    }
}

/// What is no plain file.
fn kind_of(found: FileType) -> Option<&'static str> {
    let kinds = [
        (found.is_dir(), "a directory"),
        (found.is_symlink(), "a symbolic link"),
        (found.is_fifo(), "a FIFO"),
        (found.is_socket(), "a socket"),
        (!found.is_file(), "a device"),
    ];
    let kind = kinds.into_iter().find(|(is_it, _)| *is_it);
    kind.map(|(_, name)| name)
}

/// Makes a directory with those above it. A flush says little if the power cut takes the folder with it.
fn make_durable(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let above = match path.parent() {
        Some(above) if above == Path::new("") => Path::new("."),
        Some(above) => above,
        None => path,
    };
    if above != path {
        make_durable(above)?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        // Somebody else was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        other => other?,
    }
    File::open(above)?.sync_all()
}

impl StoreDirectory for OsDirectory {
    fn open(&self, name: &str) -> io::Result<Arc<dyn StoreFile>> {
        Ok(Arc::new(OsFile(self.open_file(name, false)?)))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn StoreFile>> {
        let file = self.open_file(name, true)?;
        file.set_len(0)?;
        Ok(Arc::new(OsFile(file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn file_numbers(&self, name: &str) -> io::Result<[u64; 2]> {
        let metadata = std::fs::symlink_metadata(self.path.join(name))?;
        Ok([metadata.dev(), metadata.ino()])
    }

    fn names(&self) -> io::Result<Vec<String>> {
        std::fs::read_dir(&self.path)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}
