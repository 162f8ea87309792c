//! A backend that fails by plan, for tests of everything above a backend.

use std::io;
use std::ops::Range;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::volume::{Backend, Capabilities, Errno, Extent, Op};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The call fails with this code and does nothing.
    Error(Errno),
    /// The call takes that much longer.
    Delay(Duration),
    /// A read fills at most so many bytes.
    ShortRead(usize),
    /// The call waits, before it does anything, until [`Faulty::release`].
    Hold,
}

/// When it goes wrong: for the calls that match, after `skip` of them, `times` times.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The operation.
    pub op: Op,
    /// Calls that touch these bytes; `None` for all. A flush touches every byte.
    pub range: Option<Range<u64>>,
    /// How many calls that match go well first.
    pub skip: u32,
    /// How many calls after these go wrong.
    pub times: u32,
    /// What happens to them.
    pub fault: Fault,
}

impl Rule {
    /// Every call of this operation.
    pub fn always(op: Op, fault: Fault) -> Self {
        Self {
            op,
            range: None,
            skip: 0,
            times: u32::MAX,
            fault,
        }
    }

    /// The next call of this operation.
    pub fn once(op: Op, fault: Fault) -> Self {
        Self {
            times: 1,
            ..Self::always(op, fault)
        }
    }

    /// Whether the call matches; counts it if so.
    fn strikes(&mut self, op: Op, offset: u64, len: u64) -> bool {
        let touches = self.range.as_ref().is_none_or(|range| {
            op == Op::Flush || (range.start < offset + len && offset < range.end)
        });
        if self.op != op || !touches || self.times == 0 {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        self.times -= 1;
        true
    }
}

/// A [`Backend`] in front of another one, with a plan of faults.
///
/// ```
/// use blockferry::Backend;
/// use blockferry::backend::faults::{Fault, Faulty, Rule};
/// use blockferry::volume::{Errno, MemoryMap, Op};
///
/// let disk = Faulty::new(MemoryMap::new(4096)?);
/// disk.plan(Rule::once(Op::Write, Fault::Error(Errno::ENOSPC)));
/// assert!(disk.write_at(&[1], 0).is_err());
/// assert!(disk.write_at(&[1], 0).is_ok());
/// # Ok::<(), blockferry::Error>(())
/// ```
#[derive(Debug)]
pub struct Faulty<B> {
    inner: B,
    state: Mutex<State>,
    released: Condvar,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    held: usize,
    releases: u64,
}

impl<B: Backend> Faulty<B> {
    /// All goes well until a rule is planned.
    pub fn new(inner: B) -> Self {
        Self {
            inner,
            state: Mutex::default(),
            released: Condvar::new(),
        }
    }

    /// The backend behind it, which does not fail.
    pub fn inner(&self) -> &B {
        &self.inner
    }

    /// Adds a rule; the first one that matches a call counts.
    pub fn plan(&self, rule: Rule) {
        self.lock().rules.push(rule);
    }

    /// Forgets all rules and lets go of every call that is held.
    pub fn release(&self) {
        let mut state = self.lock();
        state.rules.clear();
        state.releases += 1;
        self.released.notify_all();
    }

    /// How many calls are held right now.
    pub fn held(&self) -> usize {
        self.lock().held
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out the fault of this call, if there is one. `Some`: so many bytes at most.
    fn strike(&self, op: Op, offset: u64, len: u64) -> io::Result<Option<usize>> {
        let mut state = self.lock();
        let fault = state
            .rules
            .iter_mut()
            .find_map(|rule| rule.strikes(op, offset, len).then_some(rule.fault));
        match fault {
            None => Ok(None),
            Some(Fault::Error(errno)) => Err(errno.into()),
            Some(Fault::ShortRead(bytes)) => Ok(Some(bytes)),
            Some(Fault::Delay(time)) => {
                drop(state);
                std::thread::sleep(time);
                Ok(None)
            }
            Some(Fault::Hold) => {
                let releases = state.releases;
                state.held += 1;
                let wait = |state: &mut State| state.releases == releases;
                let mut state = self
                    .released
                    .wait_while(state, wait)
                    .unwrap_or_else(PoisonError::into_inner);
                state.held -= 1;
                Ok(None)
            }
        }
    }
}

impl<B: Backend> Backend for Faulty<B> {
    fn size(&self) -> io::Result<u64> {
        self.inner.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let most = self.strike(Op::Read, offset, buf.len() as u64)?;
        let len = most.map_or(buf.len(), |bytes| bytes.min(buf.len()));
        self.inner.read_at(&mut buf[..len], offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.strike(Op::Write, offset, buf.len() as u64)?;
        self.inner.write_at(buf, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.strike(Op::Flush, 0, 0)?;
        self.inner.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.strike(Op::Discard, offset, len)?;
        self.inner.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, no_unmap: bool) -> io::Result<()> {
        self.strike(Op::WriteZeroes, offset, len)?;
        self.inner.write_zeroes(offset, len, no_unmap)
    }

    fn allocated(&self, range: Range<u64>) -> io::Result<Vec<Extent>> {
        self.inner.allocated(range)
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
}
