//! The first phase: rounds, and when it is over.

use std::time::Duration;

use super::{Finalize, Leecher, LeecherAction, LeecherNotice, LeecherTimer, Mode, Next, State};
use crate::migrate::protocol::{Measured, Reason};

/// Between two rounds of which the second is not urgent, and after an attempt that ended.
const PAUSE: Duration = Duration::from_secs(1);

/// How many attempts may end before only the user finalizes.
pub(super) const ATTEMPTS_MAX: u32 = 5;

impl Leecher {
    pub(super) fn rest(&mut self) {
        self.state = State::Resting;
        self.act(LeecherAction::Arm(LeecherTimer::Pause, PAUSE));
    }

    pub(super) fn is_automatic(&self) -> bool {
        self.config.finalize == Finalize::Auto && self.attempts_ended < ATTEMPTS_MAX
    }

    /// Whether the bytes that are not here yet are left for later.
    pub(super) fn leaves_bytes(&self) -> bool {
        match self.config.mode {
            Mode::PreCopy => false,
            Mode::PostCopy => true,
            Mode::Hybrid => self.post_copy_due,
        }
    }

    /// The next round, or attempt, is due.
    pub(super) fn advance(&mut self) {
        let wanted = self.finalize_wanted && self.rounds > 0;
        if self.leaves_bytes() {
            match self.finalize_wanted || self.is_automatic() {
                true => self.prepare(),
                false => self.state = State::Resting,
            }
        } else if wanted && !self.anew {
            self.prepare();
        } else {
            self.asked += 1;
            self.state = State::Wanting;
            self.say_again();
        }
    }

    pub(super) fn pulled(&mut self, number: u32, result: Result<Measured, String>) {
        if !matches!(self.state, State::Pulling) || number != self.asked {
            return;
        }
        let measured = match result {
            Ok(measured) => measured,
            Err(text) => return self.go(Next::Stop(Reason::StoreFailed(text))),
        };
        self.pulled = number;
        self.rounds += 1;
        self.prediction.pulled(measured);
        let target = self.config.downtime_target;
        if self.rounds == 2 && self.prediction.is_out_of_reach(target) {
            self.tell(LeecherNotice::TargetOutOfReach);
        }
        let limit = self.rounds >= self.config.rounds_max;
        if limit && self.config.mode == Mode::Hybrid {
            self.post_copy_due = true;
        }
        if self.finalize_wanted {
            self.prepare();
        } else if !self.is_automatic() {
            self.rest();
        } else if limit || self.prediction.is_within(target) {
            self.prepare();
        } else {
            self.advance();
        }
    }

    pub(super) fn finalize(&mut self) {
        self.finalize_wanted = true;
        let at_once = match self.state {
            State::Resting => true,
            State::Wanting | State::Pulling => self.leaves_bytes(),
            _ => false,
        };
        if at_once && self.leaves_bytes() {
            self.prepare();
        } else if at_once {
            self.advance();
        }
    }
}
