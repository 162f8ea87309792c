//! Begins what a machine decides.

use super::fault::Fault;
use super::host::{Armed, Device, HostId, Operation, Pull, Pulled, Timer, WriteStep};
use super::outcome::Happened;
use super::store::{BLOCKS, Stamp};
use super::world::{Checked, NAMES, Payload, World};
use crate::migrate::protocol::{
    BlockSet, LeecherAction, LeecherNotice, MigrationId, Reason, SeederAction, SeederNotice,
    ToLeecher,
};

impl World {
    pub(super) fn carry_out_for_seeder(&mut self, host: HostId, action: SeederAction) -> Checked {
        self.note(|| format!("    {} seeder → {action:?}", NAMES[host]));
        self.count_for_seeder(&action);
        let now_ms = self.now_ms;
        let store = &self.hosts[host].store;
        let (now, covered) = (store.now, store.begin_sync());
        let previous = self.hosts[host].records.commit.clone();
        let Some(process) = self.hosts[host].process.as_mut() else {
            return Ok(());
        };
        let operation = match action {
            SeederAction::Send(to, message) => {
                if let (ToLeecher::Released { attempt }, Some(commit)) = (&message, &previous)
                    && commit.attempt == *attempt
                    && !commit.released
                {
                    return Err(
                        "the new owner is let go, and a restart does not know it".to_owned()
                    );
                }
                if let Some(to) = self.host_of(to) {
                    self.send(host, to, Payload::ToLeecher(message));
                }
                return Ok(());
            }
            SeederAction::SendBytes(attempt, blocks) => {
                let bytes = values(&blocks, &now);
                if let Some(to) = self.host_of(attempt.migration()) {
                    self.send(host, to, Payload::Bytes(attempt, bytes));
                }
                return Ok(());
            }
            SeederAction::Track(session) => {
                let old = session.migration;
                process.tracking.retain(|(id, _)| id.migration != old);
                process.tracking.push((session, [false; BLOCKS]));
                return Ok(());
            }
            SeederAction::EndTracking(migration) => {
                process.tracking.retain(|(id, _)| id.migration != migration);
                return Ok(());
            }
            SeederAction::Collect(session) => {
                Operation::Collect(session, process.take_noted(session))
            }
            SeederAction::CallHook(attempt, hook) => Operation::Hook(attempt, hook),
            SeederAction::Hold(attempt) => {
                process.device = Device::Held;
                Operation::Hold(attempt)
            }
            SeederAction::Sync { attempt, prove } => {
                let blocks = process.take_noted(attempt.session);
                let busy = process.is_busy();
                self.offers.insert(attempt, now);
                if busy {
                    return Err("L16: the hold is over though a write is under way".to_owned());
                }
                return self.begin(
                    host,
                    Operation::Sync {
                        attempt,
                        prove,
                        blocks,
                        covered,
                    },
                );
            }
            SeederAction::Resume => {
                let held = |operation: &Operation| matches!(operation, Operation::Hold(_));
                process.operations.retain(|operation| !held(operation));
                if process.device == Device::Held {
                    process.device = Device::Serving;
                }
                return Ok(());
            }
            SeederAction::WriteCommit(record) => {
                self.check_equal(host, &record)?;
                return self.begin(host, Operation::WriteCommit(record, previous));
            }
            SeederAction::WriteReleased(record) => {
                self.check_may_release(host)?;
                Operation::WriteReleased(record)
            }
            SeederAction::EraseCommit => Operation::EraseCommit(process.commit_before.clone()),
            SeederAction::Fail => {
                process.device = Device::Failed;
                return self.check_may_fail(host);
            }
            SeederAction::RemoveDevice => {
                process.device = Device::None;
                return Ok(());
            }
            SeederAction::Prove(attempt, blocks) => Operation::Prove(attempt, blocks),
            SeederAction::Arm(timer, after) => {
                let due_ms = now_ms + after.as_millis() as u64;
                process.arm(Armed {
                    timer: Timer::Seeder(timer),
                    due_ms,
                });
                return Ok(());
            }
            SeederAction::Tell(SeederNotice::Released) => return self.check_may_release(host),
            SeederAction::ReadAnew | SeederAction::Tell(_) => return Ok(()),
        };
        self.begin(host, operation)
    }

    pub(super) fn carry_out_for_leecher(&mut self, host: HostId, action: LeecherAction) -> Checked {
        self.note(|| format!("    {} leecher → {action:?}", NAMES[host]));
        self.count_for_leecher(&action);
        let seeder = self.seeder_of(host);
        let operation = match action {
            LeecherAction::Send(message) => {
                self.send(host, seeder, Payload::ToSeeder(message));
                return Ok(());
            }
            LeecherAction::Record(record) => Operation::Record(record),
            LeecherAction::Pull { number, blocks } => Operation::Pull(Pull {
                what: Pulled::Round {
                    number,
                    bytes: blocks.len_bytes(),
                },
                wanted: indices(&blocks).collect(),
                fetched: Vec::new(),
            }),
            LeecherAction::StopPulling => {
                self.stop_pulling(host);
                return Ok(());
            }
            LeecherAction::Receive(attempt, blocks) => {
                let mut pull = Pull {
                    what: Pulled::Final(attempt),
                    wanted: indices(&blocks).collect(),
                    fetched: Vec::new(),
                };
                let arrived = self
                    .process(host)
                    .and_then(|process| process.arrived.take());
                if let Some((of, bytes)) = arrived
                    && of == attempt
                {
                    pull.wanted.clear();
                    pull.fetched = bytes;
                }
                Operation::Pull(pull)
            }
            LeecherAction::Secure { attempt, absent } => {
                let prove = absent.is_none();
                if let Some(absent) = absent {
                    self.leave_at_seeder(host, &absent);
                }
                let covered = self.hosts[host].store.begin_sync();
                Operation::Secure {
                    attempt,
                    prove,
                    covered,
                }
            }
            LeecherAction::StartDevice(_) => Operation::StartDevice,
            LeecherAction::PullRest => {
                let present = self.hosts[host].store.present;
                Operation::Pull(Pull {
                    what: Pulled::Rest,
                    wanted: (0..BLOCKS).filter(|block| !present[*block]).collect(),
                    fetched: Vec::new(),
                })
            }
            LeecherAction::SecureRest => Operation::SecureRest(self.hosts[host].store.begin_sync()),
            LeecherAction::Arm(timer, after) => {
                let due_ms = self.now_ms + after.as_millis() as u64;
                let timer = Timer::Leecher(timer);
                if let Some(process) = self.process(host) {
                    process.arm(Armed { timer, due_ms });
                }
                return Ok(());
            }
            LeecherAction::Tell(_) => return Ok(()),
        };
        self.begin(host, operation)
    }

    fn begin(&mut self, host: HostId, operation: Operation) -> Checked {
        if let Some(process) = self.process(host) {
            if let Operation::WriteCommit(_, before) = &operation {
                process.commit_before = before.clone();
            }
            process.operations.push(operation);
        }
        Ok(())
    }

    fn stop_pulling(&mut self, host: HostId) {
        let lands = self.fault == Some(Fault::StoppedPullLands);
        let Some(process) = self.process(host) else {
            return;
        };
        process.arrived = None;
        if lands {
            return;
        }
        process.operations.retain(
            |operation| !matches!(operation, Operation::Pull(pull) if pull.what != Pulled::Rest),
        );
    }

    fn leave_at_seeder(&mut self, host: HostId, absent: &BlockSet) {
        if self.fault == Some(Fault::AbsentIsPresent) {
            return;
        }
        let absent: Vec<usize> = indices(absent).collect();
        let host = &mut self.hosts[host];
        host.store.set_absent(|block| absent.contains(&block));
        host.rest = [None; BLOCKS];
    }

    /// The host whose process has this migration, or had it before it crashed.
    fn host_of(&self, migration: MigrationId) -> Option<HostId> {
        let has = |host: &HostId| {
            let host = &self.hosts[*host];
            let leech = host.records.leech.as_ref();
            let recorded = leech.and_then(|record| record.attempt);
            let process = host.process.as_ref();
            process.and_then(|process| process.migration) == Some(migration)
                || recorded.map(|attempt| attempt.migration()) == Some(migration)
        };
        (0..NAMES.len()).find(has)
    }

    fn count_for_seeder(&mut self, action: &SeederAction) {
        let happened = match action {
            SeederAction::Tell(SeederNotice::Resumed(Reason::HoldLimit)) => {
                Happened::ResumedByHoldLimit
            }
            SeederAction::Tell(SeederNotice::Resumed(Reason::ProofDiffers)) => {
                Happened::ProofDiffered
            }
            SeederAction::Tell(SeederNotice::Resumed(_)) => Happened::Resumed,
            SeederAction::Tell(SeederNotice::TooLate) => Happened::TooLate,
            SeederAction::Tell(SeederNotice::Released) => Happened::Released,
            SeederAction::Send(
                _,
                ToLeecher::Ended {
                    reason: Reason::Busy { .. },
                    ..
                },
            ) => Happened::RefusedBusy,
            SeederAction::Send(
                _,
                ToLeecher::Refused {
                    reason: Reason::Moved { .. },
                    ..
                },
            ) => Happened::RefusedMoved,
            _ => return,
        };
        self.outcome.count(happened);
    }

    fn count_for_leecher(&mut self, action: &LeecherAction) {
        let happened = match action {
            LeecherAction::Tell(LeecherNotice::AttemptEnded(Reason::ProofDiffers)) => {
                Happened::ProofDiffered
            }
            LeecherAction::Tell(LeecherNotice::TooLate) => Happened::TooLate,
            _ => return,
        };
        self.outcome.count(happened);
    }

    /// A request of the application at each device that has begun to fail, or is gone.
    pub(super) fn fail_waiting(&mut self, host: HostId) {
        if let Some(process) = self.process(host) {
            process
                .writes
                .retain(|write| write.step > WriteStep::Waiting);
        }
    }
}

impl super::host::Process {
    fn arm(&mut self, armed: Armed) {
        self.timers
            .retain(|other| !armed.timer.replaces(other.timer));
        self.timers.push(armed);
    }
}

/// The numbers of the blocks.
pub(super) fn indices(blocks: &BlockSet) -> impl Iterator<Item = usize> + '_ {
    blocks.iter().map(|block| block.0 as usize)
}

/// The blocks with what `content` has in them.
pub(super) fn values(blocks: &BlockSet, content: &[Stamp; BLOCKS]) -> Vec<(usize, Stamp)> {
    indices(blocks)
        .map(|block| (block, content[block]))
        .collect()
}
