//! `status`: running jobs, and what the ledger knows of shipments.

use crate::array::Array;
use crate::error::{Error, Result};
use crate::job::{Jobs, status as jobs};
use crate::lang::Lang;
use crate::ledger::Ledger;
use crate::ledger::branch::{BranchShipment, ShipmentState};
use crate::say;
use motiongear_manifest::catalogue::{Catalogue, Disk};
use motiongear_manifest::code::spoken_code;
use serde::Serialize;
use std::path::Path;

/// Jobs and shipments.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Running here.
    #[serde(flatten)]
    pub jobs: Jobs,
    /// Seeded here.
    pub shipments: Vec<ShipmentStatus>,
    /// Disks of the shipment on the array that was named.
    pub disks: Vec<DiskStatus>,
}

/// How far a disk has come.
#[derive(Debug, Serialize)]
pub struct DiskStatus {
    /// MACHINE/DISK.
    pub disk: String,
    /// Size, bytes; `None` before its first read.
    pub bytes: Option<u64>,
    /// All of it is on the array.
    pub finished: bool,
    /// Why it is not in the shipment.
    pub excluded: Option<String>,
}

/// A shipment that was seeded here.
#[derive(Debug, Serialize)]
pub struct ShipmentStatus {
    /// As the ledger knows it.
    #[serde(flatten)]
    pub shipment: BranchShipment,
    /// Spoken code of the seal that counts.
    pub seal_code: Option<String>,
}

/// Reads jobs and ledger of the state directory; a directory without ledger has neither.
///
/// # Errors
/// The ledger cannot be read.
pub fn status(state: &Path, array: Option<&Path>) -> Result<Status> {
    let (mut shipments, mut disks) = (Vec::new(), Vec::new());
    let named = array.map(|path| Array::new(path).read_shipment()).transpose()?;
    if state.join("ledger.db").exists() {
        let ledger = Ledger::open(state)?;
        if let Some(named) = &named {
            disks = disks_of(&ledger, named.shipment)?;
        }
        for shipment in ledger.shipments()?.into_iter().filter(|s| named.as_ref().is_none_or(|n| n.shipment == s.uuid))
        {
            let seal_code = ledger.seals(shipment.uuid)?.last().map(|seal| spoken_code(&seal.digest));
            shipments.push(ShipmentStatus { shipment, seal_code });
        }
    }
    if let Some(named) = named.filter(|_| shipments.is_empty()) {
        return Err(Error::failed(format!("Shipment {}: this host's ledger does not know it", named.shipment))
            .next("ask on the host that seeds it; a sealed array is checked with verify"));
    }
    Ok(Status { jobs: jobs(state)?, shipments, disks })
}

fn disks_of(ledger: &Ledger, shipment: uuid::Uuid) -> Result<Vec<DiskStatus>> {
    let path = ledger.shipment_dir(shipment).join("manifest.db");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let catalogue = Catalogue::open_reader(&path)?;
    let (machines, generations) = (catalogue.machines()?, catalogue.generations()?);
    let status = |disk: Disk| {
        let machine = machines.iter().find(|m| m.number == disk.machine).map_or("", |m| m.name.as_str());
        let generation = generations.iter().rfind(|g| g.disk == disk.number);
        DiskStatus {
            disk: format!("{machine}/{}", disk.name),
            bytes: generation.map(|g| g.bytes),
            finished: generation.is_some_and(|g| g.finished_at.is_some()),
            excluded: disk.excluded,
        }
    };
    Ok(catalogue.disks()?.into_iter().map(status).collect())
}

impl Status {
    /// For people.
    pub fn render(&self, lang: Lang) -> String {
        let mut lines = vec![self.jobs.render(lang)];
        for ShipmentStatus { shipment, seal_code } in &self.shipments {
            let (uuid, site, array) = (shipment.uuid, &shipment.site, &shipment.array);
            let state = match (shipment.state, seal_code) {
                (ShipmentState::Seeding, None) => say!(lang, "being seeded", "复制中"),
                (ShipmentState::Seeding, Some(code)) => {
                    say!(lang, "reopened after seal {code}", "封签 {code} 后重新打开")
                }
                (ShipmentState::Sealed, code) => {
                    say!(lang, "sealed, code {}", "已封签，核对码 {}", code.as_deref().unwrap_or("?"))
                }
                (ShipmentState::Dispatched, code) => {
                    say!(lang, "dispatched, code {}", "已发运，核对码 {}", code.as_deref().unwrap_or("?"))
                }
                (ShipmentState::Moved, _) => say!(lang, "moved to another host", "已移交其他主机"),
            };
            lines.push(say!(
                lang,
                "Shipment {uuid} of {site}: {state}; array last at {array}",
                "批次 {uuid}（{site}）：{state}；移动存储上次位于 {array}"
            ));
        }
        for DiskStatus { disk, bytes, finished, excluded } in &self.disks {
            let unknown = || say!(lang, "size not known yet", "大小未知");
            let size = bytes.map_or_else(unknown, crate::units::size);
            lines.push(match (excluded, finished) {
                (Some(reason), _) => {
                    say!(lang, "  {disk}: not in the shipment: {reason}", "  {disk}：未包含：{reason}")
                }
                (None, true) => say!(lang, "  {disk}: {size}, complete", "  {disk}：{size}，已完成"),
                (None, false) => say!(lang, "  {disk}: {size}, unfinished", "  {disk}：{size}，未完成"),
            });
        }
        lines.join("\n")
    }
}
