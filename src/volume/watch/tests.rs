use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use super::queue::{Begin, QueueWatch};
use super::*;
use crate::volume::buffer::{RequestBuffer, RequestMemory};
use crate::volume::geometry::ByteOffset;
use crate::volume::request::{Errno, Op, Request, Tag};

const WRITE: Request = Request::new(Op::Write, ByteOffset(4096), 4096);
const READ: Request = Request::new(Op::Read, ByteOffset(0), 4096);

struct Rig {
    watch: Arc<Watch>,
    queue: QueueWatch,
    rung: Arc<AtomicUsize>,
}

impl Rig {
    fn new() -> Self {
        let watch = Arc::new(Watch::new(1000, true));
        let rung = Arc::new(AtomicUsize::new(0));
        Self {
            queue: queue(&watch, &rung),
            watch,
            rung,
        }
    }

    /// Whether the request has been let through; then it is under way.
    fn start(&mut self, tag: u16, request: &Request) -> bool {
        let nothing = RequestBuffer::Memory(RequestMemory::empty());
        match self.queue.begin(Tag(tag), request, nothing) {
            Begin::Now(_) => {
                self.queue.begun(Tag(tag), request, None);
                true
            }
            Begin::Later => false,
            Begin::Never(errno) => panic!("{errno:?}"),
        }
    }

    /// The tracker, once the queue has looked.
    fn track(&mut self) -> Tracker {
        let watch = self.watch.clone();
        let mut tracking = pin!(watch.track());
        assert!(
            poll(tracking.as_mut()).is_pending(),
            "a queue has not heard"
        );
        self.queue.look();
        match poll(tracking) {
            Poll::Ready(tracker) => tracker.expect("room"),
            Poll::Pending => panic!("all have heard"),
        }
    }
}

fn queue(watch: &Arc<Watch>, rung: &Arc<AtomicUsize>) -> QueueWatch {
    let rung = rung.clone();
    let wake = move || {
        rung.fetch_add(1, Ordering::Relaxed);
    };
    QueueWatch::new(watch.clone(), 8, Box::new(wake))
}

fn poll<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Poll<T> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

fn runs(ranges: &[(u64, u64)]) -> Vec<BlockRange> {
    let range = |&(first, end): &(u64, u64)| BlockRange::new(first, end);
    ranges.iter().map(range).collect()
}

#[test]
fn what_was_under_way_when_the_tracking_began_is_noted() {
    let mut rig = Rig::new();
    assert!(rig.start(0, &WRITE) && rig.start(1, &READ));
    let tracker = rig.track();
    assert_eq!(tracker.collect(), runs(&[(1, 2)]));
    rig.queue.ended(Tag(0));
    rig.queue.ended(Tag(1));
    assert_eq!(tracker.collect(), runs(&[(1, 2)]), "and when it ends");
    assert_eq!(tracker.collect(), []);
}

#[test]
fn a_change_is_noted_before_it_and_after_it_for_each_tracker() {
    let mut rig = Rig::new();
    let (one, other) = (rig.track(), rig.track());
    assert!(rig.start(0, &WRITE));
    assert_eq!(one.collect(), runs(&[(1, 2)]));
    rig.queue.ended(Tag(0));
    assert_eq!(one.collect(), runs(&[(1, 2)]));
    assert_eq!(other.collect(), runs(&[(1, 2)]));
    let zeroes = Request::new(Op::WriteZeroes, ByteOffset(4096 * 10), 4096 * 500);
    rig.queue.begun(Tag(0), &zeroes, Some(&Ok(())));
    assert_eq!(one.collect(), runs(&[(10, 510)]));
    drop(one);
    rig.queue.look();
    assert!(rig.start(0, &WRITE));
    assert_eq!(other.collect(), runs(&[(1, 2), (10, 510)]));
}

#[test]
fn a_later_tracker_in_the_same_place_knows_nothing_of_the_one_before() {
    let mut rig = Rig::new();
    let before = rig.track();
    assert!(rig.start(0, &WRITE));
    rig.queue.ended(Tag(0));
    drop(before);
    assert_eq!(rig.track().collect(), []);
}

#[test]
fn there_are_as_many_trackers_as_the_limit_says() {
    let mut rig = Rig::new();
    let trackers: Vec<_> = (0..TRACKERS_MAX).map(|_| rig.track()).collect();
    let Poll::Ready(result) = poll(pin!(rig.watch.track())) else {
        panic!("nothing to wait for");
    };
    assert_eq!(result.expect_err("one too many").kind(), ErrorKind::Busy);
    drop(trackers);
    rig.track();
}

#[test]
fn a_volume_that_is_not_to_be_seeded_is_not_tracked() {
    let watch = Arc::new(Watch::new(10, false));
    let Poll::Ready(result) = poll(pin!(watch.track())) else {
        panic!("nothing to wait for");
    };
    assert_eq!(result.expect_err("no").kind(), ErrorKind::Unsupported);
}

#[test]
fn a_request_that_nobody_could_have_asked_for_is_none_of_a_trackers() {
    let mut rig = Rig::new();
    let tracker = rig.track();
    for (offset, len) in [(u64::MAX, 2), (4096 * 1000, 4096), (u64::MAX / 2, 4096)] {
        let request = Request::new(Op::Write, ByteOffset(offset), len);
        assert!(rig.start(0, &request));
        rig.queue.ended(Tag(0));
    }
    assert_eq!(tracker.collect(), []);
}

#[test]
fn a_hold_is_there_once_nothing_is_under_way_and_no_queue_starts_anything() {
    let mut rig = Rig::new();
    let mut other = queue(&rig.watch, &rig.rung);
    assert!(rig.start(0, &READ));
    let watch = rig.watch.clone();
    let mut hold = pin!(watch.hold());
    assert!(poll(hold.as_mut()).is_pending());
    assert_eq!(rig.rung.load(Ordering::Relaxed), 2, "all are woken");
    assert!(!rig.start(1, &WRITE), "it waits");
    other.look();
    assert!(poll(hold.as_mut()).is_pending(), "the read is under way");
    rig.queue.ended(Tag(0));
    assert!(poll(hold).is_ready());
    assert!(rig.queue.next().is_none());
}

#[test]
fn those_that_wait_start_in_order_before_those_that_come() {
    let mut rig = Rig::new();
    assert!(poll(pin!(rig.watch.clone().hold())).is_pending());
    assert!(!rig.start(0, &WRITE) && !rig.start(1, &READ));
    rig.watch.resume();
    assert!(!rig.start(2, &READ), "after those before it");
    for tag in 0..3 {
        assert!(rig.queue.has_next());
        let (next, request, buffer) = rig.queue.next().expect("one waits");
        assert_eq!((next, buffer.is_ok()), (Tag(tag), true));
        rig.queue.begun(next, &request, None);
    }
    assert!(rig.queue.next().is_none());
    assert!(rig.start(3, &READ));
}

#[test]
fn what_waits_when_the_volume_has_moved_fails_and_so_does_all_that_comes() {
    let mut rig = Rig::new();
    assert!(poll(pin!(rig.watch.clone().hold())).is_pending());
    assert!(!rig.start(0, &WRITE));
    rig.watch.close_moved();
    rig.watch.resume();
    rig.queue.look();
    let (tag, _, buffer) = rig.queue.next().expect("it waits");
    assert_eq!((tag, buffer.err()), (Tag(0), Some(Errno::EIO)));
    let nothing = || RequestBuffer::Memory(RequestMemory::empty());
    let begin = rig.queue.begin(Tag(0), &READ, nothing());
    assert!(matches!(begin, Begin::Never(Errno::EIO)));
    let mut late = queue(&rig.watch, &rig.rung);
    let begin = late.begin(Tag(0), &READ, nothing());
    assert!(matches!(begin, Begin::Never(Errno::EIO)), "new queues too");
}

#[test]
fn a_queue_that_comes_during_a_hold_holds() {
    let mut rig = Rig::new();
    let watch = rig.watch.clone();
    let mut hold = pin!(watch.hold());
    assert!(poll(hold.as_mut()).is_pending());
    let rung = rig.rung.clone();
    rig.queue = queue(&rig.watch, &rung);
    assert!(poll(hold).is_ready(), "the one before has gone");
    assert!(!rig.start(0, &READ));
}

#[test]
fn an_earlier_hold_is_never_there_by_a_later_one() {
    let mut rig = Rig::new();
    let watch = rig.watch.clone();
    let mut earlier = pin!(watch.hold());
    assert!(poll(earlier.as_mut()).is_pending());
    rig.queue.look();
    watch.resume();
    rig.queue.look();
    assert!(rig.start(0, &WRITE));
    let mut later = pin!(watch.hold());
    assert!(poll(later.as_mut()).is_pending());
    assert!(poll(earlier.as_mut()).is_pending());
    rig.queue.ended(Tag(0));
    assert!(
        poll(later.as_mut()).is_pending(),
        "it has not heard of this one"
    );
    rig.queue.look();
    assert!(poll(later).is_ready() && poll(earlier).is_pending());
}

#[test]
fn what_a_queue_had_under_way_when_it_broke_down_is_never_taken_for_ended() {
    let mut rig = Rig::new();
    assert!(rig.start(0, &WRITE));
    let Rig { watch, queue, .. } = rig;
    let mut hold = pin!(watch.hold());
    drop(queue);
    assert!(poll(hold.as_mut()).is_pending());
    let Poll::Ready(result) = poll(pin!(watch.track())) else {
        panic!("nothing to wait for");
    };
    assert_eq!(result.expect_err("lost").kind(), ErrorKind::Io);
}

#[test]
fn a_device_that_is_taken_down_fails_what_a_hold_keeps_and_serves_on_after_it() {
    let mut rig = Rig::new();
    assert!(poll(pin!(rig.watch.clone().hold())).is_pending());
    assert!(!rig.start(0, &WRITE));
    rig.watch.end_waiting();
    rig.queue.look();
    assert!(
        rig.queue
            .next()
            .is_some_and(|(_, _, buffer)| buffer.is_err())
    );
    rig.watch.resume();
    assert!(rig.start(0, &READ));
}
