//! Keys and names of those who sign.

use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::io::read_bounded;
use motiongear_manifest::FormatError;
use motiongear_manifest::allowed::{AllowedSigners, MAX_FILE_BYTES};
use motiongear_manifest::check::{Refused, split_signer};
use motiongear_manifest::sign::{MAX_KEY_BYTES, Signer};
use std::path::Path;

/// Reads a private key; asks for its passphrase where it has one.
///
/// # Errors
/// Unreadable, not a key that signs here, or a wrong passphrase.
pub fn load_key(context: &Context, path: &Path) -> Result<Signer> {
    let file = read_bounded(path, MAX_KEY_BYTES as u64)?;
    let question = format!("Passphrase of {}: ", path.display());
    Signer::from_openssh(&file, Some(&mut || (context.ask)(&question)))
        .map_err(|e| Error::untrusted(format!("Key file {}", path.display())).because(FormatError::from(e)))
}

/// Reads a file of allowed signers.
///
/// # Errors
/// Unreadable, or malformed.
pub fn load_trust(path: &Path) -> Result<AllowedSigners> {
    let bytes = read_bounded(path, MAX_FILE_BYTES as u64)?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Error::untrusted(format!("Trust file {}: expected UTF-8, found other bytes", path.display())))?;
    AllowedSigners::parse(&text)
        .map_err(|e| Error::untrusted(format!("Trust file {}", path.display())).because(FormatError::from(e)))
}

/// Who signs: as told, or the one plain name that the trust file has for the key.
///
/// # Errors
/// Not NAME@SITE, or nobody told and the trust file names none or several.
pub fn signer_name(told: Option<&str>, trust: Option<&AllowedSigners>, key: &Signer) -> Result<String> {
    if let Some(told) = told {
        split_signer(told)
            .map_err(|e| Error::usage("Option --signer").because(e).next("give it as in --signer li.wei@branch7"))?;
        return Ok(told.to_owned());
    }
    let ours = key.public_key().key_data();
    let mut names: Vec<&str> = trust
        .into_iter()
        .flat_map(AllowedSigners::lines)
        .filter(|line| line.key.key_data() == ours)
        .flat_map(|line| line.principals.split(','))
        .filter(|name| split_signer(name).is_ok() && !name.contains(['*', '?', '!']))
        .collect();
    names.sort_unstable();
    names.dedup();
    match names.as_slice() {
        [name] => Ok((*name).to_owned()),
        _ => Err(Error::usage(format!(
            "Signer: expected --signer NAME@SITE, or a trust file with one name for key {}, found {} names",
            key.fingerprint(),
            names.len()
        ))),
    }
}

/// Why an array is refused, as an error of the engine.
pub fn refused(refused: Refused) -> Error {
    let kind = match refused.findings.exit_code() {
        4 => Kind::Untrusted,
        _ => Kind::Failed,
    };
    let mut lines = refused.findings.list.iter().map(ToString::to_string);
    let first = refused.to_string();
    let all: Vec<String> = lines.by_ref().take(20).collect();
    let text = if all.len() > 1 { format!("{first}\n  {}", all.join("\n  ")) } else { first };
    Error::new(kind, text)
}
