//! `map`: the checkpoint. A commit of it counts whole or not at all.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::files::StoreFile;
use super::header::{self, BatchPage, BatchSum, Header};
use super::layout::{Layout, RECORD_BYTES, Slot};
use super::load;
use super::page::PageKind;
use super::record;
use super::table::{self, Entry, REGIONS_PER_TABLE, Saved};
use crate::volume::geometry::RegionIndex;
use crate::volume::state_map::{RegionBits, RegionSnapshot};
use crate::{Context, Result};

/// Its name.
pub(super) const MAP: &str = "map";

/// What the map of a store is like.
#[derive(Debug, Clone, Copy)]
pub(super) struct MapKind {
    pub(super) store: [u8; 16],
    pub(super) size_bytes: u64,
    pub(super) chunk_bytes: u64,
}

impl MapKind {
    pub(super) fn layout(&self) -> Layout {
        Layout::new(self.size_bytes)
    }
}

/// The open map, and what its last commit says.
#[derive(Debug)]
pub(super) struct MapFile {
    pub(super) file: Arc<dyn StoreFile>,
    pub(super) kind: MapKind,
    pub(super) committed: Committed,
    /// Larger than that of any header in the file.
    pub(super) next_sequence: u64,
    /// A header was perhaps written whose commit failed. Nothing may rely on the last commit being
    /// the one that counts, until another one succeeds.
    pub(super) uncertain: bool,
}

/// A commit that counts.
#[derive(Debug)]
pub(super) struct Committed {
    pub(super) header: Header,
    pub(super) header_slot: Slot,
    pub(super) entries: Vec<Entry>,
}

/// A commit that is being put together. Nothing of it counts before [`MapFile::commit`].
#[derive(Debug)]
pub(super) struct Batch {
    sequence: u64,
    pages: Vec<BatchPage>,
    changed: BTreeMap<RegionIndex, Entry>,
}

/// Why a commit failed.
#[derive(Debug)]
pub(super) enum CommitError {
    /// A page could not be written; the same may succeed another time.
    Write(io::Error),
    /// Whether the commit is durable is not known, and will not be.
    Sync(io::Error),
}

impl MapFile {
    /// Makes the map of an empty store in an empty file, durably.
    pub(super) fn create(file: &dyn StoreFile, kind: MapKind) -> io::Result<()> {
        let layout = kind.layout();
        let header = Header {
            sequence: 1,
            size_bytes: kind.size_bytes,
            chunk_bytes: kind.chunk_bytes,
            batch: BatchSum::of(&mut []),
            tables: vec![None; layout.tables() as usize],
        };
        file.set_len(layout.file_bytes())?;
        file.write_at(&header.encode(kind.store), Layout::header_at(Slot::A))?;
        file.sync_data()
    }

    /// Reads what the last commit says. From here on it is durable, even if a process died before
    /// it had made it so.
    ///
    /// # Errors
    /// `Damaged`, `Foreign`, and what the operating system reports.
    pub(super) fn load(file: Arc<dyn StoreFile>, kind: MapKind) -> Result<Self> {
        file.sync_data()
            .context_io(|| "cannot make `map` durable")?;
        let (committed, newest) = load::committed(&*file, kind)?;
        Ok(Self {
            file,
            kind,
            committed,
            next_sequence: newest + 1,
            uncertain: false,
        })
    }

    /// What the last commit says of a region.
    pub(super) fn entry(&self, region: RegionIndex) -> Entry {
        self.committed.entries[region.0 as usize]
    }

    /// What the last commit says of each region that is not as it was made.
    pub(super) fn touched(&self) -> impl Iterator<Item = (RegionIndex, Entry)> {
        (0..)
            .map(RegionIndex)
            .zip(self.committed.entries.iter().copied())
            .filter(|(_, entry)| *entry != Entry::ABSENT)
    }

    /// What the last commit has of a region.
    pub(super) fn snapshot(&self, region: RegionIndex) -> Result<RegionSnapshot> {
        Ok(match self.entry(region).saved {
            Saved::Absent => RegionSnapshot::Absent,
            Saved::PresentClean => RegionSnapshot::PresentClean,
            Saved::PresentDirty => RegionSnapshot::PresentDirty,
            Saved::Mixed { slot, .. } => {
                let bits = load::bits(&*self.file, self.kind, region, slot)?;
                RegionSnapshot::Mixed(Box::new(bits))
            }
        })
    }

    /// Begins a commit.
    pub(super) fn begin(&mut self) -> Batch {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        Batch {
            sequence,
            pages: Vec::new(),
            changed: BTreeMap::new(),
        }
    }

    /// Adds a region to a commit.
    pub(super) fn put(
        &self,
        batch: &mut Batch,
        region: RegionIndex,
        snapshot: &RegionSnapshot,
        intent: bool,
    ) -> io::Result<()> {
        let saved = match snapshot {
            RegionSnapshot::Absent => Saved::Absent,
            RegionSnapshot::PresentClean => Saved::PresentClean,
            RegionSnapshot::PresentDirty => Saved::PresentDirty,
            RegionSnapshot::Mixed(bits) => self.put_record(batch, region, bits)?,
        };
        batch.changed.insert(region, Entry { saved, intent });
        Ok(())
    }

    fn put_record(
        &self,
        batch: &mut Batch,
        region: RegionIndex,
        bits: &RegionBits,
    ) -> io::Result<Saved> {
        let slot = match self.entry(region).saved {
            Saved::Mixed { slot, .. } => slot.other(),
            _ => Slot::A,
        };
        let mut page = Box::new([0; RECORD_BYTES]);
        let (store, sequence) = (self.kind.store, batch.sequence);
        let sum = record::encode(store, region, sequence, bits, &mut page);
        let at = self.kind.layout().record_at(region, slot);
        self.file.write_at(&*page, at)?;
        batch.pages.push((PageKind::Bits, region.0, sum));
        let dirty = bits.dirty.iter().any(|word| *word != 0);
        Ok(Saved::Mixed { slot, dirty })
    }

    /// Sets the intent of a region; all else of it stays as in the last commit.
    pub(super) fn put_intent(&self, batch: &mut Batch, region: RegionIndex) {
        let saved = self.entry(region).saved;
        let entry = Entry {
            saved,
            intent: true,
        };
        batch.changed.insert(region, entry);
    }

    /// Makes a commit count, durably. The bytes that it speaks of must be durable before.
    pub(super) fn commit(&mut self, mut batch: Batch) -> Result<(), CommitError> {
        let tables = self.write_tables(&mut batch).map_err(CommitError::Write)?;
        let header = Header {
            sequence: batch.sequence,
            batch: BatchSum::of(&mut batch.pages),
            tables,
            ..self.committed.header
        };
        let header_slot = self.committed.header_slot.other();
        let page = header.encode(self.kind.store);
        self.uncertain = true;
        self.file
            .write_at(&page, Layout::header_at(header_slot))
            .map_err(CommitError::Write)?;
        self.file.sync_data().map_err(CommitError::Sync)?;
        self.uncertain = false;
        self.committed.header = header;
        self.committed.header_slot = header_slot;
        for (region, entry) in batch.changed {
            self.committed.entries[region.0 as usize] = entry;
        }
        self.seal();
        Ok(())
    }

    /// Writes each table that has changes into the slot that does not count, and says where all
    /// tables are then.
    fn write_tables(&self, batch: &mut Batch) -> io::Result<Vec<Option<Slot>>> {
        let mut tables = self.committed.header.tables.clone();
        let mut changed = batch.changed.iter().peekable();
        while let Some((first, _)) = changed.peek() {
            let table = first.0 / REGIONS_PER_TABLE;
            let start = table * REGIONS_PER_TABLE;
            let end = (start + REGIONS_PER_TABLE).min(self.committed.entries.len() as u64);
            let mut entries = self.committed.entries[start as usize..end as usize].to_vec();
            while let Some((region, entry)) = changed.next_if(|(region, _)| region.0 < end) {
                entries[(region.0 - start) as usize] = *entry;
            }
            let (page, sum) = table::encode(self.kind.store, table, batch.sequence, &entries);
            let at = &mut tables[table as usize];
            let slot = at.map_or(Slot::A, Slot::other);
            self.file.write_at(&page, Layout::table_at(table, slot))?;
            *at = Some(slot);
            batch.pages.push((PageKind::Table, table, sum));
        }
        Ok(tables)
    }

    /// Makes the seal of the last commit durable as well.
    pub(super) fn sync_seal(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Notes that the last commit is durable; the note need not be.
    fn seal(&self) {
        let sector = header::encode_seal(self.kind.store, self.committed.header.sequence);
        if let Err(error) = self.file.write_at(&sector, Layout::seal_at()) {
            tracing::warn!(%error, "cannot seal a checkpoint; it counts all the same");
        }
    }
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.changed.is_empty()
    }
}
