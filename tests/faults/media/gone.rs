//! Arrays that are taken away: remounted read-only, their file system aborted or shut down, their medium cut short; and plugged in
//! again.

use super::{ENGINES, LONG, MIB, arrives, import, raw, said_clearly, seeds};
use crate::common::devices::{Shutdown, shut_down};
use crate::common::{Background, Branch, LoopArray, b3sum, full, noise, sql, tool, try_tool};
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// `mount -o remount,ro`: what an administrator does.
    ReadOnly,
    /// `mount -o remount,abort`: what ext4 does when its journal fails.
    Abort,
    /// The file system's shutdown ioctl.
    Shutdown(Shutdown),
}

const SHUTDOWNS: [Loss; 3] =
    [Loss::Shutdown(Shutdown::NoLogFlush), Loss::Shutdown(Shutdown::LogFlush), Loss::Shutdown(Shutdown::Everything)];

fn array(branch: &Branch, kind: &str) -> LoopArray {
    let image = branch.place.join("array.img");
    match kind {
        "xfs" => LoopArray::xfs(&image, 400 * MIB, &branch.array),
        _ => LoopArray::ext4(&image, 200 * MIB, &branch.array),
    }
}

fn lose(array: &LoopArray, loss: Loss) {
    match loss {
        // Not while somebody writes: the kernel refuses; forced it is what SysRq-U does to all file systems at once.
        Loss::ReadOnly => {
            let remounted = try_tool("mount", ["-o".as_ref(), "remount,ro".as_ref(), array.dir().as_os_str()]);
            if remounted.code != 0 {
                array.remount("abort");
            }
        }
        Loss::Abort => array.remount("abort"),
        Loss::Shutdown(how) => shut_down(array.dir(), how),
    }
}

/// Unplugged and plugged in again, repaired as the file system wants it.
fn plug_again(array: &mut LoopArray) {
    array.unmount();
    if try_tool("blkid", ["-t".as_ref(), "TYPE=ext4".as_ref(), array.image().as_os_str()]).code == 0 {
        assert!(try_tool("e2fsck", ["-fy".as_ref(), array.image().as_os_str()]).code <= 1);
    }
    array.plug();
}

fn packed(branch: &Branch) -> u64 {
    let Ok(packs) = std::fs::read_dir(branch.on("packs")) else { return 0 };
    packs.flatten().filter_map(|pack| pack.metadata().ok()).map(|meta| meta.len()).sum()
}

/// A slow run that has moved `mib` MiB.
fn unfinished(mut running: Background, mib: u64, moved: impl Fn() -> u64) -> Background {
    assert!(running.until(LONG, |_| moved() >= mib * MIB), "it ended early: {}", running.said());
    running
}

/// Lets a slow run find out, and waits for its end.
fn ended(branch: &Branch, running: Background) -> crate::common::Ran {
    branch.run(["limit", "--read", "off"]); // it may have noticed already
    running.wait()
}

fn seed_cases() -> Vec<(&'static str, Loss)> {
    let mut cases = vec![("ext4", Loss::Abort), ("xfs", SHUTDOWNS[0]), ("ext4", SHUTDOWNS[1])];
    if full() {
        cases = vec![("ext4", Loss::Abort), ("ext4", Loss::ReadOnly), ("xfs", Loss::ReadOnly)];
        cases.extend(["ext4", "xfs"].iter().flat_map(|kind| SHUTDOWNS.map(|loss| (*kind, loss))));
        cases.retain(|case| *case != ("xfs", Loss::ReadOnly));
    }
    cases
}

#[test]
fn an_array_lost_in_mid_seed_is_continued_when_it_is_back() {
    for (at, (kind, loss)) in seed_cases().into_iter().enumerate() {
        let engines = if full() { &ENGINES[..] } else { &ENGINES[at % 2..at % 2 + 1] };
        for engine in engines {
            for mib in if full() { &[2, 20, 60][..] } else { &[12][..] } {
                let branch = Branch::new();
                let mut array = array(&branch, kind);
                branch.init(&[]);
                let image = branch.place.join("disk");
                noise(&image, 80 * MIB, 40);
                let slow = branch.seed_command(&[("sda", &image)], &["--read-limit", "25MiB", "--engine", engine]);
                let running = unfinished(slow.start(), *mib, || packed(&branch));
                let manifest = branch.live_manifest();
                let committed: u64 = sql(&manifest, "SELECT count(*) FROM block").parse().unwrap();
                lose(&array, loss);
                said_clearly(&ended(&branch, running), &branch.array);
                // Still lost: refused at once, and clearly.
                said_clearly(&branch.seed(&[("sda", &image)], &["--engine", engine]), &branch.array);
                plug_again(&mut array);
                let result = seeds(&branch, &[("sda", &image)], engine, &image);
                let skipped = result["disks"][0]["skipped_bytes"].as_u64().unwrap();
                assert!(
                    skipped >= committed * MIB,
                    "{kind} {loss:?} {engine}: {committed} committed, {skipped} skipped"
                );
                arrives(&branch, &image);
            }
        }
    }
}

/// A sealed array on a file system of its own, with one disk of noise.
fn sealed(kind: &str, mib: u64) -> (Branch, LoopArray, PathBuf) {
    let branch = Branch::new();
    let array = array(&branch, kind);
    branch.init(&[]);
    let image = branch.place.join("disk");
    noise(&image, mib * MIB, 41);
    branch.seed(&[("sda", &image)], &[]).ok();
    branch.seal();
    (branch, array, image)
}

fn written(volume: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    volume.metadata().map_or(0, |meta| meta.blocks() * 512)
}

#[test]
fn an_array_lost_in_mid_import_or_mid_verify_is_not_called_damaged() {
    let cases = if full() {
        ["ext4", "xfs"].iter().flat_map(|kind| SHUTDOWNS.map(|loss| (*kind, loss))).collect()
    } else {
        vec![("xfs", SHUTDOWNS[0]), ("ext4", SHUTDOWNS[0])]
    };
    for (at, (kind, loss)) in cases.into_iter().enumerate() {
        let engines = if full() { &ENGINES[..] } else { &ENGINES[at % 2..at % 2 + 1] };
        for engine in engines {
            // A shipment each: a disk has one volume for ever.
            let (branch, mut array, image) = sealed(kind, 80);
            let volumes = branch.place.dir("volumes");
            let slow = ["--read-limit", "25MiB", "--engine", engine];
            let running = import(&branch, &volumes, &slow).start();
            let running = unfinished(running, 10, || written(&raw(&volumes, "sda")));
            lose(&array, loss);
            let said = said_clearly(&ended(&branch, running), &branch.array);
            assert!(!said.contains("damaged"), "{said}");
            let start = std::fs::read(raw(&volumes, "sda")).unwrap()[..4096].to_vec();
            assert!(start.iter().all(|byte| *byte == 0), "an unfinished volume shows its head");
            // Still lost.
            said_clearly(&import(&branch, &volumes, &["--engine", engine]).run(), &branch.array);
            plug_again(&mut array);
            let running = branch.motiongear().args(["--json", "verify"]).arg(&branch.array).args(slow).start();
            let mut reading = unfinished_verify(&branch, running);
            lose(&array, loss);
            branch.run(["limit", "--read", "off"]);
            reading.until(LONG, |_| false);
            said_clearly(&reading.wait(), &branch.array);
            plug_again(&mut array);
            branch.on_array("verify", ["--engine", engine]).ok();
            let result = import(&branch, &volumes, &["--engine", engine]).run().ok();
            assert_eq!(result["disks"][0]["digest"], b3sum(&image), "{kind} {loss:?} {engine}");
            assert_eq!(result["disks"][0]["damaged"], 0);
            assert_eq!(b3sum(&raw(&volumes, "sda")), b3sum(&image));
        }
    }
}

/// A verify that has begun to read packs.
fn unfinished_verify(branch: &Branch, mut running: Background) -> Background {
    let begun = |_: &Background| {
        let status = branch.run(["status"]).ok();
        status["jobs"][0]["progress"]["total"]["read"].as_u64().is_some_and(|read| read >= 8 * MIB)
    };
    assert!(running.until(LONG, begun), "it ended early: {}", running.said());
    running
}

#[test]
fn an_array_whose_medium_is_cut_short_in_mid_import_costs_what_is_lost_and_no_more() {
    for engine in ENGINES {
        let (branch, mut array, image) = sealed("ext4", 60);
        array.unmount();
        let whole = branch.place.join("whole.img");
        tool("cp", ["--sparse=always".as_ref(), array.image().as_os_str(), whole.as_os_str()]);
        // Behind the first half there is no medium any more: a real EIO for whatever lies there.
        array.plug();
        std::fs::File::options().write(true).open(array.image()).unwrap().set_len(40 * MIB).unwrap();
        let volumes = branch.place.dir("volumes");
        let cut = import(&branch, &volumes, &["--engine", engine]).run();
        // Some of the packs is there, so this is damage, not a lost array; unless what is gone is the file system itself.
        match cut.code {
            3 => {
                let result = cut.code(3);
                let disk = &result["disks"][0];
                assert!(disk["damaged"].as_u64().unwrap() > 0, "{disk}");
                let start = std::fs::read(raw(&volumes, "sda")).unwrap()[..4096].to_vec();
                assert!(start.iter().all(|byte| *byte == 0), "a damaged volume shows its head");
            }
            4 => drop(cut.refused(4, &["next:"])),
            _ => drop(said_clearly(&cut, &branch.array)),
        }
        array.unmount();
        tool("cp", ["--sparse=always".as_ref(), whole.as_os_str(), array.image().as_os_str()]);
        array.plug();
        let result = import(&branch, &volumes, &["--engine", engine]).run().ok();
        assert_eq!(result["disks"][0]["digest"], b3sum(&image));
        assert_eq!(b3sum(&raw(&volumes, "sda")), b3sum(&image));
    }
}

#[test]
fn a_read_only_array_is_refused_for_writing_and_good_for_reading() {
    let (branch, array, image) = sealed("ext4", 6);
    array.remount("ro");
    for verb in ["seed", "seal", "dispatch", "report"] {
        let ran = match verb {
            "seed" => branch.seed(&[("sda", &image)], &["--reopen"]),
            "seal" => branch.on_array("seal", ["--key", branch.key.to_str().unwrap()]),
            "report" => {
                let command = branch.motiongear().args(["--json", "report", "handover"]).arg(&branch.array);
                command.arg("--key").arg(&branch.key).arg("--out").arg(branch.place.join("out")).run()
            }
            _ => {
                branch.on_array("verify", [""; 0]).ok();
                let command = branch.motiongear().args(["--json", "custody", "dispatch"]).arg(&branch.array);
                command.arg("--key").arg(&branch.key).arg("--trust").arg(&branch.trust).run()
            }
        };
        if verb == "seal" {
            // It is sealed already: nothing is to be written.
            ran.ok();
            continue;
        }
        let said = said_clearly(&ran, &branch.array);
        assert!(said.to_lowercase().contains("read-only"), "{verb}: {said}");
    }
    let volumes = branch.place.dir("volumes");
    let result = import(&branch, &volumes, &[]).run().ok();
    assert_eq!(result["disks"][0]["digest"], b3sum(&image));
    array.remount("rw");
    branch.seed(&[("sda", &image)], &["--reopen"]).ok();
}
