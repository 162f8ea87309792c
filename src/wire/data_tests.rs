use super::*;
use proptest::prelude::*;

fn request(operation: Operation, offset: u64, len: u64) -> RequestHeader {
    RequestHeader {
        operation,
        priority: Priority::Demand,
        offset,
        len,
        reply: Compression::Off,
    }
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

#[test]
fn requests_keep_their_bytes() {
    let zeroes = Operation::WriteZeroes {
        fua: true,
        no_unmap: true,
    };
    let golden = [
        (
            request(Operation::Read, 0x1000, 0x2000),
            "b1010000000000000010000000000000002000",
        ),
        (
            request(Operation::Write { fua: false }, 0x1122_3344_5566, 512),
            "b1020000000000006655443322110000000200",
        ),
        (
            request(Operation::Write { fua: true }, 0, 1),
            "b102010000000000000000000000000001",
        ),
        (request(Operation::Flush, 0, 0), "b103"),
        (request(Operation::Migrate, 0, 0), "b107"),
        (
            request(Operation::Digests, 0x1_0000, 0x2_0001),
            "b1090000000000000000010000000000010002",
        ),
        (
            request(Operation::ReadRuns, 0x1000, 0x2000),
            "b1080000000000000010000000000000002000",
        ),
        (request(Operation::Discard, 4096, 1 << 40), {
            "b104000000000000001000000000000000000000000100"
        }),
        (
            request(zeroes, 0, 255),
            "b1050300000000000000000000000000ff",
        ),
        (
            RequestHeader {
                priority: Priority::Push,
                ..request(Operation::Map, 1, 2)
            },
            "b106000300000000010000000000000002",
        ),
        (
            RequestHeader {
                reply: Compression::Auto,
                ..request(Operation::Read, 0, 1)
            },
            "b101000003000000000000000000000001",
        ),
    ];
    for (header, expected) in golden {
        let full = format!("{expected:0<48}");
        assert_eq!(hex(&header.encode()), full, "{header:?}");
        assert_eq!(RequestHeader::decode(&header.encode()), Ok(header));
    }
}

#[test]
fn replies_keep_their_bytes() {
    let golden = [
        (
            ReplyHeader::Done { count: 0x1234 },
            "b1000000000000003412000000000000",
        ),
        (
            ReplyHeader::Failed(Errno::ENOSPC),
            "b10100001c0000000000000000000000",
        ),
        (
            ReplyHeader::Malformed(WireError::Operation),
            "b1020000030000000000000000000000",
        ),
    ];
    let read = request(Operation::Read, 0, 1 << 20);
    for (header, expected) in golden {
        assert_eq!(hex(&header.encode()), expected, "{header:?}");
        assert_eq!(ReplyHeader::decode(&header.encode(), &read), Ok(header));
    }
}

#[test]
fn each_lie_in_a_request_has_its_name() {
    let good = request(Operation::Read, 0, 4096).encode();
    let with = |at: usize, byte: u8| {
        let mut bytes = good;
        bytes[at] = byte;
        RequestHeader::decode(&bytes)
    };
    assert_eq!(with(0, 0x00), Err(WireError::Magic));
    assert_eq!(with(0, 0xB2), Err(WireError::Version));
    assert_eq!(with(1, 0), Err(WireError::Operation));
    assert_eq!(with(1, 10), Err(WireError::Operation));
    assert_eq!(with(2, 1), Err(WireError::Flag));
    assert_eq!(with(2, 0x80), Err(WireError::Flag));
    assert_eq!(with(3, 4), Err(WireError::Priority));
    assert_eq!(with(4, 4), Err(WireError::Compression));
    assert_eq!(with(5, 1), Err(WireError::Reserved));
    assert_eq!(with(19, 1), Err(WireError::Length));
    assert_eq!(with(17, 0), Err(WireError::Length));
    let decode = |header: RequestHeader| RequestHeader::decode(&header.encode());
    assert_eq!(
        decode(request(Operation::Read, u64::MAX, 1)),
        Err(WireError::Range)
    );
    assert_eq!(
        decode(request(Operation::Discard, 2, u64::MAX)),
        Err(WireError::Range)
    );
    let leaves_max = 256 * (64 << 10);
    assert_eq!(
        decode(request(Operation::Digests, 0, leaves_max + 1)),
        Err(WireError::Length)
    );
    assert_eq!(
        decode(request(Operation::Digests, 4096, leaves_max)),
        Err(WireError::Range)
    );
    assert_eq!(
        decode(request(Operation::Flush, 0, 1)),
        Err(WireError::Range)
    );
    let nothing_to_compress = RequestHeader {
        reply: Compression::Lz4,
        ..request(Operation::Write { fua: false }, 0, 4096)
    };
    assert_eq!(decode(nothing_to_compress), Err(WireError::Compression));
}

#[test]
fn a_reply_longer_than_was_asked_for_is_refused() {
    let read = request(Operation::Read, 0, 512);
    let flush = request(Operation::Flush, 0, 0);
    let map = request(Operation::Map, 0, u64::MAX);
    let reply = |count| ReplyHeader::Done { count }.encode();
    assert!(ReplyHeader::decode(&reply(512), &read).is_ok());
    assert_eq!(
        ReplyHeader::decode(&reply(513), &read),
        Err(WireError::Length)
    );
    assert_eq!(
        ReplyHeader::decode(&reply(1), &flush),
        Err(WireError::Length)
    );
    assert_eq!(
        ReplyHeader::decode(&reply(EXTENTS_MAX + 1), &map),
        Err(WireError::Length)
    );
}

fn any_operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        Just(Operation::Read),
        any::<bool>().prop_map(|fua| Operation::Write { fua }),
        Just(Operation::Discard),
        any::<(bool, bool)>().prop_map(|(fua, no_unmap)| Operation::WriteZeroes { fua, no_unmap }),
        Just(Operation::Map),
    ]
}

proptest! {
    #[test]
    fn every_legal_request_round_trips(
        operation in any_operation(),
        priority in 0u8..4,
        offset in 0u64..1 << 60,
        len in 1u64..=DATA_BYTES_MAX,
        reply in 0u8..4,
    ) {
        let priority = priority_from_code(priority).expect("legal");
        let reply = match operation {
            Operation::Read => Compression::from_code(reply).expect("legal"),
            _ => Compression::Off,
        };
        let header = RequestHeader { operation, priority, offset, len, reply };
        prop_assert_eq!(RequestHeader::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn any_bytes_are_a_legal_request_or_an_error(
        tail in any::<[u8; REQUEST_BYTES]>(),
        head in prop::option::of((1u8..7, 0u8..4, 0u8..4, 0u8..5)),
    ) {
        let mut bytes = tail;
        if let Some((operation, flags, priority, reply)) = head {
            bytes[..8].copy_from_slice(&[FIRST_BYTE, operation, flags, priority, reply, 0, 0, 0]);
        }
        if let Ok(header) = RequestHeader::decode(&bytes) {
            prop_assert_eq!(header.encode(), bytes);
            prop_assert!(header.offset.checked_add(header.len).is_some());
        }
    }

    #[test]
    fn any_bytes_are_a_legal_reply_or_an_error(
        mut bytes in any::<[u8; REPLY_BYTES]>(),
        head in any::<bool>(),
    ) {
        if head {
            let status = bytes[1] % 4;
            bytes[..4].copy_from_slice(&[FIRST_BYTE, status, 0, 0]);
        }
        let _ = ReplyHeader::decode(&bytes, &request(Operation::Read, 0, 4096));
    }
}
