//! Taking over a device whose process has died: what is to be true before the driver is touched.
//!
//! The driver keeps such a device *quiesced*: requests wait, those that the dead process had begun
//! included. It says so once the last reference to the queues' device is gone, that is, once the
//! rings of the dead process are.

use std::thread;
use std::time::{Duration, Instant};

use libublk_rs_sys as sys;

use super::control::{Control, DeviceInfo};
use super::nodes;
use super::params::{RECOVERY, ZERO_COPY, params};
use crate::device::{DeviceOptions, Recovery, UblkRecord};
use crate::volume::Volume;
use crate::{Error, ErrorKind, Result};

/// How long the driver may take to be done with a dead process: its rings end with the last disk
/// I/O that they had begun.
const QUIESCE_WAIT: Duration = Duration::from_secs(30);

/// How often it is looked whether it is.
const QUIESCE_POLL: Duration = Duration::from_millis(5);

/// What the driver says of the device of a dead process, once it has noticed the death. `None`
/// where the device is gone; one of that number that is there by now is another.
///
/// # Errors
/// `Busy` where it is being served after all.
pub(super) fn left_over(control: &mut Control, record: &UblkRecord) -> Result<Option<DeviceInfo>> {
    let deadline = Instant::now() + QUIESCE_WAIT;
    loop {
        match find(control, record)? {
            Some(info) if u32::from(info.state) == sys::UBLK_S_DEV_LIVE => {
                if Instant::now() >= deadline {
                    return Err(still_served(&info));
                }
            }
            settled => return Ok(settled),
        }
        thread::sleep(QUIESCE_POLL);
    }
}

fn find(control: &mut Control, record: &UblkRecord) -> Result<Option<DeviceInfo>> {
    if record.id != UblkRecord::ID_UNKNOWN {
        return Ok(control.info(record.id)?.filter(|info| is_it(info, record)));
    }
    for id in nodes::numbers()? {
        // What cannot be asked about is somebody else's.
        if let Ok(Some(info)) = control.info(id)
            && info.ublksrv_flags == record.mark
        {
            return Ok(Some(info));
        }
    }
    Ok(None)
}

fn is_it(info: &DeviceInfo, record: &UblkRecord) -> bool {
    record.mark == 0 || info.ublksrv_flags == record.mark
}

fn still_served(info: &DeviceInfo) -> Error {
    let by = match info.ublksrv_pid {
        pid if pid > 0 => format!("process {pid}"),
        _ => "a process that has died, but has I/O under way,".to_owned(),
    };
    Error::new(
        ErrorKind::Busy,
        format!("ublk device {} is still served: {by} holds it", info.dev_id),
    )
}

/// Whether the driver waits for somebody to take the device over.
pub(super) fn is_quiesced(info: &DeviceInfo) -> bool {
    u32::from(info.state) == sys::UBLK_S_DEV_QUIESCED
}

/// Takes the dead process's place. From here on the driver waits for this process.
///
/// # Errors
/// `Busy` where the driver does not get done with the dead one, and what it says.
pub(super) fn begin(control: &mut Control, id: u32) -> Result<()> {
    let deadline = Instant::now() + QUIESCE_WAIT;
    while !control.start_recovery(id)? {
        if Instant::now() >= deadline {
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "ublk device {id}: another process is taking it over, or died while it did"
                ),
            ));
        }
        thread::sleep(QUIESCE_POLL);
    }
    Ok(())
}

/// Whether a device, as the driver describes it, is the one that these options ask for.
///
/// # Errors
/// `InvalidInput`, with what differs.
pub(super) fn check(
    record: &UblkRecord,
    info: &DeviceInfo,
    found: &sys::ublk_params,
    volume: &Volume,
    options: &DeviceOptions,
) -> Result<()> {
    let id = info.dev_id;
    let Some(made_with) = record
        .recovery
        .filter(|_| info.flags & RECOVERY == RECOVERY)
    else {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("ublk device {id} was not made to be taken over"),
        ));
    };
    let is = Facts::of_device(info, found, made_with);
    let wanted = Facts::wanted(&params(volume, options), volume, options);
    match is.difference(&wanted) {
        None => Ok(()),
        Some(difference) => Err(Error::new(
            ErrorKind::InvalidInput,
            format!("ublk device {id} is not the one that was asked for: {difference}"),
        )),
    }
}

/// What has to be the same for a process to go on where another one stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    size_bytes: u64,
    block_bytes: u64,
    read_only: bool,
    has_flushes: bool,
    queues: u16,
    depth: u16,
    /// Requests come with pages that only the kernel can reach.
    zero_copy: bool,
}

impl Facts {
    fn of_device(info: &DeviceInfo, params: &sys::ublk_params, made_with: Recovery) -> Self {
        Self {
            queues: made_with.queues,
            depth: info.queue_depth,
            zero_copy: info.flags & ZERO_COPY != 0,
            ..Self::of_params(params)
        }
    }

    fn wanted(params: &sys::ublk_params, volume: &Volume, options: &DeviceOptions) -> Self {
        Self {
            queues: options.queues,
            depth: options.depth,
            zero_copy: volume.takes_registered_buffers(),
            ..Self::of_params(params)
        }
    }

    fn of_params(params: &sys::ublk_params) -> Self {
        let basic = &params.basic;
        let has = |attribute| basic.attrs & attribute != 0;
        Self {
            size_bytes: basic.dev_sectors << 9,
            block_bytes: 1u64.wrapping_shl(basic.logical_bs_shift.into()),
            read_only: has(sys::UBLK_ATTR_READ_ONLY),
            has_flushes: has(sys::UBLK_ATTR_VOLATILE_CACHE) && has(sys::UBLK_ATTR_FUA),
            queues: 0,
            depth: 0,
            zero_copy: false,
        }
    }

    /// The first thing in which this device is not the wanted one.
    fn difference(&self, wanted: &Self) -> Option<String> {
        let bytes = |n: u64| format!("{n} bytes");
        let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
        // A volume that takes registered pages takes copies too.
        let copies = |facts: &Self| yes(self.zero_copy && facts.zero_copy);
        let rows = [
            ("size", bytes(self.size_bytes), bytes(wanted.size_bytes)),
            (
                "block size",
                bytes(self.block_bytes),
                bytes(wanted.block_bytes),
            ),
            ("read-only", yes(self.read_only), yes(wanted.read_only)),
            ("flushes", yes(self.has_flushes), yes(wanted.has_flushes)),
            ("queues", self.queues.to_string(), wanted.queues.to_string()),
            ("depth", self.depth.to_string(), wanted.depth.to_string()),
            ("zero copy", copies(self), copies(wanted)),
        ];
        rows.into_iter()
            .find(|(_, is, wanted)| is != wanted)
            .map(|(what, is, wanted)| format!("its {what} is {is}, not {wanted}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts = Facts {
        size_bytes: 1 << 20,
        block_bytes: 512,
        read_only: false,
        has_flushes: true,
        queues: 2,
        depth: 128,
        zero_copy: true,
    };

    #[test]
    fn a_device_that_differs_in_anything_is_refused_by_the_name_of_that() {
        assert_eq!(FACTS.difference(&FACTS), None);
        let differing = [
            (
                "size",
                Facts {
                    size_bytes: 2 << 20,
                    ..FACTS
                },
            ),
            (
                "block size",
                Facts {
                    block_bytes: 4096,
                    ..FACTS
                },
            ),
            (
                "read-only",
                Facts {
                    read_only: true,
                    ..FACTS
                },
            ),
            (
                "flushes",
                Facts {
                    has_flushes: false,
                    ..FACTS
                },
            ),
            ("queues", Facts { queues: 1, ..FACTS }),
            ("depth", Facts { depth: 64, ..FACTS }),
            (
                "zero copy",
                Facts {
                    zero_copy: false,
                    ..FACTS
                },
            ),
        ];
        for (name, wanted) in differing {
            let difference = FACTS.difference(&wanted).expect(name);
            assert!(
                difference.starts_with(&format!("its {name} is ")),
                "{difference}"
            );
        }
    }

    #[test]
    fn a_device_whose_requests_are_copied_suits_any_volume() {
        let copying = Facts {
            zero_copy: false,
            ..FACTS
        };
        assert_eq!(copying.difference(&FACTS), None);
        assert_eq!(copying.difference(&copying), None);
    }

    #[test]
    fn a_later_device_of_the_same_number_is_not_taken_for_the_lost_one() {
        let info = DeviceInfo {
            dev_id: 3,
            ublksrv_flags: 7,
            ..Default::default()
        };
        let record = |mark| UblkRecord {
            id: 3,
            mark,
            recovery: None,
        };
        assert!(is_it(&info, &record(7)));
        assert!(!is_it(&info, &record(8)));
        assert!(is_it(&info, &record(0)), "by an earlier version");
    }
}
