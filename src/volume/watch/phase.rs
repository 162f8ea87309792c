//! What queues have to do at the moment, in one word.

/// Which trackers there are, whether requests start, and how often that has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Phase(u64);

/// A bit for each tracker.
const TRACKERS: u64 = (1 << super::TRACKERS_MAX) - 1;
/// Requests wait.
const HELD: u64 = 1 << 16;
/// The volume has moved away.
const MOVED: u64 = 1 << 17;
/// The device is being taken down.
const ENDING: u64 = 1 << 18;

/// The number of the phase is in the upper half.
const GENERATION_SHIFT: u32 = 32;

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Starts,
    Waits,
    Fails,
}

impl Phase {
    /// Nobody migrates.
    pub(super) const QUIET: Self = Self(0);

    pub(super) fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    pub(super) fn raw(self) -> u64 {
        self.0
    }

    /// How many phases there were before.
    pub(super) fn generation(self) -> u64 {
        self.0 >> GENERATION_SHIFT
    }

    /// The phase with the next number.
    pub(super) fn next(self) -> Self {
        Self(self.0.wrapping_add(1 << GENERATION_SHIFT))
    }

    /// Whether requests are nobody's business.
    pub(super) fn is_quiet(self) -> bool {
        self.0 as u32 == 0
    }

    pub(super) fn trackers(self) -> u64 {
        self.0 & TRACKERS
    }

    pub(super) fn with_tracker(self, number: usize) -> Self {
        Self(self.0 | (1 << number) & TRACKERS)
    }

    pub(super) fn without_tracker(self, number: usize) -> Self {
        Self(self.0 & !((1 << number) & TRACKERS))
    }

    pub(super) fn held(self) -> Self {
        Self(self.0 | HELD)
    }

    pub(super) fn resumed(self) -> Self {
        Self(self.0 & !HELD)
    }

    pub(super) fn moved(self) -> Self {
        Self(self.0 | MOVED)
    }

    pub(super) fn ending(self) -> Self {
        Self(self.0 | ENDING)
    }

    pub(super) fn verdict(self) -> Verdict {
        match self.0 {
            flags if flags & MOVED != 0 => Verdict::Fails,
            flags if flags & (HELD | ENDING) == HELD | ENDING => Verdict::Fails,
            flags if flags & HELD != 0 => Verdict::Waits,
            _ => Verdict::Starts,
        }
    }

    pub(super) fn starts(self) -> bool {
        self.verdict() == Verdict::Starts
    }
}
