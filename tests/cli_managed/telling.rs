//! What a mount tells of itself.

use super::support::{CHUNK, Host, KEEP_DIRTY, SIZE, pattern, until};

#[test]
fn status_tells_what_is_local_dirty_and_missed_and_the_map_where() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let args = [
        &["--pull-order", "none", "--read-ahead", "0"],
        &KEEP_DIRTY[..],
    ]
    .concat();
    let mount = host.mount(&args);
    assert_eq!(mount.read(4 * CHUNK, 4096), pattern(4 * CHUNK, 4096, 0));
    host.until_whole_chunks();
    let before = host.managed();
    mount.write(8 * CHUNK, &pattern(0, 2 * CHUNK as usize, 1));
    let managed = host.managed();
    assert_eq!(managed["dirty_bytes"], 2 * CHUNK);
    let local = before["local_bytes"].as_u64().unwrap() + 2 * CHUNK;
    assert_eq!(managed["local_bytes"], local);
    assert_eq!(managed["size_bytes"], SIZE);
    assert!(managed["missed_reads"].as_u64().unwrap() > 0, "{managed}");
    let ratio = managed["hit_ratio"].as_f64().unwrap();
    assert!((0.0..1.0).contains(&ratio), "{managed}");
    let steps = managed["miss_latency"]["steps"].as_array().unwrap();
    let counted: u64 = steps
        .iter()
        .map(|step| step["count"].as_u64().unwrap())
        .sum();
    assert_eq!(managed["missed_reads"], counted);
    assert_eq!(managed["pulls"], false);

    let shown = host.succeeds(&["status", "disk"]);
    let store = host.stores().pop().unwrap().display().to_string();
    for part in [
        "dirty         512KiB",
        "fetched when it is read",
        "miss latency",
        &store,
    ] {
        assert!(shown.contains(part), "no `{part}` in {shown}");
    }
    let listed = host.succeeds(&["list"]);
    assert!(listed.contains("% local, 512KiB dirty"), "{listed}");

    let map = host.succeeds(&["status", "disk", "--map", "--json", "--parts", "64"]);
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    assert_eq!(map["name"], "disk");
    let parts = map["map"].as_array().unwrap();
    assert_eq!(parts.len(), 64);
    for (index, part) in parts.iter().enumerate() {
        let dirty = if [8, 9].contains(&index) { CHUNK } else { 0 };
        assert_eq!(part["offset_bytes"], index as u64 * CHUNK);
        assert_eq!(part["dirty_bytes"], dirty, "{index}");
    }
    assert_eq!(parts[4]["local_bytes"], CHUNK);
    let sum: u64 = parts
        .iter()
        .map(|part| part["local_bytes"].as_u64().unwrap())
        .sum();
    assert_eq!(sum, local);

    // No terminal: plain, and as wide as it is told.
    let command = host
        .command(&["status", "disk", "--map"])
        .env("COLUMNS", "42")
        .output();
    let drawn = String::from_utf8(command.unwrap().stdout).unwrap();
    let lines: Vec<&str> = drawn.lines().collect();
    assert!(
        lines[..16].iter().all(|line| line.chars().count() == 42),
        "{drawn}"
    );
    assert!(
        lines[2].contains("DDDDDDDDDDDDDDDD") && drawn.is_ascii(),
        "{drawn}"
    );
    host.succeeds(&["stop", "disk"]);
}

#[test]
fn rates_are_those_of_now_and_end_with_what_moved() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let mount = host.mount(&["--pull-rate", "2MiB", "--push-rate", "1MiB"]);
    until("it pulls", || host.number("pull_rate") > 0);
    let managed = host.managed();
    assert!(
        managed["seconds_left"]
            .as_u64()
            .is_some_and(|left| left > 0),
        "{managed}"
    );
    host.until_local();
    until("nothing moves", || host.number("pull_rate") == 0);
    let managed = host.managed();
    assert_eq!(managed["seconds_left"], serde_json::Value::Null);
    assert_eq!(managed["fetched_bytes"], SIZE, "each byte once");
    let bytes = pattern(0, 4 << 20, 1);
    mount.write(0, &bytes);
    until("it pushes", || host.number("push_rate") > 0);
    mount.flush().unwrap();
    assert_eq!(host.at_origin(0, bytes.len()), bytes);
    until("nothing moves", || host.number("push_rate") == 0);
    let listed = host.succeeds(&["list"]);
    assert!(listed.trim_end().ends_with("alive"), "{listed}");
}

#[test]
fn only_managed_mounts_have_a_map() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let _mount = host.mount(&["--direct"]);
    host.fails(
        &["status", "disk", "--map"],
        &["no map of `disk`", "managed"],
    );
    let output = host.run(&["status", "disk", "--map", "--json", "--parts", "0"]);
    assert_eq!(output.status.code(), Some(2));
    let output = host.run(&["status", "disk", "--parts", "5"]);
    assert_eq!(output.status.code(), Some(2));
}

/// A mount on a terminal of its own, whose answer goes to a file.
struct OnTerminal<'a> {
    host: &'a Host,
    child: std::process::Child,
}

impl<'a> OnTerminal<'a> {
    fn begin(host: &'a Host, args: &str) -> Self {
        let mount = format!(
            "{} mount {} --device fuse --name disk {args} >{}",
            env!("CARGO_BIN_EXE_blockferry"),
            host.ticket(),
            host.text("answer"),
        );
        let _ = std::fs::remove_file(host.path("answer"));
        let child = host
            .other_command("script")
            .args(["-qefc", &mount, &host.text("terminal")])
            .env("TERM", "xterm")
            .stdout(std::process::Stdio::null())
            .spawn();
        let child = child.expect("`script` of util-linux");
        Self { host, child }
    }

    fn shows(&self) -> String {
        let bytes = std::fs::read(self.host.path("terminal")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn answer(&self) -> String {
        std::fs::read_to_string(self.host.path("answer")).unwrap_or_default()
    }
}

impl Drop for OnTerminal<'_> {
    fn drop(&mut self) {
        self.host
            .run(&["stop", "disk", "--force", "--discard-dirty"]);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn progress_is_drawn_on_a_terminal_alone_and_leaves_the_answer_alone() {
    let Some(host) = Host::new() else { return };
    let _server = host.serve();
    let mut shown = OnTerminal::begin(&host, "--pull-first --pull-rate 8MiB");
    until("everything is local", || !shown.answer().is_empty());
    let terminal = shown.shows();
    for part in ["of 16MiB local", "MiB/s", "left", "##"] {
        assert!(terminal.contains(part), "no `{part}` in {terminal}");
    }
    host.succeeds(&["stop", "disk"]);
    assert!(shown.child.wait().unwrap().success());
    // The path of the device, and nothing else; the line is gone in the end.
    let answer = shown.answer();
    assert_eq!(answer.lines().count(), 1, "{answer:?}");
    assert!(
        answer.starts_with('/') && !answer.contains(['\r', '\x1b']),
        "{answer:?}"
    );
    let terminal = shown.shows();
    let last = terminal
        .lines()
        .rfind(|line| !line.starts_with("Script"))
        .unwrap();
    assert!(
        !last.rsplit("\x1b[2K").next().unwrap().contains("local"),
        "{terminal}"
    );
    drop(shown);

    let quiet = OnTerminal::begin(&host, "-q --pull-rate 8MiB");
    until("it is mounted", || !quiet.answer().is_empty());
    host.until_local();
    assert!(!quiet.shows().contains("local"), "{}", quiet.shows());
    drop(quiet);

    let mut mount = host.mount(&["--pull-rate", "8MiB"]);
    host.until_local();
    host.succeeds(&["stop", "disk"]);
    assert_eq!(mount.ended(), Some(0));
    let said = mount.stderr();
    assert!(
        !said.contains(['\r', '\x1b']) && !said.contains("local"),
        "{said}"
    );
}
