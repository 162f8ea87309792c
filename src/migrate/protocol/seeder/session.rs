//! What a leecher has, as far as this process of the seeder knows.

use crate::migrate::protocol::planted::{Bug, planted};
use crate::migrate::protocol::{BlockSet, SessionId};

/// One leecher.
///
/// A block that it may lack is in one of three places: noted by the device and not collected yet;
/// `owed`; or in `handed`, until the leecher says that it has pulled all of that round.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) name: String,
    /// Of the last attempt that it began.
    pub(super) attempt: u32,
    /// What to hand out with the next round or attempt.
    pub(super) owed: BlockSet,
    /// The last round that it asked for, and the answer.
    round: u32,
    handed: BlockSet,
    /// A collection is under way.
    pub(super) collecting: bool,
    /// The answer waits for it.
    asked: bool,
    /// How many had lost their connection by when this one did, unless it has been heard of since.
    pub(super) lost: Option<u64>,
}

/// What becomes of a question for a round.
#[derive(Debug, PartialEq)]
pub(super) enum Asked {
    /// It is an old one, or the answer is on its way.
    Nothing,
    /// Collect first.
    Collect,
    /// Say this again.
    Again(u32, BlockSet),
}

impl Session {
    pub(super) fn new(id: SessionId, name: String, all: BlockSet) -> Self {
        Self {
            id,
            name,
            attempt: 0,
            owed: all,
            round: 0,
            handed: BlockSet::new(),
            collecting: false,
            asked: false,
            lost: None,
        }
    }

    /// Whether it has not asked for this round before.
    pub(super) fn is_new(&self, number: u32) -> bool {
        number > self.round
    }

    pub(super) fn ask(&mut self, number: u32, pulled: u32, everything: Option<BlockSet>) -> Asked {
        if number < self.round || (number == self.round && self.asked) {
            return Asked::Nothing;
        }
        if number == self.round {
            return Asked::Again(number, self.handed.clone());
        }
        self.take_back(pulled);
        if let Some(all) = everything {
            self.owed.add(&all);
        }
        self.round = number;
        self.asked = true;
        if self.collecting {
            return Asked::Nothing;
        }
        self.collecting = true;
        Asked::Collect
    }

    /// What was handed out is owed again, unless it was pulled.
    pub(super) fn take_back(&mut self, pulled: u32) {
        let handed = std::mem::take(&mut self.handed);
        if pulled != self.round && !planted(Bug::RoundCountsAtOnce) {
            self.owed.add(&handed);
        }
    }

    /// No answer is due any more: the leecher wants something else.
    pub(super) fn forget_question(&mut self) {
        self.asked = false;
    }

    /// A collection has ended. What it found goes to the leecher if that has asked.
    pub(super) fn collected(&mut self, blocks: &BlockSet) -> Option<(u32, BlockSet)> {
        self.collecting = false;
        self.owed.add(blocks);
        if !std::mem::take(&mut self.asked) {
            return None;
        }
        self.handed = std::mem::take(&mut self.owed);
        Some((self.round, self.handed.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::protocol::{Instance, MigrationId};
    use crate::volume::geometry::BlockRange;

    fn session() -> Session {
        let id = SessionId {
            migration: MigrationId([1; 16]),
            instance: Instance([2; 16]),
            number: 1,
        };
        Session::new(id, "b".to_owned(), blocks(0, 8))
    }

    fn blocks(first: u64, end: u64) -> BlockSet {
        BlockSet::of(BlockRange::new(first, end))
    }

    #[test]
    fn a_round_that_was_not_pulled_is_owed_again() {
        let mut session = session();
        assert_eq!(session.ask(1, 0, None), Asked::Collect);
        assert_eq!(session.collected(&blocks(2, 3)), Some((1, blocks(0, 8))));
        assert_eq!(session.ask(2, 0, None), Asked::Collect);
        assert_eq!(session.collected(&blocks(2, 3)), Some((2, blocks(0, 8))));
        assert_eq!(session.ask(3, 2, None), Asked::Collect);
        assert_eq!(session.collected(&blocks(2, 3)), Some((3, blocks(2, 3))));
    }

    #[test]
    fn a_question_that_comes_twice_gets_the_same_answer_and_an_old_one_none() {
        let mut session = session();
        session.ask(1, 0, None);
        assert_eq!(session.ask(1, 0, None), Asked::Nothing);
        session.collected(&BlockSet::new());
        assert_eq!(session.ask(1, 0, None), Asked::Again(1, blocks(0, 8)));
        session.ask(2, 1, None);
        session.collected(&blocks(5, 6));
        assert_eq!(session.ask(1, 0, None), Asked::Nothing);
        assert_eq!(session.ask(2, 1, None), Asked::Again(2, blocks(5, 6)));
    }

    #[test]
    fn an_answer_that_is_not_wanted_any_more_is_owed() {
        let mut session = session();
        session.ask(1, 0, None);
        session.forget_question();
        assert_eq!(session.collected(&blocks(2, 3)), None);
        assert_eq!(session.ask(1, 0, None), Asked::Again(1, BlockSet::new()));
        assert_eq!(session.ask(2, 1, None), Asked::Collect);
        assert_eq!(session.collected(&BlockSet::new()), Some((2, blocks(0, 8))));
    }

    #[test]
    fn everything_is_handed_out_again_if_the_leecher_trusts_nothing() {
        let mut session = session();
        session.ask(1, 0, None);
        session.collected(&BlockSet::new());
        assert_eq!(session.ask(2, 1, Some(blocks(0, 8))), Asked::Collect);
        assert_eq!(session.collected(&BlockSet::new()), Some((2, blocks(0, 8))));
    }
}
