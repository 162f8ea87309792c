use super::*;
use crate::wire::control::{decode, encode, frame_bytes};
use proptest::prelude::*;

const VOLUME_BLOCKS: u64 = 1 << 20;

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

fn attempt() -> Attempt {
    Attempt {
        session: Session {
            migration: [1; 16],
            instance: [2; 16],
            number: 3,
        },
        number: 4,
    }
}

const SESSION: &str = "01010101010101010101010101010101020202020202020202020202020202020300\
                       0000";
const ATTEMPT: &str = "01010101010101010101010101010101020202020202020202020202020202020300\
                       000004000000";

fn keeps<M: Message + PartialEq + std::fmt::Debug>(message: M, expected: &str) {
    let frame = encode(&message).expect("within limits");
    assert_eq!(hex(&frame[4..]), expected.replace(' ', ""), "{message:?}");
    let prefix = frame[..4].try_into().expect("four bytes");
    assert_eq!(frame_bytes(prefix), Ok(frame.len() - 4));
    assert_eq!(decode::<M>(&frame[4..]), Ok(message));
}

#[test]
fn messages_of_a_leecher_keep_their_bytes() {
    let (attempt, session) = (attempt(), attempt().session);
    let ones = "01".repeat(16);
    let proof = "09".repeat(32);
    let leech = ToSeeder::Leech {
        migration: [1; 16],
        name: "b".to_owned(),
    };
    keeps(leech, &format!("00000000 {ones} 0100000000000000 62"));
    let round = ToSeeder::Round {
        session,
        number: 5,
        pulled: 4,
        anew: true,
    };
    keeps(round, &format!("01000000 {SESSION} 05000000 04000000 01"));
    let prepare = ToSeeder::Prepare {
        attempt,
        pulled: 5,
        post_copy: false,
    };
    keeps(prepare, &format!("02000000 {ATTEMPT} 05000000 00"));
    let commit = ToSeeder::Commit {
        attempt,
        proof: Some([9; 32]),
    };
    keeps(commit, &format!("03000000 {ATTEMPT} 01 {proof}"));
    keeps(ToSeeder::Abort { attempt }, &format!("04000000 {ATTEMPT}"));
    keeps(ToSeeder::Ask { attempt }, &format!("05000000 {ATTEMPT}"));
    keeps(ToSeeder::Prove { attempt }, &format!("06000000 {ATTEMPT}"));
    keeps(
        ToSeeder::Release { attempt },
        &format!("07000000 {ATTEMPT}"),
    );
    let leave = ToSeeder::Leave { migration: [1; 16] };
    keeps(leave, &format!("08000000 {ones}"));
}

#[test]
fn messages_of_a_seeder_keep_their_bytes() {
    let (attempt, session) = (attempt(), attempt().session);
    let ones = "01".repeat(16);
    let welcome = ToLeecher::Welcome {
        session,
        volume: [8; 16],
        epoch: 7,
    };
    let eights = "08".repeat(16);
    keeps(
        welcome,
        &format!("00000000 {SESSION} {eights} 0700000000000000"),
    );
    let refused = ToLeecher::Refused {
        migration: [1; 16],
        reason: Reason::Moved {
            to: "b".to_owned(),
            epoch: 7,
        },
    };
    keeps(
        refused,
        &format!("01000000 {ones} 01000000 0100000000000000 62 0700000000000000"),
    );
    keeps(
        ToLeecher::Unknown { session },
        &format!("02000000 {SESSION}"),
    );
    keeps(
        ToLeecher::Round { session, number: 5 },
        &format!("03000000 {SESSION} 05000000"),
    );
    let dirty = ToLeecher::Dirty {
        attempt,
        proof: None,
        held_us: 6,
    };
    keeps(dirty, &format!("04000000 {ATTEMPT} 00 0600000000000000"));
    keeps(
        ToLeecher::Committed { attempt },
        &format!("05000000 {ATTEMPT}"),
    );
    let last = ToLeecher::Ended {
        attempt,
        reason: Reason::Outdated,
    };
    keeps(last, &format!("06000000 {ATTEMPT} 0d000000"));
    let proof = ToLeecher::Proof {
        attempt,
        proof: None,
    };
    keeps(proof, &format!("07000000 {ATTEMPT} 00"));
    keeps(
        ToLeecher::Released { attempt },
        &format!("08000000 {ATTEMPT}"),
    );
    let bytes = ToLeecher::Bytes {
        attempt,
        offset: 4096,
        len: 512,
    };
    keeps(
        bytes,
        &format!("09000000 {ATTEMPT} 0010000000000000 00020000"),
    );
}

#[test]
fn more_bytes_than_the_limit_none_and_those_beyond_every_volume_are_refused() {
    for (offset, len) in [(0, 0), (0, MIGRATION_BYTES_MAX + 1), (u64::MAX, 1)] {
        let attempt = attempt();
        let bytes = ToLeecher::Bytes {
            attempt,
            offset,
            len,
        };
        assert_eq!(encode(&bytes), Err(WireError::MessageLength));
    }
}

#[test]
fn texts_above_the_limits_are_neither_sent_nor_taken_and_can_be_shortened() {
    let ended = |reason| ToLeecher::Ended {
        attempt: attempt(),
        reason,
    };
    let long = Reason::StoreFailed("ä".repeat(REFUSAL_BYTES_MAX));
    assert_eq!(encode(&ended(long.clone())), Err(WireError::MessageLength));
    assert!(encode(&ended(long.shortened())).is_ok());
    let named = ToSeeder::Leech {
        migration: [0; 16],
        name: "x".repeat(CLIENT_NAME_BYTES_MAX + 1),
    };
    assert_eq!(encode(&named), Err(WireError::MessageLength));
}

#[test]
fn sets_of_blocks_keep_their_bytes() {
    let blocks: RoaringTreemap = [1, 2, 0x1_0000].into_iter().collect();
    let bytes = encode_set(&blocks);
    let expected = "2c00000000000000 0100000000000000 00000000 3a300000 02000000 0000 0100 0100 0000 \
                    18000000 1c000000 0100 0200 0000";
    let expected = expected.replace(' ', "");
    assert_eq!(hex(&bytes[8..]), expected[16..], "{}", hex(&bytes));
    let prefix = bytes[..8].try_into().expect("eight bytes");
    assert_eq!(set_bytes(prefix, VOLUME_BLOCKS), Ok(bytes.len() - 8));
    assert_eq!(decode_set(&bytes[8..], VOLUME_BLOCKS), Ok(blocks));
}

#[test]
fn the_worst_set_of_a_volume_is_within_its_limit_and_a_longer_one_is_refused() {
    for blocks in [1, 1000, 65_536, 65_537, VOLUME_BLOCKS] {
        let scattered: RoaringTreemap = (0..blocks).step_by(2).collect();
        let len = encode_set(&scattered).len() as u64 - 8;
        assert!(len <= set_bytes_max(blocks), "{blocks}: {len}");
        let mut run_by_run = RoaringTreemap::new();
        for block in (0..blocks).step_by(4) {
            run_by_run.insert_range(block..blocks.min(block + 3));
        }
        let len = encode_set(&run_by_run).len() as u64 - 8;
        assert!(len <= set_bytes_max(blocks), "{blocks}, run by run: {len}");
        let above = (set_bytes_max(blocks) + 1).to_le_bytes();
        assert_eq!(set_bytes(above, blocks), Err(WireError::Length));
    }
    let beyond: RoaringTreemap = [VOLUME_BLOCKS].into_iter().collect();
    let bytes = encode_set(&beyond);
    assert_eq!(
        decode_set(&bytes[8..], VOLUME_BLOCKS),
        Err(WireError::Range)
    );
}

proptest! {
    #[test]
    fn garbage_is_an_error_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode::<ToSeeder>(&bytes);
        let _ = decode::<ToLeecher>(&bytes);
        let _ = decode_set(&bytes, VOLUME_BLOCKS);
    }

    #[test]
    fn a_damaged_set_is_an_error_or_a_set_of_the_volume(
        blocks in prop::collection::btree_set(0..VOLUME_BLOCKS, 0..300),
        at in any::<prop::sample::Index>(),
        flip in 1..=u8::MAX,
    ) {
        let blocks: RoaringTreemap = blocks.into_iter().collect();
        let mut bytes = encode_set(&blocks)[8..].to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        if let Ok(other) = decode_set(&bytes, VOLUME_BLOCKS) {
            prop_assert!(other.max().is_none_or(|last| last < VOLUME_BLOCKS));
        }
        prop_assert!(decode_set(&bytes[..at], VOLUME_BLOCKS).is_err());
    }
}
