//! The lives of one cache: opened, used, cut off, opened again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::disk::{Cut, Disk, Fault, SimFile, Trouble};
use super::model::{Model, Stamp, sectors_of, stamp_of, watched};
use super::rng::Rng;
use super::workload::Workload;
use super::{SIZE_BYTES, SLOTS};
use crate::volume::StateMap;
use crate::volume::cache::files::StoreFile;
use crate::volume::cache::open::{Place, Started};
use crate::volume::cache::{CacheOptions, Checkpointer, FoundState};
use crate::volume::geometry::BlockIndex;
use crate::volume::state_map::RegionSnapshot;

/// How often a cache is opened in one life after another.
const LIVES: u32 = 5;

/// What a mount does between two of them.
const ACTIONS_MAX: u64 = 90;

/// What happened.
#[derive(Debug, Default, Clone)]
pub(super) struct Outcome {
    /// How many times the power was cut and what was found was looked at.
    pub(super) states: u64,
    /// How often what came up in a life did.
    pub(super) events: BTreeMap<Event, u64>,
}

/// Something that a life has to have had in it to mean anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    PowerCut,
    Kill,
    Close,
    Checkpoint,
    FlushOfDataAlone,
    Intents,
    Settled,
    Epoch,
    /// A commit that was under way did not count.
    OlderCommit,
    NoSpace,
    FailedSync,
    RolledBack,
    KilledInside,
    KilledOpening,
}

impl Event {
    pub(super) const ALL: [Self; 14] = [
        Self::PowerCut,
        Self::Kill,
        Self::Close,
        Self::Checkpoint,
        Self::FlushOfDataAlone,
        Self::Intents,
        Self::Settled,
        Self::Epoch,
        Self::OlderCommit,
        Self::NoSpace,
        Self::FailedSync,
        Self::RolledBack,
        Self::KilledInside,
        Self::KilledOpening,
    ];
}

impl Outcome {
    fn count(&mut self, event: Event) {
        *self.events.entry(event).or_default() += 1;
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.states += other.states;
        for (event, count) in &other.events {
            *self.events.entry(*event).or_default() += count;
        }
    }
}

/// What the steps between those of a checkpoint need as well.
#[derive(Debug)]
struct Shared {
    disk: Disk,
    model: Model,
    rng: Rng,
    workload: Option<Workload>,
    /// The epochs that `meta` may have.
    epochs: Vec<u64>,
    /// Where what is only looked at has its live map, in a boot of its own each time.
    check_directory: PathBuf,
    /// The newest commit that was found.
    newest: u64,
    outcome: Outcome,
    failure: Option<String>,
}

/// One cache, from its making on.
pub(super) struct Life {
    shared: Arc<Mutex<Shared>>,
    run_directory: PathBuf,
    boot_id: [u8; 16],
    fault: Option<Fault>,
    /// How the last mount ended.
    ended: Ended,
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
}

/// An opened cache.
struct Mount {
    started: Started,
    data: SimFile,
}

impl Life {
    /// Lives it all; the error says which law was broken.
    pub(super) fn run(seed: u64, fault: Option<Fault>) -> Result<Outcome, String> {
        let in_memory = Some("/dev/shm").filter(|path| Path::new(path).is_dir());
        let home = match in_memory {
            Some(path) => tempfile::tempdir_in(path),
            None => tempfile::tempdir(),
        };
        let home = home.expect("a directory");
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
            run_directory: home.path().join("run"),
            boot_id: [1; 16],
            fault,
            ended: Ended::Gone,
        };
        life.live()
    }

    fn live(mut self) -> Result<Outcome, String> {
        if self.fault == Some(Fault::OneSlot) {
            self.shared().disk.plant(self.fault);
        }
        for _ in 0..LIVES {
            let mut mount = self.open()?;
            self.shared().disk.plant(self.fault);
            let actions = self.shared().rng.below(ACTIONS_MAX);
            let mut trouble = None;
            for _ in 0..actions {
                self.act(&mut mount)?;
                trouble = self.have_trouble(&mount)?;
                if trouble.is_some() {
                    break;
                }
            }
            self.end(mount, trouble)?;
        }
        Ok(self.shared().outcome.clone())
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
            disk.arm(death);
            self.mark_old_failure(true);
            let opened = self.watched(|| open(&disk, &self.run_directory, self.boot_id))?;
            disk.arm(None);
            match opened {
                Ok(opened) => break opened,
                Err(_) if disk.is_dead() => {
                    self.bury(&disk);
                    is_second_try = true;
                    self.shared().outcome.count(Event::KilledOpening);
                }
                Err(error) => return Err(format!("cannot open: {}", error.chain())),
            }
        };
        let continued = started.found.state == FoundState::Continued;
        if continued != (self.ended == Ended::Killed) && !(continued && is_second_try) {
            return Err(format!("{:?} after {:?}", started.found, self.ended));
        }
        let mut shared = self.shared();
        let map = &started.map;
        for (sector, stamp) in Seen::of(map).stamps(&data, &shared.model)? {
            let model = &mut shared.model;
            if self.ended == Ended::KilledBroken {
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
        shared.workload = Some(Workload::new(map.clone(), disk.file("data")));
        drop(shared);
        Ok(Mount { started, data })
    }

    /// Tells a note of a failed sync that is there already from one that a call makes which fails
    /// only as its process is dead.
    fn mark_old_failure(&self, mark: bool) {
        let entries = std::fs::read_dir(&self.run_directory).into_iter().flatten();
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

    fn act(&self, mount: &mut Mount) -> Result<(), String> {
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
                .watched(|| checkpointer.checkpoint())
                .map(|done| done.expect("durable")),
            12..=19 => self.settle(mount),
            20 | 21 => self.set_epoch(mount),
            _ => {
                let mut shared = self.shared();
                shared.step();
                shared.failure.take().map_or(Ok(()), Err)
            }
        }
    }

    fn make_ready(
        &self,
        mount: &Mount,
        regions: &[crate::volume::geometry::RegionIndex],
    ) -> Result<(), String> {
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

    fn set_epoch(&self, mount: &mut Mount) -> Result<(), String> {
        let epoch = {
            let mut shared = self.shared();
            let epoch = shared.epochs[0] + 1;
            shared.epochs.push(epoch);
            epoch
        };
        let meta = &mut mount.started.meta;
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
            if self.fault.is_some() || !shared.rng.percent(5) {
                return Ok(None);
            }
            let trouble = match shared.rng.below(10) {
                0..=4 => Some((Trouble::Write, shared.rng.below(3))),
                5 | 6 => Some((Trouble::Sync, shared.rng.below(2))),
                _ => shared.death(100, 6),
            };
            (shared.disk.clone(), shared.rng.below(3), trouble)
        };
        let checkpointer = &mount.started.checkpointer;
        disk.arm(trouble);
        let regions: Vec<_> = mount.started.map.regions().collect();
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

    /// The mount ends somehow.
    fn end(&mut self, mount: Mount, trouble: Option<Trouble>) -> Result<(), String> {
        let dice = self.shared().rng.below(10);
        self.ended = Ended::Gone;
        match dice {
            0..=4 => {
                // The process dies, and the machine runs on.
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
            5 | 6 if trouble.is_none() => {
                self.close(&mount.started.checkpointer, &mount.started.map)
            }
            _ => self.power_cut(),
        }
    }

    fn close(&self, checkpointer: &Checkpointer, map: &StateMap) -> Result<(), String> {
        let began = {
            let mut shared = self.shared();
            shared.drain();
            shared.workload = None;
            shared.model.begin_flush()
        };
        self.watched(|| checkpointer.close())?.expect("closed");
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
        for (sector, stamp) in Seen::of(&started.map).stamps(&data, &shared.model)? {
            shared.model.settle(sector, stamp);
        }
        shared.outcome.count(Event::PowerCut);
        shared.epochs = vec![started.meta.get().epoch];
        shared.disk = disk;
        Ok(())
    }
}

impl Shared {
    /// Between two changes of something else.
    fn between(&mut self) {
        if self.disk.is_dead() {
            return;
        }
        self.explore();
        let steps = self.rng.below(3);
        for _ in 0..steps {
            self.step();
        }
    }

    /// One step of the workload.
    fn step(&mut self) {
        let Self {
            workload: Some(workload),
            model,
            rng,
            ..
        } = self
        else {
            return;
        };
        workload.step(model, rng);
        self.explore();
    }

    /// With this probability in percent, death before one of the next so many changes.
    fn death(&mut self, percent: u64, changes: u64) -> Option<(Trouble, u64)> {
        let when = self.rng.below(changes);
        self.rng.percent(percent).then_some((Trouble::Death, when))
    }

    fn drain(&mut self) {
        let Self {
            workload: Some(workload),
            model,
            rng,
            ..
        } = self
        else {
            return;
        };
        while !workload.is_idle() {
            workload.advance(model, rng);
        }
    }

    /// Cuts the power in some ways and looks at what is found.
    fn explore(&mut self) {
        if self.failure.is_some() {
            return;
        }
        let mut cuts = vec![Cut::All];
        if !self.disk.is_durable() {
            cuts.push(Cut::Nothing);
            cuts.extend((0..2).map(|_| Cut::random(&mut self.rng)));
        }
        for cut in cuts {
            let disk = self.disk.cut(cut, &mut self.rng);
            self.outcome.states += 1;
            if let Err(what) = self.check(&disk) {
                self.failure = Some(format!("{cut:?}: {what}"));
                return;
            }
        }
    }

    /// Opens a disk as after a reboot.
    fn reopen(&mut self, disk: &Disk) -> Result<(Started, SimFile), String> {
        let mut boot_id = [0xff; 16];
        boot_id[..8].copy_from_slice(&self.rng.next().to_le_bytes());
        open(disk, &self.check_directory, boot_id)
            .map_err(|error| format!("cannot open: {}", error.chain()))
    }

    fn check(&mut self, disk: &Disk) -> Result<(), String> {
        let (started, data) = self.reopen(disk)?;
        let epoch = started.meta.get().epoch;
        if !self.epochs.contains(&epoch) {
            return Err(format!("epoch {epoch}, not one of {:?}", self.epochs));
        }
        if let FoundState::FromCheckpoint { sequence, .. } = started.found.state {
            if sequence < self.newest {
                self.outcome.count(Event::OlderCommit);
            }
            self.newest = self.newest.max(sequence);
        }
        for (sector, stamp) in Seen::of(&started.map).stamps(&data, &self.model)? {
            if !self.model.allows(sector, stamp) {
                let allowed = self.model.allowed(sector);
                return Err(format!(
                    "L10: sector {sector} has {stamp:#x}, not one of {allowed:x?}"
                ));
            }
        }
        Ok(())
    }
}

/// Opens the cache of a disk.
fn open(
    disk: &Disk,
    run_directory: &Path,
    boot_id: [u8; 16],
) -> Result<(Started, SimFile), crate::Error> {
    let options = CacheOptions {
        size_bytes: SIZE_BYTES,
        chunk_bytes: 64 << 10,
        identity: [3; 16],
        origin_name: "origin".to_owned(),
        persistent: true,
        run_directory: run_directory.to_owned(),
        in_flight_slots: SLOTS,
        direct_alignment_bytes: None,
    };
    let place = Place {
        directory: Arc::new(disk.clone()),
        run_directory: run_directory.to_owned(),
        boot_id,
        name: "disk".to_owned(),
    };
    let meta = place.prepare(&disk.file("data"), &options)?;
    let started = place.start(Arc::new(disk.file("data")), meta, &options)?;
    Ok((started, disk.file("data")))
}

/// What an opened map says.
struct Seen {
    regions: Vec<RegionSnapshot>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    Absent,
    Clean,
    Dirty,
}

impl Seen {
    fn of(map: &StateMap) -> Self {
        // It never becomes durable, so it is void.
        map.begin_snapshot();
        Self {
            regions: map.regions().map(|region| map.snapshot(region)).collect(),
        }
    }

    fn block(&self, block: BlockIndex) -> Block {
        let region = block.region();
        match &self.regions[region.0 as usize] {
            RegionSnapshot::Absent => Block::Absent,
            RegionSnapshot::PresentClean => Block::Clean,
            RegionSnapshot::PresentDirty => Block::Dirty,
            RegionSnapshot::Mixed(bits) => {
                let at = block.0 - region.first_block().0;
                let is_set = |words: &[u64]| words[at as usize / 64] >> (at % 64) & 1 == 1;
                match (is_set(&bits.present), is_set(&bits.dirty)) {
                    (false, _) => Block::Absent,
                    (true, false) => Block::Clean,
                    (true, true) => Block::Dirty,
                }
            }
        }
    }

    /// What each sector is read as. An error if one is clean and not what the origin has.
    fn stamps(&self, data: &SimFile, model: &Model) -> Result<Vec<(u64, Stamp)>, String> {
        watched()
            .flat_map(|block| sectors_of(block).map(move |sector| (block, sector)))
            .map(|(block, sector)| Ok((sector, self.stamp(block, sector, data, model)?)))
            .collect()
    }

    /// What a sector is read as. An error if it is clean and not what the origin has.
    fn stamp(
        &self,
        block: BlockIndex,
        sector: u64,
        data: &SimFile,
        model: &Model,
    ) -> Result<Stamp, String> {
        let origin = model.origin(sector);
        let state = self.block(block);
        if state == Block::Absent {
            return Ok(origin);
        }
        let stamp = stamp_of(&data.sector(sector)).ok_or("a sector is not one thing")?;
        if state == Block::Clean && stamp != origin {
            return Err(format!(
                "L12: block {} is clean, and sector {sector} has {stamp:#x}, but the origin {origin:#x}",
                block.0
            ));
        }
        Ok(stamp)
    }
}
