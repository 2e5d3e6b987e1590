//! Goal: every fixture has its generator and its line in `fixtures/INDEX`, and nothing else lies there.
//!
//! Method: the folder's files and the index's lines are the same set; every generator named exists. What the generators make
//! is proven where it is used: `the_trees_are_what_their_generator_makes` (source), the golden shipments in the format crate,
//! the sample disk below.

use crate::common::{Loop, Mount, Place, disks, tool};
use std::collections::BTreeSet;
use std::path::Path;

fn files(dir: &Path, base: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files(&path, base, found),
            false => drop(found.insert(path.strip_prefix(base).unwrap().to_str().unwrap().to_owned())),
        }
    }
}

#[test]
fn the_folder_is_what_the_index_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut found, mut listed) = (BTreeSet::new(), BTreeSet::new());
    files(&root.join("fixtures"), &root.join("fixtures"), &mut found);
    found.remove("INDEX");
    let index = std::fs::read_to_string(root.join("fixtures/INDEX")).unwrap();
    for line in index.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let columns: Vec<_> = line.split('\t').collect();
        let [path, generator, purpose] = columns[..] else { panic!("three columns expected: {line}") };
        assert!(root.join(generator).is_file(), "{path}: no generator {generator}");
        assert!(!purpose.trim().is_empty(), "{path} has no purpose");
        assert!(listed.insert(path.to_owned()), "{path} stands twice");
    }
    assert_eq!(found, listed);
}

/// The sample's root file system, mounted read-only.
fn sample_root(disk: &Path, at: &Path) -> (Mount, Loop) {
    let (offset, bytes) = ((5 << 20).to_string(), (83 << 20).to_string());
    let partition = Loop::attach(disk, &["--read-only", "--offset", &offset, "--sizelimit", &bytes]);
    tool("e2fsck", ["-fn".as_ref(), partition.path().as_os_str()]);
    (Mount::new(partition.path(), at, &["-o", "ro"]), partition)
}

#[test]
fn the_sample_disk_is_a_disk_with_files_and_what_its_generator_makes() {
    let place = Place::new();
    let made = place.join("made.img");
    disks::sample_disk(&made);
    let table = tool("sfdisk", ["--dump".as_ref(), made.as_os_str()]);
    assert!(table.contains("label: gpt") && table.contains("name=\"root\""), "{table}");
    assert!(disks::allocated(&made) < made.metadata().unwrap().len() / 4, "the sample is sparse");
    // The one that the program carries was made some day before: other dates in it, the same table and the same files.
    let kept = place.join("kept.img");
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/sample-disk/disk.raw.zst");
    tool("zstd", ["-q".as_ref(), "-d".as_ref(), packed.as_os_str(), "-o".as_ref(), kept.as_os_str()]);
    let plain = |table: String, path: &Path| table.replace(path.to_str().unwrap(), "DISK");
    let kept_table = tool("sfdisk", ["--dump".as_ref(), kept.as_os_str()]);
    assert_eq!(plain(table, &made), plain(kept_table, &kept));
    let (made, kept) = (sample_root(&made, &place.join("a")), sample_root(&kept, &place.join("b")));
    assert_eq!(std::fs::read_to_string(made.0.path().join("etc/hostname")).unwrap(), "db01\n");
    tool("diff", ["-r", "--no-dereference", made.0.path().to_str().unwrap(), kept.0.path().to_str().unwrap()]);
}
