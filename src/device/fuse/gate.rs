//! Keeps a write of parts of blocks, which reads them first, apart from all other changes.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Lets any number of changes of whole blocks through, or one change of parts of blocks. It is
/// shared by the queues of a device, and nobody waits in it: who is not let through tries again
/// when it is told that the gate has opened.
///
/// Such writes come only from programs that use the file itself; the kernel's block devices ask
/// for whole blocks. So what counts is that the gate costs the others nearly nothing.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// How many changes are going through, and [`CLOSED`].
    state: AtomicUsize,
}

const CLOSED: usize = 1 << (usize::BITS - 1);

impl Gate {
    /// For a change of whole blocks: whether it may start. It has to [`leave`](Self::leave).
    pub(super) fn enter(&self) -> bool {
        self.state
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |state| {
                (state & CLOSED == 0).then_some(state + 1)
            })
            .is_ok()
    }

    /// A change of whole blocks has ended. True: it was the last one before a closed gate, and the
    /// one who closed it has to be told.
    #[must_use]
    pub(super) fn leave(&self) -> bool {
        self.state.fetch_sub(1, Ordering::AcqRel) == CLOSED | 1
    }

    /// For a change of parts of blocks: keeps all others out from now on. False: another one has.
    /// It may start once the gate [is empty](Self::is_empty), and has to [`open`](Self::open) it.
    pub(super) fn close(&self) -> bool {
        self.state.fetch_or(CLOSED, Ordering::AcqRel) & CLOSED == 0
    }

    /// Whether those who entered before it was closed have left.
    pub(super) fn is_empty(&self) -> bool {
        self.state.load(Ordering::Acquire) & !CLOSED == 0
    }

    /// Lets everybody through again; all who were kept out have to be told.
    pub(super) fn open(&self) {
        self.state.fetch_and(!CLOSED, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_parts_waits_for_those_inside_and_keeps_the_others_out() {
        let gate = Gate::default();
        assert!(gate.enter() && gate.enter());
        assert!(gate.close() && !gate.close(), "one at a time");
        assert!(!gate.enter() && !gate.is_empty());
        assert!(!gate.leave(), "one is still inside");
        assert!(gate.leave(), "the last one says so");
        assert!(gate.is_empty() && !gate.enter());
        gate.open();
        assert!(gate.enter());
        assert!(!gate.leave(), "nobody waits");
        assert!(gate.close() && gate.is_empty());
    }
}
