//! A disk in memory that knows what of it is durable, and can lose the rest in every legal way.
//!
//! What was written since the last sync of a file may be there or not after a power cut, each
//! sector for itself: as before, or as any one of these writes left it. What was done to names
//! since the last sync of the directory may be there up to some point.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use super::image::{Change, Inode};
pub(super) use super::image::{Cut, SECTOR_BYTES, Sector};
use crate::seeded_random::Rng;
use crate::volume::cache::files::{StoreDirectory, StoreFile};
use crate::volume::cache::layout::{Layout, RECORD_BYTES, Slot};

#[derive(Debug, Clone)]
enum NameChange {
    Set(String, usize),
    Rename(String, String),
    Remove(String),
}

#[derive(Debug, Clone, Default)]
struct State {
    inodes: Vec<Inode>,
    durable_names: BTreeMap<String, usize>,
    pending_names: Vec<NameChange>,
    names: BTreeMap<String, usize>,
    fault: Option<Fault>,
    /// An error that comes after so many calls that could have it.
    armed: Option<(Trouble, u64)>,
    is_dead: bool,
}

/// An error of the disk, of `data` and `map` alone; or worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// There is no space for a write to `map`; what the program sees has it all the same, and any part
    /// of it may reach the disk.
    Write,
    /// A sync fails: of what it should have covered any part may be lost for good, but is read as
    /// if it were there.
    Sync,
    /// The process dies: from here on nothing happens any more, and every call says so.
    Death,
}

/// Something that is done wrong, to see that it is found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// A sync of this file does nothing.
    NoSync(&'static str),
    /// A sync of this file covers what was written before the sync before it.
    SyncTooEarly(&'static str),
    /// Both slots of everything in `map` are one place.
    OneSlot,
    /// A block is clean as soon as the origin has it, whether it has flushed it or not.
    CleanTooEarly,
    /// What a flush has made durable at the origin is not made durable here.
    NoSyncAtRemoteFlush,
    /// The seal is written before the commit is durable.
    EarlySeal,
    /// Write intents are taken for durable without being written. (Not the disk's.)
    NoIntents,
}

/// The disk: one directory.
#[derive(Clone)]
pub(super) struct Disk {
    state: Arc<Mutex<State>>,
    observer: Arc<Mutex<Option<Observer>>>,
}

/// Is told before each change, from where the program is.
pub(super) type Observer = Box<dyn FnMut() + Send>;

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").finish_non_exhaustive()
    }
}

impl Disk {
    pub(super) fn new() -> Self {
        Self::of(State::default())
    }

    /// From now on something is done wrong.
    pub(super) fn plant(&self, fault: Option<Fault>) {
        self.state().fault = fault;
    }

    /// Has an error come up; or none, and says whether it has not come yet.
    pub(super) fn arm(&self, trouble: Option<(Trouble, u64)>) -> bool {
        std::mem::replace(&mut self.state().armed, trouble).is_some()
    }

    fn of(state: State) -> Self {
        Self {
            state: Arc::new(Mutex::new(state)),
            observer: Arc::default(),
        }
    }

    /// Has somebody told before each change, until `None` is set.
    pub(super) fn observe(&self, observer: Option<Observer>) {
        *self.observer.lock().expect("not poisoned") = observer;
    }

    /// The process is dead.
    pub(super) fn is_dead(&self) -> bool {
        self.state().is_dead
    }

    /// Another process starts.
    pub(super) fn revive(&self) {
        self.state().is_dead = false;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }

    /// Before each change. What the observer does itself it is not told.
    fn announce(&self) -> io::Result<()> {
        let observer = self.observer.lock().expect("not poisoned").take();
        if let Some(mut observer) = observer {
            observer();
            *self.observer.lock().expect("not poisoned") = Some(observer);
            let mut state = self.state();
            state.is_dead |= state.has(Trouble::Death);
        }
        if self.is_dead() {
            return Err(io::Error::other("the process is dead"));
        }
        Ok(())
    }

    /// The file of this name, which is made where there is none.
    pub(super) fn file(&self, name: &str) -> SimFile {
        let mut state = self.state();
        let inode = match state.names.get(name) {
            Some(inode) => *inode,
            None => state.make(name),
        };
        drop(state);
        SimFile {
            disk: self.clone(),
            name: name.to_owned(),
            inode,
        }
    }

    /// The disk after a power cut.
    pub(super) fn cut(&self, cut: Cut, rng: &mut Rng) -> Self {
        let state = self.state();
        let mut names = state.durable_names.clone();
        let kept = match cut {
            Cut::All | Cut::Torn => state.pending_names.len(),
            Cut::Nothing => 0,
            _ => rng.below(state.pending_names.len() as u64 + 1) as usize,
        };
        for change in &state.pending_names[..kept] {
            change.apply(&mut names);
        }
        let inodes = state.inodes.iter().map(|inode| inode.cut(cut, rng));
        Self::of(State {
            inodes: inodes.collect(),
            durable_names: names.clone(),
            pending_names: Vec::new(),
            names,
            fault: state.fault.filter(|fault| *fault == Fault::OneSlot),
            armed: None,
            is_dead: false,
        })
    }

    /// Puts what the program sees into an empty directory of this machine.
    pub(super) fn write_to(&self, directory: &Path) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let state = self.state();
        for (name, inode) in &state.names {
            let image = &state.inodes[*inode].now;
            let file = std::fs::File::create_new(directory.join(name))?;
            for (at, sector) in &image.sectors {
                file.write_all_at(&**sector, at * SECTOR_BYTES)?;
            }
            file.set_len(image.len_bytes)?;
        }
        Ok(())
    }

    /// Whether a power cut can lose anything.
    pub(super) fn is_durable(&self) -> bool {
        let state = self.state();
        state.pending_names.is_empty() && state.inodes.iter().all(|inode| inode.pending.is_empty())
    }
}

impl State {
    fn make(&mut self, name: &str) -> usize {
        let inode = self.inodes.len();
        self.inodes.push(Inode::default());
        self.change_names(NameChange::Set(name.to_owned(), inode));
        inode
    }

    /// Whether the error that was armed comes now.
    fn has(&mut self, trouble: Trouble) -> bool {
        match &mut self.armed {
            Some((armed, after)) if *armed == trouble => {
                let now = *after == 0;
                *after = after.saturating_sub(1);
                if now {
                    self.armed = None;
                }
                now
            }
            _ => false,
        }
    }

    fn change_names(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.pending_names.push(change);
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Set(name, inode) => {
                names.insert(name.clone(), *inode);
            }
            Self::Rename(from, to) => {
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
            }
            Self::Remove(name) => {
                names.remove(name);
            }
        }
    }
}

/// A file of the disk.
#[derive(Debug)]
pub(super) struct SimFile {
    disk: Disk,
    name: String,
    inode: usize,
}

impl SimFile {
    fn change(&self, change: Change) -> io::Result<()> {
        self.disk.announce()?;
        self.disk.state().inodes[self.inode].change(change);
        Ok(())
    }

    /// What [`Fault::EarlySeal`] put off.
    fn sync_late(&self) -> io::Result<()> {
        if self.disk.state().fault == Some(Fault::EarlySeal) {
            self.disk.announce()?;
            let inode = &mut self.disk.state().inodes[self.inode];
            inode.sync(inode.pending.len());
        }
        Ok(())
    }

    /// A sector as the program sees it.
    pub(super) fn sector(&self, at: u64) -> Sector {
        self.disk.state().inodes[self.inode].now.sector(at)
    }

    fn place(&self, offset: u64) -> u64 {
        let fault = self.disk.state().fault;
        if fault == Some(Fault::OneSlot) && self.name == "map" {
            one_slot(offset)
        } else {
            offset
        }
    }
}

/// Where slot A of what is at this place is, in the map of the small volume of these tests.
fn one_slot(offset: u64) -> u64 {
    let records =
        Layout::new(super::SIZE_BYTES).record_at(crate::volume::geometry::RegionIndex(0), Slot::A);
    let tables = Layout::table_at(0, Slot::A);
    let pair = |start: u64, len: u64| {
        let pair = (offset - start) / (2 * len);
        start + pair * 2 * len + (offset - start) % len
    };
    if offset >= records {
        pair(records, RECORD_BYTES as u64)
    } else if offset >= tables {
        pair(tables, 4096)
    } else if offset < Layout::seal_at() {
        pair(0, 4096)
    } else {
        offset
    }
}

impl StoreFile for SimFile {
    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.disk.state().inodes[self.inode].now.len_bytes)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let offset = self.place(offset);
        let state = self.disk.state();
        let image = &state.inodes[self.inode].now;
        let len = (image.len_bytes.saturating_sub(offset)).min(buf.len() as u64) as usize;
        assert_eq!(offset % SECTOR_BYTES, 0, "reads begin at sectors");
        let sectors = buf[..len].chunks_mut(SECTOR_BYTES as usize);
        for (at, bytes) in (offset / SECTOR_BYTES..).zip(sectors) {
            bytes.copy_from_slice(&image.sector(at)[..bytes.len()]);
        }
        Ok(len)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let offset = self.place(offset);
        assert_eq!(offset % SECTOR_BYTES, 0, "writes begin at sectors");
        let sectors = buf.chunks(SECTOR_BYTES as usize).map(|bytes| {
            let mut sector = [0; SECTOR_BYTES as usize];
            sector[..bytes.len()].copy_from_slice(bytes);
            Some(Arc::new(sector))
        });
        let change = Change::Sectors(offset / SECTOR_BYTES, sectors.collect());
        if self.name == "map" && self.disk.state().has(Trouble::Write) {
            self.change(change)?;
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        self.change(change)?;
        if self.name == "map" && offset == Layout::seal_at() {
            self.sync_late()?;
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.announce()?;
        let mut state = self.disk.state();
        let fault = state.fault;
        if ["data", "map"].contains(&self.name.as_str()) && state.has(Trouble::Sync) {
            state.inodes[self.inode].fail_sync();
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let inode = &mut state.inodes[self.inode];
        let all = inode.pending.len();
        let is_this = |name: &str| self.name == name;
        let upto = match fault {
            Some(Fault::NoSync(name)) if is_this(name) => 0,
            Some(Fault::SyncTooEarly(name)) if is_this(name) => inode.before_last_sync.min(all),
            Some(Fault::EarlySeal) if is_this("map") => 0,
            _ => all,
        };
        inode.sync(upto);
        inode.before_last_sync = inode.pending.len();
        Ok(())
    }

    fn punch(&self, offset: u64, len_bytes: u64) -> io::Result<()> {
        let first = offset / SECTOR_BYTES;
        let count = len_bytes / SECTOR_BYTES;
        // What was never written need not be listed.
        let state = self.disk.state();
        let written: Vec<u64> = state.inodes[self.inode]
            .now
            .sectors
            .range(first..first + count)
            .map(|(at, _)| *at)
            .collect();
        drop(state);
        self.disk.announce()?;
        let mut state = self.disk.state();
        for at in written {
            state.inodes[self.inode].change(Change::Sectors(at, vec![None]));
        }
        Ok(())
    }

    fn set_len(&self, len_bytes: u64) -> io::Result<()> {
        self.change(Change::Len(len_bytes))
    }

    fn forget_cached(&self) -> io::Result<()> {
        // What is still to be written stays.
        let mut state = self.disk.state();
        let inode = &mut state.inodes[self.inode];
        let mut now = inode.durable.clone();
        for change in &inode.pending {
            now.apply(change);
        }
        inode.now = now;
        Ok(())
    }
}

impl StoreDirectory for Disk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn StoreFile>> {
        if !self.state().names.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Arc::new(self.file(name)))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn StoreFile>> {
        self.announce()?;
        let file = self.file(name);
        file.set_len(0)?;
        Ok(Arc::new(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.announce()?;
        let change = NameChange::Rename(from.to_owned(), to.to_owned());
        self.state().change_names(change);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.announce()?;
        self.state()
            .change_names(NameChange::Remove(name.to_owned()));
        Ok(())
    }

    fn file_numbers(&self, _name: &str) -> io::Result<[u64; 2]> {
        // The disk that follows a power cut is the same one.
        Ok([0, 0])
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.state().names.keys().cloned().collect())
    }

    fn sync(&self) -> io::Result<()> {
        self.announce()?;
        let mut state = self.state();
        state.durable_names = state.names.clone();
        state.pending_names.clear();
        Ok(())
    }
}
