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
    file.write_all_at(&1u32.to_le_bytes(), 8).expect("written");
    assert!(matches!(adopt(), AdoptError::Version { found: 1 }));
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

/// Runs on a thread with a mount namespace of its own, in which `path` is memory of that size.
/// False where that takes a right that this process has not.
fn on_small_tmpfs(path: &Path, size_bytes: u64, test: impl FnOnce() + Send) -> bool {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            let none = None::<&str>;
            let options = format!("size={size_bytes}");
            let ready = unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS)
                .and_then(|()| mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none))
                .and_then(|()| {
                    let options = Some(options.as_str());
                    mount(none, path, Some("tmpfs"), MsFlags::empty(), options)
                });
            if ready.is_ok() {
                test();
            }
            ready.is_ok()
        });
        there.join().expect("no panic")
    })
}

/// And not a signal, when the bits are touched.
#[test]
fn a_full_run_time_directory_is_an_error() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("live");
    let key = LiveMapKey {
        size_bytes: 64 * REGION_BYTES,
        ..KEY
    };
    let ran = on_small_tmpfs(dir.path(), 256 << 10, || {
        let map = StateMap::new(LiveMap::create(&path, &key).expect("created")).expect("a map");
        let mut ready = Vec::new();
        let full = map.regions().find_map(|region| {
            let prepared = map.prepare_write(region);
            map.set_write_ready(region);
            ready.extend(prepared.is_ok().then_some(region));
            prepared.err().map(|error| (region, error))
        });
        let (refused, error) = full.expect("256 KiB do not hold 64 regions");
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        assert!(ready.len() > 5, "{ready:?}");
        let write = |region: RegionIndex| {
            let first = region.first_block().0;
            let blocks = BlockRange::new(first, first + REGION_BLOCKS);
            let start = map.begin_write(FlightSlot(0), blocks);
            if start == WriteStart::Claimed {
                map.end_write(FlightSlot(0), blocks, start, true);
            }
            start
        };
        for region in &ready {
            assert_eq!(write(*region), WriteStart::Claimed);
        }
        assert_eq!(write(refused), WriteStart::NotReady(refused));
        // A look at all of it takes nothing, either.
        assert_eq!(
            map.heat(3).iter().map(|it| it.dirty).sum::<u64>(),
            map.counts().dirty
        );
        assert_eq!(map.take_dirty(refused.first_block(), 1), None);
        std::fs::write(path.with_extension("fill"), vec![0; 256 << 10]).expect_err("it is full");
        let region = map.regions().last().expect("64");
        map.prepare_fill(region)
            .expect_err("no room for two pages either");
        LiveMap::create(&path.with_extension("other"), &key).expect_err("nor for another one");
        assert!(!path.with_extension("other").exists());
    });
    if !ran {
        eprintln!("skipped: a mount takes root");
    }
}
