//! Why a connection was closed, as a number that the other end understands.

use quinn::{Connection, ConnectionError, VarInt};

/// The application's close codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Close {
    /// The client has finished.
    Done = 0,
    /// The server is on its way out; it may be back.
    GoingAway = 1,
    /// A later session of the same client took its place.
    Superseded = 2,
    /// Another writer took the volume over.
    Fenced = 3,
    /// The ticket's secret was changed.
    Revoked = 4,
    /// The peer broke the protocol.
    Protocol = 5,
    /// The client gave a request up and begins a new session.
    Retired = 6,
    /// The hello was refused.
    Refused = 7,
}

impl Close {
    fn code(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }

    /// Closes the connection for this reason, unless there is one already: the peer's reason is
    /// not to be lost.
    pub(super) fn close(self, connection: &Connection) {
        if connection.close_reason().is_none() {
            connection.close(self.code(), &[]);
        }
    }

    /// Whether the other end closed the connection for this reason.
    pub(super) fn is_reason_of(self, error: &ConnectionError) -> bool {
        matches!(error, ConnectionError::ApplicationClosed(close) if close.error_code == self.code())
    }
}

/// A stream that was given up.
pub(super) const STREAM_GIVEN_UP: VarInt = VarInt::from_u32(1);
