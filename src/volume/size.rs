//! Sizes as people write them.

use crate::{Error, ErrorKind, Result};

/// What a suffix multiplies by. Single letters are binary, as in most disk tools.
const UNITS: [(&str, u64); 13] = [
    ("B", 1),
    ("K", 1 << 10),
    ("M", 1 << 20),
    ("G", 1 << 30),
    ("T", 1 << 40),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// The binary units that sizes are printed in, the largest first.
const PRINTED: [(&str, u64); 4] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
];

/// Reads a size in bytes: a whole number, then nothing or a unit.
///
/// `B K M G T` and `KiB MiB GiB TiB` are powers of 1024, `kB MB GB TB` are powers of 1000. Upper
/// and lower case matter, so that `1Gb` is a question and not a guess.
///
/// ```
/// use blockferry::volume::parse_size;
/// assert_eq!(parse_size("64M")?, 64 << 20);
/// assert_eq!(parse_size("1GB")?, 1_000_000_000);
/// assert!(parse_size("1Gb").is_err());
/// # Ok::<(), blockferry::Error>(())
/// ```
///
/// # Errors
/// `InvalidInput`, with what is allowed, for anything else and for what does not fit 64 bits.
pub fn parse_size(text: &str) -> Result<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = text.split_at(digits);
    let factor = match suffix {
        "" => Some(1),
        _ => UNITS.iter().find(|(unit, _)| *unit == suffix).map(|u| u.1),
    };
    let (false, Some(factor)) = (number.is_empty(), factor) else {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "`{}` is not a size; write a whole number of bytes, or one with a unit: \
                 K M G T or KiB MiB GiB TiB (powers of 1024), kB MB GB TB (powers of 1000)",
                text.escape_debug()
            ),
        ));
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidInput,
                format!("a size of {text} does not fit into 64 bits"),
            )
        })
}

/// A size for people: in the largest binary unit that is not below one, with one decimal where
/// that is not zero (`1GiB`, `1.5GiB`, `512B`).
///
/// A size that is a whole number of the unit reads back as itself with [`parse_size`].
pub fn format_size(bytes: u64) -> String {
    let Some((unit, factor)) = PRINTED.iter().find(|(_, factor)| bytes >= *factor) else {
        return format!("{bytes}B");
    };
    let tenths = (u128::from(bytes) * 10 / u128::from(*factor)) as u64;
    match tenths % 10 {
        0 => format!("{}{unit}", tenths / 10),
        tenth => format!("{}.{tenth}{unit}", tenths / 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_unit_means_what_it_says() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("7B", 7),
            ("1K", 1024),
            ("1KiB", 1024),
            ("1kB", 1000),
            ("64M", 64 << 20),
            ("3MiB", 3 << 20),
            ("3MB", 3_000_000),
            ("1GiB", 1 << 30),
            ("2TB", 2_000_000_000_000),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text).expect(text), bytes, "{text}");
        }
    }

    #[test]
    fn doubtful_sizes_are_refused_with_what_is_allowed() {
        for text in [
            "",
            " ",
            "-1",
            "+1",
            "1Gb",
            "1gb",
            "1kb",
            "1m",
            "1.5G",
            "1 G",
            "G",
            "GiB",
            "1GiBs",
            "0x10",
            "1e9",
            "1_000",
            "１",
            "1\u{202e}G",
            "nan",
        ] {
            let error = parse_size(text).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}");
            assert!(error.to_string().contains("GiB"), "{error}");
        }
    }

    #[test]
    fn a_size_that_overflows_is_refused_and_does_not_wrap() {
        for text in [
            "18446744073709551616",
            "16777216T",
            "99999999999999999999999K",
        ] {
            let error = parse_size(text).expect_err(text);
            assert!(error.to_string().contains("64 bits"), "{error}");
        }
    }

    #[test]
    fn printed_sizes_are_short() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1KiB"),
            (1536, "1.5KiB"),
            (1 << 30, "1GiB"),
            ((1 << 30) - 1, "1023.9MiB"),
            (u64::MAX, "16777215.9TiB"),
        ] {
            assert_eq!(format_size(bytes), text);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "\\PC{0,24}") {
            let _ = parse_size(&text);
        }

        #[test]
        fn whole_units_read_back(number in 1u64..1024, shift in 0u32..5) {
            let bytes = number << (10 * shift);
            prop_assert_eq!(parse_size(&format_size(bytes)).expect("legal"), bytes);
        }
    }
}
