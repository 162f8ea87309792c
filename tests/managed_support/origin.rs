//! An origin that a test can watch, and get in the way of.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use blockferry::AsyncBackend;
use blockferry::volume::{BackendFuture, Capabilities, Errno, Extent, Op, Priority};
use tokio::sync::watch;

use super::bytes::{Bytes, PAGE_BYTES};
use super::link::Link;

/// How long a test waits for something that has to happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A call that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) op: Op,
    pub(crate) range: Range<u64>,
    /// Where it was told.
    pub(crate) priority: Option<Priority>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Trouble {
    Error(Errno),
    Delay(Duration),
    /// Waits until [`Origin::release`].
    Hold,
}

/// What goes wrong, with the next calls that match.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) op: Op,
    pub(crate) range: Range<u64>,
    pub(crate) times: u32,
    pub(crate) trouble: Trouble,
}

impl Plan {
    pub(crate) fn always(op: Op, trouble: Trouble) -> Self {
        Self {
            op,
            range: 0..u64::MAX,
            times: u32::MAX,
            trouble,
        }
    }

    pub(crate) fn once(op: Op, trouble: Trouble) -> Self {
        Self {
            times: 1,
            ..Self::always(op, trouble)
        }
    }
}

/// Bytes in memory. What was not flushed is lost when a flush is told to fail.
pub(crate) struct Origin {
    size: u64,
    pub(crate) capabilities: Capabilities,
    state: Mutex<State>,
    /// How often everything that was held was let go.
    releases: watch::Sender<u64>,
    held: watch::Sender<usize>,
    calls: watch::Sender<usize>,
    pub(crate) link: Option<Link>,
    /// How long it answers reads short: a read ends there unless something was written behind.
    short_from: u64,
}

#[derive(Default)]
struct State {
    content: Bytes,
    durable: Bytes,
    /// Pages that differ, and the number of the change that made them so.
    unflushed: BTreeMap<u64, u64>,
    changes: u64,
    plans: Vec<Plan>,
    calls: Vec<Call>,
    under_way: usize,
    most_under_way: usize,
}

impl Origin {
    pub(crate) fn new(size: u64) -> Self {
        Self {
            size,
            capabilities: Capabilities {
                max_concurrency: 1024,
                discard: true,
                ..Capabilities::default()
            },
            state: Mutex::default(),
            releases: watch::Sender::new(0),
            held: watch::Sender::new(0),
            calls: watch::Sender::new(0),
            link: None,
            short_from: u64::MAX,
        }
    }

    /// Reads end there: what lies behind are zeros that it does not send.
    pub(crate) fn short_from(mut self, offset: u64) -> Self {
        self.short_from = offset;
        self
    }

    /// Puts bytes there, as if they had always been.
    pub(crate) fn fill(&self, offset: u64, bytes: &[u8]) {
        let mut state = self.lock();
        state.content.write(offset, bytes);
        state.durable.write(offset, bytes);
    }

    pub(crate) fn plan(&self, plan: Plan) {
        self.lock().plans.push(plan);
    }

    /// Forgets all plans and lets go of whatever is held.
    pub(crate) fn release(&self) {
        self.lock().plans.clear();
        self.releases.send_modify(|count| *count += 1);
    }

    /// Waits until as many calls are held.
    pub(crate) async fn held(&self, count: usize) {
        let mut held = self.held.subscribe();
        let held = held.wait_for(|held| *held >= count);
        let held = tokio::time::timeout(PATIENCE, held).await;
        drop(held.unwrap_or_else(|_| panic!("{count} calls are never held: {:?}", self.calls())));
    }

    pub(crate) fn held_now(&self) -> usize {
        *self.held.borrow()
    }

    /// Waits until a call came for which this holds.
    pub(crate) async fn came(&self, mut wanted: impl FnMut(&Call) -> bool) {
        let mut calls = self.calls.subscribe();
        let came = calls.wait_for(|_| self.lock().calls.iter().any(&mut wanted));
        let came = tokio::time::timeout(PATIENCE, came).await.map(drop);
        came.unwrap_or_else(|_| panic!("it never came: {:?}", self.calls()));
    }

    /// All calls so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    pub(crate) fn calls_of(&self, op: Op) -> Vec<Range<u64>> {
        let calls = self.calls();
        let of = calls.into_iter().filter(|call| call.op == op);
        of.map(|call| call.range).collect()
    }

    pub(crate) fn forget_calls(&self) {
        self.lock().calls.clear();
    }

    /// The most that were under way at once.
    pub(crate) fn most_under_way(&self) -> usize {
        self.lock().most_under_way
    }

    pub(crate) fn content(&self, offset: u64, len: usize) -> Vec<u8> {
        self.lock().content.get(offset, len)
    }

    pub(crate) fn durable(&self, offset: u64, len: usize) -> Vec<u8> {
        self.lock().durable.get(offset, len)
    }

    pub(crate) fn all(&self) -> Bytes {
        self.lock().content.clone()
    }

    pub(crate) fn all_durable(&self) -> Bytes {
        self.lock().durable.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The call arrives; what was planned for it happens.
    async fn arrive(
        &self,
        op: Op,
        range: Range<u64>,
        priority: Option<Priority>,
    ) -> io::Result<UnderWay<'_>> {
        let trouble = {
            let mut state = self.lock();
            state.calls.push(Call {
                op,
                range: range.clone(),
                priority,
            });
            state.under_way += 1;
            state.most_under_way = state.most_under_way.max(state.under_way);
            let touches = |plan: &Range<u64>| {
                op == Op::Flush || (plan.start < range.end && range.start < plan.end)
            };
            let mut plans = state.plans.iter_mut();
            let plan = plans.find(|it| it.op == op && it.times > 0 && touches(&it.range));
            plan.map(|plan| {
                plan.times -= 1;
                plan.trouble
            })
        };
        let under_way = UnderWay(self);
        let releases = self.releases.subscribe();
        self.calls.send_modify(|count| *count += 1);
        match trouble {
            None => {}
            Some(Trouble::Error(errno)) => return Err(errno.into()),
            Some(Trouble::Delay(time)) => tokio::time::sleep(time).await,
            Some(Trouble::Hold) => self.hold(releases).await,
        }
        Ok(under_way)
    }

    async fn hold(&self, mut releases: watch::Receiver<u64>) {
        let _held = Held::new(&self.held);
        // The sender is ours.
        let _ = releases.changed().await;
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        let mut state = self.lock();
        let end = offset + bytes.len() as u64;
        state.changed(offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES));
        state.content.write(offset, bytes);
    }

    fn zero(&self, offset: u64, len: u64) {
        let mut state = self.lock();
        let (first, last) = (offset / PAGE_BYTES, (offset + len - 1) / PAGE_BYTES);
        let there = state.content.touched(first, last);
        state.changed(there);
        state.content.zero(offset, len);
    }
}

impl State {
    fn changed(&mut self, pages: impl IntoIterator<Item = u64>) {
        self.changes += 1;
        let change = self.changes;
        self.unflushed
            .extend(pages.into_iter().map(|page| (page, change)));
    }

    /// The pages that differ since a change up to this one; they do not any more.
    fn settle(&mut self, upto: u64, mut each: impl FnMut(&mut Bytes, &mut Bytes, u64)) {
        let Self {
            content, durable, ..
        } = self;
        self.unflushed.retain(|page, change| {
            let settled = *change <= upto;
            if settled {
                each(content, durable, *page);
            }
            !settled
        });
    }
}

struct UnderWay<'a>(&'a Origin);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.lock().under_way -= 1;
    }
}

struct Held<'a>(&'a watch::Sender<usize>);

impl<'a> Held<'a> {
    fn new(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl AsyncBackend for Origin {
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
            let range = offset..offset + buf.len() as u64;
            let _under_way = self.arrive(Op::Read, range.clone(), Some(priority)).await?;
            if let Some(link) = &self.link {
                // Zeros travel as a header.
                let (first, last) = (range.start / PAGE_BYTES, (range.end - 1) / PAGE_BYTES);
                let pages = self.lock().content.touched(first, last).len();
                link.brings(pages as u64 * PAGE_BYTES).await;
            }
            let state = self.lock();
            let behind = state
                .content
                .touched(self.short_from / PAGE_BYTES, u64::MAX);
            let end = match behind.last() {
                Some(page) => (page + 1) * PAGE_BYTES,
                None => self.short_from,
            };
            let count = end.clamp(offset, range.end) - offset;
            state.content.read(offset, &mut buf[..count as usize]);
            Ok(count as usize)
        })
    }

    fn write_at<'a>(
        &'a self,
        buf: &'a [u8],
        offset: u64,
        _fua: bool,
        priority: Priority,
    ) -> BackendFuture<'a, ()> {
        Box::pin(async move {
            let range = offset..offset + buf.len() as u64;
            assert!(range.end <= self.size, "a write behind the end");
            let _under_way = self.arrive(Op::Write, range, Some(priority)).await?;
            if let Some(link) = &self.link {
                link.takes(buf.len() as u64).await;
            }
            self.write(offset, buf);
            Ok(())
        })
    }

    fn flush(&self) -> BackendFuture<'_, ()> {
        Box::pin(async move {
            let upto = self.lock().changes;
            let arrived = self.arrive(Op::Flush, 0..self.size, None).await;
            let mut state = self.lock();
            match arrived {
                Ok(under_way) => {
                    state.settle(upto, |content, durable, page| {
                        durable.copy_page(page, content)
                    });
                    drop(state);
                    drop(under_way);
                    Ok(())
                }
                Err(error) => {
                    state.settle(upto, |content, durable, page| {
                        content.copy_page(page, durable)
                    });
                    Err(error)
                }
            }
        })
    }

    fn discard(&self, offset: u64, len: u64) -> BackendFuture<'_, ()> {
        Box::pin(async move {
            let _under_way = self.arrive(Op::Discard, offset..offset + len, None).await?;
            self.zero(offset, len);
            Ok(())
        })
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        _no_unmap: bool,
        _fua: bool,
    ) -> BackendFuture<'_, ()> {
        Box::pin(async move {
            assert!(offset + len <= self.size, "zeros behind the end");
            let _under_way = self
                .arrive(Op::WriteZeroes, offset..offset + len, None)
                .await?;
            self.zero(offset, len);
            Ok(())
        })
    }

    fn allocated(&self, range: Range<u64>) -> BackendFuture<'_, Vec<Extent>> {
        Box::pin(async move {
            let (first, last) = (range.start / PAGE_BYTES, (range.end - 1) / PAGE_BYTES);
            let pages = self.lock().content.touched(first, last);
            Ok(extents(range, &pages))
        })
    }
}

fn extents(range: Range<u64>, pages: &[u64]) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut add = |to: u64, data: bool| {
        let from = extents.last().map_or(range.start, |last| last.range.end);
        if to <= from {
            return;
        }
        match extents.last_mut() {
            Some(last) if last.data == data => last.range.end = to,
            _ => extents.push(Extent {
                range: from..to,
                data,
            }),
        }
    };
    for page in pages {
        add((page * PAGE_BYTES).min(range.end), false);
        add(((page + 1) * PAGE_BYTES).min(range.end), true);
    }
    add(range.end, false);
    extents
}

/// Waits for something that another thread does, of which nobody tells.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what} does not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}
