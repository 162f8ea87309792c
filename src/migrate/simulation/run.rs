//! A run: trouble for a while, then calm, in which everything has to end.

use std::time::Duration;

use super::fault::Fault;
use super::host::Operation;
use super::host::{HostId, Pulled, Timer};
use super::outcome::{Happened, Outcome};
use super::world::{Checked, Leg, NAMES, Packet, Payload, World};
use crate::migrate::protocol::{
    Finalize, LeecherConfig, LeecherEvent, MigrationId, Mode, SeederEvent, ToLeecher, ToSeeder,
    plant,
};

/// How many times the volume moves in a run, at most.
const LEGS_MAX: u64 = 3;

/// Steps of trouble in one of them, at most.
const TROUBLE_MAX: u64 = 400;

/// How a run goes on after the trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// Whoever is down comes back.
    AllBack,
    /// The leechers never do.
    Alone,
    /// The seeder never does, and a leecher is told so.
    Assumed,
}

/// One run.
pub(super) fn run(seed: u64, fault: Option<Fault>) -> Result<Outcome, String> {
    live(seed, fault, false).map_err(|(what, _)| format!("seed {seed}: {what}"))
}

/// What happened in a run, line by line.
pub(super) fn trace(seed: u64, fault: Option<Fault>) -> Vec<String> {
    live(seed, fault, true).map_or_else(|(_, trace)| trace, |_| Vec::new())
}

fn live(seed: u64, fault: Option<Fault>, traced: bool) -> Result<Outcome, (String, Vec<String>)> {
    plant(fault.and_then(Fault::bug));
    let mut world = World::new(seed, fault, traced);
    let lived = world.live();
    plant(None);
    match lived {
        Ok(()) => {
            world.outcome.writes = world.application.writes;
            Ok(std::mem::take(&mut world.outcome))
        }
        Err(what) => Err((what, world.take_trace())),
    }
}

impl World {
    fn live(&mut self) -> Checked {
        self.rots = self.rng.percent(10);
        self.copies_percent = if self.rng.percent(40) { 40 } else { 5 };
        self.start(0)?;
        let legs = 1 + self.rng.below(LEGS_MAX);
        for leg in 0..legs {
            self.begin_leg()?;
            let steps = self.rng.below(TROUBLE_MAX);
            for _ in 0..steps {
                self.trouble()?;
                self.check()?;
            }
            let ending = self.choose_ending(leg + 1 == legs);
            self.note(|| format!("calm: {ending:?}"));
            self.is_calm = true;
            match ending {
                Ending::AllBack => self.all_back()?,
                Ending::Alone => return self.alone(),
                Ending::Assumed => return self.assume(),
            }
            self.is_calm = false;
        }
        Ok(())
    }

    /// The owner seeds, another host or two leech.
    fn begin_leg(&mut self) -> Checked {
        let Some(seeder) = self.owner()? else {
            return Err("nobody is left to seed".to_owned());
        };
        let mut others: Vec<HostId> = (0..NAMES.len()).filter(|host| *host != seeder).collect();
        if self.rng.percent(50) {
            others.reverse();
        }
        others.truncate(if self.rng.percent(50) { 2 } else { 1 });
        let leechers = others
            .iter()
            .map(|host| (*host, self.choose_config()))
            .collect();
        self.leg = Leg { seeder, leechers };
        self.note(|| format!("{} seeds to {others:?}", NAMES[seeder]));
        self.seed(seeder);
        for host in others {
            match self.hosts[host].process {
                Some(_) => self.leech(host)?,
                None => self.start(host)?,
            }
        }
        Ok(())
    }

    fn choose_config(&mut self) -> LeecherConfig {
        let modes = match self.rots {
            true => &[Mode::PreCopy][..],
            false => &[Mode::PreCopy, Mode::PreCopy, Mode::PostCopy, Mode::Hybrid],
        };
        let mode = modes[self.rng.below(modes.len() as u64) as usize];
        let finalize = match self.rng.percent(60) {
            true => Finalize::Auto,
            false => Finalize::Manual,
        };
        LeecherConfig {
            name: String::new(),
            migration: MigrationId([0; 16]),
            mode,
            finalize,
            downtime_target: Duration::from_millis(100),
            rounds_max: 1 + self.rng.below(4) as u32,
            pre_copy_limit: Duration::from_secs(3),
        }
    }

    fn choose_ending(&mut self, is_last: bool) -> Ending {
        if !is_last {
            return Ending::AllBack;
        }
        match self.rng.below(10) {
            0 | 1 => Ending::Alone,
            2..=5 if self.who_may_assume().is_some() => Ending::Assumed,
            _ => Ending::AllBack,
        }
    }

    /// A step in which anything may happen.
    fn trouble(&mut self) -> Checked {
        self.outcome.steps += 1;
        match self.rng.below(100) {
            0..=29 => self.move_packet(),
            30..=69 => self.operation(),
            70..=84 => self.step_application(),
            85..=91 => self.any_timer(),
            92 | 93 => self.cut_or_connect(),
            94 => self.crash_any(),
            95 => self.operate(),
            _ => self.start_any(),
        }
    }

    fn any(&mut self, count: usize) -> Option<usize> {
        (count > 0).then(|| self.rng.below(count as u64) as usize)
    }

    fn operation(&mut self) -> Checked {
        let ready = self.ready_operations();
        match self.any(ready.len()) {
            Some(index) => self.go_on(ready[index].0, ready[index].1),
            None => Ok(()),
        }
    }

    fn move_packet(&mut self) -> Checked {
        let Some(index) = self.any(self.network.len()) else {
            return Ok(());
        };
        if self.rng.percent(self.copies_percent) {
            self.outcome.count(Happened::Doubled);
            let index = self.rng.below(self.copies.len() as u64) as usize;
            let packet = self.copies[index].clone();
            return self.deliver(packet);
        }
        let packet = self.network.remove(index);
        if self.rng.percent(5) {
            self.outcome.count(Happened::Lost);
            self.note(|| format!("lost: {packet:?}"));
            return Ok(());
        }
        self.deliver(packet)
    }

    pub(super) fn deliver(&mut self, packet: Packet) -> Checked {
        let Packet { from, to, payload } = packet;
        self.note(|| format!("{} → {}: {payload:?}", NAMES[from], NAMES[to]));
        if self.hosts[from].is_gone {
            return Ok(());
        }
        match payload {
            Payload::ToSeeder(message) => {
                let asks = matches!(message, ToSeeder::Ask { .. });
                let before = self.network.len();
                self.seeder_event(to, SeederEvent::Message(message))?;
                if asks {
                    self.count_answer(before);
                }
                Ok(())
            }
            Payload::ToLeecher(message) => self.leecher_event(to, LeecherEvent::Message(message)),
            Payload::Bytes(attempt, bytes) => {
                let Some(process) = self.process(to) else {
                    return Ok(());
                };
                let waits = process
                    .operations
                    .iter_mut()
                    .find_map(|operation| match operation {
                        Operation::Pull(pull) if pull.what == Pulled::Final(attempt) => Some(pull),
                        _ => None,
                    });
                match waits {
                    Some(pull) if !pull.wanted.is_empty() => {
                        pull.wanted.clear();
                        pull.fetched = bytes;
                    }
                    Some(_) => {}
                    None => process.arrived = Some((attempt, bytes)),
                }
                Ok(())
            }
        }
    }

    fn count_answer(&mut self, before: usize) {
        let answer = self.network.get(before).map(|packet| &packet.payload);
        match answer {
            Some(Payload::ToLeecher(ToLeecher::Committed { .. })) => {
                self.outcome.count(Happened::AskedAndCommitted);
            }
            Some(Payload::ToLeecher(ToLeecher::Ended { .. })) => {
                self.outcome.count(Happened::AskedAndEnded);
            }
            _ => {}
        }
    }

    pub(super) fn timers(&self) -> Vec<(HostId, usize)> {
        let up = |host: HostId| self.hosts[host].process.as_ref();
        (0..NAMES.len())
            .flat_map(|host| {
                let timers = up(host).map_or(0, |process| process.timers.len());
                (0..timers).map(move |index| (host, index))
            })
            .collect()
    }

    fn any_timer(&mut self) -> Checked {
        let timers = self.timers();
        match self.any(timers.len()) {
            Some(index) => self.fire(timers[index].0, timers[index].1),
            None => Ok(()),
        }
    }

    pub(super) fn fire(&mut self, host: HostId, index: usize) -> Checked {
        let Some(process) = self.process(host) else {
            return Ok(());
        };
        let fired = process.timers.swap_remove(index);
        self.now_ms = self.now_ms.max(fired.due_ms);
        match fired.timer {
            Timer::Seeder(timer) => self.seeder_event(host, SeederEvent::Timer(timer)),
            Timer::Leecher(timer) => self.leecher_event(host, LeecherEvent::Timer(timer)),
        }
    }

    fn any_leecher(&mut self) -> Option<HostId> {
        let leechers = self.leg.leechers.len();
        self.any(leechers).map(|index| self.leg.leechers[index].0)
    }

    fn cut_or_connect(&mut self) -> Checked {
        let Some(leecher) = self.any_leecher() else {
            return Ok(());
        };
        match self.rng.below(4) {
            0 => self.cut_at_leecher(leecher),
            1 => self.cut_at_seeder(leecher),
            2 => {
                self.cut_at_leecher(leecher)?;
                self.cut_at_seeder(leecher)
            }
            _ => self.leecher_event(leecher, LeecherEvent::Connected),
        }
    }

    pub(super) fn cut_at_leecher(&mut self, leecher: HostId) -> Checked {
        self.outcome.count(Happened::Cut);
        self.leecher_event(leecher, LeecherEvent::Disconnected)
    }

    pub(super) fn cut_at_seeder(&mut self, leecher: HostId) -> Checked {
        let process = self.hosts[leecher].process.as_ref();
        let Some(migration) = process.and_then(|process| process.migration) else {
            return Ok(());
        };
        let event = match self.rng.percent(10) {
            true => SeederEvent::Away(migration),
            false => SeederEvent::Disconnected(migration),
        };
        self.seeder_event(self.leg.seeder, event)
    }

    fn crash_any(&mut self) -> Checked {
        let host = self.rng.below(NAMES.len() as u64) as usize;
        let power_cut = self.rng.percent(50);
        self.crash(host, power_cut)
    }

    pub(super) fn is_up(&self, host: HostId) -> bool {
        self.hosts[host].process.is_some()
    }

    fn start_any(&mut self) -> Checked {
        let host = self.rng.below(NAMES.len() as u64) as usize;
        let has_something_to_do = self.hosts[host].standing().is_some()
            || self
                .leg
                .leechers
                .iter()
                .any(|(leecher, _)| *leecher == host);
        match !self.is_up(host) && has_something_to_do {
            true => self.start(host),
            false => Ok(()),
        }
    }

    /// The user does something.
    fn operate(&mut self) -> Checked {
        let Some(leecher) = self.any_leecher() else {
            return Ok(());
        };
        match self.rng.below(10) {
            0 => self.leecher_event(leecher, LeecherEvent::Abort),
            1 => self.seeder_event(self.leg.seeder, SeederEvent::Abort),
            2 if self.is_over(leecher) => self.leech(leecher),
            _ => self.leecher_event(leecher, LeecherEvent::Finalize),
        }
    }

    pub(super) fn is_over(&self, host: HostId) -> bool {
        let process = self.hosts[host].process.as_ref();
        let leecher = process.and_then(|process| process.leecher.as_ref());
        leecher.is_some_and(|leecher| leecher.is_done() && !leecher.is_owner())
    }

    pub(super) fn has_moved(&self, host: HostId) -> bool {
        let process = self.hosts[host].process.as_ref();
        let leecher = process.and_then(|process| process.leecher.as_ref());
        leecher.is_some_and(|leecher| leecher.is_done() && leecher.is_owner())
    }
}
