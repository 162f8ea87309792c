//! The error of the library: a kind to match on, what happened to what, and the cause.

use std::error::Error as StdError;
use std::fmt;
use std::io;

/// What a caller may want to tell apart. More kinds may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An argument, a URL or a ticket that cannot be understood.
    InvalidInput,
    /// A file, a volume or a device that is not there.
    NotFound,
    /// The operating system or the other end does not allow it.
    PermissionDenied,
    /// Somebody else holds the resource, the lease, the name or the port.
    Busy,
    /// This machine or the other end lacks what it takes.
    Unsupported,
    /// The other end cannot be reached.
    Unreachable,
    /// The other end, or we, could not prove who it is.
    Unauthenticated,
    /// Another writer has had the volume since: the epoch is not the one that was known.
    Fenced,
    /// Under the same name there is another content than the one that was known.
    Replaced,
    /// The other end broke the protocol, or speaks another version of it.
    Protocol,
    /// It did not end in its time.
    TimedOut,
    /// The resource cannot be written.
    ReadOnly,
    /// What was kept on this machine is damaged; nothing of it was used.
    Damaged,
    /// What was kept on this machine belongs to something else: another origin, size or version.
    Foreign,
    /// There are local writes that the origin does not have, and that would be lost.
    Dirty,
    /// Anything that the operating system reported and that is none of the above.
    Io,
}

/// An error: kind, context, and the error below it.
///
/// `Display` gives the context alone; walk [`source`](StdError::source) for the causes.
///
/// ```
/// use blockferry::{Error, ErrorKind};
/// let error = Error::new(ErrorKind::NotFound, "no volume named `disk` here");
/// assert_eq!(error.kind(), ErrorKind::NotFound);
/// assert_eq!(error.to_string(), "no volume named `disk` here");
/// ```
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The result of everything in this library that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error without a cause below it.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            source: None,
        }
    }

    /// The same error with its cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// An operating system error; the kind follows from its code.
    pub fn io(context: impl Into<String>, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        Self::new(kind_of(&source), context).because(source)
    }

    /// The context, then each cause below it: `cannot read x: permission denied`. A cause that
    /// only repeats what was said is left out.
    pub fn chain(&self) -> String {
        let mut text = self.context.clone();
        let mut below = self.source();
        while let Some(cause) = below {
            let cause_text = cause.to_string();
            if !text.ends_with(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            below = cause.source();
        }
        text
    }

    /// What kind of error it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

fn kind_of(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
        io::ErrorKind::AddrInUse | io::ErrorKind::ResourceBusy | io::ErrorKind::WouldBlock => {
            ErrorKind::Busy
        }
        io::ErrorKind::TimedOut => ErrorKind::TimedOut,
        io::ErrorKind::Unsupported => ErrorKind::Unsupported,
        io::ErrorKind::ReadOnlyFilesystem => ErrorKind::ReadOnly,
        io::ErrorKind::InvalidInput => ErrorKind::InvalidInput,
        _ => ErrorKind::Io,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}

/// Adds what was being done, and to what, to an operating system error.
pub trait Context<T> {
    /// Wraps the error; `context` is only made when there is one.
    fn context_io<C: Into<String>>(self, context: impl FnOnce() -> C) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context_io<C: Into<String>>(self, context: impl FnOnce() -> C) -> Result<T> {
        self.map_err(|error| Error::io(context(), error))
    }
}
