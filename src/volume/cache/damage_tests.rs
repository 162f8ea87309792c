//! Caches whose files are cut off, changed, missing or mixed up: a named error, or nothing that
//! counts was hit.

use super::test_home::{Home, fill, push, write};
use super::*;
use crate::volume::geometry::{BlockRange, RegionIndex};
use crate::volume::state_map::RegionSnapshot;

/// A closed cache, and what its files are.
struct Closed {
    home: Home,
    meta: Vec<u8>,
    map: Vec<u8>,
    held: Vec<RegionSnapshot>,
}

/// With mixed regions and whole ones, clean and dirty, in both slots of each page.
fn closed() -> Closed {
    let home = Home::new();
    let cache = home.open();
    fill(&cache, BlockRange::new(0, 40), 1);
    write(&cache, 5, 2);
    write(&cache, 32_768, 3);
    cache.checkpointer.checkpoint().expect("durable");
    // The last region as a whole.
    fill(&cache, cache.map.region_blocks(RegionIndex(2)), 4);
    write(&cache, 6, 5);
    cache.checkpointer.checkpoint().expect("durable");
    push(&cache);
    cache.checkpointer.settle_intents().expect("settled");
    write(&cache, 9, 6);
    let opening = cache.directory.next_opening().expect("begun");
    cache.directory.welcomed(opening, 3).expect("noted");
    cache.checkpointer.close().expect("closed");
    let held = snapshots(&cache);
    assert!(matches!(held[0], RegionSnapshot::Mixed(_)));
    assert_eq!(held[2], RegionSnapshot::PresentClean);
    drop(cache);
    Closed {
        meta: home.read("meta"),
        map: home.read("map"),
        home,
        held,
    }
}

fn snapshots(cache: &OpenedCache) -> Vec<RegionSnapshot> {
    cache.map.begin_snapshot();
    let regions = cache.map.regions();
    regions.map(|region| cache.map.snapshot(region)).collect()
}

impl Closed {
    fn put_back(&self) {
        self.home.write("meta", &self.meta);
        self.home.write("map", &self.map);
    }

    /// Opens what was changed: the kind of the error, or none if it holds what it held.
    fn verdict(&self, what: &str) -> Option<ErrorKind> {
        match CacheDirectory::open(&self.home.cache(), &self.home.options()) {
            Err(error) => {
                let kind = error.kind();
                assert!(
                    matches!(kind, ErrorKind::Damaged | ErrorKind::Foreign),
                    "{what}: {}",
                    error.chain()
                );
                Some(kind)
            }
            Ok(cache) => {
                assert_eq!(snapshots(&cache), self.held, "{what}");
                assert_eq!(cache.directory.epoch(), 3, "{what}");
                None
            }
        }
    }
}

#[test]
fn a_changed_byte_of_map_is_an_error_or_was_of_no_use() {
    let closed = closed();
    let (mut errors, mut harmless) = (0, 0);
    for at in 0..closed.map.len() {
        // All of each head, and now and then one of the rest.
        let in_head = at % 4096 < 140;
        if !in_head && at % 211 != 0 {
            continue;
        }
        let mut map = closed.map.clone();
        map[at] ^= 1 << (at % 8);
        closed.put_back();
        closed.home.write("map", &map);
        match closed.verdict(&format!("byte {at} of map")) {
            Some(_) => errors += 1,
            None => harmless += 1,
        }
    }
    assert!(errors > 500 && harmless > 500, "{errors} and {harmless}");
}

#[test]
fn a_changed_byte_of_meta_is_an_error() {
    let closed = closed();
    for at in 0..closed.meta.len() {
        let mut meta = closed.meta.clone();
        meta[at] ^= 1 << (at % 8);
        closed.home.write("meta", &meta);
        let verdict = closed.verdict(&format!("byte {at} of meta"));
        assert!(verdict.is_some(), "byte {at} of meta");
    }
}

#[test]
fn a_file_of_another_length_is_an_error() {
    let closed = closed();
    for name in ["meta", "map", "data"] {
        let path = closed.home.cache().join(name);
        let len = std::fs::metadata(&path).expect("there").len();
        let lens = [0, 1, 511, 512, 513, 4096, 8192, 12288, len / 2, len - 1];
        for cut in lens
            .into_iter()
            .filter(|cut| *cut < len)
            .chain([len + 1, len + 4096])
        {
            let file = std::fs::File::options()
                .write(true)
                .open(&path)
                .expect("opened");
            file.set_len(cut).expect("cut");
            let verdict = closed.verdict(&format!("{name} of {cut} bytes"));
            assert_eq!(verdict, Some(ErrorKind::Damaged), "{name} of {cut} bytes");
            file.set_len(len).expect("as before");
            closed.put_back();
        }
    }
    assert_eq!(closed.verdict("put back"), None);
}

#[test]
fn a_missing_file_is_an_error() {
    let closed = closed();
    for name in ["meta", "map", "data"] {
        let path = closed.home.cache().join(name);
        let aside = closed.home.cache().with_extension("aside");
        std::fs::rename(&path, &aside).expect("renamed");
        let error = CacheDirectory::open(&closed.home.cache(), &closed.home.options())
            .expect_err("a file is missing");
        assert_eq!(
            error.kind(),
            ErrorKind::Damaged,
            "{name}: {}",
            error.chain()
        );
        assert!(error.chain().contains(name), "{}", error.chain());
        std::fs::rename(&aside, &path).expect("renamed");
    }
    assert_eq!(closed.verdict("put back"), None);
}

#[test]
fn pages_of_another_store_or_another_time_are_an_error() {
    let (closed, other) = (closed(), closed());
    closed.home.write("map", &other.map);
    assert_eq!(closed.verdict("another map"), Some(ErrorKind::Foreign));
    // Each page alone; those that do not count do no harm.
    let mut errors = 0;
    for at in (0..closed.map.len()).step_by(4096) {
        let mut map = closed.map.clone();
        let end = (at + 4096).min(map.len());
        map[at..end].copy_from_slice(&other.map[at..end]);
        if map == closed.map {
            continue;
        }
        closed.put_back();
        closed.home.write("map", &map);
        errors += u32::from(closed.verdict(&format!("page at {at}")).is_some());
    }
    assert!(errors >= 3, "{errors}");
}

#[test]
fn a_header_that_went_back_in_time_is_an_error() {
    let closed = closed();
    // The newest of both headers is lost as a whole: what is sealed is newer than the other one.
    for slot in [0..4096, 4096..8192] {
        let mut map = closed.map.clone();
        map[slot.clone()].fill(0);
        closed.put_back();
        closed.home.write("map", &map);
        let verdict = closed.verdict(&format!("{slot:?}"));
        let sequence = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&closed.map[at + 40..at + 48]);
            u64::from_le_bytes(bytes)
        };
        let was_newer = sequence(slot.start) == sequence(0).max(sequence(4096));
        assert_eq!(verdict.is_some(), was_newer, "{slot:?}");
    }
}

#[test]
fn a_damaged_live_map_does_not_count() {
    let home = Home::new();
    let memory = CacheOptions {
        persistent: false,
        ..home.options()
    };
    let open = || CacheDirectory::open(&home.cache(), &memory);
    drop(open().expect("made"));
    let live = home.live_map();
    let good = std::fs::read(&live).expect("read");
    for at in 0..64 {
        let mut bad = good.clone();
        bad[at] ^= 0x80;
        std::fs::write(&live, &bad).expect("written");
        match open() {
            Err(error) => assert!(
                matches!(error.kind(), ErrorKind::Damaged | ErrorKind::InvalidInput),
                "byte {at}: {}",
                error.chain()
            ),
            // More slots, for which there is room in the same page.
            Ok(_) => assert_eq!(at, 12),
        }
    }
    for len in [0, 63, 4096, good.len() - 1, good.len() + 4096] {
        let mut cut = good.clone();
        cut.resize(len, 0);
        std::fs::write(&live, &cut).expect("written");
        assert_eq!(open().expect_err("cut").kind(), ErrorKind::Damaged, "{len}");
    }
    std::fs::remove_file(&live).expect("removed");
    let error = open().expect_err("missing");
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.chain().contains("live map"), "{}", error.chain());
    std::fs::write(&live, &good).expect("written");
    assert_eq!(open().expect("whole").found.state, FoundState::Continued);
}
