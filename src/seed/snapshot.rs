//! The snapshot of a machine with hooks: taken once, kept over interruptions, discarded when its disks are copied.

use super::Seed;
use super::disks::Bound;
use crate::context::now;
use crate::error::Result;
use crate::say;
use crate::source::hooks::{HookContext, HookEvent, Hooks, SnapshotTaken};
use crate::source::{Identity, Source};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A machine's snapshot as the ledger keeps it until it is discarded.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeptSnapshot {
    /// What the hooks did.
    pub taken: SnapshotTaken,
    /// Identity of what each disk is read from; another one means another snapshot.
    pub identities: BTreeMap<String, Identity>,
}

impl Seed<'_> {
    /// The machine's snapshot: the one of an interrupted run if it is still the same, else a new one.
    pub fn snapshot(
        &mut self,
        machine: &str,
        hooks: &Hooks,
        told: &HookContext,
        bound: &[Bound],
        members: &[usize],
    ) -> Result<KeptSnapshot> {
        let shipment = self.shipment.shipment;
        let identities = |taken: &SnapshotTaken| -> Result<BTreeMap<_, _>> {
            let identity = |i: &usize| -> Result<_> {
                let plan = bound[*i].plan;
                let path = taken.overrides.get(&plan.name).unwrap_or(&plan.source);
                Ok((plan.name.clone(), Source::open(path, &self.context.sys)?.identity))
            };
            members.iter().map(identity).collect()
        };
        if let Some(kept) = self.context.ledger.snapshot::<KeptSnapshot>(shipment, machine)? {
            let same = identities(&kept.taken).is_ok_and(|found| {
                kept.identities.len() == found.len()
                    && kept
                        .identities
                        .iter()
                        .all(|(disk, old)| found.get(disk).is_some_and(|new| old.same_disk(new).is_ok()))
            });
            if same {
                self.notes.push(say!(
                    self.context.lang,
                    "{machine}: the snapshot of the interrupted run is used",
                    "{machine}：沿用中断前的快照"
                ));
                return Ok(kept);
            }
            self.notes.push(say!(
                self.context.lang,
                "{machine}: the earlier snapshot is gone; a new one is taken and everything is compared with it",
                "{machine}：原快照已不存在，重新快照并逐块比对"
            ));
        }
        let mut events = Vec::new();
        let taken = hooks.take_snapshot_into(told, &mut events);
        self.record_hooks(&events, bound, members)?;
        let taken = taken?;
        let kept = KeptSnapshot { identities: identities(&taken)?, taken };
        self.context.ledger.keep_snapshot(shipment, machine, &kept)?;
        Ok(kept)
    }

    pub fn record_hooks(&self, events: &[HookEvent], bound: &[Bound], members: &[usize]) -> Result<()> {
        let catalogue = self.lock();
        let machine = bound[members[0]].machine.name.as_str();
        let number = catalogue.machines()?.into_iter().find(|m| m.name == machine).map(|m| m.number);
        for event in events {
            let at = event.started.parse().or_else(|_| now())?;
            let detail =
                format!("{} {:?}: {} after {} ms", event.hook, event.command, event.outcome, event.milliseconds);
            catalogue.add_event(at, "hook", number, None, &detail)?;
        }
        Ok(())
    }
}
