//! The same erasure asked for again, when it is complete: told again, from the certificate.

use super::certificate::{Certificate, Journal};
use super::{Erased, Options, Plan, certificates, check_tag};
use crate::array::Array;
use crate::array::erased::ErasedNote;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::io::sync_dir;
use motiongear_manifest::tree::Digest;
use std::path::PathBuf;

/// What an earlier run did, if the array says that it is erased and no erasure is under way here.
///
/// # Errors
/// Another array; its certificate is not here.
pub(super) fn erased_before(context: &Context, array: &Array, options: &Options) -> Result<Option<Erased>> {
    let Some(note) = array.erased() else { return Ok(None) };
    check_tag(&note.asset_tag, note.shipment, &options.asset)?;
    if Journal::find(&context.ledger, note.shipment)?.is_some() {
        return Ok(None);
    }
    let Some((path, certificate)) = certificate(context, options, &note)? else {
        return Err(Error::failed(format!(
            "Array {}: expected a shipment to erase, found that it was erased at {}; its certificate, of BLAKE3 {}, is not in {}",
            array.root().display(),
            note.erased_at,
            note.certificate,
            certificates(context, options).display()
        ))
        .next("nothing is left to erase; the certificate is where the erasing host put it (--certificate, --state)"));
    };
    if !context.dry_run {
        // The run that wrote them may have been killed before their names were durable.
        array.tree()?.sync("")?;
        sync_dir(&certificates(context, options))?;
        Journal::remove(&context.ledger, note.shipment)?;
    }
    let free_bytes = certificate.journal.treated.as_ref().map_or(0, |treated| treated.bytes);
    let Journal { shipment, seal, disks, reason, envelopes, packs, others, place, given_up_packs, free_space, .. } =
        certificate.journal;
    let destroyed = || envelopes.iter().chain(&packs).chain(&others);
    let plan = Plan {
        shipment: shipment.shipment,
        site: shipment.site.name,
        asset_tag: shipment.asset_tag,
        seal,
        disks,
        reason,
        files: destroyed().count() as u64,
        bytes: destroyed().map(|file| file.bytes).sum(),
        place,
        given_up_packs,
        free_space,
        free_bytes,
        fill_seconds: None,
        resumes: false,
    };
    let (dry_run, erased_already) = (context.dry_run, Some(certificate.finished_at));
    Ok(Some(Erased { plan, dry_run, erased_already, certificate: path, notes: Vec::new() }))
}

/// The certificate that the note names, where this host puts them.
fn certificate(context: &Context, options: &Options, note: &ErasedNote) -> Result<Option<(PathBuf, Certificate)>> {
    let ending = format!("-{}.json", note.shipment);
    let Ok(entries) = std::fs::read_dir(certificates(context, options)) else { return Ok(None) };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().ends_with(&ending) {
            let (certificate, bytes) = Certificate::read(&entry.path())?;
            if Digest::of(&bytes) == note.certificate {
                return Ok(Some((entry.path(), certificate)));
            }
        }
    }
    Ok(None)
}
