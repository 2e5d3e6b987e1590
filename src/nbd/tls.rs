//! TLS 1.3 over a socket that does not block (RFC 8446, by rustls).

use super::pin::{self, Own, Pin};
use super::socket::Socket;
use super::uri::Tls;
use crate::error::{Error, Result};
use crate::io::read_bounded;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Certificates and keys are small.
const MAX_PEM_BYTES: u64 = 1 << 20;
/// What rustls may hold back of what is written, bytes.
const HELD_BYTES: usize = 256 << 10;

/// Whom a client believes, and who it is.
#[derive(Clone)]
pub struct Client {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Client {
    /// Reads the files of `tls`; `host` is the name in the server's certificate where `tls` names no other.
    ///
    /// # Errors
    /// No directory of certificates is named, its files are missing or wrong, or there is no name.
    pub fn new(tls: &Tls, host: Option<&str>) -> Result<Client> {
        match &tls.pin {
            Some(pin) => Client::pinned(*pin),
            None => Client::certified(tls, host),
        }
    }

    /// Believes the server with this pin and nobody else, and comes with this host's own certificate.
    fn pinned(pin: Pin) -> Result<Client> {
        let own = Own::of_this_host()?;
        let failed = |e| Error::failed("TLS 1.3").because(e);
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(failed)?
            .dangerous()
            .with_custom_certificate_verifier(pin::server(pin))
            .with_client_auth_cert(vec![own.certificate.clone()], own.key())
            .map_err(failed)?;
        // Nobody looks at the name.
        let name = ServerName::try_from(pin::NAME).map_err(|e| Error::failed("TLS 1.3").because(e))?;
        Ok(Client { config: Arc::new(config), name })
    }

    fn certified(tls: &Tls, host: Option<&str>) -> Result<Client> {
        let dir = tls.certificates.as_deref().ok_or_else(|| {
            Error::usage("NBD URI with TLS: expected tls-certificates=DIR with ca-cert.pem or tls-pin=PIN, found neither")
                .next("name the directory that the server's administrator gave you, or the pin that 'motiongear serve' shows there")
        })?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&dir.join("ca-cert.pem"))? {
            roots.add(certificate).map_err(|e| unfit(&dir.join("ca-cert.pem"), "a certificate", e))?;
        }
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| Error::failed("TLS 1.3").because(e))?
            .with_root_certificates(roots);
        let (chain, key) = (dir.join("client-cert.pem"), dir.join("client-key.pem"));
        let config = match chain.exists() || key.exists() {
            true => config
                .with_client_auth_cert(certificates(&chain)?, private_key(&key)?)
                .map_err(|e| unfit(&key, "the key of client-cert.pem", e))?,
            false => config.with_no_client_auth(),
        };
        let name = tls.hostname.as_deref().or(host).ok_or_else(|| {
            Error::usage("NBD URI with TLS over a unix socket: expected tls-hostname=NAME, found none")
                .next("name the host that stands in the server's certificate")
        })?;
        let server = ServerName::try_from(name.to_owned()).map_err(|e| {
            Error::usage(format!("NBD URI with TLS: expected a host name, found {name:.200}")).because(e)
        })?;
        Ok(Client { config: Arc::new(config), name: server })
    }

    /// Begins a session; the handshake itself goes on with the first bytes that are read or written.
    ///
    /// # Errors
    /// The configuration makes no sense to rustls.
    pub fn begin(&self, socket: Socket) -> io::Result<Session> {
        let tls = ClientConnection::new(self.config.clone(), self.name.clone()).map_err(io::Error::other)?;
        Ok(Session::new(tls.into(), socket))
    }
}

/// Who a server is, and whom it lets in: those that it has the pins of.
#[derive(Clone)]
pub struct Host(Arc<ServerConfig>);

impl Host {
    /// As `own`; clients must be one of `clients`. `refused` is told the pin of any other one.
    ///
    /// # Errors
    /// The configuration makes no sense to rustls.
    pub fn new(own: &Own, clients: Vec<Pin>, refused: impl Fn(Pin) + Send + Sync + 'static) -> Result<Host> {
        let failed = |e| Error::failed("TLS 1.3").because(e);
        let config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(failed)?
            .with_client_cert_verifier(pin::clients(clients, refused))
            .with_single_cert(vec![own.certificate.clone()], own.key())
            .map_err(failed)?;
        Ok(Host(Arc::new(config)))
    }

    /// Begins a session.
    ///
    /// # Errors
    /// The configuration makes no sense to rustls.
    pub fn begin(&self, socket: Socket) -> io::Result<Session> {
        let tls = ServerConnection::new(self.0.clone()).map_err(io::Error::other)?;
        Ok(Session::new(tls.into(), socket))
    }
}

pub(super) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bytes = read_bounded(path, MAX_PEM_BYTES)?;
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(&bytes).collect::<Result<_, _>>().map_err(|e| unfit(path, "certificates", e))?;
    match found.is_empty() {
        true => Err(unfit(path, "a certificate in PEM", "none")),
        false => Ok(found),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let bytes = zeroize::Zeroizing::new(read_bounded(path, MAX_PEM_BYTES)?);
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|e| unfit(path, "a private key in PEM", e))
}

fn unfit(path: &Path, expected: &str, found: impl std::fmt::Display) -> Error {
    let path: PathBuf = path.to_owned();
    Error::untrusted(format!("File {}: expected {expected}, found: {found}", path.display()))
        .next("ask the server's administrator for ca-cert.pem, client-cert.pem and client-key.pem")
}

/// One encrypted stream.
pub struct Session {
    tls: Connection,
    socket: Socket,
}

impl Session {
    fn new(mut tls: Connection, socket: Socket) -> Session {
        tls.set_buffer_limit(Some(HELD_BYTES));
        Session { tls, socket }
    }

    /// Whether it holds bytes that the socket did not take yet.
    pub fn wants_write(&self) -> bool {
        self.tls.wants_write()
    }

    /// One step of the handshake; true when it is complete.
    ///
    /// # Errors
    /// `WouldBlock` where the server is waited for; a server that is not believed, or does not believe us.
    pub fn shake(&mut self) -> io::Result<bool> {
        self.hand_on()?;
        if !self.tls.is_handshaking() {
            return Ok(true);
        }
        self.take_in()?;
        // An alert tells the server why.
        self.hand_on()?;
        Ok(!self.tls.is_handshaking())
    }

    fn take_in(&mut self) -> io::Result<()> {
        if self.tls.read_tls(&mut self.socket)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let taken = self.tls.process_new_packets().map(drop);
        taken.map_err(|error| {
            // Whom it was not about to believe shall know.
            let _ = self.hand_on();
            io::Error::new(ErrorKind::InvalidData, error)
        })
    }

    fn hand_on(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            if self.tls.write_tls(&mut self.socket)? == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }
}

impl Read for Session {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            // What the handshake or a key update has to say goes out first; the server waits for it.
            match self.hand_on() {
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
            match self.tls.reader().read(into) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                answer => return answer,
            }
            self.take_in()?;
        }
    }
}

impl Write for Session {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match self.hand_on() {
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
        match self.tls.writer().write(from)? {
            0 if !from.is_empty() => Err(ErrorKind::WouldBlock.into()),
            n => Ok(n),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        self.hand_on()
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
