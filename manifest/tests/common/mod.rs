//! Makes whole arrays through the crate's own writers, small and in any state that a test wants. Also what makes the golden
//! fixtures, so that they are what the tests take apart.

#![allow(dead_code, reason = "shared by programs that each use a part")]

use jiff::Timestamp;
use motiongear_manifest::allowed::AllowedSigners;
use motiongear_manifest::catalogue::{
    Batch, BlockRow, BlockState, Catalogue, NewGeneration, PackProgress, PackState, Place, UnreadableRange,
};
use motiongear_manifest::documents::Document;
use motiongear_manifest::documents::custody::{CustodyEvent, Event, Predecessor, event_file};
use motiongear_manifest::documents::seal::*;
use motiongear_manifest::documents::shipment::{Medium, Shipment, Site, Suite};
use motiongear_manifest::envelope::{ContentKey, EnvelopeMeta, Identity, encrypt_stream, wrap_key};
use motiongear_manifest::geometry::Geometry;
use motiongear_manifest::pack::{PackDigest, PackHeader, pack_file_name};
use motiongear_manifest::record::{Encoder, RecordId, RecordKey, Writer, max_record_bytes};
use motiongear_manifest::sign::{Namespace, Signer};
use motiongear_manifest::sums::Sums;
use motiongear_manifest::tree::{Digest, leaf};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

pub const BLOCK: u32 = 65_536;
pub const SITE: &str = "nongxin";
pub const SIGNER: &str = "wang@nongxin";

/// Keys that a shipment is made with.
pub struct Keys {
    pub signer: Signer,
    /// Signs receipts: who dispatched cannot receive.
    pub receiver: Signer,
    pub identity: Identity,
}

impl Keys {
    pub fn new() -> Self {
        let signer = || Signer::generate_ed25519("throw-away").unwrap();
        Keys { signer: signer(), receiver: signer(), identity: Identity::generate() }
    }
    /// The trust file that allows the signer as every principal in use.
    pub fn trust_text(&self) -> String {
        trust_line("wang@nongxin,li@province", &self.signer) + &trust_line("li@province", &self.receiver)
    }
    pub fn trust(&self) -> AllowedSigners {
        AllowedSigners::parse(&self.trust_text()).unwrap()
    }
}

pub fn trust_line(principals: &str, signer: &Signer) -> String {
    format!("{principals} namespaces=\"motiongear-*\" {}\n", signer.public_key().to_openssh().unwrap())
}

/// One disk to put in.
#[derive(Clone)]
pub struct Disk {
    pub machine: &'static str,
    pub name: &'static str,
    pub bytes: Vec<u8>,
    /// Of a whole block, that the source could not give; zeros in `bytes`.
    pub unreadable: Option<UnreadableRange>,
}

pub fn disk(machine: &'static str, name: &'static str, bytes: Vec<u8>) -> Disk {
    Disk { machine, name, bytes, unreadable: None }
}

/// Bytes that zstd packs well, and that differ in every block.
pub fn text(len: usize) -> Vec<u8> {
    (0..).flat_map(|line| format!("line {line} of a disk that compresses well\n").into_bytes()).take(len).collect()
}

/// Bytes that do not compress (xorshift32).
pub fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.max(1);
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 11) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// The disks of the golden fixtures: every kind of block and every odd size.
pub fn golden_disks() -> Vec<Disk> {
    let block = BLOCK as usize;
    // Text, zeros, text, a hole that the source could not give, and a short last block of noise.
    let mut first = text(3 * block);
    first[block..2 * block].fill(0);
    first.resize(4 * block, 0);
    first.extend(noise(5000, 7));
    let unreadable = Some(UnreadableRange { offset: 3 * u64::from(BLOCK) + 512, bytes: 1024 });
    vec![
        Disk { unreadable, ..disk("db01", "sda", first) },
        disk("db01", "one-byte", vec![0x5a]),
        disk("web01", "one-block", text(block)),
        disk("web01", "empty", Vec::new()),
        disk("web01", "zeros", vec![0; block + 1]),
    ]
}

/// What to make.
pub struct Spec {
    pub encrypted: bool,
    pub disks: Vec<Disk>,
    /// The second writing process writes from this disk on: two envelopes.
    pub second_process_from: usize,
    pub shipment: Uuid,
    pub site: &'static str,
    pub signer: &'static str,
    pub supersedes: Option<Digest>,
    pub sign_shipment: bool,
    /// SQL run on the finished manifest before it is hashed and sealed: what a hostile signer would do.
    pub sql: &'static str,
    /// Changes the seal before it is validated and signed.
    pub edit_seal: Option<fn(&mut Seal)>,
}

impl Spec {
    pub fn new(encrypted: bool) -> Self {
        Spec {
            encrypted,
            disks: golden_disks(),
            second_process_from: 2,
            shipment: Uuid::from_u128(0x1111_2222_3333_4444_5555_6666_7777_8888),
            site: SITE,
            signer: SIGNER,
            supersedes: None,
            sign_shipment: true,
            sql: "",
            edit_seal: None,
        }
    }
}

/// An array, and what is known of it.
pub struct Made {
    pub array: PathBuf,
    pub root: PathBuf,
    pub seal: Seal,
    pub seal_digest: Digest,
}

impl Made {
    pub fn read(&self, file: &str) -> Vec<u8> {
        fs::read(self.root.join(file)).unwrap()
    }
    pub fn write(&self, file: &str, bytes: &[u8]) {
        fs::create_dir_all(self.root.join(file).parent().unwrap()).unwrap();
        fs::write(self.root.join(file), bytes).unwrap();
    }
    /// Flips one bit.
    pub fn flip(&self, file: &str, at: usize) {
        let mut bytes = self.read(file);
        bytes[at] ^= 1;
        self.write(file, &bytes);
    }
    pub fn remove(&self, file: &str) {
        fs::remove_file(self.root.join(file)).unwrap();
    }
    /// Writes a seal and its signature below `prefix` ("" or "copy/").
    pub fn write_seal(&self, prefix: &str, seal: &Seal, signer: &Signer) -> Digest {
        let bytes = seal.to_bytes().unwrap();
        self.write(&format!("{prefix}seal.json"), &bytes);
        let signature = signer.sign(&bytes, Namespace::Seal).unwrap();
        self.write(&format!("{prefix}seal.json.sig"), signature.as_bytes());
        Digest::of(&bytes)
    }
}

pub fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// Makes an array in `array`, which is empty.
pub fn make(array: &Path, spec: &Spec, keys: &Keys) -> Made {
    let root = array.join("motiongear");
    for folder in ["packs", "keys", "custody", "report", "copy/keys"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    let shipment = Shipment {
        format: 1,
        shipment: spec.shipment,
        site: Site { uuid: Uuid::from_u128(0xb0), name: spec.site.into() },
        label: "golden".into(),
        asset_tag: "A-0017".into(),
        block_bytes: BLOCK,
        suite: if spec.encrypted { Suite::Aes256GcmAge } else { Suite::Plaintext },
        recipients: if spec.encrypted { vec![keys.identity.recipient().to_string()] } else { vec![] },
        hash: "blake3".into(),
        checksum: "crc32".into(),
        media: vec![Medium { number: 1, uuid: Uuid::from_u128(0xa1), serial: "S3R1AL".into() }],
        created_at: time("2026-11-20T01:00:00Z"),
        tool: "make_golden".into(),
        signer: spec.sign_shipment.then(|| "li@province".to_owned()),
    };
    let mut pins = BTreeMap::new();
    let put = |file: &str, bytes: &[u8]| {
        fs::write(root.join(file), bytes).unwrap();
        fs::write(root.join("copy").join(file), bytes).unwrap();
    };
    let document = shipment.to_bytes().unwrap();
    put("shipment.json", &document);
    pins.insert("shipment.json".to_owned(), Digest::of(&document));
    if spec.sign_shipment {
        let signature = keys.signer.sign(&document, Namespace::Shipment).unwrap();
        put("shipment.json.sig", signature.as_bytes());
    }

    // The live manifest and the packs: one a writing process.
    let work = tempfile::tempdir().unwrap();
    let live = work.path().join("manifest.db");
    let mut catalogue = Catalogue::create(&live, &shipment).unwrap();
    let mut machines: BTreeMap<&str, u32> = BTreeMap::new();
    let mut sealed_disks = Vec::new();
    let mut pack_state: Option<(u32, Vec<u8>, u64)> = None;
    let mut packs = Vec::new();
    let mut encoder = None;
    let close = |state: &mut Option<(u32, Vec<u8>, u64)>, packs: &mut Vec<SealedPack>, catalogue: &mut Catalogue| {
        let Some((number, bytes, records)) = state.take() else { return };
        let mut digest = PackDigest::new();
        digest.update(&bytes);
        let blake3 = digest.finish().unwrap();
        let file = format!("packs/{}", pack_file_name(number));
        fs::write(root.join(&file), &bytes).unwrap();
        let progress =
            PackProgress { pack: number, bytes: bytes.len() as u64, records, digest: PackState::Closed(blake3) };
        catalogue.commit(&Batch { packs: vec![progress], block_bytes: BLOCK, ..Batch::default() }).unwrap();
        packs.push(SealedPack { file, medium: 1, bytes: bytes.len() as u64, records, blake3 });
    };
    for (index, disk) in spec.disks.iter().enumerate() {
        if index == 0 || index == spec.second_process_from {
            close(&mut pack_state, &mut packs, &mut catalogue);
            let process = catalogue.add_process("branch-host", "make_golden", time("2026-11-20T02:00:00Z")).unwrap();
            let key = spec.encrypted.then(|| {
                let key = ContentKey::generate().unwrap();
                let meta = EnvelopeMeta::new(spec.shipment, process);
                let envelope = wrap_key(&key, &meta, &[keys.identity.recipient()]).unwrap();
                put(&envelope_file(process), &envelope);
                catalogue.set_envelope(process, &Digest::of(&envelope)).unwrap();
                pins.insert(envelope_file(process), Digest::of(&envelope));
                RecordKey::new(key.as_bytes()).unwrap()
            });
            encoder = Some(Encoder::new(Arc::new(Writer::new(spec.shipment, process, key)), Some(1)).unwrap());
            let pack = catalogue.add_pack(1).unwrap();
            let header = PackHeader { shipment: spec.shipment, pack, medium: 1 };
            pack_state = Some((pack, header.encode().to_vec(), 0));
        }
        let machine = *machines.entry(disk.machine).or_insert_with_key(|name| {
            catalogue.add_machine(Uuid::new_v5_like(name), name, "{\"cpu\":\"test\"}").unwrap()
        });
        let uuid = Uuid::new_v5_like(&format!("{}/{}", disk.machine, disk.name));
        let number = catalogue.add_disk(uuid, machine, disk.name, "{}", "{}").unwrap();
        let geometry = Geometry::new(disk.bytes.len() as u64, BLOCK).unwrap();
        let new = NewGeneration {
            disk: number,
            number: 0,
            bytes: geometry.bytes(),
            consistency: Consistency::Consistent,
            basis: Basis::Asserted,
            point_in_time: Some("2026-11-20T02:00:00Z".into()),
            source: "/dev/test".into(),
        };
        let generation = catalogue.begin_generation(&new, time("2026-11-20T02:00:00Z")).unwrap();
        let (mut rows, mut blocks) = (Vec::new(), BlockCounts::default());
        for block in 0..geometry.blocks() {
            let offset = geometry.offset(block);
            let plain = &disk.bytes[offset as usize..][..geometry.len(block) as usize];
            let unreadable = disk.unreadable.is_some_and(|range| range.offset / u64::from(BLOCK) == block);
            let zero = plain.iter().all(|byte| *byte == 0);
            let state = match (unreadable, zero) {
                (true, _) => BlockState::Unreadable,
                (false, true) => BlockState::Zero,
                (false, false) => BlockState::Stored,
            };
            let (pack, bytes, records) = pack_state.as_mut().unwrap();
            let place = (!zero).then(|| {
                let mut out = vec![0; max_record_bytes(plain.len() as u32)];
                let id = RecordId { disk: number, generation: 0, block };
                let encoded = encoder.as_mut().unwrap().encode(id, plain, &mut out).unwrap();
                let place = Place {
                    pack: *pack,
                    offset: bytes.len() as u64,
                    stored_bytes: encoded.stored_bytes,
                    codec: encoded.codec,
                };
                bytes.extend_from_slice(&out[..encoded.record_bytes]);
                *records += 1;
                place
            });
            match state {
                BlockState::Zero => blocks.zero += 1,
                BlockState::Stored => blocks.stored += 1,
                BlockState::Unreadable => blocks.unreadable += 1,
            }
            rows.push((generation.id, BlockRow { block, leaf: leaf(offset, plain), state, place }));
        }
        let unreadable = disk.unreadable.iter().map(|range| (generation.id, *range)).collect();
        catalogue.commit(&Batch { rows, unreadable, block_bytes: BLOCK, ..Batch::default() }).unwrap();
        let digest = Digest::of(&disk.bytes);
        catalogue.finish_generation(generation.id, time("2026-11-20T03:00:00Z"), &digest).unwrap();
        sealed_disks.push(SealedDisk {
            id: number,
            machine: disk.machine.into(),
            disk: disk.name.into(),
            uuid,
            generation: 0,
            bytes: geometry.bytes(),
            block_bytes: BLOCK,
            digest,
            consistency: Consistency::Consistent,
            basis: Basis::Asserted,
            blocks,
        });
    }
    close(&mut pack_state, &mut packs, &mut catalogue);
    catalogue.finalise().unwrap();
    if !spec.sql.is_empty() {
        rusqlite::Connection::open(&live).unwrap().execute_batch(spec.sql).unwrap();
    }
    let plain = fs::read(&live).unwrap();
    let plain_sums = Sums::of(&plain);
    let (file, stored) = if spec.encrypted {
        let mut cipher = Vec::new();
        encrypt_stream(&plain[..], &mut cipher, &[keys.identity.recipient()]).unwrap();
        ("manifest.db.age", cipher)
    } else {
        ("manifest.db", plain)
    };
    put(file, &stored);
    let sums = Sums::of(&stored);
    let mut seal = Seal {
        format: 1,
        shipment: spec.shipment,
        site: shipment.site.clone(),
        signer: spec.signer.into(),
        sealed_at: time("2026-11-20T04:00:00Z"),
        supersedes: spec.supersedes,
        pins,
        manifest: ManifestPin {
            file: file.into(),
            bytes: sums.bytes,
            blake3: sums.blake3,
            sha256: sums.sha256,
            plain: PlainPin { bytes: plain_sums.bytes, blake3: plain_sums.blake3, sha256: plain_sums.sha256 },
        },
        packs,
        disks: sealed_disks,
        excluded: vec![],
        tool: "make_golden".into(),
    };
    if let Some(edit) = spec.edit_seal {
        edit(&mut seal);
    }
    let mut made = Made { array: array.to_owned(), root, seal, seal_digest: Digest::of(b"") };
    made.write_seal("copy/", &made.seal, &keys.signer);
    made.seal_digest = made.write_seal("", &made.seal, &keys.signer);
    made
}

/// Appends a custody event to an array.
pub fn add_event(made: &Made, keys: &Keys, number: u32, event: Event, previous: Option<Predecessor>) -> Predecessor {
    let document = CustodyEvent {
        format: 1,
        shipment: made.seal.shipment,
        seal: made.seal_digest,
        number,
        event,
        at: time("2026-11-20T05:00:00Z"),
        signer: if event == Event::Dispatched { SIGNER } else { "li@province" }.into(),
        person: "王".into(),
        box_seals: vec!["000123".into()],
        place: "branch".into(),
        note: String::new(),
        previous,
    };
    let bytes = document.to_bytes().unwrap();
    let key = if event == Event::Received { &keys.receiver } else { &keys.signer };
    let signature = key.sign(&bytes, Namespace::Custody).unwrap();
    let file = event_file(number, event);
    made.write(&file, &bytes);
    made.write(&format!("{file}.sig"), signature.as_bytes());
    Predecessor { event: Digest::of(&bytes), signature: Digest::of(signature.as_bytes()) }
}

/// UUIDs that depend on a name only.
trait NamedUuid {
    fn new_v5_like(name: &str) -> Uuid;
}

impl NamedUuid for Uuid {
    fn new_v5_like(name: &str) -> Uuid {
        let hash = blake3::hash(name.as_bytes());
        Uuid::from_slice(&hash.as_bytes()[..16]).unwrap()
    }
}
