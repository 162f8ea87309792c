//! From an open resource to a device that serves it; or back, if that fails.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use blockferry::backend::Resource;
use blockferry::device::{self, Device, DeviceKind, DeviceOptions, DeviceRecord};
use blockferry::mount::direct;
use blockferry::mount::managed::ManagedMount;
use blockferry::net::Remote;
use blockferry::ops::{Claim, Command, Control, MountRecord, Place, Running, StoreRecord, control};
use blockferry::volume::cache::Discard;
use blockferry::{AsyncBackend, Context, Error, ErrorKind, Result};
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

use super::super::detach;
use super::super::heap;
use super::super::mounted::{self, Managed, Mounted};
use super::super::output;
use super::super::progress::{self, Progress};
use super::super::repeat;
use super::super::serving::Serving;
use super::super::signals::Signals;
use super::super::store_place::{self, StorePlace};
use super::{Args, Opened, told_to_end};

/// What there is besides the resource before anything is made of it.
struct Begun {
    remote: Option<Arc<Remote>>,
    /// With how many bytes of local writes were found in it.
    store: Option<(StorePlace, u64)>,
}

impl Begun {
    fn of(opened: &Opened) -> Self {
        let store = opened.store.as_ref();
        Self {
            remote: opened.remote.clone(),
            store: store.map(|(cache, place)| (place.clone(), cache.found.held.dirty_bytes)),
        }
    }

    /// As if it had never been begun. What it was that failed matters more than this.
    async fn undo(self) {
        let is_dirty = matches!(self.store, Some((_, 1..)));
        if let Some(remote) = self.remote {
            let _ = match is_dirty {
                true => remote.close_keeping_lease().await,
                false => remote.close().await,
            };
        }
        if let Some((place, _)) = self.store
            && !place.keep
        {
            let _ = mounted::remove(&place, Discard::Clean).await;
        }
    }
}

/// What a device is made with.
struct Making<'a> {
    runtime: &'a Runtime,
    kind: DeviceKind,
    options: &'a DeviceOptions,
    resource: &'a Resource,
    record: &'a MountRecord,
    claim: &'a Claim,
}

impl Args {
    /// Makes the device, or takes it over, and says where it is.
    pub(super) fn attach(
        &self,
        runtime: &Runtime,
        kind: DeviceKind,
        opened: Opened,
        place: Place,
        record: MountRecord,
        mut signals: Signals,
    ) -> Result<Serving> {
        let _guard = runtime.enter();
        let resource = opened.resource.clone();
        let options = self.device_options(kind, &resource, &place);
        let Place { claim, left_over } = place;
        let takes_over = left_over.is_some();
        let begun = Begun::of(&opened);
        let mount = repeat::of_resource(record, &resource, claim.directory()).and_then(|record| {
            self.keep_store(&opened, &claim)?;
            let mount = self.make_mount(opened, options.requests_max())?;
            Ok((record, mount))
        });
        let (record, mount) = match mount {
            Ok(made) => made,
            Err(error) => {
                if !takes_over {
                    runtime.block_on(begun.undo());
                }
                return Err(error);
            }
        };
        runtime.spawn(heap::give_back(mount.moved()));
        let making = Making {
            runtime,
            kind,
            options: &options,
            resource: &resource,
            record: &record,
            claim: &claim,
        };
        let made =
            control::serve(claim.directory(), mount.answers(&options)).and_then(|mut orders| {
                let (device, progress) = match &left_over {
                    Some(left_over) => self.take_over(&making, left_over, &mount)?,
                    None => self.make(&making, &mount, &mut signals, &mut orders)?,
                };
                Ok((device, progress, orders))
            });
        match made {
            Ok((device, progress, orders)) => Ok(Serving {
                claim,
                mount,
                path: device.path().to_owned(),
                device: Arc::new(Mutex::new(device)),
                orders,
                signals,
                progress,
            }),
            Err(error) => {
                match takes_over {
                    // As with the runtime: what it may have been asked by now waits, and does not
                    // fail.
                    true => std::mem::forget(mount),
                    false => drop(runtime.block_on(mount.end())),
                }
                Err(error)
            }
        }
    }

    /// Keeps where the local store is, for whoever cleans up should this process die.
    fn keep_store(&self, opened: &Opened, claim: &Claim) -> Result<()> {
        let directory = claim.directory();
        let Some((_, place)) = &opened.store else {
            return StoreRecord::forget(directory);
        };
        let path = place.path.canonicalize();
        let record = StoreRecord {
            path: path.context_io(|| format!("cannot find {}", place.path.display()))?,
            live_maps: store_place::live_maps(),
            pushes: self.managed.pushes(),
        };
        record.save(directory)
    }

    /// What is put behind the device.
    fn make_mount(&self, opened: Opened, requests_max: usize) -> Result<Mounted> {
        let Opened {
            resource,
            remote,
            store,
        } = opened;
        let (Some((cache, place)), Some(remote)) = (store, remote.clone()) else {
            return Ok(Mounted::Direct {
                mount: direct::mount(&resource, requests_max, self.io_timeout()),
                remote,
            });
        };
        let hooks = Arc::default();
        let options = self.managed.options(self.io_timeout(), &hooks)?;
        self.managed
            .warn_of_order_beyond(resource.geometry.resource_bytes());
        let pushes = options.push;
        let mount = ManagedMount::start(&resource, cache, options, requests_max)?;
        Ok(Mounted::Managed(Managed {
            mount: Arc::new(mount),
            remote,
            place,
            pushes,
            discard_dirty: AtomicBool::new(false),
            hooks,
        }))
    }

    fn make(
        &self,
        making: &Making<'_>,
        mount: &Mounted,
        signals: &mut Signals,
        orders: &mut Control,
    ) -> Result<(Box<dyn Device>, Option<Progress>)> {
        let mut progress = progress_of(mount);
        if let (Mounted::Managed(managed), true) = (mount, self.managed.pull_first) {
            let pulled = pulled(managed, signals, orders);
            making.runtime.block_on(pulled)?;
        }
        repeat::keep(making.record, making.options, making.claim)?;
        let volume = mount.volume().clone();
        let device = device::start(making.kind, volume, making.options)?;
        if self.detached {
            // It leaves the terminal.
            progress = None;
        }
        self.announce(making, device.as_ref(), mount.mode())?;
        Ok((device, progress))
    }

    /// Whoever uses the device waits for it already.
    fn take_over(
        &self,
        making: &Making<'_>,
        left_over: &DeviceRecord,
        mount: &Mounted,
    ) -> Result<(Box<dyn Device>, Option<Progress>)> {
        let device = device::adopt(left_over, mount.volume().clone(), making.options)?;
        for done in [
            self.announce(making, device.as_ref(), mount.mode()),
            repeat::keep(making.record, making.options, making.claim),
        ] {
            if let Err(error) = done {
                tracing::error!("{}", error.chain());
            }
        }
        let progress = (!self.detached).then(|| progress_of(mount));
        Ok((device, progress.flatten()))
    }

    /// Says where the device is.
    fn announce(&self, making: &Making<'_>, device: &dyn Device, mode: &str) -> Result<()> {
        let resource = making.resource;
        let size_bytes = resource.geometry.device_bytes();
        making.claim.publish(&Running {
            read_only: resource.read_only,
            mode: mode.to_owned(),
            ..Running::new(device.path(), device.record(), &resource.url, size_bytes)
        })?;
        progress::aside(|| match self.detached {
            true => detach::settle(making.claim.directory(), device.path()),
            false => output::line(device.path().display()),
        })
    }
}

fn progress_of(mount: &Mounted) -> Option<Progress> {
    Progress::of(&mount.managed()?)
}

/// Waits until everything is local, or until it is told to end.
async fn pulled(managed: &Managed, signals: &mut Signals, orders: &mut Control) -> Result<()> {
    loop {
        let order = tokio::select! {
            () = managed.mount.pulled() => return Ok(()),
            () = signals.next() => return Err(told_to_end("everything was local")),
            order = orders.order() => order,
        };
        if let Command::Stop { .. } = order.command() {
            order.answer(Ok(())).await;
            return Err(told_to_end("everything was local"));
        }
        let early = "everything is being pulled first; there is no device yet";
        order.answer(Err(Error::new(ErrorKind::Busy, early))).await;
    }
}
