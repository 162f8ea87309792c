//! TLS 1.3 for both ends, with the one crypto provider passed explicitly.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, PeerIncompatible, RootCertStore,
    ServerConfig, SignatureScheme,
};

use super::identity::{Identity, fingerprint};
use crate::wire::Fingerprint;
use crate::{Error, ErrorKind, Result};

/// The protocol's name in the handshake.
pub(super) const ALPN: &[u8] = b"blockferry/1";

/// Certificates of a CA, as PEM files: both ends show one, and no secret is needed.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The certificate that the other end's has to be signed with.
    pub ca: PathBuf,
    /// Our certificate, with those between it and the CA.
    pub certificate: PathBuf,
    /// Our private key.
    pub key: PathBuf,
}

struct Loaded {
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl TlsFiles {
    fn load(&self) -> Result<Loaded> {
        let mut roots = RootCertStore::empty();
        for certificate in read_certificates(&self.ca)? {
            roots
                .add(certificate)
                .map_err(|error| bad_pem(&self.ca, error))?;
        }
        Ok(Loaded {
            roots: Arc::new(roots),
            chain: read_certificates(&self.certificate)?,
            key: PrivateKeyDer::from_pem_file(&self.key)
                .map_err(|error| bad_pem(&self.key, error))?,
        })
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| bad_pem(path, error))?;
    if certificates.is_empty() {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            format!("{} holds no certificate in PEM", path.display()),
        ));
    }
    Ok(certificates)
}

fn bad_pem(path: &Path, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        format!("cannot use {} (PEM is expected)", path.display()),
    )
    .because(error)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn tls_error(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::InvalidInput, "cannot set up TLS").because(error)
}

/// The server's half where tickets speak for the clients.
pub(super) fn server_with_identity(identity: Identity) -> Result<Arc<QuicServerConfig>> {
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls_error)?
        .with_no_client_auth()
        .with_single_cert(vec![identity.certificate], identity.key)
        .map_err(tls_error)?;
    finish_server(config)
}

/// The server's half where certificates of a CA speak for both ends.
pub(super) fn server_with_files(files: &TlsFiles) -> Result<Arc<QuicServerConfig>> {
    let loaded = files.load()?;
    let verifier = WebPkiClientVerifier::builder_with_provider(loaded.roots, provider())
        .build()
        .map_err(tls_error)?;
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(tls_error)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(loaded.chain, loaded.key)
        .map_err(|error| bad_pem(&files.key, error))?;
    finish_server(config)
}

fn finish_server(mut config: ServerConfig) -> Result<Arc<QuicServerConfig>> {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.max_early_data_size = 0;
    let config = QuicServerConfig::try_from(config).map_err(tls_error)?;
    Ok(Arc::new(config))
}

/// The client's half, with what it found out about the server.
#[derive(Clone)]
pub(super) struct ClientTls {
    pub(super) config: Arc<QuicClientConfig>,
    wrong_fingerprint: Arc<AtomicBool>,
}

impl ClientTls {
    /// A client that knows the server by its fingerprint.
    pub(super) fn with_fingerprint(expected: Fingerprint) -> Result<Self> {
        let wrong_fingerprint = Arc::new(AtomicBool::new(false));
        let verifier = FingerprintVerifier {
            expected,
            provider: provider(),
            wrong: Arc::clone(&wrong_fingerprint),
        };
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls_error)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        Self::finish(config, wrong_fingerprint)
    }

    /// A client with a certificate, for a server with one of the same CA.
    pub(super) fn with_files(files: &TlsFiles) -> Result<Self> {
        let loaded = files.load()?;
        let verifier = WebPkiServerVerifier::builder_with_provider(loaded.roots, provider())
            .build()
            .map_err(tls_error)?;
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls_error)?
            .with_webpki_verifier(verifier)
            .with_client_auth_cert(loaded.chain, loaded.key)
            .map_err(|error| bad_pem(&files.key, error))?;
        Self::finish(config, Arc::default())
    }

    fn finish(mut config: ClientConfig, wrong_fingerprint: Arc<AtomicBool>) -> Result<Self> {
        config.alpn_protocols = vec![ALPN.to_vec()];
        let config = QuicClientConfig::try_from(config).map_err(tls_error)?;
        Ok(Self {
            config: Arc::new(config),
            wrong_fingerprint,
        })
    }

    /// Whether the last handshake met a server with another certificate.
    pub(super) fn met_another_server(&self) -> bool {
        self.wrong_fingerprint.swap(false, Ordering::Relaxed)
    }
}

/// Accepts one certificate, by its hash. That its owner holds the key is still checked by the
/// handshake's signature.
#[derive(Debug)]
struct FingerprintVerifier {
    expected: Fingerprint,
    provider: Arc<CryptoProvider>,
    wrong: Arc<AtomicBool>,
}

impl ServerCertVerifier for FingerprintVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if fingerprint(end_entity) == self.expected {
            return Ok(ServerCertVerified::assertion());
        }
        self.wrong.store(true, Ordering::Relaxed);
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
