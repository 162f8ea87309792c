//! Preambles and messages on the control stream.

use quinn::{ReadExactError, RecvStream, SendStream};

use crate::wire::WireError;
use crate::wire::control::{self, FRAME_PREFIX_BYTES, Message, PREAMBLE_BYTES, Preamble};

/// Why nothing came out of the control stream.
#[derive(Debug, thiserror::Error)]
pub(super) enum ControlError {
    /// The connection ended.
    #[error("the connection ended")]
    Ended,
    /// What came is not of this protocol.
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl From<ReadExactError> for ControlError {
    fn from(error: ReadExactError) -> Self {
        match error {
            ReadExactError::FinishedEarly(0) | ReadExactError::ReadError(_) => Self::Ended,
            ReadExactError::FinishedEarly(_) => Self::Wire(WireError::Truncated),
        }
    }
}

pub(super) async fn read_preamble(recv: &mut RecvStream) -> Result<Preamble, ControlError> {
    let mut bytes = [0; PREAMBLE_BYTES];
    recv.read_exact(&mut bytes).await?;
    Ok(Preamble::decode(&bytes)?)
}

pub(super) async fn read_message<M: Message>(recv: &mut RecvStream) -> Result<M, ControlError> {
    let mut prefix = [0; FRAME_PREFIX_BYTES];
    recv.read_exact(&mut prefix).await?;
    let mut body = vec![0; control::frame_bytes(prefix)?];
    recv.read_exact(&mut body).await?;
    Ok(control::decode(&body)?)
}

pub(super) async fn write_message<M: Message>(
    send: &mut SendStream,
    message: &M,
) -> Result<(), ControlError> {
    let frame = control::encode(message)?;
    send.write_all(&frame)
        .await
        .map_err(|_| ControlError::Ended)
}
