//! Power cuts at every moment of a random life of a cache, and what is found afterwards.
//!
//! A mount is simulated in one thread: writes, fills, discards and sends go on step by step, also
//! between the steps of a checkpoint. After each step the power is cut in a few ways; each time the
//! cache is opened again, as after a reboot, and looked at: what was flushed is there (L10), and
//! what is present and clean is what the origin has, also once that has lost all that it has not
//! flushed (L12). Now and then the mount really goes on
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
mod workload;

use crate::seeded_random::Rng;
use disk::{Cut, Disk, Fault, Trouble};
use life::Life;
use model::sector_of;
use opened::{Block, Seen, home, open};
use outcome::{Event, Outcome};

use super::files::StoreFile;
use crate::volume::geometry::{BlockRange, RegionIndex};
use crate::volume::state_map::FlightSlot;

/// Two regions, and a short third one with a short last block.
const SIZE_BYTES: u64 = 65_576 * 4096 - 1000;

/// Requests at once.
const SLOTS: u32 = 8;

/// States to look at unless it is said otherwise.
const STATES_DEFAULT: u64 = 26_000;

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

/// A commit that clears an intent fails when its header is written: it may count, or the one before.
#[test]
fn a_commit_that_may_count_or_not_is_not_relied_on() {
    let block = BlockRange::new(5, 6);
    let mut failed = 0;
    for after in 0..6 {
        let (disk, home) = (Disk::new(), home());
        let (started, data) = open(&disk, home.path(), [1; 16]).expect("opened");
        let write = |stamp| {
            let bytes = sector_of(stamp).repeat(8);
            let ready = started.checkpointer.make_write_ready(&[RegionIndex(0)]);
            ready.expect("ready");
            let start = started.map.begin_write(FlightSlot(0), block);
            data.write_at(&bytes, block.start().0).expect("written");
            started.map.end_write(FlightSlot(0), block, start, true);
        };
        write(1);
        started.checkpointer.checkpoint().expect("durable");
        assert_eq!(started.map.take_dirty(block.first, 1), Some(block));
        started.map.flushed(block);
        disk.arm(Some((Trouble::Write, after)));
        failed += u32::from(started.checkpointer.settle_intents().is_err());
        disk.arm(None);
        write(2);
        let after_cut = disk.cut(Cut::All, &mut Rng::new(0));
        let (reopened, _) = open(&after_cut, home.path(), [2; 16]).expect("opened again");
        assert_eq!(Seen::of(&reopened.map).block(block.first), Block::Dirty);
    }
    assert_eq!(failed, 3, "record, table, header");
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
        Fault::CleanTooEarly,
        Fault::NoSyncAtRemoteFlush,
    ] {
        assert!(found(fault), "{fault:?}");
    }
}
