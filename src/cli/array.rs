//! `init` and `seal`.

use crate::error::Error;
use crate::units::parse_size;
use crate::{init, seal};
use clap::Args;
use std::path::PathBuf;

/// Prepare a directory on a transport array for one shipment of one site.
#[derive(Args)]
pub struct InitArgs {
    /// Where the array is mounted.
    array: PathBuf,
    /// The site, with its UUID if it has one already.
    #[arg(long, value_name = "NAME[=UUID]")]
    site: String,
    /// age public key of who may read the shipment; repeat it for the key in escrow.
    #[arg(long, value_name = "AGE", required_unless_present = "plaintext")]
    recipient: Vec<String>,
    /// Encrypt nothing: whoever holds the array can read it.
    #[arg(long, conflicts_with = "recipient")]
    plaintext: bool,
    /// What people call the shipment.
    #[arg(long, default_value = "", hide_default_value = true)]
    label: String,
    /// The number on the array's sticker.
    #[arg(long, value_name = "TAG", default_value = "", hide_default_value = true)]
    asset: String,
    /// Size of a block, a power of two from 64KiB to 16MiB.
    #[arg(long, value_name = "SIZE", default_value = "1MiB")]
    block_size: String,
    /// OpenSSH private key that signs shipment.json.
    #[arg(long, value_name = "SSH_KEY")]
    key: Option<PathBuf>,
    /// Name of that key's owner, if the key's comment is none.
    #[arg(long, value_name = "NAME@SITE", requires = "key")]
    signer: Option<String>,
    /// The array really is a directory on the disk that holds /.
    #[arg(long)]
    allow_system_disk: bool,
}

impl TryFrom<InitArgs> for init::Options {
    type Error = Error;
    fn try_from(args: InitArgs) -> Result<Self, Error> {
        let (site, uuid) = match args.site.split_once('=') {
            Some((name, uuid)) => {
                let uuid = uuid.parse().map_err(|e| {
                    Error::usage(format!("Site {name}: expected a UUID behind '=', found '{uuid}'")).because(e)
                })?;
                (name.to_owned(), Some(uuid))
            }
            None => (args.site, None),
        };
        let block = parse_size(&args.block_size)?;
        Ok(init::Options {
            array: args.array,
            site,
            site_uuid: uuid,
            recipients: args.recipient,
            label: args.label,
            asset_tag: args.asset,
            block_bytes: u32::try_from(block)
                .map_err(|_| Error::usage(format!("Block size: expected 64KiB to 16MiB, found {}", args.block_size)))?,
            key: args.key,
            signer: args.signer,
            allow_system_disk: args.allow_system_disk,
        })
    }
}

/// Sign what is on the array: from then on every byte of it is pinned.
#[derive(Args)]
pub struct SealArgs {
    /// Where the array is mounted.
    array: PathBuf,
    /// OpenSSH private key, ed25519 or ECDSA.
    #[arg(long, value_name = "SSH_KEY")]
    key: PathBuf,
    /// Name of that key's owner, if the key's comment is none.
    #[arg(long, value_name = "NAME@SITE")]
    signer: Option<String>,
    /// OpenSSH allowed-signers file to check the signer against first.
    #[arg(long, value_name = "ALLOWED_SIGNERS")]
    trust: Option<PathBuf>,
    /// The shipment is not encrypted, and that is meant.
    #[arg(long)]
    plaintext: bool,
    /// Leave an unfinished disk out of the shipment.
    #[arg(long, value_name = "MACHINE/DISK", requires = "reason")]
    without: Vec<String>,
    /// Why; it stands in seal and report.
    #[arg(long, value_name = "TEXT", requires = "without")]
    reason: Option<String>,
}

impl TryFrom<SealArgs> for seal::Options {
    type Error = Error;
    fn try_from(args: SealArgs) -> Result<Self, Error> {
        let SealArgs { array, key, signer, trust, plaintext, without, reason } = args;
        Ok(seal::Options { array, key, signer, trust, plaintext, without, reason })
    }
}
