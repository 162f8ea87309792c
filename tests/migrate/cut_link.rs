//! The link is cut at every stage of the second phase, and comes back.

use std::time::Duration;

use super::ends::{World, are_equal, until};
use super::writer::{Writer, Written};

/// Fast enough for what these tests have to pull.
const BITS_PER_S: u64 = 400_000_000;

/// A command for a hook that says it was reached, and waits until it may go on.
fn pausing(world: &World) -> String {
    let (reached, go_on) = (world.path("reached"), world.path("go-on"));
    format!(
        "touch {}; for i in $(seq 600); do test ! -e {} || exit 0; sleep 0.05; done; exit 1",
        reached.display(),
        go_on.display()
    )
}

/// Cut while a hook runs before the commit: the volume stays, and moves when the link is back.
fn stays_until_the_link_is_back(hook: &str) {
    let Some(world) = World::new() else { return };
    let pause = pausing(&world);
    let mut seeder = world.seed("a.img", &[hook, &pause]).wait_until_ready();
    let link = world.put_link_before(BITS_PER_S);
    let writer = Writer::start(&seeder.device, 1, Written::default());
    let store = world.url("b.img");
    let leecher = world.leech(&store, &["--finalize", "manual"]);
    world.until_rounds(1);
    world.succeeds(&["finalize", "leecher"]);
    until("the hook runs", || world.path("reached").exists());
    link.cut();
    std::fs::write(world.path("go-on"), "").expect("written");
    until("the attempt is over", || {
        seeder.log().contains("requests go on here")
    });
    writer.until_it_has_written(50);
    link.mend();
    world.finalize();
    let leecher = leecher.wait_until_ready();
    writer.failed().is_on(&leecher.device);
    assert_eq!(seeder.ended(), Some(0), "{}", seeder.log());
    assert!(are_equal(&world.path("a.img"), &world.path("b.img")));
}

#[test]
fn a_link_that_is_cut_before_the_hold_costs_nothing_but_time() {
    stays_until_the_link_is_back("--on-before-sync");
}

#[test]
fn a_link_that_is_cut_while_requests_are_held_costs_nothing_but_time() {
    stays_until_the_link_is_back("--on-after-sync");
}

#[test]
fn a_link_that_is_cut_when_the_volume_has_moved_leaves_the_leecher_to_ask_for_it() {
    let Some(world) = World::new() else { return };
    let pause = pausing(&world);
    let mut seeder = world
        .seed("a.img", &["--on-before-close", &pause])
        .wait_until_ready();
    let link = world.put_link_before(BITS_PER_S);
    let writer = Writer::start(&seeder.device, 1, Written::default());
    let leecher = world.leech(&world.url("b.img"), &[]);
    until("the hook runs", || world.path("reached").exists());
    link.cut();
    let written = writer.failed();
    std::fs::write(world.path("go-on"), "").expect("written");
    link.mend();
    let leecher = leecher.wait_until_ready();
    written.is_on(&leecher.device);
    assert_eq!(seeder.ended(), Some(0), "{}", seeder.log());
    assert!(are_equal(&world.path("a.img"), &world.path("b.img")));
}

#[test]
fn a_link_that_fails_for_a_moment_at_any_point_of_the_second_phase_leaves_one_owner() {
    for delay_ms in [0, 1, 2, 3, 5, 8, 12, 20] {
        let Some(world) = World::new() else { return };
        let mut seeder = world.seed("a.img", &[]).wait_until_ready();
        let link = world.put_link_before(BITS_PER_S);
        let writer = Writer::start(&seeder.device, delay_ms + 1, Written::default());
        let leecher = world.leech(&world.url("b.img"), &["--finalize", "manual"]);
        world.until_rounds(1);
        world.succeeds(&["finalize", "leecher"]);
        std::thread::sleep(Duration::from_millis(delay_ms));
        link.cut();
        std::thread::sleep(Duration::from_millis(300));
        link.mend();
        let leecher = leecher.wait_until_ready();
        writer.failed().is_on(&leecher.device);
        assert_eq!(seeder.ended(), Some(0), "{delay_ms}: {}", seeder.log());
        assert!(are_equal(&world.path("a.img"), &world.path("b.img")));
    }
}
