//! `blockferry recover NAME`: goes on with the device of a process that has died.

use blockferry::ops::{self, MountRecord, Name};
use blockferry::{Context, Error, ErrorKind, Result};

use super::Verb;
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
///
/// A `seed` or a `leech` is begun anew, with the options that it had: the records beside the files say where
/// the volume is, and it goes on from there.
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
    if let Some(record) = ops::dead_migration(&args.name)? {
        return args.migrate_again(&record);
    }
    if args.detach {
        return detach::run();
    }
    let (place, record) = ops::take_left_over(&args.name)?;
    let again = args.ticket_again(&record)?;
    args.go_where_it_was_begun(&record)?;
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
    fn go_where_it_was_begun(&self, record: &MountRecord) -> Result<()> {
        std::env::set_current_dir(&record.directory).context_io(|| {
            format!(
                "cannot go to {}, where `{}` was begun",
                record.directory.display(),
                self.name
            )
        })
    }

    /// The same `seed` or `leech` again: the records beside the resource say where the volume is.
    fn migrate_again(&self, record: &MountRecord) -> Result<(), Failure> {
        if self.detach {
            let what = "a seed or a leech is not recovered in the background: leave --detach out";
            return Err(Failure::Usage(Error::new(ErrorKind::InvalidInput, what)));
        }
        self.refuse_without_ticket(record)?;
        self.go_where_it_was_begun(record)?;
        let verb = super::parse_verb(&record.arguments).map_err(not_understood)?;
        ops::clean_dead_migration(&self.name)?;
        match verb {
            Verb::Seed(args) => args.again(self.name.clone(), record),
            Verb::Leech(args) => args.again(self.name.clone(), self.ticket.clone(), record),
            _ => Err(not_understood("it is neither `seed` nor `leech`".to_owned()).into()),
        }
    }

    /// The ticket, if it is given again.
    fn ticket_again(&self, record: &MountRecord) -> Result<Option<Named>, Failure> {
        self.refuse_without_ticket(record)?;
        match self.ticket.is_some() || record.needs_ticket {
            true => ticket_argument::resolve(self.ticket.as_deref()).map(Some),
            false => Ok(None),
        }
    }

    fn refuse_without_ticket(&self, record: &MountRecord) -> Result<()> {
        let in_environment = std::env::var_os(ticket_argument::VARIABLE).is_some();
        if self.ticket.is_some() || !record.needs_ticket || in_environment {
            return Ok(());
        }
        let name = &self.name;
        let context = format!(
            "the ticket of `{name}` was in no file, and secrets are not kept; give it again: \
             blockferry recover {name} @FILE, or `-`, or in ${}",
            ticket_argument::VARIABLE
        );
        Err(Error::new(ErrorKind::InvalidInput, context))
    }
}

/// The `mount` command with these arguments.
fn mount_of(arguments: &[String]) -> Result<mount::Args> {
    super::parse_mount(arguments).map_err(not_understood)
}

fn not_understood(error: String) -> Error {
    let what = "this version does not understand how it was begun";
    Error::new(ErrorKind::Unsupported, what).because(error)
}
