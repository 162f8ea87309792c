//! A volume moves while it is in use, and then on: both ends in one program, over loopback.
//!
//! `cargo run --example migrate`, as root for block devices, or as anybody for files.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use blockferry::backend::{self, OpenOptions};
use blockferry::device::{self, DeviceOptions, choose};
use blockferry::migrate::{LeechOptions, Migrator, SeedOptions, SourceHooks};
use blockferry::net::{Server, ServerConfig};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let kind = choose(None)?.kind;
    let folders = tempfile::tempdir()?;
    let on = |host: &str| -> Result<(Migrator, Server), Box<dyn std::error::Error>> {
        let run = folders.path().join(host);
        std::fs::create_dir(&run)?;
        let server = ServerConfig {
            state_dir: Some(folders.path().join("state")),
            ..ServerConfig::on("127.0.0.1:0".parse()?)
        };
        let migrator = Migrator::new(kind, DeviceOptions::new(host, run));
        Ok((migrator, Server::bind(server, Vec::new())?))
    };

    let (first, server) = on("first")?;
    let migrates = OpenOptions {
        migrates: true,
        ..OpenOptions::default()
    };
    let resource = backend::open("mem:64MiB", &migrates)?;
    let options = SeedOptions {
        hooks: SourceHooks {
            before_sync: Some(Arc::new(|| {
                eprintln!("about to move: have everything written");
                Ok(())
            })),
            ..SourceHooks::default()
        },
        ..SeedOptions::new("first".parse()?)
    };
    let (device, mut seeding) = first.seed(&resource, server, options)?;
    let device = device.ok_or("it has moved before")?;
    eprintln!("here: {}", device.path().display());
    let application = File::options().write(true).open(device.path())?;
    application.write_all_at(b"written at the first host", 4096)?;
    application.sync_all()?;
    drop(application);

    let (second, server) = on("second")?;
    let options = LeechOptions {
        can_seed: true,
        ..LeechOptions::new("the second host")?
    };
    let ticket = seeding.ticket().clone();
    let leeching = second.leech(ticket, &"mem:".parse()?, options).await?;
    let (moved, arrived) = leeching.finalize().await?;
    let mut found = [0; 25];
    File::open(moved.path())?.read_exact_at(&mut found, 4096)?;
    eprintln!(
        "there: {}, {:?} of downtime: {}",
        moved.path().display(),
        arrived.downtime().await.unwrap_or_default(),
        String::from_utf8_lossy(&found)
    );
    seeding.until_released().await;
    removed(device).await?;
    seeding.end().await;

    let seeding = arrived
        .seed(server, SeedOptions::new("second".parse()?))
        .await?;
    eprintln!("and on, by {}", seeding.ticket());
    removed(moved).await?;
    seeding.end().await;
    Ok(())
}

/// Takes a device away, which blocks.
async fn removed(mut device: Box<dyn device::Device>) -> blockferry::Result<()> {
    tokio::task::spawn_blocking(move || device.remove())
        .await
        .expect("it does not panic")
}
