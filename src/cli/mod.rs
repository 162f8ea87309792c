//! The command line: one file a verb, arguments first, their meaning second.

mod abort;
mod block_size;
mod bounded_log;
mod cache;
mod completions;
mod detach;
mod device_choice;
mod doctor;
mod failure;
mod finalize;
mod heap;
mod heat_map;
mod hook_command;
mod hooks;
mod leech;
mod list;
mod logging;
mod man;
mod managed;
mod migrate;
mod mount;
mod mounted;
mod output;
mod progress;
mod recover;
mod repeat;
mod seed;
mod seed_service;
mod seeded;
mod serve;
mod serving;
mod signals;
mod source_hooks;
mod status;
mod stop;
mod store_choice;
mod store_place;
mod sync;
mod ticket;
mod ticket_argument;
mod udev;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::failure::Failure;

/// Turns any resource into a Linux block device.
#[derive(Debug, Parser)]
#[command(
    name = "blockferry",
    version,
    propagate_version = true,
    arg_required_else_help = true,
    after_help = "Example:\n  blockferry mount mem:1GiB --direct"
)]
struct Cli {
    #[command(flatten)]
    logging: logging::Options,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Mount(mount::Args),
    Recover(recover::Args),
    Serve(serve::Args),
    Ticket(ticket::Args),
    Seed(seed::Args),
    Leech(leech::Args),
    Finalize(finalize::Args),
    Abort(abort::Args),
    Migrate(migrate::Args),
    List(list::Args),
    Status(status::Args),
    Stop(stop::Args),
    Sync(sync::Args),
    Cache(cache::Args),
    Doctor(doctor::Args),
    Udev(udev::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// Runs the verb on the command line and gives the exit code: 0, 1 for a failure, 2 for wrong usage.
pub(crate) fn run() -> ExitCode {
    let cli = Cli::parse();
    if let Err(error) = logging::start(&cli.logging) {
        output::failure(&error);
        return ExitCode::from(2);
    }
    match cli.verb.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            cli.logging.failure(failure.error());
            failure.exit_code()
        }
    }
}

impl Verb {
    fn run(&self) -> Result<(), Failure> {
        match self {
            Self::Mount(args) => return mount::run(args),
            Self::Recover(args) => return recover::run(args),
            Self::Serve(args) => return serve::run(args),
            Self::Seed(args) => return seed::run(args),
            Self::Leech(args) => return leech::run(args),
            Self::Finalize(args) => finalize::run(args),
            Self::Abort(args) => abort::run(args),
            Self::Migrate(args) => migrate::run(args),
            Self::Ticket(args) => ticket::run(args),
            Self::List(args) => list::run(args),
            Self::Status(args) => status::run(args),
            Self::Stop(args) => stop::run(args),
            Self::Sync(args) => sync::run(args),
            Self::Cache(args) => cache::run(args),
            Self::Doctor(args) => doctor::run(args),
            Self::Udev(args) => udev::run(args),
            Self::Completions(args) => completions::run(args),
            Self::Man(args) => man::run(args),
        }?;
        Ok(())
    }
}

/// The arguments of the program as its verb.
fn parse_verb(arguments: &[String]) -> Result<Verb, String> {
    let program = std::iter::once("blockferry");
    let cli = Cli::try_parse_from(program.chain(arguments.iter().map(String::as_str)));
    cli.map(|cli| cli.verb).map_err(|error| error.to_string())
}

/// The same of a `mount`.
fn parse_mount(arguments: &[String]) -> Result<mount::Args, String> {
    match parse_verb(arguments)? {
        Verb::Mount(args) => Ok(args),
        _ => Err("it is no `mount` command".to_owned()),
    }
}
