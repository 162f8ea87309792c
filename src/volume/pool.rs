//! A backend that blocks, made asynchronous: its calls run on the runtime's pool of threads.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::backend::{AsyncBackend, Backend, BackendFuture, Capabilities, Extent, Priority};
use super::priority_semaphore::PrioritySemaphore;

/// The most calls that run at once, each on a thread of the pool.
const CALLS_MAX: u32 = 512;

/// Of these calls a quarter is for demand alone.
const DEMAND_PART: u32 = 4;

/// [`AsyncBackend`] over a [`Backend`].
///
/// A call that was given up (its future dropped) goes on in its thread with a buffer of its own;
/// a later call that overlaps a write given up waits for it, since calls that change the volume
/// hold the range until they really ended. One through another `Pooled` of the same backend does not:
/// [`settled`](AsyncBackend::settled) comes first.
pub struct Pooled<B: ?Sized> {
    size: u64,
    capabilities: Capabilities,
    running: Arc<PrioritySemaphore>,
    ranges: Arc<super::ranges::BusyRanges>,
    backend: Arc<B>,
}

impl<B: Backend + ?Sized> Pooled<B> {
    /// Wraps `backend`.
    ///
    /// # Errors
    /// When it cannot tell its size.
    pub fn new(backend: Arc<B>) -> io::Result<Self> {
        let size = backend.size()?;
        Ok(Self::with_size(backend, size))
    }

    /// Wraps `backend`, whose size is known.
    pub fn with_size(backend: Arc<B>, size: u64) -> Self {
        let capabilities = backend.capabilities();
        let calls_max = capabilities.max_concurrency.clamp(1, CALLS_MAX);
        Self {
            size,
            capabilities,
            running: PrioritySemaphore::new(calls_max, calls_max / DEMAND_PART),
            ranges: Arc::default(),
            backend,
        }
    }

    async fn call<T: Send + 'static>(
        &self,
        priority: Priority,
        range: Option<Range<u64>>,
        work: impl FnOnce(&B) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let permit = self.running.acquire(1, priority).await;
        let hold = match range {
            Some(range) => Some(self.ranges.clone().hold(range).await),
            None => None,
        };
        let backend = self.backend.clone();
        tokio::task::spawn_blocking(move || {
            let result = work(&backend);
            drop((permit, hold));
            result
        })
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

impl<B: Backend + ?Sized> AsyncBackend for Pooled<B> {
    fn size(&self) -> u64 {
        self.size
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn read_at<'a>(
        &'a self,
        buf: &'a mut [u8],
        offset: u64,
        priority: Priority,
    ) -> BackendFuture<'a, usize> {
        Box::pin(async move {
            let mut own = vec![0; buf.len()];
            let (own, count) = self
                .call(priority, None, move |backend| {
                    let count = backend.read_at(&mut own, offset)?;
                    Ok((own, count))
                })
                .await?;
            let count = count.min(buf.len());
            buf[..count].copy_from_slice(&own[..count]);
            Ok(count)
        })
    }

    fn write_at<'a>(
        &'a self,
        buf: &'a [u8],
        offset: u64,
        fua: bool,
        priority: Priority,
    ) -> BackendFuture<'a, ()> {
        Box::pin(async move {
            let own = buf.to_vec();
            let range = offset..offset + buf.len() as u64;
            self.call(priority, Some(range), move |backend| {
                backend.write_at(&own, offset)?;
                if fua { backend.flush() } else { Ok(()) }
            })
            .await
        })
    }

    fn flush(&self) -> BackendFuture<'_, ()> {
        Box::pin(self.call(Priority::Demand, None, |backend| backend.flush()))
    }

    fn discard(&self, offset: u64, len: u64) -> BackendFuture<'_, ()> {
        let range = offset..offset + len;
        Box::pin(self.call(Priority::Demand, Some(range), move |backend| {
            backend.discard(offset, len)
        }))
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        no_unmap: bool,
        fua: bool,
    ) -> BackendFuture<'_, ()> {
        let range = offset..offset + len;
        Box::pin(self.call(Priority::Demand, Some(range), move |backend| {
            backend.write_zeroes(offset, len, no_unmap)?;
            if fua { backend.flush() } else { Ok(()) }
        }))
    }

    fn settled(&self) -> BackendFuture<'_, ()> {
        Box::pin(async {
            drop(self.ranges.clone().hold(0..u64::MAX).await);
            Ok(())
        })
    }

    fn allocated(&self, range: Range<u64>) -> BackendFuture<'_, Vec<Extent>> {
        Box::pin(self.call(Priority::Demand, None, move |backend| {
            backend.allocated(range)
        }))
    }
}
