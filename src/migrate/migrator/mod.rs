//! Migrations for programs: both ends, each with its device.
//!
//! What is seeded here is a device at once, and can be leeched by whoever has its ticket; what is leeched
//! is one when it has moved here, and can be seeded on. The command line is made of this.
//!
//! ```no_run
//! use blockferry::backend::{self, OpenOptions};
//! use blockferry::device::{self, DeviceOptions};
//! use blockferry::migrate::{LeechOptions, Migrator, SeedOptions};
//! use blockferry::net::{Server, ServerConfig};
//! use blockferry::ops::Claim;
//!
//! # async fn example() -> blockferry::Result<()> {
//! let kind = device::choose(None)?.kind;
//! let listen = ServerConfig::on("10.0.0.1:4480".parse().expect("an address"));
//!
//! // On the host that has the volume:
//! let claim = Claim::take(None, "disk")?;
//! let migrator = Migrator::new(kind, DeviceOptions::new("disk", claim.directory()));
//! let options = OpenOptions { migrates: true, ..OpenOptions::default() };
//! let resource = backend::open("file:/srv/disk.img", &options)?;
//! let server = Server::bind(listen.clone(), Vec::new())?;
//! let (device, mut service) = migrator.seed(&resource, server, SeedOptions::new("disk".parse()?))?;
//! let ticket = service.ticket().clone();
//! // … the application uses the device, until the volume has moved:
//! service.until_released().await;
//! drop(device);
//! service.end().await;
//!
//! // On the host that is to have it:
//! let store = "file:/srv/disk.img".parse()?;
//! let options = LeechOptions { can_seed: true, ..LeechOptions::new("storage-b")? };
//! let leeching = migrator.leech(ticket, &store, options).await?;
//! let (device, arrived) = leeching.finalize().await?;
//! println!("{} for {:?}", device.path().display(), arrived.downtime().await);
//! // And on:
//! let server = Server::bind(listen, Vec::new())?;
//! let service = arrived.seed(server, SeedOptions::new("disk".parse()?)).await?;
//! println!("{}", service.ticket().reveal());
//! # Ok(())
//! # }
//! ```

mod arrived;
mod assumed;
mod leeching;
mod seeding;
mod store;

pub use arrived::Arrived;
pub use leeching::{LeechOptions, Leeching};
pub use seeding::{SeedOptions, Seeding};
pub use store::LeechStore;

use crate::device::{DeviceKind, DeviceOptions};

/// Makes the devices of both ends.
#[derive(Debug, Clone)]
pub struct Migrator {
    device: DeviceKind,
    options: DeviceOptions,
}

impl Migrator {
    /// With devices of this kind, set up like this. [`choose`](crate::device::choose) tells which kind suits
    /// the machine.
    pub fn new(device: DeviceKind, options: DeviceOptions) -> Self {
        Self { device, options }
    }
}
