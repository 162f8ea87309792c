//! A ticket as an argument: itself, `@FILE`, `-` for standard input, or `$BLOCKFERRY_TICKET`, so
//! that it need not stand in a process list.

use std::fs::File;
use std::io::{self, Read};

use blockferry::backend;
use blockferry::wire::Ticket;
use blockferry::wire::ticket::SCHEME;
use blockferry::{Context, Error, ErrorKind, Result};

use super::failure::Failure;

/// Where the ticket is looked for when there is no argument.
pub(super) const VARIABLE: &str = "BLOCKFERRY_TICKET";

/// A ticket is not longer, in bytes.
const TICKET_BYTES_MAX: u64 = 4096;

/// What an argument names.
#[derive(Debug)]
pub(super) enum Named {
    /// A volume on another host.
    Ticket(Ticket),
    /// A local resource.
    Url(String),
}

impl Named {
    /// What it names, in one way of writing it and without the secret.
    pub(super) fn canonical(&self) -> String {
        match self {
            Self::Ticket(ticket) => ticket.url(),
            Self::Url(url) => backend::canonical(url),
        }
    }
}

impl std::fmt::Display for Named {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ticket(ticket) => f.write_str(&ticket.url()),
            Self::Url(url) => f.write_str(url),
        }
    }
}

/// What `argument` names; without one, what is in `$BLOCKFERRY_TICKET`.
///
/// # Errors
/// Wrong usage where there is neither, and for what cannot be understood; a failure for a file
/// that cannot be read, or holds something else.
pub(super) fn resolve(argument: Option<&str>) -> Result<Named, Failure> {
    match argument {
        Some("-") => Ok(understand(&read_line(
            io::stdin().lock(),
            "standard input",
        )?)?),
        Some(argument) => match argument.strip_prefix('@') {
            Some(path) => {
                let file = File::open(path)
                    .context_io(|| format!("cannot open the ticket's file {path}"))?;
                Ok(understand(&read_line(file, path)?)?)
            }
            None => understand(argument).map_err(Failure::Usage),
        },
        None => std::env::var(VARIABLE)
            .map_err(|_| {
                invalid(format!(
                    "name a resource: a URL, a ticket, @FILE, `-`, or set ${VARIABLE}"
                ))
            })
            .and_then(|text| understand(&text))
            .map_err(Failure::Usage),
    }
}

/// Whether [`resolve`] will find wrong usage. Reads nothing.
///
/// # Errors
/// As there.
pub(super) fn check(argument: Option<&str>) -> Result<(), Failure> {
    match argument {
        Some(argument) if argument == "-" || argument.starts_with('@') => Ok(()),
        argument => resolve(argument).map(drop),
    }
}

fn understand(text: &str) -> Result<Named> {
    let text = text.trim();
    if text.starts_with(SCHEME) {
        return text.parse().map(Named::Ticket);
    }
    backend::check(text)?;
    Ok(Named::Url(text.to_owned()))
}

fn read_line(from: impl Read, name: &str) -> Result<String> {
    let mut text = String::new();
    from.take(TICKET_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .context_io(|| format!("cannot read a ticket from {name}"))?;
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    match (lines.next(), lines.next()) {
        (Some(line), None) if line.len() as u64 <= TICKET_BYTES_MAX => Ok(line.to_owned()),
        (None, _) => Err(invalid(format!("{name} is empty; a ticket was expected"))),
        (Some(_), _) => Err(invalid(format!(
            "{name} holds more than one ticket; a line with one was expected"
        ))),
    }
}

fn invalid(context: String) -> Error {
    Error::new(ErrorKind::InvalidInput, context)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "blockferry://host:4480/disk";

    fn ticket_in(text: &str) -> Result<Named, Failure> {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        io::Write::write_all(&mut file, text.as_bytes()).expect("written");
        resolve(Some(&format!("@{}", file.path().display())))
    }

    #[test]
    fn a_ticket_is_found_in_the_argument_and_in_a_file() {
        assert!(matches!(resolve(Some(PLAIN)), Ok(Named::Ticket(_))));
        assert!(matches!(
            ticket_in(&format!("\n {PLAIN}\n")),
            Ok(Named::Ticket(_))
        ));
    }

    #[test]
    fn another_url_is_left_as_it_is() {
        assert!(matches!(resolve(Some("mem:1GiB")), Ok(Named::Url(url)) if url == "mem:1GiB"));
    }

    #[test]
    fn a_file_without_one_ticket_is_refused() {
        for text in [
            "",
            "\n\n",
            &format!("{PLAIN}\n{PLAIN}\n"),
            &"x".repeat(5000),
        ] {
            assert!(ticket_in(text).is_err(), "{text}");
        }
        assert!(resolve(Some("@/no/such/file")).is_err());
        assert!(ticket_in("blockferry://host").is_err());
    }
}
