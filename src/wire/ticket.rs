//! Tickets: `blockferry://host:port/volume#v1.FINGERPRINT.SECRET`.
//!
//! The fingerprint is the SHA-256 of the server's certificate, the secret 32 random bytes, both
//! in base64url without padding. Where certificates of a CA speak for both ends there is nothing
//! behind the volume's name.

use std::fmt;
use std::str::FromStr;

use bincode::{Decode, Encode};
use data_encoding::BASE64URL_NOPAD;
use subtle::ConstantTimeEq;

use super::limits::VOLUME_NAME_BYTES_MAX;
use crate::{Error, ErrorKind, Result};

/// What a URL of this protocol begins with.
pub const SCHEME: &str = "blockferry://";

const VERSION: &str = "v1";

/// How long fingerprints and secrets are.
const KEY_BYTES: usize = 32;

const HOST_BYTES_MAX: usize = 253;

/// The SHA-256 of a certificate in DER.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; KEY_BYTES]);

/// What lets its bearer in. It is never shown: `Debug` hides it.
#[derive(Clone, Encode, Decode)]
pub struct Secret(pub [u8; KEY_BYTES]);

/// A name that is good for a URL and for a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeName(String);

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// A name or an address; an IPv6 address without brackets.
    pub host: String,
    /// The UDP port.
    pub port: u16,
}

/// How the two ends of a ticket know each other.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The certificate that the server has to show.
    pub fingerprint: Fingerprint,
    /// What the client has to show.
    pub secret: Secret,
}

/// A ticket, or the plain URL of a volume behind certificates of a CA.
///
/// `Display` and `Debug` hide the secret; [`Ticket::reveal`] is the whole of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket {
    /// Where the server listens.
    pub address: HostPort,
    /// The volume's name there.
    pub volume: VolumeName,
    /// None where certificates of a CA are used.
    pub credentials: Option<Credentials>,
}

impl PartialEq for Secret {
    /// In constant time.
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Secret {}

impl Secret {
    /// The secret as text. For a ticket or for a file that only its owner reads.
    pub fn reveal(&self) -> String {
        BASE64URL_NOPAD.encode(&self.0)
    }
}

impl FromStr for Secret {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        key_from_text(text, "secret").map(Self)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64URL_NOPAD.encode(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

impl VolumeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VolumeName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty()
            || name.len() > VOLUME_NAME_BYTES_MAX
            || name.starts_with(['.', '-'])
            || !name.chars().all(legal)
        {
            return Err(invalid(format!(
                "`{}` is no name for a volume: it takes 1 to {VOLUME_NAME_BYTES_MAX} letters, \
                 digits, dots, dashes or underscores, and begins with none of `.` and `-`",
                name.escape_debug()
            )));
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for HostPort {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => rest
                .split_once("]:")
                .ok_or_else(|| invalid(format!("`{text}` is not of the form [ADDRESS]:PORT")))?,
            None => text
                .rsplit_once(':')
                .ok_or_else(|| invalid(format!("`{text}` has no port; write HOST:PORT")))?,
        };
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let in_brackets = text.starts_with('[');
        let good = if in_brackets {
            host.parse::<std::net::Ipv6Addr>().is_ok()
        } else {
            !host.is_empty() && host.len() <= HOST_BYTES_MAX && host.chars().all(legal)
        };
        if !good {
            let hint = if host.contains(':') && !in_brackets {
                "; an IPv6 address goes in brackets"
            } else {
                ""
            };
            return Err(invalid(format!(
                "`{host}` is no host name or address{hint}"
            )));
        }
        let port = port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| invalid(format!("`{port}` is no port; it is from 1 to 65535")))?;
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl Ticket {
    /// The whole ticket, secret included: for the bearer, not for a log.
    pub fn reveal(&self) -> String {
        match &self.credentials {
            None => self.url(),
            Some(Credentials {
                fingerprint,
                secret,
            }) => format!("{}#{VERSION}.{fingerprint}.{}", self.url(), secret.reveal()),
        }
    }

    /// The ticket without fingerprint and secret.
    pub fn url(&self) -> String {
        format!("{SCHEME}{}/{}", self.address, self.volume)
    }
}

impl FromStr for Ticket {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| {
            invalid(format!(
                "this is no ticket; one begins with `{SCHEME}` and is printed by `blockferry serve`"
            ))
        })?;
        let (url, fragment) = match rest.split_once('#') {
            Some((url, fragment)) => (url, Some(fragment)),
            None => (rest, None),
        };
        let (address, volume) = url.split_once('/').ok_or_else(|| {
            invalid(format!(
                "the ticket `{SCHEME}{url}` names no volume; write {SCHEME}HOST:PORT/VOLUME"
            ))
        })?;
        Ok(Self {
            address: address.parse()?,
            volume: volume.parse()?,
            credentials: fragment.map(Credentials::from_str).transpose()?,
        })
    }
}

impl FromStr for Credentials {
    type Err = Error;

    fn from_str(fragment: &str) -> Result<Self> {
        let mut parts = fragment.split('.');
        let version = parts.next().unwrap_or_default();
        if version != VERSION {
            let looks_like_one = version.len() <= 8
                && version
                    .strip_prefix('v')
                    .is_some_and(|number| number.parse::<u32>().is_ok());
            return Err(if looks_like_one {
                Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "the ticket is of version {version}, and this build only reads {VERSION}; \
                         use the same version of blockferry on both ends"
                    ),
                )
            } else {
                invalid("the part of the ticket behind `#` is damaged; copy it whole".to_owned())
            });
        }
        let (Some(fingerprint), Some(secret), None) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(invalid(
                "the part of the ticket behind `#` is cut off; copy it whole".to_owned(),
            ));
        };
        Ok(Self {
            fingerprint: Fingerprint(key_from_text(fingerprint, "fingerprint")?),
            secret: secret.parse()?,
        })
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url())?;
        match self.credentials {
            Some(_) => f.write_str("#(hidden)"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ticket({self})")
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

fn key_from_text(text: &str, what: &str) -> Result<[u8; KEY_BYTES]> {
    BASE64URL_NOPAD
        .decode(text.as_bytes())
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| {
            invalid(format!(
                "the {what} in the ticket is damaged; copy the ticket whole"
            ))
        })
}

fn invalid(context: String) -> Error {
    Error::new(ErrorKind::InvalidInput, context)
}

#[cfg(test)]
#[path = "ticket_tests.rs"]
mod tests;
