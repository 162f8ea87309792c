//! What a managed mount asks of its origin, and when: how often, how much, in which order; and what
//! it does when the origin fails, is slow, or is away.

#[path = "../engine_support/mod.rs"]
mod engine_support;
#[path = "../managed_support/mod.rs"]
mod managed_support;

mod away;
mod fetch;
mod priority;
mod push;

use managed_support::{BLOCK, Origin};

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
