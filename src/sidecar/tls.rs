//! TLS of the API: certificate and key from two files, which are read anew when they change, so that a renewal needs no
//! restart.
//!
//! Whoever renews them replaces one file after the other. So a change counts only once nothing has moved for a moment,
//! and what cannot be used leaves the old pair in place, with a warning.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{Error, ServerConfig};
use tokio_rustls::server::TlsStream;
use tracing::{info, warn};

use crate::config::TlsFiles;
use crate::content::disk;
use crate::types::Time;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What the API proves itself with.
pub struct Tls {
    files: TlsFiles,
    acceptor: Mutex<TlsAcceptor>,
    /// What the files were when they were read last.
    read: Mutex<Stamp>,
}

/// Tells versions of the two files apart.
type Stamp = [Option<(u64, u64, u64, Time, Time)>; 2];

impl Tls {
    /// Reads the files. Errors are sentences that name the option and the file.
    pub fn load(files: &TlsFiles) -> io::Result<Tls> {
        // Before they are read: what changes meanwhile is read again.
        let read = stamp(files);
        Ok(Tls {
            files: files.clone(),
            acceptor: Mutex::new(acceptor(files)?),
            read: Mutex::new(read),
        })
    }

    /// The server's side of a handshake. Who calls it bounds its time.
    pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> io::Result<TlsStream<S>> {
        let acceptor = self.acceptor.lock().clone();
        acceptor.accept(stream).await
    }

    /// Looks after the files for as long as it is polled.
    pub(super) async fn renew(self: Arc<Self>) {
        let mut before = *self.read.lock();
        loop {
            tokio::time::sleep(LOOK).await;
            let this = self.clone();
            let looked = tokio::task::spawn_blocking(move || this.look(before)).await;
            match looked {
                Ok(now) => before = now,
                Err(_) => return,
            }
        }
    }

    /// Reads the files if they have changed, and not since they were looked at `before`. Returns what they are now.
    fn look(&self, before: Stamp) -> Stamp {
        let now = stamp(&self.files);
        if now != before || now == *self.read.lock() {
            return now;
        }
        match acceptor(&self.files) {
            Ok(renewed) => {
                *self.acceptor.lock() = renewed;
                info!("the certificate of the API was read anew");
            }
            Err(e) => warn!("the certificate of the API stays as it was: {e}"),
        }
        *self.read.lock() = now;
        now
    }
}

fn stamp(files: &TlsFiles) -> Stamp {
    [&files.cert, &files.key].map(|path| {
        let tell = |m: Metadata| (m.dev(), m.ino(), m.len(), disk::mtime(&m), disk::ctime(&m));
        std::fs::metadata(path).ok().map(tell)
    })
}

fn acceptor(files: &TlsFiles) -> io::Result<TlsAcceptor> {
    let TlsFiles { cert, key } = files;
    let wrong = |option: &str, path: &Path, why: &str| {
        let text = format!("{option} {}: {why}", path.display());
        io::Error::new(io::ErrorKind::InvalidInput, text)
    };
    let wrong_cert = |why: &str| wrong("--api-tls-cert", cert, why);
    let wrong_key = |why: &str| wrong("--api-tls-key", key, why);
    let chain = std::fs::read(cert).map_err(|e| wrong_cert(&e.to_string()))?;
    let chain: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&chain).collect();
    let chain = chain.map_err(|_| wrong_cert("it is not whole PEM"))?;
    if chain.is_empty() {
        return Err(wrong_cert("there is no certificate in it; PEM is expected"));
    }
    let secret = std::fs::read(key).map_err(|e| wrong_key(&e.to_string()))?;
    let secret = PrivateKeyDer::from_pem_slice(&secret).map_err(|e| match e {
        pem::Error::NoItemsFound => {
            wrong_key("there is no private key in it; PEM without a passphrase is expected")
        }
        _ => wrong_key("it is not whole PEM"),
    })?;
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(chain, secret);
    let mut config = config.map_err(|e| match e {
        Error::InconsistentKeys(_) => {
            wrong_key(&format!("it does not belong to {}", cert.display()))
        }
        Error::InvalidCertificate(_) => wrong_cert("the certificate in it cannot be understood"),
        Error::General(_) => wrong_key("the private key in it cannot be used"),
        e => wrong_cert(&e.to_string()),
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
