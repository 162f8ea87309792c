//! What goes into the seeder's machine, and what comes out.

use std::time::Duration;

use crate::migrate::protocol::{
    AttemptId, BlockSet, CommitRecord, Instance, MigrationId, Proof, Reason, SessionId, ToLeecher,
    ToSeeder, VolumeId,
};
use crate::volume::geometry::BlockRange;

/// What the seeder is told before it begins.
#[derive(Debug, Clone)]
pub struct SeederConfig {
    /// The volume.
    pub volume: VolumeId,
    /// All its blocks.
    pub blocks: BlockRange,
    /// This process, drawn at random.
    pub instance: Instance,
    /// How long requests are held at most.
    pub hold_limit: Duration,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum SeederEvent {
    /// A message arrived.
    Message(ToSeeder),
    /// The connection to a leecher was lost.
    Disconnected(MigrationId),
    /// It has been away for so long that nothing need be kept for it.
    Away(MigrationId),
    /// Somebody here gives up what is being done.
    Abort,
    /// [`SeederAction::Collect`] has ended.
    Collected {
        /// For which session.
        session: SessionId,
        /// The blocks that were written since the collection before.
        blocks: BlockSet,
    },
    /// [`SeederAction::CallHook`] has ended.
    HookEnded {
        /// During which attempt.
        attempt: AttemptId,
        /// Which one.
        hook: Hook,
        /// What the hook said.
        result: Result<(), String>,
    },
    /// [`SeederAction::Hold`] has ended: no request is under way any more, new ones wait.
    Held(AttemptId),
    /// [`SeederAction::Sync`] has ended.
    Synced {
        /// For which attempt.
        attempt: AttemptId,
        /// The blocks that were written since the collection before.
        blocks: BlockSet,
        /// Whether the store is durable, and the proof if one was asked for.
        result: Result<Option<Proof>, String>,
    },
    /// [`SeederAction::WriteCommit`] has ended.
    CommitWritten(Result<(), String>),
    /// [`SeederAction::EraseCommit`] has ended.
    CommitErased(Result<(), String>),
    /// [`SeederAction::WriteReleased`] has ended.
    ReleasedWritten(Result<(), String>),
    /// [`SeederAction::Prove`] has ended.
    Proved {
        /// For which attempt.
        attempt: AttemptId,
        /// None where the store cannot be read.
        proof: Option<Proof>,
    },
    /// A timer fired.
    Timer(SeederTimer),
}

/// What is to be done about it.
#[derive(Debug, Clone, PartialEq)]
pub enum SeederAction {
    /// Send a message.
    Send(MigrationId, ToLeecher),
    /// Note what is written from now on, for this session in place of any before it.
    Track(SessionId),
    /// Note nothing for this leecher any more.
    EndTracking(MigrationId),
    /// Take what was noted.
    Collect(SessionId),
    /// A leecher trusts nothing, and what is known here of the store may be as wrong: let the next proof be
    /// of what is read back from now on.
    ReadAnew,
    /// Call a hook, with a limit to its time.
    CallHook(AttemptId, Hook),
    /// Let no request begin, and wait for those under way.
    Hold(AttemptId),
    /// Make the store durable, take what was noted, and prove what the store then holds if
    /// `prove` is set.
    Sync {
        /// For which attempt.
        attempt: AttemptId,
        /// Whether a proof is wanted.
        prove: bool,
    },
    /// Send the bytes of these blocks behind the message before.
    SendBytes(AttemptId, BlockSet),
    /// Go on with the requests that wait, also if they are just about to be held, and undo what the
    /// hook before the hold did to the application or the file system.
    Resume,
    /// Make the record of the move durable.
    WriteCommit(CommitRecord),
    /// Durably put back the record that was there before, of which it is not known any more which of
    /// the two counts.
    EraseCommit,
    /// Make the record of the move, which says now that the new owner has everything, durable.
    WriteReleased(CommitRecord),
    /// The volume has moved: fail the requests that wait and all that come.
    Fail,
    /// Remove the device.
    RemoveDevice,
    /// Prove what the store holds in these blocks.
    Prove(AttemptId, BlockSet),
    /// Have a timer fire; it takes the place of an earlier one of the same name.
    Arm(SeederTimer, Duration),
    /// For the user.
    Tell(SeederNotice),
}

/// A hook at the seeder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Before the hold: suspend the application, or freeze the file system.
    BeforeSync,
    /// The store is durable; so many blocks are left to send.
    AfterSync(u64),
    /// The volume has moved: stop the application.
    BeforeClose,
}

/// What the seeder waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeederTimer {
    /// The hold is too long.
    HoldLimit(AttemptId),
    /// Try again to erase a commit record.
    Erase,
}

/// What a user may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeederNotice {
    /// A leecher finalizes.
    Finalizing(String),
    /// It does not any more; the application goes on.
    Resumed(Reason),
    /// The volume has moved to this one.
    Moved(CommitRecord),
    /// A hook failed when that could change nothing any more.
    HookFailed(String),
    /// The commit record could be neither written nor erased. Requests wait until that works; after a
    /// restart the record that is found decides.
    RecordStuck(String),
    /// The attempt cannot be given up: its commit arrived.
    TooLate,
    /// The new owner has everything, which could not be made durable yet.
    ReleaseNotKept(String),
    /// The new owner has everything.
    Released,
}
