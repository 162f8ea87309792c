//! Memory and files as asynchronous backends, for a server or a fetcher.
//!
//! Memory is copied where the caller stands. A file is first asked for what it has in the page
//! cache, which never blocks; the rest runs on the runtime's pool of threads.

use std::io;
use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::Arc;

use crate::volume::{
    AsyncBackend, Backend, BackendFuture, Capabilities, Extent, FileStore, MemoryMap, Pooled,
    Priority,
};

/// How many requests on memory may be under way.
const MEMORY_CONCURRENCY: u32 = 1024;

/// [`MemoryMap`] as an [`AsyncBackend`].
pub(crate) struct LocalMemory(Arc<MemoryMap>);

impl LocalMemory {
    /// The same memory.
    pub(crate) fn new(memory: Arc<MemoryMap>) -> Self {
        Self(memory)
    }
}

impl AsyncBackend for LocalMemory {
    fn size(&self) -> u64 {
        self.0.len_bytes()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            // A request is a copy: there is no harm in as many as the other end likes.
            max_concurrency: MEMORY_CONCURRENCY,
            ..Backend::capabilities(&*self.0)
        }
    }

    fn read_at<'a>(
        &'a self,
        buf: &'a mut [u8],
        offset: u64,
        _priority: Priority,
    ) -> BackendFuture<'a, usize> {
        Box::pin(async move { Backend::read_at(&*self.0, buf, offset) })
    }

    fn write_at<'a>(
        &'a self,
        buf: &'a [u8],
        offset: u64,
        _fua: bool,
        _priority: Priority,
    ) -> BackendFuture<'a, ()> {
        Box::pin(async move { Backend::write_at(&*self.0, buf, offset) })
    }

    fn flush(&self) -> BackendFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn discard(&self, offset: u64, len: u64) -> BackendFuture<'_, ()> {
        Box::pin(async move { Backend::discard(&*self.0, offset, len) })
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        no_unmap: bool,
        _fua: bool,
    ) -> BackendFuture<'_, ()> {
        Box::pin(async move { Backend::write_zeroes(&*self.0, offset, len, no_unmap) })
    }

    fn allocated(&self, range: Range<u64>) -> BackendFuture<'_, Vec<Extent>> {
        Box::pin(async move { Backend::allocated(&*self.0, range) })
    }
}

/// [`FileStore`] as an [`AsyncBackend`].
pub(crate) struct LocalFile {
    file: Arc<FileStore>,
    pooled: Pooled<FileStore>,
}

impl LocalFile {
    /// The same file.
    pub(crate) fn new(file: Arc<FileStore>) -> Self {
        Self {
            pooled: Pooled::with_size(file.clone(), file.len_bytes()),
            file,
        }
    }
}

impl AsyncBackend for LocalFile {
    fn size(&self) -> u64 {
        self.pooled.size()
    }

    fn capabilities(&self) -> Capabilities {
        self.pooled.capabilities()
    }

    fn read_at<'a>(
        &'a self,
        buf: &'a mut [u8],
        offset: u64,
        priority: Priority,
    ) -> BackendFuture<'a, usize> {
        Box::pin(async move {
            let cached = read_cached(self.file.raw_fd(), buf, offset);
            if cached == buf.len() {
                return Ok(cached);
            }
            let rest = &mut buf[cached..];
            let count = self
                .pooled
                .read_at(rest, offset + cached as u64, priority)
                .await?;
            Ok(cached + count)
        })
    }

    fn write_at<'a>(
        &'a self,
        buf: &'a [u8],
        offset: u64,
        fua: bool,
        priority: Priority,
    ) -> BackendFuture<'a, ()> {
        self.pooled.write_at(buf, offset, fua, priority)
    }

    fn flush(&self) -> BackendFuture<'_, ()> {
        self.pooled.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> BackendFuture<'_, ()> {
        self.pooled.discard(offset, len)
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        no_unmap: bool,
        fua: bool,
    ) -> BackendFuture<'_, ()> {
        self.pooled.write_zeroes(offset, len, no_unmap, fua)
    }

    fn settled(&self) -> BackendFuture<'_, ()> {
        self.pooled.settled()
    }

    fn allocated(&self, range: Range<u64>) -> BackendFuture<'_, Vec<Extent>> {
        self.pooled.allocated(range)
    }
}

/// Reads what is in the page cache, without waiting for a disk (`RWF_NOWAIT`). What it did not
/// read, for whatever reason, has to be read the ordinary way.
fn read_cached(fd: RawFd, buf: &mut [u8], offset: u64) -> usize {
    let target = libc::iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: buf.len(),
    };
    // SAFETY: the vector describes `buf`, which is ours for the length of the call.
    let count = unsafe { libc::preadv2(fd, &target, 1, offset as i64, libc::RWF_NOWAIT) };
    usize::try_from(count).unwrap_or_else(|_| {
        tracing::trace!(error = %io::Error::last_os_error(), "not in the page cache");
        0
    })
}
