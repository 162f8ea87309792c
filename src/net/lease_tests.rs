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
        now_unix_s: 7,
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
    }
}

fn free(epoch: u64) -> Record {
    Record {
        epoch,
        holder: None,
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
    #[test]
    fn an_epoch_has_one_holder(
        steps in prop::collection::vec((0u8..4, any::<bool>(), 0u64..60), 1..60),
    ) {
        let mut record = Record::default();
        let mut known = [0u64; 4];
        let mut held_under = std::collections::HashMap::new();
        for (client, takeover, away_s) in steps {
            let id = [client + 1; 16];
            let known = &mut known[usize::from(client)];
            let away = (away_s > 5).then(|| Duration::from_secs(away_s));
            let takeover = takeover && *known == 0;
            match decide(&record, away, LEASE, asking(id, *known, takeover)) {
                Verdict::GoesOn => {
                    prop_assert_eq!(record.holder.as_ref().map(|holder| holder.client_id), Some(id));
                }
                Verdict::Granted { record: next, .. } => {
                    prop_assert!(next.epoch >= record.epoch);
                    record = next;
                }
                Verdict::Refused(_) => continue,
            }
            *known = record.epoch;
            prop_assert_eq!(*held_under.entry(record.epoch).or_insert(id), id);
            if away_s % 7 == 0 {
                record.holder = None;
            }
        }
    }
}
