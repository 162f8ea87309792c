//! Everything that is simulated: hosts, the network between them, the application.

use std::collections::HashMap;

use super::application::Application;
use super::fault::Fault;
use super::host::{Device, Host, HostId, Process, Timer};
use super::outcome::{Happened, Outcome};
use super::store::{BLOCKS, Content, Stamp};
use crate::migrate::protocol::{
    AttemptId, Instance, Leecher, LeecherConfig, LeecherEvent, MigrationId, Seeder, SeederConfig,
    SeederEvent, Stage, Standing, ToLeecher, ToSeeder, VolumeId,
};
use crate::seeded_random::Rng;
use crate::volume::geometry::BlockRange;
use std::time::Duration;

/// The names of the hosts.
pub(super) const NAMES: [&str; 3] = ["a", "b", "c"];

/// Packets under way; one more takes the place of another.
const PACKETS_MAX: usize = 40;

/// Packets of which a copy may still come.
const COPIES_MAX: usize = 100;

pub(super) struct World {
    pub(super) rng: Rng,
    pub(super) hosts: [Host; 3],
    pub(super) network: Vec<Packet>,
    /// What was sent before, and may come once more, long after.
    pub(super) copies: Vec<Packet>,
    pub(super) application: Application,
    /// Who moves the volume to whom at this time.
    pub(super) leg: Leg,
    /// What the seeder's store held when it was offered.
    pub(super) offers: HashMap<AttemptId, Content>,
    /// The attempt that somebody assumed to be committed.
    pub(super) assumed: Option<AttemptId>,
    pub(super) is_calm: bool,
    pub(super) now_ms: u64,
    /// Whether bytes go bad on their way into a store.
    pub(super) rots: bool,
    /// How many packets of a hundred are copies of old ones.
    pub(super) copies_percent: u64,
    pub(super) fault: Option<Fault>,
    pub(super) outcome: Outcome,
    ids: u64,
    /// What happened, if somebody wants to read it.
    trace: Option<Vec<String>>,
}

/// One move.
#[derive(Debug, Clone)]
pub(super) struct Leg {
    pub(super) seeder: HostId,
    /// With the configuration of each; the migration is a new one in each process.
    pub(super) leechers: Vec<(HostId, LeecherConfig)>,
}

#[derive(Debug, Clone)]
pub(super) struct Packet {
    pub(super) from: HostId,
    pub(super) to: HostId,
    pub(super) payload: Payload,
}

#[derive(Debug, Clone)]
pub(super) enum Payload {
    ToSeeder(ToSeeder),
    ToLeecher(ToLeecher),
    Bytes(AttemptId, Vec<(usize, Stamp)>),
}

/// What went wrong.
pub(super) type Checked<T = ()> = Result<T, String>;

impl World {
    pub(super) fn new(seed: u64, fault: Option<Fault>, traced: bool) -> Self {
        let leg = Leg {
            seeder: 0,
            leechers: Vec::new(),
        };
        Self {
            rng: Rng::new(seed),
            hosts: [Host::new(true), Host::new(false), Host::new(false)],
            network: Vec::new(),
            copies: Vec::new(),
            application: Application::new(0),
            leg,
            offers: HashMap::new(),
            assumed: None,
            is_calm: false,
            now_ms: 0,
            rots: false,
            copies_percent: 0,
            fault,
            outcome: Outcome::default(),
            ids: 0,
            trace: traced.then(Vec::new),
        }
    }

    pub(super) fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(what());
        }
    }

    pub(super) fn take_trace(&mut self) -> Vec<String> {
        self.trace.take().unwrap_or_default()
    }

    pub(super) fn fresh_id(&mut self) -> [u8; 16] {
        self.ids += 1;
        // The first bytes are what is shown of it.
        let mut id = [0; 16];
        id[..8].copy_from_slice(&(self.ids << 32).to_be_bytes());
        id
    }

    /// The process of a host that is up.
    pub(super) fn process(&mut self, host: HostId) -> Option<&mut Process> {
        self.hosts[host].process.as_mut()
    }

    pub(super) fn send(&mut self, from: HostId, to: HostId, payload: Payload) {
        if self.network.len() >= PACKETS_MAX {
            let lost = self.rng.below(PACKETS_MAX as u64) as usize;
            self.network.remove(lost);
        }
        let packet = Packet { from, to, payload };
        if self.copies.len() < COPIES_MAX {
            self.copies.push(packet.clone());
        } else {
            let index = self.rng.below(COPIES_MAX as u64) as usize;
            self.copies[index] = packet.clone();
        }
        self.network.push(packet);
    }

    pub(super) fn seeder_event(&mut self, host: HostId, event: SeederEvent) -> Checked {
        let line = self
            .trace
            .is_some()
            .then(|| format!("  {} seeder: {event:?}", NAMES[host]));
        let process = self.process(host);
        let Some(seeder) = process.and_then(|process| process.seeder.as_mut()) else {
            return Ok(());
        };
        let actions = seeder.handle(event);
        self.trace
            .iter_mut()
            .zip(line)
            .for_each(|(trace, line)| trace.push(line));
        for action in actions {
            self.carry_out_for_seeder(host, action)?;
        }
        Ok(())
    }

    pub(super) fn leecher_event(&mut self, host: HostId, event: LeecherEvent) -> Checked {
        let line = self
            .trace
            .is_some()
            .then(|| format!("  {} leecher: {event:?}", NAMES[host]));
        let process = self.process(host);
        let Some(leecher) = process.and_then(|process| process.leecher.as_mut()) else {
            return Ok(());
        };
        let actions = leecher.handle(event);
        self.trace
            .iter_mut()
            .zip(line)
            .for_each(|(trace, line)| trace.push(line));
        for action in actions {
            self.carry_out_for_leecher(host, action)?;
        }
        Ok(())
    }

    /// Where a leecher pulls from: the seeder of this leg, or of the one that brought the volume here.
    pub(super) fn seeder_of(&self, leecher: HostId) -> HostId {
        let is_leecher = |(host, _): &(HostId, LeecherConfig)| *host == leecher;
        if self.leg.leechers.iter().any(is_leecher) {
            return self.leg.seeder;
        }
        let attempt = self.hosts[leecher]
            .records
            .leech
            .as_ref()
            .and_then(|record| record.attempt);
        let seeder = |host: &usize| {
            let commit = self.hosts[*host].records.commit.as_ref();
            attempt.is_some() && commit.map(|commit| commit.attempt) == attempt
        };
        (0..NAMES.len()).find(seeder).unwrap_or(self.leg.seeder)
    }

    /// Starts the process of a host, with what its records say it has to do.
    pub(super) fn start(&mut self, host: HostId) -> Checked {
        self.note(|| format!("{} starts", NAMES[host]));
        self.hosts[host].process = Some(Process::default());
        let standing = self.hosts[host].standing();
        let owns = matches!(standing, Some(Standing::Owner(_)));
        let came_here = self.hosts[host].records.leech.is_some();
        // Where the volume came here its leecher starts the device first.
        if owns && !came_here || matches!(standing, Some(Standing::Moved(_))) {
            self.seed(host);
        }
        if owns && !came_here {
            self.serve(host);
        }
        let mut leechers = self.leg.leechers.iter().map(|(leecher, _)| *leecher);
        let leeching = leechers.any(|leecher| leecher == host);
        let in_doubt = matches!(standing, Some(Standing::InDoubt(_)));
        if in_doubt && !leeching {
            // It was left so by an earlier leg, and goes on with this one.
            let first = self.leg.leechers.first();
            let config = first.map(|(_, config)| (host, config.clone()));
            self.leg.leechers.extend(config);
        }
        let unfinished = in_doubt || matches!(standing, Some(Standing::Completing(_)));
        match leeching || unfinished || (owns && came_here) {
            true => self.leech(host),
            false => Ok(()),
        }
    }

    fn serve(&mut self, host: HostId) {
        if let Some(process) = self.process(host) {
            process.device = Device::Serving;
        }
    }

    /// Makes a host's process a seeder.
    pub(super) fn seed(&mut self, host: HostId) {
        let config = SeederConfig {
            volume: VolumeId([9; 16]),
            blocks: BlockRange::new(0, BLOCKS as u64),
            instance: Instance(self.fresh_id()),
            hold_limit: Duration::from_secs(5),
        };
        let seeder = Seeder::new(config, &self.hosts[host].records);
        if let Some(process) = self.process(host) {
            process.seeder = seeder;
            process
                .timers
                .retain(|armed| matches!(armed.timer, Timer::Leecher(_)));
        }
    }

    /// Has a host's process leech, or go on where its records say that it was.
    pub(super) fn leech(&mut self, host: HostId) -> Checked {
        let known = self
            .leg
            .leechers
            .iter()
            .find(|(leecher, _)| *leecher == host);
        let Some((_, config)) = known.or(self.leg.leechers.first()) else {
            return Ok(());
        };
        let mut config = config.clone();
        config.name = NAMES[host].to_owned();
        config.migration = MigrationId(self.fresh_id());
        let migration = config.migration;
        let in_doubt = self.stage(host) == Some(Stage::Prepared);
        let leecher = match self.hosts[host].standing() {
            None => Some(Leecher::new(config)),
            Some(_) => Leecher::with_records(config, &self.hosts[host].records),
        };
        if in_doubt {
            self.outcome.count(Happened::InDoubt);
        }
        if let Some(process) = self.process(host) {
            process.leecher = leecher;
            process.migration = Some(migration);
            process
                .timers
                .retain(|armed| matches!(armed.timer, Timer::Seeder(_)));
        }
        self.leecher_event(host, LeecherEvent::Begin)
    }

    pub(super) fn stage(&self, host: HostId) -> Option<Stage> {
        self.hosts[host]
            .records
            .leech
            .as_ref()
            .map(|record| record.stage)
    }

    /// Ends a host's process, with or without its page cache.
    pub(super) fn crash(&mut self, host: HostId, power_cut: bool) -> Checked {
        let Some(process) = self.hosts[host].process.take() else {
            return Ok(());
        };
        self.note(|| format!("{} crashes, power cut: {power_cut}", NAMES[host]));
        self.outcome.count(match power_cut {
            true => Happened::PowerCut,
            false => Happened::Killed,
        });
        for operation in process.operations {
            if self.rng.percent(50) {
                self.land(host, &operation);
            }
        }
        if power_cut {
            let (host, rng) = (&mut self.hosts[host], &mut self.rng);
            host.store.cut_power(rng);
        }
        self.settle_after_crash(host, &process.writes, power_cut)
    }
}
