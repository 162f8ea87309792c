//! A server behind a link, and mounts of its volume.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use blockferry::backend::{OpenOptions, Resource};
use blockferry::mount::direct::{self, DirectMount};
use blockferry::mount::managed::origin::{self, StoreOptions};
use blockferry::mount::managed::{ManagedMount, ManagedOptions, in_flight_slots};
use blockferry::net::{
    Content, LEASE_DEFAULT, Remote, RemoteOptions, ServedVolume, Server, ServerConfig, bare_stream,
};
use blockferry::volume::{BackendFuture, Extent, Priority};
use blockferry::wire::{HostPort, Ticket, VolumeName};
use blockferry::{AsyncBackend, Capabilities};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::Result;
use super::load::{DEPTH, Queue};
use super::relay::{Link, Relay};

/// Everything that the measurements share.
pub(crate) struct World {
    pub(crate) len_bytes: u64,
    pub(crate) link: Link,
    client: Runtime,
    _server: Runtime,
    ticket: Ticket,
    bare: bare_stream::Source,
    relay: Relay,
    bare_relay: Relay,
    directory: tempfile::TempDir,
    stores: AtomicU64,
}

/// A mount, and a device in miniature on it.
pub(crate) struct Mounted<'a> {
    pub(crate) queue: Queue,
    pub(crate) mount: Mount,
    world: &'a World,
    remote: Arc<Remote>,
    store: Option<PathBuf>,
}

pub(crate) enum Mount {
    Managed(ManagedMount),
    Direct(DirectMount),
}

impl World {
    pub(crate) fn new(address: IpAddr, len: usize, link: Link) -> Result<Self> {
        let (server, client) = (runtime()?, runtime()?);
        let directory = tempfile::Builder::new()
            .prefix("managed_link.")
            .tempdir_in("/dev/shm")?;
        let bytes = Arc::new(noise(len));
        let name: VolumeName = "noise".parse()?;
        let guard = server.enter();
        let serving = Server::bind(
            ServerConfig {
                listen: (address, 0).into(),
                advertise: None,
                state_dir: Some(directory.path().join("server")),
                tls: None,
                lease: LEASE_DEFAULT,
            },
            vec![ServedVolume {
                name: name.clone(),
                backend: Arc::new(Noise(Arc::clone(&bytes))),
                block_bytes: None,
                read_only: false,
                content: Content::Instance,
                instance: [0; 16],
                leechers: None,
            }],
        )?;
        let bare = bare_stream::Source::listen(address, Bytes::from_owner(Shared(bytes)))?;
        drop(guard);
        let mut ticket = serving.ticket(&name).cloned().ok_or("no ticket")?;
        server.spawn(serving.run(std::future::pending()));
        let to = (address, ticket.address.port).into();
        let relay = Relay::start((address, 0).into(), to, link)?;
        let bare_relay = Relay::start((address, 0).into(), bare.address()?, link)?;
        ticket.address = HostPort {
            host: relay.address().ip().to_string(),
            port: relay.address().port(),
        };
        Ok(Self {
            len_bytes: len as u64,
            link,
            client,
            _server: server,
            ticket,
            bare,
            relay,
            bare_relay,
            directory,
            stores: AtomicU64::new(0),
        })
    }

    /// A managed mount with a store of its own that is new.
    pub(crate) fn managed(&self, options: ManagedOptions) -> Result<Mounted<'_>> {
        let number = self.stores.fetch_add(1, Ordering::Relaxed);
        let path = self.directory.path().join(format!("store-{number}"));
        let store = StoreOptions {
            path: path.clone(),
            run_directory: self.directory.path().join("run"),
            persistent: true,
            chunk_bytes: options.chunk_bytes,
            in_flight_slots: in_flight_slots(DEPTH.into()),
            size_bytes_max: u64::MAX,
            discard_dirty: false,
            accept_loss: false,
        };
        let opening = origin::open(self.ticket.clone(), remote_options(), &store);
        let (remote, cache) = self.client.block_on(opening)?;
        let resource = resource(&remote)?;
        let _guard = self.client.enter();
        let mount = ManagedMount::start(&resource, cache, options, DEPTH.into())?;
        Ok(Mounted {
            queue: Queue::new(mount.volume())?,
            mount: Mount::Managed(mount),
            world: self,
            remote,
            store: Some(path),
        })
    }

    /// A direct mount.
    pub(crate) fn direct(&self) -> Result<Mounted<'_>> {
        let opening = Remote::connect(self.ticket.clone(), remote_options());
        let remote = self.client.block_on(opening)?;
        let resource = resource(&remote)?;
        let _guard = self.client.enter();
        let mount = direct::mount(&resource, DEPTH.into(), None);
        Ok(Mounted {
            queue: Queue::new(&mount.volume)?,
            mount: Mount::Direct(mount),
            world: self,
            remote,
            store: None,
        })
    }

    /// Bytes a second of a bare stream on a connection that is new, in the `time` after it was asked
    /// for.
    pub(crate) fn bare_rate(&self, time: Duration) -> Result<f64> {
        self.client.block_on(async {
            let stream = self.bare.connect_to(self.bare_relay.address()).await?;
            let begun = Instant::now();
            let bytes = stream.fetch_for(self.len_bytes as usize, time).await?;
            Ok(bytes as f64 / begun.elapsed().as_secs_f64())
        })
    }

    /// How true the link was.
    pub(crate) fn link_report(&self) -> Value {
        let count = |which: fn(&Relay) -> &AtomicU64| {
            which(&self.relay).load(Ordering::Relaxed)
                + which(&self.bare_relay).load(Ordering::Relaxed)
        };
        json!({
            "delivered": count(|relay| &relay.counters().delivered),
            "late": count(|relay| &relay.counters().late),
            "lost": count(|relay| &relay.counters().lost),
            "dropped": count(|relay| &relay.counters().dropped),
        })
    }
}

impl Mounted<'_> {
    /// The managed mount.
    pub(crate) fn managed(&self) -> Result<&ManagedMount> {
        match &self.mount {
            Mount::Managed(mount) => Ok(mount),
            Mount::Direct(_) => Err("a direct mount".into()),
        }
    }

    /// Ends it, without a push of what is dirty, and removes its store.
    pub(crate) fn end(self) -> Result<()> {
        let runtime = &self.world.client;
        match self.mount {
            Mount::Managed(mount) => runtime.block_on(mount.finish())?,
            Mount::Direct(mount) => {
                let _guard = runtime.enter();
                drop(mount);
            }
        }
        runtime.block_on(self.remote.close())?;
        if let Some(store) = self.store {
            std::fs::remove_dir_all(store)?;
        }
        Ok(())
    }
}

fn resource(remote: &Arc<Remote>) -> Result<Resource> {
    let options = OpenOptions::default();
    Ok(Resource::remote("noise", Arc::clone(remote) as _, options)?)
}

/// The mount before may have ended with writes that nobody wants any more.
fn remote_options() -> RemoteOptions {
    RemoteOptions {
        takeover: true,
        ..RemoteOptions::default()
    }
}

fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
}

/// Bytes without a run of zeros in them.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_ne_bytes());
    }
    bytes
}

/// The bytes as the bare stream takes them.
struct Shared(Arc<Vec<u8>>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A volume in memory. It forgets what is written: nobody reads that here.
struct Noise(Arc<Vec<u8>>);

fn done<'a>() -> BackendFuture<'a, ()> {
    Box::pin(async { Ok(()) })
}

impl AsyncBackend for Noise {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    fn read_at<'a>(
        &'a self,
        buf: &'a mut [u8],
        offset: u64,
        _priority: Priority,
    ) -> BackendFuture<'a, usize> {
        Box::pin(async move {
            let at = offset as usize;
            buf.copy_from_slice(&self.0[at..at + buf.len()]);
            Ok(buf.len())
        })
    }

    fn write_at<'a>(
        &'a self,
        _buf: &'a [u8],
        _offset: u64,
        _fua: bool,
        _priority: Priority,
    ) -> BackendFuture<'a, ()> {
        done()
    }

    fn flush(&self) -> BackendFuture<'_, ()> {
        done()
    }

    fn discard(&self, _offset: u64, _len: u64) -> BackendFuture<'_, ()> {
        done()
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool, _: bool) -> BackendFuture<'_, ()> {
        done()
    }

    fn allocated(&self, range: std::ops::Range<u64>) -> BackendFuture<'_, Vec<Extent>> {
        Box::pin(async { Ok(vec![Extent { range, data: true }]) })
    }
}
