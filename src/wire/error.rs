//! What can be wrong with the bytes of a peer, each with a name and a number.

/// A message that is not one of this protocol's. The numbers travel in replies, so that the
/// sender learns what was wrong with its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[repr(u32)]
#[non_exhaustive]
pub enum WireError {
    /// The first bytes are not this protocol's.
    #[error("these are not bytes of the blockferry protocol")]
    Magic = 1,
    /// A data header of another version.
    #[error("the data header has another protocol version")]
    Version = 2,
    /// An operation that this end does not know.
    #[error("unknown operation")]
    Operation = 3,
    /// A flag that this end does not know, or that does not go with the operation.
    #[error("unknown flag")]
    Flag = 4,
    /// A priority that this end does not know.
    #[error("unknown priority")]
    Priority = 5,
    /// Bytes that have to be zero are not.
    #[error("reserved bytes are not zero")]
    Reserved = 6,
    /// A length of nothing, or one above the limit.
    #[error("the length is out of bounds")]
    Length = 7,
    /// A range that overflows.
    #[error("the range is out of bounds")]
    Range = 8,
    /// A status that this end does not know.
    #[error("unknown status")]
    Status = 9,
    /// A kind of segment that this end does not know.
    #[error("unknown kind of segment")]
    SegmentKind = 10,
    /// Compression that was not negotiated, or not asked for.
    #[error("compression that was not negotiated or not asked for")]
    SegmentCompression = 11,
    /// A segment that is too short or longer than what is left of the body.
    #[error("the length of a segment is out of bounds")]
    SegmentLength = 12,
    /// Extents that are empty, out of order, or too many.
    #[error("the extents are out of order")]
    Extent = 13,
    /// A control message above the limit.
    #[error("the control message is too long")]
    MessageLength = 14,
    /// A control message that cannot be decoded.
    #[error("unknown or malformed control message")]
    Message = 15,
    /// The stream ended in the middle of a message.
    #[error("the message ends too early")]
    Truncated = 16,
    /// A compressed segment that does not decompress to what it stands for.
    #[error("the compressed bytes of a segment are damaged")]
    SegmentData = 17,
    /// A kind of compression that this end does not know, or where there is nothing to compress.
    #[error("unknown kind of compression")]
    Compression = 18,
    /// A fault that only a later version has a name for.
    #[error("a fault without a name in this version")]
    Unnamed = u32::MAX,
}

impl WireError {
    const ALL: [Self; 18] = [
        Self::Magic,
        Self::Version,
        Self::Operation,
        Self::Flag,
        Self::Priority,
        Self::Reserved,
        Self::Length,
        Self::Range,
        Self::Status,
        Self::SegmentKind,
        Self::SegmentCompression,
        Self::SegmentLength,
        Self::Extent,
        Self::MessageLength,
        Self::Message,
        Self::Truncated,
        Self::SegmentData,
        Self::Compression,
    ];

    /// The number under which it travels.
    pub fn code(self) -> u32 {
        self as u32
    }

    /// The fault behind a number; [`WireError::Unnamed`] for one that is not known.
    pub fn from_code(code: u32) -> Self {
        Self::ALL
            .into_iter()
            .find(|fault| fault.code() == code)
            .unwrap_or(Self::Unnamed)
    }
}

impl From<WireError> for crate::Error {
    fn from(fault: WireError) -> Self {
        Self::new(crate::ErrorKind::Protocol, fault.to_string())
    }
}

impl From<WireError> for std::io::Error {
    fn from(fault: WireError) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_keeps_its_number() {
        for (index, fault) in WireError::ALL.into_iter().enumerate() {
            assert_eq!(fault.code() as usize, index + 1);
            assert_eq!(WireError::from_code(fault.code()), fault);
        }
        assert_eq!(WireError::from_code(0), WireError::Unnamed);
        assert_eq!(WireError::from_code(9999), WireError::Unnamed);
    }
}
