//! `blockferry serve`: local resources for other hosts.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use blockferry::backend::{self, Kind, OpenOptions, Resource};
use blockferry::net::{Content, ServedVolume, Server, ServerConfig, TlsFiles, write_private};
use blockferry::ops;
use blockferry::wire::{HostPort, VolumeName};
use blockferry::{Context, Error, ErrorKind, Result};
use tracing::{info, warn};

use super::block_size;
use super::failure::Failure;
use super::output;
use super::signals::Signals;

/// Serves files, block devices or memory to other hosts
///
/// Prints a ticket for each volume, one a line, once it listens, and serves until SIGINT or SIGTERM.
/// Then it lets what is in flight finish; a second signal ends it at once. Whoever has the ticket
/// can mount the volume: treat it like a password. Tickets stay valid when the server is started
/// again with the same state directory.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  blockferry serve file:/srv/disk.img --listen 0.0.0.0:4480 --ticket-file disk.ticket
  blockferry serve disk=file:/srv/disk.img scratch=mem:1GiB --advertise storage.example:4480
  blockferry serve file:/dev/vg0/db --read-only --ca ca.pem --cert host.pem --key host.key")]
pub(super) struct Args {
    /// What to serve: file:PATH (a file or a block device) or mem:SIZE, with its name before it
    /// where that is not to be the file's
    #[arg(required = true, value_name = "[NAME=]URL")]
    resources: Vec<NamedUrl>,

    /// The address and UDP port to listen on
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:4480")]
    listen: SocketAddr,

    /// The volume's name, where only one is served
    #[arg(long, value_name = "NAME")]
    name: Option<VolumeName>,

    /// Refuse clients that want to write
    #[arg(long)]
    read_only: bool,

    /// The logical block of the devices that clients make of the volumes, in bytes: 512, 1024, 2048
    /// or 4096 [default: each resource's own]
    #[arg(long, value_name = "BYTES", value_parser = block_size::parse)]
    block_size: Option<u32>,

    /// Write the tickets to this file too, readable by its owner alone
    #[arg(long, value_name = "FILE")]
    ticket_file: Option<PathBuf>,

    /// The address that goes into the tickets [default: the one listened on, or this host's first]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<HostPort>,

    /// Where the server's key, the secrets and the leases are kept [default: /var/lib/blockferry,
    /// or $XDG_STATE_HOME/blockferry where not root]
    #[arg(long, value_name = "DIRECTORY")]
    state_dir: Option<PathBuf>,

    /// Know clients by certificates that this CA signed (PEM), instead of by tickets' secrets
    #[arg(long, value_name = "FILE", requires_all = ["cert", "key"])]
    ca: Option<PathBuf>,

    /// This server's certificate, signed by the CA (PEM)
    #[arg(long, value_name = "FILE", requires = "ca")]
    cert: Option<PathBuf>,

    /// The private key of the certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "ca")]
    key: Option<PathBuf>,

    /// For how long a writer that is gone keeps the volume to itself, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "30",
          value_parser = clap::value_parser!(u32).range(1..))]
    lease: u32,
}

/// `NAME=URL`, or a URL alone.
#[derive(Debug, Clone)]
struct NamedUrl {
    name: Option<VolumeName>,
    url: String,
}

impl FromStr for NamedUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once('=') {
            // A URL has a colon before any equals sign.
            Some((name, url)) if !name.contains(':') => Ok(Self {
                name: Some(name.parse()?),
                url: url.to_owned(),
            }),
            _ => Ok(Self {
                name: None,
                url: text.to_owned(),
            }),
        }
    }
}

impl NamedUrl {
    /// Its name: as given, else the file's without its extension, else the kind of resource.
    fn volume_name(&self) -> Result<VolumeName> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let (scheme, path) = self.url.split_once(':').unwrap_or(("", &self.url));
        let stem = std::path::Path::new(path).file_stem();
        let name = match (scheme, stem) {
            ("file", Some(stem)) => stem.to_string_lossy(),
            _ => scheme.into(),
        };
        name.parse().map_err(|_| {
            Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "`{}` makes no good name for a volume; give one: NAME={}",
                    name, self.url
                ),
            )
        })
    }
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let names = names(args).map_err(Failure::Usage)?;
    for resource in &args.resources {
        backend::check(&resource.url).map_err(Failure::Usage)?;
    }
    let runtime =
        tokio::runtime::Runtime::new().context_io(|| "cannot start the threads of the server")?;
    Ok(runtime.block_on(serve(args, names))?)
}

async fn serve(args: &Args, names: Vec<VolumeName>) -> Result<()> {
    // Before anything is announced, so that no signal is lost.
    let signals = Signals::catch()?;
    let resources: Vec<Resource> = args
        .resources
        .iter()
        .map(|resource| open(&resource.url, args))
        .collect::<Result<_>>()?;
    let volumes = names.iter().cloned().zip(&resources);
    let config = ServerConfig {
        listen: args.listen,
        advertise: args.advertise.clone(),
        state_dir: args.state_dir.clone(),
        tls: args.tls(),
        lease: Duration::from_secs(args.lease.into()),
    };
    let server = Server::bind(config, volumes.map(served).collect())?;
    announce(args, &server, &names)?;
    server.run(first_of(signals)).await;
    Ok(())
}

impl Args {
    fn tls(&self) -> Option<TlsFiles> {
        Some(TlsFiles {
            ca: self.ca.clone()?,
            certificate: self.cert.clone()?,
            key: self.key.clone()?,
        })
    }
}

fn names(args: &Args) -> Result<Vec<VolumeName>> {
    let names: Vec<VolumeName> = match (&args.name, args.resources.as_slice()) {
        (Some(name), [only]) if only.name.is_none() => vec![name.clone()],
        (Some(_), _) => {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "--name goes with one resource that has no name yet; write NAME=URL for each",
            ));
        }
        (None, resources) => resources
            .iter()
            .map(NamedUrl::volume_name)
            .collect::<Result<_>>()?,
    };
    let mut seen = HashSet::new();
    match names.iter().find(|name| !seen.insert(*name)) {
        Some(twice) => Err(Error::new(
            ErrorKind::InvalidInput,
            format!("two volumes would be named `{twice}`; write NAME=URL to name them apart"),
        )),
        None => Ok(names),
    }
}

fn open(url: &str, args: &Args) -> Result<Resource> {
    ops::refuse_left_over(&backend::canonical(url))?;
    let options = OpenOptions {
        read_only: args.read_only,
        block_bytes: args.block_size,
        ..OpenOptions::default()
    };
    backend::open(url, &options)
}

fn served((name, resource): (VolumeName, &Resource)) -> ServedVolume {
    ServedVolume {
        name,
        backend: resource.as_async(),
        block_bytes: Some(resource.geometry.logical_block_bytes()),
        read_only: resource.read_only,
        content: content_of(resource),
        instance: resource.instance,
        leechers: None,
    }
}

fn content_of(resource: &Resource) -> Content {
    match &resource.kind {
        Kind::File(file) => Content::File(file.clone()),
        Kind::Memory(_) | Kind::Other(_) => Content::Instance,
    }
}

/// Hands the tickets out: to the file first, so that whoever reads them here finds it written.
fn announce(args: &Args, server: &Server, names: &[VolumeName]) -> Result<()> {
    let tickets: Vec<String> = names
        .iter()
        .filter_map(|name| server.ticket(name))
        .map(|ticket| ticket.reveal())
        .collect();
    let tickets = tickets.join("\n");
    if let Some(path) = &args.ticket_file {
        write_private(path, format!("{tickets}\n").as_bytes())?;
    }
    output::line(tickets)
}

/// Waits for the first signal; from then on the next one ends the process.
async fn first_of(mut signals: Signals) {
    signals.next().await;
    info!("asked to stop; a second signal ends it at once");
    tokio::spawn(async move {
        signals.next().await;
        warn!("ended by a second signal");
        std::process::exit(1);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name_of(text: &str) -> Result<String> {
        let named: NamedUrl = text.parse()?;
        named.volume_name().map(|name| name.to_string())
    }

    #[test]
    fn a_volume_gets_the_name_that_a_user_expects() {
        for (text, expected) in [
            ("file:/srv/disk.img", "disk"),
            ("file:/dev/sda", "sda"),
            ("mem:1GiB", "mem"),
            ("logs=file:/srv/a=b.img", "logs"),
            ("file:/srv/a_b=c.img", ""),
        ] {
            assert_eq!(name_of(text).unwrap_or_default(), expected, "{text}");
        }
        assert!(name_of("a b=file:/x").is_err());
        assert!(name_of("file:/srv/a b.img").is_err());
    }
}
