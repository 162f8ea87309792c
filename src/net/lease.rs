//! Who may write a volume: the rules, without I/O and without a clock.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::wire::control::{ManagedStore, Refusal, Refused};

/// What is kept of a volume's lease.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Grows with each new holder.
    pub(super) epoch: u64,
    pub(super) holder: Option<Holder>,
    /// The local store of the last holder, if that was a managed mount. It stays when the lease is
    /// given back: only this store may go on under the epoch.
    #[serde(default)]
    pub(super) managed: Option<LastOpening>,
}

/// The opening of a local store that was welcomed last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LastOpening {
    pub(super) store: [u8; 16],
    /// Zeros in a record of an earlier version, which counted openings: nobody can go on with that.
    #[serde(default)]
    pub(super) token: [u8; 16],
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
    /// Its local store, if it is a managed mount.
    pub(super) managed: Option<ManagedStore>,
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

/// Decides. `away_for` is how long the holder has been disconnected, `None` while it is there.
/// After `lease` the volume is free if the holder is a direct mount, which has nothing that it has
/// not sent; what a managed one has not sent nobody here can know.
pub(super) fn decide(
    record: &Record,
    away_for: Option<Duration>,
    lease: Duration,
    asking: Asking<'_>,
) -> Verdict {
    let held_before = asking.known_epoch != 0;
    if held_before && asking.known_epoch != record.epoch {
        return Verdict::Refused(fenced(record, asking.known_epoch));
    }
    let holder = record.holder.as_ref();
    if holder.is_some_and(|holder| holder.client_id == asking.client_id) {
        return Verdict::GoesOn;
    }
    let grant = |epoch| Verdict::Granted {
        record: Record {
            epoch,
            holder: Some(asking.as_holder()),
            managed: asking.managed.map(|managed| managed.as_last()),
        },
        fenced: holder.map(|holder| holder.client_id),
    };
    let next = record.epoch.saturating_add(1);
    let run_out = record.managed.is_none() && away_for.is_some_and(|away| away >= lease);
    match (holder, asking.managed) {
        // A process before this one, of the same store, is gone.
        (_, Some(managed)) if managed.follows(record.managed) => {
            grant(if held_before { record.epoch } else { next })
        }
        (_, Some(_)) if held_before => Verdict::Refused(copied(record)),
        // Nobody has held it since: the epoch says so.
        (None, None) if held_before => grant(record.epoch),
        (None, _) => grant(next),
        (Some(_), _) if asking.takeover || run_out => grant(next),
        (Some(holder), _) => Verdict::Refused(held(record, holder, away_for, lease)),
    }
}

impl ManagedStore {
    /// Whether it is the store that held the lease last, and nobody else has gone on with that: a copy of
    /// it knows no opening that came after it was made.
    fn follows(&self, last: Option<LastOpening>) -> bool {
        last.is_some_and(|last| {
            let known = self.earlier.iter().chain([&self.opening]);
            let knows =
                last.token != [0; 16] && known.into_iter().any(|token| *token == last.token);
            last.store == self.store && knows
        })
    }

    fn as_last(&self) -> LastOpening {
        LastOpening {
            store: self.store,
            token: self.opening,
        }
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

fn fenced(record: &Record, known_epoch: u64) -> Refused {
    let since = match &record.holder {
        Some(holder) => format!(
            "`{}` has taken the volume over at {}",
            holder.name,
            utc(holder.since_unix_s)
        ),
        None => "another writer has had the volume since".to_owned(),
    };
    Refused {
        reason: Refusal::Fenced,
        message: format!(
            "{since} (its epoch is {} now, and was {known_epoch}), and a mount from before that cannot go on",
            record.epoch
        ),
    }
}

fn copied(record: &Record) -> Refused {
    Refused {
        reason: Refusal::Fenced,
        message: format!(
            "another copy of this local store was mounted since this one was, or another store \
             (epoch {}): its directory may have been copied or restored",
            record.epoch
        ),
    }
}

fn held(record: &Record, holder: &Holder, away_for: Option<Duration>, lease: Duration) -> Refused {
    let managed = record.managed.is_some();
    let state = match away_for {
        None => "is connected".to_owned(),
        Some(_) if managed => "is disconnected".to_owned(),
        Some(away) => format!(
            "is disconnected, and keeps it for another {} s",
            (lease.saturating_sub(away)).as_secs() + 1
        ),
    };
    let (name, since) = (&holder.name, utc(holder.since_unix_s));
    let message = if managed {
        format!(
            "`{name}` has it in a managed mount since {since}, {state}, and may hold writes that \
             it has not sent; mount it with --read-only, or with --takeover, after which `{name}` \
             can write it no more and these writes are lost"
        )
    } else {
        format!(
            "`{name}` has it mounted writable since {since} and {state}; mount it with \
             --read-only, or with --takeover, after which `{name}` can write it no more"
        )
    };
    Refused {
        reason: Refusal::Held,
        message,
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
