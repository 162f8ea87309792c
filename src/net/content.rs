//! Which content a volume has, and whether it may have changed: what a copy of it hangs on.
//!
//! The *identity* stays over restarts of the server, and is drawn anew when there is another
//! content under the volume's name. The *generation* grows with every time that somebody begins to
//! write, and again when that has ended: it is even at rest, and odd while somebody writes.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tracing::warn;

use super::state_dir::{StateDir, random};
use crate::volume::{FileMark, FileStore};
use crate::wire::VolumeName;
use crate::{Context, Result};

/// How the content of a served volume is told from another one under the same name.
#[derive(Debug, Clone)]
pub enum Content {
    /// It is gone with the volume's instance: memory.
    Instance,
    /// By the volume's name and size: whoever serves knows that it is always the same.
    Name,
    /// By the file: device, inode and size, and after a clean end of the server that nobody has
    /// written it since.
    File(Arc<FileStore>),
    /// Its identity is known, and kept by whoever serves it.
    Known([u8; 16]),
}

/// What is kept of a content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    identity: [u8; 16],
    generation: u64,
    len_bytes: u64,
    /// As it was when the server began to serve it, or at its clean end.
    mark: Mark,
    /// The last server ended cleanly: what the file's mark says of its bytes counts.
    at_rest: bool,
}

/// What a content was recognised by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Mark {
    Instance([u8; 16]),
    Name,
    File(FileMark),
    Known([u8; 16]),
}

/// The content of a volume that is being served.
pub(super) struct ServedContent {
    source: Content,
    identity: [u8; 16],
    state: Mutex<State>,
    place: StateDir,
    name: VolumeName,
}

struct State {
    kept: Kept,
    writer: Option<Writer>,
}

/// A session that has written: its client and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Writer {
    pub(super) client_id: [u8; 16],
    pub(super) session: u64,
}

/// A content, and whether it is another one than the one that was served before.
pub(super) struct Found {
    content: ServedContent,
    pub(super) replaced: bool,
}

impl Found {
    /// Keeps durably what was found. What follows from it has to be durable before.
    pub(super) fn keep(self) -> Result<ServedContent> {
        let mut content = self.content;
        let kept = &content.state.get_mut().kept;
        content.place.keep_content(&content.name, kept)?;
        Ok(content)
    }
}

impl ServedContent {
    /// Finds out which content it is.
    pub(super) fn find(
        source: Content,
        instance: [u8; 16],
        len_bytes: u64,
        place: &StateDir,
        name: &VolumeName,
    ) -> Result<Found> {
        let now = Kept {
            identity: match &source {
                Content::Known(identity) => *identity,
                Content::Instance | Content::Name | Content::File(_) => random()?,
            },
            generation: 0,
            len_bytes,
            mark: source.mark(instance)?,
            at_rest: false,
        };
        let before = place.content(name)?;
        let same = before.as_ref().filter(|before| now.is_content_of(before));
        let kept = match same {
            Some(before) => Kept {
                identity: before.identity,
                generation: before.generation_after_restart(),
                ..now
            },
            None => now,
        };
        Ok(Found {
            replaced: before.is_some() && same.is_none(),
            content: Self {
                source,
                identity: kept.identity,
                state: Mutex::new(State { kept, writer: None }),
                place: place.clone(),
                name: name.clone(),
            },
        })
    }

    pub(super) fn identity(&self) -> [u8; 16] {
        self.identity
    }

    /// Whether it is gone with the process.
    pub(super) fn is_memory(&self) -> bool {
        matches!(self.source, Content::Instance)
    }

    /// The generation while nobody writes.
    pub(super) async fn generation(&self) -> Option<u64> {
        let generation = self.state.lock().await.kept.generation;
        generation.is_multiple_of(2).then_some(generation)
    }

    /// The session is about to write for the first time. That is durable when this returns.
    pub(super) async fn begin_writing(&self, writer: Writer) -> Result<()> {
        let mut state = self.state.lock().await;
        if state.writer == Some(writer) {
            return Ok(());
        }
        if state.kept.generation.is_multiple_of(2) {
            self.step(&mut state).await?;
        }
        state.writer = Some(writer);
        Ok(())
    }

    /// The session has ended, and nothing of it is under way any more.
    pub(super) async fn end_writing(&self, writer: Writer) {
        let mut state = self.state.lock().await;
        if state.writer != Some(writer) {
            return;
        }
        state.writer = None;
        // If it cannot be kept it stays odd, which a restart mends.
        if let Err(error) = self.step(&mut state).await {
            warn!(volume = %self.name, error = error.chain(), "cannot keep the generation");
        }
    }

    async fn step(&self, state: &mut State) -> Result<()> {
        let next = Kept {
            generation: state.kept.generation + 1,
            ..state.kept.clone()
        };
        self.keep(next.clone()).await?;
        state.kept = next;
        Ok(())
    }

    async fn keep(&self, kept: Kept) -> Result<()> {
        let (place, name) = (self.place.clone(), self.name.clone());
        let task = tokio::task::spawn_blocking(move || place.keep_content(&name, &kept));
        task.await
            .map_err(io::Error::other)
            .context_io(|| "the server is on its way out")?
    }

    /// The server ends, and the volume is durable: notes how it is now, if that can be said.
    pub(super) async fn settle(&self) {
        if let Err(error) = self.note_rest().await {
            warn!(volume = %self.name, error = error.chain(), "this is no clean end");
        }
    }

    async fn note_rest(&self) -> Result<()> {
        let state = self.state.lock().await;
        // A write is still under way.
        if !state.kept.generation.is_multiple_of(2) {
            return Ok(());
        }
        let mark = match &self.source {
            Content::File(file) => {
                let file = Arc::clone(file);
                let marking = tokio::task::spawn_blocking(move || file.mark_at_rest());
                let marked = marking.await.map_err(io::Error::other);
                let marked = marked.and_then(|marked| marked);
                Mark::File(marked.context_io(|| "the file cannot be made durable")?)
            }
            Content::Instance | Content::Name | Content::Known(_) => state.kept.mark.clone(),
        };
        self.keep(Kept {
            mark,
            at_rest: true,
            ..state.kept.clone()
        })
        .await
    }
}

impl Content {
    fn mark(&self, instance: [u8; 16]) -> Result<Mark> {
        Ok(match self {
            Self::Instance => Mark::Instance(instance),
            Self::Name => Mark::Name,
            Self::Known(identity) => Mark::Known(*identity),
            Self::File(file) => Mark::File(
                file.mark()
                    .context_io(|| format!("cannot examine {}", file.path().display()))?,
            ),
        })
    }
}

impl Kept {
    /// Whether what is found now is what was kept.
    fn is_content_of(&self, before: &Self) -> bool {
        let same = match (&self.mark, &before.mark) {
            (Mark::File(now), Mark::File(then)) if before.at_rest => now.is_unchanged(then),
            (Mark::File(now), Mark::File(then)) => now.is_the_file(then),
            (now, then) => now == then,
        };
        same && self.len_bytes == before.len_bytes
    }

    /// After a crash what was written and not flushed may be gone, and with it what a reader saw.
    fn generation_after_restart(&self) -> u64 {
        if self.at_rest && self.generation.is_multiple_of(2) {
            self.generation
        } else {
            (self.generation | 1) + 1
        }
    }
}

#[cfg(test)]
#[path = "content_tests.rs"]
mod tests;
