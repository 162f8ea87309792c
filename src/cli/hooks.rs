//! Commands that are run when something happens to a managed mount.

use std::io::Write;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use blockferry::mount::managed::{Hook, Hooks};
use blockferry::volume::ChunkIndex;

use super::hook_command::{HookCommand, RunningHooks};

/// How many chunks a command may not have heard of yet.
const LINES_MAX: usize = 64 << 10;

/// The longest time that a command can be given: a day, in seconds.
const TIMEOUT_MAX_S: u64 = 86_400;

/// Commands, each run by `sh -c`.
#[derive(Debug, clap::Args)]
pub(super) struct HookArgs {
    /// Run before local writes are made durable at the origin by `sync` or the end of the mount; if it
    /// fails they are not
    #[arg(long, value_name = "COMMAND")]
    on_before_sync: Option<String>,

    /// Run after it; $BLOCKFERRY_PUSHED_BYTES says how many bytes went, zeros and discards left out
    #[arg(long, value_name = "COMMAND")]
    on_after_sync: Option<String>,

    /// Run before the mount ends, when its device is gone
    #[arg(long, value_name = "COMMAND")]
    on_before_close: Option<String>,

    /// Run once, and told of each chunk that became local: a line `OFFSET LENGTH` on its standard
    /// input, which ends with the mount. It holds up nothing, and has the time of --hook-timeout to
    /// end then
    #[arg(long, value_name = "COMMAND")]
    on_chunk_local: Option<String>,

    /// How long each of these commands may take, in seconds. Then it is ended, with all processes that
    /// it has started, and has failed; as it is by `stop --force` and a second signal
    #[arg(long, value_name = "SECONDS", default_value = "30",
          value_parser = clap::value_parser!(u64).range(1..=TIMEOUT_MAX_S))]
    hook_timeout: u64,
}

impl HookArgs {
    /// Whether there is a command.
    pub(super) fn is_any(&self) -> bool {
        let Self {
            on_before_sync,
            on_after_sync,
            on_before_close,
            on_chunk_local,
            hook_timeout: _,
        } = self;
        [
            on_before_sync,
            on_after_sync,
            on_before_close,
            on_chunk_local,
        ]
        .into_iter()
        .any(Option::is_some)
    }

    /// The commands as calls; those that run are in `running`.
    pub(super) fn hooks(&self, chunk_bytes: u64, running: &Arc<RunningHooks>) -> Hooks {
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
            let hook: Hook = Arc::new(move || command.run(&[]));
            Some(hook)
        };
        Hooks {
            before_sync: plain("--on-before-sync", &self.on_before_sync),
            after_sync: command("--on-after-sync", &self.on_after_sync).map(|command| {
                let hook: Arc<dyn Fn(u64) + Send + Sync> = Arc::new(move |pushed: u64| {
                    let variables = [("BLOCKFERRY_PUSHED_BYTES", pushed.to_string())];
                    if let Err(error) = command.run(&variables) {
                        tracing::warn!("{}", error.chain());
                    }
                });
                hook
            }),
            before_close: plain("--on-before-close", &self.on_before_close),
            chunk_is_local: command("--on-chunk-local", &self.on_chunk_local).map(|command| {
                let fed = FedCommand::new(command);
                let hook: Arc<dyn Fn(ChunkIndex) + Send + Sync> = Arc::new(move |chunk| {
                    fed.tell(format!("{} {chunk_bytes}\n", chunk.start(chunk_bytes)));
                });
                hook
            }),
        }
    }
}

/// A command that is told of chunks by a thread of its own. It is to end when its standard input does,
/// with the mount.
pub(super) struct FedCommand {
    command: HookCommand,
    teller: Mutex<Teller>,
}

struct Teller {
    state: State,
    /// The command, from its start on.
    child: Option<Child>,
}

enum State {
    NotStarted,
    Listens(SyncSender<String>),
    Gone,
}

impl FedCommand {
    pub(super) fn new(command: HookCommand) -> Self {
        Self {
            command,
            teller: Mutex::new(Teller {
                state: State::NotStarted,
                child: None,
            }),
        }
    }

    /// Never waits for the command.
    pub(super) fn tell(&self, line: String) {
        let mut teller = self.teller.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::NotStarted = teller.state {
            *teller = self.start();
        }
        let State::Listens(lines) = &teller.state else {
            return;
        };
        if let Err(error) = lines.try_send(line) {
            let why = match error {
                TrySendError::Full(_) => "it falls too far behind, and is told of no more chunks",
                TrySendError::Disconnected(_) => "it does not listen any more",
            };
            tracing::warn!(command = %self.command, "{why}");
            teller.state = State::Gone;
        }
    }

    fn start(&self) -> Teller {
        match self.command.command().stdin(Stdio::piped()).spawn() {
            Ok(mut child) => {
                let (lines, to_tell) = sync_channel(LINES_MAX);
                if let Some(stdin) = child.stdin.take() {
                    std::thread::spawn(move || pass_on(stdin, &to_tell));
                }
                Teller {
                    state: State::Listens(lines),
                    child: Some(child),
                }
            }
            Err(error) => {
                tracing::warn!(command = %self.command, %error, "cannot run it");
                Teller {
                    state: State::Gone,
                    child: None,
                }
            }
        }
    }
}

/// Tells a command until there is nothing more to tell or it does not listen.
fn pass_on(mut stdin: ChildStdin, lines: &Receiver<String>) {
    let mut told = Ok(());
    while let (Ok(()), Ok(line)) = (&told, lines.recv()) {
        told = stdin.write_all(line.as_bytes());
    }
}

impl Drop for FedCommand {
    fn drop(&mut self) {
        let teller = self.teller.get_mut();
        let teller = teller.unwrap_or_else(PoisonError::into_inner);
        teller.state = State::Gone;
        if let Some(child) = teller.child.take()
            && let Err(error) = self.command.wait(child)
        {
            tracing::warn!("{}", error.chain());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn fed(text: String, limit: Duration) -> FedCommand {
        FedCommand::new(HookCommand {
            option: "--on-chunk-local",
            text,
            limit,
            running: Arc::default(),
        })
    }

    #[test]
    fn a_command_that_does_not_listen_stops_nobody_and_is_ended_with_the_mount() {
        let fed = fed("exec sleep 600".to_owned(), Duration::from_millis(100));
        let begun = Instant::now();
        // More than the pipe and the queue hold.
        for chunk in 0..LINES_MAX + 100_000 {
            fed.tell(format!("{chunk} 4096\n"));
        }
        assert!(matches!(
            fed.teller.lock().expect("whole").state,
            State::Gone
        ));
        drop(fed);
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{:?}",
            begun.elapsed()
        );
    }

    #[test]
    fn all_that_was_told_has_arrived_when_it_ends() {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("chunks");
        let text = format!("sleep 0.2; exec cat >{}", file.display());
        let fed = fed(text, Duration::from_secs(60));
        let lines: Vec<String> = (0..1000).map(|chunk| format!("{chunk} 4096\n")).collect();
        lines.iter().for_each(|line| fed.tell(line.clone()));
        drop(fed);
        let arrived = std::fs::read_to_string(&file).expect("written");
        assert_eq!(arrived, lines.concat());
    }
}
