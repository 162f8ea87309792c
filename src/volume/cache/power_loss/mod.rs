//! Power cuts at every moment of a random life of a cache, and what is found afterwards.
//!
//! A mount is simulated in one thread: writes, fills, discards and sends go on step by step, also
//! between the steps of a checkpoint. After each step the power is cut in a few ways; each time the
//! cache is opened again, as after a reboot, and looked at: what was flushed is there (L10), and
//! what is present and clean is what the origin has (L12). Now and then the mount really goes on
//! from one of these, or its process dies and the next one goes on with the live map (L11).
//!
//! `BLOCKFERRY_POWERLOSS_STATES` says how many states to look at, `BLOCKFERRY_POWERLOSS_SEED` from
//! which seed on; see `scripts/powerloss`.

mod cuts;
mod disk;
mod image;
mod life;
mod model;
mod opened;
mod outcome;
mod rng;
mod workload;

use disk::Fault;
use life::Life;
use outcome::{Event, Outcome};

/// Two regions, and a short third one with a short last block.
const SIZE_BYTES: u64 = 65_576 * 4096 - 1000;

/// Requests at once.
const SLOTS: u32 = 8;

/// States to look at unless it is said otherwise.
const STATES_DEFAULT: u64 = 20_000;

/// States within which each planted fault has to be found.
const STATES_FAULT_MAX: u64 = 20_000;

fn number_in(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect(variable))
}

#[test]
fn nothing_flushed_is_lost_and_nothing_half_written_is_taken_for_good() {
    let states = number_in("BLOCKFERRY_POWERLOSS_STATES").unwrap_or(STATES_DEFAULT);
    let first_seed = number_in("BLOCKFERRY_POWERLOSS_SEED").unwrap_or(1);
    let mut sum = Outcome::default();
    for seed in first_seed.. {
        match Life::run(seed, None) {
            Ok(outcome) => sum.add(&outcome),
            Err(what) => panic!("seed {seed}: {what}"),
        }
        if sum.states >= states {
            break;
        }
    }
    eprintln!("{sum:?}");
    // A single life need not have had everything in it.
    let expected = if states < STATES_DEFAULT {
        &[][..]
    } else {
        &Event::ALL
    };
    for event in expected {
        assert!(sum.events.contains_key(event), "never a {event:?}: {sum:?}");
    }
}

fn found(fault: Fault) -> bool {
    let mut states = 0;
    for seed in 1.. {
        match Life::run(seed, Some(fault)) {
            Ok(outcome) => states += outcome.states,
            Err(what) => {
                eprintln!("{fault:?}: seed {seed}: {what}");
                return true;
            }
        }
        if states >= STATES_FAULT_MAX {
            return false;
        }
    }
    false
}

#[test]
fn planted_faults_are_found() {
    for fault in [
        Fault::NoSync("data"),
        Fault::NoSync("map"),
        Fault::NoSync("meta.new"),
        Fault::SyncTooEarly("data"),
        Fault::SyncTooEarly("map"),
        Fault::OneSlot,
        Fault::EarlySeal,
        Fault::NoIntents,
    ] {
        assert!(found(fault), "{fault:?}");
    }
}
