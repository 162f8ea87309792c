//! How answers from other threads reach a queue thread: many writers, one reader, no lock.
//!
//! Every request that is under way has a tag of its own, so the mailbox is a table with a place
//! for each tag and a bit that says "answered". Posting is two stores and never fails; taking is a
//! swap for each word of bits. The reader may park; the first post after it did tells its writer
//! to ring the bell, the others stay silent.

#[cfg(blockferry_loom)]
use loom::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
#[cfg(not(blockferry_loom))]
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use super::request::{Errno, Outcome, Tag};

/// Answers on their way to one queue.
#[derive(Debug)]
pub struct Mailbox {
    answered: Box<[AtomicU64]>,
    outcomes: Box<[AtomicI32]>,
    parking: Parking,
}

impl Mailbox {
    /// A mailbox for tags below `depth`.
    pub fn new(depth: u16) -> Self {
        let depth = usize::from(depth);
        Self {
            answered: (0..depth.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            outcomes: (0..depth).map(|_| AtomicI32::new(0)).collect(),
            parking: Parking::new(),
        }
    }

    /// Leaves the answer to the request with this tag. True means that the reader is parked and
    /// that this caller, alone, has to wake it.
    ///
    /// # Panics
    /// If `tag` is not below the depth.
    #[must_use]
    pub fn post(&self, tag: Tag, outcome: Outcome) -> bool {
        let (word, bit) = (tag.index() / 64, 1 << (tag.index() % 64));
        let code = outcome.map_or_else(|errno| errno.raw(), |()| 0);
        self.outcomes[tag.index()].store(code, Ordering::Relaxed);
        // Release: whoever sees the bit sees the outcome, and the bytes that were read.
        let before = self.answered[word].fetch_or(bit, Ordering::Release);
        debug_assert_eq!(before & bit, 0, "a request is answered once");
        self.parking.wake_needed()
    }

    /// Takes all answers that are there. Only the owning queue calls this.
    pub fn take(&self, mut each: impl FnMut(Tag, Outcome)) {
        for (index, word) in self.answered.iter().enumerate() {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = word.swap(0, Ordering::Acquire);
            while bits != 0 {
                let tag = index * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let outcome = match self.outcomes[tag].load(Ordering::Relaxed) {
                    0 => Ok(()),
                    raw => Err(Errno::from_raw(raw)),
                };
                each(Tag(tag as u16), outcome);
            }
        }
    }

    /// Whether no answer waits.
    pub fn is_empty(&self) -> bool {
        self.answered
            .iter()
            .all(|word| word.load(Ordering::Relaxed) == 0)
    }

    /// Announces that the reader is going to sleep. False means that it must not: answers wait.
    #[must_use]
    pub fn park(&self) -> bool {
        self.parking.park_unless(|| !self.is_empty())
    }

    /// Takes the announcement back, after a sleep that something else ended.
    pub fn unpark(&self) {
        self.parking.unpark();
    }
}

/// The agreement between a reader that sleeps and writers that would wake it.
///
/// The reader announces its sleep and then looks once more; a writer posts and then takes the
/// announcement back. All of this is exchanges of one flag, which have one order: a writer whose
/// exchange comes later finds the announcement and wakes, and what a writer posted whose exchange
/// came earlier is seen by the reader's second look, because its exchange follows the writer's. A
/// plain store anywhere would break that chain.
#[derive(Debug)]
pub struct Parking {
    parked: AtomicBool,
}

impl Parking {
    #[allow(
        clippy::new_without_default,
        reason = "loom's atomics have no const default"
    )]
    /// A reader that is awake.
    pub fn new() -> Self {
        Self {
            parked: AtomicBool::new(false),
        }
    }

    /// For a writer, after it posted: whether it is the one that has to wake the reader.
    #[must_use]
    pub fn wake_needed(&self) -> bool {
        self.parked.swap(false, Ordering::AcqRel)
    }

    /// For the reader: announces its sleep, unless something waits.
    #[must_use]
    pub fn park_unless(&self, something_waits: impl FnOnce() -> bool) -> bool {
        self.parked.swap(true, Ordering::AcqRel);
        if something_waits() {
            self.unpark();
            return false;
        }
        true
    }

    /// For the reader: it is awake.
    pub fn unpark(&self) {
        self.parked.swap(false, Ordering::AcqRel);
    }
}

#[cfg(all(test, not(blockferry_loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_tag_of_the_deepest_queue_arrives_once_with_its_outcome() {
        let mailbox = Mailbox::new(4096);
        for tag in 0..4096u16 {
            let outcome = if tag % 3 == 0 {
                Err(Errno::EIO)
            } else {
                Ok(())
            };
            assert!(!mailbox.post(Tag(tag), outcome), "nobody is parked");
        }
        let mut seen = Vec::new();
        mailbox.take(|tag, outcome| {
            assert_eq!(outcome.is_err(), tag.0 % 3 == 0);
            seen.push(tag.0);
        });
        assert_eq!(seen, (0..4096).collect::<Vec<_>>());
        assert!(mailbox.is_empty());
        mailbox.take(|tag, _| panic!("{tag:?} arrived twice"));
    }

    #[test]
    fn only_the_first_post_after_parking_wakes() {
        let mailbox = Mailbox::new(8);
        assert!(mailbox.park());
        assert!(mailbox.post(Tag(0), Ok(())));
        assert!(!mailbox.post(Tag(1), Ok(())));
        assert!(!mailbox.park(), "a reader with mail does not sleep");
    }
}

#[cfg(all(test, blockferry_loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::thread;

    /// Stands for the eventfd: remembers that it was rung, and lets the reader wait for it.
    struct Bell(loom::sync::Mutex<bool>, loom::sync::Condvar);

    impl Bell {
        fn new() -> Self {
            Self(loom::sync::Mutex::new(false), loom::sync::Condvar::new())
        }
        fn ring(&self) {
            *self.0.lock().expect("not poisoned") = true;
            self.1.notify_one();
        }
        fn wait(&self) {
            let mut rung = self.0.lock().expect("not poisoned");
            while !*rung {
                rung = self.1.wait(rung).expect("not poisoned");
            }
            *rung = false;
        }
    }

    /// A reader that parks whenever it finds nothing gets every answer, and loom finds no
    /// execution in which it sleeps for ever.
    #[test]
    fn loom_no_answer_is_lost_and_no_wake_up_is_missed() {
        let mut model = loom::model::Builder::new();
        // All executions with up to three involuntary switches between threads.
        model.preemption_bound = Some(3);
        model.check(|| {
            let shared = Arc::new((Mailbox::new(2), Bell::new()));
            let writers: Vec<_> = (0..2u16)
                .map(|tag| {
                    let shared = shared.clone();
                    thread::spawn(move || {
                        if shared
                            .0
                            .post(Tag(tag), Err(Errno::from_raw(i32::from(tag) + 1)))
                        {
                            shared.1.ring();
                        }
                    })
                })
                .collect();
            let mut seen = [0; 2];
            while seen != [1, 1] {
                shared.0.take(|tag, outcome| {
                    seen[tag.index()] += 1;
                    assert_eq!(outcome, Err(Errno::from_raw(i32::from(tag.0) + 1)));
                });
                if seen != [1, 1] && shared.0.park() {
                    shared.1.wait();
                    shared.0.unpark();
                }
            }
            for writer in writers {
                writer.join().expect("no panic");
            }
            assert!(shared.0.is_empty());
        });
    }
}
