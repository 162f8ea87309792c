//! What has to hold after every step.

use super::host::{Device, HostId, WriteStep};
use super::store::{BLOCKS, Content};
use super::world::{Checked, NAMES, World};
use crate::migrate::protocol::{AttemptId, CommitRecord, LeechRecord, Stage, Standing};

impl World {
    pub(super) fn check(&self) -> Checked {
        let owner = self.owner()?;
        for (host, name) in NAMES.iter().enumerate() {
            if self.hosts[host].device() == Device::Serving && owner != Some(host) {
                let owner = owner.map(|owner| NAMES[owner]);
                return Err(format!(
                    "L16: {name} serves, but the owner by the records is {owner:?}"
                ));
            }
            self.check_prepared(host)?;
        }
        match owner {
            Some(owner) => self.check_content(owner),
            None => Ok(()),
        }
    }

    /// Who would own the volume if all processes died now and all hosts came back (L16).
    pub(super) fn owner(&self) -> Checked<Option<HostId>> {
        let mut owners = Vec::new();
        for (id, host) in self.hosts.iter().enumerate() {
            let owns = match host.standing() {
                Some(Standing::Owner(_) | Standing::Completing(_)) => true,
                Some(Standing::InDoubt(record)) => self.is_committed(&record),
                _ => false,
            };
            if owns && !host.is_gone {
                owners.push(id);
            }
        }
        let somebody_is_gone = self.hosts.iter().any(|host| host.is_gone);
        match owners[..] {
            [owner] => Ok(Some(owner)),
            [] if somebody_is_gone => Ok(None),
            _ => Err(format!(
                "L16: by the records the owners are {:?}",
                owners.iter().map(|owner| NAMES[*owner]).collect::<Vec<_>>()
            )),
        }
    }

    fn is_committed(&self, record: &LeechRecord) -> bool {
        let by_commit = |attempt: AttemptId| {
            let commits = self
                .hosts
                .iter()
                .filter_map(|host| host.records.commit.as_ref());
            commits.into_iter().any(|commit| commit.attempt == attempt)
        };
        record
            .attempt
            .is_some_and(|attempt| by_commit(attempt) || self.assumed == Some(attempt))
    }

    /// What the owner's device would read.
    pub(super) fn content(&self, owner: HostId) -> Content {
        let (store, seeder) = (&self.hosts[owner].store, &self.hosts[self.seeder_of(owner)]);
        std::array::from_fn(|block| match store.present[block] {
            true => store.now[block],
            false => seeder.store.now[block],
        })
    }

    /// The same after a power cut at both ends.
    fn durable_content(&self, owner: HostId) -> Content {
        let (store, seeder) = (&self.hosts[owner].store, &self.hosts[self.seeder_of(owner)]);
        std::array::from_fn(|block| match store.present_synced[block] {
            true => store.synced[block],
            false => seeder.store.synced[block],
        })
    }

    fn check_content(&self, owner: HostId) -> Checked {
        let content = self.content(owner);
        for (block, found) in content.into_iter().enumerate() {
            let wanted = self.application.acknowledged[block];
            if found != wanted && !self.is_landing(owner, block, found) {
                return Err(format!(
                    "L16: block {block} of {} has {found}, not {wanted}, which was acknowledged last",
                    NAMES[owner]
                ));
            }
        }
        self.check_durable(owner, &self.durable_content(owner))
    }

    pub(super) fn check_durable(&self, owner: HostId, content: &Content) -> Checked {
        for (block, &found) in content.iter().enumerate() {
            let wanted = &self.application.since_flush[block];
            if !wanted.contains(&found) && !self.is_landing(owner, block, found) {
                return Err(format!(
                    "L16: after a power cut block {block} of {} has {found}, none of {wanted:?}",
                    NAMES[owner]
                ));
            }
        }
        Ok(())
    }

    fn is_landing(&self, host: HostId, block: usize, stamp: u32) -> bool {
        let process = self.hosts[host].process.as_ref();
        process.is_some_and(|process| {
            process.writes.iter().any(|write| {
                write.step == WriteStep::Landed && write.block == block && write.stamp == stamp
            })
        })
    }

    /// A store whose record says `Prepared` holds what was offered, durably: it may have to serve.
    fn check_prepared(&self, host: HostId) -> Checked {
        let (id, host) = (host, &self.hosts[host]);
        let Some(record) = &host.records.leech else {
            return Ok(());
        };
        if record.stage != Stage::Prepared || host.is_gone || self.is_committed(record) {
            return Ok(());
        }
        let Some(offer) = record.attempt.and_then(|attempt| self.offers.get(&attempt)) else {
            return Err(format!("{} has a record of no attempt", NAMES[id]));
        };
        let store = &host.store;
        for (block, offered) in offer.iter().enumerate() {
            let absent = record.post_copy && !store.present_synced[block];
            let equal = store.now[block] == *offered && store.synced[block] == *offered;
            if !absent && !equal {
                return Err(format!(
                    "L17: block {block} of {} is not what was offered, and the record says prepared",
                    NAMES[id]
                ));
            }
        }
        Ok(())
    }

    /// Before the volume moves the new owner has all of it, durably, and a record (L17).
    pub(super) fn check_equal(&self, seeder: HostId, commit: &CommitRecord) -> Checked {
        let Some(to) = NAMES.iter().position(|name| *name == commit.to) else {
            return Err(format!("nobody is called {}", commit.to));
        };
        let (ours, theirs) = (&self.hosts[seeder].store, &self.hosts[to]);
        let prepared = theirs.records.leech.as_ref().filter(|record| {
            record.attempt == Some(commit.attempt) && record.epoch == commit.epoch
        });
        let Some(record) = prepared else {
            return Err(format!("a commit, but {} is not prepared", commit.to));
        };
        let theirs = &theirs.store;
        for block in 0..BLOCKS {
            let absent = record.post_copy && !theirs.present[block];
            let here = theirs.now[block] == ours.now[block];
            let durable = theirs.present_synced[block] && theirs.synced[block] == ours.now[block];
            let equal = here && durable;
            if !absent && !equal {
                return Err(format!("L17: a commit, but block {block} differs"));
            }
        }
        Ok(())
    }

    /// A request fails only because the volume has moved.
    pub(super) fn check_may_fail(&mut self, host: HostId) -> Checked {
        let moved = matches!(self.hosts[host].standing(), Some(Standing::Moved(_)));
        let busy = self.process(host).is_some_and(|process| process.is_busy());
        self.fail_waiting(host);
        match (moved, busy) {
            (true, false) => Ok(()),
            (true, true) => Err("a request that is under way fails".to_owned()),
            (false, _) => Err("a request fails, and the volume is still here".to_owned()),
        }
    }

    /// Who releases the seeder has everything, durably. (It may say so again after it has given the
    /// volume away.)
    pub(super) fn check_may_release(&self, host: HostId) -> Checked {
        let Some(commit) = &self.hosts[host].records.commit else {
            return Err("released, and the volume has not moved".to_owned());
        };
        let arrived = self.hosts.iter().find(|to| {
            let leech = to.records.leech.as_ref();
            leech.is_some_and(|leech| leech.attempt == Some(commit.attempt))
        });
        match arrived {
            Some(to) if to.store.present_synced != [true; BLOCKS] => {
                Err("the seeder is released, and the new owner lacks bytes".to_owned())
            }
            _ => Ok(()),
        }
    }
}
