//! The syncs of one queue's requests: one at a time, each for all who waited for it to begin.
//!
//! The kernel reports a failure to write back once for each open file description. So each queue
//! has one of its own to sync by, and begins no sync before it knows how the one before ended: then
//! no sync succeeds that was to cover what another one was told is lost.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::{opcode, squeue, types};

use super::file::FileStore;
use super::request::Tag;

/// See the module.
#[derive(Debug)]
pub(super) struct SyncGroup {
    /// `None` where there is nothing to sync.
    file: Option<File>,
    /// Whose sync is under way.
    leader: Option<Tag>,
    /// Who ends together with the leader.
    followers: Vec<Tag>,
    /// Who came after that sync had begun.
    waiting: Vec<Tag>,
}

impl SyncGroup {
    /// For a queue of `depth` requests.
    ///
    /// # Errors
    /// When the file cannot be opened again.
    pub(super) fn new(depth: u16, store: Option<&FileStore>) -> io::Result<Self> {
        Ok(Self {
            file: store.map(FileStore::open_for_syncs).transpose()?,
            leader: None,
            followers: Vec::with_capacity(depth.into()),
            waiting: Vec::with_capacity(depth.into()),
        })
    }

    /// A request wants a sync, or wants it repeated: the operation that is to be queued for it.
    /// `None`: it waits for the end of another one.
    pub(super) fn join(&mut self, tag: Tag) -> Option<squeue::Entry> {
        match self.leader {
            Some(leader) if leader != tag => {
                self.waiting.push(tag);
                None
            }
            _ => {
                self.leader = Some(tag);
                self.entry()
            }
        }
    }

    /// The sync has ended; `each` is given those who end with it. Says whose sync is next, if
    /// anybody waits, with the operation.
    pub(super) fn ended(&mut self, each: impl FnMut(Tag)) -> Option<(Tag, squeue::Entry)> {
        self.followers.drain(..).for_each(each);
        std::mem::swap(&mut self.followers, &mut self.waiting);
        self.leader = self.followers.pop();
        self.leader.zip(self.entry())
    }

    fn entry(&self) -> Option<squeue::Entry> {
        let file = types::Fd(self.file.as_ref()?.as_raw_fd());
        let data_only = types::FsyncFlags::DATASYNC;
        Some(opcode::Fsync::new(file).flags(data_only).build())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::FileOptions;

    #[test]
    fn a_sync_covers_those_who_came_before_it_began_and_nobody_else() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(4096).expect("sized");
        let store = FileStore::open(file.path(), FileOptions::default()).expect("opened");
        let mut group = SyncGroup::new(8, Some(&store)).expect("opened again");
        assert!(group.join(Tag(0)).is_some());
        assert!(group.join(Tag(1)).is_none(), "it came too late");
        assert!(group.join(Tag(2)).is_none(), "it came too late");
        assert!(group.join(Tag(0)).is_some(), "repeated");

        let mut ended = Vec::new();
        let next = group.ended(|tag| ended.push(tag));
        assert!(ended.is_empty(), "{ended:?}");
        let leader = next.expect("two wait").0;
        assert!(group.join(Tag(0)).is_none(), "another request of that tag");

        let next = group.ended(|tag| ended.push(tag));
        ended.push(leader);
        ended.sort_by_key(|tag| tag.0);
        assert_eq!(ended, [Tag(1), Tag(2)]);
        assert_eq!(next.expect("one waits").0, Tag(0));
        assert!(
            group
                .ended(|tag| panic!("{tag:?} waits for nothing"))
                .is_none()
        );
        assert!(group.join(Tag(5)).is_some());
    }
}
