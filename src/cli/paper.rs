//! `custody`, `report`, `erase`, `keygen`, `ledger`.

use crate::context::Context;
use crate::error::{Error, Result};
use crate::ledger::moving;
use crate::report::{Kind, Person, Role};
use crate::trust::keygen;
use crate::{custody, erase, report};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use std::path::PathBuf;

/// Record who hands over or takes over the array, signed.
#[derive(Args)]
pub struct CustodyArgs {
    #[command(subcommand)]
    way: CustodyWay,
}

#[derive(Subcommand)]
enum CustodyWay {
    /// The array leaves the branch; needs a good 'motiongear verify' since sealing.
    Dispatch(EventArgs),
    /// The array arrives at the data centre.
    Receive(ReceiveArgs),
}

#[derive(Args)]
struct EventArgs {
    /// Where the array is mounted.
    array: PathBuf,
    /// OpenSSH private key of who signs.
    #[arg(long, value_name = "SSH_KEY")]
    key: PathBuf,
    /// Name of that key's owner, if the key's comment is none.
    #[arg(long, value_name = "NAME@SITE")]
    signer: Option<String>,
    /// OpenSSH allowed-signers file to check seal and chain with.
    #[arg(long, value_name = "ALLOWED_SIGNERS")]
    trust: Option<PathBuf>,
    /// Judge the validity of keys at this time, as in 2026-11-20T08:00:00Z.
    #[arg(long, value_name = "TIME", requires = "trust")]
    verify_time: Option<Timestamp>,
    /// Who hands over, or takes over.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    person: String,
    /// Number of a seal on the box; repeat for more.
    #[arg(long, value_name = "N")]
    box_seal: Vec<String>,
    /// Where.
    #[arg(long, value_name = "PLACE", default_value = "", hide_default_value = true)]
    place: String,
    /// Anything else.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    note: String,
}

#[derive(Args)]
struct ReceiveArgs {
    #[command(flatten)]
    event: EventArgs,
    /// Receive it although the seals on the box are not those of the dispatch; the reason stands in the report.
    #[arg(long, value_name = "REASON")]
    box_seals_differ: Option<String>,
}

impl CustodyArgs {
    pub fn options(self) -> custody::Options {
        let (way, args, box_seals_differ) = match self.way {
            CustodyWay::Dispatch(args) => (custody::Way::Dispatch, args, None),
            CustodyWay::Receive(args) => (custody::Way::Receive, args.event, args.box_seals_differ),
        };
        custody::Options {
            way,
            array: args.array,
            key: args.key,
            signer: args.signer,
            trust: args.trust,
            verify_time: args.verify_time,
            particulars: custody::Particulars {
                person: args.person,
                box_seals: args.box_seal,
                place: args.place,
                note: args.note,
            },
            box_seals_differ,
        }
    }
}

/// Write a report to sign: HTML for paper, and the same facts as JSON.
#[derive(Args)]
pub struct ReportArgs {
    #[command(subcommand)]
    kind: ReportKind,
}

#[derive(Subcommand)]
enum ReportKind {
    /// At the branch, after sealing.
    Handover(HandoverArgs),
    /// At the data centre, after importing.
    Import(ImportReportArgs),
}

#[derive(Args)]
struct HandoverArgs {
    /// Where the array is mounted.
    array: PathBuf,
    #[command(flatten)]
    paper: PaperArgs,
}

#[derive(Args)]
struct ImportReportArgs {
    /// Where the array is mounted.
    #[arg(required_unless_present = "shipment")]
    array: Option<PathBuf>,
    /// The shipment, where the array is gone.
    #[arg(long, value_name = "UUID", conflicts_with = "array")]
    shipment: Option<uuid::Uuid>,
    #[command(flatten)]
    paper: PaperArgs,
}

#[derive(Args)]
struct PaperArgs {
    /// OpenSSH private key that signs both files.
    #[arg(long, value_name = "SSH_KEY")]
    key: Option<PathBuf>,
    /// Name of that key's owner, if the key's comment is none.
    #[arg(long, value_name = "NAME@SITE", requires = "key")]
    signer: Option<String>,
    /// OpenSSH allowed-signers file to check seal and custody with.
    #[arg(long, value_name = "ALLOWED_SIGNERS")]
    trust: Option<PathBuf>,
    /// Judge the validity of keys at this time.
    #[arg(long, value_name = "TIME", requires = "trust")]
    verify_time: Option<Timestamp>,
    /// Where the plain files go; DIR/reports of the state directory if not given.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Why the disks move.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    purpose: String,
    /// Who signs for the bank.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    bank: String,
    /// The field engineer.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    engineer: String,
    /// The courier; who dispatched, if not given.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    courier: String,
    /// The receiver; who received, if not given.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    receiver: String,
    /// Number of a seal on the box; those of the custody chain if not given.
    #[arg(long, value_name = "N")]
    box_seal: Vec<String>,
}

impl ReportArgs {
    pub fn options(self) -> Result<report::Options> {
        let (kind, array, shipment, paper) = match self.kind {
            ReportKind::Handover(args) => (Kind::Handover, Some(args.array), None, args.paper),
            ReportKind::Import(args) => (Kind::Import, args.array, args.shipment, args.paper),
        };
        let people = [
            (Role::Bank, paper.bank),
            (Role::Engineer, paper.engineer),
            (Role::Courier, paper.courier),
            (Role::Receiver, paper.receiver),
        ];
        let texts = people.iter().map(|(_, name)| name).chain([&paper.purpose]).chain(&paper.box_seal);
        for text in texts {
            motiongear_manifest::names::check_text("Text for the report", text, 500)
                .map_err(|e| Error::usage("Report").because(e))?;
        }
        Ok(report::Options {
            kind,
            array,
            shipment,
            trust: paper.trust,
            verify_time: paper.verify_time,
            key: paper.key,
            signer: paper.signer,
            out: paper.out,
            purpose: paper.purpose,
            utc_offset_minutes: jiff::Zoned::now().offset().seconds() / 60,
            people: people.into_iter().map(|(role, name)| Person { role, name }).collect(),
            box_seals: paper.box_seal,
        })
    }
}

/// Destroy what is on an array whose disks are all proven, and sign a certificate.
#[derive(Args)]
pub struct EraseArgs {
    /// Where the array is mounted.
    array: PathBuf,
    /// The asset tag, from the sticker on the array in front of you.
    #[arg(long, value_name = "TAG")]
    asset: String,
    /// OpenSSH private key that signs the certificate.
    #[arg(long, value_name = "SSH_KEY")]
    key: PathBuf,
    /// Name of that key's owner, if the key's comment is none.
    #[arg(long, value_name = "NAME@SITE")]
    signer: Option<String>,
    /// OpenSSH allowed-signers file to check seal and custody with.
    #[arg(long, value_name = "ALLOWED_SIGNERS")]
    trust: Option<PathBuf>,
    /// Erase although not every disk is proven in this ledger: the shipment was given up.
    #[arg(long, requires = "reason")]
    unproven: bool,
    /// Erase although a volume is missing, or is not what was proven.
    #[arg(long, requires = "reason")]
    unseen: bool,
    /// Why; it stands in the certificate.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// What becomes of the file system's free space, where removed files may be: fill it (slow, sure), discard it, or leave it.
    /// By default it is filled where the shipment is in plain text and the array has a file system of its own, and left otherwise.
    #[arg(long, value_name = "HOW")]
    free_space: Option<FreeSpaceArg>,
    /// The array may be a directory on the system disk.
    #[arg(long)]
    allow_system_disk: bool,
    /// Where the certificate goes; DIR/certificates of the state directory if not given.
    #[arg(long, value_name = "DIR")]
    certificate: Option<PathBuf>,
}

impl From<EraseArgs> for erase::Options {
    fn from(args: EraseArgs) -> Self {
        let EraseArgs { array, asset, key, signer, trust, unproven, unseen, reason, .. } = args;
        let (certificate, allow_system_disk) = (args.certificate, args.allow_system_disk);
        let free_space = args.free_space.map(|how| match how {
            FreeSpaceArg::Fill => erase::FreeSpace::Fill,
            FreeSpaceArg::Discard => erase::FreeSpace::Discard,
            FreeSpaceArg::Leave => erase::FreeSpace::Leave,
        });
        erase::Options {
            array,
            asset,
            key,
            signer,
            trust,
            unproven,
            unseen,
            reason,
            free_space,
            allow_system_disk,
            certificate,
        }
    }
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum FreeSpaceArg {
    Fill,
    Discard,
    Leave,
}

/// Make a key, for those who have no ssh-keygen or age-keygen.
#[derive(Args)]
pub struct KeygenArgs {
    #[command(subcommand)]
    purpose: KeygenPurpose,
}

#[derive(Subcommand)]
enum KeygenPurpose {
    /// A key that signs seals, custody and reports (ed25519, OpenSSH's format).
    Sign {
        /// The file for the secret half; the public half goes to FILE.pub.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Whose key it is.
        #[arg(long, value_name = "NAME@SITE")]
        name: String,
        /// Protect it with a passphrase.
        #[arg(long)]
        passphrase: bool,
    },
    /// A key that opens encrypted shipments (X25519, age's format).
    Age {
        /// The identity file.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
}

impl KeygenArgs {
    pub fn run(self, context: &Context) -> Result<keygen::Made> {
        let options = match self.purpose {
            KeygenPurpose::Sign { out, name, passphrase } => {
                keygen::Options { purpose: keygen::Purpose::Sign, out, name: Some(name), passphrase }
            }
            KeygenPurpose::Age { out } => {
                keygen::Options { purpose: keygen::Purpose::Age, out, name: None, passphrase: false }
            }
        };
        keygen::run(context, options)
    }
}

/// What this host's ledger knows; and moving an unsealed shipment to another host's ledger.
#[derive(Args)]
pub struct LedgerArgs {
    #[command(subcommand)]
    pub what: LedgerWhat,
}

#[derive(Subcommand)]
pub enum LedgerWhat {
    /// Shipments, seals, checks, volumes and imports.
    Show,
    /// Hand a shipment to another host: --export there first, then --import here.
    Move(MoveArgs),
}

#[derive(Args)]
pub struct MoveArgs {
    /// At the old host: the directory to write.
    #[arg(long, value_name = "DIR", requires = "shipment", required_unless_present = "import")]
    export: Option<PathBuf>,
    /// Which shipment to export; 'ledger show' lists them.
    #[arg(long, value_name = "UUID", requires = "export")]
    shipment: Option<uuid::Uuid>,
    /// At the new host: the directory that was written.
    #[arg(long, value_name = "DIR", requires = "array", conflicts_with = "export")]
    import: Option<PathBuf>,
    /// Where the array is mounted at the new host.
    #[arg(long, value_name = "ARRAY", requires = "import")]
    array: Option<PathBuf>,
    /// At the new host: the package's code, as the old host printed it.
    #[arg(long, value_name = "CODE", requires = "import")]
    package_code: Option<String>,
}

impl TryFrom<MoveArgs> for moving::Options {
    type Error = Error;
    fn try_from(args: MoveArgs) -> Result<Self> {
        match args {
            MoveArgs { export: Some(package), shipment: Some(shipment), .. } => {
                Ok(moving::Options::Export { shipment, package })
            }
            MoveArgs { import: Some(package), array: Some(array), package_code: code, .. } => {
                Ok(moving::Options::Import { array, package, code })
            }
            _ => Err(Error::usage("ledger move: expected --export DIR --shipment UUID, or --import DIR --array ARRAY")),
        }
    }
}
