//! Which of a volume's local stores a mount goes on with.

use std::cmp::Reverse;
use std::path::PathBuf;

use blockferry::volume::cache::{self, Contents};
use blockferry::volume::format_size;
use blockferry::{Error, ErrorKind, Result};

use super::store_place::live_maps;

/// A place where a store may be.
#[derive(Debug)]
pub(super) struct Candidate {
    path: PathBuf,
    found: Found,
}

/// What is there.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    InUse,
    Clean {
        epoch: u64,
    },
    /// With local writes that the origin does not have, or that nobody knows of.
    Dirty {
        epoch: u64,
        held: String,
    },
}

impl Candidate {
    pub(super) fn at(path: PathBuf) -> Self {
        let found = match cache::inspect(&path, &live_maps()) {
            Ok(report) => match report.contents {
                Contents::InUse(_) => Found::InUse,
                Contents::Idle(held) if held.dirty_bytes != 0 => Found::Dirty {
                    epoch: report.epoch,
                    held: format_size(held.dirty_bytes),
                },
                Contents::Idle(_) if report.sync_failed => Found::Dirty {
                    epoch: report.epoch,
                    held: "its disk failed to sync it".to_owned(),
                },
                Contents::Idle(_) => Found::Clean {
                    epoch: report.epoch,
                },
            },
            Err(error) if error.kind() == ErrorKind::NotFound => Found::Nothing,
            // Nobody can say what is in it.
            Err(error) => Found::Dirty {
                epoch: 0,
                held: error.to_string(),
            },
        };
        Self { path, found }
    }
}

/// The store to go on with: one with local writes, then the one that was written last, then a new
/// one. `None` where all are in use. Of several with local writes it is the one of the latest lease:
/// the server lets no other send them.
///
/// # Errors
/// `Dirty` where several have local writes and none of them is the latest.
pub(super) fn choose(candidates: Vec<Candidate>, resource: &str) -> Result<Option<PathBuf>> {
    let (mut dirty, mut clean, mut unused) = (Vec::new(), Vec::new(), None);
    for Candidate { path, found } in candidates {
        match found {
            Found::InUse => {}
            Found::Nothing => unused = unused.or(Some(path)),
            Found::Clean { epoch } => clean.push((epoch, path)),
            Found::Dirty { epoch, held } => dirty.push((epoch, path, held)),
        }
    }
    dirty.sort_by_key(|(epoch, ..)| Reverse(*epoch));
    // Stable: of those that are alike the first one.
    clean.sort_by_key(|(epoch, _)| Reverse(*epoch));
    let list = |stores: &[(u64, PathBuf, String)]| {
        let lines = stores
            .iter()
            .map(|(epoch, path, held)| format!("{} ({held}; epoch {epoch})", path.display()));
        lines.collect::<Vec<_>>().join(", ")
    };
    match &dirty[..] {
        [] => Ok(clean.into_iter().map(|(_, path)| path).next().or(unused)),
        [first, second, ..] if first.0 == second.0 => Err(Error::new(
            ErrorKind::Dirty,
            format!(
                "{} local stores of {resource} hold writes that were not sent, or cannot be read: {}. Only one of \
                 them can send its own: look at each with `blockferry cache show DIR`, and give the others up with \
                 `blockferry cache drop DIR --discard-dirty`",
                dirty.len(),
                list(&dirty)
            ),
        )),
        [first, others @ ..] => {
            if !others.is_empty() {
                tracing::warn!(
                    "other local stores of {resource} hold writes that were not sent, and cannot be any more: {}. \
                     Give them up with `blockferry cache drop DIR --discard-dirty`",
                    list(others)
                );
            }
            Ok(Some(first.1.clone()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(found: impl IntoIterator<Item = Found>) -> Vec<Candidate> {
        let paths = (1..).map(|number| PathBuf::from(format!("store-{number}")));
        paths
            .zip(found)
            .map(|(path, found)| Candidate { path, found })
            .collect()
    }

    fn dirty(epoch: u64) -> Found {
        Found::Dirty {
            epoch,
            held: "4KiB".to_owned(),
        }
    }

    #[test]
    fn a_store_with_local_writes_goes_first_then_the_latest_then_a_new_one() {
        use Found::{Clean, InUse, Nothing};
        let clean = |epoch| Clean { epoch };
        for (found, expected) in [
            (vec![Nothing, InUse], Some(1)),
            (vec![InUse, Nothing, Nothing], Some(2)),
            (vec![InUse, InUse], None),
            (vec![Nothing, clean(0)], Some(2)),
            (vec![clean(3), clean(7), clean(7), clean(5)], Some(2)),
            (vec![Nothing, clean(9), dirty(2)], Some(3)),
            (vec![dirty(2), InUse, dirty(4), clean(5)], Some(3)),
        ] {
            let what = format!("{found:?}");
            let chosen = choose(candidates(found), "volume").expect("chosen");
            let expected = expected.map(|number: u32| PathBuf::from(format!("store-{number}")));
            assert_eq!(chosen, expected, "{what}");
        }
    }

    #[test]
    fn several_stores_with_local_writes_of_one_lease_are_asked_about() {
        let found = [dirty(4), Found::Nothing, dirty(4), dirty(2)];
        let error = choose(candidates(found), "volume").expect_err("which?");
        assert_eq!(error.kind(), ErrorKind::Dirty);
        let said = error.to_string();
        for part in [
            "store-1 (4KiB; epoch 4)",
            "store-3",
            "store-4",
            "cache drop",
        ] {
            assert!(said.contains(part), "{said}");
        }
    }
}
