//! Keeps a remote volume's session up: the first connection, and all after it.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex as AsyncMutex, watch};
use tracing::{error, info, warn};

use super::client_record::ClientRecord;
use super::close::Close;
use super::dial::{Dialer, Greeted, Next, NoSession};
use super::exchange::Room;
use super::ledger::Lost;
use super::remote::{Link, RemoteOptions, Session, Shared};
use super::state_dir::random;
use crate::wire::Ticket;
use crate::wire::codec::Codecs;
use crate::wire::control::{FEATURES, Hello, Welcome};
use crate::wire::limits::CLIENT_NAME_BYTES_MAX;
use crate::{Error, ErrorKind, Geometry, Result};

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// A session that lived shorter than this is followed by the next one only after a pause.
const LIVED_WELL: Duration = Duration::from_secs(1);

/// Makes the first connection of this process. Unlike later ones it has a deadline, and tells what is
/// wrong.
pub(super) async fn first(target: Ticket, options: RemoteOptions) -> Result<Shared> {
    let dialer = Dialer::new(target, options.tls.as_ref(), options.leeches)?;
    let mut client = ClientRecord::open(options.client_file.as_deref())?;
    let client_id = client.client_id();
    let client_name = options.client_name.clone().unwrap_or_else(host_name);
    if client_name.len() > CLIENT_NAME_BYTES_MAX {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("the client's name is longer than {CLIENT_NAME_BYTES_MAX} bytes"),
        ));
    }
    let mut number = client.sessions_before();
    let deadline = tokio::time::Instant::now() + options.connect_timeout;
    let mut backoff = BACKOFF_MIN;
    let mut last = None;
    let greeted = loop {
        number += 1;
        let hello = Hello {
            takeover: options.takeover,
            known_epoch: options.known_epoch.unwrap_or(client.epoch()),
            known_identity: options.known_identity,
            ..hello_of(&dialer, &options, client_id, &client_name, number)
        };
        match tokio::time::timeout_at(deadline, dialer.greet(hello)).await {
            Ok(Ok(greeted)) => break greeted,
            Ok(Err(NoSession {
                error,
                next: Next::TryAgain,
            })) => last = Some(error),
            Ok(Err(NoSession { error, .. })) => return Err(error),
            Err(_) => return Err(out_of_time(&dialer, &options, last)),
        }
        if tokio::time::timeout_at(deadline, pause(&mut backoff))
            .await
            .is_err()
        {
            return Err(out_of_time(&dialer, &options, last));
        }
    };
    let first = greeted.welcome.clone();
    let geometry = Geometry::new(first.resource_bytes, first.logical_block_bytes)?;
    let ledger = client.welcomed(&first)?;
    if first.has_writer {
        warn!(volume = %dialer.target(),
              "another host is writing this volume: reads may see a mix of old and new");
    }
    let session = Arc::new(session_of(greeted, number, &options));
    Ok(Shared {
        dialer,
        options,
        client: Mutex::new(client),
        client_name,
        next_session: AtomicU64::new(number),
        link: watch::Sender::new(Link::Up(session)),
        ledger: Mutex::new(ledger),
        first,
        geometry,
    })
}

fn out_of_time(dialer: &Dialer, options: &RemoteOptions, last: Option<Error>) -> Error {
    let seconds = options.connect_timeout.as_secs_f32();
    // Whoever may have heard of us may have granted something.
    let kind = match dialer.has_said_hello() {
        true => ErrorKind::TimedOut,
        false => ErrorKind::Unreachable,
    };
    match last {
        Some(error) if error.kind() != ErrorKind::Unreachable => Error::new(
            error.kind(),
            format!("{} (tried for {seconds} s)", error.chain()),
        ),
        Some(error) => Error::new(kind, format!("{} (tried for {seconds} s)", error.chain())),
        None => Error::new(
            kind,
            format!(
                "no answer from {} in {seconds} s; {}",
                dialer.target().address,
                dialer.what_to_look_at()
            ),
        ),
    }
}

/// Waits for the session to end and makes the next one, until there can be none any more.
pub(super) async fn keep_up(shared: Arc<Shared>) {
    loop {
        let current = match &*shared.link.borrow() {
            Link::Up(session) => Some(Arc::clone(session)),
            Link::Away(_) => None,
            Link::Dead(_) | Link::Closed => return,
        };
        let mut backoff = Duration::ZERO;
        if let Some(session) = current {
            let begun = Instant::now();
            let reason = session.connection.closed().await;
            if Close::Fenced.is_reason_of(&reason) {
                return give_up(&shared, "another writer has taken the volume over");
            }
            shared.retire(&session);
            warn!(volume = %shared.dialer.target(), %reason,
                  "the connection is gone; requests wait for the next one");
            if begun.elapsed() < LIVED_WELL {
                backoff = BACKOFF_MIN;
            }
        }
        if let Err(why) = reconnect(&shared, backoff).await {
            return give_up(&shared, &why);
        }
    }
}

fn give_up(shared: &Shared, why: &str) {
    error!(volume = %shared.dialer.target(), why, "the volume is lost: all its I/O fails from now on. Stop it, and mount the volume anew");
    shared.die(why);
}

/// Tries for ever. An error is final.
async fn reconnect(shared: &Arc<Shared>, mut backoff: Duration) -> Result<(), String> {
    let since = Instant::now();
    let mut told = None;
    loop {
        if backoff.is_zero() {
            backoff = BACKOFF_MIN;
        } else {
            pause(&mut backoff).await;
        }
        let number = shared.next_session();
        let hello = Hello {
            known_epoch: shared.first.epoch,
            known_identity: Some(shared.first.identity),
            ..hello_of(
                &shared.dialer,
                &shared.options,
                shared.client().client_id(),
                &shared.client_name,
                number,
            )
        };
        match shared.dialer.greet(hello).await {
            Ok(greeted) => {
                check_same_volume(&shared.first, &greeted.welcome)?;
                let session = session_of(greeted, number, &shared.options);
                take_up(shared, session, since.elapsed()).await;
                return Ok(());
            }
            Err(NoSession {
                error,
                next: Next::GiveUp,
            }) => return Err(error.to_string()),
            Err(NoSession { error, .. }) => {
                let error = error.to_string();
                if told.as_ref() != Some(&error) {
                    warn!(volume = %shared.dialer.target(), error, "cannot connect; trying on");
                    told = Some(error);
                }
            }
        }
    }
}

async fn take_up(shared: &Arc<Shared>, session: Session, away: Duration) {
    if let Err(Lost) = shared.ledger().welcomed(session.instance) {
        error!(volume = %shared.dialer.target(),
               "the server started anew and has lost writes that were not flushed; \
                the next flush will fail");
    }
    if !shared.ledger().owes_failure() {
        shared.settle_with(session.instance).await;
    }
    info!(volume = %shared.dialer.target(), away_ms = away.as_millis() as u64, "connected again");
    // A volume that was closed in the meantime stays so.
    shared.link.send_if_modified(|link| match link {
        Link::Away(_) => {
            *link = Link::Up(Arc::new(session));
            true
        }
        Link::Up(_) | Link::Dead(_) | Link::Closed => false,
    });
}

/// Whether what came back is what was there.
fn check_same_volume(first: &Welcome, now: &Welcome) -> Result<(), String> {
    if (first.resource_bytes, first.logical_block_bytes)
        != (now.resource_bytes, now.logical_block_bytes)
    {
        return Err(format!(
            "the volume was changed: it had {} bytes in blocks of {}, and now has {} in blocks of {}",
            first.resource_bytes,
            first.logical_block_bytes,
            now.resource_bytes,
            now.logical_block_bytes
        ));
    }
    if first.identity != now.identity {
        return Err("the server serves another content than it did before".to_owned());
    }
    Ok(())
}

fn session_of(greeted: Greeted, number: u64, options: &RemoteOptions) -> Session {
    let codecs = Codecs::from_features(greeted.welcome.features & FEATURES);
    Session {
        number,
        connection: greeted.connection,
        instance: greeted.welcome.instance,
        control: AsyncMutex::new((greeted.send, greeted.recv)),
        compression: codecs.grant(options.compression),
        room: Room::new(),
    }
}

/// The hello of one who knows nothing yet.
fn hello_of(
    dialer: &Dialer,
    options: &RemoteOptions,
    client_id: [u8; 16],
    client_name: &str,
    session: u64,
) -> Hello {
    let target = dialer.target();
    Hello {
        features: FEATURES,
        volume: target.volume.to_string(),
        secret: target
            .credentials
            .as_ref()
            .map(|known| known.secret.clone()),
        client_id,
        client_name: client_name.to_owned(),
        session,
        writable: !options.read_only,
        takeover: false,
        known_epoch: 0,
        known_identity: None,
        managed: options.managed.filter(|_| !options.read_only),
    }
}

/// Waits a little longer each time, and not all clients equally long.
async fn pause(backoff: &mut Duration) {
    let [jitter] = random().unwrap_or([0]);
    tokio::time::sleep(*backoff / 2 + *backoff * u32::from(jitter) / 512).await;
    *backoff = (*backoff * 2).min(BACKOFF_MAX);
}

fn host_name() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    let name: String = name.to_string_lossy().chars().take(64).collect();
    debug_assert!(name.len() <= CLIENT_NAME_BYTES_MAX);
    if name.is_empty() {
        "a host".to_owned()
    } else {
        name
    }
}
