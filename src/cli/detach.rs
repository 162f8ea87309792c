//! Going on in the background, once the device is ready.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};

use blockferry::{Context, Error, ErrorKind, Result};

use super::bounded_log;
use super::failure::{self, Failure};
use super::output;

/// The file in the device's run-time directory that takes its log.
const LOG: &str = "log";

/// The longest line that is taken for a path, in bytes.
const LINE_BYTES_MAX: u64 = 8192;

/// Starts this program again with the same arguments, waits until its device is ready, and prints
/// the path in its place.
pub(super) fn run() -> Result<(), Failure> {
    let program = std::env::current_exe().context_io(|| "cannot find this program")?;
    let mut child = Command::new(program)
        .args(arguments())
        .stdout(Stdio::piped())
        // Its log is for a file in the end.
        .env("NO_COLOR", "1")
        .spawn()
        .context_io(|| "cannot start this program again")?;
    let mut path = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout.take(LINE_BYTES_MAX))
            .read_line(&mut path)
            .context_io(|| "cannot read from the process in the background")?;
    }
    if path.ends_with('\n') {
        return Ok(output::line(path.trim_end())?);
    }
    // It said why on standard error, which is ours.
    let status = child
        .wait()
        .context_io(|| "cannot wait for the process in the background")?;
    let ended = Error::new(
        ErrorKind::Io,
        format!("the process in the background ended ({status})"),
    );
    Err(match status.code() {
        Some(failure::USAGE) => Failure::Usage(ended),
        _ => Failure::Failed(ended),
    })
}

/// The arguments of this process, with `--detached` in place of `--detach`.
fn arguments() -> impl Iterator<Item = OsString> {
    std::env::args_os()
        .skip(1)
        .map(|argument| match argument.to_str() {
            Some("--detach") => "--detached".into(),
            _ => argument,
        })
}

/// For the process in the background, once its device is ready: leaves the terminal, logs to a file
/// in its run-time directory, and tells the waiting process the path. Fails if that one is gone.
pub(super) fn settle(directory: &Path, device: &Path) -> Result<()> {
    let path = directory.join(LOG);
    let context = || "cannot leave the terminal";
    let nothing = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .context_io(|| "cannot open /dev/null")?;
    let mut waiting = std::io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .map(File::from)
        .context_io(context)?;
    nix::unistd::dup2_stdin(&nothing).context_io(context)?;
    nix::unistd::dup2_stdout(&nothing).context_io(context)?;
    bounded_log::start(&path)?;
    // It fails only for the leader of a group, which a terminal does not end either.
    let _ = nix::unistd::setsid();
    writeln!(waiting, "{}", device.display())
        .context_io(|| "nobody waits for the device any more, so it is removed")
}
