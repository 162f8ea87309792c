//! `blockferry recover NAME`: goes on with the device of a process that has died.

use blockferry::ops::{self, MountRecord, Name};
use blockferry::{Context, Error, ErrorKind, Result};

use super::detach;
use super::failure::Failure;
use super::mount;
use super::ticket_argument::{self, Named};

/// Goes on with the device of a process that has died
///
/// A ublk device of a file or of a remote volume outlives its process, and whoever uses it waits
/// (`blockferry list` shows it as `dead, recoverable`). This repeats the mount, with the options that
/// it had: what was under way is done again, and nobody who uses the device sees an error. The same
/// `mount` command given again does likewise. FUSE devices, those of memory, and those that were
/// mounted with --no-recovery or without root cannot be recovered: clean them with `blockferry stop`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  blockferry recover disk --detach
  blockferry recover disk @disk.ticket")]
pub(super) struct Args {
    /// The name of the device, as `blockferry list` shows it
    name: Name,

    /// The ticket, where the mount did not have it from a file: itself, @FILE or `-` for standard
    /// input; without it, the ticket in $BLOCKFERRY_TICKET
    ticket: Option<String>,

    /// Return as soon as the device is served, and go on in the background
    #[arg(long)]
    detach: bool,

    /// Set for the process that goes on in the background
    #[arg(long, hide = true)]
    detached: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    if args.detach {
        return detach::run();
    }
    let (place, record) = ops::take_left_over(&args.name)?;
    let again = args.ticket_again(&record)?;
    std::env::set_current_dir(&record.directory).context_io(|| {
        format!(
            "cannot go to {}, where `{}` was mounted from",
            record.directory.display(),
            args.name
        )
    })?;
    let mount = mount_of(&record.arguments)?.repeated(args.detached);
    let named = match again {
        Some(named) => named,
        None => ticket_argument::resolve(mount.resource())?,
    };
    if let Named::Ticket(ticket) = &named
        && ticket.url() != record.resource
    {
        let context = format!(
            "the ticket is for {}, and `{}` is a device of {}",
            ticket.url(),
            args.name,
            record.resource
        );
        return Err(Error::new(ErrorKind::InvalidInput, context).into());
    }
    Ok(mount.run_at(named, place, record)?)
}

impl Args {
    /// The ticket, if it is given again.
    fn ticket_again(&self, record: &MountRecord) -> Result<Option<Named>, Failure> {
        let in_environment = std::env::var_os(ticket_argument::VARIABLE).is_some();
        if self.ticket.is_none() && record.needs_ticket && !in_environment {
            let name = &self.name;
            let context = format!(
                "the ticket of `{name}` was in no file, and secrets are not kept; give it again: \
                 blockferry recover {name} @FILE, or `-`, or in ${}",
                ticket_argument::VARIABLE
            );
            return Err(Error::new(ErrorKind::InvalidInput, context).into());
        }
        match self.ticket.is_some() || record.needs_ticket {
            true => ticket_argument::resolve(self.ticket.as_deref()).map(Some),
            false => Ok(None),
        }
    }
}

/// The `mount` command with these arguments.
fn mount_of(arguments: &[String]) -> Result<mount::Args> {
    super::parse_mount(arguments).map_err(|error| {
        Error::new(
            ErrorKind::Unsupported,
            "this version does not understand how the device was mounted",
        )
        .because(error)
    })
}
