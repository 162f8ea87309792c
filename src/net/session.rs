//! A client that was let in: its control stream and its requests, until it leaves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use tokio::sync::{Semaphore, watch};
use tracing::{debug, info, warn};

use super::buffers::BufferPool;
use super::close::Close;
use super::control_stream::{ControlError, read_message, write_message};
use super::hello::{Known, refuse};
use super::serve;
use super::slot::Pass;
use super::stream_order::StreamOrder;
use super::transport::{self, IDLE_TIMEOUT};
use super::volume::{Admitted, Volume};
use crate::Result;
use crate::volume::PrioritySemaphore;
use crate::wire::codec::Codecs;
use crate::wire::control::{ClientMessage, FEATURES, ServerMessage};
use crate::wire::limits::{SESSION_DEMAND_BYTES, SESSION_IN_FLIGHT_BYTES_MAX, SESSION_STREAMS_MAX};

/// How long requests in flight may take to end when the server stops or a session is over.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// What the requests of a session share.
pub(super) struct Session {
    pub(super) connection: Connection,
    pub(super) volume: Arc<Volume>,
    pub(super) admitted: Admitted,
    pub(super) pool: Arc<BufferPool>,
    /// By what bodies may be compressed.
    pub(super) codecs: Codecs,
    /// Room for the bytes of requests, in bytes.
    pub(super) room: Arc<PrioritySemaphore>,
    /// Which reply is sent first.
    pub(super) order: Arc<StreamOrder>,
    /// Room for requests.
    requests: Arc<Semaphore>,
    /// It has changed the volume, and the content's generation tells.
    has_written: AtomicBool,
}

/// Admits the client and serves it until it leaves or the server stops.
pub(super) async fn run(
    known: Known,
    connection: Connection,
    pool: Arc<BufferPool>,
    stopping: watch::Receiver<bool>,
) {
    let Known {
        volume,
        hello,
        version,
        mut send,
        recv,
    } = known;
    let peer = connection.remote_address();
    let admitted = match volume.admit(&hello, &connection).await {
        Ok(admitted) => admitted,
        Err(refused) => {
            info!(volume = %volume.name, client = hello.client_name, %peer,
                  why = refused.message, "refused");
            return refuse(&connection, send, refused).await;
        }
    };
    info!(volume = %volume.name, client = hello.client_name, %peer,
          session = admitted.session, writable = admitted.writable, "in");
    let features = hello.features & FEATURES;
    let welcome = volume.welcome(version, features, &admitted).await;
    // What is said about the session goes before all that its requests get.
    let _ = send.set_priority(i32::MAX);
    transport::open_up(&connection);
    let session = Arc::new(Session {
        connection,
        volume,
        admitted,
        pool,
        codecs: Codecs::from_features(features),
        room: PrioritySemaphore::new(SESSION_IN_FLIGHT_BYTES_MAX, SESSION_DEMAND_BYTES),
        order: Arc::default(),
        requests: Arc::new(Semaphore::new(SESSION_STREAMS_MAX as usize)),
        has_written: AtomicBool::new(false),
    });
    if write_message(&mut send, &ServerMessage::Welcome(welcome))
        .await
        .is_ok()
    {
        let control = tokio::spawn(control(Arc::clone(&session), send, recv));
        session.serve(stopping).await;
        control.abort();
    }
    let reason = session.connection.closed().await;
    let silent_for = match reason {
        ConnectionError::TimedOut => IDLE_TIMEOUT,
        _ => Duration::ZERO,
    };
    session.volume.lost(&session.admitted, silent_for).await;
    info!(volume = %session.volume.name, client = hello.client_name, %peer, %reason, "out");
}

impl Session {
    /// Lets a change through to the backend, unless the session has ended.
    ///
    /// # Errors
    /// When the first change of the session cannot be noted.
    pub(super) async fn enter(&self) -> Result<Option<Pass>> {
        let Admitted { slot, session, .. } = &self.admitted;
        if self.has_written.load(Ordering::Acquire) {
            return Ok(slot.enter(*session));
        }
        let (content, writer) = (&self.volume.content, self.admitted.writer());
        content.begin_writing(writer).await?;
        self.has_written.store(true, Ordering::Release);
        let pass = slot.enter(*session);
        if pass.is_none() {
            // The session ended meanwhile, perhaps without having seen that it began to write.
            slot.drained().await;
            content.end_writing(writer).await;
        }
        Ok(pass)
    }

    /// Takes requests until the connection ends or the server stops; then what is in flight ends.
    async fn serve(self: &Arc<Self>, mut stopping: watch::Receiver<bool>) {
        loop {
            let next = async {
                let permit = Arc::clone(&self.requests).acquire_owned().await.ok()?;
                let stream = self.connection.accept_bi().await.ok()?;
                Some((permit, stream))
            };
            let next = tokio::select! {
                next = next => next,
                _ = stopping.wait_for(|stopping| *stopping) => break,
            };
            let Some((permit, (send, recv))) = next else {
                return;
            };
            let session = Arc::clone(self);
            tokio::spawn(async move {
                serve::answer(&session, send, recv).await;
                drop(permit);
            });
        }
        let all_ended = self.requests.acquire_many(SESSION_STREAMS_MAX);
        if tokio::time::timeout(DRAIN_TIMEOUT, all_ended)
            .await
            .is_err()
        {
            warn!(volume = %self.volume.name, "requests in flight did not end in time");
        }
        Close::GoingAway.close(&self.connection);
    }
}

/// Hears what the client says beside its requests.
async fn control(session: Arc<Session>, mut send: SendStream, mut recv: RecvStream) {
    loop {
        match read_message(&mut recv).await {
            Ok(ClientMessage::Release) => {
                if let Err(refused) = session.volume.release(&session.admitted).await {
                    debug!(why = refused.message, "the lease stays until it runs out");
                }
                let _ = write_message(&mut send, &ServerMessage::Released).await;
            }
            Ok(ClientMessage::Hello(_)) => {
                warn!(peer = %session.connection.remote_address(), "a second hello");
                return Close::Protocol.close(&session.connection);
            }
            Err(ControlError::Wire(fault)) => {
                warn!(peer = %session.connection.remote_address(), %fault,
                      "a client broke the protocol");
                return Close::Protocol.close(&session.connection);
            }
            Err(ControlError::Ended) => return,
        }
    }
}
