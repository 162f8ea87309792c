use super::*;
use proptest::prelude::*;

const LEASE: Duration = Duration::from_secs(30);
const A: [u8; 16] = [1; 16];
const B: [u8; 16] = [2; 16];

fn asking(client_id: [u8; 16], known_epoch: u64, takeover: bool) -> Asking<'static> {
    Asking {
        client_id,
        name: "me",
        takeover,
        known_epoch,
        managed: None,
        now_unix_s: 7,
    }
}

/// A managed mount with its store opened for the `opening`th time, which the server has heard of the
/// time before.
fn managed(client_id: [u8; 16], known_epoch: u64, store: u8, opening: u8) -> Asking<'static> {
    managed_after(client_id, known_epoch, store, &[opening - 1], opening)
}

/// The same, where it heard of one of `earlier`.
fn managed_after(
    client_id: [u8; 16],
    known_epoch: u64,
    store: u8,
    earlier: &[u8],
    opening: u8,
) -> Asking<'static> {
    let token = |at: usize| earlier.get(at).map_or([0; 16], |token| [*token; 16]);
    Asking {
        managed: Some(ManagedStore {
            store: [store; 16],
            earlier: std::array::from_fn(token),
            opening: [opening; 16],
        }),
        ..asking(client_id, known_epoch, false)
    }
}

fn held_by(client_id: [u8; 16], epoch: u64) -> Record {
    Record {
        epoch,
        holder: Some(Holder {
            client_id,
            name: "other".to_owned(),
            since_unix_s: 1_795_398_180,
        }),
        managed: None,
    }
}

fn held_by_managed(client_id: [u8; 16], epoch: u64, store: u8, opening: u8) -> Record {
    Record {
        managed: Some(LastOpening {
            store: [store; 16],
            token: [opening; 16],
        }),
        ..held_by(client_id, epoch)
    }
}

fn free(epoch: u64) -> Record {
    Record {
        epoch,
        holder: None,
        managed: None,
    }
}

fn granted(verdict: Verdict) -> (u64, Option<[u8; 16]>) {
    match verdict {
        Verdict::Granted { record, fenced } => {
            assert_eq!(record.holder.expect("somebody").name, "me");
            (record.epoch, fenced)
        }
        other => panic!("not granted: {other:?}"),
    }
}

fn refusal(verdict: Verdict) -> Refused {
    match verdict {
        Verdict::Refused(refused) => refused,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_free_volume_is_granted_under_a_new_epoch() {
    let verdict = decide(&free(4), Some(Duration::ZERO), LEASE, asking(A, 0, false));
    assert_eq!(granted(verdict), (5, None));
}

#[test]
fn a_second_writer_is_told_who_and_since_when_and_what_to_do() {
    let refused = refusal(decide(&held_by(B, 4), None, LEASE, asking(A, 0, false)));
    assert_eq!(refused.reason, Refusal::Held);
    for part in ["`other`", "2026-11-23 01:43:00 UTC", "--takeover"] {
        assert!(refused.message.contains(part), "{}", refused.message);
    }
}

#[test]
fn a_takeover_raises_the_epoch_and_fences_the_holder_for_ever() {
    let taken = decide(&held_by(B, 4), None, LEASE, asking(A, 0, true));
    assert_eq!(granted(taken.clone()), (5, Some(B)));
    let Verdict::Granted { record, .. } = taken else {
        unreachable!()
    };
    let back = decide(&record, None, LEASE, asking(B, 4, false));
    assert_eq!(refusal(back).reason, Refusal::Fenced);
    // Even after the one that took it over has given it back.
    let back = decide(&free(5), Some(LEASE), LEASE, asking(B, 4, true));
    assert_eq!(refusal(back).reason, Refusal::Fenced);
}

#[test]
fn a_lease_outlives_its_holders_connection_for_its_time_only() {
    let before = LEASE - Duration::from_millis(1);
    let early = decide(&held_by(B, 4), Some(before), LEASE, asking(A, 0, false));
    assert_eq!(refusal(early).reason, Refusal::Held);
    let late = decide(&held_by(B, 4), Some(LEASE), LEASE, asking(A, 0, false));
    assert_eq!(granted(late), (5, Some(B)));
}

#[test]
fn a_holder_that_comes_back_to_an_unchanged_epoch_goes_on() {
    for away_for in [None, Some(Duration::ZERO), Some(LEASE * 9)] {
        let back = decide(&held_by(A, 4), away_for, LEASE, asking(A, 4, false));
        assert_eq!(back, Verdict::GoesOn);
    }
    let back = decide(&free(4), Some(LEASE), LEASE, asking(A, 4, false));
    assert_eq!(granted(back), (4, None));
}

#[test]
fn a_holder_that_never_heard_of_its_grant_goes_on() {
    let again = decide(&held_by(A, 4), None, LEASE, asking(A, 0, false));
    assert_eq!(again, Verdict::GoesOn);
}

#[test]
fn a_record_that_went_back_in_time_lets_nobody_go_on() {
    let back = decide(&free(3), Some(LEASE), LEASE, asking(A, 4, false));
    assert_eq!(refusal(back).reason, Refusal::Fenced);
}

#[test]
fn a_managed_lease_has_no_end_in_time_and_says_what_it_may_hold() {
    let record = held_by_managed(B, 4, 1, 1);
    for asking in [asking(A, 0, false), managed(A, 0, 2, 1)] {
        let refused = refusal(decide(&record, Some(LEASE * 1000), LEASE, asking));
        assert_eq!(refused.reason, Refusal::Held);
        for part in ["managed", "not sent", "`other`", "--takeover"] {
            assert!(refused.message.contains(part), "{}", refused.message);
        }
    }
    let taken = decide(&record, None, LEASE, asking(A, 0, true));
    assert_eq!(granted(taken), (5, Some(B)));
}

#[test]
fn a_direct_lease_runs_out_for_a_managed_mount_too() {
    let late = decide(&held_by(B, 4), Some(LEASE), LEASE, managed(A, 0, 1, 1));
    assert_eq!(granted(late), (5, Some(B)));
}

#[test]
fn a_store_that_is_opened_again_goes_on_under_its_epoch() {
    // Its process was killed: it comes back as another client, and the one before is shut out.
    let back = decide(
        &held_by_managed(B, 4, 1, 1),
        None,
        LEASE,
        managed(A, 4, 1, 2),
    );
    assert_eq!(granted(back), (4, Some(B)));
    // It had given the lease back.
    let released = Record {
        holder: None,
        ..held_by_managed(B, 4, 1, 1)
    };
    let back = decide(&released, Some(LEASE), LEASE, managed(A, 4, 1, 2));
    let Verdict::Granted { record, .. } = &back else {
        panic!("{back:?}")
    };
    assert_eq!(record.managed, held_by_managed(A, 4, 1, 2).managed);
    assert_eq!(granted(back), (4, None));
}

#[test]
fn a_store_that_never_heard_of_its_grant_gets_another() {
    let again = decide(
        &held_by_managed(B, 4, 1, 1),
        None,
        LEASE,
        managed(A, 0, 1, 2),
    );
    assert_eq!(granted(again), (5, Some(B)));
}

#[test]
fn a_copy_of_a_store_is_fenced_whoever_opened_it_first() {
    for record in [
        held_by_managed(B, 4, 1, 5),
        Record {
            holder: None,
            ..held_by_managed(B, 4, 1, 5)
        },
    ] {
        // A copy made before, however often it was tried since; an older one; another store.
        for (store, earlier, opening) in [
            (1, &[4, 20, 21, 22, 23][..], 24),
            (1, &[3], 4),
            (1, &[], 6),
            (2, &[5], 6),
        ] {
            for takeover in [false, true] {
                let copy = Asking {
                    takeover,
                    ..managed_after(A, 4, store, earlier, opening)
                };
                let refused = refusal(decide(&record, None, LEASE, copy));
                assert_eq!(refused.reason, Refusal::Fenced);
                assert!(refused.message.contains("copied"), "{}", refused.message);
            }
        }
    }
}

#[test]
fn a_store_that_does_not_know_which_of_its_openings_was_heard_of_goes_on() {
    for heard_of in 5..=9 {
        let record = held_by_managed(B, 4, 1, heard_of);
        let back = managed_after(A, 4, 1, &[5, 6, 7, 8], 9);
        assert_eq!(
            granted(decide(&record, None, LEASE, back)),
            (4, Some(B)),
            "{heard_of}"
        );
    }
}

#[test]
fn a_record_that_counts_openings_lets_no_store_go_on() {
    let store = vec![1; 16];
    let kept =
        format!(r#"{{"epoch":4,"holder":null,"managed":{{"store":{store:?},"opening":3}}}}"#);
    let record: Record = serde_json::from_str(&kept).expect("read");
    for earlier in [&[0][..], &[3]] {
        let back = managed_after(A, 4, 1, earlier, 9);
        let refused = refusal(decide(&record, None, LEASE, back));
        assert_eq!(refused.reason, Refusal::Fenced);
    }
    let anew = decide(&record, None, LEASE, managed(A, 0, 1, 9));
    assert_eq!(granted(anew), (5, None));
}

#[test]
fn a_fenced_writer_is_told_both_epochs() {
    let refused = refusal(decide(&held_by(B, 9), None, LEASE, managed(A, 4, 1, 2)));
    assert_eq!(refused.reason, Refusal::Fenced);
    assert!(
        refused.message.contains("is 9 now, and was 4"),
        "{}",
        refused.message
    );
}

#[test]
fn a_record_from_before_managed_mounts_is_that_of_a_direct_one() {
    let kept = r#"{"epoch":3,"holder":null}"#;
    assert_eq!(serde_json::from_str::<Record>(kept).expect("read"), free(3));
}

#[test]
fn dates_are_those_of_the_calendar() {
    for (unix_s, expected) in [
        (0, "1970-01-01 00:00:00 UTC"),
        (951_782_399, "2000-02-28 23:59:59 UTC"),
        (951_782_400, "2000-02-29 00:00:00 UTC"),
        (951_868_800, "2000-03-01 00:00:00 UTC"),
        (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        (1_795_398_180, "2026-11-23 01:43:00 UTC"),
    ] {
        assert_eq!(utc(unix_s), expected);
    }
}

proptest! {
    /// Clients come, go and come back in any order: never do two hold one epoch, and epochs grow.
    /// The odd ones are managed: they come back as somebody else, with their store opened anew.
    #[test]
    fn an_epoch_has_one_holder(
        steps in prop::collection::vec((0u8..4, any::<bool>(), 0u64..60, any::<bool>()), 1..60),
    ) {
        let mut record = Record::default();
        let mut known = [0u64; 4];
        let mut opening = [0u8; 4];
        let mut welcomed = [0u8; 4];
        let mut held_under = std::collections::HashMap::new();
        for (client, takeover, away_s, killed) in steps {
            let at = usize::from(client);
            let is_managed = client % 2 == 1;
            if is_managed && (killed || opening[at] == 0) {
                opening[at] += 1;
            }
            let mut id = [client + 1; 16];
            id[0] = opening[at];
            let away = (away_s > 5).then(|| Duration::from_secs(away_s));
            let asking = Asking {
                takeover: takeover && known[at] == 0,
                ..if is_managed {
                    managed_after(id, known[at], client, &[welcomed[at]], opening[at])
                } else {
                    asking(id, known[at], false)
                }
            };
            match decide(&record, away, LEASE, asking) {
                Verdict::GoesOn => {
                    prop_assert_eq!(record.holder.as_ref().map(|holder| holder.client_id), Some(id));
                }
                Verdict::Granted { record: next, .. } => {
                    prop_assert!(next.epoch >= record.epoch);
                    let stolen = record.holder.is_some() && record.managed.is_some()
                        && !takeover && record.managed.map(|managed| managed.store) != Some([client; 16]);
                    prop_assert!(!stolen, "a managed lease ended by itself");
                    record = next;
                }
                Verdict::Refused(_) => continue,
            }
            known[at] = record.epoch;
            welcomed[at] = opening[at];
            prop_assert_eq!(*held_under.entry(record.epoch).or_insert(client), client);
            if away_s % 7 == 0 {
                record.holder = None;
            }
        }
    }
}
