//! What moving the bytes of a request costs on this machine, without any device: the copy between a
//! memory volume and the buffer of a request. `scripts/bench` runs it where it measures devices.
//!
//! For each size it prints the size in bytes, then nanoseconds a copy: of a read and of a write at
//! random places of a volume of 256 MiB, and of a read from one that the caches hold.

use std::hint::black_box;
use std::time::{Duration, Instant};

use blockferry::Result;
use blockferry::volume::MemoryMap;

const VOLUME_BYTES: u64 = 256 << 20;
const CACHED_BYTES: u64 = 256 << 10;
const SIZES: [usize; 2] = [4 << 10, 128 << 10];
/// As many as requests are under way in the benchmark, each at the start of a MiB of its own.
const BUFFERS: usize = 32;
const BUFFER_STRIDE: usize = 1 << 20;
const RUN: Duration = Duration::from_millis(500);
/// The clock is looked at once for so many copies.
const COPIES_A_LOOK: u32 = 64;

#[allow(clippy::print_stdout, reason = "it is what the program is for")]
fn main() -> Result<()> {
    let volume = MemoryMap::new(VOLUME_BYTES)?;
    let mut buffers = vec![1u8; BUFFERS * BUFFER_STRIDE];
    for at in (0..VOLUME_BYTES).step_by(BUFFER_STRIDE) {
        volume.write(at, &buffers[..BUFFER_STRIDE]);
    }
    println!("bytes read_ns write_ns cached_read_ns");
    for size in SIZES {
        let mut cost = |span: u64, write: bool| {
            let mut offsets = Offsets::new(span, size as u64);
            nanoseconds(|copy| {
                let at = copy % BUFFERS * BUFFER_STRIDE;
                let buffer = &mut buffers[at..at + size];
                match write {
                    true => volume.write(offsets.next(), buffer),
                    false => volume.read(offsets.next(), buffer),
                }
                black_box(buffer);
            })
        };
        let (read, write) = (cost(VOLUME_BYTES, false), cost(VOLUME_BYTES, true));
        println!("{size} {read} {write} {}", cost(CACHED_BYTES, false));
    }
    Ok(())
}

/// How long one call of `copy` takes; it is given how many went before.
fn nanoseconds(mut copy: impl FnMut(usize)) -> u64 {
    let (start, mut count) = (Instant::now(), 0u32);
    while start.elapsed() < RUN {
        for _ in 0..COPIES_A_LOOK {
            copy(count as usize);
            count = count.wrapping_add(1);
        }
    }
    (start.elapsed().as_nanos() / u128::from(count.max(1))) as u64
}

/// Random places for pieces of `len` bytes within `span`, the same in each run.
struct Offsets {
    state: u64,
    pieces: u64,
    len: u64,
}

impl Offsets {
    fn new(span: u64, len: u64) -> Self {
        Self {
            state: 0x9e37_79b9_7f4a_7c15,
            pieces: span / len,
            len,
        }
    }

    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % self.pieces * self.len
    }
}
