//! Reading the checkpoint after a stop or a crash: which commit counts, and whether all of it is
//! there.
//!
//! A crash while a commit is written leaves it without a valid header, or with a header whose pages
//! are not all there: then the commit before it counts, which is complete, since no commit begins
//! before the last one is durable. Anything else that is wrong is damage.

use super::files::StoreFile;
use super::header::{self, BatchPage, BatchSum, Header};
use super::layout::{Layout, RECORD_BYTES, SEAL_BYTES, Slot};
use super::map_file::{Committed, MapKind};
use super::page::{Checksum, PAGE_BYTES, PageFault, PageKind};
use super::record;
use super::table::{self, Entry, REGIONS_PER_TABLE, Saved};
use crate::volume::geometry::RegionIndex;
use crate::volume::state_map::RegionBits;
use crate::{Context, Error, ErrorKind, Result};

/// Why a commit cannot be used.
enum Refusal {
    /// Something of it is not there or not right.
    Fault(PageKind, u64, PageFault),
    /// The pages are right, but they are not those that the header speaks of.
    OtherPages,
    Error(Error),
}

impl Refusal {
    fn into_error(self) -> Error {
        match self {
            Self::Error(error) => error,
            Self::Fault(kind, index, fault) => fault_error(kind, index, fault),
            Self::OtherPages => Error::new(
                ErrorKind::Damaged,
                "the pages of `map` are not those that its header speaks of",
            ),
        }
    }
}

fn fault_error(kind: PageKind, index: u64, fault: PageFault) -> Error {
    let error_kind = match fault {
        PageFault::Version(_) | PageFault::Store => ErrorKind::Foreign,
        _ => ErrorKind::Damaged,
    };
    Error::new(error_kind, format!("{kind} {index} of `map` {fault}"))
}

/// The commit that counts, and the largest sequence of any header.
pub(super) fn committed(file: &dyn StoreFile, kind: MapKind) -> Result<(Committed, u64)> {
    let len_bytes = file.len_bytes().context_io(|| "cannot examine `map`")?;
    let expected = kind.layout().file_bytes();
    if len_bytes != expected {
        return Err(Error::new(
            ErrorKind::Damaged,
            format!("`map` has {len_bytes} bytes, not {expected}"),
        ));
    }
    let sealed = sealed(file, kind)?;
    let (newer, older) = headers(file, kind)?;
    let newest = newer.0.sequence;
    if newest < sealed {
        return Err(Error::new(
            ErrorKind::Damaged,
            format!("the header of commit {sealed} of `map` is damaged"),
        ));
    }
    let committed = match (read(file, kind, newer), older) {
        (Ok(committed), _) => committed,
        (Err(Refusal::Error(error)), _) => return Err(error),
        (Err(_), Some(older)) if sealed < newest => {
            read(file, kind, older).map_err(Refusal::into_error)?
        }
        (Err(refusal), _) => return Err(refusal.into_error()),
    };
    Ok((committed, newest))
}

/// The commit that is known to have been durable; 0 for none.
fn sealed(file: &dyn StoreFile, kind: MapKind) -> Result<u64> {
    let mut sector = [0; SEAL_BYTES];
    file.read_exact_at(&mut sector, Layout::seal_at())
        .context_io(|| "cannot read `map`")?;
    // A damaged one says nothing; the header and its pages have checksums of their own.
    Ok(header::decode_seal(kind.store, &sector).unwrap_or(0))
}

type Found = (Header, Slot);

/// The valid headers: the newer one first.
fn headers(file: &dyn StoreFile, kind: MapKind) -> Result<(Found, Option<Found>)> {
    let one = |slot| -> Result<Result<Found, PageFault>> {
        let mut page = [0; PAGE_BYTES];
        file.read_exact_at(&mut page, Layout::header_at(slot))
            .context_io(|| "cannot read `map`")?;
        let header = Header::decode(kind.store, kind.layout().tables(), &page);
        Ok(header.map(|header| (header, slot)))
    };
    let (newer, older) = match (one(Slot::A)?, one(Slot::B)?) {
        (Ok(a), Ok(b)) if a.0.sequence > b.0.sequence => (a, Some(b)),
        (Ok(a), Ok(b)) => (b, Some(a)),
        (Ok(one), Err(_)) | (Err(_), Ok(one)) => (one, None),
        (Err(fault), Err(PageFault::Empty)) | (Err(_), Err(fault)) => {
            return Err(fault_error(PageKind::Header, 0, fault));
        }
    };
    for (header, _) in std::iter::once(&newer).chain(&older) {
        if (header.size_bytes, header.chunk_bytes) != (kind.size_bytes, kind.chunk_bytes) {
            return Err(Error::new(
                ErrorKind::Foreign,
                format!(
                    "`map` is for {} bytes in chunks of {}, `meta` for {} in chunks of {}",
                    header.size_bytes, header.chunk_bytes, kind.size_bytes, kind.chunk_bytes
                ),
            ));
        }
    }
    Ok((newer, older))
}

/// All that a header speaks of.
fn read(
    file: &dyn StoreFile,
    kind: MapKind,
    (header, header_slot): Found,
) -> Result<Committed, Refusal> {
    let mut pages: Vec<BatchPage> = Vec::new();
    let mut note = |kind, index, (sequence, sum): (u64, Checksum)| {
        if sequence > header.sequence {
            return Err(Refusal::Fault(kind, index, PageFault::Sequence));
        }
        if sequence == header.sequence {
            pages.push((kind, index, sum));
        }
        Ok(())
    };
    let mut entries = vec![Entry::ABSENT; kind.layout().regions() as usize];
    let tables = entries.chunks_mut(REGIONS_PER_TABLE as usize);
    for ((table, entries), slot) in (0..).zip(tables).zip(&header.tables) {
        let Some(slot) = slot else { continue };
        let mut page = [0; PAGE_BYTES];
        read_page(file, &mut page, Layout::table_at(table, *slot))?;
        let found = table::decode(kind.store, table, &page, entries)
            .map_err(|fault| Refusal::Fault(PageKind::Table, table, fault))?;
        note(PageKind::Table, table, found)?;
    }
    let mut record = Box::new([0; RECORD_BYTES]);
    for (region, entry) in (0..).map(RegionIndex).zip(&entries) {
        if let Saved::Mixed { slot, .. } = entry.saved {
            let found = read_record(file, kind, region, slot, &mut record)?;
            note(PageKind::Bits, region.0, found)?;
        }
    }
    if BatchSum::of(&mut pages) != header.batch {
        return Err(Refusal::OtherPages);
    }
    Ok(Committed {
        header,
        header_slot,
        entries,
    })
}

/// The bits of a region that is mixed in the commit that counts.
pub(super) fn bits(
    file: &dyn StoreFile,
    kind: MapKind,
    region: RegionIndex,
    slot: Slot,
) -> Result<RegionBits> {
    let mut bytes = Box::new([0; RECORD_BYTES]);
    read_record(file, kind, region, slot, &mut bytes).map_err(Refusal::into_error)?;
    Ok(record::bits(&bytes))
}

fn read_record(
    file: &dyn StoreFile,
    kind: MapKind,
    region: RegionIndex,
    slot: Slot,
    bytes: &mut [u8; RECORD_BYTES],
) -> Result<(u64, Checksum), Refusal> {
    read_page(file, bytes, kind.layout().record_at(region, slot))?;
    record::check(kind.store, region, bytes)
        .map_err(|fault| Refusal::Fault(PageKind::Bits, region.0, fault))
}

fn read_page(file: &dyn StoreFile, page: &mut [u8], at: u64) -> Result<(), Refusal> {
    file.read_exact_at(page, at)
        .context_io(|| "cannot read `map`")
        .map_err(Refusal::Error)
}
