//! Collects [`Facts`] from what is proven: the seal, the manifest that it pins, this host's ledger, the custody chain.

use super::facts::{
    ByteClasses, Cell, Clock, Command, Disk, Drilled, Excluded, Facts, Happening, Kind, Machine, Medium, Person,
    Process, Proof, Range, RecipientFacts, Repeat, Role, Seal as SealFacts, Shipment as ShipmentFacts, Site, Verdict,
    Verified,
};
use super::svg::MapBuilder;
use super::{Options, centre};
use crate::context::{Context, tool};
use crate::custody::centre::CentreEvent;
use crate::custody::chain::Chain;
use crate::error::{Error, Result};
use crate::io::read_bounded;
use crate::source::{Facts as SourceFacts, Identity};
use crate::trust::{Compared, read_trust};
use crate::units::size;
use base64::prelude::{BASE64_STANDARD, Engine};
use jiff::Timestamp;
use motiongear_manifest::catalogue::{BlockState, Catalogue, Disk as DiskRow, Generation};
use motiongear_manifest::code::spoken_code;
use motiongear_manifest::documents::custody::{CustodyEvent, Event};
use motiongear_manifest::documents::seal::{Seal, SealedDisk};
use motiongear_manifest::documents::shipment::{Shipment, Suite};
use motiongear_manifest::envelope::Recipient;
use motiongear_manifest::geometry::Geometry;
use motiongear_manifest::tree::Digest;
use std::collections::BTreeMap;
use std::path::Path;

/// Most unreadable ranges in the facts.
const MAX_RANGES: usize = 1000;
/// Most drills in the facts, and the largest picture of one, bytes.
const MAX_DRILLS: usize = 50;
const MAX_PICTURE_BYTES: u64 = 512 << 10;
/// Most events in the facts.
const MAX_EVENTS: usize = 5000;

/// A verified seal, and what belongs to it.
pub struct Basis {
    /// The seal.
    pub seal: Seal,
    /// BLAKE3 of its file.
    pub digest: Digest,
    /// `SHA256:…` of the key that signed it.
    pub key: String,
    /// Compared with a trust file.
    pub signer_checked: bool,
    /// By what an import knew it to be the one that left the branch.
    pub compared: Option<Compared>,
    /// `shipment.json` as pinned; `None` where the array is gone.
    pub shipment: Option<Shipment>,
    /// The manifest, of which the seal holds the digest.
    pub catalogue: Catalogue,
    /// The array's custody so far.
    pub chain: Chain<CustodyEvent>,
    /// What was done with the content here.
    pub centre: Chain<CentreEvent>,
    /// What people should know.
    pub notes: Vec<String>,
}

/// Everything a report says.
///
/// # Errors
/// The manifest contradicts the seal, or something cannot be read.
pub fn gather(context: &Context, options: &Options, basis: &Basis, at: Timestamp, number: String) -> Result<Facts> {
    let Basis { seal, digest, catalogue, chain, centre: own, .. } = basis;
    let ledger = &context.ledger;
    let checks = ledger.verifications(seal.shipment, *digest)?;
    let verified = checks.last().is_some_and(|check| check.good);
    let machines = catalogue.machines()?;
    let names: BTreeMap<u32, &str> = machines.iter().map(|m| (m.number, m.name.as_str())).collect();
    let rows = catalogue.disks()?;
    let generations = catalogue.generations()?;
    let mut disks = Vec::new();
    for sealed in &seal.disks {
        let (row, generation) = find(sealed, &rows, &generations, &names)?;
        let mut disk = disk(catalogue, sealed, row, generation, basis.encrypted(), verified)?;
        if options.kind == Kind::Import {
            let records = disk.at_medium.read + disk.at_medium.trusted;
            disk.imported = centre::imported(ledger, seal.shipment, *digest, sealed.uuid, records)?;
            if let Some(import) = &disk.imported {
                disk.at_medium = import.medium;
                mark_damaged(&mut disk);
            }
        }
        disks.push(disk);
    }
    let object = |machine: Option<u32>, disk: Option<u32>| {
        let of = disk.and_then(|number| rows.iter().find(|row| row.number == number));
        match (machine.or(of.map(|row| row.machine)).and_then(|number| names.get(&number)), of) {
            (Some(machine), Some(disk)) => format!("{machine}/{}", disk.name),
            (Some(machine), None) => (*machine).to_owned(),
            _ => String::new(),
        }
    };
    let happenings: Vec<Happening> = catalogue
        .events()?
        .into_iter()
        .take(MAX_EVENTS)
        .map(|e| Happening { at: e.at, kind: e.kind, object: object(e.machine, e.disk), detail: e.detail })
        .collect();
    let (mut host_writes, events): (Vec<_>, Vec<_>) = happenings.into_iter().partition(|e| e.kind == "host-write");
    host_writes.dedup_by(|a, b| a.detail == b.detail && a.object == b.object);
    if options.kind == Kind::Handover {
        host_writes.extend(own_writes(context, seal, at));
    }
    let mut facts = Facts {
        report: options.kind,
        number,
        made_at: at,
        utc_offset_minutes: options.utc_offset_minutes,
        tool: tool(),
        host: super::host_name(context),
        site: Site { name: seal.site.name.clone(), uuid: seal.site.uuid },
        purpose: options.purpose.clone(),
        people: people(options, chain),
        verdict: Verdict::Good,
        remarks: Vec::new(),
        shipment: shipment_facts(basis)?,
        seal: seal_facts(basis),
        box_seals: box_seals(options, chain),
        recipients: recipients(basis),
        machines: machines
            .iter()
            .map(|m| {
                Ok(Machine {
                    name: m.name.clone(),
                    uuid: m.uuid,
                    inventory: serde_json::from_str(&m.inventory).unwrap_or_default(),
                    server: match options.kind {
                        Kind::Import => ledger.server(seal.site.uuid, &m.name)?,
                        Kind::Handover => None,
                    },
                })
            })
            .collect::<Result<_>>()?,
        disks,
        excluded: seal
            .excluded
            .iter()
            .map(|e| Excluded { machine: e.machine.clone(), name: e.disk.clone(), reason: e.reason.clone() })
            .collect(),
        verifications: checks
            .iter()
            .map(|c| Verified { at: c.at, good: c.good, with_identity: c.with_identity })
            .collect(),
        custody: chain.facts(),
        centre: own.facts(ledger, chain),
        custody_notes: [chain.notes.as_slice(), &own.notes].concat(),
        clock: clock(context, at),
        processes: processes(catalogue)?,
        import_runs: match options.kind {
            Kind::Import => centre::runs(ledger, seal.shipment, *digest)?,
            Kind::Handover => Vec::new(),
        },
        drills: match options.kind {
            Kind::Import => drills(context, options, *digest, at)?,
            Kind::Handover => Vec::new(),
        },
        events,
        host_writes,
        commands: Vec::new(),
        notes: basis.notes.clone(),
    };
    facts.commands = commands(&facts);
    facts.judge();
    Ok(facts)
}

impl Basis {
    fn encrypted(&self) -> bool {
        self.seal.manifest.file != self.plain_name()
    }
    fn plain_name(&self) -> &'static str {
        "manifest.db"
    }
}

/// The manifest's rows of a sealed disk; they must say what the seal says.
fn find<'a>(
    sealed: &SealedDisk,
    rows: &'a [DiskRow],
    generations: &'a [Generation],
    names: &BTreeMap<u32, &str>,
) -> Result<(&'a DiskRow, &'a Generation)> {
    let name = format!("{}/{}", sealed.machine, sealed.disk);
    let row = rows.iter().find(|row| {
        row.number == sealed.id
            && row.uuid == sealed.uuid
            && row.name == sealed.disk
            && names.get(&row.machine).is_some_and(|machine| *machine == sealed.machine)
    });
    let generation = generations.iter().find(|g| g.disk == sealed.id && g.number == sealed.generation);
    match (row, generation) {
        (Some(row), Some(generation))
            if generation.bytes == sealed.bytes && generation.digest == Some(sealed.digest) =>
        {
            Ok((row, generation))
        }
        _ => Err(Error::untrusted(format!(
            "Disk {name}: expected the manifest to say what the seal says, found otherwise"
        ))
        .next(
            "the shipment was reopened after this seal: seal it again first; otherwise the state directory was altered",
        )),
    }
}

fn disk(
    catalogue: &Catalogue,
    sealed: &SealedDisk,
    row: &DiskRow,
    generation: &Generation,
    encrypted: bool,
    verified: bool,
) -> Result<Disk> {
    let geometry = Geometry::new(sealed.bytes, sealed.block_bytes)?;
    let mut map = MapBuilder::new(geometry.blocks());
    let mut classes = ByteClasses::default();
    let mut records = 0;
    catalogue.for_each_row(generation, &geometry, encrypted, |block| -> Result<()> {
        let plain = u64::from(geometry.len(block.block));
        match block.place {
            // Encrypted records carry a tag; what does not compress is stored whole.
            Some(place) => {
                let stored = u64::from(place.stored_bytes).min(plain);
                classes.stored += stored;
                classes.compressed_away += plain - stored;
                records += 1;
            }
            None => classes.zero += plain,
        }
        map.mark(
            block.block,
            match block.state {
                BlockState::Zero => Cell::Zero,
                BlockState::Stored => Cell::Stored,
                BlockState::Unreadable => Cell::Unreadable,
            },
        );
        Ok(())
    })?;
    let ranges = catalogue.unreadable(generation)?;
    let identity_details: serde_json::Value = serde_json::from_str(&row.identity).unwrap_or_default();
    let identity = serde_json::from_str::<Identity>(&row.identity).map(|identity| identity.summary());
    let facts = serde_json::from_str::<SourceFacts>(&row.facts).unwrap_or_default();
    Ok(Disk {
        number: sealed.id,
        machine: sealed.machine.clone(),
        name: sealed.disk.clone(),
        uuid: sealed.uuid,
        generation: sealed.generation,
        bytes: sealed.bytes,
        block_bytes: sealed.block_bytes,
        digest: sealed.digest,
        consistency: sealed.consistency,
        basis: sealed.basis,
        point_in_time: generation.point_in_time.clone(),
        source: generation.source.clone(),
        started_at: generation.started_at,
        finished_at: generation.finished_at,
        identity: identity.unwrap_or_else(|_| identity_details.to_string()),
        identity_details,
        contents: contents(&facts),
        blocks: sealed.blocks,
        classes,
        unreadable: ranges.iter().take(MAX_RANGES).map(|r| Range { offset: r.offset, bytes: r.bytes }).collect(),
        unreadable_ranges: ranges.len() as u64,
        unreadable_bytes: ranges.iter().map(|r| r.bytes).sum(),
        map: map.finish(),
        at_source: Proof { read: geometry.blocks(), trusted: 0 },
        at_medium: if verified { Proof { read: records, trusted: 0 } } else { Proof { read: 0, trusted: records } },
        imported: None,
    })
}

/// Puts the damaged blocks on the map.
fn mark_damaged(disk: &mut Disk) {
    let Some(import) = &disk.imported else { return };
    let mut cells: Vec<char> = disk.map.cells.chars().collect();
    for block in &import.damaged_blocks {
        let at = block.checked_div(disk.map.blocks_per_cell).and_then(|at| usize::try_from(at).ok());
        if let Some(cell) = at.and_then(|at| cells.get_mut(at)) {
            *cell = Cell::Damaged.letter();
        }
    }
    disk.map.cells = cells.into_iter().collect();
}

/// Sector sizes, partition table and file systems in a few lines.
fn contents(facts: &SourceFacts) -> Vec<String> {
    let mut lines = Vec::new();
    let mut first = Vec::new();
    first.extend(facts.model.clone());
    first.extend(facts.table.as_ref().map(|table| format!("{:?}", table.scheme).to_uppercase()));
    if let (Some(logical), Some(physical)) = (facts.logical_sector_bytes, facts.physical_sector_bytes) {
        first.push(format!("{logical}/{physical} B"));
    }
    let kinds = |signatures: &[crate::source::signature::Signature]| {
        let words: Vec<String> = signatures
            .iter()
            .map(|s| match &s.label {
                Some(label) => format!("{} '{label}'", s.kind),
                None => s.kind.clone(),
            })
            .collect();
        words.join(", ")
    };
    if !facts.contents.is_empty() {
        first.push(kinds(&facts.contents));
    }
    if !first.is_empty() {
        lines.push(first.join(" · "));
    }
    let volumes: Vec<String> = facts
        .volumes
        .iter()
        .filter(|volume| !volume.contents.is_empty())
        .map(|volume| format!("{}: {}", volume.partition, kinds(&volume.contents)))
        .collect();
    if !volumes.is_empty() {
        lines.push(volumes.join(" · "));
    }
    lines
}

fn people(options: &Options, chain: &Chain<CustodyEvent>) -> Vec<Person> {
    let of = |event: Event| chain.last_of(event).map(|link| link.event.person.clone()).unwrap_or_default();
    [Role::Bank, Role::Engineer, Role::Courier, Role::Receiver]
        .into_iter()
        .map(|role| {
            let told = options.people.iter().find(|person| person.role == role).map(|person| person.name.clone());
            let name = told.filter(|name| !name.is_empty()).unwrap_or_else(|| match role {
                Role::Courier => of(Event::Dispatched),
                Role::Receiver => of(Event::Received),
                Role::Bank | Role::Engineer => String::new(),
            });
            Person { role, name }
        })
        .collect()
}

fn box_seals(options: &Options, chain: &Chain<CustodyEvent>) -> Vec<String> {
    if !options.box_seals.is_empty() {
        return options.box_seals.clone();
    }
    let last = chain.last_of(Event::Received).or_else(|| chain.last_of(Event::Dispatched));
    last.map(|link| link.event.box_seals.clone()).unwrap_or_default()
}

fn shipment_facts(basis: &Basis) -> Result<ShipmentFacts> {
    let row = basis.catalogue.shipment()?;
    let media = basis.catalogue.media()?;
    let suite = basis.shipment.as_ref().map(|shipment| shipment.suite);
    let encrypted = suite.map_or(row.encrypted, |suite| suite != Suite::Plaintext);
    Ok(ShipmentFacts {
        uuid: basis.seal.shipment,
        label: row.label,
        asset_tag: row.asset_tag,
        format: basis.seal.format,
        block_bytes: row.block_bytes,
        suite: if encrypted { "aes-256-gcm+age-x25519".into() } else { "plaintext".into() },
        encrypted,
        signed: basis.shipment.as_ref().map(|shipment| shipment.signer.is_some()),
        created_at: row.created_at,
        media: media.into_iter().map(|m| Medium { number: m.number, uuid: m.uuid, serial: m.serial }).collect(),
    })
}

fn seal_facts(basis: &Basis) -> SealFacts {
    let seal = &basis.seal;
    SealFacts {
        digest: basis.digest,
        spoken_code: spoken_code(&basis.digest),
        signer: seal.signer.clone(),
        key: basis.key.clone(),
        signer_checked: basis.signer_checked,
        compared: basis.compared,
        sealed_at: seal.sealed_at,
        supersedes: seal.supersedes,
        manifest_file: seal.manifest.file.clone(),
        manifest_blake3: seal.manifest.blake3,
        manifest_plain_blake3: seal.manifest.plain.blake3,
        packs: seal.packs.len() as u64,
        pack_bytes: seal.packs.iter().map(|p| p.bytes).sum(),
        records: seal.packs.iter().map(|p| p.records).sum(),
        tool: seal.tool.clone(),
    }
}

fn recipients(basis: &Basis) -> Vec<RecipientFacts> {
    let all = basis.shipment.iter().flat_map(|shipment| &shipment.recipients);
    all.map(|text| RecipientFacts {
        recipient: text.clone(),
        fingerprint: text.parse::<Recipient>().map(|r| r.fingerprint()).unwrap_or_default(),
    })
    .collect()
}

fn processes(catalogue: &Catalogue) -> Result<Vec<Process>> {
    let all = catalogue.processes()?.into_iter();
    Ok(all
        .map(|p| Process {
            number: p.number,
            host: p.host,
            tool: p.tool,
            started_at: p.started_at,
            ended_at: p.ended_at,
            interrupted: p.ended_at.is_none() || p.ending.as_deref() != Some("finished"),
            ending: p.ending,
        })
        .collect())
}

/// What MotionGear keeps on the host that made the copies.
fn own_writes(context: &Context, seal: &Seal, at: Timestamp) -> Vec<Happening> {
    let ledger = &context.ledger;
    let of = |path: &Path| std::fs::metadata(path).map(|meta| size(meta.len())).unwrap_or_else(|_| "?".to_owned());
    let manifest = ledger.shipment_dir(seal.shipment).join("manifest.db");
    let db = ledger.state().join("ledger.db");
    [manifest, db]
        .iter()
        .map(|path| Happening {
            at,
            kind: "host-write".into(),
            object: String::new(),
            detail: format!("{} ({})", path.display(), of(path)),
        })
        .collect()
}

/// Against the hardware clock, where there is one that can be read.
fn clock(context: &Context, at: Timestamp) -> Clock {
    let rtc = context.sys.text("sys/class/rtc/rtc0/since_epoch").and_then(|text| text.trim().parse::<i64>().ok());
    match rtc {
        Some(rtc) => Clock::Rtc { offset_seconds: at.as_second().saturating_sub(rtc) },
        None => Clock::NotKnown,
    }
}

/// A word for a POSIX shell, quoted unless nothing in it means anything to one.
pub fn shell(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./@%+=:,-".contains(c);
    if !text.is_empty() && text.chars().all(plain) && !text.starts_with(['-', '=']) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// The last drills that booted what this seal brought, with their pictures.
fn drills(context: &Context, options: &Options, seal: Digest, at: Timestamp) -> Result<Vec<Drilled>> {
    let trust = options.trust.as_deref().map(read_trust).transpose()?;
    let judged = trust.as_ref().map(|trust| (trust, options.verify_time.unwrap_or(at)));
    let mut all = crate::drill::facts(&context.ledger, judged)?;
    all.retain(|(_, facts)| facts.course.is_some() && facts.drill.disks.iter().any(|disk| disk.seal == seal));
    let over = all.len().saturating_sub(MAX_DRILLS);
    let each = all.into_iter().skip(over);
    Ok(each
        .map(|(folder, facts)| {
            let pinned = facts.course.as_ref().and_then(|course| course.picture.as_ref());
            let small = pinned.filter(|pinned| {
                pinned.bytes <= MAX_PICTURE_BYTES
                    && !folder.differs(pinned, false)
                    && !facts.altered.contains(&pinned.file)
            });
            let bytes = small.and_then(|pinned| read_bounded(&folder.join(&pinned.file), MAX_PICTURE_BYTES).ok());
            Drilled { facts, picture: bytes.map(|bytes| BASE64_STANDARD.encode(bytes)) }
        })
        .collect())
}

/// What an auditor types, in `ARRAY/motiongear`. Every value is quoted: names come from documents that others wrote. Nothing is
/// left behind: a manifest is an inventory of the bank's machines.
fn commands(facts: &Facts) -> Vec<Command> {
    let seal = &facts.seal;
    let command = |repeats, command: String, expected: Option<String>| Command { repeats, command, expected };
    let verify = |signer: &str, namespace: &str, file: &str| {
        let (signer, signature, file) = (shell(signer), shell(&format!("{file}.sig")), shell(file));
        format!("ssh-keygen -Y verify -f ALLOWED_SIGNERS -I {signer} -n {namespace} -s {signature} < {file}")
    };
    let pinned = |columns: &str, list: &str| {
        format!(
            "sqlite3 :memory: \"SELECT {columns} FROM json_each(readfile('seal.json'),'$.{list}')\" | b3sum --check"
        )
    };
    let manifest = shell(&seal.manifest_file);
    let mut all = vec![
        command(Repeat::SealDigest, "b3sum seal.json".into(), Some(seal.digest.to_string())),
        command(Repeat::SealSignature, verify(&seal.signer, "motiongear-seal", "seal.json"), None),
        command(Repeat::Pins, pinned("value || '  ' || key", "pins"), None),
    ];
    if seal.packs > 0 {
        let columns = "json_extract(value,'$.blake3') || '  ' || json_extract(value,'$.file')";
        all.push(command(Repeat::Packs, pinned(columns, "packs"), None));
    }
    all.push(command(Repeat::Manifest, format!("b3sum {manifest}"), Some(seal.manifest_blake3.to_string())));
    let rows = "\"SELECT machine.name, disk.name, state, count(*) FROM block JOIN generation ON generation.id = block.generation JOIN disk ON disk.number = generation.disk JOIN machine ON machine.number = disk.machine GROUP BY 1, 2, 3\"";
    if facts.shipment.encrypted {
        let text = format!("age -d -i IDENTITY {manifest} | b3sum");
        all.push(command(Repeat::Decrypt, text, Some(seal.manifest_plain_blake3.to_string())));
        let text = format!(
            "(d=$(mktemp -d) && trap 'rm -rf \"$d\"' EXIT && age -d -i IDENTITY {manifest} > \"$d/m\" && sqlite3 \"$d/m\" {rows})"
        );
        all.push(command(Repeat::Rows, text, None));
    } else {
        all.push(command(Repeat::Rows, format!("sqlite3 -readonly {manifest} {rows}"), None));
    }
    for event in &facts.custody {
        let file = format!("custody/{}", event.file);
        all.push(command(Repeat::Custody, verify(&event.signer, "motiongear-custody", &file), None));
    }
    for event in &facts.centre {
        all.push(command(Repeat::Centre, verify(&event.signer, "motiongear-custody", &event.file), None));
    }
    for drilled in &facts.drills {
        let Some(said) = &drilled.facts.confirmation else { continue };
        let file = drilled.facts.evidence.join("confirm.json").display().to_string();
        all.push(command(Repeat::Drill, verify(&said.signer, "motiongear-drill", &file), None));
    }
    for disk in &facts.disks {
        let target = disk.imported.as_ref().map(|import| import.target.as_str()).unwrap_or_default();
        let text = format!("{} | b3sum", first_bytes(target, disk.bytes));
        all.push(command(Repeat::Volume, text, Some(disk.digest.to_string())));
    }
    all
}

/// The command that prints the first `bytes` of a volume. One that no path leads to is VOLUME: attach it first.
fn first_bytes(target: &str, bytes: u64) -> String {
    match target.split_once(':') {
        Some(("dir" | "dev", path)) => format!("head -c {bytes} {}", shell(path)),
        Some(("nbd", rest)) => {
            let uri = if rest.starts_with("//") { target } else { rest };
            format!("nbdcopy {} - | head -c {bytes}", shell(uri))
        }
        _ => format!("head -c {bytes} VOLUME"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_for_the_shell_is_that_word_for_a_shell() {
        for word in
            ["", "a", "-rf", "a b", "li';touch PWNED;'@dc", "$(id)", "a\\b", "~", "wang@dc", "/a/b.json", "*", "=x"]
        {
            let out = std::process::Command::new("sh").args(["-c", &format!("printf %s {}", shell(word))]).output();
            // printf itself would take "-rf" for an option; behind a % it is none.
            let out = if word.starts_with('-') {
                std::process::Command::new("sh").args(["-c", &format!("printf %s%s x {}", shell(word))]).output()
            } else {
                out
            };
            let said = String::from_utf8(out.unwrap().stdout).unwrap();
            assert_eq!(said.trim_start_matches(if word.starts_with('-') { "x" } else { "" }), word);
        }
    }
}
