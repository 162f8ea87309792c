//! What a killed process leaves can be removed, whatever was going on. Needs root, /dev/fuse and
//! loop devices.

mod fuse_support;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use blockferry::device::DeviceRecord;
use blockferry::device::fuse::remove_left_over;
use fuse_support::*;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const URL: &str = "BLOCKFERRY_TEST_SERVE";

/// Not a test: the process that the others kill. It serves what the variable names, says how to
/// remove it, and waits.
#[test]
#[ignore = "run by the other tests"]
fn child() {
    let Ok(url) = std::env::var(URL) else { return };
    let mut served = serve(&url, Wish::default());
    let record = serde_json::to_string(&served.device.record()).expect("a record");
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "\n{record}").expect("told");
    drop(stdout);
    let error = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime")
        .block_on(served.device.ended());
    panic!("ended: {error}");
}

/// A process that serves; killed and cleaned up after at the end of the test, however it ends.
struct Victim {
    process: Child,
    mount_point: PathBuf,
    loop_device: PathBuf,
}

impl Victim {
    fn start(url: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env(URL, url)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        let stdout = BufReader::new(process.stdout.take().expect("piped"));
        let record = stdout
            .lines()
            .map_while(Result::ok)
            .find_map(|line| serde_json::from_str(&line).ok());
        match record {
            Some(DeviceRecord::Fuse {
                mount_point,
                loop_device: Some(loop_device),
            }) => Self {
                process,
                mount_point,
                loop_device,
            },
            other => panic!("{other:?}"),
        }
    }

    fn file(&self) -> PathBuf {
        self.mount_point.join("disk")
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id() as i32), signal).expect("signalled");
    }

    fn kill(&mut self) {
        self.process.kill().expect("killed");
        self.process.wait().expect("reaped");
    }

    /// Removes what is left, in bounded time.
    fn clean_up(&self) -> blockferry::Result<()> {
        let (done, result) = mpsc::channel();
        let mount_point = self.mount_point.clone();
        std::thread::spawn(move || done.send(remove_left_over(&mount_point)));
        result.recv_timeout(PATIENCE).expect("it does not hang")
    }

    fn is_gone(&self) -> bool {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        !mounts.contains(&self.mount_point.display().to_string())
            && !self.mount_point.exists()
            && !is_bound(&self.loop_device)
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = remove_left_over(&self.mount_point);
        if let Some(directory) = self.mount_point.parent() {
            let _ = std::fs::remove_dir(directory);
        }
    }
}

/// Something that keeps a device busy.
fn load(device: &Path, arguments: &[&str]) -> Child {
    let device = device.display();
    Command::new("dd")
        .args(arguments)
        .arg("bs=64k")
        .args(match arguments.contains(&"oflag=direct") {
            true => ["if=/dev/zero".to_owned(), format!("of={device}")],
            false => ["of=/dev/null".to_owned(), format!("if={device}")],
        })
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("dd")
}

#[test]
fn an_idle_device_of_a_killed_process_is_removed() {
    let Some(_turn) = turn() else { return };
    let mut victim = Victim::start("mem:16MiB");
    assert!(is_bound(&victim.loop_device));
    victim.kill();
    assert!(!victim.is_gone(), "it does not vanish by itself");
    victim.clean_up().expect("removed");
    assert!(victim.is_gone());
    victim.clean_up().expect("nothing is left to do");
}

#[test]
fn a_device_under_load_is_removed_and_its_users_get_errors() {
    let Some(_turn) = turn() else { return };
    let mut victim = Victim::start("mem:1GiB");
    let mut writer = load(&victim.loop_device, &["oflag=direct"]);
    let mut reader = load(&victim.file(), &["count=1000000"]);
    victim.kill();
    // Both have ended, or end with an error; the reader may have been done before.
    assert!(!writer.wait().expect("ended").success());
    reader.wait().expect("ended");
    victim.clean_up().expect("removed");
    assert!(victim.is_gone());
}

#[test]
fn a_mounted_device_loses_its_mount_and_ends_when_it_is_unmounted() {
    let Some(_turn) = turn() else { return };
    let mut victim = Victim::start("mem:32MiB");
    let place = tempfile::tempdir().expect("a directory");
    run(
        "mkfs.ext4",
        [OsStr::new("-q"), victim.loop_device.as_os_str()],
    );
    run("mount", [victim.loop_device.as_path(), place.path()]);
    std::fs::write(place.path().join("dirty"), pattern(1, 1 << 20)).expect("cached");
    victim.kill();
    let error = victim.clean_up().expect_err("it is still mounted");
    assert_eq!(error.kind(), blockferry::ErrorKind::Busy, "{error}");
    run("umount", [place.path()]);
    wait_until("the end of the loop device", || victim.is_gone());
}

#[test]
fn a_process_that_hangs_instead_of_dying_does_not_hang_the_removal() {
    let Some(_turn) = turn() else { return };
    let mut victim = Victim::start("mem:16MiB");
    victim.signal(Signal::SIGSTOP);
    let mut reader = load(&victim.loop_device, &["iflag=direct"]);
    let removed = victim.clean_up();
    // The reader had the loop device open when it was detached, or was too late to open it.
    if let Err(error) = removed {
        assert_eq!(error.kind(), blockferry::ErrorKind::Busy, "{error}");
    }
    reader.wait().expect("ended");
    victim.signal(Signal::SIGCONT);
    victim.kill();
    victim.clean_up().expect("removed");
    wait_until("the end of the loop device", || victim.is_gone());
}

#[test]
fn a_loop_device_that_belongs_to_somebody_else_is_left_alone() {
    let Some(_turn) = turn() else { return };
    let served = serve("mem:1MiB", Wish::default());
    let directory = tempfile::tempdir().expect("a directory");
    let mount_point = directory.path().join("fuse");
    remove_left_over(&mount_point).expect("nothing to do");
    assert!(is_bound(&served.loop_device()));
    served.end();
}
