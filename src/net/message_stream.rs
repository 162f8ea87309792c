//! A stream that carries the messages of a migration, both ways.

use std::net::SocketAddr;

use quinn::{RecvStream, SendStream, WriteError};
use roaring::RoaringTreemap;
use tokio::sync::mpsc;

use super::body::{BodyFault, read_body};
use super::control_stream::{ControlError, read_message, write_message};
use crate::volume::geometry::BLOCK_BYTES;
use crate::wire::WireError;
use crate::wire::codec::Codecs;
use crate::wire::migration::{
    MigrationMessage, SET_PREFIX_BYTES, decode_set, encode_set, set_bytes,
};
use crate::wire::segment::runs;
use crate::{Error, ErrorKind, Result};

/// Before all requests, and behind the control stream.
const PRIORITY: i32 = i32::MAX - 1;

/// So much of a set of blocks is allocated at once: no more than what arrives is believed to come.
const SET_STEP_BYTES: usize = 1 << 20;

/// How many streams of leechers may wait to be taken.
const ARRIVALS_MAX: usize = 16;

/// The sending half.
#[derive(Debug)]
pub struct MessageSender(SendStream);

/// The receiving half.
#[derive(Debug)]
pub struct MessageReceiver {
    recv: RecvStream,
    volume_blocks: u64,
}

/// What goes with a message.
#[derive(Debug, PartialEq)]
pub enum Payload {
    /// Nothing does.
    Nothing,
    /// A set of blocks of the volume.
    Blocks(RoaringTreemap),
    /// Bytes of the volume.
    Bytes(Vec<u8>),
}

/// A leecher that has just opened its stream.
#[derive(Debug)]
pub struct Arrival {
    /// What it is told by.
    pub sender: MessageSender,
    /// What it says.
    pub receiver: MessageReceiver,
    /// Where it is.
    pub peer: SocketAddr,
}

/// Where the server hands the streams of leechers over.
#[derive(Debug, Clone)]
pub struct Arrivals(pub(super) mpsc::Sender<Arrival>);

/// For a volume that is to be leeched: what goes to the server, and where the leechers arrive.
pub fn arrivals() -> (Arrivals, mpsc::Receiver<Arrival>) {
    let (sender, receiver) = mpsc::channel(ARRIVALS_MAX);
    (Arrivals(sender), receiver)
}

/// A stream on which everything else was said.
pub(super) fn of_stream(
    send: SendStream,
    recv: RecvStream,
    volume_bytes: u64,
) -> (MessageSender, MessageReceiver) {
    let _ = send.set_priority(PRIORITY);
    let volume_blocks = volume_bytes.div_ceil(BLOCK_BYTES);
    let receiver = MessageReceiver {
        recv,
        volume_blocks,
    };
    (MessageSender(send), receiver)
}

impl MessageSender {
    /// Sends a message, with the blocks that go with it.
    ///
    /// # Errors
    /// `Unreachable` when the connection has ended.
    pub async fn send<M: MigrationMessage>(
        &mut self,
        message: &M,
        blocks: Option<&RoaringTreemap>,
    ) -> Result<()> {
        write_message(&mut self.0, message).await.map_err(explain)?;
        if message.carries_blocks() {
            let set = match blocks {
                Some(blocks) => encode_set(blocks),
                None => encode_set(&RoaringTreemap::new()),
            };
            let sent = self.0.write_all(&set).await;
            sent.map_err(|_| explain(ControlError::Ended))?;
        }
        Ok(())
    }

    /// Sends a message that bytes go with.
    ///
    /// # Errors
    /// `Unreachable` when the connection has ended.
    pub async fn send_bytes<M: MigrationMessage>(
        &mut self,
        message: &M,
        bytes: &[u8],
    ) -> Result<()> {
        debug_assert_eq!(message.carries_bytes(), u32::try_from(bytes.len()).ok());
        write_message(&mut self.0, message).await.map_err(explain)?;
        let sent = async {
            for (segment, range) in runs(bytes) {
                self.0.write_all(&segment.encode()).await?;
                if !segment.is_zeros() {
                    self.0.write_all(&bytes[range]).await?;
                }
            }
            Ok::<(), WriteError>(())
        };
        sent.await.map_err(|_| explain(ControlError::Ended))
    }
}

impl MessageReceiver {
    /// The next message, with what goes with it. It may not be called again after it was cancelled.
    ///
    /// # Errors
    /// `Unreachable` when the connection has ended, `Protocol` for what makes no sense.
    pub async fn receive<M: MigrationMessage>(&mut self) -> Result<(M, Payload)> {
        self.receive_or_end().await.map_err(explain)
    }

    async fn receive_or_end<M: MigrationMessage>(&mut self) -> Result<(M, Payload), ControlError> {
        let message: M = read_message(&mut self.recv).await?;
        if let Some(len) = message.carries_bytes() {
            let mut bytes = vec![0; len as usize];
            read_body(&mut self.recv, &mut bytes, Codecs::default()).await?;
            return Ok((message, Payload::Bytes(bytes)));
        }
        if !message.carries_blocks() {
            return Ok((message, Payload::Nothing));
        }
        let mut prefix = [0; SET_PREFIX_BYTES];
        self.recv.read_exact(&mut prefix).await?;
        let len = set_bytes(prefix, self.volume_blocks)?;
        let mut bytes = Vec::new();
        while bytes.len() < len {
            let from = bytes.len();
            bytes.resize(len.min(from + SET_STEP_BYTES), 0);
            self.recv.read_exact(&mut bytes[from..]).await?;
        }
        let blocks = decode_set(&bytes, self.volume_blocks)?;
        Ok((message, Payload::Blocks(blocks)))
    }
}

impl From<BodyFault> for ControlError {
    fn from(fault: BodyFault) -> Self {
        match fault {
            BodyFault::Broken => Self::Ended,
            BodyFault::Wire(fault) => Self::Wire(fault),
        }
    }
}

fn explain(error: ControlError) -> Error {
    match error {
        ControlError::Ended | ControlError::Wire(WireError::Truncated) => {
            Error::new(ErrorKind::Unreachable, "the connection ended")
        }
        ControlError::Wire(fault) => Error::new(
            ErrorKind::Protocol,
            "the other end broke the protocol of migrations",
        )
        .because(fault),
    }
}
