//! The command line: one file a verb, arguments first, their meaning second.

use std::process::ExitCode;

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
enum Verb {}

/// Runs the verb on the command line and gives the exit code: 0, 1 for a failure, 2 for usage.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    match cli.verb {}
}
