//! A device in miniature for tests of the engine: a queue, its ring and page-aligned buffers.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::Arc;

use blockferry::volume::{
    EngineQueue, Op, Outcome, Owner, QueueRing, Request, RequestBuffer, RequestMemory, Tag, Volume,
};
use proptest::prelude::*;

pub(crate) const DEPTH: u16 = 16;
pub(crate) const BUFFER_BYTES: usize = 64 << 10;
pub(crate) const SECTOR: u64 = 512;

/// A device in miniature: one queue, driven by the test.
pub(crate) struct Rig {
    pub(crate) ring: QueueRing,
    pub(crate) queue: EngineQueue,
    /// Page-aligned, as a device's are.
    pub(crate) buffers: Vec<memmap2::MmapMut>,
    pub(crate) started: HashMap<Tag, Request>,
}

impl Rig {
    pub(crate) fn new(volume: Arc<Volume>) -> Self {
        let mut ring = QueueRing::new(DEPTH).expect("a ring");
        let queue = EngineQueue::new(volume.clone(), DEPTH).expect("a queue");
        if volume.needs_bell() {
            ring.arm_bell(&queue.post().bell).expect("armed");
        }
        let buffers = (0..DEPTH)
            .map(|_| memmap2::MmapMut::map_anon(BUFFER_BYTES).expect("memory"))
            .collect();
        Self {
            ring,
            queue,
            buffers,
            started: HashMap::new(),
        }
    }

    pub(crate) fn start(&mut self, tag: Tag, request: Request) -> Option<Outcome> {
        assert!(self.started.insert(tag, request).is_none(), "a free tag");
        let memory = match request.op {
            Op::Read | Op::Write => {
                let address = NonNull::new(self.buffers[tag.index()].as_mut_ptr()).expect("some");
                // SAFETY: the buffer is not touched before the request has ended.
                unsafe { RequestMemory::new(address, request.len_bytes as usize) }
            }
            _ => RequestMemory::empty(),
        };
        let buffer = RequestBuffer::Memory(memory);
        let outcome = self.queue.start(&mut self.ring, tag, request, buffer);
        if outcome.is_some() {
            self.started.remove(&tag);
        }
        outcome
    }

    /// Waits for all that was started, and fails if anything ends twice.
    pub(crate) fn finish(&mut self) -> HashMap<Tag, Outcome> {
        let mut ended = HashMap::new();
        while !self.started.is_empty() {
            ended.extend(self.turn());
        }
        ended
    }

    /// Waits for anything, and gives what has ended.
    pub(crate) fn turn(&mut self) -> HashMap<Tag, Outcome> {
        let mut ended = HashMap::new();
        self.queue.wait(&mut self.ring).expect("a ring that works");
        let batch = self.ring.completions();
        for done in &batch {
            match done.owner {
                Owner::Engine => {
                    let outcome = self.queue.completed(&mut self.ring, done.tag, done.result);
                    if let Some(outcome) = outcome {
                        assert!(self.started.remove(&done.tag).is_some(), "ends once");
                        ended.insert(done.tag, outcome);
                    }
                }
                Owner::Bell => self
                    .ring
                    .arm_bell(&self.queue.post().bell)
                    .expect("armed again"),
                Owner::Device => panic!("there is no device"),
            }
        }
        self.ring.recycle(batch);
        let started = &mut self.started;
        self.queue.collect(&mut self.ring, |_, tag, outcome| {
            assert!(started.remove(&tag).is_some(), "ends once");
            ended.insert(tag, outcome);
        });
        ended
    }

    /// One request, to its end.
    pub(crate) fn run(&mut self, request: Request) -> Outcome {
        let tag = Tag(0);
        match self.start(tag, request) {
            Some(outcome) => outcome,
            None => self.finish().remove(&tag).expect("the only request"),
        }
    }
}

pub(crate) fn in_runtime<T>(test: impl FnOnce() -> T) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let _guard = runtime.enter();
    test()
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Read(u64, u64),
    Write(u64, u64, u8, bool),
    Zero(u64, u64, bool),
    Discard(u64, u64),
    Flush,
}

pub(crate) fn steps(sectors: u64) -> impl Strategy<Value = Vec<Step>> {
    let range = move || {
        (0..sectors).prop_flat_map(move |from| {
            (
                Just(from),
                1..=(sectors - from).min(BUFFER_BYTES as u64 / SECTOR),
            )
        })
    };
    let step = prop_oneof![
        range().prop_map(|(from, len)| Step::Read(from, len)),
        (range(), 1u8.., any::<bool>())
            .prop_map(|((f, l), fill, fua)| Step::Write(f, l, fill, fua)),
        (range(), any::<bool>()).prop_map(|((from, len), keep)| Step::Zero(from, len, keep)),
        range().prop_map(|(from, len)| Step::Discard(from, len)),
        Just(Step::Flush),
    ];
    proptest::collection::vec(step, 1..60)
}
