//! From a connection to a session: nobody gets a byte of a volume before this has let it in.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use quinn::{Connection, RecvStream, SendStream};
use tracing::{debug, warn};

use super::close::Close;
use super::control_stream::{ControlError, read_message, read_preamble, write_message};
use super::state_dir::StateDir;
use super::volume::{Volume, refused};
use crate::wire::control::{
    ClientMessage, Hello, Preamble, Refusal, Refused, ServerMessage, VERSION_MAX, VERSION_MIN,
};
use crate::wire::limits::REFUSAL_BYTES_MAX;
use crate::wire::{Secret, VolumeName};

/// A client has to say who it is within this time.
pub(super) const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// A client that could not prove who it is waits for so long for the answer.
const FAILURE_DELAY: Duration = Duration::from_millis(250);

/// A refusal reaches the client within this time, or not at all.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(3);

/// Of failed hellos, one in this time is logged.
const FAILURE_LOG_INTERVAL: Duration = Duration::from_secs(1);

/// What it takes to know a client.
pub(super) struct Gatekeeper {
    pub(super) volumes: HashMap<VolumeName, Arc<Volume>>,
    pub(super) state: StateDir,
    /// Clients were known by their certificates before they could say a word.
    pub(super) certificates: bool,
    pub(super) failures: Mutex<Failures>,
}

/// Keeps failed hellos from flooding the log.
#[derive(Debug, Default)]
pub(super) struct Failures {
    logged_at: Option<Instant>,
    unlogged: u64,
}

/// A hello of a client that is known, and the control stream.
pub(super) struct Known {
    pub(super) volume: Arc<Volume>,
    pub(super) hello: Hello,
    pub(super) version: u16,
    pub(super) send: SendStream,
    pub(super) recv: RecvStream,
}

impl Gatekeeper {
    /// Hears the client out. `None` where it is not known; it was told why.
    pub(super) async fn hear(&self, connection: &Connection) -> Option<Known> {
        let heard = tokio::time::timeout(HELLO_TIMEOUT, self.hear_hello(connection)).await;
        let (send, recv, said) = match heard {
            Ok(Some(heard)) => heard,
            Ok(None) => return None,
            Err(_) => {
                self.note_failure(connection, "it did not say who it is in time");
                Close::Refused.close(connection);
                return None;
            }
        };
        let known = match said {
            Ok((version, hello)) => self
                .identify(&hello)
                .await
                .map(|volume| (version, hello, volume)),
            Err(refused) => Err(refused),
        };
        match known {
            Ok((version, hello, volume)) => Some(Known {
                volume,
                hello,
                version,
                send,
                recv,
            }),
            Err(refused) => {
                self.note_failure(connection, &refused.message);
                tokio::time::sleep(FAILURE_DELAY).await;
                refuse(connection, send, refused).await;
                None
            }
        }
    }

    async fn hear_hello(
        &self,
        connection: &Connection,
    ) -> Option<(SendStream, RecvStream, Result<(u16, Hello), Refused>)> {
        let (mut send, mut recv) = connection.accept_bi().await.ok()?;
        let said = async {
            let theirs = read_preamble(&mut recv).await?;
            let _ = send.write_all(&Preamble::OURS.encode()).await;
            let Some(version) = Preamble::OURS.common_version(&theirs) else {
                return Ok(Err(refused(
                    Refusal::Version,
                    format!("the server speaks versions {VERSION_MIN} to {VERSION_MAX}"),
                )));
            };
            match read_message(&mut recv).await? {
                ClientMessage::Hello(hello) => Ok(Ok((version, hello))),
                ClientMessage::Release => Ok(Err(refused(
                    Refusal::Malformed,
                    "a hello was expected".to_owned(),
                ))),
            }
        };
        let said: Result<_, ControlError> = said.await;
        match said {
            Ok(said) => Some((send, recv, said)),
            Err(ControlError::Ended) => {
                debug!(peer = %connection.remote_address(), "a client left before its hello");
                None
            }
            Err(ControlError::Wire(fault)) => {
                let refused = refused(Refusal::Malformed, fault.to_string());
                Some((send, recv, Err(refused)))
            }
        }
    }

    /// The volume that the client may use.
    async fn identify(&self, hello: &Hello) -> Result<Arc<Volume>, Refused> {
        let volume = hello
            .volume
            .parse()
            .ok()
            .and_then(|name: VolumeName| self.volumes.get(&name));
        if self.certificates {
            return volume.cloned().ok_or_else(|| no_volume(&hello.volume));
        }
        let Some(shown) = &hello.secret else {
            return Err(refused(
                Refusal::Secret,
                "this server wants a ticket with a secret".to_owned(),
            ));
        };
        match volume {
            Some(volume) if self.secret_of(volume).await == *shown => Ok(Arc::clone(volume)),
            Some(_) => Err(wrong_secret()),
            None if self.is_secret_of_any(shown, &hello.volume).await => {
                Err(no_volume(&hello.volume))
            }
            None => Err(wrong_secret()),
        }
    }

    /// The volume's secret as it is on disk now: it may have been rotated.
    pub(super) async fn secret_of(&self, volume: &Arc<Volume>) -> Secret {
        if let Some(fresh) = self.read_secret(volume.name.clone()).await {
            volume.take_secret(fresh);
        }
        let secret = volume.secret.lock().unwrap_or_else(PoisonError::into_inner);
        secret.clone()
    }

    async fn read_secret(&self, name: VolumeName) -> Option<Secret> {
        let state = self.state.clone();
        let read = tokio::task::spawn_blocking(move || state.known_secret(&name)).await;
        match read {
            Ok(Ok(secret)) => secret,
            Ok(Err(error)) => {
                warn!(%error, "cannot read a volume's secret; the one before stays");
                None
            }
            Err(_) => None,
        }
    }

    /// Whether the client holds a ticket of this server, though not for a volume that is served.
    /// Only then does it get to know that there is no such volume.
    async fn is_secret_of_any(&self, shown: &Secret, asked: &str) -> bool {
        let mut found = false;
        if let Ok(name) = asked.parse() {
            let kept = self.read_secret(name).await;
            found |= kept.is_some_and(|secret| secret == *shown);
        }
        for volume in self.volumes.values() {
            found |= self.secret_of(volume).await == *shown;
        }
        found
    }

    fn note_failure(&self, connection: &Connection, why: &str) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let recently = failures
            .logged_at
            .is_some_and(|at| at.elapsed() < FAILURE_LOG_INTERVAL);
        if recently {
            failures.unlogged += 1;
            return;
        }
        let peer = connection.remote_address();
        warn!(%peer, why, unlogged = failures.unlogged, "a client was refused");
        failures.logged_at = Some(Instant::now());
        failures.unlogged = 0;
    }
}

/// Tells the client why it is not let in, and closes the connection.
pub(super) async fn refuse(connection: &Connection, mut send: SendStream, mut refused: Refused) {
    while refused.message.len() > REFUSAL_BYTES_MAX {
        refused.message.pop();
    }
    let deliver = async {
        write_message(&mut send, &ServerMessage::Refused(refused)).await?;
        let _ = send.finish();
        let _ = send.stopped().await;
        Ok::<(), ControlError>(())
    };
    let _ = tokio::time::timeout(REFUSAL_TIMEOUT, deliver).await;
    Close::Refused.close(connection);
}

fn wrong_secret() -> Refused {
    refused(
        Refusal::Secret,
        "the ticket's secret is not the volume's: it was rotated, or it is for another volume; \
         `blockferry ticket NAME` on the server prints the current one"
            .to_owned(),
    )
}

fn no_volume(name: &str) -> Refused {
    refused(
        Refusal::NoVolume,
        format!("no volume named `{}` is served here", name.escape_debug()),
    )
}
