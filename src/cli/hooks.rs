//! Commands that are run when something happens to a managed mount.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use blockferry::mount::managed::{Hook, Hooks};
use blockferry::volume::ChunkIndex;
use blockferry::{Context, Error, ErrorKind, Result};

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

    /// Run once, and told of each chunk that became local: a line `OFFSET LENGTH` on its standard input
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
                let told = Told {
                    command: text,
                    chunk_bytes,
                    child: Mutex::new(State::NotStarted),
                };
                let hook: Arc<dyn Fn(ChunkIndex) + Send + Sync> =
                    Arc::new(move |chunk| told.tell(chunk));
                hook
            }),
        }
    }
}

fn shell(text: &str) -> Command {
    let mut command = Command::new("sh");
    // What it prints is not an answer of ours.
    command
        .args(["-c", text])
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

/// A command that is told of chunks. It ends when its standard input does, with the mount.
struct Told {
    command: String,
    chunk_bytes: u64,
    child: Mutex<State>,
}

enum State {
    NotStarted,
    Running(Child),
    Gone,
}

impl Told {
    fn tell(&self, chunk: ChunkIndex) {
        let mut state = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::NotStarted = *state {
            *state = match shell(&self.command).stdin(Stdio::piped()).spawn() {
                Ok(child) => State::Running(child),
                Err(error) => {
                    tracing::warn!(command = self.command, %error, "cannot run it");
                    State::Gone
                }
            };
        }
        let State::Running(child) = &mut *state else {
            return;
        };
        let line = format!("{} {}\n", chunk.start(self.chunk_bytes), self.chunk_bytes);
        let told = child
            .stdin
            .as_mut()
            .map(|stdin| stdin.write_all(line.as_bytes()));
        if !matches!(told, Some(Ok(()))) {
            tracing::warn!(command = self.command, "it does not listen any more");
            *state = State::Gone;
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        let state = self.child.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let State::Running(child) = state {
            drop(child.stdin.take());
            let _ = child.wait();
        }
    }
}
