//! Every operation over real sockets, against a plain array of bytes.

#![allow(clippy::unwrap_used, missing_docs)]

mod net_support;

use std::sync::atomic::Ordering;

use blockferry::AsyncBackend;
use blockferry::net::{Remote, RemoteOptions};
use blockferry::volume::Priority;
use net_support::{Dice, Memory, Setup, connect, extents, options, pattern, read, write};

const SIZE: usize = 24 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_does_what_a_byte_array_does() {
    let state = tempfile::tempdir().unwrap();
    let memory = Memory::new(SIZE);
    let server = Setup::new(state.path(), memory.clone()).start().await;
    let remote = connect(&server.ticket).await;
    assert_eq!(remote.size(), SIZE as u64);
    let mut model = vec![0u8; SIZE];
    let mut dice = Dice(7);
    for round in 0..300u64 {
        let offset = dice.roll(SIZE as u64 - 1);
        let most = if round % 20 == 0 { 9 << 20 } else { 64 << 10 };
        let len = 1 + dice.roll(most).min(SIZE as u64 - offset - 1);
        let range = offset as usize..(offset + len) as usize;
        match dice.roll(7) {
            0 | 1 => {
                let bytes = pattern(round, len as usize);
                write(&remote, offset, &bytes).await.unwrap();
                model[range].copy_from_slice(&bytes);
            }
            2 => {
                remote.discard(offset, len).await.unwrap();
                model[range].fill(0);
            }
            3 => {
                let no_unmap = round % 2 == 0;
                remote
                    .write_zeroes(offset, len, no_unmap, true)
                    .await
                    .unwrap();
                model[range].fill(0);
            }
            4 => {
                let map = remote.allocated(offset..offset + len).await.unwrap();
                assert_eq!(map, extents(&model, offset..offset + len), "round {round}");
            }
            5 => {
                let step = 1 + len / (1 + dice.roll(100));
                let runs: Vec<_> = (offset..offset + len)
                    .step_by(step as usize)
                    .map(|start| start..start + 1 + dice.roll(step))
                    .map(|run| run.start..run.end.min(offset + len))
                    .collect();
                let bytes_in = |run: &std::ops::Range<u64>| run.start as usize..run.end as usize;
                let expected: Vec<u8> = runs
                    .iter()
                    .flat_map(|run| model[bytes_in(run)].to_vec())
                    .collect();
                let mut bytes = vec![0xFF; expected.len()];
                let read = remote.read_runs(&mut bytes, &runs, Priority::Pull);
                read.await.unwrap();
                assert!(bytes == expected, "round {round}: {runs:?}");
            }
            _ => {
                let bytes = read(&remote, offset, len as usize).await.unwrap();
                assert!(bytes == model[range], "round {round}: {offset} {len}");
            }
        }
    }
    remote.flush().await.unwrap();
    assert_eq!(memory.flushes.load(Ordering::SeqCst), 1);
    assert!(read(&remote, 0, SIZE).await.unwrap() == model);
    assert!(*memory.bytes.lock().unwrap() == model);
    remote.close().await.unwrap();
    server.stop().await;
}

/// A client's device has the block that its server was told to have, which no reconnection changes.
#[tokio::test]
async fn the_servers_block_size_travels_and_stays() {
    let state = tempfile::tempdir().unwrap();
    let memory = Memory::new(SIZE);
    let with_blocks = |block_bytes, listen| Setup {
        block_bytes,
        listen,
        ..Setup::new(state.path(), memory.clone())
    };
    let any = "127.0.0.1:0".parse().unwrap();
    let server = with_blocks(Some(4096), any).start().await;
    let remote = connect(&server.ticket).await;
    assert_eq!(remote.capabilities().logical_block_bytes, 4096);
    let listen = server.address;
    server.stop().await;

    let server = with_blocks(None, listen).start().await;
    assert!(read(&remote, 0, 4096).await.is_err());
    let why = remote.lost_because().unwrap();
    assert!(why.contains("blocks of 4096"), "{why}");
    // The first client still has the lease.
    let reader = RemoteOptions {
        read_only: true,
        ..options("reader")
    };
    let remote = Remote::connect(server.ticket.clone(), reader)
        .await
        .unwrap();
    assert_eq!(remote.capabilities().logical_block_bytes, 512);
    server.stop().await;
}
