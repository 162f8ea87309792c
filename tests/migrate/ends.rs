//! A seeder and a leecher as processes of their own, over loopback.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use blockferry::device;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(90);

/// How long the volume is, in bytes: not a whole number of the leaves of a proof.
pub(crate) const SIZE: u64 = (8 << 20) + 12288;

/// Folders of its own for both hosts.
pub(crate) struct World {
    directory: TempDir,
}

/// A `seed` or a `leech` that runs; killed when the test ends.
pub(crate) struct End {
    pub(crate) child: Child,
    stdout: BufReader<ChildStdout>,
    stderr: PathBuf,
    pub(crate) device: PathBuf,
    /// What the second line says: the ticket, or the downtime.
    pub(crate) second: String,
}

pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Where a ticket says that the seeder is.
pub(crate) fn address_in(ticket: &str) -> &str {
    let after = ticket.trim_start_matches("blockferry://");
    after.split('/').next().unwrap_or_default()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

impl World {
    /// With a volume at `a.img`, of which a part is holes. `None`, with the reason on standard error, where
    /// no device can be made.
    pub(crate) fn new() -> Option<Self> {
        if let Err(error) = device::choose(None) {
            eprintln!("skipped: {}", error.chain());
            return None;
        }
        let world = Self {
            directory: tempfile::tempdir().expect("directory"),
        };
        let volume = File::create(world.path("a.img")).expect("made");
        volume.set_len(SIZE).expect("sized");
        for block in (0..SIZE / 4096).filter(|block| block % 64 < 40) {
            let bytes: Vec<u8> = (0..512u64)
                .flat_map(|word| (block << 16 | word).to_le_bytes())
                .collect();
            volume.write_all_at(&bytes, block * 4096).expect("written");
        }
        Some(world)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn url(&self, file: &str) -> String {
        format!("file:{}", self.path(file).display())
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blockferry"));
        command
            .args(args)
            .env("BLOCKFERRY_RUN_DIR", self.path("run"))
            .env("XDG_STATE_HOME", self.path("state-home"))
            .env_remove("RUST_LOG")
            .env_remove("BLOCKFERRY_TICKET")
            .stdin(Stdio::null());
        command
    }

    /// Runs it and gives what it wrote to standard output.
    pub(crate) fn succeeds(&self, args: &[&str]) -> String {
        let output = self.command(args).output().expect("started");
        assert!(output.status.success(), "{args:?}: {}", said(&output));
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs it; it fails, and says all `parts` on standard error.
    pub(crate) fn fails(&self, args: &[&str], parts: &[&str]) {
        let output = self.command(args).output().expect("started");
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        for part in parts {
            assert!(said.contains(part), "{args:?}: no `{part}` in {said}");
        }
    }

    /// Leeches by the seeder's ticket into a store; it fails, and says all `parts`.
    pub(crate) fn leech_fails(&self, store: &str, parts: &[&str]) {
        let ticket = format!("@{}", self.path("ticket").display());
        let args = ["leech", &ticket, "--store", store, "--device", "fuse"];
        self.fails(&args, parts);
    }

    /// Seeds a file, at any port; it fails, and says all `parts`.
    pub(crate) fn seed_fails(&self, file: &str, parts: &[&str]) {
        let (volume, listen) = (self.url(file), "127.0.0.1:0");
        let args = ["seed", &volume, "--device", "fuse", "--listen", listen];
        self.fails(&args, parts);
    }

    /// Has the volume move, as soon as the leecher can be told so.
    pub(crate) fn finalize(&self) {
        let told = || self.command(&["finalize", "leecher"]).output();
        until("it can be told", || {
            told().expect("started").status.success()
        });
    }

    fn begin(&self, args: &[&str], log: &str) -> End {
        let stderr = self.path(log);
        let mut child = self
            .command(args)
            .stdout(Stdio::piped())
            .stderr(
                File::options()
                    .create(true)
                    .append(true)
                    .open(&stderr)
                    .expect("made"),
            )
            .spawn()
            .expect("started");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        End {
            child,
            stdout,
            stderr,
            device: PathBuf::new(),
            second: String::new(),
        }
    }

    /// Seeds a file, under the name `seeder`, at a free port or where the ticket says.
    pub(crate) fn seed(&self, file: &str, args: &[&str]) -> End {
        let ticket = std::fs::read_to_string(self.path("ticket")).unwrap_or_default();
        let listen = match address_in(&ticket) {
            "" => "127.0.0.1:0",
            address => address,
        };
        let (url, ticket) = (self.url(file), self.path("ticket").display().to_string());
        let state = self.path("state").display().to_string();
        let fixed = [
            "seed",
            &url,
            "--listen",
            listen,
            "--name",
            "seeder",
            "--device",
            "fuse",
            "--ticket-file",
            &ticket,
            "--state-dir",
            &state,
            "-v",
        ];
        self.begin(&[&fixed, args].concat(), "seed.log")
    }

    /// Serves a file, which is not seeding it. Ready when this returns.
    pub(crate) fn serve(&self, file: &str) -> End {
        let volume = format!("served={}", self.url(file));
        let (ticket, state) = (self.path("ticket"), self.path("state"));
        let (ticket, state) = (ticket.display().to_string(), state.display().to_string());
        let args = [
            "serve",
            &volume,
            "--listen",
            "127.0.0.1:0",
            "--ticket-file",
            &ticket,
            "--state-dir",
            &state,
        ];
        let mut server = self.begin(&args, "serve.log");
        assert!(
            server.line().starts_with("blockferry://"),
            "{}",
            server.log()
        );
        server
    }

    /// Leeches into a file, or memory, under the name `leecher`.
    pub(crate) fn leech(&self, store: &str, args: &[&str]) -> End {
        let over_link = self.path("ticket-of-link").exists();
        let ticket = match over_link {
            true => "ticket-of-link",
            false => "ticket",
        };
        self.leech_as("leecher", "host-b", ticket, store, args)
    }

    /// The same under another name, for another host, by another ticket.
    pub(crate) fn leech_as(
        &self,
        name: &str,
        host: &str,
        ticket: &str,
        store: &str,
        args: &[&str],
    ) -> End {
        let ticket = format!("@{}", self.path(ticket).display());
        let fixed = [
            "leech",
            &ticket,
            "--store",
            store,
            "--name",
            name,
            "--device",
            "fuse",
            "--host-name",
            host,
            "-v",
        ];
        self.begin(&[&fixed, args].concat(), &format!("{name}.log"))
    }

    /// The options by which a leecher seeds on, with a ticket of its own.
    pub(crate) fn seeding_on(&self, ticket: &str) -> [String; 6] {
        let (ticket, state) = (self.path(ticket), self.path("state"));
        [
            "--listen".to_owned(),
            "127.0.0.1:0".to_owned(),
            "--ticket-file".to_owned(),
            ticket.display().to_string(),
            "--state-dir".to_owned(),
            state.display().to_string(),
        ]
    }

    /// Goes on with what was killed under that name.
    pub(crate) fn recover(&self, name: &str) -> End {
        self.begin(&["recover", name, "-v"], &format!("{name}-again.log"))
    }

    /// Mounts a file, under the name `disk`.
    pub(crate) fn mount(&self, file: &str) -> End {
        let url = self.url(file);
        let args = ["mount", &url, "--device", "fuse", "--name", "disk"];
        self.begin(&args, "mount.log")
    }

    /// What an end says of the migration.
    pub(crate) fn status(&self, name: &str) -> Option<Value> {
        let output = self
            .command(&["migrate", "status", name, "--json"])
            .output()
            .expect("started");
        serde_json::from_slice(&output.stdout).ok()
    }

    /// Waits until the leecher has pulled so many rounds.
    pub(crate) fn until_rounds(&self, rounds: u64) {
        until("rounds are pulled", || {
            let status = self.status("leecher");
            status.is_some_and(|status| status["rounds"].as_u64() >= Some(rounds))
        });
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // What was killed has left its device, by which the folders are in use.
        for name in ["seeder", "leecher", "second", "third", "disk"] {
            let _ = self
                .command(&["stop", "--force", name])
                .stderr(Stdio::null())
                .status();
            // One that was killed before it had noted its device has left the file system below.
            for how in ["-f", "-l"] {
                let _ = Command::new("umount")
                    .arg(how)
                    .arg(self.path("run").join(name).join("fuse"))
                    .stderr(Stdio::null())
                    .status();
            }
        }
    }
}

impl End {
    /// Waits for the two lines: the device, and what else there is to say.
    pub(crate) fn wait_until_ready(mut self) -> Self {
        self.device = PathBuf::from(self.line());
        assert!(self.device.exists(), "{:?}: {}", self.device, self.log());
        self.second = self.line();
        self
    }

    /// Waits for the first line alone.
    pub(crate) fn wait_until_here(mut self) -> Self {
        self.device = PathBuf::from(self.line());
        assert!(self.device.exists(), "{:?}: {}", self.device, self.log());
        self
    }

    /// The next line of what it says.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("read");
        line.trim_end().to_owned()
    }

    /// Waits until a leecher has told its seeder that it is not needed any more.
    pub(crate) fn until_released(&self) {
        until("the seeder is released", || {
            self.log().contains("the seeder is released")
        });
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.stderr).expect("read")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("sent");
    }

    /// Ends it as a crash would.
    pub(crate) fn crash(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("waited");
    }

    /// Waits for its end.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        until("it ends", || {
            self.child.try_wait().expect("waited").is_some()
        });
        self.child.wait().expect("waited").code()
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}:\n{}", self.stderr.display(), self.log());
        }
    }
}

/// Whether two files have the same bytes.
pub(crate) fn are_equal(one: &Path, other: &Path) -> bool {
    std::fs::read(one).expect("read") == std::fs::read(other).expect("read")
}
