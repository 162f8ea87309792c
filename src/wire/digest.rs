//! Digests of a volume's leaves: by them two stores are compared without their bytes.
//!
//! The body of a reply to a request for them is one digest after the other.

/// How long a leaf is, in bytes. The last one of a volume may be shorter.
pub const LEAF_BYTES: u64 = 64 << 10;

/// How long a digest is, in bytes.
pub const DIGEST_BYTES: usize = 32;

/// BLAKE3 of a leaf.
pub type Digest = [u8; DIGEST_BYTES];

/// The digest of a leaf's bytes.
pub fn digest(bytes: &[u8]) -> Digest {
    *blake3::hash(bytes).as_bytes()
}
