//! The body of a write or of a read's reply: out of segments into the place where it belongs.

use quinn::{ReadExactError, RecvStream};

use crate::wire::WireError;
use crate::wire::codec::{Codecs, decompress};
use crate::wire::segment::{Encoding, SEGMENT_HEADER_BYTES, Segment};

/// Why there is no body.
#[derive(Debug)]
pub(super) enum BodyFault {
    /// The stream broke.
    Broken,
    /// It makes no sense.
    Wire(WireError),
}

impl From<WireError> for BodyFault {
    fn from(fault: WireError) -> Self {
        Self::Wire(fault)
    }
}

impl From<ReadExactError> for BodyFault {
    fn from(error: ReadExactError) -> Self {
        match error {
            ReadExactError::FinishedEarly(_) => Self::Wire(WireError::Truncated),
            ReadExactError::ReadError(_) => Self::Broken,
        }
    }
}

/// Reads a body of which all of `place` is the length. Runs of zeros are written out.
pub(super) async fn read_body(
    recv: &mut RecvStream,
    place: &mut [u8],
    codecs: Codecs,
) -> Result<(), BodyFault> {
    let mut rest = place;
    let mut stored = Vec::new();
    while !rest.is_empty() {
        let mut header = [0; SEGMENT_HEADER_BYTES];
        recv.read_exact(&mut header).await?;
        let segment = Segment::decode(&header, rest.len() as u64, codecs)?;
        let (part, later) = rest.split_at_mut(segment.len as usize);
        match segment.encoding {
            Encoding::Data => recv.read_exact(part).await?,
            Encoding::Zeros => part.fill(0),
            Encoding::Packed(codec) => {
                stored.resize(segment.stored as usize, 0);
                recv.read_exact(&mut stored).await?;
                decompress(codec, &stored, part)?;
                // Others of this thread have waited for as long as that took.
                tokio::task::yield_now().await;
            }
        }
        rest = later;
    }
    Ok(())
}
