//! The way from the queue threads to the asynchronous side: bounded, lock-free, woken once a turn.

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam::queue::ArrayQueue;
use tokio::sync::Notify;

use super::bell::Bell;
use super::buffer::RequestMemory;
use super::mailbox::Mailbox;
use super::request::{Errno, Outcome, Request, Tag};

/// A request that a queue thread cannot answer by itself.
#[derive(Debug)]
pub struct Miss {
    /// What is asked; the range lies within the resource.
    pub request: Request,
    /// Its bytes.
    pub memory: RequestMemory,
    /// How to answer.
    pub answer: Answer,
}

/// The duty to answer one request. Dropped without an answer it answers with an I/O error, so that
/// a request ends once whatever happens to the task that held it.
#[derive(Debug)]
pub struct Answer {
    post: Arc<Post>,
    tag: Tag,
    sent: bool,
}

impl Answer {
    /// Answers. The request's memory goes back to the device with it.
    pub fn send(mut self, _memory: RequestMemory, outcome: Outcome) {
        self.deliver(outcome);
    }

    fn deliver(&mut self, outcome: Outcome) {
        self.sent = true;
        self.post.deliver(self.tag, outcome);
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.sent {
            self.deliver(Err(Errno::EIO));
        }
    }
}

/// Where the answers for one queue arrive.
#[derive(Debug)]
pub struct Post {
    /// The answers.
    pub mailbox: Mailbox,
    /// Wakes the queue's thread.
    pub bell: Bell,
}

impl Post {
    fn deliver(&self, tag: Tag, outcome: Outcome) {
        if self.mailbox.post(tag, outcome) {
            self.bell.ring();
        }
    }
}

/// All requests of a volume that wait for the asynchronous side.
#[derive(Debug)]
pub struct MissQueue {
    waiting: ArrayQueue<Miss>,
    arrived: Notify,
    closed: AtomicBool,
    request_limit: OnceLock<Duration>,
}

/// The most requests that can wait: as many as the most and deepest queues of a device hold.
pub const MISSES_MAX: usize = 64 * 4096;

impl MissQueue {
    /// A queue for `capacity` requests (at most [`MISSES_MAX`]).
    pub fn new(capacity: usize) -> Self {
        Self {
            waiting: ArrayQueue::new(capacity.clamp(1, MISSES_MAX)),
            arrived: Notify::new(),
            closed: AtomicBool::new(false),
            request_limit: OnceLock::new(),
        }
    }

    /// Has every request answered within `limit`. A device says so once, before its first request.
    pub(super) fn limit_requests(&self, limit: Duration) {
        let _ = self.request_limit.set(limit);
    }

    /// Within what time the device wants every request answered; `None` where it waits.
    pub fn request_limit(&self) -> Option<Duration> {
        self.request_limit.get().copied()
    }

    /// Adds a request; it is seen after the next [`wake`](Self::wake). When there is no room it is
    /// answered with an I/O error.
    pub(super) fn push(&self, request: Request, memory: RequestMemory, post: &Arc<Post>, tag: Tag) {
        let answer = Answer {
            post: post.clone(),
            tag,
            sent: false,
        };
        let _ = self.waiting.push(Miss {
            request,
            memory,
            answer,
        });
        // With the fence in `close`, either that one finds the request or this one sees the flag.
        fence(Ordering::SeqCst);
        if self.closed.load(Ordering::Relaxed) {
            self.fail_all();
        }
    }

    /// Nobody will serve requests any more: those that wait, and all to come, end with an I/O
    /// error.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.fail_all();
    }

    fn fail_all(&self) {
        while let Some(miss) = self.waiting.pop() {
            drop(miss);
        }
    }

    /// Wakes the asynchronous side, once for all requests of a turn.
    pub(super) fn wake(&self) {
        self.arrived.notify_one();
    }

    /// The next request, in order of arrival. Waits until there is one; one task at a time may.
    pub async fn next(&self) -> Miss {
        loop {
            if let Some(miss) = self.waiting.pop() {
                return miss;
            }
            self.arrived.notified().await;
        }
    }
}
