//! What is said on standard error while the program works, and how.

use std::io::{self, IsTerminal};

use blockferry::{Error, ErrorKind, Result};
use clap::{ArgAction, Args, ValueEnum};
use tracing_subscriber::EnvFilter;

use super::{bounded_log, output, progress};

#[derive(Debug, Args)]
#[command(next_help_heading = "Logging")]
pub(super) struct Options {
    /// Say more on standard error; twice for debugging, three times for everything
    ///
    /// RUST_LOG, where it is set, decides instead (for example RUST_LOG=blockferry::net=trace).
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,

    /// Say nothing on standard error but errors
    #[arg(short, long, global = true)]
    quiet: bool,

    /// How log lines are written
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    log_format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A line for people
    Text,
    /// A JSON object a line
    Json,
}

impl Options {
    /// Says what the program failed of, in the form that was asked for.
    pub(super) fn failure(&self, error: &Error) {
        match self.log_format {
            Format::Text => output::failure(error),
            Format::Json => tracing::error!("{}", error.chain()),
        }
    }

    fn filter(&self) -> &'static str {
        match self.verbose {
            // The FUSE library reports it as failures that we have unmounted it and that somebody gave up
            // waiting for an answer.
            _ if self.quiet => "error,fuser=off",
            0 => "warn,fuser=off",
            1 => "warn,fuser=off,blockferry=info",
            2 => "info,blockferry=debug",
            _ => "trace",
        }
    }
}

/// Starts logging to standard error.
pub(super) fn start(options: &Options) -> Result<()> {
    let environment = std::env::var("RUST_LOG").unwrap_or_default();
    let filter = match environment.trim() {
        "" => EnvFilter::new(options.filter()),
        directives => EnvFilter::try_new(directives).map_err(|error| {
            Error::new(ErrorKind::InvalidInput, "RUST_LOG cannot be understood").because(error)
        })?,
    };
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_writer(|| bounded_log::Destination);
    if !options.quiet && options.log_format == Format::Text {
        progress::allow();
    }
    match options.log_format {
        Format::Text => logs.init(),
        Format::Json => logs.json().init(),
    }
    Ok(())
}
