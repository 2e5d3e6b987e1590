//! Goal: what `seed` puts onto the array is the disk, whatever the disk is, and stock tools can tell.
//!
//! Method: the real binary over real disks: file systems made by their own tools, in files and on loop devices, with both
//! engines. After sealing, `b3sum`, `ssh-keygen`, `sqlite3`, `age` and the stand-alone checker (which decrypts every record
//! and compares its leaf) judge; nothing of the seed path is trusted to test itself. Interruptions are in `interrupt` and
//! `crash`.

use crate::common::{self, Branch, Loop, Place, b3sum, disk, disks, loop_device, noise, sparse, sql, tool, write_at};
use serde_json::Value;
use std::path::Path;

const MIB: u64 = 1 << 20;
pub const ENGINES: [&str; 2] = ["uring", "threads"];

/// Seals, and has every digest and count confirmed by tools that are not ours.
fn seal_and_check(branch: &Branch, sources: &[(&str, &Path)]) -> Value {
    branch.seal();
    branch.check_with_stock_tools();
    branch.check_stand_alone();
    let seal = branch.seal_json();
    for (name, path) in sources {
        let sealed = disk(&seal["disks"], name);
        assert_eq!(sealed["digest"], b3sum(path), "digest of {name} and b3sum of {}", path.display());
    }
    seal
}

#[test]
fn disks_of_every_kind_are_what_b3sum_says() {
    for engine in ENGINES {
        let branch = Branch::ready();
        let place = &branch.place;
        let paths = ["gpt", "xfs", "ntfs", "luks", "zero", "random"].map(|name| (name, place.join(name)));
        let at = |name: &str| &paths.iter().find(|(n, _)| *n == name).unwrap().1;
        disks::sample_disk(at("gpt"));
        disks::xfs_disk(place, at("xfs"));
        disks::ntfs_disk(place, at("ntfs"));
        disks::luks_disk(at("luks"));
        sparse(at("zero"), 40 * MIB);
        // Zeros that are really there, behind holes.
        write_at(at("zero"), 7 * MIB, &vec![0; 3 * MIB as usize]);
        noise(at("random"), 20 * MIB, 41);
        // Half of them as files, half as devices.
        let devices = ["xfs", "luks", "zero"].map(|name| (name, loop_device(at(name))));
        let sources: Vec<(&str, &Path)> = paths
            .iter()
            .map(|(name, path)| {
                let device = devices.iter().find(|(n, _)| n == name).map(|(_, device)| device.path());
                (*name, device.unwrap_or(path))
            })
            .collect();
        let result = branch.seed(&sources, &["--engine", engine]).ok();
        assert_eq!(result["plan"]["engine"], if engine == "uring" { "io_uring" } else { "threads" });
        let seal = seal_and_check(&branch, &sources);
        assert_eq!(seal["disks"].as_array().unwrap().len(), 6);
        for (name, path) in &paths {
            let (seeded, sealed) = (disk(&result["disks"], name), disk(&seal["disks"], name));
            assert_eq!(seeded["digest"], sealed["digest"]);
            assert_eq!(seeded["blocks"], sealed["blocks"]);
            assert_eq!(sealed["bytes"], path.metadata().unwrap().len());
            assert_eq!(sealed["consistency"], "fuzzy", "{name}: nobody said that it stands still");
            let counts = ["stored", "zero", "unreadable"].map(|kind| sealed["blocks"][kind].as_u64().unwrap());
            assert_eq!(counts.iter().sum::<u64>(), path.metadata().unwrap().len().div_ceil(MIB), "{name}");
        }
        assert_eq!(disk(&seal["disks"], "zero")["blocks"]["stored"], 0);
        assert_eq!(disk(&seal["disks"], "random")["blocks"]["zero"], 0);
        drop(devices);
        // The manifest travels encrypted; what the stock tool makes of it is the ledger's own file, byte by byte.
        let plain = place.join("opened.db");
        let identity = branch.identity.to_str().unwrap();
        let sealed_manifest = branch.on("manifest.db.age");
        tool("age", ["-d", "-i", identity, "-o", plain.to_str().unwrap(), sealed_manifest.to_str().unwrap()]);
        assert_eq!(b3sum(&plain), seal["manifest"]["plain"]["blake3"]);
        assert_eq!(b3sum(&branch.live_manifest()), seal["manifest"]["plain"]["blake3"]);
        assert_eq!(sql(&plain, "PRAGMA integrity_check"), "ok");
        let envelope = tool("age", ["-d", "-i", identity, branch.on("keys/0001.age").to_str().unwrap()]);
        assert!(
            envelope.contains(branch.shipment_json()["shipment"].as_str().unwrap()),
            "the envelope names its shipment"
        );
    }
}

#[test]
fn a_plaintext_manifest_opens_in_sqlite3_and_agrees_with_the_seal() {
    let branch = Branch::new();
    branch.init(&["--plaintext"]);
    let (a, b) = (branch.place.join("a.img"), branch.place.join("b.img"));
    disks::sample_disk(&a);
    noise(&b, 5 * MIB + 700, 3);
    branch.seed(&[("sda", &a), ("sdb", &b)], &[]).ok();
    let seal = seal_and_check(&branch, &[("sda", &a), ("sdb", &b)]);
    assert!(branch.on("keys").read_dir().unwrap().next().is_none(), "no key without encryption");
    let manifest = branch.on("manifest.db");
    assert_eq!(sql(&manifest, "PRAGMA integrity_check"), "ok");
    for table in ["shipment", "site", "machine", "disk", "generation", "block", "pack", "medium", "unreadable"] {
        sql(&manifest, &format!("SELECT count(*) FROM {table}"));
    }
    for sealed in seal["disks"].as_array().unwrap() {
        let id = &sealed["id"];
        let count = |state: u32| {
            let query = format!(
                "SELECT count(*) FROM block JOIN generation g ON g.id = block.generation WHERE g.disk = {id} AND state = {state}"
            );
            sql(&manifest, &query).parse::<u64>().unwrap()
        };
        let states = sql(&manifest, "SELECT DISTINCT state FROM block ORDER BY state");
        let by_state: Vec<u64> = states.lines().map(|s| count(s.parse().unwrap())).collect();
        let blocks = &sealed["blocks"];
        let mut sealed_counts: Vec<u64> =
            ["stored", "zero", "unreadable"].iter().map(|kind| blocks[*kind].as_u64().unwrap()).collect();
        sealed_counts.retain(|n| *n > 0);
        let mut found: Vec<u64> = by_state.into_iter().filter(|n| *n > 0).collect();
        found.sort_unstable();
        sealed_counts.sort_unstable();
        assert_eq!(found, sealed_counts, "{sealed}");
        let digest = sql(&manifest, &format!("SELECT lower(hex(digest)) FROM generation WHERE disk = {id}"));
        assert_eq!(digest, sealed["digest"]);
    }
    // And what lies in the packs is the disk: here, unencrypted and uncompressed, to be seen with the naked eye.
    let branch = Branch::new();
    branch.init(&["--plaintext"]);
    branch.seed(&[("sdb", &b)], &["--codec", "none"]).ok();
    let pack = std::fs::read(&branch.packs()[0]).unwrap();
    let bytes = std::fs::read(&b).unwrap();
    let start = bytes[..64].to_vec();
    assert!(pack.windows(64).any(|window| window == start));
}

#[test]
fn an_encrypted_array_shows_no_content() {
    let branch = Branch::ready();
    let image = branch.place.join("disk");
    let secret = b"account 6222 0000 1111 2222, balance 31415926.53; ";
    std::fs::write(&image, secret.repeat(200_000)).unwrap();
    for codec in ["none", "zstd:1"] {
        branch
            .seed(&[("sda", &image), ("again", &common_copy(&branch, &image, codec))], &["--codec", codec, "--reopen"]);
    }
    branch.seal();
    for entry in walk(&branch.array) {
        let bytes = std::fs::read(&entry).unwrap();
        assert!(!bytes.windows(secret.len()).any(|w| w == secret), "{} shows content", entry.display());
        assert!(!bytes.starts_with(b"SQLite format 3"), "{} is a plain database", entry.display());
    }
}

fn common_copy(branch: &Branch, image: &Path, name: &str) -> std::path::PathBuf {
    let copy = branch.place.join(format!("copy-{}", name.replace(':', "-")));
    if !copy.exists() {
        std::fs::copy(image, &copy).unwrap();
    }
    copy
}

fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(walk(&path)),
            false => found.push(path),
        }
    }
    found
}

#[test]
fn odd_sizes_are_exact() {
    for (engine, block) in [("uring", "1MiB"), ("threads", "64KiB"), ("uring", "16MiB"), ("threads", "1MiB")] {
        let branch = Branch::new();
        branch.init(&["--block-size", block]);
        let block_bytes = branch.shipment_json()["block_bytes"].as_u64().unwrap();
        let sizes = [
            0,
            1,
            511,
            512,
            4096,
            block_bytes - 1,
            block_bytes,
            block_bytes + 1,
            2 * block_bytes,
            2 * block_bytes + 513,
            3 * block_bytes - 4095,
        ];
        let files: Vec<_> = sizes
            .iter()
            .map(|size| {
                let path = branch.place.join(format!("d{size}"));
                noise(&path, *size, *size + 5);
                (format!("d{size}"), path)
            })
            .collect();
        let zeros = branch.place.join("zeros");
        sparse(&zeros, block_bytes + 100);
        let one_zero = branch.place.join("one-zero");
        sparse(&one_zero, 100);
        let mut sources: Vec<(&str, &Path)> =
            files.iter().map(|(name, path)| (name.as_str(), path.as_path())).collect();
        sources.extend([("zeros", zeros.as_path()), ("one-zero", one_zero.as_path())]);
        branch.seed(&sources, &["--engine", engine]).ok();
        // Running it again finds all done and reads nothing.
        let again = branch.seed(&sources, &["--engine", engine]).ok();
        for seeded in again["disks"].as_array().unwrap() {
            assert_eq!(seeded["read_bytes"], 0, "{seeded}");
            assert_eq!(seeded["skipped_bytes"], seeded["bytes"]);
        }
        let seal = seal_and_check(&branch, &sources);
        for (name, path) in &sources {
            assert_eq!(
                disk(&seal["disks"], name)["bytes"],
                path.metadata().unwrap().len(),
                "{name} in blocks of {block}"
            );
        }
    }
}

#[test]
fn devices_with_sectors_of_4_kib_and_odd_files_behind_them() {
    let branch = Branch::ready();
    let paths = ["s4096", "s512", "tail"].map(|name| branch.place.join(name));
    noise(&paths[0], 3 * MIB + 4096, 51);
    noise(&paths[1], 2 * MIB + 512, 52);
    // A loop device rounds down to its sectors: what hangs over is not on the disk.
    noise(&paths[2], MIB + 4096 + 300, 53);
    let devices = [
        Loop::attach(&paths[0], &["--sector-size", "4096"]),
        Loop::attach(&paths[1], &["--sector-size", "512"]),
        Loop::attach(&paths[2], &["--sector-size", "4096"]),
    ];
    for engine in ENGINES {
        let branch = Branch::ready();
        let sources: Vec<_> = ["s4096", "s512", "tail"].into_iter().zip(devices.iter().map(Loop::path)).collect();
        branch.seed(&sources, &["--engine", engine]).ok();
        let seal = seal_and_check(&branch, &sources);
        assert_eq!(disk(&seal["disks"], "s4096")["bytes"], 3 * MIB + 4096);
        assert_eq!(disk(&seal["disks"], "s512")["bytes"], 2 * MIB + 512);
        assert_eq!(disk(&seal["disks"], "tail")["bytes"], MIB + 4096);
    }
}

#[test]
fn holes_are_not_read_and_not_stored() {
    let branch = Branch::ready();
    let image = branch.place.join("holes");
    sparse(&image, 600 * MIB);
    let file = std::fs::File::options().write(true).open(&image).unwrap();
    disks::noise_at(&file, 0, 70_000, 1);
    disks::noise_at(&file, 300 * MIB - 1, 2, 2);
    disks::noise_at(&file, 600 * MIB - 10, 10, 3);
    file.sync_all().unwrap();
    let result = branch.seed(&[("sda", &image)], &[]).ok();
    let seeded = &result["disks"][0];
    assert_eq!(seeded["blocks"]["stored"], 4);
    assert_eq!(seeded["blocks"]["zero"], 596);
    assert!(seeded["read_bytes"].as_u64().unwrap() <= 4 * MIB, "{seeded}");
    assert_eq!(seeded["digest"], b3sum(&image));
    let packs: u64 = branch.packs().iter().map(|p| p.metadata().unwrap().len()).sum();
    assert!(packs < 2 * MIB, "{packs} bytes for three patches of data");
    assert_eq!(allocated_is_unchanged(&image), 600 * MIB);
}

/// A source is read and nothing else: its length, for an assertion; its holes must still be holes.
fn allocated_is_unchanged(path: &Path) -> u64 {
    assert!(disks::allocated(path) < 2 * MIB, "{} lost its holes", path.display());
    path.metadata().unwrap().len()
}

#[test]
fn sources_are_opened_read_only() {
    // A device that cannot be written is as good as any other, and one that can is the same afterwards.
    let branch = Branch::ready();
    let (a, b) = (branch.place.join("a"), branch.place.join("b"));
    noise(&a, 3 * MIB, 61);
    noise(&b, 3 * MIB, 62);
    let before = (b3sum(&a), b3sum(&b), b.metadata().unwrap().modified().unwrap());
    let read_only = Loop::attach(&a, &["--read-only"]);
    branch.seed(&[("sda", read_only.path()), ("sdb", &b)], &[]).ok();
    drop(read_only);
    assert_eq!(before, (b3sum(&a), b3sum(&b), b.metadata().unwrap().modified().unwrap()));
}

#[test]
fn several_machines_by_a_plan_with_limits_windows_and_an_excluded_disk() {
    let branch = Branch::ready();
    let paths = ["one", "two", "three"].map(|name| branch.place.join(name));
    for (at, path) in paths.iter().enumerate() {
        noise(path, 4 * MIB, 70 + at as u64);
    }
    let plan = format!(
        r#"
[limits]
read = "500MiB"
cpu = 90
jobs = 2
[[window]]
from = "00:00"
to = "24:00"
rate = "400MiB"
zone = "Asia/Shanghai"
[[machine]]
name = "db01"
uuid = "6f2f5f0e-8f83-4a0e-9a55-0a2a9f3f0a11"
[[machine.disk]]
name = "sda"
source = "{}"
point_in_time = true
[[machine.disk]]
name = "sdc"
source = "/dev/does-not-exist"
exclude = "scratch only, by Li's decision"
[[machine]]
name = "app01"
[[machine.disk]]
name = "sda"
uuid = "6f2f5f0e-8f83-4a0e-9a55-0a2a9f3f0a12"
source = "{}"
[[machine.disk]]
name = "sdb"
source = "{}"
"#,
        paths[0].display(),
        paths[1].display(),
        paths[2].display()
    );
    let plan = branch.place.file("plan.toml", plan);
    let dry = branch.on_array("seed", ["--plan".as_ref(), plan.as_os_str(), "--dry-run".as_ref()]).ok();
    assert_eq!(dry["dry_run"], true);
    assert!(branch.packs().is_empty() && !branch.on("holder.json").exists(), "a dry run leaves the array alone");
    let result = branch.on_array("seed", ["--plan".as_ref(), plan.as_os_str()]).ok();
    assert_eq!(result["disks"].as_array().unwrap().len(), 3);
    branch.seal();
    branch.check_with_stock_tools();
    branch.check_stand_alone();
    let seal = branch.seal_json();
    let sealed: Vec<_> = seal["disks"].as_array().unwrap().iter().collect();
    let named = |machine: &str, name: &str| -> Value {
        let found = sealed.iter().find(|d| d["machine"] == machine && d["disk"] == name);
        (*found.unwrap_or_else(|| panic!("{seal}"))).clone()
    };
    assert_eq!(named("db01", "sda")["digest"], b3sum(&paths[0]));
    assert_eq!(named("app01", "sda")["digest"], b3sum(&paths[1]));
    assert_eq!(named("app01", "sdb")["digest"], b3sum(&paths[2]));
    assert_eq!(named("app01", "sda")["uuid"], "6f2f5f0e-8f83-4a0e-9a55-0a2a9f3f0a12");
    assert_eq!(named("db01", "sda")["consistency"], "consistent");
    assert_eq!(named("db01", "sda")["basis"], "asserted", "asserted, and recorded as such");
    assert_eq!(named("app01", "sda")["consistency"], "fuzzy");
    assert_eq!(seal["excluded"][0]["disk"], "sdc");
    assert_eq!(seal["excluded"][0]["reason"], "scratch only, by Li's decision");
}

#[test]
fn a_terabyte_of_holes_needs_little_memory() {
    let branch = Branch::ready();
    let image = branch.place.join("big");
    sparse(&image, 1 << 40);
    let file = std::fs::File::options().write(true).open(&image).unwrap();
    // 1 GiB in sixteen places, the last one at the very end.
    let places: Vec<u64> = (0..16u64).map(|i| i * ((1 << 40) - 64 * MIB) / 15).collect();
    for (at, start) in places.iter().enumerate() {
        disks::noise_at(&file, *start, 64 * MIB, 900 + at as u64);
    }
    file.sync_all().unwrap();
    let (ran, peak) = branch.seed_command(&[("sda", &image)], &[]).start().wait_with_peak();
    let result = ran.ok();
    println!("1 TiB with 1 GiB of data: {} s, {} MiB resident at most", result["seconds"], peak >> 20);
    assert!(peak <= 256 * MIB, "{} MiB resident", peak >> 20);
    let seeded = &result["disks"][0];
    // A place that begins within a block touches 65 of them.
    let stored = seeded["blocks"]["stored"].as_u64().unwrap();
    assert!((1024..=1040).contains(&stored), "{seeded}");
    assert!(seeded["read_bytes"].as_u64().unwrap() <= 1040 * MIB);
    branch.seal();
    // b3sum over a TiB takes minutes; the leaves are compared by the checker, and the root with b3sum in all other tests.
    branch.check_with_stock_tools();
    seal_is_the_digest_of(&branch, &image, &places);
    // And into a volume, on the same host, which knows the leaves of zeros by now.
    let dir = branch.place.dir("volumes");
    let import = branch
        .motiongear()
        .args(["--json", "import"])
        .arg(&branch.array)
        .args(["--to", &format!("dir:{}", dir.display())]);
    let started = import.arg("--trust").arg(&branch.trust).arg("--identity").arg(&branch.identity).start();
    let (ran, peak) = started.wait_with_peak();
    ran.ok();
    println!("imported: {} MiB resident at most", peak >> 20);
    assert!(peak <= 256 * MIB, "{} MiB resident", peak >> 20);
    let volume = dir.join(common::SITE).join("db01/sda.raw");
    assert_eq!(volume.metadata().unwrap().len(), 1 << 40);
    assert!(disks::allocated(&volume) < 1100 * MIB, "the volume is sparse");
    for start in places {
        let skip = start.to_string();
        tool(
            "cmp",
            ["--bytes", "67108864", "--ignore-initial", &skip, image.to_str().unwrap(), volume.to_str().unwrap()],
        );
    }
}

/// The digest of a disk whose data lie in `places`, computed by the blake3 library's own subtree interface over the file; the
/// leaves of zeros come from the host's cache, a sample of which is hashed again.
fn seal_is_the_digest_of(branch: &Branch, image: &Path, places: &[u64]) {
    use motiongear_manifest::tree::{Merger, leaf};
    use std::os::unix::fs::FileExt;
    let cache = std::fs::read(branch.state.join("zero/1048576.leaves")).unwrap();
    let file = std::fs::File::open(image).unwrap();
    let blocks = (1u64 << 40) / MIB;
    let mut merger = Merger::new();
    let mut buffer = vec![0; MIB as usize];
    let zeros = vec![0; MIB as usize];
    for block in 0..blocks {
        let start = block * MIB;
        let value = if places.iter().any(|p| start < p + 64 * MIB && *p < start + MIB) {
            file.read_exact_at(&mut buffer, start).unwrap();
            leaf(start, &buffer)
        } else {
            // Segments of sixteen leaves, each with its checksum behind it: src/copy/zeros.rs.
            let at = ((block / 16) * (16 * 32 + 32) + (block % 16) * 32) as usize;
            let cached = motiongear_manifest::tree::Leaf::from_slice(&cache[at..at + 32]).unwrap();
            if block % 1009 == 0 {
                assert_eq!(cached, leaf(start, &zeros), "zero leaf of block {block}");
            }
            cached
        };
        merger.push(value);
    }
    assert_eq!(branch.seal_json()["disks"][0]["digest"], merger.finish().unwrap().to_string());
}

#[test]
fn what_is_wrong_is_refused_before_anything_is_written() {
    let branch = Branch::ready();
    let image = branch.place.join("disk");
    noise(&image, MIB, 1);
    let refuse = |disks: &[(&str, &Path)], extra: &[&str], code: i32, parts: &[&str]| {
        branch.seed(disks, extra).refused(code, parts);
        assert!(branch.packs().is_empty(), "{parts:?} left a pack");
    };
    refuse(&[("sda", &branch.place.join("nothing"))], &[], 1, &["nothing"]);
    refuse(&[("sda", branch.place.path())], &[], 2, &["directory"]);
    refuse(&[("sda", Path::new("/dev/null"))], &[], 2, &["character device"]);
    refuse(&[("sda", &image), ("sdb", &image)], &[], 2, &["same"]);
    refuse(&[("sda", &image), ("sda", &image)], &[], 2, &["sda"]);
    refuse(&[("a/b", &image)], &[], 2, &["name"]);
    refuse(&[("..", &image)], &[], 2, &["name"]);
    refuse(&[("sda", &image)], &["--codec", "zip"], 2, &["zstd:1"]);
    for rate in ["fast", "0", "0MiB", "80"] {
        refuse(&[("sda", &image)], &["--read-limit", rate], 2, &[rate]);
    }
    refuse(&[("sda", &image)], &["--cpu-limit", "0"], 2, &[]);
    let inside = branch.array.join("image");
    noise(&inside, MIB, 2);
    refuse(&[("sda", &inside)], &[], 2, &["onto itself", "found a file on the transport array"]);
    // A plan with a key that nobody knows: named with its line, nothing done.
    for (text, parts) in [
        ("[[machine]]\nname = \"db01\"\nowner = \"Li\"\n", ["Line 3", "owner"]),
        ("[limits]\nreed = \"1MiB\"\n", ["Line 2", "reed"]),
        (
            "[[machine]]\nname = \"db01\"\n[[machine.disk]]\nname = \"a\"\nsource = \"/dev/sda\"\nmode = 1\n",
            ["Line 6", "mode"],
        ),
        ("[[machine]]\nname = \"db/01\"\n[[machine.disk]]\nname = \"a\"\nsource = \"/dev/sda\"\n", ["Line 2", "db/01"]),
        ("[[machine]]\nname = \"db01\"\n", ["disk", "found none"]),
        ("machine = 3", ["Line 1", "expected a sequence"]),
    ] {
        let plan = branch.place.file("plan.toml", text);
        branch.on_array("seed", ["--plan".as_ref(), plan.as_os_str()]).refused(2, &parts);
    }
    assert!(branch.packs().is_empty());
    // No array, and an array that was never prepared.
    let mut other = Branch::new();
    other.seed(&[("sda", &image)], &[]).refused(1, &["init"]);
    other.array = other.place.join("not-mounted");
    other.seed(&[("sda", &image)], &[]).refused(1, &["init"]);
}

#[test]
fn init_refuses_what_is_no_fresh_array() {
    let branch = Branch::new();
    let arguments = ["--site", "s", "--plaintext"];
    let allowed = |extra: &[&'static str]| [&arguments[..], &["--allow-system-disk"], extra].concat();
    // target/ may lie on another disk than / : the system disk is tried where it surely is.
    let system = tempfile::Builder::new().prefix("mg-").tempdir_in("/var/tmp").unwrap();
    use std::os::unix::fs::MetadataExt;
    if system.path().metadata().unwrap().dev() == Path::new("/").metadata().unwrap().dev() {
        let ran = branch.run([&["init", system.path().to_str().unwrap()][..], &arguments].concat());
        ran.refused(1 + i32::from(ran.code == 2), &["system disk", "--allow-system-disk"]);
        assert!(system.path().read_dir().unwrap().next().is_none());
    }
    branch.on_array("init", allowed(&["--dry-run"])).ok();
    assert!(branch.array.read_dir().unwrap().next().is_none(), "a dry run writes nothing");
    branch.on_array("init", ["--site", "s", "--allow-system-disk"]).refused(2, &["--recipient"]);
    branch
        .on_array("init", ["--site", "s", "--allow-system-disk", "--recipient", "age1nonsense"])
        .refused(2, &["age1nonsense"]);
    branch.on_array("init", allowed(&["--block-size", "1000000"])).refused(2, &["1000000"]);
    branch.on_array("init", allowed(&["--block-size", "32MiB"])).refused(2, &["16"]);
    branch.on_array("init", ["--site", "a/b", "--plaintext", "--allow-system-disk"]).refused(2, &["a/b"]);
    assert!(branch.array.read_dir().unwrap().next().is_none(), "what was refused wrote nothing");
    // Somebody else's files below motiongear/.
    std::fs::create_dir_all(branch.on("packs")).unwrap();
    std::fs::write(branch.on("packs/00000001.pack"), b"somebody's").unwrap();
    branch.on_array("init", allowed(&[])).refused(1, &["expected no shipment"]);
    std::fs::remove_dir_all(branch.on("")).unwrap();
    // Prepared, half copied, sealed: each refused, each with the way out.
    branch.on_array("init", allowed(&[])).ok();
    branch.on_array("init", allowed(&[])).refused(1, &["prepared", "erase"]);
    let image = branch.place.join("disk");
    noise(&image, MIB, 1);
    branch.seed(&[("sda", &image)], &[]).ok();
    branch.on_array("init", allowed(&[])).refused(1, &["erase"]);
    let key = common::ssh_key(&branch.place.join("k"), "li@s", "ed25519", "");
    branch.on_array("seal", ["--key", key.to_str().unwrap()]).ok();
    branch.on_array("init", allowed(&[])).refused(1, &["sealed"]);
}

#[test]
fn shipment_json_can_be_signed_by_whoever_prepares_the_array() {
    let branch = Branch::new();
    let key = common::ssh_key(&branch.place.join("centre"), "wang@centre", "ecdsa", "");
    branch.init(&["--key", key.to_str().unwrap(), "--label", "第一批"]);
    let trust = branch.place.file("centre-signers", common::trust_line(&key, "wang@centre", ""));
    common::verify_signature(&trust, "wang@centre", "motiongear-shipment", &branch.on("shipment.json"));
    let document = branch.shipment_json();
    assert_eq!(document["label"], "第一批");
    assert_eq!(document["site"]["name"], common::SITE);
    let _ = Place::new();
}

#[test]
fn two_different_copies_of_shipment_json_begin_no_seed() {
    let branch = Branch::ready();
    let image = branch.place.join("disk");
    noise(&image, 1 << 20, 7);
    let second = branch.on("copy/shipment.json");
    let text = std::fs::read_to_string(&second).unwrap();
    std::fs::write(&second, text.replace("TAG-7", "TAG-8")).unwrap();
    let seed = |state: &Path| {
        let disk = format!("sda={}", image.display());
        let command = super::common::Motiongear::new(state).arg("seed").arg(&branch.array);
        command.args(["--machine", "db01", "--disk", &disk]).run()
    };
    seed(&branch.place.join("elsewhere")).refused(4, &[]);
    assert!(branch.packs().is_empty() && !branch.on("holder.json").exists());
    // Who prepared it knows which of the two is the one.
    seed(&branch.state).ok();
}

#[test]
fn what_another_host_wrote_is_not_replaced_though_nothing_names_that_host() {
    let mut branch = Branch::ready();
    let image = branch.place.join("disk");
    noise(&image, 3 << 20, 7);
    branch.seed(&[("sda", &image)], &[]).ok();
    std::fs::remove_file(branch.on("holder.json")).unwrap();
    let files = [branch.packs()[0].clone(), branch.on("keys/0001.age"), branch.on("copy/keys/0001.age")];
    let before = files.each_ref().map(|file| b3sum(file));
    let own = std::mem::replace(&mut branch.state, branch.place.join("other"));
    branch.seed(&[("sda", &image)], &[]).refused(1, &["no pack and no key", "the host that wrote them"]);
    assert_eq!(files.each_ref().map(|file| b3sum(file)), before);
    assert!(!branch.on("holder.json").exists(), "a refused seed does not claim the array");
    branch.state = own;
    branch.seed(&[("sda", &image)], &[]).ok();
    branch.seal();
    branch.check_stand_alone();
}
