//! When the seeder ends, and when it stays.

use super::ends::{World, until};

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
    world.fails(
        &["stop", "seeder"],
        &["host-b", "may not have heard yet", "`blockferry seed`"],
    );
    world.succeeds(&["stop", "--force", "seeder"]);
    assert_eq!(seeder.ended(), Some(0), "{}", seeder.log());
}
