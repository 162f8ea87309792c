//! One data request on the server: from the stream to the backend and back.

use std::io;

use bytes::Bytes;
use quinn::{RecvStream, SendStream, WriteError};
use tracing::{debug, warn};

use super::body::{self, BodyFault};
use super::buffers::Buffer;
use super::close::STREAM_GIVEN_UP;
use super::compression::{Part, Plan, parts};
use super::message_stream::{self, Arrival, Arrivals};
use super::session::Session;
use super::slot::Pass;
use super::stream_order::Place;
use crate::volume::Errno;
use crate::wire::WireError;
use crate::wire::codec::UNIT_BYTES_MAX;
use crate::wire::data::{Operation, REQUEST_BYTES, ReplyHeader, RequestHeader};
use crate::wire::digest::{DIGEST_BYTES, LEAF_BYTES, digest};
use crate::wire::extent;
use crate::wire::limits::{EXTENTS_MAX, MAP_BYTES_MAX};
use crate::wire::run_list;
use crate::wire::segment::runs;

/// What becomes of a stream whose request was carried out.
enum After {
    /// It is over.
    Answered,
    /// It goes on, as that of a leecher.
    Leeches(Arrivals),
}

/// Why a request gets no reply, or not the one that it asked for.
enum Fault {
    /// The client is gone, gave it up, or its session has ended: nobody waits for a reply.
    Gone,
    /// It made no sense.
    Wire(WireError),
    /// The backend failed.
    Backend(io::Error),
}

impl From<WireError> for Fault {
    fn from(fault: WireError) -> Self {
        Self::Wire(fault)
    }
}

impl From<BodyFault> for Fault {
    fn from(fault: BodyFault) -> Self {
        match fault {
            BodyFault::Broken => Self::Gone,
            BodyFault::Wire(fault) => Self::Wire(fault),
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Backend(error)
    }
}

impl From<WriteError> for Fault {
    fn from(_: WriteError) -> Self {
        Self::Gone
    }
}

/// Serves the request on this stream.
pub(super) async fn answer(session: &Session, mut send: SendStream, mut recv: RecvStream) {
    let mut place = None;
    let reply = match perform(session, &mut send, &mut recv, &mut place).await {
        Ok(After::Answered) => None,
        Ok(After::Leeches(arrivals)) => {
            let size = session.volume.geometry.resource_bytes();
            let (sender, receiver) = message_stream::of_stream(send, recv, size);
            let peer = session.connection.remote_address();
            // Where nobody takes it, the leecher sees its stream end.
            let _ = arrivals
                .0
                .send(Arrival {
                    sender,
                    receiver,
                    peer,
                })
                .await;
            return;
        }
        Err(Fault::Gone) => {
            let _ = send.reset(STREAM_GIVEN_UP);
            return;
        }
        Err(Fault::Wire(fault)) => {
            warn!(peer = %session.connection.remote_address(), %fault, "a request made no sense");
            Some(ReplyHeader::Malformed(fault))
        }
        Err(Fault::Backend(error)) => {
            debug!(volume = %session.volume.name, %error, "a request failed");
            Some(ReplyHeader::Failed(Errno::from(error)))
        }
    };
    if let Some(reply) = reply {
        let _ = recv.stop(STREAM_GIVEN_UP);
        if send.write_all(&reply.encode()).await.is_err() {
            return;
        }
    }
    let _ = send.finish();
    // When the server stops, it waits for the replies to arrive.
    let _ = send.stopped().await;
}

async fn perform(
    session: &Session,
    send: &mut SendStream,
    recv: &mut RecvStream,
    place: &mut Option<Place>,
) -> Result<After, Fault> {
    let mut header = [0; REQUEST_BYTES];
    recv.read_exact(&mut header)
        .await
        .map_err(BodyFault::from)?;
    let request = RequestHeader::decode(&header)?;
    if session.codecs.grant(request.reply) != request.reply {
        return Err(WireError::SegmentCompression.into());
    }
    let place = place.insert(session.order.take(request.priority));
    let _ = send.set_priority(place.priority());
    let size = session.volume.geometry.resource_bytes();
    // The header's own check rules an overflow out.
    if request.offset + request.len > size {
        return Err(io::Error::from(Errno::EINVAL).into());
    }
    match request.operation {
        Operation::Read => read(session, send, &request).await?,
        Operation::ReadRuns => read_runs(session, send, recv, &request).await?,
        Operation::Map => map(session, send, &request).await?,
        Operation::Digests => digests(session, send, &request).await?,
        Operation::Flush => {
            session.volume.backend.flush().await?;
            done(send).await?;
        }
        Operation::Migrate => {
            let Some(arrivals) = &session.volume.leechers else {
                return Err(io::Error::from(Errno::EOPNOTSUPP).into());
            };
            done(send).await?;
            return Ok(After::Leeches(arrivals.clone()));
        }
        Operation::Write { .. } | Operation::Discard | Operation::WriteZeroes { .. } => {
            change(session, recv, &request).await?;
            done(send).await?;
        }
    }
    Ok(After::Answered)
}

/// Changes the volume, unless the session may not or has ended. Once begun it runs to its end,
/// and a later session of the client waits for that.
async fn change(
    session: &Session,
    recv: &mut RecvStream,
    request: &RequestHeader,
) -> Result<(), Fault> {
    if !session.admitted.writable {
        return Err(io::Error::from(Errno::EPERM).into());
    }
    let backend = &session.volume.backend;
    let &RequestHeader { offset, len, .. } = request;
    match request.operation {
        Operation::Write { fua } => {
            let body = read_body(session, recv, request).await?;
            let _pass = enter(session).await?;
            let written = backend.write_at(body.as_ref(), offset, fua, request.priority);
            written.await?;
        }
        Operation::Discard => {
            let _pass = enter(session).await?;
            backend.discard(offset, len).await?;
        }
        Operation::WriteZeroes { fua, no_unmap } => {
            let _pass = enter(session).await?;
            backend.write_zeroes(offset, len, no_unmap, fua).await?;
        }
        Operation::Read
        | Operation::ReadRuns
        | Operation::Flush
        | Operation::Map
        | Operation::Digests
        | Operation::Migrate => {}
    }
    Ok(())
}

/// The right to change the volume now.
async fn enter(session: &Session) -> Result<Pass, Fault> {
    match session.enter().await {
        Ok(pass) => pass.ok_or(Fault::Gone),
        Err(error) => {
            warn!(volume = %session.volume.name, error = error.chain(),
                  "cannot write the state directory, so the volume cannot be written");
            Err(io::Error::from(Errno::EIO).into())
        }
    }
}

async fn done(send: &mut SendStream) -> Result<(), Fault> {
    let reply = ReplyHeader::Done { count: 0 };
    Ok(send.write_all(&reply.encode()).await?)
}

async fn read(
    session: &Session,
    send: &mut SendStream,
    request: &RequestHeader,
) -> Result<(), Fault> {
    let mut buffer = take_buffer(session, request, 0).await;
    let asked = buffer.bytes_mut();
    let backend = &session.volume.backend;
    let filled = backend
        .read_at(asked, request.offset, request.priority)
        .await?
        .min(asked.len());
    send_bytes(session, send, request, buffer, filled).await
}

/// The bytes of many runs. What is past the end of the resource reads as zeros.
async fn read_runs(
    session: &Session,
    send: &mut SendStream,
    recv: &mut RecvStream,
    request: &RequestHeader,
) -> Result<(), Fault> {
    let mut count = [0; run_list::COUNT_BYTES];
    recv.read_exact(&mut count).await.map_err(BodyFault::from)?;
    let mut listed = vec![0; run_list::len_bytes(count)?];
    recv.read_exact(&mut listed)
        .await
        .map_err(BodyFault::from)?;
    let runs = run_list::decode(&listed, request)?;
    let size = session.volume.geometry.resource_bytes();
    if runs.last().is_some_and(|last| last.end > size) {
        return Err(io::Error::from(Errno::EINVAL).into());
    }
    let mut buffer = take_buffer(session, request, 0).await;
    let mut rest = buffer.bytes_mut();
    for run in runs {
        let (part, later) = rest.split_at_mut((run.end - run.start) as usize);
        let backend = &session.volume.backend;
        let read = backend.read_at(part, run.start, request.priority);
        let filled = read.await?.min(part.len());
        part[filled..].fill(0);
        rest = later;
    }
    send_bytes(session, send, request, buffer, request.len as usize).await
}

/// Sends what was read.
async fn send_bytes(
    session: &Session,
    send: &mut SendStream,
    request: &RequestHeader,
    buffer: Buffer,
    filled: usize,
) -> Result<(), Fault> {
    let body = Bytes::from_owner(buffer).slice(..filled);
    let reply = ReplyHeader::Done {
        count: filled as u64,
    };
    let mut head = reply.encode().to_vec();
    if let Some(plan) = Plan::of(request.reply, &session.connection) {
        return send_packed(send, head, body, plan).await;
    }
    let mut chunks = Vec::with_capacity(4);
    for (segment, range) in runs(&body) {
        head.extend_from_slice(&segment.encode());
        if !segment.is_zeros() {
            chunks.push(Bytes::from(std::mem::take(&mut head)));
            chunks.push(body.slice(range));
        }
    }
    if !head.is_empty() {
        chunks.push(Bytes::from(head));
    }
    drop(body);
    Ok(send.write_all_chunks(&mut chunks).await?)
}

/// A compressed part of a body. It holds the body, and so the session's room for it, until the peer
/// has it: what waits to be sent is at most twice that room.
struct Packed {
    stored: Vec<u8>,
    _of: Bytes,
}

impl AsRef<[u8]> for Packed {
    fn as_ref(&self) -> &[u8] {
        &self.stored
    }
}

/// Sends the parts of the body as they are compressed.
async fn send_packed(
    send: &mut SendStream,
    mut head: Vec<u8>,
    body: Bytes,
    plan: Plan,
) -> Result<(), Fault> {
    for (segment, part) in parts(&body, plan) {
        head.extend_from_slice(&segment.encode());
        let bytes = match part {
            Part::Zeros => continue,
            Part::Plain(range) => body.slice(range),
            Part::Packed(stored) => Bytes::from_owner(Packed {
                stored,
                _of: body.clone(),
            }),
        };
        let head = Bytes::from(std::mem::take(&mut head));
        send.write_all_chunks(&mut [head, bytes]).await?;
        // Others of this thread have waited for as long as compressing took.
        tokio::task::yield_now().await;
    }
    Ok(send.write_all(&head).await?)
}

async fn map(
    session: &Session,
    send: &mut SendStream,
    request: &RequestHeader,
) -> Result<(), Fault> {
    let end = request.offset + request.len.min(MAP_BYTES_MAX);
    let extents = session
        .volume
        .backend
        .allocated(request.offset..end)
        .await?;
    let reply = ReplyHeader::Done {
        count: (extents.len() as u64).min(EXTENTS_MAX),
    };
    let mut bytes = reply.encode().to_vec();
    bytes.extend_from_slice(&extent::encode(&extents));
    Ok(send.write_all(&bytes).await?)
}

/// The digests of leaves, of which one at a time is in memory. Only who may leech has a use for them.
async fn digests(
    session: &Session,
    send: &mut SendStream,
    request: &RequestHeader,
) -> Result<(), Fault> {
    if session.volume.leechers.is_none() {
        return Err(io::Error::from(Errno::EOPNOTSUPP).into());
    }
    let share = session.room.acquire(LEAF_BYTES as u32, request.priority);
    let mut leaf = session.pool.take(LEAF_BYTES as usize, share.await);
    let count = request.len.div_ceil(LEAF_BYTES);
    let mut reply = ReplyHeader::Done { count }.encode().to_vec();
    reply.reserve(count as usize * DIGEST_BYTES);
    let end = request.offset + request.len;
    for number in 0..count {
        let offset = request.offset + number * LEAF_BYTES;
        let len = (end - offset).min(LEAF_BYTES) as usize;
        let bytes = &mut leaf.bytes_mut()[..len];
        let backend = &session.volume.backend;
        let filled = backend.read_at(bytes, offset, request.priority).await?;
        bytes[filled.min(len)..].fill(0);
        reply.extend_from_slice(&digest(bytes));
        // Others of this thread have waited for as long as that took.
        tokio::task::yield_now().await;
    }
    Ok(send.write_all(&reply).await?)
}

/// A buffer for the bytes of the request, as soon as the session has room for it and for what is
/// needed `beside` it.
async fn take_buffer(session: &Session, request: &RequestHeader, beside: usize) -> Buffer {
    let bytes = request.len as u32 + beside as u32;
    let share = session.room.acquire(bytes, request.priority).await;
    session.pool.take(request.len as usize, share)
}

/// The body of a write.
async fn read_body(
    session: &Session,
    recv: &mut RecvStream,
    request: &RequestHeader,
) -> Result<Buffer, Fault> {
    // What is compressed is held beside what it becomes, a unit at a time.
    let beside = match session.codecs.is_empty() {
        true => 0,
        false => (request.len as usize).min(UNIT_BYTES_MAX),
    };
    let mut buffer = take_buffer(session, request, beside).await;
    body::read_body(recv, buffer.bytes_mut(), session.codecs).await?;
    Ok(buffer)
}
