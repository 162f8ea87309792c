//! A command that is run when something happens: in a process group of its own, and not for ever.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use blockferry::ops::{RunningHook, unix_seconds};
use blockferry::{Context, Error, ErrorKind, Result};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

/// How long a command that is ended may take to tidy up, and how long it is waited for after it was
/// killed.
const LAST_WAIT: Duration = Duration::from_secs(2);

/// A command, run by `sh -c`.
#[derive(Debug, Clone)]
pub(super) struct HookCommand {
    /// The option that it was given by.
    pub(super) option: &'static str,
    pub(super) text: String,
    /// How long it may take.
    pub(super) limit: Duration,
    pub(super) running: Arc<RunningHooks>,
}

/// What the one who waits for a command is told.
enum Event {
    Ended,
    /// Somebody does not want to wait any longer.
    EndIt,
}

impl HookCommand {
    /// Runs it to its end.
    ///
    /// # Errors
    /// When it fails, or does not end in its time.
    pub(super) fn run(&self, variables: &[(&str, String)]) -> Result<()> {
        let mut command = self.command();
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        let child = command
            .spawn()
            .context_io(|| format!("cannot run {self}"))?;
        self.wait(child)
    }

    /// The command to be started.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new("sh");
        // What it prints is not an answer of ours, and what interrupts us does not interrupt it.
        command
            .args(["-c", &self.text])
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(io::stderr());
        command
    }

    /// Waits for its end, for no longer than it may take.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub(super) fn wait(&self, mut child: Child) -> Result<()> {
        let entry = self.running.enter(self);
        watch(&child, entry.sender.clone());
        let over = match entry.events.recv_timeout(self.limit) {
            Ok(Event::Ended) => None,
            Ok(Event::EndIt) => {
                Some("was still running when the mount was told to end at once".to_owned())
            }
            Err(_) => Some(format!(
                "did not end within {} s (--hook-timeout)",
                self.limit.as_secs_f32()
            )),
        };
        let Some(over) = over else {
            let status = child
                .wait()
                .context_io(|| format!("cannot wait for {self}"))?;
            return self.judge(status);
        };
        let how = match end_group(&mut child, &entry.events) {
            true => "it was ended, with all processes that it had started",
            false => "it was killed, and has not ended yet",
        };
        Err(Error::new(
            ErrorKind::TimedOut,
            format!("{self} {over}; {how}"),
        ))
    }

    fn judge(&self, status: ExitStatus) -> Result<()> {
        match status.success() {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Io,
                format!("{self} ended with {status}"),
            )),
        }
    }
}

impl std::fmt::Display for HookCommand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} `{}`", self.option, self.text)
    }
}

/// Says when the command has ended. It is not reaped by that, so that its number stays its own.
fn watch(child: &Child, events: Sender<Event>) {
    let child = Pid::from_raw(child.id() as i32);
    std::thread::spawn(move || {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        while waitid(Id::Pid(child), flags) == Err(nix::errno::Errno::EINTR) {}
        let _ = events.send(Event::Ended);
    });
}

/// Ends the command and all that is in its group: by SIGTERM, and what is left a moment later by
/// SIGKILL. Whether it is gone by then.
fn end_group(child: &mut Child, events: &Receiver<Event>) -> bool {
    let group = Pid::from_raw(child.id() as i32);
    let has_ended = || {
        let end = std::time::Instant::now() + LAST_WAIT;
        loop {
            match events.recv_timeout(end.saturating_duration_since(std::time::Instant::now())) {
                Ok(Event::Ended) => return true,
                Ok(Event::EndIt) => {}
                Err(_) => return false,
            }
        }
    };
    // It is not reaped, so the group is there.
    let _ = killpg(group, Signal::SIGTERM);
    let ended = has_ended();
    let _ = killpg(group, Signal::SIGKILL);
    let gone = ended || has_ended();
    if gone {
        let _ = child.wait();
    }
    gone
}

/// The commands of a mount that somebody waits for.
#[derive(Debug, Default)]
pub(super) struct RunningHooks(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    running: BTreeMap<u64, (RunningHook, Sender<Event>)>,
}

impl RunningHooks {
    /// Ends those that run now.
    pub(super) fn end_all(&self) {
        for (_, events) in self.lock().running.values() {
            // It may just have ended.
            let _ = events.send(Event::EndIt);
        }
    }

    /// Those that run now.
    pub(super) fn list(&self) -> Vec<RunningHook> {
        let table = self.lock();
        table
            .running
            .values()
            .map(|(hook, _)| hook.clone())
            .collect()
    }

    fn enter(&self, command: &HookCommand) -> Entry<'_> {
        let (sender, events) = channel();
        let hook = RunningHook {
            option: command.option.to_owned(),
            command: command.text.clone(),
            since: unix_seconds(),
        };
        let mut table = self.lock();
        let number = table.next;
        table.next += 1;
        table.running.insert(number, (hook, sender.clone()));
        Entry {
            hooks: self,
            number,
            sender,
            events,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A command in the table, until this is dropped.
struct Entry<'a> {
    hooks: &'a RunningHooks,
    number: u64,
    sender: Sender<Event>,
    events: Receiver<Event>,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.hooks.lock().running.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;
    use std::time::Instant;

    fn command(text: String, limit: Duration) -> HookCommand {
        HookCommand {
            option: "--on-before-close",
            text,
            limit,
            running: Arc::default(),
        }
    }

    /// Ignores what it is asked, and so does a child of it.
    fn stubborn(directory: &Path) -> String {
        format!(
            "trap '' TERM; (sleep 600) & echo $$ >{}; sleep 600",
            directory.join("parent").display()
        )
    }

    fn processes_of_group(group: i32) -> usize {
        let all = fs::read_dir("/proc").expect("readable").flatten();
        all.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok())
            .filter(|stat| {
                let fields: Vec<&str> = stat
                    .rsplit(')')
                    .next()
                    .unwrap_or_default()
                    .split_whitespace()
                    .collect();
                fields.first() != Some(&"Z") && fields.get(2) == Some(&group.to_string().as_str())
            })
            .count()
    }

    #[test]
    fn what_does_not_end_in_its_time_is_ended_with_all_its_children_and_named() {
        let directory = tempfile::tempdir().expect("directory");
        let hook = command(stubborn(directory.path()), Duration::from_millis(500));
        let begun = Instant::now();
        let error = hook.run(&[]).expect_err("it hangs").to_string();
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{:?}",
            begun.elapsed()
        );
        for part in [
            "--on-before-close `trap",
            "within 0.5 s (--hook-timeout)",
            "was ended",
        ] {
            assert!(error.contains(part), "{error}");
        }
        let group = fs::read_to_string(directory.path().join("parent")).expect("it ran");
        let group: i32 = group.trim().parse().expect("a number");
        let deadline = Instant::now() + Duration::from_secs(60);
        while processes_of_group(group) > 0 {
            assert!(Instant::now() < deadline, "a child has survived");
            std::thread::yield_now();
        }
        assert!(hook.running.list().is_empty());
    }

    #[test]
    fn who_does_not_want_to_wait_ends_those_that_run_and_none_that_come_later() {
        let hook = command("sleep 600".to_owned(), Duration::from_secs(600));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| hook.run(&[]));
            while hook.running.list().is_empty() {
                std::thread::yield_now();
            }
            assert_eq!(hook.running.list()[0].option, "--on-before-close");
            hook.running.end_all();
            let error = waiting.join().expect("no panic").expect_err("it hangs");
            assert!(error.to_string().contains("told to end at once"), "{error}");
        });
        let later = HookCommand {
            text: "exit 0".to_owned(),
            ..hook
        };
        later.run(&[]).expect("it runs");
    }
}
