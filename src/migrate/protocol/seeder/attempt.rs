//! An attempt of the second phase, up to the offer, and how it ends without a commit.

use super::{Hook, Phase, Seeder, SeederAction, SeederNotice, SeederTimer};
use crate::migrate::protocol::planted::{Bug, planted};
use crate::migrate::protocol::{AttemptId, BlockSet, MigrationId, Proof, Reason, ToLeecher};

#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) id: AttemptId,
    pub(super) name: String,
    pub(super) post_copy: bool,
    pub(super) step: Step,
    /// What the leecher is to get.
    pub(super) blocks: BlockSet,
    pub(super) proof: Option<Proof>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    /// With the reason for which it ends when the hook has.
    BeforeSync(Option<Reason>),
    Holding,
    Held,
    Syncing,
    AfterSync,
    Offered,
    Committing,
    Erasing(String),
}

impl Step {
    /// Whether only the record decides any more.
    pub(super) fn is_decided(&self) -> bool {
        matches!(self, Self::Committing | Self::Erasing(_))
    }
}

impl Seeder {
    pub(super) fn prepare(&mut self, attempt: AttemptId, pulled: u32, post_copy: bool) {
        let migration = attempt.migration();
        let Some(session) = self.session_of(attempt) else {
            return self.unknown(attempt.session);
        };
        if let Phase::Attempting(current) = &self.phase {
            if current.id == attempt {
                if current.step == Step::Offered {
                    self.offer();
                }
                return;
            }
            let same = current.id.migration() == migration;
            if same && attempt.number > current.id.number {
                let before = current.id;
                self.end(before, Reason::Over);
            }
        }
        let by = self.finalizing().map(str::to_owned);
        let Some(open) = self.sessions.get_mut(&session) else {
            return;
        };
        if attempt.number <= open.attempt {
            return self.over(attempt, Reason::Over);
        }
        // From here on whatever is said of it is final: it does not begin a second time.
        if by.is_none() || !planted(Bug::BusyIsNotFinal) {
            open.attempt = attempt.number;
        }
        if let Some(by) = by {
            return self.over(attempt, Reason::Busy { by });
        }
        open.forget_question();
        open.take_back(pulled);
        let name = open.name.clone();
        self.act(SeederAction::Tell(SeederNotice::Finalizing(name.clone())));
        self.act(SeederAction::CallHook(attempt, Hook::BeforeSync));
        self.phase = Phase::Attempting(Attempt {
            id: attempt,
            name,
            post_copy,
            step: Step::BeforeSync(None),
            blocks: BlockSet::new(),
            proof: None,
        });
    }

    /// Whose session an attempt belongs to, if that is open.
    pub(super) fn session_of(&self, attempt: AttemptId) -> Option<MigrationId> {
        let open = self.sessions.get(&attempt.migration())?;
        let known = open.id == attempt.session || planted(Bug::AnotherInstance);
        known.then_some(attempt.migration())
    }

    /// The current attempt, if it is this one and at this step.
    pub(super) fn at(&mut self, attempt: AttemptId, step: Step) -> Option<&mut Attempt> {
        match &mut self.phase {
            Phase::Attempting(current) if current.id == attempt && current.step == step => {
                Some(current)
            }
            _ => None,
        }
    }

    pub(super) fn hook_ended(
        &mut self,
        attempt: AttemptId,
        hook: Hook,
        result: Result<(), String>,
    ) {
        if hook == Hook::BeforeClose {
            return self.closed(result);
        }
        let Phase::Attempting(current) = &mut self.phase else {
            return;
        };
        if current.id != attempt {
            return;
        }
        let step = current.step.clone();
        match (hook, step, result) {
            (Hook::BeforeSync, Step::BeforeSync(Some(reason)), _) => self.resume(reason),
            (Hook::BeforeSync, Step::BeforeSync(None), Ok(())) => {
                current.step = Step::Holding;
                let limit = self.config.hold_limit;
                self.act(SeederAction::Hold(attempt));
                self.act(SeederAction::Arm(SeederTimer::HoldLimit(attempt), limit));
            }
            (Hook::AfterSync(_), Step::AfterSync, Ok(())) => {
                current.step = Step::Offered;
                self.offer();
            }
            (Hook::BeforeSync, Step::BeforeSync(None), Err(text)) => {
                self.over(attempt, Reason::HookFailed(text.clone()));
                self.resume(Reason::HookFailed(text));
            }
            (Hook::AfterSync(_), Step::AfterSync, Err(text)) => {
                self.end(attempt, Reason::HookFailed(text));
            }
            _ => {}
        }
    }

    /// A collection for a round may be under way still: what it has is part of what the leecher gets.
    pub(super) fn sync_if_collected(&mut self) {
        let Phase::Attempting(current) = &mut self.phase else {
            return;
        };
        let (attempt, prove) = (current.id, !current.post_copy);
        let open = self.sessions.get(&attempt.migration());
        if current.step == Step::Held && open.is_some_and(|open| !open.collecting) {
            current.step = Step::Syncing;
            self.act(SeederAction::Sync { attempt, prove });
        }
    }

    pub(super) fn synced(
        &mut self,
        attempt: AttemptId,
        blocks: &BlockSet,
        result: Result<Option<Proof>, String>,
    ) {
        let is_current = self.at(attempt, Step::Syncing).is_some();
        let Some(open) = self.sessions.get_mut(&attempt.migration()) else {
            return;
        };
        // Owed even if the attempt is over: the device notes them no more.
        if open.id == attempt.session && (is_current || !planted(Bug::ForgetCollected)) {
            open.owed.add(blocks);
        }
        let owed = open.owed.clone();
        let Some(current) = self.at(attempt, Step::Syncing) else {
            return;
        };
        match result {
            Ok(proof) => {
                current.proof = proof;
                current.step = Step::AfterSync;
                let hook = Hook::AfterSync(owed.len());
                current.blocks = owed;
                self.act(SeederAction::CallHook(attempt, hook));
            }
            Err(text) => self.end(attempt, Reason::StoreFailed(text)),
        }
    }

    pub(super) fn offer(&mut self) {
        let Phase::Attempting(current) = &self.phase else {
            return;
        };
        let (attempt, post_copy) = (current.id, current.post_copy);
        let blocks = current.blocks.clone();
        let dirty = ToLeecher::Dirty {
            attempt,
            blocks: blocks.clone(),
            proof: current.proof,
        };
        self.send(attempt.migration(), dirty);
        if !post_copy {
            self.act(SeederAction::SendBytes(attempt, blocks));
        }
    }

    /// Ends an attempt, if it is the current one and still can be.
    pub(super) fn end(&mut self, attempt: AttemptId, reason: Reason) {
        let Phase::Attempting(current) = &mut self.phase else {
            return;
        };
        let decided = current.step.is_decided() && !planted(Bug::AbortWhileCommitting);
        if current.id != attempt || decided {
            return;
        }
        if let Step::BeforeSync(ends) = &mut current.step {
            ends.get_or_insert(reason.clone());
            return self.over(attempt, reason);
        }
        self.over(attempt, reason.clone());
        self.resume(reason);
    }

    pub(super) fn resume(&mut self, reason: Reason) {
        self.phase = Phase::Serving;
        self.act(SeederAction::Resume);
        self.act(SeederAction::Tell(SeederNotice::Resumed(reason)));
    }

    pub(super) fn disconnected(&mut self, migration: MigrationId) {
        if let Some(session) = self.sessions.get_mut(&migration) {
            session.lost = Some(self.losses);
            self.losses += 1;
        }
        if let Phase::Attempting(current) = &self.phase
            && current.id.migration() == migration
            && !planted(Bug::HoldForEver)
        {
            let attempt = current.id;
            self.end(attempt, Reason::Disconnected);
        }
    }
}
