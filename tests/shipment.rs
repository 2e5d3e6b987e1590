//! A sealed transport array made by hand, record by record, so that tests can put anything into it: several packs, blocks that
//! were superseded, unreadable blocks, disks of odd sizes. Nothing of the seed path takes part.

use jiff::Timestamp;
use motiongear_manifest::catalogue::{
    Batch, BlockRow, BlockState, Catalogue, NewGeneration, PackProgress, PackState, Place, UnreadableRange,
};
use motiongear_manifest::documents::Document;
use motiongear_manifest::documents::seal::{
    Basis, BlockCounts, Consistency, ManifestPin, PlainPin, Seal, SealedDisk, SealedPack, envelope_file,
};
use motiongear_manifest::documents::shipment::{Medium, Shipment, Site, Suite};
use motiongear_manifest::envelope::{ContentKey, EnvelopeMeta, Identity, encrypt_stream, wrap_key};
use motiongear_manifest::geometry::Geometry;
use motiongear_manifest::pack::{PackHeader, pack_file_name};
use motiongear_manifest::record::{Encoder, RecordId, RecordKey, Writer, max_record_bytes};
use motiongear_manifest::sign::{Namespace, Signer};
use motiongear_manifest::sums::Sums;
use motiongear_manifest::tree::{Digest, leaf};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// One disk to ship.
#[derive(Clone)]
pub struct Disk {
    pub machine: &'static str,
    pub name: &'static str,
    pub uuid: Uuid,
    pub data: Vec<u8>,
    /// Blocks that count as unreadable, all zeros.
    pub unreadable: Vec<u64>,
    pub facts: String,
    /// What manifest and seal say of it, if it is not so.
    pub digest: Option<Digest>,
}

impl Disk {
    pub fn new(machine: &'static str, name: &'static str, data: Vec<u8>) -> Disk {
        Disk { machine, name, uuid: Uuid::new_v4(), data, unreadable: vec![], facts: "{}".into(), digest: None }
    }
}

/// How to ship them.
#[derive(Clone)]
pub struct Recipe {
    pub shipment: Uuid,
    pub site: &'static str,
    pub site_uuid: Uuid,
    pub block_bytes: u32,
    pub encrypted: bool,
    /// A new pack after this many records.
    pub records_per_pack: usize,
    pub supersedes: Option<Digest>,
    pub sealed_at: Timestamp,
    pub codec: Option<i32>,
}

impl Default for Recipe {
    fn default() -> Recipe {
        Recipe {
            shipment: Uuid::new_v4(),
            site: "farbank",
            site_uuid: Uuid::new_v4(),
            block_bytes: 65536,
            encrypted: true,
            records_per_pack: 1000,
            supersedes: None,
            sealed_at: "2026-11-01T08:00:00Z".parse().unwrap(),
            codec: Some(1),
        }
    }
}

/// Where everything lies.
pub struct Made {
    /// The array, as if mounted here.
    pub array: PathBuf,
    pub trust: PathBuf,
    pub identity: PathBuf,
    pub seal_digest: Digest,
    pub seal: Seal,
    /// Place of each record by disk and block.
    pub places: BTreeMap<(u32, u64), Place>,
}

impl Made {
    pub fn pack(&self, number: u32) -> PathBuf {
        self.array.join("motiongear/packs").join(pack_file_name(number))
    }
    /// Flips a byte in the payload of a block's record.
    pub fn damage(&self, disk: u32, block: u64) -> Place {
        use std::os::unix::fs::FileExt;
        let place = self.places[&(disk, block)];
        let file = std::fs::File::options().read(true).write(true).open(self.pack(place.pack)).unwrap();
        let at = place.offset + 128 + u64::from(place.stored_bytes) / 2;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
        place
    }
}

/// Bytes that compress a little, differ everywhere, and hold zero blocks where `zero` says so.
pub fn data(len: usize, block: usize, zero: impl Fn(usize) -> bool) -> Vec<u8> {
    let mut state = 0x1234_5678_u64 ^ len as u64;
    let mut bytes = vec![0; len];
    for (number, chunk) in bytes.chunks_mut(block).enumerate() {
        if zero(number) {
            continue;
        }
        for (at, byte) in chunk.iter_mut().enumerate() {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            *byte = if at % 3 == 0 { (number % 251) as u8 + 1 } else { (state >> 56) as u8 };
        }
    }
    bytes
}

/// Makes the array in `dir/array`, and `dir/allowed_signers`, `dir/identity`.
pub fn make(dir: &Path, disks: &[Disk], recipe: &Recipe) -> Made {
    std::fs::create_dir_all(dir).unwrap();
    let at: Timestamp = recipe.sealed_at;
    let array = dir.join("array");
    let root = array.join("motiongear");
    for sub in ["keys", "packs", "custody", "report", "copy/keys"] {
        std::fs::create_dir_all(root.join(sub)).unwrap();
    }
    let identity = Identity::generate();
    let recipients = vec![identity.recipient()];
    let principal = format!("li@{}", recipe.site);
    let signer = Signer::generate_ed25519(&principal).unwrap();
    let public = signer.public_key().to_openssh().unwrap();
    std::fs::write(dir.join("allowed_signers"), format!("{principal} namespaces=\"motiongear-*\" {public}\n")).unwrap();
    crate::common::secret(&dir.join("identity"), identity.to_file("2026-11-01").as_bytes());

    let shipment = Shipment {
        format: 1,
        shipment: recipe.shipment,
        site: Site { uuid: recipe.site_uuid, name: recipe.site.into() },
        label: "test".into(),
        asset_tag: "A-17".into(),
        block_bytes: recipe.block_bytes,
        suite: if recipe.encrypted { Suite::Aes256GcmAge } else { Suite::Plaintext },
        recipients: if recipe.encrypted { vec![identity.recipient().to_string()] } else { vec![] },
        hash: "blake3".into(),
        checksum: "crc32".into(),
        media: vec![Medium { number: 1, uuid: Uuid::new_v4(), serial: String::new() }],
        created_at: at,
        tool: "test".into(),
        signer: None,
    };
    let both = |file: &str, bytes: &[u8]| {
        std::fs::write(root.join(file), bytes).unwrap();
        std::fs::write(root.join("copy").join(file), bytes).unwrap();
        Digest::of(bytes)
    };
    let mut pins = BTreeMap::new();
    pins.insert("shipment.json".to_owned(), both("shipment.json", &shipment.to_bytes().unwrap()));

    let live = dir.join("live.db");
    let _ = std::fs::remove_file(&live);
    let mut catalogue = Catalogue::create(&live, &shipment).unwrap();
    let process = catalogue.add_process("host", "test", at).unwrap();
    let key = ContentKey::generate().unwrap();
    if recipe.encrypted {
        let envelope = wrap_key(&key, &EnvelopeMeta::new(recipe.shipment, process), &recipients).unwrap();
        let digest = both(&envelope_file(process), &envelope);
        catalogue.set_envelope(process, &digest).unwrap();
        pins.insert(envelope_file(process), digest);
    }
    let record_key = recipe.encrypted.then(|| RecordKey::new(key.as_bytes()).unwrap());
    let writer = Arc::new(Writer::new(recipe.shipment, process, record_key));
    let mut encoder = Encoder::new(writer, recipe.codec).unwrap();

    let mut machines: BTreeMap<&str, u32> = BTreeMap::new();
    let mut generations = Vec::new();
    for disk in disks {
        let machine = *machines
            .entry(disk.machine)
            .or_insert_with(|| catalogue.add_machine(Uuid::new_v4(), disk.machine, "{}").unwrap());
        let number = catalogue.add_disk(disk.uuid, machine, disk.name, "{}", &disk.facts).unwrap();
        let new = NewGeneration {
            disk: number,
            number: 0,
            bytes: disk.data.len() as u64,
            consistency: Consistency::Fuzzy,
            basis: Basis::None,
            point_in_time: None,
            source: "/dev/test".into(),
        };
        let generation = catalogue.begin_generation(&new, at).unwrap();
        generations.push((generation, Geometry::new(disk.data.len() as u64, recipe.block_bytes).unwrap(), number));
    }

    // Disks take turns, as several readers of one seed would.
    let mut packs: Vec<(u32, Vec<u8>, u64)> = Vec::new();
    let mut counts = vec![BlockCounts::default(); disks.len()];
    let mut places = BTreeMap::new();
    let mut batch = Batch { block_bytes: recipe.block_bytes, ..Batch::default() };
    let most = generations.iter().map(|(_, geometry, _)| geometry.blocks()).max().unwrap_or(0);
    for block in 0..most {
        for (at_disk, disk) in disks.iter().enumerate() {
            let (generation, geometry, number) = &generations[at_disk];
            if block >= geometry.blocks() {
                continue;
            }
            let offset = geometry.offset(block);
            let bytes = &disk.data[offset as usize..][..geometry.len(block) as usize];
            let leaf = leaf(offset, bytes);
            let zero = bytes.iter().all(|byte| *byte == 0);
            let unreadable = disk.unreadable.contains(&block);
            let state = match (unreadable, zero) {
                (true, _) => BlockState::Unreadable,
                (false, true) => BlockState::Zero,
                (false, false) => BlockState::Stored,
            };
            match state {
                BlockState::Zero => counts[at_disk].zero += 1,
                BlockState::Stored => counts[at_disk].stored += 1,
                BlockState::Unreadable => counts[at_disk].unreadable += 1,
            }
            if unreadable {
                batch.unreadable.push((generation.id, UnreadableRange { offset, bytes: 4096.min(bytes.len() as u64) }));
            }
            let mut place = None;
            if !zero {
                if packs.last().is_none_or(|(_, _, records)| *records as usize >= recipe.records_per_pack) {
                    let pack = catalogue.add_pack(1).unwrap();
                    packs.push((pack, PackHeader { shipment: recipe.shipment, pack, medium: 1 }.encode().to_vec(), 0));
                }
                let (pack, file, records) = packs.last_mut().unwrap();
                let mut out = vec![0; max_record_bytes(recipe.block_bytes)];
                let encoded =
                    encoder.encode(RecordId { disk: *number, generation: 0, block }, bytes, &mut out).unwrap();
                let found = Place {
                    pack: *pack,
                    offset: file.len() as u64,
                    stored_bytes: encoded.stored_bytes,
                    codec: encoded.codec,
                };
                file.extend_from_slice(&out[..encoded.record_bytes]);
                *records += 1;
                places.insert((*number, block), found);
                place = Some(found);
            }
            batch.rows.push((generation.id, BlockRow { block, leaf, state, place }));
        }
    }
    let mut sealed_packs = Vec::new();
    for (pack, file, records) in &packs {
        let digest = Digest::of(file);
        let name = format!("packs/{}", pack_file_name(*pack));
        std::fs::write(root.join(&name), file).unwrap();
        let bytes = file.len() as u64;
        batch.packs.push(PackProgress { pack: *pack, bytes, records: *records, digest: PackState::Closed(digest) });
        sealed_packs.push(SealedPack { file: name, medium: 1, bytes, records: *records, blake3: digest });
    }
    catalogue.commit(&batch).unwrap();
    let mut sealed_disks = Vec::new();
    for (at_disk, disk) in disks.iter().enumerate() {
        let (generation, _, number) = &generations[at_disk];
        let digest = disk.digest.unwrap_or_else(|| Digest::of(&disk.data));
        catalogue.finish_generation(generation.id, at, &digest).unwrap();
        sealed_disks.push(SealedDisk {
            id: *number,
            machine: disk.machine.into(),
            disk: disk.name.into(),
            uuid: disk.uuid,
            generation: 0,
            bytes: disk.data.len() as u64,
            block_bytes: recipe.block_bytes,
            digest,
            consistency: Consistency::Fuzzy,
            basis: Basis::None,
            blocks: counts[at_disk],
        });
    }
    catalogue.end_process(process, at, "done").unwrap();
    catalogue.finalise().unwrap();
    let plain = std::fs::read(&live).unwrap();
    let sums = Sums::of(&plain);
    let (file, stored) = if recipe.encrypted {
        let mut cipher = Vec::new();
        encrypt_stream(&plain[..], &mut cipher, &recipients).unwrap();
        ("manifest.db.age", cipher)
    } else {
        ("manifest.db", plain)
    };
    both(file, &stored);
    let outer = Sums::of(&stored);
    let seal = Seal {
        format: 1,
        shipment: recipe.shipment,
        site: shipment.site.clone(),
        signer: principal,
        sealed_at: at,
        supersedes: recipe.supersedes,
        pins,
        manifest: ManifestPin {
            file: file.into(),
            bytes: outer.bytes,
            blake3: outer.blake3,
            sha256: outer.sha256,
            plain: PlainPin { bytes: sums.bytes, blake3: sums.blake3, sha256: sums.sha256 },
        },
        packs: sealed_packs,
        disks: sealed_disks,
        excluded: vec![],
        tool: "test".into(),
    };
    let bytes = seal.to_bytes().unwrap();
    both("seal.json", &bytes);
    both("seal.json.sig", signer.sign(&bytes, Namespace::Seal).unwrap().as_bytes());
    Made {
        array,
        trust: dir.join("allowed_signers"),
        identity: dir.join("identity"),
        seal_digest: Digest::of(&bytes),
        seal,
        places,
    }
}
