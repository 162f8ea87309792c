//! The volume moves first, and its bytes after it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::ends::{End, SIZE, World, until};
use super::writer::{Writer, Written};

/// So slow that what is left is left for seconds.
const SLOW: u64 = 10_000_000;

/// So slow that nothing is done before a test has done what it is about.
const CRAWLING: u64 = 600_000;

impl World {
    fn leech_after(&self, args: &[&str]) -> End {
        let fixed = ["--mode", "post-copy"];
        self.leech(&self.url("b.img"), &[&fixed, args].concat())
    }

    fn until_phase(&self, phase: &str) {
        until(phase, || {
            let status = self.status("leecher");
            status.is_some_and(|status| status["phase"] == phase)
        });
    }

    fn is_pulling_the_rest(&self) -> bool {
        let status = self.status("leecher").expect("JSON");
        status["phase"] == "pulling the rest" && status["rest_bytes"].as_u64() > Some(0)
    }

    /// Everything is here: the seeder goes, and what nobody wrote here is what it had.
    fn is_complete(&self, seeder: &mut End, written: &Written) {
        assert_eq!(seeder.ended(), Some(0), "{}", seeder.log());
        self.until_phase("done");
        written.is_all_that_differs(&self.path("a.img"), &self.path("b.img"));
    }
}

#[test]
fn the_device_serves_from_the_cut_over_on_and_what_is_read_comes_first() {
    let Some(world) = World::new() else { return };
    let mut seeder = world.seed("a.img", &[]).wait_until_ready();
    let _link = world.put_link_before(SLOW);
    let writer = Writer::start(&seeder.device, 1, Written::default());
    let heard = world.path("heard");
    let command = format!("cat >>{}", heard.display());
    let mut leecher = world
        .leech_after(&["--on-chunk-local", &command])
        .wait_until_ready();
    assert!(leecher.second.starts_with("downtime "));
    let written = writer.failed();
    assert!(world.is_pulling_the_rest(), "{}", leecher.log());
    // Reads, while it pulls and an application writes.
    let writer = Writer::start(&leecher.device, 2, written.clone());
    writer.until_it_has_read(20);
    assert!(world.is_pulling_the_rest(), "{}", leecher.log());
    world.until_phase("done");
    writer.until_it_has_written(50);
    let here = writer.stop();
    here.is_on(&leecher.device);
    world.is_complete(&mut seeder, &here);
    assert!(world.path("b.img.blockferry-part").exists());
    world.succeeds(&["stop", "leecher"]);
    assert_eq!(leecher.ended(), Some(0), "{}", leecher.log());
    assert!(!world.path("b.img.blockferry-part").exists());
    until("the command has heard of all, each part once", || {
        let heard = std::fs::read_to_string(&heard).expect("read");
        let lengths = heard.lines().filter_map(|line| line.split_once(' '));
        let lengths = lengths.map(|(_, length)| length.parse::<u64>().expect("a number"));
        lengths.sum::<u64>() == SIZE
    });
    // It is a file as any other.
    let mut mount = world.mount("b.img");
    here.is_on(mount.line().as_ref());
}

#[test]
fn a_leecher_that_is_killed_with_bytes_at_the_seeder_goes_on_with_every_write() {
    let Some(world) = World::new() else { return };
    let mut seeder = world.seed("a.img", &[]).wait_until_ready();
    let link = world.put_link_before(CRAWLING);
    let writer = Writer::start(&seeder.device, 1, Written::default());
    let mut leecher = world.leech_after(&[]).wait_until_ready();
    let mut written = writer.failed();
    let mut device = leecher.device.clone();
    for turn in 0..3 {
        let writer = Writer::start(&device, turn + 2, written);
        assert!(world.is_pulling_the_rest(), "{}", leecher.log());
        leecher.crash();
        written = writer.failed();
        let store = world.url("b.img");
        let part = ["some bytes are still at its seeder"];
        world.fails(&["mount", &store, "--device", "fuse"], &part);
        world.fails(&["stop", "seeder"], &["has not pulled everything"]);
        leecher = world.leech_after(&[]);
        device = leecher.line().into();
        assert!(device.exists(), "{}", leecher.log());
        assert_eq!(leecher.line(), "downtime unknown");
    }
    let _link = link.fast();
    written.is_on(&device);
    world.is_complete(&mut seeder, &written);
}

#[test]
fn a_store_whose_disk_failed_to_sync_goes_on_when_the_user_accepts_what_is_lost() {
    let Some(world) = World::new() else { return };
    let mut seeder = world.seed("a.img", &[]).wait_until_ready();
    let link = world.put_link_before(CRAWLING);
    let mut leecher = world.leech_after(&[]).wait_until_ready();
    assert!(world.is_pulling_the_rest(), "{}", leecher.log());
    leecher.crash();
    // As it is noted when a sync fails.
    let maps = std::fs::read_dir(world.path("run").join(".stores")).expect("read");
    let maps = maps.map(|entry| entry.expect("read").path());
    let live: Vec<_> = maps
        .filter(|path| path.extension().is_some_and(|ending| ending == "live"))
        .collect();
    assert_eq!(live.len(), 1, "{live:?}");
    std::fs::write(live[0].with_extension("failed"), "").expect("written");

    let mut refused = world.leech_after(&[]);
    assert_eq!(refused.ended(), Some(1));
    let log = refused.log();
    let parts = ["is uncertain", "--accept-loss"];
    assert!(parts.iter().all(|part| log.contains(part)), "{log}");
    let mut leecher = world.leech_after(&["--accept-loss"]);
    assert!(Path::new(&leecher.line()).exists(), "{}", leecher.log());
    let _link = link.fast();
    world.is_complete(&mut seeder, &Written::default());
}

#[test]
fn what_is_here_works_without_the_seeder_and_the_rest_comes_when_it_is_back() {
    let Some(world) = World::new() else { return };
    let mut seeder = world.seed("a.img", &[]).wait_until_ready();
    let link = world.put_link_before(CRAWLING);
    let writer = Writer::start(&seeder.device, 1, Written::default());
    let leecher = world.leech_after(&["--io-timeout", "2"]).wait_until_ready();
    writer.failed();
    assert!(world.is_pulling_the_rest(), "{}", leecher.log());
    link.cut();
    let device = File::options().read(true).write(true).open(&leecher.device);
    let device = device.expect("opened");
    let last = SIZE - 4096;
    device
        .write_all_at(&[9; 4096], last)
        .expect("whole blocks need no seeder");
    device.sync_all().expect("durable here");
    let mut bytes = [0; 4096];
    device.read_exact_at(&mut bytes, last).expect("it is here");
    assert_eq!(bytes, [9; 4096]);
    let since = Instant::now();
    device
        .read_exact_at(&mut bytes, SIZE / 2)
        .expect_err("it is at the seeder");
    assert!(since.elapsed() >= Duration::from_secs(2));
    until("it is known that the seeder is away", || {
        let status = world.status("leecher").expect("JSON");
        status["away_since"].is_u64() && status["phase"] == "pulling the rest"
    });
    // Meanwhile the seeder dies, and comes back.
    seeder.crash();
    let _ = world.command(&["stop", "seeder"]).output();
    let mut seeder = world.seed("a.img", &[]);
    assert!(
        seeder.line().starts_with("blockferry://"),
        "{}",
        seeder.log()
    );
    world.fails(&["stop", "seeder"], &["has not pulled everything"]);
    let _link = link.fast();
    until("the rest is read", || {
        device.read_exact_at(&mut bytes, SIZE / 2).is_ok()
    });
    let mut here = Written::default();
    here.wrote(last / 4096);
    world.is_complete(&mut seeder, &here);
    device.read_exact_at(&mut bytes, last).expect("it is here");
    assert_eq!(bytes, [9; 4096], "a late fetch overwrites nothing");
}

#[test]
fn a_stop_says_what_is_left_and_the_same_command_goes_on() {
    let Some(world) = World::new() else { return };
    let mut seeder = world.seed("a.img", &[]).wait_until_ready();
    let link = world.put_link_before(CRAWLING);
    let writer = Writer::start(&seeder.device, 1, Written::default());
    let mut leecher = world.leech_after(&[]).wait_until_ready();
    let written = writer.failed();
    let writer = Writer::start(&leecher.device, 2, written);
    let written = writer.stop();
    world.succeeds(&["stop", "leecher"]);
    assert_eq!(leecher.ended(), Some(0), "{}", leecher.log());
    let said = leecher.log();
    assert!(said.contains("still at its seeder alone"), "{said}");
    // Whatever mode is asked for, it has moved.
    let mut leecher = world.leech(&world.url("b.img"), &[]);
    let device = leecher.line();
    let _link = link.fast();
    written.is_on(device.as_ref());
    world.is_complete(&mut seeder, &written);
}

#[test]
fn hybrid_pulls_for_a_while_and_leaves_the_rest() {
    let Some(world) = World::new() else { return };
    let mut seeder = world.seed("a.img", &[]).wait_until_ready();
    let link = world.put_link_before(SLOW);
    let writer = Writer::start(&seeder.device, 1, Written::default());
    let args = ["--mode", "hybrid", "--pre-copy-time", "1"];
    let leecher = world.leech(&world.url("b.img"), &args).wait_until_ready();
    let written = writer.failed();
    assert!(world.is_pulling_the_rest(), "{}", leecher.log());
    written.is_on(&leecher.device);
    let writer = Writer::start(&leecher.device, 2, written);
    let _link = link.fast();
    world.until_phase("done");
    let here = writer.stop();
    here.is_on(&leecher.device);
    world.is_complete(&mut seeder, &here);
}

#[test]
fn hybrid_leaves_no_more_than_what_changed_since_its_last_round() {
    let Some(world) = World::new() else { return };
    let mut seeder = world.seed("a.img", &[]).wait_until_ready();
    let _link = world.put_link_before(50_000_000);
    let writer = Writer::start(&seeder.device, 1, Written::default());
    let args = [
        "--mode",
        "hybrid",
        "--rounds-max",
        "2",
        "--finalize",
        "manual",
    ];
    let leecher = world.leech(&world.url("b.img"), &args);
    world.until_rounds(2);
    world.succeeds(&["finalize", "leecher"]);
    let leecher = leecher.wait_until_here();
    let status = world.status("leecher").expect("JSON");
    let left_bytes = status["rest_bytes"].as_u64().unwrap_or(0);
    assert!(left_bytes < SIZE / 4, "{left_bytes} bytes are left");
    let written = writer.failed();
    written.is_on(&leecher.device);
    world.is_complete(&mut seeder, &Written::default());
}

/// A command that ends the process whose number is in a file, once.
fn kill_once(world: &World, file: &str) -> String {
    let file = world.path(file).display().to_string();
    format!("test ! -e {file} || {{ pid=$(cat {file}); rm {file}; kill -KILL $pid; }}")
}

#[test]
fn a_leecher_that_is_killed_while_it_is_decided_finds_out_and_goes_on() {
    for hook in ["--on-after-sync", "--on-before-close"] {
        let Some(world) = World::new() else { return };
        let kill = kill_once(&world, "leecher.pid");
        let mut seeder = world.seed("a.img", &[hook, &kill]).wait_until_ready();
        let link = world.put_link_before(CRAWLING);
        let writer = Writer::start(&seeder.device, 1, Written::default());
        let mut leecher = world.leech_after(&["--finalize", "manual"]);
        std::fs::write(world.path("leecher.pid"), leecher.pid().to_string()).expect("written");
        until("it can be told", || world.status("leecher").is_some());
        world.succeeds(&["finalize", "leecher"]);
        assert_eq!(leecher.ended(), None, "it is killed");
        let goes_on = || seeder.log().contains("requests go on here");
        until("the seeder has given it up, or not", || {
            hook == "--on-before-close" || goes_on()
        });
        let mut leecher = world.leech_after(&[]);
        let device = leecher.line();
        assert!(!device.is_empty(), "{hook}: {}", leecher.log());
        let written = writer.failed();
        let _link = link.fast();
        written.is_on(device.as_ref());
        world.is_complete(&mut seeder, &Written::default());
    }
}

#[test]
fn a_seeder_that_is_killed_while_it_is_decided_is_asked_and_nothing_is_lost() {
    for hook in ["--on-after-sync", "--on-before-close"] {
        let Some(world) = World::new() else { return };
        let kill = kill_once(&world, "seeder.pid");
        let mut seeder = world.seed("a.img", &[hook, &kill]).wait_until_ready();
        std::fs::write(world.path("seeder.pid"), seeder.pid().to_string()).expect("written");
        let writer = Writer::start(&seeder.device, 1, Written::default());
        let mut leecher = world.leech_after(&[]);
        let written = writer.failed();
        assert_eq!(seeder.ended(), None, "it is killed");
        let _ = world.command(&["stop", "seeder"]).output();
        let mut seeder = world.seed("a.img", &[]);
        assert!(!seeder.line().is_empty(), "{}", seeder.log());
        let device = leecher.line();
        written.is_on(device.as_ref());
        world.is_complete(&mut seeder, &Written::default());
    }
}

#[test]
fn a_seeder_is_kept_when_what_was_pulled_is_not_what_it_has() {
    let Some(world) = World::new() else { return };
    let mut seeder = world.seed("a.img", &[]).wait_until_ready();
    let link = world.put_link_before(CRAWLING);
    let mut leecher = world.leech_after(&[]).wait_until_ready();
    let mut bytes = [0; 4096];
    let device = File::open(&leecher.device).expect("opened");
    device.read_exact_at(&mut bytes, 0).expect("read");
    // The disk forgets what it was given.
    let store = File::options().write(true).open(world.path("b.img"));
    store
        .expect("opened")
        .write_all_at(&[5; 100], 0)
        .expect("written");
    let _link = link.fast();
    world.until_phase("the rest differs");
    assert!(
        leecher.log().contains("it is not released"),
        "{}",
        leecher.log()
    );
    world.fails(&["stop", "seeder"], &["has not pulled everything"]);
    assert!(seeder.child.try_wait().expect("waited").is_none());
    drop(device);
    world.succeeds(&["stop", "leecher"]);
    assert_eq!(leecher.ended(), Some(0), "{}", leecher.log());
}

#[test]
fn what_was_pulled_after_the_move_can_move_on_while_it_is_in_use() {
    let Some(world) = World::new() else { return };
    let mut seeder = world.seed("a.img", &[]).wait_until_ready();
    let link = world.put_link_before(CRAWLING);
    let writer = Writer::start(&seeder.device, 1, Written::default());
    let on = world.seeding_on("second-ticket");
    let on: Vec<&str> = on.iter().map(String::as_str).collect();
    let mut leecher = world.leech_after(&on).wait_until_ready();
    assert!(leecher.second.starts_with("downtime "));
    let _link = link.fast();
    let ticket = leecher.line();
    assert!(ticket.starts_with("blockferry://"), "{ticket}");
    let written = writer.failed();
    assert_eq!(seeder.ended(), Some(0), "{}", seeder.log());
    let writer = Writer::start(&leecher.device, 2, written);
    let args = ["--mode", "post-copy"];
    let second = world.leech_as(
        "second",
        "host-c",
        "second-ticket",
        &world.url("c.img"),
        &args,
    );
    let second = second.wait_until_ready();
    let written = writer.failed();
    written.is_on(&second.device);
    assert_eq!(leecher.ended(), Some(0), "{}", leecher.log());
    assert!(!world.path("b.img.blockferry-part").exists());
    written.is_all_that_differs(&world.path("b.img"), &world.path("c.img"));
}

#[test]
fn a_store_with_no_place_for_what_is_left_is_refused_before_anything_moves() {
    let Some(world) = World::new() else { return };
    let seeder = world.seed("a.img", &[]).wait_until_ready();
    let writer = Writer::start(&seeder.device, 1, Written::default());
    let ticket = format!("@{}", world.path("ticket").display());
    let args = ["leech", &ticket, "--store", "mem:", "--mode", "post-copy"];
    world.fails(&args, &["post-copy is for files"]);
    writer.stop().is_on(&seeder.device);
}
