//! `keygen sign|age`: keys for those who have no `ssh-keygen` or `age-keygen`. The files are theirs, byte for byte.

use crate::context::{Context, Outcome, now};
use crate::error::{Error, IoContext, Result};
use crate::io::sync_dir;
use crate::lang::Lang;
use crate::say;
use motiongear_manifest::check::split_signer;
use motiongear_manifest::envelope::Identity;
use motiongear_manifest::sign::Signer;
use serde::Serialize;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Which kind of key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// ed25519, in OpenSSH's format: signs seals, custody, reports.
    Sign,
    /// X25519, in age's format: opens what was encrypted to it.
    Age,
}

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which kind.
    pub purpose: Purpose,
    /// The secret file; it must not exist. A signing key's public half goes to FILE.pub.
    pub out: PathBuf,
    /// NAME@SITE, the signing key's comment.
    pub name: Option<String>,
    /// Protect the signing key with a passphrase, asked for twice.
    pub passphrase: bool,
}

/// What was made; nothing of it is secret.
#[derive(Debug, Clone, Serialize)]
pub struct Made {
    /// Which kind.
    pub purpose: Purpose,
    /// The secret file.
    pub secret: PathBuf,
    /// What others are given: a line for ALLOWED_SIGNERS, or an age recipient.
    pub public: String,
    /// To compare with paper.
    pub fingerprint: String,
    /// Nothing was written.
    pub dry_run: bool,
}

impl Outcome for Made {
    fn summary(&self, lang: Lang) -> String {
        let Made { public, fingerprint, .. } = self;
        let secret = self.secret.display();
        if self.dry_run {
            return say!(lang, "Would write {secret}", "将写入 {secret}");
        }
        let public = match self.purpose {
            Purpose::Sign => say!(
                lang,
                "For the file of allowed signers (also in {secret}.pub):\n{public}",
                "加入许可签名人文件（亦见 {secret}.pub）：\n{public}"
            ),
            Purpose::Age => {
                say!(lang, "Recipient, for init --recipient:\n{public}", "接收方，用于 init --recipient：\n{public}")
            }
        };
        say!(
            lang,
            "Secret key: {secret} (keep it off the array, and a copy of it safe)\n{public}\nFingerprint: {fingerprint}",
            "私钥：{secret}（不要放在移动存储上，并妥善备份）\n{public}\n指纹：{fingerprint}"
        )
    }
}

/// Makes a key.
///
/// # Errors
/// The file exists, cannot be written, or the name is no NAME@SITE.
pub fn run(context: &Context, options: Options) -> Result<Made> {
    let path = &options.out;
    let public_path = PathBuf::from(format!("{}.pub", path.display()));
    let taken = [path, &public_path].into_iter().find(|p| p.symlink_metadata().is_ok());
    if let Some(taken) = taken {
        return Err(Error::usage(format!("Key file {}: expected a new name, found a file", taken.display()))
            .next("a key is never overwritten: what it signed or can open would be lost"));
    }
    let made = |public, fingerprint| Made {
        purpose: options.purpose,
        secret: path.clone(),
        public,
        fingerprint,
        dry_run: context.dry_run,
    };
    match options.purpose {
        Purpose::Sign => {
            let name = options.name.as_deref().unwrap_or_default();
            split_signer(name)
                .map_err(|e| Error::usage("Name of the key's owner").because(e).next("--name zhang.min@branch7"))?;
            let failed = |e| Error::failed("Signing key").because(motiongear_manifest::FormatError::from(e));
            let key = Signer::generate_ed25519(name).map_err(failed)?;
            let public = key.public_key().to_openssh().map_err(|e| Error::failed("Public key").because(e))?;
            let words: Vec<&str> = public.split_ascii_whitespace().take(2).collect();
            let line = format!("{name} {}", words.join(" "));
            if !context.dry_run {
                let phrase = if options.passphrase { Some(new_passphrase(context, path)?) } else { None };
                write_new(path, key.to_openssh(phrase.as_deref()).map_err(failed)?.as_bytes(), 0o600)?;
                write_new(&public_path, format!("{public}\n").as_bytes(), 0o644)?;
            }
            Ok(made(line, key.fingerprint()))
        }
        Purpose::Age => {
            let identity = Identity::generate();
            let recipient = identity.recipient();
            if !context.dry_run {
                write_new(path, identity.to_file(&now()?.to_string()).as_bytes(), 0o600)?;
            }
            Ok(made(recipient.to_string(), recipient.fingerprint()))
        }
    }
}

fn new_passphrase(context: &Context, path: &Path) -> Result<String> {
    let what = || "Passphrase".to_owned();
    let first = (context.ask)(&path.display().to_string()).context(what)?;
    let again = (context.ask)(&format!("{} (again)", path.display())).context(what)?;
    if first != again || first.is_empty() {
        return Err(Error::usage("Passphrase: expected the same one twice and not an empty one, found otherwise"));
    }
    Ok(first)
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let what = || format!("Key file {}", path.display());
    let mut file = std::fs::File::options().write(true).create_new(true).mode(mode).open(path).context(what)?;
    file.write_all(bytes).context(what)?;
    file.sync_all().context(what)?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sync_dir(dir)
}
