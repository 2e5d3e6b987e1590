//! What the branch's ledger and live manifest say, held against the model.

use super::{Entered, Phase, World};
use crate::common::sql_after_crash;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

impl World {
    pub(super) fn manifest_in(&self, state: &Path) -> PathBuf {
        let shipment = self.branch.shipment_json()["shipment"].as_str().unwrap().to_owned();
        state.join("shipments").join(shipment).join("manifest.db")
    }

    /// The disks in the live manifest.
    pub(super) fn entered(&self) -> BTreeMap<usize, Entered> {
        let manifest = self.manifest_in(&self.branch.state);
        let mut disks = BTreeMap::new();
        // A run that was killed may have made the file and nothing in it.
        if !manifest.exists() || self.ledger_state().is_none() {
            return disks;
        }
        let rows = "SELECT d.name, d.excluded IS NOT NULL, g.finished_at IS NOT NULL, g.consistency, \
                    lower(hex(g.digest)), (SELECT group_concat(block) FROM block WHERE generation = g.id) \
                    FROM disk d LEFT JOIN generation g ON g.disk = d.number";
        for row in sql_after_crash(&manifest, rows).lines() {
            let mut cells = row.split('|');
            let mut next = || cells.next().unwrap().to_owned();
            disks.insert(
                Self::number(&next()),
                Entered {
                    excluded: next() == "1",
                    finished: next() == "1",
                    consistency: next(),
                    digest: next(),
                    blocks: next().split(',').filter_map(|block| block.parse().ok()).collect(),
                },
            );
        }
        disks
    }

    pub(super) fn ledger_state(&self) -> Option<String> {
        let shown = self.branch.run(["ledger", "show"]).ok();
        shown["shipments"].get(0).map(|shipment| shipment["state"].as_str().unwrap().to_owned())
    }

    pub(super) fn ledger_tells_the_truth(&self, when: &str) {
        let expected = match self.phase {
            Phase::Prepared => None,
            Phase::Seeding => Some("seeding"),
            Phase::Sealed => Some("sealed"),
            Phase::Dispatched => Some("dispatched"),
        };
        assert_eq!(self.ledger_state().as_deref(), expected, "state in the ledger after {when}");
        let entered = self.entered();
        for (number, copying) in self.copying.iter().enumerate() {
            let none = Entered::default();
            let found = entered.get(&number).unwrap_or(&none);
            let known: BTreeSet<usize> =
                (0..copying.reads.len()).filter(|block| copying.reads[*block].is_some()).collect();
            assert_eq!(found.blocks, known, "committed blocks of d{number} after {when}");
            assert_eq!(found.finished, copying.finished.is_some(), "d{number} after {when}");
            if let Some(finished) = &copying.finished {
                assert_eq!(found.digest, finished.digest, "digest of d{number} after {when}");
                assert_eq!(found.consistency == "consistent", finished.asserted, "d{number} after {when}");
            }
        }
    }
}
