//! A leecher until the volume is here.

use std::io::{self, IsTerminal};
use std::sync::{Arc, OnceLock};

use blockferry::device::{Device, DeviceOptions};
use blockferry::migrate::protocol::LeecherNotice;
use blockferry::migrate::{Arrived, DestinationStatus, Leeching, MigrationStatus, SourceStatus};
use blockferry::ops::{Answers, Command, Control, Order, Status};
use blockferry::volume::format_size;
use blockferry::{Error, ErrorKind, Result};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

use super::super::hook_command::RunningHooks;
use super::super::progress;
use super::super::signals::Signals;

/// How many notices may wait to be told.
pub(super) const NOTICES_MAX: usize = 64;

/// See the module.
pub(super) struct Waiting {
    pub(super) leeching: Leeching,
    pub(super) told: mpsc::Receiver<LeecherNotice>,
    pub(super) orders: Control,
    pub(super) signals: Signals,
}

/// What questions of other programs are answered with; from when it is seeded on, as a seeder.
pub(super) fn answers(
    leeching: &Leeching,
    options: &DeviceOptions,
    seeds: &Arc<OnceLock<watch::Receiver<SourceStatus>>>,
    hooks: &Arc<RunningHooks>,
) -> Answers {
    let (status, volume) = (leeching.watch(), leeching.volume());
    let (queues, depth) = (options.queues, options.depth);
    let (seeds, hooks) = (Arc::clone(seeds), Arc::clone(hooks));
    Answers::from(move || {
        let volume = volume();
        let (lost, rest) = {
            let status = status.borrow();
            (status.lost.clone(), status.rest.clone())
        };
        let away_since = rest.as_ref().and_then(|rest| rest.away_since);
        let migration = match seeds.get() {
            Some(seeds) => MigrationStatus::from(&*seeds.borrow()),
            None => MigrationStatus::from(&*status.borrow()),
        };
        Status {
            away_since,
            counters: volume.map(|volume| volume.counters()).unwrap_or_default(),
            queues,
            depth,
            hooks: hooks.list(),
            last_error: lost.or(rest.and_then(|rest| rest.last_error)),
            migration: Some(migration),
            ..Status::default()
        }
    })
}

impl Waiting {
    /// Waits until the volume is here. Gives its device.
    ///
    /// # Errors
    /// Why it is not.
    pub(super) async fn until_here(&mut self) -> Result<Box<dyn Device>> {
        let mut enter = enter_pressed();
        let mut to_answer = Vec::new();
        let mut is_too_late = false;
        loop {
            tokio::select! {
                here = self.leeching.here() => {
                    while let Ok(notice) = self.told.try_recv() {
                        tell(&notice);
                    }
                    let asked = !to_answer.is_empty();
                    for order in to_answer {
                        match &here {
                            Ok(_) => refuse(order, "it is too late: the volume is here").await,
                            Err(_) => order.answer(Ok(())).await,
                        }
                    }
                    return here.map_err(|error| match asked {
                        true => Error::new(ErrorKind::TimedOut, error.chain()),
                        false => error,
                    });
                }
                Some(notice) = self.told.recv() => {
                    tell(&notice);
                    if let LeecherNotice::TooLate = notice {
                        is_too_late = true;
                        let orders = std::mem::take(&mut to_answer);
                        let (forced, others): (Vec<_>, Vec<_>) =
                            orders.into_iter().partition(is_forced);
                        for order in others {
                            refuse(order, TOO_LATE).await;
                        }
                        let ends = !forced.is_empty();
                        for order in forced {
                            order.answer(Ok(())).await;
                        }
                        if ends {
                            return Err(left_in_doubt());
                        }
                    }
                }
                () = self.signals.next() => match is_too_late {
                    true => return Err(left_in_doubt()),
                    false => self.leeching.abort().await,
                },
                Some(()) = enter.recv() => self.leeching.ask_to_finalize().await,
                order = self.orders.order() => match order.command() {
                    Command::Finalize => {
                        self.leeching.ask_to_finalize().await;
                        order.answer(Ok(())).await;
                    }
                    Command::Abort | Command::Stop { .. } => {
                        self.leeching.abort().await;
                        to_answer.push(order);
                    }
                    Command::Sync => refuse(order, "the volume is not here yet").await,
                },
            }
        }
    }

    /// What is here, with what is told of it from now on.
    pub(super) fn arrived(self, runtime: &Runtime) -> (Arrived, Control, Signals) {
        let Self {
            leeching,
            mut told,
            orders,
            signals,
        } = self;
        // It ends with the leecher's task.
        runtime.spawn(async move {
            while let Some(notice) = told.recv().await {
                tell(&notice);
            }
        });
        (leeching.arrived(), orders, signals)
    }
}

const TOO_LATE: &str = "it is too late: the seeder may have moved the volume already; it is being asked. A second \
                        signal, or stop with force, ends this all the same: the same command asks again";

/// The record is durable: whoever comes next asks.
fn left_in_doubt() -> Error {
    let what = "told to end when the volume may be here already: the same command finds that out, and until \
                then nothing can use the store";
    Error::new(ErrorKind::TimedOut, what)
}

fn is_forced(order: &Order) -> bool {
    matches!(order.command(), Command::Stop { force: true, .. })
}

async fn refuse(order: Order, why: &str) {
    order.answer(Err(Error::new(ErrorKind::Busy, why))).await;
}

/// Draws how far it is.
pub(super) async fn draw(mut status: watch::Receiver<DestinationStatus>) {
    loop {
        let now = status.borrow_and_update().clone();
        progress::show_share(now.pulled_bytes, now.round_bytes, told(&now));
        if status.changed().await.is_err() {
            return;
        }
    }
}

/// Draws how much is still at the seeder, until that is released.
pub(super) async fn draw_rest(mut status: watch::Receiver<DestinationStatus>) {
    let mut all = 0;
    loop {
        let (rest, is_lost) = {
            let status = status.borrow_and_update();
            (status.rest.clone(), status.lost.is_some())
        };
        let left = rest.as_ref().map_or(0, |rest| rest.left_bytes);
        all = all.max(left);
        let text = match &rest {
            Some(_) if is_lost => format!("{} to pull, the seeder is lost", format_size(left)),
            Some(rest) if rest.away_since.is_some() => {
                format!("{} to pull, the seeder is away", format_size(left))
            }
            Some(_) if left > 0 => format!("pulling the rest: {} left", format_size(left)),
            Some(_) => "comparing the rest".to_owned(),
            None => "all of it is here".to_owned(),
        };
        progress::show_share(all - left, all, text);
        if status.changed().await.is_err() {
            return;
        }
    }
}

fn told(status: &DestinationStatus) -> String {
    let what = match status.final_bytes {
        Some(_) => "the rest".to_owned(),
        None => format!("round {}", status.rounds + 1),
    };
    let (pulled, all) = (status.pulled_bytes, status.round_bytes);
    let mut text = format!("{what}: {} of {}", format_size(pulled), format_size(all));
    if let Some(rate) = status.dirty_bytes_per_s {
        text.push_str(&format!(", {}/s written there", format_size(rate)));
    }
    if let Some(predicted) = status.predicted {
        text.push_str(&format!(", {} ms of downtime", predicted.as_millis()));
    }
    text
}

/// Says when Enter is pressed, if there is a terminal to do it on.
fn enter_pressed() -> mpsc::Receiver<()> {
    let (pressed, enter) = mpsc::channel(1);
    if io::stdin().is_terminal() {
        std::thread::spawn(move || {
            let mut line = String::new();
            while io::stdin()
                .read_line(&mut line)
                .is_ok_and(|bytes| bytes > 0)
            {
                if pressed.blocking_send(()).is_err() {
                    return;
                }
            }
        });
    }
    enter
}

/// Tells a user.
fn tell(notice: &LeecherNotice) {
    match notice {
        LeecherNotice::TargetOutOfReach => {
            tracing::warn!(
                "two round trips take longer than --downtime-target: it will be as short as possible"
            );
        }
        LeecherNotice::AttemptEnded(reason) => {
            tracing::warn!("the volume has not moved: {}", reason);
        }
        LeecherNotice::NowManual => {
            tracing::warn!("it moves only when `blockferry finalize` says so from now on");
        }
        LeecherNotice::InDoubt => {
            tracing::warn!(
                "nobody but the seeder knows whether the volume is here; it is being asked (if it is gone for \
                 good: --assume-committed)"
            );
        }
        LeecherNotice::TooLate => tracing::warn!("{TOO_LATE}"),
        LeecherNotice::BytesAtSeeder => {
            tracing::error!("some of its bytes are at the seeder alone");
        }
        LeecherNotice::Owner(epoch) => tracing::info!(epoch = epoch.0, "the volume is here"),
        LeecherNotice::SeederLost(why) => {
            tracing::error!(
                "the volume is here, but the seeder cannot be reached by this ticket any more, and is not \
                 released: {why}. What is still there is pulled when this has ended and the same command is \
                 given a new ticket"
            );
        }
        // They are why this ends.
        LeecherNotice::LeftInDoubt | LeecherNotice::NoDevice(_) | LeecherNotice::Over(_) => {}
        LeecherNotice::TryingAgain(why) => tracing::warn!("{why}; it is tried again"),
        LeecherNotice::PulledDiffers => {
            tracing::error!("what was pulled is not what the seeder has; it is not released");
        }
        LeecherNotice::Done => tracing::info!("the seeder is released"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn it_tells_the_round_and_what_is_known_of_the_downtime() {
        let first = DestinationStatus {
            round_bytes: 1 << 30,
            pulled_bytes: 256 << 20,
            ..DestinationStatus::default()
        };
        assert_eq!(told(&first), "round 1: 256MiB of 1GiB");
        let later = DestinationStatus {
            rounds: 2,
            dirty_bytes_per_s: Some(10 << 20),
            predicted: Some(Duration::from_millis(42)),
            ..first
        };
        let line = "round 3: 256MiB of 1GiB, 10MiB/s written there, 42 ms of downtime";
        assert_eq!(told(&later), line);
    }
}
