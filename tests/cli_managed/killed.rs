//! `kill -9` at random moments under writers that keep a record of what was answered.

use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::BuildHasher;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::support::{Host, Mount, SIZE, pattern, until};

/// How often each kind of store is killed.
const KILLS: u64 = 25;

const WRITERS: u64 = 4;
const BLOCK: u64 = 4096;

/// The longest write, in blocks.
const BLOCKS_MAX: u64 = 8;

/// Each writer has as much of the volume for itself.
const AREA_BLOCKS: u64 = SIZE / BLOCK / WRITERS;

/// Between two kills so many writes are answered, and up to as many more.
const WRITES_MIN: u64 = 40;

/// What a block holds: bytes of the last write that was answered, or of a later one that was not.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Record {
    answered: u64,
    begun: u64,
}

/// Numbers that differ from run to run, and can be made again from what a failure prints.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// A block's bytes at a place, written in a round.
fn block(index: u64, round: u64) -> Vec<u8> {
    pattern(index * BLOCK, BLOCK as usize, round)
}

fn open(device: &Path) -> File {
    let mut options = File::options();
    options.read(true).write(true);
    options.custom_flags(nix::libc::O_DIRECT);
    options.open(device).expect("opened")
}

/// Memory as direct I/O wants it: the first of the vector's bytes that is aligned, and from there on.
fn aligned(len: usize) -> (Vec<u8>, usize) {
    let bytes = vec![0; len + BLOCK as usize];
    let start = bytes.as_ptr().align_offset(BLOCK as usize);
    (bytes, start)
}

/// Writes here and there in its area until the device fails, and flushes now and then.
fn write_until_killed(
    device: &File,
    area: u64,
    records: &mut [Record],
    round: &AtomicU64,
    seed: u64,
) {
    let mut dice = Dice(seed | 1);
    let (mut memory, start) = aligned((BLOCKS_MAX * BLOCK) as usize);
    loop {
        let first = dice.below(AREA_BLOCKS);
        let count = (1 + dice.below(BLOCKS_MAX)).min(AREA_BLOCKS - first);
        let number = round.fetch_add(1, Ordering::Relaxed) + 1;
        let offset = (area * AREA_BLOCKS + first) * BLOCK;
        let len = (count * BLOCK) as usize;
        let written = &mut records[first as usize..(first + count) as usize];
        for record in written.iter_mut() {
            record.begun = number;
        }
        let bytes = &mut memory[start..start + len];
        bytes.copy_from_slice(&pattern(offset, len, number));
        if device.write_all_at(bytes, offset).is_err() {
            return;
        }
        for record in written.iter_mut() {
            record.answered = number;
        }
        if dice.below(16) == 0 && device.sync_data().is_err() {
            return;
        }
    }
}

/// Lets writers work until some writes are done, and kills the mount among them.
fn kill_among_writes(mount: &mut Mount, records: &mut [Record], round: &AtomicU64, seed: u64) {
    let device = open(&mount.device);
    let until_write = round.load(Ordering::Relaxed) + WRITES_MIN + seed % WRITES_MIN;
    std::thread::scope(|scope| {
        for (area, records) in records.chunks_mut(AREA_BLOCKS as usize).enumerate() {
            let (device, area) = (&device, area as u64);
            let seed = seed.rotate_left(8 * (1 + area as u32));
            scope.spawn(move || write_until_killed(device, area, records, round, seed));
        }
        while round.load(Ordering::Relaxed) < until_write {
            std::thread::yield_now();
        }
        mount.crash();
    });
}

/// Every block that was ever written holds what it may hold; what it does is what counts from now on.
fn check(device: &File, records: &mut [Record], when: &str) {
    let (mut memory, start) = aligned(BLOCK as usize);
    let bytes = &mut memory[start..start + BLOCK as usize];
    for (index, record) in (0..).zip(records).filter(|(_, it)| it.begun != 0) {
        device.read_exact_at(bytes, index * BLOCK).expect("read");
        if bytes == block(index, record.answered) {
            // The other one must not turn up any more.
            record.begun = record.answered;
            continue;
        }
        assert!(
            bytes == block(index, record.begun),
            "{when}: block {index} holds neither of {record:?}"
        );
        record.answered = record.begun;
    }
}

fn nothing_acknowledged_is_lost(args: &[&str]) {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let seed = RandomState::new().hash_one(0);
    let mut dice = Dice(seed | 1);
    let mut records = vec![Record::default(); (SIZE / BLOCK) as usize];
    let round = AtomicU64::new(0);
    let args = [args, &["--pull-rate", "1MiB"]].concat();
    for kill in 0..KILLS {
        let when = format!("seed {seed}, kill {kill}, {args:?}");
        let mut mount = host.mount(&args);
        check(&open(&mount.device), &mut records, &when);
        kill_among_writes(&mut mount, &mut records, &round, dice.below(u64::MAX));
        host.succeeds(&["stop", "disk"]);
    }
    let mount = host.mount(&args);
    let when = format!("seed {seed}, in the end, {args:?}");
    check(&open(&mount.device), &mut records, &when);
    host.succeeds(&["sync", "disk"]);
    check(&open(&host.path("disk.img")), &mut records, &when);
    until("the pull is going on", || host.number("local_bytes") > 0);
}

#[test]
fn nothing_acknowledged_is_lost_by_kills_of_a_mount_with_a_cache() {
    let directory = tempfile::tempdir().expect("a directory");
    let cache = directory.path().join("cache").display().to_string();
    nothing_acknowledged_is_lost(&["--cache", &cache]);
}

#[test]
fn nothing_acknowledged_is_lost_by_kills_of_a_mount_that_pushes_all_the_time() {
    nothing_acknowledged_is_lost(&["--push-interval", "0.05"]);
}
