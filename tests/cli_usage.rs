//! The program's manners: help, exit codes, logs, completions and manual pages.

use std::fs;
use std::process::{Command, Output, Stdio};

fn blockferry(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blockferry"));
    command
        .args(args)
        .env("BLOCKFERRY_RUN_DIR", "/nonexistent-run/blockferry")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    blockferry(args).output().expect("started")
}

/// The verbs that the program says it has.
fn verbs() -> Vec<String> {
    let help = text(&run(&["--help"]).stdout);
    let listed = help.split("Commands:\n").nth(1).expect("a list of verbs");
    let verbs: Vec<String> = listed
        .lines()
        .take_while(|line| !line.is_empty())
        // Long descriptions go on in lines that are set further in.
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .filter(|verb| verb != "help")
        .collect();
    assert!(verbs.contains(&"stop".to_owned()), "{help}");
    verbs
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

#[test]
fn help_of_every_verb_has_an_example_and_succeeds() {
    for verb in verbs() {
        for help in [[verb.as_str(), "--help"], ["help", verb.as_str()]] {
            let output = run(&help);
            assert_eq!(output.status.code(), Some(0), "{verb}");
            let out = text(&output.stdout);
            assert!(out.contains("Example"), "{verb}: {out}");
            assert!(
                out.contains(&format!("\n  blockferry {verb}")),
                "{verb}: {out}"
            );
            assert!(output.stderr.is_empty(), "{verb}");
        }
    }
}

#[test]
fn wrong_usage_is_exit_code_2_and_says_nothing_on_stdout() {
    for args in [
        &[][..],
        &["no-such-verb"],
        &["list", "--no-such-option"],
        &["list", "extra"],
        &["status"],
        &["stop", ""],
        &["stop", "../etc"],
        &["stop", "UPPER"],
        &["status", "a name"],
        &["stop", "disk", "--timeout", "0"],
        &["stop", "disk", "--timeout", "-1"],
        &["completions", "tcsh"],
        &["list", "--log-format", "xml"],
        &["list", "-v", "-q"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
}

/// What no machine could make sense of.
const MALFORMED: [&str; 14] = [
    "",
    "nonsense",
    "/etc/hostname",
    "ftp://host/x",
    "file:",
    "mem:",
    "mem:0",
    "mem:-1",
    "mem:1Gb",
    "mem:99999999999GiB",
    "mem:9223372036854775807",
    "blockferry://",
    "blockferry://host:0/disk",
    "blockferry://host:4480/disk#v1.damaged.precious",
];

#[test]
fn a_resource_that_cannot_be_understood_is_wrong_usage() {
    for resource in MALFORMED {
        for verb in [
            &["mount", "--direct", resource][..],
            &["mount", "--direct", "--detach", resource],
            &["serve", resource],
            &["serve", "--name", "disk", resource],
        ] {
            let output = run(verb);
            let err = text(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{verb:?}: {err}");
            assert!(output.stdout.is_empty(), "{verb:?}");
            assert!(!err.is_empty() && !err.contains("precious"), "{err}");
        }
        let output = blockferry(&["mount", "--direct"])
            .env("BLOCKFERRY_TICKET", resource)
            .output()
            .expect("started");
        assert_eq!(output.status.code(), Some(2), "{resource}");
    }
}

/// Of a server that is never asked.
const REMOTE: &str = "blockferry://127.0.0.1:9/disk";

#[test]
fn options_that_do_not_fit_are_wrong_usage() {
    for args in [
        &["mount", "--direct"][..],
        &["mount", "mem:1MiB", "--pull-workers", "0"],
        &["mount", "mem:1MiB", "--cache", "/srv/cache"],
        &["mount", "mem:1MiB", "--on-before-close", "true"],
        &["mount", "mem:1MiB", "--chunk-size", "5000"],
        &["mount", "mem:1MiB", "--push", "never"],
        &["mount", REMOTE, "--direct", "--store", "mem"],
        &["mount", REMOTE, "--direct", "--record-heat", "/srv/heat"],
        &["mount", REMOTE, "--direct", "--pull-order", "none"],
        &["mount", REMOTE, "--direct", "--chunk-size", "256KiB"],
        &["mount", REMOTE, "--direct", "--read-ahead", "8MiB"],
        &["mount", REMOTE, "--direct", "--memory-limit", "256MiB"],
        &["mount", REMOTE, "--direct", "--pull-workers", "64"],
        &["mount", REMOTE, "--direct", "--push-workers", "64"],
        &["mount", REMOTE, "--direct", "--push-interval", "1"],
        &["mount", "file:/srv/disk.img", "--chunk-size", "256KiB"],
        &["mount", REMOTE, "--cache", "/srv/cache", "--store", "mem"],
        &["mount", REMOTE, "--push", "off", "--durability", "remote"],
        &["mount", REMOTE, "--memory-limit", "1MiB"],
        &["mount", REMOTE, "--pull-first", "--pull-order", "none"],
        &["mount", REMOTE, "--push-interval", "-1"],
        &["mount", "mem:1MiB", "--direct", "--name", "a name"],
        &["mount", "mem:1MiB", "--direct", "--name", ""],
        &["mount", "mem:1MiB", "--direct", "--device", "floppy"],
        &["mount", "mem:1MiB", "--direct", "--depth", "0"],
        &["mount", "mem:1MiB", "--direct", "--queues", "65"],
        &["mount", "mem:1MiB", "--direct", "--block-size", "1000"],
        &["mount", "mem:1MiB", "--direct", "--io-timeout", "31536001"],
        &["mount", "mem:1MiB", "--direct", "--compress", "gzip"],
        &["mount", "mem:1MiB", "mem:1MiB", "--direct"],
        &["leech", REMOTE, "--store", "mem:", "--hold-limit", "9"],
        &[
            "leech",
            REMOTE,
            "--store",
            "mem:",
            "--ticket-file",
            "/srv/t",
        ],
        &[
            "leech",
            REMOTE,
            "--store",
            "mem:",
            "--on-before-sync",
            "true",
        ],
        &["serve", "blockferry://host:4480/disk"],
        &["serve", "mem:1MiB", "--block-size", "8192"],
        &["serve", "mem:1MiB", "--advertise", "nowhere"],
        &["serve", "mem:1MiB", "mem:2MiB"],
        &["serve", "a=mem:1MiB", "--name", "b"],
        &["serve", "file:/srv/a b.img"],
    ] {
        let output = blockferry(args)
            .env_remove("BLOCKFERRY_TICKET")
            .output()
            .expect("started");
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {err}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn a_resource_that_is_understood_and_cannot_be_had_is_a_failure() {
    let directory = tempfile::tempdir().expect("directory");
    let path = |name: &str| directory.path().join(name).display().to_string();
    fs::write(path("empty"), "").expect("written");
    fs::write(path("garbage"), "mem:1Gb").expect("written");
    for order in ["missing", "garbage"] {
        let output = run(&["mount", REMOTE, "--pull-order", &path(order)]);
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{order}: {err}");
        assert!(err.contains(&path(order)), "{err}");
    }
    let state = path("state");
    for resource in [
        format!("file:{}", path("missing")),
        format!("file:{}", path("empty")),
        format!("file:{}", directory.path().display()),
        format!("@{}", path("missing")),
        format!("@{}", path("garbage")),
    ] {
        for verb in [
            &["mount", "--direct", &resource][..],
            &["serve", "--state-dir", &state, "--name", "disk", &resource],
        ] {
            if verb[0] == "serve" && resource.starts_with('@') {
                continue;
            }
            let output = blockferry(verb)
                .env("BLOCKFERRY_RUN_DIR", path("run"))
                .output()
                .expect("started");
            let err = text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{verb:?}: {err}");
            assert!(output.stdout.is_empty(), "{verb:?}");
        }
    }
}

#[test]
fn a_failure_is_exit_code_1_with_one_line_that_names_the_program() {
    for args in [&["status", "disk"][..], &["stop", "disk"]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
        let err = text(&output.stderr);
        assert_eq!(
            err,
            "blockferry: no device named `disk`; nothing is running\n"
        );
    }
}

#[test]
fn json_logs_are_json_to_the_last_line() {
    let output = run(&["status", "disk", "--log-format", "json", "-q"]);
    assert_eq!(output.status.code(), Some(1));
    let line: serde_json::Value = serde_json::from_slice(&output.stderr).expect("one JSON line");
    assert_eq!(line["level"], "ERROR");
    let message = line["fields"]["message"].as_str().expect("message");
    assert!(message.contains("no device named `disk`"), "{message}");
}

#[test]
fn without_a_run_directory_nothing_runs_and_none_is_made() {
    let output = run(&["list"]);
    assert_eq!(
        (output.status.code(), text(&output.stdout)),
        (Some(0), String::new())
    );
    let output = run(&["list", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json, serde_json::json!([]));
    assert!(!fs::exists("/nonexistent-run").expect("looked"));
}

#[test]
fn a_bad_log_filter_is_refused_and_not_ignored() {
    let output = blockferry(&["list"])
        .env("RUST_LOG", "blockferry=loud=very")
        .output()
        .expect("started");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("RUST_LOG"));
}

#[test]
fn whoever_stops_reading_the_answer_is_no_failure() {
    let mut child = blockferry(&["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("waited");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn an_answer_that_cannot_be_written_is_a_failure() {
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .expect("opened");
    let output = blockferry(&["completions", "bash"])
        .stdout(Stdio::from(full))
        .output()
        .expect("started");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("standard output"));
}

#[test]
fn completions_know_every_verb() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        let script = text(&output.stdout);
        for verb in verbs() {
            assert!(script.contains(&verb), "{shell}: {verb}");
        }
    }
}

#[test]
fn every_verb_has_a_manual_page() {
    let directory = tempfile::tempdir().expect("directory");
    let man = directory.path().join("share/man1");
    let output = run(&["man", man.to_str().expect("text")]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    for verb in verbs() {
        let page = fs::read_to_string(man.join(format!("blockferry-{verb}.1"))).expect("page");
        assert!(
            page.contains(".SH SYNOPSIS") && page.contains("Example"),
            "{verb}"
        );
    }
    let page = fs::read(man.join("blockferry.1")).expect("page");
    assert_eq!(page, run(&["man"]).stdout);
}

#[test]
fn doctor_names_the_device_it_would_make_or_fails() {
    let output = run(&["doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("readable");
    assert_eq!(report["kernel"], release.trim());
    let findings = report["findings"].as_array().expect("findings");
    let ok = |name| {
        let finding = findings.iter().find(|finding| finding["name"] == name);
        finding.expect("looked at")["ok"] == true
    };
    let expected = match (ok("ublk"), ok("fuse")) {
        (true, _) => "ublk".into(),
        (false, true) => "fuse".into(),
        (false, false) => serde_json::Value::Null,
    };
    assert_eq!(report["device"], expected);
    let code = i32::from(expected.is_null());
    assert_eq!(output.status.code(), Some(code));
    let features = report["ublk_features"].as_array().expect("features");
    assert_eq!(!features.is_empty(), ok("ublk"));

    let output = run(&["doctor"]);
    assert_eq!(output.status.code(), Some(code));
    let lines = text(&output.stdout);
    for name in [
        "kernel",
        "ublk",
        "nbd",
        "fuse",
        "io_uring",
        "userfaultfd",
        "auto",
    ] {
        assert!(
            lines.lines().any(|line| line.starts_with(name)),
            "{name}: {lines}"
        );
    }
}

#[test]
fn what_an_option_cannot_be_names_the_option_and_what_it_can_be() {
    for (option, value, allowed) in [
        ("--io-timeout", "1e20", "whole number of seconds from 0 to"),
        ("--push-interval", "1e20", "number of seconds from 0 to"),
        ("--chunk-size", "3KiB", "power of two from 4KiB to 4MiB"),
        ("--pull-rate", "0", "at least 1 byte a second"),
        ("--push-rate", "fast", "KiB MiB GiB TiB"),
    ] {
        let output = run(&["mount", "blockferry://host:1/disk", option, value]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        for part in [option, value, allowed] {
            assert!(said.contains(part), "no `{part}` in {said}");
        }
    }
}

#[test]
fn wrong_usage_is_exit_code_2_in_the_background_too() {
    let args = ["mount", "mem:1MiB", "--cache", "/nonexistent", "--detach"];
    assert_eq!(run(&args).status.code(), Some(2));
}
