//! What a user is told, and what single messages lead to. The simulation looks at the rest.

use std::time::Duration;

use super::*;
use crate::volume::geometry::BlockRange;

const B: MigrationId = MigrationId([0xb; 16]);
const C: MigrationId = MigrationId([0xc; 16]);

fn seeder() -> Seeder {
    let config = SeederConfig {
        volume: VolumeId([1; 16]),
        blocks: BlockRange::new(0, 8),
        instance: Instance([2; 16]),
        hold_limit: Duration::from_secs(5),
    };
    Seeder::new(config, &Records::default()).expect("the volume is here")
}

fn tell(seeder: &mut Seeder, message: ToSeeder) -> Vec<SeederAction> {
    seeder.handle(SeederEvent::Message(message))
}

/// Lets a leecher in, and gives its first attempt.
fn welcome(seeder: &mut Seeder, migration: MigrationId, name: &str) -> AttemptId {
    let name = name.to_owned();
    let actions = tell(seeder, ToSeeder::Leech { migration, name });
    let session = actions.iter().find_map(|action| match action {
        SeederAction::Send(_, ToLeecher::Welcome { session, .. }) => Some(*session),
        _ => None,
    });
    AttemptId {
        session: session.expect("welcome"),
        number: 1,
    }
}

fn prepare(attempt: AttemptId) -> ToSeeder {
    ToSeeder::Prepare {
        attempt,
        pulled: 0,
        post_copy: true,
    }
}

/// Up to the offer.
fn offer(seeder: &mut Seeder, attempt: AttemptId) {
    let _ = tell(seeder, prepare(attempt));
    for event in [
        hook_ended(attempt, Hook::BeforeSync, Ok(())),
        SeederEvent::Held(attempt),
        SeederEvent::Synced {
            attempt,
            blocks: BlockSet::new(),
            result: Ok(None),
        },
        hook_ended(attempt, Hook::AfterSync(8), Ok(())),
    ] {
        let _ = seeder.handle(event);
    }
}

fn hook_ended(attempt: AttemptId, hook: Hook, result: Result<(), String>) -> SeederEvent {
    SeederEvent::HookEnded {
        attempt,
        hook,
        result,
    }
}

fn commit(attempt: AttemptId) -> ToSeeder {
    let proof = None;
    ToSeeder::Commit { attempt, proof }
}

fn ended(attempt: AttemptId, reason: Reason) -> SeederAction {
    SeederAction::Send(attempt.migration(), ToLeecher::Ended { attempt, reason })
}

#[test]
fn a_second_leecher_that_finalizes_is_told_who_does_and_the_first_goes_on() {
    let mut seeder = seeder();
    let first = welcome(&mut seeder, B, "b");
    let second = welcome(&mut seeder, C, "c");
    offer(&mut seeder, first);
    let by = "b".to_owned();
    let refused = ended(second, Reason::Busy { by });
    assert_eq!(tell(&mut seeder, prepare(second)), [refused]);
    let actions = tell(&mut seeder, commit(first));
    assert!(matches!(actions[..], [SeederAction::WriteCommit(_)]));
    let actions = seeder.handle(SeederEvent::CommitWritten(Ok(())));
    assert!(actions.contains(&SeederAction::Fail));
    // And from then on it is told where the volume is.
    let to = "b".to_owned();
    let epoch = Epoch(1);
    let reason = Reason::Moved { to, epoch };
    let migration = C;
    let moved = SeederAction::Send(C, ToLeecher::Refused { migration, reason });
    assert!(actions.contains(&moved), "{actions:?}");
}

#[test]
fn a_commit_of_an_attempt_that_is_over_is_refused() {
    let mut seeder = seeder();
    let attempt = welcome(&mut seeder, B, "b");
    offer(&mut seeder, attempt);
    let limit = SeederTimer::HoldLimit(attempt);
    let actions = seeder.handle(SeederEvent::Timer(limit));
    assert!(actions.contains(&SeederAction::Resume));
    let refused = ended(attempt, Reason::Over);
    assert_eq!(tell(&mut seeder, commit(attempt)), [refused]);
}

#[test]
fn a_hook_that_fails_ends_the_attempt_and_undoes_the_one_before_it() {
    for hook in [Hook::BeforeSync, Hook::AfterSync(8)] {
        let mut seeder = seeder();
        let attempt = welcome(&mut seeder, B, "b");
        let _ = tell(&mut seeder, prepare(attempt));
        if hook != Hook::BeforeSync {
            let _ = seeder.handle(hook_ended(attempt, Hook::BeforeSync, Ok(())));
            let _ = seeder.handle(SeederEvent::Held(attempt));
            let _ = seeder.handle(SeederEvent::Synced {
                attempt,
                blocks: BlockSet::new(),
                result: Ok(None),
            });
        }
        let text = "exit status 1".to_owned();
        let actions = seeder.handle(hook_ended(attempt, hook, Err(text.clone())));
        assert!(actions.contains(&SeederAction::Resume), "{hook:?}");
        assert!(actions.contains(&ended(attempt, Reason::HookFailed(text))));
    }
}

#[test]
fn what_the_hook_did_is_undone_only_after_it_has_ended() {
    let mut seeder = seeder();
    let attempt = welcome(&mut seeder, B, "b");
    let _ = tell(&mut seeder, prepare(attempt));
    let over = ended(attempt, Reason::LeecherAborted);
    assert_eq!(tell(&mut seeder, ToSeeder::Abort { attempt }), [over]);
    let actions = seeder.handle(hook_ended(attempt, Hook::BeforeSync, Ok(())));
    assert_eq!(actions[0], SeederAction::Resume);
}

#[test]
fn a_seeder_reads_its_store_anew_for_a_leecher_that_trusts_nothing_and_once_for_each_question() {
    let mut seeder = seeder();
    let session = welcome(&mut seeder, B, "b").session;
    let round = |number, anew| ToSeeder::Round {
        session,
        number,
        pulled: number - 1,
        anew,
    };
    let collect = SeederAction::Collect(session);
    assert_eq!(tell(&mut seeder, round(1, false)), [collect]);
    // Also while the answer to another question is under way.
    let read_anew = SeederAction::ReadAnew;
    assert_eq!(tell(&mut seeder, round(2, true)), [read_anew]);
    assert_eq!(tell(&mut seeder, round(2, true)), []);
}

#[test]
fn no_more_leechers_are_let_in_than_leave_a_tracker_for_the_proof() {
    let mut seeder = seeder();
    for migration in leechers() {
        welcome(&mut seeder, migration, "b");
    }
    let migration = MigrationId([16; 16]);
    let name = "one more".to_owned();
    let reason = Reason::Full;
    let full = SeederAction::Send(migration, ToLeecher::Refused { migration, reason });
    let actions = tell(&mut seeder, ToSeeder::Leech { migration, name });
    assert_eq!(actions, [full]);
}

fn record(stage: Stage, post_copy: bool) -> (AttemptId, Records) {
    let attempt = welcome(&mut seeder(), B, "b");
    let record = LeechRecord {
        volume: VolumeId([1; 16]),
        epoch: Epoch(1),
        stage,
        attempt: Some(attempt),
        post_copy,
    };
    let records = Records {
        commit: None,
        leech: Some(record),
    };
    (attempt, records)
}

fn leecher(records: &Records) -> (Leecher, Vec<LeecherAction>) {
    let config = LeecherConfig {
        name: "b".to_owned(),
        migration: C,
        mode: Mode::PostCopy,
        finalize: Finalize::Auto,
        downtime_target: Duration::from_millis(100),
        rounds_max: 30,
        pre_copy_limit: Duration::from_secs(60),
    };
    let mut leecher = Leecher::with_records(config, records).expect("not always here");
    let actions = leecher.handle(LeecherEvent::Begin);
    (leecher, actions)
}

#[test]
fn a_leecher_in_doubt_asks_and_can_neither_give_up_nor_do_without_bytes_at_the_seeder() {
    let (attempt, records) = record(Stage::Prepared, true);
    let (mut leecher, actions) = leecher(&records);
    let ask = LeecherAction::Send(ToSeeder::Ask { attempt });
    assert!(actions.contains(&ask), "{actions:?}");
    let told = |notice| [LeecherAction::Tell(notice)];
    let actions = leecher.handle(LeecherEvent::Abort);
    assert_eq!(actions, told(LeecherNotice::TooLate));
    let actions = leecher.handle(LeecherEvent::AssumeCommitted);
    assert_eq!(actions, told(LeecherNotice::BytesAtSeeder));
}

/// One that has pulled everything, and waits for the seeder's proof of it.
fn comparing() -> (AttemptId, Leecher) {
    let (attempt, records) = record(Stage::Owner, true);
    let (mut leecher, actions) = leecher(&records);
    assert!(actions.contains(&LeecherAction::PullRest), "{actions:?}");
    let _ = leecher.handle(LeecherEvent::Started(Ok(())));
    let _ = leecher.handle(LeecherEvent::RestPulled(Ok(())));
    assert!(asks_for_a_proof(&rest_secured(&mut leecher)));
    (attempt, leecher)
}

fn rest_secured(leecher: &mut Leecher) -> Vec<LeecherAction> {
    let pulled = (BlockSet::of(BlockRange::new(0, 8)), Proof([1; 32]));
    leecher.handle(LeecherEvent::RestSecured(Ok(pulled)))
}

fn asks_for_a_proof(actions: &[LeecherAction]) -> bool {
    let asks = |action: &_| matches!(action, LeecherAction::Send(ToSeeder::Prove { .. }));
    actions.iter().any(asks)
}

fn proof(attempt: AttemptId, proof: Option<[u8; 32]>) -> LeecherEvent {
    let proof = proof.map(Proof);
    LeecherEvent::Message(ToLeecher::Proof { attempt, proof })
}

#[test]
fn a_seeder_is_not_released_if_what_was_pulled_differs_each_time_it_is_read() {
    let (attempt, mut leecher) = comparing();
    for _ in 0..2 {
        let actions = leecher.handle(proof(attempt, Some([2; 32])));
        assert!(actions.contains(&LeecherAction::SecureRest), "{actions:?}");
        assert!(!leecher.differs());
        assert!(asks_for_a_proof(&rest_secured(&mut leecher)));
    }
    let differs = LeecherAction::Tell(LeecherNotice::PulledDiffers);
    let actions = leecher.handle(proof(attempt, Some([2; 32])));
    assert_eq!(actions, [differs]);
    assert!(leecher.differs() && !leecher.can_seed());
}

#[test]
fn a_read_that_fails_or_goes_wrong_once_does_not_keep_the_seeder_for_ever() {
    let (attempt, mut leecher) = comparing();
    let actions = leecher.handle(proof(attempt, None));
    assert!(
        matches!(
            &actions[..],
            [LeecherAction::Tell(LeecherNotice::TryingAgain(_))]
        ),
        "{actions:?}"
    );
    let retry = leecher.handle(LeecherEvent::Timer(LeecherTimer::Retry));
    assert!(asks_for_a_proof(&retry), "{retry:?}");
    let _ = leecher.handle(proof(attempt, Some([2; 32])));
    assert!(asks_for_a_proof(&rest_secured(&mut leecher)));
    let actions = leecher.handle(proof(attempt, Some([1; 32])));
    assert!(
        matches!(&actions[..], [LeecherAction::Record(record)] if record.stage == Stage::Complete),
        "{actions:?}"
    );
}

#[test]
fn of_two_records_that_of_the_higher_epoch_counts() {
    let commit = |epoch| CommitRecord {
        volume: VolumeId([1; 16]),
        epoch: Epoch(epoch),
        attempt: welcome(&mut seeder(), B, "b"),
        to: "b".to_owned(),
        released: false,
        post_copy: false,
    };
    let leech = |epoch, stage| LeechRecord {
        epoch: Epoch(epoch),
        ..record(stage, false).1.leech.expect("made")
    };
    let standing = |commit, leech| Records { commit, leech }.standing();
    assert_eq!(standing(None, None), Standing::Owner(Epoch(0)));
    let came_back = standing(Some(commit(1)), Some(leech(2, Stage::Complete)));
    assert_eq!(came_back, Standing::Owner(Epoch(2)));
    let moved_on = standing(Some(commit(3)), Some(leech(2, Stage::Complete)));
    assert_eq!(moved_on, Standing::Moved(commit(3)));
    let in_doubt = standing(Some(commit(1)), Some(leech(2, Stage::Prepared)));
    assert_eq!(in_doubt, Standing::InDoubt(leech(2, Stage::Prepared)));
    let pulling = standing(None, Some(leech(1, Stage::Pulling)));
    assert_eq!(pulling, Standing::Pulling(leech(1, Stage::Pulling)));
}

#[test]
fn a_store_takes_no_other_volume_and_no_older_state_of_its_own() {
    let attempt = welcome(&mut seeder(), B, "b");
    for (volume, epoch, reason) in [
        (VolumeId([7; 16]), Epoch(4), Reason::AnotherVolume),
        (VolumeId([1; 16]), Epoch(3), Reason::Outdated),
    ] {
        let commit = CommitRecord {
            volume: VolumeId([1; 16]),
            epoch: Epoch(3),
            attempt,
            to: "b".to_owned(),
            released: false,
            post_copy: false,
        };
        let records = Records {
            commit: Some(commit),
            leech: None,
        };
        let (mut leecher, _) = leecher(&records);
        let session = SessionId {
            migration: C,
            ..attempt.session
        };
        let message = ToLeecher::Welcome {
            session,
            volume,
            epoch,
        };
        let actions = leecher.handle(LeecherEvent::Message(message));
        let over = LeecherAction::Tell(LeecherNotice::Over(reason));
        assert!(actions.contains(&over), "{actions:?}");
    }
}

/// As many as a seeder takes.
fn leechers() -> Vec<MigrationId> {
    let count = crate::volume::TRACKERS_MAX as u8 - 1;
    (0..count).map(|number| MigrationId([number; 16])).collect()
}

#[test]
fn a_new_leecher_takes_the_place_of_the_one_that_was_lost_first_and_of_none_that_is_back() {
    let mut seeder = seeder();
    for migration in leechers() {
        welcome(&mut seeder, migration, "one");
    }
    let [first, second, third] = [3, 1, 2].map(|number| MigrationId([number; 16]));
    for migration in [first, second, third] {
        let _ = seeder.handle(SeederEvent::Disconnected(migration));
    }
    welcome(&mut seeder, first, "one");
    for gone in [second, third] {
        let migration = MigrationId([0x80 | gone.0[0]; 16]);
        let name = "another".to_owned();
        let actions = tell(&mut seeder, ToSeeder::Leech { migration, name });
        assert!(
            actions.contains(&SeederAction::EndTracking(gone)),
            "{actions:?}"
        );
        let is_in = |action: &SeederAction| matches!(action, SeederAction::Track(session) if session.migration == migration);
        assert!(actions.iter().any(is_in), "{actions:?}");
    }
}
