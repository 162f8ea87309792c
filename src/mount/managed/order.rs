//! In which order the background pulls.

use std::fmt;
use std::fs;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::volume::geometry::{ByteOffset, ChunkIndex};
use crate::volume::{Geometry, parse_size};
use crate::{Context, Error, ErrorKind, Result};

/// The longest order file that is read, in bytes.
const ORDER_BYTES_MAX: u64 = 256 << 20;

/// How important a chunk is: higher first.
pub type PriorityFunction = Arc<dyn Fn(ChunkIndex) -> i64 + Send + Sync>;

/// The order of the background pull.
#[derive(Clone, Default)]
pub enum PullOrder {
    /// From the first chunk to the last.
    #[default]
    Sequential,
    /// These first, in this order; then the rest.
    Ranges(Arc<[OrderRange]>),
    /// By priority, highest first; equal ones from the first to the last.
    Priority(PriorityFunction),
    /// Nothing is pulled unless it is asked for.
    Nothing,
}

/// A range of bytes that is pulled before others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrderRange {
    /// Which bytes.
    pub bytes: Range<u64>,
    /// The line of a file that says so, counted from 1; 0 for none.
    pub line: usize,
}

impl From<Range<u64>> for OrderRange {
    fn from(bytes: Range<u64>) -> Self {
        Self { bytes, line: 0 }
    }
}

impl fmt::Debug for PullOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sequential => f.write_str("Sequential"),
            Self::Ranges(ranges) => write!(f, "Ranges({})", ranges.len()),
            Self::Priority(_) => f.write_str("Priority"),
            Self::Nothing => f.write_str("Nothing"),
        }
    }
}

impl PullOrder {
    /// Reads a file of ranges: a line each, `OFFSET LENGTH`, in bytes or with a unit (`1MiB 64KiB`);
    /// what follows a `#` is a comment.
    ///
    /// # Errors
    /// When it cannot be read or understood, with the line.
    pub fn load(path: &Path) -> Result<Self> {
        let name = path.display();
        let context = || format!("cannot read the order of {name}");
        let size_bytes = fs::metadata(path).context_io(context)?.len();
        if size_bytes > ORDER_BYTES_MAX {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("{name} has {size_bytes} bytes; an order has at most {ORDER_BYTES_MAX}"),
            ));
        }
        let text = fs::read_to_string(path).context_io(context)?;
        let mut ranges = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let number = index + 1;
            let bytes = parse_line(line).ok_or_else(|| {
                Error::new(
                    ErrorKind::InvalidInput,
                    format!("{name}, line {number}: `{line}` is not OFFSET LENGTH"),
                )
            })?;
            ranges.push(OrderRange {
                bytes,
                line: number,
            });
        }
        Ok(Self::Ranges(ranges.into()))
    }

    /// The chunks that come before the plain sequence.
    pub(super) fn first(&self, geometry: &Geometry, chunk_bytes: u64) -> Vec<ChunkIndex> {
        let size = geometry.resource_bytes();
        match self {
            Self::Sequential | Self::Nothing => Vec::new(),
            Self::Ranges(ranges) => ranges
                .iter()
                .map(|range| &range.bytes)
                .filter(|range| range.start < range.end.min(size))
                .flat_map(|range| {
                    let last = range.end.min(size) - 1;
                    ByteOffset(range.start).chunk(chunk_bytes).0..=last / chunk_bytes
                })
                .map(ChunkIndex)
                .collect(),
            Self::Priority(priority) => {
                let mut chunks: Vec<_> = (0..size.div_ceil(chunk_bytes)).map(ChunkIndex).collect();
                chunks.sort_by_cached_key(|chunk| std::cmp::Reverse(priority(*chunk)));
                chunks
            }
        }
    }
}

fn parse_line(line: &str) -> Option<Range<u64>> {
    let mut words = line.split_whitespace();
    let offset = parse_size(words.next()?).ok()?;
    let len = parse_size(words.next()?).ok()?;
    let end = offset.checked_add(len)?;
    words.next().is_none().then_some(offset..end)
}

/// Writes chunks as a file of ranges, whole or not at all; neighbours that follow each other become
/// one range.
pub(super) fn save(path: &Path, order: &[ChunkIndex], chunk_bytes: u64) -> Result<()> {
    let mut text =
        String::from("# chunks in the order in which they were first touched: OFFSET LENGTH\n");
    let mut chunks = order.iter().peekable();
    while let Some(first) = chunks.next() {
        let mut count = 1;
        while chunks.next_if(|next| next.0 == first.0 + count).is_some() {
            count += 1;
        }
        let offset = first.start(chunk_bytes).0;
        text.push_str(&format!("{offset} {}\n", count * chunk_bytes));
    }
    let context = || format!("cannot write {}", path.display());
    let beside = beside(path);
    let mut file = fs::File::create(&beside).context_io(context)?;
    file.write_all(text.as_bytes()).context_io(context)?;
    file.sync_all().context_io(context)?;
    fs::rename(&beside, path).context_io(context)
}

/// Where it is written before it takes its name.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// Whether such a file can be written there.
///
/// # Errors
/// Why not.
pub(super) fn check_writable(path: &Path) -> Result<()> {
    let cannot = || format!("cannot record what is touched in {}", path.display());
    if path.is_dir() {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("{}: it is a directory", cannot()),
        ));
    }
    let beside = beside(path);
    fs::File::create(&beside).context_io(cannot)?;
    fs::remove_file(&beside).context_io(cannot)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = 64 << 10;

    #[test]
    fn what_was_recorded_is_replayed_in_the_same_order() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("heat");
        let order: Vec<_> = [7, 8, 9, 0, 3].map(ChunkIndex).to_vec();
        save(&path, &order, CHUNK).expect("saved");
        let geometry = Geometry::new(10 * CHUNK, 512).expect("legal");
        let read = PullOrder::load(&path).expect("read");
        assert_eq!(read.first(&geometry, CHUNK), order);
        // On a smaller volume the rest of it still counts.
        let smaller = Geometry::new(8 * CHUNK + 1, 512).expect("legal");
        let chunks = read.first(&smaller, CHUNK);
        assert_eq!(chunks, [7, 8, 0, 3].map(ChunkIndex));
    }

    #[test]
    fn lines_that_are_no_range_are_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("order");
        for bad in ["1", "a b", "0 -1", "0 4096 1", "18446744073709551615 2"] {
            fs::write(&path, format!("0 1MiB # boot\n\n{bad}\n")).expect("written");
            let error = PullOrder::load(&path).expect_err(bad);
            assert!(error.to_string().contains("line 3"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_priority_puts_higher_chunks_first() {
        let order = PullOrder::Priority(Arc::new(|chunk| -(chunk.0 as i64 - 2).abs()));
        let geometry = Geometry::new(4 * CHUNK, 512).expect("legal");
        assert_eq!(order.first(&geometry, CHUNK), [2, 1, 3, 0].map(ChunkIndex));
    }
}
