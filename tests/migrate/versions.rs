//! Ends that do not understand each other say so by name.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use blockferry::wire::control::PREAMBLE_BYTES;
use blockferry::wire::ticket::Credentials;
use blockferry::wire::{Fingerprint, HostPort, Ticket};
use quinn::Endpoint;
use quinn::crypto::rustls::QuicServerConfig;
use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::ends::World;

/// How long the seeder of another version waits for its leecher to go.
const PATIENCE: Duration = Duration::from_secs(60);

/// Versions 40 to 41, little-endian.
const LATER: &[u8; PREAMBLE_BYTES] = b"BFRY\x28\0\x29\0";

/// A seeder that speaks later versions alone, and its ticket.
fn later_seeder() -> (Endpoint, Ticket) {
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec!["blockferry".to_owned()]).expect("a name");
    let certificate = params.self_signed(&key).expect("signed").der().clone();
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(digest::digest(&digest::SHA256, &certificate).as_ref());
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("known")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("they fit");
    tls.alpn_protocols = vec![b"blockferry/1".to_vec()];
    let crypto = QuicServerConfig::try_from(tls).expect("TLS 1.3");
    let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let address: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    let endpoint = Endpoint::server(config, address).expect("it listens");
    let ticket = Ticket {
        address: HostPort {
            host: "127.0.0.1".to_owned(),
            port: endpoint.local_addr().expect("one").port(),
        },
        volume: "disk".parse().expect("a name"),
        credentials: Some(Credentials {
            fingerprint: Fingerprint(fingerprint),
            secret: "A".repeat(43).parse().expect("32 bytes"),
        }),
    };
    (endpoint, ticket)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seeder_of_another_version_is_left_by_name_and_nothing_is_made() {
    let Some(world) = World::new() else { return };
    let (endpoint, ticket) = later_seeder();
    std::fs::write(world.path("ticket"), ticket.reveal()).expect("written");
    let serving = tokio::spawn(async move {
        let connection = endpoint
            .accept()
            .await
            .expect("a leecher")
            .await
            .expect("connected");
        let (mut send, _recv) = connection.accept_bi().await.expect("a control stream");
        send.write_all(LATER).await.expect("sent");
        connection.closed().await;
    });
    let store = world.url("b.img");
    let said = [
        "another protocol version: 40 to 41",
        "use the same version of blockferry on both ends",
    ];
    tokio::task::block_in_place(|| world.leech_fails(&store, &said));
    tokio::time::timeout(PATIENCE, serving)
        .await
        .expect("it has gone")
        .expect("it was as planned");
    assert!(!world.path("b.img").exists());
}

#[test]
fn what_is_served_and_not_seeded_cannot_be_leeched_and_no_device_is_left() {
    let Some(world) = World::new() else { return };
    let _server = world.serve("a.img");
    world.leech_fails("mem:", &["it is served, not seeded"]);
    assert_eq!(world.succeeds(&["list"]), "");
}
