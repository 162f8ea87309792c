//! Cutting the power after every step, and looking at what is left.

use std::path::PathBuf;

use super::disk::{Cut, Disk, SimFile, Trouble};
use super::model::Model;
use super::opened::{Seen, open};
use super::outcome::{Event, Outcome};
use super::workload::Workload;
use crate::seeded_random::Rng;
use crate::volume::cache::FoundState;
use crate::volume::cache::open::Started;

/// What the steps between those of a checkpoint need as well.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) disk: Disk,
    pub(super) model: Model,
    pub(super) rng: Rng,
    pub(super) workload: Option<Workload>,
    /// The epochs that `meta` may have.
    pub(super) epochs: Vec<u64>,
    /// Where what is only looked at has its live map, in a boot of its own each time.
    pub(super) check_directory: PathBuf,
    /// The newest commit that was found.
    pub(super) newest: u64,
    pub(super) outcome: Outcome,
    pub(super) failure: Option<String>,
}

impl Shared {
    /// Between two changes of something else.
    pub(super) fn between(&mut self) {
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
    pub(super) fn step(&mut self) {
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

    /// Sends all that is dirty and has the origin flush it. Sends that fail are made up for.
    pub(super) fn sweep(&mut self) {
        // What is on its way already may be older.
        while self.send_on() {
            self.explore();
        }
        loop {
            if let Some(workload) = &mut self.workload {
                workload.take_all();
            }
            if !self.send_on() {
                return;
            }
            while self.send_on() {
                self.explore();
            }
        }
    }

    fn send_on(&mut self) -> bool {
        let (workload, model, rng) = (&mut self.workload, &mut self.model, &mut self.rng);
        workload
            .as_mut()
            .is_some_and(|workload| workload.send_on(model, rng))
    }

    /// What of the sends of a mount that is gone was not flushed is durable at the origin in the end, or
    /// lost.
    pub(super) fn settle_origin(&mut self) {
        match self.rng.percent(50) {
            true => self.model.flush_origin(),
            false => self.model.cut_origin(),
        }
    }

    /// The origin loses its power, and is there again.
    pub(super) fn cut_origin(&mut self) {
        self.model.cut_origin();
        if let Some(workload) = &mut self.workload {
            workload.origin_cut();
        }
        self.explore();
    }

    /// With this probability in percent, death before one of the next so many changes.
    pub(super) fn death(&mut self, percent: u64, changes: u64) -> Option<(Trouble, u64)> {
        let when = self.rng.below(changes);
        self.rng.percent(percent).then_some((Trouble::Death, when))
    }

    pub(super) fn drain(&mut self) {
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
    pub(super) fn explore(&mut self) {
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
    pub(super) fn reopen(&mut self, disk: &Disk) -> Result<(Started, SimFile), String> {
        let mut boot_id = [0xff; 16];
        boot_id[..8].copy_from_slice(&self.rng.next().to_le_bytes());
        open(disk, &self.check_directory, boot_id)
            .map_err(|error| format!("cannot open: {}", error.chain()))
    }

    pub(super) fn check(&mut self, disk: &Disk) -> Result<(), String> {
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
