//! Why a verb fails, and the exit code for that.

use std::process::ExitCode;

use blockferry::Error;

/// The exit code for wrong usage.
pub(super) const USAGE: i32 = 2;

/// What a verb ends with that did not do what it was asked for.
#[derive(Debug)]
pub(super) enum Failure {
    /// The command line cannot be understood, on whatever machine.
    Usage(Error),
    /// It was understood, and could not be done.
    Failed(Error),
}

impl Failure {
    /// What happened.
    pub(super) fn error(&self) -> &Error {
        match self {
            Self::Usage(error) | Self::Failed(error) => error,
        }
    }

    /// 1 for a failure, 2 for wrong usage.
    pub(super) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(USAGE as u8),
            Self::Failed(_) => ExitCode::FAILURE,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}
