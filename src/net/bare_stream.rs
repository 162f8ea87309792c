//! A bare QUIC stream with the transport settings of the real thing: what measurements are held
//! against. It serves anybody who can reach it and is good for nothing else.

use std::error::Error as StdError;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, Endpoint};

use super::identity::{Identity, SERVER_NAME};
use super::tls::{self, ClientTls};
use super::transport::{self, Side};
use crate::wire::Fingerprint;
use crate::{Error, ErrorKind, Result};

/// How much the sender hands over at once, in bytes.
const PIECE_BYTES: usize = 1 << 20;

/// Bytes that can be fetched over a bare stream.
pub struct Source {
    endpoint: Endpoint,
    fingerprint: Fingerprint,
}

/// A connection to a [`Source`].
pub struct Fetcher {
    connection: Connection,
}

impl Source {
    /// Serves `bytes` on a port of a local address to whoever opens a stream, without a copy. It has to
    /// be called on a Tokio runtime, which is the server's; the fetching end may run on another.
    ///
    /// # Errors
    /// Whatever the operating system reports.
    pub fn listen(local: IpAddr, bytes: Bytes) -> Result<Self> {
        let identity = Identity::from_pem(&Identity::generate()?)?;
        let fingerprint = identity.fingerprint();
        let address = SocketAddr::from((local, 0));
        let tls = tls::server_with_identity(identity)?;
        let mut config = quinn::ServerConfig::with_crypto(tls);
        config.transport_config(transport::transport(address, Side::Server));
        let endpoint = transport::endpoint(address, Some(config), &[0; 64])?;
        tokio::spawn(serve(endpoint.clone(), bytes));
        Ok(Self {
            endpoint,
            fingerprint,
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// Whatever the operating system reports.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Connects to it.
    ///
    /// # Errors
    /// Whatever becomes of the connection.
    pub async fn connect(&self) -> Result<Fetcher, Box<dyn StdError + Send + Sync>> {
        self.connect_to(self.address()?).await
    }

    /// Connects to it at another address that leads there.
    ///
    /// # Errors
    /// Whatever becomes of the connection.
    pub async fn connect_to(
        &self,
        server: SocketAddr,
    ) -> Result<Fetcher, Box<dyn StdError + Send + Sync>> {
        let any = SocketAddr::from((server.ip(), 0));
        let client = transport::endpoint(any, None, &[0; 64])?;
        let tls = ClientTls::with_fingerprint(self.fingerprint)?;
        let mut config = quinn::ClientConfig::new(tls.config);
        config.transport_config(transport::transport(server, Side::Client));
        let connection = client.connect_with(config, server, SERVER_NAME)?.await?;
        Ok(Fetcher { connection })
    }
}

impl Fetcher {
    /// Fetches the `len` bytes over one stream, and drops them.
    ///
    /// # Errors
    /// Whatever becomes of the connection, and `Io` for a stream that ends early.
    pub async fn fetch(&self, len: usize) -> Result<(), Box<dyn StdError + Send + Sync>> {
        self.fetch_for(len, Duration::MAX).await.map(drop)
    }

    /// Fetches the `len` bytes, or what of them comes within `time`; how many that were.
    ///
    /// # Errors
    /// Whatever becomes of the connection, and `Io` for a stream that ends early.
    pub async fn fetch_for(
        &self,
        len: usize,
        time: Duration,
    ) -> Result<usize, Box<dyn StdError + Send + Sync>> {
        let (mut send, mut recv) = self.connection.open_bi().await?;
        send.write_all(&[1]).await?;
        let mut buf = vec![0; PIECE_BYTES];
        let mut done = 0;
        let all = async {
            while let Some(read) = recv.read(&mut buf).await? {
                done += read;
            }
            Ok::<_, quinn::ReadError>(())
        };
        match tokio::time::timeout(time, all).await {
            Err(_) => return Ok(done),
            Ok(ended) => ended?,
        }
        if done != len {
            return Err(Error::new(ErrorKind::Io, "the stream ended early").into());
        }
        Ok(done)
    }
}

async fn serve(endpoint: Endpoint, bytes: Bytes) {
    while let Some(incoming) = endpoint.accept().await {
        let Ok(connection) = incoming.await else {
            continue;
        };
        transport::open_up(&connection);
        while let Ok((mut send, _recv)) = connection.accept_bi().await {
            let mut rest = bytes.clone();
            while !rest.is_empty() {
                let piece = rest.split_to(PIECE_BYTES.min(rest.len()));
                if send.write_chunk(piece).await.is_err() {
                    break;
                }
            }
            let _ = send.finish();
        }
    }
}
