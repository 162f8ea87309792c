//! Freezes a file system for as long as its volume is held, so that all that it has cached moves with it.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use crate::{Context, Error, ErrorKind, Result};

/// `include/uapi/linux/fs.h`
mod request {
    nix::ioctl_readwrite!(fifreeze, b'X', 119, nix::libc::c_int);
    nix::ioctl_readwrite!(fithaw, b'X', 120, nix::libc::c_int);
}

/// A mounted file system.
#[derive(Debug)]
pub struct Freeze {
    root: File,
    path: PathBuf,
}

impl Freeze {
    /// That which is mounted at `path`.
    ///
    /// # Errors
    /// When there is no folder, or it cannot be opened.
    pub fn of(path: &Path) -> Result<Self> {
        let cannot = || format!("cannot open {}, to freeze it", path.display());
        let root = File::open(path).context_io(cannot)?;
        if !root.metadata().context_io(cannot)?.is_dir() {
            let what = format!("{} is no folder that is mounted", path.display());
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        Ok(Self {
            root,
            path: path.to_owned(),
        })
    }

    /// Writes all that is cached, and lets nobody write until it is thawed.
    ///
    /// # Errors
    /// What the file system says: not all can be frozen.
    pub fn freeze(&self) -> Result<()> {
        let mut unused = 0;
        // SAFETY: the descriptor is open, and the kernel does not look at the argument.
        unsafe { request::fifreeze(self.root.as_raw_fd(), &raw mut unused) }
            .map(drop)
            .context_io(|| format!("cannot freeze {}", self.path.display()))
    }

    /// Lets everybody write again. That it was not frozen is no error.
    ///
    /// # Errors
    /// What the file system says.
    pub fn thaw(&self) -> Result<()> {
        let mut unused = 0;
        // SAFETY: as above.
        match unsafe { request::fithaw(self.root.as_raw_fd(), &raw mut unused) } {
            Ok(_) | Err(nix::errno::Errno::EINVAL) => Ok(()),
            Err(errno) => Err(Error::io(
                format!("cannot thaw {}", self.path.display()),
                errno,
            )),
        }
    }
}
