//! The body of a request that reads many runs: how many they are, then each.
//!
//! ```text
//!  0  how many (4)
//!  4  each: where it starts, in bytes (8), and how long it is (4)
//! ```

use std::ops::Range;

use super::WireError;
use super::data::{RequestHeader, u32_at, u64_at};
use super::limits::RUNS_MAX;

/// How long the number before the runs is.
pub const COUNT_BYTES: usize = 4;

/// How long a run is on the wire.
pub const RUN_BYTES: usize = 12;

/// The runs as they travel.
pub fn encode(runs: &[Range<u64>]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(COUNT_BYTES + runs.len() * RUN_BYTES);
    bytes.extend_from_slice(&(runs.len() as u32).to_le_bytes());
    for run in runs {
        bytes.extend_from_slice(&run.start.to_le_bytes());
        bytes.extend_from_slice(&((run.end - run.start) as u32).to_le_bytes());
    }
    bytes
}

/// How many bytes the runs behind this number take.
///
/// # Errors
/// `Length` for none, and for more than there may be.
pub fn len_bytes(count: [u8; COUNT_BYTES]) -> Result<usize, WireError> {
    match u32::from_le_bytes(count) {
        count @ 1..=RUNS_MAX => Ok(count as usize * RUN_BYTES),
        _ => Err(WireError::Length),
    }
}

/// The runs in `bytes`, which are in order and add up to what the header says.
///
/// # Errors
/// `Length` for an empty run and for another sum, `Range` for runs out of order and for overflows.
pub fn decode(bytes: &[u8], request: &RequestHeader) -> Result<Vec<Range<u64>>, WireError> {
    let (mut at, mut sum) = (request.offset, 0);
    let mut runs = Vec::with_capacity(bytes.len() / RUN_BYTES);
    for bytes in bytes.chunks_exact(RUN_BYTES) {
        let (start, len) = (u64_at(bytes, 0), u64::from(u32_at(bytes, 8)));
        let end = start.checked_add(len).ok_or(WireError::Range)?;
        let is_first = runs.is_empty();
        if start < at || (is_first && start != at) {
            return Err(WireError::Range);
        }
        if len == 0 {
            return Err(WireError::Length);
        }
        (at, sum) = (end, sum + len);
        runs.push(start..end);
    }
    if sum != request.len {
        return Err(WireError::Length);
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::Priority;
    use crate::wire::codec::Compression;
    use crate::wire::data::Operation;

    fn request(offset: u64, len: u64) -> RequestHeader {
        RequestHeader {
            operation: Operation::ReadRuns,
            priority: Priority::Pull,
            offset,
            len,
            reply: Compression::Off,
        }
    }

    fn decoded(runs: &[Range<u64>], request: &RequestHeader) -> Result<Vec<Range<u64>>, WireError> {
        decode(&encode(runs)[COUNT_BYTES..], request)
    }

    #[test]
    fn runs_keep_their_bytes() {
        let runs = [0x1000..0x2000, 0x3000..0x3200];
        let bytes = encode(&runs);
        let expected = "020000000010000000000000001000000030000000000000".to_owned() + "00020000";
        assert_eq!(data_encoding::HEXLOWER.encode(&bytes), expected);
        let count = [bytes[0], bytes[1], bytes[2], bytes[3]];
        assert_eq!(len_bytes(count), Ok(bytes.len() - COUNT_BYTES));
        assert_eq!(decoded(&runs, &request(0x1000, 0x1200)), Ok(runs.to_vec()));
    }

    #[test]
    fn each_lie_in_a_list_of_runs_has_its_name() {
        let runs = [0x1000..0x2000, 0x3000..0x3200];
        let at = |offset, len| decoded(&runs, &request(offset, len));
        assert_eq!(at(0x1000, 0x1000), Err(WireError::Length));
        assert_eq!(at(0x1001, 0x1200), Err(WireError::Range));
        assert_eq!(at(0, 0x1200), Err(WireError::Range));
        let whole = request(0x1000, 0x1200);
        let [first, second] = runs.clone();
        assert_eq!(
            decoded(&[second, first.clone()], &whole),
            Err(WireError::Range)
        );
        let twice = [first.clone(), first.clone()];
        assert_eq!(
            decoded(&twice, &request(0x1000, 0x2000)),
            Err(WireError::Range)
        );
        let empty = [first.clone(), 0x2000..0x2000];
        assert_eq!(
            decoded(&empty, &request(0x1000, 0x1000)),
            Err(WireError::Length)
        );
        let mut past_the_end = encode(&[first]);
        past_the_end[COUNT_BYTES..COUNT_BYTES + 8].fill(0xFF);
        let last = request(u64::MAX, 0x1000);
        assert_eq!(
            decode(&past_the_end[COUNT_BYTES..], &last),
            Err(WireError::Range)
        );
        assert_eq!(len_bytes([0; 4]), Err(WireError::Length));
        assert_eq!(
            len_bytes((RUNS_MAX + 1).to_le_bytes()),
            Err(WireError::Length)
        );
    }
}
