//! The application, and what it may rely on.

use super::fault::Fault;
use super::host::{Device, HostId, Write, WriteStep};
use super::store::{BLOCKS, Content, Stamp};
use super::world::{Checked, NAMES, World};

/// Writes at whichever device serves, and knows what was acknowledged.
#[derive(Debug)]
pub(super) struct Application {
    /// Whose device it has open.
    pub(super) at: HostId,
    /// The last acknowledged write of each block.
    pub(super) acknowledged: Content,
    /// Those since the last flush, and the one before it: what a power cut may leave.
    pub(super) since_flush: [Vec<Stamp>; BLOCKS],
    pub(super) stamps: Stamp,
    pub(super) writes: u64,
}

impl Application {
    pub(super) fn new(at: HostId) -> Self {
        Self {
            at,
            acknowledged: [0; BLOCKS],
            since_flush: std::array::from_fn(|_| vec![0]),
            stamps: 0,
            writes: 0,
        }
    }

    pub(super) fn acknowledge(&mut self, block: usize, stamp: Stamp) {
        self.acknowledged[block] = stamp;
        self.since_flush[block].push(stamp);
        self.writes += 1;
    }

    /// What is acknowledged is durable.
    pub(super) fn flushed(&mut self) {
        self.is_as(self.acknowledged);
    }

    /// This is what there is.
    pub(super) fn is_as(&mut self, content: Content) {
        self.acknowledged = content;
        self.since_flush = content.map(|stamp| vec![stamp]);
    }
}

impl World {
    /// The application does something, or a write of its goes on.
    pub(super) fn step_application(&mut self) -> Checked {
        let host = self.application.at;
        match self.hosts[host].device() {
            Device::Serving | Device::Held => self.use_device(host),
            Device::Failed | Device::None => {
                self.fail_waiting(host);
                self.move_application();
                Ok(())
            }
        }
    }

    /// To the device that serves, if one does.
    fn move_application(&mut self) {
        let serves = |host: &HostId| self.hosts[*host].device() == Device::Serving;
        if let Some(host) = (0..NAMES.len()).find(serves) {
            self.application.at = host;
        }
    }

    fn use_device(&mut self, host: HostId) -> Checked {
        let dice = self.rng.below(10);
        let Some(process) = self.hosts[host].process.as_mut() else {
            return Ok(());
        };
        match dice {
            0 if process.device == Device::Serving => {
                let store = &mut self.hosts[host].store;
                let covered = store.begin_sync();
                store.end_sync(&covered);
                self.application.flushed();
                Ok(())
            }
            0..=3 => {
                let block = self.rng.below(BLOCKS as u64) as usize;
                if !process.writes.iter().any(|write| write.block == block) {
                    self.application.stamps += 1;
                    let stamp = self.application.stamps;
                    let step = WriteStep::Waiting;
                    process.writes.push(Write { block, stamp, step });
                }
                Ok(())
            }
            _ if process.writes.is_empty() => Ok(()),
            _ => {
                let index = self.rng.below(process.writes.len() as u64) as usize;
                self.go_on_with_write(host, index)
            }
        }
    }

    fn go_on_with_write(&mut self, host: HostId, index: usize) -> Checked {
        let Some(process) = self.hosts[host].process.as_mut() else {
            return Ok(());
        };
        let Write { block, stamp, step } = process.writes[index];
        match step {
            // It waits until the hold is over.
            WriteStep::Waiting if process.device == Device::Held => Ok(()),
            WriteStep::Waiting => {
                process.note(block);
                process.writes[index].step = WriteStep::Begun;
                Ok(())
            }
            WriteStep::Begun => {
                process.writes[index].step = WriteStep::Landed;
                self.hosts[host].store.write(block, stamp);
                match self.owner()? == Some(host) {
                    true => Ok(()),
                    false => Err(format!("L16: a write lands at {}", NAMES[host])),
                }
            }
            WriteStep::Landed => {
                process.writes.remove(index);
                if self.fault != Some(Fault::NotedOnlyBefore) {
                    process.note(block);
                }
                self.application.acknowledge(block, stamp);
                self.note(|| format!("  {} acknowledges {stamp} in {block}", NAMES[host]));
                Ok(())
            }
        }
    }

    /// Of what was not acknowledged nobody knew whether it counts; now it does or does not.
    pub(super) fn settle_after_crash(
        &mut self,
        host: HostId,
        writes: &[Write],
        power_cut: bool,
    ) -> Checked {
        if self.owner()? != Some(host) {
            return Ok(());
        }
        let content = self.content(host);
        for write in writes {
            if write.step == WriteStep::Landed {
                self.application.since_flush[write.block].push(write.stamp);
                if content[write.block] == write.stamp {
                    self.application.acknowledged[write.block] = write.stamp;
                }
            }
        }
        if power_cut {
            self.check_durable(host, &content)?;
            self.application.is_as(content);
        }
        Ok(())
    }
}
