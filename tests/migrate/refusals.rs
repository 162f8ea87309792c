//! What does not fit is refused, and nothing of it is touched.

use std::fs::File;

use super::ends::{SIZE, World};

#[test]
fn a_store_of_another_size_is_refused_and_stays_as_it_is() {
    let Some(world) = World::new() else { return };
    let _seeder = world.seed("a.img", &[]).wait_until_ready();
    let other = File::create(world.path("b.img")).expect("made");
    other.set_len(SIZE + 4096).expect("sized");
    let ticket = format!("@{}", world.path("ticket").display());
    let store = world.url("b.img");
    world.fails(
        &["leech", &ticket, "--store", &store, "--device", "fuse"],
        &["a store of that size"],
    );
    assert!(!world.path("b.img.blockferry").exists());
    assert_eq!(other.metadata().expect("there").len(), SIZE + 4096);
}

#[test]
fn a_seeded_volume_is_written_by_its_device_alone() {
    let Some(world) = World::new() else { return };
    let _seeder = world.seed("a.img", &[]).wait_until_ready();
    let ticket = format!("@{}", world.path("ticket").display());
    world.fails(&["mount", &ticket, "--direct"], &["read-only"]);
    let volume = world.url("a.img");
    world.fails(&["mount", &volume, "--device", "fuse"], &["in use"]);
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
    let ticket = format!("@{}", world.path("ticket").display());
    let store = world.url("b.img");
    world.fails(
        &["leech", &ticket, "--store", &store, "--device", "fuse"],
        &["another volume"],
    );
}
