//! An application that writes to a device, checks what it reads, and knows what it was told is written.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use memmap2::MmapMut;

use super::ends::SIZE;

const BLOCK: usize = 4096;

/// What each block that was written holds: the last number that was acknowledged.
#[derive(Debug, Default, Clone)]
pub(crate) struct Written {
    last: HashMap<u64, u64>,
    /// The block and number of a write that failed: it may have happened.
    failed: Option<(u64, u64)>,
}

/// One that runs until it is told to end, or its device fails.
pub(crate) struct Writer {
    thread: JoinHandle<Written>,
    stop: Arc<AtomicBool>,
    writes: Arc<AtomicU64>,
    reads: Arc<AtomicU64>,
}

fn fill(buffer: &mut [u8], block: u64, number: u64) {
    for (index, word) in buffer.chunks_exact_mut(16).enumerate() {
        word[..8].copy_from_slice(&(block << 16 | index as u64).to_le_bytes());
        word[8..].copy_from_slice(&number.to_le_bytes());
    }
}

fn open(device: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(device)
}

impl Writer {
    pub(crate) fn start(device: &Path, seed: u64, before: Written) -> Self {
        let (stop, writes) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let reads = Arc::<AtomicU64>::default();
        let device = device.to_owned();
        let thread = {
            let (stop, writes) = (Arc::clone(&stop), Arc::clone(&writes));
            let reads = Arc::clone(&reads);
            std::thread::spawn(move || write(&device, seed, before, &stop, [&writes, &reads]))
        };
        let writer = Self {
            thread,
            stop,
            writes,
            reads,
        };
        writer.until_it_has_written(50);
        writer
    }

    /// Waits until so many more writes were acknowledged.
    pub(crate) fn until_it_has_written(&self, more: u64) {
        let from = self.writes.load(Ordering::Relaxed);
        super::ends::until("more is written", || {
            assert!(!self.thread.is_finished(), "the writer has ended");
            self.writes.load(Ordering::Relaxed) >= from + more
        });
    }

    /// Waits until so many more reads were right.
    pub(crate) fn until_it_has_read(&self, more: u64) {
        let from = self.reads.load(Ordering::Relaxed);
        super::ends::until("more is read", || {
            assert!(!self.thread.is_finished(), "the writer has ended");
            self.reads.load(Ordering::Relaxed) >= from + more
        });
    }

    /// Waits for the device to fail.
    pub(crate) fn failed(self) -> Written {
        let written = self.thread.join().expect("all it read was right");
        assert!(written.failed.is_some());
        written
    }

    pub(crate) fn stop(self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        let written = self.thread.join().expect("all it read was right");
        assert_eq!(written.failed, None, "no write may fail");
        written
    }
}

fn write(
    device: &Path,
    seed: u64,
    mut written: Written,
    stop: &AtomicBool,
    [writes, reads]: [&AtomicU64; 2],
) -> Written {
    let file = open(device).expect("opened");
    let mut buffer = MmapMut::map_anon(BLOCK).expect("memory");
    let mut random = seed;
    let mut next = |below: u64| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let mut number = written.last.values().max().copied().unwrap_or(0);
    // The write that failed before may have reached the device all the same.
    if let Some((block, failed)) = written.failed {
        if file
            .read_exact_at(&mut buffer, block * BLOCK as u64)
            .is_err()
        {
            return written;
        }
        if holds(&buffer, block, failed) {
            written.last.insert(block, failed);
        }
        number = number.max(failed);
        written.failed = None;
    }
    while !stop.load(Ordering::Relaxed) {
        let block = next(SIZE / BLOCK as u64);
        number += 1;
        fill(&mut buffer, block, number);
        if file.write_all_at(&buffer, block * BLOCK as u64).is_err() {
            written.failed = Some((block, number));
            return written;
        }
        written.last.insert(block, number);
        writes.fetch_add(1, Ordering::Relaxed);
        // One that it wrote before, most of the time.
        let other = next(SIZE / BLOCK as u64);
        if let Some(expected) = written.last.get(&other).copied() {
            if file
                .read_exact_at(&mut buffer, other * BLOCK as u64)
                .is_err()
            {
                written.failed = Some((other, expected));
                return written;
            }
            check(&buffer, other, &[expected]);
            reads.fetch_add(1, Ordering::Relaxed);
        }
        std::thread::sleep(Duration::from_micros(300));
    }
    written
}

fn check(buffer: &[u8], block: u64, numbers: &[u64]) {
    assert!(
        numbers.iter().any(|number| holds(buffer, block, *number)),
        "block {block} does not hold {numbers:?}: {:02x?}",
        &buffer[..32]
    );
}

fn holds(buffer: &[u8], block: u64, number: u64) -> bool {
    let mut expected = vec![0; BLOCK];
    fill(&mut expected, block, number);
    buffer == expected
}

impl Written {
    /// Somebody wrote this block.
    pub(crate) fn wrote(&mut self, block: u64) {
        self.last.insert(block, 0);
    }

    /// Checks that two files have the same bytes in all blocks but these.
    pub(crate) fn is_all_that_differs(&self, one: &Path, other: &Path) {
        let (one, other) = (std::fs::read(one), std::fs::read(other));
        let (one, other) = (one.expect("read"), other.expect("read"));
        assert_eq!(one.len(), other.len());
        let blocks = one.chunks(BLOCK).zip(other.chunks(BLOCK));
        for (block, (one, other)) in (0u64..).zip(blocks) {
            let failed = self.failed.is_some_and(|(at, _)| at == block);
            let wrote = failed || self.last.contains_key(&block);
            assert!(wrote || one == other, "block {block} differs");
        }
    }

    /// Checks that a device has all of it.
    pub(crate) fn is_on(&self, device: &Path) {
        assert!(!self.last.is_empty());
        let file = open(device).expect("opened");
        let mut buffer = MmapMut::map_anon(BLOCK).expect("memory");
        for (block, number) in &self.last {
            file.read_exact_at(&mut buffer, block * BLOCK as u64)
                .expect("read");
            let failed = self.failed.filter(|(at, _)| at == block);
            let or = failed.map_or(*number, |(_, number)| number);
            check(&buffer, *block, &[*number, or]);
        }
    }
}
