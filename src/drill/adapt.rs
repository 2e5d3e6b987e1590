//! Adapts the clone to the hardware of a cloud before it boots: drivers, initramfs, boot configuration. That is `virt-v2v-in-place`'s work, which
//! knows how each system wants it; here it gets the disks in a form that it takes, is watched, and is listened to.
//!
//! What it writes goes to the images that the machine's own writes go to: below them lies whatever the drill boots from, served read-only, so that
//! neither volume, recovery point, clone in a cloud nor array is written to.

use super::adapter::{MACHINE, NOT_STARTED, PROGRAM, WITHIN};
use super::folder::{ADAPT_LOG, Folder, MAX_ADAPT_LOG_BYTES};
use super::here::{RESERVED_BYTES, free};
use super::record::{Accel, Adapt, AdaptState, Adaptation, Course, Drill, MAX_TROUBLES};
use crate::context::now;
use crate::error::{Error, IoContext, Result};
use crate::io::Access;
use crate::nbd::wire::text;
use crate::nbd::{Server, VOLUME};
use crate::program;
use crate::units::size;
use crate::volume::layer::Layer;
use serde::Deserialize;
use serde_json::json;
use std::collections::VecDeque;
use std::fs::{DirBuilder, File};
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Room that the converter's own small machine takes beside what it writes, bytes: 380 MiB were seen with Debian 12.
pub const APPLIANCE_BYTES: u64 = 1 << 30;
/// For programs that answer at once.
const LIMIT: Duration = Duration::from_secs(60);
/// Its longest line that is understood, bytes.
const MAX_LINE_BYTES: usize = 64 << 10;
/// The longest remark that is kept, characters.
const MAX_REMARK: usize = 1000;
/// Who brings it.
const INSTALL: &str = "Debian: virt-v2v; Red Hat, SUSE: virt-v2v";
/// What it says where it has no driver to put in: it goes on then, and the machine would not boot.
const NO_DRIVERS: [&str; 2] = ["there are no virtio drivers available", "there is no virtio block device driver"];
/// Parts of its last words, and what to do then.
const NEXT: [(&str, &str); 6] = [
    (
        "Windows Hibernation",
        "its NTFS was in use when it was copied: shut that machine down fully, without fast start, for the copy that is cut over; or drill without --adapt",
    ),
    ("guestfs_launch failed", "see why with: LIBGUESTFS_BACKEND=direct libguestfs-test-tool"),
    ("supermin", "see why with: LIBGUESTFS_BACKEND=direct libguestfs-test-tool"),
    (
        "could not detect",
        "it found no system that it knows: drill without --adapt, on a --disk-bus that the system has a driver for",
    ),
    (
        "unable to convert",
        "virt-v2v(1) lists the systems that it knows: drill without --adapt, on a --disk-bus that the system has a driver for",
    ),
    ("multi-boot", "it adapts machines with one system: drill without --adapt"),
];

/// Program and version, where this host can adapt a machine.
///
/// # Errors
/// It is not installed; there is no kernel for its own small machine; we may not shut it off.
pub fn find() -> Result<String> {
    let mut command = program::command(PROGRAM);
    command.arg("--version");
    let ended = program::run(command, LIMIT, INSTALL)
        .map_err(|error| Error::failed("Converter: expected virt-v2v on this host").because(error))?;
    // `virt-v2v-in-place 2.2.0`
    let said = text(&ended.output);
    let version = said.split_whitespace().nth(1).filter(|_| ended.code == Some(0)).ok_or_else(|| {
        Error::failed(format!("Converter: expected the version of {PROGRAM}, found '{said:.100}' {:.200}", ended.words))
            .next(format!("install it ({INSTALL})"))
    })?;
    if !has_kernel() {
        return Err(Error::failed(
            "Kernel of this host: expected one in /boot (vmlinuz-…) for the converter's own small machine, found none",
        )
        .next("install one (Debian: linux-image-cloud-amd64); it need not be the one that runs"));
    }
    if !rustix::process::geteuid().is_root() {
        return Err(Error::failed("Converter: expected to be root, to shut it off from this host, found another user")
            .next("run the drill as root, or without --adapt"));
    }
    Ok(format!("{PROGRAM} {version}"))
}

/// Debian, SUSE and Red Hat have it in /boot, newer ones beside its modules.
fn has_kernel() -> bool {
    let names = |dir: &str| std::fs::read_dir(dir).into_iter().flatten().flatten();
    names("/boot").any(|entry| entry.file_name().to_string_lossy().starts_with("vmlinuz"))
        || names("/lib/modules").any(|entry| entry.path().join("vmlinuz").exists())
}

/// Adapts what a drill's machine will boot, and writes its course down.
///
/// # Errors
/// It could not be adapted, with the converter's last words; the course cannot be written.
pub fn run(folder: &Folder, drill: &Drill, adapt: &Adapt, layers: &[Layer], course: &mut Course) -> Result<()> {
    let since = Instant::now();
    let mut adaptation = Adaptation {
        by: adapt.by.clone(),
        state: AdaptState::Running,
        began_at: now()?,
        seconds: None,
        remarks: Vec::new(),
    };
    course.adaptation = Some(adaptation.clone());
    folder.put_course(course)?;
    let mut log = Log::new(&folder.join(ADAPT_LOG))?;
    let converted = convert(folder, drill, adapt, layers, &mut log);
    log.finish();
    adaptation.seconds = Some(since.elapsed().as_secs());
    adaptation.remarks = std::mem::take(&mut log.remarks);
    let converted = converted.and_then(|ended| judge(&ended, &log, &adaptation.remarks));
    adaptation.state = if converted.is_ok() { AdaptState::Done } else { AdaptState::Failed };
    course.adaptation = Some(adaptation);
    folder.put_course(course)?;
    // What is left in there is of no use to anybody.
    let cleared = folder.clear_adapting();
    converted.and(cleared.map(drop))
}

fn convert(folder: &Folder, drill: &Drill, adapt: &Adapt, layers: &[Layer], log: &mut Log) -> Result<program::Ended> {
    let place = folder.adapting();
    DirBuilder::new().mode(0o700).create(&place).context(|| format!("Directory {}", place.display()))?;
    // However a clone is reached, the converter has no network to it: a socket of this host leads there. They live as long as it does.
    let below: Vec<Server> =
        layers.iter().map(|layer| Server::of_volume(&layer.disk, None, Access::Read)).collect::<Result<_>>()?;
    for (slot, server) in below.iter().enumerate() {
        let (image, within) = (folder.overlay(slot), place.join(image_name(slot)));
        let options = server.uri(VOLUME).block_options().unwrap_or_default();
        let backing = json!({ "driver": "raw", "file": options });
        write_down(&image, &format!("json:{backing}"))?;
        std::fs::hard_link(&image, &within).context(|| format!("Image {}", within.display()))?;
    }
    let description = place.join(MACHINE);
    std::fs::write(&description, describe(drill)).context(|| format!("File {}", description.display()))?;
    let mut command = Command::new("/proc/self/exe");
    command.args(["drill-adapter", &std::process::id().to_string()]).arg(&place);
    if drill.accel == Accel::Tcg {
        command.arg("--tcg");
    }
    let limit = Duration::from_secs(adapt.within_seconds);
    let check = || -> Result<()> {
        if folder.is_to_end() {
            return Err(Error::interrupted("expected to be adapted, found that the drill is to end"));
        }
        match free(folder)? < RESERVED_BYTES {
            false => Ok(()),
            true => Err(Error::failed(format!(
                "State directory: expected {} free while the machine is adapted, found less",
                size(RESERVED_BYTES)
            ))
            .next("make room there, and drill again")),
        }
    };
    let ended = program::run_pieces(command, limit, INSTALL, &check, |piece| log.take(piece)).map_err(|error| {
        let late = Duration::from_secs(adapt.within_seconds) <= log.since.elapsed();
        if late { error.next("give it more with --adapt-within: it is slow without KVM") } else { error }
    })?;
    // Whoever boots it says anew what lies below, and QEMU would mix the two: options of NBD with those of Ceph.
    if ended.code == Some(0) {
        (0..below.len()).try_for_each(|slot| write_down(&folder.overlay(slot), ""))?;
    }
    Ok(ended)
}

/// Writes into an image what lies below it, and changes nothing else in it.
fn write_down(image: &Path, below: &str) -> Result<()> {
    let mut command = program::command("qemu-img");
    command.args(["rebase", "-q", "-u", "-f", "qcow2", "-b", below]);
    if !below.is_empty() {
        command.args(["-F", "raw"]);
    }
    command.arg(image);
    let ended = program::run(command, LIMIT, "Debian: qemu-utils")?;
    match ended.code {
        Some(0) => Ok(()),
        _ => Err(Error::failed(format!("Image {}: qemu-img could not alter it: {}", image.display(), ended.words))),
    }
}

/// What became of it, by how it ended and what it said.
fn judge(ended: &program::Ended, log: &Log, remarks: &[String]) -> Result<()> {
    let by = match ended.code {
        Some(0) => {
            let lacks = remarks.iter().find(|remark| NO_DRIVERS.iter().any(|part| remark.contains(part)));
            return match lacks {
                None => Ok(()),
                Some(remark) => Err(Error::failed(format!("{PROGRAM} has no drivers for it: {remark}")).next(
                    "put the drivers of virtio-win at /usr/share/virtio-win (its ISO or its files), or name them in VIRTIO_WIN; or drill without --adapt",
                )),
            };
        }
        Some(code) if code == i32::from(NOT_STARTED) => return Err(Error::failed(log.words())),
        Some(code) => format!("exit {code}"),
        None => "killed".into(),
    };
    let words = log.words();
    let next = NEXT.iter().find(|(part, _)| words.contains(part)).map(|(_, next)| (*next).to_owned());
    let next = next.unwrap_or_else(|| format!("read {}; or drill without --adapt", log.path));
    Err(Error::failed(format!("{PROGRAM} could not adapt it ({by}): {words}")).next(next))
}

/// A disk's image in the box.
fn image_name(slot: usize) -> String {
    format!("disk{slot}.qcow2")
}

/// The machine as libvirt would describe it: its disks are what counts.
fn describe(drill: &Drill) -> String {
    let disks: String = (0..drill.disks.len())
        .map(|slot| {
            // There are no more disks than letters: see `plan`.
            let letter = char::from(b'a'.saturating_add(u8::try_from(slot).unwrap_or(u8::MAX)));
            let image = image_name(slot);
            format!(
                "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{WITHIN}/{image}'/><target dev='sd{letter}' bus='sata'/></disk>"
            )
        })
        .collect();
    let Drill { drill: id, memory_bytes, cpus, .. } = drill;
    let mib = memory_bytes >> 20;
    format!(
        "<domain type='kvm'><name>motiongear-drill-{id}</name><memory unit='MiB'>{mib}</memory><vcpu>{cpus}</vcpu>\
         <os><type>hvm</type></os><devices>{disks}</devices></domain>\n"
    )
}

/// What a converter says, kept up to a bound at both ends, and understood.
struct Log {
    path: String,
    file: File,
    since: Instant,
    /// Bytes in the file.
    kept: usize,
    /// What came after them.
    tail: VecDeque<u8>,
    /// Of what came, left out of both.
    lost: usize,
    line: Vec<u8>,
    /// Its last error.
    error: Option<String>,
    /// Its last line that is none of its messages.
    last: String,
    remarks: Vec<String>,
}

/// A message of it, for machines.
#[derive(Deserialize)]
struct Message {
    message: String,
    #[serde(rename = "type")]
    kind: String,
}

impl Log {
    fn new(path: &Path) -> Result<Log> {
        let what = || format!("File {}", path.display());
        Ok(Log {
            path: path.display().to_string(),
            file: File::options().write(true).create_new(true).open(path).context(what)?,
            since: Instant::now(),
            kept: 0,
            tail: VecDeque::new(),
            lost: 0,
            line: Vec::new(),
            error: None,
            last: String::new(),
            remarks: Vec::new(),
        })
    }

    fn take(&mut self, piece: &[u8]) {
        let (first, rest) = piece.split_at(MAX_ADAPT_LOG_BYTES.saturating_sub(self.kept).min(piece.len()));
        // A full disk must not cost what is understood.
        if self.file.write_all(first).is_ok() {
            self.kept += first.len();
        }
        self.tail.extend(rest);
        let over = self.tail.len().saturating_sub(MAX_ADAPT_LOG_BYTES);
        self.tail.drain(..over);
        self.lost += over;
        for byte in piece {
            match byte {
                b'\n' => self.understand(),
                _ if self.line.len() < MAX_LINE_BYTES => self.line.push(*byte),
                _ => {}
            }
        }
    }

    fn understand(&mut self) {
        let line = std::mem::take(&mut self.line);
        let short = |text: &str| -> String {
            let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_REMARK).collect();
            plain.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        match serde_json::from_slice::<Message>(&line) {
            Ok(Message { message, kind }) if kind == "error" => self.error = Some(short(&message)),
            Ok(Message { message, kind }) if kind == "warning" || kind == "info" => {
                if self.remarks.len() < MAX_TROUBLES {
                    self.remarks.push(short(&message));
                }
            }
            Ok(_) => {}
            Err(_) => {
                let line = short(&String::from_utf8_lossy(&line));
                if !line.is_empty() {
                    self.last = line;
                }
            }
        }
    }

    /// Writes down what is kept of its end.
    fn finish(&mut self) {
        if !self.line.is_empty() {
            self.understand();
        }
        if self.lost > 0 {
            let _ = write!(self.file, "\n[{} bytes are left out here]\n", self.lost);
        }
        let tail: Vec<u8> = std::mem::take(&mut self.tail).into();
        let _ = self.file.write_all(&tail).and_then(|()| self.file.sync_data());
    }

    /// Its last words.
    fn words(&self) -> String {
        self.error.clone().unwrap_or_else(|| self.last.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(name: &str, pieces: &[&[u8]]) -> (Log, Vec<u8>) {
        let path = std::env::temp_dir().join(format!("mg-adapt-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let mut log = Log::new(&path).unwrap();
        pieces.iter().for_each(|piece| log.take(piece));
        log.finish();
        let kept = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        (log, kept)
    }

    fn ended(code: Option<i32>) -> program::Ended {
        program::Ended { code, output: Vec::new(), words: String::new() }
    }

    #[test]
    fn what_a_converter_says_is_kept_up_to_a_bound_and_understood() {
        let said = b"[ 1.0] Opening\n{ \"message\": \"no  grub\\n\\tfound\", \"type\": \"warning\" }\nplain\n{ \"message\": \"stop\", \"type\": \"error\" }";
        let (log, kept) = log("said", &[&said[..20], &said[20..]]);
        assert_eq!(kept, said);
        assert_eq!(
            (log.words().as_str(), log.last.as_str(), &log.remarks[..]),
            ("stop", "plain", &["no grub found".to_owned()][..])
        );
        // Without end, and without a line's end.
        let (log, kept) = super::tests::log("long", &[&vec![b'a'; 3 << 20], b"z"]);
        assert_eq!(log.words().len(), MAX_REMARK);
        assert!(kept.len() < 2 * MAX_ADAPT_LOG_BYTES + 100 && kept.starts_with(b"aaa") && kept.ends_with(b"az"));
        assert!(String::from_utf8_lossy(&kept).contains("[1048577 bytes are left out here]"));
        // As many remarks as it likes.
        let remark = b"{ \"message\": \"x\", \"type\": \"info\" }\n".repeat(1000);
        assert_eq!(super::tests::log("remarks", &[&remark]).0.remarks.len(), MAX_TROUBLES);
    }

    #[test]
    fn how_it_ended_says_what_to_do_next() {
        let judged = |code, said: &str| {
            let (mut log, _) = log("judged", &[said.as_bytes()]);
            let remarks = std::mem::take(&mut log.remarks);
            judge(&ended(code), &log, &remarks).map_err(|error| error.to_string())
        };
        let message = |kind: &str, text: &str| json!({ "message": text, "type": kind }).to_string();
        assert!(judged(Some(0), &message("warning", "could not add a console (ignored)")).is_ok());
        // It says that it succeeded, and the machine would not boot: the words of version 2.2.0.
        let lacks = "there are no virtio drivers available for this version of Windows (6.1 x86_64 Server)";
        assert!(judged(Some(0), &message("warning", lacks)).unwrap_err().contains("VIRTIO_WIN"));
        let unknown = "virt-v2v is unable to convert this guest type (linux/hardlinux)";
        let error = judged(Some(1), &message("error", unknown)).unwrap_err();
        assert!(error.contains("(exit 1): virt-v2v is unable") && error.contains("drill without --adapt"), "{error}");
        assert!(
            judged(Some(1), &message("error", "libguestfs error: guestfs_launch failed."))
                .unwrap_err()
                .contains("libguestfs-test-tool")
        );
        assert!(judged(None, "odd").unwrap_err().contains("(killed): odd"));
        assert_eq!(judged(Some(125), "Box: no").unwrap_err(), "Box: no");
    }
}
