//! One data request on the client: a stream of its own, there and back.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use quinn::{ReadExactError, RecvStream, SendStream, WriteError};

use super::remote::Session;
use super::serve::stream_priority;
use crate::volume::{Errno, Extent, PriorityPermit, PrioritySemaphore};
use crate::wire::WireError;
use crate::wire::data::{Operation, REPLY_BYTES, ReplyHeader, RequestHeader};
use crate::wire::extent::{self, EXTENT_BYTES};
use crate::wire::limits::{
    SESSION_BODY_BYTES_MAX, SESSION_DEMAND_BODY_BYTES, SESSION_DEMAND_STREAMS, SESSION_STREAMS_MAX,
};
use crate::wire::segment::{SEGMENT_HEADER_BYTES, Segment, runs};

/// Why a request has no answer.
#[derive(Debug)]
pub(super) enum Fault {
    /// The session is over: ask again in the next one.
    Broken,
    /// This is the answer: it failed.
    Failed(io::Error),
    /// The answer makes no sense.
    Nonsense(WireError),
}

impl From<WireError> for Fault {
    fn from(fault: WireError) -> Self {
        Self::Nonsense(fault)
    }
}

/// A request on its way.
pub(super) struct Exchange {
    request: RequestHeader,
    send: SendStream,
    recv: RecvStream,
    _body: Option<PriorityPermit>,
    _stream: PriorityPermit,
}

/// What the requests of a session share, the most urgent first.
pub(super) struct Room {
    streams: Arc<PrioritySemaphore>,
    body_bytes: Arc<PrioritySemaphore>,
}

impl Room {
    pub(super) fn new() -> Self {
        Self {
            streams: PrioritySemaphore::new(SESSION_STREAMS_MAX, SESSION_DEMAND_STREAMS),
            body_bytes: PrioritySemaphore::new(SESSION_BODY_BYTES_MAX, SESSION_DEMAND_BODY_BYTES),
        }
    }
}

impl Exchange {
    /// Opens a stream, as soon as there is room for one more. Nothing is sent yet.
    pub(super) async fn open(session: &Session, request: RequestHeader) -> Result<Self, Fault> {
        let RequestHeader { priority, len, .. } = request;
        let room = &session.room;
        let body = match request.operation {
            Operation::Write { .. } => Some(room.body_bytes.acquire(len as u32, priority).await),
            _ => None,
        };
        let stream = room.streams.acquire(1, priority).await;
        let opened = session.connection.open_bi().await;
        let (send, recv) = opened.map_err(|_| Fault::Broken)?;
        let _ = send.set_priority(stream_priority(priority));
        Ok(Self {
            request,
            send,
            recv,
            _body: body,
            _stream: stream,
        })
    }

    /// Sends the request; `body` is what a write brings.
    pub(super) async fn ask(&mut self, body: &[u8]) -> Result<(), Fault> {
        match self.send_all(body).await {
            Ok(()) => {
                let _ = self.send.finish();
                Ok(())
            }
            // It has seen enough: the reply says why.
            Err(WriteError::Stopped(_)) => Ok(()),
            Err(_) => Err(Fault::Broken),
        }
    }

    async fn send_all(&mut self, body: &[u8]) -> Result<(), WriteError> {
        let mut head = self.request.encode().to_vec();
        for (segment, range) in runs(body) {
            head.extend_from_slice(&segment.encode());
            if !segment.zeros {
                self.send.write_all(&head).await?;
                self.send.write_all(&body[range]).await?;
                head.clear();
            }
        }
        self.send.write_all(&head).await
    }

    /// What a reply's header says that the body holds.
    async fn reply(&mut self) -> Result<u64, Fault> {
        let mut header = [0; REPLY_BYTES];
        self.read_exact(&mut header).await?;
        match ReplyHeader::decode(&header, &self.request)? {
            ReplyHeader::Done { count } => Ok(count),
            ReplyHeader::Failed(errno) => Err(Fault::Failed(errno.into())),
            ReplyHeader::Malformed(fault) => {
                tracing::warn!(%fault, "the server does not understand a request");
                Err(Fault::Failed(Errno::EIO.into()))
            }
        }
    }

    /// The reply to a request that only wants to know that it was done.
    pub(super) async fn finished(mut self) -> Result<(), Fault> {
        self.reply().await.map(|_| ())
    }

    /// The reply to a read, straight into `buf`, which is as long as was asked for. What is past
    /// the returned length reads as zeros.
    pub(super) async fn read_into(mut self, buf: &mut [u8]) -> Result<usize, Fault> {
        let count = self.reply().await? as usize;
        let mut rest = &mut buf[..count];
        while !rest.is_empty() {
            let mut header = [0; SEGMENT_HEADER_BYTES];
            self.read_exact(&mut header).await?;
            let segment = Segment::decode(&header, rest.len() as u64)?;
            let (part, later) = rest.split_at_mut(segment.len as usize);
            if segment.zeros {
                part.fill(0);
            } else {
                self.read_exact(part).await?;
            }
            rest = later;
        }
        Ok(count)
    }

    /// The reply to a map request for `asked`.
    pub(super) async fn extents(mut self, asked: &Range<u64>) -> Result<Vec<Extent>, Fault> {
        let count = self.reply().await? as usize;
        let mut bytes = vec![0; count * EXTENT_BYTES];
        self.read_exact(&mut bytes).await?;
        Ok(extent::decode(&bytes, asked)?)
    }

    async fn read_exact(&mut self, buf: &mut [u8]) -> Result<(), Fault> {
        self.recv
            .read_exact(buf)
            .await
            .map_err(|error| match error {
                ReadExactError::FinishedEarly(_) => Fault::Nonsense(WireError::Truncated),
                ReadExactError::ReadError(_) => Fault::Broken,
            })
    }
}
