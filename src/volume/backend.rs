//! What a kind of resource has to offer to be a volume.
//!
//! [`Backend`] is the plain trait, four methods that block; [`AsyncBackend`] is the one that the
//! engine speaks, for backends that wait for a network. `super::pool::Pooled` makes the second
//! out of the first.

use std::future::Future;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

/// What a backend can do, beyond reading and writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// It cannot be written.
    pub read_only: bool,
    /// The smallest unit that it addresses; the device never asks for less. A power of two from
    /// 512 to 4096.
    pub logical_block_bytes: u32,
    /// The size of request that suits it best.
    pub preferred_bytes: u32,
    /// How many requests it can have in flight.
    pub max_concurrency: u32,
    /// Whether a flush that returned means that the bytes survive a power cut.
    pub flush_is_durable: bool,
    /// Whether [`Backend::allocated`] knows holes.
    pub sparse_map: bool,
    /// Whether a discard does anything.
    pub discard: bool,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            read_only: false,
            logical_block_bytes: 512,
            preferred_bytes: 256 << 10,
            max_concurrency: 64,
            flush_is_durable: true,
            sparse_map: false,
            discard: false,
        }
    }
}

/// A run of bytes that is all data or all hole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// Where it lies, in bytes.
    pub range: Range<u64>,
    /// False where it is known to read as zeros.
    pub data: bool,
}

/// Which of two requests goes first. The order of the variants is the order of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Priority {
    /// An application waits for it.
    #[default]
    Demand,
    /// An application will probably ask for it next.
    ReadAhead,
    /// The background is filling the local store.
    Pull,
    /// Local writes on their way to the origin.
    Push,
}

/// Anything with random access: implement four methods and it becomes a block device.
///
/// Methods may be called from several threads at once, and may block. Every range lies within
/// the size.
///
/// ```
/// use std::io;
/// use blockferry::Backend;
///
/// /// A disk of 1 MiB on which every byte is 42 and every write is refused.
/// struct Answer;
///
/// impl Backend for Answer {
///     fn size(&self) -> io::Result<u64> {
///         Ok(1 << 20)
///     }
///     fn read_at(&self, buf: &mut [u8], _offset: u64) -> io::Result<usize> {
///         buf.fill(42);
///         Ok(buf.len())
///     }
///     fn write_at(&self, _buf: &[u8], _offset: u64) -> io::Result<()> {
///         Err(io::ErrorKind::PermissionDenied.into())
///     }
///     fn flush(&self) -> io::Result<()> {
///         Ok(())
///     }
/// }
/// # let mut buf = [0; 4];
/// # assert_eq!(Answer.read_at(&mut buf, 0).unwrap(), 4);
/// ```
pub trait Backend: Send + Sync + 'static {
    /// The size in bytes. It is asked once, when the volume is opened.
    fn size(&self) -> io::Result<u64>;

    /// Fills `buf` from `offset` on and says how many bytes it filled. What it did not fill reads
    /// as zeros.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `buf` at `offset`, or fails.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Makes every write that has returned durable.
    fn flush(&self) -> io::Result<()>;

    /// The bytes are no longer needed. Without an implementation nothing happens, and
    /// [`Capabilities::discard`] says so.
    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    /// Makes the range read as zeros. Without an implementation zeros are written.
    fn write_zeroes(&self, offset: u64, len: u64, _no_unmap: bool) -> io::Result<()> {
        write_zeroes_by_writing(self, offset, len)
    }

    /// Data and holes of the range, in order and without gaps. Without an implementation all of
    /// it is data.
    fn allocated(&self, range: Range<u64>) -> io::Result<Vec<Extent>> {
        Ok(vec![Extent { range, data: true }])
    }

    /// What it can do.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }
}

/// Writes zeros, a piece at a time.
pub(crate) fn write_zeroes_by_writing<B: Backend + ?Sized>(
    backend: &B,
    offset: u64,
    len: u64,
) -> io::Result<()> {
    // For files past the page cache.
    #[repr(align(4096))]
    struct Zeros([u8; 64 << 10]);
    static ZEROS: Zeros = Zeros([0; 64 << 10]);
    let mut done = 0;
    while done < len {
        let piece = (len - done).min(ZEROS.0.len() as u64);
        backend.write_at(&ZEROS.0[..piece as usize], offset + done)?;
        done += piece;
    }
    Ok(())
}

/// What the methods of [`AsyncBackend`] return.
pub type BackendFuture<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// The asynchronous face of a backend: the one that the engine speaks.
///
/// Dropping a future gives the request up: from then on its buffer is not touched any more. A
/// write that was given up may or may not have happened; the backend makes sure that it does not
/// land after a later write to the same place.
pub trait AsyncBackend: Send + Sync + 'static {
    /// The size in bytes.
    fn size(&self) -> u64;

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// As [`Backend::read_at`].
    fn read_at<'a>(
        &'a self,
        buf: &'a mut [u8],
        offset: u64,
        priority: Priority,
    ) -> BackendFuture<'a, usize>;

    /// As [`Backend::write_at`]; with `fua` the bytes are durable when it returns.
    fn write_at<'a>(
        &'a self,
        buf: &'a [u8],
        offset: u64,
        fua: bool,
        priority: Priority,
    ) -> BackendFuture<'a, ()>;

    /// As [`Backend::flush`].
    fn flush(&self) -> BackendFuture<'_, ()>;

    /// As [`Backend::discard`].
    fn discard(&self, offset: u64, len: u64) -> BackendFuture<'_, ()>;

    /// As [`Backend::write_zeroes`]; with `fua` the zeros are durable when it returns.
    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        no_unmap: bool,
        fua: bool,
    ) -> BackendFuture<'_, ()>;

    /// As [`Backend::allocated`].
    fn allocated(&self, range: Range<u64>) -> BackendFuture<'_, Vec<Extent>>;

    /// Waits until no change that was given up goes on any more. Whoever opens the resource anew knows
    /// nothing of such a change, and it would land after what is written then.
    fn settled(&self) -> BackendFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    /// Ends the use of the resource: what a peer holds for us (a lease) is given back.
    fn close(&self) -> BackendFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    /// Ends the use of the resource, but keeps what a peer holds for us: here is something that it
    /// was not sent yet.
    fn close_keeping_lease(&self) -> BackendFuture<'_, ()> {
        self.close()
    }

    /// What stays the same as long as the resource has the same content, but for what we write;
    /// `None` where nobody can tell.
    fn identity(&self) -> Option<[u8; 16]> {
        None
    }

    /// The smallest round trip time that was seen on the way to the other end; `None` where there
    /// is no way, or none at this time.
    fn path_rtt(&self) -> Option<Duration> {
        None
    }

    /// Since when the other end is away, for the status; `None` while all is well.
    fn away_since(&self) -> Option<SystemTime> {
        None
    }

    /// Why the resource will not come back, for the status; `None` while it may.
    fn lost_because(&self) -> Option<String> {
        None
    }
}
