//! Who gets in, and what those who do not are told.

#![allow(clippy::unwrap_used, missing_docs)]

mod net_support;

use std::path::Path;
use std::time::{Duration, Instant};

use blockferry::net::{
    Content, LEASE_DEFAULT, Remote, RemoteOptions, ServedVolume, Server, ServerConfig, StateDir,
    TlsFiles,
};
use blockferry::wire::{Secret, Ticket};
use blockferry::{AsyncBackend, Error, ErrorKind};
use net_support::{Memory, PATIENCE, Running, Setup, connect, disk, options, read, write};

const SIZE: usize = 1 << 20;

async fn refused(ticket: &Ticket, options: RemoteOptions) -> Error {
    match Remote::connect(ticket.clone(), options).await {
        Ok(_) => panic!("it was let in"),
        Err(error) => error,
    }
}

fn assert_says(error: &Error, kind: ErrorKind, part: &str) {
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(part), "{error}");
}

#[tokio::test]
async fn each_way_not_to_get_in_has_its_own_message() {
    let state = tempfile::tempdir().unwrap();
    let server = Setup::new(state.path(), Memory::new(SIZE)).start().await;
    let ticket = server.ticket.clone();

    let mut other_server = ticket.clone();
    other_server.credentials.as_mut().unwrap().fingerprint.0[0] ^= 1;
    let error = refused(&other_server, options("a")).await;
    assert_says(&error, ErrorKind::Unauthenticated, "fingerprint");

    let mut other_secret = ticket.clone();
    other_secret.credentials.as_mut().unwrap().secret.0[31] ^= 1;
    let error = refused(&other_secret, options("a")).await;
    assert_says(&error, ErrorKind::Unauthenticated, "secret");

    let mut other_volume = ticket.clone();
    other_volume.volume = "other".parse().unwrap();
    let error = refused(&other_volume, options("a")).await;
    assert_says(&error, ErrorKind::NotFound, "no volume named `other`");

    // A stranger does not get to know which volumes there are.
    other_volume.credentials.as_mut().unwrap().secret = Secret([9; 32]);
    let error = refused(&other_volume, options("a")).await;
    assert_says(&error, ErrorKind::Unauthenticated, "secret");

    let mut no_secret = ticket.clone();
    no_secret.credentials = None;
    let error = refused(&no_secret, options("a")).await;
    assert_says(&error, ErrorKind::InvalidInput, "--ca");
    server.stop().await;
}

#[tokio::test]
async fn a_host_that_does_not_answer_is_given_up_after_its_time() {
    // A socket that nobody reads.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let ticket = format!(
        "blockferry://127.0.0.1:{port}/disk#v1.{0}.{0}",
        "A".repeat(43)
    );
    let begun = Instant::now();
    let hurried = RemoteOptions {
        connect_timeout: Duration::from_millis(500),
        ..options("a")
    };
    let error = refused(&ticket.parse().unwrap(), hurried).await;
    assert_says(&error, ErrorKind::Unreachable, "no answer from 127.0.0.1");
    assert!(begun.elapsed() >= Duration::from_millis(500));
}

#[tokio::test]
async fn a_host_without_an_address_is_named() {
    let ticket = format!(
        "blockferry://no-such-host.invalid:1/disk#v1.{0}.{0}",
        "A".repeat(43)
    );
    let error = refused(&ticket.parse().unwrap(), options("a")).await;
    assert_says(&error, ErrorKind::Unreachable, "no-such-host.invalid");
}

#[tokio::test]
async fn a_read_only_volume_is_not_mounted_writable() {
    let state = tempfile::tempdir().unwrap();
    let setup = Setup {
        read_only: true,
        ..Setup::new(state.path(), Memory::new(SIZE))
    };
    let server = setup.start().await;
    let error = refused(&server.ticket, options("a")).await;
    assert_says(&error, ErrorKind::ReadOnly, "--read-only");
    let reader = RemoteOptions {
        read_only: true,
        ..options("a")
    };
    let remote = Remote::connect(server.ticket.clone(), reader)
        .await
        .unwrap();
    assert!(remote.capabilities().read_only);
    assert_eq!(read(&remote, 0, 512).await.unwrap(), vec![0; 512]);
    let error = write(&remote, 0, &[1]).await.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    server.stop().await;
}

#[tokio::test]
async fn two_servers_do_not_share_a_port_or_a_volume() {
    let state = tempfile::tempdir().unwrap();
    let other_state = tempfile::tempdir().unwrap();
    let server = Setup::new(state.path(), Memory::new(SIZE)).start().await;
    let bind = |listen, state: &Path| {
        let config = ServerConfig {
            listen,
            advertise: None,
            state_dir: Some(state.to_owned()),
            tls: None,
            lease: LEASE_DEFAULT,
        };
        let volume = ServedVolume {
            name: disk(),
            backend: Memory::new(SIZE),
            block_bytes: None,
            read_only: false,
            content: Content::Name,
            instance: [0; 16],
            leechers: None,
        };
        Server::bind(config, vec![volume]).map(|_| ())
    };
    let error = bind(server.address, other_state.path()).unwrap_err();
    assert_says(&error, ErrorKind::Busy, "in use");
    let any = "127.0.0.1:0".parse().unwrap();
    let error = bind(any, state.path()).unwrap_err();
    assert_says(&error, ErrorKind::Busy, "another process serves");
    let elsewhere = "192.0.2.1:1".parse().unwrap();
    let error = bind(elsewhere, other_state.path()).unwrap_err();
    assert_says(&error, ErrorKind::InvalidInput, "no address of this host");
    server.stop().await;
}

#[tokio::test]
async fn a_rotated_ticket_lets_in_and_the_old_one_is_sent_away() {
    let state = tempfile::tempdir().unwrap();
    let server = Setup::new(state.path(), Memory::new(SIZE)).start().await;
    let inside = connect(&server.ticket).await;
    write(&inside, 0, &[7; 512]).await.unwrap();

    let kept = StateDir::open(Some(state.path())).unwrap();
    let fresh = kept.ticket(&disk(), true).unwrap();
    let error = refused(&server.ticket, options("b")).await;
    assert_says(&error, ErrorKind::Unauthenticated, "rotated");

    // The one that was in already is out for good.
    let ended = async {
        while read(&inside, 0, 512).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.unwrap();
    assert!(inside.away_since().is_none());

    let taking_over = RemoteOptions {
        takeover: true,
        ..options("b")
    };
    let remote = Remote::connect(fresh, taking_over).await.unwrap();
    assert_eq!(read(&remote, 0, 512).await.unwrap(), [7; 512]);
    server.stop().await;
}

struct Authority {
    certificate: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Self {
            certificate,
            issuer: rcgen::Issuer::new(params, key),
        }
    }

    /// Files for one end, whose certificate is for 127.0.0.1.
    fn files(&self, directory: &Path, name: &str) -> TlsFiles {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let put = |what: &str, text: String| {
            let path = directory.join(format!("{name}.{what}"));
            std::fs::write(&path, text).unwrap();
            path
        };
        TlsFiles {
            ca: put("ca", self.certificate.pem()),
            certificate: put("cert", certificate.pem()),
            key: put("key", key.serialize_pem()),
        }
    }
}

#[tokio::test]
async fn certificates_of_one_ca_let_in_without_a_secret_and_others_do_not() {
    let directory = tempfile::tempdir().unwrap();
    let ours = Authority::new();
    let theirs = Authority::new();
    let config = ServerConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        advertise: None,
        state_dir: Some(directory.path().join("state")),
        tls: Some(ours.files(directory.path(), "server")),
        lease: LEASE_DEFAULT,
    };
    let volume = ServedVolume {
        name: disk(),
        backend: Memory::new(SIZE),
        block_bytes: None,
        read_only: false,
        content: Content::Name,
        instance: [1; 16],
        leechers: None,
    };
    let server = Running::start(Server::bind(config, vec![volume]).unwrap());
    assert!(server.ticket.credentials.is_none());
    let with = |files: TlsFiles| RemoteOptions {
        tls: Some(files),
        connect_timeout: PATIENCE,
        ..options("a")
    };

    let good = ours.files(directory.path(), "good");
    let remote = Remote::connect(server.ticket.clone(), with(good.clone()))
        .await
        .unwrap();
    write(&remote, 0, &[1; 512]).await.unwrap();
    remote.close().await.unwrap();
    assert_eq!(remote.lost_because(), None, "the end is no loss");

    // A client that another authority signed, though it trusts ours.
    let foreign = TlsFiles {
        ca: good.ca.clone(),
        ..theirs.files(directory.path(), "foreign")
    };
    let error = refused(&server.ticket, with(foreign)).await;
    assert_says(&error, ErrorKind::Unauthenticated, "certificates");

    // A client that trusts another authority only.
    let wary = TlsFiles {
        ca: theirs.files(directory.path(), "wary").ca,
        ..good.clone()
    };
    let error = refused(&server.ticket, with(wary)).await;
    assert_says(&error, ErrorKind::Unauthenticated, "certificates");

    let missing = TlsFiles {
        key: directory.path().join("missing"),
        ..good.clone()
    };
    let error = refused(&server.ticket, with(missing)).await;
    assert_says(&error, ErrorKind::InvalidInput, "missing");

    let mut other_volume = server.ticket.clone();
    other_volume.volume = "other".parse().unwrap();
    let error = refused(&other_volume, with(good)).await;
    assert_says(&error, ErrorKind::NotFound, "other");
    server.stop().await;
}
