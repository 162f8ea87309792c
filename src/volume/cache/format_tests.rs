//! The layouts on the disk, byte for byte, and that nothing that is not one is taken for one.

use data_encoding::HEXLOWER;
use proptest::prelude::*;

use super::fields::sha256;
use super::header::{self, BatchSum, Header};
use super::layout::{Layout, RECORD_BYTES, SEAL_BYTES, Slot};
use super::meta::{Meta, Openings};
use super::page::{PAGE_BYTES, PageFault, PageKind};
use super::record;
use super::table::{self, Entry, Saved};
use crate::volume::geometry::RegionIndex;
use crate::volume::state_map::RegionBits;

const STORE: [u8; 16] = *b"0123456789abcdef";

fn meta() -> Meta {
    Meta {
        making: false,
        persistent: true,
        fenced: false,
        sync_failed: false,
        store: STORE,
        identity: [0xaa; 16],
        size_bytes: 0x0102_0304_0506_0708,
        chunk_bytes: 262_144,
        epoch: 7,
        open_counter: 8,
        generation: 10,
        openings: Openings {
            welcomed: [0xcc; 16],
            unanswered: [[0xdd; 16], [0xee; 16], [0; 16], [0; 16]],
        },
        origin_name: "blockferry://host:1/volume".to_owned(),
    }
}

fn some_header() -> Header {
    Header {
        sequence: 0x1122,
        size_bytes: 1 << 40,
        chunk_bytes: 1 << 18,
        batch: BatchSum {
            pages: 3,
            sum: [0xbb; 32],
        },
        tables: vec![None, Some(Slot::A), Some(Slot::B)],
    }
}

fn all_entries() -> Vec<Entry> {
    let mixed = |slot, dirty| Saved::Mixed { slot, dirty };
    let saved = [
        Saved::Absent,
        Saved::PresentClean,
        Saved::PresentDirty,
        mixed(Slot::A, false),
        mixed(Slot::B, false),
        mixed(Slot::A, true),
        mixed(Slot::B, true),
    ];
    saved
        .into_iter()
        .flat_map(|saved| [false, true].map(|intent| Entry { saved, intent }))
        .collect()
}

/// A pattern in all words.
fn some_bits() -> RegionBits {
    let mut bits = RegionBits {
        present: [0; PAGE_BYTES / 8],
        dirty: [0; PAGE_BYTES / 8],
    };
    for (at, word) in (0u64..).zip(&mut bits.present) {
        *word = at.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    for (dirty, present) in bits.dirty.iter_mut().zip(&bits.present) {
        *dirty = present & 0x5555_5555_5555_5555;
    }
    bits
}

fn golden(bytes: &[u8], shown: usize, start: &str, sum: &str) {
    assert_eq!(
        HEXLOWER.encode(&bytes[..shown]),
        start.replace([' ', '\n'], "")
    );
    assert_eq!(HEXLOWER.encode(&sha256(&[bytes])), sum);
}

#[test]
fn golden_meta() {
    golden(
        &meta().encode(),
        200,
        "424652594d455441020002010000000030313233343536373839616263646566
         aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa08070605040302010000040000000000
         070000000000000008000000000000000a00000000000000cccccccccccccccc
         ccccccccccccccccddddddddddddddddddddddddddddddddeeeeeeeeeeeeeeee
         eeeeeeeeeeeeeeee000000000000000000000000000000000000000000000000
         00000000000000001a00626c6f636b66657272793a2f2f686f73743a312f766f
         6c756d6500000000",
        "8f15d75c04b00294deda94a7076e872951793d263b3c11d22648454906779957",
    );
}

#[test]
fn golden_header() {
    golden(
        &some_header().encode(STORE),
        140,
        "424652594d415000010001000000000030313233343536373839616263646566
         00000000000000002211000000000000df2d3212f3f1d124a673577045742460
         c13ae73be951b894f85f604dc8991b2500000000000100000000040000000000
         0300000000000000bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb
         bbbbbbbbbbbbbbbb00010200",
        "501def0ea23b8985b3d56f4c982367e8316d4e21977c6d2353efb3a9aeed174a",
    );
}

#[test]
fn golden_seal() {
    golden(
        &header::encode_seal(STORE, 0x1122),
        80,
        "424652594d415000010004000000000030313233343536373839616263646566
         000000000000000022110000000000005fdedb2638f7a6e63c20c2255988a259
         f46f966c97182de61b88cb4f86326da5",
        "9d942e4f162e0ed82257ba9ddc6acabcd415d1c8aa857852e7876917ac784cbe",
    );
}

#[test]
fn golden_table() {
    let (page, _) = table::encode(STORE, 2, 0x1122, &all_entries());
    golden(
        &page,
        112,
        "424652594d415000010002000000000030313233343536373839616263646566
         0200000000000000221100000000000087808c0e6c74a8018d99be12a38503f0
         e06e947bb39bc1407819db2ce8fac33f000008000100090002000a0003000b00
         13001b0004000c0014001c0000000000",
        "e648577dfe149ec649e9bd590608d257d7dc6945173a2d190d35c18c02394b86",
    );
}

#[test]
fn golden_record() {
    let mut bytes = [0; RECORD_BYTES];
    record::encode(STORE, RegionIndex(5), 0x1122, &some_bits(), &mut bytes);
    golden(
        &bytes,
        80,
        "424652594d415000010003000000000030313233343536373839616263646566
         0500000000000000221100000000000024fc893d411993477d20c4eaac93301c
         7402c9c868b5dfe86347fba2908800d8",
        "09f96ae0ac06088fdfabb53c9d0e18d94c327b6db71077895e9b2b5d95464e82",
    );
    assert_eq!(
        bytes[4096 + 8..4096 + 16],
        0x9e37_79b9_7f4a_7c15u64.to_le_bytes()
    );
    assert_eq!(
        bytes[8192 + 8..8192 + 16],
        0x1415_5111_5540_5415u64.to_le_bytes()
    );
}

fn any_saved() -> impl Strategy<Value = Saved> {
    let slot = prop_oneof![Just(Slot::A), Just(Slot::B)];
    prop_oneof![
        Just(Saved::Absent),
        Just(Saved::PresentClean),
        Just(Saved::PresentDirty),
        (slot, any::<bool>()).prop_map(|(slot, dirty)| Saved::Mixed { slot, dirty }),
    ]
}

fn any_entry() -> impl Strategy<Value = Entry> {
    (any_saved(), any::<bool>()).prop_map(|(saved, intent)| Entry { saved, intent })
}

fn any_header() -> impl Strategy<Value = Header> {
    let slot = prop_oneof![Just(None), Just(Some(Slot::A)), Just(Some(Slot::B))];
    let tables = prop::collection::vec(slot, 0..50);
    let numbers = any::<(u64, u64, u64, u64, [u8; 32])>();
    (numbers, tables).prop_map(
        |((sequence, size_bytes, chunk_bytes, pages, sum), tables)| Header {
            sequence,
            size_bytes,
            chunk_bytes,
            batch: BatchSum { pages, sum },
            tables,
        },
    )
}

/// A byte of a page and what it is changed by.
fn any_flip(len: usize) -> impl Strategy<Value = (usize, u8)> {
    (0..len, 1..=u8::MAX)
}

proptest! {
    #[test]
    fn a_table_comes_back_and_a_changed_byte_is_seen(
        entries in prop::collection::vec(any_entry(), 0..2000),
        table in 0u64..3000,
        sequence in any::<u64>(),
        (at, change) in any_flip(PAGE_BYTES),
    ) {
        let (mut page, sum) = table::encode(STORE, table, sequence, &entries);
        let mut found = vec![Entry::ABSENT; entries.len()];
        prop_assert_eq!(table::decode(STORE, table, &page, &mut found), Ok((sequence, sum)));
        prop_assert_eq!(&found, &entries);
        prop_assert_eq!(
            table::decode(STORE, table + 1, &page, &mut found),
            Err(PageFault::Place)
        );
        page[at] ^= change;
        prop_assert!(table::decode(STORE, table, &page, &mut found).is_err());
    }

    #[test]
    fn a_record_comes_back_and_a_changed_byte_is_seen(
        words in prop::collection::vec(any::<(u64, u64)>(), PAGE_BYTES / 8),
        region in 0u64..1 << 22,
        sequence in any::<u64>(),
        (at, change) in any_flip(RECORD_BYTES),
    ) {
        let mut bits = some_bits();
        for (at, (present, dirty)) in words.into_iter().enumerate() {
            (bits.present[at], bits.dirty[at]) = (present, dirty);
        }
        let region = RegionIndex(region);
        let mut bytes = Box::new([0xee; RECORD_BYTES]);
        let sum = record::encode(STORE, region, sequence, &bits, &mut bytes);
        prop_assert_eq!(record::check(STORE, region, &bytes), Ok((sequence, sum)));
        prop_assert_eq!(record::bits(&bytes), bits);
        let mut other = STORE;
        other[0] ^= 1;
        prop_assert_eq!(record::check(other, region, &bytes), Err(PageFault::Store));
        bytes[at] ^= change;
        prop_assert!(record::check(STORE, region, &bytes).is_err());
    }

    #[test]
    fn a_header_comes_back_and_a_changed_byte_is_seen(
        header in any_header(),
        (at, change) in any_flip(PAGE_BYTES),
    ) {
        let tables = header.tables.len() as u64;
        let mut page = header.encode(STORE);
        prop_assert_eq!(Header::decode(STORE, tables, &page), Ok(header));
        page[at] ^= change;
        prop_assert!(Header::decode(STORE, tables, &page).is_err());
    }

    #[test]
    fn meta_comes_back_and_a_changed_byte_is_seen(
        numbers in any::<[u64; 5]>(),
        tokens in any::<([u8; 16], [[u8; 16]; 4])>(),
        flags in any::<(bool, bool, bool, bool)>(),
        ids in any::<([u8; 16], [u8; 16])>(),
        origin_name in "\\PC{0,80}",
        (at, change) in any_flip(512),
    ) {
        let [size_bytes, chunk_bytes, epoch, open_counter, generation] = numbers;
        let meta = Meta {
            making: flags.0,
            persistent: flags.1,
            fenced: flags.2,
            sync_failed: flags.3,
            store: ids.0,
            identity: ids.1,
            size_bytes,
            chunk_bytes,
            epoch,
            open_counter,
            generation,
            openings: Openings {
                welcomed: tokens.0,
                unanswered: tokens.1,
            },
            origin_name,
        };
        let mut bytes = meta.encode();
        let found = Meta::decode(&bytes).expect("legal");
        prop_assert!(meta.origin_name.starts_with(&found.origin_name));
        prop_assert!(found.origin_name.len() > 250 || found.origin_name == meta.origin_name);
        prop_assert_eq!(found.encode(), bytes);
        prop_assert_eq!(found.openings, meta.openings);
        prop_assert_eq!((found.fenced, found.sync_failed), (meta.fenced, meta.sync_failed));
        bytes[at] ^= change;
        prop_assert!(Meta::decode(&bytes).is_err());
    }

    #[test]
    fn any_bytes_are_an_error_and_nothing_else(
        bytes in prop::collection::vec(any::<u8>(), RECORD_BYTES),
        len in 0usize..1000,
    ) {
        let page: &[u8; PAGE_BYTES] = bytes[..PAGE_BYTES].try_into().expect("so long");
        let record = bytes.as_slice().try_into().expect("so long");
        let seal: &[u8; SEAL_BYTES] = bytes[..SEAL_BYTES].try_into().expect("so long");
        prop_assert!(Header::decode(STORE, 3, page).is_err());
        prop_assert!(table::decode(STORE, 3, page, &mut [Entry::ABSENT; 9]).is_err());
        prop_assert!(record::check(STORE, RegionIndex(0), record).is_err());
        prop_assert!(header::decode_seal(STORE, seal).is_err());
        prop_assert!(Meta::decode(&bytes[..len]).is_err());
    }

    #[test]
    fn places_never_overlap(
        size_bytes in 1u64..=super::CACHE_BYTES_MAX,
        one in any::<(prop::sample::Index, bool, bool)>(),
        other in any::<(prop::sample::Index, bool, bool)>(),
    ) {
        let layout = Layout::new(size_bytes);
        let place = |(index, is_table, in_b): (prop::sample::Index, bool, bool)| {
            let slot = if in_b { Slot::B } else { Slot::A };
            if is_table {
                let table = index.index(layout.tables() as usize) as u64;
                (Layout::table_at(table, slot), PAGE_BYTES as u64)
            } else {
                let region = index.index(layout.regions() as usize) as u64;
                (layout.record_at(RegionIndex(region), slot), RECORD_BYTES as u64)
            }
        };
        let ((at, len), (other_at, other_len)) = (place(one), place(other));
        prop_assert!(at % PAGE_BYTES as u64 == 0 && at > Layout::seal_at());
        prop_assert!(at + len <= layout.file_bytes());
        let apart = at + len <= other_at || other_at + other_len <= at;
        prop_assert!(apart || (at, len) == (other_at, other_len));
    }
}

#[test]
fn an_empty_page_and_an_entry_that_cannot_be_are_named() {
    let mut entries = [Entry::ABSENT];
    let empty = table::decode(STORE, 0, &[0; PAGE_BYTES], &mut entries);
    assert_eq!(empty, Err(PageFault::Empty));
    for bits in [5u16, 7, 1 << 4, 1 << 5, 1 << 15] {
        let mut page = [0; PAGE_BYTES];
        page[80..82].copy_from_slice(&bits.to_le_bytes());
        let place = super::page::Place {
            store: STORE,
            kind: PageKind::Table,
            index: 0,
        };
        place.finish(&mut page, 1);
        let found = table::decode(STORE, 0, &page, &mut entries);
        assert_eq!(found, Err(PageFault::Field), "{bits:#x}");
    }
}

#[test]
fn the_largest_volume_fits_into_a_header() {
    let tables = Layout::new(super::CACHE_BYTES_MAX).tables();
    let header = Header {
        tables: vec![Some(Slot::B); tables as usize],
        ..some_header()
    };
    let page = header.encode(STORE);
    assert_eq!(Header::decode(STORE, tables, &page), Ok(header));
}
