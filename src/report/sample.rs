//! A made-up report for tests: one of everything, and hostile text wherever text comes from outside.

use super::facts::*;
use super::svg::MapBuilder;
use crate::custody::centre::{CentreFacts, Deed};
use crate::custody::road::EventFacts;
use crate::drill::record::*;
use crate::drill::{DrillFacts, Status};
use crate::openstack::server::{Nic, ServerPlan};
use crate::trust::Compared;
use jiff::Timestamp;
use motiongear_manifest::documents::custody::Event;
use motiongear_manifest::documents::seal::{Basis, BlockCounts, Consistency};
use motiongear_manifest::tree::Digest;
use uuid::Uuid;

pub(crate) fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn disk(number: u32, machine: &str, name: &str, gib: u64) -> Disk {
    let blocks = gib * 1024;
    let mut map = MapBuilder::new(blocks);
    for block in 0..blocks {
        // Looks like a file system: metadata all over, files in stretches.
        if block % 128 < 3 || (block / 700) % 5 < 3 {
            map.mark(block, Cell::Stored);
        }
    }
    let stored = blocks * 3 / 5;
    let digest = Digest::of(name.as_bytes());
    Disk {
        number,
        machine: machine.into(),
        name: name.into(),
        uuid: Uuid::from_u128(0x1000 + u128::from(number)),
        generation: 0,
        bytes: gib << 30,
        block_bytes: 1 << 20,
        digest,
        consistency: Consistency::Consistent,
        basis: Basis::Hook,
        point_in_time: Some("lvm snapshot pgdata-mg 2026-11-18T22:00:14Z".into()),
        source: format!("/dev/disk/by-id/wwn-0x5000c500a1b2c3d{number}"),
        started_at: at("2026-11-18T22:00:20Z"),
        finished_at: Some(at("2026-11-19T03:41:55Z")),
        identity: format!(
            "WWN naa.5000c500a1b2c3d{number} · serial ZC1A2B3C · gpt:9f3c1b2e-7d5a-4e1f-8a66-0d6c2b1a4e5f"
        ),
        identity_details: serde_json::json!({"kind": "block-device"}),
        contents: vec!["GPT, sectors of 512 bytes".into(), "1: vfat · 2: ext4 · 3: LVM2 member".into()],
        blocks: BlockCounts { stored, zero: blocks - stored, unreadable: 0 },
        classes: ByteClasses { stored: stored << 19, compressed_away: stored << 19, zero: (blocks - stored) << 20 },
        unreadable: vec![],
        unreadable_ranges: 0,
        unreadable_bytes: 0,
        map: map.finish(),
        at_source: Proof { read: blocks, trusted: 0 },
        at_medium: Proof { read: stored, trusted: 0 },
        imported: None,
    }
}

/// A report of either kind in which everything is good.
pub(crate) fn good(report: Kind) -> Facts {
    let seal_digest = Digest::of(b"seal");
    let mut facts = Facts {
        report,
        number: format!("{}-8JX2K4QM71ZV-20261120T130501Z", if report == Kind::Handover { "H" } else { "I" }),
        made_at: at("2026-11-20T13:05:01Z"),
        utc_offset_minutes: 480,
        tool: "motiongear 0.1.0".into(),
        host: "db01".into(),
        site: Site { name: "南溪支行".into(), uuid: Uuid::from_u128(7) },
        purpose: "Migration of the core banking hosts to the provincial data centre".into(),
        people: [Role::Bank, Role::Engineer, Role::Courier, Role::Receiver]
            .into_iter()
            .map(|role| Person { role, name: if role == Role::Engineer { "李伟 Li Wei".into() } else { String::new() } })
            .collect(),
        verdict: Verdict::Good,
        remarks: vec![],
        shipment: Shipment {
            uuid: Uuid::from_u128(0x55),
            label: "Nanxi-1".into(),
            asset_tag: "MG-ARRAY-014".into(),
            format: 1,
            block_bytes: 1 << 20,
            suite: "aes-256-gcm+age-x25519".into(),
            encrypted: true,
            signed: Some(true),
            created_at: at("2026-11-10T08:00:00Z"),
            media: vec![Medium { number: 1, uuid: Uuid::from_u128(0x66), serial: "WD-WX12A3456789, WD-WX12A3456790".into() }],
        },
        seal: Seal {
            digest: seal_digest,
            spoken_code: motiongear_manifest::code::spoken_code(&seal_digest),
            signer: "li.wei@南溪支行".into(),
            key: "SHA256:0v5D3v8pZ0m0m3eXoFq5W7yZb9m5x8j0Q1n2k3l4m5o".into(),
            signer_checked: true,
            compared: (report == Kind::Import).then_some(Compared::Code),
            sealed_at: at("2026-11-20T11:20:44Z"),
            supersedes: None,
            manifest_file: "manifest.db.age".into(),
            manifest_blake3: Digest::of(b"m"),
            manifest_plain_blake3: Digest::of(b"p"),
            packs: 92,
            pack_bytes: 735 << 30,
            records: 1_228_800,
            tool: "motiongear 0.1.0".into(),
        },
        box_seals: vec!["A 004411".into(), "A 004412".into()],
        recipients: vec![
            RecipientFacts {
                recipient: "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p".into(),
                fingerprint: "7KQ2-M9XD-41TV-C0ZR".into(),
            },
            RecipientFacts {
                recipient: "age1lggyhqrw2nlhcxprm67z43rta597azn8gknawjehu9d9dl0jq3yqqvfafg".into(),
                fingerprint: "0HSN-55E2-PGJK-WW81".into(),
            },
        ],
        machines: vec![
            Machine { name: "db01".into(), uuid: Uuid::from_u128(0x11), inventory: serde_json::json!({}), server: None },
            Machine { name: "app01".into(), uuid: Uuid::from_u128(0x12), inventory: serde_json::json!({}), server: None },
        ],
        disks: vec![disk(1, "db01", "system", 240), disk(2, "db01", "pgdata", 1800), disk(3, "app01", "root", 120)],
        excluded: vec![],
        verifications: vec![Verified { at: at("2026-11-20T12:58:10Z"), good: true, with_identity: false }],
        custody: vec![],
        centre: vec![],
        custody_notes: vec![],
        clock: Clock::Rtc { offset_seconds: -2 },
        processes: vec![
            Process {
                number: 1,
                host: "db01".into(),
                tool: "motiongear 0.1.0".into(),
                started_at: at("2026-11-18T22:00:10Z"),
                ended_at: Some(at("2026-11-19T03:41:56Z")),
                ending: Some("finished".into()),
                interrupted: false,
            },
        ],
        drills: vec![],
        import_runs: vec![ImportRun {
            target: "dir:/srv/volumes".into(),
            tool: "motiongear 0.1.0".into(),
            engine: "io_uring".into(),
            insecure_http: false,
            started_at: at("2026-11-21T08:30:00Z"),
            ended_at: Some(at("2026-11-21T12:05:11Z")),
            ending: Some("finished".into()),
            interrupted: false,
        }],
        events: vec![],
        host_writes: vec![Happening {
            at: at("2026-11-20T13:05:01Z"),
            kind: "host-write".into(),
            object: "db01".into(),
            detail: "/var/lib/motiongear/shipments/…/manifest.db (140 MiB), /var/lib/motiongear/ledger.db".into(),
        }],
        commands: vec![
            Command { repeats: Repeat::SealDigest, command: "b3sum seal.json".into(), expected: Some(seal_digest.to_string()) },
            Command {
                repeats: Repeat::SealSignature,
                command: "ssh-keygen -Y verify -f ALLOWED_SIGNERS -I 'li.wei@南溪支行' -n motiongear-seal -s seal.json.sig < seal.json".into(),
                expected: None,
            },
        ],
        notes: vec![],
    };
    if report == Kind::Import {
        for disk in &mut facts.disks {
            let blocks = disk.block_count();
            disk.imported = Some(Imported {
                target: format!("dir:/srv/volumes/南溪支行/{}/{}.raw", disk.machine, disk.name),
                started_at: at("2026-11-22T08:00:00Z"),
                finished_at: Some(at("2026-11-22T12:10:00Z")),
                readback: Readback::Full,
                medium: Proof { read: disk.blocks.stored, trusted: 0 },
                volume: Proof { read: blocks, trusted: 0 },
                holes: 0,
                through_cache: false,
                digest: Some(disk.digest),
                damaged: 0,
                damaged_blocks: vec![],
                head_released: true,
                accepted_unreadable: false,
                recovery_point: Some("motiongear-gen0-rqr6vqva8c3t (0f6a…) of volume 22c6…".into()),
                check: None,
            });
        }
        for (number, event) in [(1, Event::Dispatched), (2, Event::Received)] {
            facts.custody.push(EventFacts {
                number,
                event,
                at: at(if number == 1 { "2026-11-20T14:00:00Z" } else { "2026-11-21T09:30:00Z" }),
                signer: if number == 1 { "li.wei@南溪支行".into() } else { "wang.fang@省数据中心".into() },
                key: "SHA256:0v5D3v8pZ0m0m3eXoFq5W7yZb9m5x8j0Q1n2k3l4m5o".into(),
                signer_checked: true,
                person: if number == 1 { "张师傅 (courier)".into() } else { "王芳".into() },
                box_seals: vec!["A 004411".into(), "A 004412".into()],
                place: if number == 1 { "南溪支行机房".into() } else { "省数据中心 2 号门".into() },
                note: String::new(),
                file: format!("{number:04}-{}.json", event.word()),
                document: Digest::of(b"event"),
            });
        }
        facts.centre.push(CentreFacts {
            number: 1,
            event: Deed::Imported,
            at: at("2026-11-22T12:30:00Z"),
            signer: "wang.fang@省数据中心".into(),
            key: "SHA256:0v5D3v8pZ0m0m3eXoFq5W7yZb9m5x8j0Q1n2k3l4m5o".into(),
            signer_checked: true,
            seal: facts.seal.digest,
            known_custody: Some(2),
            note: "report I-7KQ29XD40M5S-20261122T123000Z".into(),
            file: "/var/lib/motiongear/custody/…/centre/0001-imported.json".into(),
            document: Digest::of(b"deed"),
        });
        facts.machines[0].server = Some(ServerPlan {
            flavour: Some("bank.large".into()),
            nics: vec![Nic {
                network: "ledger".into(),
                fixed_ip: Some([10, 2, 0, 5].into()),
                mac: Some("fa:16:3e:00:00:0a".into()),
            }],
        });
        facts.drills = vec![drilled(&facts.disks[0], facts.seal.digest)];
    }
    facts.judge();
    facts
}

/// A drill that came up and was confirmed as passed.
fn drilled(disk: &Disk, seal: Digest) -> Drilled {
    let drill = Uuid::from_u128(0xd1);
    let plan = Drill {
        format: 1,
        drill,
        site: Uuid::from_u128(1),
        site_name: "南溪支行".into(),
        machine: disk.machine.clone(),
        disks: vec![DrillDisk {
            name: disk.name.clone(),
            uuid: disk.uuid,
            base: Base::Snapshot {
                volume: "cinder:bank/南溪支行/db01/sda".into(),
                point: "motiongear-gen0-rqr6vqva8c3t".into(),
            },
            bytes: disk.bytes,
            shipment: Uuid::from_u128(2),
            seal,
            generation: 0,
            digest: disk.digest,
            boots: true,
        }],
        boot_disk: Some(disk.name.clone()),
        marker: None,
        within_seconds: 600,
        memory_bytes: 2 << 30,
        cpus: 1,
        firmware: Firmware::Bios,
        bus: Bus::Virtio,
        accel: Accel::Kvm,
        compute: None,
        network: None,
        adapt: None,
        notes: vec![],
        made_at: at("2026-11-22T13:00:00Z"),
        tool: "motiongear 0.1.0".into(),
    };
    let course = Course {
        format: 1,
        drill,
        keeper: 4711,
        state: State::Off,
        booted_at: Some(at("2026-11-22T13:00:04Z")),
        qemu: Some("10.0".into()),
        server: None,
        seen: Some(Seen { sign: Sign::Login, milliseconds: 21_400 }),
        silent: false,
        failure: None,
        last_lines: vec![],
        stood_seconds: 0,
        stands: false,
        ended_by_request: true,
        picture: Some(Pinned { file: "picture.png".into(), bytes: 3, blake3: Digest::of(b"PNG") }),
        screen: None,
        off_at: Some(at("2026-11-22T14:00:00Z")),
        words: None,
        adaptation: None,
        unproven_blocks: 0,
        troubles: Vec::new(),
    };
    let confirmation = Confirmation {
        format: 1,
        drill,
        site_name: plan.site_name.clone(),
        machine: plan.machine.clone(),
        passed: true,
        person: "赵敏".into(),
        note: "yesterday's closing balance is right".into(),
        signer: "zhao.min@省数据中心".into(),
        confirmed_at: at("2026-11-22T13:40:00Z"),
        course: course.clone(),
        evidence: vec![],
        tool: "motiongear 0.1.0".into(),
    };
    Drilled {
        facts: DrillFacts {
            drill: plan,
            course: Some(course),
            status: Status::Ended,
            confirmation: Some(confirmation),
            withdrawn: vec![],
            key: Some("SHA256:0v5D3v8pZ0m0m3eXoFq5W7yZb9m5x8j0Q1n2k3l4m5o".into()),
            signer_checked: true,
            signer_refused: false,
            altered: vec![],
            ended_at: Some(at("2026-11-22T14:00:01Z")),
            evidence: "/var/lib/motiongear/drills/00000000-0000-0000-0000-0000000000d1".into(),
        },
        picture: Some("UE5H".into()),
    }
}

/// A report with one of every misfortune.
pub(crate) fn bad(report: Kind) -> Facts {
    let mut facts = good(report);
    facts.shipment.encrypted = false;
    facts.recipients.clear();
    facts.seal.signer_checked = false;
    facts.verifications.push(Verified { at: at("2026-11-20T13:00:00Z"), good: false, with_identity: true });
    facts.excluded.push(Excluded {
        machine: "app01".into(),
        name: "scratch".into(),
        reason: "temporary files only; agreed with Ms Zhao".into(),
    });
    facts.processes.push(Process {
        number: 2,
        host: "db01".into(),
        tool: "motiongear 0.1.0".into(),
        started_at: at("2026-11-19T20:00:00Z"),
        ended_at: None,
        ending: None,
        interrupted: true,
    });
    facts.import_runs.insert(
        0,
        ImportRun {
            target: "dir:/srv/volumes".into(),
            tool: "motiongear 0.1.0".into(),
            engine: "threads".into(),
            insecure_http: true,
            started_at: at("2026-11-21T08:01:00Z"),
            ended_at: None,
            ending: None,
            interrupted: true,
        },
    );
    facts.events.push(Happening {
        at: at("2026-11-19T20:10:00Z"),
        kind: "skipped".into(),
        object: "db01/pgdata".into(),
        detail: "medium error at byte 4096".into(),
    });
    if let Some(said) = facts.drills.iter_mut().find_map(|drilled| drilled.facts.confirmation.as_mut()) {
        said.passed = false;
    }
    facts.custody_notes.push("Custody: 0002-received.json is no part of the chain and was not believed".into());
    facts.notes.push("copy/seal.json: an older seal, superseded by seal.json, which is used".into());
    if let Some(disk) = facts.disks.get_mut(1) {
        disk.consistency = Consistency::Fuzzy;
        disk.basis = Basis::None;
        disk.point_in_time = None;
        disk.blocks.unreadable = 2;
        disk.blocks.stored -= 2;
        disk.unreadable = vec![Range { offset: 812_646_400, bytes: 4096 }, Range { offset: 934_281_216, bytes: 65536 }];
        disk.unreadable_ranges = 2;
        disk.unreadable_bytes = 69632;
        let mut cells: Vec<char> = disk.map.cells.chars().collect();
        cells[200] = 'u';
        cells[331] = 'u';
        cells[540] = 'd';
        disk.map.cells = cells.into_iter().collect();
        if let Some(import) = &mut disk.imported {
            import.damaged = 1;
            import.damaged_blocks = vec![1_265_432];
            import.head_released = false;
            import.digest = None;
            import.volume.trusted = 1;
            import.volume.read -= 1;
            import.through_cache = true;
        }
    }
    facts.judge();
    facts
}
