//! The names under which devices run.

use std::fmt;
use std::str::FromStr;

use crate::{Error, ErrorKind, Result};

/// The longest name, in bytes.
const NAME_BYTES_MAX: usize = 32;

/// The longest name made from a resource: leaves room for a number.
const SUGGESTION_BYTES_MAX: usize = NAME_BYTES_MAX - 5;

/// The name under which a device runs: up to 32 of `a-z 0-9 . _ -`, starting with a letter or a
/// digit, so that it is safe as a file name and in a shell.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// A name made from what is mounted: `disk` from `file:/srv/disk.img`, `mem` from `mem:1GiB`.
    pub fn suggested_by(resource: &str) -> Self {
        let resource = resource.split(['#', '?']).next().unwrap_or_default();
        let (scheme, rest) = resource.split_once(':').unwrap_or(("", resource));
        let word = match rest.trim_end_matches('/').rsplit_once('/') {
            Some((_, last)) => last,
            None if scheme.is_empty() => rest,
            None => scheme,
        };
        let stem = match word.rsplit_once('.') {
            Some((stem, _)) if !stem.is_empty() => stem,
            _ => word,
        };
        let text: String = stem
            .chars()
            .map(|c| match c.to_ascii_lowercase() {
                c @ ('a'..='z' | '0'..='9' | '.' | '_' | '-') => c,
                _ => '-',
            })
            .collect();
        let text = text.trim_start_matches(['.', '_', '-']);
        let text = text.get(..SUGGESTION_BYTES_MAX).unwrap_or(text);
        match text.trim_end_matches(['.', '_', '-']) {
            "" => Self("disk".to_owned()),
            text => Self(text.to_owned()),
        }
    }

    /// This name with a number: `disk-2`.
    pub(super) fn numbered(&self, number: u32) -> Self {
        Self(format!("{}-{number}", self.0))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let legal = (1..=NAME_BYTES_MAX).contains(&text.len())
            && text.bytes().next().is_some_and(alphanumeric)
            && text
                .bytes()
                .all(|b| alphanumeric(b) || matches!(b, b'.' | b'_' | b'-'));
        if legal {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::new(
                ErrorKind::InvalidInput,
                format!(
                    "`{}` is not a name; use 1 to {NAME_BYTES_MAX} of a-z 0-9 . _ -, \
                     starting with a letter or a digit",
                    text.escape_debug()
                ),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_are_paths_or_options_are_refused() {
        for text in [
            "",
            ".",
            "..",
            "-x",
            "_x",
            "a/b",
            "../a",
            "A",
            "a b",
            "a\n",
            "a\0",
            "é",
            "a*",
            &"a".repeat(33),
        ] {
            assert!(text.parse::<Name>().is_err(), "{text:?}");
        }
        for text in ["a", "0", "disk", "disk-2", "vm.root_1", &"a".repeat(32)] {
            assert!(text.parse::<Name>().is_ok(), "{text:?}");
        }
    }

    #[test]
    fn names_follow_from_the_resource() {
        for (resource, name) in [
            ("file:/srv/disk.img", "disk"),
            ("file:/srv/My Disk.img", "my-disk"),
            ("/srv/disk.tar.gz", "disk.tar"),
            ("mem:1GiB", "mem"),
            ("blockferry://host:4480/logs#fingerprint.secret", "logs"),
            ("file:/srv/.hidden", "hidden"),
            ("file:/dev/sda", "sda"),
            ("disk.img", "disk"),
            ("", "disk"),
            ("file:///", "file"),
        ] {
            assert_eq!(Name::suggested_by(resource).as_str(), name, "{resource}");
        }
    }

    proptest! {
        #[test]
        fn every_suggestion_is_a_legal_name(resource in "\\PC{0,80}", number in 2u32..1000) {
            let name = Name::suggested_by(&resource);
            prop_assert!(name.as_str().parse::<Name>().is_ok(), "{name}");
            let name = name.numbered(number);
            prop_assert!(name.as_str().parse::<Name>().is_ok(), "{name}");
        }

        #[test]
        fn a_suggestion_never_holds_the_secret(secret in "[a-z]{40}") {
            let name = Name::suggested_by(&format!("blockferry://h:1/#{secret}"));
            prop_assert!(!secret.contains(name.as_str()));
        }
    }
}
