//! `blockferry serve` and `blockferry ticket` as programs: killed, restarted, stopped, refused.

#![allow(clippy::unwrap_used, missing_docs)]

mod net_support;

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use blockferry::AsyncBackend;
use blockferry::net::Remote;
use blockferry::wire::Ticket;
use net_support::{PATIENCE, connect, options, pattern, read, write};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SIZE: u64 = 8 << 20;

struct Host {
    directory: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let disk = std::fs::File::create(directory.path().join("disk.img")).unwrap();
        disk.set_len(SIZE).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn blockferry(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blockferry"));
        command
            .args(arguments)
            .arg("--state-dir")
            .arg(self.path("state"))
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.blockferry(arguments).output().unwrap()
    }

    fn disk_url(&self) -> String {
        format!("file:{}", self.path("disk.img").display())
    }

    fn serve(&self, arguments: &[&str]) -> Serving {
        let mut child = self
            .blockferry(&[&["serve"], arguments].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        if line.is_empty() {
            let mut said = String::new();
            child
                .stderr
                .take()
                .unwrap()
                .read_to_string(&mut said)
                .unwrap();
            panic!("serve did not start: {said}");
        }
        Serving {
            ticket: line.trim().parse().unwrap(),
            child,
        }
    }
}

struct Serving {
    ticket: Ticket,
    child: Child,
}

impl Serving {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    fn listen(&self) -> String {
        self.ticket.address.to_string()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn said(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_go_on_after_the_server_was_killed_and_started_again() {
    let host = Host::new();
    let mut serving = host.serve(&[&host.disk_url(), "--listen", "127.0.0.1:0"]);
    let listen = serving.listen();
    let remote = connect(&serving.ticket).await;
    let done = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn({
        let (remote, done) = (Arc::clone(&remote), Arc::clone(&done));
        async move {
            let mut round = 0u64;
            while !done.load(Ordering::SeqCst) {
                let bytes = pattern(round, 50_000);
                let at = round * 50_000 % (SIZE - 50_000);
                write(&remote, at, &bytes).await.unwrap();
                assert!(read(&remote, at, bytes.len()).await.unwrap() == bytes);
                remote.flush().await.unwrap();
                round += 1;
            }
            round
        }
    });
    for _ in 0..3 {
        write(&remote, SIZE - 512, &[1; 512]).await.unwrap();
        serving.signal(Signal::SIGKILL);
        serving.child.wait().unwrap();
        serving = host.serve(&[&host.disk_url(), "--listen", &listen]);
        // The same ticket still fits.
        let again = write(&remote, SIZE - 512, &[2; 512]);
        tokio::time::timeout(PATIENCE, again)
            .await
            .unwrap()
            .unwrap();
    }
    done.store(true, Ordering::SeqCst);
    let rounds = tokio::time::timeout(PATIENCE, load).await.unwrap().unwrap();
    assert!(rounds > 0);
    remote.close().await.unwrap();
}

#[tokio::test]
async fn a_signal_lets_it_finish_and_the_file_keeps_what_was_written() {
    let host = Host::new();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut serving = host.serve(&[&host.disk_url(), "--listen", "127.0.0.1:0"]);
        let remote = connect(&serving.ticket).await;
        write(&remote, 4096, &[signal as u8; 4096]).await.unwrap();
        remote.close().await.unwrap();
        serving.signal(signal);
        let status = serving.child.wait().unwrap();
        assert_eq!(status.code(), Some(0));
        let kept = std::fs::read(host.path("disk.img")).unwrap();
        assert_eq!(kept[4096..8192], [signal as u8; 4096]);
    }
}

#[tokio::test]
async fn many_volumes_have_a_ticket_each_on_standard_output_and_in_the_file() {
    let host = Host::new();
    let file = host.path("tickets");
    let disk = format!("a={}", host.disk_url());
    let file_name = file.display().to_string();
    let listen = ["--listen", "127.0.0.1:0", "--ticket-file", &file_name];
    let serving = host.serve(&[&[disk.as_str(), "b=mem:1MiB"], &listen[..]].concat());
    let kept = std::fs::read_to_string(&file).unwrap();
    let tickets: Vec<Ticket> = kept.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(tickets[0], serving.ticket);
    assert_eq!(
        std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    for (ticket, size) in tickets.iter().zip([SIZE, 1 << 20]) {
        let remote = connect(ticket).await;
        assert_eq!(remote.size(), size);
        write(&remote, 0, &[3; 512]).await.unwrap();
    }
    // The secret of one does not open the other.
    let mut crossed = tickets[0].clone();
    crossed.volume = tickets[1].volume.clone();
    assert!(Remote::connect(crossed, options("a")).await.is_err());
}

#[tokio::test]
async fn the_ticket_verb_prints_it_again_and_rotates_it_under_a_running_server() {
    let host = Host::new();
    let serving = host.serve(&[&host.disk_url(), "--listen", "127.0.0.1:0"]);
    let ticket = |arguments: &[&str]| -> Ticket {
        let output = host.run(&[&["ticket", "disk"], arguments].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout)
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    };
    assert_eq!(ticket(&[]), serving.ticket);
    let fresh = ticket(&["--rotate"]);
    assert_ne!(fresh, serving.ticket);
    let refused = Remote::connect(serving.ticket.clone(), options("a")).await;
    assert!(refused.is_err());
    let remote = connect(&fresh).await;
    read(&remote, 0, 512).await.unwrap();
    let said = said(&host.run(&["ticket", "unknown"]));
    assert!(said.contains("no volume named `unknown`"), "{said}");
}

#[test]
fn what_cannot_be_served_is_said_and_leaves_no_ticket() {
    let host = Host::new();
    let any = ["--listen", "127.0.0.1:0"];
    let directory = format!("disk=file:{}", host.directory.path().display());
    std::fs::File::create(host.path("empty")).unwrap();
    let empty = format!("file:{}", host.path("empty").display());
    let cases = [
        ("file:/no/such/file", "/no/such/file"),
        (&directory, "directory"),
        (&empty, "empty"),
    ];
    for (resource, part) in cases {
        let said = said(&host.run(&[&["serve", resource], &any[..]].concat()));
        assert!(said.contains(part), "{resource}: {said}");
    }
    let serving = host.serve(&[&["mem:1MiB"], &any[..]].concat());
    let said = said(&host.run(&["serve", "other=mem:1MiB", "--listen", &serving.listen()]));
    assert!(said.contains("in use"), "{said}");
}

#[test]
fn usage_errors_have_a_code_of_their_own() {
    let host = Host::new();
    for arguments in [
        &["serve"][..],
        &["serve", "mem:1MiB", "--lease", "0"],
        &["serve", "mem:1MiB", "--listen", "nowhere"],
        &["serve", "a b=mem:1MiB"],
        &["serve", "mem:1MiB", "--ca", "x"],
        &["ticket", "../x"],
    ] {
        let output = host.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
    }
    for (arguments, part) in [
        (&["serve", "ftp://x"][..], "ftp"),
        (&["serve", "mem:1MiB", "mem:2MiB"], "two volumes"),
        (&["serve", "a=mem:1MiB", "--name", "b"], "--name"),
    ] {
        let output = host.run(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(part), "{arguments:?}: {said}");
    }
}

#[test]
fn help_has_examples() {
    for verb in ["serve", "ticket"] {
        let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_blockferry")));
        let output = command.args([verb, "--help"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(&format!("blockferry {verb} ")), "{text}");
        assert!(text.contains("Example"), "{text}");
    }
}
