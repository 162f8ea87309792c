use super::*;
use proptest::prelude::*;

fn hello() -> Hello {
    Hello {
        features: 1,
        volume: "disk".to_owned(),
        secret: Some(Secret([2; 32])),
        client_id: [3; 16],
        client_name: "host".to_owned(),
        session: 4,
        writable: true,
        takeover: false,
        known_epoch: 5,
        known_identity: Some([8; 16]),
        managed: Some(ManagedStore {
            store: [9; 16],
            earlier: [[10; 16], [11; 16], [0; 16], [0; 16], [0; 16]],
            opening: [12; 16],
        }),
    }
}

fn welcome() -> Welcome {
    Welcome {
        version: 2,
        features: 0,
        resource_bytes: 1 << 30,
        logical_block_bytes: 512,
        physical_block_bytes: 4096,
        read_only: false,
        offers: Offers {
            preferred_bytes: 256 << 10,
            max_concurrency: 64,
            flush_is_durable: true,
            sparse_map: false,
            discard: true,
        },
        has_writer: false,
        instance: [6; 16],
        identity: [11; 16],
        generation: Some(12),
        epoch: 7,
        lease_ms: 30_000,
    }
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

fn keeps<M: Message + PartialEq + std::fmt::Debug>(message: M, expected: &str) {
    let frame = encode(&message).expect("within limits");
    assert_eq!(hex(&frame), expected, "{message:?}");
    let prefix = frame[..4].try_into().expect("four bytes");
    assert_eq!(frame_bytes(prefix), Ok(frame.len() - 4));
    assert_eq!(decode::<M>(&frame[4..]), Ok(message));
}

#[test]
fn the_preamble_keeps_its_bytes() {
    assert_eq!(hex(&Preamble::OURS.encode()), "4246525903000300");
    assert_eq!(
        Preamble::decode(b"BFRY\x02\0\x07\0").map(|p| p.version_max),
        Ok(7)
    );
    assert_eq!(Preamble::decode(b"HTTP/1.1"), Err(WireError::Magic));
}

#[test]
fn versions_meet_or_not() {
    let range = |version_min, version_max| Preamble {
        version_min,
        version_max,
    };
    assert_eq!(range(1, 3).common_version(&range(2, 5)), Some(3));
    assert_eq!(range(1, 1).common_version(&range(1, 9)), Some(1));
    assert_eq!(range(1, 1).common_version(&range(2, 9)), None);
    assert_eq!(range(9, 1).common_version(&range(1, 9)), None);
}

#[test]
fn client_messages_keep_their_bytes() {
    let zeros = "00".repeat(7);
    keeps(
        ClientMessage::Hello(hello()),
        &format!(
            "e900000000000000{}",
            [
                "01",
                &zeros,
                "04",
                &zeros,
                "6469736b",
                "01",
                &"02".repeat(32),
                &"03".repeat(16),
                "04",
                &zeros,
                "686f7374",
                "04",
                &zeros,
                "01",
                "00",
                "05",
                &zeros,
                "01",
                &"08".repeat(16),
                "01",
                &"09".repeat(16),
                &"0a".repeat(16),
                &"0b".repeat(16),
                &"00".repeat(48),
                &"0c".repeat(16),
            ]
            .concat()
        ),
    );
    keeps(ClientMessage::Release, "0400000001000000");
}

#[test]
fn server_messages_keep_their_bytes() {
    keeps(
        ServerMessage::Welcome(welcome()),
        &format!(
            "6400000000000000{}",
            [
                "0200",
                "0000000000000000",
                "0000004000000000",
                "00020000",
                "00100000",
                "00",
                "00000400",
                "40000000",
                "01",
                "00",
                "01",
                "00",
                &"06".repeat(16),
                &"0b".repeat(16),
                "010c00000000000000",
                "0700000000000000",
                "3075000000000000",
            ]
            .concat()
        ),
    );
    keeps(
        ServerMessage::Refused(Refused {
            reason: Refusal::Held,
            message: "by a".to_owned(),
        }),
        "140000000100000004000000040000000000000062792061",
    );
    keeps(ServerMessage::Released, "0400000002000000");
}

#[test]
fn every_refusal_keeps_its_number() {
    let all = [
        Refusal::Version,
        Refusal::Secret,
        Refusal::NoVolume,
        Refusal::ReadOnly,
        Refusal::Held,
        Refusal::Fenced,
        Refusal::Stale,
        Refusal::NotNow,
        Refusal::Malformed,
        Refusal::Replaced,
    ];
    for (number, reason) in all.into_iter().enumerate() {
        let message = String::new();
        let frame = encode(&ServerMessage::Refused(Refused { reason, message })).expect("short");
        assert_eq!(frame[8..12], (number as u32).to_le_bytes());
    }
}

#[test]
fn a_length_beyond_the_message_is_refused_before_anything_is_allocated() {
    // A hello whose volume name claims to be 2^60 bytes long.
    let mut body = encode(&ClientMessage::Hello(hello())).expect("short")[4..].to_vec();
    body[12..20].copy_from_slice(&(1u64 << 60).to_le_bytes());
    assert_eq!(decode::<ClientMessage>(&body), Err(WireError::Message));
    assert_eq!(
        frame_bytes(u32::MAX.to_le_bytes()),
        Err(WireError::MessageLength)
    );
    assert_eq!(frame_bytes([0; 4]), Err(WireError::MessageLength));
}

#[test]
fn texts_above_their_limits_are_refused_both_ways() {
    let long = |len| {
        ClientMessage::Hello(Hello {
            volume: "x".repeat(len),
            ..hello()
        })
    };
    assert!(encode(&long(VOLUME_NAME_BYTES_MAX)).is_ok());
    assert_eq!(
        encode(&long(VOLUME_NAME_BYTES_MAX + 1)),
        Err(WireError::MessageLength)
    );
    let body = bincode::encode_to_vec(long(1000), CONFIG).expect("below the message limit");
    assert_eq!(
        decode::<ClientMessage>(&body),
        Err(WireError::MessageLength)
    );
}

#[test]
fn unknown_messages_and_trailing_bytes_are_refused() {
    assert_eq!(
        decode::<ClientMessage>(&[9, 0, 0, 0]),
        Err(WireError::Message)
    );
    assert_eq!(
        decode::<ClientMessage>(&[1, 0, 0, 0, 0]),
        Err(WireError::Message)
    );
    assert_eq!(decode::<ClientMessage>(&[1, 0, 0]), Err(WireError::Message));
}

proptest! {
    #[test]
    fn hellos_round_trip(
        features: u64,
        volume in "[a-z]{0,64}",
        secret: Option<[u8; 32]>,
        client_id: [u8; 16],
        client_name in "\\PC{0,40}",
        session: u64,
        flags: (bool, bool),
        known_epoch: u64,
        known_identity: Option<[u8; 16]>,
        managed: Option<([u8; 16], [[u8; 16]; EARLIER_OPENINGS], [u8; 16])>,
    ) {
        let message = ClientMessage::Hello(Hello {
            features,
            volume,
            secret: secret.map(Secret),
            client_id,
            client_name,
            session,
            writable: flags.0,
            takeover: flags.1,
            known_epoch,
            known_identity,
            managed: managed.map(|(store, earlier, opening)| ManagedStore {
                store,
                earlier,
                opening,
            }),
        });
        let frame = encode(&message).expect("within limits");
        prop_assert_eq!(decode::<ClientMessage>(&frame[4..]), Ok(message));
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error(
        mut body in prop::collection::vec(any::<u8>(), 0..300),
        variant in 0u8..4,
        preamble: [u8; 8],
    ) {
        let _ = Preamble::decode(&preamble);
        let _ = decode::<ClientMessage>(&body);
        let _ = decode::<ServerMessage>(&body);
        if body.len() >= 4 {
            body[..4].copy_from_slice(&[variant, 0, 0, 0]);
            let _ = decode::<ClientMessage>(&body);
            let _ = decode::<ServerMessage>(&body);
        }
    }

    #[test]
    fn a_damaged_hello_is_a_message_or_an_error(at in 0usize..260, byte: u8) {
        let mut body = encode(&ClientMessage::Hello(hello())).expect("short")[4..].to_vec();
        let at = at % body.len();
        body[at] = byte;
        let _ = decode::<ClientMessage>(&body);
    }
}
