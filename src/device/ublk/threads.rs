//! The threads of a device's queues, and how they begin together.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use libublk_rs_sys as sys;
use nix::sched::CpuSet;

use super::control::{Control, DeviceInfo};
use super::memory::Descriptors;
use super::queue::{QueueSetup, UblkQueue};
use crate::device::become_io_flusher;
use crate::volume::Volume;
use crate::{Context, Error, ErrorKind, Result};

/// A thread for each queue.
pub(super) struct QueueThreads {
    threads: Vec<JoinHandle<()>>,
    failures: tokio::sync::mpsc::UnboundedReceiver<Error>,
}

impl QueueThreads {
    /// None yet.
    pub(super) fn new() -> Self {
        Self {
            threads: Vec::new(),
            failures: tokio::sync::mpsc::unbounded_channel().1,
        }
    }

    /// Starts them all and waits until they have handed their tags to the driver. None of them does
    /// before all are able to: then little is left that could go wrong.
    ///
    /// # Errors
    /// When one of them cannot be started. Those that wait end then; others serve on.
    pub(super) fn start(
        &mut self,
        control: &mut Control,
        info: &DeviceInfo,
        volume: &Arc<Volume>,
        character: &Arc<File>,
    ) -> Result<()> {
        let (failed, failures) = tokio::sync::mpsc::unbounded_channel();
        self.failures = failures;
        let mut beginnings = Vec::new();
        for number in 0..info.nr_hw_queues {
            let cpus = control.queue_cpus(info.dev_id, number)?;
            let setup = setup(info, number, volume, character)?;
            let (beginning, thread) = QueueThread::new(&failed);
            let character = character.clone();
            let thread = thread::Builder::new()
                .name(format!("ublk{}-q{number}", info.dev_id))
                .spawn(move || {
                    pin(number, &cpus);
                    thread.run(setup);
                    drop(character);
                })
                .context_io(|| format!("cannot start the thread of queue {number}"))?;
            self.threads.push(thread);
            beginnings.push(beginning);
        }
        for beginning in &beginnings {
            beginning.wait(info.dev_id)?;
        }
        for beginning in &beginnings {
            // One that has gone is missed by the next loop.
            let _ = beginning.go.send(());
        }
        for beginning in &beginnings {
            beginning.wait(info.dev_id)?;
        }
        Ok(())
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.threads.is_empty()
    }

    /// Waits for the end of all.
    pub(super) fn join(&mut self) {
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a queue's thread panicked");
            }
        }
    }

    /// Why a queue ended that was not told to; `None` once all have ended as they were told. May be
    /// cancelled.
    pub(super) async fn failure(&mut self) -> Option<Error> {
        self.failures.recv().await
    }
}

fn setup(
    info: &DeviceInfo,
    number: u16,
    volume: &Arc<Volume>,
    character: &Arc<File>,
) -> Result<QueueSetup> {
    let descriptors = Descriptors::map(character, number, info.queue_depth)
        .context_io(|| format!("cannot map queue {number} of ublk device {}", info.dev_id))?;
    Ok(QueueSetup {
        volume: volume.clone(),
        queue: number,
        depth: info.queue_depth,
        fd: character.as_raw_fd(),
        descriptors,
        zero_copy: info.flags & u64::from(sys::UBLK_F_AUTO_BUF_REG) != 0,
        request_bytes_max: info.max_io_buf_bytes,
    })
}

/// The way to a thread that begins. Dropping it ends one that waits.
struct Beginning {
    go: mpsc::Sender<()>,
    /// That it is prepared; then that its tags are the driver's.
    done: mpsc::Receiver<io::Result<()>>,
}

impl Beginning {
    fn wait(&self, id: u32) -> Result<()> {
        self.done
            .recv()
            .map_err(|_| Error::new(ErrorKind::Io, "a queue's thread ended before it served"))?
            .context_io(|| format!("cannot serve a queue of ublk device {id}"))
    }
}

/// The same way, from the other end.
struct QueueThread {
    told: mpsc::Receiver<()>,
    done: mpsc::Sender<io::Result<()>>,
    failed: tokio::sync::mpsc::UnboundedSender<Error>,
}

impl QueueThread {
    fn new(failed: &tokio::sync::mpsc::UnboundedSender<Error>) -> (Beginning, Self) {
        let (go, told) = mpsc::channel();
        let (say_done, done) = mpsc::channel();
        let thread = Self {
            told,
            done: say_done,
            failed: failed.clone(),
        };
        (Beginning { go, done }, thread)
    }

    fn run(self, setup: QueueSetup) {
        become_io_flusher();
        let number = setup.queue;
        let Some(mut queue) = self.say(UblkQueue::prepare(setup)) else {
            return;
        };
        if self.told.recv().is_err() {
            return;
        }
        if self.say(queue.hand_over()).is_none() {
            // The driver may have some of its buffers by now.
            std::mem::forget(queue);
            return;
        }
        if let Err(error) = queue.serve() {
            let _ = self
                .failed
                .send(Error::io(format!("queue {number} failed"), error));
        }
    }

    fn say<T>(&self, result: io::Result<T>) -> Option<T> {
        let (value, told) = match result {
            Ok(value) => (Some(value), Ok(())),
            Err(error) => (None, Err(error)),
        };
        let _ = self.done.send(told);
        value
    }
}

/// Runs the queue's thread where the kernel sends its requests from; a hint only.
fn pin(number: u16, cpus: &CpuSet) {
    let this_thread = nix::unistd::Pid::from_raw(0);
    if let Err(error) = nix::sched::sched_setaffinity(this_thread, cpus) {
        tracing::debug!(queue = number, %error, "the queue's thread stays unpinned");
    }
}
