//! Who may say what: opening a shipment in the right order, signing keys, and what the ledger remembers.

use motiongear_manifest::catalogue::Catalogue;
use motiongear_manifest::documents::seal::Seal;
use motiongear_manifest::documents::shipment::Shipment;
use motiongear_manifest::record::Keyring;
use motiongear_manifest::tree::Digest;
use std::sync::Arc;

/// A sealed shipment whose seal, pins and manifest have been verified: nothing on the array is believed beyond this.
pub struct Accepted {
    /// The pinned `shipment.json`.
    pub shipment: Shipment,
    /// The seal that counts.
    pub seal: Seal,
    /// BLAKE3 of `seal.json`.
    pub seal_digest: Digest,
    /// The manifest: a private, verified copy in the state directory.
    pub catalogue: Catalogue,
    /// Content keys; empty for a plaintext shipment.
    pub keys: Arc<Keyring>,
    /// NAME@SITE and key fingerprint of the signer; `None` when no trust file was given: "signer not checked".
    pub signer: Option<String>,
    /// What people should know: a second copy was used, a seal supersedes another …
    pub notes: Vec<String>,
}
