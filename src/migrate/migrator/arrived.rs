//! A volume that has moved here, with what serves its device.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::{SeedOptions, Seeding};
use crate::backend::Resource;
use crate::migrate::{DestinationStatus, RecordKeeper, forget_map};
use crate::mount::direct::DirectMount;
use crate::mount::managed::ManagedMount;
use crate::net::Server;
use crate::volume::Volume;
use crate::{Error, ErrorKind, Result};

/// How long it may take until the downtime is known when the device is there.
const DOWNTIME_WAIT: Duration = Duration::from_secs(1);

/// What is here of it.
pub(super) struct Here {
    pub(super) store: Resource,
    pub(super) records: RecordKeeper,
    pub(super) mount: DirectMount,
    /// What serves the device instead where bytes were left at the seeder.
    pub(super) part: Arc<OnceLock<Arc<ManagedMount>>>,
    pub(super) live_maps: Option<PathBuf>,
}

impl Here {
    pub(super) fn volume(&self) -> &Arc<Volume> {
        match self.part.get() {
            Some(mount) => mount.volume(),
            None => &self.mount.volume,
        }
    }
}

/// A volume that has moved here. It has to outlive the device.
pub struct Arrived {
    pub(super) status: watch::Receiver<DestinationStatus>,
    pub(super) here: Here,
}

impl fmt::Debug for Arrived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arrived")
            .field("store", &self.here.store.url)
            .finish_non_exhaustive()
    }
}

impl Arrived {
    /// For how long neither end took requests; none where that was not seen.
    pub async fn downtime(&self) -> Option<Duration> {
        let mut status = self.status.clone();
        let known = status.wait_for(|status| status.downtime.is_some());
        let _ = tokio::time::timeout(DOWNTIME_WAIT, known).await;
        self.status.borrow().downtime
    }

    /// Waits until the seeder is released, or is known to be gone.
    pub async fn released(&self) {
        let is_over = |status: &DestinationStatus| status.is_done || status.lost.is_some();
        let _ = self.status.clone().wait_for(is_over).await;
    }

    /// Lets others have the volume move on, while the device is in use: waits until all of it is here,
    /// durably, and then serves whoever has the ticket on `server`, which has no volume yet.
    ///
    /// # Errors
    /// `Unsupported` unless [`LeechOptions::can_seed`](super::LeechOptions::can_seed) was said, and what keeps the server from being
    /// started. The device is not touched then.
    pub async fn seed(&self, server: Server, options: SeedOptions) -> Result<Seeding> {
        if !self.here.volume().is_seedable() {
            let what = "this volume was not leeched to be seeded on";
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        let mut status = self.status.clone();
        let whole = status.wait_for(|status| status.can_seed).await.is_ok();
        if !whole {
            let what = "the volume cannot be seeded on: not all of it is here";
            return Err(Error::new(ErrorKind::Dirty, what));
        }
        let Here { store, records, .. } = &self.here;
        let volume = Some(Arc::clone(self.here.volume()));
        Seeding::start(store.clone(), records.clone(), volume, server, options)
    }

    /// Follows how far it is.
    pub fn watch(&self) -> watch::Receiver<DestinationStatus> {
        self.status.clone()
    }

    /// The volume behind the device.
    pub fn volume(&self) -> &Arc<Volume> {
        self.here.volume()
    }

    /// What serves the device where bytes were left at the seeder, and may be there still.
    pub fn part(&self) -> Option<&Arc<ManagedMount>> {
        self.here.part.get()
    }

    /// Ends what serves the device, when that is gone. Gives how many bytes are still at the seeder alone:
    /// the same leecher goes on with these.
    ///
    /// # Errors
    /// Where the store cannot be made durable.
    pub async fn end(&self) -> Result<Option<u64>> {
        let (Some(mount), Some(live_maps)) = (self.part(), self.here.live_maps.clone()) else {
            return Ok(None);
        };
        let finished = mount.finish().await;
        let rest = self.status.borrow().rest.clone();
        let store = self.here.store.clone();
        let forgotten = spawn_blocking(move || forget_map(&store, &live_maps)).await;
        let forgotten = forgotten.map_err(|panic| Error::new(ErrorKind::Io, panic.to_string()));
        finished.and(forgotten.and_then(|done| done))?;
        Ok(rest.map(|rest| rest.left_bytes))
    }

    /// What serves the device's requests where all of it is here, to be kept as long as that is there.
    pub fn into_mount(self) -> DirectMount {
        self.here.mount
    }
}
