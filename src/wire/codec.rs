//! Compression of the parts of bodies. Lengths are held against limits before anything is allocated;
//! what a part decompresses to has to fill exactly the place that its header names.

use std::cell::RefCell;
use std::io;
use std::str::FromStr;

use lz4_flex::block::{self, CompressTable};
use zstd::bulk;

use super::WireError;
use super::control::{FEATURE_LZ4, FEATURE_ZSTD};
use crate::{Error, ErrorKind, Result};

/// The longest part of a body that is compressed at once, in bytes before that.
pub const UNIT_BYTES_MAX: usize = 128 << 10;

/// The level at which zstd is nearly as fast as the network.
const ZSTD_LEVEL: i32 = 1;

/// A compressed part is sent if it is shorter than the part itself by this part of it.
const SAVING_PART_MIN: usize = 16;

/// A way to compress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// The block format of LZ4: fast, and saves less.
    Lz4,
    /// A frame of Zstandard: saves more.
    Zstd,
}

/// How bodies are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// They are not.
    #[default]
    Off,
    /// By LZ4.
    Lz4,
    /// By Zstandard.
    Zstd,
    /// By LZ4 where the sender finds that it saves time on this link.
    Auto,
}

/// Which ways to compress both ends know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Codecs {
    lz4: bool,
    zstd: bool,
}

impl Codecs {
    /// None at all.
    pub const NONE: Self = Self {
        lz4: false,
        zstd: false,
    };

    /// What a reply may be compressed by, to a request with this wish.
    pub fn of_reply(wish: Compression) -> Self {
        let codec = wish.codec();
        Self {
            lz4: codec == Some(Codec::Lz4),
            zstd: codec == Some(Codec::Zstd),
        }
    }

    /// Those that the features of a hello or welcome name.
    pub fn from_features(features: u64) -> Self {
        Self {
            lz4: features & FEATURE_LZ4 != 0,
            zstd: features & FEATURE_ZSTD != 0,
        }
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self == Self::NONE
    }

    /// Whether it is one of them.
    pub fn has(self, codec: Codec) -> bool {
        match codec {
            Codec::Lz4 => self.lz4,
            Codec::Zstd => self.zstd,
        }
    }

    /// What becomes of a wish where the other end does not know the way to do it.
    pub fn grant(self, wish: Compression) -> Compression {
        match wish.codec() {
            Some(codec) if self.has(codec) => wish,
            _ => Compression::Off,
        }
    }
}

impl Compression {
    /// What a body may be compressed by.
    pub fn codec(self) -> Option<Codec> {
        match self {
            Self::Off => None,
            Self::Lz4 | Self::Auto => Some(Codec::Lz4),
            Self::Zstd => Some(Codec::Zstd),
        }
    }

    /// The number under which it travels.
    pub fn code(self) -> u8 {
        match self {
            Self::Off => 0,
            Self::Lz4 => 1,
            Self::Zstd => 2,
            Self::Auto => 3,
        }
    }

    /// What is behind a number.
    ///
    /// # Errors
    /// `Compression` for one that is not known.
    pub fn from_code(code: u8) -> Result<Self, WireError> {
        match code {
            0 => Ok(Self::Off),
            1 => Ok(Self::Lz4),
            2 => Ok(Self::Zstd),
            3 => Ok(Self::Auto),
            _ => Err(WireError::Compression),
        }
    }
}

impl FromStr for Compression {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "off" => Ok(Self::Off),
            "lz4" => Ok(Self::Lz4),
            "zstd" => Ok(Self::Zstd),
            "auto" => Ok(Self::Auto),
            _ => Err(Error::new(
                ErrorKind::InvalidInput,
                format!("`{text}` is no way to compress; there are off, lz4, zstd and auto"),
            )),
        }
    }
}

/// What compressing takes, made once for each thread.
struct Contexts {
    lz4: CompressTable,
    zstd: bulk::Compressor<'static>,
    unzstd: bulk::Decompressor<'static>,
    /// As long as the longest unit can become.
    scratch: Vec<u8>,
}

impl Contexts {
    fn new() -> io::Result<Self> {
        Ok(Self {
            lz4: CompressTable::large(),
            zstd: bulk::Compressor::new(ZSTD_LEVEL)?,
            unzstd: bulk::Decompressor::new()?,
            scratch: vec![0; block::get_maximum_output_size(UNIT_BYTES_MAX)],
        })
    }
}

/// `None` where `work` gives that, or where there is no memory for the contexts.
fn with_contexts<T>(work: impl FnOnce(&mut Contexts) -> Option<T>) -> Option<T> {
    thread_local!(static CONTEXTS: RefCell<Option<Contexts>> = const { RefCell::new(None) });
    CONTEXTS.with_borrow_mut(|contexts| {
        if contexts.is_none() {
            *contexts = Some(Contexts::new().ok()?);
        }
        work(contexts.as_mut()?)
    })
}

/// The unit, at most [`UNIT_BYTES_MAX`], compressed; `None` where that saves too little.
pub fn compress(codec: Codec, unit: &[u8]) -> Option<Vec<u8>> {
    let longest = unit.len() - unit.len().div_ceil(SAVING_PART_MIN);
    with_contexts(|contexts| {
        let scratch = &mut contexts.scratch;
        let len = match codec {
            Codec::Lz4 => block::compress_into_with_table(unit, scratch, &mut contexts.lz4).ok()?,
            Codec::Zstd => {
                let room = scratch.get_mut(..longest)?;
                contexts.zstd.compress_to_buffer(unit, room).ok()?
            }
        };
        (len > 0 && len <= longest).then(|| scratch[..len].to_vec())
    })
}

/// Decompresses `stored` into all of `place`.
///
/// # Errors
/// `SegmentData` for anything that is not exactly that long; `place` then holds no one knows what.
pub fn decompress(codec: Codec, stored: &[u8], place: &mut [u8]) -> Result<(), WireError> {
    let len = match codec {
        Codec::Lz4 => block::decompress_into(stored, place).ok(),
        Codec::Zstd => {
            with_contexts(|contexts| contexts.unzstd.decompress_to_buffer(stored, place).ok())
        }
    };
    if len == Some(place.len()) {
        Ok(())
    } else {
        Err(WireError::SegmentData)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOTH: [Codec; 2] = [Codec::Lz4, Codec::Zstd];

    fn text(len: usize) -> Vec<u8> {
        b"what is written twice is stored once; "
            .iter()
            .copied()
            .cycle()
            .take(len)
            .collect()
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1u64;
        std::iter::repeat_with(|| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as u8
        })
        .take(len)
        .collect()
    }

    #[test]
    fn what_other_builds_have_compressed_can_be_read() {
        let golden = [
            (
                Codec::Lz4,
                "ff1777686174206973207772697474656e2074776963652069732073746f726564206f6e63653b20\
                 2600ff52606e2074776963",
            ),
            (
                Codec::Zstd,
                "28b52ffd6090007d0100640277686174206973207772697474656e2074776963652069732073746f\
                 726564206f6e63653b2001003e4baa7a02",
            ),
        ];
        for (codec, stored) in golden {
            let stored = data_encoding::HEXLOWER.decode(stored.as_bytes());
            let mut place = [0; 400];
            let read = decompress(codec, &stored.expect("hexadecimal"), &mut place);
            assert_eq!(read, Ok(()), "{codec:?}");
            assert_eq!(place[..], text(400));
        }
    }

    #[test]
    fn what_does_not_get_shorter_is_left_alone() {
        for codec in BOTH {
            for unit in [noise(UNIT_BYTES_MAX), noise(4096), noise(1), vec![]] {
                assert_eq!(compress(codec, &unit), None, "{codec:?} {}", unit.len());
            }
            // And the context is good for the next one.
            assert!(compress(codec, &text(4096)).is_some());
        }
    }

    #[test]
    fn a_unit_that_is_longer_or_shorter_than_its_place_is_damaged() {
        for codec in BOTH {
            let stored = compress(codec, &text(4096)).expect("shorter");
            for len in [0, 1, 4095, 4097, 8192] {
                let mut place = vec![0; len];
                let read = decompress(codec, &stored, &mut place);
                assert_eq!(read, Err(WireError::SegmentData), "{codec:?} {len}");
            }
        }
    }

    #[test]
    fn features_say_what_can_be_wished_for() {
        let lz4 = Codecs::from_features(FEATURE_LZ4 | 1 << 60);
        assert_eq!(lz4.grant(Compression::Auto), Compression::Auto);
        assert_eq!(lz4.grant(Compression::Lz4), Compression::Lz4);
        assert_eq!(lz4.grant(Compression::Zstd), Compression::Off);
        let none = Codecs::from_features(0);
        assert!(none.is_empty() && !lz4.is_empty());
        for wish in [Compression::Auto, Compression::Lz4, Compression::Zstd] {
            assert_eq!(none.grant(wish), Compression::Off);
            assert_eq!(Compression::from_code(wish.code()), Ok(wish));
        }
        assert_eq!(Compression::from_code(4), Err(WireError::Compression));
    }

    proptest! {
        #[test]
        fn units_come_back_as_they_were(
            pieces in prop::collection::vec((any::<[u8; 7]>(), 0usize..3000), 1..20),
        ) {
            let mut unit: Vec<u8> = pieces
                .iter()
                .flat_map(|(piece, len)| piece.iter().copied().cycle().take(*len))
                .collect();
            unit.truncate(UNIT_BYTES_MAX);
            for codec in BOTH {
                if let Some(stored) = compress(codec, &unit) {
                    prop_assert!(stored.len() < unit.len());
                    let mut back = vec![0xEE; unit.len()];
                    prop_assert_eq!(decompress(codec, &stored, &mut back), Ok(()));
                    prop_assert!(back == unit);
                }
            }
        }

        #[test]
        fn any_bytes_are_a_unit_or_an_error(
            stored in prop::collection::vec(any::<u8>(), 0..600),
            len in 0usize..5000,
        ) {
            for codec in BOTH {
                let _ = decompress(codec, &stored, &mut vec![0; len]);
            }
        }

        #[test]
        fn a_damaged_unit_is_a_unit_or_an_error(
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            for codec in BOTH {
                let mut stored = compress(codec, &text(8192)).expect("shorter");
                for (at, byte) in &damage {
                    let at = at.index(stored.len());
                    stored[at] = *byte;
                }
                let _ = decompress(codec, &stored, &mut [0; 8192]);
                let _ = decompress(codec, &stored[..cut.index(stored.len())], &mut [0; 8192]);
            }
        }
    }
}
