//! How the QUIC transport is set: windows, timers, packet sizes, sockets.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::{hmac, rand};
use nix::sys::socket::{setsockopt, sockopt};
use quinn::congestion::CubicConfig;
use quinn::{
    ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig,
    TokioRuntime, TransportConfig, VarInt,
};

use crate::error::Context;
use crate::wire::limits::SESSION_STREAMS_MAX;
use crate::{Error, ErrorKind, Result};

/// A peer that was not heard of for this long is gone.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

const KEEP_ALIVE: Duration = Duration::from_secs(3);

/// How much one stream may have under way: a request is not longer.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;

/// How much a connection may have under way: several times 1 Gbit/s × 100 ms.
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;

/// How much an end sends before it has heard anything of the path, in bytes. It leaves over a round trip,
/// not at once; with quinn's ten packets the bulk that comes first would fill the path's share and
/// whatever is urgent and comes next would wait for a round trip more.
pub(super) const FIRST_FLIGHT_BYTES: u64 = 128 << 10;

/// How much a client may send before it is known: one hello.
const UNAUTHENTICATED_WINDOW_BYTES: u32 = 128 << 10;

/// The largest datagram that is tried, in bytes of UDP payload. The kernel takes 65507 bytes at a
/// time, and quinn hands it ten datagrams at once: what is above that is dropped without a word.
const PAYLOAD_BYTES_MAX: u16 = 65_507 / 10;

/// The same on the loopback interface, where one datagram at a time, as large as can be, costs a
/// third less than ten at once.
const LOOPBACK_PAYLOAD_BYTES_MAX: u16 = 65_000;

/// How long connection ids are.
const CONNECTION_ID_BYTES: usize = 8;

/// What is asked of the kernel for each direction of a socket.
const SOCKET_BUFFER_BYTES: usize = 8 << 20;

/// The transport for a connection to `peer`. A server begins with room for a hello alone; see
/// [`open_up`].
pub(super) fn transport(peer: SocketAddr, side: Side) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    let (streams, window) = match side {
        Side::Client => (0, CONNECTION_WINDOW_BYTES),
        Side::Server => (1, UNAUTHENTICATED_WINDOW_BYTES),
    };
    let mut congestion = CubicConfig::default();
    congestion.initial_window(FIRST_FLIGHT_BYTES);
    let mut discovery = MtuDiscoveryConfig::default();
    if peer.ip().to_canonical().is_loopback() {
        discovery.upper_bound(LOOPBACK_PAYLOAD_BYTES_MAX);
        config.enable_segmentation_offload(false);
    } else {
        discovery.upper_bound(PAYLOAD_BYTES_MAX);
    }
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(window))
        .send_window(u64::from(CONNECTION_WINDOW_BYTES))
        // No two streams are equally urgent (see `stream_order`), so that none gets a share; without
        // this, a stream that has begun would be sent to its end before a more urgent one.
        .send_fairness(true)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(idle_timeout()))
        .mtu_discovery_config(Some(discovery))
        .congestion_controller_factory(Arc::new(congestion));
    Arc::new(config)
}

/// Which end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

fn idle_timeout() -> IdleTimeout {
    let ms = IDLE_TIMEOUT.as_millis() as u32;
    IdleTimeout::from(VarInt::from_u32(ms))
}

/// Gives a client that is known now the room that its requests need.
pub(super) fn open_up(connection: &quinn::Connection) {
    connection.set_receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(SESSION_STREAMS_MAX));
}

/// An endpoint on `address`. `reset_key` has to be the same over restarts of a server, so that
/// clients of the process before this one learn at once that their connection is gone.
pub(super) fn endpoint(
    address: SocketAddr,
    server: Option<quinn::ServerConfig>,
    reset_key: &[u8],
) -> Result<Endpoint> {
    let bind = || -> io::Result<Endpoint> {
        let socket = UdpSocket::bind(address)?;
        enlarge_buffers(&socket);
        let key = hmac::Key::new(hmac::HMAC_SHA256, reset_key);
        let mut config = EndpointConfig::new(Arc::new(key));
        config
            .cid_generator(|| Box::new(RandomIds))
            .max_udp_payload_size(LOOPBACK_PAYLOAD_BYTES_MAX)
            .map_err(io::Error::other)?;
        Endpoint::new(config, server, socket, Arc::new(TokioRuntime))
    };
    bind().map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => Error::new(
            ErrorKind::Busy,
            format!(
                "UDP port {} is in use; choose another with --listen",
                address.port()
            ),
        )
        .because(error),
        io::ErrorKind::AddrNotAvailable => Error::new(
            ErrorKind::InvalidInput,
            format!("{} is no address of this host", address.ip()),
        )
        .because(error),
        _ => Error::io(format!("cannot listen on {address}"), error),
    })
}

/// Random connection ids. Those that quinn makes by default carry the process's own mark, and a
/// packet for a process before this one would be dropped without the reset that tells its sender.
struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CONNECTION_ID_BYTES];
        // An id that is taken already, be it all zeros, is drawn again by the caller.
        let _ = rand::fill(&mut id);
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Best effort: the system's limit counts where we are not root.
fn enlarge_buffers(socket: &UdpSocket) {
    let size = SOCKET_BUFFER_BYTES;
    if setsockopt(socket, sockopt::RcvBufForce, &size).is_err() {
        let _ = setsockopt(socket, sockopt::RcvBuf, &size);
    }
    if setsockopt(socket, sockopt::SndBufForce, &size).is_err() {
        let _ = setsockopt(socket, sockopt::SndBuf, &size);
    }
}

/// The addresses of a host.
pub(super) async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>> {
    let addresses = tokio::net::lookup_host((host, port))
        .await
        .context_io(|| format!("cannot find the address of `{host}`"))?;
    Ok(addresses.collect())
}
