//! A volume with a device here that others can have move to them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::Migrator;
use crate::backend::{Kind, Resource};
use crate::device::{self, Device};
use crate::migrate::protocol::{SeederNotice, Standing};
use crate::migrate::records;
use crate::migrate::{
    HOLD_LIMIT_DEFAULT, RecordKeeper, Source, SourceHooks, SourceParts, SourceStatus,
};
use crate::mount::direct::{self, DirectMount};
use crate::net::{Content, ServedVolume, Server, arrivals};
use crate::volume::Volume;
use crate::wire::{Ticket, VolumeName};
use crate::{Error, ErrorKind, Result};

/// How long what is just being decided may take to be when somebody gives it up.
const DECISION_WAIT: Duration = Duration::from_secs(10);

/// How a volume is seeded.
pub struct SeedOptions {
    /// The name in its ticket.
    pub name: VolumeName,
    /// How long requests are held at most.
    pub hold_limit: Duration,
    /// What is called on the way.
    pub hooks: SourceHooks,
    /// Is told what a user may want to know. May not block.
    pub told: Box<dyn FnMut(SeederNotice) + Send>,
}

impl SeedOptions {
    /// The usual: no hooks, and the log is told.
    pub fn new(name: VolumeName) -> Self {
        Self {
            name,
            hold_limit: HOLD_LIMIT_DEFAULT,
            hooks: SourceHooks::default(),
            told: Box::new(|notice| tracing::info!(?notice, "seeding")),
        }
    }
}

/// The service for leechers. Dropping it ends it; it has to outlive the device that was made with it.
#[derive(Debug)]
pub struct Seeding {
    source: Source,
    ticket: Ticket,
    volume: Option<Arc<Volume>>,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<()>,
    /// Serves the device's requests where they are no I/O on its queues.
    _mount: Option<DirectMount>,
}

impl Migrator {
    /// Makes a device of a resource that was opened to be migrated, and serves whoever has the ticket on
    /// `server`, which has no volume yet. There is no device where the volume has moved away before: then
    /// this answers its new owner, until that has everything.
    ///
    /// Must be called in a tokio runtime.
    ///
    /// # Errors
    /// Where the resource is not, as a whole, a volume that is here, or was and may be asked for by its new
    /// owner; where it has no place for the
    /// record of a move, and what keeps the server and the device from being started.
    pub fn seed(
        &self,
        resource: &Resource,
        server: Server,
        options: SeedOptions,
    ) -> Result<(Option<Box<dyn Device>>, Seeding)> {
        let records = RecordKeeper::of(resource)?;
        let is_here = is_here(resource, &records)?;
        let requests_max = self.options.requests_max();
        let mount = is_here.then(|| direct::mount_seedable(resource, requests_max, None));
        let volume = mount.as_ref().map(|mount| Arc::clone(&mount.volume));
        let mut seeding = Seeding::start(resource.clone(), records, volume, server, options)?;
        seeding._mount = mount;
        let device = match &seeding.volume {
            Some(volume) => Some(device::start(
                self.device,
                Arc::clone(volume),
                &self.options,
            )?),
            None => None,
        };
        Ok((device, seeding))
    }
}

impl Seeding {
    /// Of a volume whose device there is already, or will be.
    pub(super) fn start(
        resource: Resource,
        mut records: RecordKeeper,
        volume: Option<Arc<Volume>>,
        mut server: Server,
        options: SeedOptions,
    ) -> Result<Self> {
        let (to_arrive, arrivals) = arrivals();
        let ticket = server.add(ServedVolume {
            name: options.name,
            backend: resource.as_async(),
            block_bytes: Some(resource.geometry.logical_block_bytes()),
            // Only the device here writes it.
            read_only: true,
            // A leecher that goes on knows by it that this is the volume that it began with.
            content: Content::Known(records.volume()?.0),
            instance: resource.instance,
            leechers: Some(to_arrive),
        })?;
        let source = Source::start(SourceParts {
            resource,
            volume: volume.clone(),
            records,
            arrivals,
            hold_limit: options.hold_limit,
            hooks: options.hooks,
            told: options.told,
        })?;
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        Ok(Self {
            source,
            ticket,
            volume,
            stop: Some(stop),
            serving,
            _mount: None,
        })
    }

    /// What a leecher needs. Whoever has it can have the volume move.
    pub fn ticket(&self) -> &Ticket {
        &self.ticket
    }

    /// The volume behind the device; none where it has moved away before.
    pub fn volume(&self) -> Option<&Arc<Volume>> {
        self.volume.as_ref()
    }

    /// What it is doing.
    pub fn status(&self) -> SourceStatus {
        self.source.status()
    }

    /// Follows what it is doing.
    pub fn watch(&self) -> watch::Receiver<SourceStatus> {
        self.source.watch()
    }

    /// Gives up what is being done, and returns when that is decided.
    ///
    /// # Errors
    /// `Busy` where the volume has moved already, and as [`decided`](Self::decided).
    pub async fn abort(&self) -> Result<()> {
        self.source.abort().await;
        match self.decided().await? {
            Some(to) => Err(Error::new(
                ErrorKind::Busy,
                format!("it is too late: the volume has moved to {to}"),
            )),
            None => Ok(()),
        }
    }

    /// Waits until nobody finalizes, for a while. Gives the new owner, if there is one.
    ///
    /// # Errors
    /// `TimedOut` where somebody still does: the volume may move yet.
    pub fn decided(&self) -> impl Future<Output = Result<Option<String>>> + Send + use<> {
        let status = self.source.watch();
        decided_within(DECISION_WAIT, status)
    }

    /// The device is going: requests that are held fail, instead of waiting for an end that may not come.
    pub fn end_waiting(&self) {
        if let Some(volume) = &self.volume {
            volume.watch().end_waiting();
        }
    }

    /// Waits until the volume has moved and its new owner has everything. The device is to be removed then.
    pub async fn until_released(&mut self) {
        let mut status = self.source.watch();
        let _ = status
            .wait_for(|status| status.remove_device && status.released)
            .await;
    }

    /// Ends the service; who asks is told that it ends.
    pub async fn end(self) {
        let Self {
            source,
            stop,
            serving,
            ..
        } = self;
        drop(stop);
        let _ = serving.await;
        drop(source);
    }
}

async fn decided_within(
    time: Duration,
    mut status: watch::Receiver<SourceStatus>,
) -> Result<Option<String>> {
    let is_decided =
        |status: &SourceStatus| status.finalizing.is_none() || status.moved_to.is_some();
    let _ = tokio::time::timeout(time, status.wait_for(is_decided)).await;
    let status = status.borrow();
    match (&status.moved_to, &status.finalizing) {
        (Some((to, _)), _) => Ok(Some(to.clone())),
        (None, None) => Ok(None),
        (None, Some(by)) => Err(Error::new(
            ErrorKind::TimedOut,
            format!(
                "it is not decided yet whether the volume moves to {by}: a hook, or the store with the record, \
                 takes its time. `blockferry migrate status` shows when it is"
            ),
        )),
    }
}

/// Whether the volume is here; if not, it has moved away.
fn is_here(resource: &Resource, records: &RecordKeeper) -> Result<bool> {
    let standing = records.records().standing();
    if let Standing::Owner(epoch) = &standing {
        let url = &resource.url;
        tracing::info!(
            epoch = epoch.0,
            "{url} is the volume: it has not moved away"
        );
    }
    match (standing, &resource.kind) {
        (Standing::Owner(_), _) => Ok(true),
        // Its new owner has nothing to ask any more.
        (Standing::Moved(record), Kind::File(file)) if record.released => {
            records::refuse_elsewhere(file.path()).map(|()| false)
        }
        (Standing::Moved(_), _) => Ok(false),
        (_, Kind::File(file)) => records::refuse_elsewhere(file.path()).map(|()| true),
        _ => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_may_still_move_is_not_taken_for_what_stays() {
        let finalizing = SourceStatus {
            finalizing: Some("storage-b".to_owned()),
            ..SourceStatus::default()
        };
        let (told, status) = watch::channel(finalizing.clone());
        let decided = || decided_within(Duration::from_millis(1), status.clone());
        let error = decided().await.expect_err("nobody knows");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        told.send_replace(SourceStatus {
            moved_to: Some(("storage-b".to_owned(), 1)),
            ..finalizing
        });
        assert_eq!(
            decided().await.expect("known"),
            Some("storage-b".to_owned())
        );
        told.send_replace(SourceStatus::default());
        assert_eq!(decided().await.expect("known"), None);
    }
}
