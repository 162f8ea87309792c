//! How far a migration is, for other programs.

use serde::{Deserialize, Serialize};

use super::destination::{DestinationStatus, RestStatus};
use super::source::SourceStatus;

/// One end's view of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MigrationStatus {
    /// `seeder` or `leecher`.
    pub role: String,
    /// `serving`, `finalizing`, `moved` or `released` at the seeder; `pulling`, `finalizing`, `pulling the
    /// rest`, `comparing the rest`, `the rest differs`, `owner` or `done` at the leecher.
    pub phase: String,
    /// Who has the volume, as far as this end knows: `here`, or a name.
    pub owner: Option<String>,
    /// In which epoch, if it has moved from here.
    pub epoch: Option<u64>,
    /// At the seeder: how many leechers there are.
    pub leechers: Option<usize>,
    /// At the seeder: who finalizes.
    pub finalizing: Option<String>,
    /// At the leecher: how many rounds were pulled.
    pub rounds: Option<u32>,
    /// At the leecher: the bytes of the round under way, and how many of them are here.
    pub round_bytes: Option<u64>,
    /// See there.
    pub pulled_bytes: Option<u64>,
    /// At the leecher: how many bytes were asked for in all. What its store had from before is not.
    pub fetched_bytes: Option<u64>,
    /// At the leecher: what is written at the seeder each second, in bytes.
    pub dirty_bytes_per_s: Option<u64>,
    /// At the leecher: how long the hold would be now.
    pub predicted_downtime_ms: Option<u64>,
    /// At the leecher that has the volume: how many of its bytes are still at the seeder alone.
    pub rest_bytes: Option<u64>,
    /// At the leecher: since when the seeder that has these cannot be reached, in seconds since 1970.
    pub away_since: Option<u64>,
    /// At the seeder: the new owner has not everything yet.
    pub needed: Option<bool>,
    /// At the leecher: how long neither end took requests.
    pub downtime_ms: Option<f64>,
}

impl From<&SourceStatus> for MigrationStatus {
    fn from(status: &SourceStatus) -> Self {
        let phase = match status {
            SourceStatus { released: true, .. } => "released",
            SourceStatus {
                moved_to: Some(_), ..
            } => "moved",
            SourceStatus {
                finalizing: Some(_),
                ..
            } => "finalizing",
            _ => "serving",
        };
        let owner = match &status.moved_to {
            Some((to, _)) => to.clone(),
            None => "here".to_owned(),
        };
        Self {
            role: "seeder".to_owned(),
            phase: phase.to_owned(),
            owner: Some(owner),
            epoch: status.moved_to.as_ref().map(|(_, epoch)| *epoch),
            leechers: Some(status.leechers),
            finalizing: status.finalizing.clone(),
            needed: status.is_needed().then_some(true),
            ..Self::default()
        }
    }
}

impl From<&DestinationStatus> for MigrationStatus {
    fn from(status: &DestinationStatus) -> Self {
        let phase = match status {
            DestinationStatus { is_owner: true, .. } if status.is_done => "done",
            DestinationStatus {
                rest: Some(rest), ..
            } => match rest {
                RestStatus { differs: true, .. } => "the rest differs",
                RestStatus { left_bytes: 0, .. } => "comparing the rest",
                _ => "pulling the rest",
            },
            DestinationStatus { is_owner: true, .. } => "owner",
            DestinationStatus {
                final_bytes: Some(_),
                ..
            } => "finalizing",
            _ => "pulling",
        };
        Self {
            role: "leecher".to_owned(),
            phase: phase.to_owned(),
            owner: status.is_owner.then(|| "here".to_owned()),
            rounds: Some(status.rounds),
            round_bytes: Some(status.round_bytes),
            pulled_bytes: Some(status.pulled_bytes),
            fetched_bytes: Some(status.fetched_bytes),
            dirty_bytes_per_s: status.dirty_bytes_per_s,
            predicted_downtime_ms: status.predicted.map(|time| time.as_millis() as u64),
            rest_bytes: status.rest.as_ref().map(|rest| rest.left_bytes),
            away_since: status.rest.as_ref().and_then(|rest| rest.away_since),
            downtime_ms: status.downtime.map(|time| time.as_secs_f64() * 1e3),
            ..Self::default()
        }
    }
}
