//! What `list`, `status` and `stop` make of devices that run, hang, or have died.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use blockferry::device::{DeviceRecord, Recovery, UblkRecord};
use blockferry::ops::{self, Claim, MountRecord, Running, Status, control};
use blockferry::volume::Counters;
use blockferry::volume::state_map::Heat;
use blockferry::{Error, ErrorKind};
use tempfile::TempDir;

/// A number that no ublk driver gives.
const NO_DEVICE: DeviceRecord = DeviceRecord::Ublk(UblkRecord {
    id: 1_000_000,
    mark: 0,
    recovery: None,
});

fn blockferry(root: &TempDir, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blockferry"));
    command
        .args(args)
        .env("BLOCKFERRY_RUN_DIR", root.path())
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

fn run(root: &TempDir, args: &[&str]) -> Output {
    blockferry(root, args).output().expect("started")
}

/// Runs the program while this thread's runtime answers it.
async fn run_meanwhile(root: &TempDir, args: &[&str]) -> Output {
    let mut command = blockferry(root, args);
    let task = tokio::task::spawn_blocking(move || command.output());
    task.await.expect("joined").expect("started")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

fn json(output: &Output) -> serde_json::Value {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn take(root: &TempDir, name: &str) -> Claim {
    let name = name.parse().expect("legal");
    Claim::take_in(root.path(), Some(&name), "").expect("free")
}

fn published(root: &TempDir, name: &str) -> Claim {
    let claim = take(root, name);
    let ticket = "blockferry://host:4480/disk#fingerprint.secret";
    let running = Running::new(Path::new("/dev/no-such-disk"), NO_DEVICE, ticket, 1 << 30);
    claim.publish(&running).expect("written");
    claim
}

fn busy() -> Status {
    Status {
        counters: Counters {
            reads: 12,
            read_bytes: 12 << 12,
            writes: 34,
            errors: 5,
            ..Counters::default()
        },
        queues: 2,
        depth: 128,
        ..Status::default()
    }
}

/// Puts the state of a device there whose lock nobody holds, as after `kill -9`.
fn leave_dead(root: &TempDir, name: &str) {
    let claim = published(root, name);
    let directory = claim.directory().to_owned();
    let state = fs::read(directory.join("state.json")).expect("readable");
    drop(claim);
    fs::create_dir(&directory).expect("made");
    fs::write(directory.join("lock"), "").expect("written");
    fs::write(directory.join("state.json"), state).expect("written");
    fs::write(directory.join("control.sock"), "").expect("written");
}

#[tokio::test]
async fn a_running_device_is_listed_with_its_counters_and_without_its_secret() {
    let root = tempfile::tempdir().expect("directory");
    let claim = published(&root, "disk");
    let _control = control::serve(claim.directory(), busy).expect("served");

    let output = run_meanwhile(&root, &["list"]).await;
    let table = text(&output.stdout);
    let words: Vec<_> = table
        .lines()
        .nth(1)
        .expect("row")
        .split_whitespace()
        .collect();
    let expected = "disk /dev/no-such-disk blockferry://host:4480/disk 1GiB direct";
    assert_eq!(words[..5].join(" "), expected);
    assert_eq!(words[6..], ["12", "34", "5", "alive"]);

    let listed = json(&run_meanwhile(&root, &["list", "--json"]).await);
    let shown = json(&run_meanwhile(&root, &["status", "disk", "--json"]).await);
    assert_eq!(listed[0], shown);
    assert_eq!(shown["state"], "alive");
    assert_eq!(shown["size_bytes"], 1u64 << 30);
    assert_eq!(shown["pid"], std::process::id());
    assert_eq!(shown["status"]["read_bytes"], 12 << 12);
    assert_eq!(shown["status"]["depth"], 128);

    let output = run_meanwhile(&root, &["status", "disk"]).await;
    assert!(text(&output.stdout).contains("12 (48KiB)"));
    for directory_file in fs::read_dir(claim.directory()).expect("readable") {
        let path = directory_file.expect("entry").path();
        let bytes = fs::read(&path).unwrap_or_default();
        assert!(!text(&bytes).contains("secret"), "{}", path.display());
    }
}

#[tokio::test]
async fn stop_reports_why_a_device_stays_and_returns_only_when_it_has_gone() {
    let root = tempfile::tempdir().expect("directory");
    let claim = published(&root, "disk");
    let directory = claim.directory().to_owned();
    let mut control = control::serve(&directory, busy).expect("served");

    let (output, ()) = tokio::join!(run_meanwhile(&root, &["stop", "disk"]), async {
        let order = control.order().await;
        assert_eq!(
            order.command(),
            &ops::Command::Stop {
                force: false,
                discard_dirty: false
            }
        );
        let why = "/dev/no-such-disk is in use: mounted at /mnt.";
        order.answer(Err(Error::new(ErrorKind::Busy, why))).await;
    });
    assert_eq!(output.status.code(), Some(1));
    let err = text(&output.stderr);
    assert!(
        err.contains("cannot stop `disk`: /dev/no-such-disk is in use"),
        "{err}"
    );

    let (output, ()) = tokio::join!(run_meanwhile(&root, &["stop", "disk", "--force"]), async {
        let order = control.order().await;
        assert_eq!(
            order.command(),
            &ops::Command::Stop {
                force: true,
                discard_dirty: false
            }
        );
        order.answer(Ok(())).await;
        drop(control);
        drop(claim);
    });
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(!directory.exists());
}

#[tokio::test]
async fn a_device_that_ends_while_it_is_told_to_is_stopped() {
    let root = tempfile::tempdir().expect("directory");
    let claim = published(&root, "disk");
    let mut control = control::serve(claim.directory(), busy).expect("served");
    let (output, ()) = tokio::join!(run_meanwhile(&root, &["stop", "disk"]), async {
        let order = control.order().await;
        drop((claim, order, control));
    });
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn a_process_that_does_not_answer_is_shown_and_does_not_hang_the_list() {
    let root = tempfile::tempdir().expect("directory");
    let silent = published(&root, "silent");
    let deaf = published(&root, "deaf");
    // Connections are taken by the kernel, and nobody ever reads them.
    let _socket = std::os::unix::net::UnixListener::bind(deaf.directory().join("control.sock"))
        .expect("bound");
    let _starting = take(&root, "starting");
    let list = json(&run(&root, &["list", "--json"]));
    let states: Vec<_> = list
        .as_array()
        .expect("array")
        .iter()
        .map(|entry| (entry["name"].as_str().expect("name"), &entry["state"]))
        .collect();
    let expected = [
        ("deaf", "alive"),
        ("silent", "alive"),
        ("starting", "starting"),
    ];
    assert_eq!(states.len(), 3);
    for (state, expected) in states.iter().zip(expected) {
        assert_eq!((state.0, state.1.as_str()), (expected.0, Some(expected.1)));
    }
    assert!(
        list[0]["note"]
            .as_str()
            .expect("note")
            .contains("did not answer")
    );
    let output = run(&root, &["stop", "deaf", "--timeout", "1"]);
    assert_eq!(output.status.code(), Some(1));
    for part in ["has not ended within 1 s", "does not answer"] {
        assert!(text(&output.stderr).contains(part), "{output:?}");
    }
    let output = run(&root, &["stop", "silent"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        silent.directory().exists(),
        "a living process keeps its state"
    );
}

#[test]
fn what_a_dead_process_left_is_shown_as_dead_and_kept_until_it_is_removed() {
    let root = tempfile::tempdir().expect("directory");
    leave_dead(&root, "disk");
    let list = json(&run(&root, &["list", "--json"]));
    assert_eq!(list[0]["state"], "dead");
    assert_eq!(list[0]["record"]["id"], 1_000_000);
    assert_eq!(list[0]["status"], serde_json::Value::Null);
    let output = run(&root, &["stop", "disk"]);
    let directory = root.path().join("disk");
    if Path::new("/dev/ublk-control").exists() {
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert!(!directory.exists());
    } else {
        // Without the driver nobody can tell whether the device is there still.
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("dead process of `disk`"));
        assert!(directory.join("state.json").exists());
    }
}

#[test]
fn a_device_that_waits_for_another_process_is_shown_as_such() {
    let root = tempfile::tempdir().expect("directory");
    leave_dead(&root, "disk");
    let directory = root.path().join("disk");
    let record = |recovery| {
        DeviceRecord::Ublk(UblkRecord {
            id: 1_000_000,
            mark: 7,
            recovery,
        })
    };
    record(None).save(&directory).expect("written");
    let mount = MountRecord {
        arguments: vec!["mount".to_owned()],
        directory: "/".into(),
        resource: "file:/srv/disk.img".to_owned(),
        file: None,
        needs_ticket: false,
    };
    mount.save(&directory).expect("written");
    let shown = json(&run(&root, &["status", "disk", "--json"]));
    assert_eq!(shown["state"], "dead");
    assert_eq!(shown["recoverable"], false);
    let output = run(&root, &["recover", "disk"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("`disk` cannot be recovered"));

    let recovery = Some(Recovery {
        queues: 2,
        depth: 64,
    });
    record(recovery).save(&directory).expect("written");
    assert_eq!(
        json(&run(&root, &["list", "--json"]))[0]["recoverable"],
        true
    );
    assert!(text(&run(&root, &["list"]).stdout).contains("dead, recoverable"));
    let status = text(&run(&root, &["status", "disk"]).stdout);
    assert!(status.contains("`blockferry recover disk`"), "{status}");
    // There is no such device, or no driver; either way what is known of it stays.
    assert_eq!(run(&root, &["recover", "disk"]).status.code(), Some(1));
    assert!(directory.join("mount.json").exists());
}

#[tokio::test]
async fn nothing_is_recovered_whose_process_lives() {
    let root = tempfile::tempdir().expect("directory");
    let claim = published(&root, "disk");
    let _control = control::serve(claim.directory(), busy).expect("served");
    let output = run_meanwhile(&root, &["recover", "disk"]).await;
    assert_eq!(output.status.code(), Some(1));
    let err = text(&output.stderr);
    assert!(err.contains("the process of `disk` lives"), "{err}");
    let output = run_meanwhile(&root, &["recover", "nobody"]).await;
    assert!(text(&output.stderr).contains("no device named `nobody`; there is disk"));
}

#[test]
fn a_process_that_died_before_it_made_a_device_is_cleaned_up() {
    let root = tempfile::tempdir().expect("directory");
    let directory = root.path().join("disk");
    fs::create_dir(&directory).expect("made");
    fs::write(directory.join("lock"), "").expect("written");
    let output = run(&root, &["list"]);
    assert!(text(&output.stdout).contains("dead"));
    let output = run(&root, &["stop", "disk"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(!directory.exists());
    assert_eq!(run(&root, &["stop", "disk"]).status.code(), Some(1));
}

#[test]
fn damaged_state_is_named_shown_and_removable_by_force() {
    for damage in ["", "{", "[]", "\0\0", &"[".repeat(100_000)] {
        let root = tempfile::tempdir().expect("directory");
        let directory = root.path().join("disk");
        fs::create_dir(&directory).expect("made");
        fs::write(directory.join("lock"), "").expect("written");
        fs::write(directory.join("state.json"), damage).expect("written");
        let list = json(&run(&root, &["list", "--json"]));
        assert_eq!(list[0]["state"], "dead");
        assert!(list[0]["note"].as_str().expect("note").contains("damaged"));
        let output = run(&root, &["stop", "disk"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("damaged"));
        assert!(directory.exists());
        let output = run(&root, &["stop", "disk", "--force"]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert!(!directory.exists());
    }
}

#[test]
fn files_that_are_not_ours_are_left_alone() {
    let root = tempfile::tempdir().expect("directory");
    for name in ["UPPER", ".hidden", "name with blanks", "-v"] {
        fs::create_dir(root.path().join(name)).expect("made");
    }
    fs::write(root.path().join("file"), "").expect("written");
    assert_eq!(
        json(&run(&root, &["list", "--json"])),
        serde_json::json!([])
    );
}

/// Says something to the control socket, and gives what it answers.
async fn say(claim: &Claim, words: impl Into<Vec<u8>>) -> String {
    let (socket, words) = (claim.directory().join("control.sock"), words.into());
    let saying = tokio::task::spawn_blocking(move || {
        let mut stream = UnixStream::connect(socket).expect("connected");
        // The other end may hang up before it has read all of it.
        let _ = stream.write_all(&words);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut reply = String::new();
        let _ = stream.read_to_string(&mut reply);
        reply
    });
    saying.await.expect("joined")
}

#[tokio::test]
async fn the_control_socket_survives_what_does_not_speak_its_language() {
    let root = tempfile::tempdir().expect("directory");
    let claim = published(&root, "disk");
    let _control = control::serve(claim.directory(), busy).expect("served");
    for words in [
        &b"\n"[..],
        b"{}\n",
        b"{\"verb\":\"fly\"}\n",
        b"\xff\xff\n",
        b"[[[[[\n",
    ] {
        let reply = say(&claim, words.to_vec()).await;
        assert!(!reply.contains("Done"), "{reply}");
        if std::str::from_utf8(words).is_ok() {
            assert!(reply.contains("does not understand"), "{words:?}: {reply}");
        }
    }
    let endless = vec![b'x'; 1 << 20];
    assert_eq!(say(&claim, endless).await, "");
    assert_eq!(say(&claim, Vec::new()).await, "");
    let reply = say(&claim, "{\"verb\":\"status\"}\n").await;
    assert!(reply.contains("\"reads\":12"), "{reply}");
}

#[tokio::test]
async fn a_map_has_a_bound_and_the_largest_one_arrives_whole() {
    let root = tempfile::tempdir().expect("directory");
    let claim = published(&root, "disk");
    let part = Heat {
        blocks: u64::MAX,
        present: u64::MAX,
        dirty: u64::MAX,
    };
    let answers = control::Answers::from(busy)
        .with_map(move |parts| Some(vec![part; usize::try_from(parts).expect("few")]));
    let _control = control::serve(claim.directory(), answers).expect("served");
    let most = control::MAP_PARTS_MAX.to_string();
    let args = ["status", "disk", "--map", "--json", "--parts", &most];
    let shown = json(&run_meanwhile(&root, &args).await);
    let parts = shown["map"].as_array().expect("parts");
    assert_eq!(parts.len(), 8192);
    assert_eq!(parts[8191]["dirty_bytes"], u64::MAX);
    for parts in [0, control::MAP_PARTS_MAX + 1, u32::MAX] {
        let reply = say(&claim, format!("{{\"verb\":\"map\",\"parts\":{parts}}}\n")).await;
        assert!(reply.contains("a map has 1 to 8192 parts"), "{reply}");
    }
}

#[tokio::test]
async fn connections_that_say_nothing_are_bounded_and_leave_room_when_they_go() {
    const CONNECTIONS_MAX: usize = 16;
    let root = tempfile::tempdir().expect("directory");
    let claim = published(&root, "disk");
    let _control = control::serve(claim.directory(), busy).expect("served");
    let socket = claim.directory().join("control.sock");
    let ask = move || -> Option<String> {
        let mut stream = UnixStream::connect(&socket).ok()?;
        stream.write_all(b"{\"verb\":\"status\"}\n").ok()?;
        let mut reply = String::new();
        BufReader::new(stream).read_line(&mut reply).ok()?;
        (!reply.is_empty()).then_some(reply)
    };
    let socket = claim.directory().join("control.sock");
    let checked = tokio::task::spawn_blocking(move || {
        let idle: Vec<_> = (0..CONNECTIONS_MAX)
            .map(|_| UnixStream::connect(&socket).expect("connected"))
            .collect();
        assert_eq!(ask(), None, "one too many");
        drop(idle);
        let deadline = Instant::now() + Duration::from_secs(20);
        while ask().is_none() {
            assert!(Instant::now() < deadline, "no room was left");
        }
    });
    checked.await.expect("checked");
}

/// A loop device with a mounted file system; taken away again whatever happens.
struct MountedLoop {
    directory: TempDir,
    device: String,
}

impl MountedLoop {
    /// `None`, with the reason on standard error, where this machine cannot make one.
    fn new() -> Option<Self> {
        let skip = |why: String| {
            eprintln!("skipped: {why}");
            None
        };
        if !nix::unistd::geteuid().is_root() {
            return skip("mounting takes root".to_owned());
        }
        let directory = tempfile::tempdir().expect("directory");
        let image = directory.path().join("image");
        let file = fs::File::create(&image).expect("made");
        file.set_len(8 << 20).expect("extended");
        fs::create_dir(directory.path().join("mnt")).expect("made");
        let image = image.to_str().expect("text");
        let device = match shell("losetup", &["--find", "--show", image]) {
            Ok(device) => device.trim().to_owned(),
            Err(why) => return skip(why),
        };
        let mounted = Self { directory, device };
        let at = mounted.at();
        let made = shell("mkfs.ext4", &["-q", &mounted.device])
            .and_then(|_| shell("mount", &[&mounted.device, &at]));
        match made {
            Ok(_) => Some(mounted),
            Err(why) => skip(why),
        }
    }

    fn at(&self) -> String {
        let at = self.directory.path().join("mnt");
        at.to_str().expect("text").to_owned()
    }
}

impl Drop for MountedLoop {
    fn drop(&mut self) {
        let _ = shell("umount", &[&self.at()]);
        let _ = shell("losetup", &["--detach", &self.device]);
    }
}

fn shell(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).output();
    match output {
        Ok(output) if output.status.success() => Ok(text(&output.stdout)),
        Ok(output) => Err(format!("{program}: {}", text(&output.stderr).trim())),
        Err(error) => Err(format!("{program}: {error}")),
    }
}

#[test]
fn a_dead_device_that_is_mounted_is_not_torn_away() {
    let Some(mounted) = MountedLoop::new() else {
        return;
    };
    let image = mounted.directory.path().join("image");
    let holders = ops::holders(&image).expect("looked");
    let under = mounted.device.trim_start_matches("/dev/").to_owned();
    let how: Vec<_> = holders.into_iter().map(|holder| holder.how).collect();
    assert_eq!(how, [ops::How::Under(under)]);
    let holders = ops::holders(Path::new(&mounted.device)).expect("looked");
    let at = ops::How::Mounted(mounted.at().into());
    assert!(holders.iter().any(|holder| holder.how == at), "{holders:?}");

    let root = tempfile::tempdir().expect("directory");
    let directory = root.path().join("disk");
    fs::create_dir(&directory).expect("made");
    fs::write(directory.join("lock"), "").expect("written");
    let record = DeviceRecord::Fuse {
        mount_point: mounted.directory.path().join("no-such-mount"),
        loop_device: Some(mounted.device.clone().into()),
    };
    record.save(&directory).expect("written");
    let output = run(&root, &["stop", "disk"]);
    assert_eq!(output.status.code(), Some(1));
    let err = text(&output.stderr);
    assert!(
        err.contains(&format!("mounted at {}", mounted.at())),
        "{err}"
    );
    assert!(
        shell("mountpoint", &["-q", &mounted.at()]).is_ok(),
        "still mounted"
    );
    assert!(directory.join("device.json").exists());
}
