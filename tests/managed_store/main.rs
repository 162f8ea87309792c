//! A managed mount and its machine: a full disk, errors of the store, memory, and what is left when
//! the mount ends.
//!
//! Tests here look at the whole process, so they take turns.

#[path = "../engine_support/mod.rs"]
mod engine_support;
#[path = "../managed_support/mod.rs"]
mod managed_support;

mod durable;
mod ends;
mod full;
mod memory;
mod tmpfs;

use std::sync::{Mutex, MutexGuard, PoisonError};

use managed_support::{BLOCK, Origin};

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An origin whose block `n` is full of `n + 1`.
fn numbered(blocks: u64) -> Origin {
    let origin = Origin::new(blocks * BLOCK);
    for block in 0..blocks {
        origin.fill(block * BLOCK, &[number_of(block); BLOCK as usize]);
    }
    origin
}

fn number_of(block: u64) -> u8 {
    (block % 251) as u8 + 1
}
