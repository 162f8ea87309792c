//! `blockferry man`: the manual pages.

use std::fs;
use std::path::{Path, PathBuf};

use blockferry::{Context, Result};
use clap::CommandFactory;
use clap_mangen::Man;

use super::{Cli, output};

/// Writes the manual pages: of the program to standard output, or of every verb into a directory
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  blockferry man | man -l -\n  \
    blockferry man /usr/local/share/man/man1")]
pub(super) struct Args {
    /// Where to write a page for each verb; it is made if it is not there
    directory: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let mut command = Cli::command();
    command.build();
    match &args.directory {
        None => output::bytes(&page(command)?),
        Some(directory) => {
            fs::create_dir_all(directory)
                .context_io(|| format!("cannot make {}", directory.display()))?;
            write_pages(command, "", directory)
        }
    }
}

/// Writes the page of a command and those of its verbs: `blockferry-stop.1`.
fn write_pages(command: clap::Command, above: &str, directory: &Path) -> Result<()> {
    let name = match above {
        "" => command.get_name().to_owned(),
        above => format!("{above}-{}", command.get_name()),
    };
    let verbs: Vec<_> = command.get_subcommands().cloned().collect();
    for verb in verbs.into_iter().filter(|verb| verb.get_name() != "help") {
        write_pages(verb, &name, directory)?;
    }
    let path = directory.join(format!("{name}.1"));
    fs::write(&path, page(command)?).context_io(|| format!("cannot write {}", path.display()))
}

fn page(command: clap::Command) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let page = Man::new(command);
    page.render(&mut text)
        .context_io(|| "cannot make the manual page")?;
    Ok(text)
}
