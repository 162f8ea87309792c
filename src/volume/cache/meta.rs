//! `meta`: what a cache belongs to, how it is laid out, and who opened it last.
//!
//! | bytes | |
//! |---|---|
//! | 0–7 | `BFRYMETA` |
//! | 8–9 | version |
//! | 10 | 1 being made, 2 in use |
//! | 11 | 0 gone with the machine's memory, 1 on a disk |
//! | 12 | 1: the origin has shut it out for good |
//! | 13 | 1: a sync failed, and nobody has said yet what is to become of it |
//! | 14–15 | 0 |
//! | 16–31 | the store's UUID |
//! | 32–47 | identity of the origin |
//! | 48–55 | size of the resource in bytes |
//! | 56–63 | chunk in bytes |
//! | 64–71 | epoch of the lease; 0 for none |
//! | 72–79 | open counter: how often it was opened without a live map to go on with |
//! | 80–87 | generation of the origin's content that a reader saw; 0 for none |
//! | 88–103 | the last opening that the server welcomed; zeros for none |
//! | 104–167 | later openings that it may have heard of, the first one first; zeros for none |
//! | 168–169 | length of the origin's name |
//! | 170–424 | the origin's name, UTF-8 |
//! | 425–479 | 0 |
//! | 480–511 | SHA-256 of bytes 0–479 |

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::fields::{Fields, Writer, sha256};
use super::files::StoreDirectory;
use crate::volume::instance;
use crate::{Context, Error, ErrorKind, Result};

/// Its name.
pub(super) const META: &str = "meta";
/// Where it is written before it takes its name.
pub(super) const META_NEW: &str = "meta.new";

/// The layout that this program writes, and the only one that it reads.
pub(super) const META_VERSION: u16 = 2;

/// The longest name of an origin, in bytes.
pub const ORIGIN_NAME_BYTES_MAX: usize = 255;

const META_BYTES: usize = 512;
const SUM_AT: usize = META_BYTES - 32;
/// What it begins with.
pub(super) const MAGIC: &[u8; 8] = b"BFRYMETA";

/// The contents of `meta`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Meta {
    /// The files are not all there yet, and nothing is in them.
    pub(super) making: bool,
    pub(super) persistent: bool,
    /// The origin has shut the store out: it is never asked again on its behalf.
    pub(super) fenced: bool,
    /// What was written since the last sync that succeeded may be lost, and nobody has said yet that
    /// this is known.
    pub(super) sync_failed: bool,
    pub(super) store: [u8; 16],
    pub(super) identity: [u8; 16],
    pub(super) size_bytes: u64,
    pub(super) chunk_bytes: u64,
    pub(super) epoch: u64,
    /// How often the store was opened without a live map to go on with.
    pub(super) open_counter: u64,
    /// Of the origin's content, as a reader saw it; 0 for none.
    pub(super) generation: u64,
    pub(super) openings: Openings,
    pub(super) origin_name: String,
}

/// An opening of the store: drawn at random; zeros for none.
pub(super) type Token = [u8; 16];

/// Of how many openings in a row it may stay open whether the server has heard of them.
pub(super) const UNANSWERED_MAX: usize = 4;

/// What tells a store from a copy of its directory: the server knows its last opening.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Openings {
    /// The last one that the server welcomed.
    pub(super) welcomed: Token,
    /// Later ones that it may have heard of.
    pub(super) unanswered: [Token; UNANSWERED_MAX],
}

impl Meta {
    /// Of a store that is going to be made.
    pub(super) fn begun(persistent: bool) -> Result<Self> {
        Ok(Self {
            making: true,
            persistent,
            fenced: false,
            sync_failed: false,
            store: instance::fresh()?,
            identity: [0; 16],
            size_bytes: 0,
            chunk_bytes: 0,
            epoch: 0,
            open_counter: 0,
            generation: 0,
            openings: Openings::default(),
            origin_name: String::new(),
        })
    }

    pub(super) fn encode(&self) -> [u8; META_BYTES] {
        let mut bytes = [0; META_BYTES];
        let name = truncated(&self.origin_name, ORIGIN_NAME_BYTES_MAX).as_bytes();
        let mut to = Writer::new(&mut bytes);
        to.put(MAGIC);
        to.put(&META_VERSION.to_le_bytes());
        to.put(&[if self.making { 1 } else { 2 }, self.persistent.into()]);
        to.put(&[self.fenced.into(), self.sync_failed.into(), 0, 0]);
        to.put(&self.store);
        to.put(&self.identity);
        for number in [
            self.size_bytes,
            self.chunk_bytes,
            self.epoch,
            self.open_counter,
            self.generation,
        ] {
            to.put(&number.to_le_bytes());
        }
        to.put(&self.openings.welcomed);
        for token in &self.openings.unanswered {
            to.put(token);
        }
        to.put(&(name.len() as u16).to_le_bytes());
        to.put(name);
        let sum = sha256(&[&bytes[..SUM_AT]]);
        bytes[SUM_AT..].copy_from_slice(&sum);
        bytes
    }

    /// # Errors
    /// `Damaged`, and `Foreign` for another version of the layout.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self> {
        let damaged = |what: String| Error::new(ErrorKind::Damaged, format!("`meta` {what}"));
        let Ok(bytes) = <&[u8; META_BYTES]>::try_from(bytes) else {
            let len = bytes.len();
            return Err(damaged(format!("has {len} bytes, not {META_BYTES}")));
        };
        let mut from = Fields::new(bytes);
        if from.take::<8>() != *MAGIC {
            return Err(damaged("does not begin like one".to_owned()));
        }
        let version = u16::from_le_bytes(from.take());
        if version != META_VERSION {
            return Err(Error::new(
                ErrorKind::Foreign,
                format!("`meta` has version {version}; this program knows {META_VERSION}"),
            ));
        }
        if sha256(&[&bytes[..SUM_AT]]) != bytes[SUM_AT..] {
            return Err(damaged("does not match its checksum".to_owned()));
        }
        let [phase, persistent] = from.take();
        let [fenced, sync_failed, _, _] = from.take();
        let store = from.take();
        let identity = from.take();
        let mut number = || u64::from_le_bytes(from.take());
        let (size_bytes, chunk_bytes, epoch) = (number(), number(), number());
        let (open_counter, generation) = (number(), number());
        let openings = Openings {
            welcomed: from.take(),
            unanswered: std::array::from_fn(|_| from.take()),
        };
        let name_bytes = usize::from(u16::from_le_bytes(from.take()));
        let name = from.rest().get(..name_bytes.min(ORIGIN_NAME_BYTES_MAX));
        Ok(Self {
            making: phase == 1,
            persistent: persistent != 0,
            fenced: fenced != 0,
            sync_failed: sync_failed != 0,
            store,
            identity,
            size_bytes,
            chunk_bytes,
            epoch,
            open_counter,
            generation,
            openings,
            origin_name: String::from_utf8_lossy(name.unwrap_or_default()).into_owned(),
        })
    }

    /// What the directory has; `None` where there is no `meta`.
    ///
    /// # Errors
    /// As [`Meta::decode`], and what the operating system reports.
    pub(super) fn read(directory: &dyn StoreDirectory) -> Result<Option<Self>> {
        let cannot = || "cannot read `meta`";
        let file = match directory.open(META) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.context_io(cannot)?,
        };
        let mut bytes = [0; META_BYTES + 1];
        let len = file.read_at(&mut bytes, 0).context_io(cannot)?;
        Self::decode(&bytes[..len]).map(Some)
    }

    /// Takes the place of what the directory has: durably, whole or not at all.
    pub(super) fn write(&self, directory: &dyn StoreDirectory) -> io::Result<()> {
        let file = directory.create(META_NEW)?;
        file.write_at(&self.encode(), 0)?;
        file.sync_data()?;
        directory.rename(META_NEW, META)?;
        directory.sync()
    }
}

/// At most `bytes_max` of a text, cut between characters.
fn truncated(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// `meta` of an open cache.
#[derive(Debug)]
pub(super) struct MetaFile {
    directory: Arc<dyn StoreDirectory>,
    meta: Mutex<Meta>,
}

impl MetaFile {
    pub(super) fn new(directory: Arc<dyn StoreDirectory>, meta: Meta) -> Self {
        Self {
            directory,
            meta: Mutex::new(meta),
        }
    }

    pub(super) fn get(&self) -> Meta {
        self.meta
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Changes it durably. After an error it is as before, or as it should have become.
    pub(super) fn change(&self, change: impl FnOnce(&mut Meta)) -> io::Result<Meta> {
        let mut current = self.meta.lock().unwrap_or_else(PoisonError::into_inner);
        let mut meta = current.clone();
        change(&mut meta);
        meta.write(&*self.directory)?;
        *current = meta.clone();
        Ok(meta)
    }
}
