//! Goal: nothing outside the array is touched through it, nothing in clear is put on it, and two processes never meet on it.
//! Method: real arrays with planted links and devices; real file systems on loop devices; locks held by the test itself.

use super::common::{Branch, Mount, Ran, loop_device, noise, sparse, tool};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

fn disk(branch: &Branch, name: &str, bytes: u64) -> PathBuf {
    let path = branch.place.join(name);
    noise(&path, bytes, 7);
    path
}

/// Every verb that works on an array, one after the other.
fn all_verbs(branch: &Branch, raw: &Path) -> Vec<(&'static str, Ran)> {
    let key = branch.key.to_str().unwrap().to_owned();
    let on = |verb: &str, more: &[&str]| branch.on_array(verb, more.iter().copied());
    let custody = ["custody", "dispatch", branch.array.to_str().unwrap(), "--key", &key];
    let report = ["report", "handover", branch.array.to_str().unwrap(), "--key", &key];
    vec![
        ("seed", branch.seed(&[("sda", raw)], &["--point-in-time"])),
        ("seal", on("seal", &["--key", &key])),
        ("verify", on("verify", &[])),
        ("report", branch.run(report)),
        ("custody", branch.run(custody)),
        ("erase", on("erase", &["--asset", "TAG-7", "--key", &key, "--unproven", "--reason", "planted"])),
    ]
}

#[test]
fn a_folder_that_is_a_link_is_written_by_no_verb() {
    for folder in ["packs", "keys", "copy", "custody", "report"] {
        let branch = Branch::ready();
        let (raw, host, on) = (disk(&branch, "raw", 1 << 20), branch.place.join("host"), branch.on(folder));
        tool("cp", ["-a".as_ref(), on.as_path(), host.as_path()]);
        std::fs::remove_dir_all(&on).unwrap();
        symlink(&host, &on).unwrap();
        let before = tool("find", [host.as_os_str()]);
        let said = all_verbs(&branch, &raw);
        assert_eq!(tool("find", [host.as_os_str()]), before, "{folder}");
        assert!(said.iter().any(|(_, ran)| ran.code == 4), "{folder}: {said:?}");
    }
}

#[test]
fn an_array_that_is_itself_a_link_is_refused() {
    let branch = Branch::ready();
    let raw = disk(&branch, "raw", 1 << 20);
    let away = branch.place.join("away");
    std::fs::rename(branch.array.join("motiongear"), &away).unwrap();
    symlink(&away, branch.array.join("motiongear")).unwrap();
    let before = tool("find", [away.as_os_str()]);
    for (verb, ran) in all_verbs(&branch, &raw) {
        assert_eq!(ran.code, 4, "{verb}: {ran:?}");
    }
    assert_eq!(tool("find", [away.as_os_str()]), before);
}

#[test]
fn names_that_were_planted_are_never_written_through() {
    let branch = Branch::ready();
    let raw = disk(&branch, "raw", 1 << 20);
    let precious = branch.place.file("precious", "precious");
    for name in [".manifest.db.age.tmp", "manifest.db.age", "seal.json", "seal.json.sig", "keys/0001.age"] {
        let path = branch.on(name);
        symlink(&precious, path).unwrap();
    }
    std::fs::remove_file(branch.on("seal.json")).unwrap();
    // A key that no process of this ledger made.
    branch.seed(&[("sda", &raw)], &["--point-in-time"]).code(1);
    std::fs::remove_file(branch.on("keys/0001.age")).unwrap();
    branch.seed(&[("sda", &raw)], &["--point-in-time"]).ok();
    branch.seal();
    assert_eq!(std::fs::read(&precious).unwrap(), b"precious");
    // A pack that is a link, a device, or has a second name, is neither cut nor sealed.
    let other = Branch::ready();
    other.seed(&[("sda", &raw)], &["--point-in-time"]).ok();
    let bytes = std::fs::read(other.packs().remove(0)).unwrap();
    let key = other.key.to_str().unwrap();
    let long = disk(&other, "long", bytes.len() as u64 + 4096);
    for plant in ["link", "name"] {
        // The one before was given up, and another took its place.
        let pack = other.packs().remove(0);
        std::fs::remove_file(&pack).unwrap();
        if plant == "link" {
            symlink(&long, &pack).unwrap()
        } else {
            std::fs::hard_link(&long, &pack).unwrap()
        }
        other.on_array("seal", ["--key", key]).refused(4, &[]);
        other.seed(&[("sda", &raw)], &["--point-in-time"]);
        assert_eq!(std::fs::metadata(&long).unwrap().len(), bytes.len() as u64 + 4096, "{plant}");
    }
}

#[test]
fn init_takes_only_what_it_left_itself() {
    let branch = Branch::new();
    let folder = branch.array.join("motiongear");
    let init = || branch.on_array("init", ["--site", "s1", "--recipient", &branch.recipient, "--allow-system-disk"]);
    std::fs::create_dir_all(folder.join("copy")).unwrap();
    for planted in [".manifest.db.age.tmp", "copy/.x", "keys", "report", ".packs", "custody/0001-dispatched.json"] {
        let path = folder.join(planted);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(branch.place.path(), &path).unwrap();
        init().refused(1, &[]);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, b"x").unwrap();
        init().refused(1, &[]);
        std::fs::remove_file(&path).unwrap();
    }
    // Cut short at its last step, with a file that it had not finished.
    init().ok();
    std::fs::remove_file(folder.join("shipment.json")).unwrap();
    std::fs::write(folder.join("copy/.0123456789abcdef.tmp"), b"{").unwrap();
    init().ok();
    assert!(!folder.join("copy/.0123456789abcdef.tmp").exists());
    branch.seed(&[("sda", &disk(&branch, "raw", 1 << 20))], &[]).ok();
}

#[test]
fn an_init_without_room_is_repeated() {
    let branch = Branch::new();
    let image = branch.place.join("image");
    sparse(&image, 64 << 20);
    tool("mkfs.ext4", ["-qF".as_ref(), "-N".as_ref(), "16".as_ref(), image.as_path()]);
    let (device, at) = (loop_device(&image), branch.place.dir("mount"));
    let _mount = Mount::new(device.path(), &at, &[]);
    let mut taken = Vec::new();
    while let Ok(file) = File::create_new(at.join(format!("f{}", taken.len()))) {
        drop(file);
        taken.push(at.join(format!("f{}", taken.len())));
    }
    let array = at.to_str().unwrap();
    let init = || branch.run(["init", array, "--site", "s1", "--recipient", &branch.recipient]);
    for free in 0..taken.len() {
        if init().code == 0 {
            assert!(free > 6, "{free}");
            return;
        }
        std::fs::remove_file(taken.pop().unwrap()).unwrap();
    }
    panic!("expected init to succeed once there is room");
}

/// As another process would hold it.
fn held(array: &Path, how: FlockOperation) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(array.join("motiongear"), flags, Mode::empty()).unwrap();
    // A lock that was let go may live on for a moment in the child that another test is about to start.
    let since = std::time::Instant::now();
    while flock(&fd, how).is_err() {
        assert!(since.elapsed() < std::time::Duration::from_secs(20), "somebody holds the array");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    fd
}

#[test]
fn whoever_writes_to_an_array_is_alone_on_it() {
    let branch = Branch::ready();
    let raw = disk(&branch, "raw", 1 << 20);
    branch.seed(&[("sda", &raw)], &["--point-in-time"]).ok();
    branch.seal();
    branch.on_array::<&str>("verify", []).ok();
    let reader = held(&branch.array, FlockOperation::NonBlockingLockShared);
    let before = tool("find", [branch.array.as_os_str()]);
    for (verb, ran) in all_verbs(&branch, &raw).into_iter().filter(|(verb, _)| !["seed", "seal"].contains(verb)) {
        assert_eq!(ran.code, i32::from(verb != "verify"), "{verb}: {ran:?}");
    }
    assert_eq!(tool("find", [branch.array.as_os_str()]), before);
    drop(reader);
    let _writer = held(&branch.array, FlockOperation::NonBlockingLockExclusive);
    for (verb, ran) in all_verbs(&branch, &raw) {
        assert_eq!(ran.code, 1, "{verb}: {ran:?}");
    }
    let to = format!("dir:{}", branch.place.join("volumes").display());
    let (trust, identity) = (branch.trust.to_str().unwrap(), branch.identity.to_str().unwrap());
    branch.on_array("import", ["--to", &to, "--trust", trust, "--identity", identity]).refused(1, &[]);
}

#[test]
fn nothing_in_clear_is_put_on_the_array() {
    let branch = Branch::new();
    let image = branch.place.join("image");
    sparse(&image, 96 << 20);
    tool("mkfs.ext4", ["-qF".as_ref(), image.as_path()]);
    let (device, at) = (loop_device(&image), branch.place.dir("mount"));
    let _mount = Mount::new(device.path(), &at, &[]);
    let (array, key) = (at.to_str().unwrap(), branch.key.to_str().unwrap());
    let (trust, identity) = (branch.trust.to_str().unwrap(), branch.identity.to_str().unwrap());
    let on = |name: &str| at.join(name).to_str().unwrap().to_owned();
    let recipient = branch.recipient.as_str();
    let here = super::common::Motiongear::new(&at.join("state"));
    here.args(["init", array, "--site", &branch.site, "--recipient", recipient]).run().refused(1, &[]);
    assert!(!at.join("state").exists());
    branch.run(["init", array, "--site", &branch.site, "--recipient", recipient, "--asset", "T"]).ok();
    let raw = disk(&branch, "raw", 1 << 20);
    let source = format!("sda={}", raw.display());
    let seed = ["seed", array, "--machine", "m", "--disk", &source];
    branch.run(seed.into_iter().chain(["--scratch", &on("scratch")])).refused(1, &[]);
    branch.run(seed).ok();
    let shipment =
        super::common::json_file(&at.join("motiongear/shipment.json"))["shipment"].as_str().unwrap().to_owned();
    branch.run(["ledger", "move", "--shipment", &shipment, "--export", &on("move")]).refused(1, &[]);
    branch.run(["seal", array, "--key", key]).ok();
    branch.run(["report", "handover", array, "--out", &on("papers")]).refused(1, &[]);
    let import = |to: &str, more: &[&str]| {
        let given = ["import", array, "--to", to, "--trust", trust, "--identity", identity];
        branch.run(given.iter().chain(more).copied())
    };
    for more in [&[][..], &["--dry-run"]] {
        import(&format!("dir:{}", on("volumes")), more).refused(1, &["lies on the transport array"]);
        let restore = ["restore", array, "m/sda", &on("plain.raw"), "--trust", trust, "--identity", identity];
        branch.run(restore.iter().chain(more).copied()).refused(1, &["lies on the transport array"]);
    }
    // Nor on a device that lies on it.
    let inner = at.join("inner");
    std::fs::write(&inner, vec![0; 2 << 20]).unwrap();
    let inside = loop_device(&inner);
    let to = format!("dev:m/sda={}", inside.path().display());
    import(&to, &[]).refused(1, &["lies on the transport array"]);
    drop(inside);
    let erase = ["erase", array, "--asset", "T", "--key", key, "--unproven", "--reason", "r"];
    branch.run(erase.into_iter().chain(["--certificate", &on("papers")])).refused(1, &[]);
    let mut left: Vec<String> = tool("ls", [at.as_os_str()]).lines().map(str::to_owned).collect();
    left.retain(|name| name != "lost+found");
    assert_eq!(left, ["inner", "motiongear"]);
}

#[test]
fn two_imports_never_meet_in_one_file() {
    let branch = Branch::ready();
    let raw = disk(&branch, "raw", 4 << 20);
    branch.seed(&[("sda", &raw)], &[]).ok();
    branch.seal();
    let to = format!("dir:{}", branch.place.join("volumes").display());
    let (trust, identity) = (branch.trust.to_str().unwrap(), branch.identity.to_str().unwrap());
    let import = || branch.on_array("import", ["--to", &to, "--trust", trust, "--identity", identity, "--overwrite"]);
    import().ok();
    let volume = branch.place.join(format!("volumes/{}/db01/sda.raw", branch.site));
    let file = File::options().read(true).write(true).open(&volume).unwrap();
    flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
    // By another ledger, which does not know the volume, nor the other import.
    let stranger = super::common::Motiongear::new(&branch.place.join("another")).args(["import"]).arg(&branch.array);
    let stranger = stranger.args(["--to", &to, "--trust", trust, "--identity", identity, "--overwrite"]).run();
    stranger.refused(1, &["another process"]);
}

#[test]
fn a_pack_ends_where_its_file_system_ends_files() {
    let branch = Branch::ready();
    let raw = disk(&branch, "raw", 10 << 20);
    let script = "ulimit -f 4096; exec \"$@\"";
    let mut command = std::process::Command::new("bash");
    command.args(["-c", script, "-", env!("CARGO_BIN_EXE_motiongear"), "--state"]).arg(&branch.state);
    command.arg("seed").arg(&branch.array).args(["--machine", "m", "--disk"]).arg(format!("sda={}", raw.display()));
    assert!(command.status().unwrap().success());
    assert!(branch.packs().len() >= 3 && branch.packs().iter().all(|pack| pack.metadata().unwrap().len() <= 4 << 20));
    branch.seal();
    branch.on_array::<&str>("verify", []).ok();
}
