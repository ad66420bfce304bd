//! TLS: a certificate and a key from files, read again when they change.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_rustls::server::TlsStream;

use crate::config::TlsFiles;
use crate::model::chain;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("read PEM from {}", path.display())]
    Pem { path: PathBuf, source: pem::Error },
    #[error("no certificate in {}", path.display())]
    NoCertificate { path: PathBuf },
    #[error("use {} with {}", cert.display(), key.display())]
    Unusable {
        cert: PathBuf,
        key: PathBuf,
        source: rustls::Error,
    },
}

/// What tells a file from what it was.
type Stamp = (u64, u64, i64, i64, u64);

/// The certificate that is shown, and where it comes from.
pub struct Tls {
    files: TlsFiles,
    current: Mutex<(Stamps, TlsAcceptor)>,
}

/// Those of the certificate and the key.
type Stamps = [Option<Stamp>; 2];

impl Tls {
    /// Reads the files.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let stamps = stamps(&files);
        let acceptor = read(&files)?;
        Ok(Self {
            current: Mutex::new((stamps, acceptor)),
            files,
        })
    }

    /// The server's side of a handshake.
    pub async fn accept(self: Arc<Self>, connection: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let acceptor = tokio::task::spawn_blocking(move || self.acceptor())
            .await
            .map_err(io::Error::other)?;
        acceptor.accept(connection).await
    }

    /// By the files as they are now, or as they were when they last made sense.
    fn acceptor(&self) -> TlsAcceptor {
        let mut current = self.current.lock().expect("no panic holds it");
        // Before they are read: what changes meanwhile is seen the next time.
        let now = stamps(&self.files);
        if now != current.0 {
            match read(&self.files) {
                Ok(acceptor) => {
                    tracing::info!(cert = %self.files.cert.display(), "streaming has a new certificate");
                    current.1 = acceptor;
                }
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "streaming keeps its certificate");
                }
            }
            current.0 = now;
        }
        current.1.clone()
    }
}

fn stamps(files: &TlsFiles) -> Stamps {
    let stamp = |file: Metadata| (file.dev(), file.ino(), file.ctime(), file.ctime_nsec(), file.size());
    [&files.cert, &files.key].map(|path| std::fs::metadata(path).ok().map(stamp))
}

fn read(files: &TlsFiles) -> Result<TlsAcceptor, TlsError> {
    let TlsFiles { cert, key } = files;
    let pem = |path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Pem { path, source }
    };
    let certificates = CertificateDer::pem_slice_iter(&bytes(cert)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(pem(cert))?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate { path: cert.clone() });
    }
    let private_key = PrivateKeyDer::from_pem_slice(&bytes(key)?).map_err(pem(key))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map(|builder| builder.with_no_client_auth())
        .and_then(|builder| builder.with_single_cert(certificates, private_key))
        .map_err(|source| TlsError::Unusable {
            cert: cert.clone(),
            key: key.clone(),
            source,
        })?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn bytes(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, name: &str, text: &str) {
        let fresh = directory.join(format!("{name}.new"));
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(fresh, directory.join(name)).unwrap();
    }

    fn made() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn files_that_change_are_read_again_and_those_that_make_no_sense_change_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let files = TlsFiles {
            cert: directory.path().join("cert"),
            key: directory.path().join("key"),
        };
        assert!(matches!(Tls::load(files.clone()), Err(TlsError::Read { .. })));
        let (cert, key) = made();
        write(directory.path(), "cert", &cert);
        write(directory.path(), "key", &key);
        let tls = Tls::load(files).unwrap();
        let shown = |tls: &Tls| Arc::as_ptr(tls.acceptor().config());
        let first = shown(&tls);
        assert_eq!(shown(&tls), first);
        let (cert, key) = made();
        write(directory.path(), "cert", &cert);
        assert_eq!(shown(&tls), first, "of another key");
        write(directory.path(), "key", &key);
        let second = shown(&tls);
        assert_ne!(second, first);
        write(directory.path(), "cert", "nothing");
        assert_eq!(shown(&tls), second);
        std::fs::remove_file(directory.path().join("key")).unwrap();
        assert_eq!(shown(&tls), second);
    }

    #[test]
    fn what_is_wrong_with_the_files_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let files = TlsFiles {
            cert: directory.path().join("cert"),
            key: directory.path().join("key"),
        };
        let ((cert, key), (_, other)) = (made(), made());
        let told = |cert: &str, key: &str| {
            write(directory.path(), "cert", cert);
            write(directory.path(), "key", key);
            Tls::load(files.clone()).err().unwrap()
        };
        assert!(matches!(told("", &key), TlsError::NoCertificate { .. }));
        assert!(matches!(told(&cert, &cert), TlsError::Pem { .. }));
        assert!(matches!(told(&cert, &other), TlsError::Unusable { .. }));
    }
}
