//! A ticket on the command line: as it is, in a file, on standard input, or in the environment.
//!
//! A ticket holds a secret, and the arguments of a process can be read by every user of the host.

use std::io::Read;

use blockferry::wire::Ticket;
use blockferry::{Context, Error, ErrorKind, Result};

/// The variable that holds a ticket.
pub(super) const VARIABLE: &str = "BLOCKFERRY_TICKET";

/// The longest text that is taken for a ticket, in bytes.
const TICKET_BYTES_MAX: u64 = 4096;

/// The ticket that the argument stands for; `None` if it names another kind of resource.
pub(super) fn read(argument: Option<&str>) -> Result<Option<Ticket>> {
    let text = match argument {
        None => std::env::var(VARIABLE).map_err(|_| {
            Error::new(
                ErrorKind::InvalidInput,
                format!("no resource: give one, or a ticket in ${VARIABLE}"),
            )
        })?,
        Some("-") => first_line(std::io::stdin(), "standard input")?,
        Some(argument) => match argument.strip_prefix('@') {
            Some(path) => {
                let file = std::fs::File::open(path)
                    .context_io(|| format!("cannot read the ticket in {path}"))?;
                first_line(file, path)?
            }
            None if argument.starts_with("blockferry:") => argument.to_owned(),
            None => return Ok(None),
        },
    };
    text.trim().parse().map(Some)
}

fn first_line(source: impl Read, name: &str) -> Result<String> {
    let mut text = String::new();
    source
        .take(TICKET_BYTES_MAX)
        .read_to_string(&mut text)
        .context_io(|| format!("cannot read the ticket from {name}"))?;
    match text.lines().next() {
        Some(line) if !line.trim().is_empty() => Ok(line.to_owned()),
        _ => Err(Error::new(
            ErrorKind::InvalidInput,
            format!("there is no ticket in {name}"),
        )),
    }
}
