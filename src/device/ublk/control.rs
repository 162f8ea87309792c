//! Control commands to the ublk driver, each with a time limit.
//!
//! The commands of the libublk crate wait without one, so the structures are taken from its
//! bindings and the commands are given here, on a ring of our own.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, squeue, types};
use libublk_rs_sys as sys;

use super::nodes;
use crate::{Context, Error, ErrorKind, Result};

/// Where the driver takes commands.
pub(in crate::device) const CONTROL_PATH: &str = "/dev/ublk-control";

/// How long a command may take that involves no I/O of the device.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// How long starting may take: the kernel reads the partition table from the device.
const START_TIMEOUT: Duration = Duration::from_secs(90);

/// How long stopping may take: the kernel writes back what it has cached of the device.
const STOP_TIMEOUT: Duration = Duration::from_secs(600);

/// How long the kernel may take to free the number of a deleted device that nobody holds.
const RELEASE_WAIT: Duration = Duration::from_secs(1);

/// How often it is looked whether it has.
const RELEASE_POLL: Duration = Duration::from_millis(1);

/// A number that lets the driver choose one.
const ANY_DEVICE: u32 = u32::MAX;

/// No particular queue.
const NO_QUEUE: u16 = u16::MAX;

/// The device as the driver describes it.
pub(super) type DeviceInfo = sys::ublksrv_ctrl_dev_info;

/// The room for the path of a node, in bytes; zeros fill it, and the data behind it stays aligned.
const NODE_BYTES: usize = 32;

/// What a command reads or writes; larger than any of the driver's structures.
#[derive(Clone, Copy)]
#[repr(C)]
struct CommandData {
    /// Which device is meant, for those commands that have to name it.
    node: [u8; NODE_BYTES],
    payload: [u64; 64],
}

impl CommandData {
    const ZEROS: Self = Self {
        node: [0; NODE_BYTES],
        payload: [0; 64],
    };
}

/// The connection to the driver.
pub(super) struct Control {
    file: File,
    ring: IoUring<squeue::Entry128>,
    data: Box<CommandData>,
    /// Commands name the queues' device: the driver lets those command an unprivileged device who
    /// may open that. With a privileged one it takes the name for data.
    names_node: bool,
    /// A command that timed out may still write to the data.
    abandoned: bool,
}

impl Control {
    /// Connects to the driver.
    ///
    /// # Errors
    /// `NotFound` without the driver, `PermissionDenied` without the right to use it.
    pub(super) fn open() -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(CONTROL_PATH)
            .context_io(|| match nix::unistd::geteuid().is_root() {
                true => format!("cannot open {CONTROL_PATH}; try: modprobe ublk_drv"),
                false => format!("cannot open {CONTROL_PATH}; run as root"),
            })?;
        let ring = IoUring::builder()
            .build(4)
            .context_io(|| "cannot set up io_uring for control commands")?;
        Ok(Self {
            file,
            ring,
            data: Box::new(CommandData::ZEROS),
            names_node: false,
            abandoned: false,
        })
    }

    /// What the driver can do, as a mask of `UBLK_F_*`.
    pub(super) fn features(&mut self) -> Result<u64> {
        let len = sys::UBLK_FEATURES_LEN as usize;
        self.command(
            "GET_FEATURES",
            sys::UBLK_U_CMD_GET_FEATURES,
            0,
            len,
            0,
            COMMAND_TIMEOUT,
        )?;
        Ok(self.data.payload[0])
    }

    /// Adds a device. What comes back says which number and which of the wanted flags it got.
    ///
    /// # Errors
    /// `PermissionDenied` for a device of a process without privileges, unless it asks for an
    /// unprivileged one.
    pub(super) fn add(&mut self, wanted: DeviceInfo) -> Result<DeviceInfo> {
        self.put(&DeviceInfo {
            dev_id: ANY_DEVICE,
            ..wanted
        });
        let len = size_of::<DeviceInfo>();
        self.command(
            "ADD_DEV",
            sys::UBLK_U_CMD_ADD_DEV,
            ANY_DEVICE,
            len,
            0,
            COMMAND_TIMEOUT,
        )?;
        Ok(self.described())
    }

    /// Describes a device; `None` when there is none of that number.
    pub(super) fn info(&mut self, id: u32) -> Result<Option<DeviceInfo>> {
        // The one command that names the node of either kind of device.
        self.names_node = true;
        let named = self.ask_for_info("GET_DEV_INFO2", sys::UBLK_U_CMD_GET_DEV_INFO2, id);
        let asked = match named {
            Err(error) if os_error(&error) == Some(libc::ENOENT) => {
                // There is no node in this /dev. A privileged process need not name it.
                self.names_node = false;
                self.ask_for_info("GET_DEV_INFO", sys::UBLK_U_CMD_GET_DEV_INFO, id)
            }
            named => named,
        };
        match asked {
            Ok(()) => Ok(Some(self.described())),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn ask_for_info(&mut self, name: &'static str, code: u32, id: u32) -> Result<()> {
        let len = size_of::<DeviceInfo>();
        self.command(name, code, id, len, 0, COMMAND_TIMEOUT)
    }

    /// The device that the driver has described, which further commands are for.
    fn described(&mut self) -> DeviceInfo {
        let info: DeviceInfo = self.take();
        self.names_node = is_unprivileged(&info);
        info
    }

    /// Whether a device has that number, whoever may command it.
    fn is_there(&mut self, id: u32) -> bool {
        match self.ask_for_info("GET_DEV_INFO", sys::UBLK_U_CMD_GET_DEV_INFO, id) {
            Err(error) => !is_gone(&error),
            Ok(()) => true,
        }
    }

    /// Sets sizes, limits and attributes.
    pub(super) fn set_params(&mut self, id: u32, params: &sys::ublk_params) -> Result<()> {
        self.put(params);
        let len = size_of::<sys::ublk_params>();
        self.command(
            "SET_PARAMS",
            sys::UBLK_U_CMD_SET_PARAMS,
            id,
            len,
            0,
            COMMAND_TIMEOUT,
        )
    }

    /// The sizes, limits and attributes that a device was given.
    pub(super) fn params(&mut self, id: u32) -> Result<sys::ublk_params> {
        let len = size_of::<sys::ublk_params>();
        self.put(&sys::ublk_params {
            len: len as u32,
            ..Default::default()
        });
        self.command(
            "GET_PARAMS",
            sys::UBLK_U_CMD_GET_PARAMS,
            id,
            len,
            0,
            COMMAND_TIMEOUT,
        )?;
        Ok(self.take())
    }

    /// Lets this process take the place of the one that served the device and has died. False
    /// while the driver is not done with that one.
    pub(super) fn start_recovery(&mut self, id: u32) -> Result<bool> {
        let name = "START_USER_RECOVERY";
        let code = sys::UBLK_U_CMD_START_USER_RECOVERY;
        match self.command(name, code, id, 0, 0, COMMAND_TIMEOUT) {
            Ok(()) => Ok(true),
            Err(error) if os_error(&error) == Some(libc::EBUSY) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Has the requests that wait served by this process. The queues must serve by now.
    pub(super) fn end_recovery(&mut self, id: u32) -> Result<()> {
        let pid = u64::from(std::process::id());
        self.command(
            "END_USER_RECOVERY",
            sys::UBLK_U_CMD_END_USER_RECOVERY,
            id,
            0,
            pid,
            COMMAND_TIMEOUT,
        )
    }

    /// The processors whose requests go to this queue.
    pub(super) fn queue_cpus(&mut self, id: u32, queue: u16) -> Result<nix::sched::CpuSet> {
        self.data.payload.fill(0);
        let len = size_of::<nix::sched::CpuSet>();
        self.command(
            "GET_QUEUE_AFFINITY",
            sys::UBLK_U_CMD_GET_QUEUE_AFFINITY,
            id,
            len,
            u64::from(queue),
            COMMAND_TIMEOUT,
        )?;
        let mut cpus = nix::sched::CpuSet::new();
        for cpu in 0..nix::sched::CpuSet::count().min(self.data.payload.len() * 64) {
            if self.data.payload[cpu / 64] & 1 << (cpu % 64) != 0 {
                cpus.set(cpu)
                    .context_io(|| format!("processor {cpu} does not fit the mask"))?;
            }
        }
        Ok(cpus)
    }

    /// Makes the block device. The queues must serve by now.
    pub(super) fn start(&mut self, id: u32) -> Result<()> {
        let pid = u64::from(std::process::id());
        self.command(
            "START_DEV",
            sys::UBLK_U_CMD_START_DEV,
            id,
            0,
            pid,
            START_TIMEOUT,
        )
    }

    /// Takes the block device away. The queues must serve until it is gone.
    pub(super) fn stop(&mut self, id: u32) -> Result<()> {
        let result = self.command("STOP_DEV", sys::UBLK_U_CMD_STOP_DEV, id, 0, 0, STOP_TIMEOUT);
        gone_is_fine(result)
    }

    /// Gives the number back. Nothing of ours may hold the queue's device or its mapping any more.
    ///
    /// The device is gone when this returns; where somebody still holds it open, its number is
    /// free only after that. The driver's own way to wait for this knows no end.
    pub(super) fn delete(&mut self, id: u32) -> Result<()> {
        if self.names_node {
            // The driver takes the other command from root alone.
            return self.delete_and_wait(id);
        }
        match self.delete_with("DEL_DEV_ASYNC", sys::UBLK_U_CMD_DEL_DEV_ASYNC, id) {
            // Older drivers do not know it.
            Err(error) if os_error(&error) == Some(libc::EOPNOTSUPP) => {
                return self.delete_and_wait(id);
            }
            other => other?,
        }
        let deadline = Instant::now() + RELEASE_WAIT;
        while self.is_there(id) {
            if Instant::now() >= deadline {
                warn_of_number(id);
                break;
            }
            std::thread::sleep(RELEASE_POLL);
        }
        Ok(())
    }

    /// Deletes by the command that ends when nobody holds the device any more. The device is gone
    /// by the time that it begins to wait, so that it may be left to itself.
    fn delete_and_wait(&mut self, id: u32) -> Result<()> {
        match self.delete_with("DEL_DEV", sys::UBLK_U_CMD_DEL_DEV, id) {
            Err(error) if error.kind() == ErrorKind::TimedOut => {
                warn_of_number(id);
                Ok(())
            }
            other => other,
        }
    }

    fn delete_with(&mut self, name: &'static str, code: u32, id: u32) -> Result<()> {
        gone_is_fine(self.command(name, code, id, 0, 0, COMMAND_TIMEOUT))
    }

    fn put<T: Copy>(&mut self, value: &T) {
        const { assert!(size_of::<T>() <= size_of_val(&CommandData::ZEROS.payload)) };
        // SAFETY: it fits, plain data, and no command is under way.
        unsafe { self.data.payload.as_mut_ptr().cast::<T>().write(*value) };
    }

    fn take<T: Copy>(&self) -> T {
        const { assert!(size_of::<T>() <= size_of_val(&CommandData::ZEROS.payload)) };
        // SAFETY: it fits, and the driver's structures are integers, so any bytes make one.
        unsafe { self.data.payload.as_ptr().cast::<T>().read() }
    }

    /// Gives a command and waits for its end.
    fn command(
        &mut self,
        name: &'static str,
        code: u32,
        id: u32,
        data_bytes: usize,
        inline: u64,
        timeout: Duration,
    ) -> Result<()> {
        if self.abandoned {
            return Err(Error::new(
                ErrorKind::TimedOut,
                format!("ublk {name}: an earlier command still hangs in the driver"),
            ));
        }
        let command = self.header(id, data_bytes, inline);
        let mut bytes = [0; 80];
        // SAFETY: the command is 32 bytes of integers, the field 80 bytes.
        unsafe {
            bytes
                .as_mut_ptr()
                .cast::<sys::ublksrv_ctrl_cmd>()
                .write_unaligned(command)
        };
        let entry = opcode::UringCmd80::new(types::Fd(self.file.as_raw_fd()), code)
            .cmd(bytes)
            .build();
        // SAFETY: the data is boxed; if the wait is given up it is leaked, see `drop`.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        debug_assert!(pushed.is_ok(), "one command at a time");
        let what = || match id {
            ANY_DEVICE => format!("ublk {name} failed"),
            id => format!("ublk {name} of device {id} failed"),
        };
        // Until its end is known, the driver may write to the data.
        self.abandoned = true;
        let ended = self.wait(timeout).context_io(what)?;
        self.abandoned = ended.is_none();
        match ended {
            Some(result) if result >= 0 => Ok(()),
            Some(result) => Err(Error::io(what(), io::Error::from_raw_os_error(-result))),
            None => Err(Error::new(
                ErrorKind::TimedOut,
                format!("{} to end within {} s", what(), timeout.as_secs()),
            )),
        }
    }

    /// The part of a command that says where its data is.
    fn header(&mut self, id: u32, data_bytes: usize, inline: u64) -> sys::ublksrv_ctrl_cmd {
        let node_bytes = match self.names_node && id != ANY_DEVICE {
            true => NODE_BYTES,
            false => 0,
        };
        let addr = if node_bytes > 0 {
            let path = nodes::of_queues(id).into_os_string().into_encoded_bytes();
            self.data.node.fill(0);
            self.data.node[..path.len()].copy_from_slice(&path);
            &raw const *self.data as u64
        } else if data_bytes > 0 {
            self.data.payload.as_ptr() as u64
        } else {
            0
        };
        sys::ublksrv_ctrl_cmd {
            dev_id: id,
            queue_id: NO_QUEUE,
            len: (node_bytes + data_bytes) as u16,
            addr,
            data: [inline],
            dev_path_len: node_bytes as u16,
            ..Default::default()
        }
    }

    /// `None`: the time is over.
    fn wait(&mut self, timeout: Duration) -> io::Result<Option<i32>> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(done) = self.ring.completion().next() {
                return Ok(Some(done.result()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let limit = types::Timespec::from(left);
            let args = types::SubmitArgs::new().timespec(&limit);
            match self.ring.submitter().submit_with_args(1, &args) {
                Err(error) if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::ETIME)) => {
                    return Err(error);
                }
                _ => {}
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if self.abandoned {
            // The driver may still write to it.
            let data = std::mem::replace(&mut self.data, Box::new(CommandData::ZEROS));
            std::mem::forget(data);
        }
    }
}

/// Whether a device was made by a process without privileges.
pub(super) fn is_unprivileged(info: &DeviceInfo) -> bool {
    info.flags & u64::from(sys::UBLK_F_UNPRIVILEGED_DEV) != 0
}

fn warn_of_number(id: u32) {
    tracing::warn!(
        id,
        "the ublk device is still open; its number is not free yet"
    );
}

fn gone_is_fine(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if is_gone(&error) => Ok(()),
        other => other,
    }
}

fn is_gone(error: &Error) -> bool {
    os_error(error) == Some(libc::ENODEV)
}

fn os_error(error: &Error) -> Option<i32> {
    use std::error::Error as _;
    error.source()?.downcast_ref::<io::Error>()?.raw_os_error()
}
