//! Commands that are run when something happens to a volume that is seeded.

use std::sync::Arc;
use std::time::Duration;

use blockferry::Error;
use blockferry::migrate::{Call, CallWithBytes, SourceHooks};

use super::hook_command::{HookCommand, RunningHooks};

/// The longest time that a command can be given: a day, in seconds.
const TIMEOUT_MAX_S: u64 = 86_400;

/// Commands, each run by `sh -c`.
#[derive(Debug, clap::Args)]
pub(super) struct SourceHookArgs {
    /// Run before requests are held, to have what applications and file systems have cached written. If
    /// it fails the volume does not move now
    #[arg(long, value_name = "COMMAND")]
    on_before_sync: Option<String>,

    /// Run while requests are held, when all is durable; $BLOCKFERRY_DIRTY_BYTES says how many bytes
    /// are left to send. If it fails the volume does not move now
    #[arg(long, value_name = "COMMAND")]
    on_after_sync: Option<String>,

    /// Run when the volume has moved, before its device goes
    #[arg(long, value_name = "COMMAND")]
    on_before_close: Option<String>,

    /// How long each of these commands may take, in seconds. Then it is ended, with all processes that
    /// it has started, and has failed
    #[arg(long, value_name = "SECONDS", default_value = "30",
          value_parser = clap::value_parser!(u64).range(1..=TIMEOUT_MAX_S))]
    hook_timeout: u64,
}

impl SourceHookArgs {
    /// The commands as calls; those that run are in `running`.
    pub(super) fn hooks(&self, running: &Arc<RunningHooks>) -> SourceHooks {
        let command = |option, text: &Option<String>| {
            let text = text.clone()?;
            Some(HookCommand {
                option,
                text,
                limit: Duration::from_secs(self.hook_timeout),
                running: Arc::clone(running),
            })
        };
        let plain = |option, text| {
            let command: HookCommand = command(option, text)?;
            let call: Call = Arc::new(move || command.run(&[]).map_err(said));
            Some(call)
        };
        SourceHooks {
            before_sync: plain("--on-before-sync", &self.on_before_sync),
            after_sync: command("--on-after-sync", &self.on_after_sync).map(|command| {
                let call: CallWithBytes = Arc::new(move |bytes: u64| {
                    let variables = [("BLOCKFERRY_DIRTY_BYTES", bytes.to_string())];
                    command.run(&variables).map_err(said)
                });
                call
            }),
            before_close: plain("--on-before-close", &self.on_before_close),
        }
    }
}

fn said(error: Error) -> String {
    error.chain()
}
