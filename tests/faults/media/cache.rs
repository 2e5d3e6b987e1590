//! A page cache remembers what its medium has lost: whatever is proven must be read past it.

use super::{ENGINES, Frail, MIB, import, seeds};
use crate::common::{Branch, Fault, LoopArray, noise};
use std::os::unix::fs::FileExt;
use std::path::Path;

const PAGE: usize = 4096;

/// Where on its medium, `image`, the page in the middle of `file` lies. Leaves the file in the page cache.
fn middle(file: &Path, image: &Path) -> u64 {
    let content = std::fs::read(file).unwrap();
    let page = content.chunks(PAGE).nth(content.len() / PAGE / 2).unwrap();
    let medium = std::fs::read(image).unwrap();
    let places: Vec<usize> = (0..medium.len() / PAGE).filter(|n| medium[n * PAGE..][..PAGE] == *page).collect();
    let [place] = places[..] else { panic!("{} lies in its image at {places:?}", file.display()) };
    (place * PAGE) as u64
}

/// Turns over a byte in the middle of `file` on its medium behind the back of the file system.
fn rot(file: &Path, image: &Path) {
    let (content, at) = (std::fs::read(file).unwrap(), middle(file, image));
    let medium = std::fs::File::options().read(true).write(true).open(image).unwrap();
    let mut byte = [0];
    medium.read_exact_at(&mut byte, at).unwrap();
    medium.write_all_at(&[!byte[0]], at).unwrap();
    // The cache still has it as it was.
    assert!(std::fs::read(file).unwrap() == content);
}

fn synced(branch: &Branch) {
    rustix::fs::syncfs(std::fs::File::open(&branch.array).unwrap()).unwrap();
}

#[test]
fn what_the_page_cache_hides_of_a_medium_is_found_by_verify_and_import() {
    for engine in ENGINES {
        let branch = Branch::new();
        let array = LoopArray::ext4(&branch.place.join("array.img"), 80 * MIB, &branch.array);
        branch.init(&[]);
        let image = branch.place.join("disk");
        noise(&image, 12 * MIB, 90);
        seeds(&branch, &[("sda", &image)], engine, &image);
        branch.seal();
        synced(&branch);
        branch.on_array("verify", ["--engine", engine]).ok();
        rot(&branch.packs()[0], array.image());
        let found = branch.on_array("verify", ["--engine", engine]);
        assert_eq!(found.code, 3, "{engine}: the cache was verified: {}{}", found.stdout, found.stderr);
        let volumes = branch.place.dir("volumes");
        let ran = import(&branch, &volumes, &["--engine", engine]).run();
        assert_eq!(ran.code(3)["disks"][0]["damaged"], 1, "{engine}");
    }
}

#[test]
fn what_a_medium_cannot_give_is_lost_though_the_page_cache_has_it() {
    for engine in ENGINES {
        let branch = Branch::new();
        let frail = Frail::under(&branch, 80 * MIB);
        branch.init(&[]);
        let image = branch.place.join("disk");
        noise(&image, 12 * MIB, 92);
        seeds(&branch, &[("sda", &image)], engine, &image);
        branch.seal();
        synced(&branch);
        let pack = &branch.packs()[0];
        let at = middle(pack, &frail.image);
        let page = at..at + PAGE as u64;
        frail.fs.fault(page, Fault::ReadError);
        let content = std::fs::read(pack).expect("it is in the page cache");
        let found = branch.on_array("verify", ["--engine", engine]).code(3);
        let lost = (content.len() / PAGE / 2 * PAGE) as u64;
        let unread = found["findings"]["list"].as_array().unwrap().iter().filter(|finding| {
            finding["what"].as_str().unwrap().starts_with("cannot be read") && finding["offset"] == lost
        });
        assert_eq!(unread.count(), 1, "{engine}: {found}");
        let ran = import(&branch, &branch.place.dir("volumes"), &["--engine", engine]).run();
        assert_eq!(ran.code(3)["disks"][0]["damaged"], 1, "{engine}");
    }
}

/// ext4 that journals data takes no O_DIRECT.
#[test]
fn a_check_that_may_have_been_of_the_page_cache_says_so() {
    let branch = Branch::new();
    let mut array = LoopArray::ext4(&branch.place.join("array.img"), 80 * MIB, &branch.array);
    branch.init(&[]);
    let image = branch.place.join("disk");
    noise(&image, 3 * MIB, 91);
    seeds(&branch, &[("sda", &image)], "auto", &image);
    branch.seal();
    let notes = || branch.on_array("verify", [""; 0]).ok()["findings"]["list"].to_string();
    assert!(!notes().contains("no direct access"), "{}", notes());
    array.mount_anew(&["-o", "data=journal"]);
    assert!(notes().contains("no direct access"), "{}", notes());
}
