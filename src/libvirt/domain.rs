//! What libvirt says of a machine and its disks.

use super::{virsh, xml};
use crate::error::{Error, IoContext, Result};
use crate::nbd::wire::text as shown;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Disks of one machine that are looked at.
const MOST_DISKS: usize = 1024;
/// The first QEMU whose NBD server takes a machine with I/O threads in every case that was tried here.
const LEAST_WITH_THREADS: (u64, u64) = (9, 1);

/// A machine.
#[derive(Debug, Clone)]
pub struct Domain {
    /// Its name.
    pub name: String,
    /// What it keeps when it is renamed.
    pub uuid: Uuid,
    /// Whether it runs, or is paused.
    pub running: bool,
    /// Its disks and drives, in libvirt's order.
    pub disks: Vec<Disk>,
    /// User and group of its QEMU, where libvirt gives it some of its own.
    pub owner: Option<(u32, u32)>,
    /// What `virsh domcapabilities` is asked with.
    emulator: Vec<String>,
}

/// A disk or drive of a machine.
#[derive(Debug, Clone)]
pub struct Disk {
    /// `vda` …
    pub target: String,
    /// `qcow2`, `raw` …
    pub format: String,
    /// Whether it is a disk; optical and floppy drives are none.
    pub is_disk: bool,
    /// Whether a thread of its own serves it.
    pub has_thread: bool,
}

impl Disk {
    /// Whether libvirt can keep a record of changes in it.
    pub fn keeps_checkpoints(&self) -> bool {
        self.format == "qcow2"
    }
}

impl Domain {
    /// Looks for the machine of this name or UUID.
    ///
    /// # Errors
    /// libvirt does not answer, or is another host's; there is none.
    pub fn look(name: &str) -> Result<Domain> {
        virsh::expect_local()?;
        let text = virsh::ask(&["dumpxml", &format!("--domain={name}")]).map_err(|error| match error.next {
            Some(_) => error,
            None => error.next("'virsh list --all' shows the machines of this host"),
        })?;
        let domain = Domain::parse(&text)?;
        // A number is the place of a machine in the list of those that run, and tomorrow another's.
        match domain.name == name || Uuid::parse_str(name).is_ok_and(|uuid| uuid == domain.uuid) {
            true => Ok(domain),
            false => Err(Error::usage(format!(
                "Source libvirt:{name}: expected the name or UUID of a machine, found the number of {}",
                shown(domain.name.as_bytes())
            ))),
        }
    }

    fn parse(text: &str) -> Result<Domain> {
        xml::read(text, "a machine", "domain", |root| {
            let wrong = |what: &str| Error::failed(format!("Libvirt: expected the XML of a machine, found no {what}"));
            let name = xml::text(root, &["name"]).ok_or_else(|| wrong("name"))?;
            let uuid = xml::text(root, &["uuid"]).and_then(|uuid| Uuid::parse_str(uuid).ok());
            let devices = xml::child(root, &["devices"]).ok_or_else(|| wrong("devices"))?;
            let disks: Vec<Disk> =
                devices.children().filter(|node| node.has_tag_name("disk")).filter_map(disk).collect();
            if disks.len() > MOST_DISKS {
                return Err(wrong(&format!("{MOST_DISKS} disks at most, but {}", disks.len())));
            }
            let label = root
                .children()
                .find(|node| node.has_tag_name("seclabel") && node.attribute("model") == Some("dac"))
                .and_then(|node| xml::text(node, &["label"]));
            let owner = match label {
                Some(label) => Some(numbers(label).ok_or_else(|| {
                    let label = shown(label.as_bytes());
                    Error::failed(format!("Machine {name}: expected the user of its QEMU as +UID:+GID, found {label}"))
                        .next("write numbers into its <seclabel model='dac'>")
                })?),
                None => None,
            };
            let mut emulator = Vec::new();
            let mut add = |option: &str, value: Option<&str>| {
                emulator.extend(value.map(|value| format!("--{option}={value}")));
            };
            let kind = xml::child(root, &["os", "type"]);
            add("emulatorbin", xml::text(devices, &["emulator"]));
            add("virttype", root.attribute("type"));
            add("arch", kind.and_then(|kind| kind.attribute("arch")));
            add("machine", kind.and_then(|kind| kind.attribute("machine")));
            Ok(Domain {
                name: name.to_owned(),
                uuid: uuid.ok_or_else(|| wrong("UUID"))?,
                running: root.attribute("id").is_some(),
                disks,
                owner,
                emulator,
            })
        })
    }

    /// How it is named to `virsh`.
    pub fn option(&self) -> String {
        format!("--domain={}", self.uuid)
    }

    /// Refuses a machine that is shut off.
    ///
    /// # Errors
    /// It is.
    pub fn expect_running(&self) -> Result<()> {
        match self.running {
            true => Ok(()),
            false => Err(Error::failed(format!("Machine {}: expected it to run, found it shut off", self.shown()))
                .next("start it; or read its images, as FORMAT:PATH")),
        }
    }

    /// Refuses what cannot take a snapshot, or takes harm from it.
    ///
    /// # Errors
    /// libvirt or QEMU is too old.
    pub fn expect_backups(&self, targets: &[&str]) -> Result<()> {
        let by_hook = "take snapshots of its images by a hook instead, and name them as FORMAT:PATH";
        let words: Vec<&str> =
            ["domcapabilities"].into_iter().chain(self.emulator.iter().map(String::as_str)).collect();
        let supported = xml::read(&virsh::ask(&words)?, "its abilities", "domainCapabilities", |root| {
            Ok(xml::child(root, &["features", "backup"]).is_some_and(|node| node.attribute("supported") == Some("yes")))
        })?;
        if !supported {
            return Err(Error::failed(format!(
                "Machine {}: expected libvirt and QEMU that can back it up while it runs, found some that cannot",
                self.shown()
            ))
            .next(by_hook));
        }
        let threads = self.disks.iter().any(|disk| disk.has_thread && targets.contains(&disk.target.as_str()));
        match virsh::qemu_version()?.filter(|version| threads && *version < LEAST_WITH_THREADS) {
            Some((major, minor)) => {
                let (least, than) = LEAST_WITH_THREADS;
                Err(Error::failed(format!(
                    "Machine {}: expected QEMU {least}.{than} or newer, as its disks have I/O threads, found {major}.{minor}",
                    self.shown()
                ))
                .next(by_hook))
            }
            None => Ok(()),
        }
    }

    /// The disk of this target.
    ///
    /// # Errors
    /// There is none: says which there are.
    pub fn find(&self, target: &str) -> Result<&Disk> {
        self.disks.iter().find(|disk| disk.is_disk && disk.target == target).ok_or_else(|| {
            let named = |disk: &Disk| format!("{}: {}", disk.target, disk.format);
            let disks: Vec<String> = self.disks.iter().filter(|disk| disk.is_disk).map(named).collect();
            let disks = if disks.is_empty() { "it has none".into() } else { shown(disks.join(", ").as_bytes()) };
            let found = if target.is_empty() { "none" } else { target };
            let name = self.shown();
            Error::usage(format!(
                "Source libvirt:{name}#{target}: expected a disk of this machine ({disks}), found {found}"
            ))
            .next(format!("write libvirt:{name}#DISK"))
        })
    }

    /// The size of a disk, bytes.
    ///
    /// # Errors
    /// libvirt does not tell.
    pub fn bytes(&self, disk: &Disk) -> Result<u64> {
        let words = ["domblkinfo", &self.option(), &format!("--device={}", disk.target)];
        let said = virsh::ask(&words)?;
        let capacity = said.lines().find_map(|line| line.strip_prefix("Capacity:")?.trim().parse().ok());
        capacity.ok_or_else(|| {
            let said = shown(said.as_bytes());
            Error::failed(format!("Libvirt: expected the capacity of {}, found {said:.200}", disk.target))
        })
    }

    /// Its name, fit to be shown.
    pub fn shown(&self) -> String {
        shown(self.name.as_bytes())
    }

    /// Refuses a directory that the machine's QEMU cannot enter.
    ///
    /// # Errors
    /// It cannot: says what is in the way.
    pub fn expect_enters(&self, dir: &Path) -> Result<()> {
        let Some((user, group)) = self.owner.filter(|(user, _)| *user != 0) else { return Ok(()) };
        let what = || format!("Scratch directory {}", dir.display());
        let real = dir.canonicalize().context(what)?;
        match closed_to(user, group, &real).context(what)? {
            None => Ok(()),
            Some(closed) => Err(Error::failed(format!(
                "{}: expected one that the QEMU of machine {} can enter, which runs as user {user}, found {} closed to it",
                what(),
                self.shown(),
                closed.display()
            ))
            .next("name a directory that it can enter, as /var/lib/libvirt/images: --scratch DIR")),
        }
    }
}

/// The first directory on the way to `dir`, itself included, that this user cannot enter. Asked of the kernel, which knows of lists of
/// access as well; who may not take another's place looks with rights of his own.
fn closed_to(user: u32, group: u32, dir: &Path) -> std::io::Result<Option<PathBuf>> {
    let mut way: Vec<PathBuf> = dir.ancestors().map(Path::to_owned).collect();
    way.reverse();
    let look = move || {
        // SAFETY: plain system calls, which change the rights to files of this thread alone; it ends right after.
        unsafe {
            libc::setfsgid(group);
            libc::setfsuid(user);
        }
        way.into_iter().find(|above| std::fs::metadata(above.join(".")).is_err())
    };
    let thread = std::thread::Builder::new().name("motiongear-enters".into()).spawn(look)?;
    thread.join().map_err(|_| std::io::Error::other("the look at it came to nothing"))
}

/// User and group as libvirt writes them: `+64055:+108`.
fn numbers(label: &str) -> Option<(u32, u32)> {
    let (user, group) = label.split_once(':')?;
    let number = |text: &str| text.strip_prefix('+').unwrap_or(text).parse().ok();
    Some((number(user)?, number(group)?))
}

fn disk(node: roxmltree::Node<'_, '_>) -> Option<Disk> {
    let driver = xml::child(node, &["driver"]);
    Some(Disk {
        target: xml::child(node, &["target"])?.attribute("dev")?.to_owned(),
        format: driver.and_then(|driver| driver.attribute("type")).unwrap_or("raw").to_owned(),
        is_disk: matches!(node.attribute("device"), None | Some("disk" | "lun")),
        has_thread: driver.is_some_and(|driver| {
            driver.attribute("iothread").is_some() || xml::child(driver, &["iothreads"]).is_some()
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "<domain type='kvm' id='3'><name>db01</name><uuid>458a3653-5a82-4d5b-88f5-50f669768bf0</uuid>
        <os><type arch='x86_64' machine='pc-q35-9.2'>hvm</type></os><devices><emulator>/usr/bin/qemu</emulator>
        <disk type='file' device='disk'><driver name='qemu' type='qcow2' iothread='1'/><target dev='vda' bus='virtio'/></disk>
        <disk type='block' device='disk'><driver name='qemu' type='raw'/><target dev='vdb'/></disk>
        <disk type='file' device='cdrom'><target dev='sda'/></disk></devices>
        <seclabel type='dynamic' model='apparmor'><label>x</label></seclabel>
        <seclabel type='dynamic' model='dac' relabel='yes'><label>+64055:+108</label></seclabel></domain>";

    #[test]
    fn a_machine_is_what_its_xml_says() {
        let domain = Domain::parse(SAMPLE).unwrap();
        assert_eq!((domain.name.as_str(), domain.running, domain.owner), ("db01", true, Some((64055, 108))));
        let disks: Vec<_> = domain.disks.iter().map(|d| (d.target.as_str(), d.is_disk, d.has_thread)).collect();
        assert_eq!(disks, [("vda", true, true), ("vdb", true, false), ("sda", false, false)]);
        assert_eq!(
            domain.emulator.join(" "),
            "--emulatorbin=/usr/bin/qemu --virttype=kvm --arch=x86_64 --machine=pc-q35-9.2"
        );
        assert!(domain.find("vda").unwrap().keeps_checkpoints());
        let error = domain.find("sda").unwrap_err().to_string();
        assert!(error.contains("(vda: qcow2, vdb: raw), found sda"), "{error}");
        let off = Domain::parse(&SAMPLE.replace(" id='3'", "")).unwrap();
        assert!(off.expect_running().unwrap_err().to_string().contains("found it shut off"));
    }

    #[test]
    fn half_a_machine_is_none() {
        for cut in ["<name>db01</name>", "<uuid>458a3653-5a82-4d5b-88f5-50f669768bf0</uuid>"] {
            assert!(Domain::parse(&SAMPLE.replace(cut, "")).is_err(), "{cut}");
        }
        assert!(Domain::parse(&SAMPLE.replace("+64055:+108", "qemu:kvm")).is_err());
        assert_eq!(numbers("0:0"), Some((0, 0)));
        assert_eq!(numbers("+1"), None);
    }
}
