//! Digests of what a seeder's store holds.

use std::io;
use std::ops::Range;

use super::exchange::Exchange;
use super::remote::{Remote, request};
use crate::volume::{Errno, Priority};
use crate::wire::control::FEATURE_DIGESTS;
use crate::wire::data::Operation;
use crate::wire::digest::{Digest, LEAF_BYTES};

impl Remote {
    /// The digests of the leaves from the start of one to the end of another or of the volume, at most
    /// [`DIGESTS_MAX`] of them. `None` where the other end is of a version without.
    ///
    /// # Errors
    /// Those of any read.
    ///
    /// [`DIGESTS_MAX`]: crate::wire::limits::DIGESTS_MAX
    pub async fn digests(
        &self,
        range: Range<u64>,
        priority: Priority,
    ) -> io::Result<Option<Vec<Digest>>> {
        if !self.has(FEATURE_DIGESTS) {
            return Ok(None);
        }
        let len = range.end - range.start;
        let request = request(Operation::Digests, range.start, len, priority);
        loop {
            let session = self.session().await?;
            let tried = async {
                let mut exchange = Exchange::open(&session, request).await?;
                exchange.ask().await?;
                exchange.digests().await
            };
            if let Some(answer) = self.settle(&session, tried.await) {
                let digests = answer?;
                return match digests.len() as u64 == len.div_ceil(LEAF_BYTES) {
                    true => Ok(Some(digests)),
                    false => Err(Errno::EIO.into()),
                };
            }
        }
    }
}
