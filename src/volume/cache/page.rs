//! What every page of `map` begins with, and how one is told from what a crash left.
//!
//! | bytes | |
//! |---|---|
//! | 0–7 | `BFRYMAP` and a zero |
//! | 8–9 | version |
//! | 10 | kind: 1 header, 2 table, 3 bits, 4 seal |
//! | 11–15 | 0 |
//! | 16–31 | the store's UUID |
//! | 32–39 | index: number of the table or the region, else 0 |
//! | 40–47 | sequence of the commit that wrote it |
//! | 48–79 | SHA-256 of the page without these bytes |
//! | 80– | what the kind says |

use std::fmt;

use super::fields::{Fields, Writer, sha256};

/// The layout of `map` that this program writes, and the only one that it reads.
pub(super) const FORMAT_VERSION: u16 = 1;

/// A page, in bytes.
pub(super) const PAGE_BYTES: usize = 4096;

/// The part that all kinds have in common, in bytes.
pub(super) const HEAD_BYTES: usize = 80;

/// What a page begins with.
pub(super) const MAGIC: &[u8; 8] = b"BFRYMAP\0";
const SUM_AT: usize = 48;

/// The SHA-256 of a page.
pub(super) type Checksum = [u8; 32];

/// What a page holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PageKind {
    /// Which commit counts, and where its tables are.
    Header = 1,
    /// The states of [`REGIONS_PER_TABLE`](super::table::REGIONS_PER_TABLE) regions.
    Table = 2,
    /// The bits of one region.
    Bits = 3,
    /// That a commit was durable.
    Seal = 4,
}

impl fmt::Display for PageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "header",
            Self::Table => "table page",
            Self::Bits => "bits record",
            Self::Seal => "seal",
        })
    }
}

/// What is wrong with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PageFault {
    /// All of it is zeros: it was never written.
    Empty,
    /// It does not begin like a page.
    Magic,
    /// Another version of the layout.
    Version(u16),
    /// Another store wrote it.
    Store,
    /// It is of another kind, or has another index.
    Place,
    /// Its checksum does not match.
    Checksum,
    /// It is newer than the commit that it should belong to.
    Sequence,
    /// A field has a value that it cannot have.
    Field,
}

impl fmt::Display for PageFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("is empty"),
            Self::Magic => f.write_str("does not begin like one"),
            Self::Version(version) => write!(
                f,
                "has version {version}; this program knows {FORMAT_VERSION}"
            ),
            Self::Store => f.write_str("belongs to another store"),
            Self::Place => f.write_str("belongs to another place"),
            Self::Checksum => f.write_str("does not match its checksum"),
            Self::Sequence => f.write_str("is newer than its header"),
            Self::Field => f.write_str("has a field that it cannot have"),
        }
    }
}

/// Where a page belongs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) store: [u8; 16],
    pub(super) kind: PageKind,
    pub(super) index: u64,
}

impl Place {
    /// Fills in the head of a page whose payload is there.
    pub(super) fn finish(&self, page: &mut [u8], sequence: u64) -> Checksum {
        let mut to = Writer::new(page);
        to.put(MAGIC);
        to.put(&FORMAT_VERSION.to_le_bytes());
        to.put(&[self.kind as u8]);
        to.put(&[0; 5]);
        to.put(&self.store);
        to.put(&self.index.to_le_bytes());
        to.put(&sequence.to_le_bytes());
        let sum = checksum(page);
        page[SUM_AT..HEAD_BYTES].copy_from_slice(&sum);
        sum
    }

    /// The sequence and the checksum of a page that is whole and in its place.
    pub(super) fn check(&self, page: &[u8]) -> Result<(u64, Checksum), PageFault> {
        let mut from = Fields::new(page);
        if from.take::<8>() != *MAGIC {
            let empty = page.iter().all(|byte| *byte == 0);
            return Err(if empty {
                PageFault::Empty
            } else {
                PageFault::Magic
            });
        }
        let version = u16::from_le_bytes(from.take());
        if version != FORMAT_VERSION {
            return Err(PageFault::Version(version));
        }
        let [kind] = from.take();
        let _zeros: [u8; 5] = from.take();
        let store: [u8; 16] = from.take();
        let index = u64::from_le_bytes(from.take());
        let sequence = u64::from_le_bytes(from.take());
        let sum: Checksum = from.take();
        if sum != checksum(page) {
            Err(PageFault::Checksum)
        } else if store != self.store {
            Err(PageFault::Store)
        } else if kind != self.kind as u8 || index != self.index {
            Err(PageFault::Place)
        } else {
            Ok((sequence, sum))
        }
    }
}

fn checksum(page: &[u8]) -> Checksum {
    sha256(&[&page[..SUM_AT], &page[HEAD_BYTES..]])
}
