//! One data request on the client: a stream of its own, there and back.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use quinn::{RecvStream, SendStream, WriteError};

use super::body::{BodyFault, read_body};
use super::compression::{Part, Plan, parts};
use super::remote::Session;
use super::stream_order::{Place, StreamOrder};
use crate::volume::{Errno, Extent, PriorityPermit, PrioritySemaphore};
use crate::wire::WireError;
use crate::wire::codec::{Codecs, Compression};
use crate::wire::data::{Operation, REPLY_BYTES, ReplyHeader, RequestHeader};
use crate::wire::digest::{DIGEST_BYTES, Digest};
use crate::wire::extent::{self, EXTENT_BYTES};
use crate::wire::limits::{
    SESSION_BODY_BYTES_MAX, SESSION_DEMAND_BODY_BYTES, SESSION_DEMAND_STREAMS, SESSION_STREAMS_MAX,
};
use crate::wire::segment::runs;

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

impl From<BodyFault> for Fault {
    fn from(fault: BodyFault) -> Self {
        match fault {
            BodyFault::Broken => Self::Broken,
            BodyFault::Wire(fault) => Self::Nonsense(fault),
        }
    }
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
    _place: Place,
}

/// What the requests of a session share, the most urgent first.
pub(super) struct Room {
    streams: Arc<PrioritySemaphore>,
    body_bytes: Arc<PrioritySemaphore>,
    order: Arc<StreamOrder>,
}

impl Room {
    pub(super) fn new() -> Self {
        Self {
            streams: PrioritySemaphore::new(SESSION_STREAMS_MAX, SESSION_DEMAND_STREAMS),
            body_bytes: PrioritySemaphore::new(SESSION_BODY_BYTES_MAX, SESSION_DEMAND_BODY_BYTES),
            order: Arc::default(),
        }
    }
}

impl Exchange {
    /// Opens a stream, as soon as there is room for one more. Nothing is sent yet.
    pub(super) async fn open(session: &Session, request: RequestHeader) -> Result<Self, Fault> {
        let RequestHeader { priority, len, .. } = request;
        let reply = match request.operation {
            operation if operation.reads() => session.compression,
            _ => Compression::Off,
        };
        let room = &session.room;
        let body = match request.operation {
            Operation::Write { .. } => Some(room.body_bytes.acquire(len as u32, priority).await),
            _ => None,
        };
        let stream = room.streams.acquire(1, priority).await;
        let opened = session.connection.open_bi().await;
        let (send, recv) = opened.map_err(|_| Fault::Broken)?;
        let place = room.order.take(priority);
        let _ = send.set_priority(place.priority());
        Ok(Self {
            request: RequestHeader { reply, ..request },
            send,
            recv,
            _body: body,
            _stream: stream,
            _place: place,
        })
    }

    /// Sends the request, which has no body.
    pub(super) async fn ask(&mut self) -> Result<(), Fault> {
        self.ask_with(&[], None).await
    }

    /// Sends the request with a list that goes with it.
    pub(super) async fn ask_for(&mut self, list: &[u8]) -> Result<(), Fault> {
        let request = [&self.request.encode(), list].concat();
        let sent = self.send.write_all(&request).await;
        self.asked(sent)
    }

    /// Sends the request, and leaves the stream open.
    pub(super) async fn begin(&mut self) -> Result<(), Fault> {
        let head = self.request.encode();
        self.send.write_all(&head).await.map_err(|_| Fault::Broken)
    }

    /// The stream, once the reply says that it may be used for something else.
    pub(super) async fn into_streams(mut self) -> Result<(SendStream, RecvStream), Fault> {
        self.reply().await?;
        Ok((self.send, self.recv))
    }

    /// Sends the request with what a write brings, compressed if there is a plan for that.
    pub(super) async fn ask_with(&mut self, body: &[u8], plan: Option<Plan>) -> Result<(), Fault> {
        let sent = match plan {
            None => self.send_all(body).await,
            Some(plan) => self.send_packed(body, plan).await,
        };
        self.asked(sent)
    }

    fn asked(&mut self, sent: Result<(), WriteError>) -> Result<(), Fault> {
        match sent {
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
            if !segment.is_zeros() {
                self.send.write_all(&head).await?;
                self.send.write_all(&body[range]).await?;
                head.clear();
            }
        }
        self.send.write_all(&head).await
    }

    async fn send_packed(&mut self, body: &[u8], plan: Plan) -> Result<(), WriteError> {
        let mut head = self.request.encode().to_vec();
        for (segment, part) in parts(body, plan) {
            head.extend_from_slice(&segment.encode());
            match part {
                Part::Zeros => continue,
                Part::Plain(range) => {
                    self.send.write_all(&head).await?;
                    self.send.write_all(&body[range]).await?;
                }
                Part::Packed(stored) => {
                    self.send.write_all(&head).await?;
                    self.send.write_chunk(Bytes::from(stored)).await?;
                }
            }
            head.clear();
            // Others of this thread have waited for as long as compressing took.
            tokio::task::yield_now().await;
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
        let codecs = Codecs::of_reply(self.request.reply);
        read_body(&mut self.recv, &mut buf[..count], codecs).await?;
        Ok(count)
    }

    /// The reply to a map request for `asked`.
    pub(super) async fn extents(mut self, asked: &Range<u64>) -> Result<Vec<Extent>, Fault> {
        let count = self.reply().await? as usize;
        let mut bytes = vec![0; count * EXTENT_BYTES];
        self.read_exact(&mut bytes).await?;
        Ok(extent::decode(&bytes, asked)?)
    }

    /// The reply to a request for digests.
    pub(super) async fn digests(mut self) -> Result<Vec<Digest>, Fault> {
        let count = self.reply().await? as usize;
        let mut digests = vec![[0; DIGEST_BYTES]; count];
        self.read_exact(digests.as_flattened_mut()).await?;
        Ok(digests)
    }

    async fn read_exact(&mut self, buf: &mut [u8]) -> Result<(), Fault> {
        let read = self.recv.read_exact(buf).await;
        Ok(read.map_err(BodyFault::from)?)
    }
}
