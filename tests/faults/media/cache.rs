//! A page cache remembers what its medium has lost: whatever is proven must be read past it.

use super::{ENGINES, MIB, import, seeds};
use crate::common::{Branch, LoopArray, noise};
use std::os::unix::fs::FileExt;
use std::path::Path;

const PAGE: usize = 4096;

/// Turns over a byte in the middle of `file` on its medium, `image`, behind the back of the file system.
fn rot(file: &Path, image: &Path) {
    let content = std::fs::read(file).unwrap();
    let page = content.chunks(PAGE).nth(content.len() / PAGE / 2).unwrap();
    let medium = std::fs::read(image).unwrap();
    let places: Vec<usize> = (0..medium.len() / PAGE).filter(|n| medium[n * PAGE..][..PAGE] == *page).collect();
    let [place] = places[..] else { panic!("{} lies in its image at {places:?}", file.display()) };
    let at = place * PAGE + PAGE / 2;
    let image = std::fs::File::options().write(true).open(image).unwrap();
    image.write_all_at(&[!medium[at]], at as u64).unwrap();
    // The cache still has it as it was.
    assert!(std::fs::read(file).unwrap() == content);
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
        rustix::fs::syncfs(std::fs::File::open(&branch.array).unwrap()).unwrap();
        branch.on_array("verify", ["--engine", engine]).ok();
        rot(&branch.packs()[0], array.image());
        let found = branch.on_array("verify", ["--engine", engine]);
        assert_eq!(found.code, 3, "{engine}: the cache was verified: {}{}", found.stdout, found.stderr);
        let volumes = branch.place.dir("volumes");
        let ran = import(&branch, &volumes, &["--engine", engine]).run();
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
