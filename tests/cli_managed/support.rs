//! A server and managed mounts as processes of their own, over loopback.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use blockferry::device;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::relay::{Link, Relay};

/// How long anything may take that is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const CHUNK: u64 = 256 << 10;

/// How long the volume is unless a test says otherwise.
pub(crate) const SIZE: u64 = 16 << 20;

/// Local writes stay where they are, and a flush does not change that.
pub(crate) const KEEP_DIRTY: [&str; 4] = ["--push-interval", "3600", "--durability", "local"];

/// Folders of its own for everything that a host keeps.
pub(crate) struct Host {
    directory: TempDir,
}

/// A `serve` that runs; killed when the test ends.
pub(crate) struct Server {
    child: Child,
    listen: String,
}

/// A `mount` that runs; killed when the test ends.
pub(crate) struct Mount {
    pub(crate) child: Child,
    pub(crate) device: PathBuf,
    stderr: PathBuf,
}

/// Bytes that tell their place and `round`; none are zero.
pub(crate) fn pattern(offset: u64, len: usize, round: u64) -> Vec<u8> {
    let word = |at: u64| (at ^ round.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes();
    (0..len as u64)
        .step_by(8)
        .flat_map(|at| word(offset + at))
        .map(|byte| byte | 1)
        .take(len)
        .collect()
}

pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Host {
    /// With a volume of [`SIZE`]. `None`, with the reason on standard error, where no device can be
    /// made.
    pub(crate) fn new() -> Option<Self> {
        if let Err(error) = device::choose(None) {
            eprintln!("skipped: {}", error.chain());
            return None;
        }
        let host = Self {
            directory: tempfile::tempdir().expect("directory"),
        };
        host.make_volume(SIZE);
        Some(host)
    }

    pub(crate) fn make_volume(&self, size: u64) {
        let volume = File::create(self.path("disk.img")).expect("made");
        for offset in (0..size).step_by(1 << 20) {
            let len = (size - offset).min(1 << 20) as usize;
            let bytes = pattern(offset, len, 0);
            volume.write_all_at(&bytes, offset).expect("written");
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = self.other_command(env!("CARGO_BIN_EXE_blockferry"));
        command.args(args);
        command
    }

    /// Another program that may run this one.
    pub(crate) fn other_command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("BLOCKFERRY_RUN_DIR", self.path("run"))
            .env("XDG_CACHE_HOME", self.path("cache-home"))
            .env("XDG_STATE_HOME", self.path("state-home"))
            .env_remove("RUST_LOG")
            .env_remove("BLOCKFERRY_TICKET")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("started")
    }

    /// Runs it and gives what it wrote to standard output.
    pub(crate) fn succeeds(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", said(&output));
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs it and gives what it wrote to standard error, which has all `parts` in it.
    pub(crate) fn fails(&self, args: &[&str], parts: &[&str]) -> String {
        let output = self.run(args);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        for part in parts {
            assert!(said.contains(part), "{args:?}: no `{part}` in {said}");
        }
        said
    }

    /// Serves the volume at a free port, or where it was served before.
    pub(crate) fn serve(&self) -> Server {
        self.serve_at("127.0.0.1:0")
    }

    pub(crate) fn serve_at(&self, listen: &str) -> Server {
        let disk = format!("disk=file:{}", self.text("disk.img"));
        let ticket = self.text("ticket");
        let mut child = self
            .command(&["serve", &disk, "--listen", listen, "--ticket-file", &ticket])
            .arg("--state-dir")
            .arg(self.path("state"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("read");
        let address = line.trim_start_matches("blockferry://").split('/').next();
        let listen = address.expect("an address").to_owned();
        assert!(listen.contains(':'), "serve: {line:?}");
        Server { child, listen }
    }

    /// Has the ticket name the near end of a link in front of the server.
    pub(crate) fn put_link_before(&self, server: &Server) -> Relay {
        let link = Link::symmetric(Duration::from_millis(2), 0.0, None, 0);
        let relay = Relay::to(server.listen.parse().expect("an address"), link).expect("a link");
        let ticket = std::fs::read_to_string(self.path("ticket")).expect("read");
        let ticket = ticket.replace(&server.listen, &relay.address().to_string());
        std::fs::write(self.path("ticket"), ticket).expect("written");
        relay
    }

    pub(crate) fn ticket(&self) -> String {
        format!("@{}", self.text("ticket"))
    }

    /// Mounts the volume as `disk`, on a FUSE device: the process ends with it.
    pub(crate) fn mount(&self, args: &[&str]) -> Mount {
        let mut mount = self.begin_mount(args);
        mount.wait_for_device();
        mount
    }

    /// The same, without waiting for the device.
    pub(crate) fn begin_mount(&self, args: &[&str]) -> Mount {
        self.begin(&[&["--device", "fuse", "--name", "disk"], args].concat())
    }

    pub(crate) fn begin(&self, args: &[&str]) -> Mount {
        let stderr = self.path(&format!("stderr-{}", args.join("-").replace('/', "-")));
        let ticket = self.ticket();
        let child = self
            .command(&[&["mount", ticket.as_str()], args].concat())
            .stdout(Stdio::piped())
            .stderr(File::create(&stderr).expect("made"))
            .spawn()
            .expect("started");
        Mount {
            child,
            device: PathBuf::new(),
            stderr,
        }
    }

    pub(crate) fn status(&self) -> Value {
        serde_json::from_str(&self.succeeds(&["status", "disk", "--json"])).expect("JSON")
    }

    /// What the mount tells of its store.
    pub(crate) fn managed(&self) -> Value {
        self.status()["status"]["managed"].clone()
    }

    pub(crate) fn number(&self, what: &str) -> u64 {
        let managed = self.managed();
        managed[what]
            .as_u64()
            .unwrap_or_else(|| panic!("{managed}"))
    }

    pub(crate) fn until_local(&self) {
        until("all is local", || {
            self.number("local_bytes") == self.number("size_bytes")
        });
    }

    /// The rest of a chunk comes after what was read of it.
    pub(crate) fn until_whole_chunks(&self) {
        until("whole chunks are local", || {
            let local = self.number("local_bytes");
            local > 0 && local.is_multiple_of(CHUNK)
        });
    }

    pub(crate) fn until_clean(&self) {
        until("nothing is dirty", || self.number("dirty_bytes") == 0);
    }

    pub(crate) fn until_away(&self) {
        until("the origin is away", || {
            !self.managed()["away_since"].is_null()
        });
    }

    /// What the origin has, as a program beside the server sees it.
    pub(crate) fn at_origin(&self, offset: u64, len: usize) -> Vec<u8> {
        read(&self.path("disk.img"), offset, len)
    }

    /// What a store that was kept says of itself.
    pub(crate) fn cache(&self, directory: &str) -> Value {
        let shown = self.succeeds(&["cache", "show", directory, "--json"]);
        serde_json::from_str(&shown).expect("JSON")
    }

    /// Takes the volume over from whoever has it, and gives it back.
    pub(crate) fn forget_lease(&self) {
        let mut mount = self.mount(&["--direct", "--takeover"]);
        self.succeeds(&["stop", "disk"]);
        assert_eq!(mount.ended(), Some(0));
    }

    /// Stops `disk`, which leaves no store behind.
    pub(crate) fn stop_cleanly(&self, mount: &mut Mount) {
        let stop = self.run(&["stop", "disk"]);
        assert!(stop.status.success(), "{}", said(&stop));
        assert_eq!(mount.ended(), Some(0));
        let stores = self.stores();
        assert!(stores.is_empty(), "{stores:?}: {}", said(&stop));
    }

    /// The stores that are left under the cache home.
    pub(crate) fn stores(&self) -> Vec<PathBuf> {
        let home = self.path("cache-home").join("blockferry/stores");
        match std::fs::read_dir(home) {
            Ok(entries) => entries.map(|entry| entry.expect("entry").path()).collect(),
            Err(_) => Vec::new(),
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // What was killed has left its device, by which the folders are in use.
        let names = std::fs::read_dir(self.path("run")).into_iter().flatten();
        for name in names.flatten().map(|entry| entry.file_name()) {
            let _ = self
                .command(&["stop", "--force"])
                .arg(name)
                .stderr(Stdio::null())
                .status();
        }
    }
}

pub(crate) fn read(path: &Path, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let file = File::open(path).expect("opened");
    file.read_exact_at(&mut bytes, offset).expect("read");
    bytes
}

impl Server {
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("sent");
    }

    /// Ends it in order, which its clients notice at once; gives where it was.
    pub(crate) fn end(mut self) -> String {
        self.signal(Signal::SIGTERM);
        assert!(self.child.wait().expect("waited").success());
        self.listen.clone()
    }

    /// Ends it as a crash would; gives where it was.
    pub(crate) fn crash(mut self) -> String {
        self.child.kill().expect("killed");
        self.child.wait().expect("waited");
        self.listen.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Mount {
    /// Waits for the line with the device's path.
    pub(crate) fn wait_for_device(&mut self) {
        let mut line = String::new();
        let stdout = self.child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("read");
        self.device = PathBuf::from(line.trim_end());
        assert!(self.device.exists(), "{line:?}: {}", self.stderr());
    }

    /// Whether there is nothing on standard output, up to its end.
    pub(crate) fn said_nothing(&mut self) -> bool {
        let mut said = String::new();
        let stdout = self.child.stdout.as_mut().expect("piped");
        stdout.read_to_string(&mut said).expect("read");
        said.is_empty()
    }

    pub(crate) fn stderr(&self) -> String {
        std::fs::read_to_string(&self.stderr).expect("read")
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
        self.child.wait().expect("waited").code()
    }

    /// Writes whole blocks past the kernel's cache, and without a flush.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        self.try_write(offset, bytes).expect("written");
    }

    pub(crate) fn try_write(&self, offset: u64, bytes: &[u8]) -> Result<(), String> {
        let input = self.stderr.with_extension("input");
        std::fs::write(&input, bytes).expect("written");
        let seek = format!("seek={}", offset / 4096);
        dd(
            &input,
            &self.device,
            &[&seek, "oflag=direct", "conv=notrunc,nocreat"],
        )
    }

    /// Reads whole blocks past the kernel's cache.
    pub(crate) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let output = self.stderr.with_extension("output");
        let (skip, count) = (
            format!("skip={}", offset / 4096),
            format!("count={}", len / 4096),
        );
        dd(&self.device, &output, &[&skip, &count, "iflag=direct"]).expect("read");
        std::fs::read(&output).expect("read")
    }

    /// What was written is durable, as far as a flush promises it.
    pub(crate) fn flush(&self) -> std::io::Result<()> {
        File::options().write(true).open(&self.device)?.sync_all()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn dd(from: &Path, to: &Path, args: &[&str]) -> Result<(), String> {
    let output = Command::new("dd")
        .arg(format!("if={}", from.display()))
        .arg(format!("of={}", to.display()))
        .args(["bs=4096", "status=none"])
        .args(args)
        .output()
        .expect("started");
    match output.status.success() {
        true => Ok(()),
        false => Err(said(&output)),
    }
}
