//! The command line: one file a verb, arguments first, their meaning second.

use std::process::ExitCode;
mod mount;

use clap::{Parser, Subcommand};

/// Turns any resource into a Linux block device.
#[derive(Debug, Parser)]
#[command(
    name = "blockferry",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Mount(mount::MountArgs),
}

/// Runs the verb on the command line and gives the exit code: 0, 1 for a failure, 2 for usage.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    match cli.verb {
        Verb::Mount(a) => {
            if let Err(e) = a.run() {
                eprintln!("{e:?}");
                return ExitCode::FAILURE;
            }
            ExitCode::SUCCESS
        }
    }
}
