//! What the tests of the network share: a backend to play with, and servers on loopback.

#![allow(dead_code, clippy::unwrap_used, unreachable_pub, missing_docs)]

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use blockferry::net::{Content, Remote, RemoteOptions, ServedVolume, Server, ServerConfig};
use blockferry::volume::{BackendFuture, Extent, Priority};
use blockferry::wire::{Ticket, VolumeName};
use blockferry::{AsyncBackend, Capabilities, ErrorKind};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// What a test waits for happens within this time, or never.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes in memory, with handles to hold writes up and to make requests fail.
pub struct Memory {
    pub bytes: Mutex<Vec<u8>>,
    pub flushes: AtomicU64,
    pub writes: AtomicU64,
    pub broken: AtomicBool,
    /// Writes that begin while this is true wait until it is false.
    pub hold: watch::Sender<bool>,
    /// How many writes wait.
    pub held: watch::Sender<usize>,
}

impl Memory {
    pub fn new(len: usize) -> Arc<Self> {
        Arc::new(Self {
            bytes: Mutex::new(vec![0; len]),
            flushes: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            hold: watch::Sender::new(false),
            held: watch::Sender::new(0),
        })
    }

    fn fault(&self) -> io::Result<()> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        Ok(())
    }

    async fn put(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.fault()?;
        let mut hold = self.hold.subscribe();
        if *hold.borrow() {
            self.held.send_modify(|held| *held += 1);
            hold.wait_for(|hold| !hold).await.unwrap();
            self.held.send_modify(|held| *held -= 1);
        }
        self.writes.fetch_add(1, Ordering::SeqCst);
        let at = offset as usize;
        self.bytes.lock().unwrap()[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    /// Returns when so many writes are held up.
    pub async fn wait_until_held(&self, count: usize) {
        let mut held = self.held.subscribe();
        let waited = held.wait_for(|held| *held == count);
        tokio::time::timeout(PATIENCE, waited)
            .await
            .unwrap()
            .unwrap();
    }
}

impl AsyncBackend for Memory {
    fn size(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            sparse_map: true,
            discard: true,
            ..Capabilities::default()
        }
    }

    fn read_at<'a>(
        &'a self,
        buf: &'a mut [u8],
        offset: u64,
        _priority: Priority,
    ) -> BackendFuture<'a, usize> {
        Box::pin(async move {
            self.fault()?;
            let at = offset as usize;
            buf.copy_from_slice(&self.bytes.lock().unwrap()[at..at + buf.len()]);
            Ok(buf.len())
        })
    }

    fn write_at<'a>(
        &'a self,
        buf: &'a [u8],
        offset: u64,
        _fua: bool,
        _priority: Priority,
    ) -> BackendFuture<'a, ()> {
        Box::pin(self.put(offset, buf))
    }

    fn flush(&self) -> BackendFuture<'_, ()> {
        Box::pin(async {
            self.flushes.fetch_add(1, Ordering::SeqCst);
            self.fault()
        })
    }

    fn discard(&self, offset: u64, len: u64) -> BackendFuture<'_, ()> {
        Box::pin(async move { self.put(offset, &vec![0; len as usize]).await })
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        _no_unmap: bool,
        _fua: bool,
    ) -> BackendFuture<'_, ()> {
        Box::pin(async move { self.put(offset, &vec![0; len as usize]).await })
    }

    fn allocated(&self, range: Range<u64>) -> BackendFuture<'_, Vec<Extent>> {
        Box::pin(async move {
            let bytes = self.bytes.lock().unwrap();
            Ok(extents(&bytes, range))
        })
    }
}

/// Blocks of 4 KiB with anything in them are data.
pub fn extents(bytes: &[u8], range: Range<u64>) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let end = (at / 4096 * 4096 + 4096).min(range.end);
        let data = bytes[at as usize..end as usize].iter().any(|b| *b != 0);
        match extents.last_mut() {
            Some(last) if last.data == data => last.range.end = end,
            _ => extents.push(Extent {
                range: at..end,
                data,
            }),
        }
        at = end;
    }
    extents
}

/// How to serve one volume named `disk`.
pub struct Setup<'a> {
    pub state: &'a Path,
    pub backend: Arc<dyn AsyncBackend>,
    pub listen: SocketAddr,
    pub lease: Duration,
    pub instance: [u8; 16],
    pub content: Content,
    pub block_bytes: Option<u32>,
    pub read_only: bool,
}

impl<'a> Setup<'a> {
    pub fn new(state: &'a Path, backend: Arc<dyn AsyncBackend>) -> Self {
        Self {
            state,
            backend,
            listen: "127.0.0.1:0".parse().unwrap(),
            lease: Duration::from_secs(30),
            instance: [1; 16],
            content: Content::Name,
            block_bytes: None,
            read_only: false,
        }
    }

    /// Serves, as soon as a server before it has left the port and the state directory.
    pub async fn start(self) -> Running {
        let bind = async {
            loop {
                match Server::bind(self.config(), vec![self.volume()]) {
                    Ok(server) => return server,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Busy, "{error}"),
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        Running::start(tokio::time::timeout(PATIENCE, bind).await.unwrap())
    }

    fn config(&self) -> ServerConfig {
        ServerConfig {
            listen: self.listen,
            advertise: None,
            state_dir: Some(self.state.to_owned()),
            tls: None,
            lease: self.lease,
        }
    }

    fn volume(&self) -> ServedVolume {
        ServedVolume {
            name: disk(),
            backend: Arc::clone(&self.backend),
            block_bytes: self.block_bytes,
            read_only: self.read_only,
            content: self.content.clone(),
            instance: self.instance,
            leechers: None,
        }
    }
}

pub fn disk() -> VolumeName {
    "disk".parse().unwrap()
}

/// A server that runs until it is stopped or dropped.
pub struct Running {
    pub ticket: Ticket,
    pub address: SocketAddr,
    task: JoinHandle<()>,
    stop: Option<oneshot::Sender<()>>,
}

impl Running {
    pub fn start(server: Server) -> Self {
        let (stop, stopped) = oneshot::channel();
        let ticket = server.ticket(&disk()).unwrap().clone();
        let address = server.local_addr().unwrap();
        let task = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        Self {
            ticket,
            address,
            task,
            stop: Some(stop),
        }
    }

    /// Stops it as SIGTERM would.
    pub async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        tokio::time::timeout(PATIENCE, self.task)
            .await
            .unwrap()
            .unwrap();
    }
}

pub fn options(name: &str) -> RemoteOptions {
    RemoteOptions {
        client_name: Some(name.to_owned()),
        ..RemoteOptions::default()
    }
}

pub async fn connect(ticket: &Ticket) -> Arc<Remote> {
    Remote::connect(ticket.clone(), options("tester"))
        .await
        .unwrap()
}

pub async fn write(remote: &Remote, offset: u64, bytes: &[u8]) -> io::Result<()> {
    remote
        .write_at(bytes, offset, false, Priority::Demand)
        .await
}

pub async fn read(remote: &Remote, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut buf = vec![0xEE; len];
    let filled = remote.read_at(&mut buf, offset, Priority::Demand).await?;
    buf[filled..].fill(0);
    Ok(buf)
}

/// Bytes that look like data, the same for the same seed, with runs of zeros in between.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|at| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            if (at / 4096 + seed as usize).is_multiple_of(3) {
                0
            } else {
                state as u8
            }
        })
        .collect()
}

/// A deterministic source of numbers.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, below: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}
