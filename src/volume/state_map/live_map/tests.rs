use super::*;
use crate::volume::geometry::{BlockRange, RegionIndex};
use crate::volume::state_map::{FlightSlot, StateMap, WriteStart};

const KEY: LiveMapKey = LiveMapKey {
    boot_id: [1; 16],
    store_uuid: [2; 16],
    open_counter: 3,
    size_bytes: 3 * REGION_BYTES + 1000,
    queue_slots: 8,
};

fn made(path: &Path) -> StateMap {
    StateMap::new(LiveMap::create(path, &KEY).expect("created")).expect("a map")
}

#[test]
fn a_live_map_that_is_not_the_expected_one_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("live");
    drop(made(&path));
    let refused = |expected: LiveMapKey| LiveMap::adopt(&path, &expected).expect_err("refused");
    assert!(matches!(
        refused(LiveMapKey {
            boot_id: [9; 16],
            ..KEY
        }),
        AdoptError::BootId
    ));
    assert!(matches!(
        refused(LiveMapKey {
            store_uuid: [9; 16],
            ..KEY
        }),
        AdoptError::Store
    ));
    assert!(matches!(
        refused(LiveMapKey {
            open_counter: 4,
            ..KEY
        }),
        AdoptError::OpenCounter {
            found: 3,
            expected: 4
        }
    ));
    let size_bytes = KEY.size_bytes + 1;
    assert!(matches!(
        refused(LiveMapKey { size_bytes, ..KEY }),
        AdoptError::Size { found, expected } if found + 1 == expected
    ));
    assert!(matches!(
        refused(LiveMapKey {
            queue_slots: 9,
            ..KEY
        }),
        AdoptError::Slots {
            found: 8,
            expected: 9
        }
    ));
    let _more_room_than_needed = LiveMap::adopt(
        &path,
        &LiveMapKey {
            queue_slots: 7,
            ..KEY
        },
    )
    .expect("adopted");
}

#[test]
fn a_damaged_or_unfinished_file_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("live");
    let adopt = || LiveMap::adopt(&path, &KEY).expect_err("refused");
    assert!(matches!(adopt(), AdoptError::Missing));
    std::fs::write(&path, b"short").expect("written");
    assert!(matches!(adopt(), AdoptError::NotALiveMap));
    std::fs::write(&path, vec![0xff; 1 << 20]).expect("written");
    assert!(matches!(adopt(), AdoptError::NotALiveMap));

    // Its maker died before the checkpoint was in it.
    drop(LiveMap::create(&path, &KEY).expect("created"));
    assert!(matches!(adopt(), AdoptError::NotALiveMap));

    drop(made(&path));
    let file = OpenOptions::new().write(true).open(&path).expect("opened");
    let len = file.metadata().expect("examined").len();
    file.set_len(len - 1).expect("cut");
    assert!(matches!(
        adopt(),
        AdoptError::Truncated { found, expected } if found + 1 == expected
    ));
    file.set_len(len).expect("as before");
    drop(LiveMap::adopt(&path, &KEY).expect("whole again"));
    file.write_all_at(&2u32.to_le_bytes(), 8).expect("written");
    assert!(matches!(adopt(), AdoptError::Version { found: 2 }));
}

#[test]
fn what_was_written_before_a_process_died_is_found_dirty() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("live");
    let map = made(&path);
    let region = RegionIndex(1);
    let blocks = BlockRange::new(region.first_block().0 + 5, region.first_block().0 + 9);
    assert_eq!(
        map.begin_write(FlightSlot(0), blocks),
        WriteStart::NotReady(region)
    );
    map.prepare_write(region).expect("room");
    map.set_write_ready(region);
    let start = map.begin_write(FlightSlot(0), blocks);
    assert_eq!(start, WriteStart::Claimed);
    assert!(map.end_write(FlightSlot(0), blocks, start, true));
    assert_eq!(map.take_dirty(blocks.first, 100), Some(blocks));
    map.flushed(blocks);
    // Clean now; the next write does not end.
    let half = BlockRange {
        end: blocks.iter().nth(2).expect("four blocks"),
        ..blocks
    };
    assert_eq!(map.begin_write(FlightSlot(7), half), WriteStart::Overwrite);
    assert_eq!(map.take_dirty(blocks.first, 100), Some(half));
    map.flushed(half);
    drop(map);

    let map = StateMap::new(LiveMap::adopt(&path, &KEY).expect("adopted")).expect("a map");
    assert!(map.is_present(blocks) && map.needs_checkpoint());
    assert_eq!(map.take_dirty(blocks.first, 100), Some(half));
    assert_eq!(map.counts().present, 4);
}

#[test]
fn a_map_with_no_room_is_an_error_and_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("live");
    for key in [
        LiveMapKey {
            size_bytes: 0,
            ..KEY
        },
        LiveMapKey {
            size_bytes: u64::MAX,
            ..KEY
        },
        LiveMapKey {
            queue_slots: u32::MAX,
            ..KEY
        },
    ] {
        LiveMap::create(&path, &key).expect_err("too large or empty");
        assert!(!path.exists());
    }
}
