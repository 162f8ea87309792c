//! Direct mounts: every request goes to the resource.
//!
//! A memory or file resource needs nothing here, its requests never leave their queue's thread. For
//! any other the [`Fetcher`] takes them from the queues, gives each a deadline, and answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

use super::deadline::Deadline;
pub use super::deadline::{IO_TIMEOUT_DEFAULT, IO_TIMEOUT_MAX};
use crate::backend::{Kind, Resource};
use crate::volume::misses::MISSES_MAX;
use crate::volume::{
    AsyncBackend, Errno, Miss, MissQueue, Op, Outcome, Priority, QueueRing, Request, RequestMemory,
    Store, Volume,
};

/// A direct mount's volume, and what serves its requests.
#[derive(Debug)]
pub struct DirectMount {
    /// The volume, to be put behind a device.
    pub volume: Arc<Volume>,
    /// The asynchronous side; `None` where the resource is local.
    pub fetcher: Option<Fetcher>,
}

/// Makes a volume of a resource, for a device that holds at most `requests_max` requests at once.
/// Must be called in a tokio runtime, which then serves the requests.
///
/// `io_timeout`: after that long without an answer, to it or to any other, a request fails with an
/// I/O error, and after ten times as long in any case: a link that is slow but works is no failure.
/// `None` waits for ever, and more than [`IO_TIMEOUT_MAX`] is that. A device may set a limit of its
/// own below these ([`Volume::limit_requests`]). Local resources have the kernel's own limits.
pub fn mount(
    resource: &Resource,
    requests_max: usize,
    io_timeout: Option<Duration>,
) -> DirectMount {
    let (volume, fetcher) = open(resource, requests_max, io_timeout);
    DirectMount {
        volume: Arc::new(volume),
        fetcher,
    }
}

/// The same, of a volume that can be migrated while it is in use.
pub fn mount_seedable(
    resource: &Resource,
    requests_max: usize,
    io_timeout: Option<Duration>,
) -> DirectMount {
    let (volume, fetcher) = open(resource, requests_max, io_timeout);
    DirectMount {
        volume: Arc::new(volume.seedable()),
        fetcher,
    }
}

fn open(
    resource: &Resource,
    requests_max: usize,
    io_timeout: Option<Duration>,
) -> (Volume, Option<Fetcher>) {
    let (store, fetcher, discard) = match &resource.kind {
        Kind::Memory(memory) => (Store::Memory(memory.clone()), None, true),
        Kind::File(file) if QueueRing::new(1).is_ok() => (Store::File(file.clone()), None, true),
        // A file without io_uring is served as if it were somewhere else.
        Kind::File(_) | Kind::Other(_) => {
            let backend = resource.as_async();
            let misses = Arc::new(MissQueue::new(requests_max.min(MISSES_MAX)));
            let discard = backend.capabilities().discard;
            let fetcher = Fetcher::start(misses.clone(), backend, io_timeout);
            (Store::Async(misses), Some(fetcher), discard)
        }
    };
    let volume = Volume::new(store, resource.geometry, resource.read_only, discard);
    (volume, fetcher)
}

/// The tasks that serve a volume's requests on its backend. Dropping it ends them; requests that
/// were under way fail.
pub struct Fetcher {
    task: JoinHandle<()>,
    misses: Arc<MissQueue>,
    service: Arc<Service>,
}

impl Fetcher {
    fn start(
        misses: Arc<MissQueue>,
        backend: Arc<dyn AsyncBackend>,
        io_timeout: Option<Duration>,
    ) -> Self {
        let service = Arc::new(Service {
            concurrency: Arc::new(Semaphore::new(
                backend.capabilities().max_concurrency.max(1) as usize,
            )),
            backend,
            deadline: Deadline::new(io_timeout, misses.clone()),
            failures: AtomicU64::new(0),
        });
        Self {
            task: tokio::spawn(fetch(misses.clone(), service.clone())),
            misses,
            service,
        }
    }

    /// How long ago the last request was answered.
    pub fn silent_for(&self) -> Duration {
        self.service.deadline.silent_for()
    }

    /// How many requests failed because their time was over: a counter that outlives this.
    pub fn timeouts(&self) -> Arc<AtomicU64> {
        self.service.deadline.timeouts().clone()
    }
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fetcher").finish_non_exhaustive()
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        self.task.abort();
        self.misses.close();
    }
}

struct Service {
    backend: Arc<dyn AsyncBackend>,
    concurrency: Arc<Semaphore>,
    deadline: Deadline,
    /// Requests that the backend failed.
    failures: AtomicU64,
}

/// Takes requests as they come and serves each in a task of its own. The device's tags bound how
/// many there are.
async fn fetch(misses: Arc<MissQueue>, service: Arc<Service>) {
    let mut tasks = JoinSet::new();
    loop {
        let miss = misses.next().await;
        tasks.spawn(service.clone().answer(miss));
        while tasks.try_join_next().is_some() {}
    }
}

impl Service {
    async fn answer(self: Arc<Self>, miss: Miss) {
        let Miss {
            request,
            mut memory,
            answer,
        } = miss;
        let running = async {
            let outcome = self.run(&request, &mut memory).await;
            self.deadline.answered();
            outcome
        };
        let outcome = self.deadline.keep(&request, running).await;
        answer.send(memory, outcome);
    }

    async fn run(&self, request: &Request, memory: &mut RequestMemory) -> Outcome {
        let Ok(_permit) = self.concurrency.acquire().await else {
            return Err(Errno::EIO);
        };
        let (offset, len) = (request.offset.0, request.len_bytes);
        let backend = &self.backend;
        let result = match request.op {
            Op::Read => {
                let to = &mut memory.bytes_mut()[..len as usize];
                match backend.read_at(to, offset, Priority::Demand).await {
                    Ok(count) => {
                        let count = count.min(len as usize);
                        memory.bytes_mut()[count..len as usize].fill(0);
                        Ok(())
                    }
                    Err(error) => Err(error),
                }
            }
            Op::Write => {
                let from = &memory.bytes()[..len as usize];
                backend
                    .write_at(from, offset, request.fua, Priority::Demand)
                    .await
            }
            Op::Flush => backend.flush().await,
            Op::Discard => backend.discard(offset, len).await,
            Op::WriteZeroes => {
                let (no_unmap, fua) = (request.no_unmap, request.fua);
                backend.write_zeroes(offset, len, no_unmap, fua).await
            }
        };
        result.map_err(|error| {
            // The counters have all of them; the log has the first of each power of two.
            let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
            if failures.is_power_of_two() {
                tracing::warn!(op = ?request.op, offset, len, %error, failures, "request failed");
            }
            Errno::from(error)
        })
    }
}
