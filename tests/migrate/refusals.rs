//! What does not fit is refused, and nothing of it is touched.

use std::fs::File;

use super::ends::{SIZE, World};

#[test]
fn a_store_of_another_size_is_refused_and_stays_as_it_is() {
    let Some(world) = World::new() else { return };
    let _seeder = world.seed("a.img", &[]).wait_until_ready();
    let other = File::create(world.path("b.img")).expect("made");
    other.set_len(SIZE + 4096).expect("sized");
    world.leech_fails(&world.url("b.img"), &["a store of that size"]);
    assert!(!world.path("b.img.blockferry").exists());
    assert_eq!(other.metadata().expect("there").len(), SIZE + 4096);
}

#[test]
fn a_seeded_volume_is_written_by_its_device_alone() {
    let Some(world) = World::new() else { return };
    let _seeder = world.seed("a.img", &[]).wait_until_ready();
    let ticket = format!("@{}", world.path("ticket").display());
    let what_it_is = ["is seeded", "`blockferry leech`"];
    world.fails(&["mount", &ticket, "--direct"], &what_it_is);
    let volume = world.url("a.img");
    world.fails(&["mount", &volume, "--device", "fuse"], &["in use"]);
}

#[test]
fn a_leecher_without_a_seeder_is_told_of_seed_and_of_no_option_that_it_lacks() {
    let Some(world) = World::new() else { return };
    let mut seeder = world.seed("a.img", &[]).wait_until_ready();
    let ticket = std::fs::read_to_string(world.path("ticket")).expect("written");
    let (bare, _) = ticket.split_once('#').expect("a secret");
    let store = world.url("b.img");
    let args = ["leech", bare, "--store", &store, "--device", "fuse"];
    world.fails(
        &args,
        &["the whole ticket, as `blockferry seed` printed it"],
    );
    world.succeeds(&["stop", "seeder"]);
    assert_eq!(seeder.ended(), Some(0), "{}", seeder.log());
    let ticket = ticket.trim();
    let args = ["leech", ticket, "--store", &store, "--device", "fuse"];
    world.fails(&args, &["is `blockferry seed` running there"]);
}

#[test]
fn a_store_of_another_volume_is_refused_by_name() {
    let Some(world) = World::new() else { return };
    let seeder = world.seed("a.img", &[]).wait_until_ready();
    let mut leecher = world.leech(&world.url("b.img"), &["--finalize", "manual"]);
    world.until_rounds(1);
    world.succeeds(&["abort", "leecher"]);
    assert_eq!(leecher.ended(), Some(1));
    world.succeeds(&["stop", "seeder"]);
    drop(seeder);
    std::fs::copy(world.path("a.img"), world.path("c.img")).expect("copied");
    let _seeder = world.seed("c.img", &[]).wait_until_ready();
    world.leech_fails(&world.url("b.img"), &["another volume"]);
}

#[test]
fn a_volume_that_was_seeded_from_here_is_not_overwritten_by_another_one() {
    let Some(world) = World::new() else { return };
    std::fs::copy(world.path("a.img"), world.path("c.img")).expect("copied");
    let seeder = world.seed("c.img", &[]).wait_until_ready();
    world.succeeds(&["stop", "seeder"]);
    drop(seeder);
    let before = std::fs::read(world.path("c.img.blockferry")).expect("a record");
    let _seeder = world.seed("a.img", &[]).wait_until_ready();
    world.leech_fails(&world.url("c.img"), &["it would be lost", "another store"]);
    let after = std::fs::read(world.path("c.img.blockferry")).expect("a record");
    assert_eq!(before, after);
}

/// Another image under the same ticket: whoever goes on with the first one does not take it for that.
fn another_volume_is_not_taken_for_it(mode: &str, stage: impl FnOnce(&World)) {
    let Some(world) = World::new() else { return };
    std::fs::write(world.path("c.img"), vec![7; SIZE as usize]).expect("written");
    let mut seeder = world.seed("a.img", &[]).wait_until_ready();
    let _link = world.put_link_before(2_000_000);
    let store = world.url("b.img");
    let mut leecher = world.leech(&store, &["--mode", mode]).wait_until_here();
    stage(&world);
    leecher.crash();
    seeder.crash();
    let _ = world.command(&["stop", "seeder", "--force"]).output();
    let _ = world.command(&["stop", "leecher", "--force"]).output();
    let record = std::fs::read(world.path("b.img.blockferry")).expect("a record");
    let _other = world.seed("c.img", &[]).wait_until_ready();
    world.leech_fails(&store, &["has another volume than the one of this ticket"]);
    let after = std::fs::read(world.path("b.img.blockferry")).expect("a record");
    assert_eq!(record, after, "nothing of it was touched");
}

#[test]
fn bytes_that_are_at_the_seeder_are_not_taken_from_another_volume() {
    another_volume_is_not_taken_for_it("post-copy", |world| {
        let status = world.status("leecher").expect("JSON");
        assert_eq!(status["phase"], "pulling the rest");
    });
}

#[test]
fn a_volume_that_is_here_is_not_taken_for_that_of_another_ticket() {
    another_volume_is_not_taken_for_it("pre-copy", |_| {});
}
