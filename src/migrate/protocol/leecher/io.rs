//! What goes into the leecher's machine, and what comes out.

use std::time::Duration;

use crate::migrate::protocol::{
    AttemptId, BlockSet, Epoch, LeechRecord, Measured, MigrationId, Proof, Reason, Stage,
    ToLeecher, ToSeeder,
};

/// What the leecher is told before it begins.
#[derive(Debug, Clone)]
pub struct LeecherConfig {
    /// Its host's name.
    pub name: String,
    /// This migration, drawn at random.
    pub migration: MigrationId,
    /// What is pulled when.
    pub mode: Mode,
    /// Who says when to finalize.
    pub finalize: Finalize,
    /// How long the hold may be, by prediction.
    pub downtime_target: Duration,
    /// How many rounds there are before it is finalized whatever is predicted.
    pub rounds_max: u32,
    /// How long a hybrid migration pulls before it moves the volume.
    pub pre_copy_limit: Duration,
}

/// What is pulled when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Everything before the volume moves.
    PreCopy,
    /// Everything after it.
    PostCopy,
    /// Before it up to a limit of rounds or time, the rest after it.
    Hybrid,
}

/// Who says when to finalize.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finalize {
    /// The prediction, or the limit of rounds.
    Auto,
    /// The user.
    Manual,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum LeecherEvent {
    /// Everything is set up; the first event.
    Begin,
    /// A message arrived.
    Message(ToLeecher),
    /// There is a connection again.
    Connected,
    /// The connection was lost.
    Disconnected,
    /// The user wants to finalize.
    Finalize,
    /// The user gives it up.
    Abort,
    /// The user says that the seeder is gone for good, and that the volume is to be here.
    AssumeCommitted,
    /// [`LeecherAction::Pull`] has ended: all its blocks are in the store.
    Pulled {
        /// The round.
        number: u32,
        /// What it took.
        result: Result<Measured, String>,
    },
    /// [`LeecherAction::Receive`] has ended.
    Received {
        /// For which attempt.
        attempt: AttemptId,
        /// Whether all bytes are in the store.
        result: Result<(), String>,
    },
    /// [`LeecherAction::Secure`] has ended: the store is durable.
    Secured {
        /// For which attempt.
        attempt: AttemptId,
        /// The proof of what was read back, if one was asked for.
        result: Result<Option<Proof>, String>,
    },
    /// [`LeecherAction::Record`] has ended.
    Recorded {
        /// Of that record.
        stage: Stage,
        /// Whether it is durable.
        result: Result<(), String>,
    },
    /// [`LeecherAction::StartDevice`] has ended.
    Started(Result<(), String>),
    /// [`LeecherAction::PullRest`] has ended: nothing is absent any more.
    RestPulled(Result<(), String>),
    /// [`LeecherAction::SecureRest`] has ended: what was pulled is durable.
    RestSecured(Result<(BlockSet, Proof), String>),
    /// A timer fired.
    Timer(LeecherTimer),
}

/// What is to be done about it.
#[derive(Debug, Clone, PartialEq)]
pub enum LeecherAction {
    /// Send a message.
    Send(ToSeeder),
    /// Make this the resource's record, durably.
    Record(LeechRecord),
    /// Fetch these blocks and write them to the store.
    Pull {
        /// The round.
        number: u32,
        /// Its blocks.
        blocks: BlockSet,
    },
    /// Drop what is under way for `Pull` or `Receive`: nothing of it reaches the store from here on,
    /// and neither has an event any more.
    StopPulling,
    /// Write the bytes that follow the message before to the store.
    Receive(AttemptId, BlockSet),
    /// Make store and map durable. In post-copy the blocks in `absent` are absent from here on, and
    /// fetched when they are read; otherwise prove what the store then holds.
    Secure {
        /// For which attempt.
        attempt: AttemptId,
        /// What to leave at the seeder; none if nothing.
        absent: Option<BlockSet>,
    },
    /// Start the device: requests are served from here on.
    StartDevice(Epoch),
    /// Fetch what is absent, and never overwrite what was written here.
    PullRest,
    /// Make what was pulled durable, and prove what was pulled of which blocks.
    SecureRest,
    /// Have a timer fire; it takes the place of an earlier one of the same name.
    Arm(LeecherTimer, Duration),
    /// For the user.
    Tell(LeecherNotice),
}

/// What the leecher waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeecherTimer {
    /// Say it again: there was no answer.
    Retry,
    /// The next round is due.
    Pause,
    /// A hybrid migration has pulled for long enough.
    PreCopyLimit,
    /// Try again what failed after the volume has moved.
    Again,
}

/// What a user may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LeecherNotice {
    /// The round trips alone take longer than the downtime target.
    TargetOutOfReach,
    /// An attempt ended; it goes on with rounds.
    AttemptEnded(Reason),
    /// So many attempts ended that it finalizes only when the user says so.
    NowManual,
    /// Nobody but the seeder knows whether the volume is here. It is being asked.
    InDoubt,
    /// It cannot be given up: the seeder may have moved the volume already.
    TooLate,
    /// The same, and the seeder will not answer any more by the ticket that there is.
    LeftInDoubt,
    /// The volume is here, and by that ticket the seeder will never hear it, or give what it has of it still.
    SeederLost(String),
    /// It cannot be assumed that the volume is here: some of its bytes are at the seeder alone.
    BytesAtSeeder,
    /// The volume is here, and the device with it.
    Owner(Epoch),
    /// The volume is here, but its device could not be started.
    NoDevice(String),
    /// Something failed after the volume had moved, and is tried again.
    TryingAgain(String),
    /// What was pulled differs from what the seeder has. It is not released.
    PulledDiffers,
    /// All is here, and the seeder is released.
    Done,
    /// The migration is over, and the volume is not here.
    Over(Reason),
}
