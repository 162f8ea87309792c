//! How fast a remote volume is read, beside a bare QUIC stream of the same bytes.
//!
//! ```text
//! cargo run --release --example quic_throughput [-- MIB [ROUNDS]]
//! ```
//!
//! Both use the same transport settings, certificates and kind of endpoint over the loopback
//! interface. The volume is read in requests of 1 MiB, eight in flight.

use std::error::Error;
use std::io;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockferry::net::{
    Content, LEASE_DEFAULT, Remote, RemoteOptions, ServedVolume, Server, ServerConfig, bare_stream,
};
use blockferry::volume::{BackendFuture, Extent, Priority};
use blockferry::{AsyncBackend, Capabilities};
use bytes::Bytes;
use nix::time::ClockId;
use tokio::sync::{Semaphore, oneshot};

const REQUEST_BYTES: usize = 1 << 20;
const IN_FLIGHT: usize = 8;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse());
    let mib: usize = arguments.next().transpose()?.unwrap_or(1024);
    let rounds: usize = arguments.next().transpose()?.unwrap_or(5);
    let bytes = Arc::new(noise(mib << 20));
    let volume = Volume(Arc::clone(&bytes));
    // Each end has a runtime of its own, as two processes would.
    let server_runtime = runtime()?;
    let client_runtime = runtime()?;
    let state = std::env::temp_dir().join(format!("quic_throughput.{}", std::process::id()));
    let config = ServerConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        advertise: None,
        state_dir: Some(state.clone()),
        tls: None,
        lease: LEASE_DEFAULT,
    };
    let name: blockferry::wire::VolumeName = "noise".parse()?;
    let served = ServedVolume {
        name: name.clone(),
        backend: Arc::new(volume),
        block_bytes: None,
        read_only: true,
        content: Content::Instance,
        instance: [0; 16],
        leechers: None,
    };
    let server = {
        let _guard = server_runtime.enter();
        Server::bind(config, vec![served])?
    };
    let ticket = server.ticket(&name).cloned().ok_or("no ticket")?;
    let (stop, stopped) = oneshot::channel::<()>();
    let running = server_runtime.spawn(server.run(async {
        let _ = stopped.await;
    }));
    let bare = {
        let _guard = server_runtime.enter();
        bare_stream::Source::listen(
            Ipv4Addr::LOCALHOST.into(),
            Bytes::from_owner(Shared(Arc::clone(&bytes))),
        )?
    };
    let measured = client_runtime.block_on(measure(ticket, bare, bytes.len(), rounds));
    let _ = stop.send(());
    server_runtime.block_on(running)?;
    let _ = std::fs::remove_dir_all(state);
    measured
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
}

async fn measure(
    ticket: blockferry::wire::Ticket,
    bare: bare_stream::Source,
    len: usize,
    rounds: usize,
) -> Result<()> {
    let options = RemoteOptions {
        read_only: true,
        ..RemoteOptions::default()
    };
    let remote = Remote::connect(ticket, options).await?;
    let bare = bare.connect().await?;
    let mut out = io::stdout();
    writeln!(
        out,
        "round  volume MB/s  bare stream MB/s  ratio  CPU ms/GB: volume  bare stream"
    )?;
    let mut ratios = Vec::new();
    for round in 1..=rounds {
        // Who goes first alternates.
        let (volume, stream) = if round % 2 == 0 {
            let volume = timed(read_volume(&remote, len)).await?;
            (volume, timed(bare.fetch(len)).await?)
        } else {
            let stream = timed(bare.fetch(len)).await?;
            (timed(read_volume(&remote, len)).await?, stream)
        };
        let rate = |cost: &Cost| len as f64 / cost.wall.as_secs_f64() / 1e6;
        let cpu = |cost: &Cost| cost.cpu.as_secs_f64() * 1e12 / len as f64;
        let ratio = rate(&volume) / rate(&stream);
        ratios.push(ratio);
        writeln!(
            out,
            "{round:5}  {:11.0}  {:16.0}  {ratio:5.2}  {:17.0}  {:11.0}",
            rate(&volume),
            rate(&stream),
            cpu(&volume),
            cpu(&stream),
        )?;
    }
    ratios.sort_by(f64::total_cmp);
    writeln!(out, "median ratio {:.2}", ratios[ratios.len() / 2])?;
    latency(&remote, len, &mut out).await?;
    remote.close().await?;
    Ok(())
}

/// What something took: time, and the work of all processors.
struct Cost {
    wall: Duration,
    cpu: Duration,
}

async fn timed(work: impl Future<Output = Result<()>>) -> Result<Cost> {
    let cpu = || ClockId::CLOCK_PROCESS_CPUTIME_ID.now().map(Duration::from);
    let (begun, cpu_before) = (Instant::now(), cpu()?);
    work.await?;
    Ok(Cost {
        wall: begun.elapsed(),
        cpu: cpu()?.saturating_sub(cpu_before),
    })
}

/// Reads all of it into buffers that are used again, as a device's are.
async fn read_volume(remote: &Arc<Remote>, len: usize) -> Result<()> {
    let next = Arc::new(Semaphore::new(len / REQUEST_BYTES));
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let remote = Arc::clone(remote);
        let next = Arc::clone(&next);
        readers.spawn(async move {
            let mut buf = vec![0; REQUEST_BYTES];
            while let Ok(turn) = next.try_acquire() {
                turn.forget();
                let offset = (next.available_permits() * REQUEST_BYTES) as u64;
                let filled = remote.read_at(&mut buf, offset, Priority::Demand).await?;
                if filled != buf.len() {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
                }
            }
            Ok(())
        });
    }
    while let Some(read) = readers.join_next().await {
        read??;
    }
    Ok(())
}

/// Random reads of 4 KiB, one and 32 at a time.
async fn latency(remote: &Arc<Remote>, len: usize, out: &mut io::Stdout) -> Result<()> {
    const TIME: Duration = Duration::from_secs(2);
    for depth in [1u64, 32] {
        let begun = Instant::now();
        let mut readers = tokio::task::JoinSet::new();
        for seed in 0..depth {
            let remote = Arc::clone(remote);
            readers.spawn(async move {
                let mut buf = vec![0; 4096];
                let mut dice = seed * 2 + 1;
                let mut times_us = Vec::new();
                while begun.elapsed() < TIME {
                    dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let block = (dice >> 33) % (len as u64 / 4096);
                    let asked = Instant::now();
                    remote
                        .read_at(&mut buf, block * 4096, Priority::Demand)
                        .await?;
                    times_us.push(asked.elapsed().as_secs_f64() * 1e6);
                }
                io::Result::Ok(times_us)
            });
        }
        let mut times_us = Vec::new();
        while let Some(reader) = readers.join_next().await {
            times_us.extend(reader??);
        }
        let iops = times_us.len() as f64 / begun.elapsed().as_secs_f64();
        times_us.sort_by(f64::total_cmp);
        let percentile = |part: f64| times_us[((times_us.len() - 1) as f64 * part) as usize];
        let (half_us, most_us) = (percentile(0.5), percentile(0.99));
        writeln!(
            out,
            "4 KiB random reads, {depth:2} at a time: {iops:7.0}/s, p50 {half_us:6.1} us, p99 {most_us:6.1} us"
        )?;
    }
    Ok(())
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

/// A volume in memory.
struct Volume(Arc<Vec<u8>>);

fn read_only<'a, T>() -> BackendFuture<'a, T> {
    Box::pin(async { Err(io::ErrorKind::ReadOnlyFilesystem.into()) })
}

impl AsyncBackend for Volume {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            read_only: true,
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
        read_only()
    }

    fn flush(&self) -> BackendFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn discard(&self, _offset: u64, _len: u64) -> BackendFuture<'_, ()> {
        read_only()
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool, _: bool) -> BackendFuture<'_, ()> {
        read_only()
    }

    fn allocated(&self, range: std::ops::Range<u64>) -> BackendFuture<'_, Vec<Extent>> {
        Box::pin(async { Ok(vec![Extent { range, data: true }]) })
    }
}
