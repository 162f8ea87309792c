//! The server: an endpoint, the volumes behind it, and who may come in.

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Endpoint, Incoming, VarInt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tracing::{debug, info, warn};

use super::address;
use super::buffers::BufferPool;
use super::content::{Content, ServedContent};
use super::hello::{Gatekeeper, HELLO_TIMEOUT};
use super::lease::Record;
use super::message_stream::Arrivals;
use super::session;
use super::state_dir::{StateDir, VolumeLock};
use super::tls::{self, TlsFiles};
use super::transport::{self, Side};
use super::volume::{Lease, Presence, Volume};
use crate::wire::{HostPort, Ticket, VolumeName};
use crate::{AsyncBackend, Error, ErrorKind, Geometry, Result};

/// For how long a lease outlives a broken connection, unless told otherwise.
pub const LEASE_DEFAULT: Duration = Duration::from_secs(30);

/// How many connections may be before their hello.
const UNAUTHENTICATED_MAX: usize = 64;

/// From how many of these on a peer has to show first that its address is its own.
const UNVALIDATED_MAX: usize = 16;

/// How often rotated tickets are looked for.
const ROTATION_INTERVAL: Duration = Duration::from_secs(1);

/// How long the last packets may take when the server stops.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// How long it may take to make a volume durable when the server stops.
const REST_TIMEOUT: Duration = Duration::from_secs(60);

/// How a server is set up.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Where to listen; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// The address in the tickets, where it is not the one listened on.
    pub advertise: Option<HostPort>,
    /// Where key, secrets and leases are kept; see [`StateDir::open`] for the default.
    pub state_dir: Option<PathBuf>,
    /// Certificates of a CA instead of tickets with secrets.
    pub tls: Option<TlsFiles>,
    /// For how long a lease outlives a broken connection.
    pub lease: Duration,
}

impl ServerConfig {
    /// The usual, listening there.
    pub fn on(listen: SocketAddr) -> Self {
        Self {
            listen,
            advertise: None,
            state_dir: None,
            tls: None,
            lease: LEASE_DEFAULT,
        }
    }
}

/// A volume to be served.
pub struct ServedVolume {
    /// By which name.
    pub name: VolumeName,
    /// The resource.
    pub backend: Arc<dyn AsyncBackend>,
    /// The logical block of the devices that are made of it, in bytes; the backend's own unless
    /// given.
    pub block_bytes: Option<u32>,
    /// Refuse whoever wants to write.
    pub read_only: bool,
    /// How its content is told from another one: a client that finds another one gives up.
    pub content: Content,
    /// What changes when unflushed writes may have been lost.
    pub instance: [u8; 16],
    /// Where leechers arrive, if the volume is seeded.
    pub leechers: Option<Arrivals>,
}

/// A server that listens. [`Server::run`] serves.
pub struct Server {
    endpoint: Endpoint,
    configs: Configs,
    gatekeeper: Arc<Gatekeeper>,
    tickets: HashMap<VolumeName, Ticket>,
    reserved: HashMap<VolumeName, VolumeLock>,
    pool: Arc<BufferPool>,
    unauthenticated: Arc<Semaphore>,
    advertised: HostPort,
    lease: Duration,
}

/// What a connection is accepted with.
struct Configs {
    tls: Arc<QuicServerConfig>,
}

impl Configs {
    fn for_peer(&self, peer: SocketAddr) -> Arc<quinn::ServerConfig> {
        let mut config = quinn::ServerConfig::with_crypto(self.tls.clone());
        config
            .transport_config(transport::transport(peer, Side::Server))
            .max_incoming(UNAUTHENTICATED_MAX);
        Arc::new(config)
    }
}

impl Server {
    /// Listens, and makes what is missing of key and secrets. It serves from [`Server::run`] on.
    /// It has to be called on a Tokio runtime.
    ///
    /// # Errors
    /// `Busy` for a port in use and a volume that is served already, `InvalidInput` for
    /// certificates that cannot be used and for two volumes of one name, and whatever the
    /// operating system reports.
    pub fn bind(config: ServerConfig, volumes: Vec<ServedVolume>) -> Result<Self> {
        let state = StateDir::open(config.state_dir.as_deref())?;
        let certificates = config.tls.is_some();
        let configs = Configs {
            tls: match &config.tls {
                Some(files) => tls::server_with_files(files)?,
                None => tls::server_with_identity(state.identity()?)?,
            },
        };
        let initial = Arc::unwrap_or_clone(configs.for_peer(config.listen));
        let endpoint = transport::endpoint(config.listen, Some(initial), &state.reset_key()?)?;
        let listening = endpoint
            .local_addr()
            .map_err(|error| Error::io("cannot tell the address that is listened on", error))?;
        let advertised = match config.advertise {
            Some(advertised) => advertised,
            None => address::advertised(listening)?,
        };
        let gatekeeper = Gatekeeper {
            volumes: HashMap::new(),
            state,
            certificates,
            failures: Mutex::default(),
        };
        let mut server = Self {
            endpoint,
            configs,
            gatekeeper: Arc::new(gatekeeper),
            tickets: HashMap::new(),
            reserved: HashMap::new(),
            pool: Arc::default(),
            unauthenticated: Arc::new(Semaphore::new(UNAUTHENTICATED_MAX)),
            advertised,
            lease: config.lease,
        };
        for volume in volumes {
            server.add(volume)?;
        }
        Ok(server)
    }

    /// Keeps a name for a volume that is still to come: no other server has one of that name out of the same
    /// directory.
    ///
    /// # Errors
    /// `Busy` where another one has, and what makes its secret or its lease unreadable.
    pub fn reserve(&mut self, name: &VolumeName) -> Result<()> {
        let state = &self.gatekeeper.state;
        let lock = state.lock(name)?;
        state.lease(name)?;
        state.secret(name)?;
        self.reserved.insert(name.clone(), lock);
        Ok(())
    }

    /// Adds a volume, before it serves. Gives its ticket.
    ///
    /// # Errors
    /// As [`Server::bind`].
    pub fn add(&mut self, volume: ServedVolume) -> Result<Ticket> {
        let name = volume.name.clone();
        // Nobody else has it before it serves.
        let Some(gatekeeper) = Arc::get_mut(&mut self.gatekeeper) else {
            return Err(Error::new(ErrorKind::Busy, "the server serves already"));
        };
        if gatekeeper.volumes.contains_key(&name) {
            return Err(two_of_one_name(&name));
        }
        let state = &gatekeeper.state;
        let lock = match self.reserved.remove(&name) {
            Some(lock) => lock,
            None => state.lock(&name)?,
        };
        let opened = Arc::new(open(volume, lock, state, self.lease)?);
        let ticket = state.announce(&name, &self.advertised, gatekeeper.certificates)?;
        gatekeeper.volumes.insert(name.clone(), opened);
        self.tickets.insert(name, ticket.clone());
        Ok(ticket)
    }

    /// The volume's ticket.
    pub fn ticket(&self, volume: &VolumeName) -> Option<&Ticket> {
        self.tickets.get(volume)
    }

    /// Where it listens.
    ///
    /// # Errors
    /// Whatever the operating system reports.
    pub fn local_addr(&self) -> Result<SocketAddr> {
        self.endpoint
            .local_addr()
            .map_err(|error| Error::io("cannot tell the address that is listened on", error))
    }

    /// Serves until `shutdown` is ready. Then it takes no new request, lets those in flight end
    /// (for 10 s at most), and tells the clients to come back later.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let (stop, stopping) = watch::channel(false);
        let mut clients = JoinSet::new();
        let mut rotation = tokio::time::interval(ROTATION_INTERVAL);
        rotation.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                incoming = self.endpoint.accept() => {
                    let Some(incoming) = incoming else { break };
                    if let Some((incoming, permit)) = self.screen(incoming) {
                        clients.spawn(self.greet(incoming, permit, stopping.clone()));
                    }
                }
                Some(_) = clients.join_next() => {}
                _ = rotation.tick() => self.look_for_rotated_tickets().await,
                () = &mut shutdown => break,
            }
        }
        info!("stopping: no new requests");
        self.endpoint.set_server_config(None);
        let _ = stop.send(true);
        while clients.join_next().await.is_some() {}
        self.endpoint.close(VarInt::from_u32(0), &[]);
        let _ = tokio::time::timeout(FAREWELL_TIMEOUT, self.endpoint.wait_idle()).await;
        for volume in self.gatekeeper.volumes.values() {
            if tokio::time::timeout(REST_TIMEOUT, volume.rest())
                .await
                .is_err()
            {
                warn!(volume = %volume.name, "it could not be made durable in time");
            }
        }
    }

    /// Turns away what is too much before the handshake costs anything.
    fn screen(&self, incoming: Incoming) -> Option<(Incoming, OwnedSemaphorePermit)> {
        let waiting = UNAUTHENTICATED_MAX - self.unauthenticated.available_permits();
        if waiting >= UNVALIDATED_MAX && incoming.may_retry() {
            if let Err(error) = incoming.retry() {
                debug!(%error, "cannot ask for a validated address");
            }
            return None;
        }
        match Arc::clone(&self.unauthenticated).try_acquire_owned() {
            Ok(permit) => Some((incoming, permit)),
            Err(_) => {
                incoming.refuse();
                None
            }
        }
    }

    /// Handshake, hello, and then the session.
    fn greet(
        &self,
        incoming: Incoming,
        permit: OwnedSemaphorePermit,
        mut stopping: watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let peer = incoming.remote_address();
        let config = self.configs.for_peer(peer);
        let gatekeeper = Arc::clone(&self.gatekeeper);
        let pool = Arc::clone(&self.pool);
        async move {
            let known = async {
                let connecting = incoming.accept_with(config).ok()?;
                let connection = tokio::time::timeout(HELLO_TIMEOUT, connecting).await;
                let connection = connection
                    .ok()?
                    .inspect_err(|error| debug!(%peer, %error, "no handshake"))
                    .ok()?;
                let known = gatekeeper.hear(&connection).await?;
                Some((known, connection))
            };
            let mut about_to_stop = stopping.clone();
            let known = tokio::select! {
                known = known => known,
                _ = about_to_stop.wait_for(|stopping| *stopping) => None,
            };
            drop(permit);
            stopping.mark_unchanged();
            if let Some((known, connection)) = known {
                session::run(known, connection, pool, stopping).await;
            }
        }
    }

    async fn look_for_rotated_tickets(&self) {
        if self.gatekeeper.certificates {
            return;
        }
        for volume in self.gatekeeper.volumes.values() {
            self.gatekeeper.secret_of(volume).await;
        }
    }
}

fn open(
    volume: ServedVolume,
    lock: VolumeLock,
    state: &StateDir,
    lease_time: Duration,
) -> Result<Volume> {
    let capabilities = volume.backend.capabilities();
    let len_bytes = volume.backend.size();
    let own_block_bytes = capabilities.logical_block_bytes;
    let geometry = Geometry::with_blocks(len_bytes, own_block_bytes, volume.block_bytes)?;
    let mut record = state.lease(&volume.name)?;
    let content = volume.content;
    let found = ServedContent::find(content, volume.instance, len_bytes, state, &volume.name)?;
    if found.replaced {
        info!(volume = %volume.name, "another content than before: nobody holds it");
        record = Record {
            epoch: record.epoch.saturating_add(1),
            ..Record::default()
        };
        state.keep_lease(&volume.name, &record)?;
    }
    Ok(Volume {
        geometry,
        read_only: volume.read_only || capabilities.read_only,
        instance: volume.instance,
        content: found.keep()?,
        lease_time,
        lease: tokio::sync::Mutex::new(Lease {
            record,
            // A holder from before a restart has one lease time to come back.
            presence: Presence::Away(Instant::now()),
        }),
        secret: Mutex::new(state.secret(&volume.name)?),
        clients: Mutex::default(),
        state: state.clone(),
        backend: volume.backend,
        leechers: volume.leechers,
        name: volume.name,
        _lock: lock,
    })
}

fn two_of_one_name(name: &VolumeName) -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        format!("two volumes are named `{name}`; write NAME=URL to name them apart"),
    )
}
