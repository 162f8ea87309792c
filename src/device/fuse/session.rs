//! The FUSE mount and the threads that talk to the kernel.

use std::io;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fuser::{Config, MountOption, SessionACL, SessionUnmounter};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::FS_NAME;
use super::filesystem::OneFile;
use super::mounts::mounted_at;
use crate::device::choice;
use crate::{Error, ErrorKind, Result};

/// How long the kernel may need to let go of a file that has just been closed. After that somebody
/// else must have it open.
const CLOSE_WAIT: Duration = Duration::from_millis(500);

/// How often unmounting is tried, at most.
const UNMOUNT_TRIES_MAX: usize = 10_000;

/// How long the threads may need to end once the file system is gone.
const END_WAIT: Duration = Duration::from_secs(10);

/// How often something that is about to happen is looked at.
const POLL: Duration = Duration::from_millis(1);

/// A mounted file system that is being served.
pub(super) struct Session {
    mount_point: PathBuf,
    /// The number of the connection to the kernel.
    connection: Option<u32>,
    unmounter: SessionUnmounter,
    thread: Option<JoinHandle<()>>,
}

impl Session {
    /// Mounts `filesystem` at `mount_point` and serves it with `threads` threads.
    ///
    /// `ended` is called, with the reason, when serving ends, whoever ended it.
    pub(super) fn start(
        filesystem: OneFile,
        mount_point: &Path,
        threads: usize,
        read_only: bool,
        ended: impl FnOnce(String) + Send + 'static,
    ) -> Result<Self> {
        check_fuse()?;
        let mut config = Config::default();
        config.acl = SessionACL::Owner;
        config.n_threads = Some(threads);
        config.clone_fd = threads > 1;
        config.mount_options = vec![
            MountOption::FSName(FS_NAME.into()),
            MountOption::DefaultPermissions,
            MountOption::NoAtime,
            MountOption::NoExec,
            if read_only {
                MountOption::RO
            } else {
                MountOption::RW
            },
        ];
        let mut session = fuser::Session::new(filesystem, mount_point, &config)
            .map_err(|error| mount_failed(mount_point, error))?;
        let connection = mounted_at(mount_point)?.map(|mount| mount.minor);
        let unmounter = session.unmount_callable();
        let name = mount_point.display().to_string();
        let thread = std::thread::Builder::new()
            .name("fuse-session".into())
            .spawn(move || {
                // The threads that serve are started by this one and inherit it.
                crate::device::become_io_flusher();
                ended(match session.run() {
                    Ok(()) => format!("the file system at {name} was unmounted"),
                    Err(error) => format!("serving the file system at {name} failed: {error}"),
                });
            })
            .map_err(|error| Error::io("cannot start a thread", error))?;
        Ok(Self {
            mount_point: mount_point.to_owned(),
            connection,
            unmounter,
            thread: Some(thread),
        })
    }

    /// Unmounts the file system and waits for its threads. Whoever still holds the file open loses
    /// it, and what they ask for from then on fails.
    ///
    /// # Errors
    /// When the kernel does not let go of it.
    pub(super) fn stop(&mut self) -> Result<()> {
        let patience = Instant::now() + CLOSE_WAIT;
        for _ in 0..UNMOUNT_TRIES_MAX {
            if !mounted_at(&self.mount_point)?.is_some_and(|mount| mount.is_fuse()) {
                self.end_threads();
                return Ok(());
            }
            match self.unmount(Instant::now() >= patience) {
                // `EINVAL`: somebody else was faster.
                Ok(()) | Err(Errno::EINVAL | Errno::EBUSY) => std::thread::sleep(POLL),
                Err(errno) => {
                    return Err(Error::io(
                        format!("cannot unmount {}", self.mount_point.display()),
                        errno,
                    ));
                }
            }
        }
        Err(Error::new(
            ErrorKind::Busy,
            format!("{} stays mounted", self.mount_point.display()),
        ))
    }

    fn unmount(&mut self, force: bool) -> nix::Result<()> {
        let flags = if force {
            // Forcing ends the connection, so that nobody waits for an answer any more.
            MntFlags::MNT_FORCE | MntFlags::MNT_DETACH
        } else {
            MntFlags::empty()
        };
        match umount2(&self.mount_point, flags | MntFlags::UMOUNT_NOFOLLOW) {
            // Without privileges `fusermount3` does it, which detaches in any case.
            Err(Errno::EPERM) => {
                if force {
                    abort(self.connection);
                }
                self.unmounter.unmount().map_err(to_errno)
            }
            other => other,
        }
    }

    /// Waits for the threads to end. They end with the last mount; a copy of it may live on in
    /// another mount namespace, and a detached one for as long as a file in it is open.
    fn end_threads(&mut self) {
        let ended = self.threads_end_within(CLOSE_WAIT)
            || (abort(self.connection) && self.threads_end_within(END_WAIT));
        if !ended {
            tracing::warn!(
                "somebody has the file open and keeps it until they close it or this process ends"
            );
            return;
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    fn threads_end_within(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        while self.thread.as_ref().is_some_and(|it| !it.is_finished()) {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(POLL);
        }
        true
    }
}

/// Ends a FUSE connection: all that waits for an answer fails. False where that is not possible:
/// it takes a file of the kernel's that not every machine shows.
pub(super) fn abort(connection: Option<u32>) -> bool {
    let Some(connection) = connection else {
        return false;
    };
    let file = format!("/sys/fs/fuse/connections/{connection}/abort");
    let result = std::fs::write(&file, "1");
    if let Err(error) = &result {
        tracing::debug!("cannot end the connection by {file}: {error}");
    }
    result.is_ok()
}

fn to_errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// Says what is missing before anything is tried.
fn check_fuse() -> Result<()> {
    match choice::fuse() {
        Ok(_) => Ok(()),
        Err(lack) => Err(Error::new(
            ErrorKind::Unsupported,
            format!("this machine cannot make a FUSE device: {lack}"),
        )),
    }
}

fn mount_failed(mount_point: &Path, error: io::Error) -> Error {
    let advice = if nix::unistd::geteuid().is_root() {
        "in a container it takes `--device /dev/fuse --cap-add SYS_ADMIN`, \
         and under AppArmor `--security-opt apparmor=unconfined`"
    } else {
        "fusermount3 did not do it"
    };
    Error::new(
        ErrorKind::PermissionDenied,
        format!(
            "cannot mount a FUSE file system at {}; {advice}",
            mount_point.display()
        ),
    )
    .because(error)
}
