//! Setting the device up, and taking it down again.

use std::ffi::CString;
use std::fs::DirBuilder;
use std::future::Future;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Release;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::filesystem::OneFile;
use super::loop_child;
use super::loop_device::{self, LoopDevice, LoopOptions};
use super::mounts::mounted_at;
use super::queue::{self, QueueHandle, SharedGate};
use super::requests::{Inline, Requests};
use super::session::Session;
use super::slot::Reply;
use super::{BACKGROUND_MAX, MOUNT_DIRECTORY};
use crate::device::{Device, DeviceOptions, DeviceRecord, Prepared};
use crate::volume::{ByteOffset, Op, Request, Volume, Watch};
use crate::{Context, Error, ErrorKind, Result};

/// The longest name of a file.
const NAME_BYTES_MAX: usize = 255;

/// The most threads that read requests from the kernel, and the most queues behind them.
const THREADS_MAX: u16 = 64;

/// The most requests that a queue takes: the kernel does not ask for more at once.
const DEPTH_MAX: u16 = BACKGROUND_MAX;

/// How long requests that nobody waits for any more may take to end.
const QUEUE_END_WAIT: Duration = Duration::from_secs(5);

/// How often a queue's thread is looked at that is to end.
const QUEUE_END_POLL: Duration = Duration::from_millis(1);

/// A device that is a FUSE file, with a loop device on top where the process may make one.
pub struct FuseDevice {
    /// What applications open.
    path: PathBuf,
    mount_point: PathBuf,
    /// Where it is written how to remove the device should this process die.
    run_directory: PathBuf,
    read_only: bool,
    logical_block_bytes: u32,
    started: Arc<AtomicBool>,
    made_directory: bool,
    loop_device: Option<LoopDevice>,
    session: Option<Session>,
    queues: Vec<(QueueHandle, JoinHandle<()>)>,
    watch: Arc<Watch>,
    end: Arc<watch::Sender<Option<String>>>,
}

impl FuseDevice {
    /// Mounts the file, which cannot be opened until the device is started. When it fails, nothing is left
    /// behind.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied` or `Unsupported` where this machine has no FUSE or does not
    /// allow it, with what to do about it; `Busy` where another device runs in the same directory.
    pub fn prepare(volume: Arc<Volume>, options: &DeviceOptions) -> Result<Self> {
        check_name(&options.name)?;
        let run_directory = options
            .run_directory
            .canonicalize()
            .context_io(|| format!("cannot use {}", options.run_directory.display()))?;
        let mount_point = run_directory.join(MOUNT_DIRECTORY);
        if mounted_at(&mount_point)?.is_some() {
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "something is mounted at {} already; `blockferry stop {}` removes what a dead \
                     process has left",
                    mount_point.display(),
                    options.name
                ),
            ));
        }
        // From here on, dropping it takes down what was set up.
        let mut device = Self {
            path: mount_point.join(&options.name),
            mount_point,
            run_directory,
            read_only: options.read_only || volume.is_read_only(),
            logical_block_bytes: volume.geometry().logical_block_bytes(),
            started: Arc::new(AtomicBool::new(false)),
            made_directory: false,
            loop_device: None,
            session: None,
            queues: Vec::new(),
            watch: volume.watch().clone(),
            end: Arc::new(watch::channel(None).0),
        };
        device.set_up(volume, options)?;
        Ok(device)
    }

    fn set_up(&mut self, volume: Arc<Volume>, options: &DeviceOptions) -> Result<()> {
        match DirBuilder::new().mode(0o700).create(&self.mount_point) {
            Err(error)
                if error.kind() == io::ErrorKind::AlreadyExists && self.mount_point.is_dir() => {}
            other => {
                other.context_io(|| format!("cannot make {}", self.mount_point.display()))?;
            }
        }
        self.made_directory = true;
        self.record().save(&self.run_directory)?;
        let threads = options.queues.clamp(1, THREADS_MAX);
        let geometry = *volume.geometry();
        let requests = if volume.is_answered_inline() {
            Requests::Inline(Inline::new(volume))
        } else {
            let gate = Arc::new(SharedGate::default());
            for index in 0..threads {
                self.start_queue(volume.clone(), options.depth, index, gate.clone())?;
            }
            let queues: Vec<_> = self.queues.iter().map(|(queue, _)| queue.clone()).collect();
            gate.connect(queues.clone());
            Requests::Queued(queues)
        };
        let started = self.started.clone();
        let filesystem = OneFile::new(&options.name, &geometry, self.read_only, requests, started);
        let end = self.end.clone();
        self.session = Some(Session::start(
            filesystem,
            &self.mount_point,
            usize::from(threads),
            self.read_only,
            move |reason| {
                end.send_replace(Some(reason));
            },
        )?);
        Ok(())
    }

    /// Has the file opened by whoever wants to, and as root puts a loop device on top.
    fn show(&mut self) -> Result<()> {
        self.started.store(true, Release);
        let path = CString::new(self.path.as_os_str().as_bytes());
        path.map_err(io::Error::from)
            .and_then(|path| Ok(loop_child::try_open(&path)?))
            .context_io(|| format!("cannot open {}", self.path.display()))?;
        if nix::unistd::geteuid().is_root() {
            self.put_loop_device_on_top();
            self.record().save(&self.run_directory)?;
        }
        Ok(())
    }

    fn start_queue(
        &mut self,
        volume: Arc<Volume>,
        depth: u16,
        index: u16,
        gate: Arc<SharedGate>,
    ) -> Result<()> {
        let end = self.end.clone();
        let queue = queue::start(
            volume,
            depth.clamp(1, DEPTH_MAX),
            index,
            gate,
            move |error| {
                end.send_replace(Some(format!("a queue failed: {error}")));
            },
        )
        .context_io(|| "cannot start a queue: io_uring is missing or not allowed here")?;
        self.queues.push(queue);
        Ok(())
    }

    fn put_loop_device_on_top(&mut self) {
        let options = LoopOptions {
            logical_block_bytes: self.logical_block_bytes,
            read_only: self.read_only,
        };
        match LoopDevice::attach(&self.path, options) {
            Ok(device) => {
                self.path = device.path().to_owned();
                self.loop_device = Some(device);
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(
                    cause = cause.as_deref().unwrap_or("unknown"),
                    "no loop device on top, so the device is the file {}: {error}",
                    self.path.display()
                );
            }
        }
    }

    /// Writes out what the loop device's cache holds, and flushes the volume. It takes as long as
    /// the requests do that it waits for; these have deadlines of their own, if they are to have.
    fn flush_all(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        if let Some(device) = &self.loop_device {
            loop_device::sync(device.path())?;
        }
        self.queues
            .first()
            .map_or(Ok(()), |(queue, _)| flush_queue(queue))
    }

    fn take_down(&mut self) -> Result<()> {
        self.watch.end_waiting();
        if let Some(mut device) = self.loop_device.take()
            && !device.detach()?
        {
            tracing::warn!(
                "{} is still open somewhere; it only gives errors now, and ends when it is \
                     closed",
                device.path().display()
            );
        }
        if let Some(session) = &mut self.session {
            session.stop()?;
            self.session = None;
        }
        for (queue, _) in &self.queues {
            queue.end();
        }
        let deadline = Instant::now() + QUEUE_END_WAIT;
        for (_, thread) in self.queues.drain(..) {
            // A thread keeps the memory of what it waits for; nobody asks for the answers any more.
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(QUEUE_END_POLL);
            }
            if thread.is_finished() {
                let _ = thread.join();
            } else {
                tracing::warn!("requests are still under way; they are given up");
            }
        }
        self.remove_directory()
    }

    fn remove_directory(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.made_directory) {
            return Ok(());
        }
        match std::fs::remove_dir(&self.mount_point) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(
                format!("cannot remove {}", self.mount_point.display()),
                error,
            )),
            _ => DeviceRecord::forget(&self.run_directory),
        }
    }
}

impl Prepared for FuseDevice {
    fn start(mut self: Box<Self>) -> Result<Box<dyn Device>> {
        self.show()?;
        Ok(self)
    }
}

impl Device for FuseDevice {
    fn path(&self) -> &Path {
        &self.path
    }

    fn record(&self) -> DeviceRecord {
        DeviceRecord::Fuse {
            mount_point: self.mount_point.clone(),
            loop_device: self.loop_device.as_ref().map(|it| it.path().to_owned()),
        }
    }

    fn ended(&mut self) -> Pin<Box<dyn Future<Output = Error> + Send + '_>> {
        let mut end = self.end.subscribe();
        Box::pin(async move {
            let reason = match end.wait_for(Option::is_some).await {
                Ok(reason) => reason.clone().unwrap_or_default(),
                Err(_) => "it is no longer served".into(),
            };
            Error::new(ErrorKind::Io, reason)
        })
    }

    fn flush(&mut self) -> Result<()> {
        self.flush_all()
    }

    fn remove(&mut self) -> Result<()> {
        self.take_down()
    }
}

impl Drop for FuseDevice {
    fn drop(&mut self) {
        if let Err(error) = self.take_down() {
            tracing::error!("{} could not be removed: {error}", self.path.display());
        }
    }
}

fn flush_queue(queue: &QueueHandle) -> Result<()> {
    let (report, outcome) = sync_channel(1);
    let flush = Request::new(Op::Flush, ByteOffset(0), 0);
    queue.submit(flush, &[], Reply::Own(report));
    match outcome.recv() {
        Ok(Ok(())) => Ok(()),
        Ok(Err(errno)) => Err(Error::io("the last flush failed", io::Error::from(errno))),
        Err(_) => Err(Error::new(ErrorKind::Io, "the last flush was not answered")),
    }
}

fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(['/', '\0']) {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("`{name}` cannot be the name of a file"),
        ));
    }
    match name {
        "." | ".." => Err(Error::new(
            ErrorKind::InvalidInput,
            format!("`{name}` is the name of a directory"),
        )),
        _ => Ok(()),
    }
}
