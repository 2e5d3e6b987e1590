//! The snapshot of a machine with hooks: taken once, kept over interruptions, discarded when its disks are copied.

use super::Seed;
use super::disks::Bound;
use crate::context::now;
use crate::error::{Error, Result};
use crate::ledger::branch::Tracked;
use crate::rbd;
use crate::say;
use crate::source::hooks::{HookContext, HookEvent, Hooks, READ_LIVE, SnapshotTaken};
use crate::source::running::Around;
use crate::source::tracking::{Platform, Tracking, prefix};
use crate::source::{Facts, Identity, Source, Table, refuse_as_source};
use motiongear_manifest::catalogue::Disk;
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
        // A machine's own snapshot ended with the run that took it.
        if let Some(kept) =
            self.context.ledger.snapshot::<KeptSnapshot>(shipment, machine)?.filter(|_| !hooks.end_with_us())
        {
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
        if let Err(error) = self.refuse_named(&taken, bound, members) {
            // Best effort: why it is refused is what matters.
            let _ = hooks.discard(told);
            return Err(error);
        }
        if hooks.names_nothing(&taken) {
            self.notes.push(say!(
                self.context.lang,
                "{machine}: the snapshot hook named no place to read from: its disks themselves are read",
                "{machine}：快照钩子未指明读取位置：直接读取磁盘本身"
            ));
            let detail = "the snapshot hook named no place to read from: the disks themselves are read";
            let catalogue = self.lock();
            let number = catalogue.machines()?.into_iter().find(|m| m.name == *machine).map(|m| m.number);
            catalogue.add_event(now()?, READ_LIVE, number, None, detail)?;
        }
        let kept = KeptSnapshot { identities: identities(&taken)?, taken };
        if !hooks.end_with_us() {
            self.context.ledger.keep_snapshot(shipment, machine, &kept)?;
        }
        Ok(kept)
    }

    /// Refuses places that a hook named as the plan's are refused: the array, a path leg, one disk twice.
    fn refuse_named(&self, taken: &SnapshotTaken, bound: &[Bound], members: &[usize]) -> Result<()> {
        // A platform names its own exports.
        if taken.own || taken.overrides.is_empty() {
            return Ok(());
        }
        let named = members.iter().filter_map(|i| taken.overrides.get(&bound[*i].plan.name));
        let named = named.map(|place| Source::open(place, &self.context.sys)).collect::<Result<Vec<_>>>()?;
        let others =
            bound.iter().enumerate().filter(|(i, _)| !members.contains(i)).filter_map(|(_, b)| b.source.as_ref());
        let all: Vec<&Source> = named.iter().chain(others).collect();
        refuse_as_source(&all, &self.options.array)
            .map_err(|error| Error::failed("Hook snapshot: what it names cannot be copied").because(error))
    }

    /// What takes the snapshot of the machine of these disks, if its platform can.
    pub fn platform(&self, bound: &[Bound], entered: &[Disk], members: &[usize]) -> Option<Box<dyn Platform>> {
        let machine = bound[*members.first()?].machine;
        let wished = members.iter().map(|i| {
            let (plan, prefix) = (bound[*i].plan, prefix(self.shipment.shipment, entered[*i].uuid));
            (plan.name.clone(), &plan.source, Tracking { prefix, reference: None })
        });
        if machine.takes_own_images() {
            let disks = wished.filter_map(|(name, source, tracking)| {
                Some(rbd::Wish { name, image: source.live_image()?.clone(), tracking })
            });
            return Some(Box::new(rbd::Taking { disks: disks.collect(), stay: true }));
        }
        let state = self.context.ledger.state();
        let around = Around {
            machine: machine.name.clone(),
            scratch: self.options.scratch.clone().unwrap_or_else(|| state.to_owned()),
            log: Some(state.join("thaw-watchdog.log")),
        };
        Some(machine.monitor()?.snapshot(around, wished))
    }

    /// Remembers by what is told what changes from the snapshot on: with it, all of it is known.
    pub fn begin_tracking(
        &self,
        taken: &KeptSnapshot,
        bound: &[Bound],
        entered: &[Disk],
        members: &[usize],
    ) -> Result<()> {
        for i in members {
            if let Some(noted) = taken.taken.noted.get(&bound[*i].plan.name) {
                let tracked = Tracked { noted: noted.clone(), audit_next: 0 };
                self.context.ledger.keep_tracked(entered[*i].uuid, self.shipment.shipment, &tracked, &[])?;
            }
        }
        Ok(())
    }

    /// What stands on a disk of a running machine is seen in its snapshot first. It must be what stood there before.
    pub fn look_closer(&self, name: &str, disk: &Disk, found: &Source) -> Result<()> {
        let failed = |what: &str, error| Error::failed(format!("{what} of disk {name}")).because(error);
        let known: Facts = serde_json::from_str(&disk.facts).map_err(|error| failed("Facts", error))?;
        let (before, now) = (known.table.as_ref().and_then(Table::id), found.identity.table.clone());
        if let Some(before) = before
            && now.as_ref() != Some(&before)
        {
            let now = now.unwrap_or_else(|| "none".into());
            return Err(Error::failed(format!(
                "Disk {name} is not the same disk any more: expected partition table {before}, found {now}"
            ))
            .next("Name the machine's monitor and the disk that was meant"));
        }
        let facts = Facts { resolved: known.resolved, transport: known.transport, ..found.facts.clone() };
        let facts = serde_json::to_string(&facts).map_err(|error| failed("Facts", error))?;
        Ok(self.lock().set_disk_facts(disk.number, &disk.identity, &facts)?)
    }

    pub fn record_hooks(&self, events: &[HookEvent], bound: &[Bound], members: &[usize]) -> Result<()> {
        let catalogue = self.lock();
        let machine = bound[members[0]].machine.name.as_str();
        let number = catalogue.machines()?.into_iter().find(|m| m.name == machine).map(|m| m.number);
        for event in events {
            let at = event.started.parse().or_else(|_| now())?;
            let command = event.command.join(" ");
            let detail = format!("{} ({command}): {} after {} ms", event.hook, event.outcome, event.milliseconds);
            catalogue.add_event(at, "hook", number, None, &detail)?;
        }
        Ok(())
    }
}
