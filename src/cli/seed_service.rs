//! What the service for leechers is told: the options that `seed` and `leech --listen` share.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use blockferry::Result;
use blockferry::migrate::protocol::SeederNotice;
use blockferry::migrate::{HOLD_LIMIT_DEFAULT, SeedOptions, Seeding};
use blockferry::net::{Server, ServerConfig, check_private, write_private};
use blockferry::ops::Name;
use blockferry::wire::HostPort;

use super::hook_command::RunningHooks;
use super::output;
use super::source_hooks::SourceHookArgs;

/// The longest hold that can be asked for, in seconds.
const HOLD_LIMIT_MAX_S: u64 = 3600;

#[derive(Debug, Clone, clap::Args)]
pub(super) struct SeedServiceArgs {
    /// Write the ticket to this file too, readable by its owner alone
    #[arg(long, value_name = "FILE")]
    ticket_file: Option<PathBuf>,

    /// The address that goes into the ticket [default: the one listened on, or this host's first]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<HostPort>,

    /// Where the server's key and the secret are kept [default: /var/lib/blockferry, or
    /// $XDG_STATE_HOME/blockferry where not root]
    #[arg(long, value_name = "DIRECTORY")]
    state_dir: Option<PathBuf>,

    /// For how many seconds requests are held at most [default: 5]. Then they go on here, and the volume
    /// does not move this time
    #[arg(long, value_name = "SECONDS",
          value_parser = clap::value_parser!(u64).range(1..=HOLD_LIMIT_MAX_S))]
    hold_limit: Option<u64>,

    #[command(flatten)]
    pub(super) hooks: SourceHookArgs,
}

impl SeedServiceArgs {
    /// Whether anything is said that only a service needs.
    pub(super) fn is_any(&self) -> bool {
        self.ticket_file.is_some()
            || self.advertise.is_some()
            || self.state_dir.is_some()
            || self.hold_limit.is_some()
            || self.hooks.is_any()
    }

    /// Listens, for a volume of this name. What would keep that from being served, and its ticket from being
    /// handed out, is found out here, before there is a volume.
    pub(super) fn listen(&self, at: SocketAddr, name: &Name) -> Result<Server> {
        if let Some(path) = &self.ticket_file {
            check_private(path)?;
        }
        let config = ServerConfig {
            advertise: self.advertise.clone(),
            state_dir: self.state_dir.clone(),
            ..ServerConfig::on(at)
        };
        let mut server = Server::bind(config, Vec::new())?;
        server.reserve(&name.as_str().parse()?)?;
        Ok(server)
    }

    /// How the volume is seeded. Hooks that run are in `running`.
    pub(super) fn options(&self, name: &Name, running: &Arc<RunningHooks>) -> Result<SeedOptions> {
        Ok(SeedOptions {
            hold_limit: self
                .hold_limit
                .map_or(HOLD_LIMIT_DEFAULT, Duration::from_secs),
            hooks: self.hooks.hooks(running),
            told: Box::new(|notice| tell(&notice)),
            ..SeedOptions::new(name.as_str().parse()?)
        })
    }

    /// Hands the ticket out: to the file first, so that whoever reads it here finds it written.
    pub(super) fn announce(&self, seeding: &Seeding) -> Result<()> {
        let ticket = seeding.ticket().reveal();
        if let Some(path) = &self.ticket_file {
            write_private(path, format!("{ticket}\n").as_bytes())?;
        }
        output::line(ticket)
    }
}

/// What a user wants to know.
fn tell(notice: &SeederNotice) {
    match notice {
        SeederNotice::Finalizing(to) => tracing::info!(to, "the volume is about to move"),
        SeederNotice::Resumed(reason) => {
            tracing::warn!(
                "the volume has not moved, and requests go on here: {}",
                reason
            );
        }
        SeederNotice::Moved(record) => tracing::warn!(
            "the volume has moved to {} (epoch {})",
            record.to,
            record.epoch.0
        ),
        SeederNotice::HookFailed(why) => tracing::warn!("the volume has moved, but {why}"),
        SeederNotice::RecordStuck(why) => tracing::error!(
            "requests wait: the record that the volume moves could be neither written nor taken back: \
             {why}. It is tried again every second"
        ),
        SeederNotice::TooLate => {
            tracing::warn!("it is too late: the volume has moved, or is just about to");
        }
        SeederNotice::ReleaseNotKept(why) => tracing::warn!(
            "the new owner has everything, but that cannot be recorded: {why}. It is tried again"
        ),
        SeederNotice::Released => tracing::info!("the new owner has everything"),
    }
}
