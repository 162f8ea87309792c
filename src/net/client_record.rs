//! What a client keeps, so that another process can go on in its place after it has died.
//!
//! To the server the successor is the same client with a later session: that ends the earlier one,
//! whose writes have all landed or never will when the successor is let in, and the lease goes on.
//! If another writer has held the lease since, the epoch says so.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::ledger::Ledger;
use super::private_file::{read_private, write_private};
use super::state_dir::random;
use crate::wire::control::Welcome;
use crate::{Error, ErrorKind, Result};

/// How many sessions a process may have, as a power of two: those of the next one are later.
const SESSIONS_SHIFT: u32 = 32;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    client_id: [u8; 16],
    /// How many processes there were before.
    generation: u32,
    /// Of our lease; 0 where there is none.
    epoch: u64,
    /// The instance of the server that has all writes that were acknowledged and not flushed;
    /// `None` before the first welcome.
    instance: Option<[u8; 16]>,
    /// Of the volume's content; `None` before the first welcome.
    identity: Option<[u8; 16]>,
}

/// The client as it is kept in a file, if it is kept.
#[derive(Debug)]
pub(super) struct ClientRecord {
    file: Option<PathBuf>,
    kept: Kept,
}

impl ClientRecord {
    /// Goes on with the client in `file`, or makes a new one; which one it is then is on disk.
    pub(super) fn open(file: Option<&Path>) -> Result<Self> {
        let found = match file {
            Some(path) => read(path)?,
            None => None,
        };
        let kept = match found {
            Some(kept) => Kept {
                generation: kept.generation.saturating_add(1),
                ..kept
            },
            None => Kept {
                client_id: random()?,
                generation: 0,
                epoch: 0,
                instance: None,
                identity: None,
            },
        };
        let record = Self {
            file: file.map(Path::to_owned),
            kept,
        };
        record.save()?;
        Ok(record)
    }

    /// By what the server knows us.
    pub(super) fn client_id(&self) -> [u8; 16] {
        self.kept.client_id
    }

    /// The number of our first session is the next one.
    pub(super) fn sessions_before(&self) -> u64 {
        u64::from(self.kept.generation) << SESSIONS_SHIFT
    }

    /// The epoch of the lease that we go on with; 0 for none.
    pub(super) fn epoch(&self) -> u64 {
        self.kept.epoch
    }

    /// Takes the first welcome of this process: gives what is known of unflushed writes.
    ///
    /// # Errors
    /// `Replaced` where the volume's content is not the same any more.
    pub(super) fn welcomed(&mut self, welcome: &Welcome) -> Result<Ledger> {
        if self
            .kept
            .identity
            .is_some_and(|known| known != welcome.identity)
        {
            return Err(Error::new(
                ErrorKind::Replaced,
                "the server serves another content than it did to the process before this one",
            ));
        }
        let ledger = match self.kept.instance {
            None => Ledger::new(welcome.instance),
            Some(instance) => {
                let mut ledger = Ledger::of_dead_process(instance);
                if ledger.welcomed(welcome.instance).is_err() {
                    tracing::error!(
                        "the server started anew meanwhile; what was not flushed may be lost, so \
                         the next flush will fail"
                    );
                }
                ledger
            }
        };
        self.kept.identity = Some(welcome.identity);
        // A reader has none, and leaves that of a writer before it.
        if welcome.epoch != 0 {
            self.kept.epoch = welcome.epoch;
        }
        // If writes were lost, whoever comes after us has to know until a flush has said so.
        if !ledger.owes_failure() {
            self.kept.instance = Some(welcome.instance);
        }
        self.save()?;
        Ok(ledger)
    }

    /// From now on `instance` has all writes that matter. Where that cannot be kept, a successor
    /// fails a flush that need not have failed.
    pub(super) fn settled_with(&mut self, instance: [u8; 16]) {
        if self.kept.instance == Some(instance) {
            return;
        }
        self.kept.instance = Some(instance);
        if let Err(error) = self.save() {
            tracing::warn!(error = error.chain(), "cannot keep who the server is");
        }
    }

    fn save(&self) -> Result<()> {
        let Some(path) = &self.file else {
            return Ok(());
        };
        let text = serde_json::to_vec(&self.kept).map_err(|error| damaged(path).because(error))?;
        write_private(path, &text)
    }
}

fn read(path: &Path) -> Result<Option<Kept>> {
    let Some(text) = read_private(path)? else {
        return Ok(None);
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| damaged(path).because(error))
}

fn damaged(path: &Path) -> Error {
    Error::new(
        ErrorKind::Io,
        format!("{} does not describe a client", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::control::Offers;

    /// Of a volume in memory the content is gone with the instance.
    fn welcome(instance: u8, epoch: u64, in_memory: bool) -> Welcome {
        Welcome {
            version: 1,
            features: 0,
            resource_bytes: 4096,
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
            read_only: false,
            identity: [if in_memory { instance } else { 0 }; 16],
            generation: None,
            offers: Offers {
                preferred_bytes: 4096,
                max_concurrency: 1,
                flush_is_durable: true,
                sparse_map: false,
                discard: false,
            },
            has_writer: false,
            instance: [instance; 16],
            epoch,
            lease_ms: 30_000,
        }
    }

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("a directory"))
        }

        fn file(&self) -> PathBuf {
            self.0.path().join("client.json")
        }

        /// A process that starts where the one before it stopped.
        fn next(&self) -> ClientRecord {
            ClientRecord::open(Some(&self.file())).expect("opened")
        }
    }

    #[test]
    fn a_successor_is_the_same_client_with_later_sessions() {
        let place = Place::new();
        let mut first = place.next();
        first.welcomed(&welcome(1, 5, false)).expect("welcome");
        let second = place.next();
        let third = place.next();
        assert_eq!(first.client_id(), third.client_id());
        assert_eq!((second.epoch(), third.epoch()), (5, 5));
        let numbers = [&first, &second, &third].map(ClientRecord::sessions_before);
        assert!(
            numbers.is_sorted_by(|a, b| a + (1 << 31) < *b),
            "{numbers:?}"
        );
        let nobody = ClientRecord::open(None).expect("opened");
        assert_ne!(nobody.client_id(), first.client_id());
    }

    #[test]
    fn a_successor_owes_a_failed_flush_if_the_server_lost_what_the_dead_one_wrote() {
        let place = Place::new();
        let mut first = place.next();
        first.welcomed(&welcome(1, 5, false)).expect("welcome");
        let mut same = place.next();
        let mut ledger = same.welcomed(&welcome(1, 5, false)).expect("welcome");
        assert!(ledger.begin_flush().is_ok());
        // The host of the server has been started anew, and the failure has reached nobody.
        for _ in 0..2 {
            let mut other = place.next();
            let mut ledger = other.welcomed(&welcome(2, 5, false)).expect("welcome");
            assert!(ledger.begin_flush().is_err());
        }
        let mut told = place.next();
        told.welcomed(&welcome(2, 5, false)).expect("welcome");
        told.settled_with([2; 16]);
        let mut after = place.next();
        let mut ledger = after.welcomed(&welcome(2, 5, false)).expect("welcome");
        assert!(ledger.begin_flush().is_ok());
    }

    #[test]
    fn writes_of_a_dead_process_count_when_the_server_is_lost_after_the_takeover() {
        let place = Place::new();
        let mut first = place.next();
        first.welcomed(&welcome(1, 5, false)).expect("welcome");
        let mut next = place.next();
        let mut ledger = next.welcomed(&welcome(1, 5, false)).expect("welcome");
        assert!(ledger.welcomed([2; 16]).is_err());
    }

    #[test]
    fn memory_that_is_gone_is_not_taken_for_the_volume() {
        let place = Place::new();
        let mut first = place.next();
        first.welcomed(&welcome(1, 5, true)).expect("welcome");
        assert!(place.next().welcomed(&welcome(1, 5, true)).is_ok());
        let error = place
            .next()
            .welcomed(&welcome(2, 5, true))
            .expect_err("gone");
        assert_eq!(error.kind(), ErrorKind::Replaced);
    }

    #[test]
    fn a_reader_keeps_the_epoch_of_the_writer_before_it() {
        let place = Place::new();
        let mut writer = place.next();
        writer.welcomed(&welcome(1, 5, false)).expect("welcome");
        let mut reader = place.next();
        reader.welcomed(&welcome(1, 0, false)).expect("welcome");
        assert_eq!(place.next().epoch(), 5);
    }

    #[test]
    fn a_damaged_file_is_named_and_nobody_else_is_made_up() {
        let place = Place::new();
        for damage in ["", "{", "{}", "[1]"] {
            std::fs::write(place.file(), damage).expect("written");
            let error = ClientRecord::open(Some(&place.file())).expect_err(damage);
            assert!(error.to_string().contains("client.json"), "{error}");
        }
    }
}
