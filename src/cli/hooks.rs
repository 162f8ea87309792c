//! Commands that are run when something happens to a managed mount.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use blockferry::mount::managed::{Hook, Hooks};
use blockferry::volume::ChunkIndex;
use blockferry::{Context, Error, ErrorKind, Result};

/// How many chunks a command may not have heard of yet.
const LINES_MAX: usize = 64 << 10;

/// How long such a command may take to end when there is nothing more to tell.
const END_WAIT: Duration = Duration::from_secs(10);

/// Commands, each run by `sh -c`.
#[derive(Debug, clap::Args)]
pub(super) struct HookArgs {
    /// Run before local writes are made durable at the origin by `sync` or the end of the mount; if it
    /// fails they are not
    #[arg(long, value_name = "COMMAND")]
    on_before_sync: Option<String>,

    /// Run after it; $BLOCKFERRY_PUSHED_BYTES says how many bytes went
    #[arg(long, value_name = "COMMAND")]
    on_after_sync: Option<String>,

    /// Run before the mount ends, when its device is gone
    #[arg(long, value_name = "COMMAND")]
    on_before_close: Option<String>,

    /// Run once, and told of each chunk that became local: a line `OFFSET LENGTH` on its standard
    /// input, which ends with the mount. It holds up nothing, and has 10 seconds to end then
    #[arg(long, value_name = "COMMAND")]
    on_chunk_local: Option<String>,
}

impl HookArgs {
    /// Whether there is a command.
    pub(super) fn is_any(&self) -> bool {
        let Self {
            on_before_sync,
            on_after_sync,
            on_before_close,
            on_chunk_local,
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

    /// The commands as calls.
    pub(super) fn hooks(&self, chunk_bytes: u64) -> Hooks {
        let command = |text: &Option<String>| -> Option<Hook> {
            let text = text.clone()?;
            Some(Arc::new(move || run(&text, None)))
        };
        Hooks {
            before_sync: command(&self.on_before_sync),
            after_sync: self.on_after_sync.clone().map(|text| {
                let hook: Arc<dyn Fn(u64) + Send + Sync> = Arc::new(move |pushed| {
                    if let Err(error) = run(&text, Some(pushed)) {
                        tracing::warn!("{}", error.chain());
                    }
                });
                hook
            }),
            before_close: command(&self.on_before_close),
            chunk_is_local: self.on_chunk_local.clone().map(|text| {
                let told = Told::new(text);
                let hook: Arc<dyn Fn(ChunkIndex) + Send + Sync> = Arc::new(move |chunk| {
                    told.tell(format!("{} {chunk_bytes}\n", chunk.start(chunk_bytes)));
                });
                hook
            }),
        }
    }
}

fn shell(text: &str) -> Command {
    let mut command = Command::new("sh");
    // What it prints is not an answer of ours, and what interrupts us does not interrupt it.
    command
        .args(["-c", text])
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(std::io::stderr());
    command
}

fn run(text: &str, pushed_bytes: Option<u64>) -> Result<()> {
    let mut command = shell(text);
    if let Some(bytes) = pushed_bytes {
        command.env("BLOCKFERRY_PUSHED_BYTES", bytes.to_string());
    }
    let status = command
        .status()
        .context_io(|| format!("cannot run `{text}`"))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Io,
        format!("`{text}` ended with {status}"),
    ))
}

/// A command that is told of chunks by a thread of its own. It is to end when its standard input does,
/// with the mount.
struct Told {
    command: String,
    teller: Mutex<Teller>,
}

enum Teller {
    NotStarted,
    Running {
        lines: SyncSender<String>,
        ended: Receiver<()>,
    },
    Gone,
}

impl Told {
    fn new(command: String) -> Self {
        Self {
            command,
            teller: Mutex::new(Teller::NotStarted),
        }
    }

    /// Never waits for the command.
    fn tell(&self, line: String) {
        let mut teller = self.teller.lock().unwrap_or_else(PoisonError::into_inner);
        if let Teller::NotStarted = *teller {
            *teller = self.start();
        }
        let Teller::Running { lines, .. } = &*teller else {
            return;
        };
        if let Err(error) = lines.try_send(line) {
            let why = match error {
                TrySendError::Full(_) => "it falls too far behind, and is told of no more chunks",
                TrySendError::Disconnected(_) => "it does not listen any more",
            };
            tracing::warn!(command = self.command, "{why}");
            *teller = Teller::Gone;
        }
    }

    fn start(&self) -> Teller {
        let child = match shell(&self.command).stdin(Stdio::piped()).spawn() {
            Ok(child) => child,
            Err(error) => {
                tracing::warn!(command = self.command, %error, "cannot run it");
                return Teller::Gone;
            }
        };
        let (lines, to_tell) = sync_channel(LINES_MAX);
        let (end, ended) = sync_channel(1);
        std::thread::spawn(move || {
            pass_on(child, &to_tell);
            let _ = end.send(());
        });
        Teller::Running { lines, ended }
    }
}

/// Tells a command until there is nothing more to tell or it does not listen, and waits for its end.
fn pass_on(mut child: Child, lines: &Receiver<String>) {
    if let Some(mut stdin) = child.stdin.take() {
        let mut told = Ok(());
        while let (Ok(()), Ok(line)) = (&told, lines.recv()) {
            told = stdin.write_all(line.as_bytes());
        }
    }
    let _ = child.wait();
}

impl Drop for Told {
    fn drop(&mut self) {
        let teller = self.teller.get_mut();
        let teller = teller.unwrap_or_else(PoisonError::into_inner);
        if let Teller::Running { lines, ended } = std::mem::replace(teller, Teller::Gone) {
            drop(lines);
            if ended.recv_timeout(END_WAIT) == Err(RecvTimeoutError::Timeout) {
                tracing::warn!(
                    command = self.command,
                    "it has not ended, and is left alone"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_command_that_does_not_listen_stops_nobody() {
        let told = Told::new("exec sleep 60".to_owned());
        let begun = Instant::now();
        // More than the pipe and the queue hold.
        for chunk in 0..LINES_MAX + 100_000 {
            told.tell(format!("{chunk} 4096\n"));
        }
        assert!(matches!(*told.teller.lock().expect("whole"), Teller::Gone));
        drop(told);
        assert!(begun.elapsed() < END_WAIT, "{:?}", begun.elapsed());
    }

    #[test]
    fn all_that_was_told_has_arrived_when_it_ends() {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("chunks");
        let told = Told::new(format!("sleep 0.2; exec cat >{}", file.display()));
        let lines: Vec<String> = (0..1000).map(|chunk| format!("{chunk} 4096\n")).collect();
        lines.iter().for_each(|line| told.tell(line.clone()));
        drop(told);
        let arrived = std::fs::read_to_string(&file).expect("written");
        assert_eq!(arrived, lines.concat());
    }
}
