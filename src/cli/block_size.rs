//! A logical block size as an argument.

/// What block devices can have, in bytes.
const SIZES: [u32; 4] = [512, 1024, 2048, 4096];

/// Reads one.
pub(super) fn parse(text: &str) -> Result<u32, &'static str> {
    text.parse()
        .ok()
        .filter(|size| SIZES.contains(size))
        .ok_or("it is one of 512, 1024, 2048 and 4096")
}
