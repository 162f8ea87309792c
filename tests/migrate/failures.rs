//! Something goes wrong: there is one owner afterwards, with every write.

use std::path::Path;

use nix::sys::signal::Signal;

use super::ends::{World, are_equal, until};
use super::writer::{Writer, Written};

/// A hook that kills the process whose number is in a file.
fn kill_hook(world: &World, file: &str, signal: &str) -> String {
    format!("kill -{signal} $(cat {})", world.path(file).display())
}

#[test]
fn an_abort_at_either_end_leaves_the_application_as_it_was() {
    let Some(world) = World::new() else { return };
    let mut seeder = world.seed("a.img", &[]).wait_until_ready();
    let writer = Writer::start(&seeder.device, 1, Written::default());
    for aborted in ["leecher", "seeder"] {
        let mut leecher = world.leech(&world.url("b.img"), &["--finalize", "manual"]);
        world.until_rounds(2);
        world.succeeds(&["abort", aborted]);
        assert_eq!(leecher.ended(), Some(1), "{}", leecher.log());
        let why = format!("given up at the {aborted}");
        assert!(leecher.log().contains(&why), "{}", leecher.log());
        writer.until_it_has_written(50);
    }
    let list = world.succeeds(&["list"]);
    assert!(!list.contains("leecher"), "nothing is left there: {list}");
    let store = world.url("b.img");
    world.fails(&["mount", &store, "--device", "fuse"], &["on its way here"]);
    writer.stop().is_on(&seeder.device);
    world.succeeds(&["stop", "seeder"]);
    assert_eq!(seeder.ended(), Some(0), "{}", seeder.log());
    let mut mount = world.mount("a.img");
    assert!(!mount.line().is_empty(), "{}", mount.log());
}

#[test]
fn a_leecher_that_is_killed_costs_nothing_but_time() {
    let Some(world) = World::new() else { return };
    let hook = kill_hook(&world, "leecher.pid", "KILL");
    let once = format!(
        "test -e {0} && {{ mv {0} {0}.once; {1}; }} || true",
        world.path("leecher.pid").display(),
        hook.replace("leecher.pid", "leecher.pid.once")
    );
    let mut seeder = world
        .seed("a.img", &["--on-after-sync", &once])
        .wait_until_ready();
    let writer = Writer::start(&seeder.device, 1, Written::default());
    let store = world.url("b.img");
    let mut leecher = world.leech(&store, &["--finalize", "manual"]);
    world.until_rounds(1);
    leecher.crash();
    writer.until_it_has_written(50);

    // While requests are held.
    let mut leecher = world.leech(&store, &["--finalize", "manual"]);
    std::fs::write(world.path("leecher.pid"), leecher.pid().to_string()).expect("written");
    world.until_rounds(1);
    world.succeeds(&["finalize", "leecher"]);
    assert_eq!(leecher.ended(), None, "it is killed");
    writer.until_it_has_written(50);
    until("the seeder goes on", || {
        seeder.log().contains("requests go on here")
    });

    let leecher = world.leech(&store, &[]).wait_until_ready();
    writer.failed().is_on(&leecher.device);
    assert_eq!(seeder.ended(), Some(0), "{}", seeder.log());
    assert!(are_equal(&world.path("a.img"), &world.path("b.img")));
}

#[test]
fn a_leecher_that_is_killed_when_the_volume_has_moved_has_it() {
    let Some(world) = World::new() else { return };
    let hook = kill_hook(&world, "leecher.pid", "KILL");
    let mut seeder = world
        .seed("a.img", &["--on-before-close", &hook])
        .wait_until_ready();
    let writer = Writer::start(&seeder.device, 1, Written::default());
    let store = world.url("b.img");
    let mut leecher = world.leech(&store, &["--finalize", "manual"]);
    std::fs::write(world.path("leecher.pid"), leecher.pid().to_string()).expect("written");
    world.until_rounds(1);
    world.succeeds(&["finalize", "leecher"]);
    let written = writer.failed();
    assert_eq!(leecher.ended(), None, "it is killed");
    // It may have had a device, or none yet; it may have released the seeder, or not.
    let mut leecher = world.leech(&store, &[]);
    let device = leecher.line();
    written.is_on(Path::new(&device));
    assert_eq!(seeder.ended(), Some(0), "{}", seeder.log());
}

#[test]
fn a_seeder_that_is_killed_while_it_holds_requests_has_the_volume() {
    let Some(world) = World::new() else { return };
    let hook = kill_hook(&world, "seeder.pid", "KILL");
    let mut seeder = world
        .seed("a.img", &["--on-after-sync", &hook])
        .wait_until_ready();
    std::fs::write(world.path("seeder.pid"), seeder.pid().to_string()).expect("written");
    let writer = Writer::start(&seeder.device, 1, Written::default());
    let leecher = world.leech(&world.url("b.img"), &[]);
    let written = writer.failed();
    assert_eq!(seeder.ended(), None, "it is killed");

    let mut seeder = world.seed("a.img", &[]).wait_until_ready();
    written.is_on(&seeder.device);
    // The leecher has gone on by itself.
    let leecher = leecher.wait_until_ready();
    written.is_on(&leecher.device);
    assert_eq!(seeder.ended(), Some(0), "{}", seeder.log());
}

#[test]
fn a_seeder_that_is_killed_when_the_volume_has_moved_answers_for_it_and_no_more() {
    let Some(world) = World::new() else { return };
    let hook = kill_hook(&world, "seeder.pid", "KILL");
    let mut seeder = world
        .seed("a.img", &["--on-before-close", &hook])
        .wait_until_ready();
    std::fs::write(world.path("seeder.pid"), seeder.pid().to_string()).expect("written");
    let writer = Writer::start(&seeder.device, 1, Written::default());
    let leecher = world.leech(&world.url("b.img"), &[]);
    let written = writer.failed();
    assert_eq!(seeder.ended(), None, "it is killed");

    let volume = world.url("a.img");
    world.fails(
        &["mount", &volume, "--device", "fuse"],
        &["has moved to host-b"],
    );
    let mut seeder = world.seed("a.img", &[]);
    let ticket = seeder.line();
    let leecher = leecher.wait_until_ready();
    written.is_on(&leecher.device);
    if ticket.is_empty() {
        // The one before had recorded that nobody needs it before it was killed.
        assert_eq!(seeder.ended(), Some(1));
        assert!(seeder.log().contains("has moved to host-b"));
        return;
    }
    assert!(
        ticket.starts_with("blockferry://"),
        "there is no device: {ticket}"
    );
    leecher.until_released();
    assert_eq!(seeder.ended(), Some(0), "{}", seeder.log());
}

#[test]
fn a_seeder_that_is_killed_when_it_is_released_knows_that_it_is() {
    let Some(world) = World::new() else { return };
    let until_killed = "while kill -0 $PPID; do sleep 0.1; done 2>/dev/null";
    let mut seeder = world
        .seed("a.img", &["--on-before-close", until_killed])
        .wait_until_ready();
    let leecher = world.leech(&world.url("b.img"), &[]).wait_until_ready();
    leecher.until_released();
    seeder.crash();
    world.seed_fails("a.img", &["has moved to host-b (epoch 1)"]);
}

#[test]
fn whoever_is_killed_goes_on_by_his_name_with_one_owner() {
    let Some(world) = World::new() else { return };
    // From now on its port is known, and stays.
    let mut seeder = world.seed("a.img", &[]).wait_until_ready();
    world.succeeds(&["stop", "seeder"]);
    assert_eq!(seeder.ended(), Some(0));
    let mut seeder = world.seed("a.img", &[]).wait_until_ready();
    let mut leecher = world.leech(&world.url("b.img"), &["--finalize", "manual"]);
    let writer = Writer::start(&seeder.device, 1, Written::default());
    world.until_rounds(1);
    leecher.crash();
    seeder.crash();
    let written = writer.failed();

    let mut seeder = world.recover("seeder").wait_until_ready();
    assert!(
        seeder.log().contains("has not moved away"),
        "{}",
        seeder.log()
    );
    written.is_on(&seeder.device);
    let writer = Writer::start(&seeder.device, 2, written);
    let leecher = world.recover("leecher");
    world.until_rounds(1);
    world.succeeds(&["finalize", "leecher"]);
    let mut leecher = leecher.wait_until_ready();
    let written = writer.failed();
    leecher.until_released();
    assert_eq!(seeder.ended(), Some(0), "{}", seeder.log());
    leecher.crash();

    let leecher = world.recover("leecher").wait_until_ready();
    assert_eq!(leecher.second, "downtime unknown");
    assert!(
        leecher.log().contains("goes on without its seeder"),
        "{}",
        leecher.log()
    );
    written.is_on(&leecher.device);
    world.seed_fails("a.img", &["has moved to host-b (epoch 1)"]);
}

#[test]
fn a_hold_that_takes_too_long_ends_and_the_next_one_may_do() {
    let Some(world) = World::new() else { return };
    let once = format!(
        "test -e {0} || {{ touch {0}; sleep 30; }}",
        world.path("slow").display()
    );
    let mut seeder = world
        .seed("a.img", &["--hold-limit", "1", "--on-after-sync", &once])
        .wait_until_ready();
    let writer = Writer::start(&seeder.device, 1, Written::default());
    let leecher = world.leech("mem:", &[]).wait_until_ready();
    writer.failed().is_on(&leecher.device);
    assert_eq!(seeder.ended(), Some(0));
    assert!(seeder.log().contains("--hold-limit"), "{}", seeder.log());
}

#[test]
fn a_hook_that_fails_keeps_the_volume_where_it_is() {
    let Some(world) = World::new() else { return };
    let seeder = world
        .seed("a.img", &["--on-before-sync", "exit 3"])
        .wait_until_ready();
    let writer = Writer::start(&seeder.device, 1, Written::default());
    let leecher = world.leech("mem:", &[]);
    until("the hook has failed", || leecher.log().contains("exit 3"));
    writer.until_it_has_written(50);
    drop(leecher);
    writer.stop().is_on(&seeder.device);
}

#[test]
fn a_leecher_that_hangs_holds_nobody_for_ever() {
    let Some(world) = World::new() else { return };
    let hook = kill_hook(&world, "leecher.pid", "STOP");
    let mut seeder = world
        .seed("a.img", &["--hold-limit", "1", "--on-after-sync", &hook])
        .wait_until_ready();
    let writer = Writer::start(&seeder.device, 1, Written::default());
    let leecher = world.leech(&world.url("b.img"), &["--finalize", "manual"]);
    std::fs::write(world.path("leecher.pid"), leecher.pid().to_string()).expect("written");
    world.until_rounds(1);
    world.succeeds(&["finalize", "leecher"]);
    until("the seeder goes on", || {
        seeder.log().contains("requests go on here")
    });
    writer.until_it_has_written(50);
    std::fs::write(world.path("leecher.pid"), "none").expect("written");
    leecher.signal(Signal::SIGCONT);
    writer.until_it_has_written(50);
    drop(leecher);
    writer.stop().is_on(&seeder.device);
    world.succeeds(&["stop", "seeder"]);
    assert_eq!(seeder.ended(), Some(0));
}

#[test]
fn a_seeder_with_no_space_for_its_record_keeps_the_volume_and_goes_on() {
    let Some(world) = World::new() else { return };
    let mut seeder = world.seed("a.img", &[]).wait_until_ready();
    let writer = Writer::start(&seeder.device, 1, Written::default());
    let leecher = world.leech(&world.url("b.img"), &["--finalize", "manual"]);
    world.until_rounds(1);
    // Nothing can be written where the next record is prepared.
    let in_the_way = world.path("a.img.blockferry.new");
    std::fs::create_dir(&in_the_way).expect("made");
    world.succeeds(&["finalize", "leecher"]);
    until("requests go on", || {
        seeder.log().contains("requests go on here")
    });
    assert!(seeder.log().contains("a store failed"), "{}", seeder.log());
    writer.until_it_has_written(50);
    std::fs::remove_dir(&in_the_way).expect("removed");
    let asked = || world.command(&["finalize", "leecher"]).output();
    until("it can be told again", || {
        asked().expect("started").status.success()
    });
    let leecher = leecher.wait_until_ready();
    writer.failed().is_on(&leecher.device);
    assert_eq!(seeder.ended(), Some(0), "{}", seeder.log());
}

/// The store is taken away while the volume is pulled into it: the volume stays, and moves when it is back.
fn stays_while_the_store_is(broken: impl Fn(&Path), mended: impl Fn(&Path), said: &str) {
    let Some(world) = World::new() else { return };
    let mut seeder = world.seed("a.img", &[]).wait_until_ready();
    let store = world.url("b.img");
    let mut leecher = world.leech(&store, &["--finalize", "manual"]);
    world.until_rounds(1);
    broken(&world.path("b.img"));
    world.succeeds(&["finalize", "leecher"]);
    assert_eq!(leecher.ended(), Some(1), "{}", leecher.log());
    assert!(leecher.log().contains(said), "{}", leecher.log());
    let writer = Writer::start(&seeder.device, 1, Written::default());
    writer.until_it_has_written(50);
    mended(&world.path("b.img"));
    let leecher = world.leech(&store, &[]).wait_until_ready();
    writer.failed().is_on(&leecher.device);
    assert_eq!(seeder.ended(), Some(0), "{}", seeder.log());
    assert!(are_equal(&world.path("a.img"), &world.path("b.img")));
}

#[test]
fn a_store_that_was_renamed_meanwhile_is_not_where_the_volume_moves() {
    let elsewhere = |path: &Path| path.with_extension("elsewhere");
    stays_while_the_store_is(
        |path| std::fs::rename(path, elsewhere(path)).expect("renamed"),
        |path| std::fs::rename(elsewhere(path), path).expect("renamed"),
        "was removed or renamed while it was in use",
    );
}

#[test]
fn a_store_that_was_cut_short_meanwhile_is_not_where_the_volume_moves() {
    let set_len = |path: &Path, len| {
        let file = std::fs::File::options().write(true).open(path);
        file.expect("opened").set_len(len).expect("set");
    };
    stays_while_the_store_is(
        |path| set_len(path, 1 << 20),
        |path| set_len(path, super::ends::SIZE),
        "has another length than when it was opened",
    );
}
