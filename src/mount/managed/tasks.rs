//! The tasks of a mount, which end with it: those of the background where they wait, those that serve
//! requests as soon as they would have to wait for the origin.

use std::io;
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;
use tokio::task::JoinSet;

/// Tasks that belong together, and work on the pool that they began.
#[derive(Debug)]
pub(super) struct Tasks {
    tasks: Mutex<Option<JoinSet<()>>>,
    at_work: watch::Sender<usize>,
    over: watch::Sender<bool>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            tasks: Mutex::new(Some(JoinSet::new())),
            at_work: watch::Sender::new(0),
            over: watch::Sender::new(false),
        }
    }
}

impl Tasks {
    /// Starts one more, unless they were ended.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tasks) = tasks.as_mut() {
            while tasks.try_join_next().is_some() {}
            tasks.spawn(task);
        }
    }

    /// Starts one that nobody ends: it sees by itself that the mount does.
    pub(super) fn spawn_request(&self, task: impl Future<Output = ()> + Send + 'static) {
        let at_work = self.at_work();
        tokio::spawn(async move {
            task.await;
            drop(at_work);
        });
    }

    /// Waits until the mount ends.
    pub(super) async fn over(&self) {
        let mut over = self.over.subscribe();
        // The sender is ours.
        let _ = over.wait_for(|over| *over).await;
    }

    /// Runs work that blocks, on the runtime's pool. It has begun when this returns, and goes on to
    /// its end even if the result is not waited for.
    pub(super) fn blocking<T, F>(
        &self,
        work: F,
    ) -> impl Future<Output = io::Result<T>> + Send + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce() -> io::Result<T> + Send + 'static,
    {
        let at_work = self.at_work();
        let running = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(at_work);
            result
        });
        async move {
            running
                .await
                .unwrap_or_else(|error| Err(io::Error::other(error)))
        }
    }

    /// Something that is at work until this is dropped.
    pub(super) fn at_work(&self) -> AtWork {
        AtWork::new(&self.at_work)
    }

    /// Ends those of the background where they wait, and has the others end. Work that has begun goes
    /// on.
    pub(super) fn end(&self) {
        drop(self.take());
    }

    /// The same, and waits until nothing is at work any more.
    pub(super) async fn ended(&self) {
        if let Some(mut tasks) = self.take() {
            tasks.shutdown().await;
        }
        let mut at_work = self.at_work.subscribe();
        // The sender is ours.
        let _ = at_work.wait_for(|count| *count == 0).await;
    }

    fn take(&self) -> Option<JoinSet<()>> {
        self.over.send_replace(true);
        self.tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

/// One more at work, until it is dropped.
#[derive(Debug)]
pub(super) struct AtWork(watch::Sender<usize>);

impl AtWork {
    fn new(count: &watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count.clone())
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}
