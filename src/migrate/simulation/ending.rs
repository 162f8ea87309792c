//! How a run ends: calmly, and with everything that was begun.

use super::host::{Device, HostId};
use super::outcome::Happened;
use super::world::{Checked, NAMES, World};
use crate::migrate::protocol::{LeecherEvent, Stage, Standing};

/// Steps within which everything ends once it is calm.
const CALM_MAX: u32 = 6000;

impl World {
    /// A step in which nothing goes wrong.
    pub(super) fn calm(&mut self) -> Checked {
        self.outcome.steps += 1;
        let ready = self.ready_operations();
        let dice = self.rng.below(10);
        if !self.network.is_empty() && dice < 4 {
            let packet = self.network.remove(0);
            self.deliver(packet)?;
        } else if !ready.is_empty() && dice < 8 {
            let (host, index) = ready[self.rng.below(ready.len() as u64) as usize];
            self.go_on(host, index)?;
        } else if dice < 9 || !self.network.is_empty() || !ready.is_empty() {
            self.step_application()?;
        } else {
            self.wait()?;
        }
        self.check()
    }

    /// Nothing happens by itself any more.
    fn wait(&mut self) -> Checked {
        for (host, _) in self.leg.leechers.clone() {
            if self.is_over(host) && self.owner()? == Some(self.leg.seeder) {
                self.leech(host)?;
            }
            if !self.has_moved(host) && !self.is_over(host) {
                self.leecher_event(host, LeecherEvent::Finalize)?;
            }
        }
        self.first_timer()
    }

    fn first_timer(&mut self) -> Checked {
        let due = |(host, index): &(HostId, usize)| {
            let process = self.hosts[*host].process.as_ref();
            process.map_or(u64::MAX, |process| process.timers[*index].due_ms)
        };
        match self.timers().into_iter().min_by_key(due) {
            Some((host, index)) => self.fire(host, index),
            None => Ok(()),
        }
    }

    /// Goes on calmly until it is so.
    fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) -> Checked {
        for _ in 0..CALM_MAX {
            if is_so(self) {
                return Ok(());
            }
            self.calm()?;
        }
        Err(format!("it is calm, and still {what}"))
    }

    /// Everybody comes back: the volume arrives, and whoever came too late hears of it.
    pub(super) fn all_back(&mut self) -> Checked {
        let crash_all = self.rng.percent(30);
        let tell = self.rng.percent(50);
        for host in 0..NAMES.len() {
            let power_cut = self.rng.percent(50);
            if crash_all {
                self.crash(host, power_cut)?;
                self.check()?;
            }
            let has_records = self.hosts[host].standing().is_some();
            let leeches = self
                .leg
                .leechers
                .iter()
                .any(|(leecher, _)| *leecher == host);
            if !self.is_up(host) && (has_records || leeches) {
                self.start(host)?;
                self.check()?;
            }
        }
        if tell {
            for (host, _) in self.leg.leechers.clone() {
                self.cut_at_leecher(host)?;
                self.cut_at_seeder(host)?;
                self.leecher_event(host, LeecherEvent::Connected)?;
            }
        }
        self.until("the volume has not moved", |world| {
            let mut leechers = world.leg.leechers.iter().map(|(host, _)| *host);
            leechers.clone().any(|host| world.has_moved(host))
                && leechers.all(|host| world.has_moved(host) || world.is_over(host))
        })?;
        self.until_written()
    }

    /// The application can go on.
    fn until_written(&mut self) -> Checked {
        let writes = self.application.writes;
        self.until("no write is acknowledged", |world| {
            world.application.writes > writes
        })
    }

    /// The leechers are gone, and nothing says so. If the volume has not moved it is served.
    pub(super) fn alone(&mut self) -> Checked {
        self.outcome.count(Happened::LeftAlone);
        for (host, _) in self.leg.leechers.clone() {
            self.crash(host, false)?;
        }
        if !self.is_up(self.leg.seeder) {
            self.start(self.leg.seeder)?;
        }
        if self.rng.percent(50) {
            self.network.clear();
        }
        let seeder = self.leg.seeder;
        self.until(
            "the seeder neither serves nor has given the volume away",
            |world| {
                let moved = matches!(world.hosts[seeder].standing(), Some(Standing::Moved(_)));
                moved || world.hosts[seeder].device() == Device::Serving
            },
        )?;
        match self.owner()? == Some(seeder) {
            true => self.until_written(),
            false => Ok(()),
        }
    }

    pub(super) fn who_may_assume(&self) -> Option<HostId> {
        let may = |host: &HostId| {
            let record = self.hosts[*host].records.leech.as_ref();
            record.is_some_and(|record| record.stage == Stage::Prepared && !record.post_copy)
        };
        let leechers = self.leg.leechers.iter().map(|(host, _)| *host);
        leechers.into_iter().find(may)
    }

    /// The seeder is gone for good. What a leecher in doubt has is as good as it can be.
    pub(super) fn assume(&mut self) -> Checked {
        let Some(host) = self.who_may_assume() else {
            return Ok(());
        };
        let (seeder, power_cut) = (self.leg.seeder, self.rng.percent(50));
        for other in 0..NAMES.len() {
            self.crash(other, power_cut)?;
        }
        if ![Some(seeder), Some(host)].contains(&self.owner()?) {
            // The commit of another leecher arrived: whoever says otherwise is wrong.
            return Ok(());
        }
        self.hosts[seeder].is_gone = true;
        self.start(host)?;
        let leech = self.hosts[host].records.leech.as_ref();
        let Some(attempt) = leech.and_then(|record| record.attempt) else {
            return Ok(());
        };
        let commit = self.hosts[seeder].records.commit.as_ref();
        let committed = commit.is_some_and(|commit| commit.attempt == attempt);
        if !committed {
            self.outcome.count(Happened::AssumedUncommitted);
            let offer = self.offers[&attempt];
            self.application.is_as(offer);
        }
        self.outcome.count(Happened::Assumed);
        self.assumed = Some(attempt);
        self.application.at = host;
        self.leg.leechers.retain(|(leecher, _)| *leecher == host);
        self.leecher_event(host, LeecherEvent::AssumeCommitted)?;
        self.until("the volume is not here for good", |world| {
            world.stage(host) == Some(Stage::Complete)
                && world.hosts[host].device() == Device::Serving
        })?;
        self.until_written()
    }
}
