//! What a client of others needs to come in to `serve`: QEMU, nbdcopy and guestfish read certificates from a directory of three
//! files, and QEMU refuses a client's certificate that is an authority, or that the authority beside it did not sign. So the server
//! makes one for such a client, signed by its own, which is the authority there.
//!
//! The signature is for the client's eyes only: `serve` lets in by pin, and by nothing else.

use super::pin::{Own, Pin};
use crate::error::{Error, IoContext, Result};
use crate::io::{create_dirs_durably, create_file_durably};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use zeroize::Zeroizing;

/// The names that QEMU and libnbd look for.
const AUTHORITY: &str = "ca-cert.pem";
const CERTIFICATE: &str = "client-cert.pem";
const KEY: &str = "client-key.pem";
/// No host has this name: nobody can pass for a server with such a certificate.
const NAME: &str = "motiongear client";

/// Makes the directory `dir` with the files for one client of the host `own`; says the client's pin.
///
/// # Errors
/// The directory is there already; it cannot be written.
pub fn make(own: &Own, dir: &Path) -> Result<Pin> {
    let failed = |error: rcgen::Error| Error::failed("A certificate for a client").because(error);
    let signer = KeyPair::try_from(&own.key()).map_err(failed)?;
    let key = KeyPair::generate().map_err(failed)?;
    let mut wanted = CertificateParams::new(Vec::new()).map_err(failed)?;
    wanted.distinguished_name.push(DnType::CommonName, NAME);
    wanted.is_ca = IsCa::ExplicitNoCa;
    // TLS 1.3 signs only, but QEMU wants to see both.
    wanted.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    wanted.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = wanted.signed_by(&key, &Issuer::new(authority().map_err(failed)?, signer)).map_err(failed)?;
    make_private(dir)?;
    let secret = Zeroizing::new(key.serialize_pem());
    for (name, text) in [(KEY, secret.as_str()), (AUTHORITY, &own.pem()), (CERTIFICATE, &certificate.pem())] {
        create_file_durably(dir, name, text.as_bytes())?;
        // Copies of the directory may go elsewhere.
        let private = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(dir.join(name), private).context(|| dir.join(name).display().to_string())?;
    }
    Ok(Pin::of(certificate.der()))
}

/// Nobody else may have made it: he would own what lies in it.
fn make_private(dir: &Path) -> Result<()> {
    if let Some(parent) = dir.parent() {
        create_dirs_durably(parent, 0o700)?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(Error::usage(format!("Directory {}: expected none yet, found one", dir.display()))
                .next("name a new one: each client has files of its own"))
        }
        made => made.context(|| format!("Directory {}", dir.display())),
    }
}

/// What every certificate of ours is as an authority.
fn authority() -> Result<CertificateParams, rcgen::Error> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.distinguished_name.push(DnType::CommonName, super::pin::NAME);
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok(authority)
}
