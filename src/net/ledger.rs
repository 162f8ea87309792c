//! Keeps flush honest over restarts of the other end.
//!
//! An acknowledged write that no flush covered yet is gone when the instance that acknowledged
//! it is (its host rebooted; for memory: its process ended). Then the next flush has to fail,
//! once.

/// What was acknowledged, what was flushed, and by which instance.
#[derive(Debug)]
pub(super) struct Ledger {
    instance: [u8; 16],
    acknowledged: u64,
    flushed: u64,
    lost: bool,
}

/// Unflushed writes were lost.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Lost;

impl Ledger {
    pub(super) fn new(instance: [u8; 16]) -> Self {
        Self {
            instance,
            acknowledged: 0,
            flushed: 0,
            lost: false,
        }
    }

    /// That of a process that took over from a dead one, of whose writes nobody knows which were
    /// flushed; `instance` acknowledged them.
    pub(super) fn of_dead_process(instance: [u8; 16]) -> Self {
        Self {
            acknowledged: 1,
            ..Self::new(instance)
        }
    }

    /// Whether the next flush has to fail.
    pub(super) fn owes_failure(&self) -> bool {
        self.lost
    }

    /// A session with `instance` begins. Says whether writes were lost on the way there.
    pub(super) fn welcomed(&mut self, instance: [u8; 16]) -> Result<(), Lost> {
        if instance == self.instance {
            return Ok(());
        }
        self.instance = instance;
        let unflushed = self.acknowledged > self.flushed;
        self.flushed = self.acknowledged;
        self.lost |= unflushed;
        if unflushed { Err(Lost) } else { Ok(()) }
    }

    /// `instance` acknowledged a write that is not durable yet.
    pub(super) fn acknowledged(&mut self, instance: [u8; 16]) {
        if instance == self.instance {
            self.acknowledged += 1;
        } else {
            self.lost = true;
        }
    }

    /// A flush is about to be sent. What it covers goes to [`Ledger::flushed`].
    pub(super) fn begin_flush(&mut self) -> Result<u64, Lost> {
        if std::mem::take(&mut self.lost) {
            return Err(Lost);
        }
        Ok(self.acknowledged)
    }

    /// `instance` has flushed everything up to `covered`.
    pub(super) fn flushed(&mut self, instance: [u8; 16], covered: u64) {
        if instance == self.instance {
            self.flushed = self.flushed.max(covered);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: [u8; 16] = [1; 16];
    const B: [u8; 16] = [2; 16];

    #[test]
    fn a_flush_fails_once_after_unflushed_writes_were_lost() {
        let mut ledger = Ledger::new(A);
        ledger.acknowledged(A);
        assert_eq!(ledger.welcomed(B), Err(Lost));
        assert_eq!(ledger.begin_flush(), Err(Lost));
        assert!(ledger.begin_flush().is_ok());
    }

    #[test]
    fn nothing_is_lost_when_everything_was_flushed() {
        let mut ledger = Ledger::new(A);
        ledger.acknowledged(A);
        let covered = ledger.begin_flush().expect("nothing lost");
        ledger.flushed(A, covered);
        assert_eq!(ledger.welcomed(B), Ok(()));
        assert!(ledger.begin_flush().is_ok());
    }

    #[test]
    fn a_flush_covers_only_what_was_acknowledged_before_it_was_sent() {
        let mut ledger = Ledger::new(A);
        let covered = ledger.begin_flush().expect("nothing lost");
        ledger.acknowledged(A);
        ledger.flushed(A, covered);
        assert_eq!(ledger.welcomed(B), Err(Lost));
    }

    #[test]
    fn an_acknowledgement_that_is_noticed_late_counts_as_lost() {
        let mut ledger = Ledger::new(A);
        assert_eq!(ledger.welcomed(B), Ok(()));
        ledger.acknowledged(A);
        assert_eq!(ledger.begin_flush(), Err(Lost));
    }

    #[test]
    fn the_same_instance_loses_nothing() {
        let mut ledger = Ledger::new(A);
        ledger.acknowledged(A);
        assert_eq!(ledger.welcomed(A), Ok(()));
        assert!(ledger.begin_flush().is_ok());
    }
}
