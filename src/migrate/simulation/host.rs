//! A host: what outlives its process, and the process.

use super::store::{BLOCKS, Covered, Stamp, Store};
use crate::migrate::protocol::{
    AttemptId, BlockSet, CommitRecord, Hook, LeechRecord, Leecher, LeecherTimer, MigrationId,
    Records, Seeder, SeederTimer, SessionId, Standing,
};

/// The number of a host.
pub(super) type HostId = usize;

/// What a crash leaves.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) store: Store,
    pub(super) records: Records,
    /// It never had the volume: without a record there is none here.
    pub(super) is_fresh: bool,
    /// It never comes back.
    pub(super) is_gone: bool,
    /// What was pulled of which blocks after the volume had moved here: the mapped file of digests.
    pub(super) rest: [Option<Stamp>; BLOCKS],
    pub(super) process: Option<Process>,
}

/// What a crash takes.
#[derive(Debug, Default)]
pub(super) struct Process {
    pub(super) seeder: Option<Seeder>,
    pub(super) leecher: Option<Leecher>,
    pub(super) migration: Option<MigrationId>,
    pub(super) device: Device,
    /// Which blocks were written, for each session.
    pub(super) tracking: Vec<(SessionId, [bool; BLOCKS])>,
    pub(super) writes: Vec<Write>,
    pub(super) operations: Vec<Operation>,
    pub(super) timers: Vec<Armed>,
    /// Final bytes that came before their message.
    pub(super) arrived: Option<(AttemptId, Vec<(usize, Stamp)>)>,
    /// The record that was there before the one that was last written.
    pub(super) commit_before: Option<CommitRecord>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Device {
    #[default]
    None,
    Serving,
    Held,
    /// Its requests fail.
    Failed,
}

/// A write of the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) block: usize,
    pub(super) stamp: Stamp,
    pub(super) step: WriteStep,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
pub(super) enum WriteStep {
    Waiting,
    /// Noted by those who track, not in the store yet.
    Begun,
    /// In the store, not answered.
    Landed,
}

/// Something under way in the background.
#[derive(Debug, Clone)]
pub(super) enum Operation {
    Collect(SessionId, BlockSet),
    Hook(AttemptId, Hook),
    Hold(AttemptId),
    Sync {
        attempt: AttemptId,
        prove: bool,
        blocks: BlockSet,
        covered: Covered,
    },
    /// With what was there before.
    WriteCommit(CommitRecord, Option<CommitRecord>),
    EraseCommit(Option<CommitRecord>),
    WriteReleased(CommitRecord),
    Prove(AttemptId, BlockSet),
    Record(LeechRecord),
    Pull(Pull),
    Secure {
        attempt: AttemptId,
        prove: bool,
        covered: Covered,
    },
    SecureRest(Covered),
    StartDevice,
}

/// Blocks on their way.
#[derive(Debug, Clone)]
pub(super) struct Pull {
    pub(super) what: Pulled,
    /// Not read at the seeder yet.
    pub(super) wanted: Vec<usize>,
    /// Read, not in the store yet.
    pub(super) fetched: Vec<(usize, Stamp)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pulled {
    Round { number: u32, bytes: u64 },
    Final(AttemptId),
    Rest,
}

/// A timer that was armed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Armed {
    pub(super) timer: Timer,
    pub(super) due_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timer {
    Seeder(SeederTimer),
    Leecher(LeecherTimer),
}

impl Timer {
    /// Whether both have one name, so that the later takes the earlier one's place.
    pub(super) fn replaces(self, other: Self) -> bool {
        match (self, other) {
            (Self::Seeder(ours), Self::Seeder(theirs)) => {
                std::mem::discriminant(&ours) == std::mem::discriminant(&theirs)
            }
            _ => self == other,
        }
    }
}

impl Host {
    pub(super) fn new(has_volume: bool) -> Self {
        Self {
            store: Store::new(has_volume),
            records: Records::default(),
            is_fresh: !has_volume,
            is_gone: false,
            rest: [None; BLOCKS],
            process: None,
        }
    }

    /// None where there never was a volume.
    pub(super) fn standing(&self) -> Option<Standing> {
        let has_record = self.records != Records::default();
        (has_record || !self.is_fresh).then(|| self.records.standing())
    }

    pub(super) fn device(&self) -> Device {
        self.process
            .as_ref()
            .map_or(Device::None, |process| process.device)
    }
}

impl Process {
    /// Whether a request is under way.
    pub(super) fn is_busy(&self) -> bool {
        let under_way = |write: &Write| write.step > WriteStep::Waiting;
        self.writes.iter().any(under_way)
    }

    pub(super) fn note(&mut self, block: usize) {
        for (_, written) in &mut self.tracking {
            written[block] = true;
        }
    }

    pub(super) fn take_noted(&mut self, session: SessionId) -> BlockSet {
        let tracked = self.tracking.iter_mut().find(|(id, _)| *id == session);
        let written = tracked.map(|(_, written)| std::mem::take(written));
        set_of(&written.unwrap_or_default())
    }
}

fn set_of(blocks: &[bool; BLOCKS]) -> BlockSet {
    let marked = blocks.iter().enumerate().filter(|(_, marked)| **marked);
    marked
        .map(|(block, _)| crate::volume::geometry::BlockIndex(block as u64))
        .collect()
}
