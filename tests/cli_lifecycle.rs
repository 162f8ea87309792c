//! A device from `mount` to `stop`, on the best kind that this machine can make.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use blockferry::device;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// A run-time directory, and what was started in it.
struct Host {
    run: TempDir,
}

/// A `mount` that runs; killed when the test ends early.
struct Mount {
    child: Child,
    device: PathBuf,
}

impl Host {
    /// `None`, with the reason on standard error, where no device can be made.
    fn new() -> Option<Self> {
        match device::choose(None) {
            Ok(_) => Some(Self {
                run: tempfile::tempdir().expect("directory"),
            }),
            Err(error) => {
                eprintln!("skipped: {}", error.chain());
                None
            }
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blockferry"));
        command
            .args(args)
            .env("BLOCKFERRY_RUN_DIR", self.run.path())
            .env_remove("RUST_LOG")
            .env_remove("BLOCKFERRY_TICKET")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("started")
    }

    fn succeeds(&self, args: &[&str]) {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", error(&output));
    }

    fn mount(&self, name: &str) -> Mount {
        let mut child = self
            .command(&["mount", "mem:16MiB", "--direct", "--name", name])
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("read");
        let device = PathBuf::from(line.trim_end());
        assert!(device.exists(), "{line:?}");
        Mount { child, device }
    }

    fn list(&self) -> serde_json::Value {
        let output = self.run(&["list", "--json"]);
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    fn is_empty(&self) -> bool {
        let mut entries = fs::read_dir(self.run.path()).expect("readable");
        entries.next().is_none()
    }
}

impl Mount {
    /// Ends it as a crash would.
    fn crash(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("waited");
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32);
        kill(pid, signal).expect("sent");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A process that holds a file open until it is dropped.
struct Opener(Child);

impl Opener {
    fn of(path: &Path) -> Self {
        let file = fs::File::open(path).expect("opened");
        let child = Command::new("sleep")
            .arg("600")
            .stdin(Stdio::from(file))
            .spawn();
        Self(child.expect("started"))
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_stopped_device_leaves_nothing_and_its_name_is_free() {
    let Some(host) = Host::new() else { return };
    for _ in 0..2 {
        let mut mount = host.mount("disk");
        let list = host.list();
        assert_eq!(list[0]["state"], "alive");
        assert_eq!(list[0]["device"], mount.device.to_str().expect("text"));
        assert_eq!(list[0]["resource"], "mem:16MiB");
        assert_eq!(list[0]["size_bytes"], 16 << 20);
        let output = host.run(&["mount", "mem:1MiB", "--direct", "--name", "disk"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            error(&output).contains("`disk` is running"),
            "{}",
            error(&output)
        );
        host.succeeds(&["stop", "disk"]);
        assert!(host.is_empty());
        assert!(mount.child.wait().expect("waited").success());
    }
}

#[test]
fn a_signal_ends_a_device_as_stop_does() {
    let Some(host) = Host::new() else { return };
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut mount = host.mount("disk");
        mount.signal(signal);
        assert!(mount.child.wait().expect("waited").success());
        assert!(host.is_empty());
    }
}

#[test]
fn a_device_that_is_held_open_stays_until_it_is_forced() {
    let Some(host) = Host::new() else { return };
    let mut mount = host.mount("disk");
    let opener = Opener::of(&mount.device);
    let output = host.run(&["stop", "disk"]);
    assert_eq!(output.status.code(), Some(1));
    let by = format!("open by {} (sleep)", opener.0.id());
    assert!(error(&output).contains(&by), "{}", error(&output));
    assert_eq!(host.list()[0]["state"], "alive");
    host.succeeds(&["stop", "disk", "--force"]);
    assert!(mount.child.wait().expect("waited").success());
    assert!(host.is_empty());
    drop(opener);
}

#[test]
fn what_a_killed_process_left_is_listed_and_cleaned_without_a_reboot() {
    let Some(host) = Host::new() else { return };
    let mut mount = host.mount("disk");
    mount.crash();
    let list = host.list();
    assert_eq!(list[0]["state"], "dead");
    assert_eq!(list[0]["device"], mount.device.to_str().expect("text"));
    let output = host.run(&["mount", "mem:1MiB", "--direct", "--name", "disk"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        error(&output).contains("`blockferry stop disk`"),
        "{}",
        error(&output)
    );
    host.succeeds(&["stop", "disk"]);
    assert!(host.is_empty());
    let again = host.mount("disk");
    host.succeeds(&["stop", "disk"]);
    drop(again);
    assert!(host.is_empty());
}
