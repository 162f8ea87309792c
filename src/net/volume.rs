//! A volume as the server knows it: its backend, its clients, its lease.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use quinn::Connection;
use tokio::sync::Mutex as AsyncMutex;
use tracing::{info, warn};

use super::close::Close;
use super::content::{ServedContent, Writer};
use super::lease::{Asking, Record, Verdict, decide};
use super::message_stream::Arrivals;
use super::session::DRAIN_TIMEOUT;
use super::slot::Slot;
use super::state_dir::{StateDir, VolumeLock};
use crate::wire::control::{Hello, Offers, Refusal, Refused, Welcome};
use crate::wire::{Secret, VolumeName};
use crate::{AsyncBackend, Geometry, Result};

/// How many clients of one volume are remembered.
const CLIENTS_MAX: usize = 4096;

/// See the module.
pub(super) struct Volume {
    pub(super) name: VolumeName,
    pub(super) geometry: Geometry,
    pub(super) backend: Arc<dyn AsyncBackend>,
    pub(super) read_only: bool,
    pub(super) instance: [u8; 16],
    pub(super) content: ServedContent,
    pub(super) state: StateDir,
    pub(super) lease_time: Duration,
    pub(super) lease: AsyncMutex<Lease>,
    pub(super) secret: Mutex<Secret>,
    pub(super) clients: Mutex<HashMap<[u8; 16], Arc<Slot>>>,
    pub(super) leechers: Option<Arrivals>,
    pub(super) _lock: VolumeLock,
}

/// The lease as it is kept, and whether its holder is there.
pub(super) struct Lease {
    pub(super) record: Record,
    pub(super) presence: Presence,
}

/// Whether the holder of the lease is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    /// By this session of the client.
    Here { client_id: [u8; 16], session: u64 },
    /// Not since then.
    Away(Instant),
}

/// A client's session on a volume that was let in.
pub(super) struct Admitted {
    pub(super) slot: Arc<Slot>,
    pub(super) client_id: [u8; 16],
    pub(super) session: u64,
    pub(super) writable: bool,
    pub(super) epoch: u64,
}

impl Volume {
    /// Lets a client in that has authenticated: ends its earlier session, waits for that one's
    /// writes, and gets it the lease if it wants to write. Must not be cancelled half-way.
    pub(super) async fn admit(
        &self,
        hello: &Hello,
        connection: &Connection,
    ) -> Result<Admitted, Refused> {
        if hello.writable && self.read_only {
            let message = match self.leechers {
                Some(_) => format!(
                    "`{}` is seeded, and used there: `blockferry leech` has it move here",
                    self.name
                ),
                None => format!(
                    "`{}` is served read-only; mount it with --read-only",
                    self.name
                ),
            };
            return Err(refused(Refusal::ReadOnly, message));
        }
        self.check_content(hello)?;
        let slot = self.slot_of(hello.client_id)?;
        if !slot.begin(hello.session, connection) {
            return Err(stale());
        }
        slot.drained().await;
        let epoch = if hello.writable {
            let granted = self.grant(hello, &slot).await;
            granted.inspect_err(|_| slot.end(hello.session))?
        } else {
            0
        };
        Ok(Admitted {
            slot,
            client_id: hello.client_id,
            session: hello.session,
            writable: hello.writable,
            epoch,
        })
    }

    /// A client that knows another content gets no lease on this one.
    fn check_content(&self, hello: &Hello) -> Result<(), Refused> {
        match hello.known_identity {
            Some(known) if known != self.content.identity() => {}
            _ => return Ok(()),
        }
        let message = if self.content.is_memory() {
            "the volume was in the server's memory, and that is gone".to_owned()
        } else {
            format!(
                "under the name `{}` there is another file than before, or one that was changed \
                 while the server was down",
                self.name
            )
        };
        Err(refused(Refusal::Replaced, message))
    }

    fn slot_of(&self, client_id: [u8; 16]) -> Result<Arc<Slot>, Refused> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|id, slot| *id == client_id || !slot.is_forgettable());
        if clients.len() >= CLIENTS_MAX && !clients.contains_key(&client_id) {
            let message = format!("`{}` has {CLIENTS_MAX} clients already", self.name);
            return Err(refused(Refusal::NotNow, message));
        }
        Ok(Arc::clone(clients.entry(client_id).or_default()))
    }

    async fn grant(&self, hello: &Hello, slot: &Slot) -> Result<u64, Refused> {
        let mut lease = self.lease.lock().await;
        // A later session of the same client may have come while this one waited.
        if !slot.is_open(hello.session) {
            return Err(stale());
        }
        let asking = Asking {
            client_id: hello.client_id,
            name: &hello.client_name,
            takeover: hello.takeover,
            known_epoch: hello.known_epoch,
            managed: hello.managed,
            now_unix_s: unix_now_s(),
        };
        match decide(&lease.record, lease.away_for(), self.lease_time, asking) {
            Verdict::GoesOn => {}
            Verdict::Refused(refused) => return Err(refused),
            Verdict::Granted { record, fenced } => {
                self.keep(&record).await?;
                if let Some(fenced) = fenced {
                    // A process of the same store is gone; nobody was shut out.
                    let store = hello.managed.map(|managed| managed.store);
                    let before = lease.record.managed.map(|last| last.store);
                    let is_other = store.is_none() || store != before;
                    self.fence(fenced, is_other.then_some(&hello.client_name))
                        .await;
                }
                info!(volume = %self.name, holder = hello.client_name, epoch = record.epoch,
                      "lease granted");
                lease.record = record;
            }
        }
        lease.presence = Presence::Here {
            client_id: hello.client_id,
            session: hello.session,
        };
        Ok(lease.record.epoch)
    }

    /// Makes sure that the client writes no more; `by` is another one who has taken its place.
    async fn fence(&self, client_id: [u8; 16], by: Option<&String>) {
        let slot = {
            let clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
            clients.get(&client_id).cloned()
        };
        if let Some(slot) = slot {
            if let Some(by) = by {
                warn!(volume = %self.name, by, "the writer before is fenced");
            }
            slot.evict(Close::Fenced);
            slot.drained().await;
        }
    }

    async fn keep(&self, record: &Record) -> Result<(), Refused> {
        let (state, name, record) = (self.state.clone(), self.name.clone(), record.clone());
        let kept = tokio::task::spawn_blocking(move || state.keep_lease(&name, &record)).await;
        match kept {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                warn!(volume = %self.name, %error, "cannot keep the lease");
                Err(refused(
                    Refusal::NotNow,
                    "the server cannot write its state directory; see its log".to_owned(),
                ))
            }
            Err(_) => Err(refused(
                Refusal::NotNow,
                "the server is on its way out".to_owned(),
            )),
        }
    }

    /// The client gives its lease back; nothing of it is under way when this returns.
    pub(super) async fn release(&self, admitted: &Admitted) -> Result<(), Refused> {
        admitted.slot.end(admitted.session);
        admitted.slot.drained().await;
        if !admitted.writable {
            return Ok(());
        }
        self.content.end_writing(admitted.writer()).await;
        let mut lease = self.lease.lock().await;
        if lease.presence != admitted.presence() {
            return Ok(());
        }
        let record = Record {
            holder: None,
            ..lease.record.clone()
        };
        self.keep(&record).await?;
        info!(volume = %self.name, epoch = record.epoch, "lease given back");
        lease.record = record;
        lease.presence = Presence::Away(Instant::now());
        Ok(())
    }

    /// The session's connection is gone, and was for `silent_for` when that was noticed.
    pub(super) async fn lost(&self, admitted: &Admitted, silent_for: Duration) {
        admitted.slot.end(admitted.session);
        if !admitted.writable {
            return;
        }
        {
            let mut lease = self.lease.lock().await;
            if lease.presence == admitted.presence() {
                let now = Instant::now();
                lease.presence = Presence::Away(now.checked_sub(silent_for).unwrap_or(now));
            }
        }
        // Otherwise the generation stays odd, until the next writer ends.
        let drained = tokio::time::timeout(DRAIN_TIMEOUT, admitted.slot.drained());
        if drained.await.is_ok() {
            self.content.end_writing(admitted.writer()).await;
        }
    }

    /// Nobody uses it any more: makes it durable, and notes how it is then.
    pub(super) async fn rest(&self) {
        match self.backend.flush().await {
            Ok(()) => self.content.settle().await,
            Err(error) => warn!(volume = %self.name, %error, "cannot make the volume durable"),
        }
    }

    /// Takes a rotated secret over and ends the sessions that came with the old one.
    pub(super) fn take_secret(&self, fresh: Secret) {
        let mut secret = self.secret.lock().unwrap_or_else(PoisonError::into_inner);
        if *secret == fresh {
            return;
        }
        *secret = fresh;
        info!(volume = %self.name, "the ticket was rotated; sessions of the old one end");
        let clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        for slot in clients.values() {
            slot.evict(Close::Revoked);
        }
    }

    /// What a client that is in gets to know.
    pub(super) async fn welcome(
        &self,
        version: u16,
        features: u64,
        admitted: &Admitted,
    ) -> Welcome {
        let capabilities = self.backend.capabilities();
        let has_writer =
            !admitted.writable && matches!(self.lease.lock().await.presence, Presence::Here { .. });
        Welcome {
            version,
            features,
            resource_bytes: self.geometry.resource_bytes(),
            logical_block_bytes: self.geometry.logical_block_bytes(),
            physical_block_bytes: self.geometry.physical_block_bytes(),
            read_only: self.read_only,
            offers: Offers {
                preferred_bytes: capabilities.preferred_bytes,
                max_concurrency: capabilities.max_concurrency,
                flush_is_durable: capabilities.flush_is_durable,
                sparse_map: capabilities.sparse_map,
                discard: capabilities.discard,
            },
            has_writer,
            instance: self.instance,
            identity: self.content.identity(),
            generation: self.content.generation().await,
            epoch: admitted.epoch,
            lease_ms: self.lease_time.as_millis() as u64,
        }
    }
}

impl Lease {
    fn away_for(&self) -> Option<Duration> {
        match self.presence {
            Presence::Here { .. } => None,
            Presence::Away(since) => Some(since.elapsed()),
        }
    }
}

impl Admitted {
    pub(super) fn writer(&self) -> Writer {
        Writer {
            client_id: self.client_id,
            session: self.session,
        }
    }

    fn presence(&self) -> Presence {
        Presence::Here {
            client_id: self.client_id,
            session: self.session,
        }
    }
}

pub(super) fn refused(reason: Refusal, message: String) -> Refused {
    Refused { reason, message }
}

fn stale() -> Refused {
    refused(
        Refusal::Stale,
        "a later session of this client was seen".to_owned(),
    )
}

fn unix_now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
