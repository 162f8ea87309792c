//! Servers that do not keep to the protocol: the client says so, and never hangs or panics.

#![allow(clippy::unwrap_used, missing_docs)]

mod net_support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use blockferry::net::{Compression, Remote, RemoteOptions};
use blockferry::wire::codec::{self, Codec};
use blockferry::wire::control::{
    self, FEATURE_LZ4, FEATURES, Offers, PREAMBLE_BYTES, Preamble, ServerMessage, Welcome,
};
use blockferry::wire::data::{REPLY_BYTES, REQUEST_BYTES, ReplyHeader};
use blockferry::wire::segment::Segment;
use blockferry::wire::ticket::Credentials;
use blockferry::wire::{Fingerprint, HostPort, Secret, Ticket};
use blockferry::{AsyncBackend, ErrorKind};
use net_support::{PATIENCE, disk, options, read, write};
use quinn::{Connection, Endpoint};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;

/// A QUIC server that says to every client what it is told to.
struct Liar {
    ticket: Ticket,
    /// The first bytes of each stream.
    heard: Heard,
    _endpoint: Endpoint,
}

impl Liar {
    /// `control` goes on the control stream, `data` on every data stream.
    fn new(control: Vec<u8>, data: Vec<u8>) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["x".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let hash = ::aws_lc_rs::digest::digest(&::aws_lc_rs::digest::SHA256, certificate.der());
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut tls =
            rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate.der().clone()], key)
                .unwrap();
        tls.alpn_protocols = vec![b"blockferry/1".to_vec()];
        let tls = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
        let config = quinn::ServerConfig::with_crypto(Arc::new(tls));
        let endpoint = Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
        let port = endpoint.local_addr().unwrap().port();
        let heard = Arc::default();
        tokio::spawn(lie(endpoint.clone(), control, data, Arc::clone(&heard)));
        Self {
            heard,
            ticket: Ticket {
                address: HostPort {
                    host: "127.0.0.1".to_owned(),
                    port,
                },
                volume: disk(),
                credentials: Some(Credentials {
                    fingerprint: Fingerprint(hash.as_ref().try_into().unwrap()),
                    secret: Secret([0; 32]),
                }),
            },
            _endpoint: endpoint,
        }
    }
}

type Heard = Arc<Mutex<Vec<[u8; PREAMBLE_BYTES]>>>;

async fn lie(endpoint: Endpoint, control: Vec<u8>, data: Vec<u8>, heard: Heard) {
    while let Some(incoming) = endpoint.accept().await {
        if let Ok(connection) = incoming.await {
            let heard = Arc::clone(&heard);
            tokio::spawn(lie_to(connection, control.clone(), data.clone(), heard));
        }
    }
}

async fn lie_to(connection: Connection, control: Vec<u8>, data: Vec<u8>, all_heard: Heard) {
    let mut kept = Vec::new();
    let mut words = control;
    while let Ok((mut send, mut recv)) = connection.accept_bi().await {
        let mut heard = [0; PREAMBLE_BYTES];
        let _ = recv.read_exact(&mut heard).await;
        all_heard.lock().unwrap().push(heard);
        let _ = send.write_all(&words).await;
        if !kept.is_empty() {
            let _ = send.finish();
        }
        words.clone_from(&data);
        kept.push((send, recv));
    }
}

fn welcome() -> Vec<u8> {
    welcome_with(0)
}

fn welcome_with(features: u64) -> Vec<u8> {
    let welcome = Welcome {
        version: 2,
        features,
        resource_bytes: 1 << 20,
        logical_block_bytes: 512,
        physical_block_bytes: 4096,
        read_only: false,
        offers: Offers {
            preferred_bytes: 1,
            max_concurrency: 1,
            flush_is_durable: true,
            sparse_map: false,
            discard: true,
        },
        has_writer: false,
        instance: [0; 16],
        identity: [0; 16],
        generation: Some(0),
        epoch: 1,
        lease_ms: 1,
    };
    let frame = control::encode(&ServerMessage::Welcome(welcome)).unwrap();
    [&Preamble::OURS.encode()[..], &frame].concat()
}

async fn fails(liar: &Liar, kind: ErrorKind, part: &str) {
    let hurried = RemoteOptions {
        connect_timeout: Duration::from_secs(5),
        ..options("a")
    };
    match Remote::connect(liar.ticket.clone(), hurried).await {
        Ok(_) => panic!("it was believed"),
        Err(error) => {
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}

#[tokio::test]
async fn nonsense_instead_of_a_welcome_is_an_error() {
    let ours = Preamble::OURS.encode();
    let with = |bytes: &[u8]| [&ours[..], bytes].concat();
    let protocol = ErrorKind::Protocol;
    let newer = b"BFRY\x05\0\x06\0".to_vec();
    fails(&Liar::new(newer, vec![]), protocol, "5 to 6").await;
    fails(&Liar::new(vec![b'x'; 64], vec![]), protocol, "our protocol").await;
    fails(
        &Liar::new(with(&[0xFF; 8]), vec![]),
        protocol,
        "our protocol",
    )
    .await;
    fails(
        &Liar::new(with(&[4, 0, 0, 0, 9, 0, 0, 0]), vec![]),
        protocol,
        "our protocol",
    )
    .await;
    fails(
        &Liar::new(with(&[4, 0, 0, 0, 2, 0, 0, 0]), vec![]),
        protocol,
        "our protocol",
    )
    .await;
    // One that says nothing at all, though it has heard who we are.
    let silent = Liar::new(vec![], vec![]);
    fails(&silent, ErrorKind::TimedOut, "no answer").await;
}

#[tokio::test]
async fn nonsense_instead_of_a_reply_is_eio() {
    let done = |count| ReplyHeader::Done { count }.encode().to_vec();
    let lies = [
        vec![],
        vec![0; REPLY_BYTES],
        vec![0xFF; 200],
        done(1 << 40)[..10].to_vec(),
        done(4096),
        [
            done(512),
            vec![1, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF],
        ]
        .concat(),
        [done(512), vec![3, 0, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0]].concat(),
        vec![0xB1; REQUEST_BYTES],
    ];
    for lie in lies {
        let liar = Liar::new(welcome(), lie.clone());
        let remote = Remote::connect(liar.ticket.clone(), options("a"))
            .await
            .unwrap();
        let asked = async {
            let error = read(&remote, 0, 512).await.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{lie:?}");
            if lie != done(4096) {
                assert!(write(&remote, 0, &[1; 512]).await.is_err(), "{lie:?}");
                assert!(remote.allocated(0..4096).await.is_err(), "{lie:?}");
            }
        };
        tokio::time::timeout(PATIENCE, asked).await.unwrap();
    }
}

/// A volume of this server, by a client that would like to compress.
async fn packer(liar: &Liar, compression: Compression) -> Arc<Remote> {
    let options = RemoteOptions {
        compression,
        ..options("a")
    };
    Remote::connect(liar.ticket.clone(), options).await.unwrap()
}

#[tokio::test]
async fn a_server_that_cannot_decompress_is_not_asked_to() {
    let plain = [
        ReplyHeader::Done { count: 512 }.encode().to_vec(),
        Segment::data(512).encode().to_vec(),
        vec![5; 512],
    ]
    .concat();
    for (features, wish, asked) in [
        (0, Compression::Lz4, 0),
        (0, Compression::Auto, 0),
        (FEATURE_LZ4, Compression::Zstd, 0),
        (FEATURE_LZ4 | 1 << 40, Compression::Lz4, 1),
        (FEATURES, Compression::Zstd, 2),
        (FEATURES, Compression::Auto, 3),
    ] {
        let liar = Liar::new(welcome_with(features), plain.clone());
        let remote = packer(&liar, wish).await;
        // It may still answer as it likes.
        assert_eq!(read(&remote, 0, 512).await.unwrap(), [5; 512]);
        let heard = liar.heard.lock().unwrap().clone();
        assert_eq!(heard.last().unwrap()[4], asked, "{features} {wish:?}");
    }
}

#[tokio::test]
async fn a_damaged_compressed_reply_is_eio() {
    let stored = codec::compress(Codec::Lz4, &[7; 4096]).unwrap();
    let reply = |segment: Segment, stored: &[u8]| {
        let head = ReplyHeader::Done { count: 4096 }.encode();
        [&head[..], &segment.encode(), stored].concat()
    };
    let len = stored.len() as u32;
    let good = reply(Segment::packed(Codec::Lz4, 4096, len), &stored);
    let liar = Liar::new(welcome_with(FEATURES), good.clone());
    let remote = packer(&liar, Compression::Lz4).await;
    assert_eq!(read(&remote, 0, 4096).await.unwrap(), [7; 4096]);
    let mut damaged = stored.clone();
    damaged[0] ^= 0xFF;
    let lies = [
        (
            Compression::Lz4,
            reply(Segment::packed(Codec::Lz4, 4096, len), &damaged),
        ),
        (
            Compression::Lz4,
            reply(Segment::packed(Codec::Lz4, 4095, len), &stored),
        ),
        (
            Compression::Lz4,
            reply(Segment::packed(Codec::Lz4, 4097, len), &stored),
        ),
        (
            Compression::Lz4,
            reply(Segment::packed(Codec::Lz4, 4096, u32::MAX), &stored),
        ),
        (
            Compression::Lz4,
            reply(Segment::packed(Codec::Lz4, 4096, len), &[]),
        ),
        // Not what was asked for.
        (
            Compression::Lz4,
            reply(Segment::packed(Codec::Zstd, 4096, len), &stored),
        ),
        (Compression::Zstd, good.clone()),
        (Compression::Off, good),
    ];
    for (wish, lie) in lies {
        let liar = Liar::new(welcome_with(FEATURES), lie);
        let remote = packer(&liar, wish).await;
        let asked = tokio::time::timeout(PATIENCE, read(&remote, 0, 4096));
        let error = asked.await.unwrap().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{wish:?}");
    }
}
