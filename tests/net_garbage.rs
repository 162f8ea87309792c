//! Peers that do not keep to the protocol: the server tells them, forgets them, and serves others.

#![allow(clippy::unwrap_used, missing_docs)]

mod net_support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use blockferry::volume::Priority;
use blockferry::wire::codec::{self, Codec, Compression};
use blockferry::wire::control::{
    self, ClientMessage, FEATURE_LZ4, FRAME_PREFIX_BYTES, Hello, PREAMBLE_BYTES, Preamble, Refusal,
    ServerMessage,
};
use blockferry::wire::data::{Operation, REPLY_BYTES, ReplyHeader, RequestHeader};
use blockferry::wire::limits::{CONTROL_MESSAGE_BYTES_MAX, RUNS_MAX};
use blockferry::wire::run_list;
use blockferry::wire::segment::Segment;
use blockferry::wire::{Ticket, WireError};
use net_support::{Dice, Memory, PATIENCE, Running, Setup, read};
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};

const SIZE: usize = 1 << 20;

/// Trusts anybody.
#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

async fn peer_speaking(
    server: SocketAddr,
    alpn: &[u8],
) -> Result<Connection, quinn::ConnectionError> {
    let mut tls =
        rustls::ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Gullible))
            .with_no_client_auth();
    tls.alpn_protocols = vec![alpn.to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    endpoint.connect_with(config, server, "x").unwrap().await
}

/// A peer of the server, with its control stream, that has not said a word.
async fn peer(server: SocketAddr) -> (Connection, SendStream, RecvStream) {
    let connection = peer_speaking(server, b"blockferry/1").await.unwrap();
    let (send, recv) = connection.open_bi().await.unwrap();
    (connection, send, recv)
}

fn hello(ticket: &Ticket, writable: bool) -> Hello {
    Hello {
        features: 0,
        volume: "disk".to_owned(),
        secret: Some(ticket.credentials.as_ref().unwrap().secret.clone()),
        client_id: [7; 16],
        client_name: "peer".to_owned(),
        session: 1,
        writable,
        takeover: false,
        known_epoch: 0,
        known_identity: None,
        managed: None,
    }
}

async fn say_hello(send: &mut SendStream, hello: Hello) {
    send.write_all(&Preamble::OURS.encode()).await.unwrap();
    let frame = control::encode(&ClientMessage::Hello(hello)).unwrap();
    send.write_all(&frame).await.unwrap();
}

async fn answer(recv: &mut RecvStream) -> ServerMessage {
    let mut prefix = [0; FRAME_PREFIX_BYTES];
    recv.read_exact(&mut prefix).await.unwrap();
    let mut body = vec![0; control::frame_bytes(prefix).unwrap()];
    recv.read_exact(&mut body).await.unwrap();
    control::decode(&body).unwrap()
}

async fn preamble(recv: &mut RecvStream) -> Preamble {
    let mut bytes = [0; PREAMBLE_BYTES];
    recv.read_exact(&mut bytes).await.unwrap();
    Preamble::decode(&bytes).unwrap()
}

/// A peer that is in, for writing, without any feature.
async fn insider(server: &Running) -> Connection {
    insider_with(server, 0).await
}

async fn insider_with(server: &Running, features: u64) -> Connection {
    let (connection, mut send, mut recv) = peer(server.address).await;
    let hello = Hello {
        features,
        ..hello(&server.ticket, true)
    };
    say_hello(&mut send, hello).await;
    preamble(&mut recv).await;
    assert!(matches!(answer(&mut recv).await, ServerMessage::Welcome(_)));
    // The control stream stays open.
    tokio::spawn({
        let connection = connection.clone();
        async move {
            connection.closed().await;
            drop((send, recv));
        }
    });
    connection
}

/// What the server answers to these bytes on a data stream.
async fn ask(connection: &Connection, bytes: &[u8]) -> Option<ReplyHeader> {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    let _ = send.write_all(bytes).await;
    let _ = send.finish();
    let mut reply = [0; REPLY_BYTES];
    let read = tokio::time::timeout(PATIENCE, recv.read_exact(&mut reply));
    read.await.unwrap().ok()?;
    let request = header(Operation::Read, 0, 1 << 20);
    Some(ReplyHeader::decode(&reply, &request).unwrap())
}

fn header(operation: Operation, offset: u64, len: u64) -> RequestHeader {
    RequestHeader {
        operation,
        priority: Priority::Demand,
        offset,
        len,
        reply: Compression::Off,
    }
}

async fn serves_others(server: &Running) {
    let options = blockferry::net::RemoteOptions {
        read_only: true,
        ..net_support::options("another")
    };
    let remote = blockferry::net::Remote::connect(server.ticket.clone(), options)
        .await
        .unwrap();
    assert_eq!(read(&remote, 0, 512).await.unwrap().len(), 512);
}

#[tokio::test]
async fn a_peer_of_another_version_is_told_which_there_are() {
    let state = tempfile::tempdir().unwrap();
    let server = Setup::new(state.path(), Memory::new(SIZE)).start().await;
    let (_connection, mut send, mut recv) = peer(server.address).await;
    send.write_all(b"BFRY\x07\0\x09\0").await.unwrap();
    assert_eq!(preamble(&mut recv).await, Preamble::OURS);
    match answer(&mut recv).await {
        ServerMessage::Refused(refused) => assert_eq!(refused.reason, Refusal::Version),
        other => panic!("{other:?}"),
    }
    assert!(peer_speaking(server.address, b"http/1.1").await.is_err());
    serves_others(&server).await;
    server.stop().await;
}

#[tokio::test]
async fn nonsense_before_the_hello_is_refused_by_name() {
    let state = tempfile::tempdir().unwrap();
    let server = Setup::new(state.path(), Memory::new(SIZE)).start().await;
    let good = Preamble::OURS.encode();
    let with = |bytes: &[u8]| [&good[..], bytes].concat();
    let too_long = (CONTROL_MESSAGE_BYTES_MAX as u32 + 1).to_le_bytes();
    let cases = [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), WireError::Magic),
        (with(&u32::MAX.to_le_bytes()), WireError::MessageLength),
        (with(&too_long), WireError::MessageLength),
        (with(&[0; 4]), WireError::MessageLength),
        (with(&[4, 0, 0, 0, 99, 0, 0, 0]), WireError::Message),
    ];
    for (bytes, fault) in cases {
        let (_connection, mut send, mut recv) = peer(server.address).await;
        send.write_all(&bytes).await.unwrap();
        if fault != WireError::Magic {
            preamble(&mut recv).await;
        }
        match tokio::time::timeout(PATIENCE, answer(&mut recv))
            .await
            .unwrap()
        {
            ServerMessage::Refused(refused) => {
                assert_eq!(refused.reason, Refusal::Malformed);
                assert_eq!(refused.message, fault.to_string());
            }
            other => panic!("{other:?}"),
        }
    }
    serves_others(&server).await;
    server.stop().await;
}

#[tokio::test]
async fn a_stranger_gets_no_stream_but_the_one_for_its_hello() {
    let state = tempfile::tempdir().unwrap();
    let server = Setup::new(state.path(), Memory::new(SIZE)).start().await;
    let (connection, _send, _recv) = peer(server.address).await;
    let second = tokio::time::timeout(Duration::from_millis(300), connection.open_bi()).await;
    assert!(second.is_err(), "a data stream before the hello");
    // Nor can it make the server hold more than a hello of its bytes.
    let (_connection, mut send, _recv) = peer(server.address).await;
    let flood = async {
        let mut sent = 0;
        while let Ok(n) = send.write(&[0; 65536]).await {
            sent += n;
            assert!(sent < 1 << 20);
        }
    };
    let _ = tokio::time::timeout(Duration::from_millis(500), flood).await;
    serves_others(&server).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_and_random_peers_leave_the_server_serving() {
    let state = tempfile::tempdir().unwrap();
    let server = Setup::new(state.path(), Memory::new(SIZE)).start().await;
    let mut dice = Dice(3);
    let mut kept = Vec::new();
    for round in 0..40u64 {
        let Ok(connection) = peer_speaking(server.address, b"blockferry/1").await else {
            continue;
        };
        if round % 4 != 0 {
            let (mut send, recv) = connection.open_bi().await.unwrap();
            let mut bytes: Vec<u8> = (0..dice.roll(300)).map(|_| dice.roll(256) as u8).collect();
            if round % 2 == 0 {
                let mut frame = Preamble::OURS.encode().to_vec();
                frame.append(&mut bytes);
                bytes = frame;
            }
            let _ = send.write_all(&bytes).await;
            if round % 3 == 0 {
                let _ = send.finish();
            }
            kept.push((connection, Some((send, recv))));
        } else {
            kept.push((connection, None));
        }
    }
    serves_others(&server).await;
    drop(kept);
    server.stop().await;
}

#[tokio::test]
async fn a_stale_session_is_refused() {
    let state = tempfile::tempdir().unwrap();
    let server = Setup::new(state.path(), Memory::new(SIZE)).start().await;
    let with_session = |session| Hello {
        session,
        ..hello(&server.ticket, true)
    };
    let (second, mut send, mut recv) = peer(server.address).await;
    say_hello(&mut send, with_session(2)).await;
    preamble(&mut recv).await;
    assert!(matches!(answer(&mut recv).await, ServerMessage::Welcome(_)));
    let (_first, mut late_send, mut late_recv) = peer(server.address).await;
    say_hello(&mut late_send, with_session(1)).await;
    preamble(&mut late_recv).await;
    match answer(&mut late_recv).await {
        ServerMessage::Refused(refused) => assert_eq!(refused.reason, Refusal::Stale),
        other => panic!("{other:?}"),
    }
    let read = ask(&second, &header(Operation::Read, 0, 512).encode()).await;
    assert_eq!(read, Some(ReplyHeader::Done { count: 512 }));
    server.stop().await;
}

#[tokio::test]
async fn nonsense_on_a_data_stream_is_answered_by_name() {
    let state = tempfile::tempdir().unwrap();
    let memory = Memory::new(SIZE);
    let server = Setup::new(state.path(), memory.clone()).start().await;
    let connection = insider(&server).await;
    let good = header(Operation::Read, 0, 4096).encode();
    let with = |at: usize, byte: u8| {
        let mut bytes = good;
        bytes[at] = byte;
        bytes.to_vec()
    };
    let write = |segment: [u8; 12]| {
        let head = header(Operation::Write { fua: false }, 0, 4096).encode();
        [&head[..], &segment[..]].concat()
    };
    let segment = |at: usize, byte: u8| {
        let mut bytes = Segment::data(4096).encode();
        bytes[at] = byte;
        bytes
    };
    let listed = |runs: &[std::ops::Range<u64>], len: u64| {
        let start = runs.first().map_or(0, |run| run.start);
        let head = header(Operation::ReadRuns, start, len).encode();
        [&head[..], &run_list::encode(runs)].concat()
    };
    let runs_too_many: Vec<_> = (0..=u64::from(RUNS_MAX))
        .map(|at| 1024 * at..1024 * at + 512)
        .collect();
    let cases = [
        (with(0, 0), WireError::Magic),
        (with(0, 0xB7), WireError::Version),
        (with(1, 77), WireError::Operation),
        (with(2, 8), WireError::Flag),
        (with(3, 8), WireError::Priority),
        (with(4, 1), WireError::SegmentCompression),
        (with(4, 4), WireError::Compression),
        (with(5, 1), WireError::Reserved),
        (with(23, 0xFF), WireError::Length),
        (good[..11].to_vec(), WireError::Truncated),
        (vec![], WireError::Truncated),
        (write(segment(0, 9)), WireError::SegmentKind),
        (write(segment(0, 3)), WireError::SegmentCompression),
        (write(segment(7, 0xFF)), WireError::SegmentLength),
        (write(segment(4, 1)), WireError::SegmentLength),
        (write(segment(0, 1)), WireError::Truncated),
        (listed(&[0..512, 1024..1536], 1536), WireError::Length),
        (listed(&[1024..1536, 0..512], 1024), WireError::Range),
        (listed(&[], 512), WireError::Length),
        (
            listed(&runs_too_many, runs_too_many.len() as u64 * 512),
            WireError::Length,
        ),
        (
            listed(&[0..512, 1024..1536], 1024)[..40].to_vec(),
            WireError::Truncated,
        ),
    ];
    for (bytes, fault) in cases {
        let reply = ask(&connection, &bytes).await;
        assert_eq!(reply, Some(ReplyHeader::Malformed(fault)), "{bytes:?}");
    }
    let past_the_end = header(Operation::Read, SIZE as u64, 512).encode();
    let reply = ask(&connection, &past_the_end).await;
    assert_eq!(
        reply,
        Some(ReplyHeader::Failed(blockferry::volume::Errno::EINVAL))
    );
    let last_past_the_end = [0..512, SIZE as u64..SIZE as u64 + 512];
    let reply = ask(&connection, &listed(&last_past_the_end, 1024)).await;
    assert_eq!(
        reply,
        Some(ReplyHeader::Failed(blockferry::volume::Errno::EINVAL))
    );
    // It is served, not seeded.
    let digests = header(Operation::Digests, 0, 1 << 16).encode();
    let reply = ask(&connection, &digests).await;
    assert_eq!(
        reply,
        Some(ReplyHeader::Failed(blockferry::volume::Errno::EOPNOTSUPP))
    );
    let mut dice = Dice(11);
    for _ in 0..200 {
        let mut bytes: Vec<u8> = (0..dice.roll(80)).map(|_| dice.roll(256) as u8).collect();
        if bytes.len() > 8 {
            bytes[..8].copy_from_slice(&[0xB1, 1 + dice.roll(9) as u8, 0, 0, 0, 0, 0, 0]);
        }
        ask(&connection, &bytes).await;
    }
    assert!(memory.bytes.lock().unwrap().iter().all(|byte| *byte == 0));
    let reply = ask(&connection, &good).await;
    assert_eq!(reply, Some(ReplyHeader::Done { count: 4096 }));
    serves_others(&server).await;
    server.stop().await;
}

#[tokio::test]
async fn damaged_compressed_bodies_are_answered_by_name_and_change_nothing() {
    let state = tempfile::tempdir().unwrap();
    let memory = Memory::new(SIZE);
    let server = Setup::new(state.path(), memory.clone()).start().await;
    // What is above LZ4 nobody has a name for: it is as if it were not there.
    let connection = insider_with(&server, FEATURE_LZ4 | 1 << 63).await;
    let stored = codec::compress(Codec::Lz4, &[7; 4096]).unwrap();
    let write = |segment: Segment, stored: &[u8]| {
        let head = header(Operation::Write { fua: false }, 0, 4096).encode();
        [&head[..], &segment.encode(), stored].concat()
    };
    let packed = |codec, len, stored_len| Segment::packed(codec, len, stored_len);
    let len = stored.len() as u32;
    let mut damaged = stored.clone();
    damaged[0] ^= 0xFF;
    let cases = [
        (
            packed(Codec::Zstd, 4096, len),
            &stored,
            WireError::SegmentCompression,
        ),
        (
            packed(Codec::Lz4, 4096, len),
            &damaged,
            WireError::SegmentData,
        ),
        (
            packed(Codec::Lz4, 2048, len),
            &stored,
            WireError::SegmentData,
        ),
        (
            packed(Codec::Lz4, 4096, len + 1),
            &stored,
            WireError::Truncated,
        ),
        (
            packed(Codec::Lz4, 4096, len - 1),
            &stored,
            WireError::SegmentData,
        ),
        (
            packed(Codec::Lz4, 4097, len),
            &stored,
            WireError::SegmentLength,
        ),
        (
            packed(Codec::Lz4, u32::MAX, len),
            &stored,
            WireError::SegmentLength,
        ),
        (
            packed(Codec::Lz4, 4096, u32::MAX),
            &stored,
            WireError::SegmentLength,
        ),
    ];
    for (segment, stored, fault) in cases {
        let reply = ask(&connection, &write(segment, stored)).await;
        assert_eq!(reply, Some(ReplyHeader::Malformed(fault)), "{segment:?}");
    }
    let zstd = RequestHeader {
        reply: Compression::Zstd,
        ..header(Operation::Read, 0, 4096)
    };
    let reply = ask(&connection, &zstd.encode()).await;
    let fault = WireError::SegmentCompression;
    assert_eq!(reply, Some(ReplyHeader::Malformed(fault)));
    assert!(memory.bytes.lock().unwrap().iter().all(|byte| *byte == 0));
    let good = write(packed(Codec::Lz4, 4096, len), &stored);
    let reply = ask(&connection, &good).await;
    assert_eq!(reply, Some(ReplyHeader::Done { count: 0 }));
    assert_eq!(memory.bytes.lock().unwrap()[..4096], [7; 4096]);
    server.stop().await;
}

#[tokio::test]
async fn a_reader_that_writes_is_refused() {
    let state = tempfile::tempdir().unwrap();
    let memory = Memory::new(SIZE);
    let server = Setup::new(state.path(), memory.clone()).start().await;
    let (connection, mut send, mut recv) = peer(server.address).await;
    say_hello(&mut send, hello(&server.ticket, false)).await;
    preamble(&mut recv).await;
    assert!(matches!(answer(&mut recv).await, ServerMessage::Welcome(_)));
    let reply = ask(&connection, &header(Operation::Discard, 0, 512).encode()).await;
    assert_eq!(
        reply,
        Some(ReplyHeader::Failed(blockferry::volume::Errno::EPERM))
    );
    assert_eq!(memory.writes.load(std::sync::atomic::Ordering::SeqCst), 0);
    server.stop().await;
}

#[tokio::test]
async fn half_written_requests_hold_up_nobody_else() {
    let state = tempfile::tempdir().unwrap();
    let server = Setup::new(state.path(), Memory::new(32 << 20))
        .start()
        .await;
    let connection = insider(&server).await;
    let mut kept = Vec::new();
    // More bodies that never come than the session has room for.
    for _ in 0..40 {
        let (mut send, recv) = connection.open_bi().await.unwrap();
        let head = header(Operation::Write { fua: false }, 0, 4 << 20).encode();
        send.write_all(&head).await.unwrap();
        kept.push((send, recv));
    }
    serves_others(&server).await;
    drop(kept);
    let mut session = hello(&server.ticket, true);
    session.session = 2;
    let (again, mut send, mut recv) = peer(server.address).await;
    say_hello(&mut send, session).await;
    preamble(&mut recv).await;
    assert!(matches!(answer(&mut recv).await, ServerMessage::Welcome(_)));
    let reply = ask(&again, &header(Operation::Read, 0, 512).encode()).await;
    assert_eq!(reply, Some(ReplyHeader::Done { count: 512 }));
    server.stop().await;
}

#[tokio::test]
async fn a_second_hello_ends_the_session() {
    let state = tempfile::tempdir().unwrap();
    let server = Setup::new(state.path(), Memory::new(SIZE)).start().await;
    let (connection, mut send, mut recv) = peer(server.address).await;
    say_hello(&mut send, hello(&server.ticket, true)).await;
    preamble(&mut recv).await;
    assert!(matches!(answer(&mut recv).await, ServerMessage::Welcome(_)));
    let frame = control::encode(&ClientMessage::Hello(hello(&server.ticket, true))).unwrap();
    send.write_all(&frame).await.unwrap();
    let closed = tokio::time::timeout(PATIENCE, connection.closed()).await;
    assert!(closed.is_ok());
    server.stop().await;
}
