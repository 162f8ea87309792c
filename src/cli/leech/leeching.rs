//! A leecher until the volume is here, and what is left to do then.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::Duration;

use blockferry::device::{Device, DeviceOptions};
use blockferry::migrate::protocol::LeecherNotice;
use blockferry::migrate::{Destination, DestinationStatus, MigrationStatus};
use blockferry::ops::{Answers, Command, Control, Status};
use blockferry::volume::{Volume, format_size};
use blockferry::{Error, ErrorKind, Result};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

use super::super::migrate::explained;
use super::super::progress;
use super::super::signals::Signals;

/// How many notices may wait to be told.
pub(super) const NOTICES_MAX: usize = 64;

/// How long it may take until the downtime is known when the device is there.
const DOWNTIME_WAIT: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Leeching {
    pub(super) destination: Destination,
    pub(super) told: mpsc::Receiver<LeecherNotice>,
    pub(super) device: mpsc::Receiver<Box<dyn Device>>,
    pub(super) orders: Control,
    pub(super) signals: Signals,
}

/// What questions of other programs are answered with.
pub(super) fn answers(
    destination: &Destination,
    volume: &Arc<Volume>,
    options: &DeviceOptions,
) -> Answers {
    let (status, volume) = (destination.watch(), Arc::downgrade(volume));
    let (queues, depth) = (options.queues, options.depth);
    Answers::from(move || {
        let volume = volume.upgrade();
        Status {
            counters: volume.map(|volume| volume.counters()).unwrap_or_default(),
            queues,
            depth,
            last_error: status.borrow().lost.clone(),
            migration: Some(MigrationStatus::from(&*status.borrow())),
            ..Status::default()
        }
    })
}

impl Leeching {
    /// Waits until the volume is here. Gives its device.
    ///
    /// # Errors
    /// Why it is not.
    pub(super) async fn until_here(&mut self) -> Result<Box<dyn Device>> {
        let mut enter = enter_pressed();
        let mut to_answer = Vec::new();
        loop {
            tokio::select! {
                Some(device) = self.device.recv() => {
                    for order in to_answer {
                        refuse(order, "it is too late: the volume is here").await;
                    }
                    return Ok(device);
                }
                Some(notice) = self.told.recv() => {
                    let over = tell(&notice);
                    if let LeecherNotice::TooLate = notice {
                        for order in std::mem::take(&mut to_answer) {
                            refuse(order, TOO_LATE).await;
                        }
                    }
                    if let Some(why) = over {
                        let asked = !to_answer.is_empty();
                        for order in to_answer {
                            order.answer(Ok(())).await;
                        }
                        let lost = self.destination.status().lost;
                        return match (asked, lost) {
                            (true, _) => Err(Error::new(ErrorKind::TimedOut, why)),
                            (false, Some(lost)) => Err(Error::new(ErrorKind::Unreachable, lost)),
                            (false, None) => Err(Error::new(ErrorKind::Io, why)),
                        };
                    }
                }
                () = self.signals.next() => self.destination.abort().await,
                Some(()) = enter.recv() => self.destination.finalize().await,
                order = self.orders.order() => match order.command() {
                    Command::Finalize => {
                        self.destination.finalize().await;
                        order.answer(Ok(())).await;
                    }
                    Command::Abort | Command::Stop { .. } => {
                        self.destination.abort().await;
                        to_answer.push(order);
                    }
                    Command::Sync => refuse(order, "the volume is not here yet").await,
                },
            }
        }
    }

    /// For how long neither end took requests; none where that was not seen.
    pub(super) async fn downtime(&self) -> Option<Duration> {
        let mut status = self.destination.watch();
        let known = status.wait_for(|status| status.downtime.is_some());
        let _ = tokio::time::timeout(DOWNTIME_WAIT, known).await;
        self.destination.status().downtime
    }

    /// Goes on beside the device until the seeder is released.
    pub(super) fn go_on(self, runtime: &Runtime) -> (Control, Signals) {
        let Self {
            destination,
            mut told,
            orders,
            signals,
            ..
        } = self;
        runtime.spawn(async move {
            let mut status = destination.watch();
            loop {
                tokio::select! {
                    Some(notice) = told.recv() => drop(tell(&notice)),
                    // The connection ends with it.
                    _ = status.wait_for(|status| status.is_done) => break,
                }
            }
            while let Ok(notice) = told.try_recv() {
                tell(&notice);
            }
        });
        (orders, signals)
    }
}

const TOO_LATE: &str =
    "it is too late: the seeder may have moved the volume already; it is being asked";

async fn refuse(order: blockferry::ops::Order, why: &str) {
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

/// Tells a user. Gives why, if it is over.
fn tell(notice: &LeecherNotice) -> Option<String> {
    match notice {
        LeecherNotice::TargetOutOfReach => {
            tracing::warn!(
                "two round trips take longer than --downtime-target: it will be as short as possible"
            );
        }
        LeecherNotice::AttemptEnded(reason) => {
            tracing::warn!("the volume has not moved: {}", explained(reason));
        }
        LeecherNotice::NowManual => {
            tracing::warn!("it moves only when `blockferry finalize` says so from now on");
        }
        LeecherNotice::InDoubt => {
            tracing::warn!(
                "nobody but the seeder knows whether the volume is here; it is being asked"
            );
        }
        LeecherNotice::TooLate => tracing::warn!("{TOO_LATE}"),
        LeecherNotice::BytesAtSeeder => {
            tracing::error!("some of its bytes are at the seeder alone");
        }
        LeecherNotice::Owner(epoch) => tracing::info!(epoch = epoch.0, "the volume is here"),
        LeecherNotice::NoDevice(why) => {
            return Some(format!(
                "the volume is here, but its device could not be started: {why}; `blockferry mount` can \
                 try again"
            ));
        }
        LeecherNotice::TryingAgain(why) => tracing::warn!("{why}; it is tried again"),
        LeecherNotice::PulledDiffers => {
            tracing::error!("what was pulled is not what the seeder has; it is not released");
        }
        LeecherNotice::Done => tracing::info!("the seeder is released"),
        LeecherNotice::Over(reason) => {
            return Some(format!("the volume is not here: {}", explained(reason)));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

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
