//! A queue's part: which of its requests start, and what they change.

use std::collections::VecDeque;
use std::sync::Arc;

use super::phase::{Phase, Verdict};
use super::seat::Seat;
use super::{Ordering, Watch};
use crate::volume::buffer::RequestBuffer;
use crate::volume::geometry::{BlockIndex, BlockRange};
use crate::volume::request::{Errno, Outcome, Request, Tag};

/// What the queue of a seedable volume knows.
pub(in crate::volume) struct QueueWatch {
    watch: Arc<Watch>,
    seat: Arc<Seat>,
    /// As it was when this queue last looked. Everything is done by it.
    phase: Phase,
    /// What each tag changes while its request is under way; nothing for a read.
    under_way: Box<[Option<BlockRange>]>,
    under_way_count: u32,
    /// Held requests, in their order. There is room for all tags.
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    tag: Tag,
    request: Request,
    buffer: RequestBuffer,
}

/// What becomes of a request.
pub(in crate::volume) enum Begin {
    /// It starts.
    Now(RequestBuffer),
    /// It waits here.
    Later,
    /// It has failed.
    Never(Errno),
}

impl QueueWatch {
    /// For a queue of `depth` requests, whose thread `wake` wakes.
    pub(in crate::volume) fn new(
        watch: Arc<Watch>,
        depth: u16,
        wake: Box<dyn Fn() + Send + Sync>,
    ) -> Self {
        let (seat, phase) = watch.sit_down(wake);
        Self {
            watch,
            seat,
            phase,
            under_way: (0..depth).map(|_| None).collect(),
            under_way_count: 0,
            waiting: VecDeque::with_capacity(usize::from(depth)),
        }
    }

    /// Follows a change of the phase, if there is one. Not to be called in the middle of a request.
    #[inline]
    pub(in crate::volume) fn look(&mut self) {
        if self.watch.phase.load(Ordering::Relaxed) != self.phase.raw() {
            self.follow();
        }
    }

    #[cold]
    fn follow(&mut self) {
        self.phase = self.watch.look();
        for blocks in self.under_way.iter().flatten() {
            self.watch.note(self.phase.trackers(), *blocks);
        }
        self.seat.note_seen(self.phase.generation());
        if self.under_way_count == 0 {
            self.seat.note_drained(self.phase.generation());
        }
        self.watch.told.notify_waiters();
    }

    /// Says whether a request may start; what it changes is noted then.
    #[inline]
    pub(in crate::volume) fn begin(
        &mut self,
        tag: Tag,
        request: &Request,
        buffer: RequestBuffer,
    ) -> Begin {
        self.look();
        if self.phase.is_quiet() && self.waiting.is_empty() {
            return Begin::Now(buffer);
        }
        match self.phase.verdict() {
            Verdict::Starts if self.waiting.is_empty() => {
                self.note(blocks_changed(request));
                Begin::Now(buffer)
            }
            // Those that wait come first.
            Verdict::Starts | Verdict::Waits => {
                self.waiting.push_back(Waiting {
                    tag,
                    request: *request,
                    buffer,
                });
                Begin::Later
            }
            Verdict::Fails => Begin::Never(Errno::EIO),
        }
    }

    /// Whether a request waits that need not.
    pub(in crate::volume) fn has_next(&self) -> bool {
        !self.waiting.is_empty() && self.phase.verdict() != Verdict::Waits
    }

    /// The next one that has waited, and whether it starts or has failed.
    pub(in crate::volume) fn next(
        &mut self,
    ) -> Option<(Tag, Request, Result<RequestBuffer, Errno>)> {
        if !self.has_next() {
            return None;
        }
        let Waiting {
            tag,
            request,
            buffer,
        } = self.waiting.pop_front()?;
        if !self.phase.starts() {
            return Some((tag, request, Err(Errno::EIO)));
        }
        self.note(blocks_changed(&request));
        Some((tag, request, Ok(buffer)))
    }

    /// A request that was let through has been started, and may have ended by that.
    #[inline]
    pub(in crate::volume) fn begun(
        &mut self,
        tag: Tag,
        request: &Request,
        outcome: Option<&Outcome>,
    ) {
        if outcome.is_none() {
            self.under_way[tag.index()] = Some(blocks_changed(request));
            self.under_way_count += 1;
        } else if !self.phase.is_quiet() {
            self.note(blocks_changed(request));
        }
    }

    /// A request that was under way has ended, well or not, and is not answered yet.
    #[inline]
    pub(in crate::volume) fn ended(&mut self, tag: Tag) {
        let Some(blocks) = self.under_way[tag.index()].take() else {
            return;
        };
        self.under_way_count -= 1;
        if self.phase.is_quiet() {
            return;
        }
        self.note(blocks);
        if self.under_way_count == 0 && !self.phase.starts() {
            self.seat.note_drained(self.phase.generation());
            self.watch.told.notify_waiters();
        }
    }

    fn note(&self, blocks: BlockRange) {
        if !blocks.is_empty() {
            self.watch.note(self.phase.trackers(), blocks);
        }
    }
}

impl Drop for QueueWatch {
    fn drop(&mut self) {
        self.watch.stand_up(&self.seat, self.under_way_count > 0);
    }
}

impl std::fmt::Debug for QueueWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueueWatch")
            .field("phase", &self.phase)
            .field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}

/// The blocks that a request changes. It may not have been checked yet: there is none where no
/// volume can have them.
fn blocks_changed(request: &Request) -> BlockRange {
    match request.offset.checked_add(request.len_bytes) {
        Some(_) if request.writes() => BlockRange::touched(request.offset, request.len_bytes),
        _ => BlockRange {
            first: BlockIndex(0),
            end: BlockIndex(0),
        },
    }
}
