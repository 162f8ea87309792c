//! A queue's io_uring: device commands, the engine's own I/O and the bell share it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use io_uring::{IoUring, squeue, types};

use super::request::Tag;

/// Whose completion it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// A command of the device.
    Device,
    /// Local I/O of the engine.
    Engine,
    /// The bell rang.
    Bell,
}

/// One completion.
#[derive(Debug, Clone, Copy)]
pub struct Completion {
    /// Who started it.
    pub owner: Owner,
    /// For which request.
    pub tag: Tag,
    /// What the kernel says: a count, or a negative errno.
    pub result: i32,
}

const OWNER_SHIFT: u32 = 32;

fn user_data(owner: Owner, tag: Tag) -> u64 {
    (owner as u64) << OWNER_SHIFT | u64::from(tag.0)
}

/// Whether the same call may succeed the next time.
fn is_passing(error: &io::Error) -> bool {
    let passing = [libc::EINTR, libc::EBUSY, libc::EAGAIN];
    error
        .raw_os_error()
        .is_some_and(|code| passing.contains(&code))
}

/// The ring of one queue thread. It is made and used on that thread alone.
pub struct QueueRing {
    kind: Kind,
    /// Taken off the completion queue and not handled yet; the handlers push to the ring.
    batch: Vec<Completion>,
    bell_count: Box<u64>,
}

#[allow(clippy::large_enum_variant, reason = "there is one for each thread")]
enum Kind {
    Uring(IoUring),
    /// Nothing but the bell, once it is armed.
    Bell(Option<OwnedFd>),
}

impl std::fmt::Debug for QueueRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueueRing").finish_non_exhaustive()
    }
}

impl QueueRing {
    /// A ring for a queue of `depth` requests, with the cheapest way of running completions that
    /// this kernel has.
    ///
    /// # Errors
    /// When io_uring is missing, switched off, or out of locked memory.
    pub fn new(depth: u16) -> io::Result<Self> {
        // A request has at most one device command and one I/O in flight.
        let entries = (u32::from(depth) + 1).next_power_of_two() * 2;
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(entries)
            .or_else(|_| IoUring::builder().setup_coop_taskrun().build(entries))
            .or_else(|_| IoUring::new(entries))?;
        Ok(Self {
            kind: Kind::Uring(ring),
            batch: Vec::with_capacity(entries as usize * 2),
            bell_count: Box::new(0),
        })
    }

    /// A ring that takes no operations and only waits for the bell. It needs no io_uring, which
    /// containers often forbid, and serves volumes whose answers all come from other threads.
    pub fn of_bell_only() -> Self {
        Self {
            kind: Kind::Bell(None),
            batch: Vec::with_capacity(1),
            bell_count: Box::new(0),
        }
    }

    /// Whether it does anything but wait for the bell.
    pub fn takes_operations(&self) -> bool {
        matches!(self.kind, Kind::Uring(_))
    }

    /// Makes a table for request buffers that the kernel registers itself.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn reserve_buffers(&self, count: u16) -> io::Result<()> {
        match &self.kind {
            Kind::Uring(ring) => ring.submitter().register_buffers_sparse(u32::from(count)),
            Kind::Bell(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Queues an operation; it starts with the next [`submit_and_wait`](Self::submit_and_wait).
    ///
    /// # Safety
    /// Memory that the operation names stays valid until its completion was taken.
    ///
    /// # Errors
    /// When the ring itself is broken.
    pub unsafe fn push(&mut self, entry: squeue::Entry, owner: Owner, tag: Tag) -> io::Result<()> {
        let Kind::Uring(ring) = &mut self.kind else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let entry = entry.user_data(user_data(owner, tag));
        // SAFETY: the caller keeps the operation's memory valid.
        while unsafe { ring.submission().push(&entry) }.is_err() {
            match ring.submit() {
                Err(error) if !is_passing(&error) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Keeps a read armed on the bell; its completion has [`Owner::Bell`].
    ///
    /// # Errors
    /// When the ring itself is broken.
    pub fn arm_bell(&mut self, bell: &super::bell::Bell) -> io::Result<()> {
        if let Kind::Bell(armed) = &mut self.kind {
            if armed.is_none() {
                *armed = Some(bell.as_fd().try_clone_to_owned()?);
            }
            return Ok(());
        }
        let count = std::ptr::from_mut(&mut *self.bell_count).cast();
        let read = io_uring::opcode::Read::new(types::Fd(bell.as_raw_fd()), count, 8).build();
        // SAFETY: the counter is boxed and lives as long as the ring.
        unsafe { self.push(read, Owner::Bell, Tag(0)) }
    }

    /// Starts what was queued and, if `wait` is set, waits for a completion: one system call.
    ///
    /// # Errors
    /// When the ring itself is broken; an interrupted wait is none.
    pub fn submit_and_wait(&mut self, wait: bool) -> io::Result<()> {
        let result = match &mut self.kind {
            Kind::Uring(ring) => ring.submit_and_wait(usize::from(wait)).map(drop),
            Kind::Bell(Some(bell)) if wait => wait_for(bell).map(|()| {
                self.batch.push(Completion {
                    owner: Owner::Bell,
                    tag: Tag(0),
                    result: 0,
                });
            }),
            Kind::Bell(_) => Ok(()),
        };
        match result {
            // EBUSY, EAGAIN: completions must be taken, or memory be freed, first; the caller takes
            // what there is and comes back.
            Err(error) if is_passing(&error) => Ok(()),
            other => other,
        }
    }

    /// The completions that are there, to be handed back with [`recycle`](Self::recycle).
    pub fn completions(&mut self) -> Vec<Completion> {
        let mut batch = std::mem::take(&mut self.batch);
        let Kind::Uring(ring) = &mut self.kind else {
            return batch;
        };
        batch.extend(ring.completion().map(|entry| Completion {
            owner: match entry.user_data() >> OWNER_SHIFT {
                0 => Owner::Device,
                1 => Owner::Engine,
                _ => Owner::Bell,
            },
            tag: Tag(entry.user_data() as u16),
            result: entry.result(),
        }));
        batch
    }

    /// Keeps the batch's memory for the next turn.
    pub fn recycle(&mut self, mut batch: Vec<Completion>) {
        batch.clear();
        self.batch = batch;
    }
}

/// Waits until the bell has rung, and silences it.
fn wait_for(bell: &OwnedFd) -> io::Result<()> {
    nix::unistd::read(bell, &mut [0; 8])?;
    Ok(())
}
