//! Goal: a shipment is imported into an export of any server as into a device, and a server that falls loses nothing that is not
//! written again. Method: the binary into qemu-nbd and nbdkit; nbdkit's filters are the faults, its write-back cache the power cut.

use super::servers::{LIMIT, Server, certificates};
use crate::common::{Background, Dice, Motiongear, Place, Ran, noise, seed_of_this_run, sparse, tool, try_tool};
use crate::import::{BLOCK, command};
use crate::shipment::{Disk, Made, Recipe, data, make};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// A sealed shipment of one disk, and an empty image that is larger.
struct Truck {
    place: Place,
    disk: Disk,
    made: Made,
    image: PathBuf,
}

impl Truck {
    fn new(blocks: usize) -> Truck {
        let place = Place::new();
        // The last block is a short one, and no whole page.
        let disk = Disk::new("db01", "sda", data(blocks * BLOCK + 512, BLOCK, |block| block % 7 == 5));
        let made =
            make(place.path(), std::slice::from_ref(&disk), &Recipe { records_per_pack: 50, ..Recipe::default() });
        let image = place.join("volume.raw");
        sparse(&image, (disk.data.len() as u64).next_multiple_of(MIB) + 3 * MIB);
        Truck { place, disk, made, image }
    }

    fn import(&self, uri: &str, extra: &[&str]) -> Motiongear {
        let to = format!("nbd:db01/sda={uri}");
        command(&self.place, &self.made, "import", "auto").args(["--to", &to]).args(extra)
    }

    fn run(&self, uri: &str, extra: &[&str]) -> Ran {
        self.import(uri, extra).run()
    }

    /// Starts and waits until something was committed.
    fn start(&self, uri: &str, extra: &[&str]) -> Background {
        let mut running = self.import(uri, extra).start();
        assert!(running.until(LIMIT, |_| self.mark() > 0), "{}", running.said());
        running
    }

    fn ledger(&self, column: &str) -> String {
        ledger(&self.place, column)
    }

    /// Blocks that the ledger calls written.
    fn mark(&self) -> u64 {
        self.ledger("mark").parse().unwrap_or(0)
    }

    #[track_caller]
    fn check(&self, imported: &Value) {
        let outcome = &imported["disks"][0];
        assert_eq!((&outcome["state"], &outcome["damaged"]), (&"imported".into(), &0.into()), "{imported}");
        assert_eq!(outcome["digest"], outcome["sealed_digest"]);
        self.check_image(&self.image);
    }

    /// The disk's bytes, and zeros behind them.
    #[track_caller]
    fn check_image(&self, raw: &Path) {
        let found = std::fs::read(raw).unwrap();
        let (disk, rest) = found.split_at(self.disk.data.len());
        assert!(disk == self.disk.data, "{raw:?} differs");
        assert!(rest.iter().all(|byte| *byte == 0), "{raw:?} is not zero behind the disk");
    }
}

/// A column of the import in the ledger; nothing while there is none.
fn ledger(place: &Place, column: &str) -> String {
    let sql = format!("SELECT {column} FROM import");
    let file = place.join("state/ledger.db");
    try_tool("sqlite3", ["-readonly".as_ref(), file.as_os_str(), sql.as_ref()]).stdout.trim().to_owned()
}

#[test]
fn every_sort_of_server_gets_the_disk_byte_for_byte() {
    type Start = fn(&Path) -> Server;
    let servers: [(&str, Start); 7] = [
        ("one client at a time", |image| {
            let socket = image.with_extension("socket");
            let (at, image) = (socket.to_str().unwrap(), image.to_str().unwrap());
            Server::command("qemu-nbd", &["-t", "-f", "raw", "-x", "disk", "-k", at, image], &socket)
        }),
        ("several", |image| Server::qemu(image, "raw", &[])),
        ("two, and it says that several see the same", |image| {
            let socket = image.with_extension("socket");
            let (at, image) = (socket.to_str().unwrap(), image.to_str().unwrap());
            Server::command("qemu-nbd", &["-t", "-e", "2", "-f", "raw", "-x", "disk", "-k", at, image], &socket)
        }),
        ("no zeroing", |image| Server::nbdkit_to_write(image, &["--filter=nozero", "zeromode=none"])),
        ("no holes, no promise to several", |image| {
            Server::nbdkit_to_write(image, &["--filter=noextents", "--filter=multi-conn", "multi-conn-mode=disable"])
        }),
        ("blocks of 4 KiB, 64 KiB at most", |image| {
            let policy = ["blocksize-minimum=4096", "blocksize-preferred=4096", "blocksize-maximum=65536"];
            let policy = [policy.as_slice(), &["blocksize-error-policy=error"]].concat();
            Server::nbdkit_to_write(image, &[&["--filter=blocksize-policy"], policy.as_slice()].concat())
        }),
        ("a cache that writes back", |image| Server::nbdkit_to_write(image, &["--filter=cache", "cache=writeback"])),
    ];
    for (what, start) in servers {
        for used in [false, true] {
            println!("{what}, used before: {used}");
            let truck = Truck::new(420);
            if used {
                noise(&truck.image, truck.image.metadata().unwrap().len(), 77);
            }
            let server = start(&truck.image);
            if used {
                truck.run(&server.text(), &[]).refused(1, &["expected an empty one", "--overwrite"]);
            }
            let extra: &[&str] = if used { &["--overwrite"] } else { &[] };
            let imported = truck.run(&server.text(), extra).ok();
            let outcome = &imported["disks"][0];
            assert_eq!((&outcome["volume"], &outcome["trusted"]), (&server.text().into(), &0.into()));
            // What a server answers from is its own secret.
            assert_eq!((&outcome["through_cache"], &outcome["proven"]), (&true.into(), &false.into()));
            let again = truck.run(&server.text(), &[]).ok();
            assert_eq!(again["disks"][0]["state"], "already-imported");
            drop(server);
            truck.check(&imported);
        }
    }
}

#[test]
fn a_volume_across_the_network_is_known_by_its_address_however_it_is_written() {
    let truck = Truck::new(300);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Server::qemu_on_port(&truck.image, port, &[]);
    let imported = truck.run(&format!("nbd://LOCALHOST:{port}/disk"), &[]).ok();
    let again = truck.run(&format!("nbd://localhost:{port}/disk"), &[]).ok();
    assert_eq!(again["disks"][0]["state"], "already-imported");
    // And it is a source.
    let branch = crate::common::Branch::ready();
    let uri = format!("nbd://localhost:{port}/disk");
    let seeded = branch.seed(&[("sda", Path::new(&uri))], &["--point-in-time"]).ok();
    assert_eq!(seeded["disks"][0]["digest"], crate::common::b3sum(&truck.image));
    drop(server);
    truck.check(&imported);
    branch.run(["scan"]).refused(1, &["nobody answers", &uri]);
}

#[test]
fn an_image_in_another_format_and_one_behind_tls_are_volumes_too() {
    let truck = Truck::new(300);
    let qcow2 = truck.place.join("volume.qcow2");
    let bytes = truck.image.metadata().unwrap().len().to_string();
    tool("qemu-img", ["create", "-q", "-f", "qcow2", qcow2.to_str().unwrap(), &bytes]);
    let keys = truck.place.join("keys");
    certificates(&keys, "localhost");
    let tls = format!("tls-creds-x509,id=tls,dir={},endpoint=server,verify-peer=on", keys.display());
    let server = Server::qemu(&qcow2, "qcow2", &["--object", &tls, "--tls-creds", "tls"]);
    truck.run(&server.text(), &[]).refused(1, &["TLS"]);
    let secure = server.text().replace("nbd+unix", "nbds+unix");
    let secure = format!("{secure}&tls-certificates={}&tls-hostname=localhost", keys.display());
    let imported = truck.run(&secure, &[]).ok();
    drop(server);
    std::fs::remove_file(&truck.image).unwrap();
    tool("qemu-img", ["convert", "-O", "raw", qcow2.to_str().unwrap(), truck.image.to_str().unwrap()]);
    truck.check(&imported);
}

#[test]
fn a_server_that_falls_with_its_cache_gets_again_what_it_had_not_flushed() {
    let mut dice = Dice::new(seed_of_this_run());
    for round in 0..4 {
        let truck = Truck::new(3000);
        // What it has in its cache and not flushed is gone with it: the cache is a file without a name.
        let start = || {
            Server::nbdkit_to_write(
                &truck.image,
                &["--filter=cache", "cache=writeback", "--filter=rate", "rate=700M", "burstiness=0.1"],
            )
        };
        let mut server = start();
        let mut running = truck.start(&server.text(), &[]);
        let mut falls = 0;
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(dice.below(900)));
            if !running.is_running() {
                break;
            }
            server.kill();
            falls += 1;
            std::thread::sleep(Duration::from_millis(dice.below(300)));
            server = start();
        }
        // By itself: nobody gives the command again.
        let imported = running.wait().ok();
        drop(server);
        truck.check(&imported);
        let outcome = &imported["disks"][0];
        println!("round {round}: {falls} falls, {} written", outcome["written_bytes"]);
        assert_eq!(outcome["re_read"], 3001, "what was read before a fall is read again");
    }
}

#[test]
fn a_server_that_loses_what_it_called_durable_is_found_out() {
    let truck = Truck::new(2000);
    // It answers every flush and does none.
    let start = || {
        Server::nbdkit_to_write(
            &truck.image,
            &["--filter=noextents", "--filter=cache", "cache=unsafe", "--filter=rate", "rate=700M", "burstiness=0.1"],
        )
    };
    let mut server = start();
    let mut running = truck.import(&server.text(), &[]).start();
    assert!(running.until(LIMIT, |_| truck.ledger("phase") == "reading"), "{}", running.said());
    server.kill();
    let server = start();
    running
        .wait()
        .refused(1, &["expected what this import wrote there and flushed", "lost what it had called durable"]);
    drop(server);
    // With another server, from the beginning.
    let server = Server::qemu(&truck.image, "raw", &[]);
    truck.run(&server.text(), &[]).refused(1, &["found other bytes", "--overwrite"]);
    let imported = truck.run(&server.text(), &["--overwrite"]).ok();
    drop(server);
    truck.check(&imported);
}

#[test]
fn another_volume_in_the_place_of_a_lost_one_is_not_written_to() {
    let truck = Truck::new(2000);
    let filters = ["--filter=rate", "rate=300M", "burstiness=0.1"];
    let mut server = Server::nbdkit_to_write(&truck.image, &filters);
    let uri = server.text();
    let running = truck.start(&uri, &[]);
    server.kill();
    let kept = truck.place.join("kept.raw");
    std::fs::rename(&truck.image, &kept).unwrap();
    noise(&truck.image, kept.metadata().unwrap().len(), 5);
    let before = crate::common::b3sum(&truck.image);
    let impostor = Server::nbdkit_to_write(&truck.image, &filters);
    running.wait().refused(1, &["found other bytes", "another volume took its place"]);
    // Nor when the command is given again.
    truck.run(&uri, &[]).refused(1, &["found other bytes", "another volume took its place"]);
    drop(impostor);
    assert_eq!(crate::common::b3sum(&truck.image), before);
    std::fs::rename(&kept, &truck.image).unwrap();
    let server = Server::nbdkit_to_write(&truck.image, &[]);
    let imported = truck.run(&uri, &[]).ok();
    drop(server);
    truck.check(&imported);
}

#[test]
fn a_server_that_falls_over_every_write_is_not_asked_for_ever() {
    let truck = Truck::new(200);
    let socket = truck.place.join("socket");
    let zeros = "dd if=/dev/zero count=$3 iflag=count_bytes status=none";
    let again = format!(
        "while rm -f {0}; do nbdkit -f -U {0} eval 'get_size=echo 64M' 'pread={zeros}' 'zero=true' 'flush=true' 'pwrite=kill -9 $PPID'; done",
        socket.display()
    );
    let server = Server::command("sh", &["-c", &again], &socket);
    let ran = truck.run(&server.text(), &[]);
    let said = ran.refused(1, &["could not be written", "the same command again"]);
    assert!(said.matches("is opened anew").count() <= 6, "{said}");
}

#[test]
fn the_loss_of_one_volume_costs_the_others_nothing_and_all_are_imported() {
    let place = Place::new();
    let disks =
        ["sda", "sdb"].map(|name| Disk::new("db01", name, data(1500 * BLOCK + 512, BLOCK, |block| block % 7 == 5)));
    let made = make(place.path(), &disks, &Recipe::default());
    let images = ["a.raw", "b.raw"].map(|name| place.join(name));
    images.iter().for_each(|image| sparse(image, 100 * MIB));
    let start = |image: &Path| Server::nbdkit_to_write(image, &["--filter=rate", "rate=400M", "burstiness=0.1"]);
    let (first, mut second) = (start(&images[0]), start(&images[1]));
    let to = [format!("nbd:db01/sda={}", first.text()), format!("nbd:db01/sdb={}", second.text())];
    let import = command(&place, &made, "import", "auto").args(["--to", &to[0], "--to", &to[1]]);
    let mut running = import.start();
    assert!(running.until(LIMIT, |_| ledger(&place, "min(mark)").parse().unwrap_or(0) > 0), "{}", running.said());
    second.kill();
    assert!(
        running.until(LIMIT, |running| running.said().contains("of db01/sdb is opened anew")),
        "{}",
        running.said()
    );
    second = start(&images[1]);
    let imported = running.wait().ok();
    assert!(imported["disks"].as_array().unwrap().iter().all(|disk| disk["state"] == "imported"), "{imported}");
    drop((first, second));
    for (disk, image) in disks.iter().zip(&images) {
        assert!(std::fs::read(image).unwrap()[..disk.data.len()] == disk.data, "{image:?}");
    }
}

#[test]
fn a_server_that_is_gone_or_mute_is_shown_and_waited_for_and_the_same_command_resumes() {
    let truck = Truck::new(3000);
    let start = || Server::nbdkit_to_write(&truck.image, &["--filter=rate", "rate=300M", "burstiness=0.1"]);
    let mut server = start();
    let uri = server.text();
    let mut running = truck.start(&uri, &[]);
    server.kill();
    assert!(running.until(LIMIT, |running| running.said().contains("opened anew")), "{}", running.said());
    std::thread::sleep(Duration::from_millis(500));
    let since = Instant::now();
    running.signal(libc::SIGINT);
    running.wait().refused(5, &["SIGINT"]);
    assert!(since.elapsed() < Duration::from_secs(30), "stopping took {:?}", since.elapsed());
    let mark = truck.mark();
    assert!(mark > 0);

    let server = start();
    let mut running = truck.import(&uri, &[]).start();
    assert!(running.until(LIMIT, |_| truck.mark() > mark), "{}", running.said());
    server.signal(libc::SIGSTOP);
    assert!(running.until(LIMIT, |running| running.said().contains("has not answered for")), "{}", running.said());
    server.signal(libc::SIGCONT);
    let imported = running.wait().ok();
    assert!(imported["disks"][0]["resumed_from_block"].as_u64().unwrap() >= mark, "{imported}");
    drop(server);
    truck.check(&imported);
}

#[test]
fn a_server_that_refuses_writes_is_told_and_the_same_command_resumes() {
    for (error, words) in [("ENOSPC", "make room"), ("EIO", "check the volume")] {
        let truck = Truck::new(2000);
        let trigger = truck.place.file("trigger", "");
        let (what, when) = (format!("error-pwrite={error}"), format!("error-file={}", trigger.display()));
        let filters = ["--filter=error", &what, "error-pwrite-rate=2%", &when];
        let server = Server::nbdkit_to_write(&truck.image, &filters);
        truck.run(&server.text(), &[]).refused(1, &["block", words, "the same command again"]);
        std::fs::remove_file(&trigger).unwrap();
        let imported = truck.run(&server.text(), &[]).ok();
        drop(server);
        truck.check(&imported);
    }
}

#[test]
fn an_import_that_is_killed_again_and_again_ends_with_the_same_command() {
    let mut dice = Dice::new(seed_of_this_run());
    let truck = Truck::new(3000);
    let server = Server::qemu(&truck.image, "raw", &[]);
    for _ in 0..8 {
        let running = truck.import(&server.text(), &[]).start();
        std::thread::sleep(Duration::from_millis(30 + dice.below(250)));
        running.kill();
    }
    let imported = truck.run(&server.text(), &[]).ok();
    drop(server);
    let state = &imported["disks"][0]["state"];
    assert!(state == "imported" || state == "already-imported", "{imported}");
    truck.check_image(&truck.image);
}

#[test]
fn exports_that_are_no_volumes_are_refused_with_what_to_do() {
    let truck = Truck::new(200);
    let refuse = |server: &Server, parts: &[&str]| drop(truck.run(&server.text(), &[]).refused(1, parts));
    refuse(&Server::qemu(&truck.image, "raw", &["-r"]), &["an export to write to", "read-only"]);
    let coarse = ["--filter=blocksize-policy", "blocksize-minimum=64K", "blocksize-preferred=64K"];
    refuse(&Server::nbdkit_to_write(&truck.image, &coarse), &["blocks of 4096 bytes at most", "65536"]);
    let socket = truck.place.join("eval.socket");
    let at = socket.to_str().unwrap();
    let cannot_flush =
        ["get_size=echo 64M", "pread=dd if=/dev/zero count=$3 iflag=count_bytes", "pwrite=cat >/dev/null"];
    let arguments = [["-f", "-U", at, "eval"].as_slice(), &cannot_flush].concat();
    refuse(&Server::command("nbdkit", &arguments, &socket), &["a server that can flush"]);
    let small = truck.place.join("small.raw");
    sparse(&small, 12 * MIB);
    refuse(&Server::qemu(&small, "raw", &[]), &["expected at least", "12582912", "name a larger volume"]);
    truck.run("nbd+unix:///disk?socket=/nowhere", &[]).refused(1, &["nobody answers", "/nowhere"]);
    truck.run("/dev/vdb", &[]).refused(2, &["found no URI"]);
    // A disk has one volume for ever, and a volume one disk.
    let server = Server::qemu(&truck.image, "raw", &[]);
    truck.run(&server.text(), &[]).ok();
    let other = truck.place.join("other.raw");
    sparse(&other, truck.image.metadata().unwrap().len());
    let elsewhere = Server::qemu(&other, "raw", &[]);
    truck.run(&elsewhere.text(), &[]).refused(1, &["expected its volume", &server.text()]);
    let restore = command(&truck.place, &truck.made, "restore", "auto");
    // Its arguments stand behind the array.
    restore.args(["db01/sda", &server.text()]).run().refused(1, &["expected no volume of an import"]);
    let restored =
        command(&truck.place, &truck.made, "restore", "auto").args(["db01/sda", &elsewhere.text()]).run().ok();
    assert_eq!((&restored["complete"], &restored["target"]), (&true.into(), &elsewhere.text().into()));
    drop(elsewhere);
    truck.check_image(&other);
}
