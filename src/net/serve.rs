//! One data request on the server: from the stream to the backend and back.

use std::io;

use bytes::Bytes;
use quinn::{RecvStream, SendStream, WriteError};
use tracing::{debug, warn};

use super::buffers::Buffer;
use super::close::STREAM_GIVEN_UP;
use super::session::Session;
use super::slot::Pass;
use crate::volume::{Errno, Priority};
use crate::wire::WireError;
use crate::wire::data::{Operation, REQUEST_BYTES, ReplyHeader, RequestHeader};
use crate::wire::extent;
use crate::wire::limits::{EXTENTS_MAX, MAP_BYTES_MAX};
use crate::wire::segment::{SEGMENT_HEADER_BYTES, Segment, runs};

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

/// The streams' urgency: the higher goes first.
pub(super) fn stream_priority(priority: Priority) -> i32 {
    match priority {
        Priority::Demand => 3,
        Priority::ReadAhead => 2,
        Priority::Pull => 1,
        Priority::Push => 0,
    }
}

/// Serves the request on this stream.
pub(super) async fn answer(session: &Session, mut send: SendStream, mut recv: RecvStream) {
    let reply = match perform(session, &mut send, &mut recv).await {
        Ok(()) => None,
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
) -> Result<(), Fault> {
    let mut header = [0; REQUEST_BYTES];
    read_exact(recv, &mut header).await?;
    let request = RequestHeader::decode(&header)?;
    let _ = send.set_priority(stream_priority(request.priority));
    let size = session.volume.geometry.resource_bytes();
    // The header's own check rules an overflow out.
    if request.offset + request.len > size {
        return Err(io::Error::from(Errno::EINVAL).into());
    }
    match request.operation {
        Operation::Read => read(session, send, &request).await,
        Operation::Map => map(session, send, &request).await,
        Operation::Flush => {
            session.volume.backend.flush().await?;
            done(send).await
        }
        Operation::Write { .. } | Operation::Discard | Operation::WriteZeroes { .. } => {
            change(session, recv, &request).await?;
            done(send).await
        }
    }
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
        Operation::Read | Operation::Flush | Operation::Map => {}
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
    let mut buffer = take_buffer(session, request).await;
    let asked = buffer.bytes_mut();
    let backend = &session.volume.backend;
    let filled = backend
        .read_at(asked, request.offset, request.priority)
        .await?
        .min(asked.len());
    let body = Bytes::from_owner(buffer).slice(..filled);
    let reply = ReplyHeader::Done {
        count: filled as u64,
    };
    let mut head = reply.encode().to_vec();
    let mut chunks = Vec::with_capacity(4);
    for (segment, range) in runs(&body) {
        head.extend_from_slice(&segment.encode());
        if !segment.zeros {
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

/// A buffer for the bytes of the request, as soon as the session has room for it.
async fn take_buffer(session: &Session, request: &RequestHeader) -> Buffer {
    let room = session.room.acquire(request.len as u32, request.priority);
    let share = room.await;
    session.pool.take(request.len as usize, share)
}

/// The body of a write, runs of zeros written out.
async fn read_body(
    session: &Session,
    recv: &mut RecvStream,
    request: &RequestHeader,
) -> Result<Buffer, Fault> {
    let mut buffer = take_buffer(session, request).await;
    let mut rest = buffer.bytes_mut();
    while !rest.is_empty() {
        let mut header = [0; SEGMENT_HEADER_BYTES];
        read_exact(recv, &mut header).await?;
        let segment = Segment::decode(&header, rest.len() as u64)?;
        let (part, later) = rest.split_at_mut(segment.len as usize);
        if segment.zeros {
            part.fill(0);
        } else {
            read_exact(recv, part).await?;
        }
        rest = later;
    }
    Ok(buffer)
}

async fn read_exact(recv: &mut RecvStream, buf: &mut [u8]) -> Result<(), Fault> {
    recv.read_exact(buf).await.map_err(|error| match error {
        quinn::ReadExactError::FinishedEarly(_) => Fault::Wire(WireError::Truncated),
        quinn::ReadExactError::ReadError(_) => Fault::Gone,
    })
}
