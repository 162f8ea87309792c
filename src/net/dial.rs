//! From a ticket to a session on the client: addresses, handshake, hello.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream, VarInt};
use tokio::task::JoinSet;

use super::control_stream::{ControlError, read_message, read_preamble, write_message};
use super::identity::SERVER_NAME;
use super::state_dir::random;
use super::tls::{ClientTls, TlsFiles};
use super::transport::{self, Side};
use crate::wire::control::{
    ClientMessage, Hello, Preamble, Refusal, ServerMessage, VERSION_MAX, VERSION_MIN, Welcome,
};
use crate::wire::{Ticket, WireError};
use crate::{Error, ErrorKind, Result};

/// One try at a handshake takes no longer; a host that comes back is so found soon.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);

/// The answer to a hello takes no longer. The server may have to wait for earlier writes.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(60);

/// How many of a host's addresses are tried.
const ADDRESSES_MAX: usize = 8;

/// TLS alerts, as QUIC carries them.
const ALERT_BASE: u64 = 0x100;
const ALERT_NO_APPLICATION_PROTOCOL: u64 = ALERT_BASE + 120;
/// Bad, unsupported, revoked, expired or unknown certificate, unknown CA, access denied, bad
/// signature, certificate required.
const ALERT_CERTIFICATES: [u64; 10] = [42, 43, 44, 45, 46, 47, 48, 49, 51, 116];

/// Where to, and how the two ends know each other.
pub(super) struct Dialer {
    target: Ticket,
    tls: ClientTls,
    v4: Mutex<Option<Endpoint>>,
    v6: Mutex<Option<Endpoint>>,
    /// The other end is to be a seeder.
    leeches: bool,
    /// The server may have heard who we are.
    has_said_hello: AtomicBool,
}

/// Why there is no session.
#[derive(Debug)]
pub(super) struct NoSession {
    pub(super) error: Error,
    pub(super) next: Next,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// It may pass by itself.
    TryAgain,
    /// At the first try the user has to know; one who was in already waits for it to pass.
    TellUser,
    /// It never passes.
    GiveUp,
}

/// A session as the client got it.
pub(super) struct Greeted {
    pub(super) connection: Connection,
    pub(super) send: SendStream,
    pub(super) recv: RecvStream,
    pub(super) welcome: Welcome,
}

impl Dialer {
    pub(super) fn new(target: Ticket, files: Option<&TlsFiles>, leeches: bool) -> Result<Self> {
        let tls = match (&target.credentials, files) {
            (Some(credentials), None) => ClientTls::with_fingerprint(credentials.fingerprint)?,
            (None, Some(files)) => ClientTls::with_files(files)?,
            (None, None) => {
                let or_else = match leeches {
                    true => "as `blockferry seed` printed it",
                    false => "or --ca, --cert and --key",
                };
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    format!(
                        "`{target}` has no secret behind a `#`; give the whole ticket, {or_else}"
                    ),
                ));
            }
            (Some(_), Some(_)) => {
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    "a ticket with a secret and certificates of a CA do not go together",
                ));
            }
        };
        Ok(Self {
            target,
            tls,
            v4: Mutex::default(),
            v6: Mutex::default(),
            leeches,
            has_said_hello: AtomicBool::new(false),
        })
    }

    /// What a user may do where nobody answers.
    pub(super) fn what_to_look_at(&self) -> String {
        let verb = match self.leeches {
            true => "seed",
            false => "serve",
        };
        format!(
            "is `blockferry {verb}` running there, and does UDP port {} get through?",
            self.target.address.port
        )
    }

    pub(super) fn target(&self) -> &Ticket {
        &self.target
    }

    /// Whether a hello was sent, so that the server may have granted something.
    pub(super) fn has_said_hello(&self) -> bool {
        self.has_said_hello.load(Ordering::Relaxed)
    }

    /// One try at a session.
    pub(super) async fn greet(&self, hello: Hello) -> Result<Greeted, NoSession> {
        let connection = self.connect().await?;
        let greeted = self.say_hello(&connection, hello);
        let greeted = tokio::time::timeout(WELCOME_TIMEOUT, greeted).await;
        let (send, recv, welcome) = greeted.unwrap_or_else(|_| {
            Err(try_again(Error::new(
                ErrorKind::TimedOut,
                format!("{} does not answer the hello", self.target.address),
            )))
        })?;
        Ok(Greeted {
            connection,
            send,
            recv,
            welcome,
        })
    }

    /// A connection to the first of the host's addresses that answers.
    async fn connect(&self) -> Result<Connection, NoSession> {
        let address = &self.target.address;
        let addresses = transport::resolve(&address.host, address.port)
            .await
            .map_err(|error| NoSession {
                error: Error::new(ErrorKind::Unreachable, error.to_string()).because(error),
                next: Next::TellUser,
            })?;
        let mut tries = JoinSet::new();
        for peer in addresses.into_iter().take(ADDRESSES_MAX) {
            match self.start(peer) {
                Ok(connecting) => {
                    tries.spawn(tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting));
                }
                Err(error) => tries
                    .spawn(async move {
                        tracing::debug!(%peer, %error, "cannot connect");
                        Ok(Err(ConnectionError::TimedOut))
                    })
                    .abort(),
            }
        }
        let mut worst = ConnectionError::TimedOut;
        while let Some(tried) = tries.join_next().await {
            match tried {
                Ok(Ok(Ok(connection))) => return Ok(connection),
                Ok(Ok(Err(error))) => worst = error,
                Ok(Err(_)) | Err(_) => {}
            }
        }
        Err(self.explain(worst))
    }

    fn start(&self, peer: SocketAddr) -> Result<quinn::Connecting> {
        let endpoint = self.endpoint_for(peer)?;
        let mut config = quinn::ClientConfig::new(self.tls.config.clone());
        config.transport_config(transport::transport(peer, Side::Client));
        // With a fingerprint the name does not matter.
        let name = match self.target.credentials {
            Some(_) => SERVER_NAME,
            None => &self.target.address.host,
        };
        endpoint
            .connect_with(config, peer, name)
            .map_err(|error| Error::new(ErrorKind::InvalidInput, error.to_string()))
    }

    fn endpoint_for(&self, peer: SocketAddr) -> Result<Endpoint> {
        let (kept, any) = match peer.ip() {
            IpAddr::V4(_) => (&self.v4, SocketAddr::from(([0, 0, 0, 0], 0))),
            IpAddr::V6(_) => (&self.v6, SocketAddr::from(([0u16; 8], 0))),
        };
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(endpoint) = kept.as_ref() {
            return Ok(endpoint.clone());
        }
        let endpoint = transport::endpoint(any, None, &random::<64>()?)?;
        *kept = Some(endpoint.clone());
        Ok(endpoint)
    }

    async fn say_hello(
        &self,
        connection: &Connection,
        hello: Hello,
    ) -> Result<(SendStream, RecvStream, Welcome), NoSession> {
        let talk = async {
            let (mut send, mut recv) = connection
                .open_bi()
                .await
                .map_err(|_| ControlError::Ended)?;
            let _ = send.set_priority(i32::MAX);
            send.write_all(&Preamble::OURS.encode())
                .await
                .map_err(|_| ControlError::Ended)?;
            self.has_said_hello.store(true, Ordering::Relaxed);
            write_message(&mut send, &ClientMessage::Hello(hello)).await?;
            let theirs = read_preamble(&mut recv).await?;
            if Preamble::OURS.common_version(&theirs).is_none() {
                return Ok(Err(self.other_version(theirs)));
            }
            let answer: ServerMessage = read_message(&mut recv).await?;
            Ok::<_, ControlError>(Ok((send, recv, answer)))
        };
        match talk.await {
            Ok(Ok((send, recv, ServerMessage::Welcome(welcome)))) => Ok((send, recv, welcome)),
            Ok(Ok((_, _, ServerMessage::Refused(refused)))) => Err(NoSession {
                error: Error::new(
                    refused.reason.kind(),
                    format!("{} refuses: {}", self.target.address, refused.message),
                ),
                next: next_after(refused.reason),
            }),
            Ok(Ok((_, _, ServerMessage::Released))) => Err(self.nonsense(WireError::Message)),
            Ok(Err(other_version)) => Err(other_version),
            Err(ControlError::Wire(fault)) => Err(self.nonsense(fault)),
            Err(ControlError::Ended) => Err(self.explain(connection.closed().await)),
        }
    }

    fn other_version(&self, theirs: Preamble) -> NoSession {
        tell_user(Error::new(
            ErrorKind::Protocol,
            format!(
                "{} speaks another protocol version: {} to {}, and this end {VERSION_MIN} to \
                 {VERSION_MAX}; use the same version of blockferry on both ends",
                self.target.address, theirs.version_min, theirs.version_max
            ),
        ))
    }

    fn nonsense(&self, fault: WireError) -> NoSession {
        let context = format!("{} does not speak our protocol", self.target.address);
        tell_user(Error::new(ErrorKind::Protocol, context).because(fault))
    }

    /// A broken handshake in the user's terms.
    fn explain(&self, error: ConnectionError) -> NoSession {
        let at = &self.target.address;
        if self.tls.met_another_server() {
            return tell_user(Error::new(
                ErrorKind::Unauthenticated,
                format!(
                    "the server at {at} is not the one of the ticket: its certificate has \
                     another fingerprint; get a new ticket if its key was changed"
                ),
            ));
        }
        let code = match &error {
            ConnectionError::TransportError(error) => u64::from(error.code),
            ConnectionError::ConnectionClosed(close) => u64::from(close.error_code),
            _ => 0,
        };
        if code == ALERT_NO_APPLICATION_PROTOCOL {
            let context = format!("{at} speaks QUIC, but another protocol than ours");
            return tell_user(Error::new(ErrorKind::Protocol, context).because(error));
        }
        if ALERT_CERTIFICATES.contains(&code.wrapping_sub(ALERT_BASE)) {
            let context = match self.leeches {
                true => format!(
                    "{at} wants a certificate, which no `blockferry seed` does; get a new ticket of that"
                ),
                false => format!(
                    "{at} and this end do not accept each other's certificates; \
                     check --ca, --cert and --key on both"
                ),
            };
            return tell_user(Error::new(ErrorKind::Unauthenticated, context).because(error));
        }
        let context = format!("no answer from {at}; {}", self.what_to_look_at());
        try_again(Error::new(ErrorKind::Unreachable, context).because(error))
    }

    /// Lets the last packets out.
    pub(super) async fn farewell(&self, at_most: Duration) {
        for kept in [&self.v4, &self.v6] {
            let endpoint = kept.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(endpoint) = endpoint {
                endpoint.close(VarInt::from_u32(0), &[]);
                let _ = tokio::time::timeout(at_most, endpoint.wait_idle()).await;
            }
        }
    }
}

fn next_after(reason: Refusal) -> Next {
    match reason {
        Refusal::NotNow | Refusal::Stale => Next::TryAgain,
        Refusal::Secret | Refusal::Fenced | Refusal::Replaced => Next::GiveUp,
        _ => Next::TellUser,
    }
}

fn try_again(error: Error) -> NoSession {
    NoSession {
        error,
        next: Next::TryAgain,
    }
}

fn tell_user(error: Error) -> NoSession {
    NoSession {
        error,
        next: Next::TellUser,
    }
}
