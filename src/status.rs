//! `status`: running jobs, and what the ledger knows of shipments.

use crate::error::Result;
use crate::job::{Jobs, status as jobs};
use crate::lang::Lang;
use crate::ledger::Ledger;
use crate::ledger::branch::{BranchShipment, ShipmentState};
use crate::say;
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
pub fn status(state: &Path) -> Result<Status> {
    let mut shipments = Vec::new();
    if state.join("ledger.db").exists() {
        let ledger = Ledger::open(state)?;
        for shipment in ledger.shipments()? {
            let seal_code = ledger.seals(shipment.uuid)?.last().map(|seal| spoken_code(&seal.digest));
            shipments.push(ShipmentStatus { shipment, seal_code });
        }
    }
    Ok(Status { jobs: jobs(state)?, shipments })
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
                    say!(lang, "sealed, code {}", "已封签，口令码 {}", code.as_deref().unwrap_or("?"))
                }
                (ShipmentState::Dispatched, code) => {
                    say!(lang, "dispatched, code {}", "已发运，口令码 {}", code.as_deref().unwrap_or("?"))
                }
                (ShipmentState::Moved, _) => say!(lang, "moved to another host", "已移交其他主机"),
            };
            lines.push(say!(
                lang,
                "Shipment {uuid} of {site}: {state}; array last at {array}",
                "批次 {uuid}（{site}）：{state}；阵列上次位于 {array}"
            ));
        }
        lines.join("\n")
    }
}
