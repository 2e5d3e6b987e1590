//! Goal: every fixture has its generator and its line in `fixtures/INDEX`, and nothing else lies there.
//!
//! Method: the folder's files and the index's lines are the same set; every generator named exists. What the generators make
//! is proven where it is used: `the_trees_are_what_their_generator_makes` (source), the golden shipments in the format crate,
//! the sample disk below.

use crate::common::{Mount, Place, disks, tool};
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

#[test]
fn the_sample_disk_is_a_disk_with_files() {
    let place = Place::new();
    let disk = place.join("sample.img");
    disks::sample_disk(&disk);
    let table = tool("sfdisk", ["--dump".as_ref(), disk.as_os_str()]);
    assert!(table.contains("label: gpt") && table.contains("name=\"root\""), "{table}");
    let bytes = 83 << 20;
    let partition =
        crate::common::Loop::attach(&disk, &["--offset", &(5 << 20).to_string(), "--sizelimit", &bytes.to_string()]);
    tool("e2fsck", ["-fn".as_ref(), partition.path().as_os_str()]);
    let mount = Mount::new(partition.path(), &place.join("mnt"), &["-o", "ro"]);
    assert_eq!(std::fs::read_to_string(mount.path().join("etc/hostname")).unwrap(), "db01\n");
    assert!(disks::allocated(&disk) < disk.metadata().unwrap().len() / 4, "the sample is sparse");
}
