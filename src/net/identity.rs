//! The server's key and its self-signed certificate.

use aws_lc_rs::digest;
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::wire::Fingerprint;
use crate::{Error, ErrorKind, Result};

/// The name in the certificate. Clients know it by its fingerprint, not by its name.
pub(super) const SERVER_NAME: &str = "blockferry";

/// A key with its certificate.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key: PrivateKeyDer<'static>,
}

impl Identity {
    /// A fresh key and certificate as one PEM text, so that they are kept whole.
    pub(super) fn generate() -> Result<Vec<u8>> {
        let make = || {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()])?;
            params
                .distinguished_name
                .push(DnType::CommonName, SERVER_NAME);
            let certificate = params.self_signed(&key)?;
            Ok(key.serialize_pem() + &certificate.pem())
        };
        make()
            .map(String::into_bytes)
            .map_err(|error: rcgen::Error| {
                Error::new(ErrorKind::Io, "cannot make the server's certificate").because(error)
            })
    }

    /// The identity in a PEM text.
    pub(super) fn from_pem(pem: &[u8]) -> Result<Self> {
        let invalid = |what: &str, error| {
            Error::new(ErrorKind::InvalidInput, format!("no {what} in it")).because(error)
        };
        Ok(Self {
            certificate: CertificateDer::from_pem_slice(pem)
                .map_err(|error| invalid("certificate", error))?,
            key: PrivateKeyDer::from_pem_slice(pem)
                .map_err(|error| invalid("private key", error))?,
        })
    }

    /// By what clients know the server.
    pub(super) fn fingerprint(&self) -> Fingerprint {
        fingerprint(&self.certificate)
    }
}

/// The SHA-256 of a certificate.
pub(super) fn fingerprint(certificate: &CertificateDer<'_>) -> Fingerprint {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest::digest(&digest::SHA256, certificate).as_ref());
    Fingerprint(bytes)
}
