//! When the seeder ends, and when it stays.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::time::{Duration, Instant};

use super::ends::{SIZE, World, until};

/// For longer than the new owner may take to go when it has released the seeder.
const FAREWELL_IS_OVER: Duration = Duration::from_secs(4);

#[test]
fn a_seeder_is_not_stopped_without_a_word_before_the_new_owner_has_heard_of_it() {
    let Some(world) = World::new() else { return };
    let mut seeder = world.seed("a.img", &[]).wait_until_ready();
    let leecher = world.leech(&world.url("b.img"), &[]).wait_until_ready();
    assert_eq!(seeder.ended(), Some(0), "{}", seeder.log());
    drop(leecher);
    // As it is when the seeder has ended before it was released.
    let record = world.path("a.img.blockferry");
    let kept = std::fs::read_to_string(&record).expect("read");
    let before = kept.replace("\"released\": true", "\"released\": false");
    assert_ne!(before, kept, "it was released");
    std::fs::write(&record, before).expect("written");

    let mut seeder = world.seed("a.img", &[]);
    until("it answers", || world.status("seeder").is_some());
    let list = world.succeeds(&["list"]);
    assert!(list.contains("alive, moved to host-b"), "{list}");
    world.fails(
        &["stop", "seeder"],
        &["host-b", "may not have heard yet", "`blockferry seed`"],
    );
    world.succeeds(&["stop", "--force", "seeder"]);
    assert_eq!(seeder.ended(), Some(0), "{}", seeder.log());
}

#[test]
fn the_device_stays_as_long_as_the_hook_before_the_close_runs() {
    let Some(world) = World::new() else { return };
    let go_on = world.path("go-on");
    let hook = format!("while ! test -e {}; do sleep 0.1; done", go_on.display());
    let mut seeder = world
        .seed("a.img", &["--on-before-close", &hook])
        .wait_until_ready();
    let leecher = world.leech(&world.url("b.img"), &[]).wait_until_ready();
    leecher.until_released();
    let deadline = Instant::now() + FAREWELL_IS_OVER;
    while Instant::now() < deadline {
        let ended = seeder.child.try_wait().expect("waited");
        assert_eq!(ended, None, "the hook runs: {}", seeder.log());
        let device =
            File::open(&seeder.device).and_then(|mut device| device.seek(SeekFrom::End(0)));
        assert!(
            device.as_ref().is_ok_and(|bytes| *bytes == SIZE),
            "the hook runs: {device:?}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    std::fs::write(go_on, "").expect("written");
    assert_eq!(seeder.ended(), Some(0), "{}", seeder.log());
}

#[test]
fn a_seeder_that_cannot_decide_says_so_and_hears_who_stops_it() {
    let Some(world) = World::new() else { return };
    let mut seeder = world.seed("a.img", &[]).wait_until_ready();
    let _leecher = world.leech(&world.url("b.img"), &["--finalize", "manual"]);
    world.until_rounds(1);
    // The record of the move can be put there as little as the one before it.
    let record = world.path("a.img.blockferry");
    std::fs::remove_file(&record).expect("removed");
    std::fs::create_dir(&record).expect("made");
    world.succeeds(&["finalize", "leecher"]);
    until("requests wait", || {
        seeder.log().contains("neither written nor taken back")
    });
    let begin = |args: &[&str]| world.command(args).spawn().expect("started");
    let mut orders = [begin(&["sync", "seeder"]), begin(&["stop", "seeder"])];
    for order in &mut orders {
        until("it is answered", || {
            order.try_wait().expect("waited").is_some()
        });
        let code = order.wait().expect("waited").code();
        assert_eq!(code, Some(1), "it is not decided");
    }
    let mut stop = begin(&["stop", "--force", "seeder"]);
    until("it is forced", || {
        stop.try_wait().expect("waited").is_some()
    });
    assert_eq!(seeder.ended(), Some(0), "{}", seeder.log());
}
