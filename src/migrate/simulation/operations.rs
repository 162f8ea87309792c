//! Ends what was begun, one step at a time, well or not.

use std::time::Duration;

use super::carry_out::values;
use super::fault::Fault;
use super::host::{Device, HostId, Operation, Pull, Pulled};
use super::outcome::Happened;
use super::store::Stamp;
use super::world::{Checked, NAMES, World};
use crate::migrate::protocol::{
    BlockSet, CommitRecord, LeecherEvent, Measured, Proof, SeederEvent, Standing,
};
use crate::volume::geometry::BlockIndex;

/// What of it fails, in percent, unless all is calm.
const FAILURES_PERCENT: u64 = 2;
const RECORD_FAILURES_PERCENT: u64 = 8;

/// How many blocks of a hundred go bad in a world where they do.
const ROT_PERCENT: u64 = 4;

impl World {
    /// Operations of which a step can be taken.
    pub(super) fn ready_operations(&self) -> Vec<(HostId, usize)> {
        let mut ready = Vec::new();
        for host in 0..NAMES.len() {
            let Some(process) = &self.hosts[host].process else {
                continue;
            };
            for (index, operation) in process.operations.iter().enumerate() {
                let may_go_on = match operation {
                    Operation::Hold(_) => {
                        !process.is_busy() || self.fault == Some(Fault::HoldNotDrained)
                    }
                    Operation::Pull(pull) => {
                        let can_fetch = !matches!(pull.what, Pulled::Final(_))
                            && self.hosts[self.seeder_of(host)].process.is_some();
                        pull.wanted.is_empty() || !pull.fetched.is_empty() || can_fetch
                    }
                    _ => true,
                };
                if may_go_on {
                    ready.push((host, index));
                }
            }
        }
        ready
    }

    fn fails(&mut self, percent: u64) -> bool {
        !self.is_calm && self.rng.percent(percent)
    }

    fn result(&mut self, percent: u64) -> Result<(), String> {
        match self.fails(percent) {
            true => Err(String::new()),
            false => Ok(()),
        }
    }

    pub(super) fn go_on(&mut self, host: HostId, index: usize) -> Checked {
        let Some(process) = self.process(host) else {
            return Ok(());
        };
        let operation = process.operations.swap_remove(index);
        match operation {
            Operation::Pull(pull) => self.pull(host, pull),
            Operation::Collect(session, blocks) => {
                self.seeder_event(host, SeederEvent::Collected { session, blocks })
            }
            Operation::Hook(attempt, hook) => {
                let result = self.result(FAILURES_PERCENT);
                self.seeder_event(
                    host,
                    SeederEvent::HookEnded {
                        attempt,
                        hook,
                        result,
                    },
                )
            }
            Operation::Hold(attempt) => self.seeder_event(host, SeederEvent::Held(attempt)),
            Operation::Sync {
                attempt,
                prove,
                blocks,
                covered,
            } => {
                let failed = self.fails(FAILURES_PERCENT);
                let store = &mut self.hosts[host].store;
                if !failed && self.fault != Some(Fault::HoldWithoutFlush) {
                    store.end_sync(&covered);
                }
                let proof = prove.then(|| proof_of(store.now.iter().copied().enumerate()));
                let result = if failed {
                    Err(String::new())
                } else {
                    Ok(proof)
                };
                self.seeder_event(
                    host,
                    SeederEvent::Synced {
                        attempt,
                        blocks,
                        result,
                    },
                )
            }
            Operation::WriteCommit(..)
            | Operation::EraseCommit(_)
            | Operation::WriteReleased(_)
            | Operation::Record(_) => self.end_record(host, &operation),
            Operation::Prove(attempt, blocks) => {
                let proof = Some(proof_of(values(&blocks, &self.hosts[host].store.now)));
                self.seeder_event(host, SeederEvent::Proved { attempt, proof })
            }
            Operation::Secure {
                attempt,
                prove,
                covered,
            } => {
                let failed = self.fails(FAILURES_PERCENT);
                let store = &mut self.hosts[host].store;
                if !failed && self.fault != Some(Fault::SecureWithoutSync) {
                    store.end_sync(&covered);
                }
                let proof = prove.then(|| proof_of(store.now.iter().copied().enumerate()));
                let result = if failed {
                    Err(String::new())
                } else {
                    Ok(proof)
                };
                self.leecher_event(host, LeecherEvent::Secured { attempt, result })
            }
            Operation::SecureRest(covered) => {
                let result = match self.fails(FAILURES_PERCENT) {
                    true => Err(String::new()),
                    false => Ok(self.secure_rest(host, &covered)),
                };
                self.leecher_event(host, LeecherEvent::RestSecured(result))
            }
            Operation::StartDevice => {
                if let Some(process) = self.process(host) {
                    process.device = Device::Serving;
                }
                let standing = self.hosts[host].standing();
                if self.leg.seeder == host && matches!(standing, Some(Standing::Owner(_))) {
                    self.seed(host);
                }
                self.leecher_event(host, LeecherEvent::Started(Ok(())))
            }
        }
    }

    fn secure_rest(&mut self, host: HostId, covered: &super::store::Covered) -> (BlockSet, Proof) {
        let skips = self.fault == Some(Fault::RestWithoutSync);
        let host = &mut self.hosts[host];
        if !skips {
            host.store.end_sync(covered);
        }
        let pulled = host.rest.iter().enumerate();
        let pulled: Vec<(usize, Stamp)> = pulled
            .filter_map(|(block, stamp)| stamp.map(|stamp| (block, stamp)))
            .collect();
        let blocks = pulled.iter().map(|(block, _)| BlockIndex(*block as u64));
        (blocks.collect(), proof_of(pulled))
    }

    /// A record that fails to be written may count all the same.
    fn end_record(&mut self, host: HostId, operation: &Operation) -> Checked {
        let result = self.result(RECORD_FAILURES_PERCENT);
        if result.is_ok() || self.rng.percent(50) {
            self.land(host, operation);
        }
        if result.is_err() {
            self.outcome.count(Happened::RecordFailed);
        }
        match operation {
            Operation::WriteCommit(..) => {
                self.seeder_event(host, SeederEvent::CommitWritten(result))
            }
            Operation::EraseCommit(_) => {
                self.outcome.count(Happened::CommitErased);
                self.seeder_event(host, SeederEvent::CommitErased(result))
            }
            Operation::WriteReleased(_) => {
                self.seeder_event(host, SeederEvent::ReleasedWritten(result))
            }
            Operation::Record(record) => {
                let stage = record.stage;
                self.leecher_event(host, LeecherEvent::Recorded { stage, result })
            }
            _ => Ok(()),
        }
    }

    /// A record is on disk.
    pub(super) fn land(&mut self, host: HostId, operation: &Operation) {
        match operation {
            Operation::WriteCommit(record, _) => self.land_commit(host, record),
            Operation::WriteReleased(record) => {
                let commit = &mut self.hosts[host].records.commit;
                if let Some(commit) = commit
                    .as_mut()
                    .filter(|commit| commit.attempt == record.attempt)
                {
                    commit.released = true;
                }
            }
            Operation::EraseCommit(before) => self.hosts[host].records.commit = before.clone(),
            Operation::Record(record) => {
                self.hosts[host].records.leech = Some(record.clone());
                self.hosts[host].is_fresh = false;
            }
            _ => {}
        }
    }

    fn land_commit(&mut self, host: HostId, record: &CommitRecord) {
        self.hosts[host].records.commit = Some(record.clone());
        // Both ends were durable before.
        self.application.flushed();
        let to = NAMES.iter().position(|name| *name == record.to);
        let to = to.map(|to| &self.hosts[to].records);
        let post_copy = to.is_some_and(|to| to.leech.as_ref().is_some_and(|leech| leech.post_copy));
        let back = to.is_some_and(|to| to.commit.is_some());
        self.outcome.count(Happened::Moved);
        if post_copy {
            self.outcome.count(Happened::MovedInPostCopy);
        }
        if back {
            self.outcome.count(Happened::MovedBack);
        }
    }

    fn pull(&mut self, host: HostId, mut pull: Pull) -> Checked {
        if pull.wanted.is_empty() && pull.fetched.is_empty() {
            return self.pulled(host, pull.what);
        }
        if self.fails(1) {
            return match pull.what {
                Pulled::Round { number, .. } => {
                    let result = Err(String::new());
                    self.leecher_event(host, LeecherEvent::Pulled { number, result })
                }
                Pulled::Final(attempt) => {
                    let result = Err(String::new());
                    self.leecher_event(host, LeecherEvent::Received { attempt, result })
                }
                Pulled::Rest => {
                    let result = Err(String::new());
                    self.leecher_event(host, LeecherEvent::RestPulled(result))
                }
            };
        }
        let seeder = self.seeder_of(host);
        let fetches = !matches!(pull.what, Pulled::Final(_)) && !pull.wanted.is_empty();
        let is_up = self.hosts[seeder].process.is_some();
        if fetches && is_up && (pull.fetched.is_empty() || self.rng.percent(50)) {
            let index = self.rng.below(pull.wanted.len() as u64) as usize;
            let block = pull.wanted.swap_remove(index);
            pull.fetched
                .push((block, self.hosts[seeder].store.now[block]));
        } else if !pull.fetched.is_empty() {
            let index = self.rng.below(pull.fetched.len() as u64) as usize;
            let (block, stamp) = pull.fetched.swap_remove(index);
            self.fill(host, pull.what, block, stamp);
        }
        if let Some(process) = self.process(host) {
            process.operations.push(Operation::Pull(pull));
        }
        Ok(())
    }

    fn fill(&mut self, host: HostId, what: Pulled, block: usize, mut stamp: Stamp) {
        if self.rots && !self.is_calm && self.rng.percent(ROT_PERCENT) {
            stamp ^= 1 << 31;
        }
        let overwrites = self.fault == Some(Fault::FetchOverwrites);
        let host = &mut self.hosts[host];
        if what == Pulled::Rest {
            if host.store.present[block] && !overwrites {
                return;
            }
            host.rest[block] = Some(stamp);
        }
        host.store.write(block, stamp);
    }

    fn pulled(&mut self, host: HostId, what: Pulled) -> Checked {
        let event = match what {
            Pulled::Round { number, bytes } => {
                let measured = Measured {
                    bytes,
                    took: Duration::from_millis(self.rng.below(300)),
                    rtt: Duration::from_millis(self.rng.below(60)),
                };
                let result = Ok(measured);
                LeecherEvent::Pulled { number, result }
            }
            Pulled::Final(attempt) => {
                let result = Ok(());
                LeecherEvent::Received { attempt, result }
            }
            Pulled::Rest => LeecherEvent::RestPulled(Ok(())),
        };
        self.leecher_event(host, event)
    }
}

/// Something that differs wherever blocks or their content do.
fn proof_of(blocks: impl IntoIterator<Item = (usize, Stamp)>) -> Proof {
    let mut digest = 0xcbf2_9ce4_8422_2325_u64;
    for (block, stamp) in blocks {
        for part in [block as u64, u64::from(stamp)] {
            digest = (digest ^ part).wrapping_mul(0x0000_0100_0000_01b3);
            digest ^= digest >> 29;
        }
    }
    let mut proof = [0; 32];
    proof[..8].copy_from_slice(&digest.to_be_bytes());
    Proof(proof)
}
