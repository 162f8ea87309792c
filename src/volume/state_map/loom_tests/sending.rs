//! What the sender sees of writes (L8), and when an intent can go (L12).

use super::*;

/// The first step of a round of the sender.
fn take(volume: &Volume) -> Option<BlockRange> {
    volume.map.take_dirty(range(0, 1).first, REGION_BLOCKS)
}

/// One round of the sender: what it read of the block, if it took it.
fn send(volume: &Volume, ok: bool) -> Option<u64> {
    let taken = take(volume);
    let read = taken.map(|_| volume.read());
    if let Some(taken) = taken {
        assert_eq!(taken, BLOCK);
        if ok {
            volume.map.flushed(taken);
        } else {
            volume.map.send_failed(taken);
        }
    }
    read.filter(|_| ok)
}

/// No write that ended is clean and unsent: after it a round finds the block, or it was sent as it
/// is now.
fn assert_nothing_is_lost(volume: &Volume, sent: Option<u64>) {
    let next_round = take(volume);
    if sent != Some(volume.read()) {
        assert_eq!(next_round, Some(BLOCK), "L8");
    }
    if let Some(taken) = next_round {
        volume.map.flushed(taken);
    }
    assert_eq!(volume.map.counts().dirty, 0);
    assert_eq!(volume.map.counts().sending, 0);
}

#[test]
fn loom_an_overwrite_is_sent_or_found_dirty() {
    check(5, || {
        let volume = Arc::new(Volume::present());
        let (sent, start) = beside(
            &volume,
            |it| {
                let first = send(it, true);
                send(it, true).or(first)
            },
            |it| it.write(0, BLOCK, WRITTEN),
        );
        assert_eq!(start, WriteStart::Overwrite);
        assert_nothing_is_lost(&volume, sent);
    });
}

#[test]
fn loom_a_failed_send_is_found_dirty() {
    check(6, || {
        let volume = Arc::new(Volume::present());
        let (sent, _) = beside(
            &volume,
            |it| {
                send(it, false);
                send(it, true)
            },
            |it| it.write(0, BLOCK, WRITTEN),
        );
        assert_nothing_is_lost(&volume, sent);
    });
}

/// The first write of an absent block is sent only when it is there as a whole.
#[test]
fn loom_a_claimed_write_is_sent_whole() {
    check(6, || {
        let volume = Arc::new(Volume::absent(1));
        let (sent, start) = beside(
            &volume,
            |it| send(it, true),
            |it| it.write(0, BLOCK, WRITTEN),
        );
        assert_eq!(start, WriteStart::Claimed);
        assert!(sent.is_none_or(|sent| sent == WRITTEN));
        assert_nothing_is_lost(&volume, sent);
    });
}

/// Two writes of one block, of which the second may rely on what the first one marks: a round that
/// begins when a write has ended finds the block, unless it was taken before.
#[test]
fn loom_two_overwrites_are_sent_or_found_dirty() {
    check(4, || {
        let volume = Arc::new(Volume::present());
        let other = thread::spawn({
            let volume = volume.clone();
            move || volume.write(1, BLOCK, WRITTEN + 1)
        });
        let (sent, found) = beside(
            &volume,
            |it| send(it, true),
            |it| {
                assert_eq!(it.write(0, BLOCK, WRITTEN), WriteStart::Overwrite);
                take(it)
            },
        );
        assert_eq!(other.join().expect("no panic"), WriteStart::Overwrite);
        assert!(found.is_some() || sent.is_some());
        if let Some(found) = found {
            volume.map.send_failed(found);
        }
        assert_nothing_is_lost(&volume, sent);
    });
}

/// An intent goes only where no write needs it: one that began before is seen, any other is
/// refused. What is clean then is as the origin has it.
#[test]
fn loom_an_intent_is_not_withdrawn_under_a_write() {
    check(4, || {
        let volume = Arc::new(Volume::present());
        let sender = thread::spawn({
            let volume = volume.clone();
            move || send(&volume, true)
        });
        let (withdrawn, start) = beside(
            &volume,
            |it| it.map.withdraw_write_ready(REGION),
            |it| it.write(0, BLOCK, WRITTEN),
        );
        let sent = sender.join().expect("no panic");
        assert_eq!(volume.map.write_ready(REGION), !withdrawn);
        if withdrawn && wrote(start) {
            assert_eq!(sent, Some(WRITTEN), "a clean block is as the origin has it");
            assert_eq!(take(&volume), None);
        }
        if !wrote(start) {
            assert_eq!(start, WriteStart::NotReady(REGION));
        }
        if withdrawn {
            assert_eq!(volume.write(0, BLOCK, 9), WriteStart::NotReady(REGION));
        }
    });
}

/// As above where the slot goes from one write to the next: a reader of the table may see the start
/// of the one with the end of the other.
#[test]
fn loom_an_intent_is_not_withdrawn_when_a_slot_changes_hands() {
    check(5, || {
        let volume = Arc::new(Volume::absent(2));
        let far = range(REGION_BLOCKS + 5, REGION_BLOCKS + 6);
        let (withdrawn, started) = beside(
            &volume,
            |it| [REGION, RegionIndex(1)].map(|region| it.map.withdraw_write_ready(region)),
            move |it| [far, BLOCK].map(|blocks| it.write(0, blocks, WRITTEN)),
        );
        assert!(!(withdrawn[0] && wrote(started[1])));
        assert!(!(withdrawn[1] && wrote(started[0])));
    });
}

/// A write beside the end of all writes is refused, or it has ended and what it changed is seen.
#[test]
fn loom_no_write_is_overlooked_by_the_end_of_writes() {
    check(4, || {
        let volume = Arc::new(Volume::present());
        let ((idle, dirty), start) = beside(
            &volume,
            |it| (it.map.end_writes(), it.map.take_dirty(BLOCK.first, 1)),
            |it| it.write(0, BLOCK, WRITTEN),
        );
        if idle && wrote(start) {
            assert_eq!(dirty, Some(BLOCK));
        }
        if !wrote(start) {
            assert_eq!(start, WriteStart::NotReady(REGION));
        }
        assert_eq!(volume.write(0, BLOCK, 9), WriteStart::NotReady(REGION));
    });
}
