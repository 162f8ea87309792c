//! Reads blocks of a store.

use std::io;

use crate::AsyncBackend;
use crate::volume::Priority;
use crate::volume::geometry::BlockRange;

/// The bytes of a run, as far as the store has any: what it does not fill reads as zeros (L9).
///
/// # Errors
/// When the store cannot be read.
pub(super) async fn read_blocks(
    store: &dyn AsyncBackend,
    run: BlockRange,
    priority: Priority,
) -> io::Result<Vec<u8>> {
    let offset = run.start().0;
    let within = store.size().saturating_sub(offset).min(run.len_bytes());
    let mut bytes = vec![0; within as usize];
    let filled = store.read_at(&mut bytes, offset, priority).await?;
    let filled = filled.min(bytes.len());
    bytes[filled..].fill(0);
    Ok(bytes)
}
