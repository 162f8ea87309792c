//! Volumes over QUIC: the endpoint, TLS, authentication, sessions and leases.
//!
//! [`Server`] serves volumes; [`Remote`] is a volume of a server as an
//! [`AsyncBackend`](crate::AsyncBackend). A request on its way: `remote.rs` waits for a session,
//! `exchange.rs` puts it on a stream of its own, `serve.rs` carries it to the backend and back. What the
//! ends of a migration say to each other goes by [`MessageSender`] and [`MessageReceiver`].

mod address;
pub mod bare_stream;
mod body;
mod buffers;
mod client_record;
mod close;
mod compression;
mod content;
mod control_stream;
mod dial;
mod digests;
mod exchange;
pub(crate) mod flow;
mod hello;
mod identity;
mod lease;
mod ledger;
mod message_stream;
mod private_file;
mod read_runs;
mod reconnect;
mod remote;
mod serve;
mod server;
mod session;
mod silence;
mod slot;
mod state_dir;
mod stream_order;
mod tls;
mod transport;
mod volume;
mod window;

pub use content::Content;
pub use message_stream::{Arrival, Arrivals, MessageReceiver, MessageSender, Payload, arrivals};
pub use private_file::{check_private, write_private};
pub use remote::{Remote, RemoteOptions};
pub use server::{LEASE_DEFAULT, ServedVolume, Server, ServerConfig};
pub use state_dir::StateDir;
pub use tls::TlsFiles;

pub use crate::wire::codec::Compression;
pub use crate::wire::control::{EARLIER_OPENINGS, ManagedStore};
