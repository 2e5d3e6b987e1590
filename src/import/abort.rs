//! Giving an import up: what MotionGear made for it goes, and nobody is left to wait for it.

use super::{Options, owner};
use crate::context::Context;
use crate::error::{Error, IoContext, Result};
use crate::io::sync_dir;
use crate::lang::Lang;
use crate::ledger::centre::{Phase, VolumeRow};
use crate::say;
use crate::source::Identity;
use crate::trust::Accepted;
use crate::volume::Place;
use crate::volume::leaves::Leaves;
use crate::volume::places::Places;
use crate::volume::store::{Owner, of_another};
use crate::volume::target::sidecar_of;
use serde::Serialize;
use std::io::ErrorKind;
use std::path::Path;

/// What became of the imports that were given up.
#[derive(Debug, Clone, Serialize)]
pub struct Aborted {
    /// Each selected disk.
    pub disks: Vec<AbortedDisk>,
}

/// One of them.
#[derive(Debug, Clone, Serialize)]
pub struct AbortedDisk {
    /// MACHINE/DISK.
    pub name: String,
    /// How people find its volume.
    pub volume: String,
    /// What was done with it.
    pub fate: Fate,
}

/// What is done with a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It was made for this import.
    Removed,
    /// Somebody else made it: it stays as it is, with its head withheld.
    Left,
    /// No import of it was begun.
    NotBegun,
    /// It is complete: nothing is removed.
    Complete,
}

/// Gives up the imports of the selected disks that are not complete.
pub fn abort(context: &Context, options: &Options, accepted: &Accepted) -> Result<Aborted> {
    let mut places = Places::new(context);
    let mut disks = Vec::new();
    let ledger = &context.ledger;
    for sealed in &accepted.seal.disks {
        let wish = options.target.wish(&sealed.machine, &sealed.disk);
        let Some(wish) = wish.filter(|_| options.selects(&sealed.machine, &sealed.disk)) else { continue };
        let name = format!("{}/{}", sealed.machine, sealed.disk);
        let _lock = ledger.lock_volume(sealed.uuid, &name)?;
        let place = places.of(wish, owner(context, accepted, sealed))?;
        let volume = place.to_string();
        let import = ledger.import(sealed.uuid, accepted.seal.shipment, accepted.seal_digest)?;
        let row = ledger.volume(sealed.uuid)?;
        if let Some(row) = row.as_ref().filter(|row| import.is_some() && row.location != volume) {
            return Err(Error::failed(format!(
                "Disk {name}: expected its volume {}, found {volume} named",
                row.location
            ))
            .next("name the target that the import was begun with"));
        }
        let fate = match &import {
            None => Fate::NotBegun,
            Some(import) if import.phase >= Phase::Released => Fate::Complete,
            Some(import) => {
                if ledger.imports_of(sealed.uuid)? > 1 {
                    return Err(Error::failed(format!(
                        "Volume {volume}: expected one that only this import wrote to, found that an earlier one did"
                    ))
                    .next("finish the import; or remove the volume by hand, and import with --overwrite"));
                }
                let made = row.as_ref().is_some_and(|row| row.fresh_for == Some(import.id));
                let own = place.store().is_some() || place.own_file().is_some();
                if made && own { Fate::Removed } else { Fate::Left }
            }
        };
        if !context.dry_run && matches!(fate, Fate::Removed | Fate::Left) {
            if fate == Fate::Removed {
                remove(&place, row.as_ref(), &owner(context, accepted, sealed))?;
            }
            remove_file(&Leaves::path(ledger.state(), sealed.uuid))?;
            ledger.forget_volume(sealed.uuid)?;
        }
        disks.push(AbortedDisk { name, volume, fate });
    }
    if disks.is_empty() {
        return Err(options.nothing_selected());
    }
    Ok(Aborted { disks })
}

fn remove(place: &Place, row: Option<&VolumeRow>, owner: &Owner) -> Result<()> {
    if let Some(store) = place.store() {
        let known: Option<Identity> = row.and_then(|row| serde_json::from_str(&row.identity).ok().flatten());
        return match (store.find()?, known) {
            // Never made, or gone with nobody knowing which it was.
            (None, None) => Ok(()),
            (Some(found), None) if found.may_be_of(owner) => store.remove(&found.identity),
            (Some(found), None) => Err(of_another(&place.to_string(), &found)),
            (Some(_), Some(known)) => store.remove(&known),
            (None, Some(known)) => Err(Error::failed(format!(
                "Volume {place}: expected {}, found none in this cloud, project or cluster",
                known.summary()
            ))
            .next("log in where it was made; if it is gone for good, import again with --overwrite")),
        };
    }
    match place.own_file() {
        // The raw file first: without its sidecar it would be a stranger's.
        Some(raw) => remove_file(raw).and_then(|()| remove_file(&sidecar_of(raw))),
        None => Ok(()),
    }
}

fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => {
            removed.context(|| format!("File {}", path.display()))?;
            path.parent().map_or(Ok(()), sync_dir)
        }
    }
}

impl Aborted {
    pub(super) fn summary(&self, lang: Lang, dry_run: bool) -> String {
        let lines = self.disks.iter().map(|disk| {
            let AbortedDisk { name, volume, fate } = disk;
            match (fate, dry_run) {
                (Fate::Removed, false) => say!(lang, "{name}: {volume} is removed", "{name}：已删除 {volume}"),
                (Fate::Removed, true) => say!(lang, "{name}: {volume} would be removed", "{name}：将删除 {volume}"),
                (Fate::Left, _) => say!(
                    lang,
                    "{name}: {volume} is left as it is, half written: nobody may boot it; the ledger knows no import of it any more",
                    "{name}：{volume} 保持原样（仅写入一部分，切勿启动），台账不再记录其导入"
                ),
                (Fate::NotBegun, _) => say!(lang, "{name}: no import was begun", "{name}：没有开始过导入"),
                (Fate::Complete, _) => {
                    say!(lang, "{name}: {volume} is complete and stays", "{name}：{volume} 已完成，予以保留")
                }
            }
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}
