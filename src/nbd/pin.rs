//! Who is at the other end, without any authority: each host has a certificate that it signed itself, and two people tell each other its
//! *pin*, the [`paper_code`] of the certificate (`openssl x509 -outform der | b3sum` begins with the same bits). Names and dates in a
//! certificate mean nothing here: a clock that is wrong must not stop a branch.

use super::tls::provider;
use crate::error::{Error, IoContext, Result};
use crate::io::{create_dirs_durably, create_file_durably, read_bounded};
use base64::Engine;
use motiongear_manifest::code::{as_printed, paper_code};
use motiongear_manifest::tree::Digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, SignatureScheme};
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// The name in every certificate of ours.
pub(super) const NAME: &str = "motiongear";
/// Directory and file below the state directory.
const DIR: &str = "tls";
const FILE: &str = "identity.pem";
/// A certificate and a key are small.
const MAX_PEM_BYTES: u64 = 64 << 10;
/// Characters in its lines.
const PEM_LINE: usize = 64;

/// What two people compare.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pin([u8; 16]);

impl Pin {
    /// Of a certificate.
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Pin {
        Pin::parse(&paper_code(&Digest::of(certificate))).unwrap_or(Pin([b'?'; 16]))
    }

    /// As somebody typed it; `None` where it is no pin.
    pub fn parse(text: &str) -> Option<Pin> {
        let printed: [u8; 16] = as_printed(text).into_bytes().try_into().ok()?;
        let known = |digit: &u8| b"0123456789ABCDEFGHJKMNPQRSTVWXYZ".contains(digit);
        printed.iter().all(known).then_some(Pin(printed))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, digit) in self.0.iter().enumerate() {
            if at > 0 && at % 4 == 0 {
                f.write_str("-")?;
            }
            write!(f, "{}", char::from(*digit))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin({self})")
    }
}

/// This host's certificate and key.
pub struct Own {
    /// The certificate.
    pub certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

static STATE: OnceLock<PathBuf> = OnceLock::new();

/// Where this host keeps its certificate; said once, by whoever reads what was typed.
pub fn use_state(state: &Path) {
    // The first one counts: a process has one state directory.
    let _ = STATE.set(state.to_owned());
}

impl Own {
    /// That of this host, made when it is wanted first.
    ///
    /// # Errors
    /// As [`Own::in_state`]; nobody said where it is kept.
    pub fn of_this_host() -> Result<Own> {
        let state = STATE
            .get()
            .ok_or_else(|| Error::failed("Certificate of this host: expected a state directory, found none"))?;
        Own::in_state(state)
    }

    /// That which `state` keeps, made when it is wanted first.
    ///
    /// # Errors
    /// The state directory cannot be read or written, or holds something else there.
    pub fn in_state(state: &Path) -> Result<Own> {
        let dir = state.join(DIR);
        let path = dir.join(FILE);
        if !path.exists() {
            create_dirs_durably(&dir, 0o700)?;
            // Where another process was faster, its certificate counts.
            match create_file_durably(&dir, FILE, Own::make()?.as_bytes()) {
                Err(_) if path.exists() => {}
                made => made?,
            }
            // Nobody else comes into the directory; copies of it may go elsewhere.
            let private = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(&path, private).context(|| format!("File {}", path.display()))?;
        }
        let bytes = zeroize::Zeroizing::new(read_bounded(&path, MAX_PEM_BYTES)?);
        let unfit = |error: rustls::pki_types::pem::Error| {
            let what = format!("File {}: expected a certificate and its key, found something else", path.display());
            Error::failed(what).because(error).next("remove it: another one is made, and its pin has to be told anew")
        };
        let certificate = CertificateDer::from_pem_slice(&bytes).map_err(unfit)?;
        let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(unfit)?;
        Ok(Own { certificate, key })
    }

    fn make() -> Result<zeroize::Zeroizing<String>> {
        let failed = |error: rcgen::Error| Error::failed("A certificate for this host").because(error);
        let key = rcgen::KeyPair::generate().map_err(failed)?;
        // Only clients of others look at names.
        let mut names = vec![NAME.to_owned(), "localhost".to_owned()];
        names.extend(
            rustix::system::uname()
                .nodename()
                .to_str()
                .ok()
                .filter(|name| name.is_ascii() && !name.is_empty())
                .map(str::to_owned),
        );
        let mut certificate = rcgen::CertificateParams::new(names).map_err(failed)?;
        certificate.distinguished_name.push(rcgen::DnType::CommonName, NAME);
        // So that clients of others take it for the authority that they want to see.
        certificate.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = certificate.self_signed(&key).map_err(failed)?;
        Ok(zeroize::Zeroizing::new(certificate.pem() + &key.serialize_pem()))
    }

    /// The certificate as text, without the key.
    pub(super) fn pem(&self) -> String {
        let text = base64::engine::general_purpose::STANDARD.encode(&self.certificate);
        let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
        for (at, digit) in text.chars().enumerate() {
            if at > 0 && at % PEM_LINE == 0 {
                pem.push('\n');
            }
            pem.push(digit);
        }
        pem + "\n-----END CERTIFICATE-----\n"
    }

    /// What others are told.
    pub fn pin(&self) -> Pin {
        Pin::of(&self.certificate)
    }

    pub(super) fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }
}

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Own({})", self.pin())
    }
}

/// Believes the server that has this pin.
pub(super) fn server(pin: Pin) -> Arc<dyn ServerCertVerifier> {
    Arc::new(Verifier { wanted: vec![pin], refused: Box::new(|_| ()), provider: provider() })
}

/// Believes clients that have one of these pins; `refused` is told any other.
pub(super) fn clients(pins: Vec<Pin>, refused: impl Fn(Pin) + Send + Sync + 'static) -> Arc<dyn ClientCertVerifier> {
    Arc::new(Verifier { wanted: pins, refused: Box::new(refused), provider: provider() })
}

struct Verifier {
    wanted: Vec<Pin>,
    refused: Box<dyn Fn(Pin) + Send + Sync>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn judge(&self, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let found = Pin::of(certificate);
        if self.wanted.contains(&found) {
            return Ok(());
        }
        (self.refused)(found);
        let wanted: Vec<String> = self.wanted.iter().map(Pin::to_string).collect();
        let other = Other(format!("expected pin {}, found {found}", wanted.join(" or ")));
        Err(CertificateError::Other(rustls::OtherError(Arc::new(other))).into())
    }

    /// That the other side has the key of its certificate.
    fn proves(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }
}

/// Another pin than those that are believed; rustls shows errors by their `Debug`.
struct Other(String);

impl fmt::Debug for Other {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Other {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Other {}

/// What to do where a server with the pin `theirs` and this host do not believe each other, as `error` says; `None` where it is
/// something else.
pub(super) fn way_out(theirs: Pin, error: &str) -> Option<String> {
    if error.contains("expected pin") {
        return Some(format!(
            "ask that host for its pin once more ('motiongear serve --pin' there): it must be {theirs}, or somebody else answers"
        ));
    }
    let own = Own::of_this_host().ok().filter(|_| error.contains("received fatal alert"))?.pin();
    Some(format!("it does not know this host, whose pin is {own}: start 'motiongear serve' there with --client {own}"))
}

/// TLS 1.2 is not offered, so nobody comes here.
fn too_old() -> rustls::Error {
    rustls::Error::General("TLS 1.3 is the oldest that is spoken here".into())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.judge(certificate).map(|()| ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(too_old())
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.proves(message, certificate, signed)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.judge(certificate).map(|()| ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(too_old())
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.proves(message, certificate, signed)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier({:?})", self.wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_read_as_it_is_written_and_stays_that_of_the_host() {
        let state = tempfile::tempdir().unwrap();
        let (first, again) = (Own::in_state(state.path()).unwrap(), Own::in_state(state.path()).unwrap());
        assert_eq!(first.pin(), again.pin());
        let text = first.pin().to_string();
        assert_eq!((text.len(), Pin::parse(&text.to_lowercase().replace('-', " "))), (19, Some(first.pin())));
        let other = Own::in_state(tempfile::tempdir().unwrap().path()).unwrap();
        assert_ne!(first.pin(), other.pin());
        for no_pin in ["", "0123-4567-89AB-CDE", "0123-4567-89AB-CDEFG", "0123-4567-89AB-CDEU", "0123-4567-89AB-CDE€"]
        {
            assert_eq!(Pin::parse(no_pin), None, "{no_pin}");
        }
        std::fs::write(state.path().join(DIR).join(FILE), b"no certificate").unwrap();
        assert!(Own::in_state(state.path()).unwrap_err().to_string().contains("next: remove it"));
    }
}
