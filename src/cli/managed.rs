//! The options of a managed mount.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use blockferry::mount::direct::IO_TIMEOUT_MAX;
use blockferry::mount::managed::{ManagedOptions, PullOrder, WORKERS_MAX};
use blockferry::volume::{Durability, parse_size};
use blockferry::{Error, ErrorKind, Result};
use clap::ValueEnum;
use clap::builder::RangedU64ValueParser;

use super::hook_command::RunningHooks;
use super::hooks::HookArgs;

/// Where the local store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum StoreKind {
    /// Files on a disk.
    Disk,
    /// Files in memory.
    Mem,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Promise {
    /// The local store has it.
    Local,
    /// The origin has it.
    Remote,
    /// Nothing.
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

/// How the local store of a managed mount is filled and emptied.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Managed mounts")]
pub(super) struct ManagedArgs {
    /// Keep the local store in this directory: the same command goes on there, after a stop, a crash
    /// or a power cut [default: a directory of its own under the cache home, removed at the end]
    #[arg(long, value_name = "DIR", conflicts_with = "store")]
    pub(super) cache: Option<PathBuf>,

    /// Where the local store is without --cache: disk, or mem (in tmpfs, at most half of the memory
    /// that is available; lost with a reboot)
    #[arg(long, value_enum, default_value = "disk", value_name = "KIND")]
    pub(super) store: StoreKind,

    /// What is fetched at once: a power of two from 4KiB to 4MiB [default: 256KiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_chunk)]
    chunk_size: Option<u64>,

    /// How many chunks the background pulls at once, at most [default: 64]
    #[arg(long, value_name = "N", value_parser = workers())]
    pull_workers: Option<u32>,

    /// In which order the background pulls: sequential, none, or a file with a line `OFFSET LENGTH` for
    /// each range, the most urgent first (as --record-heat writes it) [default: sequential]
    #[arg(long, value_name = "ORDER")]
    pull_order: Option<String>,

    /// Make the device only when everything is local
    #[arg(long)]
    pub(super) pull_first: bool,

    /// The most that the background pulls, in bytes a second
    #[arg(long, value_name = "SIZE", value_parser = parse_rate)]
    pull_rate: Option<u64>,

    /// Whether local writes go to the origin by themselves. Off: only `blockferry sync` sends them, and
    /// `stop` wants to be told what to do with the rest
    #[arg(long, value_enum, default_value = "on", value_name = "SWITCH")]
    push: Switch,

    /// How many runs of blocks are pushed at once, at most [default: 64]
    #[arg(long, value_name = "N", value_parser = workers())]
    push_workers: Option<u32>,

    /// For how many seconds local writes gather before they are pushed [default: 1]
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    push_interval: Option<Duration>,

    /// The most that is pushed, in bytes a second
    #[arg(long, value_name = "SIZE", value_parser = parse_rate)]
    push_rate: Option<u64>,

    /// What a flush of the device promises: local (the store's disk has it; with --store mem that is
    /// memory, lost with a power cut), remote (the origin has it) or none [default: local with --cache or --push off, else remote]
    #[arg(long, value_enum, value_name = "PROMISE")]
    durability: Option<Promise>,

    /// How far to read ahead of sequential misses; 0 for not at all [default: 8MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    read_ahead: Option<u64>,

    /// The most memory for bytes on their way [default: 256MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory_limit: Option<u64>,

    /// Write to FILE in which order chunks were first touched, for --pull-order: when the mount ends,
    /// and every few seconds before. A mount that goes on for one that was killed adds to what is there
    #[arg(long, value_name = "FILE")]
    record_heat: Option<PathBuf>,

    /// Give up what an earlier mount left in the local store, where it cannot be sent any more
    #[arg(long)]
    pub(super) discard_dirty: bool,

    /// Go on with a local store after its disk has failed to sync it: with what was flushed before.
    /// What was written since may be lost
    #[arg(long, conflicts_with = "discard_dirty")]
    pub(super) accept_loss: bool,

    #[command(flatten)]
    hooks: HookArgs,
}

fn workers() -> RangedU64ValueParser<u32> {
    RangedU64ValueParser::new().range(1..=WORKERS_MAX.into())
}

fn parse_seconds(text: &str) -> Result<Duration> {
    let seconds = text.parse::<f64>().ok();
    seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|time| *time <= IO_TIMEOUT_MAX)
        .ok_or_else(|| {
            let most = IO_TIMEOUT_MAX.as_secs();
            not_allowed(format!("it has to be a number of seconds from 0 to {most}"))
        })
}

fn parse_chunk(text: &str) -> Result<u64> {
    let chunk_bytes = parse_size(text)?;
    let options = ManagedOptions {
        chunk_bytes,
        ..ManagedOptions::default()
    };
    options.check().map(|()| chunk_bytes)
}

pub(super) fn parse_rate(text: &str) -> Result<u64> {
    match parse_size(text)? {
        0 => Err(not_allowed(
            "it has to be at least 1 byte a second; nothing moves with --pull-order none and --push off"
                .to_owned(),
        )),
        rate => Ok(rate),
    }
}

fn not_allowed(what: String) -> Error {
    Error::new(ErrorKind::InvalidInput, what)
}

impl ManagedArgs {
    /// An option that was given and that a direct mount cannot keep.
    pub(super) fn promised(&self) -> Option<&'static str> {
        let given = [
            (self.cache.is_some(), "--cache"),
            (self.store == StoreKind::Mem, "--store"),
            (self.chunk_size.is_some(), "--chunk-size"),
            (self.pull_workers.is_some(), "--pull-workers"),
            (self.pull_order.is_some(), "--pull-order"),
            (self.pull_first, "--pull-first"),
            (self.pull_rate.is_some(), "--pull-rate"),
            (self.push == Switch::Off, "--push"),
            (self.push_workers.is_some(), "--push-workers"),
            (self.push_interval.is_some(), "--push-interval"),
            (self.push_rate.is_some(), "--push-rate"),
            (self.read_ahead.is_some(), "--read-ahead"),
            (self.memory_limit.is_some(), "--memory-limit"),
            (self.durability.is_some(), "--durability"),
            (self.record_heat.is_some(), "--record-heat"),
            (self.discard_dirty, "--discard-dirty"),
            (self.accept_loss, "--accept-loss"),
            (self.hooks.is_any(), "--on-…"),
        ];
        let first = given.into_iter().find(|(is_given, _)| *is_given);
        first.map(|(_, option)| option)
    }

    /// Whether local writes go to the origin by themselves.
    pub(super) fn pushes(&self) -> bool {
        self.push == Switch::On
    }

    /// What is fetched at once, in bytes.
    pub(super) fn chunk_bytes(&self) -> u64 {
        self.chunk_size
            .unwrap_or(ManagedOptions::default().chunk_bytes)
    }

    /// What these options mean; hooks that run will be in `running`.
    pub(super) fn options(
        &self,
        io_timeout: Option<Duration>,
        running: &Arc<RunningHooks>,
    ) -> Result<ManagedOptions> {
        let usual = ManagedOptions::default();
        let options = ManagedOptions {
            chunk_bytes: self.chunk_bytes(),
            pull: self.pull_order()?,
            pull_workers: self.pull_workers.unwrap_or(usual.pull_workers),
            push: self.pushes(),
            push_workers: self.push_workers.unwrap_or(usual.push_workers),
            push_interval: self.push_interval.unwrap_or(usual.push_interval),
            durability: self.durability(),
            pull_rate: self.pull_rate,
            push_rate: self.push_rate,
            read_ahead_bytes: self.read_ahead.unwrap_or(usual.read_ahead_bytes),
            memory_limit_bytes: self.memory_limit.unwrap_or(usual.memory_limit_bytes),
            io_timeout,
            record_heat: self.record_heat.clone(),
            seedable: false,
            hooks: self.hooks.hooks(self.chunk_bytes(), running),
        };
        options.check()?;
        if self.pull_first && matches!(options.pull, PullOrder::Nothing) {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "--pull-first waits until all is local, and with --pull-order none it never is",
            ));
        }
        Ok(options)
    }

    /// Warns of what of --pull-order lies behind the end of a volume of so many bytes.
    pub(super) fn warn_of_order_beyond(&self, size_bytes: u64) {
        if let Ok(PullOrder::Ranges(ranges)) = self.pull_order() {
            let mut beyond = ranges.iter().filter(|range| range.bytes.end > size_bytes);
            if let Some(first) = beyond.next() {
                tracing::warn!(
                    "{}, line {}: this range, and {} further ones, lie behind the end of the volume, which has \
                     {size_bytes} bytes; what is behind it is left out",
                    self.pull_order.as_deref().unwrap_or_default(),
                    first.line,
                    beyond.count()
                );
            }
        }
    }

    pub(super) fn pull_order(&self) -> Result<PullOrder> {
        match self.pull_order.as_deref() {
            None | Some("sequential") => Ok(PullOrder::Sequential),
            Some("none") => Ok(PullOrder::Nothing),
            Some(file) => PullOrder::load(Path::new(file)),
        }
    }

    fn durability(&self) -> Durability {
        match self.durability {
            Some(Promise::Local) => Durability::Local,
            Some(Promise::Remote) => Durability::Remote,
            Some(Promise::None) => Durability::None,
            None if self.cache.is_some() => Durability::Local,
            // Nothing but the origin can make bytes durable by themselves.
            None if self.push == Switch::Off => Durability::Local,
            None => Durability::Remote,
        }
    }
}
