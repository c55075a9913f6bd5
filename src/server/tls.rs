//! TLS on the main port, from PEM files.

use std::{path::Path, sync::Arc};

use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{
            CertificateDer, PrivateKeyDer,
            pem::{self, PemObject as _},
        },
    },
};

use crate::{
    config::TlsFiles,
    error::{Error, Result},
};

/// HTTP/2 first, which gRPC needs; then HTTP/1.1.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// What makes TLS connections of those that are accepted: TLS 1.2 and 1.3.
///
/// # Errors
///
/// `Invalid`, naming the setting, the file and what is wrong with it.
pub(super) fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor> {
    let wrong = |cause: tokio_rustls::rustls::Error| {
        let (cert, key) = (files.cert.display(), files.key.display());
        Error::invalid("tls_cert", format!("{cert} with the key of {key}: {cause}")).with_cause(cause)
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(wrong)?
        .with_no_client_auth()
        .with_single_cert(chain(&files.cert)?, key(&files.key)?)
        .map_err(wrong)?;
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = read("tls_cert", path)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<std::result::Result<_, _>>()
        .map_err(|cause| not_pem("tls_cert", path, cause))?;
    if chain.is_empty() {
        return Err(Error::invalid("tls_cert", format!("{}: holds no certificate", path.display())));
    }
    Ok(chain)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let text = read("tls_key", path)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|cause| match cause {
        pem::Error::NoItemsFound => Error::invalid(
            "tls_key",
            format!("{}: holds no private key that is not encrypted", path.display()),
        ),
        cause => not_pem("tls_key", path, cause),
    })
}

fn read(setting: &str, path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|cause| {
        let message = format!("{}: cannot be read: {cause}", path.display());
        Error::invalid(setting, message).with_cause(cause)
    })
}

fn not_pem(setting: &str, path: &Path, cause: pem::Error) -> Error {
    // The cause may quote the file, and the file may be a key: it stays unsaid.
    drop(cause);
    Error::invalid(setting, format!("{}: is not well-formed PEM", path.display()))
}
