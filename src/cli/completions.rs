//! `blockferry completions SHELL`.

use blockferry::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, output};

/// Writes the completions for a shell to standard output
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  \
    blockferry completions bash > /usr/share/bash-completion/completions/blockferry")]
pub(super) struct Args {
    /// The shell
    shell: Shell,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "blockferry", &mut text);
    output::bytes(&text)
}
