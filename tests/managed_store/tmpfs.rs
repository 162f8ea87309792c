//! File systems that are soon full, or fail.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

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

/// An ext4 on a file of a tmpfs that has less room: once that is full, its writes fail with EIO.
pub(crate) struct FailingDisk {
    pub(crate) path: PathBuf,
    // Below it.
    pub(crate) tmpfs: Tmpfs,
}

impl FailingDisk {
    /// `None`, after it said why, where it cannot be made.
    pub(crate) fn new() -> Option<Self> {
        Self::with_blocks_of(4096)
    }

    /// The same with another block of the file system.
    pub(crate) fn with_blocks_of(bytes: u32) -> Option<Self> {
        let tmpfs = Tmpfs::new(32 << 20)?;
        let image = tmpfs.path.join("image");
        let file = fs::File::create(&image).expect("made");
        file.set_len(256 << 20).expect("sized");
        let size = bytes.to_string();
        let options = ["-q".as_ref(), "-F".as_ref(), "-b".as_ref(), size.as_ref()];
        let made = run("mkfs.ext4", &[&options[..], &[image.as_ref()]].concat());
        Self::mounted(tmpfs, made)
    }

    /// The disk as the machine would find it if its power were cut now.
    pub(crate) fn after_a_power_cut(&self) -> Option<Self> {
        let tmpfs = Tmpfs::new(32 << 20)?;
        let (from, to) = (self.tmpfs.path.join("image"), tmpfs.path.join("image"));
        let copied = run(
            "cp",
            &["--sparse=always".as_ref(), from.as_ref(), to.as_ref()],
        );
        Self::mounted(tmpfs, copied)
    }

    fn mounted(tmpfs: Tmpfs, made: Result<(), String>) -> Option<Self> {
        let (image, path) = (tmpfs.path.join("image"), tmpfs.path.join("disk"));
        fs::create_dir(&path).expect("made");
        let mounted =
            made.and_then(|()| run("mount", &["-oloop".as_ref(), image.as_ref(), path.as_ref()]));
        match mounted {
            Ok(()) => Some(Self { path, tmpfs }),
            Err(why) => {
                eprintln!("skipped: no file system can be made on a file here: {why}");
                None
            }
        }
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}

fn run(program: &str, arguments: &[&OsStr]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

pub(crate) struct Ballast(PathBuf);

impl Drop for Ballast {
    fn drop(&mut self) {
        fs::remove_file(&self.0).expect("removed");
    }
}
