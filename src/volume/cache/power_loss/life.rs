//! The lives of one cache: opened, used, cut off, opened again.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use super::cuts::Shared;
use super::disk::{Cut, Disk, Fault, SimFile, Trouble};
use super::model::{Model, watched};
use super::opened::{Seen, compare_with_files, home, open, open_unaware};
use super::outcome::{Event, Outcome};
use super::workload::Workload;
use crate::ErrorKind;
use crate::seeded_random::Rng;
use crate::volume::StateMap;
use crate::volume::cache::files::StoreFile;
use crate::volume::cache::open::Started;
use crate::volume::cache::{Checkpointer, FoundState};
use crate::volume::geometry::{BlockIndex, RegionIndex};

/// How often a cache is opened in one life after another.
const LIVES: u32 = 5;

/// What a mount does between two of them.
const ACTIONS_MAX: u64 = 90;

/// One cache, from its making on.
pub(super) struct Life {
    shared: Arc<Mutex<Shared>>,
    /// Of the last process, and another one.
    run_directories: [PathBuf; 2],
    boot_id: [u8; 16],
    fault: Option<Fault>,
    /// How the last mount ended.
    ended: Ended,
    /// A sync has failed, and nobody has opened the cache since who accepts that.
    broken: bool,
}

/// How a mount ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// By a power cut or a clean stop; or there was none.
    Gone,
    /// Its process died.
    Killed,
    /// Its process died after a sync had failed.
    KilledBroken,
    /// Its process died, and the next one looks for its live map in another place.
    KilledElsewhere,
}

/// An opened cache.
struct Mount {
    started: Started,
    data: SimFile,
}

impl Life {
    /// Lives it all; the error says which law was broken.
    pub(super) fn run(seed: u64, fault: Option<Fault>) -> Result<Outcome, String> {
        let home = home();
        let life = Self {
            shared: Arc::new(Mutex::new(Shared {
                disk: Disk::new(),
                model: Model::new(),
                rng: Rng::new(seed),
                workload: None,
                epochs: vec![0],
                check_directory: home.path().join("check"),
                newest: 0,
                outcome: Outcome::default(),
                failure: None,
            })),
            run_directories: ["run", "elsewhere"].map(|name| home.path().join(name)),
            boot_id: [1; 16],
            fault,
            ended: Ended::Gone,
            broken: false,
        };
        life.live()
    }

    fn live(mut self) -> Result<Outcome, String> {
        if self.fault == Some(Fault::OneSlot) {
            self.shared().disk.plant(self.fault);
        }
        for _ in 0..LIVES {
            self.move_elsewhere();
            let mount = self.open()?;
            self.shared().disk.plant(self.fault);
            let actions = self.shared().rng.below(ACTIONS_MAX);
            let mut trouble = None;
            for _ in 0..actions {
                self.act(&mount)?;
                trouble = self.have_trouble(&mount)?;
                if trouble.is_some() {
                    break;
                }
            }
            self.end(mount, trouble)?;
        }
        Ok(self.shared().outcome.clone())
    }

    /// Now and then a process has another run-time directory than the one before it, with a live map
    /// of long ago.
    fn move_elsewhere(&mut self) {
        if self.ended == Ended::KilledBroken || !self.shared().rng.percent(15) {
            return;
        }
        self.run_directories.swap(0, 1);
        if self.ended == Ended::Killed {
            self.ended = Ended::KilledElsewhere;
            self.shared().outcome.count(Event::KilledElsewhere);
        }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("not poisoned")
    }

    /// Does something of which each change is looked at, with steps of the workload in between.
    fn watched<R>(&self, act: impl FnOnce() -> R) -> Result<R, String> {
        let disk = self.shared().disk.clone();
        let shared = self.shared.clone();
        disk.observe(Some(Box::new(move || {
            shared.lock().expect("not poisoned").between();
        })));
        let result = act();
        disk.observe(None);
        let mut shared = self.shared();
        shared.explore();
        shared.failure.take().map_or(Ok(result), Err)
    }

    fn open(&mut self) -> Result<Mount, String> {
        let disk = self.shared().disk.clone();
        let mut is_second_try = false;
        let (started, data) = loop {
            let death = self.shared().death(20, 12);
            self.mark_old_failure(true);
            if self.broken {
                self.is_refused(&disk)?;
            }
            disk.arm(death);
            let opened = self.watched(|| open(&disk, &self.run_directories[0], self.boot_id))?;
            disk.arm(None);
            match opened {
                Ok(opened) => break opened,
                Err(_) if disk.is_dead() => {
                    self.bury(&disk);
                    // It may have noted that all is well as the last thing it did.
                    self.broken &= self.is_refused(&disk).is_ok();
                    is_second_try = true;
                    self.shared().outcome.count(Event::KilledOpening);
                }
                Err(error) => return Err(format!("cannot open: {}", error.chain())),
            }
        };
        self.broken = false;
        if started.found.state != FoundState::Continued {
            self.shared().settle_origin();
        }
        let continued = started.found.state == FoundState::Continued;
        if continued != (self.ended == Ended::Killed) && !(continued && is_second_try) {
            return Err(format!("{:?} after {:?}", started.found, self.ended));
        }
        let mut shared = self.shared();
        let map = &started.map;
        for (sector, stamp) in Seen::of(map).stamps(&data, &shared.model)? {
            let model = &mut shared.model;
            if matches!(self.ended, Ended::KilledBroken | Ended::KilledElsewhere) {
                if !model.allows(sector, stamp) {
                    return Err(format!("L10: sector {sector} has {stamp:#x}"));
                }
                model.roll_back(sector, stamp);
            } else if !model.allows_now(sector, stamp) {
                let allowed = model.allowed(sector);
                return Err(format!(
                    "L11: sector {sector} has {stamp:#x}, not the last of {allowed:x?}"
                ));
            }
        }
        if self.ended == Ended::KilledBroken {
            shared.outcome.count(Event::RolledBack);
        }
        shared.workload = Some(Workload::new(map.clone(), disk.file("data"), self.fault));
        drop(shared);
        Ok(Mount { started, data })
    }

    /// Somebody who does not know of the failed sync gets nothing, and the refusal changes nothing.
    fn is_refused(&self, disk: &Disk) -> Result<(), String> {
        match open_unaware(disk, &self.run_directories[0], self.boot_id) {
            Err(error) if error.kind() == ErrorKind::Dirty => Ok(()),
            other => Err(format!(
                "after a failed sync: {:?}",
                other.map(|(opened, _)| opened.found)
            )),
        }
    }

    /// Tells a note of a failed sync that is there already from one that a call makes which fails
    /// only as its process is dead.
    fn mark_old_failure(&self, mark: bool) {
        let entries = std::fs::read_dir(&self.run_directories[0])
            .into_iter()
            .flatten();
        for path in entries.map(|entry| entry.expect("listed").path()) {
            let is_note = path.extension().is_some_and(|name| name == "failed");
            if is_note && mark {
                std::fs::write(&path, "old").expect("written");
            } else if is_note && std::fs::read(&path).expect("read").is_empty() {
                std::fs::remove_file(&path).expect("removed");
            }
        }
    }

    /// After the process died inside of a call.
    fn bury(&self, disk: &Disk) {
        disk.revive();
        self.mark_old_failure(false);
    }

    fn act(&self, mount: &Mount) -> Result<(), String> {
        let (dice, wanted) = {
            let mut shared = self.shared();
            let dice = shared.rng.below(100);
            (
                dice,
                shared
                    .workload
                    .as_mut()
                    .map(|all| std::mem::take(&mut all.wanted)),
            )
        };
        let wanted = wanted.unwrap_or_default();
        let checkpointer = &mount.started.checkpointer;
        if !wanted.writes.is_empty() {
            self.shared().outcome.count(Event::Intents);
            self.make_ready(mount, &wanted.writes)?;
        }
        if let Some(blocks) = wanted.zeros {
            self.watched(|| checkpointer.make_zero_ready(blocks))?
                .expect("ready");
        }
        match dice {
            0..=7 => self.flush(mount),
            8..=11 => self
                .watched(|| checkpointer.checkpoint_in_background())
                .map(|done| done.expect("durable")),
            12..=19 => self.settle(mount),
            20 | 21 => self.set_epoch(mount),
            22 | 23 => self.flush_remotely(mount),
            24 | 25 => {
                let mut shared = self.shared();
                shared.cut_origin();
                shared.outcome.count(Event::OriginCut);
                shared.failure.take().map_or(Ok(()), Err)
            }
            _ => {
                let mut shared = self.shared();
                shared.step();
                shared.failure.take().map_or(Ok(()), Err)
            }
        }
    }

    fn make_ready(&self, mount: &Mount, regions: &[RegionIndex]) -> Result<(), String> {
        if self.fault == Some(Fault::NoIntents) {
            for region in regions {
                mount.started.map.prepare_write(*region).expect("memory");
                mount.started.map.set_write_ready(*region);
            }
            return Ok(());
        }
        self.watched(|| mount.started.checkpointer.make_write_ready(regions))?
            .expect("ready");
        Ok(())
    }

    fn flush(&self, mount: &Mount) -> Result<(), String> {
        let began = self.shared().model.begin_flush();
        if mount.started.map.needs_checkpoint() {
            self.watched(|| mount.started.checkpointer.checkpoint())?
                .expect("durable");
            self.shared().outcome.count(Event::Checkpoint);
        } else {
            self.watched(|| mount.data.sync_data())?.expect("durable");
            self.shared().outcome.count(Event::FlushOfDataAlone);
        }
        let mut shared = self.shared();
        shared.model.end_flush(began);
        shared.explore();
        shared.failure.take().map_or(Ok(()), Err)
    }

    /// A flush that promises that the origin has it.
    fn flush_remotely(&self, mount: &Mount) -> Result<(), String> {
        let began = {
            let mut shared = self.shared();
            let began = shared.model.begin_flush();
            shared.sweep();
            began
        };
        if self.fault != Some(Fault::NoSyncAtRemoteFlush) {
            self.watched(|| mount.started.checkpointer.sync_data())?
                .expect("durable");
        }
        let mut shared = self.shared();
        shared.model.end_flush(began);
        shared.outcome.count(Event::RemoteFlush);
        shared.explore();
        shared.failure.take().map_or(Ok(()), Err)
    }

    fn settle(&self, mount: &Mount) -> Result<(), String> {
        let map = &mount.started.map;
        let ready = || {
            map.regions()
                .filter(|region| map.write_ready(*region))
                .count()
        };
        let before = ready();
        self.watched(|| mount.started.checkpointer.settle_intents())?
            .expect("settled");
        if ready() < before {
            self.shared().outcome.count(Event::Settled);
        }
        Ok(())
    }

    fn set_epoch(&self, mount: &Mount) -> Result<(), String> {
        let epoch = {
            let mut shared = self.shared();
            let epoch = shared.epochs[0] + 1;
            shared.epochs.push(epoch);
            epoch
        };
        let meta = &mount.started.meta;
        self.watched(|| meta.change(|meta| meta.epoch = epoch))?
            .expect("written");
        let mut shared = self.shared();
        shared.epochs = vec![epoch];
        shared.outcome.count(Event::Epoch);
        Ok(())
    }

    /// Now and then a call of the checkpointer meets an error. Gives those after which a mount has to
    /// end.
    fn have_trouble(&self, mount: &Mount) -> Result<Option<Trouble>, String> {
        let (disk, what, trouble) = {
            let mut shared = self.shared();
            if self.fault.is_some() || !shared.rng.percent(6) {
                return Ok(None);
            }
            let trouble = match shared.rng.below(10) {
                0..=3 => Some((Trouble::Write, shared.rng.below(3))),
                4..=6 => Some((Trouble::Sync, shared.rng.below(2))),
                _ => shared.death(100, 6),
            };
            (shared.disk.clone(), shared.rng.below(3), trouble)
        };
        let checkpointer = &mount.started.checkpointer;
        disk.arm(trouble);
        let map = &mount.started.map;
        let regions: Vec<_> = map.regions().collect();
        let ready: Vec<_> = map.regions().filter(|at| map.write_ready(*at)).collect();
        let result = self.watched(|| match what {
            0 => checkpointer.checkpoint(),
            1 => checkpointer.settle_intents(),
            _ => checkpointer.make_write_ready(&regions),
        })?;
        let is_still_armed = disk.arm(None);
        let trouble = trouble.map(|(trouble, _)| trouble);
        if disk.is_dead() {
            self.bury(&disk);
            self.shared().outcome.count(Event::KilledInside);
            return Ok(trouble);
        }
        match (result, trouble) {
            (Ok(()), _) if is_still_armed => Ok(None),
            // That was the seal, on which nothing depends.
            (Ok(()), Some(Trouble::Write)) => Ok(None),
            (Err(error), Some(Trouble::Write)) if error.raw_os_error() == Some(libc::ENOSPC) => {
                self.shared().outcome.count(Event::NoSpace);
                self.go_on_after(mount, &ready)?;
                Ok(None)
            }
            (Err(_), Some(Trouble::Sync)) => {
                self.shared().outcome.count(Event::FailedSync);
                for again in [checkpointer.checkpoint(), checkpointer.close()] {
                    again.err().ok_or("a failed sync was forgotten")?;
                }
                Ok(trouble)
            }
            (other, trouble) => Err(format!("{trouble:?} became {other:?}")),
        }
    }

    /// Writes at once after a call that failed, when it is not known what of it is on the disk, to
    /// regions that were ready before.
    fn go_on_after(&self, mount: &Mount, regions: &[RegionIndex]) -> Result<(), String> {
        self.make_ready(mount, regions)?;
        let mut shared = self.shared();
        for _ in 0..20 {
            shared.step();
        }
        shared.failure.take().map_or(Ok(()), Err)
    }

    /// The mount ends somehow.
    fn end(&mut self, mount: Mount, trouble: Option<Trouble>) -> Result<(), String> {
        let dice = self.shared().rng.below(10);
        self.ended = Ended::Gone;
        self.broken = trouble == Some(Trouble::Sync);
        match dice {
            _ if self.broken && dice < 8 => self.kill(trouble),
            0..=4 => self.kill(trouble),
            5 | 6 if trouble.is_none() => {
                self.close(&mount.started.checkpointer, &mount.started.map)
            }
            _ => self.power_cut(),
        }
    }

    /// The process dies, and the machine runs on.
    fn kill(&mut self, trouble: Option<Trouble>) -> Result<(), String> {
        self.ended = if trouble == Some(Trouble::Sync) {
            Ended::KilledBroken
        } else {
            Ended::Killed
        };
        let mut shared = self.shared();
        shared.workload = None;
        shared.outcome.count(Event::Kill);
        Ok(())
    }

    fn close(&mut self, checkpointer: &Checkpointer, map: &StateMap) -> Result<(), String> {
        let (began, disk, death) = {
            let mut shared = self.shared();
            shared.drain();
            shared.workload = None;
            let death = shared.death(50, 8);
            (shared.model.begin_flush(), shared.disk.clone(), death)
        };
        disk.arm(death);
        let closed = self.watched(|| checkpointer.close())?;
        disk.arm(None);
        if disk.is_dead() {
            self.bury(&disk);
            self.ended = Ended::Killed;
            self.shared().outcome.count(Event::KilledClosing);
            return Ok(());
        }
        closed.expect("closed");
        let mut shared = self.shared();
        shared.model.end_flush(began);
        shared.outcome.count(Event::Close);
        let after = shared.disk.cut(Cut::Nothing, &mut Rng::new(0));
        let (reopened, _) = shared.reopen(&after)?;
        let (before, after) = (Seen::of(map), Seen::of(&reopened.map));
        let differ = |block: &BlockIndex| before.block(*block) != after.block(*block);
        match watched().find(differ) {
            Some(block) => Err(format!("block {} is not as it was when closed", block.0)),
            None => Ok(()),
        }
    }

    /// The power is cut, and the machine starts again.
    fn power_cut(&mut self) -> Result<(), String> {
        self.boot_id[0] += 1;
        let mut shared = self.shared();
        shared.workload = None;
        shared.settle_origin();
        let cut = Cut::random(&mut shared.rng);
        let disk = {
            let Shared { disk, rng, .. } = &mut *shared;
            disk.cut(cut, rng)
        };
        // Looked at in a copy, so that its own opening is cut off as well.
        let copy = disk.cut(Cut::All, &mut Rng::new(0));
        let (started, data) = shared
            .reopen(&copy)
            .map_err(|what| format!("{cut:?}: {what}"))?;
        let seen = Seen::of(&started.map);
        for (sector, stamp) in seen.stamps(&data, &shared.model)? {
            shared.model.settle(sector, stamp);
        }
        compare_with_files(&disk, &seen, &data)?;
        shared.outcome.count(Event::PowerCut);
        shared.epochs = vec![started.meta.get().epoch];
        shared.disk = disk;
        Ok(())
    }
}
