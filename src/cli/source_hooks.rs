//! Commands that are run when something happens to a volume that is seeded.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use blockferry::Error;
use blockferry::migrate::{Call, CallWithBytes, Freeze, PartCall, SourceHooks};

use super::hook_command::{HookCommand, RunningHooks};
use super::hooks::FedCommand;

/// The longest time that a command can be given: a day, in seconds.
const TIMEOUT_MAX_S: u64 = 86_400;

/// Commands, each run by `sh -c`.
#[derive(Debug, Clone, clap::Args)]
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

    /// Freeze the file system that is mounted there for as long as requests are held, after
    /// --on-before-sync, so that what it has cached moves with the volume. It is thawed when they go on,
    /// and when the volume has moved
    #[arg(long, value_name = "MOUNTPOINT")]
    freeze: Option<PathBuf>,

    /// How long each command of an --on-… option may take, in seconds. Then it is ended, with all processes
    /// that it has started, and has failed
    // Not under the heading of a service: `leech --on-chunk-local` goes without one.
    #[arg(long, value_name = "SECONDS", default_value = "30", help_heading = None::<&str>,
          value_parser = clap::value_parser!(u64).range(1..=TIMEOUT_MAX_S))]
    hook_timeout: u64,
}

impl SourceHookArgs {
    /// Whether there is anything to do.
    pub(super) fn is_any(&self) -> bool {
        let commands = [
            &self.on_before_sync,
            &self.on_after_sync,
            &self.on_before_close,
        ];
        self.freeze.is_some() || commands.into_iter().any(Option::is_some)
    }

    /// A command that is told of what has come.
    pub(super) fn told_of_parts(&self, text: String, running: &Arc<RunningHooks>) -> PartCall {
        let fed = FedCommand::new(HookCommand {
            option: "--on-chunk-local",
            text,
            limit: Duration::from_secs(self.hook_timeout),
            running: Arc::clone(running),
        });
        Arc::new(move |part| fed.tell(format!("{} {}\n", part.start, part.end - part.start)))
    }

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
        let frozen = Arc::new(Mutex::new(None));
        SourceHooks {
            before_sync: self.before_sync(plain("--on-before-sync", &self.on_before_sync), &frozen),
            undo: self.freeze.is_some().then(|| thaw(frozen)),
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

/// The file system that is frozen, if one is.
type Frozen = Arc<Mutex<Option<Freeze>>>;

impl SourceHookArgs {
    /// The command, and then the file system. It is opened for each attempt: it may be mounted late.
    fn before_sync(&self, command: Option<Call>, frozen: &Frozen) -> Option<Call> {
        let Some(mount_point) = self.freeze.clone() else {
            return command;
        };
        let frozen = Arc::clone(frozen);
        Some(Arc::new(move || {
            command.as_ref().map_or(Ok(()), |command| command())?;
            let file_system = Freeze::of(&mount_point).map_err(said)?;
            file_system.freeze().map_err(said)?;
            *lock(&frozen) = Some(file_system);
            Ok(())
        }))
    }
}

fn thaw(frozen: Frozen) -> Call {
    Arc::new(move || match lock(&frozen).take() {
        Some(file_system) => file_system.thaw().map_err(said),
        None => Ok(()),
    })
}

fn lock(frozen: &Frozen) -> MutexGuard<'_, Option<Freeze>> {
    frozen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn said(error: Error) -> String {
    error.chain()
}
