//! Who may write a volume: the rules, without I/O and without a clock.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::wire::control::{Refusal, Refused};

/// What is kept of a volume's lease.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Grows with each new holder.
    pub(super) epoch: u64,
    pub(super) holder: Option<Holder>,
}

/// Who writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Holder {
    pub(super) client_id: [u8; 16],
    pub(super) name: String,
    pub(super) since_unix_s: u64,
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asking<'a> {
    pub(super) client_id: [u8; 16],
    pub(super) name: &'a str,
    pub(super) takeover: bool,
    /// The epoch that it was granted before; 0 for none.
    pub(super) known_epoch: u64,
    pub(super) now_unix_s: u64,
}

/// What becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It holds the lease already.
    GoesOn,
    /// It holds the lease once this record is durable, and once `fenced` can write no more.
    Granted {
        record: Record,
        fenced: Option<[u8; 16]>,
    },
    /// It does not.
    Refused(Refused),
}

/// Decides. `away_for` is how long the holder has been disconnected, `None` while it is there;
/// after `lease` the volume is free, because a holder has nothing that it has not sent.
pub(super) fn decide(
    record: &Record,
    away_for: Option<Duration>,
    lease: Duration,
    asking: Asking<'_>,
) -> Verdict {
    let held_before = asking.known_epoch != 0;
    if held_before && asking.known_epoch != record.epoch {
        return Verdict::Refused(fenced(record));
    }
    let grant = |epoch, fenced| Verdict::Granted {
        record: Record {
            epoch,
            holder: Some(asking.as_holder()),
        },
        fenced,
    };
    let next = record.epoch.saturating_add(1);
    match &record.holder {
        Some(holder) if holder.client_id == asking.client_id => Verdict::GoesOn,
        // Nobody has held it since: the epoch says so.
        None if held_before => grant(record.epoch, None),
        None => grant(next, None),
        Some(holder) if asking.takeover => grant(next, Some(holder.client_id)),
        Some(holder) if away_for.is_some_and(|away| away >= lease) => {
            grant(next, Some(holder.client_id))
        }
        Some(holder) => Verdict::Refused(held(holder, away_for, lease)),
    }
}

impl Asking<'_> {
    fn as_holder(&self) -> Holder {
        Holder {
            client_id: self.client_id,
            name: self.name.to_owned(),
            since_unix_s: self.now_unix_s,
        }
    }
}

fn fenced(record: &Record) -> Refused {
    let message = match &record.holder {
        Some(holder) => format!(
            "`{}` has taken the volume over at {}; mount it again to use it",
            holder.name,
            utc(holder.since_unix_s)
        ),
        None => "another writer has had the volume since; mount it again to use it".to_owned(),
    };
    Refused {
        reason: Refusal::Fenced,
        message,
    }
}

fn held(holder: &Holder, away_for: Option<Duration>, lease: Duration) -> Refused {
    let state = match away_for {
        None => "is connected".to_owned(),
        Some(away) => format!(
            "is disconnected, and keeps it for another {} s",
            (lease.saturating_sub(away)).as_secs() + 1
        ),
    };
    Refused {
        reason: Refusal::Held,
        message: format!(
            "`{}` has it mounted writable since {} and {state}; mount it with --read-only, or \
             with --takeover, after which `{}` can write it no more",
            holder.name,
            utc(holder.since_unix_s),
            holder.name,
        ),
    }
}

/// A time for people: `2026-11-23 01:43:00 UTC`.
fn utc(unix_s: u64) -> String {
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    let (year, month, day) = civil_from_days(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// The date of a day counted from 1970-01-01. Years begin in March here, so that a leap day is the
/// last of its year.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
