//! What a server keeps over restarts: its certificate, and for each volume the secret, the lease,
//! the address, and which content it is.
//!
//! ```text
//! server.pem             key and certificate
//! reset.key              lets a restarted server end the connections of the one before it
//! volumes/NAME.secret    the ticket's secret
//! volumes/NAME.lease     epoch and holder, JSON
//! volumes/NAME.content   identity and generation, and what they hang on, JSON
//! volumes/NAME.address   where the volume was last served, JSON
//! volumes/NAME.lock      held by the server that serves it
//! ```

use std::env;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::rand;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::content::Kept;
use super::identity::Identity;
use super::lease::Record;
use super::private_file::{create_private, create_private_dir, read_private, write_private};
use crate::error::Context;
use crate::wire::ticket::Credentials;
use crate::wire::{HostPort, Secret, Ticket, VolumeName};
use crate::{Error, ErrorKind, Result};

/// The directory, mode 0700, with files of mode 0600.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
}

/// Where a volume was last served.
#[derive(Debug, Serialize, Deserialize)]
struct Address {
    address: String,
    /// Certificates of a CA speak for both ends: the ticket has no secret.
    certificates: bool,
}

/// The right to serve a volume out of this directory; given back when it is dropped.
#[derive(Debug)]
pub(super) struct VolumeLock {
    _held: Flock<std::fs::File>,
}

impl StateDir {
    /// Opens the directory and makes it where it is missing. The default is `/var/lib/blockferry`
    /// for root, else `$XDG_STATE_HOME/blockferry` or `~/.local/state/blockferry`.
    ///
    /// # Errors
    /// Whatever the operating system reports, and `NotFound` where there is no home either.
    pub fn open(path: Option<&Path>) -> Result<Self> {
        let path = match path {
            Some(path) => path.to_owned(),
            None => default_path()?,
        };
        create_private_dir(&path.join("volumes"))?;
        Ok(Self { path })
    }

    fn of_volume(&self, volume: &VolumeName, what: &str) -> PathBuf {
        self.path.join("volumes").join(format!("{volume}.{what}"))
    }

    /// The server's key and certificate, made at the first call.
    pub(super) fn identity(&self) -> Result<Identity> {
        let path = self.path.join("server.pem");
        let pem = self.read_or_create(&path, Identity::generate)?;
        Identity::from_pem(&pem).map_err(|error| error_in_file(&path, error))
    }

    /// The key with which connections of an earlier process are ended.
    pub(super) fn reset_key(&self) -> Result<Vec<u8>> {
        self.read_or_create(
            &self.path.join("reset.key"),
            || Ok(random::<64>()?.to_vec()),
        )
    }

    /// The volume's secret, if it has one.
    pub(super) fn known_secret(&self, volume: &VolumeName) -> Result<Option<Secret>> {
        let path = self.of_volume(volume, "secret");
        let parse = |bytes: Vec<u8>| {
            let text = String::from_utf8_lossy(&bytes);
            text.trim()
                .parse()
                .map_err(|error| error_in_file(&path, error))
        };
        read_private(&path)?.map(parse).transpose()
    }

    /// The volume's secret, drawn at the first call.
    pub(super) fn secret(&self, volume: &VolumeName) -> Result<Secret> {
        loop {
            if let Some(secret) = self.known_secret(volume)? {
                return Ok(secret);
            }
            let fresh = Secret(random()?).reveal();
            create_private(&self.of_volume(volume, "secret"), fresh.as_bytes())?;
        }
    }

    /// The ticket of a volume that is or was served out of this directory; with `rotate` one with
    /// a new secret, after which the old one is refused, by a running server too.
    ///
    /// # Errors
    /// `NotFound` for a volume that was never served here; `InvalidInput` for one that has no
    /// secret to rotate.
    pub fn ticket(&self, volume: &VolumeName, rotate: bool) -> Result<Ticket> {
        let path = self.of_volume(volume, "address");
        let record: Address = match read_private(&path)? {
            Some(bytes) => parse_json(&path, &bytes)?,
            None => {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!(
                        "no volume named `{volume}` was served out of {}; `blockferry serve` \
                         makes tickets",
                        self.path.display()
                    ),
                ));
            }
        };
        if rotate && record.certificates {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("`{volume}` is served with certificates of a CA; it has no secret"),
            ));
        }
        if rotate {
            let fresh = Secret(random()?).reveal();
            write_private(&self.of_volume(volume, "secret"), fresh.as_bytes())?;
        }
        self.ticket_at(volume, record.address.parse()?, record.certificates)
    }

    fn ticket_at(
        &self,
        volume: &VolumeName,
        address: HostPort,
        certificates: bool,
    ) -> Result<Ticket> {
        let credentials = if certificates {
            None
        } else {
            Some(Credentials {
                fingerprint: self.identity()?.fingerprint(),
                secret: self.secret(volume)?,
            })
        };
        Ok(Ticket {
            address,
            volume: volume.clone(),
            credentials,
        })
    }

    /// Keeps where the volume is served, and gives its ticket.
    pub(super) fn announce(
        &self,
        volume: &VolumeName,
        address: &HostPort,
        certificates: bool,
    ) -> Result<Ticket> {
        let record = Address {
            address: address.to_string(),
            certificates,
        };
        write_json(&self.of_volume(volume, "address"), &record)?;
        self.ticket_at(volume, address.clone(), certificates)
    }

    /// The volume's epoch and holder.
    pub(super) fn lease(&self, volume: &VolumeName) -> Result<Record> {
        let path = self.of_volume(volume, "lease");
        match read_private(&path)? {
            Some(bytes) => parse_json(&path, &bytes),
            None => Ok(Record::default()),
        }
    }

    /// Makes epoch and holder durable.
    pub(super) fn keep_lease(&self, volume: &VolumeName, record: &Record) -> Result<()> {
        write_json(&self.of_volume(volume, "lease"), record)
    }

    /// What the volume's content was when it was last looked at.
    pub(super) fn content(&self, volume: &VolumeName) -> Result<Option<Kept>> {
        let path = self.of_volume(volume, "content");
        let parse = |bytes: Vec<u8>| parse_json(&path, &bytes);
        read_private(&path)?.map(parse).transpose()
    }

    /// Makes it durable.
    pub(super) fn keep_content(&self, volume: &VolumeName, kept: &Kept) -> Result<()> {
        write_json(&self.of_volume(volume, "content"), kept)
    }

    /// Takes the right to serve the volume.
    pub(super) fn lock(&self, volume: &VolumeName) -> Result<VolumeLock> {
        let path = self.of_volume(volume, "lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .context_io(|| format!("cannot open {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(VolumeLock { _held: lock }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "another process serves a volume named `{volume}` out of {}; \
                     stop it, or give this one another --name or --state-dir",
                    self.path.display()
                ),
            )),
            Err((_, errno)) => Err(Error::io(
                format!("cannot lock {}", path.display()),
                std::io::Error::from(errno),
            )),
        }
    }

    fn read_or_create(&self, path: &Path, make: impl Fn() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
        loop {
            if let Some(bytes) = read_private(path)? {
                return Ok(bytes);
            }
            create_private(path, &make()?)?;
        }
    }
}

/// Bytes that nobody can guess.
pub(super) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes)
        .map_err(|_| Error::new(ErrorKind::Io, "the system gives no random bytes"))?;
    Ok(bytes)
}

fn default_path() -> Result<PathBuf> {
    if nix::unistd::geteuid().is_root() {
        return Ok("/var/lib/blockferry".into());
    }
    let directory = |name: &str| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    directory("XDG_STATE_HOME")
        .or_else(|| directory("HOME").map(|home| home.join(".local/state")))
        .map(|state| state.join("blockferry"))
        .ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                "there is no place for the server's key: neither $XDG_STATE_HOME nor $HOME is \
                 set; use --state-dir",
            )
        })
}

fn error_in_file(path: &Path, error: Error) -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        format!("{} is damaged; restore or remove it", path.display()),
    )
    .because(error)
}

fn parse_json<T: for<'a> Deserialize<'a>>(path: &Path, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        let cause = Error::new(ErrorKind::InvalidInput, error.to_string());
        error_in_file(path, cause)
    })
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let bytes = serde_json::to_vec(value).map_err(|error| {
        Error::new(ErrorKind::Io, format!("cannot write {}", path.display())).because(error)
    })?;
    write_private(path, &bytes)
}

#[cfg(test)]
#[path = "state_dir_tests.rs"]
mod tests;
