//! The way out for a leecher in doubt whose seeder is gone for good: its user says that the volume is here.

use tokio::task::spawn_blocking;

use super::LeechStore;
use crate::migrate::RecordKeeper;
use crate::migrate::protocol::{LeechRecord, Stage, Standing};
use crate::{Error, ErrorKind, Result};

impl LeechStore {
    /// Has its record say that the volume is here, as a whole: all of it was, durably and equal to the
    /// seeder's, when the commit was sent.
    ///
    /// # Errors
    /// `Dirty` where bytes were left at the seeder, `InvalidInput` where nothing is in doubt, and what keeps
    /// the record from being written.
    pub(super) async fn assume_committed(&self) -> Result<()> {
        let store = self.clone();
        spawn_blocking(move || store.write_assumed())
            .await
            .map_err(|panic| Error::new(ErrorKind::Io, panic.to_string()))?
    }

    fn write_assumed(&self) -> Result<()> {
        let store = self.open_as_it_is()?;
        let mut records = RecordKeeper::of(&store)?;
        match records.records().standing() {
            Standing::InDoubt(record) if record.post_copy => Err(Error::new(
                ErrorKind::Dirty,
                format!(
                    "{self}: bytes of the volume were left at the seeder, and nobody else has them"
                ),
            )),
            Standing::InDoubt(record) => {
                tracing::warn!(
                    "{self} has the volume from here on, because it was said that it has"
                );
                records.write_leech(LeechRecord {
                    stage: Stage::Complete,
                    ..record
                })
            }
            _ => Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "{self}: there is no doubt whether the volume is here, and nothing to assume"
                ),
            )),
        }
    }
}
