//! A volume of a server as a backend: requests, over as many sessions as it takes.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::{Mutex as AsyncMutex, watch};
use tracing::{error, warn};

use super::client_record::ClientRecord;
use super::close::Close;
use super::compression::Plan;
use super::control_stream::{read_message, write_message};
use super::dial::Dialer;
use super::exchange::{Exchange, Fault, Room};
use super::ledger::Ledger;
use super::message_stream::{self, MessageReceiver, MessageSender};
use super::reconnect;
use super::tls::TlsFiles;
use crate::volume::{BackendFuture, Errno, Extent, Priority};
use crate::wire::Ticket;
use crate::wire::codec::Compression;
use crate::wire::control::{
    ClientMessage, FEATURE_MIGRATION, ManagedStore, ServerMessage, Welcome,
};
use crate::wire::data::{Operation, RequestHeader};
use crate::wire::limits::{DATA_BYTES_MAX, SESSION_STREAMS_MAX};
use crate::{AsyncBackend, Capabilities, Context, Error, ErrorKind, Geometry, Result};

/// How long the server may take to give the lease back.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the last packets may take.
const FAREWELL_TIMEOUT: Duration = Duration::from_millis(500);

/// How a remote volume is opened.
#[derive(Debug, Clone)]
pub struct RemoteOptions {
    /// Only read it; no lease is taken.
    pub read_only: bool,
    /// Fence another writer.
    pub takeover: bool,
    /// For a managed mount: its local store. The lease then has no end in time: it lasts until it
    /// is given back, or taken over. [`ManagedStore::opening`] has to be another one with every call
    /// of [`Remote::connect`], and to be durable before it.
    pub managed: Option<ManagedStore>,
    /// The epoch under which this mount held the lease before. If it is another one by now,
    /// connecting fails with [`ErrorKind::Fenced`](crate::ErrorKind::Fenced).
    pub known_epoch: Option<u64>,
    /// The identity of the content that the mount knows. If it is another one by now, connecting
    /// fails with [`ErrorKind::Replaced`](crate::ErrorKind::Replaced), and no lease is taken.
    pub known_identity: Option<[u8; 16]>,
    /// How bytes are compressed on their way, both ways, if the server can do it.
    pub compression: Compression,
    /// How long the first connection may take.
    pub connect_timeout: Duration,
    /// By what name to be known to others; this host's if `None`.
    pub client_name: Option<String>,
    /// Certificates of a CA, for a target without a secret.
    pub tls: Option<TlsFiles>,
    /// The other end is a seeder: errors speak of that.
    pub leeches: bool,
    /// A file, in a directory that exists, to keep what it takes to go on after this process has
    /// died. What is there already is gone on with: as the same client, under the same lease.
    pub client_file: Option<PathBuf>,
}

impl Default for RemoteOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            takeover: false,
            managed: None,
            known_epoch: None,
            known_identity: None,
            compression: Compression::Off,
            connect_timeout: Duration::from_secs(10),
            client_name: None,
            tls: None,
            leeches: false,
            client_file: None,
        }
    }
}

/// A volume on another host.
///
/// When the connection breaks, requests wait and are sent again once it is back, for ever: a
/// deadline is the caller's, who drops the future. When the volume cannot come back (another
/// writer took it over, its memory is gone, its secret was changed), every request fails.
pub struct Remote {
    shared: Arc<Shared>,
    supervisor: tokio::task::AbortHandle,
}

/// What the requests and the one who keeps the session up have in common.
pub(super) struct Shared {
    pub(super) dialer: Dialer,
    pub(super) options: RemoteOptions,
    pub(super) client: Mutex<ClientRecord>,
    pub(super) client_name: String,
    pub(super) next_session: AtomicU64,
    pub(super) link: watch::Sender<Link>,
    pub(super) ledger: Mutex<Ledger>,
    /// What the first welcome said; it holds for as long as the volume is used.
    pub(super) first: Welcome,
    pub(super) geometry: Geometry,
}

/// The way to the server at this moment.
#[derive(Clone)]
pub(super) enum Link {
    /// Open.
    Up(Arc<Session>),
    /// Broken since then, to be mended.
    Away(SystemTime),
    /// It will not be mended, and why.
    Dead(Arc<str>),
    /// We are done with it.
    Closed,
}

/// A session that is or was up.
pub(super) struct Session {
    pub(super) number: u64,
    pub(super) connection: Connection,
    pub(super) instance: [u8; 16],
    pub(super) control: AsyncMutex<(SendStream, RecvStream)>,
    /// How bodies are compressed.
    pub(super) compression: Compression,
    pub(super) room: Room,
}

impl Remote {
    /// Opens the volume that the ticket names. It has to be called on a Tokio runtime, which then
    /// keeps the connection up.
    ///
    /// # Errors
    /// `Unreachable` after the timeout, where the server has not heard of us, and `TimedOut` where it
    /// may have; `Unauthenticated` for a server with another certificate
    /// and for a secret that is refused; `NotFound` for an unknown volume; `Protocol` for a peer
    /// of another version; `ReadOnly` for one that cannot be written; `Busy` while another writer
    /// holds the lease; `Fenced` and `Replaced` where what the options know is not so any more, or
    /// another writer has held the lease since the process that we go on for.
    pub async fn connect(target: Ticket, options: RemoteOptions) -> Result<Arc<Self>> {
        let shared = Arc::new(reconnect::first(target, options).await?);
        let supervisor = tokio::spawn(reconnect::keep_up(Arc::clone(&shared))).abort_handle();
        Ok(Arc::new(Self { shared, supervisor }))
    }

    /// Size and blocks.
    pub fn geometry(&self) -> Geometry {
        self.shared.geometry
    }

    /// Whether it cannot be written, by nobody or by us.
    pub fn is_read_only(&self) -> bool {
        self.shared.first.read_only || self.shared.options.read_only
    }

    /// The instance of the server at the first connection.
    pub fn instance(&self) -> [u8; 16] {
        self.shared.first.instance
    }

    /// The epoch of our lease; 0 for a reader.
    pub fn epoch(&self) -> u64 {
        self.shared.first.epoch
    }

    /// What stays the same as long as the volume has the same content, but for what is written to
    /// it by this protocol: over restarts of the server too.
    pub fn identity(&self) -> [u8; 16] {
        self.shared.first.identity
    }

    /// The generation of the content when this volume was opened; `None` if somebody was writing
    /// then. If identity and generation are what they were at another opening, nobody has written
    /// since that one, and what a reader kept of it is true.
    pub fn generation(&self) -> Option<u64> {
        self.shared.first.generation
    }

    /// Opens a stream for the messages of a migration, as soon as there is a session.
    ///
    /// # Errors
    /// `Unsupported` where the volume is served but not seeded, `Unreachable` when the session ended
    /// meanwhile, and what made the volume unreachable for ever.
    pub async fn open_messages(&self) -> Result<(MessageSender, MessageReceiver)> {
        let target = self.shared.dialer.target();
        let unsupported = || {
            Error::new(
                ErrorKind::Unsupported,
                format!("{target} cannot be leeched: it is served, not seeded"),
            )
        };
        if !self.has(FEATURE_MIGRATION) {
            return Err(unsupported());
        }
        let session = self
            .session()
            .await
            .context_io(|| format!("{target} is lost"))?;
        let request = request(Operation::Migrate, 0, 0, Priority::Demand);
        let opened = async {
            let mut exchange = Exchange::open(&session, request).await?;
            exchange.begin().await?;
            exchange.into_streams().await
        };
        match opened.await {
            Ok((send, recv)) => {
                let size = self.shared.geometry.resource_bytes();
                Ok(message_stream::of_stream(send, recv, size))
            }
            Err(Fault::Failed(_)) => Err(unsupported()),
            Err(Fault::Broken) => Err(Error::new(ErrorKind::Unreachable, "the session ended")),
            Err(Fault::Nonsense(fault)) => {
                let context = format!("{target} broke the protocol");
                Err(Error::new(ErrorKind::Protocol, context).because(fault))
            }
        }
    }

    /// Whether both ends have the feature.
    pub(super) fn has(&self, feature: u64) -> bool {
        self.shared.first.features & feature != 0
    }

    /// The way to the server at this moment.
    pub(super) fn link(&self) -> watch::Ref<'_, Link> {
        self.shared.link.borrow()
    }

    /// The session that is up, as soon as there is one.
    pub(super) async fn session(&self) -> io::Result<Arc<Session>> {
        if let Link::Up(session) = &*self.shared.link.borrow() {
            return Ok(Arc::clone(session));
        }
        let mut link = self.shared.link.subscribe();
        let settled = link
            .wait_for(|link| !matches!(link, Link::Away(_)))
            .await
            .map_err(io::Error::other)?;
        match &*settled {
            Link::Up(session) => Ok(Arc::clone(session)),
            Link::Dead(why) => Err(io::Error::other(why.to_string())),
            Link::Closed => Err(io::Error::other("the volume was closed")),
            Link::Away(_) => Err(Errno::EIO.into()),
        }
    }

    /// What to answer after a try on `session`, or nothing if another try is due.
    pub(super) fn settle<T>(
        &self,
        session: &Session,
        tried: Result<T, Fault>,
    ) -> Option<io::Result<T>> {
        match tried {
            Ok(answer) => Some(Ok(answer)),
            Err(Fault::Failed(error)) => Some(Err(error)),
            Err(Fault::Broken) => {
                self.shared.retire(session);
                None
            }
            Err(Fault::Nonsense(fault)) => {
                warn!(volume = %self.shared.dialer.target(), %fault, "the server broke the protocol");
                self.shared.retire(session);
                Some(Err(Errno::EIO.into()))
            }
        }
    }

    /// Reads by a request and the list that goes with it, which is empty for most.
    pub(super) async fn read(
        &self,
        buf: &mut [u8],
        request: RequestHeader,
        list: &[u8],
    ) -> io::Result<usize> {
        loop {
            let session = self.session().await?;
            let tried = async {
                let mut exchange = Exchange::open(&session, request).await?;
                exchange.ask_for(list).await?;
                exchange.read_into(buf).await
            };
            if let Some(answer) = self.settle(&session, tried.await) {
                return answer;
            }
        }
    }

    async fn change(&self, request: RequestHeader, body: &[u8]) -> io::Result<()> {
        loop {
            let session = self.session().await?;
            let tried = async {
                let mut exchange = Exchange::open(&session, request).await?;
                let unanswered = Unanswered::new(&self.shared, &session);
                let plan = Plan::of(session.compression, &session.connection);
                exchange.ask_with(body, plan).await?;
                let answer = exchange.finished().await;
                unanswered.settle(&answer);
                answer
            };
            let tried = tried.await;
            if tried.is_ok() && !is_durable(request.operation) {
                self.shared.ledger().acknowledged(session.instance);
            }
            if let Some(answer) = self.settle(&session, tried) {
                return answer;
            }
        }
    }

    async fn flush_all(&self) -> io::Result<()> {
        let request = request(Operation::Flush, 0, 0, Priority::Demand);
        loop {
            let session = self.session().await?;
            let begun = self.shared.ledger().begin_flush();
            let Ok(covered) = begun else {
                error!(volume = %self.shared.dialer.target(),
                       "a flush fails: writes were lost when the server started anew");
                self.shared.settle_with(session.instance).await;
                return Err(Errno::EIO.into());
            };
            let tried = async {
                let mut exchange = Exchange::open(&session, request).await?;
                exchange.ask().await?;
                exchange.finished().await
            };
            let tried = tried.await;
            if tried.is_ok() {
                self.shared.ledger().flushed(session.instance, covered);
            }
            if let Some(answer) = self.settle(&session, tried) {
                return answer;
            }
        }
    }

    async fn map(&self, range: Range<u64>) -> io::Result<Vec<Extent>> {
        let mut extents: Vec<Extent> = Vec::new();
        let mut start = range.start;
        while start < range.end {
            let rest = start..range.end;
            let request = request(
                Operation::Map,
                start,
                rest.end - rest.start,
                Priority::Demand,
            );
            let session = self.session().await?;
            let tried = async {
                let mut exchange = Exchange::open(&session, request).await?;
                exchange.ask().await?;
                exchange.extents(&rest).await
            };
            let Some(answer) = self.settle(&session, tried.await) else {
                continue;
            };
            for extent in answer? {
                start = extent.range.end;
                match extents.last_mut() {
                    Some(last) if last.data == extent.data => last.range.end = extent.range.end,
                    _ => extents.push(extent),
                }
            }
        }
        Ok(extents)
    }

    /// Ends the use of the volume; with `release` the lease is given back first.
    async fn end(&self, release: bool) -> io::Result<()> {
        // It would take the end for a loss.
        self.supervisor.abort();
        let link = self.shared.link.borrow().clone();
        let mut released = Ok(());
        if let Link::Up(session) = link {
            if release {
                released = give_back(&session).await;
            }
            Close::Done.close(&session.connection);
        }
        self.shared.link.send_if_modified(|link| {
            let is_lost = matches!(link, Link::Dead(_));
            if !is_lost {
                *link = Link::Closed;
            }
            !is_lost
        });
        self.shared.dialer.farewell(FAREWELL_TIMEOUT).await;
        released
    }
}

async fn give_back(session: &Session) -> io::Result<()> {
    let mut control = session.control.lock().await;
    let (send, recv) = &mut *control;
    let talk = async {
        write_message(send, &ClientMessage::Release).await?;
        read_message::<ServerMessage>(recv).await
    };
    match tokio::time::timeout(RELEASE_TIMEOUT, talk).await {
        Ok(Ok(ServerMessage::Released)) => Ok(()),
        _ => Err(io::Error::other("the server did not take the lease back")),
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.supervisor.abort();
        if let Link::Up(session) = &*self.shared.link.borrow() {
            Close::Done.close(&session.connection);
        }
    }
}

impl Shared {
    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn client(&self) -> MutexGuard<'_, ClientRecord> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps that `instance` has all writes that matter from now on.
    pub(super) async fn settle_with(self: &Arc<Self>, instance: [u8; 16]) {
        let shared = Arc::clone(self);
        let keep = move || shared.client().settled_with(instance);
        // It ends early only with the runtime.
        let _ = tokio::task::spawn_blocking(keep).await;
    }

    pub(super) fn next_session(&self) -> u64 {
        self.next_session.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Ends the session, if that is still to be done: from now on requests wait for the next one.
    pub(super) fn retire(&self, session: &Session) {
        self.link.send_if_modified(|link| match link {
            Link::Up(up) if up.number == session.number => {
                *link = Link::Away(SystemTime::now());
                true
            }
            _ => false,
        });
        Close::Retired.close(&session.connection);
    }

    /// From now on every request fails.
    pub(super) fn die(&self, why: &str) {
        self.link.send_replace(Link::Dead(why.into()));
    }
}

/// A change that was sent and not answered. When it is dropped as such, its session ends at once,
/// so that the server forgets or finishes it before it sees anything that overlaps.
struct Unanswered<'a> {
    shared: &'a Shared,
    session: &'a Session,
    answered: bool,
}

impl<'a> Unanswered<'a> {
    fn new(shared: &'a Shared, session: &'a Session) -> Self {
        Self {
            shared,
            session,
            answered: false,
        }
    }

    fn settle(mut self, answer: &Result<(), Fault>) {
        self.answered = matches!(answer, Ok(()) | Err(Fault::Failed(_)));
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.shared.retire(self.session);
        }
    }
}

pub(super) fn request(
    operation: Operation,
    offset: u64,
    len: u64,
    priority: Priority,
) -> RequestHeader {
    RequestHeader {
        operation,
        priority,
        offset,
        len,
        reply: Compression::Off,
    }
}

fn is_durable(operation: Operation) -> bool {
    matches!(
        operation,
        Operation::Write { fua: true } | Operation::WriteZeroes { fua: true, .. }
    )
}

impl AsyncBackend for Remote {
    fn size(&self) -> u64 {
        self.shared.geometry.resource_bytes()
    }

    fn capabilities(&self) -> Capabilities {
        let first = &self.shared.first;
        Capabilities {
            read_only: self.is_read_only(),
            logical_block_bytes: first.logical_block_bytes,
            preferred_bytes: first.offers.preferred_bytes,
            max_concurrency: first.offers.max_concurrency.min(SESSION_STREAMS_MAX),
            flush_is_durable: first.offers.flush_is_durable,
            sparse_map: first.offers.sparse_map,
            discard: first.offers.discard,
        }
    }

    fn read_at<'a>(
        &'a self,
        buf: &'a mut [u8],
        offset: u64,
        priority: Priority,
    ) -> BackendFuture<'a, usize> {
        Box::pin(async move {
            let mut done = 0;
            while done < buf.len() {
                let len = (buf.len() - done).min(DATA_BYTES_MAX as usize);
                let at = offset + done as u64;
                let request = request(Operation::Read, at, len as u64, priority);
                let filled = self.read(&mut buf[done..done + len], request, &[]).await?;
                done += filled;
                if filled < len {
                    break;
                }
            }
            Ok(done)
        })
    }

    fn write_at<'a>(
        &'a self,
        buf: &'a [u8],
        offset: u64,
        fua: bool,
        priority: Priority,
    ) -> BackendFuture<'a, ()> {
        Box::pin(async move {
            let mut at = offset;
            for part in buf.chunks(DATA_BYTES_MAX as usize) {
                let len = part.len() as u64;
                let request = request(Operation::Write { fua }, at, len, priority);
                self.change(request, part).await?;
                at += len;
            }
            Ok(())
        })
    }

    fn flush(&self) -> BackendFuture<'_, ()> {
        Box::pin(self.flush_all())
    }

    fn discard(&self, offset: u64, len: u64) -> BackendFuture<'_, ()> {
        let request = request(Operation::Discard, offset, len, Priority::Demand);
        Box::pin(self.change_unless_empty(request))
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        no_unmap: bool,
        fua: bool,
    ) -> BackendFuture<'_, ()> {
        let operation = Operation::WriteZeroes { fua, no_unmap };
        Box::pin(self.change_unless_empty(request(operation, offset, len, Priority::Demand)))
    }

    fn allocated(&self, range: Range<u64>) -> BackendFuture<'_, Vec<Extent>> {
        Box::pin(self.map(range))
    }

    fn close(&self) -> BackendFuture<'_, ()> {
        Box::pin(self.end(true))
    }

    fn close_keeping_lease(&self) -> BackendFuture<'_, ()> {
        Box::pin(self.end(false))
    }

    fn identity(&self) -> Option<[u8; 16]> {
        Some(Remote::identity(self))
    }

    fn path_rtt(&self) -> Option<Duration> {
        match &*self.shared.link.borrow() {
            Link::Up(session) => Some(session.connection.min_rtt()),
            Link::Away(_) | Link::Dead(_) | Link::Closed => None,
        }
    }

    fn away_since(&self) -> Option<SystemTime> {
        match &*self.shared.link.borrow() {
            Link::Away(since) => Some(*since),
            Link::Up(_) | Link::Dead(_) | Link::Closed => None,
        }
    }

    fn lost_because(&self) -> Option<String> {
        match &*self.shared.link.borrow() {
            Link::Dead(why) => Some(why.to_string()),
            Link::Up(_) | Link::Away(_) | Link::Closed => None,
        }
    }
}

impl Remote {
    async fn change_unless_empty(&self, request: RequestHeader) -> io::Result<()> {
        if request.len == 0 {
            return Ok(());
        }
        self.change(request, &[]).await
    }
}
