//! Both machines in a world where everything goes wrong, determined by a seed.
//!
//! Up to three hosts, a volume that moves between them, and an application that writes to it. Any
//! message may get lost, be doubled or come late; anything under way may end at any time, and fail;
//! any timer may fire; hosts crash, with or without their page cache, and come back. After every
//! step the records say who would own the volume if all processes died now (L16), what that one's
//! store would read is compared with what was acknowledged, also after a power cut, and a store that
//! may have to serve with what was offered to it (L17). Then it gets calm, and everything has to end.
//!
//! `BLOCKFERRY_MIGRATIONS` says how many runs to do, `BLOCKFERRY_MIGRATIONS_SEED` from which seed on;
//! see `scripts/simulate`. Of a run that fails the last steps are printed.

mod application;
mod carry_out;
mod ending;
mod fault;
mod host;
mod laws;
mod operations;
mod outcome;
mod run;
mod store;
mod world;

use fault::Fault;
use outcome::{Happened, Outcome};

/// Runs unless it is said otherwise.
const RUNS_DEFAULT: u64 = 4000;

/// Runs within which each planted fault has to be found.
const RUNS_FAULT_MAX: u64 = 60_000;

/// Lines that are printed of a run that failed.
const TRACE_LINES_MAX: usize = 200;

fn number_in(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect(variable))
}

#[test]
fn one_end_owns_the_volume_whatever_goes_wrong() {
    let runs = number_in("BLOCKFERRY_MIGRATIONS").unwrap_or(RUNS_DEFAULT);
    let first_seed = number_in("BLOCKFERRY_MIGRATIONS_SEED").unwrap_or(1);
    let mut sum = Outcome::default();
    for seed in first_seed..first_seed + runs {
        match run::run(seed, None) {
            Ok(outcome) => sum.add(&outcome),
            Err(what) => {
                let trace = run::trace(seed, None);
                let last = trace.len().saturating_sub(TRACE_LINES_MAX);
                panic!("{}\n{what}", trace[last..].join("\n"));
            }
        }
    }
    eprintln!("{sum:?}");
    // A few runs need not have had everything in them.
    let expected = if runs < RUNS_DEFAULT {
        &[][..]
    } else {
        &Happened::ALL
    };
    for what in expected {
        assert!(sum.happened.contains_key(what), "never {what:?}: {sum:?}");
    }
}

#[test]
fn planted_faults_are_found() {
    for fault in Fault::ALL {
        let first = fault.first_seed();
        let seeds = first..first + RUNS_FAULT_MAX;
        let found = seeds
            .into_iter()
            .find_map(|seed| run::run(seed, Some(fault)).err());
        match found {
            Some(what) => eprintln!("{fault:?}: {what}"),
            None => panic!("{fault:?} was not found"),
        }
    }
}
