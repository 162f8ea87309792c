//! ublk: a block device whose requests are served by this process through io_uring.
//!
//! [`UblkDevice`] sets it up and takes it down; `queue` is the path of a request.

mod control;
pub mod features;
mod memory;
mod queue;

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use libublk_rs_sys as sys;

use self::control::{Control, DeviceInfo};
use self::memory::Descriptors;
use self::queue::{QueueSetup, UblkQueue};
use super::{Device, DeviceOptions, DeviceRecord};
use crate::volume::{Volume, memory::UNMAP_BYTES_MAX};
use crate::{Context, Error, ErrorKind, Result};

/// The largest request, in bytes.
const REQUEST_BYTES_MAX: u32 = 1 << 20;

/// How long the node of a new device may take to appear.
const NODE_TIMEOUT: Duration = Duration::from_secs(10);

/// A running ublk device.
pub struct UblkDevice {
    id: u32,
    path: PathBuf,
    /// Where it is written how to remove the device should this process die.
    run_directory: PathBuf,
    control: Control,
    queues: Vec<JoinHandle<()>>,
    failures: tokio::sync::mpsc::UnboundedReceiver<Error>,
    removed: bool,
}

impl UblkDevice {
    /// Makes a device for the volume and returns when applications can open it.
    ///
    /// # Errors
    /// When the driver is missing or refuses; nothing is left behind then.
    pub fn start(volume: Arc<Volume>, options: &DeviceOptions) -> Result<Self> {
        let mut control = Control::open()?;
        let features = control.features()?;
        let info = control.add(wanted(&volume, options, features))?;
        tracing::debug!(
            id = info.dev_id,
            flags = format!("{:#x}", info.flags),
            "ublk device added"
        );
        let mut device = Self {
            id: info.dev_id,
            path: PathBuf::from(format!("/dev/ublkb{}", info.dev_id)),
            run_directory: options.run_directory.clone(),
            control,
            queues: Vec::new(),
            failures: tokio::sync::mpsc::unbounded_channel().1,
            removed: false,
        };
        // From here on dropping the device removes it.
        device.record().save(&device.run_directory)?;
        device.set_up(&volume, options, &info)?;
        Ok(device)
    }

    fn set_up(
        &mut self,
        volume: &Arc<Volume>,
        options: &DeviceOptions,
        info: &DeviceInfo,
    ) -> Result<()> {
        self.control.set_params(self.id, &params(volume, options))?;
        let character = open_node(Path::new(&format!("/dev/ublkc{}", self.id)))?;
        self.start_queues(volume, info, &character)?;
        self.control.start(self.id)?;
        wait_for_node(&self.path)
    }

    /// Starts a thread for each queue and waits until all have handed their tags to the driver.
    fn start_queues(
        &mut self,
        volume: &Arc<Volume>,
        info: &DeviceInfo,
        character: &Arc<File>,
    ) -> Result<()> {
        let (failed, failures) = tokio::sync::mpsc::unbounded_channel();
        self.failures = failures;
        let (ready, all_ready) = mpsc::channel();
        for number in 0..info.nr_hw_queues {
            let cpus = self.control.queue_cpus(self.id, number)?;
            let descriptors = Descriptors::map(character, number, info.queue_depth)
                .context_io(|| format!("cannot map queue {number} of ublk device {}", self.id))?;
            let setup = QueueSetup {
                volume: volume.clone(),
                queue: number,
                depth: info.queue_depth,
                fd: character.as_raw_fd(),
                descriptors,
                zero_copy: info.flags & u64::from(sys::UBLK_F_AUTO_BUF_REG) != 0,
                request_bytes_max: info.max_io_buf_bytes,
            };
            let (ready, failed, character) = (ready.clone(), failed.clone(), character.clone());
            let thread = thread::Builder::new()
                .name(format!("ublk{}-q{number}", self.id))
                .spawn(move || {
                    pin(number, &cpus);
                    serve_queue(setup, &ready, &failed);
                    drop(character);
                })
                .context_io(|| format!("cannot start the thread of queue {number}"))?;
            self.queues.push(thread);
        }
        drop(ready);
        for _ in 0..info.nr_hw_queues {
            all_ready
                .recv()
                .map_err(|_| Error::new(ErrorKind::Io, "a queue's thread ended before it served"))?
                .context_io(|| format!("cannot serve a queue of ublk device {}", self.id))?;
        }
        Ok(())
    }

    /// Stops the device, waits for its threads and gives its number back. The order matters: the
    /// queues serve what the kernel still writes while it stops, and the driver deletes a device
    /// only when nobody holds its queues.
    fn remove(&mut self) -> Result<()> {
        if self.removed {
            return Ok(());
        }
        self.control.stop(self.id)?;
        for queue in self.queues.drain(..) {
            if queue.join().is_err() {
                tracing::error!(id = self.id, "a queue's thread panicked");
            }
        }
        self.control.delete(self.id)?;
        self.removed = true;
        DeviceRecord::forget(&self.run_directory)
    }

    /// Writes back what the kernel has cached of the device.
    fn flush(&self) -> Result<()> {
        let context = || format!("cannot flush {}", self.path.display());
        let device = File::open(&self.path).context_io(context)?;
        device.sync_all().context_io(context)
    }
}

impl Device for UblkDevice {
    fn path(&self) -> &Path {
        &self.path
    }

    fn record(&self) -> DeviceRecord {
        DeviceRecord::Ublk { id: self.id }
    }

    fn ended(&mut self) -> std::pin::Pin<Box<dyn Future<Output = Error> + Send + '_>> {
        Box::pin(async {
            self.failures.recv().await.unwrap_or_else(|| {
                Error::new(
                    ErrorKind::Io,
                    format!("ublk device {} was stopped by somebody else", self.id),
                )
            })
        })
    }

    fn flush(&mut self) -> Result<()> {
        UblkDevice::flush(self)
    }

    fn remove(&mut self) -> Result<()> {
        UblkDevice::remove(self)
    }
}

impl Drop for UblkDevice {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::error!(id = self.id, %error, "the ublk device could not be removed");
        }
    }
}

/// Removes a device whose process has died. It ends at once: such a device has no requests.
///
/// # Errors
/// `Busy` when another process serves a device of that number by now.
pub(super) fn remove_left_over(id: u32) -> Result<()> {
    let mut control = Control::open()?;
    let Some(info) = control.info(id)? else {
        return Ok(());
    };
    if info.state == sys::UBLK_S_DEV_LIVE as u16 && is_alive(info.ublksrv_pid) {
        return Err(Error::new(
            ErrorKind::Busy,
            format!(
                "ublk device {id} belongs to process {} by now",
                info.ublksrv_pid
            ),
        ));
    }
    control.stop(id)?;
    control.delete(id)
}

fn is_alive(pid: i32) -> bool {
    pid > 0 && Path::new(&format!("/proc/{pid}")).exists()
}

/// What to ask of the driver for this volume.
fn wanted(volume: &Volume, options: &DeviceOptions, features: u64) -> DeviceInfo {
    let zero_copy = u64::from(sys::UBLK_F_SUPPORT_ZERO_COPY | sys::UBLK_F_AUTO_BUF_REG);
    let mut flags = 0;
    if volume.takes_registered_buffers() && features & zero_copy == zero_copy {
        flags |= zero_copy;
    }
    DeviceInfo {
        nr_hw_queues: options.queues,
        queue_depth: options.depth,
        max_io_buf_bytes: REQUEST_BYTES_MAX,
        ublksrv_pid: std::process::id() as i32,
        flags,
        ..Default::default()
    }
}

/// The device's sizes, limits and attributes.
fn params(volume: &Volume, options: &DeviceOptions) -> sys::ublk_params {
    let geometry = volume.geometry();
    let mut attrs = 0;
    if options.read_only || volume.is_read_only() {
        attrs |= sys::UBLK_ATTR_READ_ONLY;
    }
    if volume.has_volatile_cache() {
        attrs |= sys::UBLK_ATTR_VOLATILE_CACHE | sys::UBLK_ATTR_FUA;
    }
    let block_bytes = geometry.logical_block_bytes();
    let block_shift = block_bytes.trailing_zeros() as u8;
    let page_shift = geometry.physical_block_bytes().trailing_zeros() as u8;
    let mut params = sys::ublk_params {
        len: size_of::<sys::ublk_params>() as u32,
        types: sys::UBLK_PARAM_TYPE_BASIC,
        basic: sys::ublk_param_basic {
            attrs,
            logical_bs_shift: block_shift,
            physical_bs_shift: page_shift,
            io_opt_shift: page_shift,
            io_min_shift: page_shift,
            max_sectors: REQUEST_BYTES_MAX >> 9,
            chunk_sectors: 0,
            dev_sectors: geometry.device_bytes() >> 9,
            virt_boundary_mask: 0,
        },
        ..Default::default()
    };
    // Zeros can be written anywhere; discards are offered where they do something.
    params.types |= sys::UBLK_PARAM_TYPE_DISCARD;
    let range_sectors = (UNMAP_BYTES_MAX >> 9) as u32;
    params.discard = sys::ublk_param_discard {
        discard_granularity: block_bytes.max(geometry.physical_block_bytes()),
        max_discard_sectors: if volume.can_discard() {
            range_sectors
        } else {
            0
        },
        max_write_zeroes_sectors: range_sectors,
        max_discard_segments: 1,
        ..Default::default()
    };
    params
}

fn serve_queue(
    setup: QueueSetup,
    ready: &mpsc::Sender<std::io::Result<()>>,
    failed: &tokio::sync::mpsc::UnboundedSender<Error>,
) {
    super::become_io_flusher();
    let number = setup.queue;
    let queue = match UblkQueue::start(setup) {
        Ok(queue) => {
            let _ = ready.send(Ok(()));
            queue
        }
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    if let Err(error) = queue.serve() {
        let _ = failed.send(Error::io(format!("queue {number} failed"), error));
    }
}

/// Runs the queue's thread where the kernel sends its requests from; a hint only.
fn pin(number: u16, cpus: &nix::sched::CpuSet) {
    let this_thread = nix::unistd::Pid::from_raw(0);
    if let Err(error) = nix::sched::sched_setaffinity(this_thread, cpus) {
        tracing::debug!(queue = number, %error, "the queue's thread stays unpinned");
    }
}

/// Opens the queues' device, which appears a moment after it was added.
fn open_node(path: &Path) -> Result<Arc<File>> {
    wait_for_node(path)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .context_io(|| format!("cannot open {}", path.display()))?;
    Ok(Arc::new(file))
}

fn wait_for_node(path: &Path) -> Result<()> {
    let deadline = Instant::now() + NODE_TIMEOUT;
    while !path.exists() {
        if Instant::now() > deadline {
            return Err(Error::new(
                ErrorKind::TimedOut,
                format!(
                    "{} did not appear; is /dev a devtmpfs, or udev running?",
                    path.display()
                ),
            ));
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
