//! A name, held by this process for as long as its device runs.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::name::Name;
use super::state::Running;
use super::{directory, recovery};
use crate::device::DeviceRecord;
use crate::{Context, Error, ErrorKind, Result};

const LOCK: &str = "lock";

/// How many numbers are tried after a name that is taken.
const NUMBERS_MAX: u32 = 1000;

/// How often a directory that vanishes while it is being taken is made again.
const ATTEMPTS_MAX: u32 = 100;

/// A name that this process holds. Dropping it gives the name up, and removes its directory unless
/// there is the record of a device in it.
#[derive(Debug)]
pub struct Claim {
    name: Name,
    directory: PathBuf,
    /// Leave the directory as it is when the claim ends.
    keep: bool,
    _lock: File,
}

/// What came of an attempt to take a name.
enum Taken {
    /// Nobody held it; now we do.
    Held(Claim),
    /// A process holds it.
    Alive,
}

impl Claim {
    /// Takes `name`, or a free one that follows from `resource` (`disk`, `disk-2`, ...).
    ///
    /// # Errors
    /// `Busy` where a device runs under it, or where a dead
    /// process left one: the error says how to clean it.
    pub fn take(name: Option<&Name>, resource: &str) -> Result<Self> {
        Self::take_in(&directory::run_directory(), name, resource)
    }

    /// The same in a run-time directory that the caller chose.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn take_in(root: &Path, name: Option<&Name>, resource: &str) -> Result<Self> {
        match name {
            Some(name) => Self::take_named(root, name),
            None => Self::take_free(root, &Name::suggested_by(resource)),
        }
    }

    fn take_named(root: &Path, name: &Name) -> Result<Self> {
        match Self::try_take(root, name)? {
            Taken::Alive => Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "a device named `{name}` is running; choose another name, or end it with \
                     `blockferry stop {name}`"
                ),
            )),
            Taken::Held(claim) if claim.is_left_over() => Err(claim.dead()),
            Taken::Held(claim) => Ok(claim),
        }
    }

    fn take_free(root: &Path, suggestion: &Name) -> Result<Self> {
        let numbered = (2..=NUMBERS_MAX).map(|number| suggestion.numbered(number));
        for name in std::iter::once(suggestion.clone()).chain(numbered) {
            match Self::try_take(root, &name)? {
                Taken::Held(claim) if claim.is_left_over() => claim.leave(),
                Taken::Held(claim) => return Ok(claim),
                Taken::Alive => {}
            }
        }
        Err(Error::new(
            ErrorKind::Busy,
            format!("{NUMBERS_MAX} devices named `{suggestion}` are running; give a `--name`"),
        ))
    }

    /// Whether a process holds `name`; `None` where there is no such directory.
    pub(super) fn is_held(root: &Path, name: &Name) -> Option<bool> {
        let directory = root.join(name.as_str());
        match File::open(directory.join(LOCK)) {
            Ok(file) => Some(is_locked(&file)),
            Err(_) => directory.is_dir().then_some(false),
        }
    }

    /// Takes a name under which a process died; `None` where there is nothing any more.
    pub(super) fn take_dead(root: &Path, name: &Name) -> Result<Option<Self>> {
        if !root.join(name.as_str()).is_dir() {
            return Ok(None);
        }
        match Self::try_take(root, name)? {
            Taken::Held(claim) => Ok(Some(claim)),
            Taken::Alive => Err(Error::new(
                ErrorKind::Busy,
                format!("another process has just taken `{name}`"),
            )),
        }
    }

    /// Takes the lock under a name, whatever else is there.
    fn try_take(root: &Path, name: &Name) -> Result<Taken> {
        directory::make(root)?;
        let directory = root.join(name.as_str());
        for _ in 0..ATTEMPTS_MAX {
            match fs::create_dir(&directory) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other.context_io(|| format!("cannot make {}", directory.display()))?,
            }
            // The last holder may remove the directory at any point: then start again.
            match lock(&directory) {
                Ok(Some(lock)) if is_in_place(&lock, &directory) => {
                    return Ok(Taken::Held(Self {
                        name: name.clone(),
                        directory,
                        keep: false,
                        _lock: lock,
                    }));
                }
                Ok(None) => return Ok(Taken::Alive),
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io(
                        format!("cannot lock {}", directory.display()),
                        error,
                    ));
                }
                Ok(Some(_)) | Err(_) => {}
            }
        }
        Err(Error::new(
            ErrorKind::Busy,
            format!("{} comes and goes; try again", directory.display()),
        ))
    }

    /// The name that is held.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The directory of this device's run-time state.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Says what runs here, once the device is ready.
    ///
    /// # Errors
    /// When the state file cannot be written.
    pub fn publish(&self, running: &Running) -> Result<()> {
        running.save(&self.directory)
    }

    /// Removes everything that a dead process left in the directory.
    pub(super) fn empty(&self) -> Result<()> {
        DeviceRecord::forget(&self.directory)?;
        remove_all(&self.directory);
        Ok(())
    }

    /// Whether a process died here: only then is there anything beside the lock.
    fn is_left_over(&self) -> bool {
        !matches!(Running::load(&self.directory), Ok(None))
            || !matches!(DeviceRecord::load(&self.directory), Ok(None))
    }

    /// The error for a name under which a process died; keeps what it left.
    fn dead(self) -> Error {
        let name = self.name.clone();
        let (force, or_recover) = match recovery::is_recoverable(&self.directory) {
            true => (
                " --force",
                format!(", or take it over with `blockferry recover {name}`"),
            ),
            false => ("", String::new()),
        };
        self.leave();
        Error::new(
            ErrorKind::Busy,
            format!(
                "the process of the device `{name}` died and left it behind; clean it with \
                 `blockferry stop {name}{force}`{or_recover}"
            ),
        )
    }

    /// Gives the lock up without removing anything.
    pub(super) fn leave(mut self) {
        self.keep = true;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // A device that could not be removed is not forgotten: it is listed as dead then.
        if !self.keep && matches!(DeviceRecord::load(&self.directory), Ok(None)) {
            clear(&self.directory);
        }
    }
}

/// The lock file of a directory, locked; `None` where another process holds it.
///
/// The lock belongs to the open file, like that of `flock`, so that it ends with the process;
/// unlike that, it can be looked at without being taken.
fn lock(directory: &Path) -> io::Result<Option<File>> {
    let file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(directory.join(LOCK))?;
    match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file())) {
        Ok(_) => Ok(Some(file)),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn is_locked(file: &File) -> bool {
    let mut found = whole_file();
    match fcntl(file, FcntlArg::F_OFD_GETLK(&mut found)) {
        Ok(_) => i32::from(found.l_type) != libc::F_UNLCK,
        // Better to take a dead process for a living one than the other way.
        Err(_) => true,
    }
}

fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Whether the lock that we hold is the one that others would find.
fn is_in_place(lock: &File, directory: &Path) -> bool {
    let held = lock.metadata().map(|m| (m.dev(), m.ino()));
    let found = fs::metadata(directory.join(LOCK)).map(|m| (m.dev(), m.ino()));
    matches!((held, found), (Ok(held), Ok(found)) if held == found)
}

/// Removes what is in the directory, the lock last, and the directory. Goes no deeper: a folder
/// that is not empty, or has something mounted on it, stays.
fn clear(directory: &Path) {
    remove_all(directory);
    let _ = fs::remove_file(directory.join(LOCK));
    if let Err(error) = fs::remove_dir(directory) {
        tracing::warn!(%error, path = %directory.display(), "cannot remove run-time state");
    }
}

/// Removes what is in the directory but the lock.
fn remove_all(directory: &Path) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name() != LOCK) {
        let path = entry.path();
        let removed = match entry.file_type() {
            Ok(kind) if kind.is_dir() => fs::remove_dir(&path),
            _ => fs::remove_file(&path),
        };
        if let Err(error) = removed {
            tracing::warn!(%error, path = %path.display(), "cannot remove run-time state");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::UblkRecord;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    fn name(text: &str) -> Name {
        text.parse().expect("legal")
    }

    fn device() -> DeviceRecord {
        DeviceRecord::Ublk(UblkRecord {
            id: 4_000_000_000,
            mark: 0,
            recovery: None,
        })
    }

    fn leave_dead(root: &Path, text: &str) {
        let claim = Claim::take_named(root, &name(text)).expect("free");
        let record = device();
        record.save(claim.directory()).expect("written");
        claim.leave();
    }

    #[test]
    fn of_many_who_want_a_name_one_gets_it() {
        const THREADS: usize = 8;
        const ROUNDS: usize = 100;
        let root = tempfile::tempdir().expect("directory");
        let (holding, won) = (AtomicU32::new(0), AtomicU32::new(0));
        let barrier = Barrier::new(THREADS);
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        barrier.wait();
                        match Claim::take_named(root.path(), &name("disk")) {
                            Ok(claim) => {
                                assert_eq!(holding.fetch_add(1, Ordering::SeqCst), 0);
                                won.fetch_add(1, Ordering::SeqCst);
                                // Others may see the directory vanish while they try.
                                thread::yield_now();
                                assert!(claim.directory().join(LOCK).exists());
                                holding.fetch_sub(1, Ordering::SeqCst);
                            }
                            Err(error) => assert_eq!(error.kind(), ErrorKind::Busy, "{error}"),
                        }
                    }
                });
            }
        });
        assert!(won.load(Ordering::SeqCst) >= ROUNDS as u32);
        assert_eq!(fs::read_dir(root.path()).expect("readable").count(), 0);
    }

    #[test]
    fn without_a_name_the_next_free_one_is_taken() {
        let root = tempfile::tempdir().expect("directory");
        let take = || Claim::take_in(root.path(), None, "file:/srv/disk.img").expect("free");
        let first = take();
        let second = take();
        assert_eq!(first.name().as_str(), "disk");
        assert_eq!(second.name().as_str(), "disk-2");
        drop(first);
        assert_eq!(take().name().as_str(), "disk");
    }

    #[test]
    fn looking_at_a_name_does_not_take_it() {
        let root = tempfile::tempdir().expect("directory");
        let disk = name("disk");
        assert_eq!(Claim::is_held(root.path(), &disk), None);
        let claim = Claim::take_named(root.path(), &disk).expect("free");
        assert_eq!(Claim::is_held(root.path(), &disk), Some(true));
        assert_eq!(Claim::is_held(root.path(), &disk), Some(true));
        claim.leave();
        assert_eq!(Claim::is_held(root.path(), &disk), Some(false));
    }

    #[test]
    fn what_a_dead_process_left_is_neither_taken_nor_lost() {
        let root = tempfile::tempdir().expect("directory");
        leave_dead(root.path(), "disk");
        let error = Claim::take_named(root.path(), &name("disk")).expect_err("left over");
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(
            error.to_string().contains("`blockferry stop disk`"),
            "{error}"
        );
        let other = Claim::take_in(root.path(), None, "file:/disk").expect("free");
        assert_eq!(other.name().as_str(), "disk-2");
        let kept = DeviceRecord::load(&root.path().join("disk")).expect("readable");
        assert_eq!(kept, Some(device()));
    }

    #[test]
    fn a_process_that_died_before_it_had_a_device_leaves_the_name_free() {
        let root = tempfile::tempdir().expect("directory");
        Claim::take_named(root.path(), &name("disk"))
            .expect("free")
            .leave();
        assert!(Claim::take_named(root.path(), &name("disk")).is_ok());
    }

    #[test]
    fn a_directory_that_others_could_have_prepared_is_refused() {
        let place = tempfile::tempdir().expect("directory");
        let open = place.path().join("open");
        fs::create_dir(&open).expect("made");
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).expect("set");
        let linked = place.path().join("linked");
        let target = place.path().join("target");
        fs::create_dir(&target).expect("made");
        std::os::unix::fs::symlink(&target, &linked).expect("made");
        for root in [open, linked] {
            let error = Claim::take_named(&root, &name("disk")).expect_err("unsafe");
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        }
    }

    #[test]
    fn a_device_that_could_not_be_removed_is_not_forgotten() {
        let root = tempfile::tempdir().expect("directory");
        let claim = Claim::take_named(root.path(), &name("disk")).expect("free");
        let record = device();
        record.save(claim.directory()).expect("written");
        drop(claim);
        assert_eq!(Claim::is_held(root.path(), &name("disk")), Some(false));
        let directory = root.path().join("disk");
        assert_eq!(
            DeviceRecord::load(&directory).expect("readable"),
            Some(record)
        );
        DeviceRecord::forget(&directory).expect("removed");
        drop(Claim::take_named(root.path(), &name("disk")).expect("free"));
        assert!(!directory.exists());
    }

    #[test]
    fn giving_a_name_up_never_reaches_into_what_is_mounted_there() {
        let root = tempfile::tempdir().expect("directory");
        let claim = Claim::take_named(root.path(), &name("disk")).expect("free");
        let inside = claim.directory().join("mnt/disk");
        fs::create_dir(claim.directory().join("mnt")).expect("made");
        fs::write(&inside, "precious").expect("written");
        drop(claim);
        assert_eq!(fs::read(&inside).expect("still there"), b"precious");
    }
}
