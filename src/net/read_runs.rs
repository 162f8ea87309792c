//! Many runs of a volume by one request: what was written at random is read so.

use std::io;
use std::ops::Range;

use super::remote::{Remote, request};
use crate::AsyncBackend;
use crate::volume::Priority;
use crate::wire::control::FEATURE_RUNS;
use crate::wire::data::Operation;
use crate::wire::limits::{DATA_BYTES_MAX, RUNS_MAX};
use crate::wire::run_list;

impl Remote {
    /// Reads runs that are in order, one after the other into `buf`, which is as long as all together: by
    /// one request, where the server knows such ones.
    ///
    /// # Errors
    /// Those of any read.
    pub async fn read_runs(
        &self,
        buf: &mut [u8],
        runs: &[Range<u64>],
        priority: Priority,
    ) -> io::Result<()> {
        let at_once = self.has(FEATURE_RUNS)
            && buf.len() as u64 <= DATA_BYTES_MAX
            && (2..=RUNS_MAX as usize).contains(&runs.len());
        if !at_once {
            let mut rest = buf;
            for run in runs {
                let (part, later) = rest.split_at_mut((run.end - run.start) as usize);
                let filled = self.read_at(part, run.start, priority).await?;
                part[filled..].fill(0);
                rest = later;
            }
            return Ok(());
        }
        let len = buf.len() as u64;
        let request = request(Operation::ReadRuns, runs[0].start, len, priority);
        let filled = self.read(buf, request, &run_list::encode(runs)).await?;
        buf[filled..].fill(0);
        Ok(())
    }
}
