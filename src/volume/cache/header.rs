//! The header: which commit counts, and in which slots its tables are; and the seal behind it.
//!
//! | bytes of a header | |
//! |---|---|
//! | 0–79 | head |
//! | 80–87 | size of the resource in bytes |
//! | 88–95 | chunk in bytes |
//! | 96–103 | how many pages the commit wrote, this one left out |
//! | 104–135 | SHA-256 over these pages: of each its kind (1), index (8) and checksum (32), in order of kind and index |
//! | 136– | of each table a byte: 0 never written, 1 slot A, 2 slot B |
//!
//! The seal is a head alone. It is written after its commit was durable, and made durable by the
//! next one: a header with a seal cannot be one that a crash left half-made.

use super::fields::{Fields, Writer, sha256};
use super::layout::{SEAL_BYTES, Slot};
use super::page::{Checksum, HEAD_BYTES, PAGE_BYTES, PageFault, PageKind, Place};

const TABLES_AT: usize = 136;

/// The contents of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) sequence: u64,
    pub(super) size_bytes: u64,
    pub(super) chunk_bytes: u64,
    pub(super) batch: BatchSum,
    /// Where each table is; `None`: all its regions are absent.
    pub(super) tables: Vec<Option<Slot>>,
}

/// What a header says of the pages of its commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchSum {
    pub(super) pages: u64,
    pub(super) sum: Checksum,
}

/// A page of a commit.
pub(super) type BatchPage = (PageKind, u64, Checksum);

impl BatchSum {
    /// Over pages in any order.
    pub(super) fn of(pages: &mut [BatchPage]) -> Self {
        pages.sort_unstable_by_key(|(kind, index, _)| (*kind, *index));
        let mut bytes = Vec::with_capacity(pages.len() * 41);
        for (kind, index, sum) in pages.iter() {
            bytes.push(*kind as u8);
            bytes.extend_from_slice(&index.to_le_bytes());
            bytes.extend_from_slice(sum);
        }
        Self {
            pages: pages.len() as u64,
            sum: sha256(&[&bytes]),
        }
    }
}

impl Header {
    pub(super) fn encode(&self, store: [u8; 16]) -> [u8; PAGE_BYTES] {
        let mut page = [0; PAGE_BYTES];
        let mut to = Writer::new(&mut page[HEAD_BYTES..]);
        for number in [self.size_bytes, self.chunk_bytes, self.batch.pages] {
            to.put(&number.to_le_bytes());
        }
        to.put(&self.batch.sum);
        for table in &self.tables {
            to.put(&[match table {
                None => 0,
                Some(Slot::A) => 1,
                Some(Slot::B) => 2,
            }]);
        }
        place(store, PageKind::Header).finish(&mut page, self.sequence);
        page
    }

    /// Reads the header of a map with so many tables.
    pub(super) fn decode(
        store: [u8; 16],
        tables: u64,
        page: &[u8; PAGE_BYTES],
    ) -> Result<Self, PageFault> {
        let (sequence, _) = place(store, PageKind::Header).check(page)?;
        let mut from = Fields::new(&page[HEAD_BYTES..TABLES_AT]);
        let mut number = || u64::from_le_bytes(from.take());
        let (size_bytes, chunk_bytes, pages) = (number(), number(), number());
        let sum = from.take();
        let tables = page[TABLES_AT..]
            .get(..tables as usize)
            .ok_or(PageFault::Field)?
            .iter()
            .map(|byte| match byte {
                0 => Ok(None),
                1 => Ok(Some(Slot::A)),
                2 => Ok(Some(Slot::B)),
                _ => Err(PageFault::Field),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            sequence,
            size_bytes,
            chunk_bytes,
            batch: BatchSum { pages, sum },
            tables,
        })
    }
}

/// The seal of a commit.
pub(super) fn encode_seal(store: [u8; 16], sequence: u64) -> [u8; SEAL_BYTES] {
    let mut sector = [0; SEAL_BYTES];
    place(store, PageKind::Seal).finish(&mut sector, sequence);
    sector
}

/// The sequence of the commit that is sealed.
pub(super) fn decode_seal(store: [u8; 16], sector: &[u8; SEAL_BYTES]) -> Result<u64, PageFault> {
    let (sequence, _) = place(store, PageKind::Seal).check(sector)?;
    Ok(sequence)
}

fn place(store: [u8; 16], kind: PageKind) -> Place {
    Place {
        store,
        kind,
        index: 0,
    }
}
