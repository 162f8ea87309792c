//! Nothing goes wrong.

use super::ends::{SIZE, World, are_equal, until};
use super::writer::{Writer, Written};

#[test]
fn a_volume_moves_under_a_running_writer_and_is_nowhere_else() {
    let Some(world) = World::new() else { return };
    let mut seeder = world.seed("a.img", &[]).wait_until_ready();
    let writer = Writer::start(&seeder.device, 1, Written::default());
    let mut leecher = world.leech(&world.url("b.img"), &[]).wait_until_ready();
    assert!(
        leecher.second.starts_with("downtime "),
        "{}",
        leecher.second
    );
    let written = writer.failed();
    assert_eq!(seeder.ended(), Some(0), "{}", seeder.log());
    written.is_on(&leecher.device);
    assert!(are_equal(&world.path("a.img"), &world.path("b.img")));

    let old = world.url("a.img");
    let elsewhere = ["has moved to host-b (epoch 1)", "a.img.blockferry"];
    for verb in [
        &["mount", &old, "--device", "fuse"][..],
        &["mount", &old, "--device", "fuse", "--read-only"],
        &["serve", &old, "--listen", "127.0.0.1:0"],
    ] {
        world.fails(verb, &elsewhere);
    }
    // It goes on here, as any device does.
    Writer::start(&leecher.device, 2, written)
        .stop()
        .is_on(&leecher.device);
    world.succeeds(&["stop", "leecher"]);
    assert_eq!(leecher.ended(), Some(0), "{}", leecher.log());
}

#[test]
fn a_volume_goes_there_and_back_again_and_every_write_with_it() {
    let Some(world) = World::new() else { return };
    let mut written = Written::default();
    let files = ["a.img", "b.img"];
    for turn in 0..4 {
        let (from, to) = (files[turn % 2], files[(turn + 1) % 2]);
        let mut seeder = world.seed(from, &[]).wait_until_ready();
        let writer = Writer::start(&seeder.device, turn as u64, written);
        let mut leecher = world.leech(&world.url(to), &[]).wait_until_ready();
        written = writer.failed();
        written.is_on(&leecher.device);
        assert_eq!(seeder.ended(), Some(0), "{}", seeder.log());
        world.succeeds(&["stop", "leecher"]);
        assert_eq!(leecher.ended(), Some(0), "{}", leecher.log());
        let epoch = format!("(epoch {})", turn + 1);
        let old = world.url(from);
        world.fails(&["mount", &old, "--device", "fuse"], &[&epoch]);
    }
}

#[test]
fn the_user_says_when_and_until_then_rounds_go_on() {
    let Some(world) = World::new() else { return };
    let seeder = world.seed("a.img", &[]).wait_until_ready();
    let writer = Writer::start(&seeder.device, 1, Written::default());
    world.fails(&["abort", "seeder"], &["nobody leeches the volume"]);
    let leecher = world.leech("mem:", &["--finalize", "manual"]);
    world.until_rounds(3);
    let status = world.status("leecher").expect("JSON");
    assert_eq!(status["role"], "leecher");
    assert_eq!(status["phase"], "pulling");
    assert!(status["predicted_downtime_ms"].is_u64(), "{status}");
    assert_eq!(world.status("seeder").expect("JSON")["leechers"], 1);
    world.fails(&["finalize", "seeder"], &["for the leecher"]);
    let list = world.succeeds(&["list"]);
    assert!(list.contains("leeching, round "), "{list}");
    assert!(list.contains("alive, leechers: 1"), "{list}");
    let shown = world.succeeds(&["status", "leecher"]);
    for fact in ["phase", "rounds", "this round", "written there"] {
        assert!(shown.contains(fact), "no {fact} in {shown}");
    }
    writer.until_it_has_written(10);
    world.succeeds(&["finalize", "leecher"]);
    let leecher = leecher.wait_until_ready();
    writer.failed().is_on(&leecher.device);
    until("the seeder is released", || {
        let status = world.status("leecher");
        status.is_some_and(|status| status["phase"] == "done" && status["owner"] == "here")
    });
    world.fails(&["abort", "leecher"], &["no migration is under way"]);
    let shown = world.succeeds(&["migrate", "status", "leecher"]);
    assert!(shown.contains("downtime"), "{shown}");
    for past in ["left", "this round", "written there", "predicted"] {
        assert!(!shown.contains(past), "{past} in {shown}");
    }
}

#[test]
fn holes_stay_holes() {
    let Some(world) = World::new() else { return };
    let _seeder = world.seed("a.img", &[]).wait_until_ready();
    let _leecher = world.leech(&world.url("b.img"), &[]).wait_until_ready();
    use std::os::unix::fs::MetadataExt;
    let allocated = std::fs::metadata(world.path("b.img"))
        .expect("there")
        .blocks()
        * 512;
    assert!(allocated < SIZE * 7 / 8, "{allocated} of {SIZE}");
}

#[test]
fn a_directory_gets_a_file_of_the_volumes_name_and_a_command_hears_of_all_that_has_come() {
    let Some(world) = World::new() else { return };
    let seeder = world.seed("a.img", &[]).wait_until_ready();
    let writer = Writer::start(&seeder.device, 1, Written::default());
    let (store, heard) = (world.path("volumes"), world.path("heard"));
    let command = format!("cat >{0}.new; mv {0}.new {0}", heard.display());
    let args = ["--on-chunk-local", &command];
    let leecher = world.leech(&store.display().to_string(), &args);
    let leecher = leecher.wait_until_ready();
    writer.failed().is_on(&leecher.device);
    assert!(are_equal(&world.path("a.img"), &store.join("seeder.img")));
    until("the command has heard of all", || heard.exists());
    let heard = std::fs::read_to_string(&heard).expect("read");
    let mut parts: Vec<(u64, u64)> = heard
        .lines()
        .map(|line| {
            let (offset, length) = line.split_once(' ').expect("two numbers");
            (offset.parse().expect("one"), length.parse().expect("one"))
        })
        .collect();
    parts.sort_unstable();
    let end = parts.iter().fold(0, |end, (offset, length)| {
        assert_eq!(*offset, end, "each part once");
        offset + length
    });
    assert_eq!(end, SIZE);
}
