//! What a program that embeds the library gets: the same as the command line, with closures.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use blockferry::ErrorKind;
use blockferry::backend::{self, OpenOptions};
use blockferry::device::{Device, DeviceKind, DeviceOptions};
use blockferry::migrate::{LeechOptions, Migrator, SeedOptions, SourceHooks};
use blockferry::net::{Server, ServerConfig};

use super::ends::{World, are_equal};
use super::writer::{Writer, Written};

fn migrator(world: &World, host: &str) -> Migrator {
    let run = world.path(host);
    std::fs::create_dir(&run).expect("made");
    Migrator::new(DeviceKind::Fuse, DeviceOptions::new(host, run))
}

fn server(world: &World) -> Server {
    let config = ServerConfig {
        state_dir: Some(world.path("state")),
        ..ServerConfig::on("127.0.0.1:0".parse().expect("an address"))
    };
    Server::bind(config, Vec::new()).expect("it listens")
}

async fn removed(mut device: Box<dyn Device>) {
    tokio::task::spawn_blocking(move || device.remove().expect("removed"))
        .await
        .expect("done");
}

/// Runs what blocks.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("done")
}

fn start(device: &Path, seed: u64, written: Written) -> impl FnOnce() -> Writer + use<> {
    let device = device.to_owned();
    move || Writer::start(&device, seed, written)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_has_a_volume_move_here_and_on_and_its_closures_are_called() {
    let Some(world) = World::new() else { return };
    let first = migrator(&world, "first");
    let options = OpenOptions {
        migrates: true,
        ..OpenOptions::default()
    };
    let resource = backend::open(&world.url("a.img"), &options).expect("opened");
    let calls = Arc::new(AtomicU32::new(0));
    let called = Arc::clone(&calls);
    let options = SeedOptions {
        hooks: SourceHooks {
            // The first time it cannot be.
            before_sync: Some(Arc::new(move || {
                match called.fetch_add(1, Ordering::SeqCst) {
                    0 => Err("not now".to_owned()),
                    _ => Ok(()),
                }
            })),
            ..SourceHooks::default()
        },
        ..SeedOptions::new("disk".parse().expect("a name"))
    };
    let seeded = first.seed(&resource, server(&world), options);
    let (device, mut seeding) = seeded.expect("seeded");
    drop(resource);
    let device = device.expect("the volume is here");
    let writer = blocking(start(device.path(), 1, Written::default())).await;

    let second = migrator(&world, "second");
    let options = LeechOptions {
        can_seed: true,
        ..LeechOptions::new("second").expect("a name")
    };
    let store = world.url("b.img").parse().expect("a store");
    let ticket = seeding.ticket().clone();
    let leeching = second.leech(ticket, &store, options).await.expect("begun");
    // The attempt that the hook ends is followed by another one.
    let (moved, arrived) = leeching.finalize().await.expect("it has moved");
    let written = blocking(|| writer.failed()).await;
    assert!(calls.load(Ordering::SeqCst) > 1);
    assert!(arrived.downtime().await.is_some());
    seeding.until_released().await;
    assert_eq!(
        seeding.status().moved_to.expect("it has moved"),
        ("second".to_owned(), 1)
    );
    removed(device).await;
    seeding.end().await;

    let writer = blocking(start(moved.path(), 2, written)).await;
    let options = SeedOptions::new("disk-2".parse().expect("a name"));
    let mut seeding = arrived.seed(server(&world), options).await.expect("on");
    let third = migrator(&world, "third");
    let options = LeechOptions::new("third").expect("a name");
    let store = world.url("c.img").parse().expect("a store");
    let ticket = seeding.ticket().clone();
    let leeching = third.leech(ticket, &store, options).await.expect("begun");
    let (last, at_last) = leeching.finalize().await.expect("it has moved");
    let written = blocking(|| writer.failed()).await;
    seeding.until_released().await;
    removed(moved).await;
    seeding.end().await;
    let path = last.path().to_owned();
    blocking(move || written.is_on(&path)).await;
    assert!(are_equal(&world.path("b.img"), &world.path("c.img")));

    let options = SeedOptions::new("disk-3".parse().expect("a name"));
    let refused = at_last.seed(server(&world), options).await;
    assert_eq!(
        refused.expect_err("it was not said").kind(),
        ErrorKind::Unsupported
    );
    removed(last).await;
}
