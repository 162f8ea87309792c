//! A store that has most of the volume from before: what is equal does not travel again, and what is not does.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::ends::{SIZE, World, are_equal, until};

/// What is changed, and what may travel for that: a leaf more at each end.
const CHANGED: u64 = 1 << 20;
const FETCHED_MAX: u64 = CHANGED + (2 << 16);

fn write(path: &Path, offset: u64, len: u64, value: u8) {
    let file = File::options().write(true).open(path).expect("opened");
    file.write_all_at(&vec![value; len as usize], offset)
        .expect("written");
    file.sync_all().expect("synced");
}

/// Leeches everything and gives up before the volume moves.
fn leech_and_abort(world: &World) {
    let mut leecher = world.leech(&world.url("b.img"), &["--finalize", "manual"]);
    world.until_rounds(2);
    world.succeeds(&["abort", "leecher"]);
    assert_eq!(leecher.ended(), Some(1), "{}", leecher.log());
}

/// Leeches until the volume is here. How many bytes were asked for.
fn leech(world: &World, store: &str) -> u64 {
    leech_with(world, store, &[])
}

fn leech_with(world: &World, store: &str, args: &[&str]) -> u64 {
    let mut leecher = world.leech(&world.url(store), args).wait_until_ready();
    let mut fetched = 0;
    until("the seeder is released", || {
        let status = world.status("leecher");
        status.is_some_and(|status| {
            fetched = status["fetched_bytes"].as_u64().expect("a number");
            status["phase"] == "done"
        })
    });
    world.succeeds(&["stop", "leecher"]);
    assert_eq!(leecher.ended(), Some(0), "{}", leecher.log());
    fetched
}

#[test]
fn after_an_abort_only_what_changed_travels() {
    let Some(world) = World::new() else { return };
    let mut seeder = world.seed("a.img", &[]).wait_until_ready();
    leech_and_abort(&world);
    write(&seeder.device, SIZE / 2, CHANGED, 0x5A);
    let fetched = leech(&world, "b.img");
    assert!((CHANGED..=FETCHED_MAX).contains(&fetched), "{fetched}");
    assert_eq!(seeder.ended(), Some(0), "{}", seeder.log());
    assert!(are_equal(&world.path("a.img"), &world.path("b.img")));
}

#[test]
fn a_store_that_was_damaged_meanwhile_ends_as_the_volume() {
    let Some(world) = World::new() else { return };
    let mut seeder = world.seed("a.img", &[]).wait_until_ready();
    leech_and_abort(&world);
    let store = world.path("b.img");
    write(&store, 0, 1, 0x33);
    write(&store, SIZE / 3, 300_000, 0x44);
    write(&store, SIZE - 4096, 4096, 0);
    // Where the volume has a hole.
    write(&store, 41 * 4096, 4096, 0x55);
    let fetched = leech(&world, "b.img");
    assert!((300_000..SIZE / 4).contains(&fetched), "{fetched}");
    assert_eq!(seeder.ended(), Some(0), "{}", seeder.log());
    assert!(are_equal(&world.path("a.img"), &store));
}

#[test]
fn a_store_full_of_something_else_is_replaced_only_if_that_is_said() {
    let Some(world) = World::new() else { return };
    let mut seeder = world.seed("a.img", &[]).wait_until_ready();
    File::create(world.path("b.img")).expect("made");
    write(&world.path("b.img"), 0, SIZE, 0xEE);
    let ticket = format!("@{}", world.path("ticket").display());
    let store = world.url("b.img");
    world.fails(
        &["leech", &ticket, "--store", &store, "--device", "fuse"],
        &["b.img exists, and has data", "--overwrite"],
    );
    let is_untouched = |byte: &u8| *byte == 0xEE;
    let bytes = std::fs::read(world.path("b.img")).expect("read");
    assert!(bytes.len() as u64 == SIZE && bytes.iter().all(is_untouched));
    assert!(!world.path("b.img.blockferry").exists());
    leech_with(&world, "b.img", &["--overwrite"]);
    assert_eq!(seeder.ended(), Some(0), "{}", seeder.log());
    assert!(are_equal(&world.path("a.img"), &world.path("b.img")));
}

#[test]
fn a_file_of_holes_is_taken_as_one_that_was_made_for_it() {
    let Some(world) = World::new() else { return };
    let mut seeder = world.seed("a.img", &[]).wait_until_ready();
    let store = File::create(world.path("b.img")).expect("made");
    store.set_len(SIZE).expect("sized");
    leech(&world, "b.img");
    assert_eq!(seeder.ended(), Some(0), "{}", seeder.log());
    assert!(are_equal(&world.path("a.img"), &world.path("b.img")));
}

#[test]
fn the_way_back_costs_what_was_written_there() {
    let Some(world) = World::new() else { return };
    let mut seeder = world.seed("a.img", &[]).wait_until_ready();
    let there = leech(&world, "b.img");
    assert!(there >= SIZE / 2, "{there}");
    assert_eq!(seeder.ended(), Some(0), "{}", seeder.log());
    let mut seeder = world.seed("b.img", &[]).wait_until_ready();
    write(&seeder.device, SIZE / 4, CHANGED, 0x77);
    let back = leech(&world, "a.img");
    assert!((CHANGED..=FETCHED_MAX).contains(&back), "{back}");
    assert_eq!(seeder.ended(), Some(0), "{}", seeder.log());
    assert!(are_equal(&world.path("a.img"), &world.path("b.img")));
}
